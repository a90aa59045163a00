"""A checkpoint that is not what was written is never read; the one before it is."""

import json
import os
import shutil

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer import _checkpoint_files
from tests.reliability import runs

STATE = {
    "facts": {"a": 1},
    "nested": [1.5, None, True, "text", (1, 2), {"x": np.arange(3, dtype="int64")}],
    "half": np.arange(4, dtype="float32").astype("bfloat16"),
    "empty": np.zeros((0, 3), "float32"),
    "scalar": np.float32(0.1),
    "not a number": float("nan"),
    "keys": {1: "one"},
}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_header(path):
    content = bytearray(path.read_bytes())
    content[len(_checkpoint_files.MAGIC) + 3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut in the header": lambda path: os.truncate(path, 40),
    "one bit": flip,
    "one bit of the checksum": flip_in_header,
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"PK\x03\x04 something else" * 100),
    "a JSON file": lambda path: path.write_text(json.dumps({"epoch": 3})),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def tried(request):
    """Files that were damaged, and whether what they held was lost; printed at the end."""
    outcomes = []
    yield outcomes
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{len(outcomes)} damaged files tried, {sum(outcomes)} lost anything.")


def test_what_is_written_is_read_back(tmp_path):
    files = _checkpoint_files.CheckpointFiles(tmp_path / "made", keep=2)
    assert files.newest() is None
    path = files.write(STATE)
    read, found = files.newest()
    assert found == path
    assert read["nested"][:5] == STATE["nested"][:5]
    np.testing.assert_array_equal(read["nested"][5]["x"], np.arange(3))
    assert read["half"].dtype == STATE["half"].dtype
    assert read["half"].tobytes() == STATE["half"].tobytes()
    assert read["empty"].shape == (0, 3)
    assert read["scalar"] == float(np.float32(0.1))
    assert np.isnan(read["not a number"])
    assert read["keys"] == {1: "one"}


def test_as_many_are_kept_as_was_asked_for(tmp_path):
    for keep in (1, 3):
        files = _checkpoint_files.CheckpointFiles(tmp_path / str(keep), keep=keep)
        for number in range(5):
            files.write({"number": number})
        names = sorted(os.listdir(tmp_path / str(keep)))
        assert names == [f"checkpoint-{n:08d}" for n in range(6 - keep, 6)]
        assert files.newest()[0] == {"number": 4}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_one_before_is_read_and_both_are_named(name, tmp_path, tried):
    files = _checkpoint_files.CheckpointFiles(tmp_path, keep=2)
    good, bad = files.write({"number": 1}), files.write({"number": 2})
    DAMAGE[name](bad)
    with pytest.warns(UserWarning, match=f"goes on from {good}.*{bad}"):
        state, path = files.newest()
    tried.append(state != {"number": 1})
    assert (state, path) == ({"number": 1}, good)
    assert bad.with_name(f"{bad.name}.damaged").exists(), "nothing that a user had is lost"
    # The damaged one does not count among those that are kept.
    newer = files.write({"number": 3})
    assert good.exists()
    DAMAGE[name](newer)
    with pytest.warns(UserWarning, match="goes on from"):
        assert files.newest()[0] == {"number": 1}


@pytest.mark.parametrize("name", DAMAGE)
def test_if_none_is_whole_it_is_an_error(name, tmp_path):
    files = _checkpoint_files.CheckpointFiles(tmp_path, keep=2)
    paths = [files.write({"number": 1}), files.write({"number": 2})]
    for path in paths:
        DAMAGE[name](path)
    with pytest.raises(ValueError, match=r"No checkpoint in .* is whole") as error:
        files.newest()
    assert all(str(path) in str(error.value) for path in paths)
    assert all(path.exists() for path in paths)


def test_a_disk_that_is_full_leaves_earlier_ones(tmp_path, monkeypatch):
    files = _checkpoint_files.CheckpointFiles(tmp_path, keep=2)
    files.write({"number": 1})

    def on_full_disk(path, mode="r"):
        return open("/dev/full", mode)

    monkeypatch.setattr(_checkpoint_files, "open", on_full_disk, raising=False)
    with pytest.raises(OSError, match=r"the disk is full\. Earlier ones are as they were"):
        files.write({"number": 2, "large": np.zeros(100_000)})
    monkeypatch.undo()
    assert files.newest()[0] == {"number": 1}


def test_a_checkpoint_holds_plain_data_and_arrays_only(tmp_path):
    files = _checkpoint_files.CheckpointFiles(tmp_path, keep=2)
    with pytest.raises(TypeError, match="A checkpoint holds numbers, strings, arrays"):
        files.write({"layer": keras.layers.Dense(1)})
    assert os.listdir(tmp_path) == []


def run(directory, epochs=2):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    model.compile("adam", "mse")
    x, y = runs.data()
    history = model.fit(
        x, y, epochs=epochs, verbose=0,
        callbacks=[ktf.callbacks.ResumableTraining(directory, verbose=0)],
    )  # fmt: skip
    return model.get_weights(), history.history["loss"]


@pytest.mark.usually("one bit")
@pytest.mark.parametrize("name", ["truncated", "one bit", "empty", "foreign"])
def test_training_goes_on_from_the_one_before(name, tmp_path, tried):
    weights, losses = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    newest = max((tmp_path / "damaged").iterdir())
    DAMAGE[name](newest)
    with pytest.warns(UserWarning, match=f"goes on from .*{newest.name}"):
        weights_again, losses_again = run(tmp_path / "damaged")
    pairs = zip(weights, weights_again, strict=True)
    tried.append(losses_again != losses or not all(np.array_equal(a, b) for a, b in pairs))
    assert losses_again == losses
    for one, other in zip(weights, weights_again, strict=True):
        np.testing.assert_array_equal(one, other)
