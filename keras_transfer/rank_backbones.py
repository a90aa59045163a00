"""`rank_backbones`: which pretrained backbone suits a task, without training any."""

from __future__ import annotations

import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _checks, plotting, transferability
from keras_transfer._task_data import Part, as_part
from keras_transfer.features import FeatureCache
from keras_transfer.layers import ClassificationHead, PretrainedBackbone
from keras_transfer.model import TransferModel
from keras_transfer.plotting._axes import pyplot as require_matplotlib
from keras_transfer.transferability import BackboneRanking, RankedBackbone
from keras_transfer.transferability._inputs import checked_labels

SCORES: dict[str, Callable[..., float]] = {
    "log_me": transferability.log_me,
    "h_score": transferability.h_score,
    "trans_rate": transferability.trans_rate,
}


def rank_backbones(
    candidates: Mapping[str, Any],
    data: Any,
    *,
    scores: Sequence[str] = ("log_me", "h_score", "trans_rate"),
    batch_size: int = 32,
    directory: str | os.PathLike[str] | None = None,
    chart: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> BackboneRanking:
    """Ranks pretrained backbones for a task by what their features tell of its classes.

    Use it to choose a backbone before you train any: it takes one pass of each over the
    examples (a few hundred are enough to begin with), which fills its feature cache. Scores
    are a guide: over eight image data sets, LogME and the H-score agreed with the accuracies
    after fine-tuning at a weighted tau of 0.67 in the mean, and 0.42 at the least.

    LEEP and NCE, which need the source model's own head, are in
    `keras_transfer.transferability`.

    Args:
        candidates: The backbones, by name: each a Keras model without its classifier, a
            `PretrainedBackbone` (which can bring its preprocessing), a `TransferModel`
            (whose head says how features are pooled), or a function without arguments that
            loads one, so that one at a time is in memory.
        data: A tuple of arrays `(inputs, labels)`, or a batched `tf.data.Dataset` of them
            whose order stays the same. Labels are class numbers from 0.
        scores: Names of the scores, out of `"log_me"`, `"h_score"` and `"trans_rate"`; the
            first one ranks.
        batch_size: Examples of a batch of the pass, where data is arrays.
        directory: Where to keep features, in a folder for each candidate, which
            `FeatureCache(directory / name)` opens again, also in `fit`. `None` keeps them
            until the candidate is scored.
        chart: File to draw the bar chart into (`"ranking.png"`); needs matplotlib.
            `keras_transfer.plotting.plot_ranking` draws into axes.
        verbose: 0 is silent; 1 prints a line for each candidate, and the table.

    Returns:
        Scores, times and sizes, the best backbone first.

    Raises:
        TypeError: If candidates or data are of another kind.
        ValueError: If labels are no class numbers or of one class, features are not finite
            or all alike, or inputs do not fit a candidate, which is named.
        ImportError: If a chart is wanted and matplotlib is not installed.

    Example:

    ```python
    import keras, numpy as np
    import keras_transfer as ktf

    x, y = np.random.normal(size=(40, 6)), np.arange(40) % 2
    wide = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu")])
    narrow = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, "relu")])
    ranking = ktf.rank_backbones({"wide": wide, "narrow": narrow}, (x, y), verbose=0)
    print(ranking.best in ("wide", "narrow"))
    ```

    ```text
    True
    ```

    Reference:
        - [You et al., 2021](https://arxiv.org/abs/2102.11005), LogME
        - [Bao et al., 2019](https://doi.org/10.1109/ICIP.2019.8803726), H-score
        - [Huang et al., 2022](https://arxiv.org/abs/2106.09362), TransRate
    """
    names = _checked_candidates(candidates, directory)
    scores = [scores] if isinstance(scores, str) else list(scores)
    for one in scores:
        _checks.choice(one, "scores", SCORES)
    twice = next((one for one in scores if scores.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"`scores` must differ. Received twice: {twice!r}")
    if not scores:
        raise ValueError(f"`scores` must name at least one of {', '.join(SCORES)}. Received: []")
    batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
    if isinstance(data, keras.utils.PyDataset):
        raise TypeError(
            "`data` must be arrays or a `tf.data.Dataset`, whose features can be kept. Received: a "
            f"{type(data).__name__}"
        )
    part = as_part(data, "`data`")
    if len(part) > 1:
        checked_labels(part[1], len(part[1]), name="labels")
    if chart is not None:
        require_matplotlib()
    ranked = []
    for number, name in enumerate(names):
        found = _score(name, candidates[name], part, scores, batch_size, directory)
        ranked.append(found)
        if verbose:
            values = ", ".join(f"{key} {value:.3f}" for key, value in found.scores.items())
            print(f"[{number + 1} of {len(names)}] {name}: {values} in {found.seconds:.1f} s")
    ranking = BackboneRanking(scores[0], tuple(ranked))
    if verbose:
        print(ranking)
    if chart is not None:
        plotting.plot_ranking(ranking).figure.savefig(chart)
    return ranking


def _checked_candidates(candidates: Any, directory: Any) -> list[str]:
    if not isinstance(candidates, Mapping) or not candidates:
        raise TypeError(
            "`candidates` must map names to backbones, and hold at least one. Received: "
            f"candidates={candidates!r}"
        )
    for name, candidate in candidates.items():
        if not isinstance(name, str) or not (
            isinstance(candidate, keras.layers.Layer) or callable(candidate)
        ):
            raise TypeError(
                "`candidates` must map names to Keras models, or to functions that load one. "
                f"Received: {name!r}: {candidate!r}"
            )
        if directory is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"With a `directory`, a candidate's name becomes that of a folder, so it takes "
                f"letters, digits, '_', '-' and '.' only. Received: {name!r}"
            )
    return list(candidates)


def _score(
    name: str,
    candidate: Any,
    part: Part,
    scores: Sequence[str],
    batch_size: int,
    directory: str | os.PathLike[str] | None,
) -> RankedBackbone:
    backbone = candidate if isinstance(candidate, keras.layers.Layer) else candidate()
    where = None if directory is None else pathlib.Path(directory) / name
    try:
        model = _as_transfer_model(backbone)
        start = time.perf_counter()
        features, labels = _features(FeatureCache(where), model, part, batch_size)
        seconds = time.perf_counter() - start
        values = {score: SCORES[score](features, labels) for score in scores}
    except (TypeError, ValueError) as error:
        raise type(error)(f"Candidate {name!r}: {error}") from error
    parameters = model.backbone.model.count_params()
    return RankedBackbone(name, values, seconds, int(parameters), int(features.shape[1]))


def _as_transfer_model(backbone: Any) -> TransferModel:
    if isinstance(backbone, TransferModel):
        return backbone
    if not isinstance(backbone, keras.Model | PretrainedBackbone):
        raise TypeError(
            "a candidate must be a Keras model, a `PretrainedBackbone` or a `TransferModel`. "
            f"Received: {backbone!r} of type {type(backbone).__name__}"
        )
    # Of the head only the pooling is used.
    return TransferModel(backbone, ClassificationHead(num_classes=2))


def _features(
    cache: FeatureCache, model: TransferModel, part: Part, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    found = cache.features(model, part[0], batch_size=batch_size, verbose=0)
    if len(part) > 1:
        return np.asarray(found), part[1]
    assert isinstance(found, tf.data.Dataset)
    pairs = [(np.asarray(batch[0]), np.asarray(batch[1])) for batch in found]
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
