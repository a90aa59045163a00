from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from examples._array_pickle import load_array


def pickled(value):
    return io.BytesIO(pickle.dumps(value, protocol=3))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_arrays_come_back_as_they_were(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    read = load_array(pickled(array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("value", [print, Path(), np.random.default_rng, [np.zeros(2), Path()]])
def test_anything_else_is_refused(value):
    with pytest.raises(pickle.UnpicklingError, match=r"NumPy arrays and nothing else\. Received: "):
        load_array(pickled(value))


def test_code_in_a_pickle_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.eval"):
        load_array(io.BytesIO(b"cbuiltins\neval\n(V" + code.encode() + b"\ntR."))
    assert not trace.exists()


def test_what_is_not_an_array_of_numbers_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="Received: list"):
        load_array(pickled([1, 2]))
    with pytest.raises(pickle.UnpicklingError, match="Received: object"):
        load_array(pickled(np.array([1, "a", None], dtype=object)))
