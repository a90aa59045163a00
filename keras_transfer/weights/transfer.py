"""Carry weights from one model or file to another model, and say what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks
from keras_transfer.weights import shape_changes
from keras_transfer.weights.matching import Match, match_by_mapping, match_by_path
from keras_transfer.weights.naming import NamedWeight, named_weights
from keras_transfer.weights.report import TransferredWeight, TransferReport
from keras_transfer.weights.sources import Source, open_source

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A line of the report, the value to assign (`None`: the weight stays), and what would help."""

    weight: NamedWeight
    line: TransferredWeight
    value: Array | None = None
    remedy: str = ""


def transfer_weights(
    source: Any,
    target: keras.Model,
    mapping: Mapping[str, str] | None = None,
    on_mismatch: str = "error",
    *,
    first_conv: str | None = None,
    class_names: tuple[Sequence[str], Sequence[str]] | None = None,
    source_layout: str = "keras",
) -> TransferReport:
    r"""Copies weights from a model or a file to a model, by name and shape.

    Weights are matched by path (layer names, then the weight's own name). A backbone
    that stands alone on one side and inside a larger model on the other is found too,
    where that is unambiguous. Everything is checked first: if this raises, the target
    is as it was. `fit` keeps the optimizer's slots of the old weights: compile anew.

    Args:
        source: A built Keras model, or the path of a `.keras`, `.weights.h5` or
            `.safetensors` file. From a file only arrays are read: no class that it
            names is imported, and pickles are refused.
        target: A built Keras model. Its architecture and flags do not change.
        mapping: What to copy where, as `{target: source}`, instead of matching by
            path. A target is a weight's path, a layer's path (all weights inside;
            `""` as source means the top), or a regular expression matched whole
            (`re.fullmatch`) against weight paths, whose groups the source may repeat
            (`"\1"`). Weights that no key names stay as they are. Keras's weights
            files number weights in place of names; either is understood.
        on_mismatch: `"error"`: raise if any weight has no counterpart or another
            shape. `"skip"`: leave those weights, such as a new head, as they are.
        first_conv: What to do where the first convolution has another number of
            input channels: `"sum"` (old channels summed and shared evenly among the
            new; right for a grey image that used to be copied to RGB), `"mean"`
            (every new channel gets the old ones' mean), or `None` (a mismatch).
        class_names: The source's class names and the target's, in output order. The
            last layer then keeps its outputs for the classes that both have, and the
            target's own values for the others.
        source_layout: `"torch"` where a `.safetensors` file holds a PyTorch state
            dict: kernels are brought to Keras's axis order. Recurrent layers are
            refused, since their gates and biases differ. `"keras"` otherwise.

    Returns:
        A `TransferReport`: what was copied, what not and why, and the share of the
        target's parameters that now come from the source.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the target is not built, a file is damaged or of a kind that is
            not read, a name matches nothing, shapes disagree (with `"error"`),
            nothing at all would be copied, or the source holds NaN or what is infinite in
            the target's dtype.
        FileNotFoundError: If there is no such file.
        ImportError: If a `.safetensors` file is given without the `safetensors` library.

    Example:

    >>> import keras
    >>> from keras_transfer.weights import transfer_weights
    >>> def classifier(classes):
    ...     inputs = keras.Input((4,))
    ...     features = keras.layers.Dense(3, name="features")(inputs)
    ...     return keras.Model(inputs, keras.layers.Dense(classes, name="head")(features))
    >>> report = transfer_weights(classifier(10), classifier(2), on_mismatch="skip")
    >>> print(report.table())
    status   weight       from         parameters  why
    skipped  head/kernel  head/kernel      0 of 6  shape (3, 10) in the source, (3, 2) in the target
    skipped  head/bias    head/bias        0 of 2  shape (10,) in the source, (2,) in the target
    >>> round(report.copied_share, 3)
    0.652
    """
    _checks.choice(on_mismatch, "on_mismatch", ["error", "skip"])
    _checks.choice(source_layout, "source_layout", shape_changes.LAYOUTS)
    if first_conv is not None:
        _checks.choice(first_conv, "first_conv", shape_changes.FIRST_CONV)
    names = None if class_names is None else shape_changes.checked_class_names(class_names)
    weights = _weights_of_built(target)
    opened = open_source(source)
    if not opened.arrays:
        raise ValueError(f"`source` holds no weights. Received: {opened.label}. Build it first.")
    if mapping is None:
        matches = match_by_path(weights, opened)
    else:
        matches = match_by_mapping(weights, opened, mapping)
    changes = _Changes(weights, matches, opened, first_conv, names, source_layout)
    entries = [changes.entry(match) for match in matches]
    _refuse_mismatches(entries, opened, on_mismatch)
    for entry in entries:
        if entry.value is not None:
            entry.weight.variable.assign(entry.value)
    used = {match.source_path for match in matches}
    return TransferReport(
        source=opened.label,
        target=target.name,
        weights=tuple(entry.line for entry in entries),
        unused=tuple(path for path in opened.arrays if path not in used),
    )


