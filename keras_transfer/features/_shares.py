"""On several workers, each runs the pass over its own share of the examples.

Every worker then gets the features of all, so that the order of examples is that of one
process, whichever worker computed them.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _workers
from keras_transfer.features._sources import Source, array_source
from keras_transfer.features._store import CannotKeepError
from keras_transfer.features._table import Table


def rows_of_worker(n_rows: int, number: int, count: int) -> tuple[int, int]:
    """Returns where a worker's share of the rows begins and ends."""
    return n_rows * number // count, n_rows * (number + 1) // count


def own_share(source: Source, strategy: tf.distribute.Strategy) -> Source:
    """Returns the examples of arrays that this worker computes features of."""
    assert source.arrays is not None
    assert source.n_examples is not None
    assert source.batch_size is not None
    number, count = _workers.number_and_count(strategy)
    begin, end = rows_of_worker(source.n_examples, number, count)
    arrays = keras.tree.map_structure(lambda a: a[begin:end], source.arrays)
    share = array_source(arrays, source.batch_size, shuffle=source.is_shuffled)
    return dataclasses.replace(share, share=f"rows {begin} to {end - 1}")


def with_all_shares(table: Table | None, n_rows: int, strategy: tf.distribute.Strategy) -> Table:
    """Returns a table of all examples, in memory, from the shares of the workers.

    Args:
        table: This worker's share; `None` if it could not be made.
        n_rows: How many examples there are in all.
        strategy: The strategy that spans the workers. All of them have to call this.

    Raises:
        CannotKeepError: In all workers, if one has no share.
    """
    if _workers.any_of(strategy, table is None):
        raise CannotKeepError("a worker could not keep its share")
    assert table is not None
    number, count = _workers.number_and_count(strategy)
    begin, end = rows_of_worker(n_rows, number, count)
    columns = {}
    for name, column in table.columns.items():
        assert isinstance(column.values, np.ndarray)
        values = np.zeros((n_rows, *column.values.shape[1:]), column.values.dtype)
        values[begin:end] = column.values
        _workers.add_up(strategy, values)
        columns[name] = dataclasses.replace(column, values=values)
    return dataclasses.replace(table, columns=columns, n_rows=n_rows)
