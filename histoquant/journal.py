"""The journal of a review: every correction one line, on the disk before the next key is pressed, never changed.

`review/journal.jsonl` in the run folder is the first reviewer's, `review/journal_<name>.jsonl` another's. The first
line says whose it is and on which run it was begun, every other line is an `Edit` as JSON. What a crash left of a line
stays where it is; the line after it says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from histoquant import lock, store
from histoquant.errors import Faults, FormatError, HistoquantError, InputError, StoreError, raise_all
from histoquant.model.edit import UNBLIND, Edit, undo_and_redo

SCHEMA = 1
"""Version of the journal's lines."""

FOLDER = "review"
KIND = "histoquant review journal"

_TORN = b'{"torn": "the line before was being written when the program ended"}'


@dataclass(frozen=True, eq=False)
class Written:
    """What a journal file holds.

    Attributes
    ----------
    path : Path
    who : str
        Whose it is.
    blinded : bool
        Whether the reviewer sees no animal and group: begun so, and not unblinded since.
    fingerprint : str
        Of the run it was begun on.
    edits : tuple of Edit
        In the order in which they were made.
    torn : tuple of int
        Numbers of lines that a crash left unfinished; what they would have said was not done.
    whole : bool
        Whether the file ends with a finished line.
    """

    path: Path
    who: str
    blinded: bool
    fingerprint: str
    edits: tuple[Edit, ...]
    torn: tuple[int, ...] = ()
    whole: bool = True


def journal_paths(root: Path) -> list[Path]:
    """Return the journals of a run folder: the first reviewer's first, others by name."""
    first = root / FOLDER / "journal.jsonl"
    return [first] * first.is_file() + sorted((root / FOLDER).glob("journal_*.jsonl"))


