"""What trains when: stages and the plan they make, as plain data.

Nothing here imports Keras, so a plan can be written, checked, printed, pickled
and turned into JSON where no TensorFlow is installed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from keras_transfer import _checks, _patterns

SCHEDULES = ("constant", "one_cycle", "slanted_triangular", "warmup_cosine")
TRAIN_KEYWORDS = ("all", "bias", "norm")
MODES = ("auto", "min", "max")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A span of epochs with a fixed set of training layer groups.

    Say how much trains with `depth` (counted from the head) or `train` (a
    surgical choice); every other group is frozen while the stage runs.

    Args:
        name: Name of the stage, printed when it starts.
        depth: How many layer groups train, counted from the head: 1 is the head
            alone (linear probing), `"all"` is everything. Exactly one of `depth`
            and `train` is given.
        train: What trains instead: `"all"`, `"bias"` (every bias, and the head:
            BitFit), `"norm"` (scales and offsets of normalization layers, and the
            head), or names or regular expressions of layer groups. Patterns are
            matched whole (`re.fullmatch`); `"stem"` and `"head"` name the first
            and last group.
        epochs: Length of the stage, in epochs; the most it may take where
            `patience` is given. At least 1.
        peak_lr: Base learning rate assigned once, when the stage starts: the rate
            of the head, and the top of `schedule`. `None` leaves the optimizer's
            rate alone.
        lr_decay: Each layer group's rate is the next group's times this, in
            (0, 1].
        lr_multipliers: What a layer group's rate is of the base rate, at least 0, for each
            name or pattern of groups, instead of `lr_decay`; groups that nothing matches
            get 1. A stage with neither keeps the optimizer's multipliers (1, unless
            `set_multipliers` was called).
        schedule: Shape of the rate over the stage's own steps: `"constant"`,
            `"one_cycle"`, `"slanted_triangular"` or `"warmup_cosine"`. `None`
            leaves the rate to the optimizer.
        warmup_epochs: Rise of `schedule`, in epochs; may be a fraction of one.
            `None` takes the schedule's own default.
        monitor: Quantity watched where `patience` is given.
        patience: Epochs without improvement after which the stage ends early, as
            in `keras.callbacks.EarlyStopping`. `None` runs all `epochs`.
        min_delta: Smallest change of `monitor` that counts as improvement.
        mode: `"min"`, `"max"`, or `"auto"` (from the metric's name).
        restore_best_weights: Whether a stage with `patience` ends with the weights
            of its best epoch.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict
            each other.

    Example:

    >>> from keras_transfer import Stage
    >>> Stage("probe", depth=1, epochs=5, peak_lr=1e-3).depth
    1

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), gradual unfreezing
        - [Ben Zaken et al., 2022](https://arxiv.org/abs/2106.10199), `train="bias"`
        - [Frankle et al., 2021](https://arxiv.org/abs/2003.00152), `train="norm"`
    """

    name: str
    _: dataclasses.KW_ONLY
    depth: int | str | None = None
    train: str | tuple[str, ...] | None = None
    epochs: int = 0
    peak_lr: float | None = None
    lr_decay: float | None = None
    # A mapping cannot be hashed; stages that differ in it alone share a hash, no more.
    lr_multipliers: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)
    schedule: str | None = None
    warmup_epochs: float | None = None
    monitor: str = "val_loss"
    patience: int | None = None
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best_weights: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"A stage's `name` must be a string. Received: name={self.name!r}")
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise type(error)(f"Stage {self.name!r}: {error}") from None

    def _check(self) -> None:
        if self.epochs == 0 and not isinstance(self.epochs, bool):
            raise ValueError(
                "a stage needs `epochs`, its length in epochs (at least 1). Received: epochs=0"
            )
        self._set("epochs", _checks.integer(self.epochs, "epochs", minimum=1))
        if (self.depth is None) == (self.train is None):
            raise ValueError(
                "give exactly one of `depth` (how many groups train, counted from the head) and "
                f"`train` (which). Received: depth={self.depth!r}, train={self.train!r}"
            )
        if isinstance(self.depth, str):
            _checks.choice(self.depth, "depth", ["all"])
        elif self.depth is not None:
            self._set("depth", _checks.integer(self.depth, "depth", minimum=1))
        if self.train is not None:
            self._set("train", _train_argument(self.train))
        if self.peak_lr is not None:
            self._set("peak_lr", _checks.number(self.peak_lr, "peak_lr", above=0))
        if self.lr_decay is not None:
            self._set("lr_decay", _checks.number(self.lr_decay, "lr_decay", above=0, maximum=1))
        if self.lr_multipliers is not None:
            self._check_multipliers()
        if self.schedule is not None:
            _checks.choice(self.schedule, "schedule", SCHEDULES)
        if self.warmup_epochs is not None:
            self._check_warmup()
        self._check_plateau()

    def _check_multipliers(self) -> None:
        given = self.lr_multipliers
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise TypeError(
                "`lr_multipliers` must map names or patterns of layer groups to numbers. "
                f"Received: lr_multipliers={given!r}"
            )
        if self.lr_decay is not None:
            raise ValueError(
                "give `lr_decay` or `lr_multipliers`, not both. "
                f"Received: lr_decay={self.lr_decay}, lr_multipliers={dict(given)}"
            )
        checked = {
            key: _checks.number(value, f"lr_multipliers[{key!r}]", minimum=0)
            for key, value in given.items()
        }
        self._set("lr_multipliers", checked)

    def _check_warmup(self) -> None:
        if self.schedule in (None, "constant"):
            raise ValueError(
                "`warmup_epochs` is the rise of a schedule, and this stage has none. "
                f"Received: schedule={self.schedule!r}, warmup_epochs={self.warmup_epochs}. "
                "Choose 'one_cycle', 'slanted_triangular' or 'warmup_cosine'."
            )
        warmup = _checks.number(self.warmup_epochs, "warmup_epochs", minimum=0)
        if warmup >= self.epochs:
            raise ValueError(
                "`warmup_epochs` must be shorter than the stage. "
                f"Received: warmup_epochs={warmup:g}, epochs={self.epochs}"
            )
        self._set("warmup_epochs", warmup)

    def _check_plateau(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(f"`monitor` must be a string. Received: monitor={self.monitor!r}")
        if self.patience is not None:
            self._set("patience", _checks.integer(self.patience, "patience", minimum=0))
        self._set("min_delta", abs(_checks.number(self.min_delta, "min_delta")))
        _checks.choice(self.mode, "mode", MODES)
        if not isinstance(self.restore_best_weights, bool):
            raise TypeError(
                "`restore_best_weights` must be True or False. "
                f"Received: restore_best_weights={self.restore_best_weights!r}"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def ends_on_plateau(self) -> bool:
        """Whether the stage may end before its `epochs` are over."""
        return self.patience is not None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that differ from their defaults, ready for JSON."""
        config: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "name" or value != field.default:
                if isinstance(value, Mapping):
                    value = dict(value)
                config[field.name] = list(value) if isinstance(value, tuple) else value
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stage:
        """Makes a stage from `get_config`'s result; an unknown key is an error."""
        if not isinstance(config, Mapping):
            raise TypeError(f"A stage's config must be a mapping. Received: {config!r}")
        _checks.known_keys(config, [field.name for field in dataclasses.fields(cls)], "A stage")
        if "name" not in config:
            raise ValueError(f"A stage's config needs a `name`. Received: {dict(config)!r}")
        return cls(**config)


def _train_argument(train: Any) -> str | tuple[str, ...]:
    if isinstance(train, str):
        return train if train in TRAIN_KEYWORDS else (train,)
    if not isinstance(train, Iterable):
        raise TypeError(
            "`train` must be 'all', 'bias', 'norm', or names or patterns of layer groups. "
            f"Received: train={train!r}"
        )
    patterns = tuple(train)
    if not patterns:
        raise ValueError("`train` names no layer group. Name at least one, such as 'head'.")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"`train` must hold strings. Received: train={train!r}")
        if pattern in TRAIN_KEYWORDS:
            raise ValueError(
                f"{pattern!r} stands alone: write train={pattern!r}. Received: train={train!r}"
            )
    return patterns


@dataclasses.dataclass(frozen=True)
class UnfreezingPlan:
    """A sequence of stages run inside one `model.fit`.

    While no stage has `patience`, the stage is a function of the epoch alone, so
    a run that is interrupted and resumed with `initial_epoch` lands in the right
    stage with no saved state.

    Args:
        stages: Stages in the order they run; their names differ.
        no_decay_on: What is exempt from weight decay while the plan runs: `"norm"` (scales
            and offsets of normalization layers), `"bias"`, and regular expressions matched
            on whole variable paths. It matters only where the optimizer has a
            `weight_decay`, such as `AdamW`.

    Raises:
        ValueError: If there is no stage, or two have the same name.

    Example:

    >>> from keras_transfer import Stage, UnfreezingPlan
    >>> plan = UnfreezingPlan([
    ...     Stage("probe", depth=1, epochs=2),
    ...     Stage("all", depth="all", epochs=3),
    ... ])
    >>> plan.total_epochs, plan.stage_at(1).name, plan.stage_at(2).name
    (5, 'probe', 'all')
    >>> UnfreezingPlan.from_json(plan.to_json()) == plan
    True
    """

    stages: Sequence[Stage]
    _: dataclasses.KW_ONLY
    no_decay_on: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stages, Stage):
            raise TypeError("`stages` must be a list of stages: write UnfreezingPlan([stage]).")
        if isinstance(self.stages, str) or not isinstance(self.stages, Iterable):
            raise TypeError(f"`stages` must be a list of stages. Received: stages={self.stages!r}")
        stages = tuple(self.stages)
        if not stages:
            raise ValueError("A plan needs at least one `Stage`. Received: stages=[]")
        for stage in stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"`stages` must hold `Stage` objects. Received: {stage!r}")
        names = [stage.name for stage in stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Stages must have different names. Received twice: {', '.join(map(repr, twice))}"
            )
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "no_decay_on", _patterns.no_decay_rules(self.no_decay_on))

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all stages together; the most, with plateau stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def ends_on_plateau(self) -> bool:
        """Whether any stage may end early, so that the plan's length is not known."""
        return any(stage.ends_on_plateau for stage in self.stages)

    def first_epoch(self, index: int) -> int:
        """Returns the epoch (from 0) at which stage `index` starts if none ends early."""
        return sum(stage.epochs for stage in self.stages[:index])

    def index_at(self, epoch: int) -> int:
        """Returns the index of the stage that `epoch` (counted from 0) belongs to.

        Epochs past the end belong to the last stage.
        """
        rest = _checks.integer(epoch, "epoch", minimum=0)
        for index, stage in enumerate(self.stages):
            if rest < stage.epochs:
                return index
            rest -= stage.epochs
        return len(self.stages) - 1

    def stage_at(self, epoch: int) -> Stage:
        """Returns the stage that `epoch` (counted from 0) belongs to."""
        return self.stages[self.index_at(epoch)]

    def get_config(self) -> dict[str, Any]:
        """Returns the plan as a dictionary of plain values."""
        config: dict[str, Any] = {"stages": [stage.get_config() for stage in self.stages]}
        if self.no_decay_on:
            config["no_decay_on"] = list(self.no_decay_on)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UnfreezingPlan:
        """Makes a plan from `get_config`'s result."""
        if not isinstance(config, Mapping) or not isinstance(config.get("stages"), Iterable):
            raise ValueError(f"A plan's config must hold `stages`, a list. Received: {config!r}")
        _checks.known_keys(config, [field.name for field in dataclasses.fields(cls)], "A plan")
        stages = [Stage.from_config(stage) for stage in config["stages"]]
        return cls(**{**config, "stages": stages})

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the plan as JSON, to be kept beside the model or edited by hand."""
        return json.dumps(self.get_config(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> UnfreezingPlan:
        """Makes a plan from `to_json`'s result."""
        if not isinstance(text, str):
            raise TypeError(
                "`from_json` takes JSON as a string; for a dictionary there is `from_config`. "
                f"Received: {text!r}"
            )
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The plan is not valid JSON: {error}") from error
        return cls.from_config(config)


@runtime_checkable
class CarriesPlan(Protocol):
    """What `TransferModel.fit` asks of a callback to recognise that it carries a plan.

    Attributes:
        plan: The plan it runs.
        stage_index: Index of the stage in progress, or `None` before the first.
        stage_has_ended: Whether the stage in progress ended with the last epoch.
            Distinct from `model.stop_training`, which is the user's.
        plan_has_ended: Whether that stage was the last one.
    """

    plan: UnfreezingPlan
    stage_index: int | None
    stage_has_ended: bool
    plan_has_ended: bool

    def stage_index_at(self, epoch: int) -> int:
        """Returns the index of the stage that `epoch`, which is about to begin, belongs to."""
        ...
