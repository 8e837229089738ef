"""Accuracy of nuclei in stained sections: by their hematoxylin, as the package finds it, and by the absorbance of red.

    python workflows/benchmarks/brightfield.py ../shared/data/nuclei_dsb2018 [--split val] [--segmenter network ...]

Images are the colour ones of the 2018 Data Science Bowl (see bowl.py), each taken for a slide of 0.5 um per pixel,
which is wrong for most. The network was trained on the split `train`, by the absorbance of red. Hematoxylin is
segmented as the recipe `ihc_dab.toml` says, where that names the segmenter; all else has its defaults.

Prints Markdown. Figures are pooled over objects; brackets are 95 % bootstrap intervals over images.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from pathlib import Path

import dask.array
import numpy as np
from accuracy import IOUS, Picture, interval, segmented
from bowl import STATED_UM
from numpy.typing import NDArray
from skimage.io import imread

from histoquant.analysis.agreement import Score, pool, score_labels
from histoquant.model.recipe import BackgroundSettings, build_recipe
from histoquant.model.slide import Box, Slide
from histoquant.picture import flat_pixels
from histoquant.readers.pixels import RGB
from histoquant.stained import floored
from histoquant.survey import alone, normalised, segmenter_of, survey
from histoquant.work import Work

RECIPE = Path(__file__).parents[1] / "recipes" / "ihc_dab.toml"


def by_red(rgb: NDArray[np.uint8], segmenter: str) -> NDArray[np.uint32]:
    """Return nuclei in the absorbance of red."""
    grey = -np.log10((rgb[..., 0].astype(np.float32) + 1) / 256)
    image = alone(grey, STATED_UM, BackgroundSettings())
    return segmented(segmenter, Picture("", "", image, image, STATED_UM))


def by_stain(rgb: NDArray[np.uint8], segmenter: str) -> NDArray[np.uint32]:
    """Return nuclei in hematoxylin, on the path of a slide."""
    shipped = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["segment"]
    segment = shipped if shipped["segmenter"] == segmenter else {"segmenter": segmenter}
    recipe = build_recipe({"panel": {"nuclei": {"stain": "hematoxylin", "role": "counterstain"}}, "segment": segment})
    pixels = dask.array.from_array(np.ascontiguousarray(np.moveaxis(rgb, -1, 0))[:, np.newaxis])
    slide = Slide("image", Path("image"), (pixels,), RGB, (STATED_UM, STATED_UM), brightfield=True)
    work = Work(slide, recipe, survey(slide, recipe))
    whole = Box(0, rgb.shape[0], 0, rgb.shape[1])
    seen = floored(flat_pixels(work.slide, whole, work.survey.indices, recipe.segment), work.survey.stains)
    image = normalised(seen, whole, work.survey.background, (0,), STATED_UM)
    labels: NDArray[np.uint32] = segmenter_of(recipe, work.survey)(image[None, None], STATED_UM)[0]
    return labels


def main() -> None:
    """Score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--segmenter", action="append")
    given = parser.parse_args()
    with (given.folder / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["kind"], row["split"]) == ("colour", given.split)]
    print(
        "| segmenter | nuclei by | images | nuclei | F1 at 0.5 | precision | recall | mean F1 of images |\n|"
        + "---|" * 8
    )
    for segmenter in given.segmenter or ("network", "watershed"):
        for named, find in (("absorbance of red", by_red), ("hematoxylin", by_stain)):
            scores: list[Score] = []
            for row in sorted(rows, key=lambda row: row["id"]):
                rgb = imread(given.folder / "images" / f"{row['id']}.png")[..., :3]
                truth = imread(given.folder / "labels" / f"{row['id']}.png")
                scores.append(score_labels(find(rgb, segmenter), truth, iou=IOUS[:1])[0])
            found = pool(scores)
            low, high = interval(scores)
            cells = [segmenter, named, str(len(scores)), str(found.pooled.n_true)]
            cells += [f"{found.pooled.f1:.3f} [{low:.3f}, {high:.3f}]"]
            cells += [f"{value:.3f}" for value in (found.pooled.precision, found.pooled.recall, found.mean["f1"])]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
