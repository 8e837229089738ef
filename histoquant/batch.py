"""A whole study: many slides, resume, thresholds by staining batch, and the honest list of failures."""

from __future__ import annotations

import heapq
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant import __version__, cluster, steps, store
from histoquant.analysis.counting import count_animals, count_groups
from histoquant.controls import batch_thresholds
from histoquant.errors import HistoquantError, StoreError
from histoquant.inputs import Checked, single_faults
from histoquant.model.recipe import RESULT_VERSION
from histoquant.model.study import StudySlide
from histoquant.model.tables import FAILURES, REGIONS, SENSITIVITY, empty, shaped
from histoquant.report.html import render_report
from histoquant.steps import Job, Joined, SlideReport
from histoquant.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_NAMES = ("vehicle", "sham", "saline", "placebo", "control")
"""A group of one of these names is what the others are compared with, unless the recipe names another."""

UNEXPECTED_REMEDY = "See error.log in the slide's folder; report it with that file if the input is sound."


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


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    root: Path
    n_slides: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def check_study(checked: Checked, out: Path | None = None) -> tuple[dict[str, int], list[Failure]]:
    """Open every slide, compute nothing.

    Returns
    -------
    blocks : slide_id -> int
        Of the sound slides, into how many blocks each will be cut.
    failures : list of Failure
        All faults of all others.
    """
    blocks: dict[str, int] = {}
    failures: list[Failure] = []
    for row in checked.study.included:
        job = Job(row, checked.recipe, out or Path())
        try:
            blocks[row.slide_id] = steps.check(job)
        except Exception as error:  # noqa: BLE001 - a damaged slide must not stop the others; it is listed
            failures += _failures(row, "check", error, out)
            if out is not None:
                _show(job, str(error))
    steps.release()
    return blocks, failures


def _show(job: Job, reason: str) -> None:
    """Draw a slide that is refused, when it can at least be read."""
    try:
        steps.draw_refusal(job, reason)
    except HistoquantError:
        return


def _failures(row: StudySlide, stage: str, error: BaseException, out: Path | None) -> list[Failure]:
    if isinstance(error, HistoquantError):
        return [Failure(row.slide_id, stage, fault.message, fault.remedy) for fault in single_faults(error)]
    what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    if out is not None:
        log = RunFolder(out).slide(row.slide_id) / "error.log"
        store.write_bytes(log, "".join(traceback.format_exception(error)).encode())
    return [Failure(row.slide_id, stage, f"Slide '{row.slide_id}': {what}.", UNEXPECTED_REMEDY)]


