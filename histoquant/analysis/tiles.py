"""Tiles: cores with halos, and who owns an object at a seam.

A slide is cut into cores that cover it without overlap. Each core is read with a halo round it, so that every object
whose centroid lies in the core is seen whole. An object belongs to the tile whose core holds its centroid, and to no
other: nothing is merged, nothing is counted twice, and the result does not depend on where the cuts are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from histoquant.errors import InputError
from histoquant.model.slide import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LABEL = 2**32 - 1


@dataclass(frozen=True)
class Tile:
    """A core and the box that is read to analyse it, both in full-resolution pixels of the slide."""

    core: Box
    box: Box


@dataclass(frozen=True)
class Owned:
    """Objects of one tile that are its own.

    Attributes
    ----------
    labels : (y, x) uint32, 0 = background
        The tile's box, renumbered 1..n in raster order of each object's first pixel; objects of other tiles too.
    mine : (n,) bool
        Whether object ``i + 1`` has its centroid in the core.
    cut : (n,) bool
        Whether it touches an edge of the box that is not an edge of the slide: larger than the halo allows.
    """

    labels: NDArray[np.uint32]
    mine: NDArray[np.bool_]
    cut: NDArray[np.bool_]


def plan_tiles(
    shape: tuple[int, int], *, core_px: int, halo_px: int, offset_px: tuple[int, int] = (0, 0)
) -> list[Tile]:
    """Cut an image into cores with halos, in raster order.

    Parameters
    ----------
    shape : (height, width)
        Of the image, in pixels.
    offset_px : (y, x)
        Where the first full core starts; the cores before it are smaller. Moving the grid must not change results.

    Examples
    --------
    >>> [tile.core for tile in plan_tiles((10, 7), core_px=5, halo_px=2)]
    ... # doctest: +NORMALIZE_WHITESPACE
    [Box(y0=0, y1=5, x0=0, x1=5), Box(y0=0, y1=5, x0=5, x1=7),
     Box(y0=5, y1=10, x0=0, x1=5), Box(y0=5, y1=10, x0=5, x1=7)]
    """
    rows, columns = (_cuts(length, core_px, start) for length, start in zip(shape, offset_px, strict=True))
    cores = [Box(y0, y1, x0, x1) for y0, y1 in rows for x0, x1 in columns]
    return [Tile(core, core.grown(halo_px, shape)) for core in cores]


def _cuts(length: int, core_px: int, start: int) -> list[tuple[int, int]]:
    edges = sorted({0, length, *range(start % core_px, length, core_px)})
    return list(pairwise(edges))


def own(labels: NDArray[np.integer], tile: Tile, shape: tuple[int, int]) -> Owned:
    """Find the objects of a tile that are its own.

    Parameters
    ----------
    labels : (y, x) of any integer type, 0 = background
        Objects of the tile's box.
    shape : (height, width)
        Of the slide.

    Raises
    ------
    InputError
        If the labels are not integers, are negative, or do not fit the box.
    """
    labels = canonical(labels)
    if labels.shape != tile.box.shape:
        raise InputError(f"Labels of shape {labels.shape} for a tile of {tile.box.shape} pixels.")
    n = int(labels.max(initial=0))
    rows, columns = np.nonzero(labels)
    ids = labels[rows, columns] - 1
    size = np.bincount(ids, minlength=n)
    # Sums of slide coordinates are exact integers: every tile that sees the object finds the same centroid.
    y = np.bincount(ids, rows + tile.box.y0, minlength=n) / size
    x = np.bincount(ids, columns + tile.box.x0, minlength=n) / size
    core, box = tile.core, tile.box
    mine = (y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1)
    cut = np.zeros(n + 1, dtype=bool)
    for edge, inner in (
        (labels[0], box.y0 > 0),
        (labels[-1], box.y1 < shape[0]),
        (labels[:, 0], box.x0 > 0),
        (labels[:, -1], box.x1 < shape[1]),
    ):
        if inner:
            cut[edge] = True
    return Owned(labels, mine, cut[1:])


def canonical(labels: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Return labels renumbered 1..n in raster order of each object's first pixel, as uint32.

    Raises
    ------
    InputError
        If they are not integers or hold negative values.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise InputError(f"Labels must be integers, not {labels.dtype}.")
    if labels.size and labels.min() < 0:
        raise InputError("Labels must not be negative.")
    flat = labels.ravel()
    where = np.flatnonzero(flat)
    found, first, inverse = np.unique(flat[where], return_index=True, return_inverse=True)
    if len(found) > MAX_LABEL:
        raise InputError(f"{len(found)} objects do not fit 32-bit labels.")
    rank = np.empty(len(found), dtype=np.uint32)
    rank[np.argsort(first)] = np.arange(1, len(found) + 1, dtype=np.uint32)
    out = np.zeros(flat.shape, dtype=np.uint32)
    out[where] = rank[inverse]
    return out.reshape(labels.shape)
