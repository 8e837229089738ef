"""Where work runs: in this process, or through dask on processes of this machine that may crash, hang or run over."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from histoquant.cores import available_cores
from histoquant.errors import InputError, WorkerDiedError, WorkerError

POLL_S = 0.1
"""How often a busy worker's time and memory are looked at: 20 us of work."""

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


class Workers(Protocol):
    """What runs pieces of work."""

    number: int

    def submit(self, fn: Callable[..., Any], /, *args: Any, limit_s: float | None = None) -> Future[Any]:
        """Run ``fn(*args)``, for at most ``limit_s`` seconds, and return the future of what it gives."""


class Inline:
    """Runs each piece of work at once, in this process. Nothing can stop a piece that hangs."""

    number = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, limit_s: float | None = None) -> Future[Any]:
        """Run the work and return its finished future."""
        del limit_s
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its work raised
            future.set_exception(error)
        return future


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


class Processes:
    """Worker processes, each doing one piece of work at a time that dask hands out.

    Dask's own threads run in this process, and each has a piece done by a child process of its own: it must be known
    which piece ended a process, while dask blames a death on every piece the process had queued, and cannot end a piece
    that takes too long.

    A future raises `WorkerDiedError` when the process died, and `WorkerError` when it was ended for running over its
    time or memory. The next piece finds a new process in its place.
    """

    def __init__(self, number: int, memory_bytes: int) -> None:
        self.number, self.memory_bytes = number, memory_bytes
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(number)]
        for worker in self._all:
            worker.start()  # they load their libraries while this process loads dask
            self._idle.put(worker)
        self._name = f"{id(self)}"
        _POOLS[self._name] = self
        self._ended = contextlib.ExitStack()
        self._dask = self._ended.enter_context(_dask_threads(number))

    @property
    def share_bytes(self) -> int:
        """Memory one worker may take."""
        return max(0, self.memory_bytes) // self.number

    def keep(self, number: int) -> None:
        """Go on with fewer workers, each with a larger share. Only while none is busy."""
        for _ in range(self.number - number):
            self._idle.get().end()
        self.number = min(self.number, number)

    def submit(self, fn: Callable[..., Any], /, *args: Any, limit_s: float | None = None) -> Future[Any]:
        """Queue a piece of work; its time runs from when a worker takes it."""
        future: Future[Any] = self._dask.submit(_ask, self._name, pickle.dumps((fn, args)), limit_s)
        return future

    def ask(self, call: bytes, limit_s: float | None) -> Any:
        """Have a call made by whichever process is idle."""
        worker = self._idle.get()
        try:
            return worker.ask(call, limit_s, self.share_bytes)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all workers at once; what they were doing is lost."""
        for worker in self._all:
            worker.end()
        self._ended.close()
        del _POOLS[self._name]


_POOLS: dict[str, Processes] = {}
"""Pools of this process by name: dask copies what it hands out, and processes cannot be copied."""


def _ask(pool: str, call: bytes, limit_s: float | None) -> Any:
    return _POOLS[pool].ask(call, limit_s)


@contextlib.contextmanager
def _dask_threads(number: int) -> Iterator[Executor]:
    """Give a dask executor with a number of threads in this process; nobody outside this machine can reach it."""
    import dask
    from distributed import Client, LocalCluster

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


class _Worker:
    """One worker process, started when it is first needed and again when it died."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None
        self._ended = False
        self._starting = threading.Lock()

    def ask(self, call: bytes, limit_s: float | None, limit_bytes: int) -> Any:
        """Have a call made, and return what it gave or raise what it raised."""
        import psutil

        if self._process is None or not self._process.is_alive():
            self.start()
        try:
            self._pipe.send_bytes(call)
            watched = psutil.Process(self._process.pid)
            until = time.monotonic() + limit_s if limit_s is not None else float("inf")
            while not self._pipe.poll(POLL_S):
                if time.monotonic() > until:
                    self._kill()
                    raise WorkerError(f"it took more than {limit_s:g} s.", "Give a longer --block-timeout.")
                if watched.memory_info().rss > limit_bytes:
                    self._kill()
                    raise WorkerError(
                        f"it ran out of memory: more than {limit_bytes / 1e9:.3g} GB.",
                        "Give more --memory, fewer --workers, or a smaller core_px under [tiles] in the recipe.",
                    )
            succeeded, given = self._pipe.recv()
        except (EOFError, OSError, psutil.NoSuchProcess) as error:
            raise self._death() from error
        if not succeeded:
            raise given
        return given

    def end(self) -> None:
        """End the process, whatever it does; no other is started."""
        with self._starting:
            self._ended = True
            if self._process is not None:
                self._kill()

    def start(self) -> None:
        """Start the process.

        Raises
        ------
        WorkerDiedError
            If the worker was ended.
        """
        # "spawn": a fork would copy the locks of whatever threads a library has started.
        context = multiprocessing.get_context("spawn")
        with self._starting:
            if self._ended:
                raise WorkerDiedError("the run was stopped.")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="histoquant worker")
            self._process.start()
            theirs.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _death(self) -> WorkerDiedError:
        self._process.join(10)
        self._kill()
        code = int(self._process.exitcode or 0)
        if code == -signal.SIGTERM.value or (os.name == "posix" and code == -signal.SIGKILL.value):
            return WorkerDiedError(
                "its process was killed, by a person or for lack of memory.",
                "Give --memory or fewer --workers, or a smaller core_px under [tiles] in the recipe.",
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return WorkerDiedError(f"its process ended {how}.", "Update, replace or leave out the plug-in it uses.")


def _serve(pipe: Connection) -> None:
    """Do calls that come through a pipe until it closes: the life of a worker process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its workers
    keep_heap()
    os.dup2(2, 1)  # what plug-ins print must not get between the lines of --json
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # one worker is one core
    while True:
        try:
            call = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_answer(call))
        trim_heap()


def keep_heap() -> None:
    """Keep freed memory in this process instead of giving it back to the system at once.

    Every image of a tile would else be mapped anew, page by page: a fifth of the time of a slide went there. Only with
    glibc; elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # their numbers in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def trim_heap() -> None:
    """Give back what `keep_heap` has kept, between two pieces of work."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _answer(call: bytes) -> bytes:
    try:
        fn, args = pickle.loads(call)  # noqa: S301 - what this program itself has sent
        return pickle.dumps((True, fn(*args)))
    except BaseException as error:  # noqa: BLE001 - also a plug-in's sys.exit() is a failure of its slide only
        error.add_note("".join(traceback.format_exception(error)))
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(error.__notes__[-1])
        if not isinstance(error, Exception):  # a SystemExit would end the thread of dask's that waits for it
            return pickle.dumps((False, plain))
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)  # noqa: S301 - an exception may be written and not be readable
        except Exception:  # noqa: BLE001 - exceptions of plug-ins may hold anything
            return pickle.dumps((False, plain))
        return answer


def _die_with_parent() -> None:
    """End this process when its parent does, also of kill -9."""
    if sys.platform == "linux":
        # The kernel sees to it even while a plug-in hangs in compiled code and no Python thread gets to run.
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent watch", daemon=True).start()
