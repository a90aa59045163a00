"""The chief of a search on several workers."""

from __future__ import annotations

import os
import time
from concurrent import futures
from typing import Any

LONGEST_SILENCE = 3600.0  # seconds; as long as a worker waits for its chief


def serve(oracle: Any) -> None:
    """Answers workers until the work is done, or has failed.

    KerasTuner's own loop waits for the trials of workers that are gone, and for ever once too
    many trials have failed.

    Args:
        oracle: A `ReliableOracle`.

    Raises:
        RuntimeError: If no worker has been heard of for an hour.
    """
    import grpc  # type: ignore[import-untyped]
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(oracle), server)
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server.add_insecure_port(address)
    server.start()
    try:
        while not oracle.is_over():
            time.sleep(0.2)
            oracle.take_back_lost_trials()
            if oracle.leases.silence() > LONGEST_SILENCE:
                raise RuntimeError(
                    f"The chief at {address} has heard of no worker for an hour, and trials are "
                    "left. Start workers with the same KERASTUNER_ORACLE_IP and _PORT, and the "
                    "chief again: it goes on where it was."
                )
    finally:
        server.stop(grace=1).wait()
