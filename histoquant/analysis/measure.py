"""One row of features per nucleus: shape, and intensity in the nucleus, a ring round it and the whole cell.

Everything here depends only on pixels within a stated reach of the nucleus, and sums are taken in raster order, so
that a nucleus gets the same row whichever tile measures it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.background import Background
from histoquant.analysis.compartments import compartment, rings
from histoquant.analysis.correlation import correlation
from histoquant.analysis.order_statistics import medians_round, reached_by
from histoquant.model.recipe import Measure
from histoquant.model.slide import Box

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MIN_BACKGROUND_SAMPLES = 16
"""With fewer free pixels in a nucleus' annulus its background is taken from the slide-wide estimate."""

ANNULUS_SAMPLES = 240

NUCLEI_AT_ONCE = 128
"""Neighbours in raster order: the pixels round them stay in the processor's cache from one feature to the next."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of one tile's box with what is needed to read them.

    Attributes
    ----------
    raw : (c, y, x) array
        Intensities as the file has them.
    channels : sequence of str
        Names, one per channel.
    background : Background
        Slide-wide background, with the channels in this order.
    box : Box
        Where the pixels lie on the slide.
    pixel_size_um : float
    """

    raw: NDArray[Any]
    channels: Sequence[str]
    background: Background
    box: Box
    pixel_size_um: float

    @cached_property
    def native(self) -> NDArray[Any]:
        """The intensities in the order and byte order that compiled loops read; a copy only where these differ."""
        # Half floats and masks are no numbers to a compiled loop; each of their values is a float or a byte.
        code = {"e": "f", "?": "B"}.get(self.raw.dtype.char, self.raw.dtype.char)
        native: NDArray[Any] = np.ascontiguousarray(self.raw, dtype=np.dtype(code))
        return native


def reach_um(settings: Measure, max_object_um: float) -> float:
    """Return how far from its centroid a nucleus' row depends on the labels round it."""
    return max(settings.background_outer_um, max_object_um + max(settings.ring_um, settings.attach_um)) + 1.0


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
        Columns to add: Pearson correlation of two channels over the pixels of the nucleus and its ring, both
        smoothed. The ring gives an evenly glowing nucleus its contrast, and the smoothing takes off
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

    raw, px = pixels.native, pixels.pixel_size_um
    nuclei = compartment(labels, mine)
    y, x, major, minor = nuclei.moments(pixels.box.y0, pixels.box.x0)
    sizes, backgrounds = [], []
    read: dict[str | tuple[str, int], list[NDArray[Any]]] = defaultdict(list)
    for first in range(0, max(len(nuclei), 1), NUCLEI_AT_ONCE):
        some = slice(first, first + NUCLEI_AT_ONCE)
        nucleus = nuclei.part(some)
        ring = rings(labels, nucleus, settings.ring_um / px)
        sizes.append(ring.size)
        backgrounds.append(local_background(pixels, labels, y[some], x[some], settings=settings))
        for index in range(len(raw)):
            read["nucleus", index].append(nucleus.total(raw[index]))
            read["ring", index].append(ring.total(raw[index]))
        for name, (index, where, fraction) in order_statistics.items():
            read[name].append(reached_by(raw[index], nucleus if where == "nuclear" else ring, fraction))
        for name, (one, other) in correlations.items():
            read[name].append(correlation(raw[one], raw[other], nucleus, ring, pixel_size_um=px))

    whole = {name: np.concatenate(parts) for name, parts in read.items()}
    size, ring_size, background = nuclei.size, np.concatenate(sizes), np.concatenate(backgrounds, axis=1)
    columns: dict[str, Any] = {"label": np.flatnonzero(mine) + 1, "y_px": y, "x_px": x, "area_px": size}
    columns |= {"major_px": major, "minor_px": minor}
    for index, channel in enumerate(pixels.channels):
        in_nucleus, in_ring = whole["nucleus", index], whole["ring", index]
        columns[f"mean_{channel}"] = in_nucleus / size
        with np.errstate(invalid="ignore"):
            columns[f"ring_mean_{channel}"] = in_ring / ring_size
        columns[f"cell_mean_{channel}"] = (in_nucleus + in_ring) / (size + ring_size)
        columns[f"background_{channel}"] = background[index]
    columns |= {name: whole[name] - background[index] for name, (index, _, _) in order_statistics.items()}
    columns |= {name: whole[name] for name in correlations}
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
    inner, outer = (um / pixels.pixel_size_um for um in (settings.background_inner_um, settings.background_outer_um))
    rows = np.floor(y_px).astype(np.int64) - pixels.box.y0
    columns = np.floor(x_px).astype(np.int64) - pixels.box.x0
    points = np.stack([rows, columns], axis=1)
    medians = medians_round(pixels.native, labels, points, _annulus(inner, outer), MIN_BACKGROUND_SAMPLES)
    for index, found in enumerate(medians):
        lacking = np.isnan(found)
        y, x = rows[lacking] + pixels.box.y0, columns[lacking] + pixels.box.x0
        found[lacking] = pixels.background.at_points(y, x, index)
    return medians


@lru_cache(maxsize=8)
def _annulus(inner_px: float, outer_px: float) -> NDArray[np.int64]:
    """Return (k, 2) whole-pixel offsets on a square lattice that fill an annulus, about `ANNULUS_SAMPLES` of them."""
    step = max(1, int(np.sqrt(np.pi * (outer_px**2 - inner_px**2) / ANNULUS_SAMPLES)))
    span = np.arange(-int(outer_px), int(outer_px) + 1)
    span = span[span % step == 0]
    y, x = np.meshgrid(span, span, indexing="ij")
    squared = y * y + x * x
    chosen = (squared >= inner_px**2) & (squared <= outer_px**2)
    return np.stack([y[chosen], x[chosen]], axis=1)
