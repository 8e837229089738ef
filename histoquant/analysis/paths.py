"""Paths in three dimensions: smoothing, length, branch order, Sholl.

A path is an (n, 3) array of points in um, in order (z, y, x). A chain of voxels is no path yet: counting its voxels is
29 % short at 45 degrees, and the sum of its steps is up to 8 % long. Both errors are those of the grid, so the chain is
smoothed by as much as the grid can have moved its points, and then measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from histoquant.errors import InputError

Points: TypeAlias = NDArray[np.float64]
"""(n, 3): z, y, x in um; where a docstring says so (n,) or a mesh of points."""

STIFFEST = 1e7
"""Most weight of bending against distance: points in a line are given back as they are, to 1e-6 of a voxel."""


def units(ways: Points) -> Points:
    """Return vectors, (..., 3), at length 1; those of no length stay so."""
    return np.asarray(ways / np.maximum(np.linalg.norm(ways, axis=-1, keepdims=True), 1e-9))


def length_um(path: Points, *, z_factor: float = 1.0) -> float:
    """Return the length of a path.

    Parameters
    ----------
    path : (n, 3) float, um
        Fewer than two points have length 0.
    z_factor : float
        True um of tissue per um of stage travel: refraction times shrinkage.
    """
    return float(steps_um(path, z_factor=z_factor).sum())


def steps_um(path: Points, *, z_factor: float = 1.0) -> Points:
    """Return the length of each step of a path, one fewer than it has points."""
    scaled: Points = np.diff(np.asarray(path, dtype=np.float64), axis=0) * (z_factor, 1.0, 1.0)
    return np.asarray(np.linalg.norm(scaled, axis=1))


def along_um(path: Points) -> Points:
    """Return the distance of each point from the start of its path, (n,) um."""
    return np.concatenate([[0.0], np.cumsum(steps_um(path))])


def resampled(path: Points, spacing_um: float) -> Points:
    """Return points at even distances along a path, at most ``spacing_um`` apart, both ends included."""
    along = along_um(path)
    n = max(2, int(np.ceil(along[-1] / spacing_um)) + 1)
    wanted = np.linspace(0, along[-1], n)
    return np.stack([np.interp(wanted, along, axis) for axis in np.asarray(path).T], axis=1)


def smooth_path(chain: Points, voxel_um: Sequence[float], *, spread_voxels: float = 1.0) -> Points:
    """Return the path that a chain of voxels, or of clicks on voxels, stands for.

    Each coordinate is fitted by the stiffest curve (Whittaker 1922: least squares with a penalty on second differences)
    that stays as near to the points as rounding to the grid explains: a root mean square of a voxel / sqrt(12). Lines
    have no second differences, so that they are found at any angle, and ends are not pulled in.

    Parameters
    ----------
    chain : (n, 3) float, um
    voxel_um : (3,) float
        Depth, height and width of a voxel.
    spread_voxels : float
        How far points lie off the path, in units of what rounding does.

    Returns
    -------
    (m, 3) float, um
        About one point per voxel stepped.
    """
    chain, voxel = np.asarray(chain, dtype=np.float64), np.asarray(voxel_um, dtype=np.float64)
    # Steps counted in voxels along their longest axis: a chain advances by one at each step, whatever its direction.
    gone = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(chain, axis=0) / voxel).max(axis=1))])
    keep = np.concatenate([[True], np.diff(gone) > 0])
    chain, gone = chain[keep], gone[keep]
    if len(chain) < 3:
        return chain
    wanted = np.linspace(0, gone[-1], max(3, round(gone[-1]) + 1))
    even = np.stack([np.interp(wanted, gone, axis) for axis in chain.T], axis=1)
    allowed = spread_voxels * voxel / np.sqrt(12)
    return np.stack([stiffest(axis, far) for axis, far in zip(even.T, allowed, strict=True)], axis=1)


def stiffest(values: Points, rms: float) -> Points:
    """Return the stiffest curve within a root mean square distance of evenly spaced values, (n,)."""
    low, high = -4.0, float(np.log10(STIFFEST))
    fitted = bent(values, 10**high)
    if np.sqrt(np.mean((fitted - values) ** 2)) <= rms:
        return fitted
    for _ in range(30):
        middle = (low + high) / 2
        fitted = bent(values, 10**middle)
        low, high = (middle, high) if np.sqrt(np.mean((fitted - values) ** 2)) <= rms else (low, middle)
    return bent(values, 10**low)


def bent(values: Points, weight: float) -> Points:
    """Return the minimum x of |x - values|^2 + weight |second differences of x|^2, (n,)."""
    n = len(values)
    bands = np.zeros((3, n))
    bands[2] = 1.0
    for k, factor in enumerate((1.0, -2.0, 1.0)):
        bands[2, k : n - 2 + k] += weight * factor**2
    bands[1, 1 : n - 1] += -2.0 * weight
    bands[1, 2:n] += -2.0 * weight
    bands[0, 2:n] += weight
    return np.asarray(solveh_banded(bands, values, check_finite=False))


def tangents(path: Points) -> Points:
    """Return the unit direction of a path at each of its points, (n, 3)."""
    direction = np.gradient(np.asarray(path, dtype=np.float64), axis=0)
    return np.asarray(direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12))


def frames(path: Points) -> tuple[Points, Points]:
    """Return two unit vectors across a path at each point: one in the image plane, one as near to z as can be.

    Where a path runs along z, its sideways direction goes on as it was.
    """
    along = tangents(path)
    side = np.stack([np.zeros(len(along)), along[:, 2], -along[:, 1]], axis=1)
    size = np.linalg.norm(side, axis=1)
    steep = size < 0.2
    if steep.all():
        side[:] = (0.0, 1.0, 0.0)
    elif steep.any():
        known = np.flatnonzero(~steep)
        nearest = known[np.abs(np.arange(len(side))[:, None] - known[None]).argmin(axis=1)]
        side[steep] = side[nearest[steep]]
    side -= (side * along).sum(axis=1, keepdims=True) * along
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
    up = np.cross(along, side)
    up *= np.where(up[:, :1] < 0, -1.0, 1.0)
    return side, up


@dataclass(frozen=True)
class Foot:
    """Where points lie beside a path.

    Attributes
    ----------
    position_um : (n,) float
        Distance along the path of its point that is nearest.
    distance_um : (n,) float
        To that point.
    index : (n,) int
        The path's point at or before it.
    """

    position_um: Points
    distance_um: Points
    index: NDArray[np.intp]


def foot_of(points: Points, path: Points) -> Foot:
    """Return the nearest place on a path for each point, exact between the path's points."""
    points, path = np.atleast_2d(points), np.asarray(path, dtype=np.float64)
    start, step = path[:-1], np.diff(path, axis=0)
    squared = np.maximum((step**2).sum(axis=1), 1e-24)
    best = np.full(len(points), np.inf)
    position, index = np.zeros(len(points)), np.zeros(len(points), dtype=np.intp)
    along = along_um(path)
    for k in range(len(step)):
        share = np.clip((points - start[k]) @ step[k] / squared[k], 0, 1)
        distance = np.linalg.norm(points - (start[k] + share[:, None] * step[k]), axis=1)
        nearer = distance < best
        best[nearer] = distance[nearer]
        position[nearer] = along[k] + share[nearer] * np.sqrt(squared[k])
        index[nearer] = k
    return Foot(position, best, index)


