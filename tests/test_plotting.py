import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer import plotting
from keras_transfer.lr_curve import LRCurve
from tests.processes import run_code

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def curve():
    rates = np.geomspace(1e-6, 1, 100)
    losses = 1 + 1 / (1 + rates / 1e-3) + (rates / 0.1) ** 2
    return LRCurve(rates, losses, diverged=True, stage="top")


@pytest.fixture
def model():
    backbone = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, name="stem"),
            keras.layers.Dense(8, name="middle"),
        ]
    )
    return ktf.TransferModel(backbone, keras.layers.Dense(1, name="top"), groups="blocks")


PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=1e-3),
        ktf.Stage("all", depth="all", epochs=3, peak_lr=1e-4, lr_decay=0.5),
    ]
)


def bars(ax):
    return {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()): bar
        for bar in ax.patches
    }


def texts(ax):
    return [text.get_text() for text in ax.texts]


# --- LR curves ------------------------------------------------------------------------------


def test_a_curve_is_drawn_with_its_batches_its_average_and_its_suggestion(curve):
    ax = plotting.plot_lr_curve(curve)
    each, smoothed = ax.lines[:2]
    np.testing.assert_allclose(each.get_xdata(), curve.learning_rates)
    np.testing.assert_allclose(each.get_ydata(), curve.losses)
    np.testing.assert_allclose(smoothed.get_ydata(), curve.smoothed_losses)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["each batch", "smoothed", f"valley: {curve.suggestion:.1e}"]
    assert "'top'" in ax.get_title()


def test_the_divergence_does_not_flatten_the_rest(curve):
    losses = [*curve.losses[:-1], 1e9]
    ax = plotting.plot_lr_curve(LRCurve(curve.learning_rates, losses))
    low, high = ax.get_ylim()
    assert low < 1.05
    assert 2 < high < 4


def test_several_rules_and_those_that_find_nothing_are_named(curve):
    noise = 2 + np.random.default_rng(0).normal(size=100)
    ax = plotting.plot_lr_curve(LRCurve(curve.learning_rates, noise), rule=["valley", "steep"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[2:] == ["valley: no suggestion", "steep: no suggestion"]
    ax = plotting.plot_lr_curve(curve, rule=None)
    assert len(ax.get_legend().get_texts()) == 2


def test_a_loss_that_is_not_finite_does_not_stop_the_drawing(curve):
    losses = [*curve.losses[:-1], np.nan]
    plotting.plot_lr_curve(LRCurve(curve.learning_rates, losses)).figure.canvas.draw()


def test_given_axes_are_drawn_into(curve):
    _, ax = pyplot.subplots()
    assert plotting.plot_lr_curve(curve, ax) is ax


# --- Plans ----------------------------------------------------------------------------------


def test_groups_that_train_are_coloured_by_rate_and_the_rest_is_grey(model):
    model.compile("adam", "mse")
    ax = plotting.plot_plan(PLAN, model)
    drawn = bars(ax)
    colour = {place: bar.get_facecolor() for place, bar in drawn.items()}
    # Rows are stem, middle, top; each bar is (row, first epoch, epochs).
    assert len(drawn) == 6
    assert colour[0, 0, 2] == colour[1, 0, 2]  # frozen
    trained = [colour[2, 0, 2], colour[0, 2, 3], colour[1, 2, 3], colour[2, 2, 3]]
    assert len({*trained, colour[0, 0, 2]}) == 5
    assert {"probe", "all", "1.0e-03", "1.0e-04", "5.0e-05", "2.5e-05"} <= set(texts(ax))


def test_without_rates_groups_only_train_or_not(model):
    plan = ktf.UnfreezingPlan(
        [ktf.Stage("probe", depth=1, epochs=1), ktf.Stage("all", depth="all", epochs=1)]
    )
    ax = plotting.plot_plan(plan, model)
    colours = {place: bar.get_facecolor() for place, bar in bars(ax).items()}
    assert len(set(colours.values())) == 2
    assert colours[2, 0, 1] == colours[0, 1, 1] != colours[0, 0, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["trains", "frozen"]


def test_a_stock_model_is_drawn_too():
    body = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="stem")])
    stock = keras.Sequential([body, keras.layers.Dense(1, name="top")])
    stock.compile("adam", "mse")
    ax = plotting.plot_plan(PLAN, stock, groups="blocks")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stem", "top"]


