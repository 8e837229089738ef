"""A path laid on the ridge of its dendrite, the shaft's radius, and the neighbourhood of a path drawn straight.

Coordinates are um, (z, y, x); the centre of the first voxel is at 0, so that um = index x voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.paths import Points, bent, frames, resampled

STEP_UM = 0.25
"""Spacing of points while a path is laid on its ridge."""

PART_UM = 30.0

SHORTEST_BEND_UM = 6.0
"""Wavelength that a path on its ridge follows by half: the shaft bends so, spines on it do not pull it aside."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Light that dendrites give off.

    Attributes
    ----------
    light : (z, y, x) float32, uint16 or uint8
        Structures are bright; any unit. Whole stacks keep the type they were stored in, and only what is cut out of
        them becomes float32: a large one would take twice the memory.
    voxel_um : (3,) float
        Depth, height and width of a voxel.
    ground : float
        Level of the background, taken away from what is cut out.
    """

    light: NDArray[Any]
    voxel_um: tuple[float, float, float]
    ground: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether it has one plane only, so that nothing is known of z."""
        return bool(self.light.shape[0] == 1)

    def at(self, points_um: Points, *, beyond: float = 0.0) -> NDArray[np.float32]:
        """Return the light at points, linear between voxels, of the shape of the points without their last axis."""
        index = np.moveaxis(np.asarray(points_um) / self.voxel_um, -1, 0)
        if self.flat:
            index = np.stack([np.zeros_like(index[0]), *index[1:]])
        assert not self.ground
        sampled: NDArray[np.float32] = ndimage.map_coordinates(
            self.light, index, order=1, mode="constant", cval=beyond, output=np.float32
        )
        return sampled

    def around(self, points_um: Points, margin_um: float) -> tuple[Stack, Points]:
        """Return the box that holds points with a margin, and its corner in um."""
        corner, cut = [], []
        for low, high, voxel, n in zip(
            points_um.min(axis=0), points_um.max(axis=0), self.voxel_um, self.light.shape, strict=True
        ):
            first = int(np.clip(np.floor((low - margin_um) / voxel), 0, n - 1))
            last = int(np.clip(np.ceil((high + margin_um) / voxel), first, n - 1))
            corner.append(first * voxel)
            cut.append(slice(first, last + 1))
        light = self.light[tuple(cut)].astype(np.float32)
        light -= np.float32(self.ground)
        return Stack(light, self.voxel_um), np.array(corner)

    def blurred(self, sigma_um: float) -> Stack:
        """Return the stack smoothed by a Gaussian of the same width in um on every axis."""
        sigma = [0.0 if n == 1 else sigma_um / v for n, v in zip(self.light.shape, self.voxel_um, strict=True)]
        return Stack(ndimage.gaussian_filter(self.light, sigma, mode="nearest", truncate=3.0), self.voxel_um)


def on_ridge(stack: Stack, path: Points, *, reach_um: float, sweeps: int = 4) -> Points:
    """Return a path moved onto the ridge of light beside it.

    Each point goes to the centre of the light across the path, weighed by distance, and the whole is made as stiff as
    that leaves it: a spine pulls a few points, the shaft all of them.

    Parameters
    ----------
    path : (n, 3) float, um
    reach_um : float
        How far off the ridge the path may lie, about.
    """
    moved = resampled(path, STEP_UM)
    if len(moved) < 4:
        return moved
    parts = []
    for part in _parts(len(moved), STEP_UM):
        box, corner = stack.around(moved[part], 3 * reach_um + 1.0)
        parts.append((part, box.blurred(0.5 * max(reach_um / 2, stack.voxel_um[1])), corner))
    offsets = np.arange(-2 * reach_um, 2 * reach_um + 1e-9, min(0.15, reach_um / 3))
    deep = np.zeros(1) if stack.flat else offsets
    near = np.exp(-0.5 * (offsets[:, None] ** 2 + deep[None] ** 2) / reach_um**2)
    # Whittaker's fit halves a wavelength of 2 pi weight^(1/4) steps. Coarse planes tell z less surely.
    bends = np.array([max(SHORTEST_BEND_UM, 10 * stack.voxel_um[0]), SHORTEST_BEND_UM, SHORTEST_BEND_UM])
    weights = (bends / (2 * np.pi * STEP_UM)) ** 4
    for _ in range(sweeps):
        side, up = frames(moved)
        onto = np.zeros((len(moved), 2))
        for part, box, corner in parts:
            across = offsets[:, None, None] * side[part][:, None, None] + deep[:, None] * up[part][:, None, None]
            light = box.at(moved[part][:, None, None] - corner + across)
            low = np.percentile(light, 20, axis=(1, 2), keepdims=True)
            weight = np.maximum(light - low, 0.0) ** 2 * near
            total = np.maximum(weight.sum(axis=(1, 2)), 1e-12)
            onto[part, 0] = (weight * offsets[:, None]).sum(axis=(1, 2)) / total
            onto[part, 1] = (weight * deep[None]).sum(axis=(1, 2)) / total
        moved = moved + onto[:, :1] * side + onto[:, 1:] * up
        moved = np.stack([bent(axis, weight) for axis, weight in zip(moved.T, weights, strict=True)], axis=1)
    return moved


