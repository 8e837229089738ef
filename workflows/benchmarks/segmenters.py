r"""How fast nuclei are found by every segmenter, on one crop and in one run, and where the network's time goes.

    python workflows/benchmarks/segmenters.py [--side 4096] [--workers 2] [--segmenter network ...]
    python workflows/benchmarks/segmenters.py --segmenter network watershed cellpose --slow-side 512 \\
        --param cellpose.model=WEIGHTS [--stardist]

The crop is a phantom DAPI section at 0.5 um per pixel with 1,600 nuclei of 8 um per mm2, in zlib tiles. Each segmenter
is run by the command a user would give, from the file to the label image, start-up included; *cellpose* sees only the
middle of the crop. `--stardist` times the bare forward pass of an untrained StarDist network of the usual size on the
same middle: a lower bound of what it takes. The stages of the network are timed in one process on one core.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from watched import watched

from histoquant import registry, single
from histoquant.model.slide import Box
from histoquant.ometiff import write_ome_tiff
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.optics import paint
from histoquant.phantom.plan import PhantomPlan

PX = 0.5
SLOW = ("cellpose",)
STAGES = (
    ("survey of the slide", "survey.py", "survey"),
    ("read and decode", "picture.py", "flat_pixels"),
    ("background", "survey.py", "normalised"),
    ("resampling", "resample.py", "resampled"),
    ("forward pass", "onnxruntime_inference_collection.py", "run"),
    ("basins", "basins.py", "local_basins"),
    ("labels back to pixels", "resample.py", "labels_at"),
    ("ownership", "tiles.py", "own"),
    ("measuring", "measure.py", "measure_nuclei"),
    ("label image", "steps.py", "write_labels"),
)


def crop(folder: Path, side: int, part: int | None = None) -> Path:
    """Return a crop of a section, or the middle of it, as an OME-TIFF; it is made unless it is there."""
    path = folder / f"dapi_{side}_{part or side}.ome.tif"
    if path.exists():
        return path
    mm = side * PX / 1000
    plan = PhantomPlan(
        "nuclei", size_mm=(mm, mm), pixel_size_um=PX, animals=1, seed=21, density_per_mm2=1600.0, diameter_um=8.0
    )
    _, section = make_section(plan, Subject(0, plan.facts.groups[0]))
    wanted = part or side
    first = (side - wanted) // 2
    pixels: NDArray[Any] = paint(section, Box(first, first + wanted, first, first + wanted))[:1]

    def rows(y0: int, y1: int) -> NDArray[Any]:
        return pixels[:, y0:y1]

    write_ome_tiff(path, pixels.shape, pixels.dtype, rows, pixel_size_um=PX, channels=["DAPI"])
    return path


def timed(path: Path, segmenter: str, params: list[str], workers: int) -> str:
    """Return a row of the table: the command of a user, run once before so that compiled loops are in their cache."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "histoquant", "segment", str(path), "--out", f"{out}/labels.ome.tif"]
        command += ["--segmenter", segmenter, "--workers", str(workers), "--quiet"]
        for param in ["diameter_um=8", *params]:
            command += ["--param", param]
        if segmenter not in SLOW:
            watched(command)
        usage = watched(command)
    side = int(path.name.split("_")[2].split(".")[0])
    mpx = side**2 / 1e6
    return (
        f"| {segmenter} | {mpx:.2f} | {usage.wall_s:.1f} | {mpx / usage.wall_s:.3g} | {usage.cpu_s / mpx:.2f} | "
        f"{usage.rss_mb:.0f} | {usage.largest_mb:.0f} |"
    )


def stages(path: Path) -> None:
    """Print where the time of the network goes, everything in this process on one core."""
    profiler = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as out:
        start = time.process_time()
        profiler.runcall(
            single.segment_image,
            path,
            Path(out) / "labels.ome.tif",
            channel="0",
            pixel_size_um=None,
            settings={"segmenter": "network", "diameter_um": 8.0},
        )
        whole = time.process_time() - start
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    print(f"\n| stage | s of processor time | share of {whole:.1f} s |\n|---|---|---|")
    for label, file, function in STAGES:
        spent = sum(
            row[3] for (name, _, called), row in stats.items() if called == function and Path(name).name == file
        )
        print(f"| {label} | {spent:.2f} | {100 * spent / whole:.0f} % |")


def stardist(path: Path) -> str:
    """Return a row: the bare forward pass of an untrained StarDist network of the usual size."""
    from stardist.models import Config2D, StarDist2D

    slide = registry.open_slide(path)
    image = slide.read(Box(0, slide.shape[0], 0, slide.shape[1]))[0, 0].astype(np.float32)
    slide.close()
    with tempfile.TemporaryDirectory() as folder:
        model = StarDist2D(Config2D(n_rays=32, grid=(2, 2), n_channel_in=1), name="untrained", basedir=folder)
        image = (image - image.min()) / np.ptp(image)
        model.predict(image, show_tile_progress=False)
        start, cpu = time.perf_counter(), time.process_time()
        model.predict(image, show_tile_progress=False)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    mpx = image.size / 1e6
    return f"| StarDist, forward pass alone | {mpx:.2f} | {wall:.1f} | {mpx / wall:.3g} | {cpu / mpx:.2f} | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--slow-side", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--segmenter", nargs="+", default=["network", "watershed"])
    parser.add_argument("--param", action="append", default=[], help="SEGMENTER.NAME=VALUE, a parameter of one of them")
    parser.add_argument("--stardist", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "histoquant_benchmarks")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    whole = crop(given.folder, given.side)
    middle = crop(given.folder, given.side, given.slow_side)
    print("| segmenter | Mpx | wall s | Mpx/s | processor s per Mpx | peak MB, all processes | largest process MB |")
    print("|---|---|---|---|---|---|---|")
    for name in given.segmenter:
        params = [param.removeprefix(f"{name}.") for param in given.param if param.startswith(f"{name}.")]
        slow = name in SLOW
        print(timed(middle if slow else whole, name, params, 1 if slow else given.workers), flush=True)
    if given.stardist:
        print(stardist(middle), flush=True)
    if "network" in given.segmenter:
        stages(whole)


if __name__ == "__main__":
    main()
