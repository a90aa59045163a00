"""The cached features that the stages of one training read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._decision import Decision
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._fingerprint import weights_checksum
from keras_transfer.features._fit_data import FitData
from keras_transfer.features._order import EpochOrder, ordered_dataset
from keras_transfer.features._prefix import Prefix
from keras_transfer.features._shares import own_share, with_all_shares
from keras_transfer.features._sources import Source
from keras_transfer.features._store import CannotKeepError
from keras_transfer.features._table import Table, join_tables, table_of_arrays
from keras_transfer.features.cache import FeatureCache


@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """Features at an entry point.

    Attributes:
        stage: The stage in which they were made.
        checksum: Of the weights before the point, as they were then.
        training: Features of the training data.
        validation: Features of the validation data, if they are kept.
    """

    stage: int
    checksum: bytes
    training: Table
    validation: Table | None


class StageFeatures:
    """Makes features when a stage begins that reads them, and keeps them while they hold.

    Args:
        model: The model, built.
        cache: Where the features are kept.
        train: The training data.
        validation: The validation data, if there are any.
        verbose: As `fit`'s; a pass over the data shows its progress.
        before_pass: Called before a pass over the training data.
    """

    def __init__(
        self,
        model: Any,
        cache: FeatureCache,
        train: FitData,
        validation: FitData | None,
        *,
        verbose: Any,
        before_pass: Callable[[], None],
    ) -> None:
        self.model = model
        self.cache = cache
        self.train = train
        self.validation = validation
        self.verbose = verbose
        self.before_pass = before_pass
        self.decision = Decision([], [])
        self._kept: dict[EntryPoint, KeptFeatures] = {}
        self._checksums: dict[EntryPoint, Callable[[], bytes]] = {}

    def checksum(self, point: EntryPoint) -> bytes:
        """Returns the checksum of the weights before a point, as they are now."""
        if point not in self._checksums:
            self._checksums[point] = weights_checksum(self.model, point)
        return self._checksums[point]()

    def are_current(self, point: EntryPoint) -> bool:
        """Returns whether the weights before a point are those that its features came from."""
        return self._kept[point].checksum == self.checksum(point)

    def training_data(self, point: EntryPoint, order: EpochOrder, done: int) -> tf.data.Dataset:
        """Returns the features at a point with their targets, past the first `done` batches."""
        return dataset(_with_targets(self._kept[point].training, self.train), order, done)

    def validation_data(self, point: EntryPoint) -> tf.data.Dataset | None:
        """Returns the validation data's features with their targets, if they are kept."""
        table = self._kept[point].validation
        if table is None or self.validation is None:
            return None
        return dataset(_with_targets(table, self.validation), EpochOrder(None))

    def fill(self, point: EntryPoint, stage: int) -> None:
        """Fills this entry point, and all later ones that stay as they are until they are read."""
        if self._is_filled(point, stage):
            return
        later = {
            other
            for number, other in enumerate(self.decision.points)
            if number > stage
            and other is not None
            and self._is_frozen(other, stage, number)
            and not self._is_filled(other, number)
        }
        wanted = sorted({point, *later})
        prefix = self.decision.prefix
        if prefix is None or prefix.points != wanted:
            fold_constants = self.cache.fold_constants
            prefix = Prefix(self.model, wanted, fold_constants=fold_constants)
        self.before_pass()
        made = self._features(prefix, self.train, "training")
        kept: dict[EntryPoint, Table] = {}
        if self.decision.caches_validation and self.validation is not None:
            kept = self._features(prefix, self.validation, "validation")
        for one, table in made.items():
            source = self.train.source
            assert isinstance(source, Source)
            if source.arrays is not None and table.n_rows != source.n_examples:
                raise ValueError(
                    f"The cache holds features of {table.n_rows} examples under "
                    f"key={self.cache.key!r}, and `fit` was given {source.n_examples}. Use another "
                    "key for other data."
                )
            checksum = self.checksum(one)
            self._kept[one] = KeptFeatures(stage, checksum, table, kept.get(one))

    def _features(self, prefix: Prefix, data: FitData, role: str) -> dict[EntryPoint, Table]:
        assert isinstance(data.source, Source)
        strategy = self.model.distribute_strategy
        if not _keras_internals.is_multi_worker(strategy):
            return self.cache.fill(prefix, data.source, role=role, verbose=self.verbose)
        assert data.source.n_examples is not None
        points, problem = prefix.points, None
        shares: dict[EntryPoint, Table] = {}
        try:
            share = own_share(data.source, strategy)
            shares = self.cache.fill(
                prefix, share, role=f"{role} ({share.share})", verbose=self.verbose
            )
        except CannotKeepError as error:
            problem = error  # raised where the other workers have heard of it
        try:
            return {
                p: with_all_shares(shares.get(p), data.source.n_examples, strategy) for p in points
            }
        except CannotKeepError as error:
            raise problem or error from None

    def _is_filled(self, point: EntryPoint, stage: int) -> bool:
        """Whether there are features at a point, and a stage finds them as they would be then."""
        kept = self._kept.get(point)
        if kept is None or not self._is_frozen(point, kept.stage, stage):
            return False
        return self.are_current(point)

    def _is_frozen(self, point: EntryPoint, since: int, until: int) -> bool:
        """Whether nothing before a point trains in the stages from `since` up to `until`."""
        return all(
            frozen is not None and frozen >= point
            for frozen in self.decision.frozen_to[since:until]
        )


def _with_targets(table: Table, data: FitData) -> Table:
    """Returns a table of features with the targets that `fit` was given as arrays."""
    if data.arrays is None:
        return table
    targets = table_of_arrays(data.arrays[1:], table.batch_size or 1, "target")
    return join_tables(table, targets)


def dataset(table: Table, order: EpochOrder, done: int = 0) -> tf.data.Dataset:
    """Returns a table's batches in an epoch's order, past the first `done`."""
    return ordered_dataset(
        table.read,
        table.signature,
        done=done * (table.batch_size or 1),
        count=table.n_rows,
        batch_size=table.batch_size,
        order=order,
    )
