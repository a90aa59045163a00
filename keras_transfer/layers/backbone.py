"""`PretrainedBackbone`: a pretrained model that runs group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._functional_graph import Boundary, FunctionalGraph
from keras_transfer._layer_variables import has_variables
from keras_transfer.layer_groups import Groups, LayerGroup, LayerGroups, backbone_groups

BATCH_NORM_POLICIES = ("inference", "freeze", "train")


@keras.saving.register_keras_serializable(package="keras_transfer")
class PretrainedBackbone(keras.layers.Layer):
    """Wraps a pretrained model so that its layer groups can train one after the other.

    The wrapped model keeps its own weights and names, so a weights file does not depend on
    how it was grouped. A functional model is run layer by layer, each layer with a
    `training` flag of its own: frozen groups run as in inference; groups that train run
    with their dropout active; BatchNorm follows `batch_norm`. (One flag for the whole
    model cannot do this: `True` moves the moving statistics, `False` turns dropout off.)

    Other models (subclassed, `TFSMLayer`) get one flag as a whole: `training` is on while
    any of their groups trains. They train and freeze, but cannot be cached.

    Args:
        model: The pretrained model, built, without its classifier.
        groups: How to split it into layer groups: `"auto"`, `"blocks"`, a whole number, a
            list with the first layer of each group, a mapping of group names to first
            layers, or a callable `layer -> group name` (saved as such a mapping); see
            `keras_transfer.layer_groups.backbone_groups`.
        batch_norm: What `BatchNormalization` layers do. `"inference"`: the moving
            statistics stay as pretrained, scale and offset train with their group.
            `"freeze"`: statistics, scale and offset all stay. `"train"`: as Keras does,
            statistics move while the group trains.
        preprocess: Layer or registered function applied to the inputs first (scaling, say);
            saved and cached with the backbone. It always runs as in inference, so random
            augmentation does not belong here. A layer's weights never train: the layer that
            you pass is frozen.
        **kwargs: `name` and the other arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: What the wrapped model takes; with `start`, what is alive at that boundary:
            a tensor, or a list of it and the model's inputs that are still read behind it.
        start: Number of leading groups to skip, 0 to `len(layer_groups)`.
        training: Whether the model trains.

    Returns:
        What the wrapped model returns.

    Raises:
        TypeError: If `model` is not a Keras layer or model.
        ValueError: If `model` is not built or has no weights, if it holds a
            `BatchNormalization` inside a layer that is not functional and
            `batch_norm="inference"`, or if `preprocess` is random.

    Example:

    >>> import keras
    >>> from keras_transfer.layers import PretrainedBackbone
    >>> model = keras.applications.MobileNetV2(
    ...     weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    >>> backbone = PretrainedBackbone(model)
    >>> backbone.layer_groups.names[:2]
    ['Conv1', 'block_1_expand']

    Reference:
        - [Ioffe & Szegedy, 2015](https://arxiv.org/abs/1502.03167), BatchNorm
    """

    def __init__(
        self,
        model: keras.Model,
        groups: Groups = "auto",
        batch_norm: str = "inference",
        preprocess: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(groups, Iterable) and not isinstance(groups, str | Mapping):
            groups = list(groups)
        layer_groups = backbone_groups(model, groups)
        _checks.choice(batch_norm, "batch_norm", BATCH_NORM_POLICIES)
        if preprocess is not None and not callable(preprocess):
            raise TypeError(
                f"`preprocess` must be a layer or a function. Received: preprocess={preprocess!r}"
            )
        _check_deterministic(preprocess)
        # Inputs belong to the wrapped model, whose layers may have another precision than
        # the global policy that this layer is made under.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.model = model
        self.groups = groups
        self.batch_norm = batch_norm
        self.preprocess = preprocess
        self.supports_masking = True
        self.layer_groups: LayerGroups = layer_groups
        functional = _keras_internals.functional_of(model) is not None
        self._graph = FunctionalGraph(model) if functional else None
        self._check_batch_norm()
        self._group_of = {
            id(layer): number for number, group in enumerate(layer_groups) for layer in group.layers
        }
        self.built = True
        # Takes the flag given as an argument down to the wrapped model.
        # (Assigning the value that it has does nothing: TensorFlow passes over it.)
        if not self.trainable or self.batch_norm == "freeze":
            self._set_trainable(self.trainable)
        self._freeze_preprocess()

    @property
    def trainable(self) -> bool:
        """Whether the backbone trains; a BatchNorm under `batch_norm="freeze"` never does."""
        return bool(keras.layers.Layer.trainable.fget(self))

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._set_trainable(value)

    def _set_trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if getattr(self, "batch_norm", None) == "freeze":
            for layer in self.batch_norms:
                layer.trainable = False
        self._freeze_preprocess()

    def _freeze_preprocess(self) -> None:
        # It lies before the stem and belongs to no layer group.
        preprocess = getattr(self, "preprocess", None)
        if isinstance(preprocess, keras.layers.Layer):
            preprocess.trainable = False

    @property
    def is_functional(self) -> bool:
        """Whether the wrapped model's graph is known, so that it can start at a boundary."""
        return self._graph is not None

    @property
    def batch_norms(self) -> list[keras.layers.BatchNormalization]:
        """The `BatchNormalization` layers of the wrapped model."""
        return [
            layer
            for layer in _keras_internals.flatten_layers(self.model)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]

    @property
    def always_frozen(self) -> list[keras.Variable]:
        """Variables that no stage trains: the BatchNorms' under `batch_norm="freeze"`."""
        if self.batch_norm != "freeze":
            return []
        own = _keras_internals.own_trainable_variables
        return [variable for layer in self.batch_norms for variable in own(layer)]

    def symbolic_inputs(self) -> Any:
        """Returns symbolic tensors with the structure, shapes and types of the inputs."""
        first = self.preprocess if isinstance(self.preprocess, keras.Model) else self.model
        functional = _keras_internals.functional_of(first) or self._functional
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype), functional.input
        )

    def symbolic_outputs(self) -> Any:
        """Returns symbolic tensors with the structure, shapes and types of the outputs."""
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype), self._functional.output
        )

    @property
    def graph(self) -> FunctionalGraph:
        """The wrapped model's graph.

        Raises:
            ValueError: If the wrapped model is not functional.
        """
        if self._graph is None:
            raise ValueError(
                f"{self.model.name!r} is not a functional model, so it has no boundaries to "
                "stop at."
            )
        return self._graph

    @property
    def _functional(self) -> Any:
        assert self._graph is not None
        return self._graph.functional

    def group_trains(self, number: int) -> bool:
        """Whether any variable of the group is set to train now."""
        return any(v.trainable for v in self.layer_groups[number].variables)

    def _check_batch_norm(self) -> None:
        if self.batch_norm != "inference":
            return
        if self._graph is None:
            seen = set()
        else:
            seen = {id(node.layer) for node in self._graph.nodes if node.layer is not None}
        hidden = [layer.name for layer in self.batch_norms if id(layer) not in seen]
        if hidden:
            raise ValueError(
                f"batch_norm='inference' cannot reach {len(hidden)} BatchNormalization layers "
                f"that lie inside layers or models which are not functional "
                f"({', '.join(hidden[:3])}). Use batch_norm='freeze' (statistics, scale and "
                "offset stay) or batch_norm='train'."
            )

    def call(
        self, inputs: Any, start: int = 0, training: bool | None = None, mask: Any = None
    ) -> Any:
        start = self._check_start(start)
        if start == 0 and self.preprocess is not None:
            inputs = self._preprocess(inputs)
        if self._graph is None:
            return self._call_whole(inputs, start, training, mask)
        if start == len(self.layer_groups):
            return self._graph.pack_outputs(_as_list(inputs))
        values, first = self._enter(inputs, start, mask)
        call = self._caller(training)
        if start:
            boundary = self._boundary(start)
            self._graph.run(values, call, nodes=boundary.side_nodes)
        self._graph.run(values, call, nodes=range(first, len(self._graph.nodes)))
        return self._graph.pack_outputs([values[key] for key in self._graph.outputs])

    def features_at(
        self, inputs: Any, starts: Iterable[int], mask: Any = None
    ) -> dict[int, list[Any]]:
        """Runs the backbone once in inference mode and returns what each `start` takes.

        Args:
            inputs: What the wrapped model takes.
            starts: Values of `start` to serve, 1 to `len(layer_groups)`.
            mask: Mask of the inputs, if they carry one.

        Returns:
            For each start the tensor alive there, followed by the model's inputs that are
            still read behind it; masks ride on the tensors. At `len(layer_groups)` the
            flat outputs of the wrapped model.

        Raises:
            ValueError: If the wrapped model is not functional or `start` is out of range.
        """
        graph = self.graph
        wanted = sorted({self._check_start(start, least=1) for start in starts})
        if self.preprocess is not None:
            inputs = self._preprocess(inputs)
        values, done = self._enter(inputs, 0, mask)
        call = self._caller(False)
        features: dict[int, list[Any]] = {}
        for start in wanted:
            if start == len(self.layer_groups):
                graph.run(values, call, nodes=range(done, len(graph.nodes)))
                features[start] = [values[key] for key in graph.outputs]
                break
            boundary = self._boundary(start)
            graph.run(values, call, nodes=range(done, boundary.index))
            done = boundary.index
            side = [values[graph.inputs[i]] for i in boundary.side_inputs]
            features[start] = [values[boundary.key], *side]
        return features

    def pack_outputs(self, outputs: list[Any]) -> Any:
        """Gives the wrapped model's flat outputs the structure that calling it returns."""
        return self.graph.pack_outputs(outputs)

    def _check_start(self, start: int, least: int = 0) -> int:
        start = _checks.integer(start, "start", minimum=least)
        if start > len(self.layer_groups):
            raise ValueError(
                f"The backbone has {len(self.layer_groups)} layer groups. Received: start={start}"
            )
        return start

    def _boundary(self, start: int) -> Boundary:
        boundary = self.layer_groups[start - 1].boundary
        if boundary is None:
            raise ValueError(
                f"The backbone cannot start after the group {self.layer_groups[start - 1].name!r}: "
                "more than one tensor is alive there."
            )
        return boundary

    def _enter(self, inputs: Any, start: int, mask: Any) -> tuple[dict[Any, Any], int]:
        assert self._graph is not None
        if start == 0:
            flat = _keras_internals.standardize_inputs(self._graph.functional, inputs)
            masks = [None] * len(flat) if mask is None else keras.tree.flatten(mask)
            for tensor, its_mask in zip(flat, masks, strict=False):
                if its_mask is not None:
                    _keras_internals.set_mask(tensor, its_mask)
            return dict(zip(self._graph.inputs, flat, strict=True)), 0
        boundary = self._boundary(start)
        tensor, *side = _as_list(inputs)
        if len(side) != len(boundary.side_inputs):
            raise ValueError(
                f"start={start} takes the features and {len(boundary.side_inputs)} of the model's "
                f"inputs. Received {len(side)} beside the features."
            )
        if mask is not None:
            first_mask = mask[0] if isinstance(mask, list | tuple) else mask
            if first_mask is not None:
                _keras_internals.set_mask(tensor, first_mask)
        values = {boundary.key: tensor}
        for position, value in zip(boundary.side_inputs, side, strict=True):
            values[self._graph.inputs[position]] = value
        return values, boundary.index

    def _preprocess(self, inputs: Any) -> Any:
        if isinstance(self.preprocess, keras.layers.Layer) and _keras_internals.accepts_training(
            self.preprocess
        ):
            return self.preprocess(inputs, training=False)
        return self.preprocess(inputs)  # type: ignore[misc]

    def _call_whole(self, inputs: Any, start: int, training: bool | None, mask: Any) -> Any:
        if start == len(self.layer_groups):
            return inputs
        if start:
            raise ValueError(
                f"{self.model.name!r} is not a functional model, so it can only start at its "
                f"input. Received: start={start}"
            )
        trains = any(self.group_trains(n) for n in range(len(self.layer_groups)))
        flag = bool(training) and trains
        arguments: dict[str, Any] = {"mask": mask} if mask is not None else {}
        if _keras_internals.accepts_training(self.model):
            arguments["training"] = flag
        return _keras_internals.call_in_context(
            self, lambda: self.model(inputs, **arguments), training=flag
        )

    def _caller(self, training: bool | None) -> Callable[[Any, Any, Any], Any]:
        """Returns a function that calls an operation with the `training` flag it should have."""
        trains = [bool(training) and self.group_trains(n) for n in range(len(self.layer_groups))]

        def call(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            if not isinstance(operation, keras.layers.Layer):
                return operation(*args, **kwargs)
            flag = trains[self._group_of.get(id(operation), 0)]
            if isinstance(operation, keras.layers.BatchNormalization):
                flag = flag and self.batch_norm == "train"
            if _keras_internals.accepts_training(operation):
                kwargs = {**kwargs, "training": flag}
            return _keras_internals.call_in_context(
                self, lambda: operation(*args, **kwargs), training=flag
            )

        return call

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        # The mask of the last layer rides on the output already; none is made here.
        return None

    def get_config(self) -> dict[str, Any]:
        groups: Any = self.groups
        if callable(groups):
            groups = {group.name: _first_layer(group) for group in self.layer_groups}
        elif isinstance(groups, Mapping):
            groups = dict(groups)
        elif not isinstance(groups, str | int):
            groups = list(groups)
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "model": keras.saving.serialize_keras_object(self.model),
            "groups": groups,
            "batch_norm": self.batch_norm,
            "preprocess": (
                None
                if self.preprocess is None
                else keras.saving.serialize_keras_object(self.preprocess)
            ),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PretrainedBackbone:
        config = dict(config)
        for key in ("model", "preprocess"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _first_layer(group: LayerGroup) -> str:
    """The layer after which the group would be called: it may start one."""
    return str(next(layer.name for layer in group.layers if has_variables(layer)))


def _check_deterministic(preprocess: Any) -> None:
    if not isinstance(preprocess, keras.layers.Layer):
        return
    random = [
        layer.name
        for layer in _keras_internals.flatten_layers(preprocess)
        if _keras_internals.is_random(layer)
    ]
    if random:
        raise ValueError(
            f"`preprocess` holds layers that are random in training ({', '.join(random)}), but it "
            "always runs as in inference, so they would do nothing. Put augmentation into the "
            "data pipeline."
        )
