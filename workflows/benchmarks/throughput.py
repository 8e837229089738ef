"""How fast a slide goes from file to tables, beside the bare decode and a plain scikit-image script in the same run.

    python workflows/benchmarks/throughput.py [--side 20000] [--workers 2] [--folder FOLDER] [--pyramid] [--profile]

A phantom slide (uint16, three channels, zlib tiles) is made in FOLDER and kept there. A megapixel is a million places,
all three channels included. `--profile` goes through it once more in one process and prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from big_slides import big_slide, study_of
from watched import watched

from histoquant import registry, steps
from histoquant.analysis.tiles import plan_tiles
from histoquant.controls import batch_thresholds
from histoquant.inputs import load
from histoquant.job import Job
from histoquant.model.slide import Box
from histoquant.steps import Joined

TILE_PX = 2048
SCRIPT_SIDE_PX = 6144
"""Side of the part in the middle of the slide that the plain script works on."""

STAGES = (
    (0, "steps.py", "survey_slide"),
    (1, "job.py", "source_hashes"),
    (1, "survey.py", "survey"),
    (0, "steps.py", "analyse_block"),
    (1, "picture.py", "flat_pixels"),
    (1, "survey.py", "normalised"),
    (1, "watershed.py", "__call__"),
    (1, "tiles.py", "canonical"),
    (1, "tiles.py", "own"),
    (1, "measure.py", "measure_nuclei"),
    (1, "pipeline.py", "_objects"),
    (1, "pipeline.py", "_with_pieces"),
    (1, "runs.py", "runs_of"),
    (1, "store.py", "write"),
    (0, "steps.py", "join_slide"),
    (0, "steps.py", "finish_slide"),
    (1, "pipeline.py", "finish"),
    (1, "steps.py", "write_labels"),
    (1, "figures.py", "draw_overview"),
)
"""Functions; those read by several stages count where they stand with all they were called for."""


def decode(path: Path, boxes: list[Box]) -> int:
    """Read boxes and throw the pixels away."""
    slide = registry.open_slide(path)
    total = sum(int(slide.read(box).max()) for box in boxes)
    slide.close()
    return total


def plain_script(path: Path, box: Box) -> int:
    """Do what a short script does with a tile: smooth, Otsu, label, measure three channels. Seams are ignored."""
    from skimage import filters, measure

    slide = registry.open_slide(path)
    pixels = slide.read(box)[:, 0]
    slide.close()
    smooth = filters.gaussian(pixels[0].astype(np.float32), 1.5) - filters.gaussian(pixels[0].astype(np.float32), 25)
    labels = measure.label(smooth > filters.threshold_otsu(smooth))
    table = measure.regionprops_table(
        labels, np.moveaxis(pixels, 0, -1), properties=("label", "area", "centroid", "intensity_mean")
    )
    return len(table["label"])


def run_command(sheet: Path, recipe: Path, out: Path, workers: int) -> list[str]:
    """Return the command that a user would give."""
    given = ["run", str(sheet), "--recipe", str(recipe), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "histoquant", *given]


def profile(sheet: Path, recipe: Path, out: Path) -> None:
    """Print processor time by stage: what the workers do, one after the other in this process."""
    checked = load(sheet, recipe)
    job = Job(checked.study.included[0], checked.recipe, out)
    for folder in (job.folder.blocks.folder, job.folder.slide(job.slide.slide_id)):
        folder.mkdir(parents=True)

    def work() -> None:
        key, n_blocks = steps.survey_slide(job), steps.check(job).n_blocks
        for index in range(n_blocks):
            steps.analyse_block(job, key, index)
        joined = Joined(job, key, steps.join_slide(job, key, n_blocks))
        steps.finish_slide(joined, *batch_thresholds(job.recipe, "", [joined]))

    profiler = cProfile.Profile(time.process_time)
    start = time.process_time()
    profiler.runcall(work)
    whole = time.process_time() - start
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    print(f"\n| stage, indented what it consists of | s of processor time | share of {whole:.0f} s |\n|---|---|---|")
    for indent, file, function in STAGES:
        spent = sum(row[3] for (path, _, name), row in stats.items() if name == function and Path(path).name == file)
        if spent:
            name = f"{file.removesuffix('.py')}.{function}"
            print(f"| {'&emsp;' * indent}{name} | {spent:.1f} | {100 * spent / whole:.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "histoquant_benchmarks")
    parser.add_argument("--pyramid", action="store_true")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = big_slide(given.folder, given.side, pyramid=given.pyramid)
    sheet, recipe = study_of(given.folder, path)
    megapixels = given.side**2 / 1e6

    # Once on a small slide: compiled loops then come from the cache, as they do for a user from the second run on.
    small = big_slide(given.folder, 1500, pyramid=given.pyramid)
    warm = given.folder / "out_warm"
    shutil.rmtree(warm, ignore_errors=True)
    watched(run_command(*study_of(given.folder, small), warm, given.workers))

    boxes = [tile.box for tile in plan_tiles((given.side, given.side), core_px=TILE_PX, halo_px=0)]
    middle = (given.side - min(given.side, SCRIPT_SIDE_PX)) // 2
    part = Box(middle, given.side - middle, middle, given.side - middle)
    inside = [
        box for box in boxes if box.y0 >= part.y0 and box.x0 >= part.x0 and box.y1 <= part.y1 and box.x1 <= part.x1
    ]
    with ProcessPoolExecutor(given.workers) as pool:
        list(pool.map(decode, repeat(path), [[box] for box in boxes[: given.workers]]))  # imports are not decoding
        start = time.perf_counter()
        list(pool.map(decode, repeat(path), [boxes[i :: given.workers] for i in range(given.workers)]))
        decoded_s = time.perf_counter() - start
        list(pool.map(plain_script, repeat(path), inside[: given.workers]))
        start = time.perf_counter()
        list(pool.map(plain_script, repeat(path), inside))
        script = sum(box.shape[0] * box.shape[1] for box in inside) / 1e6 / (time.perf_counter() - start)

    out = given.folder / "out_throughput"
    shutil.rmtree(out, ignore_errors=True)
    usage = watched(run_command(sheet, recipe, out, given.workers))
    print(
        f"{path.name}, {megapixels:.0f} Mpx x 3 channels, {path.stat().st_size / 1e9:.2f} GB, {given.workers} workers\n"
    )
    print("| | wall s | Mpx/s | ratio to histoquant |\n|---|---|---|---|")
    ours = megapixels / usage.wall_s
    print(f"| histoquant run, all told | {usage.wall_s:.1f} | {ours:.1f} | 1 |")
    print(f"| bare decode, {given.workers} processes | {decoded_s:.1f} | {megapixels / decoded_s:.1f} | ", end="")
    print(f"{megapixels / decoded_s / ours:.2f} |")
    print(
        f"| plain scikit-image script, {given.workers} processes, its middle | | {script:.1f} | {script / ours:.2f} |"
    )
    print(f"\nProcessor time {usage.cpu_s:.1f} s; peak resident {usage.rss_mb:.0f} MB over all processes, ", end="")
    print(f"{usage.largest_mb:.0f} MB in the largest.")
    if given.profile:
        shutil.rmtree(out)
        profile(sheet, recipe, out)


if __name__ == "__main__":
    main()
