from __future__ import annotations

import collections
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from examples.pretrained.torch_file import read_torch_file


class _FakeTorch:
    """Names as PyTorch's, so that a pickle can be written where PyTorch is not installed."""

    def __init__(self, monkeypatch):
        for name in ("torch", "torch._utils"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

        def rebuild(*arguments):
            raise AssertionError("only its name is used")

        rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
        sys.modules["torch._utils"]._rebuild_tensor_v2 = rebuild
        self.float_storage = type("FloatStorage", (), {"__module__": "torch"})
        sys.modules["torch"].FloatStorage = self.float_storage
        self.rebuild = rebuild


class _Tensor:
    def __init__(self, key, length, offset, shape, strides):
        self.arguments = (key, length, offset, shape, strides)


class _Storage:
    def __init__(self, key, length):
        self.key, self.length = key, length


def write(path, fake, saved, storages, magic=0x1950A86A20F9469CFC6C, sys_info=None):
    """Writes `saved` as `torch.save` did before 1.6."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, _Storage):
                return ("storage", fake.float_storage, value.key, "cpu", value.length, None)
            return None

        def reducer_override(self, value):
            if not isinstance(value, _Tensor):
                return NotImplemented
            key, length, offset, shape, strides = value.arguments
            empty = collections.OrderedDict()
            arguments = (_Storage(key, length), offset, shape, strides, False, empty)
            return fake.rebuild, arguments

    with path.open("wb") as file:
        for value in (magic, 1001, sys_info or {"little_endian": True}, saved, list(storages)):
            Pickler(file, protocol=2).dump(value)
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


@pytest.fixture
def fake(monkeypatch):
    return _FakeTorch(monkeypatch)


@pytest.fixture
def numbers():
    return np.arange(12, dtype="<f4")


def test_tensors_come_back_with_their_offset_and_strides(fake, numbers, tmp_path):
    saved = {
        "whole": _Tensor("a", 12, 0, (3, 4), (4, 1)),
        "transposed": _Tensor("a", 12, 0, (4, 3), (1, 4)),
        "part": _Tensor("a", 12, 5, (2,), (3,)),
        "scalar": _Tensor("a", 12, 7, (), ()),
        "steps": 3,
    }
    read = read_torch_file(write(tmp_path / "w.pth", fake, saved, {"a": numbers}))
    assert list(read) == list(saved)
    np.testing.assert_array_equal(read["whole"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [5, 8])
    assert read["scalar"] == 7
    assert read["steps"] == 3


@pytest.mark.parametrize("harm", [print, eval, types.SimpleNamespace, np.ndarray])
def test_a_file_that_names_anything_else_is_refused_before_it_runs(fake, harm, tmp_path):
    path = write(tmp_path / "w.pth", fake, {"weights": harm}, {})
    with pytest.raises(pickle.UnpicklingError, match=rf"Received: .*{harm.__name__}"):
        read_torch_file(path)


def test_code_in_a_pickle_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    (tmp_path / "w.pth").write_bytes(b"cbuiltins\neval\n(V" + code.encode() + b"\ntR.")
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.eval"):
        read_torch_file(tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((4, 4), (4, 1), 0),
        ((3, 4), (4, 1), 1),
        ((2,), (-1,), 5),
        ((2,), (1,), -1),
        ((2,), (99,), 0),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(fake, numbers, shape, strides, offset, tmp_path):
    saved = {"weights": _Tensor("a", 12, offset, shape, strides)}
    path = write(tmp_path / "w.pth", fake, saved, {"a": numbers})
    with pytest.raises(ValueError, match="beyond its storage"):
        read_torch_file(path)


def test_a_truncated_file_is_refused(fake, numbers, tmp_path):
    saved = {"weights": _Tensor("a", 12, 0, (12,), (1,))}
    path = write(tmp_path / "w.pth", fake, saved, {"a": numbers})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="it ends early"):
        read_torch_file(path)


def test_a_storage_larger_than_the_file_is_refused(fake, numbers, tmp_path):
    saved = {"weights": _Tensor("a", 10**12, 0, (12,), (1,))}
    path = write(tmp_path / "w.pth", fake, saved, {"a": numbers})
    with pytest.raises(ValueError, match="1000000000000 numbers is too large"):
        read_torch_file(path)


def test_other_formats_are_named(fake, tmp_path):
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="zip format"):
        read_torch_file(tmp_path / "zip.pth")
    with pytest.raises(ValueError, match=r"not written by `torch\.save`"):
        read_torch_file(write(tmp_path / "w.pth", fake, {}, {}, magic=1))
    path = write(tmp_path / "w.pth", fake, {}, {}, sys_info={"little_endian": False})
    with pytest.raises(ValueError, match="big-endian"):
        read_torch_file(path)
