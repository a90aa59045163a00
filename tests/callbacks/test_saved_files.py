"""Models saved in every stage load in a fresh process: a stock one without this package."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks import toys

STAGES = [stage.name for stage in toys.PLAN.stages]
KINDS = {"stock": toys.stock, "transfer": toys.transfer}
USUALLY = pytest.mark.usually("stock-top", "transfer-top")
CASES = [(kind, stage) for kind in KINDS for stage in STAGES]

# Blocks the package at first, as on a machine where it was never installed.
SCRIPT = """
import json, sys
import keras
import numpy as np

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "keras_transfer":
            raise ModuleNotFoundError(name)

folder, stages = sys.argv[1], sys.argv[2:]
data = np.load(f"{folder}/data.npz")

def report(kind, stage):
    model = keras.models.load_model(f"{folder}/{kind}_{stage}.keras")
    module = type(model.optimizer).__module__.partition(".")[0]
    before = state_of(model)
    options = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
    assert model.run_eagerly
    model.fit(data["x"], data["y"], **options)
    np.savez(f"{folder}/{kind}_{stage}_there.npz", **before, **after_training(model))
    return module

results = {}
"""
SHARED = """
def state_of(model):
    state = {
        "outputs": model.predict(data["x"], verbose=0),
        "flags": np.array([v.trainable for v in model.weights]),
    }
    store = {}
    model.optimizer.save_own_variables(store)
    for name, value in store.items():
        if name != "manifest":  # names the paths, which a model that is loaded has shorter
            state["optimizer " + "|".join(name.split("|")[-2:])] = np.array(value)
    steps = getattr(model.optimizer, "group_steps", {})
    state["steps"] = np.array([int(model.optimizer.iterations), *steps.values()])
    return state

def after_training(model):
    return {f"weight {n} later": w for n, w in enumerate(model.get_weights())}
"""
ENDING = """
sys.meta_path.insert(0, Absent())
for stage in stages:
    results[f"stock_{stage}"] = report("stock", stage)
try:
    keras.models.load_model(f"{folder}/transfer_{stages[0]}.keras")
except (TypeError, ModuleNotFoundError, ImportError) as error:
    results["without"] = str(error)
sys.meta_path.pop(0)
import keras_transfer
for stage in stages:
    results[f"transfer_{stage}"] = report("transfer", stage)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def stages(parameters_that_run):
    return list(dict.fromkeys(one["stage"] for one in parameters_that_run))


@pytest.fixture(scope="module")
def here(folder, stages):
    """Trains up to the end of each stage, saves, and goes on training in this process."""
    x, y = toys.data()
    np.savez(folder / "data.npz", x=x, y=y)
    functions = {"data": {"x": x, "y": y}, "np": np}
    exec(SHARED, functions)
    expected = {}
    for kind, stage in itertools.product(KINDS, stages):
        model = toys.compiled(KINDS[kind](), run_eagerly=True)
        toys.fit(model, epochs=STAGES.index(stage) + 1)
        model.save(folder / f"{kind}_{stage}.keras")
        state = functions["state_of"](model)
        model.export(folder / f"{kind}_{stage}", verbose=False)
        model.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=0)
        expected[kind, stage] = {**state, **functions["after_training"](model)}
    return expected


@pytest.fixture(scope="module")
def modules(folder, here, stages):
    """What each optimizer's class belongs to in a fresh process."""
    code = SCRIPT + SHARED + ENDING
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder), *stages],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@USUALLY
@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_saved_model_goes_on_in_a_fresh_process_as_it_would_have_here(
    here, modules, folder, kind, stage
):
    module = {"stock": "keras", "transfer": "keras_transfer"}[kind]
    assert modules[f"{kind}_{stage}"] == module
    expected = here[kind, stage]
    with np.load(folder / f"{kind}_{stage}_there.npz") as there:
        assert set(there) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(there[name], expected[name], err_msg=name)
    # What trained in the stage has trained on, and nothing else has.
    trained = expected["flags"].sum()
    assert trained == 2 * {"probe": 1, "top": 2, "all": 4}[stage]


@USUALLY
@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_an_exported_model_predicts_the_same(here, folder, kind, stage):
    x, _ = toys.data()
    loaded = tf.saved_model.load(folder / f"{kind}_{stage}")
    np.testing.assert_allclose(loaded.serve(x).numpy(), here[kind, stage]["outputs"], rtol=1e-6)


def test_control_a_transfer_model_does_need_the_package(modules):
    assert "keras_transfer" in modules["without"]
