"""Compartments of cells as lists of pixels: which pixels are nucleus, which are ring, and sums over them.

A list holds the pixels of one object in raster order, and sums are taken in that order, so that they are the same
whichever tile the object is seen in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Compartment:
    """Pixels of n objects.

    Attributes
    ----------
    flat : (k,) uint32
        Pixels as flat indices into the image, object by object, in raster order within each.
    starts : (n + 1,) int64
        Object ``i`` has ``flat[starts[i] : starts[i + 1]]``.
    boxes : (n, 4) int64
        ``y0, y1, x0, x1`` of a half-open box that holds the object's pixels.
    shape : (height, width)
        Of the image.
    """

    flat: NDArray[np.uint32]
    starts: NDArray[np.int64]
    boxes: NDArray[np.int64]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def size(self) -> NDArray[np.int64]:
        """Number of pixels of each object."""
        return np.diff(self.starts)

    def owners(self) -> NDArray[np.int64]:
        """Return the object of each pixel."""
        return np.repeat(np.arange(len(self)), self.size)

    def total(self, image: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of an image over each object; exact for integers while it stays below 2^53."""
        return _totals(image.ravel(), self.flat, self.starts)

    def part(self, objects: slice) -> Compartment:
        """Return a run of the objects; its pixels are not copied."""
        boxes = self.boxes[objects]
        first = objects.start
        starts = self.starts[first : first + len(boxes) + 1]
        return Compartment(self.flat[starts[0] : starts[-1]], starts - starts[0], boxes, self.shape)

    def kept(self, keep: NDArray[np.bool_]) -> Compartment:
        """Return some of the objects."""
        size = self.size
        starts = np.concatenate([[0], np.cumsum(size[keep])])
        return Compartment(self.flat[np.repeat(keep, size)], starts, self.boxes[keep], self.shape)

    def moments(self, y0: int, x0: int) -> tuple[NDArray[np.float64], ...]:
        """Return centroids and axes in pixels.

        Parameters
        ----------
        y0, x0 : int
            Where the image lies on the slide.

        Returns
        -------
        y, x : (n,) float64
            Centroids from the slide's corner. Sums of coordinates are exact integers: no tile sees another centroid
            by a rounding.
        major, minor : (n,) float64
            Axes of the ellipse with the object's second moments.
        """
        size = self.size
        rows, columns, yy, xx, xy = _moments(self.flat, self.starts, self.boxes, self.shape[1])
        y = (rows + (self.boxes[:, 0] + y0) * size) / size + 0.5
        x = (columns + (self.boxes[:, 2] + x0) * size) / size + 0.5
        # A pixel is a square, not a point: its own second moment is 1/12.
        yy, xx, xy = yy / size + 1 / 12, xx / size + 1 / 12, xy / size
        root = np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
        return y, x, 4 * np.sqrt((yy + xx) / 2 + root), 4 * np.sqrt(np.maximum((yy + xx) / 2 - root, 0))


def compartment(labels: NDArray[np.uint32], chosen: NDArray[np.bool_]) -> Compartment:
    """List the pixels of some objects of a label image.

    Parameters
    ----------
    labels : (y, x) uint32, 0 = background
    chosen : (n,) bool
        Whether object ``i + 1`` is wanted.

    Raises
    ------
    InputError
        If labels go beyond n, or an object that is wanted has no pixel.
    """
    highest = int(labels.max(initial=0))
    if highest > len(chosen):
        raise InputError(f"Label {highest} in an image of {len(chosen)} objects.")
    number = np.zeros(len(chosen) + 1, dtype=np.uint32)
    number[1:][chosen] = np.arange(1, np.count_nonzero(chosen) + 1)
    listed = Compartment(*_listed(labels, number, int(number.max())), (labels.shape[0], labels.shape[1]))
    if not listed.size.all():
        raise InputError(f"Object {np.flatnonzero(chosen)[listed.size == 0][0] + 1} has no pixel.")
    return listed


