"""Phantom slides of any size for benchmarks, with and without a pyramid, and the study and recipe to run them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from histoquant import registry
from histoquant.ometiff import write_ome_tiff
from histoquant.phantom import PhantomPlan, make_phantom

PIXEL_SIZE_UM = 0.5
TILE_PX = 512
SECTION_PX = 10 * TILE_PX
"""A whole number of tiles, so that most tiles of a slide are compressed once."""
CHANNELS = ("DAPI", "TUNEL", "AF")

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
    """Return a square slide of TUNEL phantoms side by side: uint16, three channels, zlib tiles.

    It is made unless it is there. One section of 2.56 x 2.56 mm is repeated until the side is full; tissue fills about
    two thirds of it, with 1,600 to 3,000 nuclei per mm2.
    """
    path = folder / f"tunel_{side_px}{'' if pyramid else '_flat'}.ome.tif"
    if path.exists():
        return path
    section = _section(folder)
    channels, height, width = section.shape

    def rows(y0: int, y1: int) -> NDArray[np.uint16]:
        return section[:, np.arange(y0, y1) % height][:, :, np.arange(side_px) % width]

    shape = (channels, side_px, side_px)
    if pyramid:
        write_ome_tiff(path, shape, np.uint16, rows, pixel_size_um=PIXEL_SIZE_UM, channels=CHANNELS)
    else:
        _write_flat(path, shape, section)
    return path


def _section(folder: Path) -> NDArray[np.uint16]:
    made = folder / f"phantom_{SECTION_PX}"
    if not (made / "study.csv").exists():
        side_mm = SECTION_PX * PIXEL_SIZE_UM / 1000
        plan = PhantomPlan("tunel", size_mm=(side_mm, side_mm), pixel_size_um=PIXEL_SIZE_UM, animals=1, seed=3)
        make_phantom(made, plan)
    slide = registry.open_slide(made / "slides" / "M1_s1.ome.tif")
    assert slide.channels == CHANNELS
    pixels = slide.read()[:, 0]
    slide.close()
    return pixels


def _write_flat(path: Path, shape: tuple[int, int, int], section: NDArray[np.uint16]) -> None:
    """Write what a microscope without pyramids would: full resolution only, plane after plane."""
    _, height, width = section.shape

    @cache
    def encoded(channel: int, y: int, x: int, n_rows: int, n_columns: int) -> bytes:
        tile = np.zeros((TILE_PX, TILE_PX), np.uint16)
        tile[:n_rows, :n_columns] = section[channel, y : y + n_rows, x : x + n_columns]
        return imagecodecs.zlib_encode(imagecodecs.delta_encode(tile, axis=-1).tobytes(), 6)

    def tiles() -> Iterator[bytes]:
        for channel in range(shape[0]):
            for y in range(0, shape[1], TILE_PX):
                for x in range(0, shape[2], TILE_PX):
                    size = (min(TILE_PX, shape[1] - y), min(TILE_PX, shape[2] - x))
                    yield encoded(channel, y % height, x % width, *size)

    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": PIXEL_SIZE_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL_SIZE_UM,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(CHANNELS)},
    }
    part = path.with_suffix(".part")
    with tifffile.TiffWriter(part, bigtiff=True, ome=True) as tiff:
        tiff.write(
            tiles(),
            shape=shape,
            dtype=np.uint16,
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            predictor=True,
            photometric="minisblack",
            metadata=metadata,
        )
    part.rename(path)


def study_of(folder: Path, slide: Path) -> tuple[Path, Path]:
    """Write a sample sheet with one slide and a recipe; return both."""
    sheet, recipe = folder / f"{slide.name}.csv", folder / "recipe.toml"
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([["slide", "animal", "group"], [slide.name, "M1", "vehicle"]])
    recipe.write_text(RECIPE)
    return sheet, recipe
