"""Draw regions: a layer of outlines that saves itself, and what the recipe derives from them, live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Shapes
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QLabel,
    QVBoxLayout,
)

from histoquant.drawing import NAMED, Drawing, colours_of, in_um
from histoquant.errors import HistoquantError
from histoquant.inputs import read_recipe
from histoquant.model.recipe import Recipe
from histoquant.model.region import Region
from histoquant.model.slide import Slide
from napari_histoquant.controls import button, soon, swatch
from napari_histoquant.derived import DerivedLayer
from napari_histoquant.layers import DRAWN, OUTLINES, UNITS, named
from napari_histoquant.opening import shown_slide
from napari_histoquant.region_tree import RegionTree
from napari_histoquant.shapes import FEATURES, TEXT, UnfinishedError, features_of, fills, regions_in, shapes_of
from napari_histoquant.telling import TellingWidget
from napari_histoquant.view import camera_of, fit_lines

LINE_PX, DERIVED_PX = 2.5, 1.5
"""Width of outlines on the screen, whatever the zoom."""


class DrawWidget(TellingWidget):
    """Regions of the slide that is shown.

    Every edit goes into the outlines' file and its history at once; undo and redo reach back across sessions.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.slide: Slide | None = None
        self.drawing: Drawing | None = None
        self.layer: Shapes | None = None
        self.derived = DerivedLayer(napari_viewer)
        self.recipe: Recipe | None = None
        self._follows = False
        self._timer = soon(self, self._show_derived)
        self._still = soon(self, self._when_still)
        self._zoomed = soon(self, self._fit_lines)
        camera_of(napari_viewer).events.zoom.connect(self._zoom)
        self._build()
        self._say("Choose the file of the outlines, an old one or a new one, to begin.")

    # ------------------------------------------------------------------ files

    def open_file(self, path: Path) -> None:
        """Draw into a file: what it holds is shown, every edit is saved. A new one begins with the outlines shown.

        Raises
        ------
        HistoquantError
            If no slide is shown, or the file cannot be read.
        """
        slide = shown_slide(self.viewer)
        if slide is None:
            self._say("Open the slide first: outlines belong to one.", wrong=True)
            return
        drawing = Drawing(path)
        shown = [layer for layer in self.viewer.layers if DRAWN in layer.metadata and layer is not self.layer]
        if not drawing.regions and shown:
            drawing.change(shown[-1].metadata[DRAWN])
        self._drop_layers(*shown)
        self.slide, self.drawing = slide, drawing
        px = slide.pixel_size_um
        self.layer = self.viewer.add_shapes(
            ndim=2,
            name=f"outlines · {named(slide)}",
            scale=(px, px),
            units=UNITS,
            metadata={OUTLINES: path},
            opacity=1.0,
        )
        self.layer.features = features_of([])
        self.layer.text = TEXT
        self._redraw()
        self.layer.events.data.connect(self._edited)
        self.layer.events.set_data.connect(self._moved)
        self._file.setText(path.name)
        self._file.setToolTip(str(path))
        self._find_tissue()
        self._say(f"{len(drawing.regions)} outline(s); {drawing.n_undo} edit(s) can be undone.")

    def use_recipe(self, path: Path) -> None:
        """Take names and derived regions from a recipe."""
        self.recipe = read_recipe(path)
        self._recipe.setText(path.name)
        self._fill_names()
        self._show_derived()
        self._find_tissue()

    def _drop_layers(self, *others: Shapes) -> None:
        self._follows = False
        for layer in (self.layer, *others):
            if layer is not None and layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        self.layer = None
        self.derived.drop()

    # ------------------------------------------------------------------ edits

    def start(self, mode: str) -> None:
        """Begin to draw a region of the name, parent and kind that the form states."""
        if self.layer is None:
            self._say("Choose the file of the outlines first.", wrong=True)
            return
        self._state_next()
        self.viewer.layers.selection.active = self.layer
        self.layer.mode = mode

    def undo(self) -> None:
        """Take back the last edit, of today or of another day."""
        self._step("undo")

    def redo(self) -> None:
        """Do again what was undone."""
        self._step("redo")

    def _step(self, what: str) -> None:
        if self.drawing is None:
            return
        try:
            done = getattr(self.drawing, what)()
        except HistoquantError as error:
            self._say(str(error), wrong=True)
            return
        if done:
            self._redraw()
        self._say(f"{what} done." if done else f"Nothing to {what}.")

    def _edited(self, event: Any) -> None:
        begun = str(getattr(event, "action", "")).rsplit(".", 1)[-1].casefold() in ("adding", "removing", "changing")
        if self._follows and not begun:
            self._still.start()

    def _when_still(self) -> None:
        """Save what was drawn, moved or deleted, once no button of the mouse is held."""
        if QApplication.mouseButtons() != Qt.MouseButton.NoButton:
            self._still.start()
        elif self.drawing is not None and self.layer is not None:
            self.keep()

    def _moved(self, event: Any = None) -> None:
        if self._follows:
            self._timer.start()

    def keep(self) -> None:
        """Take the shapes as they are into the drawing, and save it."""
        assert self.drawing is not None
        assert self.layer is not None
        try:
            regions, rows = self._regions()
            changed = self.drawing.change(regions)
        except UnfinishedError:
            self._say("Click corner by corner; a double click ends the outline.")
            return
        except HistoquantError as error:
            self._say(str(error), wrong=True)
            return
        self._follows = False
        self.layer.features = features_of(rows)
        self.layer.feature_defaults = self._stated()
        self._paint(rows)
        self._follows = True
        if changed:
            self._list()
            self._timer.start()
            self._say(f"Saved; {self.drawing.n_undo} edit(s) can be undone.")

    def _regions(self) -> tuple[list[Region], list[dict[str, Any]]]:
        assert self.drawing is not None
        assert self.layer is not None
        return regions_in(self.layer.data, self.layer.shape_type, self.layer.features, self.drawing.regions)

    def _redraw(self) -> None:
        """Show the drawing as it is now, in place of the shapes."""
        assert self.drawing is not None
        assert self.layer is not None
        shapes = shapes_of(self.drawing.regions, self.drawing.colours)
        self._follows = False
        self.layer.selected_data = set()
        self.layer.data = []
        if shapes.data:
            self.layer.add(shapes.data, shape_type=shapes.settings["shape_type"])
        self.layer.features = shapes.settings["features"]
        self.layer.feature_defaults = self._stated()
        self._paint(shapes.settings["features"].to_dict("records"))
        self._follows = True
        self._list()
        self._show_derived()

    def _paint(self, rows: list[dict[str, Any]]) -> None:
        assert self.layer is not None
        if not rows:
            return
        colours = colours_of(row["class"] or row["name"] for row in rows)
        edges = np.array([(*(part / 255 for part in colours[row["class"] or row["name"]]), 1.0) for row in rows])
        self.layer.edge_color = edges
        self.layer.face_color = fills(edges, rows)
        self.layer.refresh_text()
        self._fit_lines()

    def _zoom(self, event: Any = None) -> None:
        self._zoomed.start()

    def _fit_lines(self) -> None:
        """Draw lines as wide on the screen as before: napari's are as wide as so many pixels of the slide."""
        self._follows, followed = False, self._follows
        for layer, width in ((self.layer, LINE_PX), (self.derived.layer, DERIVED_PX)):
            if layer is not None and layer in self.viewer.layers:
                fit_lines(layer, self._screen(width))
        self._follows = followed

    def _screen(self, width: float) -> float:
        """Return how many pixels of the slide so many of the screen are."""
        assert self.slide is not None
        return width / float(camera_of(self.viewer).zoom * self.slide.pixel_size_um)

    # ------------------------------------------------------------------ what the next region is

    def _stated(self) -> dict[str, Any]:
        name = self._name.currentText().strip() or "region"
        parent = self._lies_in.currentText().strip()
        told = {"name": name, "parent": parent, "masked": self._masked.isChecked(), "label": name}
        return dict(FEATURES) | told

    def _state_next(self) -> None:
        if self.layer is None:
            return
        stated = self._stated()
        self.layer.feature_defaults = stated
        red, green, blue = (value / 255 for value in self._colour(stated["name"]))
        self._follows = False  # napari paints what is selected in the colour of what comes next
        self.layer.selected_data = set()
        self.layer.current_edge_color = (red, green, blue, 1.0)
        self.layer.current_face_color = (red, green, blue, 0.12)
        self.layer.current_edge_width = self._screen(LINE_PX)
        self._follows = True

    def rename(self) -> None:
        """Give the selected shapes the name, parent and mask that the form states."""
        if self.layer is None or not self.layer.selected_data:
            self._say("Select a shape first.", wrong=True)
            return
        rows = self.layer.features.to_dict("records")
        chosen = {rows[n]["outline"] for n in self.layer.selected_data}
        stated = {key: self._stated()[key] for key in ("name", "parent", "masked")}
        for row in rows:
            if row["outline"] in chosen:
                row |= stated
        self.layer.features = features_of(rows)
        self.keep()

    def _colour(self, name: str) -> tuple[int, int, int]:
        drawn = [] if self.drawing is None else [r.classification or r.name for r in self.drawing.regions]
        return colours_of([*drawn, name])[name]

    def _fill_names(self) -> None:
        rules = {} if self.recipe is None else self.recipe.regions
        needed = [source for rule in rules.values() for source in rule.sources]
        drawn = [name for name, rule in rules.items() if rule.derivation is None]
        offered = dict.fromkeys([*(name for name in needed if name not in rules), *drawn, *NAMED])
        text = self._name.currentText()
        self._name.clear()
        for name in offered:
            self._name.addItem(swatch(self._colour(name)), name)
        self._name.setCurrentText(text or next(iter(offered)))

    # ------------------------------------------------------------------ what follows from the outlines

    def _show_derived(self) -> None:
        if self.slide is None or self.layer is None or self.recipe is None:
            return
        try:
            drawn, _ = self._regions()
        except HistoquantError:
            return
        width = self._screen(DERIVED_PX)
        self.derived.show(drawn, self.slide, self.recipe, edge_width=width, below=self.layer)
        self._list()

    def _find_tissue(self) -> None:
        """Look for the tissue in a thread: what is derived is kept within it, once it is found."""
        if self.slide is not None and self.recipe is not None:
            self.derived.find_tissue(self.slide, self.recipe, self._found_tissue)

    def _found_tissue(self, wrong: str) -> None:
        if wrong:
            self._say(wrong, wrong=True)
        else:
            self._show_derived()

    def _list(self) -> None:
        assert self.drawing is not None
        assert self.slide is not None
        drawn = in_um(self.drawing.regions, self.slide.pixel_size_um)
        self._tree.show_regions(drawn, self.derived.found.regions, self.recipe)
        kept = self._lies_in.currentText()
        self._lies_in.blockSignals(True)  # or the shape being drawn is deselected and loses a corner
        self._lies_in.clear()
        self._lies_in.addItems(list(dict.fromkeys(["", *(region.name for region in drawn if not region.is_line)])))
        self._lies_in.setCurrentText(kept)
        self._lies_in.blockSignals(False)
        self._undo.setEnabled(self.drawing.n_undo > 0)
        self._redo.setEnabled(self.drawing.n_redo > 0)
        self._waiting.setText("\n".join(self.derived.found.waiting))
        self._waiting.setVisible(bool(self.derived.found.waiting))

    # ------------------------------------------------------------------ the form

    def _build(self) -> None:
        self._file, self._recipe = QLabel("none"), QLabel("none")
        self._name = QComboBox()
        self._name.setEditable(True)
        self._name.setToolTip("What the next region is called; choose or type. 'Ignore...' masks its ground.")
        self._lies_in = QComboBox()
        self._lies_in.setEditable(True)
        self._lies_in.setToolTip("The region it lies in, if any; its cells are counted in both.")
        self._masked = QCheckBox("leave its ground out everywhere")
        self._name.currentTextChanged.connect(lambda _: self._state_next())
        self._lies_in.currentTextChanged.connect(lambda _: self._state_next())
        self._masked.toggled.connect(lambda _: self._state_next())
        self._fill_names()
        form = QFormLayout()
        form.addRow(button("Outlines…", self._ask_file), self._file)
        form.addRow(button("Recipe…", self._ask_recipe), self._recipe)
        form.addRow("Region", self._name)
        form.addRow("lies in", self._lies_in)
        form.addRow("Mask", self._masked)
        self._undo, self._redo = button("Undo", self.undo), button("Redo", self.redo)
        buttons = QGridLayout()
        buttons.addWidget(button("Draw area", lambda: self.start("add_polygon")), 0, 0)
        buttons.addWidget(button("Draw freehand", lambda: self.start("add_polygon_lasso")), 0, 1)
        buttons.addWidget(button("Draw line", lambda: self.start("add_path")), 0, 2)
        buttons.addWidget(button("Move corners", lambda: self.start("direct")), 1, 0)
        buttons.addWidget(button("Select", lambda: self.start("select")), 1, 1)
        buttons.addWidget(button("Name selected", self.rename), 1, 2)
        buttons.addWidget(self._undo, 2, 0)
        buttons.addWidget(self._redo, 2, 1)
        self._tree = RegionTree()
        self._waiting = QLabel()
        self._waiting.setWordWrap(True)
        self._waiting.setVisible(False)
        whole = QVBoxLayout(self)
        whole.addLayout(form)
        whole.addLayout(buttons)
        whole.addWidget(self._tree, 1)
        whole.addWidget(self._waiting)
        whole.addWidget(self._message)

    def _ask_file(self) -> None:
        slide = shown_slide(self.viewer)
        start = Path("outlines.geojson") if slide is None else slide.path.with_name(f"{named(slide)}.geojson")
        opened = [layer.metadata.get(OUTLINES) for layer in self.viewer.layers if layer is not self.layer]
        start = next((path for path in opened if path is not None), start)
        title = "Outlines to draw in (an old file is kept)"
        kept = {"options": QFileDialog.Option.DontConfirmOverwrite}
        self._ask_save(title, self.open_file, str(start), "GeoJSON (*.geojson)", **kept)

    def _ask_recipe(self) -> None:
        self._ask_open("Recipe with the derived regions", self.use_recipe, "Recipe (*.toml)")
