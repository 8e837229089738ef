"""A process that does one piece of work at a time, and whose crash, hang or hunger ends nothing but that piece."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from histoquant.errors import WorkerDiedError, WorkerError, WorkerMemoryError

POLL_S = 0.1
"""How often a busy worker's time and memory are looked at: 20 us of work."""


@dataclass(frozen=True)
class Answer:
    """What came back of a piece of work.

    Attributes
    ----------
    content : bytes
        Pickled: whether it succeeded, and what it gave or raised.
    seconds : float
        How long it took.
    peak_bytes : int
        The most memory that its process was seen to take.
    where : str
        Machine and, on a cluster, job.
    """

    content: bytes
    seconds: float
    peak_bytes: int
    where: str = ""

    def value(self) -> Any:
        """Return what the work gave, or raise what it raised."""
        succeeded, given = pickle.loads(self.content)  # noqa: S301 - what this program itself has made
        if not succeeded:
            raise given
        return given


class Child:
    """One worker process, started when it is first needed and again when it died."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None
        self._ended = False
        self._starting = threading.Lock()

    def ask(self, call: bytes, limit_s: float | None, limit_bytes: int) -> Answer:
        """Have a call made.

        Raises
        ------
        WorkerDiedError
            If the process died.
        WorkerMemoryError, WorkerError
            If it was ended for taking more memory or time than it may.
        """
        import psutil

        if self._process is None or not self._process.is_alive():
            self.start()
        begun, peak = time.monotonic(), 0
        try:
            self._pipe.send_bytes(call)
            watched = psutil.Process(self._process.pid)
            while not self._pipe.poll(POLL_S):
                if limit_s is not None and time.monotonic() - begun > limit_s:
                    self._kill()
                    raise WorkerError(f"it took more than {limit_s:g} s.", "Give a longer --block-timeout.")
                peak = max(peak, int(watched.memory_info().rss))
                if peak > limit_bytes:
                    self._kill()
                    raise WorkerMemoryError(
                        f"it ran out of memory: more than {limit_bytes / 1e9:.3g} GB.",
                        "Give more --memory, fewer --workers, or a smaller core_px under [tiles] in the recipe.",
                    )
            return Answer(self._pipe.recv_bytes(), time.monotonic() - begun, peak)
        except (EOFError, OSError, psutil.NoSuchProcess) as error:
            raise self._death() from error

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
