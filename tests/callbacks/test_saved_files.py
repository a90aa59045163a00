"""Models saved after a plan load in a fresh process: a stock one without this package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.callbacks import toys

# Blocks the package at first, as on a machine where it was never installed.
SCRIPT = """
import json, sys
import keras
import numpy as np

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "keras_transfer":
            raise ModuleNotFoundError(name)

folder = sys.argv[1]
x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")

def report(kind):
    model = keras.models.load_model(f"{folder}/{kind}.keras")
    outputs = model.predict(x, verbose=0).tolist()
    steps = int(model.optimizer.iterations.numpy())
    losses = model.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"]
    return {
        "optimizer": type(model.optimizer).__module__.partition(".")[0],
        "steps": steps,
        "outputs": outputs,
        "losses": losses,
    }

sys.meta_path.insert(0, Absent())
results = {"stock": report("stock")}
try:
    keras.models.load_model(f"{folder}/transfer.keras")
except (TypeError, ModuleNotFoundError, ImportError) as error:
    results["without"] = str(error)
sys.meta_path.pop(0)
import keras_transfer
results["transfer"] = report("transfer")
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def here(folder):
    """Trains under a plan, saves, and goes on training in this process."""
    x, y = toys.data()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    expected = {}
    for make in (toys.stock, toys.transfer):
        model = toys.compiled(make())
        toys.fit(model)
        model.save(folder / f"{make.__name__}.keras")
        outputs = model.predict(x, verbose=0)
        losses = model.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"]
        expected[make.__name__] = {"outputs": outputs, "losses": losses}
    return expected


@pytest.fixture(scope="module")
def there(folder, here):
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kind", "module"), [("stock", "keras"), ("transfer", "keras_transfer")])
def test_a_saved_model_goes_on_in_a_fresh_process_as_it_would_have_here(here, there, kind, module):
    loaded = there[kind]
    assert (loaded["optimizer"], loaded["steps"]) == (module, 3)
    np.testing.assert_allclose(loaded["outputs"], here[kind]["outputs"], atol=1e-6)
    np.testing.assert_allclose(loaded["losses"], here[kind]["losses"], rtol=1e-6)
    assert loaded["losses"][1] < loaded["losses"][0]


def test_control_a_transfer_model_does_need_the_package(there):
    assert "keras_transfer" in there["without"]
