"""How a run stands: what ``run.json`` says from its first second to its last, for whoever looks from outside."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from histoquant import __version__, lock, registry, store
from histoquant.analysis.positivity import Threshold
from histoquant.cores import available_cores
from histoquant.errors import HistoquantError, StoreError
from histoquant.inputs import Checked, stated_inputs
from histoquant.lock import Holder
from histoquant.model.recipe import RESULT_VERSION
from histoquant.report.run import FINISHED
from histoquant.store import RunFolder

WRITE_EVERY_S = 1.0
WRITE_SHARE = 0.05
"""``run.json`` follows the run at most this often, and takes at most this part of its time: a write costs about 5 ms
for a small study, most of it for the flush, and half a second for 10,000 slides."""

STAGES = ("waiting", "survey", "segment", "join", "threshold", "finish", "done", "failed")
"""What ``slides`` in ``run.json`` may say of a slide: what it is at, or how it ended."""


@dataclass(frozen=True)
class Failure:
    """A slide that could not be analysed: at which stage, why, and what to do."""

    slide: str
    stage: str
    error: str
    remedy: str


@dataclass(frozen=True)
class Progress:
    """How far a run is: units of work done and in all, and what was done last."""

    done: int
    total: int
    message: str


class RunState:
    """What ``run.json`` says.

    Attributes
    ----------
    slides : slide_id -> str
        One of `STAGES`.
    failures : list of Failure
        Of slides that failed so far.
    thresholds : batch -> marker -> Threshold
        Of the staining batches that are decided.
    blocks : slide_id -> (done, of)
        Blocks of tiles, of the slides whose size is known.
    computed : int
    reused : slide_id -> int
        Blocks that this run has computed, and that it found finished.
    notes : list of str
        What a person should know.
    workers : dict
        What is told of the workers of a cluster.

    Parameters
    ----------
    path : Path, optional
        Where it is written; ``run.json`` of the folder when not given.
    """

    def __init__(
        self, checked: Checked, folder: RunFolder, command: Sequence[str], *, path: Path | None = None
    ) -> None:
        self.checked, self.folder, self.command = checked, folder, list(command)
        self.path = path or folder.root / "run.json"
        self.slides = {row.slide_id: "waiting" for row in checked.study.included}
        self.blocks: dict[str, tuple[int, int]] = {}
        self.computed, self.reused = 0, Counter[str]()
        self.notes: list[str] = []
        self.failures: list[Failure] = []
        self.thresholds: dict[str, Mapping[str, Threshold]] = {}
        self.workers: dict[str, Any] = {}
        self.started = self.progressed = _now()
        self._since: dict[str, float] = {}
        self._written, self._pause_s = 0.0, WRITE_EVERY_S

    def progress(self) -> None:
        """Note that a piece of work was finished now."""
        self.progressed = _now()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Say that work goes on, and if it does not come to its end, why: interrupted, or stopped by what."""
        self.write("running")
        try:
            yield
        except KeyboardInterrupt:
            self.write("interrupted")
            raise
        except HistoquantError as error:
            with contextlib.suppress(HistoquantError):  # a full disk may not even hold this; the error says it too
                self.write("stopped", reason=str(error))
            raise

    def enter(self, slide: str, stage: str) -> None:
        """Note that a slide is at a stage now, and so has done the one before."""
        before, at = self.slides[slide], time.monotonic()
        if before == stage:
            return  # done again, because its worker died
        if before == "waiting":
            self.log(slide, f"histoquant {__version__}: {shlex.join(self.command) or 'run'}")
        else:
            told = ""
            if before == "segment":
                kept = self.reused[slide]
                told = f", {self.blocks[slide][1] - kept} block(s) computed, {kept} kept from before"
            self.log(slide, f"{before}: done in {at - self._since[slide]:.1f} s{told}")
        self.slides[slide], self._since[slide] = stage, at

    def fail(self, failure: Failure) -> None:
        """Note that a slide failed."""
        self.slides[failure.slide] = "failed"
        self.failures.append(failure)
        self.log(failure.slide, f"FAILED at {failure.stage}: {failure.error} {failure.remedy}".rstrip())

    def log(self, slide: str, *lines: str) -> None:
        """Add lines to ``log.txt`` of a slide, each with the time.

        Times stand here, in ``run.json`` and in the report only: files of results hold none, so that they can be
        compared byte for byte.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        path = self.folder.slide(slide) / "log.txt"
        text = "".join(f"{_now()}  {' '.join(line.split())}\n" for line in lines)
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise StoreError(
                f"Cannot write '{path}': {error.strerror or error}.",
                "Make room or give write permission, then run the same command again.",
            ) from error

    def touch(self) -> None:
        """Write how the run stands, unless that was done a moment ago."""
        if time.monotonic() - self._written >= self._pause_s:
            self.write("running")
            self._pause_s = max(WRITE_EVERY_S, (time.monotonic() - self._written) / WRITE_SHARE)

    def write(self, state: str, *, reason: str = "") -> None:
        """Write ``run.json``: what runs, with what, where, since when, and how it stands.

        Parameters
        ----------
        state : str
            ``running``, ``done``, ``failed`` (some slides did), ``interrupted`` by a person, or ``stopped`` for a
            ``reason``. A run that was killed says ``running`` and holds no lock (`RunFolder.holder`).

        Raises
        ------
        StoreError
            If it cannot be written, or the folder is gone: it is not made again.
        """
        self._written = time.monotonic()
        if not (self.folder.root / lock.LOCK).exists():
            raise StoreError(
                f"The run folder '{self.folder.root}' has vanished.",
                "Bring it or its disk back, then run the same command again.",
            )
        recipe, study = self.checked.recipe, self.checked.study
        content: dict[str, Any] = {
            "schema": store.SCHEMA,
            "state": state,
            "reason": reason,
            "command": self.command,
            "working_folder": os.getcwd(),
            "study": str(study.folder.resolve()),
            "start": self.started,
            "written": _now(),
            "progressed": self.progressed,
            "end": None if state == "running" else _now(),
            "histoquant": __version__,
            "result_version": RESULT_VERSION,
            "fingerprint": recipe.fingerprint(),
            "recipe": recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
            "versions": _versions(),
            "machine": {
                "host": socket.gethostname(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "cores": available_cores(),
                "process": os.getpid(),
                "process_born": Holder.this_process().born,
            },
            "workers": self.workers,
            "plugins": [f"{plugin} {plugin.value}" for plugin in registry.list_plugins()],
            **stated_inputs(self.checked, self.folder, self._finished() if state in FINISHED else ()),
            "thresholds": {
                batch: {name: {"value": t.value, "source": t.source, **t.detail} for name, t in by_marker.items()}
                for batch, by_marker in self.thresholds.items()
            },
            "blocks_computed": self.computed,
            "blocks_reused": self.reused.total(),
            "slides": self.slides,
            "failures": [vars(failure) for failure in self.failures],
            "blocks": {slide: {"done": done, "of": of} for slide, (done, of) in self.blocks.items()},
            "excluded": {row.slide_id: row.exclude for row in study.slides if row.exclude},
            "notes": self.notes,
        }
        store.write_json(self.path, content, make_folder=False)

    def _finished(self) -> list[str]:
        return [slide for slide, stage in self.slides.items() if stage == "done"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = "numpy scipy scikit-image tifffile imagecodecs zarr dask pandas pyarrow shapely numba".split()
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
