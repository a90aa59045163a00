"""`GradualUnfreezing`: runs an `UnfreezingPlan` inside one `model.fit`."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks, _keras_internals, _trainability
from keras_transfer._stock_model import stock_model_groups
from keras_transfer.callbacks._plateau import Plateau
from keras_transfer.layer_groups import Groups, LayerGroups
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers import DiscriminativeOptimizer, find_discriminative
from keras_transfer.plan import Stage, UnfreezingPlan
from keras_transfer.schedules import shape_schedule


class GradualUnfreezing(keras.callbacks.Callback):
    """Unfreezes layer groups stage by stage inside one `model.fit`.

    Put it into `callbacks` of an ordinary `fit`, of a `TransferModel` or of a functional,
    Sequential or subclassed Keras model. It sets what trains at the start of each stage,
    gives the optimizer slots for what is new (the state of the rest is untouched), retraces
    the train step, and prints one line. It does not matter whether you froze layers before.
    A stock model gets its plain optimizer back when training ends.

    The stage is a function of the epoch, so `initial_epoch` lands in the right one; stages
    with `patience` end when their metric stops improving.

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
        head: Name of the first layer of a stock model's head, where it is not everything
            after the single nested model or after the last pooling.
        batch_norm: What the BatchNorms of a stock model's backbone do: `"freeze"`
            (statistics, scale and offset stay) or `"train"` (as Keras does: statistics
            move once the layer is unfrozen). A `TransferModel` has its own policy.
        verbose: 0 is silent, 1 prints a line at each stage.

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
        head: str | None = None,
        batch_norm: str = "freeze",
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(plan, UnfreezingPlan):
            raise TypeError(
                f"`plan` must be an `UnfreezingPlan`. Received: plan={plan!r} of type "
                f"{type(plan).__name__}. Wrap stages: UnfreezingPlan([Stage(...), ...])."
            )
        if batch_norm == "inference":
            raise ValueError(
                "batch_norm='inference' needs a `TransferModel`: on a stock model `fit` passes "
                "training=True to every BatchNormalization that trains. Use 'freeze' or 'train'."
            )
        self.plan = plan
        self.groups = groups
        self.head = head
        self.batch_norm = _checks.choice(batch_norm, "batch_norm", ["freeze", "train"])
        self.verbose = verbose
        self._reset()

    def _reset(self) -> None:
        self.stage_index: int | None = None
        self.stage_has_ended = False
        self.plan_has_ended = False
        self._stage_epochs = 0
        self._plateau: Plateau | None = None
        self._best_weights: list[Any] | None = None
        self._layer_groups: LayerGroups | None = None
        self._variables: list[list[keras.Variable]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> GradualUnfreezing:
        # KerasTuner copies callbacks for each trial. A copy that held layers would unfreeze
        # copies of the layers, so only what the user typed is copied.
        return type(self)(self.plan, self.groups, self.head, self.batch_norm, self.verbose)

    @property
    def stage(self) -> Stage | None:
        """The stage in progress, or `None` before the first."""
        return None if self.stage_index is None else self.plan.stages[self.stage_index]

    # --- The hooks of `fit` -----------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._reset()
        self._check_model()
        self._check_epochs()
        self._layer_groups = self._find_groups()
        always_frozen = self._always_frozen()
        self._variables = [
            _trainability.variables_of_stage(stage, self._layer_groups, always_frozen)
            for stage in self.plan.stages
        ]
        self._check_rates()
        _trainability.adopt_optimizer(self.model, self._layer_groups)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        index = self._index_for(epoch)
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
        if over:
            assert self._plateau is not None
            self._print(
                f"Epoch {epoch + 1}: stage {self.stage.name!r} ends: {self.stage.monitor} has not "
                f"improved on {self._plateau.best:.4g} for {self._plateau.wait} epochs."
            )
        if self.plan_has_ended and self.plan.ends_on_plateau:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.stage_index is not None:
            left = [stage.name for stage in self.plan.stages[self.stage_index + 1 :]]
            if left:
                self._print(f"Training ended before: {', '.join(map(repr, left))}.")
        if not self._is_transfer_model():
            _trainability.give_back_optimizer(self.model)
        self._layer_groups = None
        self._variables = []
        self._best_weights = None

    # --- Checks, before any work ------------------------------------------------------

    def _is_transfer_model(self) -> bool:
        return isinstance(getattr(self.model, "layer_groups", None), LayerGroups)

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

    def _find_groups(self) -> LayerGroups:
        if self._is_transfer_model():
            given = [n for n in ("groups", "head") if getattr(self, n) is not None]
            if given:
                raise ValueError(
                    f"A `TransferModel` has its own layer groups; `{given[0]}` is for stock "
                    "models. Pass `groups` to `TransferModel` instead."
                )
            groups: LayerGroups = self.model.layer_groups
            return groups
        groups = stock_model_groups(
            self.model, "auto" if self.groups is None else self.groups, self.head
        )
        starts = groups.note if groups.note.startswith("after") else f"at {groups[-1].name!r}"
        self._print(f"The head starts {starts}. BatchNorm: {self.batch_norm}.")
        return groups

    def _always_frozen(self) -> list[keras.Variable]:
        assert self._layer_groups is not None
        if self._is_transfer_model():
            return list(self.model.backbone.always_frozen)
        if self.batch_norm == "train":
            return []
        return [
            variable
            for group in self._layer_groups[:-1]
            for layer in group.all_layers
            if isinstance(layer, keras.layers.BatchNormalization)
            for variable in _keras_internals.own_trainable_variables(layer)
        ]

    def _check_rates(self) -> None:
        assert self._layer_groups is not None
        optimizer = self.model.optimizer
        source = _keras_internals.rate_source(optimizer)
        is_schedule = isinstance(source, keras.optimizers.schedules.LearningRateSchedule)
        for stage in self.plan.stages:
            for name in ("peak_lr", "schedule"):
                if is_schedule and getattr(stage, name) is not None:
                    raise ValueError(
                        f"Stage {stage.name!r} sets `{name}`, but the optimizer's learning rate "
                        f"is a {type(source).__name__}, which would be overruled. Compile with a "
                        "number as learning rate, or leave the rates of the plan out."
                    )
            if stage.schedule is not None and self.params.get("steps") is None:
                raise ValueError(
                    f"Stage {stage.name!r} has schedule={stage.schedule!r}, whose length in steps "
                    "cannot be known: the data has no known length. Pass `steps_per_epoch`."
                )

    # --- Stages -----------------------------------------------------------------------

    def _index_for(self, epoch: int) -> int:
        if not self.plan.ends_on_plateau:
            return self.plan.index_at(epoch)
        if self.stage_index is None:
            return self.plan.index_at(epoch)
        return self.stage_index + (self.stage_has_ended and not self.plan_has_ended)

    def _enter(self, index: int, epoch: int) -> None:
        assert self._layer_groups is not None
        stage = self.plan.stages[index]
        self.stage_index = index
        self.stage_has_ended = False
        self._stage_epochs = max(0, epoch - self.plan.first_epoch(index))
        if self.plan.ends_on_plateau:
            self._stage_epochs = 0
        self._plateau = Plateau(stage) if stage.ends_on_plateau else None
        self._best_weights = None
        optimizer = find_discriminative(self.model.optimizer)
        assert optimizer is not None
        self._set_rates(stage, optimizer)
        _trainability.apply(self.model, self._variables[index], retrace=True)
        self._print(f"Epoch {epoch + 1}: {self._sentence(stage)}")

    def _set_rates(self, stage: Stage, optimizer: DiscriminativeOptimizer) -> None:
        assert self._layer_groups is not None
        if stage.peak_lr is not None:
            optimizer.learning_rate = stage.peak_lr
        names = self._layer_groups.names
        optimizer.set_multipliers(group_multipliers(names, lr_decay=stage.lr_decay or 1.0))
        shape = None
        if stage.schedule is not None:
            steps = self.params["steps"] // (optimizer.gradient_accumulation_steps or 1)
            warmup = None if stage.warmup_epochs is None else round(stage.warmup_epochs * steps)
            shape = shape_schedule(stage.schedule, steps * stage.epochs, warmup)
        optimizer.start_stage(shape)

    def _sentence(self, stage: Stage) -> str:
        assert self._layer_groups is not None
        assert self.stage_index is not None
        training = {id(v) for v in self._variables[self.stage_index]}
        groups = [g for g in self._layer_groups if any(id(v) in training for v in g.variables)]
        named = ", ".join(group.name for group in groups)
        if len(groups) > 4:
            named = f"{groups[0].name} to {groups[-1].name} ({len(groups)} groups)"
        total = sum(group.parameters for group in self._layer_groups)
        return (
            f"stage {stage.name!r} trains {named} "
            f"({self._trainable_parameters():,} of {total:,} parameters)."
        )

    def _trainable_parameters(self) -> int:
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    # --- Plateaus and logs ------------------------------------------------------------

    def _watch(self, logs: dict[str, Any]) -> None:
        if self._plateau is None:
            return
        improved = self._plateau.update(logs)
        if improved and self._plateau.stage.restore_best_weights:
            self._best_weights = [v.numpy() for v in self._changing_variables()]

    def _restore_best_weights(self) -> None:
        if self._best_weights is None:
            return
        for variable, value in zip(self._changing_variables(), self._best_weights, strict=True):
            variable.assign(value)
        self._best_weights = None

    def _changing_variables(self) -> list[keras.Variable]:
        """What the stage may change: what trains, and state such as moving statistics."""
        assert self._layer_groups is not None
        frozen = {id(v) for v in self._layer_groups.variables if not v.trainable}
        return [v for v in self.model.weights if id(v) not in frozen]

    def _add_columns(self, logs: dict[str, Any]) -> None:
        optimizer = find_discriminative(self.model.optimizer)
        assert optimizer is not None
        assert self._layer_groups is not None
        logs["stage"] = self.stage_index
        logs["trainable_parameters"] = self._trainable_parameters()
        # A frozen group has no rate. Its column is there all the same, since `CSVLogger`
        # takes its columns from the first epoch.
        rates = optimizer.group_learning_rates()
        for name in self._layer_groups.names:
            logs[f"learning_rate/{name}"] = rates.get(name, math.nan)

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)
