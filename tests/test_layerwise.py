"""The layerwise experiment: what is copied, frozen and random; what it finds; how it goes on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import plotting
from keras_transfer._json_file import read_json, write_json
from keras_transfer.layerwise_scores import LayerwiseScores
from tests.test_compare import WIDTH, Batches, layers, linear, xor

TRAIN, TEST = xor(48, 2), xor(200, 3)


def model_with(weights=None, kind=ktf.TransferModel, classes=2):
    backbone = layers()
    if weights is not None:
        backbone.set_weights(weights)
    model = kind(backbone, ktf.layers.ClassificationHead(classes), groups="blocks")
    loss = "sparse_categorical_crossentropy"
    # Eagerly: a step takes less time than a graph takes to trace.
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    return model


def run(model, target=(TRAIN, TEST), **options):
    options = {"seeds": 1, "epochs": 1, "batch_size": 48, "verbose": 0, **options}
    return ktf.layerwise_transferability(model, target, **options)


STARTS = []


class Watched(ktf.TransferModel):
    """Its `fit` records what it starts from, and moves every weight by 1."""

    stop_after = None

    def fit(self, **options):
        if len(STARTS) == Watched.stop_after:
            raise KeyboardInterrupt
        (stage,) = options["callbacks"][0].plan.stages
        weights = self.backbone.model.get_weights()
        start = {
            "stem": weights[0],
            "top": weights[2],
            "depth": stage.depth,
            "epochs": stage.epochs,
            "labels": options.get("y"),
            "batch_norm": self.backbone.batch_norm,
        }
        STARTS.append(start)
        self.backbone.model.set_weights([w + 1 for w in weights])


@pytest.fixture(autouse=True)
def _nothing_recorded():
    STARTS.clear()
    Watched.stop_after = None


def same(a, b):
    return np.array_equal(a, b)


# --- What is copied ---------------------------------------------------------------------------


def test_the_first_groups_are_copied_and_the_others_begin_anew():
    keras.utils.set_random_seed(5)
    model = model_with(kind=Watched)
    source = model.backbone.model.get_weights()
    treatments = ["AnB", "AnB+", "BnB", "BnB+"]
    found = run(model, treatments=treatments, epochs=3)
    assert all(same(a, b) for a, b in zip(source, model.backbone.model.get_weights(), strict=True))
    base, cells = STARTS[0], STARTS[1:]
    assert found.groups == ("stem", "top")
    assert len(cells) == 8
    trained_base = base["stem"] + 1, base["top"] + 1
    for number, cell in enumerate(cells):
        treatment, n = treatments[number % 4], number // 4 + 1
        stem, top = (source[0], source[2]) if treatment[0] == "A" else trained_base
        assert same(cell["stem"], stem)
        assert same(cell["top"], top) == (n == 2)
        # Three groups with the head; those that were copied are frozen, or nothing is.
        assert cell["depth"] == ("all" if treatment.endswith("+") else 3 - n)
        assert cell["epochs"] == 3
    assert not same(base["stem"], source[0])
    # What begins anew begins as in the other treatments, and not as the base did.
    tops = [cell["top"] for cell in cells[:4]]
    assert all(same(top, tops[0]) for top in tops)
    assert not same(tops[0], base["top"])
    assert {start["batch_norm"] for start in STARTS} == {"train"}


def test_with_source_data_the_source_network_is_trained_here_for_each_seed():
    keras.utils.set_random_seed(5)
    model = model_with(kind=Watched)
    source = model.backbone.model.get_weights()
    x, _ = TRAIN
    data = x, np.arange(len(x)) % 5
    head = ktf.layers.ClassificationHead(5)
    found = run(
        model, source_data=data, source_head=head, source_epochs=7, depths=[1], seeds=[3, 4]
    )
    assert list(found.scores) == ["AnB", "AnB+", "BnB", "BnB+"]
    assert [start["epochs"] for start in STARTS] == [1, 7, 1, 1, 1, 1] * 2
    for base, of_source, anb, anb_plus, bnb, bnb_plus in (STARTS[:6], STARTS[6:]):
        assert of_source["labels"].max() == 4
        assert same(anb["stem"], of_source["stem"] + 1)
        assert same(anb_plus["stem"], anb["stem"])
        assert same(bnb["stem"], base["stem"] + 1)
        assert same(bnb_plus["stem"], bnb["stem"])
        assert not same(of_source["stem"], base["stem"])
        assert not same(of_source["stem"], source[0])
    assert not same(STARTS[1]["stem"], STARTS[7]["stem"])


def test_frozen_groups_stay_and_preprocessing_is_kept(tmp_path):
    normalization = keras.layers.Normalization()
    normalization.adapt(np.full((4, WIDTH), 3.0) + np.eye(4))
    seen = []

    class Looking(ktf.TransferModel):
        def fit(self, **options):
            before = self.backbone.model.get_weights()
            super().fit(**options)
            after = self.backbone.model.get_weights()
            seen.append([not same(a, b) for a, b in zip(before, after, strict=True)])
            seen.append(np.array(self.backbone.preprocess.mean))

    body = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(8, "relu", name="stem"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(8, "relu", name="top"),
        ]
    )
    backbone = ktf.layers.PretrainedBackbone(
        body, groups=["top"], preprocess=normalization, name="backbone"
    )
    model = Looking(backbone, ktf.layers.ClassificationHead(2))
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    cache = ktf.features.FeatureCache(tmp_path)
    found = run(
        model, treatments=["AnB", "AnB+"], depths=[1], seeds=2, epochs=2, cache_features=cache
    )
    # Stem and norm (with its statistics) are the first group.
    frozen = [False] * 6 + [True] * 2
    assert seen[::2] == [[True] * 8, frozen, [True] * 8] * 2
    assert all(same(mean, np.array(normalization.mean)) for mean in seen[1::2])
    assert found.metric == "loss"
    # Both seeds froze the same weights: one pass.
    assert len(list(tmp_path.iterdir())) == 1


# --- What it finds ----------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_groups_that_know_nothing_of_the_task_cost_when_frozen_and_mend_when_trained():
    """The deepest groups of a network that has learnt to see nothing but another input."""
    blind = layers().get_weights()
    blind[0][:] = 0
    blind[0][2] = np.linspace(-1, 1, 16)  # reads the third input only
    model = model_with(blind)
    options = {"treatments": ["AnB", "AnB+"], "depths": [2], "seeds": 1, "epochs": 8}
    found = run(model, (linear(48, 2), linear(200, 3)), peak_lr=3e-2, **options)
    frozen, trained = (np.mean(found.at(treatment, 2)) for treatment in ("AnB", "AnB+"))
    assert np.mean(found.base) > 0.9
    assert frozen < 0.75
    assert trained > frozen + 0.15


# --- Going on ---------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_stopped_and_ends_the_same(tmp_path, capsys):
    keras.utils.set_random_seed(5)
    weights = layers().get_weights()
    options = {"treatments": ["AnB", "BnB"], "depths": [1], "seeds": 2}
    expected = run(model_with(weights, Watched), **options)
    assert len(STARTS) == 6

    STARTS.clear()
    Watched.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(model_with(weights, Watched), directory=tmp_path / "run", **options)
    STARTS.clear()
    Watched.stop_after = None
    capsys.readouterr()
    model = model_with(weights, Watched)
    found = run(model, directory=tmp_path / "run", **options, verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(STARTS) == 4
    assert found == expected
    assert lines[0].startswith("[3 of 6] BnB n=1, seed 0: accuracy 0.")
    assert lines[1].startswith("[4 of 6] base, seed 1: accuracy 0.")
    assert lines[4].split() == ["n", "last", "copied", "AnB", "BnB"]

    STARTS.clear()
    more = run(model, directory=tmp_path / "run", **{**options, "seeds": 3})
    assert len(STARTS) == 3
    assert [more.base[:2], more.at("AnB", 1)[:2]] == [found.base, found.at("AnB", 1)]

    with pytest.raises(
        ValueError, match="holds another experiment: it differs in epochs, training"
    ):
        run(model, (xor(48, 9), TEST), directory=tmp_path / "run", epochs=2, **options)
    changed = model_with([w + 1 for w in weights], Watched)
    with pytest.raises(ValueError, match="it differs in source weights"):
        run(changed, directory=tmp_path / "run", **options)
    results = tmp_path / "run" / "results.json"
    results.write_bytes(results.read_bytes().replace(b'"AnB"', b'"BnB"', 1))
    with pytest.raises(ValueError, match=r"results\.json is damaged: its checksum does not agree"):
        run(model, directory=tmp_path / "run", **options)


class Noisy(Batches):
    """Other inputs each time, and the same labels."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + np.random.normal(size=x.shape), y


