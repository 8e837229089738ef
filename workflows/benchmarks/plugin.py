"""How long the napari plug-in lets a person wait: opening a large slide, and moving a threshold on many cells.

    xvfb-run -a -s "-screen 0 1400x1000x24" python workflows/benchmarks/plugin.py [--slide FILE | --side 30000]

Without a slide one is made on the first call (`big_slides`). The cells are those of the sample study, over and over.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import napari
import numpy as np
import pandas as pd
import psutil
from big_slides import big_slide
from qtpy.QtWidgets import QApplication

from histoquant.analysis.positivity import Threshold
from histoquant.inputs import read_recipe
from histoquant.preview import Bench, finished
from histoquant.registry import open_slide
from histoquant.samples import sample_study

HEAD = "| what | median ms | slowest ms | median ms of processor time |\n|---|---|---|---|"
PANS = 20
MOVES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "histoquant_benchmarks")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer()
    viewer.window.resize(1300, 900)
    QApplication.processEvents()
    print(HEAD)
    _open(viewer, given.slide or big_slide(given.folder, given.side, pyramid=True))
    viewer.layers.clear()
    _move(viewer, given.cells)
    viewer.close()


def _open(viewer: napari.Viewer, path: Path) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    _row(f"open {path.name}, first picture", [_seconds(lambda: viewer.open(path, plugin="histoquant"))])
    camera, middle = viewer.scene.camera, viewer.layers[0].extent.world.mean(axis=0)
    camera.zoom = 2.0

    def pan(number: int) -> None:
        camera.center = (0, *(middle + 100.0 * number))

    _row("pan by 100 um at full resolution", [_seconds(lambda number=n: pan(number)) for n in range(PANS)])
    print(f"\nmemory for it: {(process.memory_info().rss - before) / 1e6:.0f} MB\n")


def _move(viewer: napari.Viewer, n_cells: int) -> None:
    study = sample_study(Path(tempfile.gettempdir()) / "histoquant_sample_study", print).parent
    recipe = read_recipe(study / "recipe.toml")
    slide = open_slide(study / "slides" / "M1_s1.ome.tif")
    trial = finished(Bench(slide).trial(recipe))
    few = trial.measured.cells
    many = pd.concat([few] * -(-n_cells // len(few)), ignore_index=True).head(n_cells)
    many["cell_id"] = np.arange(1, n_cells + 1, dtype=np.uint32)
    trial = replace(trial, measured=replace(trial.measured, cells=many))
    values = np.linspace(3.0, 30.0, MOVES)
    calls = [_seconds(lambda value=v: trial.called({"tunel": Threshold(value, "fixed")})) for v in values]
    print(HEAD)
    _row(f"call {n_cells:,} cells anew", calls)
    viewer.open(study / "slides" / "M1_s1.ome.tif", plugin="histoquant")
    _, widget = viewer.window.add_plugin_dock_widget("histoquant", "Tune a recipe")
    widget.load(study / "recipe.toml")
    widget.set_threshold(values[0])
    widget.trial = trial.under(widget.recipe)
    widget.recall()
    moves = [_seconds(lambda value=v: widget.set_threshold(value)) for v in values]
    _row(f"move the threshold of {n_cells:,} cells: line, counts, form, rings when it rests", moves)
    _row("of that, draw the rings", [_seconds(widget._show_cells) for _ in values])
    slide.close()


def _seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Return how long something takes until the screen shows it, by the clock and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    action()
    for _ in range(3):
        QApplication.processEvents()
    return time.perf_counter() - start, time.process_time() - used


def _row(what: str, seconds: list[tuple[float, float]]) -> None:
    clock, used = 1000 * np.array(seconds).T
    print(f"| {what} | {np.median(clock):.0f} | {clock.max():.0f} | {np.median(used):.0f} |")


if __name__ == "__main__":
    main()
