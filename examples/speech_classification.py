"""Fine-tunes a pretrained voice encoder (three LSTMs) on three clips of each of nine speakers.

Run it with `.venv/bin/python examples/speech_classification.py` (after `make quickstart`). The real
recordings are in a Debian package (`apt-get install tuxpaint-stamps-default`, 161 MB), which
differ in language, speaker and microphone at once: the task is which recording series a word
is from. `--data synthetic` runs on computed vowels, and shows only that the example runs.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples._command_line import parse, planned
from examples._comparison import Contender, Result, compare, draw_accuracies, report
from examples.datasets.builders.spoken_words import SpokenWords, SyntheticVoices
from examples.pretrained.mel_spectrogram import SAMPLE_RATE, MelSpectrogram
from examples.pretrained.voice_encoder import voice_encoder

SECONDS = 0.6  # of each clip's 1.6: an LSTM's time grows with the number of its steps
DATA = {"real": SpokenWords, "synthetic": SyntheticVoices}
SCRATCH = "from scratch"
RANDOM = "random features, probed"
PLANS = {
    "linear probing": ktf.recipes.linear_probe(epochs=40, peak_lr=3e-2),
    "LP-FT": ktf.recipes.lp_ft(
        probe_epochs=40, fine_tune_epochs=6, probe_lr=3e-2, fine_tune_lr=3e-4
    ),
    RANDOM: ktf.recipes.linear_probe(epochs=40, peak_lr=3e-2),
    SCRATCH: ktf.recipes.full_fine_tuning(epochs=30, peak_lr=1e-3, schedule="one_cycle"),
}


def new_model(num_classes: int, pretrained: bool) -> ktf.TransferModel:
    """Puts a new head on the encoder, pretrained or with random weights, and compiles.

    The network that starts at random gets the logarithm of the spectrogram, from which it
    learns better; the pretrained one takes what it was trained with.
    """
    mel = MelSpectrogram(log=not pretrained)
    backbone = voice_encoder("voices" if pretrained else None, mel)
    head = ktf.layers.ClassificationHead(num_classes)
    model = ktf.TransferModel(backbone, head, groups="blocks")
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def as_sound(clip: Any, label: Any) -> tuple[Any, Any]:
    """Cuts a clip, and scales it to [-1, 1]."""
    return tf.cast(clip[: int(SECONDS * SAMPLE_RATE)], tf.float32) / 32768, label


def draw(
    results: Sequence[Result], test: tf.data.Dataset, names: Sequence[str], path: Path
) -> None:
    """Draws the accuracies, and spectrograms of test clips with what LP-FT takes them for."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    draw_accuracies(results, above.subplots())
    sounds, labels = (np.concatenate(list(part)) for part in zip(*test.batch(100), strict=True))
    shown = [int(np.flatnonzero(labels == label)[0]) for label in range(len(names))]
    pictures = keras.ops.convert_to_numpy(MelSpectrogram(log=True)(sounds[shown]))
    best = next(result for result in results if result.name == "LP-FT")
    for ax, index, picture in zip(below.subplots(1, len(names)), shown, pictures, strict=True):
        ax.imshow(picture.T, origin="lower", aspect="auto", cmap="magma")
        right = best.predicted[index] == labels[index]
        ax.set_title(
            names[best.predicted[index]], fontsize=9, color="#1a7f37" if right else "#c0392b"
        )
        ax.set_xlabel("" if right else f"is {names[labels[index]]}", fontsize=9)
        ax.set_xticks([], [])
        ax.set_yticks([], [])
    below.suptitle("First test clip of each series, and what LP-FT's first seed takes it for")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Runs the comparison; returns a result for each contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(DATA), default="real")
    parser.add_argument("--per-class", type=int, default=3, help="clips of each series")
    options = parse(parser, arguments, output="outputs/speech_classification.png")
    try:
        (pool, test), spec = ktf.data.load(
            DATA[options.data],
            ["train[:70%]", "train[70%:]" if options.validate else "test"],
            batch_size=None,
            data_dir=options.data_dir,
        )
    except RuntimeError as error:
        raise SystemExit(f"{error}\nOr try --data synthetic, which needs no download.") from error
    pool, test = pool.map(as_sound), test.map(as_sound)
    num_classes = len(spec.class_names)
    contenders = [
        Contender(
            name,
            functools.partial(new_model, num_classes, pretrained=name not in (RANDOM, SCRATCH)),
            planned(PLANS[name], options),
            baseline=None if name == SCRATCH else SCRATCH,
        )
        for name in PLANS
    ]
    shown = next(each for each in contenders if each.baseline and len(each.plan.stages) > 1)
    print(f"{shown.name}\n{ktf.describe(shown.model(), shown.plan)}\n")
    results = compare(
        contenders,
        pool,
        test,
        per_class=options.per_class,
        num_classes=num_classes,
        batch_size=num_classes * min(3, options.per_class),
        seeds=options.seeds,
        processes=options.processes,
    )
    print(f"\n{report(results)}")
    if options.data == "synthetic":
        print("Synthetic voices: these figures say nothing about speech.")
    if not options.validate:
        draw(results, test, spec.class_names, options.output)
        print(f"Drawn: {options.output}")
    return results


if __name__ == "__main__":
    main()
