"""Published ways to fine-tune, as plans. Each returns an `UnfreezingPlan` to print and edit.

All of them exempt norms and biases from weight decay, as the recipes of pretrained image and
text models do.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras_transfer import _checks
from keras_transfer.plan import Stage, UnfreezingPlan

NO_DECAY_ON = ("norm", "bias")


def linear_probe(
    epochs: int = 10, peak_lr: float = 1e-3, no_decay_on: Sequence[str] = NO_DECAY_ON
) -> UnfreezingPlan:
    """Linear probing: trains the head on frozen features, and nothing else.

    Use it for few labels, as a baseline for everything else, or where the target data may
    shift later: features that stay as pretrained are the robust ones. With frozen features
    an epoch is cheap, the more so when they are cached.

    It does not promise the best accuracy on data like the training data: full fine-tuning
    gained 2 points there in the paper, and lost 7 under shift.

    Args:
        epochs: Length, in epochs.
        peak_lr: Learning rate of the head.
        no_decay_on: What is exempt from weight decay; see `UnfreezingPlan`.

    Returns:
        A plan with the stage `probe`.

    Example:

    >>> from keras_transfer import recipes
    >>> recipes.linear_probe(epochs=3).stages[0].depth
    1

    Reference:
        - [Kumar et al., 2022](https://arxiv.org/abs/2202.10054)
    """
    return UnfreezingPlan(
        [Stage("probe", depth=1, epochs=epochs, peak_lr=peak_lr)], no_decay_on=no_decay_on
    )


def lp_ft(
    probe_epochs: int = 5,
    fine_tune_epochs: int = 5,
    probe_lr: float = 1e-3,
    fine_tune_lr: float = 1e-4,
    lr_decay: float | None = None,
    schedule: str | None = None,
    no_decay_on: Sequence[str] = NO_DECAY_ON,
) -> UnfreezingPlan:
    """LP-FT: trains the head first, then everything from there. The recommended default.

    A head that starts at random sends large, useless gradients into the backbone; one that
    was trained first does not. In the paper it gained 1 point over full fine-tuning on data
    like the training data and 10 under shift, and moved the features 20 times less.

    It does not promise to beat linear probing: where the pretrained features are bad, or the
    target data never shifts, plain fine-tuning is as good.

    Args:
        probe_epochs: Epochs of the head alone.
        fine_tune_epochs: Epochs of everything.
        probe_lr: Learning rate of the head alone.
        fine_tune_lr: Learning rate of everything; a tenth of `probe_lr` or less.
        lr_decay: Each layer group's rate is the next group's times this, in (0, 1].
        schedule: Shape of the rate while everything trains; see `Stage`.
        no_decay_on: What is exempt from weight decay; see `UnfreezingPlan`.

    Returns:
        A plan with the stages `probe` and `all`.

    Example:

    >>> from keras_transfer import recipes
    >>> [stage.name for stage in recipes.lp_ft().stages]
    ['probe', 'all']

    Reference:
        - [Kumar et al., 2022](https://arxiv.org/abs/2202.10054)
    """
    return UnfreezingPlan(
        [
            Stage("probe", depth=1, epochs=probe_epochs, peak_lr=probe_lr),
            Stage(
                "all",
                depth="all",
                epochs=fine_tune_epochs,
                peak_lr=fine_tune_lr,
                lr_decay=lr_decay,
                schedule=schedule,
            ),
        ],
        no_decay_on=no_decay_on,
    )


def gradual_unfreezing(
    num_stages: int = 3,
    epochs_per_stage: int = 2,
    last_stage_epochs: int = 5,
    peak_lr: float = 1e-3,
    lr_decay: float | None = 0.385,
    schedule: str | None = None,
    no_decay_on: Sequence[str] = NO_DECAY_ON,
) -> UnfreezingPlan:
    """Gradual unfreezing: one more layer group at each stage, from the head down.

    Use it together with discriminative rates (`lr_decay`): in ULMFiT's ablation the rate
    scheme is the larger half of the gain.

    It does not promise much alone: unfreezing gradually gained half a point on IMDb and
    nothing on the other sets, and surgical fine-tuning's authors rank it below full
    fine-tuning. `lp_ft` is the cheaper default.

    Args:
        num_stages: Number of stages: the head alone, then one more group each, and all
            groups in the last. At least 2.
        epochs_per_stage: Length of each stage but the last, in epochs.
        last_stage_epochs: Length of the last stage, in epochs.
        peak_lr: Learning rate of the head at the start of each stage.
        lr_decay: Each layer group's rate is the next group's times this, in (0, 1]; the
            paper divides by 2.6.
        schedule: Shape of the rate in the last stage; the paper's is
            `"slanted_triangular"`.
        no_decay_on: What is exempt from weight decay; see `UnfreezingPlan`.

    Returns:
        A plan with the stages `top_1` to `top_<n>` and `all`.

    Example:

    >>> from keras_transfer import recipes
    >>> [(stage.name, stage.depth) for stage in recipes.gradual_unfreezing(3).stages]
    [('top_1', 1), ('top_2', 2), ('all', 'all')]

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.3
    """
    num_stages = _checks.integer(num_stages, "num_stages", minimum=2)
    stages = [
        Stage(
            f"top_{depth}", depth=depth, epochs=epochs_per_stage, peak_lr=peak_lr, lr_decay=lr_decay
        )
        for depth in range(1, num_stages)
    ]
    last = Stage(
        "all",
        depth="all",
        epochs=last_stage_epochs,
        peak_lr=peak_lr,
        lr_decay=lr_decay,
        schedule=schedule,
    )
    return UnfreezingPlan([*stages, last], no_decay_on=no_decay_on)


def full_fine_tuning(
    epochs: int = 10,
    peak_lr: float = 1e-4,
    lr_decay: float | None = None,
    schedule: str | None = None,
    no_decay_on: Sequence[str] = NO_DECAY_ON,
) -> UnfreezingPlan:
    """Full fine-tuning: everything trains from the first step.

    Use it with many labels, or as the baseline that the other recipes have to beat.

    It does not promise robustness: the random head distorts good features at the start,
    which cost 7 points under shift against linear probing in the paper.

    Args:
        epochs: Length, in epochs.
        peak_lr: Learning rate of the head.
        lr_decay: Each layer group's rate is the next group's times this, in (0, 1].
        schedule: Shape of the rate; see `Stage`.
        no_decay_on: What is exempt from weight decay; see `UnfreezingPlan`.

    Returns:
        A plan with the stage `all`.

    Example:

    >>> from keras_transfer import recipes
    >>> recipes.full_fine_tuning(epochs=3).total_epochs
    3

    Reference:
        - [Kumar et al., 2022](https://arxiv.org/abs/2202.10054)
    """
    stage = Stage(
        "all", depth="all", epochs=epochs, peak_lr=peak_lr, lr_decay=lr_decay, schedule=schedule
    )
    return UnfreezingPlan([stage], no_decay_on=no_decay_on)
