"""Which piece of work comes next: slides from survey to finish, apart from each other when one goes wrong."""

from __future__ import annotations

import heapq
import queue
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from histoquant import registry, steps, store
from histoquant.cluster import Piece, Workers
from histoquant.controls import batch_thresholds, named_batch
from histoquant.errors import ClusterError, HistoquantError, InputError, StoreError, WorkerDiedError, WorkerError
from histoquant.finished import finish_once
from histoquant.footprint import PROCESS_BYTES
from histoquant.inputs import Checked, single_faults
from histoquant.job import Job
from histoquant.model.study import StudySlide
from histoquant.runstate import Failure, Progress, RunState
from histoquant.steps import Extent, Joined, SlideReport
from histoquant.store import RunFolder

UNEXPECTED_REMEDY = "See error.log in the slide's folder; report it with that file if the input is sound."
MEMORY_REMEDY = "Give more --memory, fewer --workers, or a smaller core_px under [tiles] in the recipe."

BLOCK_LIMIT_S = 600.0
PX_PER_S_MIN = 20_000
SLIDE_PX_PER_S_MIN = 200_000
"""A block hangs when it takes longer than ten minutes and a second per 20,000 px, a hundred times what the slowest
built-in path takes; what is done once per slide, when it takes that and a second per 200,000 px of the slide."""

HEARTBEAT_S = 10.0
"""How often ``run.json`` is written while nothing is finished: from another node only that shows that a run lives."""


def check_slides(
    checked: Checked, workers: Workers, out: Path | None = None
) -> tuple[dict[str, Extent], list[Failure]]:
    """Open every slide, compute nothing.

    Returns
    -------
    extents : slide_id -> Extent
        Of the sound slides, how much work each is.
    failures : list of Failure
        All faults of all others.
    """
    jobs = [Job(row, checked.recipe, out or Path()) for row in checked.taken]
    extents: dict[str, Extent] = {}
    failures: list[Failure] = []
    for job, future in _opened(jobs, workers):
        if isinstance(future.exception(), WorkerDiedError):
            future = workers.submit(steps.check, job, piece=_opening(job))  # it may have been killed by chance
        error = future.exception()
        if error is None:
            extents[job.slide.slide_id] = future.result()
            continue
        lost = isinstance(error, WorkerError)
        if isinstance(error, WorkerError):
            error = WorkerError(f"Slide '{job.slide.slide_id}': opening it: {error.message}", error.remedy)
        found = failures_of(job.slide, "check", error, out)
        failures += found
        if out is not None and not lost:
            # A picture of what was refused, when it can at least be read; without one the list of failures is enough.
            reason = " ".join(f"{failure.error} {failure.remedy}" for failure in found)
            drawn = workers.submit(steps.draw_refusal, job, reason, piece=_opening(job)).exception()
            if isinstance(drawn, StoreError):
                raise drawn
    return extents, failures


def _opening(job: Job) -> Piece:
    return Piece("check", job.slide.slide_id, BLOCK_LIMIT_S)


def _opened(jobs: Iterable[Job], workers: Workers) -> Iterator[tuple[Job, Future[Extent]]]:
    """Have slides opened; a bounded number is under way, however many there are."""
    under_way: deque[tuple[Job, Future[Extent]]] = deque()
    for job in jobs:
        if len(under_way) == 4 * workers.number:
            yield under_way.popleft()
        under_way.append((job, workers.submit(steps.check, job, piece=_opening(job))))
    yield from under_way


def failures_of(row: StudySlide, stage: str, error: BaseException, out: Path | None) -> list[Failure]:
    """Return what to list about a slide that an error stopped; what nobody expected goes into its error.log."""
    if isinstance(error, HistoquantError):
        return [Failure(row.slide_id, stage, fault.message, fault.remedy) for fault in single_faults(error)]
    if isinstance(error, MemoryError):
        return [Failure(row.slide_id, stage, f"Slide '{row.slide_id}': out of memory.", MEMORY_REMEDY)]
    if out is not None:
        log = RunFolder(out).slide(row.slide_id) / "error.log"
        store.write_bytes(log, "".join(traceback.format_exception(error)).encode())
    what = f"{type(error).__name__}: {error}"
    return [Failure(row.slide_id, stage, f"Slide '{row.slide_id}': {what}.", UNEXPECTED_REMEDY)]


