import threading

import pytest

from keras_transfer.features._pass import read_ahead


def test_the_next_batch_is_read_while_one_is_worked_on():
    asked = threading.Event()

    def batches():
        yield 1
        asked.set()
        yield 2

    read = read_ahead(batches())
    assert next(read) == 1
    assert asked.wait(timeout=10)  # without reading ahead nobody would ask before the next line
    assert list(read) == [2]


def test_what_goes_wrong_in_reading_is_raised_where_the_batch_is_wanted():
    def batches():
        yield 1
        raise OSError("no more")

    read = read_ahead(batches())
    assert next(read) == 1
    with pytest.raises(OSError, match="no more"):
        next(read)
