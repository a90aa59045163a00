import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer._partition import equal_runs

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=8)


def largest_run(sizes, starts):
    ends = [*starts[1:], len(sizes)]
    return max(sum(sizes[start:end]) for start, end in zip(starts, ends, strict=True))


@given(sizes, st.data())
def test_runs_are_contiguous_none_is_empty_and_the_largest_is_as_small_as_can_be(sizes, data):
    runs = data.draw(st.integers(1, len(sizes)))
    starts = equal_runs(sizes, runs)
    assert len(starts) == runs
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < len(sizes)
    every_way = itertools.combinations(range(1, len(sizes)), runs - 1)
    best = min(largest_run(sizes, [0, *rest]) for rest in every_way)
    assert largest_run(sizes, starts) == best


@pytest.mark.parametrize("runs", [0, 4])
def test_more_runs_than_blocks_or_none_are_an_error(runs):
    with pytest.raises(ValueError, match=f"Cannot cut 3 blocks into {runs} runs"):
        equal_runs([1, 2, 3], runs)
