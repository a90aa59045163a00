"""`recipes.compare` and what it reports: every verdict, on toy data that really shows it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import recipes
from keras_transfer._student_t import t_cdf, t_quantile
from keras_transfer.recipes import Comparison

WIDTH = 4
PAIR = {
    "scratch": recipes.full_fine_tuning(7, peak_lr=3e-2),
    "linear_probe": recipes.linear_probe(7, peak_lr=1e-1),
}
ALL = {"scratch": PAIR["scratch"], "full_fine_tuning": recipes.full_fine_tuning(7, peak_lr=3e-2)}


def xor(count, seed):
    """Two classes that no linear model tells apart: whether two signs agree."""
    x = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")
    return x, (x[:, 0] * x[:, 1] > 0).astype("int64")


def linear(count, seed):
    """Two classes that any model tells apart."""
    x, _ = xor(count, seed)
    y = np.arange(count) % 2
    x[:, 0] = 10.0 * y - 5.0
    return x, y


def layers():
    return keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(16, "relu", name="stem"),
            keras.layers.Dense(16, "relu", name="top"),
        ],
        name="body",
    )


def model_with(weights=None, optimizer="adam", metrics=("accuracy",), backbone=None):
    backbone = backbone or layers()
    if weights is not None:
        backbone.set_weights(weights)
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(2), groups="blocks")
    # Eagerly: a step takes less time than a graph takes to trace.
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=list(metrics), run_eagerly=True)
    return model


def compare(weights, make=xor, strategies=PAIR, seeds=3, **options):
    data = make(48, 2), make(300, 3)
    options = {"batch_size": 48, "verbose": 0, "cache_features": False, **options}
    return recipes.compare(lambda: model_with(weights), data, strategies, seeds, **options)


@pytest.fixture(scope="module")
def pretrained():
    """Weights of a network that has learnt a related task from many examples."""
    keras.utils.set_random_seed(0)
    backbone = layers()
    model = keras.Sequential([backbone, keras.layers.Dense(4, "softmax")])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    x, agree = xor(2000, 1)
    source = 2 * agree + (x[:, 2] > 0)
    model.fit(x, source, epochs=12, batch_size=100, verbose=0)
    return backbone.get_weights()


# --- The verdicts, by training ----------------------------------------------------------------


def test_a_backbone_pretrained_on_a_related_task_helps(pretrained):
    found = compare(pretrained)
    assert found.verdict == "helps", found
    gain = found.difference("linear_probe")
    assert gain.low > 0
    assert gain.mean > 0.05
    assert found.conclusion.startswith(f"Transfer helps by {gain.mean:.3f} ± ")


def test_a_backbone_with_destroyed_weights_hurts(pretrained):
    # No unit fires, and no gradient passes it, so that fine-tuning cannot mend it either.
    dead = [w if w.ndim > 1 else w - 100 for w in pretrained]
    found = compare(dead, linear, ALL)
    assert found.verdict == "hurts", found
    assert found.conclusion.startswith("Transfer hurts by 0.")


@pytest.mark.exhaustive
def test_where_any_start_reaches_the_same_transfer_makes_no_difference(pretrained):
    found = compare(pretrained, linear, seeds=2)
    assert found.verdict == "makes no difference", found
    assert min(found.scores["scratch"]) > 0.95


# --- What the runs are ------------------------------------------------------------------------


def watched(weights, record):
    """A model whose `fit` records what it starts from, and leaves it at that."""

    class Watched(ktf.TransferModel):
        def fit(self, **options):
            record.append(
                {
                    "backbone": self.backbone.model.get_weights(),
                    "head": self.head.get_weights(),
                    "batch_norm": self.backbone.batch_norm,
                    "x": options["x"],
                    "epochs": options["callbacks"][0].plan.total_epochs,
                    "stages": [s.name for s in options["callbacks"][0].plan.stages],
                }
            )

    backbone = layers()
    backbone.set_weights(weights)
    model = Watched(backbone, ktf.layers.ClassificationHead(2), groups="blocks")
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    return model


def test_strategies_of_a_seed_start_from_one_head_and_scratch_from_other_layers():
    keras.utils.set_random_seed(3)
    weights = layers().get_weights()
    record, draws = [], []

    def data(seed):
        draws.append(seed)
        return xor(24, seed), xor(30, 9)

    found = recipes.compare(
        lambda: watched(weights, record), data, seeds=[5, 7], epochs=3, verbose=0
    )
    assert found.metric == "loss"
    assert found.mode == "min"
    assert found.seeds == (5, 7)
    assert draws == [5, 7]  # one draw for all strategies of a seed
    assert list(found.scores) == list(recipes.compare.__globals__["STRATEGIES"])
    assert [len(run["stages"]) for run in record] == [1, 1, 2, 3, 1] * 2
    assert {run["epochs"] for run in record} == {3}
    for runs in (record[:5], record[5:]):
        for run in runs:
            same = [np.array_equal(a, b) for a, b in zip(run["backbone"], weights, strict=True)]
            kernels_same = same[::2]
            assert kernels_same == [run is not runs[0]] * 2
            assert run["batch_norm"] == ("train" if run is runs[0] else "inference")
            for a, b in zip(run["head"], runs[0]["head"], strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(run["x"], runs[0]["x"])
    assert not np.array_equal(record[0]["head"][0], record[5]["head"][0])
    assert not np.array_equal(record[0]["backbone"][0], record[5]["backbone"][0])
    assert not np.array_equal(record[0]["x"], record[5]["x"])


def test_one_seed_cannot_tell_and_repeats_its_scores_and_prints_a_line_for_each_run(capsys):
    keras.utils.set_random_seed(3)
    weights = layers().get_weights()
    strategies = ["scratch", "linear_probe"]
    one = compare(weights, strategies=strategies, seeds=1, epochs=1, verbose=1)
    assert one.verdict == "cannot tell"
    assert one.difference("linear_probe").half_width == np.inf
    assert "one seed has no spread" in one.conclusion
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1 of 2] scratch, seed 0: accuracy 0.")
    assert lines[1].startswith("[2 of 2] linear_probe, seed 0: accuracy 0.")
    assert lines[2].split() == [
        "strategy", "accuracy", "gain", "over", "scratch", "time", "verdict"
    ]  # fmt: skip
    np.random.normal(size=7)
    assert compare(weights, strategies=strategies, seeds=1, epochs=1).scores == one.scores
    assert capsys.readouterr().out == ""


@pytest.mark.exhaustive
def test_data_sets_and_validation_data_are_read():
    def part(count, seed):
        return tf.data.Dataset.from_tensor_slices(xor(count, seed)).batch(16)

    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=2, peak_lr=1e-9, patience=1)])
    found = recipes.compare(
        lambda: model_with(layers().get_weights()),
        (part(32, 0), part(32, 1), part(32, 2)),
        {"scratch": plan, "patient": plan},
        seeds=1,
        metric="loss",
        verbose=0,
        cache_features=False,
    )
    assert found.mode == "min"
    assert np.isfinite(found.scores["patient"]).all()


def test_from_scratch_keeps_what_a_normalization_knows_of_the_data():
    from keras_transfer._fresh_weights import reinitialize

    normalization = keras.layers.Normalization()
    normalization.adapt(np.array([[1.0], [3.0]]))
    model = keras.Sequential([keras.Input((1,)), normalization, keras.layers.Dense(3)])
    before = [np.array(w) for w in model.get_weights()]
    reinitialize(model)
    after = model.get_weights()
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True, True, True, False, True  # mean, variance, count; kernel; a bias begins at 0
    ]  # fmt: skip
    assert after[0] == [2.0]


# --- The arithmetic ---------------------------------------------------------------------------


def report(scratch, other, **options):
    seeds = tuple(range(len(scratch)))
    options = {"metric": "accuracy", "mode": "max", "seeds": seeds, **options}
    scores = {"scratch": scratch, "probe": other}
    return Comparison(scores=scores, seconds=dict.fromkeys(scores, (1.0,) * len(seeds)), **options)


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_tables(degrees, value):
    assert t_quantile(0.975, degrees) == pytest.approx(value, abs=5e-4)
    assert t_quantile(0.025, degrees) == pytest.approx(-value, abs=5e-4)
    assert t_cdf(value, degrees) == pytest.approx(0.975, abs=5e-5)


def test_the_interval_is_that_of_a_paired_t_test():
    found = report((0.70, 0.72, 0.71, 0.74), (0.80, 0.79, 0.84, 0.81)).difference("probe")
    # By hand: gains 0.10, 0.07, 0.13, 0.07; t(0.975, 3) = 3.182.
    assert found.mean == pytest.approx(0.0925)
    assert found.half_width == pytest.approx(3.18245 * 0.028722813 / 2, rel=1e-5)
    # Pairs that move together are told apart where their own spreads overlap.
    apart = report((0.5, 0.6, 0.7, 0.8), (0.52, 0.62, 0.72, 0.821))
    assert apart.difference("probe").verdict == "helps"


def test_few_seeds_give_wide_intervals_and_several_strategies_wider_ones():
    values = (0.70, 0.74), (0.80, 0.79)
    assert report(*values).difference("probe").verdict == "cannot tell"
    scores = {"scratch": (0.7, 0.72, 0.71), "a": (0.8, 0.83, 0.81), "b": (0.8, 0.83, 0.81)}
    both = Comparison("accuracy", "max", (0, 1, 2), scores, dict.fromkeys(scores, (1, 1, 1)))
    alone = report(scores["scratch"], scores["a"]).difference("probe")
    assert both.difference("a").half_width > 1.3 * alone.half_width


@pytest.mark.parametrize(
    ("other", "mode", "margin", "verdict"),
    [
        ((0.80, 0.81, 0.82), "max", 0.01, "helps"),
        ((0.80, 0.81, 0.82), "min", 0.01, "hurts"),
        ((0.60, 0.61, 0.62), "max", 0.01, "hurts"),
        ((0.60, 0.61, 0.62), "min", 0.01, "helps"),
        ((0.701, 0.711, 0.721), "max", 0.01, "makes no difference"),
        ((0.701, 0.711, 0.721), "max", 0.0, "helps"),
        ((0.70, 0.71, 0.72), "max", 0.0, "makes no difference"),
        ((0.60, 0.71, 0.82), "max", 0.01, "cannot tell"),
    ],
)
def test_the_verdict_follows_from_the_interval_and_the_margin(other, mode, margin, verdict):
    found = report((0.70, 0.71, 0.72), other, mode=mode, margin=margin)
    assert found.difference("probe").verdict == verdict
    assert found.verdict == verdict
    words = {"cannot tell": "Cannot tell whether", "helps": "Transfer helps by 0."}
    assert found.conclusion.startswith(words.get(verdict, f"Transfer {verdict}"))


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (0.2, -0.2, "helps"),
        (-0.2, -0.1, "hurts"),
        (-0.2, 0.0, "makes no difference"),
        (-0.2, None, "cannot tell"),
        (0.0, None, "cannot tell"),
        (0.2, None, "helps"),
    ],
)
def test_transfer_is_judged_by_what_all_strategies_do(a, b, verdict):
    scratch = np.array([0.5, 0.55, 0.6])
    wild = scratch + np.array([-0.2, 0.0, 0.3])
    scores = {"scratch": scratch, "a": scratch + a, "b": wild if b is None else scratch + b}
    found = Comparison("accuracy", "max", (0, 1, 2), scores, dict.fromkeys(scores, (1, 1, 1)))
    assert found.verdict == verdict


def test_a_report_survives_json_and_draws_no_wrong_conclusion_from_damage():
    found = report((0.70, 0.72, 0.71), (0.80, 0.79, 0.84))
    assert Comparison.from_json(found.to_json()) == found
    damaged = json.loads(found.to_json())
    damaged["scores"]["probe"][1] = float("nan")
    with pytest.raises(ValueError, match=r"Scores must be finite\. Received: accuracy of 'probe'"):
        Comparison.from_json(json.dumps(damaged))
    with pytest.raises(ValueError, match="is not valid JSON"):
        Comparison.from_json(found.to_json()[:-3])
    with pytest.raises(ValueError, match="has no argument 'score'"):
        Comparison.from_config({**found.get_config(), "score": 1})


def test_the_picture_shows_means_intervals_seeds_and_verdicts():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    found = report((0.70, 0.72, 0.71), (0.80, 0.79, 0.84))
    ax = ktf.plotting.plot_comparison(found)
    seeds, interval, mean = (line.get_xdata() for line in ax.lines[:3])
    gain = found.difference("probe")
    np.testing.assert_allclose(seeds, [0.10, 0.07, 0.13])
    np.testing.assert_allclose(interval, [gain.low, gain.high])
    np.testing.assert_allclose(mean, [0.10])
    assert [text.get_text() for text in ax.texts] == ["helps"]
    assert ax.get_title().startswith("Transfer helps by 0.100 ± ")
    one = ktf.plotting.plot_comparison(report((0.7,), (0.5,), mode="min"))
    np.testing.assert_allclose(one.lines[0].get_xdata(), [0.2])
    assert len(one.lines) == 3  # no interval: the seed, the mean, the line at 0
    pyplot.close("all")
    with pytest.raises(TypeError, match="must be a `Comparison`"):
        ktf.plotting.plot_comparison(0.1)


# --- Bad input --------------------------------------------------------------------------------

GOOD = xor(24, 0), xor(24, 1)
X, Y = GOOD[0]


def refuse(message, error=ValueError, model_fn=model_with, data=GOOD, **options):
    with pytest.raises(error, match=message):
        recipes.compare(model_fn, data, **{"seeds": 1, "verbose": 0, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategies": ["scratch", "lpft"]}, ValueError, r"'lpft'\. Did you mean 'lp_ft'\?"),
        ({"strategies": ["lp_ft"]}, ValueError, "must hold 'scratch'"),
        ({"strategies": ["scratch"]}, ValueError, "at least one other"),
        ({"strategies": ["scratch", "lp_ft", "lp_ft"]}, ValueError, "twice: 'lp_ft'"),
        ({"strategies": "scratch"}, TypeError, "list of names, or map names to plans"),
        ({"strategies": {"scratch": 3, "a": 4}}, TypeError, "must map names to `UnfreezingPlan`s"),
        ({"seeds": 0}, ValueError, "`seeds` must be at least 1"),
        ({"seeds": [1, 1]}, ValueError, "a seed that comes twice is no second run"),
        ({"seeds": 1.5}, TypeError, "`seeds` must be a whole number"),
        ({"epochs": 2}, ValueError, "'gradual_unfreezing' has 3 stages .* epochs=2"),
        ({"metric": "acuracy"}, ValueError, "Did you mean 'accuracy'"),
        ({"mode": "up"}, ValueError, "`mode` must be one of"),
        ({"margin": -1}, ValueError, "`margin` must be finite and at least 0"),
        ({"confidence": 95}, ValueError, "`confidence` must be finite and .*below 1"),
        ({"model_fn": 3}, TypeError, "must be a function that makes a compiled"),
        ({"model_fn": layers}, TypeError, r"must return a `TransferModel`\. .* Wrap a backbone"),
        ({"data": (X, Y)}, TypeError, r"training data must be a tuple .* Received: a ndarray"),
        ({"data": (GOOD[0],)}, TypeError, r"\(train, test\) .* Received: tuple of 1"),
        ({"data": lambda seed: None}, TypeError, r"function of the seed .* Received: NoneType"),
        ({"data": ((X, Y[:5]), GOOD[1])}, ValueError, "Received: 5 and 24 examples"),
        ({"data": ((X[:0], Y[:0]), GOOD[1])}, ValueError, "at least one. Received: 0 examples"),
        ({"data": (GOOD[0], (X * np.nan, Y))}, ValueError, r"test data must be finite.*\[0, 0\]"),
        ({"data": ((X, Y + 1), GOOD[1])}, ValueError, "class ids run from 0 to 1, but"),
        ({"data": ((X, Y * 0), GOOD[1])}, ValueError, "training data holds one class only"),
        ({"data": (GOOD[0], (X, Y * 0))}, ValueError, "test data holds one class only"),
    ],
)
def test_bad_input_is_an_error_before_any_training(options, error, message):
    refuse(message, error, **options)


def test_a_class_that_the_training_data_lacks_is_named():
    def three_classes():
        model = ktf.TransferModel(layers(), ktf.layers.ClassificationHead(3))
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    message = r"Class 2 is in the test data and not in the training data"
    refuse(message, model_fn=three_classes, data=(GOOD[0], (X, np.arange(24) % 3)))


def test_data_sets_that_do_not_fit_are_refused():
    dataset = tf.data.Dataset.from_tensor_slices(GOOD[0]).batch(8)
    refuse("training data never ends", data=(dataset.repeat(), dataset))
    refuse(r"must be a data set of \(inputs, labels\)", data=(dataset.map(lambda x, y: x), dataset))


class Batches(keras.utils.PyDataset):
    """Arrays as a `PyDataset`, in batches of 8."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 8)

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return self.x[part], self.y[part]


