import json

import numpy as np
import pytest

from examples.multi_worker import launch, train

SHORT = ("--source-epochs", "1", "--epochs", "1")


@pytest.mark.distributed
def test_two_local_workers_come_to_the_numbers_of_one_process(tmp_path, capfd):
    assert launch.main(["--directory", str(tmp_path / "two"), "--timeout", "240", *SHORT]) == 0
    train.main(["--directory", str(tmp_path / "one"), *SHORT])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    two, one = map(json.loads, lines)
    assert (two["replicas"], one["replicas"]) == (2, 1)
    np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-4)
    np.testing.assert_allclose(two["test_loss"], one["test_loss"], atol=1e-4)
    assert list((tmp_path / "two").iterdir()), "the chief has written checkpoints"


@pytest.mark.distributed
def test_a_worker_that_fails_ends_the_others():
    # An option that `train.py` does not know: each worker ends with an error of its own.
    assert launch.main(["--no-such-option", "--timeout", "60"]) != 0
