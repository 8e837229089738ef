"""Objects of a marker that lie on no nucleus: bodies, debris and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compartments import Compartment, nearest_labels, rings
from histoquant.analysis.compiled import compiled
from histoquant.analysis.correlation import correlation
from histoquant.analysis.measure import Pixels
from histoquant.model.recipe import Measure
from histoquant.model.slide import Box

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BAND_PX = 128
"""Rows compared at a time: few enough for the processor's cache."""


def marker_objects(
    pixels: Pixels,
    labels: NDArray[np.uint32],
    *,
    channel: int,
    counterstain: int,
    unstained: Sequence[int],
    floor: float,
    max_object_um: float,
    settings: Measure,
) -> tuple[pd.DataFrame, NDArray[np.uint32]]:
    """Find objects of a marker that lie on no nucleus: less than half of them, as blur makes neighbours touch.

    Parameters
    ----------
    channel, counterstain : int
        Of the marker, and of DNA.
    unstained : sequence of int
        Channels that show autofluorescence only.
    floor : float
        Intensity above the slide-wide background from which pixels belong to an object, raw units.
    max_object_um : float
        What is longer along an axis is no object but haze or a fold. No tile sees such a thing whole, and all agree on
        that.

    Returns
    -------
    objects : DataFrame
        One row per object: ``y_px``, ``x_px``, ``area_px``, ``value`` and ``dna_value`` (mean of marker and of
        counterstain above the slide-wide background), ``attached_label`` (the nucleus within ``attach_um`` that most of
        its pixels are near to, or 0), ``correlation`` (with an unstained channel, smoothed, over the object and
        ``ring_um`` round it) and ``unstained_value`` (both the strongest over the unstained channels; NaN without any).
    labels : (y, x) uint32, 0 = none
        Row ``i`` is number ``i + 1``.
    """
    import pandas as pd

    raw, px = pixels.native, pixels.pixel_size_um
    each = _off_nuclei(
        touching(raw[channel], lambda rows: pixels.background.at(_rows(pixels.box, rows), channel), floor),
        labels,
        least_px=settings.min_object_um2 / px**2,
        longest_px=max_object_um / px,
    )
    n = len(each)
    objects = np.zeros(labels.shape, dtype=np.uint32)
    objects.ravel()[each.flat] = each.owners() + 1
    y, x, _, _ = each.moments(pixels.box.y0, pixels.box.x0)

    rows, columns = np.divmod(each.flat.astype(np.int64), labels.shape[1])

    def mean_above(index: int) -> NDArray[np.float64]:
        under = pixels.background.at_points(rows + pixels.box.y0, columns + pixels.box.x0, index)
        above = raw[index].ravel()[each.flat] - under
        return np.bincount(each.owners(), above, minlength=n) / each.size

    strongest, glow = np.full(n, np.nan), np.full(n, np.nan)
    around = rings(objects, each, settings.ring_um / px)
    for other in unstained:
        strongest = np.fmax(strongest, correlation(raw[channel], raw[other], each, around, pixel_size_um=px))
        glow = np.fmax(glow, mean_above(other))
    table = pd.DataFrame(
        {
            "y_px": y,
            "x_px": x,
            "area_px": each.size,
            "value": mean_above(channel),
            "dna_value": mean_above(counterstain),
            "attached_label": _most_near(nearest_labels(labels, each, settings.attach_um / px), each),
            "correlation": strongest,
            "unstained_value": glow,
        }
    )
    return table, objects


def _off_nuclei(found: Compartment, labels: NDArray[np.uint32], *, least_px: float, longest_px: float) -> Compartment:
    """Return the objects that are no specks, no haze, and at most half on nuclei."""
    on_nuclei = np.bincount(found.owners()[labels.ravel()[found.flat] > 0], minlength=len(found))
    y0, y1, x0, x1 = found.boxes.T
    short = np.maximum(y1 - y0, x1 - x0) <= longest_px
    return found.kept((found.size >= least_px) & (on_nuclei <= found.size / 2) & short)


def _most_near(near: NDArray[np.uint32], objects: Compartment) -> NDArray[np.uint32]:
    """Return the label that most pixels of each object are near to, of equally many the larger; 0 without any."""
    most = np.zeros(len(objects), dtype=np.uint32)
    pairs = np.stack([objects.owners()[near > 0], near[near > 0]])
    (owners, names), votes = np.unique(pairs, axis=1, return_counts=True)
    for index in np.argsort(votes, kind="stable"):
        most[owners[index]] = names[index]
    return most


