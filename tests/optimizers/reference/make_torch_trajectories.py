"""Writes `torch_trajectories.json`: what `torch.optim` does, for the tests to compare with.

PyTorch is no dependency of the tests. To make the file anew, in an environment of its own:

    pip install torch==2.13.0 numpy
    python -m tests.optimizers.reference.make_torch_trajectories
"""

import json
import pathlib

import torch

from tests.optimizers.reference import problem


def make(name, groups):
    adam = {"betas": (problem.BETA_1, problem.BETA_2), "eps": problem.EPSILON}
    rate = problem.BASE_RATE
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, **adam)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=problem.WEIGHT_DECAY, **adam)
    if name == "nadam":
        # Keras's Nadam decays its momentum by 0.96 ** step.
        return torch.optim.NAdam(groups, lr=rate, momentum_decay=1.0, **adam)
    nesterov = name == "sgd_nesterov"
    return torch.optim.SGD(groups, lr=rate, momentum=problem.MOMENTUM, nesterov=nesterov)


def trajectory(name):
    parameters = {
        key: torch.nn.Parameter(torch.tensor(value)) for key, value in problem.start().items()
    }
    groups = [
        {
            "params": [p for key, p in parameters.items() if key.startswith(f"{group}/")],
            "lr": problem.BASE_RATE * multiplier,
        }
        for group, multiplier in problem.MULTIPLIERS.items()
    ]
    optimizer = make(name, groups)
    recorded, step = {}, 0
    for until, training in problem.STAGES:
        while step < until:
            for key, parameter in parameters.items():
                parameter.grad = None
                if key in training:
                    value = parameter.detach().numpy()
                    parameter.grad = torch.tensor(problem.gradient(key, value, step))
            optimizer.step()
            step += 1
            if step in problem.RECORDED:
                recorded[step] = {
                    key: [round(x, 12) for x in p.detach().numpy().ravel().tolist()]
                    for key, p in parameters.items()
                }
    return recorded


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product in the default type
    result = {"torch": torch.__version__.split("+")[0]}
    result.update({name: trajectory(name) for name in problem.OPTIMIZERS})
    path = pathlib.Path(__file__).with_name("torch_trajectories.json")
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")
