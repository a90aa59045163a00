"""Kinds of models, ways to run a step, precisions and optimizers: every pair, before and after.

Each test asserts which weights moved in each stage and which did not, bit for bit.
"""

import itertools

import keras
import numpy as np
import pytest

from tests.callbacks import toys

FACTORS = {
    "model": ["functional", "stock", "subclassed", "transfer"],
    "mode": ["plain", "jit_compile", "run_eagerly", "steps_per_execution"],
    "precision": ["float32", "mixed_float16", "mixed_bfloat16"],
    "optimizer": ["adam", "adamw", "momentum", "lion"],
}
MODES = {
    "plain": {},
    "jit_compile": {"jit_compile": True},
    "run_eagerly": {"run_eagerly": True},
    "steps_per_execution": {"steps_per_execution": 4},
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    # Lion steps by the sign: without decay, as many steps up as down end where they began.
    "lion": lambda: keras.optimizers.Lion(0.001, weight_decay=0.1),
}


def pairs_of(combination):
    return set(itertools.combinations(enumerate(combination), 2))


def pairwise():
    """Returns combinations in which every pair of values of two factors comes together."""
    everything = list(itertools.product(*FACTORS.values()))
    wanted = set().union(*map(pairs_of, everything))
    chosen = []
    while wanted:
        best = max(everything, key=lambda c: len(pairs_of(c) & wanted))
        chosen.append(best)
        wanted -= pairs_of(best)
    return chosen


def test_every_pair_is_there():
    pairs = set().union(*map(pairs_of, pairwise()))
    assert len(pairs) == sum(
        len(a) * len(b) for a, b in itertools.combinations(FACTORS.values(), 2)
    )


@pytest.mark.usually("transfer-steps_per_execution-mixed_float16-lion")
@pytest.mark.parametrize("combination", pairwise(), ids="-".join)
def test_each_stage_moves_what_it_trains_and_nothing_else(combination):
    model_name, mode, precision, optimizer = combination
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    model = toys.compiled(getattr(toys, model_name)(), OPTIMIZERS[optimizer](), **MODES[mode])
    before = [np.array(w) for w in model.get_weights()]
    # Four steps for each epoch, the first of which loss scaling may leave out.
    assert toys.fit(model, batch_size=4) == toys.EXPECTED
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert model.compute_dtype == keras.config.dtype_policy().compute_dtype
    # And from there: frozen again, then all of it.
    middle = [np.array(w) for w in model.get_weights()]
    assert toys.fit(model, toys.TWO_STAGES, batch_size=4) == toys.EXPECTED_OF_TWO_STAGES
    assert not any(np.array_equal(a, b) for a, b in zip(before, middle, strict=True))
