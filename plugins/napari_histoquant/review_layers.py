"""What a review shows on the canvas: the slide's channels, its regions and objects, and a ring round the current one.

No layer knows a name or a file of the slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Points, Shapes
from napari.utils import Colormap

from histoquant.model.region_set import Region
from napari_histoquant.crops import Crop, outline, pyramid, stretched
from napari_histoquant.queue import Objects, Point
from napari_histoquant.shapes import paths_of
from napari_histoquant.subjects import OpenSlide
from napari_histoquant.view import camera_of, fit_lines

if TYPE_CHECKING:
    import napari
    from numpy.typing import NDArray

OBJECTS, CURRENT, REGIONS = "objects", "current object", "regions"
"""Names of the layers."""

LINE_PX = 2.5
"""Width of outlines on the screen."""

STEADY = 1.25
"""The zoom may change by this factor before the lines are drawn anew, which takes long for long ones."""

MOST_POINTS = 3000
"""Points drawn at once. Drawing 100,000 takes a processor without a graphics card 0.14 s each time, 3,000 take 4 ms."""

# Okabe & Ito, for any colour vision. The first class is the one nobody looks for.
CLASS_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#0072B2")
GONE_COLOUR = "#808080"
CURRENT_COLOUR = "#FFFFFF"
REVIEWED_ALPHA = 0.3

CHANNEL_COLOURS = ((0.35, 0.5, 1.0), (0.25, 1.0, 0.3), (1.0, 0.3, 0.9), (1.0, 0.9, 0.2), (0.2, 0.9, 1.0))
"""Of the channels in their order: nuclei blue, the first marker green."""


def _rgba(colour: str, alpha: float = 1.0) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue, alpha


def _scale_bar_of(viewer: napari.Viewer) -> Any:
    return viewer.canvas.overlays.scale_bar if hasattr(viewer, "scene") else viewer.scale_bar


class ReviewLayers:
    """The layers of a review in one viewer."""

    def __init__(self, viewer: napari.Viewer) -> None:
        self._viewer = viewer
        self._images: list[Image] = []
        self._outlines: Shapes | None = None
        self._fitted = 0.0  # zoom that the lines are drawn for
        self._points: Points | None = None
        self._ring: Points | None = None
        self._drawn: tuple[Point, Point] | None = None
        self._moving = False
        self._camera = camera_of(viewer)
        self.n_left_out = 0
        """Objects of the rectangle that is drawn that are not drawn, for there are too many."""

    def show(
        self,
        here: OpenSlide,
        channel_names: list[str],
        active: int,
        *,
        regions: Sequence[Region] = (),
    ) -> None:
        """Put a slide on the canvas, in place of the one before.

        Parameters
        ----------
        regions : sequence of Region
            Coordinates in um, under the names that are shown.
        active : int
            The channel whose contrast napari's controls set.
        """
        self.clear()
        pixel, sizes = here.pixels.pixel_size_um, here.sizes
        middle = here.corner_um + pixel / 2  # of the first pixel
        place = {"scale": (pixel, pixel), "translate": (middle, middle), "units": ("um", "um")}
        levels = pyramid(here.pixels, here.segment)
        if here.pixels.brightfield:
            layers = [Image(levels[0], rgb=True, multiscale=True, name="slide", **place)]
        else:
            layers = [
                self._channel(here, number, planes, name, place)
                for number, (planes, name) in enumerate(zip(levels, channel_names, strict=True))
            ]
        self._images = layers
        nothing = np.empty((0, 2))
        self._points = Points(
            nothing, name=OBJECTS, size=sizes.point, border_width=0.12, units=("um", "um"), antialiasing=1
        )
        self._ring = Points(
            nothing,
            name=CURRENT,
            size=sizes.ring,
            border_width=0.07,
            border_color=CURRENT_COLOUR,
            face_color="transparent",
            units=("um", "um"),
        )
        outlines: list[Shapes] = []
        if regions:
            lines = paths_of(regions, sizes.simpler)
            outlines = [Shapes(**lines, name=REGIONS, units=("um", "um"), opacity=0.8)]
        self._outlines = outlines[0] if outlines else None
        for layer in (*layers, *outlines, self._points, self._ring):
            self._viewer.add_layer(layer)
            layer.editable = False  # decisions are made with the keys of the panel, never by moving a point
        self._viewer.layers.selection.active = layers[min(active, len(layers) - 1)]
        _scale_bar_of(self._viewer).visible = True
        self._drawn = None

    def _channel(self, here: OpenSlide, number: int, planes: list[Any], name: str, place: dict[str, Any]) -> Image:
        limits = here.limits.get(here.pixels.channels[number])
        if limits is None:  # a channel that nothing was measured in
            smallest = np.asarray(planes[-1])
            low, high = (float(level) for level in np.percentile(smallest[::4, ::4], here.percentiles))
            limits = (low, max(high, low + 1))
        colour = CHANNEL_COLOURS[number % len(CHANNEL_COLOURS)]
        return Image(
            planes,
            multiscale=True,
            name=name,
            contrast_limits=limits,
            colormap=Colormap([(0, 0, 0), colour], name=f"channel {number + 1}"),
            blending="additive",
            **place,
        )

    def clear(self) -> None:
        """Take the layers of the review away; others stay."""
        for layer in (*self._images, self._outlines, self._points, self._ring):
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._images, self._outlines, self._points, self._ring, self._drawn = [], None, None, None, None

    def look_at(self, objects: Objects, current: int | None, marker: str) -> None:
        """Move the view to an object, put the ring round it, and draw the objects beside it."""
        assert self._ring is not None
        place = objects.yx_um[[] if current is None else [current]]
        with self._ring.events.data.blocker():
            self._ring.data = place
        if len(place):
            self._moving = True
            self._camera.center = tuple(place[0].tolist())
            self._moving = False
        self.draw(objects, marker)

    def first_view(self, here: OpenSlide) -> None:
        """Come so near that single objects are seen."""
        self._camera.zoom = self._height_px() / here.sizes.first_view
        self._fit_outlines()

    def _fit_outlines(self) -> None:
        """Draw outlines as wide on the screen as before."""
        zoom = float(self._camera.zoom)
        if self._outlines is not None and zoom > 0:
            fit_lines(self._outlines, LINE_PX / zoom)
            self._fitted = zoom

    def _height_px(self) -> int:
        return int(self._viewer.window.geometry()[3])

    def seen(self) -> tuple[Point, Point]:
        """Return the top left and bottom right of what is seen, in um; rather more, for the canvas fills no window."""
        _, _, width, height = self._viewer.window.geometry()
        zoom = max(float(self._camera.zoom), 1e-9)
        y, x = (float(part) for part in self._camera.center[-2:])
        half = height / zoom / 2, width / zoom / 2
        return (y - half[0], x - half[1]), (y + half[0], x + half[1])

    def moved(self, objects: Objects, marker: str) -> bool:
        """Draw other objects where the view has come upon ground without; say whether that was done."""
        if self._points is None or self._moving:
            return False
        if self._outlines is not None and not 1 / STEADY < self._camera.zoom / max(self._fitted, 1e-9) < STEADY:
            self._fit_outlines()
        seen = self.seen()
        if self._drawn is not None:
            inside = all(
                low <= part <= high
                for corner in seen
                for part, low, high in zip(corner, self._drawn[0], self._drawn[1], strict=True)
            )
            smaller = self._drawn[1][0] - self._drawn[0][0] > 4 * (seen[1][0] - seen[0][0])
            if inside and not (self.n_left_out and smaller):
                return False
        self.draw(objects, marker)
        return True

    def draw(self, objects: Objects, marker: str) -> None:
        """Draw the objects that are seen and as many round them, coloured by their calls."""
        assert self._points is not None
        (top, left), (bottom, right) = self.seen()
        margin = (bottom - top) / 4, (right - left) / 4
        corners = (top - margin[0], left - margin[1]), (bottom + margin[0], right + margin[1])
        found = objects.within(*corners, marker, MOST_POINTS)
        self.n_left_out = objects.n_within(*corners) - len(found)
        self._drawn = corners
        points = self._points
        if not len(found):
            points.data = np.empty((0, 2))  # napari warns of colours for nothing
            return
        colours = _colours(objects, marker, found)
        # Of data that changes the viewer works out its extent anew, which takes longer than all the rest and is that of
        # the slide in any case. The canvas is told once, by the colours that come last.
        with points.events.data.blocker(), points.events.set_data.blocker(), points.events.border_color.blocker():
            points.data = objects.yx_um[found]
            points.border_color = colours[:, :4]
        points.face_color = colours[:, 4:]

    def limits(self) -> list[tuple[float, float]]:
        """Return black and white of every channel as the reviewer has set them."""
        return [(float(layer.contrast_limits[0]), float(layer.contrast_limits[1])) for layer in self._images]


def _colours(objects: Objects, marker: str, found: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the colours of border and face, (n, 8): the border tells the class, a tint what was looked at."""
    border = np.array([_rgba(colour) for colour in CLASS_COLOURS], dtype=np.float32)
    chosen = border[objects.classes[marker][found] % len(CLASS_COLOURS)]
    chosen[objects.gone[found]] = _rgba(GONE_COLOUR)
    face = chosen.copy()
    face[:, 3] = np.where(objects.reviewed[marker][found], REVIEWED_ALPHA, 0.0)
    return np.hstack([chosen, face])


