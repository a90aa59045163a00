"""`TransferModel.fit` once everything is checked: stages, order of examples, cached features."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import (
    _fit_checks,
    _keras_internals,
    _resolved_plan,
    _workers,
)
from keras_transfer._one_training import OneTraining, Resuming
from keras_transfer._replica_batches import must_cut_batches, sizes_of_batches
from keras_transfer._stage_features import StageFeatures, dataset
from keras_transfer.features import FeatureCache
from keras_transfer.features._batch_sizes import even_batches
from keras_transfer.features._decision import Decision, StageToRun, decide
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._fingerprint import data_fingerprint
from keras_transfer.features._fit_data import FitData, training_data, validation_data
from keras_transfer.features._openings import (
    CountedOpenings,
    reason_not_in_order,
    reason_not_repeatable,
)
from keras_transfer.features._order import EpochOrder
from keras_transfer.features._sources import Source, as_arrays, split_arrays
from keras_transfer.features._store import CannotKeepError
from keras_transfer.features._table import table_of_arrays
from keras_transfer.features.cache import PassingCache
from keras_transfer.optimizers import find_discriminative
from keras_transfer.plan import CarriesPlan


@dataclasses.dataclass
class FitArguments:
    """Arguments of `keras.Model.fit`, by its names."""

    x: Any
    y: Any
    batch_size: int | None
    epochs: int
    verbose: Any
    callbacks: Any
    validation_split: float
    validation_data: Any
    shuffle: Any
    class_weight: Any
    sample_weight: Any
    initial_epoch: int
    steps_per_epoch: int | None
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: Any


@dataclasses.dataclass
class SegmentData:
    """What Keras's `fit` reads in a segment."""

    x: Any
    validation: Any = None
    y: Any = None
    sample_weight: Any = None
    batch_size: int | None = None
    shuffle: Any = False


def check_cache_features(cache_features: Any) -> None:
    """Checks `fit`'s `cache_features`."""
    if isinstance(cache_features, bool | FeatureCache) or cache_features == "auto":
        return
    raise ValueError(
        "`cache_features` must be 'auto', True, False, or a `FeatureCache`. Received: "
        f"cache_features={cache_features!r}"
    )


