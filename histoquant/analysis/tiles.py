"""Tiles: cores with halos, and who owns an object at a seam.

A slide is cut into cores that cover it without overlap. Each core is read with a halo round it, so that every object
whose centroid lies in the core is seen whole. An object belongs to the tile whose core holds its centroid, and to no
other: nothing is merged, nothing is counted twice, and the result does not depend on where the cuts are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
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
    given : (n,) integer
        The number it had before it was renumbered.
    """

    labels: NDArray[np.uint32]
    mine: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    given: NDArray[np.integer]


def plan_tiles(
    shape: tuple[int, int],
    *,
    core_px: int,
    halo_px: int,
    offset_px: tuple[int, int] = (0, 0),
    grid_px: int = 1,
    within: Box | None = None,
) -> list[Tile]:
    """Cut an image into cores with halos, in raster order.

    Parameters
    ----------
    shape : (height, width)
        Of the image, in pixels.
    offset_px : (y, x)
        Where the first full core starts; the cores before it are smaller. Moving the grid must not change results.
    grid_px : int
        Boxes start at multiples of it: halos grow up to them.
    within : Box, optional
        Cut this part of the image only; halos reach out of it. The whole when not given.

    Examples
    --------
    >>> [tile.core for tile in plan_tiles((10, 7), core_px=5, halo_px=2)]
    ... # doctest: +NORMALIZE_WHITESPACE
    [Box(y0=0, y1=5, x0=0, x1=5), Box(y0=0, y1=5, x0=5, x1=7),
     Box(y0=5, y1=10, x0=0, x1=5), Box(y0=5, y1=10, x0=5, x1=7)]
    """
    area = Box(0, shape[0], 0, shape[1]) if within is None else within
    spans = ((area.y0, area.y1, offset_px[0]), (area.x0, area.x1, offset_px[1]))
    rows, columns = ([(a + low, b + low) for a, b in _cuts(high - low, core_px, start)] for low, high, start in spans)
    cores = [Box(y0, y1, x0, x1) for y0, y1 in rows for x0, x1 in columns]
    boxes = [core.grown(halo_px, shape) for core in cores]
    return [
        Tile(core, Box(box.y0 // grid_px * grid_px, box.y1, box.x0 // grid_px * grid_px, box.x1))
        for core, box in zip(cores, boxes, strict=True)
    ]


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
    labels, given = _canonical(labels)
    if labels.shape != tile.box.shape:
        raise InputError(f"Labels of shape {labels.shape} for a tile of {tile.box.shape} pixels.")
    size, rows, columns = _sums(labels, len(given))
    core, box = tile.core, tile.box
    # Sums of slide coordinates are exact integers: every tile that sees the object finds the same centroid.
    y, x = (rows + box.y0 * size) / size, (columns + box.x0 * size) / size
    mine = (y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1)
    cut = np.zeros(len(given) + 1, dtype=bool)
    for edge, inner in (
        (labels[0], box.y0 > 0),
        (labels[-1], box.y1 < shape[0]),
        (labels[:, 0], box.x0 > 0),
        (labels[:, -1], box.x1 < shape[1]),
    ):
        if inner:
            cut[edge] = True
    return Owned(labels, mine, cut[1:], given)


def canonical(labels: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Return labels renumbered 1..n in raster order of each object's first pixel, as uint32.

    Raises
    ------
    InputError
        If they are not integers or hold negative values.
    """
    return _canonical(labels)[0]


def _canonical(labels: NDArray[np.integer]) -> tuple[NDArray[np.uint32], NDArray[np.integer]]:
    """Return canonical labels, and the number that each object was given."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise InputError(f"Labels must be integers, not {labels.dtype}.")
    if labels.dtype.kind == "i" and labels.min(initial=0) < 0:
        raise InputError("Labels must not be negative.")
    flat = np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("=")).ravel()
    numbers = None
    if flat.max(initial=0) > max(flat.size, 1):
        # Numbers far apart would make a list of all numbers larger than the image.
        numbers, flat = np.unique(flat, return_inverse=True)
        if numbers[0] > 0:
            numbers, flat = np.concatenate([[numbers.dtype.type(0)], numbers]), flat + 1
    names = np.zeros(int(flat.max(initial=0)) + 1, dtype=np.uint32)
    renumbered = _renumbered(flat, names).reshape(labels.shape)
    there = np.flatnonzero(names)
    if len(there) > MAX_LABEL:
        raise InputError(f"{len(there)} objects do not fit 32-bit labels.")
    given = np.empty(len(there), dtype=labels.dtype)
    given[names[there] - 1] = there if numbers is None else numbers[there]
    return renumbered, given


@compiled
def _renumbered(flat: NDArray[Any], names: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return labels renumbered in order of appearance; ``names`` takes the new number of each old one."""
    renumbered = np.empty(flat.size, dtype=np.uint32)
    n = 0
    for i in range(flat.size):
        label = flat[i]
        if label == 0:
            renumbered[i] = 0
            continue
        if names[label] == 0:
            n += 1
            names[label] = n
        renumbered[i] = names[label]
    return renumbered


@compiled
def _sums(labels: NDArray[np.uint32], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the size of objects 1..n and the sums of their rows and columns within the image."""
    size, rows, columns = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label:
                size[label - 1] += 1
                rows[label - 1] += y
                columns[label - 1] += x
    return size, rows, columns