def workers_that_fit(extents: dict[str, Extent], memory_bytes: int, wanted: int) -> int:
    """Return how many workers fit into the memory beside this process, at most as many as wanted.

    Raises
    ------
    InputError
        If not even one does.
    """
    slide, largest = max(extents.items(), key=lambda pair: pair[1].tile_bytes)
    each = PROCESS_BYTES + largest.tile_bytes
    fitting = (memory_bytes - PROCESS_BYTES) // each
    if fitting < 1:
        raise InputError(
            f"Slide '{slide}' needs {(PROCESS_BYTES + each) / 1e9:.2g} GB of memory to work on one tile at a time, "
            f"the run may take {memory_bytes / 1e9:.2g} GB.",
            "Give a smaller core_px under [tiles] in the recipe, or more --memory.",
        )
    return min(wanted, fitting)


@dataclass(order=True)
class _Task:
    """A piece of work in the queue: later stages first, so that slides are finished before new ones are begun.

    The blocks of a slide are one task in the queue, which puts the next block there when it is taken out: a queue is as
    long as the number of slides, whatever their size.
    """

    priority: tuple[int, int, int]
    stage: str = field(compare=False)
    slide: str = field(compare=False)
    call: tuple[Callable[..., Any], tuple[Any, ...]] = field(compare=False)
    losses: int = field(compare=False, default=0)
    alone: bool = field(compare=False, default=False)


_STAGES = ("finish", "threshold", "join", "segment", "survey")


