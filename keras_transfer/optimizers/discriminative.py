"""Discriminative learning rates: any Keras optimizer with a rate and a step count per group."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_transfer import _keras_internals, _patterns
from keras_transfer.optimizers import _given_back, _pull, _saved_state
from keras_transfer.optimizers._clone import path_of, read_states, write_shared, write_states
from keras_transfer.optimizers._step import GroupwiseOptimizer
from keras_transfer.regularizers import L2SP


@keras.saving.register_keras_serializable(package="keras_transfer")
class DiscriminativeOptimizer(GroupwiseOptimizer):
    """Any Keras optimizer, with a learning rate and a step count for each layer group.

    Use it when a pretrained backbone should move more slowly than its new head, or when
    groups start to train at different times. `TransferModel.compile` and
    `GradualUnfreezing` put it in place themselves; make it by hand with `discriminative`.

    The rate of a variable is `learning_rate` times the stage's shape (see `start_stage`)
    times its group's multiplier. The multiplier scales the decoupled weight decay as well.
    `learning_rate` is the base rate: schedules, `LearningRateScheduler`,
    `ReduceLROnPlateau` and direct assignment keep the ratios between groups.

    Each group counts its own updates, as `torch.optim` does for each parameter, so a group
    that is unfrozen late trains as if the optimizer were new for it. Clipping by global
    norm spans all training groups, and comes after the sum over replicas.

    Args:
        optimizer: A Keras optimizer, or its name. All of its options keep their meaning.
        no_decay_on: What is exempt from weight decay: any of `"norm"` (scales and offsets
            of normalization layers), `"bias"`, and regular expressions matched on whole
            variable paths. What `exclude_from_weight_decay` was told holds as well.
        shape: A `LearningRateSchedule` with peak 1.0 over the updates of the current stage.
        name: Name of the optimizer. Defaults to the name of `optimizer`.
        regularizer: A `keras_transfer.regularizers.L2SP` that pulls every layer group but the
            head to where it started, in the place of weight decay.

    Raises:
        TypeError: If `optimizer` is neither a Keras optimizer nor a name.
        ValueError: If the optimizer cannot have discriminative rates; the message says why.
            If its learning rate is negative or not finite.

    Example:

    >>> import keras
    >>> from keras_transfer.optimizers import discriminative
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(3, name="body"), keras.layers.Dense(2)]
    ... )
    >>> optimizer = discriminative(keras.optimizers.AdamW(1e-3))
    >>> optimizer.set_groups({"body": model.layers[0].variables, "head": model.layers[1].variables})
    >>> optimizer.set_multipliers({"body": 0.5})
    >>> optimizer.build(model.trainable_variables)
    >>> {name: round(rate, 6) for name, rate in optimizer.group_learning_rates().items()}
    {'body': 0.0005, 'head': 0.001}

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), discriminative fine-tuning
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        no_decay_on: Sequence[str] = (),
        shape: keras.optimizers.schedules.LearningRateSchedule | None = None,
        name: str | None = None,
        regularizer: L2SP | None = None,
    ) -> None:
        super().__init__(
            optimizer, no_decay_on=no_decay_on, shape=shape, name=name, regularizer=regularizer
        )

    # --- Groups and what trains ---------------------------------------------------------

    # Whether the end of `fit` is only the end of a segment of one training.
    _holds_averages = False

    @contextlib.contextmanager
    def averages_held(self) -> Iterator[None]:
        """Keeps `finalize_variable_values` from writing averages (`use_ema`) into the variables.

        For a training that runs as several calls of `keras.Model.fit`, each of which would
        do it at its end.
        """
        self._holds_averages = True
        try:
            yield
        finally:
            self._holds_averages = False

    def finalize_variable_values(self, var_list: Any) -> None:
        if not self._holds_averages:
            super().finalize_variable_values(var_list)

    def set_groups(self, groups: Mapping[str, Iterable[keras.Variable]]) -> None:
        """Says which variables belong to which layer group.

        State is kept: a variable goes to its new group with its slots and its step count.

        Args:
            groups: The variables of each layer group, from the stem to the head, frozen
                ones too. May be called again.

        Raises:
            ValueError: If a variable is in two groups, if a variable that has state is in
                none, or if loaded state belongs to no variable.
        """
        with self._building():
            self._table.set_groups(groups)
            self._tell_keras()

    # --- Rates --------------------------------------------------------------------------

    def set_multipliers(self, multipliers: Mapping[str, float]) -> None:
        """Sets the rate multipliers of layer groups. Nothing is traced anew.

        Args:
            multipliers: Multiplier of each named group, at least 0. Keys are group names,
                `"stem"`, `"head"`, or regular expressions matched on whole group names.
                Groups that are not named keep their multiplier. 0 means that a group does
                not move, though its slots do.

        Raises:
            ValueError: If a multiplier is negative or not finite, a key matches no group,
                or two keys match the same group.
        """
        values = self._checked_multipliers(multipliers)
        if self._own_multipliers is not None:
            self._own_multipliers = {**self._own_multipliers, **values}
        self._table.assign_multipliers(values)

    def set_stage_multipliers(self, multipliers: Mapping[str, float] | None) -> None:
        """Sets multipliers for as long as a stage runs; those of `set_multipliers` wait.

        They are the plan's, so they are not saved.

        Args:
            multipliers: As in `set_multipliers`, or `None` to put back what that has set.
        """
        values = None if multipliers is None else self._checked_multipliers(multipliers)
        own = self.own_multipliers
        self._table.assign_multipliers(own if values is None else {**own, **values})
        self._own_multipliers = None if values is None else own

    def _checked_multipliers(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        values = self._table.resolve_multipliers(multipliers)
        if self._template.divides_by_rate and 0.0 in values.values():
            raise ValueError(
                "`Ftrl` divides by its learning rate, so a multiplier of 0 would give NaN. Freeze "
                "the layer group instead."
            )
        return values

    # Multipliers that `set_multipliers` has set, while a stage has its own.
    _own_multipliers: dict[str, float] | None = None

    @property
    def own_multipliers(self) -> dict[str, float]:
        """Multipliers without the stage's: what `set_multipliers` has set."""
        own = self.multipliers if self._own_multipliers is None else self._own_multipliers
        return dict(own)

    @property
    def multipliers(self) -> dict[str, float]:
        """Rate multiplier of each layer group."""
        return self._table.multipliers

    @property
    def group_steps(self) -> dict[str, int]:
        """Updates that each layer group has had; 0 for one that never trained."""
        return self._table.steps

    def group_learning_rates(self) -> dict[str, float]:
        """Returns the current learning rate of each layer group that trains."""
        rates = self._group_rates().numpy()
        training = {clone.group for clone in self._table.training_clones}
        return {
            name: float(rate)
            for name, rate in zip(self._table.names, rates, strict=True)
            if name in training
        }

    def start_stage(
        self,
        shape: keras.optimizers.schedules.LearningRateSchedule | None = None,
        updates_done: int = 0,
        no_decay_on: Sequence[str] = (),
        *,
        continues: bool = False,
    ) -> None:
        """Starts counting the updates of a stage, with a shape for its rates.

        With `gradient_accumulation_steps`, updates count, not batches, and a new window of
        batches begins: gradients of a window that was not full are dropped. A shape or a rule
        other than the last stage's takes effect when the train function is traced anew.

        Args:
            shape: A schedule with peak 1.0, called with the updates since the start of the
                stage; its value multiplies the base rate. `None` is a constant 1.
            updates_done: Updates of the stage that lie behind, where a run is continued in
                the middle of it.
            no_decay_on: What is exempt from weight decay in this stage, besides what the
                optimizer was made with. It is the plan's, so it is not saved.
            continues: Whether a run goes on in the middle of the stage, so that gradients
                accumulated before it count.
        """
        self.shape = shape
        if not continues:
            self._start_window()
        self._stage_no_decay_on = _patterns.no_decay_rules(no_decay_on)
        self._stage_start.assign(self.iterations - updates_done)

    def _start_window(self) -> None:
        steps = self.gradient_accumulation_steps or 1
        counter = _keras_internals.step_counter(self)
        batches = int(counter.numpy())
        if batches % steps == 0:
            return
        with self._building():
            counter.assign(batches - batches % steps)
            for clone in self._table.clones:
                clone.forget_gradients()

    @property
    def updates_in_stage(self) -> int:
        """Updates since the stage began."""
        return int(keras.ops.convert_to_numpy(self.stage_step))

    # --- To and from plain optimizers -----------------------------------------------------

    @classmethod
    def take_over(
        cls,
        optimizer: keras.optimizers.Optimizer | str,
        no_decay_on: Sequence[str] = (),
        regularizer: L2SP | None = None,
    ) -> keras.optimizers.Optimizer:
        """Makes an optimizer discriminative in the middle of training, with its state.

        Slots, averages, accumulated gradients and the step count are carried over, and
        training goes on bit by bit as before. A variable whose slots are all as they were
        made has not trained, and will start as new.

        Args:
            optimizer: A Keras optimizer, built or not, or its name. In a
                `LossScaleOptimizer`, the inner optimizer is replaced.
            no_decay_on: See `DiscriminativeOptimizer`.
            regularizer: See `DiscriminativeOptimizer`.

        Returns:
            A `DiscriminativeOptimizer`, or the `LossScaleOptimizer` around one.

        Raises:
            ValueError: If the optimizer cannot have discriminative rates, or would change
                its regularizer after its first step.
        """
        if isinstance(optimizer, cls):
            if regularizer is not None:
                optimizer._set_regularizer(regularizer)
            optimizer.no_decay_on = _patterns.no_decay_rules(no_decay_on) or optimizer.no_decay_on
            return optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.inner_optimizer = cls.take_over(
                optimizer.inner_optimizer, no_decay_on, regularizer
            )
            _keras_internals.save_inner_state_once(optimizer)
            _keras_internals.check_finite_on_all_replicas(optimizer)
            return optimizer
        result = cls(optimizer, no_decay_on, regularizer=regularizer)
        if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            result._adopt(optimizer)
        return result

    def _set_regularizer(self, regularizer: L2SP) -> None:
        if self.built:
            raise ValueError(
                "The optimizer has been built, so where its variables started is no longer known. "
                "Make a new one with the `regularizer`, and compile again."
            )
        self.regularizer = _pull.checked(regularizer)

    def _adopt(self, plain: keras.optimizers.Optimizer) -> None:
        variables = _keras_internals.known_variables(plain)
        counter = int(_keras_internals.step_counter(plain).numpy())
        _keras_internals.step_counter(self).assign(counter)
        states = read_states(
            plain,
            steps=int(plain.iterations.numpy()),
            averages=_keras_internals.moving_averages(plain),
            accumulators=_keras_internals.gradient_accumulators(plain),
        )
        states, stage_start = _given_back.recall(plain, variables, states)
        if stage_start is not None:
            self._stage_start.assign(stage_start)
        with self._building():
            if counter:
                self._table.adopt(variables, states)
            self._table.train(variables)
            self._tell_keras()
        object.__setattr__(self, "built", True)

    @staticmethod
    def give_back(
        optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable] | None = None
    ) -> keras.optimizers.Optimizer:
        """Returns the plain optimizer for a discriminative one: the way back of `take_over`.

        While the process lives, `take_over` finds each group's step count again, unless the
        plain optimizer has trained in between.

        Args:
            optimizer: Any Keras optimizer. In a `LossScaleOptimizer`, the inner optimizer
                is replaced; one that is plain already is returned as it is.
            variables: See `to_plain`.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            inner = optimizer.inner_optimizer
            optimizer.inner_optimizer = DiscriminativeOptimizer.give_back(inner, variables)
            _keras_internals.save_inner_state_twice(optimizer)
            _keras_internals.check_finite_as_keras_does(optimizer)
            return optimizer
        if isinstance(optimizer, DiscriminativeOptimizer):
            return optimizer.to_plain(variables if optimizer.built else None)
        return optimizer

    def to_plain(
        self, variables: Sequence[keras.Variable] | None = None
    ) -> keras.optimizers.Optimizer:
        """Returns an optimizer of the user's class with this one's state.

        A plain optimizer has one step count for all variables: it gets `iterations`. Shape
        and multipliers are dropped.

        Args:
            variables: What the plain optimizer is built on. Defaults to the variables that
                train now, in their order; variables that never trained get fresh slots.
        """
        plain = self._template.make_plain(self._base_config())
        _keras_internals.set_weight_decay_exclusions(
            plain, *_keras_internals.weight_decay_exclusions(self)
        )
        _keras_internals.step_counter(plain).assign(_keras_internals.step_counter(self))
        if not self.built and variables is None:
            return plain
        variables = self._table.training if variables is None else list(variables)
        with self._building():
            plain.build(variables)
            states = [self._table.state_of(v) for v in variables]
            write_states(
                plain,
                states,
                averages=_keras_internals.moving_averages(plain),
                accumulators=_keras_internals.gradient_accumulators(plain),
            )
            oldest = max(self._table.clones, key=lambda clone: clone.steps, default=None)
            if oldest is not None and oldest.variables:
                write_shared(plain, oldest.read()[0].shared)
            _given_back.remember(plain, variables, states, int(self._stage_start.numpy()))
        return plain

    # --- Config and saved state -----------------------------------------------------------

    def plain_config(self) -> dict[str, Any]:
        """Returns the config of the plain optimizer that this one stands for."""
        plain = self._template.make_plain(self._base_config())
        config: dict[str, Any] = {"class": type(plain).__name__, **plain.get_config()}
        if self.regularizer is not None:
            config["regularizer"] = self.regularizer.get_config()
        return config

    def _base_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        rate = _keras_internals.rate_source(self)
        if not isinstance(rate, keras.Variable):
            config["learning_rate"] = rate
        return config

    def get_config(self) -> dict[str, Any]:
        plain = self._template.make_plain(self._base_config())
        shape = self.shape
        return {
            "optimizer": keras.saving.serialize_keras_object(plain),
            # Keras itself forgets `exclude_from_weight_decay` when it saves.
            "no_decay_on": [*self.no_decay_on, *self._excluded_from_weight_decay()],
            "shape": None if shape is None else keras.saving.serialize_keras_object(shape),
            "name": self.name,
            "regularizer": (
                None
                if self.regularizer is None
                else keras.saving.serialize_keras_object(self.regularizer)
            ),
        }

    def _excluded_from_weight_decay(self) -> list[str]:
        keys, pattern = _keras_internals.weight_decay_exclusions(self)
        known = self._table.unique_names().values()
        paths = [path_of(v) for v in known if _keras_internals.variable_key(self, v) in keys]
        rules = [] if pattern is None else [f".*(?:{pattern.pattern}).*"]
        return [*rules, *(re.escape(path) for path in paths)]

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> DiscriminativeOptimizer:
        config = dict(config)
        for key in ("optimizer", "shape", "regularizer"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        return cls(**config)

    def save_own_variables(self, store: Any) -> None:
        """Writes the state of every variable that has trained, by variable path."""
        rate = _keras_internals.rate_source(self)
        saved = _saved_state.SavedState(
            optimizer=self._template.optimizer_class.__name__,
            iterations=int(_keras_internals.step_counter(self).numpy()),
            stage_start=int(self._stage_start.numpy()),
            learning_rate=(float(rate.numpy()) if isinstance(rate, keras.Variable) else None),
            groups=self._table.saved_groups(),
            multipliers=self.own_multipliers,
            states=self._table.saved_states(),
        )
        _saved_state.write(saved, store)

    def load_own_variables(self, store: Any) -> None:
        """Restores what `save_own_variables` wrote, across stages.

        Variables that have state in the file and are known (from `set_groups`, or because
        they train) get it, frozen ones too. State of variables that are not known yet waits
        until `build` or `set_groups` makes them known. Where the file has clones that this
        optimizer has not, the train function has to be traced anew.

        Raises:
            ValueError: If the file holds another optimizer's state, or state of a variable
                that is in no layer group.
        """
        if _saved_state.MANIFEST not in store.keys():  # noqa: SIM118 (Keras's stores)
            self._load_plain(store)
            return
        saved = _saved_state.read(store)
        expected = self._template.optimizer_class.__name__
        if saved.optimizer != expected:
            raise ValueError(
                f"The saved optimizer state is of {saved.optimizer!r}, but the model was compiled "
                f"with {expected!r}. Compile with the optimizer of the saved run, or load the "
                "weights without the optimizer."
            )
        _keras_internals.step_counter(self).assign(saved.iterations)
        self._stage_start.assign(saved.stage_start)
        rate = _keras_internals.rate_source(self)
        if isinstance(rate, keras.Variable) and saved.learning_rate is not None:
            rate.assign(saved.learning_rate)
        with self._building():
            of_stage = None if self._own_multipliers is None else self.multipliers
            self._table.load(saved)
            self._tell_keras()
        if of_stage is not None:
            self._own_multipliers = self.multipliers
            self._table.assign_multipliers(of_stage)

    def _load_plain(self, store: Any) -> None:
        """Loads a file that a plain optimizer of the same class wrote over the same variables."""
        plain = self.to_plain()
        if len(store.keys()) != len(plain.variables):
            raise ValueError(
                f"The saved optimizer state has {len(store.keys())} variables, numbered, as a "
                f"plain Keras optimizer writes them, and {type(plain).__name__!r} over the "
                f"variables that train now has {len(plain.variables)}. Load it while the same "
                "variables train as when it was saved."
            )
        plain.load_own_variables(store)
        rate = _keras_internals.rate_source(plain)
        if isinstance(rate, keras.Variable):
            self.learning_rate = float(rate.numpy())
        self._table.forget()
        self._adopt(plain)


def discriminative(
    optimizer: keras.optimizers.Optimizer | str,
    no_decay_on: Sequence[str] = (),
    *,
    regularizer: L2SP | None = None,
) -> keras.optimizers.Optimizer:
    """Gives any Keras optimizer a learning rate and a step count for each layer group.

    Args:
        optimizer: A Keras optimizer or its name, such as `"adamw"`. One that is
            discriminative already is returned as it is; in a `LossScaleOptimizer`, the
            inner optimizer is replaced, and the loss scale kept.
        no_decay_on: What is exempt from weight decay: see `DiscriminativeOptimizer`.
        regularizer: A `keras_transfer.regularizers.L2SP` that pulls every layer group but the
            head to where it started, in the place of weight decay.

    Returns:
        A `DiscriminativeOptimizer`, or the `LossScaleOptimizer` around one.

    Raises:
        ValueError: If the optimizer cannot have discriminative rates; the message says why.
            If it is discriminative, has trained, and is given another regularizer.

    Example:

    >>> from keras_transfer.optimizers import discriminative
    >>> discriminative("adamw", no_decay_on=("norm", "bias")).no_decay_on
    ('norm', 'bias')
    """
    return DiscriminativeOptimizer.take_over(optimizer, no_decay_on, regularizer)


def find_discriminative(optimizer: Any) -> DiscriminativeOptimizer | None:
    """Returns the discriminative optimizer that `optimizer` is or holds, or `None`.

    Args:
        optimizer: Any optimizer; a `keras.optimizers.LossScaleOptimizer` holds another.

    Returns:
        The discriminative optimizer, or `None` if there is none.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, DiscriminativeOptimizer) else None
