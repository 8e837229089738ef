"""Accuracy of nuclei, by kind of image, density and overlap, for every installed segmenter side by side.

    python workflows/benchmarks/accuracy.py ../shared/data/nuclei_dsb2018 [--split val] [--segmenter network ...]
    python workflows/benchmarks/accuracy.py --phantoms [--seed 11]

Real images are those of the 2018 Data Science Bowl (see bowl.py). Every image is taken for one slide; its pixel size is
*stated* as 0.5 um, which is wrong for most of them: the segmenter has to find the size of the nuclei by itself. Of
bright grey images the absorbance is segmented; brightfield.py has the stained ones.

Phantoms are DAPI sections of known truth. Each density is shown with a hard core (nuclei touch, as in a thin section)
and without (a thick section projected, where some nuclei lie under others: no method can find those).

Prints Markdown. Figures are pooled over objects; brackets are 95 % bootstrap intervals over images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bowl import STATED_UM, read
from numpy.typing import NDArray
from skimage.io import imsave

from histoquant import registry
from histoquant.analysis.agreement import Score, pool, score_labels
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.optics import paint, paint_labels
from histoquant.phantom.plan import PhantomPlan
from histoquant.survey import alone

SAMPLE_PX = 768
IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
DRAWS = 1000
FIELDS = 6
WORST = 10


@dataclass
class Picture:
    """An image with its truth; ``hidden`` is the share of true nuclei that lie under others."""

    group: str
    name: str
    image: NDArray[np.float32]
    truth: NDArray[Any]
    pixel_size_um: float
    hidden: float = 0.0


def real(folder: Path, split: str) -> Iterator[Picture]:
    """Read the images of a split; stained sections go through their stains, in brightfield.py."""
    for drawn in read(folder, split):
        if drawn.kind == "colour":
            continue
        image = alone(drawn.grey, STATED_UM, BackgroundSettings())
        name = f"{drawn.name} {image.shape[0]}x{image.shape[1]}"
        yield Picture(drawn.kind, name, image, drawn.labels, STATED_UM)


def phantoms(seed: int) -> Iterator[Picture]:
    """Make DAPI sections at three densities, a third of them at each of three pixel sizes."""
    for density, diameter, core in ((1600.0, 8.0, 0.75), (3500.0, 8.0, 0.75), (7700.0, 7.0, 0.55)):
        for min_distance in (core, 0.0):
            for index in range(FIELDS):
                plan = PhantomPlan(
                    "nuclei",
                    size_mm=(0.4, 0.4),
                    pixel_size_um=(0.325, 0.5, 0.65)[index % 3],
                    animals=1,
                    seed=seed + 1000 * index,
                    density_per_mm2=density,
                    diameter_um=diameter,
                    min_distance=min_distance,
                )
                cells, section = make_section(plan, Subject(0, plan.facts.groups[0]))
                whole = Box(0, plan.shape_px[0], 0, plan.shape_px[1])
                raw = paint(section, whole)[0].astype(np.float32)
                yield Picture(
                    f"{density:,.0f} per mm2, {'touching' if min_distance else 'projected'}",
                    f"seed {plan.seed}, {plan.pixel_size_um} um",
                    alone(raw, plan.pixel_size_um, BackgroundSettings()),
                    paint_labels(section, whole),
                    plan.pixel_size_um,
                    float(cells.hidden.mean()),
                )


def segmented(name: str, picture: Picture, given: Mapping[str, Any] | None = None) -> NDArray[np.uint32]:
    """Return the labels of a slide, its parameters surveyed on the slide itself."""
    cls, image = registry.load("segmenter", name), picture.image[np.newaxis, np.newaxis]
    params = cls.Params(**(given or {}))
    if hasattr(cls, "survey"):
        height, width = picture.image.shape
        windows = [
            image[:, :, y : y + SAMPLE_PX, x : x + SAMPLE_PX]
            for y in range(0, height, SAMPLE_PX)
            for x in range(0, width, SAMPLE_PX)
        ]
        params = cls(params).survey(windows, picture.pixel_size_um)
    labels: NDArray[np.uint32] = cls(params)(image, picture.pixel_size_um)[0]
    return labels


def interval(scores: list[Score]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the pooled F1, images drawn with replacement."""
    counts = np.array([(score.tp, score.n_pred + score.n_true) for score in scores], dtype=float)
    drawn = counts[np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))].sum(axis=1)
    low, high = np.percentile(2 * drawn[:, 0] / np.maximum(drawn[:, 1], 1), (2.5, 97.5))
    return float(low), float(high)