def shuffled(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(48).batch(8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("as_data_set", [shuffled, Batches, Noisy])
def test_another_data_set_of_the_same_shape_is_another_experiment(tmp_path, as_data_set):
    keras.utils.set_random_seed(5)
    model = model_with(layers().get_weights(), Watched)
    x, y = TRAIN

    def again(x, y, test=TEST):
        STARTS.clear()
        data = as_data_set(x, y), as_data_set(*test)
        run(model, data, treatments=["AnB"], depths=[1], directory=tmp_path)
        return len(STARTS)

    assert again(x, y) == 2
    assert again(x, y) == 0  # whatever the order, and what is random
    with pytest.raises(ValueError, match="it differs in training data"):
        again(x, np.where(np.arange(48) == 47, 1 - y, y))
    if as_data_set is not Noisy:
        with pytest.raises(ValueError, match="it differs in training data"):
            again(np.where(np.arange(48)[:, None] == 47, 3, x), y)
        with pytest.raises(ValueError, match="it differs in training data"):
            again(x[::-1], y)
        with pytest.raises(ValueError, match="it differs in test data"):
            again(x, y, (TEST[0] + 1, TEST[1]))


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\n\xff", b"null\n1", b'{"sha256": 3}\n[]'])
def test_a_damaged_file_is_never_read(tmp_path, damage):
    path = tmp_path / "new" / "a.json"
    assert read_json(path, "Do.") is None
    write_json(path, {"a": [1, 2.5, "é"]})
    assert read_json(path, "Do.") == {"a": [1, 2.5, "é"]}
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"a\.json is damaged: .* Do\."):
        read_json(path, "Do.")


# --- The result -------------------------------------------------------------------------------

SCORES = LayerwiseScores(
    metric="accuracy",
    mode="max",
    groups=("stem", "middle", "top"),
    seeds=(0, 1),
    base=(0.80, 0.82),
    scores={"AnB": {1: (0.81, 0.83), 3: (0.70, 0.73)}, "AnB+": {3: (0.84, 0.86)}},
)


def test_the_table_and_the_figure_show_every_score():
    lines = [line.split("  ") for line in str(SCORES).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["n", "last copied", "AnB", "AnB+"]
    assert cells[2] == ["0", "-", "0.810 ± 0.014", "0.810 ± 0.014"]
    assert cells[3] == ["1", "stem", "0.820 ± 0.014", "-"]
    assert cells[4] == ["3", "top", "0.715 ± 0.021", "0.850 ± 0.014"]
    assert LayerwiseScores.from_json(SCORES.to_json()) == SCORES
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = plotting.plot_layerwise(SCORES)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["AnB"].get_ydata(), [0.81, 0.82, 0.715])
    np.testing.assert_allclose(lines["AnB+"].get_xdata(), [0, 3])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0\nbase", "1\nstem", "3\ntop"]
    assert len(ax.collections) == 2  # a band for each treatment
    assert ax.get_ylabel() == "test accuracy"
    pyplot.close("all")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SCORES.at("BnB", 1), ValueError, "must be one of 'AnB', 'AnB\\+'"),
        (lambda: SCORES.at("AnB", 2), ValueError, "no scores of AnB for n=2. There are for 1, 3"),
        (lambda: plotting.plot_layerwise({}), TypeError, "must be `LayerwiseScores`"),
        (lambda: LayerwiseScores.from_json("{"), ValueError, "not valid JSON"),
        (
            lambda: LayerwiseScores("a", "max", ("s",), (0,), (np.nan,), {}),
            ValueError,
            "one finite score for each of the 1 seeds",
        ),
        (
            lambda: LayerwiseScores("a", "max", ("s",), (0,), (1.0,), {"Anb": {}}),
            ValueError,
            "Did you mean 'AnB'",
        ),
    ],
)
def test_results_that_are_no_results_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- Bad input --------------------------------------------------------------------------------