# --- Histories ------------------------------------------------------------------------------

HISTORY = {
    "loss": [2.0, 1.5, 1.6, 1.0],
    "val_loss": [2.1, 1.7, 1.8, 1.4],
    "accuracy": [0.2, 0.4, 0.4, 0.6],
    "stage": [0, 0, 1, 1],
    "trainable_parameters": [9, 9, 99, 99],
    "learning_rate/top": [1e-3, 1e-3, 1e-4, 1e-4],
}


def test_each_metric_has_its_axes_with_stage_boundaries_between_epochs():
    axes = plotting.plot_history(HISTORY, PLAN)
    assert [ax.get_ylabel() for ax in axes] == ["loss", "accuracy"]
    for ax in axes:
        assert texts(ax) == ["probe", "all"]
        boundaries = [line for line in ax.lines if len(set(line.get_xdata())) == 1]
        assert [line.get_xdata()[0] for line in boundaries] == [2.5]
    training, validation = axes[0].lines[:2]
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(training.get_ydata(), HISTORY["loss"])
    np.testing.assert_array_equal(validation.get_ydata(), HISTORY["val_loss"])


@pytest.mark.parametrize("length", [1, 2, 7])
def test_epochs_are_whole_numbers_however_few(length):
    (ax,) = plotting.plot_history({"loss": list(range(length))})
    left, right = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if left <= tick <= right]
    assert ticks
    assert all(tick == round(tick) and 1 <= tick <= length for tick in ticks)


def test_without_a_plan_stages_are_numbered_and_a_plan_can_stand_in_for_the_column():
    assert texts(plotting.plot_history(HISTORY, metrics=["loss"])[0]) == ["stage 0", "stage 1"]
    columns = {"loss": HISTORY["loss"]}
    assert texts(plotting.plot_history(columns, PLAN)[0]) == ["probe", "all"]
    assert texts(plotting.plot_history(columns)[0]) == []


def test_the_history_of_a_fit_is_drawn(model):
    model.compile("adam", "mse")
    history = model.fit(
        np.ones((8, 4)),
        np.ones((8, 1)),
        callbacks=[ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)],
        verbose=0,
    )
    axes = plotting.plot_history(history, PLAN)
    assert [ax.get_ylabel() for ax in axes] == ["loss"]
    assert texts(axes[0]) == ["probe", "all"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"metrics": ["acuracy"]}, r"no metric 'acuracy'. Did you mean 'accuracy'"),
        ({"axes": []}, r"one for each metric \(loss, accuracy\). Received: 0 axes"),
    ],
)
def test_metrics_and_axes_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_history(HISTORY, **kwargs)


def test_a_history_without_metrics_is_refused():
    with pytest.raises(ValueError, match="holds no metric"):
        plotting.plot_history({"stage": [0]})


def test_a_curve_must_be_a_curve():
    with pytest.raises(TypeError, match="must be an `LRCurve`"):
        plotting.plot_lr_curve([1, 2])


# --- Without matplotlib ---------------------------------------------------------------------


def test_without_matplotlib_the_error_names_the_extra():
    script = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from keras_transfer import plotting\n"
        "try: plotting.plot_history({'loss': [1]})\n"
        "except ImportError as error: print(error)\n"
    )
    assert "pip install 'keras_transfer[plots]'" in run_code(script)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_the_label_of_the_colour_bar_lies_within_a_low_figure(n_groups):
    layers = [keras.layers.Dense(8, name=f"group{i}") for i in range(n_groups)]
    backbone = keras.Sequential([keras.Input((4,)), *layers])
    model = ktf.TransferModel(backbone, keras.layers.Dense(1, name="top"), groups="blocks")
    figure = plotting.plot_plan(PLAN, model).figure
    figure.canvas.draw()
    label = figure.axes[1].yaxis.label
    assert "learning rate" in label.get_text()
    box = label.get_window_extent()
    assert box.y0 >= figure.bbox.y0
    assert box.y1 <= figure.bbox.y1
