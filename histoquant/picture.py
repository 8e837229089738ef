"""A whole slide in few pixels: read part by part on a few threads, in memory that does not grow with the slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.errors import InputError
from histoquant.model.recipe import Segment
from histoquant.model.slide import Box, Slide
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

COARSE_UM = 2.0

BAND_PX = 512
"""Rows read at a time, about."""

MAX_COARSE_PX = 4_000_000
"""Of one channel that a survey keeps. Up to here (8,000 x 8,000 px of 0.5 um) it keeps every pixel of `COARSE_UM`."""

STRIP_PX = 2048
"""Columns that one thread reads at a time, so that what a survey holds does not grow with the slide."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A whole slide in few pixels.

    Attributes
    ----------
    means : (c, y, x) float32
        Block means; blocks at the slide's edge are means of what is there.
    px : float
        Full-resolution pixels that one pixel of ``means`` spans along an edge.
    """

    means: NDArray[np.float32]
    px: float

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the picture as plain arrays, to be kept: 65,535 steps over the range of each channel."""
        low, high = (edge(self.means, axis=(1, 2)) for edge in (np.min, np.max))
        step = (np.maximum(high - low, 1e-30) / 65535)[:, None, None]
        steps = np.rint((self.means - low[:, None, None]) / step).astype(np.uint16)
        return {"steps": steps, "low": low, "step": step, "px": np.array(self.px)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Picture:
        """Rebuild a picture from what `arrays` gave, each pixel to within half a step."""
        means = arrays["steps"] * arrays["step"] + arrays["low"][:, None, None]
        return cls(means.astype(np.float32), float(arrays["px"]))


def look(slide: Slide, indices: tuple[int, ...], segment: Segment) -> tuple[NDArray[np.float32], Picture]:
    """Look at a whole slide at about `COARSE_UM`.

    Where that is more than `MAX_COARSE_PX` pixels, k x k of them are seen as one: by their mean in the picture, and by
    the one in their middle where percentiles of single pixels are wanted, which a mean would narrow.

    Returns
    -------
    coarse : (c, y, x) float32
        Pixels of about `COARSE_UM`, every one or one of each k x k.
    picture : Picture
        Its pixels lie where those of ``coarse`` do; the same array for k = 1.
    """
    level, factor, k = _view(slide)
    coarse, means = _scan(slide, indices, segment, level, factor, k)
    return coarse, Picture(means, look_px(slide))


def look_px(slide: Slide) -> float:
    """Return how many full-resolution pixels one pixel of what `look` gives spans along an edge."""
    level, factor, k = _view(slide)
    return k * factor * slide.downsample(level)


def shrink(slide: Slide, indices: tuple[int, ...], segment: Segment, *, coarse_um: float) -> Picture:
    """Return the whole slide by block means at about a given pixel size.

    The smallest pyramid level that is still fine enough is read; without a pyramid the full resolution is.
    """
    level, factor = _reach(slide, coarse_um)
    _, means = _scan(slide, indices, segment, level, factor, 1)
    return Picture(means, factor * slide.downsample(level))


def parts(slide: Slide) -> list[Box]:
    """Cut the full resolution into parts to read one or a few at a time, small enough to hold."""
    return [
        Box(y0, min(y0 + BAND_PX, strip.y1), strip.x0, strip.x1)
        for strip in _strips(slide.shape, slide.levels[0].chunksize[2:], 1)
        for y0 in range(strip.y0, strip.y1, BAND_PX)
    ]


def _view(slide: Slide) -> tuple[int, int, int]:
    """Return the level a look at the slide reads, the side of a block of its pixels, and k."""
    level, factor = _reach(slide, COARSE_UM)
    height, width = (math.ceil(int(n) / factor) for n in slide.levels[level].shape[2:])
    return level, factor, math.ceil(math.sqrt(height * width / MAX_COARSE_PX))


def _reach(slide: Slide, coarse_um: float) -> tuple[int, int]:
    """Return the level to read for a pixel size, and the side of a block of its pixels."""
    wanted = coarse_um / slide.pixel_size_um
    level = max((i for i in range(len(slide.levels)) if slide.downsample(i) <= max(1.0, wanted)), key=slide.downsample)
    height, width = (int(n) for n in slide.levels[level].shape[2:])
    return level, min(max(1, int(wanted / slide.downsample(level))), height, width)


def _scan(
    slide: Slide, indices: tuple[int, ...], segment: Segment, level: int, factor: int, k: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read a level in parts and return one of k x k of its block means, and the means of k x k of them."""
    height, width = (int(n) for n in slide.levels[level].shape[2:])
    side = factor * k
    shape = (len(indices), math.ceil(height / side), math.ceil(width / side))
    coarse = np.empty(shape, dtype=np.float32)
    means = coarse if k == 1 else np.empty(shape, dtype=np.float32)

    def read(strip: Box) -> None:
        rows = max(1, BAND_PX // side) * side
        for y0 in range(strip.y0, strip.y1, rows):
            box = Box(y0, min(y0 + rows, strip.y1), strip.x0, strip.x1)
            part = block_means(flat_pixels(slide, box, indices, segment, level), factor)
            place = (
                slice(None),
                *(slice(a // side, math.ceil(b / side)) for a, b in ((box.y0, box.y1), (box.x0, box.x1))),
            )
            if k > 1:
                middle = (np.minimum(np.arange(0, n, k) + k // 2, n - 1) for n in part.shape[1:])
                coarse[place] = part[:, *np.ix_(*middle)]
                part = block_means(part, k)
            means[place] = part

    for _ in in_order(read, _strips((height, width), slide.levels[level].chunksize[2:], side)):
        pass
    return coarse, means


def _strips(shape: tuple[int, int], chunk: tuple[int, int], side: int) -> list[Box]:
    """Cut a level into strips of whole blocks that can be read at the same time.

    They are columns, whose width is one of whole chunks where that is not too wide, so that few are decoded twice;
    going down a column, those that two parts share are still in memory. A level stored in strips over its whole width
    is cut into rows.
    """
    height, width = shape
    if chunk[1] >= width:
        step = max(1, 4 * BAND_PX // side) * side
        return [Box(y0, min(y0 + step, height), 0, width) for y0 in range(0, height, step)]
    whole = math.lcm(side, chunk[1])
    whole = whole if whole <= 2 * STRIP_PX else side
    step = max(1, STRIP_PX // whole) * whole
    return [Box(0, height, x0, min(x0 + step, width)) for x0 in range(0, width, step)]


def block_means(pixels: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Return means over blocks of ``factor`` x ``factor``; blocks at the image's edge are means of what is there.

    Sums of whole numbers are exact, so the means do not depend on how an image is cut between blocks.

    Parameters
    ----------
    pixels : (c, y, x) array

    Returns
    -------
    (c, y / factor, x / factor) float32, rounded up
    """
    if factor == 1:
        return pixels.astype(np.float32)
    n, height, width = pixels.shape
    exact = pixels.dtype.kind in "iu" and pixels.dtype.itemsize < 8
    column = np.empty(width, dtype=np.int64 if exact else np.float64)
    means = np.empty((n, math.ceil(height / factor), math.ceil(width / factor)), dtype=np.float32)
    _fill_means(pixels, factor, column, means)
    return means


@compiled
def _fill_means(pixels: NDArray[Any], factor: int, column: NDArray[Any], means: NDArray[np.float32]) -> None:
    """Add up the rows of a block first, column by column: a loop that the processor does many columns of at once."""
    height, width = pixels.shape[1:]
    for c in range(means.shape[0]):
        for i in range(means.shape[1]):
            column[:] = 0
            bottom = min((i + 1) * factor, height)
            for y in range(i * factor, bottom):
                for x in range(width):
                    column[x] += pixels[c, y, x]
            for j in range(means.shape[2]):
                right = min((j + 1) * factor, width)
                total = column[j * factor]
                for x in range(j * factor + 1, right):
                    total += column[x]
                means[c, i, j] = total / ((bottom - i * factor) * (right - j * factor))


def flat_pixels(slide: Slide, box: Box, indices: tuple[int, ...], segment: Segment, level: int = 0) -> NDArray[Any]:
    """Read a box as one plane per channel.

    Returns
    -------
    (c, y, x) array; float32 when planes were averaged, else of the slide's type

    Raises
    ------
    InputError
        If pixels are NaN or infinite, or the plane asked for does not exist.
    """
    pixels = slide.read(box, channels=indices, level=level)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(
            f"Slide '{slide.name}': {int((~np.isfinite(pixels)).sum())} pixel(s) near row {box.y0}, column {box.x0} "
            "are NaN or infinite.",
            "Export the image again with numbers everywhere.",
        )
    if pixels.shape[1] == 1:
        return np.asarray(pixels[:, 0])
    if segment.z == "max":
        return np.asarray(pixels.max(axis=1))
    if segment.z == "min":
        return np.asarray(pixels.min(axis=1))
    if segment.z == "mean":
        return np.asarray(pixels.mean(axis=1, dtype=np.float64), dtype=np.float32)
    if not 0 <= segment.z < pixels.shape[1]:
        raise InputError(
            f"Slide '{slide.name}': no focal plane {segment.z}; it has 0 to {pixels.shape[1] - 1}.",
            "Correct z under [segment] in the recipe.",
        )
    plane: NDArray[Any] = pixels[:, segment.z]
    return plane
