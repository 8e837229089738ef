"""Bring an image to another pixel size, and labels back to the first one.

Scales are fractions, pixels of the result per pixels of the image. With n / m two crops whose corners lie m pixels
apart are laid on one grid, and where n is a power of 2 places are computed without rounding: they agree to the bit.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resampled(image: NDArray[np.float32], scale: Fraction, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return an image on a grid of another pitch, beyond its edges by reflection.

    Pixel i of the result lies at (i + 0.5) / scale of the image, its corner being 0. A triangle is laid over the image
    there: linear interpolation when pixels get smaller, an average over what a new pixel covers when they get larger.
    At scale 1 nothing changes.

    Parameters
    ----------
    image : (y, x) float32
        At least one pixel.
    scale : Fraction
        Pixels of the result per pixel of the image.
    shape : (int, int)
        Of the result.
    """
    rows, columns = (_taps(n, scale, m) for n, m in zip(image.shape, shape, strict=True))
    return _resampled(np.ascontiguousarray(image), *rows, *columns)


def _taps(n: int, scale: Fraction, m: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return which pixels of a line of n make up each of m new ones, and their weights: both (m, taps)."""
    reach = max(1.0, float(1 / scale))
    centre = (2 * np.arange(m) + 1) * scale.denominator / (2 * scale.numerator) - 0.5
    place = np.ceil(centre - reach).astype(np.int64)[:, None] + np.arange(math.floor(2 * reach) + 1)
    weight = np.maximum(1 - np.abs(place - centre[:, None]) / reach, 0)
    weight /= weight.sum(axis=1, keepdims=True)
    period = max(1, 2 * n - 2)
    folded = place % period
    return np.minimum(folded, period - folded).clip(0, n - 1).astype(np.int32), weight.astype(np.float32)


@compiled
def _resampled(
    image: NDArray[np.float32],
    row_of: NDArray[np.int32],
    row_weight: NDArray[np.float32],
    column_of: NDArray[np.int32],
    column_weight: NDArray[np.float32],
) -> NDArray[np.float32]:
    height, width = len(row_of), len(column_of)
    result = np.zeros((height, width), dtype=np.float32)
    line = np.empty(image.shape[1], dtype=np.float32)
    for y in range(height):
        line[:] = 0
        for k in range(row_of.shape[1]):
            weight = row_weight[y, k]
            if weight != 0:
                source = image[row_of[y, k]]
                for x in range(len(line)):
                    line[x] += weight * source[x]
        out = result[y]
        for x in range(width):
            total = np.float32(0)
            for k in range(column_of.shape[1]):
                total += column_weight[x, k] * line[column_of[x, k]]
            out[x] = total
    return result


def labels_at(
    labels: NDArray[np.uint32], level: NDArray[np.float32], limit: float, scale: Fraction, shape: tuple[int, int]
) -> NDArray[np.uint32]:
    """Return labels on the grid of an image that `resampled` was given.

    A pixel is in an object where the level, interpolated between the four pixels around, is above the limit. It then
    belongs to the nearest of the four that is in one.

    Parameters
    ----------
    labels : (y, x) uint32
        0 = background.
    level : (y, x) float32
        Above the limit in objects.
    limit : float
    scale : Fraction
        As `resampled` was given.
    shape : (int, int)
        Of the result.
    """
    axes: list[Any] = []
    for n, m in zip(labels.shape, shape, strict=True):
        # In parts of a pixel, as whole numbers: equal places in two crops then have equal shares.
        parts = 2 * scale.denominator
        place = np.clip((2 * np.arange(m) + 1) * scale.numerator - scale.denominator, 0, (n - 1) * parts)
        low = np.minimum(place // parts, max(n - 2, 0))
        axes += [low.astype(np.int32), ((place - low * parts) / parts).astype(np.float32)]
    return _labels_at(labels, level, np.float32(limit), *axes)


@compiled
def _labels_at(
    labels: NDArray[np.uint32],
    level: NDArray[np.float32],
    limit: np.float32,
    row_of: NDArray[np.int32],
    row_share: NDArray[np.float32],
    column_of: NDArray[np.int32],
    column_share: NDArray[np.float32],
) -> NDArray[np.uint32]:
    result = np.zeros((len(row_of), len(column_of)), dtype=np.uint32)
    one = np.float32(1)
    for i in range(len(row_of)):
        top, dy = row_of[i], row_share[i]
        bottom = min(top + 1, labels.shape[0] - 1)
        out = result[i]
        for j in range(len(column_of)):
            left, dx = column_of[j], column_share[j]
            right = min(left + 1, labels.shape[1] - 1)
            a, b, c, d = labels[top, left], labels[top, right], labels[bottom, left], labels[bottom, right]
            if a | b | c | d == 0:
                continue
            upper = (one - dx) * level[top, left] + dx * level[top, right]
            lower = (one - dx) * level[bottom, left] + dx * level[bottom, right]
            if not (one - dy) * upper + dy * lower > limit:
                continue
            nearest, best = np.uint32(0), np.float32(-1)
            for label, share in (
                (a, (one - dy) * (one - dx)),
                (b, (one - dy) * dx),
                (c, dy * (one - dx)),
                (d, dy * dx),
            ):
                if label > 0 and share > best:
                    nearest, best = label, share
            out[j] = nearest
    return result
