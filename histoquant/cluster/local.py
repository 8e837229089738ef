"""Workers on this machine: this process, its threads, or processes that dask hands pieces of work to."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from histoquant.cluster.child import Answer
from histoquant.cluster.performance import Performance
from histoquant.cluster.pool import Pool
from histoquant.cores import available_cores
from histoquant.errors import InputError

MEMORY_SHARE = 0.8
"""Part of this machine's memory a run takes when it is not told how much; the rest is for everything else on it."""


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes
    ----------
    memory_gb : float, optional
        Of all processes together; most of what the machine has when not given.
    block_timeout_s : float, optional
        A block of tiles that takes longer fails its slide; generous, by its size, when not given.
    """

    memory_gb: float | None = None
    block_timeout_s: float | None = None


@dataclass(frozen=True)
class Piece:
    """What a piece of work is, for those who do it.

    Attributes
    ----------
    stage, slide : str
        What is done, and with what: for progress and for ``performance.csv``.
    limit_s : float, optional
        How long it may take.
    alone : bool
        Nothing else may run beside it on its machine.
    """

    stage: str = "work"
    slide: str = ""
    limit_s: float | None = None
    alone: bool = False


PLAIN = Piece()


class Workers(Protocol):
    """What runs pieces of work."""

    performance: Performance

    @property
    def number(self) -> int:
        """How many pieces are worked on at once now."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, piece: Piece = PLAIN) -> Future[Any]:
        """Run ``fn(*args)`` and return the future of what it gives."""

    def expect(self, pieces: int) -> None:
        """Be told how many pieces of work are still to come."""

    def told(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the workers; empty for those of this machine."""

    def report(self) -> str:
        """Return dask's report on what was done when, as a page that needs no network; empty for this machine."""


class _Here:
    """What workers of this machine have in common."""

    def __init__(self) -> None:
        self.performance = Performance()

    def expect(self, pieces: int) -> None:
        """Do nothing: there are no more of them to be had."""

    def told(self) -> dict[str, Any]:
        """Return nothing: the machine is named anyway."""
        return {}

    def report(self) -> str:
        """Return nothing: dask sees only the threads of this process, which wait for others."""
        return ""

    def _timed(self, piece: Piece, fn: Callable[..., Any], *args: Any) -> Any:
        begun = time.monotonic()
        given = fn(*args)
        self.performance.add(piece.stage, piece.slide, Answer(b"", time.monotonic() - begun, 0, socket.gethostname()))
        return given


class Inline(_Here):
    """Runs each piece of work at once, in this process. Nothing can stop a piece that hangs."""

    number = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, piece: Piece = PLAIN) -> Future[Any]:
        """Run the work and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(self._timed(piece, fn, *args))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its work raised
            future.set_exception(error)
        return future


class Threads(_Here):
    """Threads of this process: nothing is started, and nothing can stop a piece that hangs or crashes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="histoquant")

    def submit(self, fn: Callable[..., Any], /, *args: Any, piece: Piece = PLAIN) -> Future[Any]:
        """Queue a piece of work."""
        return self._pool.submit(self._timed, piece, fn, *args)

    def everywhere(self, fn: Callable[[], None]) -> None:
        """Call something once in every thread. Only while none is busy."""
        together = threading.Barrier(self.number)

        def call() -> None:
            together.wait()
            fn()

        for future in [self._pool.submit(call) for _ in range(self.number)]:
            future.result()

    def close(self) -> None:
        """Forget what is queued, and wait for what is being done."""
        self._pool.shutdown(cancel_futures=True)


def available_memory() -> int:
    """Return how many bytes of memory a run may take when it is not told: a share of what this machine or job has."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
    return int(MEMORY_SHARE * total)


@contextlib.contextmanager
def workers(number: int | None = None, *, memory_bytes: int | None = None) -> Iterator[Processes]:
    """Give worker processes on this machine; they end with this block, and with this process however it ends.

    Parameters
    ----------
    number : int, optional
        As many as there are cores when not given.
    memory_bytes : int, optional
        Shared evenly; a worker that takes more than its share is ended.

    Raises
    ------
    InputError
        If the number is below 1.
    """
    number = available_cores() if number is None else number
    if number < 1:
        raise InputError(f"{number} workers cannot do any work.", "Give --workers 1 or more.")
    pool = Processes(number, available_memory() if memory_bytes is None else memory_bytes)
    try:
        yield pool
    finally:
        pool.close()


class Processes(_Here):
    """Worker processes, each doing one piece of work at a time that dask hands out.

    Dask's own threads run in this process, and each has a piece done by a child process of its own: it must be known
    which piece ended a process, while dask blames a death on every piece the process had queued, and cannot end a piece
    that takes too long.

    A future raises `WorkerDiedError` when the process died, and `WorkerError` when it was ended for running over its
    time or memory. The next piece finds a new process in its place.
    """

    def __init__(self, number: int, memory_bytes: int) -> None:
        super().__init__()
        self._pool = Pool(number, memory_bytes)
        self._name = f"{id(self)}"
        _RUNNING[self._name] = self
        self._ended = contextlib.ExitStack()
        self._dask = self._ended.enter_context(_dask_threads(number))

    @property
    def number(self) -> int:
        """How many processes there are."""
        return self._pool.number

    def keep(self, number: int) -> None:
        """Go on with fewer workers, each with a larger share. Only while none is busy."""
        self._pool.keep(number)

    def submit(self, fn: Callable[..., Any], /, *args: Any, piece: Piece = PLAIN) -> Future[Any]:
        """Queue a piece of work; its time runs from when a worker takes it."""
        future: Future[Any] = self._dask.submit(_ask, self._name, pickle.dumps((fn, args)), piece)
        return future

    def ask(self, call: bytes, piece: Piece) -> Any:
        """Have a call made by whichever process is idle."""
        answer = self._pool.ask(call, piece.limit_s, alone=piece.alone)
        self.performance.add(piece.stage, piece.slide, replace(answer, where=socket.gethostname()))
        return answer.value()

    def close(self) -> None:
        """End all workers at once; what they were doing is lost."""
        self._pool.close()
        self._ended.close()
        del _RUNNING[self._name]


_RUNNING: dict[str, Processes] = {}
"""Workers of this process by name: dask copies what it hands out, and processes cannot be copied."""


def _ask(name: str, call: bytes, piece: Piece) -> Any:
    return _RUNNING[name].ask(call, piece)


def not_asyncios_last_words(record: logging.LogRecord) -> bool:
    """Leave out what asyncio says of a wait that the end of a run cut short: nobody waits for it any more.

    A run that a full disk ended has said so in one sentence; "Future exception was never retrieved" is no part of it.
    """
    return "was never retrieved" not in record.getMessage()


@contextlib.contextmanager
def _dask_threads(number: int) -> Iterator[Executor]:
    """Give a dask executor with a number of threads in this process; nobody outside this machine can reach it."""
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("asyncio").addFilter(not_asyncios_last_words)
    settings = {
        # Pieces take seconds and return keys: there is nothing to steal, to spill or to pause for.
        "distributed.scheduler.work-stealing": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
    }
    with (
        # A scratch folder of its own: the shared one is swept by whichever process comes by.
        tempfile.TemporaryDirectory(prefix="histoquant-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(settings),
        LocalCluster(
            n_workers=1,
            threads_per_worker=number,
            processes=False,
            # Without an address dask's servers listen on all interfaces, and two runs quarrel over one port.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=50,
            local_directory=scratch,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)
