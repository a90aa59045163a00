"""L2-SP: exact under Adam, its limits, its place beside decay, and what is saved of it."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.optimizers import DiscriminativeOptimizer, discriminative, find_discriminative
from keras_transfer.regularizers import L2SP
from tests.callbacks import toys
from tests.optimizers.toys import gradient
from tests.processes import run_in_child

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1, peak_lr=1e-2),
        ktf.Stage("all", depth="all", epochs=3, peak_lr=1e-2, lr_decay=0.5),
    ]
)
ALL = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=3, peak_lr=1e-2)])


def train(strength, optimizer=None, plan=ALL, model=None, **options):
    """Trains the toy model; returns it, and its weights before."""
    keras.utils.set_random_seed(0)
    model = model or toys.transfer()
    regularizer = None if strength is None else L2SP(strength)
    optimizer = optimizer or keras.optimizers.Adam(1e-2)
    toys.compiled(model, discriminative(optimizer, regularizer=regularizer))
    before = model.get_weights()
    toys.fit(model, plan, **options)
    return model, before


def moved(model, before):
    """How far backbone and head have moved."""
    distances = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)]
    return max(distances[:-2]), max(distances[-2:])


# --- The step ---------------------------------------------------------------------------------


def variables_and_groups():
    keras.utils.set_random_seed(0)
    body = [keras.Variable(np.random.normal(size=(3, 2)), name="kernel"), keras.Variable([0.5, 1])]
    head = [keras.Variable(np.random.normal(size=(2,)), name="head")]
    return body, head, {"body": body, "head": head}


def test_the_pull_is_the_proximal_step_after_the_update_of_adam_itself():
    body, head, groups = variables_and_groups()
    optimizer = discriminative(keras.optimizers.Adam(0.05), regularizer=L2SP(4.0))
    optimizer.set_groups(groups)
    optimizer.set_multipliers({"body": 0.5})
    variables = [*body, *head]
    optimizer.build(variables)
    starts = [np.array(v.numpy(), "float64") for v in variables]
    expected = [start.copy() for start in starts]
    first, second = ([np.zeros_like(s) for s in starts] for _ in range(2))
    for step in range(1, 9):
        gradients = [np.array(gradient(v, step), "float64") for v in variables]
        optimizer.apply(gradients, variables)
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            rate = 0.05 * (0.5 if i < 2 else 1.0)
            alpha = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            expected[i] -= alpha * first[i] / (np.sqrt(second[i]) + 1e-7)
            if i < 2:
                expected[i] = starts[i] + (expected[i] - starts[i]) / (1 + rate * 4.0)
    for variable, value, start in zip(variables, expected, starts, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=5e-6)
        assert np.abs(value - start).max() > 0.02  # or nothing was seen


def test_under_sgd_it_is_the_penalty_in_the_loss_to_first_order():
    """The gradient of the penalty, `strength * (w - start)`, at a rate where orders part."""
    found = {}
    for rate in (1e-2, 1e-3):
        body, _, groups = variables_and_groups()
        optimizer = discriminative(keras.optimizers.SGD(rate), regularizer=L2SP(3.0))
        optimizer.set_groups(groups)
        optimizer.build(body)
        penalty = L2SP(3.0, reference=body[0])
        body[0].assign_add(np.ones((3, 2)))
        moved = np.array(body[0].numpy())
        optimizer.apply([np.zeros((3, 2)), np.zeros(2)], body)
        slope = 3.0 * (moved - penalty.reference)
        found[rate] = np.abs((moved - body[0].numpy()) / rate - slope).max() / slope.max()
    assert found[1e-2] < 0.031  # 1 - 1 / (1 + rate * strength)
    assert found[1e-3] < 0.0031


def test_as_a_keras_regularizer_it_adds_its_penalty_and_the_gradient_leads_back():
    reference = np.array([[1.0, -1.0]], "float32")
    layer = keras.layers.Dense(2, kernel_regularizer=L2SP(2.0, reference), use_bias=False)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.kernel.assign([[2.0, 1.0]])
    assert float(model.losses[0]) == pytest.approx(0.5 * 2.0 * (1 + 4))
    model.compile(keras.optimizers.SGD(0.1), lambda y, p: 0.0 * keras.ops.mean(p), run_eagerly=True)
    model.fit(np.ones((2, 1)), np.ones((2, 2)), epochs=1, verbose=0)
    # A step of the gradient, which is 2 times (1, 2).
    np.testing.assert_allclose(layer.kernel.numpy(), [[1.8, 0.6]], rtol=1e-5)
    again = keras.Sequential.from_config(model.get_config())
    kept = again.layers[0].kernel_regularizer
    assert kept.strength == 2.0
    np.testing.assert_array_equal(kept.reference, reference)


# --- Limits -----------------------------------------------------------------------------------


@pytest.mark.usually("transfer")
@pytest.mark.parametrize("make", [toys.transfer, toys.stock])
def test_strength_0_is_plain_fine_tuning_bit_for_bit(make):
    weights = {}
    for strength in (None, 0.0, 1.0)[: 3 if make is toys.transfer else 2]:
        optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
        keras.utils.set_random_seed(0)
        model, _ = train(strength, optimizer, PLAN, model=make())
        weights[strength] = [w.tobytes() for w in model.get_weights()]
    assert weights[0.0] == weights[None]
    assert weights.get(1.0) != weights[None]


@pytest.mark.usually("adam")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_huge_strength_keeps_the_backbone_and_not_the_head(optimizer):
    rate = {"adam": 1e-2, "sgd": 1e-1}[optimizer]
    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=2, peak_lr=rate)])
    free, head = moved(*train(None, optimizer, plan))
    kept, head_of_kept = moved(*train(1e7, optimizer, plan))
    assert kept < 1e-3 * free
    assert head_of_kept > 0.5 * head > 0


def test_no_strength_is_too_large_where_a_warmup_starts_at_a_rate_of_zero():
    body, head, groups = variables_and_groups()
    before = [v.numpy() for v in body]
    rate = keras.optimizers.schedules.PolynomialDecay(0.0, 1, 0.1)
    optimizer = discriminative(keras.optimizers.Adam(rate), regularizer=L2SP(1e300))
    optimizer.set_groups(groups)
    optimizer.build([*body, *head])
    for step in (1, 2):
        optimizer.apply([gradient(v, step) for v in (*body, *head)], [*body, *head])
    for variable, value in zip(body, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_more_strength_moves_the_backbone_less():
    distances = [moved(*train(strength))[0] for strength in (0.0, 300.0)]
    assert distances[0] > 2 * distances[1] > 0


def test_the_start_of_a_group_is_where_it_first_trained_and_stays_through_stages_and_fits():
    model, before = train(10.0, plan=PLAN)
    toys.fit(model, ALL)
    states = find_discriminative(model.optimizer)._table.saved_states()
    assert states.keys() == {v.path for v in model.trainable_variables}
    starts = [states[v.path].start for v in model.trainable_variables]
    for start, value in zip(starts, before, strict=True):
        np.testing.assert_array_equal(start, value)


def test_weights_loaded_after_the_optimizer_was_built_are_the_start():
    model = toys.compiled(toys.transfer(), discriminative("adam", regularizer=L2SP(1e7)))
    model.optimizer.build(model.trainable_variables)
    weights = [w + 1.0 for w in model.get_weights()]
    model.set_weights(weights)
    toys.fit(model, ktf.recipes.full_fine_tuning(2, peak_lr=1e-2))
    assert moved(model, weights)[0] < 1e-5


# --- Beside weight decay, averages, other numbers -----------------------------------------------


def test_it_takes_the_place_of_decay_on_the_backbone_and_the_head_decays():
    def decayed(strength):
        keras.utils.set_random_seed(0)
        model = toys.transfer()
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        regularizer = L2SP(strength)
        model.compile(
            discriminative(optimizer, regularizer=regularizer),
            loss=lambda y, p: 0.0 * keras.ops.mean(p),
        )
        before = model.get_weights()
        toys.fit(model, ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=1)]))
        return moved(model, before)

    backbone, head = decayed(1.0)
    assert backbone == 0
    assert head > 0.01
    assert decayed(0.0)[0] > 0.01


@pytest.mark.usually("options0")
@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_it_keeps_the_backbone_beside_other_options(options):
    optimizer = keras.optimizers.Adam(1e-2, **options)
    kept, head = moved(*train(1e7, optimizer, batch_size=4))
    assert kept < 1e-5
    assert head > 1e-3


@pytest.mark.exhaustive
def test_it_keeps_the_backbone_under_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2), initial_scale=8.0)
    model, before = train(1e7, optimizer)
    assert find_discriminative(model.optimizer).regularizer.strength == 1e7
    assert moved(model, before)[0] < 1e-5


# --- Saving -----------------------------------------------------------------------------------


def test_a_saved_model_is_pulled_to_where_it_first_began(tmp_path):
    whole, _ = train(5.0, plan=PLAN)
    path = tmp_path / "model.keras"
    whole.save(path)
    loaded = keras.saving.load_model(path)
    regularizer = find_discriminative(loaded.optimizer).regularizer
    assert isinstance(regularizer, L2SP)
    assert regularizer.strength == 5.0
    last = ktf.UnfreezingPlan([ktf.Stage("more", depth="all", epochs=3)])
    for model in (whole, loaded):
        keras.utils.set_random_seed(7)
        toys.fit(model, last)
    for a, b in zip(whole.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_from_before_the_first_step_begins_with_the_weights_in_it(tmp_path):
    model = toys.compiled(toys.transfer(), discriminative("adam", regularizer=L2SP(1e7)))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    toys.fit(loaded, ktf.recipes.full_fine_tuning(2, peak_lr=1e-2))
    assert moved(loaded, model.get_weights())[0] < 1e-5


def test_a_resumed_run_ends_as_one_that_was_not_and_another_strength_is_another_run(tmp_path):
    def kill(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    def run(*callbacks, strength=5.0):
        keras.utils.clear_session(free_memory=False)  # names as in a process of its own
        keras.utils.set_random_seed(0)
        model = toys.compiled(toys.transfer(), discriminative("adam", regularizer=L2SP(strength)))
        x, y = toys.data(model)
        callbacks = [toys.unfreezing(model), *callbacks]
        model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks)
        return model.get_weights()

    expected = run()
    resuming = ktf.callbacks.ResumableTraining(tmp_path / "run", verbose=0)
    with pytest.raises(KeyboardInterrupt):
        run(resuming, keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    with pytest.raises(ValueError, match=r"strength.* is 5\.0 in the checkpoint and 6\.0 here"):
        run(ktf.callbacks.ResumableTraining(tmp_path / "run", verbose=0), strength=6.0)
    resumed = run(ktf.callbacks.ResumableTraining(tmp_path / "run", verbose=0))
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


# --- Replicas ---------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_replicas_are_pulled_as_one_is():
    (found,) = run_in_child("tests.replicas.pulling")
    assert found["replicas"] == 2
    assert found["distance"] < 1e-6  # between the weights of one replica and of two
    assert found["moved_of_two"] > 0.005
    assert found["unpulled"] > 2 * found["moved_of_two"]
    assert found["starts"] == 0  # between the starts and the weights before


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: L2SP(-1), ValueError, "`strength` must be finite and at least 0"),
        (lambda: L2SP(np.nan), ValueError, "`strength` must be finite"),
        (lambda: L2SP("much"), TypeError, "`strength` must be a number"),
        (lambda: L2SP(1, [1, np.inf]), ValueError, "`reference` must be finite. Received: 1 val"),
        (lambda: L2SP(1)(np.ones(2)), ValueError, r"needs the `reference` .* regularizer=L2SP"),
        (lambda: L2SP(1, [1.0])(np.ones(2)), ValueError, r"shape \(2,\)\. Received: .*\(1,\)"),
        (
            lambda: discriminative("adam", regularizer=keras.regularizers.L2(0.1)),
            TypeError,
            "must be a `keras_transfer.regularizers.L2SP`; others belong to layers",
        ),
        (
            lambda: discriminative("adam", regularizer=L2SP(1, [1.0])),
            ValueError,
            r"takes no `reference`\. Received one of shape \(1,\)",
        ),
    ],
)
def test_bad_input_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_groups_nobody_knows_the_head():
    model = toys.compiled(toys.stock(), discriminative("adam", regularizer=L2SP(1.0)))
    with pytest.raises(ValueError, match="all layer groups but the head, and it was told of no"):
        model.fit(*toys.data(), verbose=0)


def test_a_regularizer_comes_before_the_first_step():
    optimizer = discriminative("adam")
    assert discriminative(optimizer, regularizer=L2SP(1.0)).regularizer.strength == 1.0
    optimizer = DiscriminativeOptimizer("adam")
    optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="where its variables started is no longer known"):
        discriminative(optimizer, regularizer=L2SP(1.0))
