"""How a run scales: two workers measured, what a piece of work costs the driver, and a thousand workers simulated.

    python workflows/benchmarks/scaling.py measure [--side 8192] [--folder FOLDER]     # 1 and 2 workers
    python workflows/benchmarks/scaling.py driver [--slides 1000] [--tiles 1500]       # memory and time of the driver
    python workflows/benchmarks/scaling.py simulate [--slides 10000] [--gpx 1.0] ...   # with the times of the other two

The simulation hands out pieces as `schedule.py` does: later stages first, one driver that spends a fixed time on every
piece, workers that are never idle while there is work. It knows no shared disk; it says what that would have to carry.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from big_slides import big_slide, study_of

from histoquant.batch import run_study
from histoquant.cluster import PLAIN, Limits
from histoquant.cluster.performance import Performance
from histoquant.inputs import Checked, load
from histoquant.model.study import Study, StudySlide
from histoquant.model.tables import STAIN_SCORES, empty
from histoquant.runstate import RunState
from histoquant.schedule import Schedule
from histoquant.steps import BLOCK_TILES, Extent, SlideReport
from histoquant.store import RunFolder

STAGES = ("survey", "segment", "join", "finish")


def measure(args: argparse.Namespace) -> None:
    """Run one slide with 1 and with 2 workers, and print how much faster the blocks and the whole went."""
    folder = args.folder or Path(tempfile.mkdtemp(prefix="scaling-"))
    slide = big_slide(folder, args.side, pyramid=True)
    print(f"{slide.name}: {args.side} x {args.side} px, load {psutil.getloadavg()[0]:.1f} before")
    print("| segmenter | workers | blocks, s | speed-up | whole run, s | speed-up | survey | block | join | finish |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for segmenter in args.segmenters:
        study, recipe = study_of(folder, slide)
        text = recipe.read_text(encoding="utf-8").replace('"watershed"', f'"{segmenter}"')
        recipe.write_text(text, encoding="utf-8")
        first: tuple[float, float] | None = None
        for number in (1, 2):
            at: dict[str, float] = {}

            def note(step: Any, at: dict[str, float] = at) -> None:
                stage = step.message.rpartition(": ")[2]
                at.setdefault(f"first {stage}", time.perf_counter())
                at[stage] = time.perf_counter()

            with tempfile.TemporaryDirectory(dir=folder) as out:
                begun = time.perf_counter()
                run_study(load(study, recipe), Path(out) / "out", workers=number, limits=Limits(), progress=note)
                whole = time.perf_counter() - begun
                with (Path(out) / "out" / "performance.csv").open(encoding="utf-8") as file:
                    rows = [row for row in csv.DictReader(file) if row["kind"] == "slide"]
            spent = {row["stage"]: float(row["seconds"]) / int(row["n"]) for row in rows}
            blocks = at["segment"] - at["survey"]
            first = first or (blocks, whole)
            told = " | ".join(f"{spent.get(stage, 0.0):.2f}" for stage in STAGES)
            print(
                f"| {segmenter} | {number} | {blocks:.1f} | {first[0] / blocks:.2f} | {whole:.1f} "
                f"| {first[1] / whole:.2f} | {told} |",
                flush=True,
            )


class Instant:
    """Workers that have done everything before it is asked for."""

    number = 1000

    def __init__(self, report: SlideReport) -> None:
        self.performance, self.report, self.pieces = Performance(), report, 0

    def submit(self, fn: Any, /, *args: Any, piece: Any = PLAIN) -> Future[Any]:
        """Return what such a piece gives."""
        self.pieces += 1
        future: Future[Any] = Future()
        plain = {"survey": "0" * 64, "segment": True, "join": "1" * 64, "threshold": ({}, [])}
        future.set_result(self._fresh() if piece.stage == "finish" else plain[piece.stage])
        return future

    def _fresh(self) -> SlideReport:
        """Return a report whose tables are copies, as they are when they come from a worker."""
        told = self.report
        return SlideReport(told.regions.copy(), told.sensitivity.copy(), told.stain_scores.copy(), told.notes)

    def expect(self, pieces: int) -> None:
        """Take no notice."""

    def told(self) -> dict[str, Any]:
        """Say nothing."""
        return {}


def _one_slide(folder: Path) -> tuple[Checked, Any, Any]:
    """Return a study of one small slide, and the two tables that a driver keeps of it."""
    import pandas as pd

    checked = load(*study_of(folder, big_slide(folder, 1024, pyramid=False)))
    run_study(checked, folder / "one", workers=1)
    one = folder / "one" / "slides" / checked.taken[0].slide_id
    return checked, pd.read_csv(one / "regions.csv"), pd.read_csv(one / "sensitivity.csv")


def driver(args: argparse.Namespace) -> None:
    """Plan a study of many slides and let it run on instant workers: what is left is what the driver takes."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # By another process: what it loads and keeps is no part of a driver.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
            checked, regions, curve = other.submit(_one_slide, folder).result()
        import pandas as pd

        # A slide with eight regions instead of one.
        report = SlideReport(pd.concat([regions] * 8), pd.concat([curve] * 8), empty(STAIN_SCORES), ("a note",))
        rows = tuple(
            StudySlide(f"M{n // 10}_s{n % 10}", folder / f"{n}.tif", f"M{n // 10}", "a", batch=str(n // 100))
            for n in range(args.slides)
        )
        checked = Checked(Study(rows, folder), checked.recipe)
        blocks = -(-args.tiles // BLOCK_TILES)
        extent = Extent(blocks, args.tiles * 2**20, BLOCK_TILES * 2**20, 2**28, ())
        before = psutil.Process().memory_info().rss
        run = RunFolder(folder / "run")
        with run.held():
            state = RunState(checked, run, ["run"])
            begun, cpu = time.perf_counter(), time.process_time()
            schedule = Schedule(
                state, {row.slide_id: extent for row in rows}, block_timeout_s=None, progress=lambda _: None
            )
            workers = Instant(report)
            schedule.work(workers)
            spent = time.process_time() - cpu
            size = (run.root / "run.json").stat().st_size
        assert len(schedule.reports) == args.slides
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        load_1 = psutil.getloadavg()[0]
        print(f"{args.slides} slides x {args.tiles} tiles = {workers.pieces} pieces of work, load {load_1:.1f}")
        print(f"memory of the driver: {peak / 1e6:.0f} MB at its peak, {before / 1e6:.0f} MB of it before the study")
        print(
            f"time of the driver: {1e6 * spent / workers.pieces:.0f} us per piece, {time.perf_counter() - begun:.0f} s"
        )
        print(f"run.json: {size / 1e6:.1f} MB")
    remote(args.pieces)


def nothing(padding: bytes) -> bool:
    """Do nothing with what a piece of work usually carries."""
    return bool(padding)


def remote(pieces: int) -> None:
    """Send empty pieces through dask's scheduler to two workers: what that takes of the driver's process."""
    import dask
    from distributed import Client, LocalCluster

    from histoquant.cluster.node import Node
    from histoquant.cluster.remote import SETTINGS, Remote

    with (
        dask.config.set(SETTINGS | {"distributed.worker.daemon": False}),
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        workers = Remote(client, Node("scaling", 1, 4_000_000_000), lambda: 2)
        for warm in (True, False):
            begun, cpu = time.perf_counter(), time.process_time()
            under_way: deque[Future[Any]] = deque()
            for _ in range(20 if warm else pieces):
                under_way.append(workers.submit(nothing, b"x" * 8000))
                if len(under_way) == 64:
                    under_way.popleft().result()
            while under_way:
                under_way.popleft().result()
        spent, wall = time.process_time() - cpu, time.perf_counter() - begun
        workers.close()
    print(f"dask: {1e3 * spent / pieces:.2f} ms of the driver per piece ({pieces} pieces, {wall:.1f} s with 2 workers)")


@dataclass(frozen=True)
class Times:
    """Seconds of the stages of one slide, and of the driver for each piece of work."""

    blocks: int
    survey: float
    segment: float
    join: float
    finish: float
    driver: float


def simulated(slides: int, workers: int, times: Times, batch: int) -> tuple[float, float]:
    """Return how long a study takes, and the part of it in which the driver was busy.

    Slides of a batch are finished when all of them are joined.
    """
    later_first = {"finish": 0, "join": 1, "segment": 2, "survey": 3}
    ready = [(later_first["survey"], slide, 0, "survey") for slide in range(slides)]
    heapq.heapify(ready)
    left = [times.blocks] * slides
    waiting = [min(batch, slides - first) for first in range(0, slides, batch)]
    running: list[tuple[float, int, int, str]] = []
    free, driver_at, busy, now, done = workers, 0.0, 0.0, 0.0, 0
    while done < slides:
        while ready and free:
            _, slide, _, stage = heapq.heappop(ready)
            driver_at = max(driver_at, now) + times.driver
            busy += times.driver
            free -= 1
            heapq.heappush(running, (driver_at + getattr(times, stage), slide, later_first[stage], stage))
            if driver_at > now and running[0][0] < driver_at:
                break  # something ended before the driver came to it
        now, slide, _, stage = heapq.heappop(running)
        free += 1
        if stage == "survey":
            for index in range(times.blocks):
                heapq.heappush(ready, (later_first["segment"], slide, index, "segment"))
        elif stage == "segment":
            left[slide] -= 1
            if not left[slide]:
                heapq.heappush(ready, (later_first["join"], slide, 0, "join"))
        elif stage == "join":
            group = slide // batch
            waiting[group] -= 1
            if not waiting[group]:
                for member in range(group * batch, min((group + 1) * batch, slides)):
                    heapq.heappush(ready, (later_first["finish"], member, 0, "finish"))
        else:
            done += 1
    return max(now, driver_at), busy


def simulate(args: argparse.Namespace) -> None:
    """Print how a study would go on more and more workers."""
    tiles = args.gpx * 1e9 / args.tile_px**2
    blocks = max(1, round(tiles / BLOCK_TILES))
    times = Times(
        blocks,
        args.survey_s * args.gpx,
        args.block_s,
        args.join_s * args.gpx,
        args.finish_s * args.gpx,
        args.driver_ms / 1e3,
    )
    one = args.slides * (times.survey + blocks * times.segment + times.join + times.finish)
    gigabytes = args.slides * args.gpx * args.bytes_px
    print(f"{args.slides} slides of {args.gpx} Gpx, {blocks} blocks each; {times}")
    print("| workers | hours | speed-up | efficiency | driver busy | read from the slides, GB/s |")
    print("|---|---|---|---|---|---|")
    for number in args.workers:
        total, busy = simulated(args.slides, number, times, args.batch)
        print(
            f"| {number} | {total / 3600:.1f} | {one / total:.0f} | {one / total / number:.3f} | {busy / total:.0%} "
            f"| {gigabytes / total:.1f} |",
            flush=True,
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    two = commands.add_parser("measure")
    two.add_argument("--side", type=int, default=8192)
    two.add_argument("--folder", type=Path)
    two.add_argument("--segmenters", nargs="+", default=["watershed", "network"])
    two.set_defaults(run=measure)
    plan = commands.add_parser("driver")
    plan.add_argument("--slides", type=int, default=1000)
    plan.add_argument("--tiles", type=int, default=1500)
    plan.add_argument("--pieces", type=int, default=2000, help="empty ones, sent through dask")
    plan.set_defaults(run=driver)
    many = commands.add_parser("simulate")
    many.add_argument("--slides", type=int, default=10_000)
    many.add_argument("--gpx", type=float, default=1.0)
    many.add_argument("--tile-px", type=int, default=1024)
    many.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 300, 1000, 2000, 4000])
    many.add_argument("--batch", type=int, default=100, help="slides that share their controls")
    many.add_argument("--survey-s", type=float, required=True, help="seconds per Gpx")
    many.add_argument("--block-s", type=float, required=True, help="seconds per block")
    many.add_argument("--join-s", type=float, required=True, help="seconds per Gpx")
    many.add_argument("--finish-s", type=float, required=True, help="seconds per Gpx")
    many.add_argument("--driver-ms", type=float, required=True, help="of the driver, per piece of work")
    many.add_argument("--bytes-px", type=float, default=6.0, help="read per pixel: once whole, once by tiles")
    many.set_defaults(run=simulate)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
