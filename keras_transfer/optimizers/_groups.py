"""Which variable is in which layer group and has which clone; what trains and what waits."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks, _keras_internals, _patterns
from keras_transfer.optimizers._clone import Clone, VariableState, path_of
from keras_transfer.optimizers._saved_state import SavedState, unique_names
from keras_transfer.optimizers._template import Template

# The one group of an optimizer that was not told of groups.
EVERYTHING = "all"


class GroupTable:
    """The clones of a discriminative optimizer, and the groups they belong to.

    A clone holds variables of one group that have had the same number of updates. A group
    has several where its variables began at different times (biases first, then the rest),
    and a clone is split where only a part of it goes on training.

    Args:
        outer: The optimizer around the clones.
        template: What clones are made of.
    """

    def __init__(self, outer: keras.optimizers.Optimizer, template: Template) -> None:
        self._outer = outer
        self._template = template
        self._group_of_key: dict[Any, str] | None = None
        self._grouped: list[keras.Variable] = []
        self._saved_group_of_name: dict[str, str] = {}
        self._waiting: dict[str, VariableState] = {}
        self._clones_made = 0
        self.names: list[str] = [EVERYTHING]
        self.clones: list[Clone] = []
        self.training: list[keras.Variable] = []
        self._training_keys: set[Any] = set()
        self._place: dict[Any, tuple[Clone, int]] = {}
        self.multiplier_vector = self._make_multipliers({})
        self._index()

    def _key(self, variable: Any) -> Any:
        return _keras_internals.variable_key(self._outer, variable)

    # --- Multipliers --------------------------------------------------------------------

    def _make_multipliers(self, values: Mapping[str, float]) -> keras.Variable:
        with keras.name_scope(self._outer.name):
            return keras.Variable(
                np.array([values.get(name, 1.0) for name in self.names]),
                dtype=keras.config.floatx(),
                trainable=False,
                aggregation="only_first_replica",
                name="multipliers",
            )

    @property
    def multipliers(self) -> dict[str, float]:
        """Rate multiplier of each group."""
        values = self.multiplier_vector.numpy().tolist()
        return dict(zip(self.names, values, strict=True))

    def resolve_multipliers(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """Finds the groups that patterns name, and checks the values."""
        if not isinstance(multipliers, Mapping):
            raise TypeError(
                "`multipliers` must map names or patterns of layer groups to numbers. "
                f"Received: multipliers={multipliers!r}"
            )
        aliases = _patterns.stem_and_head(self.names)
        claimed = _patterns.claim_groups(multipliers, self.names, aliases)
        return {
            name: _checks.number(multipliers[pattern], f"multipliers[{pattern!r}]", minimum=0)
            for name, pattern in claimed.items()
        }

    def assign_multipliers(self, values: Mapping[str, float]) -> None:
        """Assigns multipliers by group name; other groups keep theirs."""
        merged = {**self.multipliers, **{k: v for k, v in values.items() if k in self.names}}
        self.multiplier_vector.assign([merged[name] for name in self.names])

    # --- Groups -------------------------------------------------------------------------

    def set_groups(self, groups: Mapping[str, Iterable[keras.Variable]]) -> None:
        """Replaces the grouping; see `DiscriminativeOptimizer.set_groups`."""
        groups = {name: list(variables) for name, variables in groups.items()}
        if not groups:
            raise ValueError("`groups` must name at least one layer group. Received: groups={}")
        group_of_key: dict[Any, str] = {}
        for name, variables in groups.items():
            for variable in variables:
                other = group_of_key.setdefault(self._key(variable), name)
                if other != name:
                    raise ValueError(
                        f"Variable {path_of(variable)!r} is in two layer groups, {other!r} and "
                        f"{name!r}. A variable can have only one learning rate."
                    )
        grouped = list({self._key(v): v for vs in groups.values() for v in vs}.values())
        outside = [v for clone in self.clones for v in clone.variables]
        outside = [v for v in [*outside, *self.training] if self._key(v) not in group_of_key]
        if outside:
            raise ValueError(
                f"Variable {path_of(outside[0])!r} is known to the optimizer but is in no layer "
                f"group. The groups are: {', '.join(map(repr, groups))}."
            )
        if self._waiting and self._saved_group_of_name:
            self._grouped = grouped
            new_name = self._new_names(list(self._saved_group_of_name))
            self._waiting = {new_name.get(n, n): state for n, state in self._waiting.items()}
        unknown = sorted(self._waiting.keys() - set(unique_names(grouped)))
        if unknown:
            raise ValueError(
                f"The loaded optimizer state has variables that are in no layer group: "
                f"{', '.join(map(repr, unknown[:3]))}. It belongs to another model."
                f"{_checks.did_you_mean(unknown[0], unique_names(grouped))}"
            )
        multipliers = self.multipliers
        renamed = list(groups) != self.names
        self._group_of_key, self._grouped, self.names = group_of_key, grouped, list(groups)
        if renamed:
            self.multiplier_vector = self._make_multipliers(multipliers)
        self._arrange(self.training, self._take_waiting())

    def _group_of(self, variable: keras.Variable, name: str | None = None) -> str:
        if self._group_of_key is not None:
            group = self._group_of_key.get(self._key(variable))
        elif self._saved_group_of_name:
            group = self._saved_group_of_name.get(name or path_of(variable))
        else:
            group = EVERYTHING
        if group is None:
            raise ValueError(
                f"Variable {path_of(variable)!r} is in no layer group. The groups are: "
                f"{', '.join(map(repr, self.names))}. Call `set_groups` with every variable that "
                "is ever to train."
            )
        return group

    # --- What trains --------------------------------------------------------------------

    def train(self, variables: list[keras.Variable]) -> None:
        """Makes `variables` the ones that train; see `DiscriminativeOptimizer.build`."""
        for variable in variables:
            self._group_of(variable)
        self._arrange(variables, self._take_waiting(variables))
        for clone in self.training_clones:
            # Weights may have been loaded since the clone was made.
            clone.begin_where_it_is()

    def adopt(self, variables: Sequence[keras.Variable], states: Sequence[VariableState]) -> None:
        """Takes the state of another optimizer's variables, except those that never trained."""
        probe = self._make_clone(EVERYTHING, list(variables))
        touched = {
            self._key(v): (v, state)
            for v, state, fresh in zip(variables, states, probe.read(), strict=True)
            if not state.slots
            or any(not np.array_equal(state.slots[k], fresh.slots[k]) for k in state.slots)
        }
        self._arrange(list(variables), touched)

    def load(self, saved: SavedState) -> None:
        """Replaces all state by a file's."""
        saved = self._with_names_of_today(saved)
        if self._group_of_key is None and saved.groups is not None:
            self.names = list(saved.groups)
            self._saved_group_of_name = {
                name: group for group, names in saved.groups.items() for name in names
            }
            self.multiplier_vector = self._make_multipliers(saved.multipliers)
        known = {name: v for name, v in self.unique_names().items() if name in saved.states}
        missing = sorted(saved.states.keys() - known.keys())
        if self._group_of_key is not None and missing:
            raise ValueError(
                f"The saved optimizer state has variables that are in no layer group: "
                f"{', '.join(map(repr, missing[:3]))}. It belongs to another model."
                f"{_checks.did_you_mean(missing[0], self.unique_names())}"
            )
        self.assign_multipliers(saved.multipliers)
        self._waiting = {name: saved.states[name] for name in missing}
        found = {self._key(v): (v, saved.states[name]) for name, v in known.items()}
        self._arrange(self.training, found, replace=True)

    def _with_names_of_today(self, saved: SavedState) -> SavedState:
        """Renames a file's variables where the same model has other paths now.

        A Sequential model that is loaded names its variables without its own name, which
        was in their paths when it was made. The order of the variables of all groups is
        the same in both, and so are their last names. Where no groups are known yet, as
        when Keras loads a model, a name is known by its ending.
        """
        if saved.groups is None:
            return saved
        there = [name for names in saved.groups.values() for name in names]
        if self._group_of_key is None:
            new_name = self._names_by_ending(there)
        else:
            new_name = self._new_names(there)
        return dataclasses.replace(
            saved,
            groups={g: [new_name.get(n, n) for n in ns] for g, ns in saved.groups.items()},
            states={new_name.get(name, name): state for name, state in saved.states.items()},
        )

    def _names_by_ending(self, there: list[str]) -> dict[str, str]:
        pairs = [
            (old, new)
            for new in self.unique_names()
            if new not in there
            for old in there
            if old.endswith(f"/{new}") or new.endswith(f"/{old}")
        ]
        counts = collections.Counter(name for pair in pairs for name in set(pair))
        return {old: new for old, new in pairs if counts[old] == counts[new] == 1}

    def _new_names(self, there: list[str]) -> dict[str, str]:
        here = unique_names(self._grouped)
        same_order = len(here) == len(there) and all(
            a.rpartition("/")[2] == b.rpartition("/")[2] for a, b in zip(here, there, strict=True)
        )
        if set(there) <= set(here) or not same_order:
            here = there
        return dict(zip(there, here, strict=True))

    def forget(self) -> None:
        """Drops all state."""
        self._waiting = {}
        self.clones = []
        self._index()

    def _take_waiting(
        self, variables: Iterable[keras.Variable] = ()
    ) -> dict[Any, tuple[keras.Variable, VariableState]]:
        """Takes loaded state out of the queue for variables that are known by now."""
        if not self._waiting:
            return {}
        found = {}
        for name, variable in self.unique_names(variables).items():
            state = self._waiting.pop(name, None)
            if state is not None:
                found[self._key(variable)] = (variable, state)
        return found

    def _arrange(
        self,
        training: list[keras.Variable],
        states: dict[Any, tuple[keras.Variable, VariableState]],
        *,
        replace: bool = False,
    ) -> None:
        """Makes the clones that `training` needs, and moves `states` into them.

        Clones that are right as they are stay untouched; with `replace`, they get the
        values of `states`, so that a step that was traced before goes on with them.
        """
        keys = {self._key(v) for v in training}
        names = {self._key(v): name for name, v in self.unique_names(training).items()}

        def place(variable: keras.Variable) -> tuple[str, bool]:
            key = self._key(variable)
            return self._group_of(variable, names.get(key)), key in keys

        kept: list[Clone] = []
        records = dict(states)
        for clone in self.clones:
            places = {place(v) for v in clone.variables}
            if replace or any(self._key(v) in states for v in clone.variables):
                continue
            # Never updated and not training: as good as new, so it need not be kept.
            if not any(trains for _, trains in places) and clone.steps == 0:
                continue
            if len(places) == 1:
                clone.group = next(iter(places))[0]
                kept.append(clone)
                continue
            for variable, state in zip(clone.variables, clone.read(), strict=True):
                records[self._key(variable)] = (variable, state)
        has_clone = {self._key(v) for clone in kept for v in clone.variables}
        wanted: dict[Any, list[tuple[keras.Variable, VariableState | None]]] = {}
        order = [*training, *(v for v, _ in records.values() if self._key(v) not in keys)]
        for variable in order:
            key = self._key(variable)
            if key in has_clone:
                continue
            _, state = records.get(key, (variable, None))
            if key not in keys and (state is None or state.steps == 0):
                continue
            clone_key = (place(variable), None if state is None else state.clone_key)
            wanted.setdefault(clone_key, []).append((variable, state))
        old = {frozenset(map(self._key, clone.variables)): clone for clone in self.clones}
        made = []
        for ((group, _), _), members in wanted.items():
            by_key = {self._key(v): state for v, state in members}
            same = old.get(frozenset(by_key)) if replace and None not in by_key.values() else None
            new = same or self._make_clone(group, [v for v, _ in members])
            new.group = group
            new.write(by_key[self._key(v)] for v in new.variables)
            made.append(new)
        before = self._training_keys
        self.clones = [*kept, *made]
        self.training = list(training)
        self._index()
        for clone in self.clones:
            # What stops training; one that does not train yet has what a file held.
            stopped = any(self._key(v) in before for v in clone.variables)
            if stopped and clone not in self.training_clones:
                clone.forget_gradients()

    def _index(self) -> None:
        self._training_keys = {self._key(v) for v in self.training}
        self._place = {
            self._key(v): (clone, i) for clone in self.clones for i, v in enumerate(clone.variables)
        }
        self.training_clones = [
            clone
            for clone in self.clones
            if any(self._key(v) in self._training_keys for v in clone.variables)
        ]

    def _make_clone(self, group: str, variables: list[keras.Variable]) -> Clone:
        self._clones_made += 1
        return Clone(
            self._template,
            name=f"{self._outer.name}_{self._clones_made}",
            group=group,
            variables=variables,
            use_ema=self._outer.use_ema,
            accumulate=bool(self._outer.gradient_accumulation_steps),
            keep_starts=self._outer.keeps_starts,
        )

    # --- Looking up ---------------------------------------------------------------------

    @property
    def variables(self) -> list[keras.Variable]:
        """Multipliers, then the variables of every clone."""
        return [self.multiplier_vector, *(v for c in self.clones for v in c.optimizer.variables)]

    @property
    def steps(self) -> dict[str, int]:
        """Updates of each group; the most of its clones'."""
        steps = dict.fromkeys(self.names, 0)
        for clone in self.clones:
            steps[clone.group] = max(steps[clone.group], clone.steps)
        return steps

    def is_training(self, variable: keras.Variable) -> bool:
        """Whether `build` was told that the variable trains."""
        return self._key(variable) in self._training_keys

    def by_clone(self, variables: Sequence[keras.Variable]) -> Iterator[tuple[Clone, list[int]]]:
        """Yields clones with the positions of their variables in `variables`."""
        positions: dict[int, list[int]] = {}
        clones: dict[int, Clone] = {}
        for position, variable in enumerate(variables):
            clone, _ = self._place[self._key(variable)]
            clones[id(clone)] = clone
            positions.setdefault(id(clone), []).append(position)
        for identity, clone in clones.items():
            yield clone, positions[identity]

    def average_of(self, variable: keras.Variable) -> keras.Variable | None:
        """Returns the moving average of a variable, if it has one."""
        clone, index = self._place.get(self._key(variable), (None, 0))
        return clone.averages[index] if clone is not None and clone.averages else None

    def averages_of(self, variables: Iterable[keras.Variable]) -> list[keras.Variable | None]:
        """Returns the moving averages of variables, in their order."""
        return [self.average_of(v) for v in variables]

    def accumulators_of(self, variables: Iterable[keras.Variable]) -> list[keras.Variable]:
        """Returns the gradient accumulators of training variables, in their order."""
        places = [self._place[self._key(v)] for v in variables]
        return [clone.accumulators[index] for clone, index in places]

    def starts_of(self, variables: Iterable[keras.Variable]) -> list[keras.Variable]:
        """Returns what training variables were before their first update, in their order."""
        places = [self._place[self._key(v)] for v in variables]
        return [clone.starts[index] for clone, index in places]

    def state_of(self, variable: keras.Variable) -> VariableState | None:
        """Reads the state of a variable, or `None` if it has none."""
        clone, index = self._place.get(self._key(variable), (None, 0))
        return None if clone is None else clone.read()[index]

    # --- Saving -------------------------------------------------------------------------

    def unique_names(self, more: Iterable[keras.Variable] = ()) -> dict[str, keras.Variable]:
        """Names all known variables; see `_saved_state.unique_names`."""
        variables = {self._key(v): v for v in self._grouped}
        for variable in [*self.training, *(v for c in self.clones for v in c.variables), *more]:
            variables.setdefault(self._key(variable), variable)
        known = list(variables.values())
        return dict(zip(unique_names(known), known, strict=True))

    def saved_states(self) -> dict[str, VariableState]:
        """Reads the state of every variable that has any, by name; what waits, too."""
        states = dict(self._waiting)
        read = {
            self._key(v): state
            for clone in self.clones
            for v, state in zip(clone.variables, clone.read(), strict=True)
        }
        for name, variable in self.unique_names().items():
            if self._key(variable) in read:
                states[name] = read[self._key(variable)]
        return states

    def saved_groups(self) -> dict[str, list[str]] | None:
        """Returns the names of each group's variables, or `None` without groups."""
        groups: dict[str, list[str]] = {name: [] for name in self.names}
        if self._group_of_key is not None:
            for name, variable in self.unique_names().items():
                groups[self._group_of(variable)].append(name)
        elif self._saved_group_of_name:
            for name, group in self._saved_group_of_name.items():
                groups[group].append(name)
        else:
            return None
        return groups
