"""What runs in a job: a dask worker that has pieces of work done by child processes of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from histoquant.cluster.child import Answer
from histoquant.cluster.local import Piece
from histoquant.cluster.pool import Pool
from histoquant.errors import ClusterError, WorkerError

LAST_S = 45.0
"""How long a worker that has ended may take to leave; dask itself gives its threads 30 s."""

JOB_NUMBERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


@dataclass(frozen=True)
class Node:
    """How the worker of one run divides its machine.

    Attributes
    ----------
    run : str
        Tells this run from others that use the same workers.
    workers : int
        Child processes.
    memory_bytes : int
        Of all of them together.
    """

    run: str
    workers: int
    memory_bytes: int


_held: dict[Node, Pool] = {}
_lock = threading.Lock()


def ask(call: bytes, piece: Piece, node: Node) -> Answer:
    """Have a call made by a child process of this worker.

    The death of a child is an answer, not an error of the worker: dask would try the piece elsewhere, and blame all
    that this worker had queued.
    """
    try:
        answer = _pool(node).ask(call, piece.limit_s, alone=piece.alone)
    except (WorkerError, ClusterError) as error:
        answer = Answer(pickle.dumps((False, error)), 0.0, 0)
    return replace(answer, where=_where())


def _pool(node: Node) -> Pool:
    if multiprocessing.current_process().daemon:
        raise ClusterError(
            "The dask workers run under a nanny and cannot have child processes.", "Start them with --no-nanny."
        )
    with _lock:
        if node not in _held:
            _close()  # those of an earlier run
            _held[node] = Pool(node.workers, node.memory_bytes)
        return _held[node]


@atexit.register
def _close() -> None:
    """End the child processes: at its end Python waits for them, and they wait for work."""
    while _held:
        _held.popitem()[1].close()


def dask_setup(_: object) -> None:
    """End this process soon after it is told to; dask calls this as the worker starts."""
    for number in (signal.SIGINT, signal.SIGTERM):
        dasks = signal.getsignal(number)

        def told(number: int, frame: FrameType | None, dasks: Any = dasks) -> None:
            _leave_soon()
            if callable(dasks):
                dasks(number, frame)

        signal.signal(number, told)


def dask_teardown(_: object) -> None:
    """End this process soon after its worker; dask calls this as the worker closes."""
    _leave_soon()


def _leave_soon() -> None:
    # asyncio waits for every task that it cancels, and some of a worker's never end: jobs were seen to stay, doing
    # nothing.
    threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    time.sleep(LAST_S)
    _close()
    os._exit(0)


def _where() -> str:
    job = next((os.environ[name] for name in JOB_NUMBERS if name in os.environ), "")
    return f"{socket.gethostname()} job {job}" if job else f"{socket.gethostname()} process {os.getpid()}"


if __name__ == "__main__":
    # Child processes load the module their parent was started with: this one is light, dask's own is not.
    from distributed.cli.dask_worker import main

    main(args=[*sys.argv[1:], "--no-nanny", "--preload", "histoquant.cluster.node"])