X, Y = TRAIN


def as_data_set(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"treatments": ["ANB"]}, ValueError, "must be one of 'AnB'"),
        ({"treatments": []}, ValueError, "must name at least one of AnB"),
        ({"depths": [3]}, ValueError, "the backbone has 2 groups. Received: depths=\\[3\\]"),
        ({"depths": [1, 1]}, ValueError, "different numbers of copied groups"),
        ({"depths": [0]}, ValueError, "`depths` must be at least 1"),
        ({"seeds": [2, 2]}, ValueError, "comes twice is no second run"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"source_epochs": 0}, ValueError, "`source_epochs` must be at least 1"),
        ({"peak_lr": -1}, ValueError, "`peak_lr` must be finite and above 0"),
        ({"metric": "acuracy"}, ValueError, "Did you mean 'accuracy'"),
        ({"source_head": keras.layers.Dense(2)}, ValueError, "is for `source_data`"),
        ({"source_data": (X, Y[:3])}, ValueError, "`source_data` must hold as many labels"),
        ({"source_data": (X, Y + 5)}, ValueError, "class ids run from 0 to 1, but"),
        ({"target": (X, Y, X)}, TypeError, r"must be \(train, test\)"),
        ({"target": (TRAIN, (X * np.nan, Y))}, ValueError, "test data must be finite"),
        ({"target": (TRAIN, (X, Y * 0))}, ValueError, "test data holds one class only"),
        ({"target": ((X, Y + 1), TEST)}, ValueError, "class ids run from 0 to 1, but"),
        (
            {"target": (TRAIN, as_data_set(X, np.where(np.arange(len(Y)) < len(Y) - 1, Y, 9)))},
            ValueError,
            "labels in the target task's test data run from 0 to 9",
        ),
        (
            {"source_data": as_data_set(np.where(np.isin(X, X[-1]), np.inf, X), Y)},
            ValueError,
            "`source_data` must be finite",
        ),
    ],
)
def test_bad_input_is_an_error_before_any_training(options, error, message):
    with pytest.raises(error, match=message):
        run(model_with(kind=Watched), **options)
    assert not STARTS


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"must be a `TransferModel`.* Wrap the backbone"):
        run(layers())
    plain = ktf.TransferModel(layers(), ktf.layers.ClassificationHead(2))
    with pytest.raises(ValueError, match="must be compiled"):
        run(plain)

    class Odd(keras.losses.Loss):
        def __init__(self, needed):
            super().__init__()

        def call(self, y, p):
            return keras.ops.mean(p)

    plain.compile("adam", Odd(1))
    with pytest.raises(ValueError, match="cannot be made anew from its config"):
        run(plain)