class StagedFit:
    """One training of a `TransferModel`.

    Args:
        model: The model, built and compiled.
        plain_fit: `keras.Model.fit` of the model.
        arguments: What the user passed to `fit`.
        carrier: The callback that carries a plan, if there is one.
        cache_features: As in `TransferModel.fit`.
        resuming: The callback that keeps checkpoints, if there is one.
    """

    def __init__(
        self,
        model: Any,
        plain_fit: Callable[..., Any],
        arguments: FitArguments,
        carrier: CarriesPlan | None,
        cache_features: Any,
        resuming: Resuming | None = None,
    ) -> None:
        self.model = model
        self.plain_fit = plain_fit
        self.carrier = carrier
        self.is_off = cache_features is False
        self.insists = cache_features is True or isinstance(cache_features, FeatureCache)
        given = isinstance(cache_features, FeatureCache)
        self.cache = cache_features if given else PassingCache()
        self.arguments = arguments
        limit = keras.config.max_epochs()
        if limit:
            arguments.epochs = min(arguments.epochs, limit)
        self._split_off_validation()
        self.train = training_data(
            arguments.x,
            arguments.y,
            arguments.sample_weight,
            batch_size=arguments.batch_size,
            shuffle=arguments.shuffle,
            steps_per_epoch=arguments.steps_per_epoch,
            insist=self.insists,
        )
        self.validation = validation_data(
            arguments.validation_data,
            batch_size=arguments.validation_batch_size or arguments.batch_size,
            steps=arguments.validation_steps,
            insist=self.insists,
        )
        if _keras_internals.is_multi_worker(model.distribute_strategy):
            for data in (self.train, self.validation):
                if data is not None:
                    _keep_arrays_only(data)
        is_shuffled = isinstance(self.train.source, Source) and self.train.source.is_shuffled
        # Drawn in any case: a cached and an uncached run leave the generator alike.
        seed = int(_workers.of_chief(model.distribute_strategy, random.randrange(2**31)))
        self.order = EpochOrder(seed if is_shuffled else None)
        self.stages: list[StageToRun] = []  # not known before callbacks have said where to start
        self.features = StageFeatures(
            model,
            self.cache,
            self.train,
            self.validation,
            verbose=arguments.verbose,
            before_pass=self._note_openings,
        )
        self.resuming = resuming
        self.resumed_at: tuple[int, int] | None = None  # epoch, and steps of it that are done
        self.openings: CountedOpenings | None = None
        self.opened_before = 0  # how often when features were made last
        self.cuts_batches = False
        self.specs: Any = None  # of the segment's batches, where a data set says them
        self._reason_not_repeatable = ""
        if resuming is not None:
            if self.train.arrays is None:
                self._reason_not_repeatable = reason_not_repeatable(
                    arguments.x,
                    shuffle=arguments.shuffle,
                    steps_per_epoch=arguments.steps_per_epoch,
                )
            if self.validation is not None and self.validation.arrays is None:
                self._reason_not_repeatable = self._reason_not_repeatable or reason_not_in_order(
                    self.validation.x
                )
            self._count_openings()

    def run(self) -> keras.callbacks.History:
        """Trains, and returns the history."""
        arguments = self.arguments
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            trained = [v for stage in self._stages_to_run(0) for v in stage.variables]
            self.cuts_batches = must_cut_batches(self.model, trained, self.train, self._sizes())
        training = OneTraining(
            _fit_checks.as_list(arguments.callbacks),
            model=self.model,
            order=self.order,
            data_of=self._data_at,
            check=self._check_epoch,
            resuming=self.resuming,
            verbose=arguments.verbose,
            epochs=arguments.epochs,
            steps=self._steps(),
        )
        self.model.stop_training = False
        self.model.make_train_function()
        self._tell_resuming()
        training.begin()
        epoch = _keras_internals.take_initial_epoch(self.model) or arguments.initial_epoch
        self._resume(training)
        self.stages = self._stages_to_run(epoch)
        if epoch < arguments.epochs:
            self._decide()
            self._check_steps_can_be_resumed()
        optimizer = find_discriminative(self.model.optimizer)
        assert optimizer is not None
        with optimizer.averages_held():
            while epoch < arguments.epochs:
                self._run_segment(training, epoch)
                epoch = training.next_epoch
                if training.is_stopped:
                    break
        if arguments.epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        training.end()
        history: keras.callbacks.History = self.model.history
        return history

    # --- Resuming ---------------------------------------------------------------------

    def _count_openings(self) -> None:
        source = self.train.source
        if not isinstance(self.train.x, tf.data.Dataset) or not isinstance(source, Source):
            return
        if source.is_shuffled and not source.reason:
            self.openings = CountedOpenings(self.train.x)
            source.read = self.openings.counting(source.read)
            self.train.x = self.openings.dataset

    def _note_openings(self) -> None:
        """Notes, before a pass over the data, how often they have been opened."""
        if self.openings is not None:
            if self.resuming is not None and self.resumed_at is not None:
                self.openings.advance_to(self.resuming.saved_state_of_fit()["opened_before"])
            self.opened_before = self.openings.count

    def _tell_resuming(self) -> None:
        if self.resuming is None:
            return
        given = self.arguments
        facts: dict[str, Any] = {"batch_size": given.batch_size, "shuffle": bool(given.shuffle)}
        if self.train.arrays is not None:
            facts["fingerprint"] = data_fingerprint(self.train.arrays)
        elif isinstance(given.x, tf.data.Dataset):
            facts["element_spec"] = str(given.x.element_spec)
        self.resuming.told_by_fit(facts, self._state, self._reason_not_repeatable)

    def _state(self) -> dict[str, Any]:
        """Returns what the order of the examples follows from."""
        opened = 0 if self.openings is None else self.openings.count
        return {"seed": self.order.seed, "opened": opened, "opened_before": self.opened_before}

    def _resume(self, training: OneTraining) -> None:
        if self.resuming is None or self.resuming.place() is None:
            return
        self.resumed_at = self.resuming.place()
        self.resuming.restore()
        self.order.seed = self.resuming.saved_state_of_fit()["seed"]
        training.resumed_at = self.resumed_at

    def _check_steps_can_be_resumed(self) -> None:
        if self.resuming is None or self.resuming.save_freq == "epoch":
            return
        uncached = [
            stage.name
            for stage, point in zip(self.stages, self.features.decision.points, strict=True)
            if point is None and stage.epochs
        ]
        if self.train.arrays is None and uncached:
            stages = ", ".join(map(repr, uncached))
            raise ValueError(
                "Training can go on within an epoch only where the order of examples is the "
                f"package's own: on arrays, or on cached features. Stage {stages} reads "
                f"{type(self.arguments.x).__name__}. Received: "
                f"save_freq={self.resuming.save_freq}. Use save_freq='epoch'."
            )

    def _steps_done(self, epoch: int) -> int:
        """Returns how many steps of an epoch lie behind where training went on."""
        if self.resumed_at is None or self.resumed_at[0] != epoch:
            return 0
        return self.resumed_at[1]

    # --- Stages -----------------------------------------------------------------------

    def _stages_to_run(self, first_epoch: int) -> list[StageToRun]:
        last_epoch = self.arguments.epochs
        if self.carrier is None:
            variables = self.model.trainable_variables
            return [StageToRun("", variables, max(0, last_epoch - first_epoch))]
        plan = self.carrier.plan
        resolved = _resolved_plan.resolve(self.model, plan)
        stages = []
        for index, stage in enumerate(resolved.stages):
            begins = plan.first_epoch(index)
            ends = begins + stage.stage.epochs
            if plan.ends_on_plateau:
                epochs = stage.stage.epochs  # where it begins is not known beforehand
            else:
                epochs = max(0, min(ends, last_epoch) - max(begins, first_epoch))
            stages.append(StageToRun(stage.stage.name, stage.variables, epochs))
        return stages

    def _stage_at(self, epoch: int) -> int:
        if self.carrier is None:
            return 0
        return min(self.carrier.stage_index_at(epoch), len(self.stages) - 1)

    def _point_at(self, epoch: int) -> EntryPoint | None:
        return self.features.decision.points[self._stage_at(epoch)]

    def _data_at(self, epoch: int) -> tuple[EntryPoint | None, bytes, int]:
        """Returns what an epoch reads: where it starts, what lies before that, what is left."""
        point = self._point_at(epoch)
        checksum = b"" if point is None else self.features.checksum(point)
        return point, checksum, self._steps_done(epoch)

    def _check_epoch(self, epoch: int) -> None:
        """Checks that an epoch whose beginning all callbacks have seen can go on."""
        self._check_frozen(epoch)
        self._make_metrics()
        resumed = self.resumed_at is not None and self.resumed_at[0] == epoch
        if resumed and self.openings is not None and self.resuming is not None:
            # Keras has looked at the data by now, which counts as well.
            self.openings.advance_to(self.resuming.saved_state_of_fit()["opened"])

    def _check_frozen(self, epoch: int) -> None:
        """Checks that nothing trains that the features of an epoch's stage have behind them."""
        point = self._point_at(epoch)
        groups = self.model.backbone.layer_groups[: point.start] if point is not None else []
        for group in groups:
            if any(v.trainable for v in group.variables):
                raise RuntimeError(
                    f"A callback has let {group.name!r} train while features behind it are "
                    "cached. Put the change into an `UnfreezingPlan`, or pass "
                    "cache_features=False to `fit`."
                )
        if point is not None and not self.features.are_current(point):
            raise RuntimeError(
                "A callback has changed frozen weights at the beginning of an epoch, while "
                "features behind them are cached. Change them at an epoch's end, after which "
                "features are made anew, or pass cache_features=False to `fit`."
            )

    def _decide(self) -> None:
        if self.is_off:
            nowhere: list[EntryPoint | None] = [None] * len(self.stages)
            self.features.decision = Decision(nowhere, nowhere)
            return
        self.features.decision = decide(
            self.model,
            self.stages,
            self.train.source,
            None if self.validation is None else self.validation.source,
            self.cache,
            insist=self.insists,
        )
        self._print(self.features.decision.line)

    def _print(self, line: str) -> None:
        if line and self.arguments.verbose:
            print(line)

    # --- Segments ---------------------------------------------------------------------

    def _run_segment(self, training: OneTraining, epoch: int) -> None:
        arguments = self.arguments
        done = self._steps_done(epoch)
        data = self._open(self._stage_at(epoch), done)
        if self.cuts_batches:
            data.x = even_batches(data.x, self.model.distribute_strategy.num_replicas_in_sync)
        if done:
            # What they had summed up is put back before the first step, which would make them.
            _keras_internals.build_metrics(self.model, next(iter(data.x)))
        self.specs = data.x.element_spec if isinstance(data.x, tf.data.Dataset) else None
        training.begin_segment(epoch)
        self.plain_fit(
            data.x,
            data.y,
            data.batch_size,
            arguments.epochs,
            arguments.verbose,
            training,
            validation_split=0.0 if data.validation is not None else arguments.validation_split,
            validation_data=data.validation,
            shuffle=data.shuffle,
            class_weight=arguments.class_weight,
            sample_weight=data.sample_weight,
            initial_epoch=epoch,
            steps_per_epoch=arguments.steps_per_epoch,
            validation_steps=arguments.validation_steps,
            validation_batch_size=arguments.validation_batch_size or arguments.batch_size,
            validation_freq=arguments.validation_freq,
        )

    def _make_metrics(self) -> None:
        """Makes the variables of metrics before the first step, where that is sure to be the same.

        Keras makes them while it traces the step, which then has to be traced a second time.
        """
        model, specs = self.model, self.specs
        flat = tf.nest.flatten(specs)
        if (
            not model.run_eagerly
            and _keras_internals.awaits_first_step(model)
            and model.optimizer.built
            and isinstance(specs, tuple)
            and len(specs) >= 2
            and all(isinstance(one, tf.TensorSpec) and one.shape.rank for one in flat)
            and _keras_internals.has_plain_steps(type(model))
        ):
            try:
                _keras_internals.build_metrics(model, specs)
            except Exception:
                # Such as a metric that needs the sample weights of `class_weight`, or targets that
                # are missing: the first step goes on as it would have, or fails in Keras's words.
                return

    def _open(self, stage: int, done: int) -> SegmentData:
        """Returns what Keras's `fit` is to read in a stage, past the first `done` batches."""
        point = self.features.decision.points[stage]
        if point is not None:
            try:
                self.features.fill(point, stage)
            except CannotKeepError as error:
                if self.insists:
                    raise
                self.features.decision.points = [None] * len(self.stages)
                self._print(f"Feature cache off: {error}.")
                point = None
        validation = self.arguments.validation_data
        if self.validation is not None and self.validation.y is None:
            validation = self.validation.x  # a generator that was looked at is another object
        if point is not None:
            kept = self.features.validation_data(point)
            return SegmentData(
                self.features.training_data(point, self.order, done),
                validation if kept is None else kept,
            )
        if self.train.arrays is not None:
            batch_size = self.arguments.batch_size or 32
            whole = table_of_arrays(self.train.arrays, batch_size, "array")
            return SegmentData(dataset(whole, self.order, done), validation)
        train = self.train
        given = self.arguments
        return SegmentData(
            train.x, validation, train.y, train.sample_weight, given.batch_size, given.shuffle
        )

    # --- Data -------------------------------------------------------------------------

    def _split_off_validation(self) -> None:
        """Cuts off validation data once, for all segments."""
        arguments = self.arguments
        if not arguments.validation_split or arguments.validation_data is not None:
            return
        arrays = as_arrays(arguments.x, arguments.y, arguments.sample_weight)
        if arrays is None:
            return  # Keras has the error for this.
        train, validation = split_arrays(arrays, arguments.validation_split)
        arguments.x, arguments.y, arguments.sample_weight = (*train, None, None)[:3]
        arguments.validation_data = validation

    def _sizes(self) -> tuple[int | None, int | None]:
        return sizes_of_batches(self.train, self.arguments.batch_size)

    def _steps(self) -> int | None:
        if self.arguments.steps_per_epoch is not None:
            return self.arguments.steps_per_epoch
        if isinstance(self.train.source, Source):
            steps = self.train.source.n_batches
        else:
            steps = _length(self.train.x, self.arguments.batch_size)
        last = self._sizes()[1]
        is_cut_off = (
            self.cuts_batches
            and last is not None
            and last < self.model.distribute_strategy.num_replicas_in_sync
        )
        return steps - 1 if steps is not None and is_cut_off else steps


def _keep_arrays_only(data: FitData) -> None:
    """Leaves other data than arrays uncached: each worker reads it in an order of its own."""
    if isinstance(data.source, Source) and data.source.arrays is None:
        data.source = (
            f"on several workers the features of arrays are cached, not those of {data.source.kind}"
        )


def _length(data: Any, batch_size: int | None) -> int | None:
    """Returns how many batches Keras will count, where the data says so itself."""
    if isinstance(data, keras.utils.PyDataset):
        return None if data.num_batches is None else int(data.num_batches)
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return cardinality if cardinality >= 0 else None
    first = next(iter(keras.tree.flatten(data)), None)
    shape = getattr(first, "shape", None)  # arrays of any kind, sparse ones and tables too
    return -(-int(shape[0]) // (batch_size or 32)) if shape else None
