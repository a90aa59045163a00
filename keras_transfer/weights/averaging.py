"""Averages of weights: WiSE-FT between two models, soups over several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks
from keras_transfer.weights.naming import named_weights

Array = NDArray[Any]
Weights = list[Array]


def interpolate_weights(pretrained: Any, fine_tuned: Any, alpha: float) -> Weights:
    """Weights on the line from a pretrained to a fine-tuned model (WiSE-FT).

    `(1 - alpha) * pretrained + alpha * fine_tuned`, weight by weight. Part of the way
    often keeps most of the fine-tuned accuracy and more of the pretrained model's
    robustness to other data. Both need a head that makes sense for the task: take the
    linear-probed model as `pretrained`, since a new head is random. BatchNorm
    statistics are interpolated too, which only approximates the statistics of the
    interpolated network.

    Args:
        pretrained: A Keras model, or a list of arrays as `model.get_weights()` gives.
        fine_tuned: The same architecture, or list, after fine-tuning.
        alpha: How far to go, in [0, 1]: 0 is `pretrained`, 1 is `fine_tuned`, both
            exactly.

    Returns:
        Arrays for `model.set_weights(...)`, in the dtype of `fine_tuned`. Whole-number
        weights are those of `fine_tuned`, unless `alpha` is 0.

    Raises:
        ValueError: If the two differ in architecture, or `alpha` is out of range.
        TypeError: If one is neither a model nor a list of arrays.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.weights import interpolate_weights
    >>> interpolate_weights([np.zeros(2)], [np.array([1.0, 4.0])], alpha=0.25)
    [array([0.25, 1.  ])]

    Reference:
        - [Wortsman et al., 2022](https://arxiv.org/abs/2109.01903)
    """
    alpha = _checks.number(alpha, "alpha", minimum=0, maximum=1)
    start, end = _same_architecture([pretrained, fine_tuned], ["pretrained", "fine_tuned"])
    if alpha == 0:  # counters and seeds too
        return [a.astype(b.dtype) for a, b in zip(start, end, strict=True)]
    return [_mix([a, b], [1 - alpha, alpha], like=b) for a, b in zip(start, end, strict=True)]


def average_weights(
    members: Sequence[Any],
    *,
    evaluate: Callable[[Weights], float] | None = None,
    mode: str = "max",
) -> Weights:
    """Mean of the weights of several fine-tuned models: a model soup.

    The members must start from the same pretrained weights, or their mean is no good
    model. Without `evaluate` all members count the same (uniform soup). With it the
    soup is greedy, see `greedy_soup`.

    Args:
        members: Keras models of the same architecture, or lists of arrays as
            `model.get_weights()` gives.
        evaluate: Takes a list of weights and returns the quantity to judge by, on
            held-out data.
        mode: `"max"` where a higher value of `evaluate` is better, `"min"` where a
            lower one is.

    Returns:
        Arrays for `model.set_weights(...)`, in the dtype of the first member.
        Whole-number weights are those of the first member.

    Raises:
        ValueError: If there are no members, they differ in architecture, or, without
            `evaluate`, one holds NaN.
        TypeError: If a member is neither a model nor a list of arrays.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.weights import average_weights
    >>> average_weights([[np.array([1.0, 2.0])], [np.array([3.0, 6.0])]])
    [array([2., 4.])]

    Reference:
        - [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482)
    """
    if evaluate is not None:
        return greedy_soup(members, evaluate, mode=mode).weights
    lists = _same_architecture(members)
    for number, arrays in enumerate(lists):
        for index, array in enumerate(arrays):
            if array.dtype.kind not in "iub" and not np.isfinite(array.astype(np.float64)).all():
                raise ValueError(
                    f"Weight {index}{_called(members[number], index)} of `members[{number}]` holds "
                    "NaN or infinite values, and so would the mean: its training diverged. Leave "
                    "it out, or give `evaluate`, by which such members are."
                )
    return _mean(lists)


@dataclasses.dataclass(frozen=True, eq=False)
class Soup:
    """Result of `greedy_soup`.

    Args:
        weights: Arrays for `model.set_weights(...)`.
        members: Indices of the members that are in the soup, best first.
        score: What `evaluate` gave for the soup.
        member_scores: What it gave for each member alone, in the order they were given.
    """

    weights: Weights
    members: tuple[int, ...]
    score: float
    member_scores: tuple[float, ...]


def greedy_soup(
    members: Sequence[Any], evaluate: Callable[[Weights], float], *, mode: str = "max"
) -> Soup:
    """Averages the members that do not make the average worse on held-out data.

    Members are tried from best to worst; one stays if the mean with it is judged at
    least as good as without. `evaluate` runs at most twice per member. The soup is
    never judged worse than the best member.

    Args:
        members: Keras models of the same architecture, or lists of arrays as
            `model.get_weights()` gives; after a tuner's sweep, for instance.
        evaluate: Takes a list of weights and returns the quantity to judge by, on
            held-out data that is not the test set.
        mode: `"max"` where a higher value is better, `"min"` where a lower one is.

    Returns:
        A `Soup`: the weights, which members are in it, and the scores.

    Raises:
        ValueError: If there are no members, they differ in architecture, or
            `evaluate` returns NaN for each.
        TypeError: If `evaluate` is not callable, or a member is of the wrong type.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.weights import greedy_soup
    >>> members = [[np.array([1.0])], [np.array([3.5])], [np.array([9.0])]]
    >>> soup = greedy_soup(members, lambda weights: -abs(float(weights[0][0]) - 2))
    >>> soup.members, soup.weights
    ((0, 1), [array([2.25])])

    Reference:
        - [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482), the greedy recipe
    """
    _checks.choice(mode, "mode", ["max", "min"])
    if not callable(evaluate):
        raise TypeError(f"`evaluate` must be callable. Received: evaluate={evaluate!r}")
    lists = _same_architecture(members)
    sign = 1.0 if mode == "max" else -1.0
    scores = [float(evaluate(weights)) for weights in lists]
    # A run that diverged (NaN) is never in the soup.
    usable = [index for index, score in enumerate(scores) if np.isfinite(score)]
    if not usable:
        raise ValueError(
            f"`evaluate` must return a finite number for at least one member. Received: {scores}"
        )
    order = sorted(usable, key=lambda index: -sign * scores[index])
    chosen, weights, best = [order[0]], lists[order[0]], scores[order[0]]
    for index in order[1:]:
        tried = _mean([lists[each] for each in [*chosen, index]])
        score = float(evaluate(tried))
        if sign * score >= sign * best:
            chosen, weights, best = [*chosen, index], tried, score
    return Soup(weights, tuple(chosen), best, tuple(scores))


def _mean(lists: Sequence[Weights]) -> Weights:
    share = [1 / len(lists)] * len(lists)
    return [_mix(arrays, share, like=arrays[0]) for arrays in zip(*lists, strict=True)]


def _mix(arrays: Sequence[Array], shares: Sequence[float], *, like: Array) -> Array:
    if like.dtype.kind in "iub":  # Counters and seeds have no mean.
        return like.copy()
    # A share of 0 is left out, not multiplied: 0 * inf is NaN, and the ends stay exact.
    mixed = sum(
        share * array.astype(np.float64)
        for array, share in zip(arrays, shares, strict=True)
        if share
    )
    return np.asarray(mixed).astype(like.dtype)


def _same_architecture(members: Sequence[Any], names: Sequence[str] | None = None) -> list[Weights]:
    if isinstance(members, keras.layers.Layer) or not isinstance(members, Sequence):
        raise TypeError(
            "`members` must be a list of models or of lists of arrays. "
            f"Received: members={members!r}"
        )
    if not members:
        raise ValueError("`members` must hold at least one model. Received: members=[]")
    names = names or [f"members[{index}]" for index in range(len(members))]
    lists = [_arrays(member, name) for member, name in zip(members, names, strict=True)]
    first = lists[0]
    for name, arrays in zip(names[1:], lists[1:], strict=True):
        if len(arrays) != len(first):
            raise ValueError(
                "Weights are paired by position, so all must be of one architecture. Received: "
                f"{len(first)} weights in `{names[0]}`, {len(arrays)} in `{name}`"
            )
        for index, (one, other) in enumerate(zip(first, arrays, strict=True)):
            if one.shape != other.shape:
                raise ValueError(
                    "Weights are paired by position, so all must be of one architecture. "
                    f"Received: weight {index}{_called(members[0], index)} of shape {one.shape} "
                    f"in `{names[0]}`, {other.shape} in `{name}`"
                )
    return lists


def _called(member: Any, index: int) -> str:
    if not isinstance(member, keras.layers.Layer):
        return ""
    variable = member.weights[index]
    paths = [weight.path for weight in named_weights(member) if weight.variable is variable]
    return f" ({paths[0]})" if paths else ""


def _arrays(member: Any, name: str) -> Weights:
    if isinstance(member, keras.layers.Layer):
        return [np.asarray(array) for array in member.get_weights()]
    if isinstance(member, list | tuple):
        return [np.asarray(array) for array in member]
    raise TypeError(
        f"`{name}` must be a Keras model or a list of arrays. Received: {type(member).__name__}. "
        "Load a file first with `keras.saving.load_model`."
    )
