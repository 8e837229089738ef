"""How long a reviewer waits: opening a slide of a gigapixel, the next cell, a decision and its journal; and memory.

    python -m histoquant demo --out demo_out
    xvfb-run -a -s "-screen 0 1400x1000x24" python workflows/benchmarks/review.py demo_out --folder /tmp/review_bench

The slide is a mosaic of a section of the sample study, 1 gigapixel in three channels with its label image, and its
table holds 100,000 cells spread over all of it, so that the next borderline cell is far away every time. Printed as
Markdown: by the clock, which others on the machine can slow, and by the processor time of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

SLIDE = "M1_s1"
SIDE_PX = 31_744
N_CELLS = 100_000
STEPS = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="what `histoquant demo` wrote")
    parser.add_argument("--folder", type=Path, required=True, help="where the large run is made, 2 GB")
    given = parser.parse_args()
    root = given.folder / "results"
    if not (root / "run.json").exists():
        make_large(given.run, given.folder)
    measure(root)
    return 0


def make_large(run: Path, folder: Path) -> None:
    """Write a run folder with one large slide."""
    from histoquant.ometiff import write_ome_tiff
    from histoquant.registry import open_slide

    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (row,) = (row for row in state["rows"] if row["slide_id"] == SLIDE)
    small = open_slide(row["path"])
    pixels = small.read()[:, 0]
    labels = open_slide(run / "slides" / SLIDE / "labels.ome.tif").read()[0, 0]
    cells = pd.read_parquet(run / "slides" / SLIDE / "cells.parquet")
    height, width = labels.shape
    across, columns, rows = SIDE_PX // width, -(-SIDE_PX // width), -(-SIDE_PX // height)
    # Whole copies of the section, evenly chosen, whose cells are in the table; a copy's number is part of its cells'.
    chosen = np.linspace(0, across * (SIDE_PX // height) - 1, -(-N_CELLS // len(cells))).astype(int)
    chosen = chosen // across * columns + chosen % across
    first = np.zeros(columns * rows, dtype=np.uint32)
    first[chosen] = 1 + np.arange(len(chosen)) * int(labels.max() + 1)

    def mosaic(of: np.ndarray, y0: int, y1: int) -> np.ndarray:
        band = of[:, np.arange(y0, y1) % height]
        return np.tile(band, (1, 1, columns))[:, :, :SIDE_PX]

    def numbered(y0: int, y1: int) -> np.ndarray:
        band = mosaic(labels[None], y0, y1)
        place = (np.arange(y0, y1)[:, None] // height) * columns + np.arange(SIDE_PX)[None] // width
        return np.where((band > 0) & (first[place] > 0), band + first[place] - 1, 0).astype(np.uint32)

    shape = (SIDE_PX, SIDE_PX)
    told = {"pixel_size_um": small.pixel_size_um, "channels": small.channels}
    slide = folder / "large.ome.tif"
    write_ome_tiff(slide, (len(pixels), *shape), pixels.dtype, lambda y0, y1: mosaic(pixels, y0, y1), **told)
    target = folder / "results" / "slides" / SLIDE
    target.mkdir(parents=True, exist_ok=True)
    told["channels"] = ("nuclei",)
    write_ome_tiff(target / "labels.ome.tif", (1, *shape), np.uint32, numbered, labels=True, **told)
    copies = []
    for place in chosen:
        row_, column = divmod(int(place), columns)
        part = cells.assign(cell_id=(cells["cell_id"] + int(first[place]) - 1).astype(np.uint32))
        for axis, offset in (("y", row_ * height), ("x", column * width)):
            part[f"{axis}_px"] += offset
            part[f"{axis}_um"] += offset * small.pixel_size_um
        copies.append(part)
    table = pd.concat(copies, ignore_index=True)
    table = table.iloc[:N_CELLS].copy()
    # No two cells at the same share of the threshold, so that "borderline first" goes all over the slide.
    table["tunel_value"] += np.random.default_rng(0).normal(0, 0.5, len(table))
    table.to_parquet(target / "cells.parquet", index=False)
    (target / "regions.geojson").write_text('{"type": "FeatureCollection", "features": []}', encoding="utf-8")
    provenance = json.loads((run / "slides" / SLIDE / "provenance.json").read_text(encoding="utf-8"))
    provenance["shape_px"] = list(shape)
    (target / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    shutil.copytree(run / "tables", folder / "results" / "tables", dirs_exist_ok=True)
    shutil.copy(run / "failures.csv", folder / "results" / "failures.csv")
    state["rows"] = [row | {"path": str(slide.resolve()), "regions": ""}]
    state["slides"] = {SLIDE: "done"}
    (folder / "results" / "run.json").write_text(json.dumps(state), encoding="utf-8")


def measure(root: Path) -> None:
    """Open the run, walk, decide, and print."""
    import napari
    from napari_histoquant.launch import open_review
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    shutil.rmtree(root / "review", ignore_errors=True)
    viewer = napari.Viewer(title="histoquant review")
    viewer.window.resize(1390, 980)
    application = QApplication.instance()
    settle(application)
    process = psutil.Process()
    before = process.memory_info().rss

    def opening(work: Callable[[], Any]) -> tuple[Any, float, float]:
        started, used = time.perf_counter(), time.process_time()
        made = work()
        application.processEvents()
        return made, time.perf_counter() - started, time.process_time() - used

    widget, *first = opening(lambda: open_review(viewer, root, "bench"))
    widget.window().activateWindow()
    settle(application)
    _, *again = opening(lambda: widget.panel.slide_chosen.emit(widget.session.shown))
    settle(application)
    window, session = widget.window().windowHandle(), widget.session
    found, shape = session.here.objects, session.here.pixels.shape

    def key(key: Any) -> Callable[[], None]:
        def press() -> None:
            QTest.keyClick(window, key)
            application.processEvents()

        return press

    peaks = [process.memory_info().rss]

    def timed(work: Callable[[], object], n: int = STEPS) -> np.ndarray:
        taken = []
        for _ in range(n):
            start, used = time.perf_counter(), time.process_time()
            work()
            taken.append((time.perf_counter() - start, time.process_time() - used))
            widget.show_on_canvas()
            for _ in range(4):  # so that nothing of the canvas is left to be drawn in the next step
                application.processEvents()
                time.sleep(0.01)
            peaks.append(process.memory_info().rss)
        return 1000 * np.array(taken)

    def canvas() -> None:
        session.queue.step(1)
        widget.show_on_canvas()
        for _ in range(3):
            application.processEvents()

    at, edits = session.queue.at, len(session.journal.edits)
    for name in (Qt.Key.Key_Right, Qt.Key.Key_F):
        key(name)()
    assert (session.queue.at, len(session.journal.edits)) == (at + 2, edits + 1), "the keys do not reach the panel"
    widget.wait_for_canvas.setInterval(60_000)  # drawn after each step, and measured for itself
    rows = [
        ("next: key to crop, text and counts on the screen", timed(key(Qt.Key.Key_Right))),
        ("flip: key to the next crop on the screen, the edit on the disk", timed(key(Qt.Key.Key_F))),
        ("flip and journal alone", timed(session.flip)),
        ("undo and journal alone", timed(session.undo, 20)),
        ("the canvas, drawn without a graphics card", timed(canvas, 20)),
    ]
    n_channels, gigapixels = len(session.here.pixels.channels), shape[0] * shape[1] / 1e9
    print(f"{len(found):,} cells, {gigapixels:.2f} gigapixels in {n_channels} channels.")
    print(
        f"Load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {len(session.journal.edits)} edits in the journal.\n"
    )
    print("| what | median ms | 95 % ms | processor, median ms | 95 % ms |\n|---|---|---|---|---|")
    for name, taken in rows:
        told = [np.percentile(taken[:, kind], share) for kind in (0, 1) for share in (50, 95)]
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in told)} |")
    print(
        f"\nOpening the run and its slide, libraries imported on the way: {first[0]:.1f} s ({first[1]:.1f} s of the "
        f"processor); the slide again: {again[0]:.1f} s ({again[1]:.1f} s).\nMemory: {before / 2**20:.0f} MB with an "
        f"empty viewer, {max(peaks) / 2**20:.0f} MB at most."
    )
    widget.close_review()
    viewer.close()


def settle(application: Any) -> None:
    """Let the window draw what is due."""
    for _ in range(20):
        application.processEvents()
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
