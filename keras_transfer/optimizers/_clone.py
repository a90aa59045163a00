"""One copy of the user's optimizer for variables of one layer group that started together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _keras_internals
from keras_transfer.optimizers._template import Template, check_slots_are_found


@dataclasses.dataclass
class VariableState:
    """All that an optimizer knows about one variable, as arrays.

    Args:
        steps: Updates that the variable has had.
        slots: The variable's own slots, by name.
        shared: State that its optimizer keeps once for all variables (Nadam's product).
        average: Moving average of the variable, if any.
        accumulator: Gradients accumulated since the last update, if any.
        start: The variable's value before its first update, if it is kept.
    """

    steps: int = 0
    slots: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shared: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    average: np.ndarray | None = None
    accumulator: np.ndarray | None = None
    start: np.ndarray | None = None

    @property
    def clone_key(self) -> tuple[Any, ...]:
        """Variables of one group can share a clone if, and only if, this is equal."""
        shared = sorted((name, value.tobytes()) for name, value in self.shared.items())
        return (self.steps, *shared)


def slot_name(attribute: str) -> str:
    """Returns the name of a slot: the attribute that holds it, without the underscore."""
    return attribute.lstrip("_")


def read_states(
    optimizer: keras.optimizers.Optimizer,
    *,
    steps: int,
    averages: Sequence[keras.Variable | None] = (),
    accumulators: Sequence[keras.Variable | None] = (),
    starts: Sequence[keras.Variable] = (),
) -> list[VariableState]:
    """Reads a built optimizer's state, one record per variable, in its order."""
    shared = {
        slot_name(name): _numpy(v)
        for name, v in _keras_internals.optimizer_shared_state(optimizer).items()
    }
    states = []
    slots = _keras_internals.optimizer_slots(optimizer)
    for index in range(len(_keras_internals.known_variables(optimizer))):
        states.append(
            VariableState(
                steps=steps,
                slots={
                    slot_name(name): _numpy(values[index])
                    for name, values in slots.items()
                    if values[index] is not None
                },
                shared=dict(shared),
                average=_numpy_at(averages, index),
                accumulator=_numpy_at(accumulators, index),
                start=_numpy_at(starts, index),
            )
        )
    return states


def write_states(
    optimizer: keras.optimizers.Optimizer,
    states: Sequence[VariableState | None],
    *,
    averages: Sequence[keras.Variable | None] = (),
    accumulators: Sequence[keras.Variable | None] = (),
    starts: Sequence[keras.Variable] = (),
) -> None:
    """Writes records into a built optimizer, one per variable; `None` leaves it as it is.

    Raises:
        ValueError: If a record lacks a slot, has one too many, or one of another shape.
    """
    slots = _keras_internals.optimizer_slots(optimizer)
    variables = _keras_internals.known_variables(optimizer)
    for index, state in enumerate(states):
        if state is None:
            continue
        own = {slot_name(name): v[index] for name, v in slots.items() if v[index] is not None}
        path = path_of(variables[index])
        if own.keys() != state.slots.keys():
            raise ValueError(
                f"The optimizer state of variable {path!r} does not fit the optimizer "
                f"{type(optimizer).__name__!r}. Received slots: {sorted(state.slots)}; expected: "
                f"{sorted(own)}. Compile with the optimizer, and the options, of the saved run."
            )
        for name, slot in own.items():
            _assign(slot, state.slots[name], f"slot {name!r} of variable {path!r}")
        if averages and averages[index] is not None:
            # A state without an average comes from a run without `use_ema`.
            average = _numpy(variables[index]) if state.average is None else state.average
            _assign(averages[index], average, f"the average of variable {path!r}")
        if starts:
            # A state without a start comes from a run without a regularizer.
            start = _numpy(variables[index]) if state.start is None else state.start
            _assign(starts[index], start, f"the start of variable {path!r}")
        if accumulators and state.accumulator is not None:
            _assign(accumulators[index], state.accumulator, f"the gradient of variable {path!r}")


def write_shared(optimizer: keras.optimizers.Optimizer, shared: dict[str, np.ndarray]) -> None:
    """Writes the state that an optimizer keeps once for all its variables."""
    for name, variable in _keras_internals.optimizer_shared_state(optimizer).items():
        if slot_name(name) in shared:
            variable.assign(shared[slot_name(name)])


def path_of(variable: Any) -> str:
    """Returns a variable's path; a bare `tf.Variable` has a name only."""
    return str(getattr(variable, "path", variable.name))


def _numpy(variable: keras.Variable) -> np.ndarray:
    return np.array(variable.numpy())


def _numpy_at(variables: Sequence[keras.Variable | None], index: int) -> np.ndarray | None:
    variable = variables[index] if variables else None
    return None if variable is None else _numpy(variable)


def _assign(variable: keras.Variable | None, value: np.ndarray, what: str) -> None:
    if variable is None:
        return
    if tuple(variable.shape) != tuple(value.shape):
        raise ValueError(
            f"Cannot restore {what}: its shape is {tuple(value.shape)} in the saved state and "
            f"{tuple(variable.shape)} here. The saved state belongs to another architecture."
        )
    variable.assign(value)


class Clone:
    """An optimizer of the user's class for variables of one group with a common step count.

    Its own step counter is the group's, so every bias correction is right by construction,
    Nadam's running product too.

    Args:
        template: What to make a clone of.
        name: Name of the clone.
        group: Name of the layer group.
        variables: The variables, all of one group, that begin now or began together.
        use_ema: Whether averages of the variables are kept.
        accumulate: Whether gradients are accumulated over several steps.
        keep_starts: Whether the values before the first update are kept.
    """

    def __init__(
        self,
        template: Template,
        *,
        name: str,
        group: str,
        variables: Sequence[keras.Variable],
        use_ema: bool,
        accumulate: bool,
        keep_starts: bool = False,
    ) -> None:
        self.group = group
        self.variables = list(variables)
        self.rate: Any = 0.0
        self.optimizer = template.make_clone(name, lambda: self.rate)
        self.optimizer.build(self.variables)
        check_slots_are_found(self.optimizer)
        self.counter = _keras_internals.step_counter(self.optimizer)
        self.averages: list[keras.Variable | None] = []
        self.accumulators: list[keras.Variable | None] = []
        # They belong to the clone's optimizer, so that they go where it goes.
        if use_ema:
            self.averages = self.optimizer.add_optimizer_variables(self.variables, "average")
            # From the value at the start: an average that began at zero would overwrite
            # a variable that has not moved yet.
            for average, variable in zip(self.averages, self.variables, strict=True):
                if average is not None:
                    average.assign(variable)
        if accumulate:
            self.accumulators = [
                self.optimizer.add_variable_from_reference(v, name="gradient_accumulator")
                for v in self.variables
            ]

        self.starts: list[keras.Variable] = []
        if keep_starts:
            self.starts = [
                self.optimizer.add_variable_from_reference(v, name="start") for v in self.variables
            ]
            self.begin_where_it_is()

    def begin_where_it_is(self) -> None:
        """Takes the variables' values as their start, unless they have had an update."""
        if self.starts and self.steps == 0:
            for start, variable in zip(self.starts, self.variables, strict=True):
                start.assign(variable)

    @property
    def steps(self) -> int:
        """Updates that the clone's variables have had."""
        return int(self.counter.numpy())

    def read(self) -> list[VariableState]:
        """Reads the state of every variable, in the clone's order."""
        return read_states(
            self.optimizer,
            steps=self.steps,
            averages=self.averages,
            accumulators=self.accumulators,
            starts=self.starts,
        )

    def write(self, states: Iterable[VariableState | None]) -> None:
        """Writes the state of every variable; all must have the same `clone_key`."""
        states = list(states)
        write_states(
            self.optimizer,
            states,
            averages=self.averages,
            accumulators=self.accumulators,
            starts=self.starts,
        )
        first = next((state for state in states if state is not None), None)
        if first is not None:
            self.counter.assign(first.steps)
            write_shared(self.optimizer, first.shared)

    def forget_gradients(self) -> None:
        """Drops gradients accumulated so far, which no update will use."""
        for accumulator in self.accumulators:
            if accumulator is not None:
                accumulator.assign(keras.ops.zeros(accumulator.shape, dtype=accumulator.dtype))
