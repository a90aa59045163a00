"""Discriminative learning rates: any Keras optimizer with a rate and a step count per group.

An ordinary Keras optimizer outside owns what concerns all layer groups together: the base
learning rate, clipping (after the gradients of all replicas are summed), gradient
accumulation, moving averages, loss scaling. It hands each group's gradients to that
group's *clone* of the user's optimizer, with the rate times the group's multiplier. The
clone's own step counter is the group's, so every bias correction is right by construction.

Overrides of private Keras methods, each with a canary in
`tests/optimizers/test_private_names.py`: `_backend_apply_gradients` (the order: sum over
replicas, accumulate, clip, decay, update, average) and
`_overwrite_model_variables_with_average_value` (averages paired by variable, not by
position). Calls of private methods that it inherits: `_clip_gradients`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _checks, _keras_internals
from keras_transfer.optimizers import _no_decay, _saved_state
from keras_transfer.optimizers._clone import (
    VariableState,
    path_of,
    read_states,
    write_shared,
    write_states,
)
from keras_transfer.optimizers._groups import GroupTable
from keras_transfer.optimizers._template import Template, checked


@keras.saving.register_keras_serializable(package="keras_transfer")
class DiscriminativeOptimizer(keras.optimizers.Optimizer):
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

    Raises:
        TypeError: If `optimizer` is neither a Keras optimizer nor a name.
        ValueError: If the optimizer cannot have discriminative rates; the message says why.

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
    ) -> None:
        optimizer = checked(optimizer)
        rate = _keras_internals.rate_source(optimizer)
        if isinstance(rate, keras.Variable):
            rate = float(keras.ops.convert_to_numpy(rate))
        super().__init__(
            learning_rate=rate,
            weight_decay=optimizer.weight_decay,
            clipnorm=optimizer.clipnorm,
            clipvalue=optimizer.clipvalue,
            global_clipnorm=optimizer.global_clipnorm,
            use_ema=optimizer.use_ema,
            ema_momentum=optimizer.ema_momentum,
            ema_overwrite_frequency=optimizer.ema_overwrite_frequency,
            loss_scale_factor=optimizer.loss_scale_factor,
            gradient_accumulation_steps=optimizer.gradient_accumulation_steps,
            name=name or optimizer.name,
        )
        _keras_internals.set_weight_decay_exclusions(
            self, *_keras_internals.weight_decay_exclusions(optimizer)
        )
        self.no_decay_on = _no_decay.checked_rules(no_decay_on)
        self.shape = shape
        self._stage_start = self.add_variable(
            shape=(), dtype="int", aggregation="only_first_replica", name="stage_start"
        )
        self._template = Template(optimizer)
        self._strategy = tf.distribute.get_strategy()
        self._table = GroupTable(self, self._template)

    # --- Groups and what trains ---------------------------------------------------------

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

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes `variables` the ones that train from the next step on.

        May be called any number of times. Slots are made for variables that never trained;
        the state of all others is left alone, and that of variables no longer given is
        kept until they train again. The train function has to be traced anew afterwards.

        Args:
            variables: The variables that train from now on, in the order in which `apply`
                will bring their gradients.

        Raises:
            ValueError: If groups are set and a variable is in none of them.
        """
        with self._building():
            self._table.train(list(variables))
            self._tell_keras()
        object.__setattr__(self, "built", True)

    @contextlib.contextmanager
    def _building(self) -> Any:
        # Slots are made eagerly and in the strategy's scope wherever the call comes from:
        # inside a traced step, their initial values would be assigned again in every step.
        with tf.init_scope(), contextlib.ExitStack() as stack:
            if self._strategy.num_replicas_in_sync > 1 or tf.distribute.has_strategy():
                stack.enter_context(self._strategy.scope())
            yield

    def _tell_keras(self) -> None:
        averages = self._table.averages_of(self._table.training) if self.use_ema else None
        _keras_internals.set_known_variables(self, self._table.training, averages)

    @property
    def variables(self) -> list[keras.Variable]:
        """The optimizer's own variables and those of all groups, frozen ones too."""
        return [*super().variables, *self._table.variables]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets the values of `variables`, in that order."""
        if len(weights) != len(self.variables):
            raise ValueError(
                f"`weights` must hold one array for each of the optimizer's "
                f"{len(self.variables)} variables. Received: {len(weights)} arrays."
            )
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

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
        values = self._table.resolve_multipliers(multipliers)
        if self._template.divides_by_rate and 0.0 in values.values():
            raise ValueError(
                "`Ftrl` divides by its learning rate, so a multiplier of 0 would give NaN. Freeze "
                "the layer group instead."
            )
        self._table.assign_multipliers(values)

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
        rates = np.asarray(keras.ops.convert_to_numpy(self._group_rates()))
        training = {clone.group for clone in self._table.training_clones}
        return {
            name: float(rate)
            for name, rate in zip(self._table.names, rates, strict=True)
            if name in training
        }

    @property
    def stage_step(self) -> Any:
        """Optimizer updates since `start_stage`."""
        return self.iterations - self._stage_start

    def start_stage(
        self, shape: keras.optimizers.schedules.LearningRateSchedule | None = None
    ) -> None:
        """Starts counting the updates of a stage at 0, with a shape for its rates.

        With `gradient_accumulation_steps`, updates count, not batches. A shape other than
        the last stage's takes effect when the train function is traced anew.

        Args:
            shape: A schedule with peak 1.0, called with the updates since the start of the
                stage; its value multiplies the base rate. `None` is a constant 1.
        """
        self.shape = shape
        self._stage_start.assign(self.iterations)

    def _group_rates(self) -> Any:
        """The rates of all groups as one vector: one operation, however many groups."""
        rate = self.learning_rate
        multipliers = self._table.multiplier_vector
        if self.shape is not None:
            shape = self.shape(self.stage_step)
            rate = keras.ops.cast(rate, multipliers.dtype) * keras.ops.cast(
                shape, multipliers.dtype
            )
        return keras.ops.cast(rate, multipliers.dtype) * multipliers

    # --- The step -----------------------------------------------------------------------

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Updates variables with their gradients, as `keras.optimizers.Optimizer.apply`.

        A variable that `build` was not told about is added to those that train.
        """
        if trainable_variables is not None and len(grads) > 0:
            trainable_variables = list(trainable_variables)
            new = [v for v in trainable_variables if not self._table.is_training(v)]
            if new:
                self._build_in_step([*self._table.training, *new])
        super().apply(grads, trainable_variables)

    def _build_in_step(self, variables: list[keras.Variable]) -> None:
        replica = tf.distribute.get_replica_context()
        if replica is None or not _keras_internals.needs_merge_call():
            self.build(variables)
        else:
            replica.merge_call(lambda _: self.build(variables))

    def _backend_apply_gradients(
        self, grads: list[Any], trainable_variables: list[keras.Variable]
    ) -> None:
        grads = self._summed_over_replicas(grads)
        first_update = {
            id(clone): keras.ops.equal(clone.counter, 0)
            for clone in (self._table.training_clones if self.use_ema else ())
        }
        if self.gradient_accumulation_steps:
            self._accumulate_or_update(grads, trainable_variables)
        else:
            self._update(grads, trainable_variables)
        if self.use_ema:
            self._update_averages(first_update)
            if self.ema_overwrite_frequency:
                self._overwrite_with_averages_now_and_then()

    @staticmethod
    def _summed_over_replicas(grads: list[Any]) -> list[Any]:
        # Before clipping and outside of any `cond`: Keras clips on each replica, which
        # is another number, and cannot reduce inside the accumulation's branches.
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return grads
        return list(replica.all_reduce(tf.distribute.ReduceOp.SUM, grads))

    def _update(self, grads: list[Any], variables: list[keras.Variable]) -> None:
        grads = self._clip_gradients(grads)
        rates = keras.ops.unstack(self._group_rates(), num=len(self._table.names))
        for clone, positions in self._table.by_clone(variables):
            clone.rate = rates[self._table.names.index(clone.group)]
            clone.optimizer.weight_decay = self.weight_decay
            chosen = [variables[i] for i in positions]
            decaying = [v for v in chosen if self._decays(v)]
            if decaying:
                _keras_internals.decay_weights(clone.optimizer, decaying)
            _keras_internals.update_variables(
                clone.optimizer, [grads[i] for i in positions], chosen, clone.rate
            )
            clone.counter.assign_add(1)

    def _decays(self, variable: keras.Variable) -> bool:
        return (
            not _no_decay.exempt(self.no_decay_on, variable)
            and not self._table.is_exempt(variable)
            and _keras_internals.decays(self, variable)
        )

    def _accumulate_or_update(self, grads: list[Any], variables: list[keras.Variable]) -> None:
        steps = self.gradient_accumulation_steps
        accumulators = self._table.accumulators_of(variables)

        def update(grads: list[Any]) -> None:
            means = [(g + a) / steps for g, a in zip(grads, accumulators, strict=True)]
            self._update(means, variables)
            for accumulator in accumulators:
                accumulator.assign(keras.ops.zeros(accumulator.shape, dtype=accumulator.dtype))

        def accumulate(grads: list[Any]) -> None:
            for gradient, accumulator in zip(grads, accumulators, strict=True):
                accumulator.assign(gradient + accumulator)

        def is_update_step() -> Any:
            return (_keras_internals.step_counter(self) + 1) % steps == 0

        if not _keras_internals.needs_merge_call():
            keras.ops.cond(is_update_step(), lambda: update(grads), lambda: accumulate(grads))
            return

        # A branch that makes replicas meet cannot lie in a replica's own `cond`; the
        # replicas meet first, decide together, and part again inside the branch.
        def across_replicas(strategy: Any, grads: list[Any]) -> None:
            def on_each(function: Any) -> None:
                strategy.extended.call_for_each_replica(function, args=(grads,))

            keras.ops.cond(is_update_step(), lambda: on_each(update), lambda: on_each(accumulate))

        tf.distribute.get_replica_context().merge_call(across_replicas, args=(grads,))

    # --- Averages -----------------------------------------------------------------------

    def _update_averages(self, first_update: dict[int, Any]) -> None:
        for clone in self._table.training_clones:
            for variable, average in zip(clone.variables, clone.averages, strict=True):
                if average is None:
                    continue
                momentum = (
                    keras.ops.cast(keras.ops.logical_not(first_update[id(clone)]), variable.dtype)
                    * self.ema_momentum
                )
                average.assign(momentum * average + (1 - momentum) * variable)

    def _overwrite_with_averages_now_and_then(self) -> None:
        def overwrite_if_due(strategy: Any = None) -> None:
            due = (self.iterations + 1) % self.ema_overwrite_frequency == 0
            keras.ops.cond(
                due,
                lambda: self._overwrite_model_variables_with_average_value(self._table.training),
                lambda: None,
            )

        if _keras_internals.needs_merge_call():
            tf.distribute.get_replica_context().merge_call(overwrite_if_due)
        else:
            overwrite_if_due()

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Iterable[keras.Variable]
    ) -> None:
        # Keras pairs by position, so an optimizer that has also trained other variables
        # would overwrite the head with the base's averages.
        for variable in trainable_variables:
            average = self._table.average_of(variable)
            if average is not None:
                self._strategy.extended.update(
                    variable.value, lambda a, b: a.assign(b), args=(average.value,)
                )

    # --- To and from plain optimizers -----------------------------------------------------

    @classmethod
    def take_over(
        cls, optimizer: keras.optimizers.Optimizer | str, no_decay_on: Sequence[str] = ()
    ) -> keras.optimizers.Optimizer:
        """Makes an optimizer discriminative in the middle of training, with its state.

        Slots, averages, accumulated gradients and the step count are carried over, and
        training goes on bit by bit as before. A variable whose slots are all as they were
        made has not trained, and will start as new.

        Args:
            optimizer: A Keras optimizer, built or not, or its name. In a
                `LossScaleOptimizer`, the inner optimizer is replaced.
            no_decay_on: See `DiscriminativeOptimizer`.

        Returns:
            A `DiscriminativeOptimizer`, or the `LossScaleOptimizer` around one.

        Raises:
            ValueError: If the optimizer cannot have discriminative rates.
        """
        if isinstance(optimizer, cls):
            return optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.inner_optimizer = cls.take_over(optimizer.inner_optimizer, no_decay_on)
            return optimizer
        result = cls(optimizer, no_decay_on)
        if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            result._adopt(optimizer)
        return result

    def _adopt(self, plain: keras.optimizers.Optimizer) -> None:
        variables = _keras_internals.known_variables(plain)
        counter = int(keras.ops.convert_to_numpy(_keras_internals.step_counter(plain)))
        _keras_internals.step_counter(self).assign(counter)
        states = read_states(
            plain,
            steps=int(keras.ops.convert_to_numpy(plain.iterations)),
            averages=_keras_internals.moving_averages(plain),
            accumulators=_keras_internals.gradient_accumulators(plain),
        )
        with self._building():
            if counter:
                self._table.adopt(variables, states)
            self._table.train(variables)
            self._tell_keras()
        object.__setattr__(self, "built", True)

    @staticmethod
    def give_back(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Returns the plain optimizer for a discriminative one: the way back of `take_over`.

        Args:
            optimizer: Any Keras optimizer. In a `LossScaleOptimizer`, the inner optimizer
                is replaced; one that is plain already is returned as it is.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.inner_optimizer = DiscriminativeOptimizer.give_back(optimizer.inner_optimizer)
            return optimizer
        if isinstance(optimizer, DiscriminativeOptimizer):
            return optimizer.to_plain()
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
            write_states(
                plain,
                [self._table.state_of(v) for v in variables],
                averages=_keras_internals.moving_averages(plain),
                accumulators=_keras_internals.gradient_accumulators(plain),
            )
            oldest = max(self._table.clones, key=lambda clone: clone.steps, default=None)
            if oldest is not None and oldest.variables:
                write_shared(plain, oldest.read()[0].shared)
        return plain

    # --- Config and saved state -----------------------------------------------------------

    def _base_config(self) -> dict[str, Any]:
        config = super().get_config()
        rate = _keras_internals.rate_source(self)
        if not isinstance(rate, keras.Variable):
            config["learning_rate"] = rate
        return config

    def get_config(self) -> dict[str, Any]:
        plain = self._template.make_plain(self._base_config())
        shape = self.shape
        return {
            "optimizer": keras.saving.serialize_keras_object(plain),
            "no_decay_on": list(self.no_decay_on),
            "shape": None if shape is None else keras.saving.serialize_keras_object(shape),
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> DiscriminativeOptimizer:
        config = dict(config)
        for key in ("optimizer", "shape"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        return cls(**config)

    def save_own_variables(self, store: Any) -> None:
        """Writes the state of every variable that has trained, by variable path."""
        rate = _keras_internals.rate_source(self)
        names = self._table.unique_names()
        saved = _saved_state.SavedState(
            optimizer=self._template.optimizer_class.__name__,
            iterations=int(keras.ops.convert_to_numpy(_keras_internals.step_counter(self))),
            stage_start=int(keras.ops.convert_to_numpy(self._stage_start)),
            learning_rate=(
                float(keras.ops.convert_to_numpy(rate))
                if isinstance(rate, keras.Variable)
                else None
            ),
            groups=self._table.saved_groups(),
            multipliers=self.multipliers,
            exempt=[name for name, v in names.items() if not self._decays(v)],
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
            self._table.load(saved)
            self._tell_keras()

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
            self.learning_rate = float(keras.ops.convert_to_numpy(rate))
        self._table.forget()
        self._adopt(plain)


def discriminative(
    optimizer: keras.optimizers.Optimizer | str, no_decay_on: Sequence[str] = ()
) -> keras.optimizers.Optimizer:
    """Gives any Keras optimizer a learning rate and a step count for each layer group.

    Args:
        optimizer: A Keras optimizer or its name, such as `"adamw"`. One that is
            discriminative already is returned as it is; in a `LossScaleOptimizer`, the
            inner optimizer is replaced, and the loss scale kept.
        no_decay_on: What is exempt from weight decay: see `DiscriminativeOptimizer`.

    Returns:
        A `DiscriminativeOptimizer`, or the `LossScaleOptimizer` around one.

    Raises:
        ValueError: If the optimizer cannot have discriminative rates; the message says why.

    Example:

    >>> from keras_transfer.optimizers import discriminative
    >>> discriminative("adamw", no_decay_on=("norm", "bias")).no_decay_on
    ('norm', 'bias')
    """
    return DiscriminativeOptimizer.take_over(optimizer, no_decay_on)


def find_discriminative(optimizer: Any) -> DiscriminativeOptimizer | None:
    """Returns the discriminative optimizer that `optimizer` is or holds, or `None`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, DiscriminativeOptimizer) else None
