"""How much a place looks like a bright tube, at radii in um, in voxels of any shape.

The second derivatives of a tube are strongly negative in two directions across it and near zero along it; of a blob,
in three; of a sheet, in one (Sato et al. 1998, Med Image Anal 2:143). Across a tube the weaker of
the two counts: the sheet between two planes is no tube.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.compiled import compiled
from histoquant.analysis.ridge import Stack

COARSE_UM = 0.25
"""Dendrites are looked for in pixels of about this size; they are thicker than two."""

STRIP_VOXELS = 6_000_000
"""Voxels worked on at a time, so that memory does not grow with the stack."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """A stack in means of k x k pixels of about `COARSE_UM`, above the ground, made as it is asked for.

    Whole it would be a second copy of a large stack.

    Attributes
    ----------
    voxel_um : (z, y, x)
        Of the coarse voxels.
    shape : (planes, height, width)
    """

    stack: Stack
    k: int
    voxel_um: tuple[float, float, float]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, stack: Stack) -> Coarse:
        """Return a stack as it is searched for dendrites."""
        k = max(1, int(COARSE_UM / stack.voxel_um[1] + 1e-6))
        planes, height, width = stack.light.shape
        z, y, x = stack.voxel_um
        return cls(stack, k, (z, y * k, x * k), (planes, height // k, width // k))

    def rows(self, first: int, end: int) -> Stack:
        """Return some rows of all planes."""
        return Stack(np.stack([self.plane(z, first, end) for z in range(self.shape[0])]), self.voxel_um)

    def plane(self, z: int, first: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Return a plane, or some rows of it."""
        k, (_, height, width) = self.k, self.shape
        fine = self.stack.light[z, first * k : k * (height if end is None else end), : k * width]
        means = fine.reshape(fine.shape[0] // k, k, width, k).mean(axis=(1, 3), dtype=np.float32)
        return np.asarray(means - np.float32(self.stack.ground), dtype=np.float32)


def tubularity(stack: Coarse, radii_um: Sequence[float]) -> NDArray[np.float32]:
    """Return how much each voxel looks like the middle of a bright tube, the best over some radii; 0 where not at all.

    It is computed in strips with a halo, and is the same for any height of the strips.

    Parameters
    ----------
    radii_um : sequence of float
        Of the tubes; a tube of radius r answers best at sigma = r / sqrt(2).

    Returns
    -------
    (z, y, x) float32, in units of light
    """
    found = np.zeros(stack.shape, dtype=np.float32)
    height = stack.shape[1]
    sigmas = [radius / np.sqrt(2) for radius in radii_um]
    halo = int(np.ceil(4 * max(sigmas) / stack.voxel_um[1])) + 2
    for y0, y1 in strips(stack.shape):
        top, bottom = max(0, y0 - halo), min(height, y1 + halo)
        part, here = stack.rows(top, bottom), slice(y0 - top, y1 - top)
        for sigma in sigmas:
            np.maximum(found[:, y0:y1], _tube_answer(part, sigma)[:, here], out=found[:, y0:y1])
    return found


def strips(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the rows, first and end, of strips of about `STRIP_VOXELS` of a stack of a shape."""
    planes, height, width = shape
    rows = max(16, STRIP_VOXELS // (planes * width))
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def _tube_answer(stack: Stack, sigma_um: float) -> NDArray[np.float32]:
    # Coarse planes blur z by themselves; a sigma below 0.6 of a plane would see single planes.
    sigma = [sigma_um / v for v in stack.voxel_um]
    sigma[0] = 0.0 if stack.flat else max(sigma[0], 0.6)
    smooth = ndimage.gaussian_filter(stack.light, sigma, mode="nearest", truncate=3.0)
    answer: NDArray[np.float32] = np.zeros_like(smooth)
    _bend_across(smooth, sigma[0], sigma[1], sigma[2], answer)
    return answer


@compiled
def _bend_across(
    light: NDArray[np.float32], scale_z: float, scale_y: float, scale_x: float, answer: NDArray[np.float32]
) -> None:
    """Fill in sqrt(low x middle) - |high| of the eigenvalues of the second derivatives, where low and middle are < 0.

    The derivatives are in units of the scales. Eigenvalues of a symmetric 3 x 3 matrix have a closed form (Smith 1961,
    Commun ACM 4:168).
    """
    planes, height, width = light.shape
    for z in range(planes):
        up, down = max(z - 1, 0), min(z + 1, planes - 1)
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                here = 2 * light[z, y, x]
                yy = (light[z, y - 1, x] + light[z, y + 1, x] - here) * scale_y * scale_y
                xx = (light[z, y, x - 1] + light[z, y, x + 1] - here) * scale_x * scale_x
                if yy + xx >= 0:
                    continue
                xy = light[z, y + 1, x + 1] + light[z, y - 1, x - 1] - light[z, y + 1, x - 1] - light[z, y - 1, x + 1]
                xy *= 0.25 * scale_y * scale_x
                if planes == 1:
                    half = (yy + xx) / 2
                    root = math.sqrt((yy - xx) * (yy - xx) / 4 + xy * xy)
                    answer[z, y, x] = max(root - half - abs(half + root), 0.0)
                    continue
                zz = (light[up, y, x] + light[down, y, x] - here) * scale_z * scale_z
                zy = light[down, y + 1, x] + light[up, y - 1, x] - light[down, y - 1, x] - light[up, y + 1, x]
                zx = light[down, y, x + 1] + light[up, y, x - 1] - light[down, y, x - 1] - light[up, y, x + 1]
                zy *= 0.25 * scale_z * scale_y
                zx *= 0.25 * scale_z * scale_x
                off = xy * xy + zy * zy + zx * zx
                mean = (zz + yy + xx) / 3
                a, b, c = zz - mean, yy - mean, xx - mean
                size = math.sqrt((a * a + b * b + c * c + 2 * off) / 6)
                if size == 0:
                    continue
                det = a * (b * c - xy * xy) - zy * (zy * c - xy * zx) + zx * (zy * xy - b * zx)
                angle = math.acos(min(max(det / (2 * size * size * size), -1.0), 1.0)) / 3
                high = mean + 2 * size * math.cos(angle)
                low = mean + 2 * size * math.cos(angle + 2 * math.pi / 3)
                middle = 3 * mean - high - low
                if middle < 0:
                    answer[z, y, x] = max(math.sqrt(low * middle) - abs(high), 0.0)
