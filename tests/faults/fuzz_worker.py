"""Open mutated files one after the other, as ``check`` and ``run`` do, in a process that may die of it.

``python -m tests.faults.fuzz_worker KIND FIRST LAST ORIGINALS WORK`` prints a line before and after each case. What
it may end in is success or a HistoquantError; everything else is printed as a fault, and its file is kept.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from histoquant import registry
from histoquant.batch import check_study
from histoquant.errors import HistoquantError
from histoquant.inputs import load
from histoquant.model.geometry import slide_rectangle
from histoquant.model.recipe import Segment
from histoquant.model.region import Band, Mirror, RegionRule, resolve
from histoquant.model.slide import Box
from histoquant.picture import shrink
from histoquant.readers.outlines import read_outlines, write_geojson
from histoquant.schedule import UNEXPECTED_REMEDY
from tests.faults.fuzz_mutations import MUTATIONS

LIMIT_S = 10
LIMIT_BYTES = 2**30
ADDRESS_BYTES = 2**33
"""Far above what a sound case maps (libraries and threads: 3 GB), far below the machine's memory."""

TILE_PX = 1100
SLIDE_UM = (60.0, 80.0)
RULES = {
    "rim": RegionRule(band=Band(of="cortex", to_um=5.0), within="slide", counted=False),
    "other": RegionRule(mirror=Mirror(of="cortex"), within="slide", counted=False),
}


class Unexpected(Exception):
    """A fault that ``check`` listed for want of anything better to say."""


def open_slide(path: Path, _: Path) -> None:
    """Open a slide, read a tile of each level, and look at the whole of it as the survey does."""
    reader = registry.load("reader", registry.reader_of(path).name)()
    # Not registry.open_slide: it makes one sentence of whatever a reader raises, and here that has to be seen.
    scene = reader.scenes(path)[0]
    slide = reader.open(path, scene=scene)
    try:
        channels = list(range(min(2, len(slide.channels))))
        for level in range(len(slide.levels)):
            height, width = slide.levels[level].shape[2:]
            for y0, x0 in {(0, 0), (max(0, height - TILE_PX), max(0, width - TILE_PX))}:
                box = Box(y0, min(y0 + TILE_PX, height), x0, min(x0 + TILE_PX, width))
                slide.read(box, channels=channels, level=level)
        if slide.pixel_size_yx_um is None:
            slide = slide.with_pixel_size(0.5)
        shrink(slide, tuple(channels), Segment(), coarse_um=2.0)
    finally:
        slide.close()


def open_outlines(path: Path, work: Path) -> None:
    """Read outlines, make regions of them, and ask these what a run asks."""
    drawn = read_outlines(path, 0.5)
    names = {region.name for region in drawn}
    rules = {name: rule for name, rule in RULES.items() if set(rule.sources) <= names | {"slide"}}
    regions = resolve(drawn, rules, slide=SLIDE_UM, tissue=slide_rectangle((50.0, 70.0)), overlap="first")
    regions.table()
    points = np.stack([np.linspace(0, SLIDE_UM[0], 50), np.linspace(0, SLIDE_UM[1], 50)], axis=1)
    regions.assign(points)
    for region in regions:
        regions.signed_distance_um(region.name, points)
    for ground in regions.grounds().values():
        regions.pixel_mask(ground, Box(10, 90, 20, 130), 0.5)
    write_geojson(work / "written.geojson", regions, 0.5)
    (work / "written.geojson").unlink()


def check_recipe(path: Path, work: Path) -> None:
    """Check a study with a recipe."""
    shutil.copyfile(path, work / "study" / "fuzzed.toml")
    _check(work / "study" / "study.csv", work / "study" / "fuzzed.toml")


def check_sheet(path: Path, work: Path) -> None:
    """Check a sample sheet."""
    shutil.copyfile(path, work / "study" / "fuzzed.csv")
    _check(work / "study" / "fuzzed.csv", work / "study" / "recipe.toml")


def _check(study: Path, recipe: Path) -> None:
    checked = load(study, recipe)
    checked.recipe.fingerprint()
    checked.recipe.fingerprint(measured=True)
    _, failures = check_study(checked)
    for failure in failures:
        if failure.remedy == UNEXPECTED_REMEDY or " could not open it: " in failure.error:
            raise Unexpected(failure.error)


EXERCISES: dict[str, Callable[[Path, Path], None]] = {
    "tiff": open_slide,
    "geojson": open_outlines,
    "roi": open_outlines,
    "toml": check_recipe,
    "csv": check_sheet,
}


def mutated(kind: str, number: int, originals: Path) -> tuple[str, bytes]:
    """Return suffix and content of a case; the same for the same number."""
    rng = Random(f"{kind} {number}")
    path = rng.choice(sorted((originals / kind).iterdir()))
    return "".join(path.suffixes), MUTATIONS[kind](rng, path.read_bytes())


def exercise(kind: str, number: int, originals: Path, work: Path) -> str:
    """Run one case and return how it ended; its file is kept when that was a fault."""
    suffix, content = mutated(kind, number, originals)
    path = work / f"{kind}_{number}{suffix}"
    path.write_bytes(content)
    try:
        EXERCISES[kind](path, work)
        ended = "sound"
    except HistoquantError as error:
        ended = "refused" if str(error).strip() else "fault: refused without a word"
    except Exception as error:  # noqa: BLE001 - every other end of a case is what is looked for
        traceback.print_exc()
        ended = f"fault: {type(error).__name__}: {str(error)[:200]!r}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > LIMIT_BYTES:
        ended = f"fault: memory of {peak / 2**30:.2f} GiB"
    if not ended.startswith("fault"):
        path.unlink()
    return ended


def main(kind: str, first: str, last: str, originals: str, work: str) -> None:
    """Run cases ``first`` to ``last``; stop after one that took too much memory, which is never given back."""
    os.chdir(work)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    for number in range(int(first), int(last)):
        print(f"begin {number}", flush=True)
        # SIGPROF ends the process, also one that is lost in a decoder. Time of computing: other processes do not count.
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        ended = exercise(kind, number, Path(originals), Path(work))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(f"end {number} {ended}", flush=True)
        if "fault: memory" in ended:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