def _roots(paths: Sequence[Points], centre: Points, radius: float) -> list[tuple[Points, Points, Points]]:
    """Return, per path, where its steps enter and leave a sphere, as shares clipped to [0, 1], and their lengths."""
    found = []
    for path in paths:
        start, step = np.asarray(path[:-1]) - centre, np.diff(path, axis=0)
        a = np.maximum((step**2).sum(axis=1), 1e-24)
        b, c = (start * step).sum(axis=1), (start**2).sum(axis=1) - radius**2
        inside = b * b - a * c
        root = np.sqrt(np.maximum(inside, 0))
        low, high = np.clip((-b - root) / a, 0, 1), np.clip((-b + root) / a, 0, 1)
        high = np.where(inside > 0, high, low)
        found.append((low, high, np.sqrt(a)))
    return found


@dataclass(frozen=True)
class Sholl:
    """Sholl analysis of an arbor (Sholl 1953) with spheres round its soma.

    Attributes
    ----------
    radius_um : (n,) float
    crossings : (n,) int
        Of the sphere of that radius. A path that ends on a sphere does not cross it.
    ring_length_um : (n,) float
        Length of dendrite from the sphere before (the centre for the first) to this one.
    """

    radius_um: Points
    crossings: NDArray[np.int64]
    ring_length_um: Points

    @property
    def critical_radius_um(self) -> float:
        """Radius of the most crossings, the first of equals; NaN when nothing is crossed."""
        return float(self.radius_um[np.argmax(self.crossings)]) if self.crossings.any() else float("nan")

    @property
    def enclosing_radius_um(self) -> float:
        """Last radius that is crossed; NaN when none is."""
        crossed = np.flatnonzero(self.crossings)
        return float(self.radius_um[crossed[-1]]) if len(crossed) else float("nan")

    def schoenen_index(self, n_primary: int) -> float:
        """Return the most crossings over the number of primary dendrites; NaN without any."""
        return float(self.crossings.max(initial=0)) / n_primary if n_primary else float("nan")

    def decay(self) -> float:
        """Return the slope of log10(crossings / surface of the sphere) against radius, per um; NaN below two radii."""
        seen = self.crossings > 0
        if seen.sum() < 2:
            return float("nan")
        density = np.log10(self.crossings[seen] / (4 * np.pi * self.radius_um[seen] ** 2))
        return float(np.polyfit(self.radius_um[seen], density, 1)[0])


