"""Basins of a height map that depend on their neighbourhood only, so that they are the same in any crop.

A library watershed floods from a priority queue and breaks ties by order of arrival: what happens at one end of a
clump can change the other end, and a cut clump is another clump. Here a pixel's summit is found under the strict
order (height, raster order), and summits are joined by a rule that looks at neighbours only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def local_basins(
    height: NDArray[np.float32], mask: NDArray[np.bool_], *, join: float, rounds: int
) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Divide a mask among the summits of a height map.

    Each pixel points to the highest of its 8 neighbours within the mask, itself included, under the strict
    order (height, raster order); following the pointers leads to its summit. Then, in each round, every
    summit looks at the neighbouring ones that are higher: across the highest pass among them it joins when
    the pass is at least ``join`` times its own height. A pixel's label thus depends on its basin and on as
    many neighbours in a row as there are rounds, and on nothing else.

    Parameters
    ----------
    height : (y, x) float32
        Positive at summits.
    mask : (y, x) bool
    join : float
    rounds : int

    Returns
    -------
    labels : (y, x) uint32, 0 = outside the mask
    summits : (n,) int
        Flat index of the summit of labels 1..n, increasing.
    """
    padded = np.pad(mask, 1)
    ground = np.full(padded.shape, -np.inf, dtype=np.float32)
    ground[1:-1, 1:-1][mask] = height[mask]
    inside, heights, width = np.flatnonzero(padded), ground.ravel(), padded.shape[1]
    labels = np.zeros(padded.size, dtype=np.uint32)
    if not len(inside):
        return labels.reshape(padded.shape)[1:-1, 1:-1], inside
    rank = np.zeros(padded.size, dtype=np.intp)
    rank[inside] = np.arange(len(inside))

    # Neighbours in raster order and ">=": of equal heights the last in raster order wins.
    offsets = (-width - 1, -width, -width + 1, -1, 0, 1, width - 1, width, width + 1)
    highest = heights[inside + offsets[0]]
    towards = np.full(len(inside), offsets[0], dtype=np.intp)
    for offset in offsets[1:]:
        neighbour = heights[inside + offset]
        higher = neighbour >= highest
        highest[higher] = neighbour[higher]
        towards[higher] = offset
    summit_of = _followed(rank[inside + towards])
    is_summit = summit_of == np.arange(len(inside))
    basin_of = (is_summit.cumsum() - 1)[summit_of]

    basin = np.zeros(padded.size, dtype=np.intp)
    basin[inside] = basin_of + 1
    borders = []
    for offset in (1, width - 1, width, width + 1):
        other = basin[inside + offset]
        at = np.flatnonzero((other > 0) & (other != basin_of + 1))
        lower = np.minimum(heights[inside[at]], heights[inside[at] + offset])
        borders.append((basin_of[at], other[at] - 1, lower))
    one, two, passes = (np.concatenate(parts) for parts in zip(*borders, strict=True))
    cluster = _joined(highest[is_summit], one, two, passes, join=join, rounds=rounds)
    roots = cluster == np.arange(len(cluster))
    labels[inside] = (roots.cumsum()[cluster])[basin_of]
    row, column = np.divmod(inside[is_summit][roots], width)
    return labels.reshape(padded.shape)[1:-1, 1:-1], (row - 1) * mask.shape[1] + column - 1


def _followed(pointer: NDArray[np.intp]) -> NDArray[np.intp]:
    """Follow pointers to where they point to themselves."""
    while True:
        further = pointer[pointer]
        if np.array_equal(further, pointer):
            return pointer
        pointer = further


def _joined(
    peak: NDArray[np.float32],
    one: NDArray[np.intp],
    two: NDArray[np.intp],
    passes: NDArray[np.float32],
    *,
    join: float,
    rounds: int,
) -> NDArray[np.intp]:
    """Return, for each basin, the basin whose summit it joins in the end.

    Parameters
    ----------
    peak : (n,) heights of the summits, in raster order of the summits
    one, two, passes : (m,) basins on either side of each step over a border, and the height of the step
    """
    order = np.lexsort((np.arange(len(peak)), peak))
    place = np.empty_like(order)
    place[order] = np.arange(len(peak))
    cluster = np.arange(len(peak))
    for _ in range(rounds):
        a, b = cluster[one], cluster[two]
        apart = a != b
        a, b, height = a[apart], b[apart], passes[apart]
        lower, upper = np.where(place[a] < place[b], (a, b), (b, a))
        best = np.lexsort((place[upper], height, lower))
        best = best[np.append(lower[best][1:] != lower[best][:-1], True)] if len(best) else best
        best = best[height[best] >= np.float32(join) * peak[lower[best]]]
        if not len(best):
            break
        parent = np.arange(len(peak))
        parent[lower[best]] = upper[best]
        cluster = _followed(parent)[cluster]
    return cluster
