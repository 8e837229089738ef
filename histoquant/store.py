"""The run folder: every file whole or not there at all, finished blocks kept for the next start."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import lock
from histoquant.errors import FormatError, HistoquantError, StoreError
from histoquant.lock import Holder

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of the run folder's layout."""

TASK = "task.json"
"""How a slide stands that is measured by a process of its own, in its folder: as ``run.json`` for the study."""


_LEFTOVER = re.compile(r"\..+\.(\w{8}\.part|\d+\.(part|tiles))")
"""What `whole_file` and `ometiff` call their unfinished files."""


@contextlib.contextmanager
def whole_file(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on leaving, flush what was written there and rename it.

    At most the last folder of the path is made, and not even that without ``make_folder``: when a network share has
    vanished, its mount point is still there, and a run folder must not be begun on the disk below it.

    Raises
    ------
    StoreError
        If the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    temporary: Path | None = None
    try:
        if make_folder:
            path.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, HistoquantError):
            raise
        raise StoreError(
            f"Cannot write '{path}': {error.strerror or error}.",
            "Make room or give write permission, then run the same command again.",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a folder that is gone holds no leftover
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, make_folder: bool = True) -> None:
    """Write a file whole or not at all."""
    with whole_file(path, make_folder=make_folder) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any], *, make_folder: bool = True) -> None:
    """Write a JSON file whole or not at all; keys keep their order."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_bytes(path, (text + "\n").encode(), make_folder=make_folder)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def write_csv(path: Path, table: pd.DataFrame, *, make_folder: bool = True) -> None:
    """Write a table as CSV (UTF-8, shortest exact decimals) whole or not at all."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode(), make_folder=make_folder)


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

    A file is a line that names the format, the sha256 of the rest, and the rest: a JSON list of what it holds, then the
    pieces, arrays compressed with zstd at level 1, tables as Parquet. Nothing is given out whose sum does not fit.

    Parameters
    ----------
    folder : Path
        Where they lie. The same folder may be used by many processes: a block is written under a temporary name and
        renamed, and writing it twice gives the same file.
    """

    MAGIC = b"histoquant block 1\n"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return the file of a block."""
        return self.folder / key[:2] / f"{key}.block"

    def __contains__(self, key: str) -> bool:
        """Return whether a block is finished; one that is damaged is put aside (`damaged`)."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return False
        if self._sound(content):
            return True
        aside = self.folder / "damaged"
        aside.mkdir(exist_ok=True)
        self.path(key).replace(aside / key)
        return False

    def damaged(self) -> list[str]:
        """Return the keys of the blocks that were found damaged."""
        return sorted(path.name for path in (self.folder / "damaged").glob("*"))

    def write(
        self, key: str, arrays: Mapping[str, NDArray[Any]], tables: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Keep a block.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        import imagecodecs

        listed: list[dict[str, Any]] = []
        pieces: list[bytes] = []
        for name, array in arrays.items():
            # A label tile of 1224 x 1224 px: zstd 1 packs at 2.6 GB/s to 77 KB, deflate 6 at 0.25 GB/s to 78 KB.
            pieces.append(bytes(imagecodecs.zstd_encode(np.ascontiguousarray(array).tobytes(), level=1)))
            listed.append({"array": name, "dtype": array.dtype.str, "shape": array.shape, "size": len(pieces[-1])})
        for name, table in (tables or {}).items():
            pieces.append(_parquet(table))
            listed.append({"table": name, "size": len(pieces[-1])})
        header = json.dumps(listed).encode()
        body = b"".join((len(header).to_bytes(4, "little"), header, *pieces))
        with contextlib.suppress(FileNotFoundError):  # the run folder is gone; the next line says so
            self.folder.mkdir(exist_ok=True)
        write_bytes(self.path(key), self.MAGIC + hashlib.sha256(body).digest() + body)

    def read(self, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, pd.DataFrame]]:
        """Return the arrays and tables of a block.

        Raises
        ------
        FormatError
            If it is damaged.
        StoreError
            If it cannot be read.
        """
        import pandas as pd

        pieces = self._pieces(key)
        tables = {told["table"]: pd.read_parquet(io.BytesIO(part)) for told, part in pieces if "table" in told}
        return _decoded(pieces), tables

    def arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a block without its tables; raises as `read` does."""
        return _decoded(self._pieces(key))

    def _sound(self, content: bytes) -> bool:
        start = len(self.MAGIC)
        kept, body = content[start : start + 32], memoryview(content)[start + 32 :]
        return content.startswith(self.MAGIC) and hashlib.sha256(body).digest() == kept

    def _pieces(self, key: str) -> list[tuple[dict[str, Any], bytes]]:
        try:
            content = self.path(key).read_bytes()
        except OSError as error:
            raise StoreError(
                f"Cannot read '{self.path(key)}': {error.strerror or error}.", "Run the same command again."
            ) from error
        if not self._sound(content):
            raise FormatError(f"The file '{self.path(key)}' was damaged during the run.", "Run the same command again.")
        start = len(self.MAGIC) + 32 + 4
        at = start + int.from_bytes(content[start - 4 : start], "little")
        pieces = []
        for told in json.loads(content[start:at]):
            pieces.append((told, content[at : at + told["size"]]))
            at += told["size"]
        return pieces