def sholl(paths: Sequence[Points], soma_um: Sequence[float], *, step_um: float = 10.0) -> Sholl:
    """Cut an arbor by concentric spheres.

    Parameters
    ----------
    paths : sequence of (n, 3) float, um
        Branches; a branch begins at the point at which its parent ends.
    soma_um : (z, y, x)
    step_um : float
        Distance of the spheres.

    Raises
    ------
    InputError
        If the step is not positive.
    """
    if not step_um > 0:
        raise InputError(f"Sholl spheres {step_um:g} um apart do not exist.", "Give a step above 0.")
    centre = np.asarray(soma_um, dtype=np.float64)
    farthest = max((np.linalg.norm(path - centre, axis=1).max() for path in paths if len(path)), default=0.0)
    radii = step_um * np.arange(1, int(np.ceil(farthest / step_um)) + 1, dtype=np.float64)
    crossings, within = [], []
    for radius in radii:
        inside = [np.linalg.norm(path - centre, axis=1) <= radius + 1e-9 for path in paths]
        length = count = 0.0
        for (low, high, size), ends in zip(_roots(paths, centre, float(radius)), inside, strict=True):
            length += float(((high - low) * size).sum())
            # One crossing per step that changes sides; two where a step passes through and both its ends are outside.
            through = ~ends[:-1] & ~ends[1:] & (high > low) & (low > 0) & (high < 1)
            count += int((ends[:-1] != ends[1:]).sum()) + 2 * int(through.sum())
        crossings.append(int(count))
        within.append(length)
    return Sholl(radii, np.array(crossings, dtype=np.int64), np.diff(np.array([0.0, *within])))


def branch_orders(parents: Sequence[int]) -> NDArray[np.int64]:
    """Return the centrifugal order of branches: 1 for those without a parent, one more beyond each branch point.

    Parameters
    ----------
    parents : sequence of int
        Index of each branch's parent, -1 for none.

    Raises
    ------
    InputError
        If branches are each other's parents.
    """
    orders = np.zeros(len(parents), dtype=np.int64)
    for i in range(len(parents)):
        at, order = i, 1
        while parents[at] >= 0:
            at, order = parents[at], order + 1
            if order > len(parents):
                raise InputError(f"Branch {i} is its own ancestor.", "A tree of branches has no loops.")
        orders[i] = order
    return orders