def _weights_of_built(target: Any) -> list[NamedWeight]:
    if not isinstance(target, keras.layers.Layer):
        raise TypeError(f"`target` must be a Keras model. Received: target={target!r}")
    weights = named_weights(target)
    if not target.built or not weights:
        raise ValueError(
            f"`target` has no weights yet. Received: {target.name!r}. Build it first: give it an "
            "`Input`, or call it on one batch."
        )
    return weights


class _Changes:
    """Turns each match into the value to assign, with the shape changes that were asked for."""

    def __init__(
        self,
        weights: Sequence[NamedWeight],
        matches: Sequence[Match],
        source: Source,
        first_conv: str | None,
        class_names: tuple[list[str], list[str]] | None,
        layout: str,
    ) -> None:
        self.source = source
        self.layout = layout
        self.first_conv = first_conv
        self.class_names = class_names
        self.first_kernel = shape_changes.first_convolution_kernel(weights)
        if first_conv is not None and self.first_kernel is None:
            raise ValueError(
                "`first_conv` is for a target with a `Conv1D`, `Conv2D` or `Conv3D`, and there is "
                "none. Leave it out."
            )
        self.last_layer = weights[-1].layer
        self.classifier = None
        if class_names is not None:
            self.classifier = self._find_classifier(matches, class_names)

    def entry(self, match: Match) -> _Entry:
        weight, path = match.weight, match.source_path
        if path is None:
            status = "skipped" if match.wanted else "kept"
            return self._stays(weight, None, status, match.reason)
        array = self._array(weight, path)
        before = array.shape
        reason = match.reason
        if (
            weight is self.first_kernel
            and self.first_conv is not None
            and shape_changes.differ_in_channels_only(before, weight.shape)
        ):
            array = shape_changes.change_channels(array, weight.shape[-2], self.first_conv)
            reason = f"{before[-2]} to {weight.shape[-2]} channels by {self.first_conv}"
            return self._goes(weight, path, "partial", reason, array, weight.parameters)
        if self._is_classifier(weight, array):
            return self._classes(weight, path, array)
        if before != weight.shape:
            reason = f"shape {before} in the source, {weight.shape} in the target"
            return self._stays(weight, path, "skipped", reason, self._remedy(weight, before))
        if (array.dtype.kind in "iub") != (not keras.backend.is_float_dtype(weight.variable.dtype)):
            reason = f"{array.dtype} in the source, {weight.variable.dtype} in the target"
            return self._stays(weight, path, "skipped", reason)
        return self._goes(weight, path, "copied", reason, array, weight.parameters)

    def _array(self, weight: NamedWeight, path: str) -> Array:
        array = self.source.arrays[path]
        if array.dtype.kind in "OSUMmc":
            raise ValueError(
                f"The source's weight {path!r} must hold real numbers. "
                f"Received: dtype {array.dtype} in {self.source.label}"
            )
        # NumPy knows no `isfinite` of bfloat16, which is of no kind of NumPy's.
        values = array if array.dtype.kind in "iubf" else array.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                f"The source's weight {path!r} holds NaN or infinite values, so the target would "
                f"compute nothing else. Received: {self.source.label}. Take an earlier checkpoint."
            )
        self._check_range(weight, path, array)
        return shape_changes.from_torch(array, weight) if self.layout == "torch" else array

    def _check_range(self, weight: NamedWeight, path: str, array: Array) -> None:
        dtype = str(weight.variable.dtype)
        if array.dtype.kind in "iub" or dtype == "float64" or not array.size:
            return
        if dtype != "float16" and array.dtype != np.float64:
            return  # float32 and bfloat16 reach as far as each other
        largest = float(np.abs(array.astype(np.float64)).max())
        if largest > float(np.finfo(np.float16 if dtype == "float16" else np.float32).max):
            wider = "float32: dtype policy 'mixed_float16'" if dtype == "float16" else "float64"
            raise ValueError(
                f"The source's weight {path!r} holds {largest:g}, which is infinite in the "
                f"target's {dtype}. Received: {self.source.label}. Keep the target's variables in "
                f"{wider}."
            )

    def _find_classifier(
        self, matches: Sequence[Match], class_names: tuple[list[str], list[str]]
    ) -> keras.layers.Layer:
        sizes = tuple(map(len, class_names))
        for match in reversed(matches):
            if match.source_path is None:
                continue
            array = self._array(match.weight, match.source_path)
            if (array.shape[-1:], match.weight.shape[-1:]) == ((sizes[0],), (sizes[1],)):
                return match.weight.layer
        raise ValueError(
            f"`class_names` has {sizes[0]} names for the source and {sizes[1]} for the target, but "
            "no layer has that many outputs in both. Check the lists; where the classifiers have "
            "different names, say which belongs to which in `mapping`."
        )

    def _is_classifier(self, weight: NamedWeight, array: Array) -> bool:
        if self.class_names is None or weight.layer is not self.classifier:
            return False
        wanted = tuple((len(names),) for names in self.class_names)
        same_inputs = array.shape[:-1] == weight.shape[:-1]
        return same_inputs and (array.shape[-1:], weight.shape[-1:]) == wanted

    def _classes(self, weight: NamedWeight, path: str, array: Array) -> _Entry:
        assert self.class_names is not None
        own = weight.variable.numpy()
        value, shared = shape_changes.copy_classes(array, own, *self.class_names)
        total = len(self.class_names[1])
        reason = f"{shared} of {total} classes by name"
        return self._goes(
            weight, path, "partial", reason, value, weight.parameters // total * shared
        )

    def _goes(
        self, weight: NamedWeight, path: str, status: str, reason: str, value: Array, copied: int
    ) -> _Entry:
        line = TransferredWeight(weight.path, path, status, reason, weight.parameters, copied)
        return _Entry(weight, line, value)

    def _stays(
        self, weight: NamedWeight, path: str | None, status: str, reason: str, remedy: str = ""
    ) -> _Entry:
        line = TransferredWeight(weight.path, path, status, reason, weight.parameters, 0)
        return _Entry(weight, line, remedy=remedy)

    def _remedy(self, weight: NamedWeight, shape: tuple[int, ...]) -> str:
        """Returns the change of shape with a standard meaning that was not asked for, if any."""
        if weight is self.first_kernel and shape_changes.differ_in_channels_only(
            shape, weight.shape
        ):
            return (
                " For another number of input channels, `first_conv='sum'` or `first_conv='mean'` "
                "makes the first convolution fit."
            )
        is_last = weight.layer is self.last_layer and len(shape) > 0
        if is_last and self.class_names is None and shape[:-1] == weight.shape[:-1]:
            return (
                " For other classes, `class_names=([the source's], [the target's])` copies those "
                "that both have."
            )
        return ""


