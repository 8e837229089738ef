"""Correlation of two channels over each cell, both smoothed by the same kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.analysis.filters import TRUNCATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoquant.analysis.compartments import Compartment

CORRELATION_SIGMA_UM = 0.8
"""Smoothing before two channels are compared pixel by pixel; well below the size of a nucleus."""


def correlation(
    first: NDArray[Any],
    second: NDArray[Any],
    objects: Compartment,
    rings: Compartment,
    *,
    pixel_size_um: float,
) -> NDArray[np.float64]:
    """Return Pearson's r over the pixels of each object and its ring, both channels smoothed.

    Channels are smoothed by a Gaussian of `CORRELATION_SIGMA_UM`, mirrored at the image's edges. Sums are taken in
    raster order.

    Parameters
    ----------
    first, second : (y, x) arrays of one type

    Returns
    -------
    (n,) float64
        NaN where one of the two does not vary.
    """
    sigma = CORRELATION_SIGMA_UM / pixel_size_um
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    half = (kernel / kernel.sum())[radius:]
    return _correlations(first, second, objects.flat, objects.starts, rings.flat, rings.starts, rings.boxes, half)


@compiled
def _correlations(
    first: NDArray[Any],
    second: NDArray[Any],
    flat: NDArray[np.uint32],
    starts: NDArray[np.int64],
    ring: NDArray[np.uint32],
    ring_starts: NDArray[np.int64],
    boxes: NDArray[np.int64],
    kernel: NDArray[np.float64],
) -> NDArray[np.float64]:
    n, width, margin = len(boxes), first.shape[1], len(kernel) - 1
    correlations = np.empty(n, np.float64)
    for i in range(n):
        y0, y1, x0, x1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        stride = x1 - x0 + 2 * margin
        inside = np.zeros((y1 - y0) * stride, np.bool_)
        _mark(inside, stride, flat, starts[i], starts[i + 1], y0 * width + x0, width)
        _mark(inside, stride, ring, ring_starts[i], ring_starts[i + 1], y0 * width + x0, width)
        one = _smoothed(_window(first, y0 - margin, y1 + margin, x0 - margin, x1 + margin), stride, kernel)
        two = _smoothed(_window(second, y0 - margin, y1 + margin, x0 - margin, x1 + margin), stride, kernel)
        correlations[i] = _pearson(one, two, inside)
    return correlations


@compiled
def _mark(
    inside: NDArray[np.bool_], stride: int, flat: NDArray[np.uint32], start: int, end: int, corner: int, width: int
) -> None:
    """Mark pixels in a box whose rows are ``stride`` apart; it begins at flat index ``corner`` of the image."""
    row = 0
    for k in range(start, end):
        column = flat[k] - corner - row * width
        while column >= width:
            row, column = row + 1, column - width
        inside[row * stride + column] = True


@compiled
def _window(image: NDArray[Any], y0: int, y1: int, x0: int, x1: int) -> NDArray[np.float64]:
    """Return a box of an image in one line; beyond its edges the image goes on as in a mirror."""
    height, width = image.shape
    line = np.empty((y1 - y0) * (x1 - x0), np.float64)
    at = 0
    for y in range(y0, y1):
        row = y % (2 * height)
        row = min(row, 2 * height - 1 - row)
        if x0 >= 0 and x1 <= width:
            for x in range(x0, x1):
                line[at + x - x0] = image[row, x]
        else:
            for x in range(x0, x1):
                column = x % (2 * width)
                line[at + x - x0] = image[row, min(column, 2 * width - 1 - column)]
        at += x1 - x0
    return line


@compiled
def _smoothed(line: NDArray[np.float64], stride: int, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle of a window smoothed by a symmetric kernel, given from its centre outwards.

    The window is one long line, which a processor does several pixels at a time, and so is the result: it begins at
    the first pixel of the middle, and its rows are still ``stride`` apart. Every pixel is summed in the same order,
    from the ends of the kernel inwards, columns first: its value does not depend on the window.
    """
    margin = len(kernel) - 1
    for apart in (stride, 1):
        room = margin * apart
        smoothed = line[room : line.size - room] * kernel[0]
        for step in range(margin, 0, -1):
            before = line[room - step * apart :]
            after = line[room + step * apart :]
            weight = kernel[step]
            for i in range(len(smoothed)):
                smoothed[i] += (before[i] + after[i]) * weight
        line = smoothed
    return line


@compiled
def _pearson(one: NDArray[np.float64], two: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Return the correlation of two lines where a third is true; NaN where one of the two does not vary."""
    n, total_one, total_two = 0, 0.0, 0.0
    for k in range(len(one)):
        if inside[k]:
            n += 1
            total_one += one[k]
            total_two += two[k]
    mean_one, mean_two = total_one / n, total_two / n
    covariance, spread_one, spread_two = 0.0, 0.0, 0.0
    for k in range(len(one)):
        if inside[k]:
            a, b = one[k] - mean_one, two[k] - mean_two
            covariance += a * b
            spread_one += a * a
            spread_two += b * b
    spread = np.sqrt(spread_one * spread_two)
    return float(covariance / spread) if spread > 0 else np.nan
