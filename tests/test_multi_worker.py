"""Two local worker processes under `MultiWorkerMirroredStrategy` train as one process does."""

import signal

import numpy as np
import pytest

from tests.processes import run_in_child
from tests.workers import run_workers, start_workers

MODULE = "tests.workers.training"
CASES = ("stock", "batch_norm")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def cases(parameters_that_run):
    return [one["case"] for one in parameters_that_run]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cases):
    cached = f"cached:{tmp_path_factory.mktemp('cache_of_one')}"
    return {r["case"]: r for r in run_in_child(MODULE, *cases, cached)}


@pytest.fixture(scope="module")
def workers(tmp_path_factory, cases):
    cached = f"cached:{tmp_path_factory.mktemp('cache')}"
    results = run_workers(MODULE, *cases, "decisions", cached, "unprepared")
    return [{r["case"]: r for r in found} for found in results]


@pytest.mark.usually("stock")
@pytest.mark.parametrize("case", CASES)
def test_two_workers_give_the_numbers_of_one_process(alone, workers, case):
    one = alone[case]
    assert one["replicas"] == 1
    for worker in workers:
        two = worker[case]
        assert two["replicas"] == 2
        np.testing.assert_allclose(two["weights"], one["weights"], atol=1e-5)
        for column in ("loss", "accuracy", "val_loss", "val_accuracy", "evaluated"):
            np.testing.assert_allclose(two[column], one[column], atol=1e-5)
    assert np.abs(np.subtract(one["weights"], one["start"])).max() > 1e-2


def test_keras_needs_to_be_prepared_still(workers):
    # When this fails, Keras can do it itself: take out what `distribute.prepare` does for it.
    for worker in workers:
        assert "Attempt to convert a value (PerReplica" in worker["unprepared"]["error"]


def test_each_worker_caches_its_share_and_finds_it_again(alone, workers):
    one = alone["cached"]["runs"][0]
    for worker in workers:
        first, second = worker["cached"]["runs"]
        # Shuffled, and in the order of one process all the same.
        np.testing.assert_allclose(first["loss"], one["loss"], atol=1e-5)
        np.testing.assert_allclose(first["val_loss"], one["val_loss"], atol=1e-5)
        np.testing.assert_allclose(first["weights"], one["weights"], atol=1e-5)
        assert second == first, "the second run writes no entry, and ends the same"
        # Of 22 examples and 9 of validation data, each worker ran the frozen layers over a half.
        assert worker["cached"]["rows"] == [4, 5, 11, 11]
    assert alone["cached"]["rows"] == [9, 22]


def test_all_workers_stop_where_one_does(workers):
    for worker in workers:
        assert (worker["decisions"]["epochs"], worker["decisions"]["batches"]) == (1, 3)


def test_workers_with_other_seeds_see_the_examples_in_one_order(workers):
    # Weights are the same in any case; loss curves are of all examples, once each.
    one, two = (worker["decisions"] for worker in workers)
    assert one["weights"] == two["weights"]
    assert one["order"] == two["order"]
    assert one["order"] != sorted(one["order"])


def test_a_plateau_ends_where_the_chief_sees_it(workers):
    # The second worker's own value improves in every epoch; the chief's never does.
    for worker in workers:
        assert worker["decisions"]["stages"] == [0, 0, 1]


def test_callbacks_that_write_from_every_worker_are_refused_in_all(workers):
    assert "distribute.is_chief(strategy)" in workers[1]["decisions"]["errors"][0]
    for worker in workers:
        everywhere, restoring = worker["decisions"]["errors"]
        for error in (everywhere, restoring):
            assert "Only the chief may write" in error
            assert "ResumableTraining" in error
    assert "`ModelCheckpoint`" in workers[1]["decisions"]["errors"][0]
    assert "`BackupAndRestore`" in workers[0]["decisions"]["errors"][1]


def test_a_killed_worker_ends_the_others_and_all_go_on_when_started_again(tmp_path):
    kept = tmp_path / "kept"
    with start_workers(MODULE, f"resumable:{kept}:1") as (left, killed):
        assert killed.wait() == -signal.SIGKILL
        assert left.wait(timeout=120) not in (0, -signal.SIGKILL)
        assert left.results == []
        assert "UnavailableError" in left.err
    (unbroken,) = run_in_child(MODULE, f"resumable:{tmp_path / 'other'}:none")
    for (resumed,) in run_workers(MODULE, f"resumable:{kept}:none"):
        assert resumed["loss"] == pytest.approx(unbroken["loss"], abs=1e-5)
        np.testing.assert_allclose(resumed["weights"], unbroken["weights"], atol=1e-5)
    assert not [p for p in kept.iterdir() if not p.name.startswith("checkpoint-")]
