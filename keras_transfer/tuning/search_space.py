"""`SearchSpace`: which parts of a fine-tuning are tuned, and between which bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from keras_transfer import _checks
from keras_transfer._tables import format_table
from keras_transfer.layers.backbone import BATCH_NORM_POLICIES
from keras_transfer.lr_curve import LRCurve
from keras_transfer.plan import SCHEDULES, UnfreezingPlan
from keras_transfer.tuning import _parts, _plans

ALL = math.inf  # `depth="all"`, before the model is known


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a search tunes, for `FineTuningHyperModel` and `tune`.

    Each part is a pair `(low, high)`, which is a range with both ends; a list, which is a
    choice; a value, which is fixed; or `None`, which leaves to the model and the optimizer what
    they say. Ranges of rates, ratios and weight decay are sampled on a log scale.

    Every trial runs one plan: a stage for the head alone, then stages that unfreeze more, evenly
    spread, up to `depth`. Lengths are shares of the trial's epochs, so that short trials (of
    Hyperband, say) reach the late stages too; a trial with fewer epochs than stages
    leaves out the first ones. Parts that mean something only together with a value of another
    are in KerasTuner's conditional scopes: the second stage's ratio, where there is one.

    Args:
        epochs: Epochs of a trial, where neither `search(epochs=...)` nor the tuner says it.
        head_lr: Learning rate of the head in the first stage: its `peak_lr`.
        lr_decay: Each layer group's rate is the next group's times this, in (0, 1].
        lr_spread: Instead of `lr_decay`: how many times the stem's rate the head's is, at
            least 1, whatever the number of groups.
        stage_lr_ratio: Peak rate of each later stage as a multiple of the one before.
        depth: How many layer groups the last stage trains, counted from the head; `"all"` stands
            for their number.
        num_stages: Number of stages. No more than `depth` of them run.
        stage_share: Share of the epochs that are left which each stage but the last takes, in
            (0, 1). `None` makes all stages equally long.
        schedule: Shape of the rate within each stage; see `keras_transfer.Stage`.
        warmup_fraction: Share of a stage's epochs in which the rate rises, in [0, 1); for
            schedules that rise.
        weight_decay: Of the optimizer; plans exempt norms and biases from it.
        head_dropout: Rate of the head's dropout layers, of which it needs at least one.
        batch_norm: The backbone's BatchNorm policy; see `keras_transfer.layers.PretrainedBackbone`.

    Raises:
        TypeError: If a part has another type.
        ValueError: If no part is tuned, a range is upside down or out of bounds, or two
            parts contradict each other.

    Example:

    >>> from keras_transfer.tuning import SearchSpace
    >>> SearchSpace(head_lr=(1e-3, 1e-1), lr_decay=[0.3, 1.0]).describe()
    part            values             only where
    --------------  -----------------  ---------------
    head_lr         0.001 to 0.1, log
    lr_decay        0.3 | 1
    stage_lr_ratio  0.02 to 1, log     num_stages >= 2
    depth           always all
    num_stages      always 2
    stage_share     0.2 to 0.8         num_stages >= 2
    10 epochs a trial. Off: lr_spread, schedule, warmup_fraction, weight_decay, head_dropout, ...

    Reference:
        - [Kumar et al., 2022](https://arxiv.org/abs/2202.10054), LP-FT: the default's two stages
    """

    epochs: int = 10
    head_lr: Any = (1e-4, 1e-1)
    lr_decay: Any = (0.2, 1.0)
    lr_spread: Any = None
    stage_lr_ratio: Any = (0.02, 1.0)
    depth: Any = "all"
    num_stages: Any = 2
    stage_share: Any = (0.2, 0.8)
    schedule: Any = None
    warmup_fraction: Any = None
    weight_decay: Any = None
    head_dropout: Any = None
    batch_norm: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", _checks.integer(self.epochs, "epochs", minimum=1))
        parts = {name: self._parse(name) for name in PARTS}
        object.__setattr__(self, "_parts", parts)
        self._check_parts_together()
        self._check_not_empty()

    def _parse(self, name: str) -> _parts.Part:
        check, sampling = PARTS[name]
        return _parts.parse(getattr(self, name), name, check, sampling=sampling)

    def _check_parts_together(self) -> None:
        is_off = {name: isinstance(part, _parts.Off) for name, part in self.parts.items()}
        if not is_off["lr_decay"] and not is_off["lr_spread"]:
            if self.lr_decay != type(self).lr_decay:
                raise ValueError(
                    "`lr_decay` and `lr_spread` say the same thing in two ways. Received: "
                    f"lr_decay={self.lr_decay!r}, lr_spread={self.lr_spread!r}. Give one of them."
                )
            # The default gives way.
            object.__setattr__(self, "lr_decay", None)
            self.parts["lr_decay"] = _parts.Off()
        if is_off["head_lr"] and not is_off["stage_lr_ratio"]:
            if self.stage_lr_ratio != type(self).stage_lr_ratio:
                raise ValueError(
                    "`stage_lr_ratio` is a multiple of the head's rate, and `head_lr=None` leaves "
                    "that to the optimizer. Give `head_lr`, or write stage_lr_ratio=None."
                )
            object.__setattr__(self, "stage_lr_ratio", None)
            self.parts["stage_lr_ratio"] = _parts.Off()
        if not is_off["warmup_fraction"]:
            schedules = _parts.values_of([self.parts["schedule"]])
            if not any(schedule != "constant" for schedule in schedules):
                raise ValueError(
                    "`warmup_fraction` is the rise of a schedule. Received: "
                    f"schedule={self.schedule!r}. Choose 'one_cycle', 'slanted_triangular' or "
                    "'warmup_cosine', or write warmup_fraction=None."
                )
        if is_off["num_stages"]:
            raise ValueError("A plan has stages: `num_stages` cannot be None. Write num_stages=1.")

    def _check_not_empty(self) -> None:
        tuned = {name for name, part in self.parts.items() if part.is_tuned}
        idle = tuned & self._without_effect()
        if tuned - idle:
            return
        if not idle:
            raise ValueError(
                "The search space is empty: no part is a range or a list. Write for instance "
                "SearchSpace(head_lr=(1e-4, 1e-1))."
            )
        raise ValueError(
            f"The search space is empty: {', '.join(sorted(idle))} would be tuned, and make no "
            f"difference with depth={self.depth!r} and num_stages={self.num_stages!r}. Tune "
            "something else, such as head_lr=(1e-4, 1e-1), or allow more stages."
        )

    def _without_effect(self) -> set[str]:
        """Names of the parts that no trial makes use of."""
        found: set[str] = set()
        deepest = _parts.largest(self.parts["depth"], default=ALL)
        if deepest < 2:
            found |= {"num_stages", "lr_decay", "lr_spread"}
        if min(deepest, _parts.largest(self.parts["num_stages"], default=1)) < 2:
            found |= {"stage_lr_ratio", "stage_share"}
        return found

    @property
    def parts(self) -> dict[str, _parts.Part]:
        """The parts by name, as they were read."""
        found: dict[str, _parts.Part] = vars(self)["_parts"]
        return found

    @classmethod
    def from_lr_curve(
        cls,
        curve: LRCurve,
        *,
        width: float = 5.0,
        rule: str | Callable[[Any, Any], float] = "valley",
        **parts: Any,
    ) -> SearchSpace:
        """Makes a space whose rates lie around what an LR range test suggests.

        Args:
            curve: What `keras_transfer.find_lr` returned for the head alone: for the first
                stage of a plan, or for a frozen model.
            width: The range of `head_lr` goes from the suggestion divided by this to the
                suggestion times this. Above 1.
            rule: How the suggestion is read off the curve; see `LRCurve.suggest`.
            **parts: Other arguments of `SearchSpace`.

        Raises:
            ValueError: If the curve suggests nothing; the message says what to change.

        Example:

        >>> import numpy as np
        >>> from keras_transfer.lr_curve import LRCurve
        >>> from keras_transfer.tuning import SearchSpace
        >>> rates = np.geomspace(1e-5, 1, 100)
        >>> curve = LRCurve(rates, 2.0 - rates / (rates + 1e-2) + (rates / 0.3) ** 4)
        >>> low, high = SearchSpace.from_lr_curve(curve).head_lr
        >>> bool(np.isclose((low * high) ** 0.5, curve.suggestion))
        True
        """
        if not isinstance(curve, LRCurve):
            raise TypeError(
                f"`curve` must be an `LRCurve`, as `find_lr` returns. Received: curve={curve!r}"
            )
        width = _checks.number(width, "width", above=1)
        if "head_lr" in parts:
            raise ValueError("`head_lr` follows from the curve. Leave it out, or set `width`.")
        rate = curve.suggest(rule)
        return cls(head_lr=(rate / width, rate * width), **parts)

    def describe(self, print_fn: Callable[[str], Any] = print) -> None:
        """Prints the parts that are not off, their values, and where they matter.

        Args:
            print_fn: Takes the text, as in `keras.Model.summary`.
        """
        rows = [("part", "values", "only where")]
        off = []
        for name, part in self.parts.items():
            if isinstance(part, _parts.Off):
                off.append(name)
            else:
                rows.append((name, str(part).replace("inf", "all"), self._only_where(name)))
        text = format_table(rows) + f"\n{self.epochs} epochs a trial."
        print_fn(text + (f" Off: {', '.join(off)}." if off else ""))

    def _only_where(self, name: str) -> str:
        if name in ("stage_lr_ratio", "stage_share"):
            return "num_stages >= 2"
        if name == "num_stages" and self.parts["depth"].is_tuned:
            return "depth >= 2"
        if name == "warmup_fraction" and self.parts["schedule"].is_tuned:
            return "schedule rises"
        return ""

    def get_config(self) -> dict[str, Any]:
        """Returns the space as plain data, ready for JSON."""
        parts = {name: _parts.config_of(part) for name, part in self.parts.items()}
        return {"epochs": self.epochs, **parts}

    # --- A trial's values -------------------------------------------------------------------

    def sample(self, hp: Any, num_groups: int) -> dict[str, Any]:
        """Returns a trial's values, and registers the hyperparameters that are not known yet.

        Args:
            hp: A `keras_tuner.HyperParameters`.
            num_groups: Number of the model's layer groups, the head included.

        Returns:
            The values by name. Of each later stage there is `stage_<k>_lr_ratio`, and of
            each stage but the last `stage_<k>_share`.

        Raises:
            ValueError: If `depth` goes beyond the model.
        """
        return _plans.sample(self.parts, hp, num_groups)

    def plan(
        self, values: Mapping[str, Any], num_groups: int, epochs: int | None = None
    ) -> UnfreezingPlan:
        """Returns the plan of a trial.

        Args:
            values: What `sample` returned.
            num_groups: Number of the model's layer groups, the head included.
            epochs: Epochs of the trial; by default those of the space.

        Example:

        >>> from keras_transfer.tuning import SearchSpace
        >>> values = {"head_lr": 0.01, "num_stages": 2, "depth": 6,
        ...           "stage_2_lr_ratio": 0.1, "stage_1_share": 0.25}
        >>> plan = SearchSpace().plan(values, num_groups=6, epochs=8)
        >>> [(stage.name, stage.epochs, stage.peak_lr) for stage in plan.stages]
        [('probe', 2, 0.01), ('all', 6, 0.001)]
        """
        epochs = self.epochs if epochs is None else _checks.integer(epochs, "epochs", minimum=1)
        return _plans.plan_of(values, num_groups, epochs)


