"""`layerwise_transferability`: which layers of your model are general, and which specific."""

from __future__ import annotations

import gc
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks, _json_file, _keras_internals
from keras_transfer._checkpoint_files import CheckpointFiles
from keras_transfer._data_content import content_fingerprint
from keras_transfer._label_checks import label_check, takes_class_ids
from keras_transfer._task_data import Part, as_part, check_classes, read_through, reading
from keras_transfer._test_scores import checked_seeds, find_metric, find_mode, score_on
from keras_transfer.callbacks import GradualUnfreezing
from keras_transfer.features._fingerprint import data_fingerprint
from keras_transfer.layerwise_scores import TREATMENTS, LayerwiseScores
from keras_transfer.model import TransferModel
from keras_transfer.plan import Stage, UnfreezingPlan

BASE = "base"
RESULTS = "results.json"
# Training data of a task, and for how many epochs.
Task = tuple[Part, int]
# A cell is a treatment (or the base), a number of copied groups, and a seed.
Cell = tuple[str, int, int]


def layerwise_transferability(
    source_model: TransferModel,
    target_data: Any,
    *,
    source_data: Any = None,
    source_head: keras.layers.Layer | None = None,
    treatments: Sequence[str] | None = None,
    depths: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 4,
    epochs: int = 10,
    source_epochs: int | None = None,
    peak_lr: float | None = None,
    batch_size: int = 32,
    metric: str | None = None,
    mode: str = "auto",
    directory: str | os.PathLike[str] | None = None,
    cache_features: Any = "auto",
    verbose: int = 1,
) -> LayerwiseScores:
    """Copies the first `n` layer groups, starts the rest anew, and trains on the target task.

    Yosinski et al.'s experiment for your own model: it shows how far its layers are general,
    where they become specific to the source task, and where parting them from their
    neighbours costs accuracy. It trains one network for each number of groups, treatment and
    seed, so it is for small models, or for patience: with a `directory` it goes on where it
    was stopped. Differences of a point need four seeds or more.

    - `"AnB"`: groups copied from the source network and frozen, on cached features.
    - `"AnB+"`: copied from the source network and trained on.
    - `"BnB"`, `"BnB+"`: the same from a network trained on the target task itself, the control.

    `source_model` is left as it is; each network is made anew from its config. Random groups
    have no statistics to keep, so every BatchNorm that trains moves its own.

    Args:
        source_model: A compiled `TransferModel`: its backbone has the source task's weights,
            its head is made for the target task (its weights are not used).
        target_data: `(train, test)` of the target task, each a tuple of arrays
            `(inputs, labels)`, a batched `tf.data.Dataset` or a `PyDataset`.
        source_data: Training data of the source task. With it the source network, too, is
            trained here from random weights, anew for each seed, so that it differs from the
            control in its data alone; and the controls are run.
        source_head: Layer that makes the head for `source_data`; `None` for one like that of
            `source_model`.
        treatments: Which of the four to run. `None` for `"AnB"` and `"AnB+"`, and the
            controls where there is `source_data`.
        depths: Numbers of copied groups, from 1 to that of the backbone's groups; `None`
            for all.
        seeds: Number of seeds, or the seeds.
        epochs: Epochs of each network on the target task.
        source_epochs: Epochs of the source network, with `source_data`; `None` for `epochs`.
        peak_lr: Learning rate of all networks; `None` for that of the compiled optimizer.
        batch_size: Examples per step, where data is arrays.
        metric: Metric to test by; `None` for the first of `compile(metrics=...)`, or the loss.
        mode: `"max"`, `"min"`, or `"auto"` as Keras knows it.
        directory: Where to keep what is done, to go on from after an interruption, or with
            more seeds. `None` keeps nothing. A data set is then read once or twice more, to
            know it again.
        cache_features: As in `TransferModel.fit`, for the frozen cells. A
            `keras_transfer.features.FeatureCache` is shared by all seeds, which without
            `source_data` freeze the same weights.
        verbose: 0 is silent; 1 prints a line for each network, and the table.

    Returns:
        The scores; print them, or draw them with `keras_transfer.plotting.plot_layerwise`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: Before any training, if arguments, data and model do not fit, or the
            directory is damaged or holds another experiment.

    Example:

    ```python
    import keras, numpy as np
    import keras_transfer as ktf

    backbone = keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(8, "relu", name="stem"),
        keras.layers.Dense(8, "relu", name="top")])
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(2), groups="blocks")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
    found = ktf.layerwise_transferability(
        model, ((x[:32], y[:32]), (x[32:], y[32:])), treatments=["AnB"], depths=[2],
        seeds=1, epochs=1, verbose=0)
    print(found.groups, found.depths)
    ```

    ```text
    ('stem', 'top') [2]
    ```

    Reference:
        - [Yosinski et al., 2014](https://arxiv.org/abs/1411.1792)
    """
    _check_model(source_model)
    groups = source_model.backbone.layer_groups
    if treatments is None:
        treatments = TREATMENTS[: 2 if source_data is None else 4]
    wanted = [treatments] if isinstance(treatments, str) else list(treatments)
    for one in wanted:
        _checks.choice(one, "treatments", TREATMENTS)
    if not wanted:
        raise ValueError(f"`treatments` must name at least one of {', '.join(TREATMENTS)}.")
    chosen = _checked_depths(depths, len(groups))
    seed_list = checked_seeds(seeds)
    epochs = _checks.integer(epochs, "epochs", minimum=1)
    source_epochs = epochs if source_epochs is None else source_epochs
    source_epochs = _checks.integer(source_epochs, "source_epochs", minimum=1)
    if peak_lr is not None:
        peak_lr = _checks.number(peak_lr, "peak_lr", above=0)
    batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
    _checks.choice(mode, "mode", ["auto", "max", "min"])
    if source_head is not None and source_data is None:
        raise ValueError("`source_head` is for `source_data`, and there is none.")
    if not isinstance(target_data, tuple | list) or len(target_data) != 2:
        raise TypeError(
            f"`target_data` must be (train, test). Received: {type(target_data).__name__}"
        )
    train, test = (
        as_part(part, f"The target task's {name} data")
        for part, name in zip(target_data, ("training", "test"), strict=True)
    )
    source = None if source_data is None else as_part(source_data, "`source_data`")
    class_ids = []
    for part, name in ((train, "training"), (test, "test")):
        check = label_check(source_model, f"in the target task's {name} data")
        class_ids.append(read_through(part, f"The target task's {name} data", check))
    if takes_class_ids(source_model):
        check_classes(*class_ids)
    networks = _Networks(
        source_model,
        (train, epochs),
        None if source is None else (source, source_epochs),
        source_head,
        peak_lr=peak_lr,
        batch_size=batch_size,
        cache_features=cache_features,
    )
    probe = networks.fresh(0)
    if source is not None:
        of_source = networks.fresh(0, source_head)
        read_through(source, "`source_data`", label_check(of_source, "in `source_data`"))
    metric = find_metric(probe, test, metric)
    mode = find_mode(probe, metric, mode)
    settings = {
        "epochs": epochs,
        "source_epochs": None if source is None else source_epochs,
        "peak_lr": peak_lr,
        "batch_size": batch_size,
        "metric": metric,
        "groups": [[list(w.shape) for w in _weights_of(group)] for group in groups],
        "source weights": _digest(networks.source_weights),
    }
    if directory is not None:
        settings["training data"] = content_fingerprint(train)
        settings["test data"] = content_fingerprint(test)
        settings["source data"] = None if source is None else content_fingerprint(source)
    kept = _Kept(directory, settings)
    cells: list[Cell] = []
    for seed in seed_list:
        cells.append((BASE, 0, seed))
        cells += [(treatment, n, seed) for n in chosen for treatment in wanted]
    for number, cell in enumerate(cells):
        if cell in kept.scores:
            continue
        treatment, n, seed = cell
        start = time.perf_counter()
        model = networks.start(treatment, n, seed, kept)
        networks.train(model, (train, epochs), frozen=n if treatment in ("AnB", "BnB") else 0)
        what = treatment if n == 0 else f"{treatment} n={n}"
        score = score_on(model, test, metric, batch_size, f"{what} with seed {seed}")
        if treatment == BASE and any(one.startswith("B") for one in wanted):
            kept.write_network("B", seed, networks.weights_of(model))
        kept.add(cell, score)
        del model
        gc.collect()  # models and their traced functions hold each other
        if verbose:
            print(
                f"[{number + 1} of {len(cells)}] {what}, seed {seed}: {metric} {score:.3f} in "
                f"{time.perf_counter() - start:.1f} s",
                flush=True,
            )
    found = LayerwiseScores(
        metric=metric,
        mode=mode,
        groups=tuple(groups.names),
        seeds=tuple(seed_list),
        base=tuple(kept.scores[BASE, 0, seed] for seed in seed_list),
        scores={
            treatment: {n: tuple(kept.scores[treatment, n, s] for s in seed_list) for n in chosen}
            for treatment in wanted
        },
    )
    if verbose:
        print(found)
    return found