def rows(name: str, group: str, scores: list[tuple[Score, ...]], bound: str) -> str:
    """Return one line of the table: a segmenter on a group of images."""
    levels = dict(zip(IOUS, zip(*scores, strict=True), strict=True))
    half = pool(levels[0.5])
    low, high = interval(list(levels[0.5]))
    cells = [group, name, str(half.n_images), str(half.pooled.n_true), f"{half.pooled.f1:.3f} [{low:.3f}, {high:.3f}]"]
    cells += [f"{half.pooled.precision:.3f}", f"{half.pooled.recall:.3f}", f"{half.pooled.ap:.3f}"]
    cells += [f"{half.mean['f1']:.3f}"]
    cells += [f"{pool(levels[iou]).pooled.f1:.3f}" for iou in IOUS[1:]]
    return f"| {' | '.join([*cells, bound])} |"


def picture_of(picture: Picture, labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return the image with outlines: the truth green, what was found magenta."""
    from skimage.segmentation import find_boundaries

    grey = (np.clip(picture.image, 0, 1.2) / 1.2 * 255).astype(np.uint8)
    shown = np.repeat(grey[..., np.newaxis], 3, axis=2)
    shown[find_boundaries(picture.truth, mode="inner")] = (0, 255, 0)
    shown[find_boundaries(labels, mode="inner")] = (255, 0, 255)
    return np.asarray(np.concatenate([np.repeat(grey[..., np.newaxis], 3, axis=2), shown], axis=1), dtype=np.uint8)


def main() -> None:
    """Score, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="real images")
    parser.add_argument("--split", default="val")
    parser.add_argument("--phantoms", action="store_true")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--segmenter", action="append", help="every installed one when not given")
    parser.add_argument("--param", action="append", default=[], help="SEGMENTER.NAME=VALUE, a parameter of one of them")
    parser.add_argument("--worst", type=Path, help=f"folder for pictures of the {WORST} worst images of each segmenter")
    given = parser.parse_args()
    installed = [plugin.name for plugin in registry.list_plugins("segmenter", load=True) if not plugin.missing]
    names = given.segmenter or installed
    stated: dict[str, dict[str, str]] = {name: {} for name in names}
    for param in given.param:
        field, value = param.split("=", 1)
        name, field = field.split(".", 1)
        stated[name][field] = value
    pictures = list(real(given.folder, given.split)) if given.folder else []
    pictures += list(phantoms(given.seed)) if given.phantoms else []

    header = ["images", "segmenter", "n", "nuclei", "F1 at 0.5", "precision", "recall", "AP", "mean F1 of images"]
    header += [f"F1 at {iou:g}" for iou in IOUS[1:]] + ["recall of the perfect eye at most"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    told = []
    for name in names:
        started, found = time.perf_counter(), [segmented(name, p, stated[name]) for p in pictures]
        seconds = time.perf_counter() - started
        told.append(f"{name}: {sum(p.truth.size for p in pictures) / seconds / 1e6:.2f} Mpx/s with the survey")
        scores = [score_labels(labels, p.truth, iou=IOUS) for labels, p in zip(found, pictures, strict=True)]
        for group in dict.fromkeys(picture.group for picture in pictures):
            members = [index for index, picture in enumerate(pictures) if picture.group == group]
            hidden = float(np.mean([pictures[index].hidden for index in members]))
            bound = f"{1 - hidden:.3f}" if hidden else ""
            print(rows(name, group, [scores[index] for index in members], bound), flush=True)
        if given.worst:
            given.worst.mkdir(parents=True, exist_ok=True)
            order = sorted(range(len(pictures)), key=lambda index: np.nan_to_num(scores[index][0].f1, nan=1.0))
            for place, index in enumerate(order[:WORST], start=1):
                told.append(f"{name}, worst {place}: {pictures[index].name}, F1 {scores[index][0].f1:.3f}")
                image = picture_of(pictures[index], found[index])
                imsave(given.worst / f"{name}_{place:02d}.png", image, check_contrast=False)
    print("\n" + "\n".join(told))


if __name__ == "__main__":
    main()