def as_tf_data(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


@pytest.mark.parametrize("as_data_set", [as_tf_data, Batches])
@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (GOOD[0], (X, np.where(np.arange(24) < 23, Y, 7)), "labels in the test data run from 0 to"),
        ((X, np.where(np.arange(24) < 23, Y, -1)), GOOD[1], "the training data run from -1 to 0"),
        (GOOD[0], (np.where(np.isin(X, X[-1]), np.nan, X), Y), "test data must be finite.*batch 2"),
        (GOOD[0], (X, Y * 0), "test data holds one class only"),
        ((X, Y * 0), GOOD[1], "training data holds one class only"),
        ((X[:0], Y[:0]), GOOD[1], "training data is empty"),
    ],
)
def test_data_sets_are_read_once_before_any_training(as_data_set, train, test, message):
    def data(seed):
        return tuple(as_data_set(*part) for part in (train, test))

    class Untrained(ktf.TransferModel):
        def fit(self, *args, **options):
            raise AssertionError("trained before the data was looked at")

    def model_fn():
        model = Untrained(layers(), ktf.layers.ClassificationHead(2))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    refuse(message, data=data, model_fn=model_fn)


def test_models_that_do_not_fit_are_refused():
    plain = ktf.TransferModel(layers(), ktf.layers.ClassificationHead(2))
    refuse("must return a compiled model", model_fn=lambda: plain)
    backbone = layers()
    refuse(
        "returned the backbone 'body' a second time, with what the run before",
        model_fn=lambda: model_with(backbone=backbone),
        strategies=["scratch", "linear_probe"],
        epochs=1,
    )

    @keras.saving.register_keras_serializable(package="tests")
    class Secretive(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)

        def call(self, x):
            return self.dense(x)

    def secretive():
        body = Secretive(3)
        body(np.zeros((1, WIDTH)))
        return model_with(backbone=body)

    refuse("cannot be made anew with random weights", model_fn=secretive)


