"""The options that the comparisons share."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

import keras_transfer as ktf


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, output: str, seeds: int = 3
) -> argparse.Namespace:
    """Adds the shared options, parses, and checks.

    Args:
        parser: The example's parser, with its own options.
        arguments: What to parse; `None` for the command line's.
        output: Where the picture goes by default.
        seeds: Number of seeds by default.

    Returns:
        The options; `seeds` is the range of seeds to run.
    """
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, at least 2")
    parser.add_argument("--quick", action="store_true", help="a quarter of the epochs, two seeds")
    parser.add_argument(
        "--validate", action="store_true", help="with other seeds, on data outside the test set"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("outputs/tensorflow_datasets"),
        help="where TensorFlow Datasets keeps the prepared data",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=_processes(),
        help="trainings at a time; by default 2, or 1 on one core or beside a GPU",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help="the picture")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(
            f"--seeds must be at least 2, or there is no spread. Received: {options.seeds}"
        )
    if options.processes < 1:
        parser.error(f"--processes must be at least 1. Received: {options.processes}")
    first = 100 if options.validate else 0
    options.seeds = range(first, first + (2 if options.quick else options.seeds))
    return options


def _processes() -> int:
    # Each process would take the whole memory of a GPU.
    beside_gpu = bool(tf.config.list_physical_devices("GPU"))
    return 1 if beside_gpu else min(2, os.cpu_count() or 1)


def planned(plan: ktf.UnfreezingPlan, options: argparse.Namespace) -> ktf.UnfreezingPlan:
    """Returns the plan, with a quarter of each stage's epochs under `--quick`."""
    if not options.quick:
        return plan
    stages = [dataclasses.replace(s, epochs=max(1, s.epochs // 4)) for s in plan.stages]
    return dataclasses.replace(plan, stages=stages)
