"""What holds for the whole package: documented names and arguments, messages, imports."""

import importlib
import inspect
import io
import itertools
import pathlib
import pkgutil
import re
import subprocess
import sys
import tokenize

import pytest

import keras_transfer

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "keras_transfer").rglob("*.py"))
API_PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))


def public_modules():
    """The package, its public subpackages, and the modules that it exports."""
    found = [keras_transfer]
    for info in pkgutil.iter_modules(keras_transfer.__path__, "keras_transfer."):
        short = info.name.rpartition(".")[2]
        # A function may have the name of its module: then the function is what is exported.
        is_module = inspect.ismodule(getattr(keras_transfer, short, None))
        exported = is_module and short in keras_transfer.__all__
        if not short.startswith("_") and (info.ispkg or exported):
            found.append(importlib.import_module(info.name))
    return found


def public_objects():
    """Every public class and function, by the name that a user writes."""
    found = {}
    for module in public_modules():
        names = getattr(module, "__all__", None)
        if names is None:
            names = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and (inspect.isclass(value) or inspect.isfunction(value))
                and value.__module__ == module.__name__
            ]
        for name in names:
            value = getattr(module, name)
            if not inspect.ismodule(value):
                found[f"{module.__name__}.{name}"] = value
    return found


PUBLIC = public_objects()


def public_callables():
    """Every public class and function, and the public methods written in this package."""
    for path, value in PUBLIC.items():
        yield path, value
        if not inspect.isclass(value):
            continue
        for name, method in vars(value).items():
            method = getattr(method, "__func__", method)
            if not name.startswith("_") and inspect.isfunction(method):
                yield f"{path}.{name}", method


def documented_arguments(value):
    """The names that the docstring explains in its `Args` (or `Attributes`) section."""
    found, section = set(), ""
    for line in (inspect.getdoc(value) or "").splitlines():
        if re.match(r"\w[\w ]*:$", line):
            section = line.rstrip(":")
        elif section in ("Args", "Attributes") and re.match(r" {4}\*{0,2}\w+", line):
            found.update(re.findall(r"\*{0,2}(\w+)", line.partition(":")[0]))
    return found


def arguments_of(value):
    # What a callable class takes itself; arguments that Keras's own class takes are Keras's.
    if inspect.isclass(value) and "__init__" not in vars(value):
        return set()
    parameters = inspect.signature(value).parameters.values()
    return {p.name for p in parameters} - {"self", "cls"}


# --- Docs -----------------------------------------------------------------------------------


def test_every_public_name_stands_on_an_api_page_and_every_entry_is_public():
    entries = [
        entry
        for page in API_PAGES
        for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(entries) == sorted(set(entries)), "a name stands on two API pages"
    missing = sorted(set(PUBLIC) - set(entries))
    gone = sorted(set(entries) - set(PUBLIC))
    assert not missing, f"add to docs/api/: {', '.join(f'::: {name}' for name in missing)}"
    assert not gone, f"no longer public, remove from docs/api/: {', '.join(gone)}"


def test_every_api_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in API_PAGES if f"api/{page.name}" not in navigation] == []


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_every_public_name_has_a_docstring(path):
    # A dataclass without one gets its signature for a docstring.
    docstring = PUBLIC[path].__doc__ or ""
    assert docstring.strip()
    assert not docstring.startswith(f"{PUBLIC[path].__name__}(")


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_every_argument_is_documented(path):
    assert arguments_of(PUBLIC[path]) - documented_arguments(PUBLIC[path]) == set()


CALLABLES = list(public_callables())


@pytest.mark.parametrize(("path", "value"), CALLABLES, ids=[path for path, _ in CALLABLES])
def test_no_docstring_documents_an_argument_that_is_not_there(path, value):
    if "Args:" not in (inspect.getdoc(value) or ""):
        return
    if inspect.isclass(value) and "Attributes:" in inspect.getdoc(value):
        return
    assert documented_arguments(value) - arguments_of(value) == set()


# --- Messages -------------------------------------------------------------------------------


def glued_words(source):
    """Finds strings that stand next to each other, and so are joined, with no space between."""
    lines = source.splitlines()
    strings_end = {tokenize.STRING, getattr(tokenize, "FSTRING_END", tokenize.STRING)}
    strings_start = {tokenize.STRING, getattr(tokenize, "FSTRING_START", tokenize.STRING)}
    between = {tokenize.NL, tokenize.COMMENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    tokens = [token for token in tokens if token.type not in between]
    found = []
    for token, following in itertools.pairwise(tokens):
        if token.type not in strings_end or following.type not in strings_start:
            continue
        before = lines[token.end[0] - 1][: token.end[1]].rstrip("\"'")
        after = lines[following.start[0] - 1][following.start[1] :]
        after = re.sub(r"^[a-zA-Z]*[\"']+", "", after)
        # A value in braces may bring its own space (`did_you_mean`) after a full stop or a value.
        words = re.search(r"[\w`'\".,:;)}\]]$", before) and re.match(r"[\w`'\"(\[]", after)
        value = re.search(r"[\w,:;]$", before) and after.startswith("{")
        if (words or value) and not re.search(r"\\[nt]$", before):
            found.append(f"line {token.end[0]}: ...{before[-20:]} | {after[:20]}...")
    return found


def test_the_check_for_glued_words_finds_them():
    glued = 'raise ValueError(\n    f"`a` must be {b},"\n    "not c"\n)\n'
    assert glued_words(glued)
    assert not glued_words(glued.replace('b},"', 'b}, "'))
    assert glued_words("x = (\n    'one'  # why\n    f'{two} y'\n)\n")
    assert not glued_words("x = ('one\\n'\n    'two')\n")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_message_glues_two_words_together(path):
    assert glued_words(path.read_text()) == []


# --- Imports and files ----------------------------------------------------------------------


def test_the_package_imports_all_of_itself_and_no_optional_package():
    optional = ["keras_tuner", "tensorflow_datasets", "matplotlib", "sklearn", "tensorboard"]
    pages = {page.stem for page in (ROOT / "docs" / "api").glob("*.md")} - {"keras_transfer"}
    assert len(pages) >= 9
    # In a process of its own: here, other tests have imported everything already.
    code = (
        "import sys, keras; before = set(sys.modules)\n"
        "import keras_transfer\n"
        f"print([name for name in {sorted(pages)} if not hasattr(keras_transfer, name)])\n"
        "import keras_transfer.plotting\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"print(sorted(new & set({optional})))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.splitlines() == ["[]", "[]"]


def test_the_version_is_a_release_number_and_stands_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_transfer.__version__)
    assert "version = attr: keras_transfer.__version__" in (ROOT / "setup.cfg").read_text()


def test_no_file_holds_a_path_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.])/(work|home|root|Users)/\w")
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.cfg", "*.toml", "*.yml", "*.yaml", "*.txt", "*.csv"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.split()
    found = [name for name in files if pattern.search((ROOT / name).read_text(errors="ignore"))]
    assert [name for name in found if name != "tests/test_contract.py"] == []
