"""Pixels for a reviewer: whole planes that are read when they are looked at, and small crops round one object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError, InputError
from histoquant.model.recipe import Segment
from histoquant.model.slide import Box, Slide
from histoquant.picture import flat_pixels, shrink
from napari_histoquant.layers import FLAT_PX

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CROP_UM = 40.0
"""Side of a crop: a nucleus with the ring its background is measured in."""

SPINE_CROP_UM = 7.0
IN_FOCUS_UM = 1.0
"""How far above and below a spine planes are still shown with it."""

KEPT = 64
"""Crops kept in memory: going back and forth reads nothing."""

THRESHOLD_SHARE = 1 / 3
"""Where between black and white the threshold is shown, so that it looks the same on every slide of a batch."""


class Plane:
    """One channel (or the red, green and blue) of one pyramid level, read when sliced.

    A layer made of this knows neither the slide's file nor its name. A stack is shown as the recipe sees it.

    Parameters
    ----------
    channels : tuple of int
        One channel gives (y, x); three give (y, x, 3).
    """

    def __init__(self, slide: Slide, level: int, channels: tuple[int, ...], segment: Segment) -> None:
        self._slide, self._level, self._channels, self._segment = slide, level, channels, segment
        height, width = (int(n) for n in slide.levels[level].shape[2:])
        self.shape = (height, width) if len(channels) == 1 else (height, width, len(channels))
        flattened = slide.n_planes > 1 and segment.z == "mean"
        self.dtype = np.dtype(np.float32) if flattened else np.dtype(slide.dtype)
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        places = key if isinstance(key, tuple) else (key,)
        places = (*(part for part in places if part is not Ellipsis), slice(None), slice(None))[:2]
        spans = [_span(part, n) for part, n in zip(places, self.shape[:2], strict=True)]
        (y0, y1, y_step), (x0, x1, x_step) = spans
        if y1 <= y0 or x1 <= x0:
            pixels = np.empty((len(self._channels), max(0, y1 - y0), max(0, x1 - x0)), self.dtype)
        else:
            pixels = _read(self._slide, Box(y0, y1, x0, x1), self._channels, self._segment, self._level)
        pixels = pixels[:, ::y_step, ::x_step]
        shown = pixels[0] if len(self._channels) == 1 else np.moveaxis(pixels, 0, -1)
        for axis in (1, 0):
            if not isinstance(places[axis], slice):
                shown = shown.take(0, axis=axis)
        return np.ascontiguousarray(shown)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype=dtype)


def _read(slide: Slide, box: Box, channels: tuple[int, ...], segment: Segment, level: int = 0) -> NDArray[Any]:
    """Read a box; what goes wrong is told without the slide's name or file, for whoever reviews it blind."""
    try:
        return flat_pixels(slide, box, channels, segment, level)
    except (OSError, InputError):
        raise FormatError("The slide's pixels cannot be read any more.", "See whether its disk is there.") from None


def _span(part: Any, n: int) -> tuple[int, int, int]:
    """Return start, stop and step of one axis of an index."""
    if isinstance(part, slice):
        return part.indices(n)
    index = int(part)
    index += n if index < 0 else 0
    return index, index + 1, 1


