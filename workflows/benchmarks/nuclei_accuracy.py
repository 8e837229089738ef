"""Accuracy of a segmenter on real fluorescence nuclei with hand-drawn truth; prints a Markdown table.

The images are those of the 2018 Data Science Bowl (BBBC038, CC0) as a folder of ``images/ID.png``, ``labels/ID.png``
and ``index.csv`` with the columns id, kind, split, h, w. Every image is taken for one slide; its pixel size is
*stated* as 0.5 um, which is wrong for most of them: the segmenter has to find the size of the nuclei by itself.

    python workflows/benchmarks/nuclei_accuracy.py ../shared/data/nuclei_dsb2018 [--split val] [--segmenter watershed]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread

from histoquant import registry
from histoquant.analysis.agreement import Score, pool, score_labels
from histoquant.analysis.background import estimate
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box

PIXEL_SIZE_UM = 0.5
COARSE_PX = 4
SAMPLE_PX = 768


def normalised(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (1, 1, y, x): background 0, bright nuclei about 1, by the slide-wide background of this image."""
    height, width = raw.shape
    padded = np.pad(raw, ((0, -height % COARSE_PX), (0, -width % COARSE_PX)), constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // COARSE_PX, COARSE_PX, padded.shape[1] // COARSE_PX, COARSE_PX)
    coarse = np.nanmean(blocks, axis=(1, 3))[np.newaxis]
    background = estimate(coarse, COARSE_PX, pixel_size_um=PIXEL_SIZE_UM, settings=BackgroundSettings())
    plane = (raw - background.at(Box(0, height, 0, width), 0)) / background.scale[0]
    return np.asarray(plane, dtype=np.float32)[np.newaxis, np.newaxis]


def segmented(cls: type[Any], image: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the labels of a slide, its parameters surveyed on the slide itself."""
    params = cls.Params()
    if hasattr(cls, "survey"):
        windows = [
            image[:, :, y : y + SAMPLE_PX, x : x + SAMPLE_PX]
            for y in range(0, image.shape[2], SAMPLE_PX)
            for x in range(0, image.shape[3], SAMPLE_PX)
        ]
        params = cls(params).survey(windows, PIXEL_SIZE_UM)
    labels: NDArray[np.uint32] = cls(params)(image, PIXEL_SIZE_UM)[0]
    return labels


def row(name: str, scores: list[Score]) -> str:
    """Return one line of the table."""
    together = pool(scores)
    all_objects = together.pooled
    figures = (all_objects.f1, all_objects.precision, all_objects.recall, all_objects.ap, together.mean["f1"])
    cells = [name, str(together.n_images), str(all_objects.n_true), *(f"{figure:.3f}" for figure in figures)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Score every image of a split, and print the table by image size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--kind", default="fluorescence")
    parser.add_argument("--segmenter", default="watershed")
    parser.add_argument("--iou", type=float, default=0.5)
    given = parser.parse_args()
    cls = registry.load("segmenter", given.segmenter)
    with (given.folder / "index.csv").open() as file:
        images = [line for line in csv.DictReader(file) if (line["kind"], line["split"]) == (given.kind, given.split)]

    by_size: dict[str, list[Score]] = defaultdict(list)
    pixels, started = 0, time.perf_counter()
    for line in images:
        raw = np.asarray(imread(given.folder / "images" / f"{line['id']}.png"), dtype=np.float32)
        raw = raw if raw.ndim == 2 else raw[..., :3].mean(axis=-1)
        truth = imread(given.folder / "labels" / f"{line['id']}.png")
        by_size[f"{line['h']} x {line['w']}"] += score_labels(segmented(cls, normalised(raw)), truth, iou=(given.iou,))
        pixels += raw.size
    seconds = time.perf_counter() - started

    print(f"{given.segmenter}, {given.kind} images of split {given.split}, IoU >= {given.iou:g}, ", end="")
    print(f"{pixels / seconds / 1e6:.2f} Mpx/s with survey and scoring\n")
    print("| size | images | nuclei | F1 | precision | recall | AP | mean F1 of images |")
    print("|---|---|---|---|---|---|---|---|")
    for size, scores in sorted(by_size.items()):
        print(row(size, scores))
    print(row("**all**", [score for scores in by_size.values() for score in scores]))


if __name__ == "__main__":
    main()
