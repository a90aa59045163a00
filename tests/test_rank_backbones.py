"""Ranking backbones: the best is found, one pass fills one cache each, bad input is named."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import plotting
from keras_transfer.transferability import (
    BackboneRanking,
    RankedBackbone,
    h_score,
    log_me,
    trans_rate,
)
from tests.features.toys import fit

WIDTH = 6


def data(count=60, seed=0):
    """Classes that the first two inputs tell; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    x = rng.normal(size=(count, WIDTH)).astype("float32")
    x[:, :2] += 3 * np.array([[0, 1], [1, 0], [-1, -1]])[labels]
    return x, labels


def reading(*columns, units=4):
    """A backbone that sees some of its inputs only."""
    layer = keras.layers.Dense(units, "tanh")
    backbone = keras.Sequential([keras.Input((WIDTH,)), layer], name="body")
    kernel = np.zeros((WIDTH, units), "float32")
    kernel[list(columns)] = np.random.default_rng(1).normal(size=(len(columns), units))
    layer.kernel.assign(kernel)
    return backbone


@pytest.fixture
def candidates():
    return {"noise": reading(2, 3, units=5), "signal": lambda: reading(0, 1), "half": reading(0, 2)}


def test_the_backbone_that_sees_the_classes_comes_first(candidates, capsys):
    ranking = ktf.rank_backbones(candidates, data())
    assert [one.name for one in ranking.backbones] == ["signal", "half", "noise"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "[1 of 3] noise",
        "[2 of 3] signal",
        "[3 of 3] half",
    ]
    assert lines[3].split() == [
        "backbone", "log_me", "h_score", "trans_rate", "time", "parameters", "features"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[5:]] == ["signal", "half", "noise"]
    # The other way round for classes that follow from the noise.
    x, _ = data()
    other = ktf.rank_backbones(candidates, (x, (x[:, 2] > 0).astype(int)), verbose=0)
    assert other.best != "signal"


def test_scores_are_those_of_the_features_and_sizes_those_of_the_model(candidates):
    x, labels = data()
    ranking = ktf.rank_backbones(candidates, (x, labels), scores=["h_score", "log_me"], verbose=0)
    assert ranking.rank_by == "h_score"
    noise = next(one for one in ranking.backbones if one.name == "noise")
    features = candidates["noise"].predict(x, verbose=0)
    assert list(noise.scores) == ["h_score", "log_me"]
    assert noise.scores["h_score"] == pytest.approx(h_score(features, labels), rel=1e-4)
    assert noise.scores["log_me"] == pytest.approx(log_me(features, labels), rel=1e-4)
    assert (noise.parameters, noise.features) == (WIDTH * 5 + 5, 5)
    assert noise.seconds > 0


def test_data_sets_models_with_heads_and_preprocessing_are_scored_alike():
    x, labels = data()
    scaled = ktf.layers.PretrainedBackbone(reading(0, 1), preprocess=lambda x: x / 2)
    model = ktf.TransferModel(reading(0, 1), keras.layers.Dense(3))
    candidates = {"plain": reading(0, 1), "scaled": scaled, "model": model}
    arrays = ktf.rank_backbones(candidates, (x, labels), scores="trans_rate", verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)
    of_dataset = ktf.rank_backbones(candidates, dataset, scores="trans_rate", verbose=0)
    found = {one.name: one.scores["trans_rate"] for one in arrays.backbones}
    features = reading(0, 1).predict(x, verbose=0)
    assert found["plain"] == pytest.approx(trans_rate(features, labels), rel=1e-4)
    assert found["model"] == found["plain"] != found["scaled"]
    for one in of_dataset.backbones:
        assert one.scores["trans_rate"] == pytest.approx(found[one.name], rel=1e-5)


def test_each_candidate_fills_a_cache_of_its_own_that_fit_reads(candidates, tmp_path):
    x, labels = data()
    ktf.rank_backbones(candidates, (x, labels), directory=tmp_path, verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "noise", "signal"]
    for name, passes in (("half", 0), ("other", 1)):
        model = ktf.TransferModel(candidates["half"], ktf.layers.ClassificationHead(3))
        model.compile("sgd", "sparse_categorical_crossentropy")
        cache = ktf.features.FeatureCache(tmp_path / name)
        plan = ktf.recipes.linear_probe(2)
        assert len(fit(model, x, labels, plan=plan, cache_features=cache).passes) == passes


