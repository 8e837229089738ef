"""A brightfield slide as its stains: planes of optical density, unmixed as they are read.

Whoever reads pixels for a recipe reads them from this slide as from one of fluorescence: background 0, nuclei bright.
Stains are found once per slide, from a coarse look at all of it; a pixel's amounts then depend on its own three grey
levels only, so that no result depends on how the slide is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.stains import REFERENCES, Stains, clipped, find_stains, looked_up, unmixing_tables
from histoquant.model.panel import named_stains
from histoquant.model.recipe import Recipe
from histoquant.model.slide import Box, Slide
from histoquant.picture import flat_pixels, look, parts
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LOOKED_PX = 1_000_000
"""Enough to know colours by, evenly taken from the whole slide; a hundred megabytes of optical densities."""

CLIPPED_PARTS = 48
"""Parts of the full resolution in which black pixels are counted: evenly spread ones, and all of a small slide."""

MOST_CLIPPED = 0.001


class StainPlanes:
    """One pyramid level of a brightfield slide as planes of stain, (c, z, y, x) float32, unmixed when sliced."""

    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, slide: Slide, level: int, tables: NDArray[np.float64]) -> None:
        self.slide, self.level, self.tables = slide, level, tables
        self.shape = (len(tables), *(int(n) for n in slide.levels[level].shape[1:]))

    def __getitem__(self, key: tuple[slice, slice, slice, slice]) -> NDArray[np.float32]:
        planes, z, y, x = (slice(*part.indices(n)[:2]) for part, n in zip(key, self.shape, strict=True))
        rgb = self.slide.read(Box(y.start, y.stop, x.start, x.stop), level=self.level)
        return looked_up(rgb[:, z], self.tables[planes])

    def lazy(self) -> Any:
        """Return the level as a dask array; its chunks are the file's, all planes together."""
        import dask.array as da

        chunks = (len(self.tables), *self.slide.levels[self.level].chunksize[1:])
        meta = np.empty((0, 0, 0, 0), self.dtype)
        return da.from_array(self, chunks=chunks, name=False, asarray=False, fancy=False, inline_array=True, meta=meta)


def stained(slide: Slide, stains: Stains) -> Slide:
    """Return a brightfield slide whose channels are its stains: `Stains.channels`, as optical densities.

    Each level of the pyramid is unmixed as it is stored. What is unmixed already is returned as it is.
    """
    if slide.channels == stains.channels:
        return slide
    tables = unmixing_tables(stains)
    planes = tuple(StainPlanes(slide, level, tables) for level in range(len(slide.levels)))
    return replace(slide, levels=tuple(each.lazy() for each in planes), channels=stains.channels, stored=planes)


@dataclass(frozen=True)
class Found:
    """The stains of a slide, and what a person should know of them."""

    stains: Stains
    notes: tuple[str, ...]


def floored(planes: NDArray[Any], stains: Stains | None) -> NDArray[Any]:
    """Return planes as nuclei are sought in: less than nothing of a stain is nothing.

    Where much DAB lies, the hematoxylin unmixed may be below 0 all round the nuclei: taken for background, it would
    make nuclei of all else. Intensities are measured as they are.
    """
    return planes if stains is None else np.maximum(planes, 0)


def stains_of(slide: Slide, recipe: Recipe) -> Found | None:
    """Look at a brightfield slide once and find its white point and stain vectors; None for a recipe of channels.

    Of a stack the mean of its planes is looked at, unless the recipe names a plane.
    """
    named = named_stains(recipe.panel)
    if not named:
        return None
    segment = recipe.segment if isinstance(recipe.segment.z, int) else recipe.segment.model_copy(update={"z": "mean"})
    coarse, _ = look(slide, (0, 1, 2), segment)
    beside = next((name for name in REFERENCES if name in named), None)
    seen = coarse.reshape(3, -1)
    seen = seen[:, :: max(1, seen.shape[1] // MOST_LOOKED_PX)]
    stains = find_stains(seen, beside, estimated=recipe.stains.vectors == "estimated")

    boxes = parts(slide)
    chosen = np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), CLIPPED_PARTS)).round().astype(int))

    def black(box: Box) -> tuple[int, int]:
        rgb = flat_pixels(slide, box, (0, 1, 2), segment)
        return clipped(rgb), rgb[0].size

    n_black, n_pixels = np.sum(list(in_order(black, [boxes[index] for index in chosen])), axis=0)
    return Found(stains, tuple(_notes(stains, n_black / n_pixels, whole=len(chosen) == len(boxes), named=named)))


def _notes(stains: Stains, black: float, *, whole: bool, named: set[str]) -> list[str]:
    white = ", ".join(f"{value:.0f}" for value in stains.white)
    explained = "" if np.isnan(stains.explained) else f", and explain {100 * stains.explained:.1f} % of the density"
    if stains.estimated:
        angles = " and ".join(f"{angle:.0f}" for angle in stains.angles_deg)
        told = f"estimated on the slide, {angles} degrees from the reference{explained}"
    elif stains.refused:
        told = f"those of the reference{explained}; those of the slide were refused: {stains.refused}"
    else:
        told = f"those of the reference{explained}"
    if len(stains.names) == 1:
        notes = [f"nothing beside hematoxylin is unmixed: its vector is that of the reference{explained}"]
    else:
        notes = [f"stain vectors of {' and '.join(stains.names)} are {told}"]
    if stains.white_share:
        notes.append(f"white is {white}, measured on {100 * stains.white_share:.1f} % of the slide")
    else:
        notes.append(f"no blank glass was found: white is taken to be {white}, and optical densities may be off")
    if black > MOST_CLIPPED:
        where = "" if whole else " looked at"
        notes.append(
            f"{100 * black:.2g} % of the pixels{where} are black in red, green or blue: their optical density is at "
            "its ceiling"
        )
    if "dab" in named:
        notes.append(
            "DAB scatters light and does not follow Beer-Lambert: compare its optical density within one staining "
            "batch only, and prefer counts and areas"
        )
    return notes