def _number(**limits: float) -> _parts.Check:
    return lambda value, name: _checks.number(value, name, **limits)


def _one_of(options: tuple[str, ...]) -> _parts.Check:
    return lambda value, name: _checks.choice(value, name, options)


def _depth(value: Any, name: str) -> Any:
    if isinstance(value, str):
        _checks.choice(value, name, ["all"])
        return ALL
    return _checks.integer(value, name, minimum=1)


PARTS: dict[str, tuple[_parts.Check, str | None]] = {
    "head_lr": (_number(above=0), "log"),
    "lr_decay": (_number(above=0, maximum=1), "linear"),
    "lr_spread": (_number(minimum=1), "log"),
    "stage_lr_ratio": (_number(above=0), "log"),
    "depth": (_depth, "linear"),
    "num_stages": (lambda value, name: _checks.integer(value, name, minimum=1), "linear"),
    "stage_share": (_number(above=0, below=1), "linear"),
    "schedule": (_one_of(SCHEDULES), None),
    "warmup_fraction": (_number(minimum=0, below=1), "linear"),
    "weight_decay": (_number(minimum=0), "log"),
    "head_dropout": (_number(minimum=0, below=1), "linear"),
    "batch_norm": (_one_of(tuple(BATCH_NORM_POLICIES)), None),
}