def test_the_chart_is_drawn(candidates, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    file = tmp_path / "ranking.png"
    ranking = ktf.rank_backbones(candidates, data(), chart=file, verbose=0)
    assert file.read_bytes().startswith(b"\x89PNG")
    ax = plotting.plot_ranking(ranking, score="h_score")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["signal", "half", "noise"]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == [one.scores["h_score"] for one in ranking.backbones]
    assert ax.get_xlabel().startswith("h_score")
    with pytest.raises(ValueError, match="Did you mean 'h_score'"):
        plotting.plot_ranking(ranking, score="hscore")
    with pytest.raises(TypeError, match="must be a `BackboneRanking`"):
        plotting.plot_ranking([ranking])
    pyplot.close("all")


def test_a_ranking_survives_json():
    one = RankedBackbone("a", {"log_me": -0.5}, 1.0, 10, 4)
    ranking = BackboneRanking("log_me", (one, RankedBackbone("b", {"log_me": 0.5}, 1.0, 10, 4)))
    assert ranking.best == "b"
    assert BackboneRanking.from_json(ranking.to_json()) == ranking
    damaged = json.loads(ranking.to_json())
    damaged["backbones"][0]["scores"]["log_me"] = float("nan")
    with pytest.raises(ValueError, match="must have finite scores"):
        BackboneRanking.from_json(json.dumps(damaged))
    with pytest.raises(ValueError, match="not valid JSON"):
        BackboneRanking.from_json("{")
    with pytest.raises(ValueError, match="at least one backbone"):
        BackboneRanking("log_me", ())


# --- Bad input --------------------------------------------------------------------------------

X, LABELS = data(12)


def never():
    raise AssertionError("a backbone was loaded")


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ((X, LABELS), {"candidates": {}}, TypeError, "hold at least one"),
        ((X, LABELS), {"candidates": [never]}, TypeError, "must map names to backbones"),
        ((X, LABELS), {"candidates": {"a": 3}}, TypeError, "functions that load one.*'a': 3"),
        ((X, LABELS), {"scores": ["logme"]}, ValueError, "Did you mean 'log_me'"),
        ((X, LABELS), {"scores": ["h_score"] * 2}, ValueError, "Received twice: 'h_score'"),
        ((X, LABELS), {"scores": []}, ValueError, "must name at least one of log_me"),
        ((X, LABELS), {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ((X, LABELS), {"directory": "d", "candidates": {"a/b": never}}, ValueError, "'a/b'"),
        ((X, LABELS[:3]), {}, ValueError, "Received: 3 and 12 examples"),
        ((X * np.nan, LABELS), {}, ValueError, "`data` must be finite"),
        ((X, LABELS * 0), {}, ValueError, "`labels` must hold at least 2 classes"),
        ((X, LABELS - 1), {}, ValueError, r"`labels` must be at least 0.*labels\[0\]=-1"),
        ((X, LABELS + 0.5), {}, TypeError, "`labels` must be whole numbers"),
        (X, {}, TypeError, "`data` must be a tuple of arrays .* Received: a ndarray"),
    ],
)
def test_bad_input_is_an_error_before_any_backbone_is_loaded(given, options, error, message):
    options = {"candidates": {"a": never}, "verbose": 0, **options}
    with pytest.raises(error, match=message):
        ktf.rank_backbones(options.pop("candidates"), given, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: 3, TypeError, "Candidate 'bad': a candidate must be a Keras model"),
        (lambda: reading(), ValueError, "Candidate 'bad': `features` are the same for every"),
        (
            lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
            ValueError,
            "Candidate 'bad': .*incompatible",
        ),
    ],
)
def test_what_goes_wrong_with_a_candidate_names_it(make, error, message):
    with pytest.raises(error, match=message):
        ktf.rank_backbones({"bad": make}, (X, LABELS), verbose=0)


def test_features_that_are_not_finite_are_an_error():
    backbone = reading(0, 1)
    backbone.layers[0].kernel.assign(np.full((WIDTH, 4), np.nan))
    with pytest.raises(ValueError, match="Candidate 'bad': `features` must be finite"):
        ktf.rank_backbones({"bad": backbone}, (X, LABELS), verbose=0)
