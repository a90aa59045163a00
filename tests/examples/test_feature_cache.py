import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Deterministic operations cannot be switched off again, hence a process of its own.
CODE = """
import json
import keras
from examples import feature_cache

# Tracing the quickstart's network takes the example's time; one as it is made, but small.
def small(include_top, input_shape):
    layers = [keras.Input(input_shape)]
    for number in range(4):
        layers.append(keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"c{number}"))
        layers.append(keras.layers.BatchNormalization(name=f"n{number}"))
        layers.append(keras.layers.ReLU(name=f"r{number}"))
    return keras.Sequential(layers, name="small")

feature_cache.efficientnet_lite0 = small
arguments = ["--labels=40", "--image-size=32", "--epochs=2", "--verbose=0"]
print(json.dumps(feature_cache.main(arguments)))
"""


def test_the_weights_agree_bit_for_bit_with_and_without_the_cache():
    finished = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True, cwd=ROOT
    )
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["difference"] == 0
    assert result["difference_of_another_seed"] > 1e-3
    assert "largest difference between the weights: 0" in finished.stdout
