import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer.data import few_shot, load
from keras_transfer.data._selection import ranks

FIXED = {
    0: [2, 5, 7, 8, 10, 11],
    7: [1, 2, 4, 5, 9, 11],
    "ranks": ["0xa706dd2f4d197e6f", "0xb382a305f4414f5e"],
}
LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0])
INPUTS = np.arange(12, dtype="float32")


@given(st.integers(1, 4), st.integers(-5, 2**65), st.permutations(range(12)))
def test_each_class_has_its_examples_in_order_and_choices_nest(per_class, seed, order):
    labels = LABELS[list(order)]
    inputs, kept = few_shot((INPUTS, labels), per_class, seed)
    assert np.bincount(kept).tolist() == [per_class] * 3
    assert (np.diff(inputs) > 0).all()
    np.testing.assert_array_equal(labels[inputs.astype(int)], kept)
    more = few_shot((INPUTS, labels), 4, seed)[0]
    assert set(inputs) <= set(more)


def test_the_choice_is_fixed_for_good():
    # These numbers must never change: results that people published depend on them.
    inputs, _ = few_shot((INPUTS, LABELS), 2, seed=0)
    assert inputs.astype(int).tolist() == FIXED[0]
    inputs, _ = few_shot((INPUTS, LABELS), 2, seed=7)
    assert inputs.astype(int).tolist() == FIXED[7]
    assert [hex(int(rank)) for rank in ranks(2, seed=0)] == FIXED["ranks"]


def split_mix(seed, position):
    """SplitMix64 in Python's unbounded integers."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    start = mix((seed + golden) % 2**64)
    return mix((start + golden * (position + 1)) % 2**64)


@given(st.integers(0, 2**64 - 1))
def test_ranks_are_those_of_exact_integer_arithmetic(seed):
    assert ranks(4, seed).tolist() == [split_mix(seed, position) for position in range(4)]


def test_all_examples_are_equally_likely():
    counts = np.zeros(12)
    for seed in range(2000):
        counts[few_shot((INPUTS, LABELS), 1, seed)[0].astype(int)] += 1
    # Binomial with p = 1/4: three standard deviations are 58.
    assert abs(counts - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_global_seeds_do_not_matter():
    chosen = []
    for seed in (1, 2):
        np.random.seed(seed)
        tf.random.set_seed(seed)
        chosen.append(few_shot((INPUTS, LABELS), 2)[0].tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_data_set_gives_the_examples_that_arrays_give_and_keeps_its_batches(batch_size):
    dataset = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS))
    dataset = dataset if batch_size is None else dataset.batch(batch_size)
    kept = few_shot(dataset, 2, seed=3)
    wanted = few_shot((INPUTS, LABELS), 2, seed=3)
    assert kept.element_spec == dataset.element_spec or batch_size is not None
    assert kept.cardinality() == (6 if batch_size is None else 2)
    for _ in range(2):
        got = [np.concatenate([np.atleast_1d(e[i]) for e in kept]) for i in range(2)]
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_array_equal(got[1], wanted[1])


def test_loaded_data_can_be_chosen_from(tiny):
    dataset, spec = load(tiny, "train", batch_size=4)
    kept = few_shot(dataset, 2, class_names=spec.class_names)
    labels = np.concatenate([label for _, label in kept.as_numpy_iterator()])
    assert np.bincount(labels).tolist() == [2, 2, 2]


def test_dictionary_inputs_weights_and_label_columns_are_kept():
    inputs = {"a": INPUTS, "b": np.stack([INPUTS, INPUTS], axis=1)}
    kept, labels, weights = few_shot((inputs, LABELS[:, None], INPUTS / 10), 1, seed=2)
    assert labels.shape == (3, 1)
    np.testing.assert_array_equal(kept["b"][:, 0], kept["a"])
    np.testing.assert_allclose(weights, kept["a"] / 10)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, LABELS[:, None], INPUTS / 10)).batch(4)
    (batch,) = few_shot(dataset, 1, seed=2).as_numpy_iterator()
    np.testing.assert_array_equal(batch[0]["b"], kept["b"])
    np.testing.assert_array_equal(batch[1], labels)


def test_examples_of_different_shapes_can_be_chosen():
    data = tf.data.Dataset.from_generator(
        lambda: ((np.ones(i + 1, "float32"), LABELS[i]) for i in range(12)),
        output_signature=(tf.TensorSpec((None,)), tf.TensorSpec((), tf.int64)),
    )
    wanted = few_shot((INPUTS, LABELS), 2)[0]
    assert [len(x) for x, _ in few_shot(data, 2)] == (wanted + 1).astype(int).tolist()
    # Padded batches come apart and are padded again.
    padded = few_shot(data.padded_batch(3), 2)
    lengths = [int(row.sum()) for x, _ in padded for row in x.numpy()]
    assert lengths == (wanted + 1).astype(int).tolist()


def test_a_generator_that_does_not_tell_its_shapes_can_be_chosen_from():
    types = (tf.float32, tf.int64)
    dataset = tf.data.Dataset.from_generator(lambda: zip(INPUTS, LABELS, strict=True), types)
    kept = few_shot(dataset.batch(5), 1)
    wanted = few_shot((INPUTS, LABELS), 1)
    for array, part in zip(next(iter(kept)), wanted, strict=True):
        np.testing.assert_array_equal(array, part)


def test_a_class_with_too_few_examples_is_named():
    with pytest.raises(ValueError, match=r"Class 0 has 4 examples.*per_class=5. Lower it"):
        few_shot((INPUTS, LABELS), 5)
    names = ["cat", "dog", "yak", "eel"]
    with pytest.raises(ValueError, match=r"Class 3 \('eel'\) has 0 examples"):
        few_shot((INPUTS, LABELS), 1, class_names=names)
    with pytest.raises(ValueError, match=r"from 0 to 1.*label 2 at example 2"):
        few_shot((INPUTS, LABELS), 1, class_names=names[:2])


def test_data_in_another_order_each_time_is_an_error_and_not_other_examples():
    labels = np.arange(1000) % 50
    dataset = tf.data.Dataset.from_tensor_slices((labels, labels)).shuffle(1000)
    with pytest.raises(ValueError, match=r"^The data set comes in another order each time, so"):
        few_shot(dataset, 5)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((INPUTS, np.eye(3)[LABELS]), TypeError, "one whole number per example.*argmax"),
        ((INPUTS, LABELS.astype(str)), TypeError, r"dtype <U\d+\. Number them, as with"),
        ((INPUTS[:5], LABELS), ValueError, "5 beside 12 labels"),
        ((list(INPUTS), LABELS), TypeError, "Turn lists into arrays with `np.asarray`"),
        (INPUTS, TypeError, "Give a `tf.data.Dataset`"),
        ((INPUTS[:0], LABELS[:0]), ValueError, "There are no examples"),
        (tf.data.Dataset.range(3), TypeError, r"must yield \(inputs, labels\)"),
        (
            tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).repeat(),
            ValueError,
            "has no end.*before `.repeat",
        ),
        (
            tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).take(0),
            ValueError,
            "There are no examples",
        ),
    ],
)
def test_data_that_cannot_be_chosen_from_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        few_shot(data, 1)


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="`per_class` must be at least 1"):
        few_shot((INPUTS, LABELS), 0)
    with pytest.raises(TypeError, match="`seed` must be a whole number"):
        few_shot((INPUTS, LABELS), 1, seed=0.5)
