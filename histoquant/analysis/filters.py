"""Neighbourhood filters whose value at a pixel is the same, to the last bit, in any crop that holds its reach.

Sums run in one fixed order (centre, then pairs outwards) and never as a running sum; minima, maxima and distances are
exact. Beyond the image its edge pixels go on, except where a function says otherwise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRUNCATE = 3.0
"""Where a Gaussian is cut off, in standard deviations."""

STRETCH_PX = 64
"""Pixels looked at together where most stretches hold no change: many at a time, which a search one by one is not."""


def gauss(image: NDArray[np.float32], sigma: float, truncate: float = TRUNCATE) -> NDArray[np.float32]:
    """Return an image smoothed by a Gaussian that is cut off at ``truncate`` standard deviations.

    Parameters
    ----------
    image : (y, x) float32
    sigma : float
        In pixels.
    """
    weights = _bell(sigma, truncate)
    return _separable(np.ascontiguousarray(image), weights, weights)


def blob_answer(image: NDArray[np.float32], sigma: float, truncate: float = TRUNCATE) -> NDArray[np.float32]:
    """Return how strongly bright blobs answer: the negative Laplacian of Gaussian, normalised by sigma squared.

    Parameters
    ----------
    image : (y, x) float32
    sigma : float
        In pixels. A disc of diameter d answers strongest at d / sqrt(8) (Lindeberg 1998).
    """
    bell = _bell(sigma, truncate)
    steps = np.arange(len(bell), dtype=np.float32) / np.float32(sigma)
    bend = bell * (1 - steps * steps)
    # A kernel cut off does not sum to 0 by itself; an even field must not answer.
    bend -= bell * (bend[0] + 2 * bend[1:].sum())
    image = np.ascontiguousarray(image)
    answer = _separable(image, bend, bell)
    answer += _separable(image, bell, bend)
    return answer


def _bell(sigma: float, truncate: float) -> NDArray[np.float32]:
    """Return the centre and one side of a Gaussian kernel that sums to 1."""
    weights = np.exp(-0.5 * (np.arange(int(truncate * sigma + 0.5) + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    return weights.astype(np.float32)


@compiled
def _separable(
    image: NDArray[np.float32], along_y: NDArray[np.float32], along_x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the sum of symmetric neighbours, first along columns, then along rows; the centre's weight comes first."""
    height, width = image.shape
    radius = len(along_x) - 1
    result = np.empty_like(image)
    line = np.empty(width + 2 * radius, dtype=np.float32)
    for y in range(height):
        inner = line[radius : radius + width]
        row = image[y]
        for x in range(width):
            inner[x] = along_y[0] * row[x]
        for k in range(1, len(along_y)):
            above, below, weight = image[max(y - k, 0)], image[min(y + k, height - 1)], along_y[k]
            for x in range(width):
                inner[x] += weight * (above[x] + below[x])
        line[:radius] = inner[0]
        line[radius + width :] = inner[width - 1]
        out = result[y]
        for x in range(width):
            out[x] = along_x[0] * inner[x]
        for k in range(1, radius + 1):
            left, right = line[radius - k : radius - k + width], line[radius + k : radius + k + width]
            weight = along_x[k]
            for x in range(width):
                out[x] += weight * (left[x] + right[x])
    return result


