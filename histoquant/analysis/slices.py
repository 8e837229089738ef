"""Brain slices in a photograph: which pixels are slice, where each begins and ends, and where its midline runs.

The ground is what the picture's rim shows. A pixel that is the ground's colour, only darker, is shadow and no slice:
what counts is the distance of a colour from the line between black and the ground's colour. Slices that touch are
parted where the tissue between them is narrow. The midline is the axis about which a slice is most like its mirror
image, moved to run through the notches of the longitudinal fissure where the outline shows them: a swollen hemisphere
pulls the axis to its side, the notches stay on the midline.

Arrays are (3, y, x), red, green and blue from 0 to 255, or (y, x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from histoquant.analysis.basins import local_basins
from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIM_SHARE = 0.02
"""Width of the rim that shows the ground, in parts of the picture's shorter side."""

NOISE_FACTOR = 6.0
LEAST_DISTANCE = 12.0
SLICE_PART = 0.4
"""A pixel is slice from this part of the distance from the ground that slices typically have."""

PALE_COLOUR = (225.0, 210.0, 200.0)
LEAST_CONTRAST = 40.0
"""A ground less than this far from pale tissue hides infarcts at the rim of a slice."""

EDGE_UM = 40.0
"""Smoothing before slice is told from ground. More would move the edge outwards where bright infarct reaches it: a
hundredth of a hemisphere's area, but a twentieth of an indirect volume."""

SMOOTHED_UM = 150.0
NECK = 0.6
"""Slices are parted where the tissue between them is narrower than this part of the narrower one."""

LARGEST_TILT_DEG = 45.0
NOTCH_WITHIN = 0.12
"""How far from the axis of symmetry, in parts of a slice's width, a notch may lie."""
LEAST_NOTCH = 0.015
"""Depth of the shallowest notch, in parts of a slice's height."""


@dataclass(frozen=True, eq=False)
class FoundSlice:
    """One slice of a picture.

    Attributes
    ----------
    mask : (y, x) bool
        Its pixels, in the whole picture.
    midline_px : ((y, x), (y, x))
        Two points on the midline, dorsal first, at the slice's outline or beyond.
    by_notches : bool
        Whether the midline runs through a notch of the outline; else it is the axis of symmetry, which swelling moves.
    """

    mask: NDArray[np.bool_]
    midline_px: tuple[tuple[float, float], tuple[float, float]]
    by_notches: bool


