"""What every test starts from, and the examples in README, docs and docstrings as tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import contextlib
import io

import hypothesis
import keras
import pytest
from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

# The same examples at every run, and no deadline: TensorFlow's first call is slow. No `explain`
# either, for which every call of a function is traced, in TensorFlow and Keras too.
PHASES = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, phases=PHASES)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Scripts that tests start as processes of their own, or that made their reference values.
collect_ignore_glob = ["tests/replicas/*", "tests/workers/*", "tests/*/reference/*"]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Every test has the same random numbers, automatic layer names and precision."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """What an example writes, it writes into a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def parameters_that_run(request):
    """Parameters of the module's tests that are not skipped, for what is run once for them all."""
    items = [item for item in request.session.items if item.path == request.path]
    running = [item for item in items if not item.get_closest_marker("skip")]
    return [item.callspec.params for item in running if hasattr(item, "callspec")]


def leave_unusual_cases_to_exhaustive_runs(config, items):
    wanted, found = set(), set()
    for item in items:
        if usual := item.get_closest_marker("usually"):
            test, _, case = item.nodeid.removesuffix("]").partition("[")
            wanted.update((test, name) for name in usual.args)
            found.add((test, case))
            if case not in usual.args:
                item.add_marker(pytest.mark.exhaustive)
    if wanted - found and not any("[" in argument for argument in config.args):
        raise pytest.UsageError(f"`usually` names cases that are not there: {wanted - found}")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config, items):
    leave_unusual_cases_to_exhaustive_runs(config, items)
    if "exhaustive" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes: -m exhaustive"))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


# --- Examples -----------------------------------------------------------------------------
# Fenced Python in README, docs and docstrings runs here; `>>>` examples in docstrings run by
# --doctest-modules. A block marked `text` right after one that prints shows what it printed,
# and has to be just that.

run_python = PythonEvaluator()


def run_and_keep_output(example: Example) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_python(example)
    example.namespace["_printed"] = printed.getvalue()


def compare_output(example: Example) -> str | None:
    printed = example.namespace.pop("_printed", "")
    # Line breaks do not count, so that a long message can be shown wrapped.
    if not printed.strip() or example.parsed.split() == printed.split():
        return None
    return f"The block before this one printed something else:\n{printed}"


parsers = [
    SkipParser(),
    CodeBlockParser("python", run_and_keep_output),
    CodeBlockParser("text", compare_output),
]
fixtures = ["fresh_keras", "empty_folder"]
pages = Sybil(parsers, patterns=["README.md", "docs/*.md", "docs/*/*.md"], fixtures=fixtures)
docstrings = Sybil(
    parsers,
    patterns=["keras_transfer/*.py", "keras_transfer/*/*.py"],
    document_types={".py": PythonDocStringDocument},
    fixtures=fixtures,
)
pytest_collect_file = (pages + docstrings).pytest()