class Schedule:
    """A queue of tasks, and what each slide still waits for.

    A slide that fails is dropped and listed; the others go on. A task whose worker died is done once more with nothing
    beside it on its machine, because the worker may have been killed by chance or for memory that others took. One that
    ran out of memory gets a fresh worker, then all memory of a machine. When that fails too, the slide does.

    Parameters
    ----------
    measure_only : bool
        Leave every slide measured: calls and counts need the other slides of its batch.
    """

    def __init__(
        self,
        state: RunState,
        extents: dict[str, Extent],
        *,
        block_timeout_s: float | None,
        progress: Callable[[Progress], None],
        measure_only: bool = False,
    ) -> None:
        self.measure_only = measure_only
        self.state, self.extents, self.progress = state, dict(extents), progress
        self.recipe, self.root = state.checked.recipe, state.folder.root
        self.block_timeout_s = block_timeout_s
        rows = [row for row in state.checked.study.included if row.slide_id in extents]
        self.jobs = {row.slide_id: Job(row, self.recipe, self.root, extents[row.slide_id].stamp) for row in rows}
        self.order = {slide: index for index, slide in enumerate(self.jobs)}
        self.failures: list[Failure] = []
        self.reports: dict[str, SlideReport] = {}
        self.surveys: dict[str, str] = {}
        self.joined: dict[str, Joined] = {}
        self.queue: list[_Task] = []
        state.blocks = {slide: (0, extent.n_blocks) for slide, extent in extents.items()}
        self.done, self.total = 0, sum(map(self._steps, extents.values()))

    def _steps(self, extent: Extent) -> int:
        """Return how many pieces of work a slide is: its blocks, survey, join, and what follows."""
        return extent.n_blocks + (2 if self.measure_only else 3)

    def work(self, workers: Workers) -> None:
        """Do all tasks, a bounded number at a time.

        Raises
        ------
        StoreError
            If the run folder cannot be used any more.
        ClusterError
            If there are no workers to be had.
        """
        for slide in self.jobs:
            self._put("survey", slide, 0, steps.survey_slide, self.jobs[slide])
        running: dict[Future[Any], _Task] = {}
        finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        while self.queue or running:
            while self.queue and len(running) < 2 * workers.number:
                self._start(heapq.heappop(self.queue), workers, running, finished)
            workers.expect(self.total - self.done)
            self.state.workers = workers.told()
            self.state.touch()
            if running:
                try:
                    future = finished.get(timeout=HEARTBEAT_S)
                except queue.Empty:
                    continue
                self._take(running.pop(future), future)

    def _start(
        self,
        task: _Task,
        workers: Workers,
        running: dict[Future[Any], _Task],
        finished: queue.SimpleQueue[Future[Any]],
    ) -> None:
        if not self._wanted(task):
            return
        if task.stage == "survey":
            self._enter("survey", task.slide)
        if task.stage == "segment" and not task.losses:
            index = task.priority[2] + 1
            if index < self.extents[task.slide].n_blocks:
                self._put_block(task.slide, index)
        function, arguments = task.call
        piece = Piece(task.stage, task.slide, self._limit_s(task), task.alone)
        future = workers.submit(function, *arguments, piece=piece)
        running[future] = task
        future.add_done_callback(finished.put)

    def _limit_s(self, task: _Task) -> float:
        """Return after how many seconds a task hangs."""
        members = [task.slide] if task.slide in self.extents else list(self.extents)
        extents = [self.extents[slide] for slide in members]
        block_px = max((extent.block_px for extent in extents), default=0)
        limit = self.block_timeout_s or BLOCK_LIMIT_S + block_px / PX_PER_S_MIN
        if task.stage == "segment":
            return limit
        return limit + sum(extent.n_px for extent in extents) / SLIDE_PX_PER_S_MIN

    def _wanted(self, task: _Task) -> bool:
        """Return whether the slide of a task is still worked on; thresholds are a batch's."""
        return task.stage == "threshold" or task.slide in self.extents

    def _put(self, stage: str, slide: str, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        priority = (_STAGES.index(stage), self.order.get(slide, 0), number)
        heapq.heappush(self.queue, _Task(priority, stage, slide, (function, arguments)))

    def _put_block(self, slide: str, index: int) -> None:
        self._put("segment", slide, index, steps.analyse_block, self.jobs[slide], self.surveys[slide], index)

    def _again(self, task: _Task, error: BaseException | None) -> bool:
        """Queue a task once more that was lost with its worker; return False when it had every chance."""
        hungry = isinstance(error, MemoryError)
        if task.alone or not self._wanted(task) or not (hungry or isinstance(error, WorkerDiedError)):
            return False
        reason = error.message if isinstance(error, HistoquantError) else "out of memory."
        self.state.notes.append(f"{self._where(task)} was done again: {reason}")
        alone = task.losses > 0 or not hungry
        heapq.heappush(self.queue, replace(task, losses=task.losses + 1, alone=alone))
        return True

    def _take(self, task: _Task, future: Future[Any]) -> None:
        """Note what a finished task gave, and queue what can be done now."""
        error = future.exception()
        if isinstance(error, StoreError | ClusterError):
            raise error
        if self._again(task, error):
            return
        if task.stage == "threshold":
            self._take_thresholds(task, future)
            return
        if not self._wanted(task):
            return
        if error is not None:
            self._drop(task, error)
            return
        slide, job, n_blocks = task.slide, self.jobs[task.slide], self.extents[task.slide].n_blocks
        if task.stage == "survey":
            self.surveys[slide] = future.result()
            self._enter("segment", slide)
            self._put_block(slide, 0)
        elif task.stage == "segment":
            if future.result():
                self.state.computed += 1
            else:
                self.state.reused[slide] += 1
            done = self.state.blocks[slide][0] + 1
            self.state.blocks[slide] = (done, n_blocks)
            if done == n_blocks:
                self._enter("join", slide)
                self._put("join", slide, 0, steps.join_slide, job, self.surveys[slide], n_blocks)
        elif task.stage == "join":
            self.joined[slide] = Joined(job, self.surveys[slide], future.result())
            self._enter("threshold", slide)
            if not self.measure_only:
                self._batch_ready(job.slide.batch)
        else:
            self.reports[slide] = future.result()
            self._enter("done", slide)
            told = set(self.state.notes)  # what holds for the whole run is not said again of each slide
            self.state.notes += [f"{slide}: {note}" for note in self.reports[slide].notes if note not in told]
            self.state.log(slide, *(f"note: {note}" for note in self.reports[slide].notes))
        self.done += 1
        self.state.progress()
        self.progress(Progress(self.done, self.total, f"{slide}: {task.stage}"))

    def damage(self) -> list[str]:
        """Return which slides lost stored work to damage and had it computed again."""
        blocks, lost = self.state.folder.blocks, []
        for slide, survey_key in self.surveys.items():
            keys = [survey_key, steps.measured_key(survey_key)]
            keys += [steps.block_key(survey_key, index) for index in range(self.state.blocks[slide][1])]
            number = len(set(keys).intersection(blocks.damaged()))
            if number:
                lost.append(f"{slide}: {number} stored file(s) were damaged and computed again")
        return lost

    def _enter(self, stage: str, slide: str) -> None:
        self.state.enter(slide, stage)

    def _where(self, task: _Task) -> str:
        if task.stage == "threshold":
            return f"{named_batch(task.slide)}: threshold"
        what = task.stage
        if what == "segment":
            what = f"block {task.priority[2] + 1} of {self.extents[task.slide].n_blocks}"
        return f"Slide '{task.slide}': {what}"

    def _drop(self, task: _Task, error: BaseException) -> None:
        """List a slide as failed; what waited for it goes on without it."""
        if isinstance(error, WorkerError):
            error = self._blamed(task, error)
        slide, row = task.slide, self.jobs[task.slide].slide
        self.total -= self._steps(self.extents.pop(slide))
        for failure in failures_of(row, task.stage, error, self.root):
            self.failures.append(failure)
            self.state.fail(failure)
            self.progress(Progress(self.done, self.total, f"FAILED {failure.slide}: {failure.error}"))
        if task.stage != "finish" and not self.measure_only:
            self._batch_ready(row.batch)

    def _blamed(self, task: _Task, error: WorkerError) -> WorkerError:
        """Return an error that says at which piece of which slide a worker was lost, and what to look at."""
        message = f"{self._where(task)}: {error.message}"
        if not isinstance(error, WorkerDiedError) or task.stage not in ("survey", "segment"):
            return WorkerError(message, error.remedy)
        name = self.recipe.segment.segmenter
        told = registry.fingerprint_of("segmenter", name)
        return WorkerError(message, f"{error.remedy} The segmenter is '{name}' ({told}).")

    def _batch_ready(self, batch: str) -> None:
        """Queue the thresholds of a staining batch once all its slides are measured or have failed."""
        waiting = [slide for slide in self.extents if self.jobs[slide].slide.batch == batch]
        if waiting and all(slide in self.joined for slide in waiting):
            joined = [self.joined[slide] for slide in waiting]
            self._put("threshold", batch, 0, batch_thresholds, self.recipe, batch, joined)

    def _take_thresholds(self, task: _Task, future: Future[Any]) -> None:
        members = [slide for slide in self.extents if self.jobs[slide].slide.batch == task.slide]
        error = future.exception()
        if error is not None:
            for slide in members:
                self._drop(replace(task, slide=slide), error)
            return
        thresholds, flags = future.result()
        self.state.thresholds[task.slide] = thresholds
        for slide in members:
            self.state.log(slide, *(f"threshold of {n}: {t.value:.6g} ({t.source})" for n, t in thresholds.items()))
            self._enter("finish", slide)
            self._put("finish", slide, 0, finish_once, self.joined[slide], thresholds, flags)
