import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Deterministic operations cannot be switched off again, hence a process of its own.
CODE = """
import json
from examples import feature_cache
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