def _check_model(model: Any) -> None:
    if not isinstance(model, TransferModel):
        raise TypeError(
            f"`source_model` must be a `TransferModel`. Received: {model!r} of type "
            f"{type(model).__name__}. Wrap the backbone and a head for the target task: "
            "TransferModel(backbone, head)."
        )
    if not model.compiled:
        raise ValueError("`source_model` must be compiled: all networks train as it would.")
    if not model.built:
        raise ValueError(f"{model.name!r} is not built. Call it once on a batch before.")


def _checked_depths(depths: Sequence[int] | None, n_groups: int) -> list[int]:
    if depths is None:
        return list(range(1, n_groups + 1))
    chosen = [_checks.integer(n, "depths", minimum=1) for n in depths]
    if not chosen or len(set(chosen)) < len(chosen) or max(chosen) > n_groups:
        raise ValueError(
            f"`depths` must be different numbers of copied groups, and the backbone has {n_groups} "
            f"groups. Received: depths={chosen}"
        )
    return sorted(chosen)


class _Networks:
    """Makes, starts and trains the networks of the experiment, all in one way.

    Args:
        model: The user's model.
        target: Training data of the target task, and epochs.
        source: Those of the source task, if there are any.
        source_head: The head for it.
        peak_lr: As in `layerwise_transferability`.
        batch_size: As in `layerwise_transferability`.
        cache_features: As in `layerwise_transferability`.
    """

    def __init__(
        self,
        model: TransferModel,
        target: Task,
        source: Task | None,
        source_head: keras.layers.Layer | None,
        *,
        peak_lr: float | None,
        batch_size: int,
        cache_features: Any,
    ) -> None:
        self._config = model.get_config()
        self._class = type(model)
        self._compile_config = _compile_config(model)
        self._target = target
        self._source = source
        self._source_head = source_head
        self._peak_lr = peak_lr
        self._batch_size = batch_size
        self._cache_features = cache_features
        self.source_weights = self.weights_of(model)
        # What knows the data, but was not learnt: preprocessing, and Normalization layers.
        self._unlearnt = [np.array(w.numpy()) for w in _unlearnt(model)]

    def fresh(self, seed: int, head: keras.layers.Layer | None = None) -> TransferModel:
        """Makes a network with random weights."""
        keras.utils.set_random_seed(seed)
        config = dict(self._config)
        if head is not None:
            config["head"] = keras.saving.serialize_keras_object(head)
            config["trains"] = None
        model = self._class.from_config(config)
        model.compile_from_config(self._compile_config)
        model.backbone.batch_norm = "train"
        for weight, value in zip(_unlearnt(model), self._unlearnt, strict=True):
            weight.assign(value)
        for layer in _normalizing(model):
            layer.finalize_state()  # what it divides by follows from its weights only then
        return model

    @staticmethod
    def weights_of(model: TransferModel) -> dict[str, np.ndarray]:
        """Returns the weights and statistics of the backbone's groups, by group and number."""
        return {
            f"{number}/{place}": np.array(weight.numpy(), copy=True)
            for number, group in enumerate(model.backbone.layer_groups)
            for place, weight in enumerate(_weights_of(group))
        }

    def start(self, treatment: str, n: int, seed: int, kept: _Kept) -> TransferModel:
        """Makes a cell's network, with its first `n` groups copied."""
        copied = self._copied(treatment, seed, kept)
        # Not the numbers that the copied network started from; the same for all treatments.
        model = self.fresh(1000 * seed + n)
        for number, group in enumerate(model.backbone.layer_groups[:n]):
            for place, weight in enumerate(_weights_of(group)):
                weight.assign(copied[f"{number}/{place}"])
        return model

    def _copied(self, treatment: str, seed: int, kept: _Kept) -> dict[str, np.ndarray]:
        if treatment == BASE:
            return {}
        name = treatment[0]
        if name == "A" and self._source is None:
            return self.source_weights
        found = kept.network(name, seed)
        if found is None:
            # The target task's is the base itself; the source task's begins otherwise.
            task = self._target if name == "B" else self._source
            assert task is not None
            model = self.fresh(1000 * seed) if name == "B" else self._fresh_source(seed)
            self.train(model, task)
            found = self.weights_of(model)
            kept.write_network(name, seed, found)
        return found

    def _fresh_source(self, seed: int) -> TransferModel:
        return self.fresh(1000 * seed + 999, self._source_head)

    def train(self, model: TransferModel, task: Task, frozen: int = 0) -> None:
        """Trains a network on a task, with its first groups frozen."""
        part, epochs = task
        depth: Any = len(model.layer_groups) - frozen if frozen else "all"
        stage = Stage("train", depth=depth, epochs=epochs, peak_lr=self._peak_lr)
        options = reading(part, self._batch_size)
        if len(part) == 1:
            options["shuffle"] = False  # a data set shuffles itself
        model.fit(
            **options,
            callbacks=[GradualUnfreezing(UnfreezingPlan([stage]), verbose=0)],
            verbose=0,
            cache_features=self._cache_features if frozen else False,
        )