def run_study(
    checked: Checked,
    out: Path,
    *,
    workers: int | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Analyse a study into a run folder.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; as many as there are cores when not given. The tables do not depend on it.
    fresh : bool
        Forget what an earlier run left in the folder.

    Raises
    ------
    StoreError
        If the folder cannot be used; what is finished is kept.
    """
    folder = RunFolder(out)
    folder.claim()
    if fresh:
        folder.clear()
    run = _Run(checked, folder, progress, list(command))
    run.write_state("running")
    try:
        run.check()
        if run.blocks:
            try:
                with cluster.workers(workers) as executor:
                    run.work(executor)
            finally:
                steps.release()
        run.write_tables()
    except KeyboardInterrupt:
        run.write_state("interrupted")
        raise
    run.write_state("failed" if run.failures else "done")
    if run.reports:
        write_report(out)
    return Outcome(out, len(checked.study.included), tuple(run.failures), tuple(run.notes))


def write_report(root: Path) -> Path:
    """Write ``report.html`` of a finished run, and return where it is.

    Raises
    ------
    InputError
        If the folder holds no finished run.
    """
    path = root / "report.html"
    store.write_bytes(path, render_report(root).encode("utf-8"))
    return path


@dataclass(order=True)
class _Task:
    """A piece of work in the queue: later stages first, so that slides are finished before new ones are begun."""

    priority: tuple[int, int, int]
    stage: str = field(compare=False)
    slide: str = field(compare=False)
    call: tuple[Callable[..., Any], tuple[Any, ...]] = field(compare=False)


_STAGES = ("finish", "threshold", "join", "segment", "survey")


class _Run:
    """The state of one run: a queue of tasks, and what each slide still waits for."""

    def __init__(
        self, checked: Checked, folder: RunFolder, progress: Callable[[Progress], None], command: list[str]
    ) -> None:
        self.checked, self.folder, self.progress, self.command = checked, folder, progress, command
        self.jobs = {row.slide_id: Job(row, checked.recipe, folder.root) for row in checked.study.included}
        self.order = {slide: index for index, slide in enumerate(self.jobs)}
        self.blocks: dict[str, int] = {}
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.queue: list[_Task] = []
        self.left: dict[str, int] = {}
        self.surveys: dict[str, str] = {}
        self.joined: dict[str, Joined] = {}
        self.reports: dict[str, SlideReport] = {}
        self.done = self.total = self.recomputed = 0
        self.started = _now()

    def check(self) -> None:
        """Open every slide; those that cannot be analysed are failures from the start."""
        self.blocks, failures = check_study(self.checked, self.folder.root)
        for failure in failures:
            self._fail(failure)
        self.total = sum(self.blocks.values()) + 3 * len(self.blocks)

    def work(self, executor: Executor) -> None:
        """Do all tasks, a bounded number at a time."""
        for slide in self.blocks:
            self._put("survey", slide, 0, steps.survey_slide, self.jobs[slide])
        window = 2 * getattr(executor, "_max_workers", cluster.available_cores())
        running: dict[Future[Any], _Task] = {}
        while self.queue or running:
            while self.queue and len(running) < window:
                task = heapq.heappop(self.queue)
                if task.stage != "threshold" and not self._alive(task.slide):
                    continue
                running[executor.submit(task.call[0], *task.call[1])] = task
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                self._take(running.pop(future), future)

    def _alive(self, slide: str) -> bool:
        return slide in self.blocks

    def _put(self, stage: str, slide: str, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        priority = (_STAGES.index(stage), self.order.get(slide, 0), number)
        heapq.heappush(self.queue, _Task(priority, stage, slide, (function, arguments)))

    def _take(self, task: _Task, future: Future[Any]) -> None:
        """Note what a finished task gave, and queue what can be done now."""
        error = future.exception()
        if isinstance(error, StoreError):
            raise error
        if task.stage == "threshold":
            self._take_thresholds(task.slide, future)
            return
        if not self._alive(task.slide):
            return
        if error is not None:
            self._drop(task.slide, task.stage, error)
            return
        slide, job, n_blocks = task.slide, self.jobs[task.slide], self.blocks[task.slide]
        self._step(f"{slide}: {task.stage}")
        if task.stage == "survey":
            self.surveys[slide] = future.result()
            self.left[slide] = n_blocks
            for index in range(n_blocks):
                self._put("segment", slide, index, steps.analyse_block, job, self.surveys[slide], index)
        elif task.stage == "segment":
            self.recomputed += bool(future.result())
            self.left[slide] -= 1
            if self.left[slide] == 0:
                self._put("join", slide, 0, steps.join_slide, job, self.surveys[slide], n_blocks)
        elif task.stage == "join":
            self.joined[slide] = Joined(job, self.surveys[slide], future.result())
            self._batch_ready(job.slide.batch)
        else:
            self.reports[slide] = future.result()
            self.notes += [f"{slide}: {note}" for note in self.reports[slide].notes]

    def _drop(self, slide: str, stage: str, error: BaseException) -> None:
        """List a slide as failed; what waited for it goes on without it."""
        units = self.blocks.pop(slide) + 3
        self.total -= units
        for failure in _failures(self.jobs[slide].slide, stage, error, self.folder.root):
            self._fail(failure)
        if stage != "finish":
            self._batch_ready(self.jobs[slide].slide.batch)

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.progress(Progress(self.done, self.total, f"FAILED {failure.slide}: {failure.error}"))

    def _batch_ready(self, batch: str) -> None:
        """Queue the thresholds of a staining batch once all its slides are measured or have failed."""
        waiting = [slide for slide in self.blocks if self.jobs[slide].slide.batch == batch]
        if waiting and all(slide in self.joined for slide in waiting):
            joined = [self.joined[slide] for slide in waiting]
            self._put("threshold", batch, 0, batch_thresholds, self.checked.recipe, batch, joined)

    def _take_thresholds(self, batch: str, future: Future[Any]) -> None:
        members = [slide for slide in self.blocks if self.jobs[slide].slide.batch == batch]
        error = future.exception()
        if error is not None:
            for slide in members:
                self.total -= self.blocks.pop(slide) + 3
                for failure in _failures(self.jobs[slide].slide, "threshold", error, self.folder.root):
                    self._fail(failure)
            return
        thresholds, flags = future.result()
        for slide in members:
            self._put("finish", slide, 0, steps.finish_slide, self.joined[slide], thresholds, flags)

    def _step(self, message: str) -> None:
        self.done += 1
        self.progress(Progress(self.done, self.total, message))

    def write_tables(self) -> None:
        """Write the study's tables and the list of failures."""
        import pandas as pd

        self.failures.sort(key=lambda failure: self.order[failure.slide])
        listed = pd.DataFrame([vars(failure) for failure in self.failures], columns=list(FAILURES))
        store.write_csv(self.folder.root / "failures.csv", listed)
        regions = _stacked((self.reports[s].regions for s in self.order if s in self.reports), REGIONS)
        curve = _stacked((self.reports[s].sensitivity for s in self.order if s in self.reports), SENSITIVITY)
        counted = regions[regions["control"] == ""]
        failed: dict[str, int] = {}
        for slide in {failure.slide for failure in self.failures}:
            row = self.jobs[slide].slide
            if not row.control:
                failed[row.animal] = failed.get(row.animal, 0) + 1
        animals = count_animals(counted, failed=failed)
        store.write_csv(self.folder.table("regions"), regions)
        store.write_csv(self.folder.table("animals"), animals)
        store.write_csv(self.folder.table("groups"), count_groups(animals, reference_group=self._reference()))
        store.write_csv(self.folder.table("sensitivity"), curve)

    def _reference(self) -> str:
        """Return the group that the others are compared with."""
        groups = list(dict.fromkeys(row.group for row in self.checked.study.included if not row.control))
        if self.checked.recipe.count.reference_group is not None:
            return self.checked.recipe.count.reference_group
        known = [group for group in groups if group.casefold() in REFERENCE_NAMES]
        return (known or groups)[0]

    def write_state(self, state: str) -> None:
        """Write ``run.json``: what ran, with what, where, when, and how it stands."""
        failed = {failure.slide for failure in self.failures}
        store.write_json(
            self.folder.root / "run.json",
            {
                "schema": store.SCHEMA,
                "state": state,
                "command": self.command,
                "study": str(self.checked.study.folder.resolve()),
                "start": self.started,
                "end": None if state == "running" else _now(),
                "histoquant": __version__,
                "result_version": RESULT_VERSION,
                "fingerprint": self.checked.recipe.fingerprint(),
                "recipe": self.checked.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
                "versions": _versions(),
                "machine": {
                    "platform": platform.platform(),
                    "python": platform.python_version(),
                    "cores": cluster.available_cores(),
                    "process": os.getpid(),
                },
                "blocks_computed": self.recomputed,
                "slides": {
                    slide: "failed" if slide in failed else "done" if slide in self.reports else "waiting"
                    for slide in self.jobs
                },
                "excluded": {row.slide_id: row.exclude for row in self.checked.study.slides if row.exclude},
                "notes": self.notes,
            },
        )


def _stacked(tables: Iterable[pd.DataFrame], schema: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    held = list(tables)
    return shaped(pd.concat(held, ignore_index=True), schema) if held else empty(schema)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = "numpy scipy scikit-image tifffile imagecodecs zarr dask pandas pyarrow shapely".split()
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
