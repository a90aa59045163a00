"""The step of a discriminative optimizer: everything around the clones' own updates.

An ordinary Keras optimizer outside owns what concerns all layer groups together: the base
learning rate, clipping (after the gradients of all replicas are summed), gradient
accumulation, moving averages, loss scaling. It hands each group's gradients to that
group's *clones* of the user's optimizer, with the rate times the group's multiplier. A
clone's own step counter is the group's, so every bias correction is right by construction.

Overrides of private Keras methods, each with a canary in
`tests/optimizers/test_private_names.py`: `_backend_apply_gradients` (the order: sum over
replicas, accumulate, clip, decay, update, average) and
`_overwrite_model_variables_with_average_value` (averages paired by variable, not by
position). Inherited private methods that are called: `_clip_gradients`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _checks, _keras_internals, _patterns
from keras_transfer.optimizers import _no_decay, _pull
from keras_transfer.optimizers._groups import GroupTable
from keras_transfer.optimizers._template import Template, checked
from keras_transfer.regularizers import L2SP


class GroupwiseOptimizer(keras.optimizers.Optimizer):
    """Runs clones of an optimizer, group by group; see `DiscriminativeOptimizer`."""

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        *,
        no_decay_on: Sequence[str],
        shape: keras.optimizers.schedules.LearningRateSchedule | None,
        name: str | None,
        regularizer: L2SP | None = None,
    ) -> None:
        optimizer = checked(optimizer)
        rate = _keras_internals.rate_source(optimizer)
        if isinstance(rate, keras.Variable):
            # Keras takes a negative rate, and NaN, without a word.
            rate = _checks.number(float(rate.numpy()), "learning_rate", minimum=0)
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
        self.no_decay_on = _patterns.no_decay_rules(no_decay_on)
        self._stage_no_decay_on: tuple[str, ...] = ()
        self.shape = shape
        self.regularizer = _pull.checked(regularizer)
        self._stage_start = self.add_variable(
            shape=(), dtype="int", aggregation="only_first_replica", name="stage_start"
        )
        self._template = Template(optimizer)
        self._strategy = tf.distribute.get_strategy()
        self._made_in_scope = tf.distribute.has_strategy()
        self._table = GroupTable(self, self._template)

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
            if self._made_in_scope:
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

    @property
    def stage_step(self) -> Any:
        """Optimizer updates since `start_stage`."""
        return self.iterations - self._stage_start

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
            pulled = self._pulls(clone.group)
            decaying = [v for v in chosen if self._decays(v) and not pulled]
            if decaying:
                _keras_internals.decay_weights(clone.optimizer, decaying)
            _keras_internals.update_variables(
                clone.optimizer, [grads[i] for i in positions], chosen, clone.rate
            )
            if pulled:
                assert self.regularizer is not None
                starts = self._table.starts_of(chosen)
                _pull.pull(chosen, starts, self.regularizer.strength, clone.rate)
            clone.counter.assign_add(1)

    @property
    def keeps_starts(self) -> bool:
        """Whether the values are kept that variables had before their first update."""
        return self.regularizer is not None and self.regularizer.strength > 0

    def _pulls(self, group: str) -> bool:
        """Whether the regularizer pulls a group: all but the head, which is the last one."""
        if not self.keeps_starts:
            return False
        if len(self._table.names) == 1:
            raise ValueError(
                "`L2SP` in an optimizer pulls all layer groups but the head, and it was told of no "
                "groups. Train a `TransferModel` or with `GradualUnfreezing`, or call `set_groups`."
            )
        return group != self._table.names[-1]

    def _decays(self, variable: keras.Variable) -> bool:
        rules = (*self.no_decay_on, *self._stage_no_decay_on)
        return not _no_decay.exempt(rules, variable) and _keras_internals.decays(self, variable)

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
