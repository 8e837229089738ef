"""One slide of a study as a job: where it belongs, its files, and whether they stayed what they were."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from histoquant import registry, store
from histoquant.analysis.counting import IDENTITY
from histoquant.errors import FormatError, HistoquantError, StoreError
from histoquant.model.recipe import Recipe
from histoquant.model.slide import Slide
from histoquant.model.study import StudySlide
from histoquant.model.tables import REGIONS
from histoquant.store import RunFolder

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and time of change (ns) of every file of a slide."""


@dataclass(frozen=True)
class Job:
    """One slide of a study, to be analysed into a run folder.

    ``stamp`` tells how its files were when the run began; empty when nobody looks whether they stay so.
    """

    slide: StudySlide
    recipe: Recipe
    root: Path
    stamp: Stamp = ()

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.root)

    @property
    def identity(self) -> dict[str, str]:
        """What every row about this slide tells of it: where it belongs, and the sheet's further columns."""
        told = {name: getattr(self.slide, name) for name in IDENTITY}
        position = self.slide.section_position_um
        further = {"section_position_um": "" if position is None else f"{position:g}"} | self.slide.extra
        return told | {f"sheet_{name}" if name in REGIONS else name: value for name, value in further.items()}


class _Open(threading.local):
    """The slide a thread keeps open, by what it was opened with: another thread may turn to another slide."""

    def __init__(self) -> None:
        self.slides: dict[tuple[Path, str | None, float | None], Slide] = {}


_open = _Open()


def open_slide(row: StudySlide) -> Slide:
    """Open the slide of a row; a worker keeps one open, and closes it when it turns to the next."""
    key = (row.path, row.scene, row.pixel_size_um)
    if key not in _open.slides:
        release()
        _open.slides[key] = registry.open_slide(row.path, scene=row.scene, pixel_size_um=row.pixel_size_um)
    return _open.slides[key]


def release() -> None:
    """Close the slide this thread keeps open."""
    while _open.slides:
        _open.slides.popitem()[1].close()


def source_hashes(job: Job) -> dict[str, str]:
    """Return the sha256 of every file of a slide, by its path below the folder that holds them all.

    Names alone would not do: the chunks of a Zarr slide share theirs.
    """
    files = registry.slide_files(job.slide.path)
    folder = os.path.commonpath([file.parent for file in files])
    return {file.relative_to(folder).as_posix(): store.sha256_of(file) for file in files}


def stamp_of(row: StudySlide) -> Stamp:
    """Return path, size and time of change of every file of a slide.

    Raises
    ------
    FormatError
        If there is no such file, or it may not be looked at.
    """
    try:
        stamps = [(file, file.stat()) for file in registry.slide_files(row.path)]
    except HistoquantError:
        raise
    except OSError as error:
        raise FormatError(
            f"Slide '{row.slide_id}': its file cannot be looked at: {error.strerror or error}.",
            "Correct its path in the sample sheet, or ask for the permission to read it.",
        ) from error
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stamps)


@contextlib.contextmanager
def unchanged(job: Job) -> Iterator[None]:
    """Do something with a slide's files, and make sure that they are before and after what the run began with.

    Raises
    ------
    FormatError
        If they are not; then that is the reason for whatever went wrong.
    """
    _compare(job)
    try:
        yield
    except StoreError:
        raise
    except Exception:
        _compare(job)
        raise
    _compare(job)


def _compare(job: Job) -> None:
    name = f"Slide '{job.slide.slide_id}'"
    try:
        if job.stamp in ((), stamp_of(job.slide)):
            return
    except OSError as error:
        reason = getattr(error, "message", None) or f"{error.strerror or error}."
        raise FormatError(
            f"{name}: its file cannot be read any more: {reason}",
            "Bring the file or its disk back, then run the same command again.",
        ) from error
    raise FormatError(
        f"{name}: its file was changed while the run worked on it.",
        "Wait until nothing writes to it, then run the same command again.",
    )


def reader_fingerprint(job: Job) -> str:
    """Return which plug-in reads a slide."""
    return registry.fingerprint_of("reader", registry.reader_of(job.slide.path).name)