class _Kept:
    """What is done already: in a directory, or as long as the experiment runs.

    Args:
        directory: The directory, or `None`.
        settings: What makes the experiment this experiment, as plain data.

    Raises:
        ValueError: If the directory is damaged, or holds another experiment.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.directory = None if directory is None else pathlib.Path(directory)
        self._settings = settings
        self._networks: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self.scores: dict[Cell, float] = {}
        if self.directory is None:
            return
        remedy = "Put back a copy, or delete the directory to train anew."
        found = _json_file.read_json(self.directory / RESULTS, remedy)
        if found is None:
            return
        other = [key for key, value in settings.items() if found["settings"].get(key) != value]
        if other:
            raise ValueError(
                f"{self.directory} holds another experiment: it differs in {', '.join(other)}. "
                "Give this one a directory of its own, or delete that one."
            )
        self.scores = {(t, n, seed): score for t, n, seed, score in found["cells"]}

    def add(self, cell: Cell, score: float) -> None:
        """Keeps a score."""
        self.scores[cell] = score
        if self.directory is not None:
            cells = [[*cell, score] for cell, score in self.scores.items()]
            content = {"settings": self._settings, "cells": cells}
            _json_file.write_json(self.directory / RESULTS, content)

    def network(self, name: str, seed: int) -> dict[str, np.ndarray] | None:
        """Returns the weights of a trained network, or `None` if it is not there."""
        if (name, seed) not in self._networks and self.directory is not None:
            found = self._files(name, seed).newest()
            if found is not None:
                self._networks[name, seed] = found[0]["weights"]
        return self._networks.get((name, seed))

    def write_network(self, name: str, seed: int, weights: dict[str, np.ndarray]) -> None:
        """Keeps the weights of a trained network, and forgets those of other seeds."""
        self._networks = {key: value for key, value in self._networks.items() if key[1] == seed}
        self._networks[name, seed] = weights
        if self.directory is not None:
            self._files(name, seed).write({"weights": weights})

    def _files(self, name: str, seed: int) -> CheckpointFiles:
        assert self.directory is not None
        return CheckpointFiles(self.directory / f"network_{name}_seed_{seed}", keep=1)


def _weights_of(group: Any) -> list[keras.Variable]:
    return [weight for layer in group.layers for weight in layer.weights]


def _unlearnt(model: TransferModel) -> list[keras.Variable]:
    preprocess = model.backbone.preprocess
    layers = [*_normalizing(model)]
    if isinstance(preprocess, keras.layers.Layer):
        layers.append(preprocess)
    return list({id(w): w for layer in layers for w in layer.weights}.values())


def _normalizing(model: TransferModel) -> list[keras.layers.Normalization]:
    layers = _keras_internals.flatten_layers(model.backbone)
    return [la for la in layers if isinstance(la, keras.layers.Normalization) and la.built]


def _compile_config(model: TransferModel) -> dict[str, Any]:
    try:
        config: dict[str, Any] = model.get_compile_config()
        type(model).from_config(model.get_config()).compile_from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{model.name!r} cannot be made anew from its config ({error}). Register what is your "
            "own with `keras.saving.register_keras_serializable`."
        ) from error
    return config


def _digest(weights: dict[str, np.ndarray]) -> str:
    return data_fingerprint(weights)
