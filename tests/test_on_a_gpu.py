"""What has to run on a GPU unchanged; skipped where there is none. `make test-gpu` runs these."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf

pytestmark = pytest.mark.gpu

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=1e-2),
        ktf.Stage("all", depth="all", epochs=2, peak_lr=1e-3, lr_decay=0.5),
    ]
)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(64, 16, 16, 3)).astype("float32")
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 0).astype("int32")


def build(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16, 16, 3))]
    for name in ("stem", "top"):
        layers += [
            keras.layers.Conv2D(8, 3, strides=2, padding="same", name=name),
            keras.layers.BatchNormalization(name=f"{name}_norm"),
            keras.layers.ReLU(),
        ]
    head = ktf.layers.ClassificationHead(2)
    model = ktf.TransferModel(keras.Sequential(layers), head, groups="blocks")
    model.compile("adamw", "sparse_categorical_crossentropy", **options)
    return model


def train(model, **options):
    """Trains through both stages and returns the losses and what moved in all."""
    before = model.get_weights()
    carrier = ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)
    history = model.fit(
        IMAGES, LABELS, batch_size=16, callbacks=[carrier], verbose=0, **options
    ).history
    after = model.get_weights()
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    return history["loss"], moved


def test_variables_lie_on_the_gpu():
    assert all("GPU" in v.value.device for v in build().trainable_variables)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_both_stages_learn_in_each_precision_with_and_without_xla(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    model = build(jit_compile=jit_compile)
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    losses, moved = train(model, cache_features=False)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    trained = [v.trainable for v in model.weights]
    assert all(m for m, t in zip(moved, trained, strict=True) if t)


def test_features_are_kept_in_host_memory_and_give_what_an_uncached_run_gives():
    cached, _ = train(build(), cache_features=True)
    uncached, _ = train(build(), cache_features=False)
    np.testing.assert_allclose(cached, uncached, rtol=1e-3)
    cache = ktf.features.FeatureCache()
    features = cache.features(build(), IMAGES, verbose=0)
    assert isinstance(features, np.ndarray)
    assert cache.nbytes == features.nbytes


def test_cached_features_reach_the_gpu_ahead_of_the_step():
    strategy = tf.distribute.MirroredStrategy(["GPU:0"])
    with strategy.scope():
        model = build()
    cached, _ = train(model, cache_features=True)
    uncached, _ = train(build(), cache_features=False)
    np.testing.assert_allclose(cached, uncached, rtol=1e-3)
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(16).prefetch(1)
    batch = next(iter(strategy.experimental_distribute_dataset(data)))
    assert "GPU" in batch.device, "the strategy prefetches to the device"


def test_a_gpu_and_the_cpu_agree():
    on_gpu, _ = train(build(), cache_features=False)
    with tf.device("CPU:0"):
        on_cpu, _ = train(build(), cache_features=False)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-2)


GROWING = """
import json, tensorflow as tf
(gpu, *_) = tf.config.list_physical_devices("GPU")
tf.config.experimental.set_memory_growth(gpu, True)
from tests import test_on_a_gpu as tests
losses, _ = tests.train(tests.build())
memory = tf.config.experimental.get_memory_info("GPU:0")
print(json.dumps({"losses": losses, "peak": memory["peak"]}))
"""


def test_memory_may_grow_as_needed():
    child = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert np.isfinite(found["losses"]).all()
    assert found["peak"] < 2**30
