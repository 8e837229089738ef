"""The voxels of a stack that are part of a tube, as a list: few are, and a large stack has room for one answer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from histoquant.analysis.paths import Points
from histoquant.analysis.tubes import strips

BESIDE_UM, BESIDE_SHARE = 0.75, 0.4
"""What answers less than this share of the best within this distance is the flank of that, or a spine on it."""

SMEAR = 3.0
"""Times further that the halo of a bright shaft reaches along z than in the plane. Depth is
divided by it where the question is whether something is part of a shaft: what runs over and under one is no branch."""

SURER, LEAST_OF_BRIGHTEST = 2.0, 0.02
LEAST_VOXELS = 12


@dataclass(frozen=True, eq=False)
class TubeVoxels:
    """What answers as a tube.

    Attributes
    ----------
    voxels : (n, 3) int
        By plane, row and column.
    answer, best : (n,) float32
        The answer of each, and the best one near it.
    pairs : (k, 2) int
        Which of them touch, by a face, an edge or a corner; each pair once.
    """

    voxels: NDArray[np.intp]
    answer: NDArray[np.float32]
    best: NDArray[np.float32]
    pairs: NDArray[np.intp]

    def ways(self, points: Points) -> sparse.csr_array:
        """Return what a step between voxels that touch costs: its length, times more where the answer is not the best.

        Parameters
        ----------
        points : (n, 3) float, um
            The voxels' places.
        """
        cost = (self.best / self.answer).astype(np.float64) ** 3
        row, column = self.pairs.T
        price = np.linalg.norm(points[row] - points[column], axis=1) * (cost[row] + cost[column]) / 2
        return sparse.csr_array((price, (row, column)), shape=(len(points), len(points)))


def tube_voxels(answer: NDArray[np.float32], contrast: float, voxel_um: Sequence[float]) -> TubeVoxels:
    """Return what answers as a tube: above a low threshold, connected to something surer, and not beside a better.

    Parameters
    ----------
    answer : (z, y, x) float32
        As `tubularity` gives it.
    contrast : float
        The low threshold, in robust standard deviations of the background's answer.
    """
    every = answer.ravel()[:: max(1, answer.size // 4_000_000)]
    if not every.any():
        nothing = np.empty(0, dtype=np.float32)
        return TubeVoxels(np.empty((0, 3), np.intp), nothing, nothing, np.empty((0, 2), np.intp))
    # Of noise alone, two voxels in five answer at all, and the 80th percentile is 0.73 of their robust deviation
    # (measured on stacks of dendrites); a ground of zeros has none.
    noise = float(np.percentile(every, 80)) / 0.73
    low = max(contrast * noise, LEAST_OF_BRIGHTEST * float(np.percentile(every[every > 0], 99.9)))
    flat, best = _above(answer, low, voxel_um)
    own = answer.ravel()[flat]
    voxels = np.stack(np.unravel_index(flat, answer.shape), axis=1)
    pairs = _touching(voxels, flat, answer.shape)
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = sparse.csr_array((ones, tuple(pairs.T)), shape=(len(flat), len(flat)))
    n, of = csgraph.connected_components(graph, directed=False)
    sure = np.zeros(n, dtype=bool)
    sure[of[own > SURER * low]] = True
    sure &= np.bincount(of, minlength=n) >= LEAST_VOXELS
    kept = sure[of]
    number = np.cumsum(kept) - 1
    return TubeVoxels(voxels[kept], own[kept], best[kept], number[pairs[kept[pairs].all(axis=1)]])


def _above(
    answer: NDArray[np.float32], low: float, voxel_um: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the voxels above a threshold that are not beside a better one, in order, and the best near each.

    Near reaches further along z, as light is smeared there.
    """
    reach = (BESIDE_UM * SMEAR, BESIDE_UM, BESIDE_UM)
    size = [1 if n == 1 else 2 * round(r / v) + 1 for n, r, v in zip(answer.shape, reach, voxel_um, strict=True)]
    height, halo = answer.shape[1], size[1] // 2
    found, bests = [], []
    for y0, y1 in strips(answer.shape):
        top, bottom = max(0, y0 - halo), min(height, y1 + halo)
        best = ndimage.maximum_filter(answer[:, top:bottom], size=size)[:, y0 - top : y1 - top]
        own = answer[:, y0:y1]
        z, y, x = np.nonzero((own > BESIDE_SHARE * best) & (own > low))
        found.append(np.ravel_multi_index((z, y + y0, x), answer.shape))
        bests.append(best[z, y, x])
    flat = np.concatenate(found)
    order = np.argsort(flat)
    return flat[order], np.concatenate(bests)[order]


def _touching(voxels: NDArray[np.intp], flat: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the pairs of voxels, given by plane, row and column and in order as flat indices, that touch."""
    pairs = []
    for dz, dy, dx in np.ndindex(2, 3, 3):
        step = (dz, dy - 1, dx - 1)
        if step <= (0, 0, 0):
            continue
        there = voxels + step
        inside = np.flatnonzero(((there >= 0) & (there < shape)).all(axis=1))
        wanted = np.ravel_multi_index(tuple(there[inside].T), shape)
        at = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        hit = flat[at] == wanted
        pairs.append(np.stack([inside[hit], at[hit]], axis=1))
    return np.concatenate(pairs)