def _rows(box: Box, rows: slice) -> Box:
    """Return some rows of a box."""
    return Box(box.y0 + rows.start, box.y0 + rows.stop, box.x0, box.x1)


def touching(image: NDArray[Any], background: Callable[[slice], NDArray[np.float32]], floor: float) -> Compartment:
    """List the pixels that stand at least ``floor`` above the background, by objects that touch at sides or corners.

    Objects come in raster order of their first pixels. The work grows with the pixels found.

    Parameters
    ----------
    background : callable
        Takes rows of the image and returns the background there.
    """
    height, width = image.shape
    found = []
    for y0 in range(0, max(height, 1), BAND_PX):
        band = slice(y0, min(y0 + BAND_PX, height))
        found.append(_reached(image[band], background(band), floor, y0 * width))
    return Compartment(*_grouped(np.concatenate(found), width), (height, width))


@compiled
def _reached(image: NDArray[Any], background: NDArray[np.float32], floor: float, first: int) -> NDArray[np.uint32]:
    """Return the flat indices, counted from ``first``, of pixels at least ``floor`` above the background."""
    height, width = image.shape
    counts = np.zeros(height, dtype=np.int64)
    for y in range(height):
        row, under = image[y], background[y]
        for x in range(width):
            counts[y] += np.float64(row[x]) - under[x] >= floor
    reached = np.empty(counts.sum(), dtype=np.uint32)
    n = 0
    for y in range(height):
        if counts[y]:
            for x in range(width):
                if np.float64(image[y, x]) - background[y, x] >= floor:
                    reached[n] = first + y * width + x
                    n += 1
    return reached


@compiled
def _grouped(flat: NDArray[np.uint32], width: int) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Group pixels, given in raster order, by objects: runs along a row are joined to those in the row above."""
    n_runs = 0
    for k in range(len(flat)):
        if k == 0 or flat[k] != flat[k - 1] + 1 or flat[k] % width == 0:
            n_runs += 1
    firsts = np.empty(n_runs + 1, np.int64)
    rows, left, right = np.empty(n_runs, np.int64), np.empty(n_runs, np.int64), np.empty(n_runs, np.int64)
    run = -1
    for k in range(len(flat)):
        if k == 0 or flat[k] != flat[k - 1] + 1 or flat[k] % width == 0:
            run += 1
            firsts[run] = k
            rows[run] = flat[k] // width
            left[run] = right[run] = flat[k] - rows[run] * width
        else:
            right[run] += 1
    firsts[n_runs] = len(flat)

    # The root of an object is its first run: roots only ever point backwards.
    parent = np.arange(n_runs)
    above = 0
    for run in range(n_runs):
        while rows[above] < rows[run] - 1 or (rows[above] == rows[run] - 1 and right[above] < left[run] - 1):
            above += 1
        other = above
        while rows[other] == rows[run] - 1 and left[other] <= right[run] + 1:
            one, two = _root(parent, run), _root(parent, other)
            parent[max(one, two)] = min(one, two)
            other += 1

    n = 0
    number = np.empty(n_runs, np.int64)
    for run in range(n_runs):
        if parent[run] == run:
            number[run] = n
            n += 1
        else:
            number[run] = number[_root(parent, run)]
    starts = np.zeros(n + 1, np.int64)
    boxes = np.empty((n, 4), np.int64)
    for run in range(n_runs):
        i = number[run]
        if parent[run] == run:
            boxes[i, 0], boxes[i, 2], boxes[i, 3] = rows[run], left[run], right[run] + 1
        boxes[i, 1] = rows[run] + 1
        boxes[i, 2] = min(boxes[i, 2], left[run])
        boxes[i, 3] = max(boxes[i, 3], right[run] + 1)
        starts[i + 1] += firsts[run + 1] - firsts[run]
    for i in range(n):
        starts[i + 1] += starts[i]
    ends = starts.copy()
    grouped = np.empty(len(flat), np.uint32)
    for run in range(n_runs):
        i = number[run]
        for k in range(firsts[run], firsts[run + 1]):
            grouped[ends[i]] = flat[k]
            ends[i] += 1
    return grouped, starts, boxes


@compiled
def _root(parent: NDArray[np.int64], run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run
