"""`GradualUnfreezing`: runs an `UnfreezingPlan` inside one `model.fit`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import (
    _keras_internals,
    _resolved_plan,
    _strategy_checks,
    _trainability,
    _training_state,
)
from keras_transfer._resolved_plan import ResolvedPlan, ResolvedStage
from keras_transfer.callbacks._copies import copy_without_run
from keras_transfer.callbacks._plateau import Plateau
from keras_transfer.features._batch_sizes import last_batch_size
from keras_transfer.layer_groups import Groups
from keras_transfer.optimizers import DiscriminativeOptimizer, find_discriminative
from keras_transfer.plan import Stage, UnfreezingPlan
from keras_transfer.schedules import shape_schedule


class GradualUnfreezing(keras.callbacks.Callback):
    """Unfreezes layer groups stage by stage inside one `model.fit`.

    Put it into `callbacks` of an ordinary `fit`, of a `TransferModel` or of a functional,
    Sequential or subclassed Keras model. It sets what trains at the start of each stage,
    gives the optimizer slots for what is new (the state of the rest is untouched), retraces
    the train step, and prints one line. It does not matter whether you froze layers before.
    A stock model gets its plain optimizer back when training ends; the next `fit` with this
    callback finds each group's step count again. Its `.keras` file keeps one flag for each
    layer: after a stage of single variables (`train="bias"`), all of their layers' train in
    the loaded model. An exception or
    Ctrl-C in `fit` ends it without telling callbacks: then call
    `GradualUnfreezing.give_back_optimizer(model)`. `.keras` files that a `ModelCheckpoint`
    writes while it runs hold the optimizer of this package: they load after
    `import keras_transfer`.

    The optimizer that `compile` was given is taken over by a new object: read and set
    `model.optimizer` (its learning rate, say), not the object that you passed.

    The stage is a function of the epoch, so `initial_epoch` lands in the right one; stages
    with `patience` end when their metric stops improving. Their best weights come back where
    the stage ends, and where training ends before it.

    A callback sees only its model and `fit`'s parameters. On a stock model it therefore
    cannot know: the data (whether labels fit the head), the other callbacks (a stock
    `EarlyStopping` would end the training at the bump that unfreezing makes: use
    `Stage(patience=...)`), or whether a last batch is smaller than the number of replicas.
    It cannot cache features. `TransferModel.fit` sees all of these.

    Args:
        plan: The stages, in order.
        groups: How to split a stock model's backbone into layer groups: `"auto"`,
            `"blocks"`, a whole number, the first layer of each group, or a callable; see
            `keras_transfer.layer_groups.backbone_groups`. A `TransferModel` has its own.
        verbose: 0 is silent, 1 prints a line at each stage.
        head: Name of the first layer of a stock model's head, where it is not everything
            after the single nested model or after the last pooling.
        batch_norm: What the BatchNorms of a stock model's backbone do: `"freeze"`
            (statistics, scale and offset stay) or `"train"` (as Keras does: statistics
            move once the layer is unfrozen). A `TransferModel` has its own policy.

    Raises:
        TypeError: If `plan` is not an `UnfreezingPlan`.
        ValueError: At the start of `fit`, if the plan does not fit the model or `epochs`.

    Example:

    >>> import keras, numpy as np
    >>> import keras_transfer as ktf
    >>> backbone = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8, name="stem"),
    ...     keras.layers.Dense(8, name="top")])
    >>> model = keras.Sequential([backbone, keras.layers.Dense(1, name="head")])
    >>> model.compile("adam", "mse")
    >>> plan = ktf.UnfreezingPlan([
    ...     ktf.Stage("probe", depth=1, epochs=1), ktf.Stage("all", depth="all", epochs=1)])
    >>> unfreezing = ktf.callbacks.GradualUnfreezing(plan, groups="blocks")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0,
    ...                     callbacks=[unfreezing])
    The head starts after the nested model 'sequential'. BatchNorm: freeze.
    Epoch 1: stage 'probe' trains head (9 of 121 parameters).
    Epoch 2: stage 'all' trains stem, top, head (121 of 121 parameters).

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146)
    """

    def __init__(
        self,
        plan: UnfreezingPlan,
        groups: Groups | None = None,
        verbose: int = 1,
        *,
        head: str | None = None,
        batch_norm: str = "freeze",
    ) -> None:
        super().__init__()
        if not isinstance(plan, UnfreezingPlan):
            raise TypeError(
                f"`plan` must be an `UnfreezingPlan`. Received: plan={plan!r} of type "
                f"{type(plan).__name__}. Wrap stages: UnfreezingPlan([Stage(...), ...])."
            )
        self.plan = plan
        self.groups = groups
        self.head = head
        self.batch_norm = _resolved_plan.check_batch_norm(batch_norm)
        self.verbose = verbose
        self._reset()

    def _reset(self) -> None:
        self.stage_index: int | None = None
        self.stage_has_ended = False
        self.plan_has_ended = False
        self._stage_epochs = 0
        self._plateau: Plateau | None = None
        self._best: list[tuple[keras.Variable, Any]] | None = None
        self._watched_before = False
        self._resolved: ResolvedPlan | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> GradualUnfreezing:
        return copy_without_run(self, memo)

    @property
    def stage(self) -> Stage | None:
        """The stage in progress, or `None` before the first."""
        return None if self.stage_index is None else self.plan.stages[self.stage_index]

    # --- The hooks of `fit` -----------------------------------------------------------

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._go_before_backup()

    def _go_before_backup(self) -> None:
        """Takes the optimizer over before a `BackupAndRestore` loads what it had saved of it."""
        around = _keras_internals.callback_list_around(self)
        callbacks = [] if around is None else list(around.callbacks)
        backups = [c for c in callbacks if isinstance(c, keras.callbacks.BackupAndRestore)]
        if around is None or not backups or self not in callbacks:
            return
        first = callbacks.index(backups[0])
        if first < callbacks.index(self):
            callbacks.remove(self)
            callbacks.insert(first, self)
            around.callbacks = callbacks  # a new list: the old one is being walked through

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._reset()
        self._check_model()
        if not _resolved_plan.is_transfer_model(self.model):
            _strategy_checks.check_strategy(self.model)  # `TransferModel.fit` has done so
        self._check_epochs()
        self._resolved = _resolved_plan.resolve(
            self.model, self.plan, self.groups, self.head, self.batch_norm
        )
        _resolved_plan.check_rates(self.plan, self.model.optimizer)
        self._check_steps()
        training = [v for stage in self._resolved.stages for v in stage.variables]
        _strategy_checks.warn_of_local_statistics(self.model, training)
        self._check_last_batch(training)
        if self._resolved.note:
            self._print(self._resolved.note)
        _trainability.adopt_optimizer(self.model, self._resolved.groups)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        index = self.stage_index_at(epoch)
        if self.stage_index is None and epoch > 0 and self.plan.ends_on_plateau:
            warnings.warn(
                f"Training goes on in epoch {epoch + 1}, and this plan has stages that end on a "
                "plateau: where they ended before is not known. Stage "
                f"{self.plan.stages[index].name!r} begins, as if each before it had taken all "
                "its epochs. Use `keras_transfer.callbacks.ResumableTraining` to go on exactly.",
                stacklevel=2,
            )
        if index != self.stage_index:
            self._enter(index, epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self.stage is not None
        assert self.stage_index is not None
        self._stage_epochs += 1
        logs = {} if logs is None else logs
        self._watch(logs)
        self._add_columns(logs)
        over = self._plateau is not None and self._plateau.is_over
        self.stage_has_ended = over or self._stage_epochs >= self.stage.epochs
        if not self.stage_has_ended:
            return
        self._restore_best_weights()
        self.plan_has_ended = self.stage_index == len(self.plan.stages) - 1
        if self._plateau is not None and over:
            self._print(f"Epoch {epoch + 1}: stage {self.stage.name!r} ends: {self._plateau}.")
        if self.plan_has_ended and self.plan.ends_on_plateau:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._end_within_stage()
        if self.stage_index is not None:
            left = [stage.name for stage in self.plan.stages[self.stage_index + 1 :]]
            if left:
                self._print(f"Training ended before: {', '.join(map(repr, left))}.")
        self._optimizer().set_stage_multipliers(None)
        if not _resolved_plan.is_transfer_model(self.model):
            self.give_back_optimizer(self.model)
        self._resolved = None
        self._best = None

    def _end_within_stage(self) -> None:
        """Brings the best weights back where training ends before the stage does."""
        if self._best is None or self.stage_has_ended:
            return
        self._restore_best_weights()
        if self._optimizer().use_ema:
            # They came with the averages of then, and Keras has written out later ones.
            self._optimizer().finalize_variable_values(self.model.trainable_variables)

    @staticmethod
    def give_back_optimizer(model: keras.Model) -> None:
        """Gives a stock model its plain optimizer back, with its slots.

        `fit` does so itself at its end, but not where an exception or Ctrl-C ended it.

        Args:
            model: The compiled model; one whose optimizer is plain stays as it is.

        Raises:
            ValueError: If the model is not compiled.
        """
        if getattr(model, "optimizer", None) is None:
            raise ValueError(
                f"{model.name!r} is not compiled, so it has no optimizer to give back."
            )
        _trainability.give_back_optimizer(model)

    # --- Checks, before any work ------------------------------------------------------

    def _check_model(self) -> None:
        if not self.model.built:
            raise ValueError(
                f"{self.model.name!r} is not built, so it has no layers to freeze yet. Give it an "
                "input shape, or call it once on a batch, before `fit`."
            )

    def _check_epochs(self) -> None:
        epochs = self.params.get("epochs")
        if epochs is None:
            return
        if epochs > self.plan.total_epochs and not self.plan.ends_on_plateau:
            raise ValueError(
                f"`fit` was given epochs={epochs}, but the plan ends after "
                f"{self.plan.total_epochs}. Pass epochs=plan.total_epochs, or lengthen a stage."
            )

    def _check_steps(self) -> None:
        steps = self.params.get("steps")
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        per_update = optimizer.gradient_accumulation_steps or 1
        for stage in self.plan.stages:
            if steps is not None and steps * stage.epochs < per_update:
                raise ValueError(
                    f"Stage {stage.name!r} has {steps * stage.epochs} steps, fewer than the "
                    f"optimizer's gradient_accumulation_steps={per_update}: it would end before "
                    "its first update. Lengthen the stage, or accumulate over fewer steps."
                )
            if stage.schedule is not None and steps is None:
                raise ValueError(
                    f"Stage {stage.name!r} has schedule={stage.schedule!r}, whose length in steps "
                    "cannot be known: the data has no known length. Pass `steps_per_epoch`."
                )

    def _check_last_batch(self, variables: list[keras.Variable]) -> None:
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        if replicas == 1 or _resolved_plan.is_transfer_model(self.model):
            return
        adapter = _keras_internals.data_adapter_around(self)
        last = None
        if adapter is not None and adapter.batch_size is not None:
            last = adapter.partial_batch_size or adapter.batch_size
        elif adapter is not None and isinstance(adapter.get_tf_dataset(), tf.data.Dataset):
            last = last_batch_size(adapter.get_tf_dataset())
        _strategy_checks.check_even_batches(self.model, last, variables)

    # --- Stages -----------------------------------------------------------------------

    def stage_index_at(self, epoch: int) -> int:
        """Returns the index of the stage that `epoch`, which is about to begin, belongs to."""
        if not self.plan.ends_on_plateau:
            return self.plan.index_at(epoch)
        if self.stage_index is None:
            return self.plan.index_at(epoch)
        return self.stage_index + (self.stage_has_ended and not self.plan_has_ended)

    def _enter(self, index: int, epoch: int) -> None:
        # Where a plan's stages end is known from the epoch alone only without plateaus.
        epochs_done = 0 if self.plan.ends_on_plateau else epoch - self.plan.first_epoch(index)
        self._begin(index, epochs_done)
        assert self._resolved is not None
        self._print(f"Epoch {epoch + 1}: {self._sentence(self._resolved.stages[index])}")

    def _begin(self, index: int, epochs_done: int) -> None:
        assert self._resolved is not None
        stage = self._resolved.stages[index]
        is_first = self.stage_index is None
        self.stage_index = index
        self.stage_has_ended = False
        self._stage_epochs = epochs_done
        self._plateau = Plateau(stage.stage) if stage.stage.ends_on_plateau else None
        self._best = None
        shape_changed = self._set_rates(stage.stage, epochs_done)
        _trainability.apply(
            self.model, stage.variables, stage.still, retrace=is_first or shape_changed
        )

    # --- State, for `ResumableTraining` ---------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns where in the plan the training is, as plain data and arrays."""
        best = None
        if self._best is not None:
            names = {id(v): name for name, v in self._changing_variables().items()}
            best = {names[id(variable)]: value for variable, value in self._best}
        plateau = None
        if self._plateau is not None:
            plateau = {"best": self._plateau.best, "wait": self._plateau.wait}
        return {
            "stage_index": self.stage_index,
            "stage_has_ended": self.stage_has_ended,
            "plan_has_ended": self.plan_has_ended,
            "stage_epochs": self._stage_epochs,
            "watched_before": self._watched_before,
            "plateau": plateau,
            "best_weights": best,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts training to where `get_state` was asked; what the optimizer holds comes after.

        Args:
            state: What `get_state` returned in a run of the same plan and model.
        """
        index = state["stage_index"]
        if index is None:
            return
        self._begin(index, state["stage_epochs"])
        self.stage_has_ended = state["stage_has_ended"]
        self.plan_has_ended = state["plan_has_ended"]
        self._watched_before = state["watched_before"]
        if self._plateau is not None and state["plateau"] is not None:
            self._plateau.best = state["plateau"]["best"]
            self._plateau.wait = state["plateau"]["wait"]
        if state["best_weights"] is not None:
            variables = self._changing_variables()
            self._best = [(variables[n], value) for n, value in state["best_weights"].items()]

    def _set_rates(self, stage: Stage, epochs_done: int) -> bool:
        """Sets base rate, multipliers and shape; returns whether the shape may have changed."""
        assert self._resolved is not None
        optimizer = self._optimizer()
        steps = self.params.get("steps")
        per_update = optimizer.gradient_accumulation_steps or 1
        updates_done = 0 if steps is None else epochs_done * steps // per_update
        # A run that is continued in the middle of a stage keeps the rate that it had there.
        continues = epochs_done > 0 and updates_done == optimizer.updates_in_stage
        if stage.peak_lr is not None and not (continues and updates_done > 0):
            optimizer.learning_rate = stage.peak_lr
        names = self._resolved.groups.names
        optimizer.set_stage_multipliers(_resolved_plan.stage_multipliers(stage, names))
        shape, before = None, optimizer.shape
        if stage.schedule is not None:
            total, warmup = _resolved_plan.updates_of_stage(stage, steps, per_update)
            shape = shape_schedule(stage.schedule, total, warmup)
        optimizer.start_stage(shape, updates_done, self.plan.no_decay_on, continues=continues)
        return shape is not None or before is not None

    def _optimizer(self) -> DiscriminativeOptimizer:
        optimizer = find_discriminative(self.model.optimizer)
        if optimizer is None:
            raise ValueError(
                "The model's optimizer was replaced while `fit` was running. Received: "
                f"{self.model.optimizer!r}. Change its learning rate instead, or the plan."
            )
        return optimizer

    def _sentence(self, stage: ResolvedStage) -> str:
        assert self._resolved is not None
        return (
            f"stage {stage.stage.name!r} trains {self._resolved.naming(stage, most=4)} "
            f"({stage.parameters:,} of {self._resolved.parameters:,} parameters)."
        )

    # --- Plateaus and logs ------------------------------------------------------------

    def _watch(self, logs: dict[str, Any]) -> None:
        """Looks at the metrics that stages wait for, those of later stages too.

        A metric that is never reported should be an error after the first epoch, not when
        the stage that waits for it begins.
        """
        if not self._watched_before:
            for stage in self.plan.stages:
                if stage.ends_on_plateau:
                    Plateau(stage).update(logs, self.model)
            self._watched_before = True
        if self._plateau is None:
            return
        improved = self._plateau.update(logs, self.model)
        if improved and self._plateau.stage.restore_best_weights:
            variables = self._changing_variables().values()
            self._best = [(v, np.array(v.numpy(), copy=True)) for v in variables]

    def _restore_best_weights(self) -> None:
        for variable, value in self._best or []:
            variable.assign(value)
        self._best = None

    def _changing_variables(self) -> dict[str, keras.Variable]:
        """What the stage may change, by name: what trains, its averages, moving statistics."""
        assert self._resolved is not None
        frozen = {id(v) for v in self._resolved.groups.variables if not v.trainable}
        found = _training_state.named_variables(
            v for v in self.model.weights if id(v) not in frozen
        )
        optimizer = self._optimizer()
        training = _training_state.named_variables(_keras_internals.known_variables(optimizer))
        averages = _keras_internals.moving_averages(optimizer)
        if averages:
            for name, average in zip(training, averages, strict=True):
                if average is not None:
                    found[f"average of {name}"] = average
        return found

    def _add_columns(self, logs: dict[str, Any]) -> None:
        assert self._resolved is not None
        assert self.stage_index is not None
        logs["stage"] = self.stage_index
        logs["trainable_parameters"] = self._resolved.stages[self.stage_index].parameters
        # A frozen group has no rate. Its column is there all the same, since `CSVLogger`
        # takes its columns from the first epoch.
        rates = self._optimizer().group_learning_rates()
        for name in self._resolved.groups.names:
            logs[f"learning_rate/{name}"] = rates.get(name, math.nan)

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)
