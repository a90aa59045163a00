"""New heads for pretrained backbones: pooling, dropout, hidden layers, outputs in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
from keras import ops

from keras_transfer import _checks
from keras_transfer.layers import _pooling


class Head(keras.layers.Layer):
    """Pools a backbone's features and maps them to outputs; the base of the package's heads.

    `call` is `classify(pool(features))`. The two are public and apart, because pooling
    has no weights: pooled features can be kept and the rest trained on them alone.

    Use `ClassificationHead` or `RegressionHead`; derive from this class for a head of
    your own that keeps the split.

    Args:
        num_units: Width of the output layer. At least 1.
        pooling: See `ClassificationHead`.
        dropout: Share of values dropped before each dense layer, in [0, 1).
        hidden_units: Width of a hidden layer, or the widths of several.
        hidden_activation: Activation of the hidden layers.
        activation: Activation of the outputs; `None` for linear.
        data_format: See `ClassificationHead`.
        features_key: See `ClassificationHead`.
        **kwargs: `name`, `dtype`, `trainable`, as for every Keras layer.
    """

    def __init__(
        self,
        num_units: int,
        *,
        pooling: str | None = "auto",
        dropout: float = 0.0,
        hidden_units: int | Iterable[int] | None = None,
        hidden_activation: str | Callable[..., Any] = "relu",
        activation: str | Callable[..., Any] | None = None,
        data_format: str | None = None,
        features_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if pooling is not None:
            _checks.choice(pooling, "pooling", _pooling.POOLINGS)
        if data_format is not None:
            _checks.choice(data_format, "data_format", _pooling.DATA_FORMATS)
        self.pooling = pooling
        self.dropout = _checks.number(dropout, "dropout", minimum=0, below=1)
        widths = _widths(hidden_units)
        self.hidden_units = widths[0] if isinstance(hidden_units, int) else widths or None
        self.hidden_activation = keras.activations.get(hidden_activation)
        self.activation = keras.activations.get(activation)
        self.data_format = data_format
        self.features_key = features_key
        self.features_rank: int | None = None
        # Names are fixed, because saved state is keyed by variable path and Keras's own
        # names (`dense_7`) count the layers of the process.
        self._hidden_layers = []
        for number, units in enumerate(widths, start=1):
            self._hidden_layers += self._dropout_layer(f"hidden_{number}")
            self._hidden_layers.append(
                keras.layers.Dense(
                    units,
                    activation=self.hidden_activation,
                    dtype=self.dtype_policy,
                    name=f"hidden_{number}",
                )
            )
        self._hidden_layers += self._dropout_layer("output")
        self._output_layer = keras.layers.Dense(
            num_units,
            activation=self.activation,
            dtype=_at_least_float32(self.compute_dtype),
            name="output",
        )

    def _dropout_layer(self, before: str) -> list[keras.layers.Layer]:
        if not self.dropout:
            return []
        layer = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name=f"{before}_dropout"
        )
        return [layer]

    def build(self, features_shape: Any) -> None:
        shape = self._select_shape(features_shape)
        self.features_rank = len(shape)
        pooling = _pooling.resolve_pooling(self.pooling, len(shape))
        if self.data_format is None and len(shape) > 2:
            # Fixed here, so that a saved head does not depend on the loader's settings.
            # Sequences are (batch, steps, channels) whatever the setting for images is.
            is_image = len(shape) > 3
            image_format = keras.config.image_data_format()
            self.data_format = image_format if is_image else "channels_last"
        channels_first = self._channels_first(len(shape))
        if pooling is None and channels_first:
            raise ValueError(
                "`pooling=None` gives one output for each position and needs channels last. "
                f"Received features of shape {shape} with data_format='channels_first'. Permute "
                "them first, or choose a pooling."
            )
        shape = _pooling.pooled_shape(shape, pooling, channels_first=channels_first)
        if shape[-1] is None:
            raise ValueError(
                "A head needs to know how many channels the features have. "
                f"Received features of shape {features_shape}."
            )
        for layer in [*self._hidden_layers, self._output_layer]:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(
        self,
        features: Any,
        mask: Any = None,
        training: bool | None = None,
        pooled: bool = False,
    ) -> Any:
        # Features that were pooled before come from a cache.
        vectors = features if pooled else self.pool(features, mask)
        return self.classify(vectors, training=training)

    def pool(self, features: Any, mask: Any = None) -> Any:
        """Pools features, without weights and without randomness.

        Args:
            features: What the backbone returns.
            mask: Boolean tensor, true where a step counts; its shape is that of the
                features without the channels, or its beginning. Masks that ride on
                tensors are seen by `call` alone: pass them here.

        Returns:
            The pooled features, in the head's compute dtype.
        """
        features = self._select(features)
        if isinstance(mask, Mapping):
            mask = mask.get(self.features_key)
        # `call` gets its inputs cast; `pool` alone must give the same numbers.
        features = ops.cast(features, self.compute_dtype)
        rank = len(features.shape)
        pooling = _pooling.resolve_pooling(self.pooling, rank)
        return _pooling.pool(features, mask, pooling, channels_first=self._channels_first(rank))

    def classify(self, pooled: Any, training: bool | None = None) -> Any:
        """Maps pooled features to outputs: all that has weights or randomness.

        Args:
            pooled: What `pool` returns.
            training: Whether dropout is on.

        Returns:
            The outputs, at least float32.
        """
        for layer in self._hidden_layers:
            if isinstance(layer, keras.layers.Dropout):
                pooled = layer(pooled, training=training)
            else:
                pooled = layer(pooled)
        return self._output_layer(pooled)

    def compute_mask(self, features: Any, mask: Any = None) -> Any:
        features = self._select(features)
        if isinstance(mask, Mapping):
            mask = mask.get(self.features_key)
        pooling = _pooling.resolve_pooling(self.pooling, len(features.shape))
        return mask if pooling is None and len(features.shape) > 2 else None

    def compute_output_shape(self, features_shape: Any) -> tuple[int | None, ...]:
        shape = self._select_shape(features_shape)
        pooling = _pooling.resolve_pooling(self.pooling, len(shape))
        channels_first = self._channels_first(len(shape))
        pooled = _pooling.pooled_shape(shape, pooling, channels_first=channels_first)
        return (*pooled[:-1], self._output_layer.units)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.update(
            pooling=self.pooling,
            dropout=self.dropout,
            hidden_units=self.hidden_units,
            hidden_activation=keras.activations.serialize(self.hidden_activation),
            activation=keras.activations.serialize(self.activation),
            data_format=self.data_format,
            features_key=self.features_key,
        )
        return config

    def _channels_first(self, rank: int) -> bool:
        if rank < 3:
            return False
        if self.data_format is None:
            return bool(rank > 3 and keras.config.image_data_format() == "channels_first")
        return self.data_format == "channels_first"

    def _select(self, features: Any) -> Any:
        if isinstance(features, Mapping):
            self._check_key(features)
            return features[self.features_key]
        if isinstance(features, list | tuple):
            raise ValueError(
                f"A head takes one feature tensor. Received {len(features)} of them. Concatenate "
                "them, or let the backbone return one."
            )
        return features

    def _select_shape(self, shape: Any) -> tuple[int | None, ...]:
        if isinstance(shape, Mapping):
            self._check_key(shape)
            shape = shape[self.features_key]
        elif shape and isinstance(shape[0], list | tuple):
            raise ValueError(
                f"A head takes one feature tensor. Received {len(shape)} of them, of shapes "
                f"{shape}. Concatenate them, or let the backbone return one."
            )
        return tuple(shape)

    def _check_key(self, features: Mapping[str, Any]) -> None:
        if self.features_key in features:
            return
        names = ", ".join(map(repr, features))
        if self.features_key is None:
            raise ValueError(
                "The backbone returns a dictionary. Say which of its features the head takes: "
                f"`features_key=` one of {names}."
            )
        raise ValueError(
            f"The backbone returns no features {self.features_key!r}."
            f"{_checks.did_you_mean(self.features_key, features)} It returns {names}."
        )


@keras.saving.register_keras_serializable(package="keras_transfer")
class ClassificationHead(Head):
    """Scores for classes from a backbone's features.

    Put it on a backbone that returns feature maps, sequences or vectors. The default
    `activation="softmax"` returns probabilities, so that the losses given by name
    (`"sparse_categorical_crossentropy"`) are right as they are.

    Args:
        num_classes: How many classes. At least 1; one yes-or-no output needs
            `activation="sigmoid"`.
        pooling: How features become one vector for each example. `"auto"` takes the
            mean over the positions of images and sequences and leaves vectors as they
            are. `"avg"`, `"max"`, and `"avg_max"` (both, side by side: twice the
            channels) reduce all positions; `"last"` and `"first"` take one step of a
            sequence; `"flatten"` keeps every position; `None` pools nothing and gives
            scores at each position. All but `"flatten"` and `None` leave masked steps
            out: `"first"` and `"last"` are the first and last step that is not masked.
        dropout: Share of values dropped before each dense layer while training, in
            [0, 1).
        hidden_units: Width of a hidden layer between pooling and outputs, or a
            sequence of widths. `None` for none: a linear classifier.
        hidden_activation: Activation of the hidden layers.
        activation: Activation of the outputs: `"softmax"` for one of several classes,
            `"sigmoid"` for labels that do not exclude each other, `None` for logits
            (then the loss needs `from_logits=True`).
        data_format: Where the channels are: `"channels_last"` or `"channels_first"`.
            `None` takes Keras's setting for images and volumes, and
            `(batch, steps, channels)` for sequences.
        features_key: Which features to take from a backbone that returns a dictionary
            (KerasHub's text backbones: `"sequence_output"` or `"pooled_output"`).
        **kwargs: `name`, `dtype`, `trainable`, as for every Keras layer.

    Call arguments:
        features: `(batch, height, width, channels)`, `(batch, steps, channels)`,
            `(batch, channels)`, or any other rank with the channels last (or first).
        mask: Boolean, true where a step counts. Taken from `features` where a layer
            below computed one.
        training: Whether dropout is on.

    Returns:
        `(batch, num_classes)`, float32 also under mixed precision; with
        `pooling=None`, `(batch, ..., num_classes)`.

    Raises:
        ValueError: If an argument is out of range, if softmax would run over one
            class, or (when built) if `pooling` does not fit the features.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.layers import ClassificationHead
    >>> head = ClassificationHead(num_classes=3, dropout=0.2)
    >>> head(np.ones((2, 4, 4, 8), "float32")).shape, head.pool(np.ones((2, 4, 4, 8))).shape
    (TensorShape([2, 3]), TensorShape([2, 8]))

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), concat pooling
    """

    def __init__(
        self,
        num_classes: int,
        pooling: str | None = "auto",
        dropout: float = 0.0,
        hidden_units: int | Iterable[int] | None = None,
        activation: str | Callable[..., Any] | None = "softmax",
        *,
        hidden_activation: str | Callable[..., Any] = "relu",
        data_format: str | None = None,
        features_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        classes = _checks.integer(num_classes, "num_classes", minimum=1)
        if classes == 1 and keras.activations.get(activation) is keras.activations.softmax:
            raise ValueError(
                "Softmax over one class is always 1. Received: num_classes=1, "
                "activation='softmax'. Use activation='sigmoid' for a yes-or-no output (with "
                "loss='binary_crossentropy'), or num_classes=2."
            )
        super().__init__(
            classes,
            pooling=pooling,
            dropout=dropout,
            hidden_units=hidden_units,
            hidden_activation=hidden_activation,
            activation=activation,
            data_format=data_format,
            features_key=features_key,
            **kwargs,
        )
        self.num_classes = classes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="keras_transfer")
class RegressionHead(Head):
    """Numbers from a backbone's features.

    Args:
        num_outputs: How many numbers for each example. At least 1.
        pooling: As in `ClassificationHead`.
        dropout: Share of values dropped before each dense layer while training, in
            [0, 1).
        hidden_units: Width of a hidden layer, or a sequence of widths; `None` for none.
        activation: Activation of the outputs; `None` for linear, `"softplus"` for
            numbers above 0.
        hidden_activation: Activation of the hidden layers.
        data_format: As in `ClassificationHead`.
        features_key: As in `ClassificationHead`.
        **kwargs: `name`, `dtype`, `trainable`, as for every Keras layer.

    Call arguments:
        features: `(batch, height, width, channels)`, `(batch, steps, channels)`,
            `(batch, channels)`, or any other rank with the channels last (or first).
        mask: Boolean, true where a step counts.
        training: Whether dropout is on.

    Returns:
        `(batch, num_outputs)`, float32 also under mixed precision; with
        `pooling=None`, `(batch, ..., num_outputs)`.

    Raises:
        ValueError: If an argument is out of range, or (when built) if `pooling` does
            not fit the features.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.layers import RegressionHead
    >>> head = RegressionHead(num_outputs=2, pooling="last", hidden_units=16)
    >>> head(np.ones((5, 7, 8), "float32")).shape
    TensorShape([5, 2])
    """

    def __init__(
        self,
        num_outputs: int = 1,
        pooling: str | None = "auto",
        dropout: float = 0.0,
        hidden_units: int | Iterable[int] | None = None,
        activation: str | Callable[..., Any] | None = None,
        *,
        hidden_activation: str | Callable[..., Any] = "relu",
        data_format: str | None = None,
        features_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        num_units = _checks.integer(num_outputs, "num_outputs", minimum=1)
        super().__init__(
            num_units,
            pooling=pooling,
            dropout=dropout,
            hidden_units=hidden_units,
            hidden_activation=hidden_activation,
            activation=activation,
            data_format=data_format,
            features_key=features_key,
            **kwargs,
        )
        self.num_outputs = num_units

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_outputs": self.num_outputs}


def _widths(hidden_units: Any) -> tuple[int, ...]:
    if hidden_units is None:
        return ()
    if isinstance(hidden_units, str | bytes):
        raise TypeError(
            "`hidden_units` must be a width or a sequence of widths. "
            f"Received: hidden_units={hidden_units!r}"
        )
    if not isinstance(hidden_units, Iterable):
        return (_checks.integer(hidden_units, "hidden_units", minimum=1),)
    return tuple(_checks.integer(units, "hidden_units", minimum=1) for units in hidden_units)


def _at_least_float32(dtype: str) -> str:
    # Softmax and losses in float16 lose the small probabilities.
    return "float32" if dtype in ("float16", "bfloat16") else dtype
