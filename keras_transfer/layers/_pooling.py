"""Pooling of features of any rank, aware of masks: what a head does before its first weight."""

from __future__ import annotations

from typing import Any

from keras import ops

POOLINGS = ("auto", "avg", "max", "avg_max", "last", "first", "flatten")
DATA_FORMATS = ("channels_first", "channels_last")


def resolve_pooling(pooling: str | None, rank: int) -> str | None:
    """Returns the pooling that features of this rank get, or raises where none fits.

    Args:
        pooling: One of `POOLINGS`, or `None`.
        rank: Rank of the features, with the batch.

    Returns:
        `pooling`, with `"auto"` replaced by what it means at this rank.

    Raises:
        ValueError: If the features have no axis that `pooling` could remove.
    """
    if rank < 2:
        raise ValueError(
            "A head needs features of shape (batch, ..., channels). "
            f"Received features of rank {rank}."
        )
    if pooling == "auto":
        return None if rank == 2 else "avg"
    if pooling in ("last", "first") and rank != 3:
        raise ValueError(
            f"`pooling={pooling!r}` takes one step of a sequence (batch, steps, channels), but "
            f"the features have rank {rank}. Use pooling='auto', or a backbone that returns "
            "one vector for each step."
        )
    if pooling in ("avg", "max", "avg_max") and rank == 2:
        raise ValueError(
            f"`pooling={pooling!r}` needs features with spatial or sequence axes, but they are "
            "pooled already: (batch, channels). Use pooling=None or pooling='auto', or a "
            "backbone without pooling of its own."
        )
    return pooling


def pooled_shape(
    shape: tuple[int | None, ...], pooling: str | None, *, channels_first: bool
) -> tuple[int | None, ...]:
    """Returns the shape that `pool` gives features of `shape`; `pooling` is resolved."""
    channels = shape[1] if channels_first else shape[-1]
    if pooling is None:
        return shape
    if pooling == "flatten":
        size = 1
        for length in shape[1:]:
            if length is None:
                raise ValueError(
                    "`pooling='flatten'` needs features whose size is known. "
                    f"Received features of shape {shape}. Give the backbone an `input_shape` "
                    "without None, or choose another pooling."
                )
            size *= length
        return (shape[0], size)
    if pooling == "avg_max":
        return (shape[0], None if channels is None else 2 * channels)
    return (shape[0], channels)


def pool(features: Any, mask: Any, pooling: str | None, *, channels_first: bool) -> Any:
    """Pools features; `pooling` is resolved, `mask` covers the axes after the batch or is `None`.

    An example whose steps are all masked pools to zeros.
    """
    if pooling is None:
        return features
    if pooling == "flatten":
        shape = pooled_shape(tuple(features.shape), pooling, channels_first=channels_first)
        return ops.reshape(features, (-1, shape[1]))
    if pooling in ("last", "first"):
        return _one_step(features, mask, last=pooling == "last", channels_first=channels_first)
    rank = len(features.shape)
    axes = tuple(range(2, rank)) if channels_first else tuple(range(1, rank - 1))
    if mask is not None:
        mask = _broadcastable(mask, rank, channels_first=channels_first)
    if pooling == "avg":
        return _mean(features, mask, axes)
    if pooling == "max":
        return _max(features, mask, axes)
    return ops.concatenate([_mean(features, mask, axes), _max(features, mask, axes)], axis=-1)


def _broadcastable(mask: Any, rank: int, *, channels_first: bool) -> Any:
    mask = ops.cast(mask, "bool")
    while len(mask.shape) < rank - 1:
        mask = ops.expand_dims(mask, -1)
    return ops.expand_dims(mask, 1 if channels_first else -1)


def _mean(features: Any, mask: Any, axes: tuple[int, ...]) -> Any:
    if mask is None:
        return ops.mean(features, axis=axes)
    # In float16 a sum over a long sequence overflows at 65,504.
    kept = ops.broadcast_to(ops.cast(mask, "float32"), ops.shape(features))
    # `where`, not a product: what stands in a masked place may be inf or NaN.
    values = ops.where(mask, ops.cast(features, "float32"), 0.0)
    total = ops.sum(values, axis=axes)
    return ops.cast(total / ops.maximum(ops.sum(kept, axis=axes), 1.0), features.dtype)


def _max(features: Any, mask: Any, axes: tuple[int, ...]) -> Any:
    if mask is None:
        return ops.max(features, axis=axes)
    lowest = ops.cast(float("-inf"), features.dtype)
    highest = ops.max(ops.where(mask, features, lowest), axis=axes)
    some = ops.any(ops.broadcast_to(mask, ops.shape(features)), axis=axes)
    return ops.where(some, highest, ops.zeros_like(highest))


def _one_step(features: Any, mask: Any, *, last: bool, channels_first: bool) -> Any:
    if channels_first:
        features = ops.swapaxes(features, 1, 2)
    if mask is None:
        return features[:, -1] if last else features[:, 0]
    mask = ops.cast(mask, "int32")
    # The position is searched, not counted: padding may stand on either side.
    if last:
        steps = ops.shape(mask)[1]
        index = steps - 1 - ops.argmax(ops.flip(mask, axis=1), axis=1)
    else:
        index = ops.argmax(mask, axis=1)
    index = ops.reshape(ops.cast(index, "int32"), (-1, 1, 1))
    step = ops.squeeze(ops.take_along_axis(features, index, axis=1), axis=1)
    return ops.where(ops.any(mask > 0, axis=1, keepdims=True), step, ops.zeros_like(step))
