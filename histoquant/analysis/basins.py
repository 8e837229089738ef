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
    levels = _levels(np.ascontiguousarray(mask), height)
    pixels = np.empty(int(np.count_nonzero(mask)), dtype=np.int32)
    basin = _towards(levels, pixels)
    levels, basin = levels.ravel(), basin.ravel()
    summits = _follow(basin, pixels, width)
    cluster = np.arange(len(summits), dtype=np.int32)
    for _ in range(rounds):
        if not _join(basin, levels, pixels, summits, cluster, width, np.float32(join)):
            break
    roots = cluster == np.arange(len(cluster))
    number = np.concatenate([[0], roots.cumsum()[cluster]]).astype(np.int32)
    _rename(basin, pixels, number)
    row, column = np.divmod(summits[roots].astype(np.intp), width)
    labels = basin.view(np.uint32).reshape(-1, width)[1:-1, 1:-1]
    return labels, (row - 1) * mask.shape[1] + column - 1


@compiled
def _levels(mask: NDArray[np.bool_], height: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the heights within a mask and -inf elsewhere, with a rim of one pixel: every pixel has 8 neighbours."""
    n_rows, n_columns = mask.shape
    ground = np.float32(-np.inf)
    levels = np.empty((n_rows + 2, n_columns + 2), dtype=np.float32)
    levels[0], levels[n_rows + 1], levels[:, 0], levels[:, n_columns + 1] = ground, ground, ground, ground
    for y in range(n_rows):
        row, source, out = mask[y], height[y], levels[y + 1][1 : n_columns + 1]
        for x in range(n_columns):
            out[x] = source[x] if row[x] else ground
    return levels


@compiled
def _towards(levels: NDArray[np.float32], pixels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Point each pixel at the highest of its neighbours, itself included, and list the pixels in raster order.

    Returns
    -------
    (y, x) int32
        Steps in the flat image less ``width + 2``, so that a pixel that points is below 0, and 0 off the mask.
    """
    n_rows, width = levels.shape
    inner = width - 2
    towards = np.zeros((n_rows, width), dtype=np.int32)
    ground, back = np.float32(-np.inf), width + 2
    n = 0
    for y in range(1, n_rows - 1):
        above, here, below, out = levels[y - 1], levels[y], levels[y + 1], towards[y][1 : inner + 1]
        a0, a1, a2 = above[:inner], above[1 : inner + 1], above[2:]
        b0, b1, b2 = here[:inner], here[1 : inner + 1], here[2:]
        c0, c1, c2 = below[:inner], below[1 : inner + 1], below[2:]
        for x in range(inner):
            # In raster order and ">=": of equal heights the last wins. Spelt out, so that it runs on many at a time.
            top, best = a0[x], -width - 1
            best, top = (-width, a1[x]) if a1[x] >= top else (best, top)
            best, top = (1 - width, a2[x]) if a2[x] >= top else (best, top)
            best, top = (-1, b0[x]) if b0[x] >= top else (best, top)
            best, top = (0, b1[x]) if b1[x] >= top else (best, top)
            best, top = (1, b2[x]) if b2[x] >= top else (best, top)
            best, top = (width - 1, c0[x]) if c0[x] >= top else (best, top)
            best, top = (width, c1[x]) if c1[x] >= top else (best, top)
            best, top = (width + 1, c2[x]) if c2[x] >= top else (best, top)
            out[x] = best - back if b1[x] > ground else 0
        start = y * width + 1
        for x in range(inner):
            if out[x]:
                pixels[n] = start + x
                n += 1
    return towards


@compiled
def _follow(basin: NDArray[np.int32], pixels: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Put the number of its summit, from 1 in raster order, in place of where each pixel points; return the summits."""
    back = width + 2
    n = 0
    for p in pixels:
        n += basin[p] == -back
    summits = np.empty(n, dtype=np.int32)
    n = 0
    for p in pixels:
        if basin[p] == -back:
            summits[n] = p
            n += 1
            basin[p] = n
    for p in pixels:
        end = np.int64(p)
        while basin[end] < 0:
            end += basin[end] + back
        found, step = basin[end], np.int64(p)
        while basin[step] < 0:
            further = step + basin[step] + back
            basin[step] = found
            step = further
    return summits


@compiled
def _join(
    basin: NDArray[np.int32],
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
def _rename(basin: NDArray[np.int32], pixels: NDArray[np.int32], number: NDArray[np.int32]) -> None:
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