def read_journal(path: Path) -> Written:
    """Read a journal; one that is being written can be read too.

    Raises
    ------
    FormatError
        If the file cannot be read, is no journal, or holds a line that is no edit and that no crash explains.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"Cannot read '{path}': {error.strerror or error}.", "Give read permission.") from error
    lines = content.split(b"\n")
    head = _object(lines[0])
    if head is None or head.get("histoquant") != KIND or not isinstance(head.get("who"), str):
        raise FormatError(f"'{path}' is no review journal: its first line does not say so.", "Move it elsewhere.")
    if head.get("schema") != SCHEMA:
        raise FormatError(f"'{path}' was written by another version of histoquant.", "Use that version.")
    edits: list[Edit] = []
    torn: list[int] = []
    faults: list[FormatError] = []
    written = [(number, line) for number, line in enumerate(lines[1:], start=2) if line]
    cut = True  # whether a crash may have cut the line: at the end, and before a line that says so
    for number, line in reversed(written):
        if line == _TORN:
            cut = True
            continue
        try:
            edits.append(_edit(line))
            cut = False
        except InputError as error:
            if cut:
                torn.append(number)
                cut = _TORN.startswith(line)
            else:
                remedy = "Put the line back as it was, from a copy."
                faults.append(FormatError(f"'{path}', line {number}: {error.message}", remedy))
    raise_all(reversed(faults))
    raise_all(faults)
    whole = content.endswith(b"\n") and not (torn and torn[0] == written[-1][0])
    blinded = bool(head.get("blinded")) and not any(edit.action == UNBLIND for edit in edits)
    return Written(
        path, head["who"], blinded, str(head.get("fingerprint", "")), tuple(edits[::-1]), tuple(torn[::-1]), whole
    )


def read_journals(root: Path) -> list[Written]:
    """Read every journal of a run folder.

    Raises
    ------
    FormatError, Faults
        As `read_journal`; all that is wrong in all of them.
    """
    found: list[Written] = []
    faults: list[HistoquantError] = []
    for path in journal_paths(root):
        try:
            found.append(read_journal(path))
        except (FormatError, Faults) as error:
            faults += list(error.faults) if isinstance(error, Faults) else [error]
    raise_all(faults)
    return found


def all_edits(journals: Iterable[Written]) -> list[Edit]:
    """Return the edits of several reviewers in order of time; within a journal its own order holds."""
    stamped: list[tuple[str, int, int, Edit]] = []
    for index, journal in enumerate(journals):
        latest = ""
        for number, edit in enumerate(journal.edits):
            latest = max(latest, edit.at)  # a clock that was set back does not change the order of what was done
            stamped.append((latest, index, number, edit))
    return [edit for *_, edit in sorted(stamped, key=lambda entry: entry[:3])]


class Journal:
    """A reviewer's journal, open for writing; use it as a context manager, or `close` it.

    Attributes
    ----------
    path : Path
    who : str
    edits : list of Edit
        All of them, those of earlier sittings too.
    torn : tuple of int
        As `Written.torn`; what a crash left unfinished, for the reviewer to be told.
    blinded : bool
        Whether the next edit is made blind.

    Parameters
    ----------
    root : Path
        The run folder.
    who : str
        The reviewer. A name that was here before goes on in its journal.
    blinded : bool
        Whether the reviewer sees no animal and group. A journal that was once not blind stays so.

    Raises
    ------
    InputError
        If the folder holds no run, or the name is empty.
    StoreError
        If the journal cannot be written, or another window or machine has it open.
    FormatError
        If it is damaged.

    Examples
    --------
    ::

        with Journal(Path("results"), "Anna") as journal:
            journal.record("M1_s1", "call", y_um=8.0, x_um=9.5, marker="tunel", old=False, new=True)
            journal.undo()
    """

    def __init__(self, root: Path, who: str, *, blinded: bool = True) -> None:
        who = " ".join(who.split())
        if not who:
            raise InputError("A review needs the reviewer's name.", "State it, for instance 'Anna'.")
        state = store.RunFolder(root).state()
        if not state:
            raise InputError(f"'{root}' holds no run: there is no run.json.", "Name the folder given to run as --out.")
        self.root, self.who = root, who
        self._held = contextlib.ExitStack()
        folder = root / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            self.path = self._mine(folder)
            self._held.enter_context(lock.locked(folder, f".{self.path.stem}.lock", "review"))
            if not self.path.exists():
                head = {"histoquant": KIND, "schema": SCHEMA, "who": who, "blinded": blinded}
                head |= {"made": datetime.now(UTC).isoformat(timespec="seconds")}
                store.write_bytes(self.path, _line(head | {"fingerprint": state.get("fingerprint", "")}))
            written = read_journal(self.path)
            if written.who != who:  # another reviewer's first moment, just before this one's
                raise StoreError(f"'{self.path}' was just begun by {written.who}.", "Open the review again.")
            self._file: BinaryIO = self._held.enter_context(self.path.open("ab", buffering=0))
        except OSError as error:
            self._held.close()
            if isinstance(error, StoreError | FormatError):
                raise
            raise StoreError(
                f"Cannot write in '{folder}': {error.strerror or error}.", "Make room or give write permission."
            ) from error
        except BaseException:
            self._held.close()
            raise
        self.edits, self.torn, self.blinded = list(written.edits), written.torn, written.blinded
        self._whole = written.whole
        if not blinded and self.blinded:
            self.unblind("opened without blinding")

    def _mine(self, folder: Path) -> Path:
        for path in journal_paths(self.root):
            if read_journal(path).who == self.who:
                return path
        first = folder / "journal.jsonl"
        name = re.sub(r"[^\w.-]+", "_", self.who.casefold()).strip("._") or "reviewer"
        others = (folder / f"journal_{name}{f'_{n}' if n > 1 else ''}.jsonl" for n in range(1, 1000))
        return next(path for path in (first, *others) if not path.exists())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the journal; all edits are on the disk already."""
        self._held.close()

    def append(self, edit: Edit) -> Edit:
        """Write an edit, and return it when it is on the disk.

        Raises
        ------
        StoreError
            If it cannot be written; the journal is then without it.
        """
        line = _line(edit.as_dict())
        if not self._whole:
            line = b"\n" + _TORN + b"\n" + line
        try:
            self._whole = False
            if self._file.write(line) != len(line):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"The edit was NOT kept: cannot write '{self.path}': {reason}.",
                "Make room or bring the disk back, then make the edit again.",
            ) from error
        self._whole = True
        self.edits.append(edit)
        return edit

    def record(self, slide_id: str, action: str, **parts: Any) -> Edit:
        """Make an edit now (`Edit.made`), write it, and return it; raises as `append`, and as `Edit`."""
        return self.append(Edit.made(self.who, slide_id, action, blinded=self.blinded, **parts))

    @property
    def next_undo(self) -> Edit | None:
        """The edit that `undo` takes back; None when there is none. Those of earlier sittings can be undone too."""
        done, _ = undo_and_redo(self.edits)
        return done[-1] if done else None

    @property
    def next_redo(self) -> Edit | None:
        """The edit that `redo` makes again; None when nothing was undone since the last edit."""
        _, undone = undo_and_redo(self.edits)
        return next(edit for edit in self.edits if edit.id == undone[-1].undoes) if undone else None

    def undo(self) -> Edit | None:
        """Take back the last edit that stands, and return that edit; None when there is none."""
        last = self.next_undo
        if last is not None:
            self.append(last.inverse(blinded=self.blinded))
        return last

    def redo(self) -> Edit | None:
        """Make again what was undone last, and return that edit; None when there is none."""
        again = self.next_redo
        _, undone = undo_and_redo(self.edits)
        if again is not None:
            self.append(undone[-1].inverse(blinded=self.blinded))
        return again

    def unblind(self, why: str) -> Edit:
        """Record that the reviewer sees the names from now on; every later edit says so."""
        edit = self.record("", UNBLIND, why=why)
        self.blinded = False
        return edit


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _edit(line: bytes) -> Edit:
    told = _object(line)
    if told is None:
        raise InputError("this is no edit.")
    return Edit.from_dict(told)