def rendered(
    crop: Crop, limits: list[tuple[float, float]], zoom: int, *, brightfield: bool, together: bool = True
) -> list[NDArray[np.uint8]]:
    """Return a crop as pictures, enlarged, with the object's outline.

    Parameters
    ----------
    limits : list of (black, white)
        Of the channels, which follow each other again and again.
    together : bool
        Whether a picture of all channels in their colours comes before those in grey.

    Returns
    -------
    list of (side x zoom, side x zoom, 3) uint8
        One for every channel in grey; of a brightfield slide one for every red, green and blue.
    """
    if brightfield:
        threes = (crop.pixels[start : start + 3] for start in range(0, len(crop.pixels), 3))
        pictures = [np.ascontiguousarray(np.moveaxis(three, 0, -1)).astype(np.uint8) for three in threes]
    else:
        greys = [stretched(plane, pair) for plane, pair in zip(crop.pixels, cycle(limits), strict=False)]
        pictures = [np.repeat(grey[..., None], 3, axis=2) for grey in greys]
    if together and not brightfield:
        mixed = np.zeros((*greys[0].shape, 3), dtype=np.float32)
        for number, grey in enumerate(greys):
            mixed += grey[..., None] * np.asarray(CHANNEL_COLOURS[number % len(CHANNEL_COLOURS)], dtype=np.float32)
        pictures.insert(0, np.clip(mixed, 0, 255).astype(np.uint8))
    border, beside = outline(crop.inside, zoom)
    line, edge = (0, 255) if brightfield else (255, 0)
    large = [picture.repeat(zoom, axis=0).repeat(zoom, axis=1) for picture in pictures]
    for picture in large:
        picture[border], picture[beside] = line, edge
    return large
