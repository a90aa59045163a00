"""A name for every weight of a model: the names of the layers around it, and its own."""

from __future__ import annotations

import dataclasses

import keras

from keras_transfer import _keras_internals


@dataclasses.dataclass(frozen=True, eq=False)
class NamedWeight:
    """A model's weight and where it lies.

    Args:
        path: Names of the layers around it, outermost first and without the model's
            own, and the weight's name: `"backbone/conv1/kernel"`.
        layer_path: The same without the weight's name: `"backbone/conv1"`.
        index: Position among the layer's own weights, counted from 0. Keras's weights
            files number weights so and do not name them.
        layer: The layer that owns it.
        variable: The weight itself.
    """

    path: str
    layer_path: str
    index: int
    layer: keras.layers.Layer
    variable: keras.Variable

    @property
    def numbered_path(self) -> str:
        """The path with the index in place of the name: `"backbone/conv1/0"`."""
        return join(self.layer_path, str(self.index))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(int(size) for size in self.variable.shape)

    @property
    def parameters(self) -> int:
        """Number of values in the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def named_weights(model: keras.Model) -> list[NamedWeight]:
    """Returns every weight of a built model with its path, each once, in layer order.

    `variable.path` does not serve: Keras leaves the name of a functional sub-model out
    of it, so two of them would share paths.

    Args:
        model: A built Keras model or layer.

    Returns:
        Trainable and non-trainable weights. Metrics, optimizer slots and the state of
        random generators are none.

    Raises:
        TypeError: If `model` is not a Keras model or layer.

    Example:

    >>> import keras
    >>> from keras_transfer.weights import named_weights
    >>> body = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")], name="body")
    >>> model = keras.Sequential([keras.Input((4,)), body, keras.layers.Dense(2, name="head")])
    >>> [weight.path for weight in named_weights(model)]
    ['body/a/kernel', 'body/a/bias', 'head/kernel', 'head/bias']
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a Keras model or layer. Received: {model!r}")
    found: list[NamedWeight] = []
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer, layer_path: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        for index, variable in enumerate(_keras_internals.saved_variables(layer)):
            if id(variable) not in seen:
                seen.add(id(variable))
                path = join(layer_path, variable.name)
                found.append(NamedWeight(path, layer_path, index, layer, variable))
        for child in _children(layer):
            visit(child, join(layer_path, child.name))

    visit(model, "")
    return found


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    # A functional model's `layers` stand in the order they run; attached order is the rest's.
    ordered = list(layer.layers) if isinstance(layer, keras.Model) else []
    known = {id(child) for child in ordered}
    attached = _keras_internals.child_layers(layer)
    return [*ordered, *(child for child in attached if id(child) not in known)]


def join(*parts: str) -> str:
    """Joins the parts of a path that are not empty."""
    return "/".join(part for part in parts if part)
