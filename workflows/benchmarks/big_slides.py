"""Phantom slides of any size for benchmarks, with and without a pyramid, and the study and recipe to run them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile

from histoquant import registry
from histoquant.model.slide import Box
from histoquant.phantom import PhantomPlan, make_phantom

PIXEL_SIZE_UM = 0.5
TILE_PX = 512

RECIPE = """schema = 1

[panel.dapi]
channel = "DAPI"
role = "counterstain"

[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { rule = "nuclear", fraction = 0.5, threshold = 300.0 }
orphans = true
death_classes = true

[panel.autofluorescence]
channel = "AF"
role = "autofluorescence"

[segment]
segmenter = "watershed"
"""


def big_slide(folder: Path, side_px: int, *, pyramid: bool) -> Path:
    """Return a square TUNEL phantom, uint16, three channels, zlib tiles; made unless it is there.

    The tissue fills about three quarters of it, with 1,600 to 3,000 nuclei per mm2.
    """
    path = folder / f"tunel_{side_px}.ome.tif"
    if not path.exists():
        made = folder / f"phantom_{side_px}"
        side_mm = side_px * PIXEL_SIZE_UM / 1000
        plan = PhantomPlan("tunel", size_mm=(side_mm, side_mm), pixel_size_um=PIXEL_SIZE_UM, animals=1, seed=3)
        make_phantom(made, plan)
        (made / "slides" / "M1_s1.ome.tif").rename(path)
    if pyramid:
        return path
    flat = folder / f"tunel_{side_px}_flat.ome.tif"
    if not flat.exists():
        _flatten(path, flat)
    return flat


def _flatten(source: Path, target: Path) -> None:
    slide = registry.open_slide(source)
    channels, _, height, width = slide.levels[0].shape

    def tiles():
        for channel in range(channels):
            for y0 in range(0, height, TILE_PX):
                box = Box(y0, min(y0 + TILE_PX, height), 0, width)
                row = slide.read(box, channels=[channel])[0, 0]
                for x0 in range(0, width, TILE_PX):
                    tile = row[:, x0 : x0 + TILE_PX]
                    yield np.pad(tile, ((0, TILE_PX - tile.shape[0]), (0, TILE_PX - tile.shape[1])))

    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": PIXEL_SIZE_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL_SIZE_UM,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(slide.channels)},
    }
    part = target.with_suffix(".part")
    with tifffile.TiffWriter(part, bigtiff=True, ome=True) as tiff:
        tiff.write(
            tiles(),
            shape=(channels, height, width),
            dtype=slide.dtype,
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            predictor=True,
            photometric="minisblack",
            metadata=metadata,
        )
    part.rename(target)
    slide.close()


def study_of(folder: Path, slide: Path) -> tuple[Path, Path]:
    """Write a sample sheet with one slide and a recipe; return both."""
    sheet, recipe = folder / f"{slide.name}.csv", folder / "recipe.toml"
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([["slide", "animal", "group"], [slide.name, "M1", "vehicle"]])
    recipe.write_text(RECIPE)
    return sheet, recipe
