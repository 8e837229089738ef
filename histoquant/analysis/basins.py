"""Basins of a height map that depend on their neighbourhood only, so that they are the same in any crop.

A library watershed floods from a priority queue and breaks ties by order of arrival: what happens at one end of a
clump can change the other end, and a cut clump is another clump. Here a pixel's summit is found under the strict
order (height, raster order), and summits are joined by a rule that looks at neighbours only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.compiled import compiled

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
    width = mask.shape[1] + 2
    pixels, levels = _inside(np.ascontiguousarray(mask), height)
    basin, summits = _basins(levels, pixels, width)
    cluster = np.arange(len(summits), dtype=np.int32)
    for _ in range(rounds):
        if not _join(basin, levels, pixels, summits, cluster, width, np.float32(join)):
            break
    roots = cluster == np.arange(len(cluster))
    number = np.concatenate([[0], roots.cumsum()[cluster]]).astype(np.uint32)
    _rename(basin, pixels, number)
    row, column = np.divmod(summits[roots].astype(np.intp), width)
    return basin.reshape(-1, width)[1:-1, 1:-1], (row - 1) * mask.shape[1] + column - 1


@compiled
def _inside(mask: NDArray[np.bool_], height: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the places of a mask, and the heights there; -inf elsewhere.

    Both are of the image with a rim of one pixel, flat, so that every pixel has 8 neighbours.
    """
    n_rows, n_columns = mask.shape
    width = n_columns + 2
    levels = np.full((n_rows + 2) * width, -np.inf, dtype=np.float32)
    n = 0
    for y in range(n_rows):
        row = mask[y]
        for x in range(n_columns):
            n += row[x]
    pixels = np.empty(n, dtype=np.int32)
    n = 0
    for y in range(n_rows):
        row, source, start = mask[y], height[y], (y + 1) * width + 1
        for x in range(n_columns):
            if row[x]:
                pixels[n] = start + x
                n += 1
                levels[start + x] = source[x]
    return pixels, levels


@compiled
def _basins(
    levels: NDArray[np.float32], pixels: NDArray[np.int32], width: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Return the basin of each place, from 1 in raster order of the summits, and the summits' places."""
    basin = np.zeros(len(levels), dtype=np.uint32)
    towards = np.zeros(len(levels), dtype=np.int8)
    # Neighbours in raster order and ">=": of equal heights the last in raster order wins.
    offsets = np.array([-width - 1, -width, -width + 1, -1, 0, 1, width - 1, width, width + 1], dtype=np.int64)
    summits = np.empty(1024, dtype=np.int32)
    n = 0
    for p in pixels:
        best, highest = 0, np.float32(-np.inf)
        for k in range(9):
            level = levels[p + offsets[k]]
            if level >= highest:
                best, highest = k, level
        # Beside a pixel that is -inf itself only the ground may tie; it is a summit then.
        if best == 4 or highest == -np.inf:
            if n == len(summits):
                summits = np.append(summits, np.empty_like(summits))
            summits[n] = p
            n += 1
            basin[p] = n
            best = 4
        towards[p] = best
    for p in pixels:
        end = np.int64(p)
        while basin[end] == 0:
            end += offsets[towards[end]]
        found, step = basin[end], np.int64(p)
        while basin[step] == 0:
            basin[step] = found
            step += offsets[towards[step]]
    return basin, summits[:n].copy()


@compiled
def _join(
    basin: NDArray[np.uint32],
    levels: NDArray[np.float32],
    pixels: NDArray[np.int32],
    summits: NDArray[np.int32],
    cluster: NDArray[np.int32],
    width: int,
    join: np.float32,
) -> bool:
    """Let each summit join a higher neighbour where the pass allows; ``cluster`` is brought up to date.

    Returns
    -------
    Whether any did.
    """
    n = len(summits)
    best_pass = np.full(n, -np.inf, dtype=np.float32)
    best = np.full(n, -1, dtype=np.int32)
    for p in pixels:
        mine = basin[p]
        for q in (p + 1, p + width - 1, p + width, p + width + 1):
            if basin[q] == mine or basin[q] == 0:
                continue
            a, b = cluster[mine - 1], cluster[basin[q] - 1]
            if a == b:
                continue
            one, two = levels[summits[a]], levels[summits[b]]
            lower, upper = (a, b) if one < two or (one == two and a < b) else (b, a)
            over = min(levels[p], levels[q])
            other = best[lower]
            if other < 0 or over > best_pass[lower]:
                best_pass[lower], best[lower] = over, upper
            elif over == best_pass[lower]:
                # Of equal passes the one to the higher summit.
                known, new = levels[summits[other]], levels[summits[upper]]
                if new > known or (new == known and upper > other):
                    best[lower] = upper
    joined = False
    for a in range(n):
        if best[a] >= 0 and best_pass[a] >= join * levels[summits[a]]:
            joined = True
        else:
            best[a] = a
    for a in range(n):
        root = best[a]
        while best[root] != root:
            root = best[root]
        best[a] = root
    for a in range(n):
        cluster[a] = best[cluster[a]]
    return joined


@compiled
def _rename(basin: NDArray[np.uint32], pixels: NDArray[np.int32], number: NDArray[np.uint32]) -> None:
    """Put each place's number instead of its basin's."""
    for p in pixels:
        basin[p] = number[basin[p]]


@compiled
def of_size(labels: NDArray[np.uint32], least: float, most: float) -> NDArray[np.uint32]:
    """Return labels without those of too few or too many pixels, numbered from 1 without gaps."""
    n_rows, n_columns = labels.shape
    n = np.uint32(0)
    for y in range(n_rows):
        for x in range(n_columns):
            n = max(n, labels[y, x])
    area = np.zeros(n + 1, dtype=np.int64)
    for y in range(n_rows):
        for x in range(n_columns):
            area[labels[y, x]] += 1
    number = np.zeros(n + 1, dtype=np.uint32)
    kept = 0
    for i in range(1, n + 1):
        if least <= area[i] <= most:
            kept += 1
            number[i] = kept
    result = np.empty((n_rows, n_columns), dtype=np.uint32)
    for y in range(n_rows):
        for x in range(n_columns):
            result[y, x] = number[labels[y, x]]
    return result
