"""Correlation of two channels over each cell, both smoothed by the same kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoquant.analysis.compartments import Compartment

CORRELATION_SIGMA_UM = 0.8
"""Smoothing before two channels are compared pixel by pixel; well below the size of a nucleus."""

TRUNCATE = 3.0
"""Standard deviations at which the kernel ends."""


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
    n, width = len(boxes), first.shape[1]
    correlations = np.full(n, np.nan)
    for i in range(n):
        y0, y1, x0, x1 = boxes[i]
        inside = np.zeros((y1 - y0, x1 - x0), np.bool_)
        _mark(inside, flat[starts[i] : starts[i + 1]], y0 * width + x0, width)
        _mark(inside, ring[ring_starts[i] : ring_starts[i + 1]], y0 * width + x0, width)
        one = _smoothed(_mirrored(first, (y0, y1, x0, x1), len(kernel) - 1), kernel)
        two = _smoothed(_mirrored(second, (y0, y1, x0, x1), len(kernel) - 1), kernel)
        correlations[i] = _pearson(one, two, inside)
    return correlations


@compiled
def _mark(inside: NDArray[np.bool_], flat: NDArray[np.uint32], corner: int, width: int) -> None:
    """Mark pixels in a box that begins at a flat index of an image so many pixels wide."""
    row = 0
    for k in range(len(flat)):
        column = flat[k] - corner - row * width
        while column >= width:
            row, column = row + 1, column - width
        inside[row, column] = True


@compiled
def _mirrored(image: NDArray[Any], box: tuple[int, int, int, int], margin: int) -> NDArray[np.float64]:
    """Return a box of an image with a margin; beyond its edges the image goes on as in a mirror."""
    y0, y1, x0, x1 = box
    height, width = image.shape
    window = np.empty((y1 - y0 + 2 * margin, x1 - x0 + 2 * margin), np.float64)
    for row in range(len(window)):
        y = (y0 - margin + row) % (2 * height)
        source = image[min(y, 2 * height - 1 - y)]
        if x0 >= margin and x1 + margin <= width:
            source = source[x0 - margin : x1 + margin]
            for column in range(window.shape[1]):
                window[row, column] = source[column]
        else:
            for column in range(window.shape[1]):
                x = (x0 - margin + column) % (2 * width)
                window[row, column] = source[min(x, 2 * width - 1 - x)]
    return window


@compiled
def _smoothed(window: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle of a window smoothed by a symmetric kernel, given from its centre outwards.

    Every pixel is summed in the same order, from the ends of the kernel inwards, columns first: its value does not
    depend on the window. The window is taken as one long line, which a processor does several pixels at a time.
    """
    margin = len(kernel) - 1
    height, width = window.shape
    window = window.ravel()
    for stride in (width, 1):
        room = margin * stride
        smoothed = np.empty(window.size - 2 * room, np.float64)
        middle = window[room : window.size - room]
        for i in range(len(smoothed)):
            smoothed[i] = middle[i] * kernel[0]
        for step in range(margin, 0, -1):
            shift, weight = step * stride, kernel[step]
            before = window[room - shift : window.size - room - shift]
            after = window[room + shift : window.size - room + shift]
            for i in range(len(smoothed)):
                smoothed[i] += (before[i] + after[i]) * weight
        window = smoothed
    # The line now begins at the first pixel of the middle, and its rows are still as far apart.
    inside = np.empty((height - 2 * margin, width - 2 * margin), np.float64)
    for y in range(len(inside)):
        inside[y] = window[y * width : y * width + width - 2 * margin]
    return inside


@compiled
def _pearson(one: NDArray[np.float64], two: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    n, total_one, total_two = 0, 0.0, 0.0
    for y in range(one.shape[0]):
        for x in range(one.shape[1]):
            if inside[y, x]:
                n += 1
                total_one += one[y, x]
                total_two += two[y, x]
    mean_one, mean_two = total_one / n, total_two / n
    covariance, spread_one, spread_two = 0.0, 0.0, 0.0
    for y in range(one.shape[0]):
        for x in range(one.shape[1]):
            if inside[y, x]:
                a, b = one[y, x] - mean_one, two[y, x] - mean_two
                covariance += a * b
                spread_one += a * a
                spread_two += b * b
    spread = np.sqrt(spread_one * spread_two)
    return float(covariance / spread) if spread > 0 else np.nan