def ground_colour(rgb: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the colour of the ground: the median of the picture's rim.

    Raises
    ------
    InputError
        If pale tissue could not be told from it.
    """
    colour = np.median(_rim(rgb), axis=1).astype(np.float64)
    if _off_ground(np.array(PALE_COLOUR)[:, None, None], colour).item() < LEAST_CONTRAST:
        raise InputError(
            f"the ground of the picture (red {colour[0]:.0f}, green {colour[1]:.0f}, blue {colour[2]:.0f}) is like "
            "pale tissue, so that infarcts at the rim of a slice cannot be told from it.",
            "Photograph slices on a dark or blue ground, or draw the outlines of slices and lesions.",
        )
    return colour


def _rim(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    width = max(2, round(RIM_SHARE * min(rgb.shape[1:])))
    sides = (rgb[:, :width], rgb[:, -width:], rgb[:, :, :width], rgb[:, :, -width:])
    return np.concatenate([side.reshape(3, -1) for side in sides], axis=1)


def _off_ground(rgb: NDArray[np.floating], ground: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each colour is from the ground's and all its shadows: from a line between black and it."""
    length = float(ground @ ground)
    along = np.clip(np.tensordot(ground, rgb, axes=1) / max(length, 1e-9), 0, 1)
    distance: NDArray[np.float64] = np.sqrt(((rgb - ground[:, None, None] * along) ** 2).sum(axis=0))
    return distance


def tissue_mask(rgb: NDArray[np.float32], ground: NDArray[np.float64], pixel_size_um: float) -> NDArray[np.bool_]:
    """Return which pixels are tissue rather than ground or its shadow; holes are filled."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    sigma = EDGE_UM / pixel_size_um
    distance = ndimage.gaussian_filter(_off_ground(rgb, ground), sigma, mode="nearest")
    rim = _off_ground(_rim(rgb)[:, None], ground)
    noise = 1.4826 * float(np.median(rim))
    if distance.max() - distance.min() < LEAST_DISTANCE:
        return np.zeros(distance.shape, dtype=bool)
    typical = float(np.median(distance[distance > threshold_otsu(distance)]))
    mask = distance > max(NOISE_FACTOR * noise, SLICE_PART * typical, LEAST_DISTANCE)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(mask)
    return filled


def find_slices(
    mask: NDArray[np.bool_], pixel_size_um: float, *, min_mm2: float, order: Literal["rows", "columns"]
) -> list[FoundSlice]:
    """Part tissue into slices, in reading order.

    Parameters
    ----------
    mask : (y, x) bool
    min_mm2 : float
        Smaller pieces are left out.
    """
    from scipy import ndimage

    # Far from any edge a slice is as deep as it is wide; a coarse map of that depth is enough, and robust.
    step = max(1, round(SMOOTHED_UM / pixel_size_um))
    depth = ndimage.distance_transform_edt(np.pad(mask[::step, ::step], 1))[1:-1, 1:-1]
    depth = ndimage.gaussian_filter(depth, 2.0).astype(np.float32)
    coarse, summits = local_basins(depth, mask[::step, ::step], join=NECK, rounds=len(depth))
    if not len(summits):
        return []
    nearest = ndimage.distance_transform_edt(coarse == 0, return_distances=False, return_indices=True)
    whole = coarse[tuple(nearest)].repeat(step, axis=0).repeat(step, axis=1)[: mask.shape[0], : mask.shape[1]]
    parts = np.where(mask, whole, 0)
    least = min_mm2 * 1e6 / pixel_size_um**2
    masks = []
    for number in range(1, len(summits) + 1):
        pieces, n = ndimage.label(parts == number)
        if n:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            if sizes.max() >= least:
                masks.append(pieces == sizes.argmax())
    found = [FoundSlice(part, *midline(part)) for part in masks]
    return [found[i] for i in _reading_order(masks, order)]


def _reading_order(masks: list[NDArray[np.bool_]], order: Literal["rows", "columns"]) -> list[int]:
    """Return the numbers of slices row by row: a row is what overlaps the middle of its first slice."""
    down, across = (0, 1) if order == "rows" else (1, 0)
    spans = []
    for mask in masks:
        index = np.argwhere(mask)
        low, high = index.min(axis=0), index.max(axis=0)
        spans.append((low[down], high[down], (low[across] + high[across]) / 2))
    left = sorted(range(len(masks)), key=lambda i: spans[i][0] + spans[i][1])
    ordered: list[int] = []
    while left:
        first = spans[left[0]]
        row = [i for i in left if spans[i][0] + spans[i][1] <= 2 * first[1]]
        ordered += sorted(row, key=lambda i: float(spans[i][2]))
        left = [i for i in left if i not in row]
    return ordered


def midline(mask: NDArray[np.bool_]) -> tuple[tuple[tuple[float, float], tuple[float, float]], bool]:
    """Return two points on the midline of a slice, dorsal first, and whether a notch of the outline shows it."""
    y, x = np.nonzero(mask)
    centre = np.array([y.mean(), x.mean()])
    points = np.stack([y, x], axis=1) - centre
    if len(points) > 20_000:
        points = points[:: len(points) // 20_000 + 1]
    best = max(
        np.arange(-LARGEST_TILT_DEG, LARGEST_TILT_DEG + 1, 3.0), key=lambda a: _likeness(points, mask, centre, a)
    )
    angle = max(np.arange(best - 3, best + 3.1, 0.5), key=lambda a: _likeness(points, mask, centre, a))
    # In the slice's own frame the axis is x = 0 and y runs from dorsal to ventral.
    turned = points @ _turn(angle)
    height, width = np.ptp(turned[:, 0]), np.ptp(turned[:, 1])
    ends = []
    for sign in (1.0, -1.0):  # dorsal, ventral
        notch = _notch(turned[:, 1], sign * turned[:, 0], NOTCH_WITHIN * width)
        if notch is not None and notch[1] >= LEAST_NOTCH * height:
            ends.append((sign * notch[2], notch[0]))
    if len(ends) == 2:
        (top_y, top_x), (bottom_y, bottom_x) = ends
        slope = (bottom_x - top_x) / max(bottom_y - top_y, 1e-6)
    else:
        top_y, top_x, slope = (*ends[0], 0.0) if ends else (0.0, 0.0, 0.0)
    reach = 0.55 * height
    line = np.array([[side, top_x + slope * (side - top_y)] for side in (-reach, reach)])
    dorsal, ventral = line @ _turn(angle).T + centre
    return ((float(dorsal[0]), float(dorsal[1])), (float(ventral[0]), float(ventral[1]))), bool(ends)


def _turn(angle_deg: float) -> NDArray[np.float64]:
    """Return the matrix by which rows (y, x) of the picture are multiplied to be those of a tilted slice."""
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


def _likeness(
    points: NDArray[np.float64], mask: NDArray[np.bool_], centre: NDArray[np.float64], angle_deg: float
) -> float:
    """Return the share of a slice that its mirror image about an axis through its centre covers."""
    turn = _turn(angle_deg)
    mirrored = (points @ turn * (1, -1)) @ turn.T + centre
    y, x = np.rint(mirrored).astype(int).T
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    return float(mask[y[inside], x[inside]].sum() / len(points))


def _notch(across: NDArray[np.float64], down: NDArray[np.float64], within: float) -> tuple[float, float, float] | None:
    """Find the deepest notch of an outline near its axis.

    Parameters
    ----------
    across, down : (n,) float
        Places of a slice's pixels; the outline looked at is that of least ``down``.

    Returns
    -------
    (across, depth, down) of the notch's bottom, or None
    """
    from scipy import ndimage

    column = np.floor(across - across.min()).astype(int)
    edge = np.full(column.max() + 1, np.inf)
    np.minimum.at(edge, column, down)
    known = np.isfinite(edge)
    edge = ndimage.gaussian_filter1d(np.interp(np.arange(len(edge)), np.flatnonzero(known), edge[known]), 1.5)
    place = np.arange(len(edge)) + across.min() + 0.5
    hull = _lower_hull(place, edge)
    depth = edge - hull
    near = np.abs(place) <= within
    if not near.any():
        return None
    at = int(np.argmax(np.where(near, depth, -1)))
    if at in (np.flatnonzero(near)[0], np.flatnonzero(near)[-1]):
        return None  # still falling where we stop looking: a slope of the outline, no notch
    return float(place[at]), float(depth[at]), float(edge[at])


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lower convex hull of a function at its own places (Andrew 1979)."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (x[b] - x[a]) * (y[i] - y[a]) - (y[b] - y[a]) * (x[i] - x[a]) > 0:
                break
            kept.pop()
        kept.append(i)
    hull: NDArray[np.float64] = np.interp(x, x[kept], y[kept])
    return hull
