"""Trajectories against `torch.optim`, which counts steps for each parameter."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.optimizers import discriminative
from tests.optimizers.reference import problem

REFERENCE = json.loads(
    (pathlib.Path(problem.__file__).parent / "torch_trajectories.json").read_text()
)


def make(name):
    adam = {"beta_1": problem.BETA_1, "beta_2": problem.BETA_2, "epsilon": problem.EPSILON}
    rate = problem.BASE_RATE
    if name == "adam":
        return keras.optimizers.Adam(rate, **adam)
    if name == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=problem.WEIGHT_DECAY, **adam)
    if name == "nadam":
        return keras.optimizers.Nadam(rate, **adam)
    return keras.optimizers.SGD(rate, problem.MOMENTUM, nesterov=name == "sgd_nesterov")


def make_variables():
    return {
        name: keras.Variable(value, dtype="float64", name=name.replace("/", "_"))
        for name, value in problem.start().items()
    }


def group_of(variables):
    return {
        group: [v for name, v in variables.items() if name.startswith(f"{group}/")]
        for group in problem.MULTIPLIERS
    }


def errors(optimizer, variables, *, rebuild):
    """Runs the problem; returns the largest distance from PyTorch at each recorded step."""
    reference = REFERENCE[type_name(optimizer)]
    step, distances = 0, {}
    for until, training in problem.STAGES:
        names = [name for name in variables if name in training]
        if rebuild:
            optimizer.build([variables[name] for name in names])

        @tf.function
        def update(grads, names=names):
            optimizer.apply(grads, [variables[name] for name in names])

        while step < until:
            update([problem.gradient(n, variables[n].numpy(), step) for n in names])
            step += 1
            if str(step) in reference:
                distances[step] = max(
                    np.abs(v.numpy().ravel() - reference[str(step)][name]).max()
                    for name, v in variables.items()
                )
    return distances


def type_name(optimizer):
    return optimizer.name


@pytest.mark.usually("adamw", "sgd_momentum")
@pytest.mark.parametrize("name", problem.OPTIMIZERS)
def test_groups_follow_torch_across_two_unfreezings(name):
    variables = make_variables()
    plain = make(name)
    plain.name = name
    optimizer = discriminative(plain)
    optimizer.set_groups(group_of(variables))
    optimizer.set_multipliers(problem.MULTIPLIERS)
    distances = errors(optimizer, variables, rebuild=True)
    assert sorted(distances) == sorted(problem.RECORDED)
    assert max(distances.values()) < 1e-6
    moved = [np.abs(v.numpy() - problem.start()[n]).max() for n, v in variables.items()]
    assert min(moved) > 1e-2, "a problem in which nothing moves would prove nothing"


@pytest.mark.usually("adam")
@pytest.mark.parametrize("name", ["adam", "adamw", "nadam"])
def test_control_one_counter_for_all_groups_leaves_torch(name):
    variables = make_variables()
    optimizer = make(name)
    optimizer.name = name
    optimizer.build(list(variables.values()))
    distances = errors(optimizer, variables, rebuild=False)
    assert distances[60] < 1e-6, "while the head alone trains, there is only one counter"
    assert distances[61] > 1e-3
