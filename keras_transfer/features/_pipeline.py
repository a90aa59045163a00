"""Tells whether a `tf.data.Dataset` yields the same examples each time it is read.

An allow-list: what is not known to be the same each time is taken as not the same.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._elementwise import is_elementwise

# Transformations and sources that yield the same each time, by the name of their class.
SOURCES = frozenset(
    {
        "_TensorDataset",
        "_TensorSliceDataset",
        "_RangeDataset",
        "TensorDataset",
        "TensorSliceDataset",
        "RangeDataset",
        "TFRecordDatasetV2",
        "_TFRecordDataset",
        "TextLineDatasetV2",
        "_TextLineDataset",
        "FixedLengthRecordDatasetV2",
        "_FixedLengthRecordDataset",
    }
)
# These keep the set of examples, shuffled or not.
KEEP_THE_SET = frozenset(
    {
        "_AssertCardinalityDataset",
        "_ConcatenateDataset",
        "_IgnoreErrorsDataset",
        "_InterleaveDataset",
        "_MapDataset",
        "_FlatMapDataset",
        "_OptionsDataset",
        "_ParallelInterleaveDataset",
        "_ParallelMapDataset",
        "_PrefetchDataset",
        "_RepeatDataset",
        "_RestructuredDataset",
        "_UnbatchDataset",
        "DatasetV1Adapter",
    }
)
BATCH = frozenset({"_BatchDataset", "_ParallelBatchDataset"})
SHUFFLE = frozenset({"_ShuffleDataset", "ShuffleDataset"})
CACHE = frozenset({"_CacheDataset", "CacheDataset"})
# Behind these an element is no longer one of those before.
CHANGE_ELEMENTS = frozenset(
    {
        "_ConcatenateDataset",
        "_FlatMapDataset",
        "_InterleaveDataset",
        "_ParallelInterleaveDataset",
        "_UnbatchDataset",
    }
)
# What these yield depends on the order of what they read.
DEPEND_ON_ORDER = {
    "_TakeDataset": "take",
    "_SkipDataset": "skip",
    "_ShardDataset": "shard",
    "_FilterDataset": "filter",
    "_TakeWhileDataset": "take_while",
    "_PaddedBatchDataset": "padded_batch",
    "_ZipDataset": "zip",
    "_WindowDataset": "window",
    "_GroupByWindowDataset": "group_by_window or bucket_by_sequence_length",
}
# These may leave off before the end of what they read.
READ_A_PART = frozenset({"_TakeDataset", "_TakeWhileDataset", "_ZipDataset"})

SAFE_STATEFUL_OPERATIONS = frozenset(
    {
        "Assert",
        "If",
        "PartitionedCall",
        "ReadFile",
        "StatefulPartitionedCall",
        "StatelessIf",
        "StatelessWhile",
        "While",
        # Data sets inside `flat_map` and `interleave`.
        "ConcatenateDataset",
        "FixedLengthRecordDatasetV2",
        "FlatMapDataset",
        "MapDataset",
        "ModelDataset",
        "OptionsDataset",
        "ParallelMapDatasetV2",
        "PrefetchDataset",
        "RangeDataset",
        "SkipDataset",
        "TakeDataset",
        "TensorDataset",
        "TensorSliceDataset",
        "TFRecordDataset",
        "TFRecordDatasetV2",
        "TextLineDataset",
    }
)
UNKNOWABLE_OPERATIONS = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is known of a data set.

    Attributes:
        reason: Why it is not known to yield the same examples each time; empty if it does.
        differs: Whether it is known to yield others each time, rather than not known.
        is_shuffled: Whether the order differs each time.
        shuffles_batches: Whether whole batches are shuffled, rather than examples.
    """

    reason: str = ""
    differs: bool = False
    is_shuffled: bool = False
    shuffles_batches: bool = False


def examine(dataset: tf.data.Dataset) -> Verdict:
    """Returns whether a data set yields the same examples each time it is read."""
    return _examine(dataset, [], keeps_order=dataset.options().deterministic is not False)


def batch_size_of(dataset: tf.data.Dataset) -> int | None:
    """Returns how many examples the batches of a data set have at most, where that is known."""
    first = tf.nest.flatten(dataset.element_spec)[0]
    if isinstance(first, tf.TensorSpec) and first.shape.rank and first.shape[0] is not None:
        return int(first.shape[0])
    size = _keras_internals.dataset_attribute(dataset, "batch_size")
    if size is not None:
        return int(size)
    inputs = _keras_internals.dataset_inputs(dataset)
    keep_batches = (KEEP_THE_SET - CHANGE_ELEMENTS) | SHUFFLE | CACHE | set(DEPEND_ON_ORDER)
    if len(inputs) != 1 or type(dataset).__name__ not in keep_batches:
        return None
    return batch_size_of(inputs[0])


