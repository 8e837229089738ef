"""What a study would take on a cluster, from one block of tiles that is measured before anything waits in a queue."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from histoquant import cluster, steps
from histoquant.cluster.profile import AddressProfile, LocalProfile, Profile, QueueProfile
from histoquant.cores import available_cores
from histoquant.footprint import PROCESS_BYTES
from histoquant.inputs import Checked
from histoquant.job import Job
from histoquant.schedule import workers_that_fit
from histoquant.status import duration
from histoquant.steps import BLOCK_TILES, Extent


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Attributes
    ----------
    script : str
        What would be sent to the queue for each worker; empty without a queue.
    n_slides, n_blocks : int
        Slides, and blocks of tiles of all of them.
    tiles_at_once : int
        By all machines together, if all jobs run.
    tiles_each, memory_each_bytes : int
        By one machine, and the memory that it then takes.
    measured : str
        The slide that was looked at.
    survey_s, block_s : float
        How long its survey, and one block from its middle, took here.
    peak_bytes : int
        The memory that the process which did them was seen to take.
    total_s : float
        Of the whole study, once the jobs run.
    """

    script: str
    n_slides: int
    n_blocks: int
    tiles_at_once: int
    tiles_each: int
    memory_each_bytes: int
    measured: str
    survey_s: float
    block_s: float
    peak_bytes: int
    total_s: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        if self.script:
            yield "The script of each worker's job:"
            yield from (f"    {line}" for line in self.script.splitlines())
        yield (
            f"Memory:  {self.memory_each_bytes / 1e9:.2g} GB on each machine for {self.tiles_each} tile(s) at once; "
            f"the process that was measured took {self.peak_bytes / 1e9:.2g} GB."
        )
        yield (
            f"Time:    about {duration(self.total_s)} for {self.n_slides} slide(s), {self.n_blocks} block(s), with "
            f"{self.tiles_at_once} tile(s) at once, not counting the queue. Measured here on '{self.measured}': "
            f"{self.block_s:.2g} s for a block of up to {BLOCK_TILES} tiles, {self.survey_s:.2g} s for the survey."
        )


def estimate(checked: Checked, extents: dict[str, Extent], profile: Profile) -> Estimate:
    """Survey the largest slide, analyse one block of it, and say what the study would take.

    Raises
    ------
    InputError
        If not even one tile fits into the memory of a machine.
    HistoquantError
        If that slide cannot be surveyed.
    """
    machines, wanted, memory = _machines(profile)
    each = workers_that_fit(extents, memory, wanted)
    script = ""
    if isinstance(profile, QueueProfile):
        from histoquant.cluster.queues import submit_script

        script = submit_script(profile, Path("OUT"), each)
    name, largest = max(extents.items(), key=lambda pair: pair[1].n_px)
    row = next(row for row in checked.taken if row.slide_id == name)
    with tempfile.TemporaryDirectory(prefix="histoquant-") as folder, cluster.workers(1) as workers:
        job = Job(row, checked.recipe, Path(folder))
        key = workers.submit(steps.survey_slide, job, piece=cluster.Piece("survey")).result()
        middle = largest.n_blocks // 2
        for stage in ("compile", "segment"):  # the first time on a machine its loops are compiled
            workers.submit(steps.analyse_block, job, key, middle, piece=cluster.Piece(stage)).result()
            job.folder.blocks.path(steps.block_key(key, middle)).unlink()
        spent = {told["stage"]: told for told in workers.performance.rows() if told["kind"] == "slide"}
    survey_s, block_s = float(spent["survey"]["seconds"]), float(spent["segment"]["seconds"])
    n_px, n_blocks = sum(e.n_px for e in extents.values()), sum(e.n_blocks for e in extents.values())
    work_s = n_blocks * block_s + survey_s * n_px / largest.n_px
    # One slide at least is surveyed before any of its blocks, and no block is shared.
    total_s = max(work_s / (machines * each), survey_s + block_s)
    return Estimate(
        script,
        len(extents),
        n_blocks,
        machines * each,
        each,
        PROCESS_BYTES + each * (PROCESS_BYTES + max(e.tile_bytes for e in extents.values())),
        name,
        survey_s,
        block_s,
        1_000_000 * max(int(told["peak_mb"]) for told in spent.values()),
        total_s,
    )


def _machines(profile: Profile) -> tuple[int, int, int]:
    """Return how many machines there are at most, and the tiles at once and bytes of memory of each."""
    if isinstance(profile, QueueProfile):
        return profile.scale.max_jobs, profile.job.n_workers, profile.job.memory_bytes
    if isinstance(profile, AddressProfile):
        from histoquant.cluster.remote import connected

        with connected(profile) as (client, cores, memory):
            return len(client.nthreads()), cores, memory
    stated = profile.memory_gb if isinstance(profile, LocalProfile) else None
    memory = int(stated * 1e9) if stated else cluster.available_memory()
    return 1, profile.workers or available_cores(), memory