def pyramid(slide: Slide, segment: Segment) -> list[list[Any]]:
    """Return the layers of a slide, each as its levels, full resolution first: one per channel, or one of RGB.

    A large slide without small levels is read once for one, as when it is opened for drawing.
    """
    every = tuple(range(len(slide.channels)))
    layers = [every] if slide.brightfield else [(channel,) for channel in every]
    levels = [[Plane(slide, level, layer, segment) for level in range(len(slide.levels))] for layer in layers]
    if max(levels[0][-1].shape[:2]) <= FLAT_PX:
        return levels
    factor = -(-2 * max(slide.shape) // FLAT_PX)
    means = shrink(slide, every, segment, coarse_um=factor * slide.pixel_size_um).means.astype(levels[0][0].dtype)
    small = [np.moveaxis(means, 0, -1)] if slide.brightfield else list(means)
    return [[*planes, level] for planes, level in zip(levels, small, strict=True)]


def contrast_limits(cells: pd.DataFrame, channel: str, threshold: float | None) -> tuple[float, float] | None:
    """Return what is shown black and white in a channel, from the measured cells alone: no pixel is read.

    Black is the median local background. White is the intensity at which a threshold lies at `THRESHOLD_SHARE`, or
    without one that of the brightest nuclei. None where nothing was measured.
    """
    mean, background = (cells.get(f"{part}_{channel}") for part in ("mean", "background"))
    if mean is None or background is None or not len(cells):
        return None
    low = float(np.nanmedian(background))
    high = low + threshold / THRESHOLD_SHARE if threshold is not None else float(np.nanquantile(mean, 0.999))
    return (low, high) if np.isfinite([low, high]).all() and high > low else None


@dataclass(frozen=True, eq=False)
class Crop:
    """A small square of a slide.

    Attributes
    ----------
    pixels : (c, side, side) array
        Raw intensities; 0 beyond the slide's rim.
    inside : (side, side) bool
        Where the object is; nowhere when no labels are known.
    """

    pixels: NDArray[Any]
    inside: NDArray[np.bool_]


class Crops:
    """Crops of one slide at full resolution, the last ones kept.

    Parameters
    ----------
    labels : Slide, optional
        The slide's label image, to know the outline of an object.
    """

    def __init__(self, slide: Slide, segment: Segment, labels: Slide | None = None) -> None:
        self._slide, self._segment, self._labels = slide, segment, labels
        self._window = _Window(slide, CROP_UM)
        self._kept = _Kept()

    def at(self, y_um: float, x_um: float, label: int = 0) -> Crop:
        """Return the crop whose middle pixel holds a point; ``label`` is the object's number in the label image."""
        y, x = (int(np.floor(place / self._slide.pixel_size_um)) for place in (y_um, x_um))
        return self._kept.get((y, x, label), lambda: self._made(y, x, label))

    def _made(self, y: int, x: int, label: int) -> Crop:
        channels = tuple(range(len(self._slide.channels)))
        crop = self._window.empty(len(channels))
        box, place = self._window.at(y, x)
        if box.y0 < box.y1 and box.x0 < box.x1:
            crop.pixels[:, *place] = _read(self._slide, box, channels, self._segment)
            if self._labels is not None and label:
                crop.inside[place] = self._labels.read(box)[0, 0] == label
        return crop


class StackCrops:
    """Crops of a stack: what is in focus with a place, then everything above and below it.

    Places are index x voxel.

    Parameters
    ----------
    channels : tuple of int
        That are shown.
    dark : bool
        Whether dendrites are dark on bright: then the darkest of the planes is shown, not the brightest.
    """

    def __init__(self, slide: Slide, channels: tuple[int, ...], z_step_um: float, *, dark: bool) -> None:
        self._slide, self._channels, self._z_step_um, self._dark = slide, channels, z_step_um, dark
        self._window = _Window(slide, SPINE_CROP_UM)
        self._kept = _Kept()

    def at(
        self,
        z_um: float,
        y_um: float,
        x_um: float,
        base_um: tuple[float, float] | None = None,
        width_um: float = 0.0,
    ) -> Crop:
        """Return the crop about a place.

        Parameters
        ----------
        base_um : (y, x), optional
            Where the spine begins whose head is at the place; it is outlined as wide as ``width_um``.

        Returns
        -------
        Crop
            With twice as many channels: of the planes about the place, then of all planes.
        """
        key = (z_um, y_um, x_um, base_um, width_um)
        return self._kept.get(key, lambda: self._made(z_um, y_um, x_um, base_um, width_um))

    def _made(
        self, z_um: float, y_um: float, x_um: float, base_um: tuple[float, float] | None, width_um: float
    ) -> Crop:
        px = self._slide.pixel_size_um
        y, x = round(y_um / px), round(x_um / px)
        crop = self._window.empty(2 * len(self._channels))
        box, place = self._window.at(y, x)
        if box.y0 < box.y1 and box.x0 < box.x1:
            pixels = _planes(self._slide, box, self._channels)
            plane, near = round(z_um / self._z_step_um), max(0, round(IN_FOCUS_UM / self._z_step_um))
            first = min(max(0, plane - near), pixels.shape[1] - 1)
            crop.pixels[: len(self._channels), *place] = self._seen(pixels[:, first : max(first, plane + near) + 1])
            crop.pixels[len(self._channels) :, *place] = self._seen(pixels)
        if base_um is not None:
            crop.inside[:] = self._window.within(y, x, (y_um, x_um), base_um, width_um / 2)
        return crop

    def _seen(self, planes: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(planes.min(axis=1) if self._dark else planes.max(axis=1))

    def depth_um(self, y_um: float, x_um: float, near_um: float, reach_um: float) -> float:
        """Return the depth within ``reach_um`` of ``near_um`` at which a place is brightest, or darkest."""
        height, width = self._slide.shape
        y, x = (min(max(0, round(at / self._slide.pixel_size_um)), n - 1) for at, n in ((y_um, height), (x_um, width)))
        box = Box(max(0, y - 1), min(height, y + 2), max(0, x - 1), min(width, x + 2))
        light = _planes(self._slide, box, self._channels).astype(np.float64).mean(axis=(0, 2, 3))
        away = np.abs(np.arange(len(light)) * self._z_step_um - near_um)
        light = np.where(away <= max(reach_um, away.min()), -light if self._dark else light, -np.inf)
        return float(np.argmax(light) * self._z_step_um)


class _Window:
    """Squares of a slide about a pixel, an odd number of pixels wide."""

    def __init__(self, slide: Slide, side_um: float) -> None:
        self._slide = slide
        self.side_px = 2 * max(8, round(side_um / slide.pixel_size_um / 2)) + 1

    def at(self, y: int, x: int) -> tuple[Box, tuple[slice, slice]]:
        """Return what of the slide the square about a pixel holds, and where in the square that lies."""
        top, left = y - self.side_px // 2, x - self.side_px // 2
        height, width = self._slide.shape
        box = Box(max(0, top), min(height, top + self.side_px), max(0, left), min(width, left + self.side_px))
        return box, (slice(box.y0 - top, box.y1 - top), slice(box.x0 - left, box.x1 - left))

    def empty(self, n_channels: int) -> Crop:
        """Return a crop without anything in it."""
        shape = (self.side_px, self.side_px)
        return Crop(np.zeros((n_channels, *shape), dtype=self._slide.dtype), np.zeros(shape, dtype=bool))

    def within(
        self, y: int, x: int, one_um: tuple[float, float], other_um: tuple[float, float], reach_um: float
    ) -> NDArray[np.bool_]:
        """Return which pixels of the square about a pixel lie within reach of the line between two places."""
        import shapely

        px, half = self._slide.pixel_size_um, self.side_px // 2
        rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
        line = shapely.LineString([one_um, other_um])
        return np.asarray(shapely.dwithin(shapely.points((rows + y) * px, (columns + x) * px), line, reach_um))


class _Kept:
    """The last crops."""

    def __init__(self) -> None:
        self._crops: OrderedDict[Any, Crop] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Crop]) -> Crop:
        """Return the crop that goes by a key; made when it is not there."""
        if key not in self._crops:
            self._crops[key] = make()
            while len(self._crops) > KEPT:
                self._crops.popitem(last=False)
        self._crops.move_to_end(key)
        return self._crops[key]


def _planes(slide: Slide, box: Box, channels: tuple[int, ...]) -> NDArray[Any]:
    """Read all planes of a box, (c, z, y, x); what goes wrong is told as `_read` does."""
    try:
        return slide.read(box, channels=channels)
    except (OSError, InputError):
        raise FormatError("The slide's pixels cannot be read any more.", "See whether its disk is there.") from None


def outline(inside: NDArray[np.bool_], zoom: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the border of an enlarged mask, one pixel wide, just outside it, and the border of that.

    In two colours they are seen on any ground: a spine above its dendrite lies in white.
    """
    from scipy.ndimage import binary_dilation

    large = np.kron(inside, np.ones((zoom, zoom), dtype=bool))
    wider = np.asarray(binary_dilation(large))
    return wider & ~large, np.asarray(binary_dilation(wider)) & ~wider


def stretched(plane: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a plane as grey levels from 0 to 255 between two intensities."""
    low, high = limits
    share = (plane.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(share * 255, 0, 255), dtype=np.uint8)
