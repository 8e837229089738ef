"""One row of features per nucleus: shape, and intensity in the nucleus, a ring round it and the whole cell.

Everything here depends only on pixels within a stated reach of the nucleus, and sums are taken in raster order, so
that a nucleus gets the same row whichever tile measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.model.recipe import Measure
from histoquant.model.slide import Box

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MIN_BACKGROUND_SAMPLES = 16
"""With fewer free pixels in a nucleus' annulus its background is taken from the slide-wide estimate."""

ANNULUS_SAMPLES = 240

CORRELATION_SIGMA_UM = 0.8
"""Smoothing before two channels are compared pixel by pixel; well below the size of a nucleus."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of one tile's box with what is needed to read them.

    Attributes
    ----------
    raw : (c, y, x) array
        Intensities as the file has them.
    channels : sequence of str
        Names, one per channel.
    background : (c, y, x) float32
        Slide-wide background at each pixel.
    box : Box
        Where the pixels lie on the slide.
    pixel_size_um : float
    """

    raw: NDArray[Any]
    channels: Sequence[str]
    background: NDArray[np.float32]
    box: Box
    pixel_size_um: float


def reach_um(settings: Measure, max_object_um: float) -> float:
    """Return how far from its centroid a nucleus' row depends on the labels round it."""
    return max(settings.background_outer_um, max_object_um + max(settings.ring_um, settings.attach_um)) + 1.0


