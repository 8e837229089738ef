"""Vendor files opened through optional packages: imported when needed, one thread at a time, closed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from histoquant.errors import FormatError, MissingExtraError
from histoquant.readers.pixels import damage_named

INSTALL = "pip install 'histoquant[vendor]'"


def optional_package(path: Path, module: str) -> Any:
    """Import what reads a vendor's files, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingExtraError(
            f"'{path.name}' needs the package {module.partition('.')[0]}, which is not installed.",
            f"Run: {INSTALL}",
        ) from e


class VendorFile:
    """An open vendor file, used by one thread at a time and never after it was closed."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._lock = threading.Lock()
        self._is_open = True

    def __enter__(self) -> Any:
        self._lock.acquire()
        if not self._is_open:
            self._lock.release()
            raise FormatError(f"'{self._path.name}' was closed before its pixels were read.", "Open it again.")
        return self._file

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._file.close()


@contextmanager
def opened(path: Path, opener: Callable[[str], Any]) -> Iterator[tuple[Any, VendorFile]]:
    """Open a vendor file; it is closed again only when the block fails."""
    if path.is_dir():
        raise FormatError(f"'{path.name}' is a folder, not a file.", "Name a file.")
    with damage_named(path), ExitStack() as undo:
        file = opener(str(path))
        source = VendorFile(path, file)
        undo.callback(source.close)
        yield file, source
        undo.pop_all()