def _refuse_mismatches(entries: Sequence[_Entry], source: Source, on_mismatch: str) -> None:
    skipped = [entry for entry in entries if entry.line.status == "skipped"]
    nothing = all(entry.value is None for entry in entries)
    if not nothing and (on_mismatch == "skip" or not skipped):
        return
    known = list(source.arrays)
    lines = []
    for entry in skipped[:6]:
        near = ""
        if entry.line.source_path is None:
            near = _checks.did_you_mean(source.key_of(entry.weight), known)
        lines.append(f"  {entry.line.path}: {entry.line.reason}.{near}")
    if len(skipped) > 6:
        lines.append(f"  and {len(skipped) - 6} more")
    if nothing:
        what = f"Nothing in {source.label} fits the target, so nothing was copied."
    else:
        what = (
            f"{len(skipped)} of the target's {len(entries)} weights have no counterpart in "
            f"{source.label}; nothing was copied."
        )
    remedy = "Say which belongs to which with `mapping={'target name': 'source name'}`"
    if not nothing:
        remedy += ", or leave these weights as they are with `on_mismatch='skip'`"
    by_name = "".join(dict.fromkeys(entry.remedy for entry in skipped))
    same = _same_architecture(entries, source)
    raise ValueError("\n".join([what, *lines, f"{remedy}.{by_name}{same}"]))


def _same_architecture(entries: Sequence[_Entry], source: Source) -> str:
    shapes = [array.shape for array in source.arrays.values()]
    if source.numbered or shapes != [entry.weight.shape for entry in entries]:
        return ""
    # Two calls of one building function give layers different automatic names.
    return (
        " Both have the same shapes in the same order: for the same architecture under other "
        "layer names, `target.set_weights(source.get_weights())` copies everything."
    )