def _examine(
    dataset: tf.data.Dataset, behind: list[tf.data.Dataset], *, keeps_order: bool
) -> Verdict:
    """Examines a data set.

    Args:
        dataset: The data set.
        behind: What reads it, the nearest first.
        keeps_order: Whether parallel transformations keep the order where they do not say.
    """
    kind = type(dataset).__name__
    if kind in CACHE and not any(type(after).__name__ in READ_A_PART for after in behind):
        # What was cached is read back as it is, its order too. (What is not read to its
        # end is not kept, but made anew each time.)
        return Verdict()
    problem = _problem_of_functions(dataset)
    if problem is not None:
        return problem
    if kind in SHUFFLE:
        if _keras_internals.dataset_attribute(dataset, "reshuffle_each_iteration"):
            return _shuffled(dataset, behind, keeps_order=keeps_order)
    elif kind not in SOURCES | KEEP_THE_SET | BATCH | CACHE and kind not in DEPEND_ON_ORDER:
        return Verdict(f"it is not known whether {kind.strip('_')} yields the same each time")
    order_matters = [k for k in (type(d).__name__ for d in behind) if k in DEPEND_ON_ORDER]
    if order_matters and may_reorder(dataset, keeps_order=keeps_order):
        return Verdict(
            f"{DEPEND_ON_ORDER[order_matters[0]]} after a parallel transformation with "
            "deterministic=False may yield another set of examples each time"
        )
    inputs = _keras_internals.dataset_inputs(dataset)
    verdicts = [_examine(one, [dataset, *behind], keeps_order=keeps_order) for one in inputs]
    for verdict in verdicts:
        if verdict.reason:
            return verdict
    return next((v for v in verdicts if v.is_shuffled), Verdict())


def may_reorder(dataset: tf.data.Dataset, *, keeps_order: bool) -> bool:
    """Returns whether a parallel transformation may yield its elements in another order.

    Args:
        dataset: What the transformation made.
        keeps_order: What holds for one that does not say.
    """
    if "Parallel" not in type(dataset).__name__:
        return False
    told = _keras_internals.dataset_attribute(dataset, "deterministic")
    return told == "false" or (told == "default" and not keeps_order)


def _shuffled(
    dataset: tf.data.Dataset, behind: list[tf.data.Dataset], *, keeps_order: bool
) -> Verdict:
    """Examines what lies before a `shuffle`, and what it means for what lies behind it."""
    (read,) = _keras_internals.dataset_inputs(dataset)
    before = _examine(read, [dataset, *behind], keeps_order=keeps_order)
    if before.reason:
        return before
    batched = False
    for index, after in enumerate(behind):
        kind = type(after).__name__
        if kind in DEPEND_ON_ORDER:
            return Verdict(
                f"{DEPEND_ON_ORDER[kind]} after shuffle yields another set of examples each time",
                differs=True,
            )
        if kind in BATCH:
            feeds = behind[index - 1] if index else dataset
            if _drops_examples(after, feeds):
                return Verdict(
                    "batch(drop_remainder=True) after shuffle drops other examples each time",
                    differs=True,
                )
            batched = True
        elif batched and not _treats_examples_alone(after):
            return Verdict("a map over shuffled batches may mix their examples (map before batch)")
    # Batches of examples that were shuffled before hold others each time.
    return Verdict(is_shuffled=True, shuffles_batches=_is_batched(read) and not before.is_shuffled)


def _drops_examples(batch: tf.data.Dataset, feeds: tf.data.Dataset) -> bool:
    if not _keras_internals.dataset_attribute(batch, "drop_remainder"):
        return False
    count = int(feeds.cardinality())
    size = int(_keras_internals.dataset_attribute(batch, "batch_size"))
    return count < 0 or count % size != 0


def _is_batched(dataset: tf.data.Dataset) -> bool:
    if type(dataset).__name__ in BATCH | {"_PaddedBatchDataset"}:
        return True
    if type(dataset).__name__ == "_UnbatchDataset":
        return False
    return any(_is_batched(one) for one in _keras_internals.dataset_inputs(dataset))


def _treats_examples_alone(dataset: tf.data.Dataset) -> bool:
    return all(map(is_elementwise, _keras_internals.dataset_graphs(dataset)))


def _problem_of_functions(dataset: tf.data.Dataset) -> Verdict | None:
    inside = Verdict("it reads data sets from inside others, which may yield others each time")
    specs = tf.nest.flatten(dataset.element_spec)
    holds_sets = any(isinstance(spec, tf.data.DatasetSpec) for spec in specs)
    if holds_sets and type(dataset).__name__ in SOURCES:
        return inside
    for graph in _keras_internals.dataset_graphs(dataset):
        if any(t.dtype == tf.variant for t in _keras_internals.captured_tensors(graph)):
            return inside
        unsafe = _keras_internals.unsafe_operations(graph, SAFE_STATEFUL_OPERATIONS)
        for name in unsafe:
            if "Random" in name or "ShuffleDataset" in name:
                return Verdict(f"its pipeline draws random numbers ({name})", differs=True)
        for name in sorted(unsafe, key=lambda n: n not in UNKNOWABLE_OPERATIONS):
            what = "runs Python code" if name in UNKNOWABLE_OPERATIONS else f"runs {name}"
            return Verdict(f"its pipeline {what}, which may yield other values each time")
    return None
