"""`AutoSurgical`: lets each layer group learn as fast as its gradients say that it should."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _checks, _keras_internals, _resolved_plan, _task_data, _trainability
from keras_transfer._label_checks import label_check
from keras_transfer._layer_variables import NORMALIZATION_LAYERS
from keras_transfer._stock_model import stock_model_groups
from keras_transfer.layer_groups import Groups, LayerGroup, LayerGroups
from keras_transfer.optimizers import DiscriminativeOptimizer, find_discriminative
from keras_transfer.plan import CarriesPlan


class AutoSurgical(keras.callbacks.Callback):
    """Sets each layer group's learning rate by its relative gradient norm (Auto-RGN).

    Use it where the target data differs from the source in a way that you cannot name: a
    change of the input wants the first groups to move, a change of the labels the last.
    Before each epoch it takes the gradients of a few batches and divides each group's norm
    by that of its weights. The group with the largest ratio gets the full learning rate, the
    others their share of it.

    The train step is not traced anew, and the optimizer's state, metrics and random
    numbers are left as they are. When training ends, the multipliers are what they were.

    Alone it works on whatever trains. Beside `GradualUnfreezing`, which comes before it in
    `callbacks`, it works on the groups of the stage; the plan's stages must then leave out
    `lr_decay` and `lr_multipliers`.

    The authors scale each tensor by its own ratio and begin with a new Adam in each epoch;
    here groups are scaled, and Adam goes on. Their gains shrink with more target data.

    Args:
        data: What gradients are taken of: a tuple of arrays `(inputs, labels)`, a batched
            `tf.data.Dataset` or a `PyDataset`; the training data, as a rule.
        batches: Batches before each epoch, each a forward and a backward pass. Of arrays,
            they are drawn anew each time.
        batch_size: Examples per batch, where data is arrays.
        groups: How to split a stock model's backbone, without `GradualUnfreezing`; see
            `keras_transfer.layer_groups.backbone_groups`. A `TransferModel` has its own.
        head: Name of the first layer of a stock model's head, as in `GradualUnfreezing`.
        verbose: 0 is silent, 1 prints a line before each epoch.

    Raises:
        TypeError: If an argument has another type.
        ValueError: At the start of `fit`, if a plan sets multipliers too or comes after it;
            before an epoch, if `data` is empty or its labels do not fit the head, a gradient
            is not finite, or a group's weights are all 0.

    Example:

    >>> import keras, numpy as np
    >>> import keras_transfer as ktf
    >>> backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="stem")])
    >>> model = ktf.TransferModel(backbone, keras.layers.Dense(1, name="top"))
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.normal(size=(32, 4)), np.ones((32, 1))
    >>> surgical = ktf.callbacks.AutoSurgical((x, y), verbose=0)
    >>> history = model.fit(x, y, verbose=0, callbacks=[surgical]).history
    >>> round(max(history["learning_rate/stem"][0], history["learning_rate/top"][0]), 6)
    0.001

    Reference:
        - [Lee et al., 2023](https://arxiv.org/abs/2210.11466), section 4
    """

    def __init__(
        self,
        data: Any,
        batches: int = 5,
        *,
        batch_size: int = 32,
        groups: Groups | None = None,
        head: str | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.data = data
        self._part = _task_data.as_part(data, "`data`")
        self.batches = _checks.integer(batches, "batches", minimum=1)
        self.batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
        self.groups = groups
        self.head = head
        self.verbose = verbose
        self._reset()

    def _reset(self) -> None:
        self._layer_groups: LayerGroups | None = None
        self._is_alone = True
        self._traced: tuple[frozenset[int], Any, list[str]] | None = None
        self._state: dict[str, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoSurgical:
        # KerasTuner copies callbacks for each trial: the data is shared, the run stays behind.
        return AutoSurgical(
            self.data,
            self.batches,
            batch_size=self.batch_size,
            groups=self.groups,
            head=self.head,
            verbose=self.verbose,
        )

    # --- The hooks of `fit` -----------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._reset()
        carrier = self._plan_before()
        self._is_alone = carrier is None
        self._layer_groups = self._find_groups(carrier)
        if carrier is None and not _resolved_plan.is_transfer_model(self.model):
            _trainability.adopt_optimizer(self.model, self._layer_groups)
            still = _trainability.layers_still_now(self.model)
            _trainability.apply(self.model, self.model.trainable_variables, still, retrace=True)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._state is None or self._state["epoch"] != epoch:
            multipliers = self._relative_to_largest(self._relative_gradient_norms())
            self._state = {"epoch": epoch, "multipliers": multipliers}
        self._assign()
        if self.verbose:
            shown = [f"{name} {value:.2g}" for name, value in self._state["multipliers"].items()]
            print(f"Epoch {epoch + 1}: learning rates times {', '.join(shown)}.")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._is_alone or logs is None:
            return  # `GradualUnfreezing` adds the columns
        assert self._layer_groups is not None
        rates = self._optimizer().group_learning_rates()
        for name in self._layer_groups.names:
            logs[f"learning_rate/{name}"] = rates.get(name, math.nan)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = find_discriminative(self.model.optimizer)
        if optimizer is not None:  # else `GradualUnfreezing` has given it back
            optimizer.set_stage_multipliers(None)
        if self._is_alone and not _resolved_plan.is_transfer_model(self.model):
            _trainability.give_back_optimizer(self.model)
        self._layer_groups = self._traced = None

    # --- State, for `ResumableTraining` ---------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns the epoch's multipliers, which follow from weights that have moved since."""
        return dict(self._state or {})

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` returned in a run of the same model.

        Args:
            state: The epoch and its multipliers.
        """
        self._state = dict(state) or None
        if self._state is not None:
            self._assign()

    def _assign(self) -> None:
        assert self._state is not None
        self._optimizer().set_stage_multipliers(self._state["multipliers"])

    # --- Where it is --------------------------------------------------------------------

    def _plan_before(self) -> Any:
        """Returns the callback that carries a plan, and checks that they go together."""
        around = _keras_internals.callback_list_around(self)
        callbacks = [self] if around is None else list(around.callbacks)
        carrier = next((one for one in callbacks if isinstance(one, CarriesPlan)), None)
        if carrier is None:
            return None
        if callbacks.index(carrier) > callbacks.index(self):
            raise ValueError(
                f"`AutoSurgical` must come after `{type(carrier).__name__}` in `callbacks`: it "
                "works on the groups that the stage trains."
            )
        for stage in carrier.plan.stages:
            for name in ("lr_decay", "lr_multipliers"):
                if getattr(stage, name) is not None:
                    raise ValueError(
                        f"Stage {stage.name!r} sets `{name}`, and `AutoSurgical` sets the "
                        "multipliers of all layer groups. Leave one of them out "
                        f"({name}=None in a recipe)."
                    )
        return carrier

    def _find_groups(self, carrier: Any) -> LayerGroups:
        if _resolved_plan.is_transfer_model(self.model) or carrier is not None:
            for name, value in (("groups", self.groups), ("head", self.head)):
                if value is not None:
                    raise ValueError(
                        f"`{name}` is for a stock model without a plan; here the layer groups are "
                        "those of the `TransferModel`, or of the callback with the plan. Received: "
                        f"{name}={value!r}"
                    )
        if _resolved_plan.is_transfer_model(self.model):
            found: LayerGroups = self.model.layer_groups
            return found
        asked = self if carrier is None else carrier
        groups: Groups = "auto" if asked.groups is None else asked.groups
        return stock_model_groups(self.model, groups, asked.head)

    def _optimizer(self) -> DiscriminativeOptimizer:
        optimizer = find_discriminative(self.model.optimizer)
        assert optimizer is not None
        return optimizer

    # --- Relative gradient norms ----------------------------------------------------------

    def _relative_gradient_norms(self) -> dict[str, float]:
        """Returns ||gradient|| / ||weights|| of each group that trains, mean over batches."""
        names, squares = self._traced_squares()
        sums, count = np.zeros(len(names)), 0
        check_labels = None
        if _resolved_plan.is_transfer_model(self.model):
            check_labels = label_check(self.model, "in `data`")
        for batch in self._few_batches():
            count += 1
            if check_labels is not None:
                check_labels(batch[1])
            of_gradients, of_weights = np.array(squares(*batch), "float64")
            self._check(names, of_gradients, of_weights)
            sums += np.sqrt(of_gradients / of_weights)
        if not count:
            raise ValueError("`data` is empty: the data set has no batch to take gradients of.")
        return dict(zip(names, (sums / count).tolist(), strict=True))

    @staticmethod
    def _check(names: list[str], of_gradients: np.ndarray, of_weights: np.ndarray) -> None:
        for name, gradient, weight in zip(names, of_gradients, of_weights, strict=True):
            if not math.isfinite(gradient):
                raise ValueError(
                    f"The gradient of layer group {name!r} is not finite (squared norm "
                    f"{gradient}). Lower the learning rate, or look for bad inputs in `data`."
                )
            if weight == 0:
                raise ValueError(
                    f"The weights of layer group {name!r} are all 0, so its gradient is large or "
                    "small relative to nothing. Initialise its kernels at random, or train it "
                    "for an epoch first."
                )

    @staticmethod
    def _relative_to_largest(norms: dict[str, float]) -> dict[str, float]:
        largest = max(norms.values())
        if largest == 0:  # nothing would move, whatever its rate
            return dict.fromkeys(norms, 1.0)
        return {name: norm / largest for name, norm in norms.items()}

    def _few_batches(self) -> Iterator[Any]:
        """Yields batches, the first again where the data has fewer."""
        data = self._part[0]
        if len(self._part) > 1:
            x, y = self._part
            count = len(keras.tree.flatten(x)[0])
            # Drawn by the steps so far, and not from the generators that training draws from.
            random = np.random.default_rng(int(self._optimizer().iterations.numpy()))
            for _ in range(self.batches):
                rows = random.choice(count, min(self.batch_size, count), replace=False)
                yield (*keras.tree.map_structure(lambda a, at=rows: a[at], (x, y)), None)
        elif isinstance(data, keras.utils.PyDataset):
            for number in range(self.batches):
                yield keras.utils.unpack_x_y_sample_weight(data[number % data.num_batches])
        else:
            dataset = _keras_internals.with_own_shuffles(data)
            for batch in dataset.repeat().take(self.batches):
                yield keras.utils.unpack_x_y_sample_weight(batch)

    def _traced_squares(self) -> tuple[list[str], Any]:
        """Returns names of groups, and a function of a batch for their squared norms."""
        training = frozenset(id(v) for v in self.model.trainable_variables)
        if self._traced is None or self._traced[0] != training:
            assert self._layer_groups is not None
            found = {g.name: _measured(g, training) for g in self._layer_groups}
            of_group = {name: variables for name, variables in found.items() if variables}
            self._traced = (training, self._trace(list(of_group.values())), list(of_group))
        return self._traced[2], self._traced[1]

    def _trace(self, of_group: list[list[keras.Variable]]) -> Any:
        model, strategy = self.model, self.model.distribute_strategy
        flat = [variable.value for variables in of_group for variable in variables]

        def squares(x: Any, y: Any, sample_weight: Any) -> Any:
            with tf.GradientTape() as tape:
                # As in inference, as the authors do: no dropout, and statistics stay.
                predictions = model(x, training=False)
                loss = model.compute_loss(x, y, predictions, sample_weight, training=False)
            gradients = iter(tape.gradient(loss, flat, unconnected_gradients="zero"))
            rows = [
                [(_square(next(gradients)), _square(variable)) for variable in variables]
                for variables in of_group
            ]
            sums = [tf.add_n([tf.stack(pair) for pair in row]) for row in rows]
            return tf.stack(sums, axis=1)

        def on_first_replica(x: Any, y: Any, sample_weight: Any) -> Any:
            # All replicas see the whole batch, so each of them has the answer.
            results = strategy.run(squares, args=(x, y, sample_weight))
            return strategy.experimental_local_results(results)[0]

        traced = tf.function(on_first_replica, reduce_retracing=True)
        metrics = list(model.metrics_variables)

        def measure(*batch: Any) -> Any:
            # Of several outputs, computing the loss counts each one's in a metric.
            before = [np.array(metric.numpy(), copy=True) for metric in metrics]
            result = traced(*keras.tree.map_structure(_as_tensor, batch)).numpy()
            for metric, value in zip(metrics, before, strict=True):
                metric.assign(value)
            return result

        return measure


def _measured(group: LayerGroup, training: frozenset[int]) -> list[keras.Variable]:
    """Returns what of a group trains, without norms' scales and offsets where there is more."""
    variables = [v for v in group.variables if id(v) in training]
    norms = {
        id(v)
        for layer in group.all_layers
        if isinstance(layer, NORMALIZATION_LAYERS)
        for v in _keras_internals.own_trainable_variables(layer)
    }
    return [v for v in variables if id(v) not in norms] or variables


def _as_tensor(value: Any) -> Any:
    return None if value is None else tf.convert_to_tensor(value)


def _square(tensor: Any) -> tf.Tensor:
    value = tf.cast(tf.convert_to_tensor(tensor), tf.float32)
    return tf.reduce_sum(tf.square(value))
