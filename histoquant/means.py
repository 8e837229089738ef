"""What a run works with: processes of this machine or workers of a cluster, as many as fit into their memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from histoquant import cluster, store
from histoquant.cluster import Limits, Workers
from histoquant.cluster.profile import AddressProfile, LocalProfile, Profile, QueueProfile, ThreadsProfile
from histoquant.cores import available_cores
from histoquant.errors import ClusterError
from histoquant.footprint import PROCESS_BYTES
from histoquant.job import release
from histoquant.runstate import Failure, Progress, RunState
from histoquant.schedule import Schedule, check_slides, workers_that_fit
from histoquant.steps import Extent, SlideReport
from histoquant.survey import notices

CHECKERS = 4
"""Processes that open slides where the driver of a cluster runs: perhaps a login node, which is not for computing."""


@dataclass(frozen=True)
class Means:
    """What a run may use.

    Attributes
    ----------
    workers : int, optional
        Processes on this machine, as many as there are cores when not given. A profile says otherwise.
    limits : Limits
    profile : Profile, optional
        Where work is done; on this machine when not given.
    """

    workers: int | None
    limits: Limits
    profile: Profile | None = None


def analysed(
    state: RunState, means: Means, progress: Callable[[Progress], None], *, measure_only: bool = False
) -> tuple[list[Failure], dict[str, SlideReport]]:
    """Analyse all slides of a run.

    Parameters
    ----------
    measure_only : bool
        Leave them measured; the reports are then empty.

    Returns
    -------
    failures : list of Failure
    reports : slide_id -> SlideReport
        Of the other slides. Both in the order of the sheet.
    """
    state.notes += notices(state.checked.recipe.segment)
    with contextlib.ExitStack() as held:
        extents, failures, workers = _checked(state, means, progress, held)
        schedule = Schedule(
            state,
            extents,
            block_timeout_s=means.limits.block_timeout_s,
            progress=progress,
            measure_only=measure_only,
        )
        if extents:
            schedule.work(workers)
        _keep_performance(state, workers)
    state.notes += schedule.damage()
    order = list(state.slides)
    failures = sorted([*failures, *schedule.failures], key=lambda failure: order.index(failure.slide))
    return failures, {slide: schedule.reports[slide] for slide in order if slide in schedule.reports}


def _checked(
    state: RunState, means: Means, progress: Callable[[Progress], None], held: contextlib.ExitStack
) -> tuple[dict[str, Extent], list[Failure], Workers]:
    """Open all slides on this machine; return their extents, what failed, and the workers to go on with."""
    profile = means.profile
    if isinstance(profile, ThreadsProfile):
        threads = cluster.Threads(profile.workers or available_cores())
        held.callback(threads.close)
        extents, failures = _open(state, threads, progress)
        held.push(lambda kind, *_: None if kind else threads.everywhere(release))
        return extents, failures, threads
    wanted, memory = means.workers, means.limits.memory_gb
    if isinstance(profile, LocalProfile):
        wanted, memory = profile.workers, profile.memory_gb
    total = cluster.available_memory() if memory is None else int(memory * 1e9)
    if profile is None or isinstance(profile, LocalProfile):
        wanted = available_cores() if wanted is None else wanted
        pool = held.enter_context(_processes(wanted, total))
        extents, failures = _open(state, pool, progress)
        if extents:
            pool.keep(workers_that_fit(extents, total, pool.number))
        if pool.number < wanted:
            state.notes.append(f"{pool.number} of {wanted} workers: more do not fit into {total / 1e9:.3g} GB")
        return extents, failures, pool
    with _processes(min(CHECKERS, available_cores()), total) as pool:
        extents, failures = _open(state, pool, progress)
        if not extents:
            return extents, failures, cluster.Inline()
    workers = held.enter_context(_elsewhere(state, profile, extents))
    if page := workers.told().get("dashboard"):
        progress(Progress(0, 0, f"dask's page about the workers: {page}"))
    return extents, failures, workers


@contextlib.contextmanager
def _processes(wanted: int, memory_bytes: int) -> Iterator[cluster.Processes]:
    room = max(PROCESS_BYTES, memory_bytes - PROCESS_BYTES)  # beside this process
    with cluster.workers(min(wanted, room // PROCESS_BYTES), memory_bytes=room) as pool:
        yield pool


def _open(
    state: RunState, workers: Workers, progress: Callable[[Progress], None]
) -> tuple[dict[str, Extent], list[Failure]]:
    extents, failures = check_slides(state.checked, workers, state.folder.root)
    for failure in failures:
        state.fail(failure)
        progress(Progress(0, 0, f"FAILED {failure.slide}: {failure.error}"))
    return extents, failures


@contextlib.contextmanager
def _elsewhere(
    state: RunState, profile: QueueProfile | AddressProfile, extents: dict[str, Extent]
) -> Iterator[Workers]:
    """Give the workers of a cluster, with as many tiles in flight on each as fit into its memory."""
    from histoquant.cluster import remote
    from histoquant.cluster.queues import job_name

    def fitting(wanted: int, memory: int) -> int:
        number = workers_that_fit(extents, memory, wanted)
        if number < wanted:
            state.notes.append(f"{number} of {wanted} tiles at once on each worker: more do not fit into its memory")
        return number

    if isinstance(profile, QueueProfile):
        job = profile.job
        number = fitting(job.n_workers, job.memory_bytes)
        state.workers = {"kind": profile.kind, "job_name": job_name(state.folder.root)}
        state.write("running")  # `cancel` finds the jobs by it, also when this process is killed in its first second
        with remote.queued(profile, state.folder.root, number, job.memory_bytes - PROCESS_BYTES) as workers:
            yield workers
        return
    with remote.connected(profile) as (client, cores, memory):
        number = fitting(cores, memory)
        if told := remote.overheard(client):
            state.notes.append(told)
        with remote.borrowed(client, number, memory - PROCESS_BYTES) as workers:
            yield workers


def _keep_performance(state: RunState, workers: Workers) -> None:
    """Write what the run spent its time on, beside it: these files change from run to run, results do not."""
    import pandas as pd

    state.workers = workers.told()
    path = state.path.with_name("performance.csv")
    rows = list(workers.performance.rows())
    columns = ["kind", "name", "stage", "n", "seconds", "longest_s", "peak_mb"]
    store.write_csv(path, pd.DataFrame(rows, columns=columns), make_folder=False)
    page = path.with_suffix(".html")
    page.unlink(missing_ok=True)  # that of an earlier run, which may have been on a cluster when this one is not
    try:
        content = workers.report()
    except ClusterError as error:  # a finished run is not lost for a picture of it
        state.notes.append(str(error))
        return
    if content:
        store.write_bytes(page, content.encode("utf-8"), make_folder=False)