def test_a_run_that_ends_in_nan_is_an_error_that_names_it():
    plan = recipes.full_fine_tuning(3, peak_lr=1e30)
    with pytest.raises(ValueError, match=r"Strategy 'scratch' with seed 0 ended in loss=(nan|inf)"):
        compare(None, strategies={"scratch": plan, "other": plan}, seeds=1, metric="loss")


def test_a_metric_that_keras_does_not_know_asks_for_a_mode():
    def mine(y, p):
        return keras.ops.mean(p)

    def model_fn():
        return model_with(metrics=[mine])

    refuse("does not know whether 'mine' is better", model_fn=model_fn)


def test_from_scratch_batch_norms_train_and_in_the_recipes_they_keep_their_policy():
    moved = {}

    class Looking(ktf.TransferModel):
        def fit(self, **options):
            before = self.backbone.model.get_weights()
            super().fit(**options)
            after = self.backbone.model.get_weights()
            name = "scratch" if self.backbone.batch_norm == "train" else "transfer"
            moved[name] = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    def model_fn():
        norm = keras.layers.BatchNormalization(name="norm")
        body = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(4, name="stem"), norm])
        backbone = ktf.layers.PretrainedBackbone(body, batch_norm="freeze", name="backbone")
        model = Looking(backbone, ktf.layers.ClassificationHead(2))
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    strategies = ["scratch", "full_fine_tuning"]
    recipes.compare(model_fn, GOOD, strategies, seeds=1, epochs=1, verbose=0)
    # Kernel and bias; scale, offset, mean and variance. (A bias before a norm has no gradient
    # but rounding's.)
    assert moved["scratch"][0]
    assert moved["scratch"][2:] == [True] * 4
    assert moved["transfer"][0]
    assert moved["transfer"][2:] == [False] * 4