def _parts(n: int, step_um: float) -> list[slice]:
    """Cut a path into parts of about `PART_UM`: the box that holds a part is small, that of a long path is not."""
    size = max(2, round(PART_UM / step_um))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


@dataclass(frozen=True, eq=False)
class Straight:
    """The neighbourhood of a path, drawn straight.

    Attributes
    ----------
    light : (s, u, w) float32
        Along the path, to its side in the image plane, and up (w is one plane of an image without depth).
    path : (s, 3) float, um
        The path's points.
    side, up : (s, 3) float
        Unit vectors of u and w.
    step_um : (3,) float
        Spacing along s, u and w.
    """

    light: NDArray[np.float32]
    path: Points
    side: Points
    up: Points
    step_um: tuple[float, float, float]

    @property
    def u_um(self) -> Points:
        """Distance of each column from the path, (u,)."""
        return np.asarray((np.arange(self.light.shape[1]) - self.light.shape[1] // 2) * self.step_um[1])

    @property
    def w_um(self) -> Points:
        """Height of each plane above the path, (w,)."""
        return np.asarray((np.arange(self.light.shape[2]) - self.light.shape[2] // 2) * self.step_um[2])

    def place(self, s: Points, u: Points, w: Points) -> Points:
        """Return where voxels (fractions allowed) of the straight picture lie in the stack, (n, 3) um."""
        numbers = np.arange(len(self.path))

        def there(of: Points) -> Points:
            return np.stack([np.interp(s, numbers, axis) for axis in of.T], axis=1)

        u_um = (u - self.light.shape[1] // 2) * self.step_um[1]
        w_um = (w - self.light.shape[2] // 2) * self.step_um[2]
        return np.asarray(there(self.path) + u_um[:, None] * there(self.side) + w_um[:, None] * there(self.up))


def straighten(stack: Stack, path: Points, *, reach_um: float, deep_um: float) -> Straight:
    """Draw the neighbourhood of a path straight.

    Parameters
    ----------
    reach_um, deep_um : float
        How far to go to the sides, and up and down.
    """
    fine = float(np.clip(stack.voxel_um[1], 0.06, 0.2))
    line = resampled(path, fine)
    # Neighbouring points of a stiff path may still turn by more than a reach allows; frames are taken from it smoothed.
    smoothed = ndimage.gaussian_filter1d(line, 0.5 / fine, axis=0, mode="nearest") if len(line) > 4 else line
    side, up = frames(smoothed)
    n_u = round(reach_um / fine)
    step_w = float(np.clip(stack.voxel_um[0] / 2, fine, 0.5))
    n_w = 0 if stack.flat else round(deep_um / step_w)
    u, w = np.arange(-n_u, n_u + 1) * fine, np.arange(-n_w, n_w + 1) * step_w
    light = np.empty((len(line), len(u), len(w)), dtype=np.float32)
    for part in _parts(len(line), fine):
        box, corner = stack.around(line[part], max(reach_um, deep_um) + 1.0)
        across = u[:, None, None] * side[part][:, None, None] + w[:, None] * up[part][:, None, None]
        light[part] = box.at(line[part][:, None, None] - corner + across)
    step = float(np.linalg.norm(line[1] - line[0])) if len(line) > 1 else fine
    return Straight(light, line, side, up, (step, fine, step_w))


def with_depth(stack: Stack, path: Points, *, steepest: float = 1.7) -> Points:
    """Return a path drawn in the plane at the depths at which the stack is brightest along it.

    The depths are those of the brightest way from end to end that rises by no more than ``steepest`` um per um, found
    by dynamic programming.

    Parameters
    ----------
    path : (n, 3) float, um
        z is not looked at.
    """
    flat = resampled(np.column_stack([np.zeros(len(path)), path[:, 1:]]), STEP_UM)
    if stack.flat:
        return flat
    planes, step = stack.light.shape[0], stack.voxel_um[0]
    grid = np.broadcast_to(flat[:, None], (len(flat), planes, 3)).copy()
    grid[..., 0] = np.arange(planes) * step
    box, corner = stack.around(grid.reshape(-1, 3), 1.0)
    light = box.blurred(0.3).at(grid - corner)
    light = light / max(float(light.max()), 1e-9)
    size = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    reach = max(1, int(np.ceil(steepest * STEP_UM / step)))
    total, came = light[0].astype(np.float64), np.zeros((len(flat), planes), dtype=np.intp)
    for k in range(1, len(flat)):
        best, source = np.full(planes, -np.inf), np.zeros(planes, dtype=np.intp)
        for jump in range(-reach, reach + 1):
            moved = np.full(planes, -np.inf)
            low, high = max(0, jump), planes + min(0, jump)
            cost = 0.1 * (jump * step) ** 2 / max(size[k - 1], 1e-3) * STEP_UM
            moved[low:high] = total[low - jump : high - jump] - cost
            better = moved > best
            best[better], source[better] = moved[better], np.arange(planes)[better] - jump
        total, came[k] = best + light[k], source
    z = np.empty(len(flat), dtype=np.intp)
    z[-1] = int(np.argmax(total))
    for k in range(len(flat) - 1, 0, -1):
        z[k - 1] = came[k, z[k]]
    flat[:, 0] = z * step
    return flat
