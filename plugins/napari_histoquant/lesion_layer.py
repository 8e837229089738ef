"""The layer in which the lesion of a brain slice is drawn anew with napari's own tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import shapely
from napari.layers import Shapes

from histoquant.drawing import colours_of
from histoquant.model.edit import LESION
from histoquant.model.geometry import Geometry, ground
from histoquant.model.region_set import Region
from napari_histoquant.review_layers import LINE_PX, STEADY
from napari_histoquant.shapes import UnfinishedError, regions_in, shapes_of
from napari_histoquant.view import camera_of, fit_lines

if TYPE_CHECKING:
    import napari


class LesionLayer:
    """The lesion that is looked at.

    Parameters
    ----------
    changed : callable
        Called when a person changed the shapes.
    """

    def __init__(self, viewer: napari.Viewer, changed: Callable[[], None]) -> None:
        self._viewer, self._changed = viewer, changed
        self._layer: Shapes | None = None
        self._before: list[Region] = []
        self._follows = False
        self._fitted = 0.0  # zoom that the lines are drawn for

    @property
    def in_hand(self) -> bool:
        """Whether a tool is in hand with which a double click ends an outline."""
        active = self._viewer.layers.selection.active
        return self._layer is not None and active is self._layer and str(active.mode).startswith("add_")

    @property
    def begun(self) -> bool:
        """Whether a shape is begun and not ended; napari has no public name for it."""
        return self._layer is not None and bool(self._layer._is_creating)

    def end(self) -> None:
        """End the shape that is begun, as Esc does; one of fewer than three corners is dropped."""
        if self._layer is not None and self.begun:
            self._layer._finish_drawing()  # another mode would end it too, but keep the corner that follows the mouse

    def show(self, lesion: Geometry) -> None:
        """Show an outline, (x, y) in um, to be changed; nothing happens when it is what is there, or one is begun."""
        if self.begun:
            return
        if self._layer is None or self._layer not in self._viewer.layers:
            self._layer = Shapes(name=LESION, units=("um", "um"), ndim=2)
            self._viewer.add_layer(self._layer)
            self._layer.events.data.connect(lambda event: self._told())
        elif lesion.equals(self._drawn()):
            return
        self._follows = False
        self._before = [] if lesion.is_empty else [Region(LESION, lesion)]
        shapes = shapes_of(self._before, colours_of([LESION]))
        self._layer.selected_data = set()
        self._layer.data = []
        if shapes.data:
            self._layer.add(shapes.data, shape_type=shapes.settings["shape_type"])
            self._layer.features = shapes.settings["features"]
            self._layer.edge_color, self._layer.face_color = shapes.settings["edge_color"], "transparent"
        self._follows, self._fitted = True, 0.0
        self.fit()

    def fit(self) -> None:
        """Draw lines, those of what comes next too, as wide on the screen as before; nothing hides the tissue."""
        layer, zoom = self._layer, max(float(camera_of(self._viewer).zoom), 1e-9)
        if layer is None or self.begun or 1 / STEADY < zoom / max(self._fitted, 1e-9) < STEADY:
            return
        self._follows, followed = False, self._follows  # napari paints what is selected in the style of what comes next
        selected, width, self._fitted = set(layer.selected_data), LINE_PX / zoom, zoom
        layer.selected_data = set()
        layer.current_face_color, layer.current_edge_width = "transparent", width
        layer.current_edge_color = [part / 255 for part in colours_of([LESION])[LESION]]
        fit_lines(layer, width)
        layer.selected_data = selected
        self._follows = followed

    def _told(self) -> None:
        if self._follows:
            self._changed()

    def drawn(self) -> Geometry | None:
        """Return what is drawn now, (x, y) in um, shapes joined; None while a shape is being drawn."""
        try:
            return self._drawn()
        except UnfinishedError:
            return None

    def _drawn(self) -> Geometry:
        if self._layer is None or not len(self._layer.data):
            return shapely.Polygon()
        layer = self._layer
        regions, _ = regions_in(layer.data, layer.shape_type, layer.features, self._before)
        areas = [shapely.make_valid(region.geometry) for region in regions if not region.is_line]
        return ground(shapely.union_all(areas)) if areas else shapely.Polygon()

    def clear(self) -> None:
        """Take the layer away."""
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._layer, self._before, self._follows = None, [], False