def rings(labels: NDArray[np.uint32], objects: Compartment, width_px: float) -> Compartment:
    """List the pixels of a ring of a given width round each object, clipped at neighbours.

    A background pixel within ``width_px`` (centre to centre) of an object belongs to the nearest one; of two equally
    near, to the one in the direction that comes first in a fixed order, which makes the choice independent of where
    the image was cut.

    Parameters
    ----------
    labels : (y, x) uint32, 0 = background
        All objects that bound rings; each of ``objects`` is one of them.
    """
    return Compartment(*_rings(labels, objects.flat, objects.starts, objects.boxes, width_px), objects.shape)


def nearest_labels(labels: NDArray[np.uint32], objects: Compartment, width_px: float) -> NDArray[np.uint32]:
    """Return, for each pixel of some objects, the label on it or the nearest one within ``width_px``, or 0.

    The label image need not be the one the objects come from. Ties are broken as for `rings`.
    """
    return _nearest_of_pixels(labels, objects.flat, objects.starts, objects.boxes, width_px)


@compiled
def _listed(
    labels: NDArray[np.uint32], number: NDArray[np.uint32], n: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """List the pixels of objects by their new numbers 1..n; 0 in ``number`` leaves an object out."""
    height, width = labels.shape
    starts = np.zeros(n + 1, np.int64)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label:
                starts[number[label]] += 1
    starts[0] = 0
    for i in range(n):
        starts[i + 1] += starts[i]
    flat = np.empty(starts[n], np.uint32)
    boxes = np.empty((n, 4), np.int64)
    for i in range(n):
        boxes[i, 0], boxes[i, 2], boxes[i, 3] = height, width, 0
    ends = starts.copy()
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label and number[label]:
                i = number[label] - 1
                flat[ends[i]] = y * width + x
                ends[i] += 1
                boxes[i, 0] = min(boxes[i, 0], y)
                boxes[i, 1] = y + 1
                boxes[i, 2] = min(boxes[i, 2], x)
                boxes[i, 3] = max(boxes[i, 3], x + 1)
    return flat, starts, boxes


@compiled
def _totals(image: NDArray[Any], flat: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    totals = np.empty(len(starts) - 1, np.float64)
    for i in range(len(totals)):
        total = 0.0
        for k in range(starts[i], starts[i + 1]):
            total += image[flat[k]]
        totals[i] = total
    return totals


@compiled
def _moments(
    flat: NDArray[np.uint32], starts: NDArray[np.int64], boxes: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return sums of rows and columns from each box's corner, and of products of their deviations from the mean."""
    n = len(starts) - 1
    rows, columns = np.zeros(n, np.int64), np.zeros(n, np.int64)
    yy, xx, xy = np.zeros(n, np.float64), np.zeros(n, np.float64), np.zeros(n, np.float64)
    for i in range(n):
        size = starts[i + 1] - starts[i]
        corner = boxes[i, 0] * width + boxes[i, 2]
        row, column = 0, 0
        for k in range(starts[i], starts[i + 1]):
            column = flat[k] - corner - row * width
            while column >= width:
                row, column = row + 1, column - width
            rows[i] += row
            columns[i] += column
        mean_row, mean_column = rows[i] / size, columns[i] / size
        row = 0
        for k in range(starts[i], starts[i + 1]):
            column = flat[k] - corner - row * width
            while column >= width:
                row, column = row + 1, column - width
            dy, dx = row - mean_row, column - mean_column
            yy[i] += dy * dy
            xx[i] += dx * dx
            xy[i] += dy * dx
    return rows, columns, yy, xx, xy


@compiled
def _nearest(labels: NDArray[np.uint32], box: tuple[int, int, int, int], width_px: float) -> NDArray[np.uint32]:
    """Return the nearest label of each pixel of a box, within a distance; 0 where there is none.

    A way to a label is written as one number: its squared length, then its rows, then its columns, so that the least
    number is the nearest label, and of labels equally near the one further down, then the one further right. Squares
    and steps of a way add up; so the least way along each row is found first, then the least way over the rows. The
    box is laid out in one line with room round it: each step is a loop over the whole of it, which a processor does
    several pixels at a time.
    """
    y0, y1, x0, x1 = box
    reach = int(width_px)
    height, width = y1 - y0 + 2 * reach, x1 - x0 + 2 * reach
    line = np.zeros(height * width, np.uint32)
    for y in range(max(0, y0 - reach), min(labels.shape[0], y1 + reach)):
        start = (y - y0 + reach) * width - x0 + reach
        for x in range(max(0, x0 - reach), min(labels.shape[1], x1 + reach)):
            line[start + x] = labels[y, x]

    bits = 1
    while 1 << bits <= 2 * reach:
        bits += 1
    never = 1 << 62
    in_row = np.full(line.size, never, np.int64)
    least = in_row[reach : line.size - reach]
    for step in range(-reach, reach + 1):
        beside = line[reach + step : line.size - reach + step]
        way = (step * step << 2 * bits) + reach - step
        for i in range(len(least)):
            least[i] = min(least[i], way if beside[i] else never)
    edge = reach * width
    ways = np.full(line.size - 2 * edge, never, np.int64)
    for step in range(-reach, reach + 1):
        least = in_row[edge + step * width : line.size - edge + step * width]
        way = (step * step << 2 * bits) + (reach - step << bits)
        for i in range(len(ways)):
            ways[i] = min(ways[i], least[i] + way)

    farthest = int(width_px * width_px)
    nearest = np.zeros((y1 - y0, x1 - x0), np.uint32)
    for y in range(nearest.shape[0]):
        for x in range(nearest.shape[1]):
            i = y * width + reach + x
            if ways[i] >> 2 * bits <= farthest:
                down = reach - (ways[i] >> bits & (1 << bits) - 1)
                right = reach - (ways[i] & (1 << bits) - 1)
                nearest[y, x] = line[edge + i + down * width + right]
    return nearest


@compiled
def _rings(
    labels: NDArray[np.uint32],
    flat: NDArray[np.uint32],
    starts: NDArray[np.int64],
    boxes: NDArray[np.int64],
    width_px: float,
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    height, width = labels.shape
    n, reach = len(boxes), int(width_px)
    grown = np.empty((n, 4), np.int64)
    room = 0
    for i in range(n):
        grown[i, 0], grown[i, 1] = max(0, boxes[i, 0] - reach), min(height, boxes[i, 1] + reach)
        grown[i, 2], grown[i, 3] = max(0, boxes[i, 2] - reach), min(width, boxes[i, 3] + reach)
        room += (grown[i, 1] - grown[i, 0]) * (grown[i, 3] - grown[i, 2])
    # Each pixel is in one ring at most. Memory that is never written to is never taken from the system.
    ring = np.empty(min(room, height * width), np.uint32)
    ring_starts = np.zeros(n + 1, np.int64)
    end = 0
    for i in range(n):
        y0, y1, x0, x1 = grown[i, 0], grown[i, 1], grown[i, 2], grown[i, 3]
        own = labels[flat[starts[i]] // width, flat[starts[i]] % width]
        nearest = _nearest(labels, (y0, y1, x0, x1), width_px)
        for y in range(y0, y1):
            for x in range(x0, x1):
                if nearest[y - y0, x - x0] == own and labels[y, x] == 0:
                    ring[end] = y * width + x
                    end += 1
        ring_starts[i + 1] = end
    return ring[:end], ring_starts, grown


@compiled
def _nearest_of_pixels(
    labels: NDArray[np.uint32],
    flat: NDArray[np.uint32],
    starts: NDArray[np.int64],
    boxes: NDArray[np.int64],
    width_px: float,
) -> NDArray[np.uint32]:
    near = np.empty(len(flat), np.uint32)
    width = labels.shape[1]
    for i in range(len(boxes)):
        y0, y1, x0, x1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        nearest = _nearest(labels, (y0, y1, x0, x1), width_px)
        for k in range(starts[i], starts[i + 1]):
            y = flat[k] // width
            near[k] = nearest[y - y0, flat[k] - y * width - x0]
    return near