def _decoded(pieces: list[tuple[dict[str, Any], bytes]]) -> dict[str, NDArray[Any]]:
    import imagecodecs

    arrays = {}
    for told, part in pieces:
        if "array" in told:
            flat = np.frombuffer(bytearray(imagecodecs.zstd_decode(part)), dtype=told["dtype"])
            arrays[told["array"]] = flat.reshape(told["shape"])
    return arrays


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
        """Make the folder, or accept it when it is empty, an earlier run's, or holds only corrections made by hand.

        Raises
        ------
        StoreError
            If it is a file, cannot be written, holds something else, or was made by a newer layout.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = {entry.name for entry in self.root.iterdir()}
        except OSError as error:
            raise StoreError(
                f"Cannot use '{self.root}' as a run folder: {error.strerror or error}.", "Name another --out."
            ) from error
        if held - {"review"} and not held & {"run.json", lock.LOCK}:
            raise StoreError(
                f"The folder '{self.root}' is not empty and holds no run.", "Name an empty or new folder as --out."
            )
        # A run that was killed before it could write anything leaves the lock file only.
        if "run.json" in held and self.state().get("schema") != SCHEMA:
            raise StoreError(
                f"The folder '{self.root}' was written by another version of histoquant.", "Name a new --out."
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Claim the folder and keep every other run out of it; what killed writers left is swept away.

        Raises
        ------
        StoreError
            As `claim`, and if another run works in the folder.
        """
        self.claim()
        with lock.locked(self.root):
            self._make("slides")
            self._refuse_if_slides_are_held()
            self._make(".blocks", "tables")
            self.sweep()
            shutil.rmtree(self.blocks.folder / "damaged", ignore_errors=True)
            try:
                yield
            finally:
                self.sweep()

    def _make(self, *names: str) -> None:
        try:
            for name in names:
                (self.root / name).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"Cannot write in '{self.root}': {error.strerror or error}.",
                "Make room or give write permission, then run the same command again.",
            ) from error

    @contextlib.contextmanager
    def slide_held(self, slide_id: str) -> Iterator[None]:
        """Claim the folder for work on one slide: others may work on other slides, but no run on the whole.

        Each side takes its own lock first and then looks for the other's, so that never both go on.

        Raises
        ------
        StoreError
            As `claim`, and if another run works in the folder or on the slide.
        """
        self.claim()
        try:
            (self.root / lock.LOCK).touch()
        except OSError as error:
            raise StoreError(
                f"Cannot write in '{self.root}': {error.strerror or error}.", "Name another --out."
            ) from error
        self._make("slides", ".blocks", "tables", f"slides/{slide_id}")
        with lock.locked(self.slide(slide_id)):
            holder = self.holder()
            if holder is not None:
                raise StoreError(f"Another run works in '{self.root}': {holder}.", "Wait until it ends, or stop it.")
            yield

    def slide_holder(self, slide_id: str) -> Holder | None:
        """Return which process works on this slide alone now; None when none does."""
        return lock.holder(self.slide(slide_id))

    def _refuse_if_slides_are_held(self) -> None:
        for path in sorted((self.root / "slides").glob(f"*/{lock.LOCK}")):
            holder = lock.holder(path.parent)
            if holder is not None:
                raise StoreError(
                    f"Another run works on slide '{path.parent.name}' in '{self.root}': {holder}.",
                    "Wait until it ends, or stop it.",
                )

    def sweep(self) -> None:
        """Remove unfinished files of writers that were killed. Only for who holds the folder."""
        for pattern in ("", "tables/", "slides/*/", ".blocks/*/"):
            for path in self.root.glob(f"{pattern}.*"):
                if _LEFTOVER.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)

    def holder(self) -> Holder | None:
        """Return which process works in the folder now; None when none does."""
        return lock.holder(self.root)

    def clear(self) -> None:
        """Remove everything an earlier run made; nothing else can be in the folder (see `claim`).

        Corrections made by hand (``review``) are kept.
        """
        for name in (".blocks", "slides", "tables"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(exist_ok=True)
        for name in ("failures.csv", "report.html", "statistics.json"):
            (self.root / name).unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """Return what ``run.json`` says; empty when it is missing or damaged."""
        return _content(self.root / "run.json")

    def slide_states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what each slide's own file says of those that are, or were, measured by a process of their own."""
        for path in sorted((self.root / "slides").glob(f"*/{TASK}")):
            content = _content(path)
            if content:
                yield path.parent.name, content


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
