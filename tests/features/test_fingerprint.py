import hashlib

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.features import _fingerprint
from keras_transfer.features._entry import EntryPoint


def sums(array):
    digest = hashlib.sha256()
    _fingerprint.update_with_sums(digest, array)
    return digest.hexdigest()


# 2,048 words of 8 bytes make a row: below one, one, some and a rest.
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 20_001])
def test_each_changed_or_exchanged_weight_changes_the_sums(size):
    rng = np.random.default_rng(size)
    array = rng.normal(size=size).astype("float32")
    before = sums(array)
    assert sums(array.copy()) == before
    for place in {0, size - 1, *rng.integers(size, size=20).tolist()}:
        changed = array.copy()
        changed.view("uint32")[place] ^= 1  # the last bit
        assert sums(changed) != before
        if place:
            exchanged = array.copy()
            exchanged[[0, place]] = exchanged[[place, 0]]
            assert sums(exchanged) != before


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", ml_dtypes.bfloat16])
def test_sums_are_those_of_the_bytes_of_any_type_and_layout(dtype):
    array = np.arange(40_000).reshape(200, 200).astype(dtype)
    assert sums(array) == sums(array.reshape(-1).view("uint8"))
    assert sums(array.T) == sums(array.T.copy())
    assert sums(array.T) != sums(array)
    assert sums(np.asfortranarray(array)) == sums(array)


def test_the_checksum_sees_each_weight_and_statistic_before_its_point_and_none_behind():
    backbone = keras.Sequential(
        [
            keras.Input((100,)),
            keras.layers.Dense(100, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="second"),
        ]
    )
    model = ktf.TransferModel(
        backbone,
        ktf.layers.ClassificationHead(2),
        groups=["first", "second"],
    )
    checksum = _fingerprint.weights_checksum(model, EntryPoint(1))
    seen = {checksum()}
    assert checksum() in seen
    for name in ("first", "norm"):
        for weight in backbone.get_layer(name).weights:
            value = weight.numpy()
            value.flat[-1] += 1
            weight.assign(value)
            assert checksum() not in seen, weight.path
            seen.add(checksum())
    for weight in [*backbone.get_layer("second").weights, *model.head.weights]:
        weight.assign(weight + 1)
    assert checksum() in seen