def opened(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the grey opening of an image by a square: what is narrower along an axis is taken off.

    Parameters
    ----------
    image : (y, x) float32
    side : int
        Of the square, in pixels; an even one is made odd by one more.
    """
    side = side | 1
    negative = _dilated(-image, side)
    return _dilated(np.negative(negative, out=negative), side)


@compiled
def _dilated(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the maximum over a square of odd side (van Herk 1992 along columns, doubled steps along rows)."""
    height, width = image.shape
    radius = side // 2
    result = np.empty_like(image)
    if not image.size:
        return result
    low = np.float32(-np.inf)
    suffix = np.empty((side, width), dtype=np.float32)
    prefix = np.empty(width, dtype=np.float32)
    one, two = np.empty(width + side, dtype=np.float32), np.empty(width + side, dtype=np.float32)
    for first in range(0, height, side):
        # Windows of rows y - radius ... y + radius for y = first ...: the tail of one block of rows, the head of the
        # next.
        start = first - radius
        for j in range(side - 1, -1, -1):
            row = image[min(max(start + j, 0), height - 1)]
            here = suffix[j]
            if j == side - 1:
                here[:] = row
            else:
                after = suffix[j + 1]
                for x in range(width):
                    here[x] = max(row[x], after[x])
        prefix[:] = low
        for j in range(min(side, height - first)):
            column = one[radius : radius + width]
            tail = suffix[j]
            if j:
                row = image[min(start + side + j - 1, height - 1)]
                for x in range(width):
                    prefix[x] = max(prefix[x], row[x])
            for x in range(width):
                column[x] = max(tail[x], prefix[x])
            one[:radius] = low
            one[radius + width :] = low
            source, target, reach = one, two, 1
            while 2 * reach <= side:
                near, far, out = source[: width + side - reach], source[reach:], target[: width + side - reach]
                for x in range(width + side - reach):
                    out[x] = max(near[x], far[x])
                # What the last step could not pair up lies beyond every window.
                target[width + side - reach :] = low
                source, target, reach = target, source, 2 * reach
            near, far, out = source[:width], source[side - reach : side - reach + width], result[first + j]
            for x in range(width):
                out[x] = max(near[x], far[x])
    return result


@compiled
def eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a (y, x) mask whose four neighbours are in it too; beyond the image nothing is."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y in range(1, height - 1):
        above, row, below, out = mask[y - 1], mask[y], mask[y + 1], result[y]
        left, right = row[: width - 2], row[2:]
        for x in range(1, width - 1):
            out[x] = above[x] & below[x] & row[x]
        inner = out[1 : width - 1]
        for x in range(width - 2):
            inner[x] &= left[x] & right[x]
    return result


@compiled
def dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a (y, x) mask and their four neighbours."""
    height, width = mask.shape
    result = mask.copy()
    for y in range(height):
        row, out = mask[y], result[y]
        above, below = mask[max(y - 1, 0)], mask[min(y + 1, height - 1)]
        for x in range(width):
            out[x] |= above[x] | below[x]
        left, right, inner, outer = row[: width - 1], row[1:], out[1:], out[: width - 1]
        for x in range(width - 1):
            inner[x] |= left[x]
        for x in range(width - 1):
            outer[x] |= right[x]
    return result


def brushed(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the opening of a (y, x) mask by a diamond: filaments thinner than it are taken off."""
    for _ in range(radius):
        mask = eroded(mask)
    for _ in range(radius):
        mask = dilated(mask)
    return mask


@compiled
def without_holes(mask: NDArray[np.bool_], extent: float) -> NDArray[np.bool_]:
    """Return a (y, x) mask with its holes filled that are no wider and no higher than an extent in pixels.

    A hole is ground connected along rows and columns; a gap at the image's rim is none.
    """
    height, width = mask.shape
    runs = _ground_runs(mask)
    line, first, last = runs[0], runs[1], runs[2]
    n = len(line)
    # Each run points to an earlier one of its component, and the root knows the extent.
    parent = np.arange(n).astype(np.int32)
    top, bottom, left, right = line.copy(), line.copy(), first.copy(), last.copy()
    above, row_start = 0, 0
    for run in range(n):
        if run and line[run] != line[run - 1]:
            # Runs of the row before, when that has any.
            above = row_start if line[run] == line[run - 1] + 1 else run
            row_start = run
        elif run == 0:
            row_start = 0
        while above < row_start and last[above] < first[run]:
            above += 1
        other = above
        while other < row_start and first[other] <= last[run]:
            a, b = run, other
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a != b:
                low, high = min(a, b), max(a, b)
                parent[high] = low
                top[low], bottom[low] = min(top[low], top[high]), max(bottom[low], bottom[high])
                left[low], right[low] = min(left[low], left[high]), max(right[low], right[high])
            other += 1
    filled = mask.copy()
    for run in range(n):
        root = run
        while parent[root] != root:
            root = parent[root]
        inside = top[root] > 0 and left[root] > 0 and bottom[root] < height - 1 and right[root] < width - 1
        small = bottom[root] - top[root] + 1 <= extent and right[root] - left[root] + 1 <= extent
        if inside and small:
            filled[line[run], first[run] : last[run] + 1] = True
    return filled


@compiled
def _ground_runs(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return row, first and last column of the runs of ground, in raster order."""
    height, width = mask.shape
    n = 0
    for y in range(height):
        before, here = mask[y][: width - 1], mask[y][1:]
        n += not mask[y, 0]
        for x in range(width - 1):
            n += before[x] & ~here[x]
    runs = np.empty((3, n), dtype=np.int32)
    n = 0
    for y in range(height):
        row = mask[y]
        if not row[0]:
            runs[0, n], runs[1, n] = y, 0
            n += 1
        for start in range(0, width - 1, STRETCH_PX):
            stop = min(start + STRETCH_PX, width - 1)
            before, here = row[start:stop], row[start + 1 : stop + 1]
            changes = 0
            for x in range(stop - start):
                changes += before[x] ^ here[x]
            if not changes:
                continue
            for x in range(start, stop):
                if row[x] and not row[x + 1]:
                    runs[0, n], runs[1, n] = y, x + 1
                    n += 1
                elif row[x + 1] and not row[x]:
                    runs[2, n - 1] = x
        if not row[width - 1]:
            runs[2, n - 1] = width - 1
    return runs


@compiled
def capped_distance(mask: NDArray[np.bool_], cap: float) -> NDArray[np.float32]:
    """Return how far each pixel of a mask is from the ground, centre to centre, in pixels and at most ``cap``.

    Beyond the image there is no ground.

    Parameters
    ----------
    mask : (y, x) bool
    cap : float
        Below 255.

    Returns
    -------
    (y, x) float32, 0 = ground
    """
    height, width = mask.shape
    reach = math.ceil(cap)
    limit = np.uint8(min(reach, 254) + 1)
    vertical = np.empty((height, width), dtype=np.uint8)
    for y in range(height):
        row, out = mask[y], vertical[y]
        above = vertical[max(y - 1, 0)]
        for x in range(width):
            further = limit if y == 0 else min(limit, np.uint8(above[x] + 1))
            out[x] = further if row[x] else np.uint8(0)
    for y in range(height - 2, -1, -1):
        below, out = vertical[y + 1], vertical[y]
        for x in range(width):
            out[x] = min(out[x], np.uint8(below[x] + 1))
    result = np.zeros((height, width), dtype=np.float32)
    for y in range(height):
        line, out = vertical[y], result[y]
        for x in range(width):
            if line[x] == 0:
                continue
            best = np.int64(line[x]) * np.int64(line[x])
            for k in range(1, reach + 1):
                if k * k >= best:
                    break
                if x >= k:
                    best = min(best, np.int64(line[x - k]) * np.int64(line[x - k]) + k * k)
                if x + k < width:
                    best = min(best, np.int64(line[x + k]) * np.int64(line[x + k]) + k * k)
            out[x] = np.float32(min(math.sqrt(best), cap))
    return result
