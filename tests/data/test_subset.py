import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer.data import subset

# 60 of class 0, 30 of class 1, 10 of class 2, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
INPUTS = np.arange(100)


@given(st.floats(0.05, 1), st.integers(0, 1000))
def test_every_class_keeps_its_share_in_order_and_fractions_nest(fraction, seed):
    inputs, labels = subset((INPUTS, LABELS), fraction, seed=seed)
    counts = np.bincount(labels, minlength=3)
    assert abs(counts - fraction * np.array([60, 30, 10])).max() <= 0.5 + 1e-6
    assert (np.diff(inputs) > 0).all()
    np.testing.assert_array_equal(LABELS[inputs], labels)
    more = subset((INPUTS, LABELS), min(1.0, fraction * 1.5), seed=seed)[0]
    assert set(inputs) <= set(more)


@pytest.mark.parametrize("stratified", [True, False])
def test_the_whole_is_everything_and_seeds_differ(stratified):
    np.testing.assert_array_equal(subset((INPUTS, LABELS), 1.0, stratified)[0], INPUTS)
    first, second = (subset((INPUTS, LABELS), 0.3, stratified, seed=s)[0] for s in (0, 1))
    assert len(first) == len(second) == 30
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(first, subset((INPUTS, LABELS), 0.3, stratified, seed=0)[0])


def test_halves_are_rounded_up_for_every_class():
    # 0.15 * 10 is 1.5, and in floats a little less for other counts.
    assert np.bincount(subset((INPUTS, LABELS), 0.15)[1]).tolist() == [9, 5, 2]


def test_without_stratification_classes_come_as_they_fall():
    shares = [np.bincount(subset((INPUTS, LABELS), 0.2, False, s)[1]).tolist() for s in range(20)]
    assert all(sum(counts) == 20 for counts in shares)
    assert len({tuple(counts) for counts in shares}) > 5


def test_a_batched_data_set_keeps_its_batches_and_gives_what_arrays_give():
    dataset = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).batch(8)
    kept = subset(dataset, 0.2, seed=4)
    assert kept.cardinality() == 3
    got = np.concatenate([x for x, _ in kept.as_numpy_iterator()])
    np.testing.assert_array_equal(got, subset((INPUTS, LABELS), 0.2, seed=4)[0])


def test_a_class_that_would_vanish_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"Class 2 would be left.*it has 10.*at least 0.1, or"):
        subset((INPUTS, LABELS), 0.02)
    names = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"Class 3 \('d'\) would be left.*it has 0.*Add some"):
        subset((INPUTS, LABELS), 0.5, class_names=names)
    with pytest.raises(ValueError, match=r"leaves no example. Received: fraction=0.001 of 100"):
        subset((INPUTS, LABELS), 0.001, stratified=False)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.2])
def test_fractions_outside_their_range_are_refused(fraction):
    with pytest.raises(ValueError, match="`fraction` must be finite and at most 1 and above 0"):
        subset((INPUTS, LABELS), fraction)


def test_stratified_is_no_word():
    with pytest.raises(TypeError, match="`stratified` must be True or False"):
        subset((INPUTS, LABELS), 0.5, "no")


def test_data_too_large_for_memory_stays_lazy_and_the_same(monkeypatch):
    from keras_transfer.data import _selection

    dataset = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).batch(8)
    wanted = [x.tolist() for x, _ in subset(dataset, 0.2).as_numpy_iterator()]
    monkeypatch.setattr(_selection, "_MEMORY_BYTES", 10)
    lazy = subset(dataset, 0.2)
    assert [x.tolist() for x, _ in lazy.as_numpy_iterator()] == wanted
    assert lazy.cardinality() == 3
