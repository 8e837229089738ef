"""The run folder: every file whole or not there at all, finished blocks kept for the next start."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of the run folder's layout."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on leaving, flush what was written there and rename it.

    Raises
    ------
    StoreError
        If the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"Cannot write '{path}': {error.strerror or error}.",
            "Make room or give write permission, then run the same command again.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; keys keep their order."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_bytes(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV (UTF-8, shortest exact decimals) whole or not at all."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet whole or not at all."""
    write_bytes(path, _parquet(table))


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, size: int, modified_ns: int) -> str:
    del size, modified_ns  # only there so that a file that changed is read again
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_key(**parts: Any) -> str:
    """Return a key that is the same exactly when everything that decides a result is the same."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Blocks:
    """Finished pieces of work, kept by content key: arrays and tables, written once, read many times.

    Parameters
    ----------
    folder : Path
        Where they lie. The same folder may be used by many processes: a block is written under a temporary name and
        renamed, and writing it twice gives the same file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return the file of a block."""
        return self.folder / key[:2] / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        """Return whether a block is finished and undamaged."""
        try:
            self.read(key)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return False
        return True

    def write(
        self, key: str, arrays: Mapping[str, NDArray[Any]], tables: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Keep a block."""
        content = {f"array:{name}": array for name, array in arrays.items()}
        for name, table in (tables or {}).items():
            content[f"table:{name}"] = np.frombuffer(_parquet(table), dtype=np.uint8)
        with whole_file(self.path(key)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **content)

    def read(self, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, pd.DataFrame]]:
        """Return the arrays and tables of a block; the zip's own checksums are verified."""
        import pandas as pd

        with self.path(key).open("rb") as file, np.load(file, allow_pickle=False) as content:
            tables = {
                name.removeprefix("table:"): pd.read_parquet(io.BytesIO(content[name].tobytes()))
                for name in content.files
                if name.startswith("table:")
            }
        return self.arrays(key), tables

    def arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a block without its tables."""
        with self.path(key).open("rb") as file, np.load(file, allow_pickle=False) as content:
            return {name.removeprefix("array:"): content[name] for name in content.files if name.startswith("array:")}


class RunFolder:
    """Paths and files of one run.

    Parameters
    ----------
    root : Path
        The folder given as ``--out``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blocks = Blocks(root / ".blocks")

    def slide(self, slide_id: str) -> Path:
        """Return the folder of a slide."""
        return self.root / "slides" / slide_id

    def table(self, name: str) -> Path:
        """Return the path of a study-wide table."""
        return self.root / "tables" / f"{name}.csv"

    def claim(self) -> None:
        """Make the folder, or accept it when it is empty or an earlier run's.

        Raises
        ------
        StoreError
            If it is a file, cannot be written, holds something else, or was made by a newer layout.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = [entry.name for entry in self.root.iterdir()]
        except OSError as error:
            raise StoreError(
                f"Cannot use '{self.root}' as a run folder: {error.strerror or error}.", "Name another --out."
            ) from error
        if held and "run.json" not in held:
            raise StoreError(
                f"The folder '{self.root}' is not empty and holds no run.", "Name an empty or new folder as --out."
            )
        if held and self.state().get("schema") != SCHEMA:
            raise StoreError(
                f"The folder '{self.root}' was written by another version of histoquant.", "Name a new --out."
            )

    def clear(self) -> None:
        """Remove everything an earlier run made; nothing else can be in the folder (see `claim`).

        Corrections made by hand (``review``) are kept.
        """
        for name in (".blocks", "slides", "tables"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("failures.csv", "report.html"):
            (self.root / name).unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """Return what ``run.json`` says; empty when it is missing or damaged."""
        try:
            content = json.loads((self.root / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
