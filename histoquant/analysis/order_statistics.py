"""Order statistics by selection: what a share of an object's pixels reach, and the median round a point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoquant.analysis.compartments import Compartment


def reached_by(image: NDArray[Any], objects: Compartment, fraction: float) -> NDArray[np.float64]:
    """Return the largest value that at least ``fraction`` of an object's pixels reach; NaN without pixels."""
    size = objects.size
    # The tolerance keeps 0.4 x 5 pixels at 2, not 3, whatever the rounding of 0.4.
    needed = np.maximum(1, np.ceil(fraction * size - 1e-9)).astype(np.int64)
    return _ranked(image.ravel(), objects.flat, objects.starts, size - needed)


@compiled
def _ranked(
    image: NDArray[Any], flat: NDArray[np.uint32], starts: NDArray[np.int64], rank: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the value with a given rank, from 0 for the least, among the pixels of each object."""
    n = len(rank)
    ranked = np.full(n, np.nan)
    most = 0
    for i in range(n):
        most = max(most, starts[i + 1] - starts[i])
    values = np.empty(most, np.float64)
    for i in range(n):
        size = starts[i + 1] - starts[i]
        for k in range(size):
            values[k] = image[flat[starts[i] + k]]
        if size:
            ranked[i] = _selected(values, size, rank[i])
    return ranked


def medians_round(
    raw: NDArray[Any],
    labels: NDArray[np.uint32],
    points: NDArray[np.int64],
    offsets: NDArray[np.int64],
    least: int,
) -> NDArray[np.float64]:
    """Return the median of each channel over the free pixels among those at given offsets from each point.

    Parameters
    ----------
    raw : (c, y, x) array
    labels : (y, x) uint32, 0 = free
    points, offsets : (n, 2), (k, 2) int64
        Rows and columns.
    least : int
        Free pixels that are needed.

    Returns
    -------
    (c, n) float64
        Of an even number of pixels, the mean of the middle two; NaN where there are too few.
    """
    medians = np.full((len(raw), len(points)), np.nan)
    _medians(raw.reshape(len(raw), labels.size), labels.ravel(), labels.shape, points, offsets, least, medians)
    return medians


@compiled
def _medians(
    raw: NDArray[Any],
    labels: NDArray[np.uint32],
    shape: tuple[int, int],
    points: NDArray[np.int64],
    offsets: NDArray[np.int64],
    least: int,
    medians: NDArray[np.float64],
) -> None:
    """Fill in the medians where there are enough free pixels; images are flat here."""
    height, width = shape
    free, values = np.empty(len(offsets) + 1, np.int64), np.empty(len(offsets), np.float64)
    for i in range(len(points)):
        size = 0
        for k in range(len(offsets)):
            y, x = points[i, 0] + offsets[k, 0], points[i, 1] + offsets[k, 1]
            if y >= 0 and y < height and x >= 0 and x < width:
                free[size] = y * width + x
                size += labels[free[size]] == 0
        if size < least:
            continue
        for c in range(len(raw)):
            for k in range(size):
                values[k] = raw[c, free[k]]
            middle = size // 2
            median = _selected(values, size, middle)
            if size % 2 == 0:
                # Selection has left the lower half before the middle.
                below = values[0]
                for k in range(1, middle):
                    below = max(below, values[k])
                median = (below + median) / 2
            medians[c, i] = median


@compiled
def _selected(values: NDArray[np.float64], size: int, rank: int) -> float:
    """Return which of the first ``size`` values has a given rank, from 0 for the least.

    Afterwards nothing before that place is larger.
    """
    low, high = 0, size
    while True:
        first, second, third = values[low], values[(low + high) // 2], values[high - 1]
        pivot = max(min(first, second), min(max(first, second), third))
        # What is smaller than the pivot goes to the front; written without a branch, because a guess at its outcome
        # would be wrong every other time.
        front = low
        for k in range(low, high):
            value = values[k]
            values[k] = values[front]
            values[front] = value
            front += value < pivot
        if rank < front:
            high = front
            continue
        if front > low:
            low = front
            continue
        # Nothing is smaller: what equals the pivot comes next.
        for k in range(low, high):
            value = values[k]
            values[k] = values[front]
            values[front] = value
            front += value == pivot
        if rank < front:
            return float(pivot)
        low = front
