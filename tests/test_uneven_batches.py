"""Batches that do not divide evenly by the number of replicas; the last is smaller than it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer._replica_shares import ReplicaShares, examples_that_weigh, loss_reduction
from keras_transfer.features._batch_sizes import even_batches, last_batch_size
from tests.processes import run_in_child

CASES = ("arrays", "cached", "eager", "generator", "sum", "by_weight", "synchronized")


@pytest.fixture(scope="module")
def results(parameters_that_run):
    cases = {one["case"] for one in parameters_that_run if "case" in one}
    found = run_in_child("tests.replicas.uneven", *sorted(cases), "local", "stock")
    return {result["case"]: result for result in found}


@pytest.mark.distributed
@pytest.mark.usually("cached")
@pytest.mark.parametrize("case", CASES)
def test_all_examples_weigh_alike_on_two_replicas_as_on_one(results, case):
    result = results[case]
    assert result["replicas"] == 2
    assert result["distance"] < 1e-5
    assert result["moved"] > 1e-2
    for one, two in result["columns"].values():
        np.testing.assert_allclose(two, one, atol=1e-5)
    wanted = (
        {"accuracy", "val_accuracy", "loss", "val_loss"} if case in ("arrays", "cached") else set()
    )
    assert wanted <= set(result["columns"])


@pytest.mark.distributed
def test_local_statistics_drop_what_cannot_be_shared_evenly_and_say_so_once(results):
    result = results["local"]
    cut = [w for w in result["warnings"] if "cut to a multiple of 2 examples" in w]
    assert len(cut) == 1
    assert "BatchNormalization" in cut[0]
    assert "drop_remainder=True" in cut[0]
    assert result["finite"]
    assert result["steps"] == 6, "the batch of one example is left out"
    assert result["distance"] < 1e-6, "as if the batches had been cut by hand"


@pytest.mark.distributed
def test_a_stock_model_is_told_to_drop_the_remainder(results):
    result = results["stock"]
    assert len(result["errors"]) == 2  # a data set, and arrays
    for error in result["errors"]:
        assert "The last batch has 3 examples, which 2 replicas cannot share evenly" in error
        assert "drop_remainder=True" in error
    assert not result["moved"]


@pytest.mark.distributed
def test_a_stock_model_that_is_prepared_evaluates_uneven_batches(results):
    # When this fails, Keras can do it itself: take out `build_from_specs`.
    assert "AddN" in results["stock"]["unprepared"]
    one, two = results["stock"]["evaluated"]
    np.testing.assert_allclose(two, one, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        ("mse", "sum_over_batch_size"),
        (None, "sum_over_batch_size"),
        ([keras.losses.MeanSquaredError(), "mae"], "sum_over_batch_size"),
        ({"a": keras.losses.MeanSquaredError(reduction="mean"), "b": None}, "sum_over_batch_size"),
        (keras.losses.MeanSquaredError(reduction="sum"), "sum"),
        ([keras.losses.MeanSquaredError(reduction="sum"), "mse"], None),
    ],
)
def test_how_losses_are_reduced_is_read_off_what_compile_was_given(loss, reduction):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.loss = loss
    assert loss_reduction(model) == reduction


def traced(call, *arguments):
    """What a step sees of batches whose sizes are known while it is traced."""
    return tf.function(call, autograph=False)(*map(tf.constant, arguments))


def test_shares_of_one_size_weigh_by_their_sample_weights_where_losses_are_divided_by_these():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    x, weights = np.ones((3, 2), "float32"), np.array([0.5, 1.0, 2.0], "float32")
    model.loss = "mse"
    assert traced(lambda x, w: examples_that_weigh(model, (x, x, w)), x, weights) is None
    model.loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    assert float(traced(lambda x, w: examples_that_weigh(model, (x, x, w)), x, weights)) == 3.5


def test_weights_of_each_output_are_refused_where_losses_are_divided_by_these():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    by_weight = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    shares, x = ReplicaShares(), tf.ones((3, 2))

    def weigh(sample_weight):
        with shares.of_step(examples_that_weigh(model, (x, None, sample_weight))):
            return float(shares.weigh(tf.constant(2.0)))

    model.loss = [by_weight]
    assert weigh([tf.ones(3)]) == 2.0
    model.loss = {"a": by_weight, "b": by_weight}
    assert weigh(tf.ones(3)) == 2.0
    with pytest.raises(ValueError, match="'sum_over_batch_size', or pass one array of weights"):
        weigh({"a": tf.ones(3), "b": None})


def test_batches_are_cut_and_the_empty_ones_left_out():
    data = tf.data.Dataset.range(10).batch(3).map(lambda x: (x, None, -x))
    cut = even_batches(data, 2)
    assert [x.tolist() for x, _, _ in cut.as_numpy_iterator()] == [[0, 1], [3, 4], [6, 7]]
    assert int(cut.cardinality()) == 3


def test_the_last_batch_is_known_where_the_pipeline_tells():
    data = tf.data.Dataset.range(10)
    assert last_batch_size(data.batch(4)) == 2
    assert last_batch_size(data.batch(5).shuffle(2).cache().prefetch(1)) == 5
    assert last_batch_size(data.batch(4, drop_remainder=True)) == 4
    assert last_batch_size(data.filter(lambda x: x > 2).batch(4)) is None
    assert last_batch_size(data.batch(4).unbatch()) is None
