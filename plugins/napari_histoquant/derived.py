"""What a recipe derives from a drawing, on the canvas: bands, mirrors and the like, kept within the tissue."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from napari.layers import Shapes

from histoquant.drawing import Derived, colours_of, derive, in_um
from histoquant.model.recipe import Recipe
from histoquant.model.region import Region
from histoquant.model.slide import Slide
from histoquant.survey import tissue_of
from napari_histoquant.layers import UNITS
from napari_histoquant.shapes import shapes_of
from napari_histoquant.telling import walk


class DerivedLayer:
    """A layer of shapes that follows a drawing and cannot be edited.

    Attributes
    ----------
    layer : Shapes or None
    found : Derived
        What is shown, in um, and what waits for outlines that are not drawn yet.
    tissue : geometry in um, or None
        Outline of the tissue, once it was found.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self.layer: Shapes | None = None
        self.found = Derived((), ())
        self.tissue: Any = None
        self._asked: tuple[Slide, Recipe] | None = None

    def drop(self) -> None:
        """Take the layer away."""
        if self.is_shown:
            self._viewer.layers.remove(self.layer)
        self.layer = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a layer, which a person can remove."""
        return self.layer is not None and self.layer in self._viewer.layers

    def find_tissue(self, slide: Slide, recipe: Recipe, done: Callable[[str], object]) -> None:
        """Look for the tissue in a thread; then call with what went wrong, or an empty text."""
        self.tissue, self._asked = None, (slide, recipe)
        worker = walk(_tissue(slide, recipe))
        worker.returned.connect(lambda tissue: self._found_tissue((slide, recipe), tissue, done))
        worker.start()

    def _found_tissue(self, asked: tuple[Slide, Recipe], tissue: Any, done: Callable[[str], object]) -> None:
        if asked != self._asked:  # another slide or recipe since
            return
        wrong = isinstance(tissue, str)
        self.tissue = None if wrong else tissue
        done(tissue if wrong else "")

    def show(self, drawn: Sequence[Region], slide: Slide, recipe: Recipe, *, edge_width: float, below: Shapes) -> None:
        """Show what follows from outlines, coordinates in pixels, below the layer they are drawn on."""
        px = slide.pixel_size_um
        height, width = slide.shape
        whole = (height * px, width * px)
        self.found = derive(drawn, recipe.regions, slide_um=whole, pixel_size_um=px, tissue=self.tissue)
        in_pixels = [region for region in in_um(self.found.regions, 1 / px) if not region.geometry.is_empty]
        both = (*drawn, *in_pixels)  # a colour that no drawn region has
        shapes = shapes_of(in_pixels, colours_of(region.classification or region.name for region in both))
        if not self.is_shown:
            self._add(px, below)
        assert self.layer is not None
        self.layer.data = []
        if shapes.data:
            edges, kinds = shapes.settings["edge_color"], shapes.settings["shape_type"]
            self.layer.add(
                shapes.data, shape_type=kinds, edge_color=edges, face_color="transparent", edge_width=edge_width
            )
            self.layer.features = shapes.settings["features"]
            self.layer.text = shapes.settings["text"]

    def _add(self, px: float, below: Shapes) -> None:
        layers = self._viewer.layers
        active = layers.selection.active
        self.layer = self._viewer.add_shapes(
            ndim=2, name="derived from the recipe", scale=(px, px), units=UNITS, opacity=0.9
        )
        self.layer.editable = False
        layers.move(layers.index(self.layer), layers.index(below))
        layers.selection.active = active


def _tissue(slide: Slide, recipe: Recipe) -> Generator[None, None, Any]:
    yield
    return tissue_of(slide, recipe)