def ring_labels(labels: NDArray[np.uint32], width_px: float) -> NDArray[np.uint32]:
    """Return rings of a given width round every object, clipped at neighbours.

    Each background pixel within ``width_px`` (centre to centre) of an object goes to the nearest one; of two equally
    near, to the one in the direction that comes first in a fixed order, which makes the choice independent of where
    the image was cut.

    Returns
    -------
    (y, x) uint32, 0 = no ring
    """
    height, width = labels.shape
    rings = np.zeros_like(labels)
    reach = int(np.floor(width_px))
    if reach < 1 or not labels.any():
        return rings
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    rows, columns = np.nonzero(edge & (labels > 0))
    ids = labels[rows, columns]
    offsets = [
        (dy * dy + dx * dx, dy, dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if 0 < dy * dy + dx * dx <= width_px * width_px
    ]
    free = labels == 0
    for _, dy, dx in sorted(offsets):
        y, x = rows + dy, columns + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y[inside], x[inside]
        taken = free[y, x]
        rings[y[taken], x[taken]] = ids[inside][taken]
        free[y[taken], x[taken]] = False
    return rings


def measure_nuclei(
    pixels: Pixels,
    labels: NDArray[np.uint32],
    mine: NDArray[np.bool_],
    *,
    settings: Measure,
    order_statistics: Mapping[str, tuple[int, str, float]],
    correlations: Mapping[str, tuple[int, int]],
) -> pd.DataFrame:
    """Measure objects of a label image.

    Parameters
    ----------
    labels : (y, x) uint32, 0 = background
        Objects 1..n. All of them bound rings and are kept out of backgrounds.
    mine : (n,) bool
        Which of them to measure.
    order_statistics : column -> (channel, compartment, fraction)
        Columns to add: the background-subtracted intensity that at least ``fraction`` of the pixels of the
        compartment (``nuclear`` or ``cytoplasmic``) reach. "At least a fraction f of the pixels is >= T" is the same
        as "this number is >= T", so a threshold can change without the pixels.
    correlations : column -> (channel, channel)
        Columns to add: Pearson correlation of two channels over the pixels of the nucleus and its ring, both smoothed
        by `CORRELATION_SIGMA_UM`. The ring gives an evenly glowing nucleus its contrast, and the smoothing takes off
        the noise of the camera, which is never correlated.

    Returns
    -------
    DataFrame with one row per object measured, in label order
        ``label``, ``y_px``, ``x_px`` from the slide's corner, ``area_px``, ``major_px``, ``minor_px`` (axes of the
        ellipse with the same second moments), ``mean_``, ``ring_mean_``, ``cell_mean_``, ``background_<channel>`` (raw
        units; the background is a local one, see `local_background`) and the columns asked for. A mean over no pixels
        is NaN.
    """
    import pandas as pd

    n = int(mine.sum())
    number = np.zeros(len(mine) + 1, dtype=np.uint32)
    number[1:][mine] = np.arange(1, n + 1, dtype=np.uint32)
    rings = number[ring_labels(labels, settings.ring_um / pixels.pixel_size_um)]
    nucleus, ring = _Compartment(number[labels], n), _Compartment(rings, n)
    cell = _Compartment(np.maximum(number[labels], rings), n)
    size = nucleus.size
    # Sums of slide coordinates are exact integers: no tile sees another centroid by a rounding.
    y = nucleus.mean(nucleus.rows + pixels.box.y0) + 0.5
    x = nucleus.mean(nucleus.columns + pixels.box.x0) + 0.5
    major, minor = _axes(nucleus)
    columns: dict[str, Any] = {"label": np.flatnonzero(mine) + 1, "y_px": y, "x_px": x, "area_px": size}
    columns |= {"major_px": major, "minor_px": minor}
    backgrounds = local_background(pixels, labels, y, x, settings=settings)
    for index, channel in enumerate(pixels.channels):
        image = pixels.raw[index]
        in_nucleus, in_ring = nucleus.total(nucleus.values(image)), ring.total(ring.values(image))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns[f"mean_{channel}"] = in_nucleus / size
            columns[f"ring_mean_{channel}"] = in_ring / ring.size
            columns[f"cell_mean_{channel}"] = (in_nucleus + in_ring) / (size + ring.size)
        columns[f"background_{channel}"] = backgrounds[index]
    for name, (index, compartment, fraction) in order_statistics.items():
        where = nucleus if compartment == "nuclear" else ring
        columns[name] = where.reached_by(where.values(pixels.raw[index]), fraction) - backgrounds[index]
    for name, (first, second) in correlations.items():
        columns[name] = cell.correlation(cell.values(_smoothed(pixels, first)), cell.values(_smoothed(pixels, second)))
    return pd.DataFrame(columns)


def local_background(
    pixels: Pixels,
    labels: NDArray[np.uint32],
    y_px: NDArray[np.float64],
    x_px: NDArray[np.float64],
    *,
    settings: Measure,
) -> NDArray[np.float64]:
    """Return the background of each nucleus: the median in an annulus round it, nuclei excluded.

    The annulus is sampled at about 240 evenly spread pixels. Where fewer than 16 of them are free of nuclei, or lie on
    the slide, the slide-wide background at the centroid is used.

    Parameters
    ----------
    y_px, x_px : (n,) float64
        Centroids, from the slide's corner.

    Returns
    -------
    (c, n) float64, raw units
    """
    import warnings

    inner, outer = (um / pixels.pixel_size_um for um in (settings.background_inner_um, settings.background_outer_um))
    offsets = _annulus(inner, outer)
    n, height, width = len(y_px), *labels.shape
    rows = np.floor(y_px).astype(np.int64) - pixels.box.y0
    columns = np.floor(x_px).astype(np.int64) - pixels.box.x0
    result = np.empty((len(pixels.channels), n))
    for start in range(0, n, 4096):
        part = slice(start, min(n, start + 4096))
        y, x = rows[part, None] + offsets[:, 0], columns[part, None] + offsets[:, 1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        free = inside & (labels[y, x] == 0)
        enough = free.sum(axis=1) >= MIN_BACKGROUND_SAMPLES
        for index in range(len(pixels.channels)):
            values = np.where(free, pixels.raw[index][y, x], np.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", category=RuntimeWarning)  # rows without a free pixel
                median = np.nanmedian(values, axis=1)
            fallback = pixels.background[index][rows[part], columns[part]]
            result[index, part] = np.where(enough, median, fallback)
    return result


def _smoothed(pixels: Pixels, channel: int) -> NDArray[np.float64]:
    """Return a channel smoothed by a kernel that sums in a fixed order, so that the tile does not matter."""
    from scipy import ndimage

    sigma = CORRELATION_SIGMA_UM / pixels.pixel_size_um
    return np.asarray(ndimage.gaussian_filter(pixels.raw[channel].astype(np.float64), sigma, truncate=3.0))


def _annulus(inner_px: float, outer_px: float) -> NDArray[np.int64]:
    """Return (k, 2) whole-pixel offsets on a square lattice that fill an annulus, about `ANNULUS_SAMPLES` of them."""
    step = max(1, int(np.sqrt(np.pi * (outer_px**2 - inner_px**2) / ANNULUS_SAMPLES)))
    span = np.arange(-int(outer_px), int(outer_px) + 1)
    span = span[span % step == 0]
    y, x = np.meshgrid(span, span, indexing="ij")
    squared = y * y + x * x
    chosen = (squared >= inner_px**2) & (squared <= outer_px**2)
    return np.stack([y[chosen], x[chosen]], axis=1)


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
    from scipy import ndimage

    above = pixels.raw[channel] - pixels.background[channel]
    found, _ = ndimage.label(above >= floor, structure=np.ones((3, 3)))
    least_px = settings.min_object_um2 / pixels.pixel_size_um**2
    size = np.bincount(found.ravel())
    on_nuclei = np.bincount(found[labels > 0], minlength=len(size))
    longest = max_object_um / pixels.pixel_size_um
    boxes = ndimage.find_objects(found)
    short = [max(rows.stop - rows.start, columns.stop - columns.start) <= longest for rows, columns in boxes]
    keep = (size >= least_px) & (on_nuclei <= size / 2) & np.array([False, *short])
    n = int(keep.sum())
    number = np.zeros(len(keep), dtype=np.uint32)
    number[keep] = np.arange(1, n + 1, dtype=np.uint32)
    objects = number[found]
    each = _Compartment(objects, n)

    within_reach = np.maximum(labels, ring_labels(labels, settings.attach_um / pixels.pixel_size_um))
    near = within_reach.ravel()[each.flat]
    attached = np.zeros(n, dtype=np.uint32)
    pairs, votes = np.unique(np.stack([each.ids[near > 0], near[near > 0]]), axis=1, return_counts=True)
    for index in np.argsort(votes, kind="stable"):
        attached[pairs[0, index]] = pairs[1, index]

    correlation, glow = np.full(n, np.nan), np.full(n, np.nan)
    around = _Compartment(np.maximum(objects, ring_labels(objects, settings.ring_um / pixels.pixel_size_um)), n)
    for other in unstained:
        r = around.correlation(around.values(_smoothed(pixels, channel)), around.values(_smoothed(pixels, other)))
        correlation = np.fmax(correlation, r)
        glow = np.fmax(glow, each.mean(each.values(pixels.raw[other] - pixels.background[other])))
    dna = pixels.raw[counterstain] - pixels.background[counterstain]
    table = pd.DataFrame(
        {
            "y_px": each.mean(each.rows + pixels.box.y0) + 0.5,
            "x_px": each.mean(each.columns + pixels.box.x0) + 0.5,
            "area_px": each.size,
            "value": each.mean(each.values(above)),
            "dna_value": each.mean(each.values(dna)),
            "attached_label": attached,
            "correlation": correlation,
            "unstained_value": glow,
        }
    )
    return table, objects


class _Compartment:
    """Pixels of labelled objects, in raster order."""

    def __init__(self, labels: NDArray[np.uint32], n: int) -> None:
        self.flat = np.flatnonzero(labels)
        self.ids = labels.ravel()[self.flat].astype(np.int64) - 1
        self.rows, self.columns = np.divmod(self.flat, labels.shape[1])
        self.n = n
        self.size = np.bincount(self.ids, minlength=n)

    def values(self, image: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(image.ravel()[self.flat], dtype=np.float64)

    def total(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(self.ids, values, minlength=self.n), dtype=np.float64)

    def mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.total(values) / self.size)

    def centred(self, coordinates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return pixel coordinates from each object's own mean, through its corner: the same in every tile."""
        corner = np.full(self.n, np.iinfo(np.int64).max)
        np.minimum.at(corner, self.ids, coordinates)
        inside = coordinates - corner[self.ids]
        return np.asarray(inside - self.mean(inside)[self.ids])

    def reached_by(self, values: NDArray[np.float64], fraction: float) -> NDArray[np.float64]:
        """Return the largest value that at least ``fraction`` of an object's pixels reach; NaN without pixels."""
        result = np.full(self.n, np.nan)
        order = np.lexsort((values, self.ids))
        ends = np.cumsum(self.size)
        # The tolerance keeps 0.4 x 5 pixels at 2, not 3, whatever the rounding of 0.4.
        needed = np.maximum(1, np.ceil(fraction * self.size - 1e-9)).astype(np.int64)
        there = self.size > 0
        result[there] = values[order[(ends - needed)[there]]]
        return result

    def correlation(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return Pearson's r per object; NaN where one of the two does not vary."""
        first, second = first - self.mean(first)[self.ids], second - self.mean(second)[self.ids]
        covariance = self.total(first * second)
        spread = np.sqrt(self.total(first * first) * self.total(second * second))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(spread > 0, covariance / spread, np.nan))


def _axes(nucleus: _Compartment) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return major and minor axis in pixels of the ellipse with the object's second moments."""
    dy, dx = nucleus.centred(nucleus.rows), nucleus.centred(nucleus.columns)
    # A pixel is a square, not a point: its own second moment is 1/12.
    yy = nucleus.mean(dy * dy) + 1 / 12
    xx = nucleus.mean(dx * dx) + 1 / 12
    xy = nucleus.mean(dy * dx)
    root = np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    return 4 * np.sqrt((yy + xx) / 2 + root), 4 * np.sqrt(np.maximum((yy + xx) / 2 - root, 0))
