"""Fine-tunes two pretrained text models on 64 rated tweets: a Transformer encoder and an RNN.

Run it with `.venv/bin/python examples/text_classification.py` (after `make quickstart`). The
Transformer is all-MiniLM-L6-v2; the RNN is a bidirectional GRU on pretrained word vectors. Each is
measured against the same network from random weights.
"""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples._command_line import parse, planned
from examples._comparison import Contender, Result, compare, draw_accuracies, report
from examples.datasets import rated_sentences
from examples.datasets.builders.rated_sentences import RatedSentences
from examples.pretrained import minilm, word_vectors

TOKENS = 24  # of each sentence; half of all tweets have no more than 23


def transformer(pretrained: bool) -> ktf.TransferModel:
    """Returns the Transformer encoder with a new head on the mean of its vectors."""
    backbone = minilm.minilm("sentences" if pretrained else None)
    return _compiled(backbone, ktf.layers.ClassificationHead(num_classes=2, dropout=0.1))


def rnn(pretrained: bool) -> ktf.TransferModel:
    """Returns a bidirectional GRU, always new, on word vectors that are pretrained or random."""
    known = word_vectors.word_vectors()
    vectors = keras.layers.Embedding(*known.shape, mask_zero=True, name="vectors")
    gru = keras.layers.Bidirectional(keras.layers.GRU(64), name="gru")
    backbone = keras.Sequential([keras.Input((TOKENS,), dtype="int32"), vectors, gru], name="rnn")
    if pretrained:
        vectors.set_weights([known])
    return _compiled(backbone, ktf.layers.ClassificationHead(num_classes=2, dropout=0.3))


def _compiled(backbone: keras.Model, head: keras.layers.Layer) -> ktf.TransferModel:
    model = ktf.TransferModel(backbone, head, groups="blocks")
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def tokenized(
    tokenize: Callable[[Sequence[str], int], np.ndarray], examples: tf.data.Dataset
) -> tf.data.Dataset:
    """Turns texts into token numbers, once: a tokenizer is Python, which `fit` cannot cache."""
    pairs = [(text.decode(), label) for text, label in examples.as_numpy_iterator()]
    texts, labels = zip(*pairs, strict=True)
    return tf.data.Dataset.from_tensor_slices((tokenize(texts, TOKENS), np.array(labels)))


MODELS = ("Transformer", "RNN")
PROBE = "Transformer, linear probing"

# name: (model, its tokenizer, whether it is pretrained, plan)
CONTENDERS = {
    PROBE: (
        transformer,
        minilm.tokenize,
        True,
        ktf.recipes.linear_probe(epochs=25, peak_lr=1e-2),
    ),
    "Transformer, probe then top layer": (
        transformer,
        minilm.tokenize,
        True,
        ktf.UnfreezingPlan(
            [
                ktf.Stage("probe", depth=1, epochs=20, peak_lr=1e-2),
                ktf.Stage("top layer", depth=3, epochs=5, peak_lr=1e-4),
            ]
        ),
    ),
    "Transformer, from scratch": (
        transformer,
        minilm.tokenize,
        False,
        ktf.recipes.full_fine_tuning(epochs=2, peak_lr=1e-4, schedule="warmup_cosine"),
    ),
    "RNN, pretrained vectors": (
        rnn,
        word_vectors.tokenize,
        True,
        ktf.UnfreezingPlan([ktf.Stage("gru and head", depth=2, epochs=10, peak_lr=3e-3)]),
    ),
    "RNN, from scratch": (
        rnn,
        word_vectors.tokenize,
        False,
        ktf.recipes.full_fine_tuning(epochs=10, peak_lr=3e-3),
    ),
}


def draw(results: Sequence[Result], test: tf.data.Dataset, shown: str, path: Path) -> None:
    """Draws the accuracies, and test sentences with what one contender makes of them."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    draw_accuracies(results, above.subplots())
    ax = below.subplots()
    ax.set_axis_off()
    (predicted,) = (result.predicted for result in results if result.name == shown)
    for row, (text, label) in enumerate(test.take(6).as_numpy_iterator()):
        right = predicted[row] == label
        said = "positive" if predicted[row] else "negative"
        ax.text(0, 1 - row / 6, said, va="top", color="#1a7f37" if right else "#c0392b", fontsize=9)
        start = textwrap.shorten(text.decode(), 110, placeholder=" ...")
        ax.text(0.09, 1 - row / 6, start, va="top", fontsize=9, parse_math=False)
    below.suptitle(f"First six test sentences, and what the first seed of {shown!r} takes them for")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Runs the comparison; returns a result for each contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=list(rated_sentences.SOURCES), default="tweets")
    parser.add_argument("--per-class", type=int, default=32, help="sentences of each class")
    parser.add_argument("--test-size", type=int, default=200)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--probe", action="store_true", help="also train the head alone")
    options = parse(parser, arguments, output="outputs/text_classification.png")
    measured = "train[80%:]" if options.validate else "test"
    try:
        (pool, test), _ = ktf.data.load(
            RatedSentences(config=options.source, data_dir=options.data_dir),
            [
                "train[:80%]",
                f"{measured}[:{options.test_size}]" if measured == "test" else measured,
            ],
            batch_size=None,
        )
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    test = test.take(options.test_size)
    contenders = [
        Contender(
            name,
            functools.partial(model, pretrained),
            planned(plan, options),
            baseline=f"{name.split(',')[0]}, from scratch" if pretrained else None,
            prepare=functools.partial(tokenized, tokenize),
        )
        for name, (model, tokenize, pretrained, plan) in CONTENDERS.items()
        if name.split(",")[0] in options.models and (options.probe or name != PROBE)
    ]
    shown = max((c for c in contenders if c.baseline), key=lambda c: len(c.plan.stages))
    print(f"{shown.name}\n{ktf.describe(shown.model(), shown.plan)}\n")
    results = compare(
        contenders,
        pool,
        test,
        per_class=options.per_class,
        num_classes=2,
        batch_size=20,
        seeds=options.seeds,
        processes=options.processes,
    )
    print(f"\n{report(results)}")
    if not options.validate:
        draw(results, test, shown.name, options.output)
        print(f"Drawn: {options.output}")
    return results


if __name__ == "__main__":
    main()
