"""`TransferModel`: a pretrained backbone with a new head."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras

from keras_transfer import (
    _fit_checks,
    _keras_internals,
    _one_training,
    _staged_fit,
    _strategy_checks,
    _trainability,
    _workers,
    distribute,
)
from keras_transfer._classifier_left_on import last_layer, looks_like_classifier
from keras_transfer._label_checks import check_labels
from keras_transfer._weights_file import load_wholly
from keras_transfer.features import FeatureCache, _entry
from keras_transfer.layer_groups import Groups, LayerGroup, LayerGroups, name_of_head
from keras_transfer.layers import PretrainedBackbone
from keras_transfer.layers._head_split import split_head
from keras_transfer.layers._loss_check import check_loss_matches_activation, last_operation
from keras_transfer.optimizers import discriminative


@keras.saving.register_keras_serializable(package="keras_transfer")
class TransferModel(keras.Model):
    """A pretrained backbone and a new head as one Keras model.

    It is compiled, trained, evaluated, saved and loaded as any other Keras model. `compile`
    gives its optimizer per-group rates and step counters; `fit` takes its `epochs` from the
    plan that a `GradualUnfreezing` callback carries, and checks data, model and callbacks
    against each other before any work starts.

    Args:
        backbone: The pretrained model without its classifier, or a
            `keras_transfer.layers.PretrainedBackbone` that says more about it (BatchNorm
            policy, preprocessing).
        head: Layer or model on the backbone's features, such as
            `keras_transfer.layers.ClassificationHead`.
        groups: How to split the backbone into layer groups; see
            `keras_transfer.layer_groups.backbone_groups`. A `PretrainedBackbone` has its own.
        **kwargs: `name` and the other arguments of `keras.Model`.

    Call arguments:
        inputs: What the backbone takes.
        training: Whether the model trains. Groups that are frozen run as in inference all
            the same.

    Returns:
        What the head returns.

    Raises:
        TypeError: If backbone or head is not a Keras layer or model.
        ValueError: If the backbone is not built or has no weights.

    Example:

    >>> import keras
    >>> import keras_transfer as ktf
    >>> backbone = keras.applications.MobileNetV2(
    ...     weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    >>> model = ktf.TransferModel(backbone, head=ktf.layers.ClassificationHead(num_classes=10))
    >>> model.freeze()
    >>> len(model.layer_groups), len(model.trainable_variables)
    (6, 2)
    """

    def __init__(
        self,
        backbone: keras.Model | PretrainedBackbone,
        head: keras.layers.Layer,
        groups: Groups = "auto",
        **kwargs: Any,
    ) -> None:
        if not isinstance(head, keras.layers.Layer):
            raise TypeError(
                f"`head` must be a Keras layer or model. Received: head={head!r} of type "
                f"{type(head).__name__}"
            )
        if isinstance(backbone, PretrainedBackbone):
            if groups != "auto":
                raise ValueError(
                    "A `PretrainedBackbone` has its own layer groups. Pass `groups` to it "
                    "instead of to `TransferModel`."
                )
        else:
            backbone = PretrainedBackbone(backbone, groups=groups, name="backbone")
        # Inputs belong to the backbone's own precision: under a global `mixed_float16` a cast
        # here would round images before the wrapped model sees them.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head
        self._warn_of_classifier()
        self._shapes: tuple[Any, Any] | None = None
        if backbone.is_functional:
            inputs = backbone.symbolic_inputs()
            # With everything built, Keras does not trace the whole call once more to build it.
            self._call_head(backbone.symbolic_outputs(), None)
            self._shapes = (_shapes_of(inputs), _shapes_of(self(inputs)))
            # As a functional model: a subclass may still give itself metrics and layers.
            _keras_internals.unlock_state(self)
        # The train function that a `fit` without a plan made last, and what trained then.
        self._traced: tuple[Any, frozenset[int]] | None = None
        self._saved_flags: list[bool] | None = None

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if _entry.is_entry(inputs):
            return self._call_from_cache(inputs, training)
        return self._call_head(self.backbone(inputs, training=training, mask=mask), training)

    def _call_from_cache(self, inputs: Mapping[str, Any], training: bool | None) -> Any:
        n_groups = len(self.backbone.layer_groups)
        point, tensors = _entry.unpack(inputs, n_groups)
        if point.pooled:
            split = split_head(self.head)
            assert split is not None
            return split.classify(tensors[0], training=self._head_trains(training))
        if point.start == n_groups:
            return self._call_head(self.backbone.pack_outputs(tensors), training)
        features = self.backbone(tensors, start=point.start, training=training)
        return self._call_head(features, training)

    def _call_head(self, features: Any, training: bool | None) -> Any:
        if not _keras_internals.accepts_training(self.head):
            return self.head(features)
        return self.head(features, training=self._head_trains(training))

    def _head_trains(self, training: bool | None) -> bool:
        # A frozen head (a surgical stage) runs as in inference, as a frozen group does.
        trains = any(v.trainable for v in self.head.weights) if self.head.built else True
        return bool(training) and trains

    @property
    def input_shape(self) -> Any:
        """Shape of the inputs, with the batch; nested as they are, on a functional backbone."""
        return self._known_shapes("input_shape")[0]

    @property
    def output_shape(self) -> Any:
        """Shape of the outputs, with the batch; nested as they are, on a functional backbone."""
        return self._known_shapes("output_shape")[1]

    def _known_shapes(self, name: str) -> tuple[Any, Any]:
        if self._shapes is None:
            raise AttributeError(
                f"{self.name!r} has no `{name}`: its backbone {self.backbone.model.name!r} is not "
                "a functional model, so its shapes follow from the data alone."
            )
        return self._shapes

    # --- Layer groups -----------------------------------------------------------------

    @property
    def layer_groups(self) -> LayerGroups:
        """The layer groups, stem first, the head last."""
        name = name_of_head(self.head.name, self.backbone.layer_groups.names)
        shape = None if self._shapes is None else self._shapes[1]
        head = LayerGroup(name, (self.head,), shape if isinstance(shape, tuple) else None)
        return LayerGroups([*self.backbone.layer_groups, head], has_head=True)

    def freeze(self) -> None:
        """Freezes the backbone; the head trains."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Lets every layer group train."""
        self.freeze_to(0)

    def freeze_to(self, n: int) -> None:
        """Freezes `layer_groups[:n]` and lets the rest train.

        Takes effect at the next step: between two calls of `fit` or `train_on_batch`, and when
        a callback of yours calls it within `fit`. The optimizer's state is kept.

        Args:
            n: Number of groups to freeze; negative counts from the head.

        Raises:
            ValueError: If `n` is out of range, or nothing would train.
        """
        groups = self.layer_groups
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"`n` must be a whole number. Received: n={n!r}")
        if not -len(groups) <= n < len(groups):
            raise ValueError(
                f"The model has {len(groups)} layer groups, of which at least one must train. "
                f"Received: n={n}. Use {-len(groups)} to {len(groups) - 1}."
            )
        kept = {id(v) for v in self.backbone.always_frozen}
        train = [v for group in groups[n:] for v in group.variables if id(v) not in kept]
        self._train_only(train)

    def _train_only(self, variables: list[keras.Variable]) -> None:
        frozen = self.backbone.batch_norms if self.backbone.batch_norm == "freeze" else []
        still = _trainability.still_layers(variables, self.layer_groups, frozen)
        if not (self.compiled and self.built):
            _trainability.set_flags(self, variables, still)
            return
        optimizer = _trainability.adopt_optimizer(self, self.layer_groups)
        if self.train_function is None and not optimizer.built:
            # Slots are made at the first step, for what trains then.
            _trainability.set_flags(self, variables, still)
            return
        _trainability.apply(self, variables, still, retrace=True)
        self._traced = None

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Prints Keras's summary, followed by the table of layer groups."""
        super().summary(*args, **kwargs)
        print_fn = kwargs.get("print_fn") or print
        print_fn(f"\nLayer groups:\n{self.layer_groups}")

    # --- Training ---------------------------------------------------------------------

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Compiles as `keras.Model.compile` does, with per-group rates in the optimizer.

        The optimizer given here is taken over by a new object: read and set `model.optimizer`
        (its learning rate, say), not the object that you passed.

        Raises:
            ValueError: If the head's activation and the loss's `from_logits` disagree, or
                the optimizer cannot have per-group rates, or was made outside the scope of
                the model's strategy.
        """
        ending = last_operation(self.head)
        if isinstance(ending, keras.layers.Softmax):
            check_loss_matches_activation(loss, ending)
        elif hasattr(ending, "activation"):
            check_loss_matches_activation(loss, ending.activation)
        _strategy_checks.check_optimizer(self, optimizer)
        optimizer = discriminative(optimizer)
        super().compile(optimizer, loss, *args, **kwargs)
        if self.built:
            _trainability.adopt_optimizer(self, self.layer_groups)
        distribute.prepare(self)
        self._traced = None

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
        *,
        cache_features: bool | str | FeatureCache = "auto",
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, under a plan if a callback carries one.

        Before any work starts it checks the callbacks against each other and, where the head
        has one output, that the labels fit it (arrays wholly, a data set by its first batch
        only): class ids, one-hot and yes-or-no labels under the cross-entropies and, with one
        of the package's heads, the width of targets under losses such as mean squared error.

        While the first layer groups are frozen, their output for an example stays the same: it
        is computed in one pass over the data and kept (`cache_features`). Callbacks see one
        training, and may still call the model on raw inputs.

        Arrays that are shuffled come in an order that follows from a seed (drawn from Python's
        `random`, so `keras.utils.set_random_seed` sets it) and the epoch, cached or not.

        Args:
            x: Inputs; arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`, or a generator.
            y: Targets, where `x` does not hold them.
            batch_size: Examples per step.
            epochs: Where training ends, counted from 0. By default the plan's length, or 1
                without a plan.
            verbose: As in `keras.Model.fit`.
            callbacks: Callbacks; at most one carries a plan.
            validation_split: As in `keras.Model.fit`.
            validation_data: As in `keras.Model.fit`.
            shuffle: As in `keras.Model.fit`.
            class_weight: As in `keras.Model.fit`.
            sample_weight: As in `keras.Model.fit`.
            initial_epoch: As in `keras.Model.fit`.
            steps_per_epoch: As in `keras.Model.fit`.
            validation_steps: As in `keras.Model.fit`.
            validation_batch_size: As in `keras.Model.fit`.
            validation_freq: As in `keras.Model.fit`.
            cache_features: `"auto"`: stages of at least two epochs read kept features where
                the result is provably the same, and one printed line says what was decided.
                `True`: insists, also for data that may yield other values each time (a
                `PyDataset`, Python code in the pipeline), and raises where it cannot.
                `False`: never. A `keras_transfer.features.FeatureCache`: as `True`, kept
                where and how it says.

        Returns:
            The history, with the columns `stage`, `trainable_parameters` and
            `learning_rate/<group>` where a plan ran.

        Raises:
            ValueError: If labels do not fit the head, if two callbacks carry a plan, if
                the plan fits neither model nor `epochs`, or if features cannot be cached and
                `cache_features` insists.
        """
        _fit_checks.require_compiled(self)
        _strategy_checks.check_strategy(self)
        _staged_fit.check_cache_features(cache_features)
        carrier = _fit_checks.plan_carrier(callbacks)
        _fit_checks.check_callbacks(callbacks, carrier)
        _workers.check_writers(self.distribute_strategy, _fit_checks.as_list(callbacks))
        check_labels(self, x, y, validation_data)
        self._build_on(x)
        if epochs is None:
            epochs = carrier.plan.total_epochs if carrier is not None else 1
        if carrier is None:
            _strategy_checks.warn_of_local_statistics(self, self.trainable_variables)
            self._prepare_without_plan()
        else:
            self._traced = None
        arguments = _staged_fit.FitArguments(
            x=x,
            y=y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
        )
        resuming = next(
            (c for c in _fit_checks.as_list(callbacks) if isinstance(c, _one_training.Resuming)),
            None,
        )
        return _staged_fit.StagedFit(
            self, super().fit, arguments, carrier, cache_features, resuming
        ).run()

    def overridden(self, *names: str) -> list[str]:
        """Returns those of the named methods that the user's subclass replaces."""
        return [n for n in names if getattr(type(self), n) is not getattr(TransferModel, n)]

    def _prepare_without_plan(self) -> None:
        """Lets flags that changed since the last `fit` take effect in the next step."""
        optimizer = _trainability.adopt_optimizer(self, self.layer_groups)
        training = frozenset(id(v) for v in self.trainable_variables)
        # A callback of the user may have made another function, of other variables.
        if self._traced is not None and self._traced == (self.train_function, training):
            return
        optimizer.start_stage(None)
        still = _trainability.layers_still_now(self)
        _trainability.apply(self, self.trainable_variables, still, retrace=True)
        self._traced = (self.train_function, training)

    def _build_on(self, x: Any) -> None:
        if self.built:
            return
        inputs = _fit_checks.symbolic_inputs(x)
        if inputs is None:
            raise ValueError(
                f"{self.name!r} is not built: its backbone is not a functional model, and this "
                "data cannot be looked at without using it up. Call the model once on a batch "
                f"before `fit`. Received: x={type(x).__name__}"
            )
        self(inputs)
        _trainability.adopt_optimizer(self, self.layer_groups)

    def _warn_of_classifier(self) -> None:
        layer = last_layer(self.backbone.model)
        looks_like = looks_like_classifier(layer)
        if looks_like:
            warnings.warn(
                f"The backbone {self.backbone.model.name!r} ends in {looks_like} ({layer.name!r}): "
                "it looks as if its classifier were still on, and the head would be trained on "
                "class scores. Load it with include_top=False.",
                stacklevel=3,
            )

    # --- Saving -----------------------------------------------------------------------

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights as `keras.Model.load_weights` does; all of them, or none.

        Raises:
            ValueError: If the file was written by a model of another architecture, also by
                one with more layers.
        """
        load = super().load_weights
        load_wholly(
            self,
            filepath,
            lambda: load(filepath, skip_mismatch, **kwargs),
            skip_mismatch=skip_mismatch,
        )

    def build_from_config(self, config: dict[str, Any]) -> None:
        # Only a model that is not functional is built here, its head with it.
        super().build_from_config(config)
        self._set_saved_flags()

    def _set_saved_flags(self) -> None:
        if self._saved_flags is None:
            return
        flags = zip(self.layer_groups.variables, self._saved_flags, strict=True)
        self._train_only([variable for variable, trains in flags if trains])
        self._saved_flags = None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras leaves a model with a `compile` of its own uncompiled.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype", None)
        # Keras keeps one flag for each layer; a stage such as train="bias" needs one for each
        # variable. They stand here, as Keras's own do: a weights file must not change what trains.
        return {
            **config,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "head": keras.saving.serialize_keras_object(self.head),
            "trains": [bool(v.trainable) for v in self.layer_groups.variables],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TransferModel:
        config = dict(config)
        for key in ("backbone", "head"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        trains = config.pop("trains", None)
        model = cls(**config)
        model._saved_flags = trains
        if model.built:
            model._set_saved_flags()
        return model


def _shapes_of(tensors: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)
