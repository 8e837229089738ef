"""Where work runs: in this process, or on worker processes of this machine through dask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from histoquant.cores import available_cores as available_cores
from histoquant.errors import InputError


class Inline(Executor):
    """Runs each piece of work at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the work and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its work raised
            future.set_exception(error)
        return future


@contextlib.contextmanager
def workers(number: int | None = None) -> Iterator[Executor]:
    """Give an executor with a number of workers on this machine.

    Parameters
    ----------
    number : int, optional
        1 runs everything in this process; more start that many processes, which listen on the loopback address only.
        As many as there are cores when not given.

    Raises
    ------
    InputError
        If the number is below 1.
    """
    number = available_cores() if number is None else number
    if number < 1:
        raise InputError(f"{number} workers cannot do any work.", "Give --workers 1 or more.")
    if number == 1:
        yield Inline()
        return
    import dask
    from distributed import Client, LocalCluster

    settings = {
        # A block takes seconds and returns a key, so stealing and spilling have nothing to gain here.
        "distributed.scheduler.work-stealing": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        # A worker that dies is replaced and its block tried again; three deaths of one block are the block's fault.
        "distributed.scheduler.allowed-failures": 2,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: two runs on one machine must not meet
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)
