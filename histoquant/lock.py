"""One run per folder: a lock that goes with the process that holds it, however that process ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from histoquant.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Locked through the operating system, which lets go of it when the process dies, also of kill -9."""

OWNER = ".lock.owner"
"""Stands in on file systems without locks: made only when it is not there, and judged by the process it names."""

PATIENCE_S = 1.0
"""A look at the lock (`holder`) holds it for microseconds; a run that meets one tries again for so long."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)


@dataclass(frozen=True)
class Holder:
    """Who works in a run folder.

    Attributes
    ----------
    host : str
        Name of the machine.
    pid : int
        Number of the process there.
    since : str
        When the run began, ISO 8601, UTC.
    born : float
        When the process was made, seconds since 1970: tells it from a later one of the same number.
    """

    host: str
    pid: int
    since: str
    born: float

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process as a holder from now on."""
        import psutil

        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), since, psutil.Process().create_time())

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether the process is there still; only told of this machine."""
        import psutil

        try:
            # The kernel counts in ticks and the clock is corrected now and then: within 2 s is the same process.
            return self.here and abs(psutil.Process(self.pid).create_time() - self.born) < 2
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, what: str = "run") -> Iterator[None]:
    """Hold the lock of a run folder, or another one of that name for ``what`` is done there.

    Raises
    ------
    StoreError
        If another process holds it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            _take(folder / name, what, Holder.this_process(), held)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"Cannot use '{folder}' as a {what} folder: {error.strerror or error}.",
                "Make room or give write permission, then run the same command again.",
            ) from error
        yield


def _take(path: Path, what: str, me: Holder, held: contextlib.ExitStack) -> None:
    file = held.enter_context(path.open("a+", encoding="utf-8"))
    if _system_lock(file, what):
        _write(file, me)
        held.callback(_forget, file)
    else:
        owner = path.with_name(f"{path.name}.owner")
        _make_owner(owner, what, me)
        held.callback(_forget, owner)


def _forget(left: IO[str] | Path) -> None:
    with contextlib.suppress(OSError):  # a vanished share must not hide why the run stops
        if isinstance(left, Path):
            left.unlink(missing_ok=True)
        else:
            left.truncate(0)


def holder(folder: Path) -> Holder | None:
    """Return who works in a run folder now; None when nobody does."""
    try:
        with (folder / LOCK).open("r", encoding="utf-8") as file:
            try:
                if fcntl is not None and _try(file, fcntl.LOCK_SH):
                    return _owner(folder)
            except BlockingIOError:
                return _read(folder / LOCK)
    except FileNotFoundError:
        return None
    return _owner(folder)


def _owner(folder: Path) -> Holder | None:
    owner = _read(folder / OWNER)
    return owner if owner is not None and (owner.alive or not owner.here) else None


def _system_lock(file: IO[str], what: str) -> bool:
    """Lock a file for this process alone; return False where the file system cannot.

    Raises
    ------
    StoreError
        If another process holds it.
    """
    if fcntl is None:
        return False
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _try(file, fcntl.LOCK_EX)
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            path = Path(file.name)
            raise _refusal(path.parent, what, _read(path), "Wait until it ends, or stop it.") from error


def _try(file: IO[str], kind: int) -> bool:
    """Take a lock at once; return False where the file system has none."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(*error.args) from error
        return False  # ENOLCK, ENOSYS, ENOTSUP, EINVAL: what network and user-space file systems say
    return True


def _make_owner(path: Path, what: str, me: Holder) -> None:
    """Write who works here, only if nobody does; what a dead process of this machine left is taken over."""
    for _ in range(3):
        try:
            with path.open("x", encoding="utf-8") as file:
                _write(file, me)
            return
        except FileExistsError as error:
            found = _read(path)
            if found is None or found.alive or not found.here:
                remedy = "Wait until it ends, or stop it."
                if found is None or not found.here:
                    remedy += f" If it is dead, remove '{path}'."
                raise _refusal(path.parent, what, found, remedy) from error
        # Of two processes that find the same leftover only one moves it away; what it moved is looked at again.
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            path.replace(aside)
            if _read(aside) != found:
                aside.replace(path)
            aside.unlink(missing_ok=True)
    raise _refusal(path.parent, what, _read(path), "Wait until it ends, or stop it.")


def _refusal(folder: Path, what: str, found: Holder | None, remedy: str) -> StoreError:
    who = str(found) if found is not None else "a process that does not say which"
    return StoreError(f"Another {what} works in '{folder}': {who}.", remedy)


def _write(file: IO[str], me: Holder) -> None:
    file.truncate(0)
    file.write(json.dumps(asdict(me)))
    file.flush()


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
