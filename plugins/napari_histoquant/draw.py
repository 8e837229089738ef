"""Draw regions: a layer of outlines that saves itself, and what the recipe derives from them, live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Shapes
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QLabel,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from histoquant.drawing import NAMED, Derived, Drawing, colours_of, derive, in_um
from histoquant.errors import HistoquantError
from histoquant.inputs import read_recipe
from histoquant.model.recipe import Recipe
from histoquant.model.region import Region
from histoquant.model.slide import Slide
from napari_histoquant.layers import DRAWN, OUTLINES, UNITS, named, outline_layer
from napari_histoquant.opening import shown_slide
from napari_histoquant.shapes import FEATURES, features_of, fills, regions_in, shapes_of

LIVE_MS = 60
"""Pause after which derived regions follow an edit: a few pictures a second while a corner is dragged."""

UM2_PER_MM2 = 1e6


class DrawWidget(QWidget):
    """Regions of the slide that is shown.

    Every edit goes into the outlines' file and its history at once; undo and redo reach back across sessions.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.slide: Slide | None = None
        self.drawing: Drawing | None = None
        self.layer: Shapes | None = None
        self.derived: Shapes | None = None
        self.recipe: Recipe | None = None
        self._follows = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(LIVE_MS)
        self._timer.timeout.connect(self._show_derived)
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
        data, settings, _ = outline_layer(
            drawing.regions, slide.pixel_size_um, name=f"outlines · {named(slide)}", path=path
        )
        self.layer = self.viewer.add_shapes(data, **(settings if data else settings | {"ndim": 2, "text": None}))
        if not data:
            self.layer.features = features_of([])
            self.layer.text = settings["text"]
        self.layer.feature_defaults = self._stated()
        self.layer.events.data.connect(self._edited)
        self.layer.events.set_data.connect(self._moved)
        self._follows = True
        self._file.setText(path.name)
        self._file.setToolTip(str(path))
        self._list()
        self._show_derived()
        self._say(f"{len(drawing.regions)} outlines; {drawing.n_undo} edits can be undone.")

    def use_recipe(self, path: Path) -> None:
        """Take names and derived regions from a recipe."""
        self.recipe = read_recipe(path)
        self._recipe.setText(path.name)
        self._fill_names()
        self._show_derived()

    def _drop_layers(self, *others: Shapes) -> None:
        self._follows = False
        for layer in (self.layer, self.derived, *others):
            if layer is not None and layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        self.layer = self.derived = None

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
        """Save what was drawn, moved or deleted, once it is finished."""
        said = str(getattr(event, "action", "changed")).rsplit(".", 1)[-1].casefold()
        if self._follows and said not in ("adding", "removing", "changing") and not self._unfinished():
            self.keep()

    def _unfinished(self) -> bool:
        # napari tells nobody else that a polygon still waits for its next corner.
        return bool(getattr(self.layer, "_is_creating", False))

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
            self._say(f"Saved; {self.drawing.n_undo} edits can be undone.")

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
        self.layer.edge_width = [3] * len(rows)
        self.layer.refresh_text()

    # ------------------------------------------------------------------ what the next region is

    def _stated(self) -> dict[str, Any]:
        name = self._name.currentText().strip() or "region"
        parent = self._parent.currentText().strip()
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
        self.layer.current_edge_width = 3
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
            self._name.addItem(_swatch(self._colour(name)), name)
        self._name.setCurrentText(text or next(iter(offered)))

    # ------------------------------------------------------------------ what follows from the outlines

    def _show_derived(self) -> None:
        if self.slide is None or self.layer is None or self.recipe is None or self._unfinished():
            return
        px = self.slide.pixel_size_um
        try:
            drawn, _ = self._regions()
        except HistoquantError:
            return
        height, width = self.slide.shape
        found = derive(drawn, self.recipe.regions, slide_um=(height * px, width * px), pixel_size_um=px)
        in_pixels = [region for region in in_um(found.regions, 1 / px) if not region.geometry.is_empty]
        shapes = shapes_of(in_pixels, colours_of(region.name for region in in_pixels))
        settings = {"shape_type": shapes.settings["shape_type"], "edge_width": 2, "face_color": "transparent"}
        if self.derived is None or self.derived not in self.viewer.layers:
            active = self.viewer.layers.selection.active
            self.derived = self.viewer.add_shapes(
                ndim=2, name="derived from the recipe", scale=(px, px), units=UNITS, opacity=0.9
            )
            self.derived.editable = False
            self.viewer.layers.selection.active = active
        self.derived.data = []
        if shapes.data:
            self.derived.add(shapes.data, edge_color=shapes.settings["edge_color"], **settings)
            self.derived.features = shapes.settings["features"]
            self.derived.text = shapes.settings["text"]
        self._list(found)

    def _list(self, found: Derived | None = None) -> None:
        """List the regions by their parents, with areas; what is derived stands in italics."""
        assert self.drawing is not None
        assert self.slide is not None
        self._tree.clear()
        items: dict[str, QTreeWidgetItem] = {}
        px = self.slide.pixel_size_um
        rows = [(region, False) for region in in_um(self.drawing.regions, px)]
        rows += [(region, True) for region in (() if found is None else found.regions)]
        for region, is_derived in rows:
            kind = "line" if region.is_line else "mask" if region.masked else ""
            area = (
                f"{region.geometry.length:,.0f} um" if region.is_line else f"{region.geometry.area / UM2_PER_MM2:.4f}"
            )
            item = QTreeWidgetItem([region.name, area, "derived" if is_derived else kind])
            item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            item.setIcon(0, _swatch(self._colour(region.classification or region.name)))
            font = item.font(0)
            font.setItalic(is_derived)
            item.setFont(0, font)
            items.setdefault(region.name, item)
            rule = None if self.recipe is None else self.recipe.regions.get(region.name)
            parent = items.get(region.parent or (rule.parent if rule is not None else None) or "")
            if parent is None or parent is item:
                self._tree.addTopLevelItem(item)
            else:
                parent.addChild(item)
        self._tree.expandAll()
        names = dict.fromkeys(["", *(region.name for region, _ in rows if not region.is_line)])
        kept = self._parent.currentText()
        self._parent.clear()
        self._parent.addItems(names)
        self._parent.setCurrentText(kept)
        self._undo.setEnabled(self.drawing.n_undo > 0)
        self._redo.setEnabled(self.drawing.n_redo > 0)
        if found is not None:
            self._waiting.setText("\n".join(found.waiting))
            self._waiting.setVisible(bool(found.waiting))

    # ------------------------------------------------------------------ the form

    def _build(self) -> None:
        self._file, self._recipe = QLabel("none"), QLabel("none")
        self._name = QComboBox()
        self._name.setEditable(True)
        self._name.setToolTip("What the next region is called; choose or type. 'Ignore...' masks its ground.")
        self._parent = QComboBox()
        self._parent.setEditable(True)
        self._parent.setToolTip("The region it lies in, if any; its cells are counted in both.")
        self._masked = QCheckBox("leave its ground out everywhere")
        self._name.currentTextChanged.connect(lambda _: self._state_next())
        self._parent.currentTextChanged.connect(lambda _: self._state_next())
        self._masked.toggled.connect(lambda _: self._state_next())
        self._fill_names()
        form = QFormLayout()
        form.addRow(button("Outlines…", self._ask_file), self._file)
        form.addRow(button("Recipe…", self._ask_recipe), self._recipe)
        form.addRow("Region", self._name)
        form.addRow("lies in", self._parent)
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
        self._tree = QTreeWidget()
        self._tree.setHeaderLabels(["Region", "Size", ""])
        self._tree.setColumnWidth(0, 150)
        self._tree.setMinimumHeight(140)
        self._waiting, self._message = QLabel(), QLabel()
        for label in (self._waiting, self._message):
            label.setWordWrap(True)
        self._waiting.setVisible(False)
        whole = QVBoxLayout(self)
        whole.addLayout(form)
        whole.addLayout(buttons)
        whole.addWidget(self._tree, 1)
        whole.addWidget(self._waiting)
        whole.addWidget(self._message)

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self._message.setStyleSheet("color: #ff8a80" if wrong else "")
        self._message.setText(text)

    def _ask_file(self) -> None:
        slide = shown_slide(self.viewer)
        start = Path("outlines.geojson") if slide is None else slide.path.with_name(f"{named(slide)}.geojson")
        opened = [layer.metadata.get(OUTLINES) for layer in self.viewer.layers if layer is not self.layer]
        start = next((path for path in opened if path is not None), start)
        dialog = QFileDialog.Option.DontConfirmOverwrite
        path, _ = QFileDialog.getSaveFileName(
            self, "Outlines to draw in (an old file is kept)", str(start), "GeoJSON (*.geojson)", options=dialog
        )
        self._try(self.open_file, path)

    def _ask_recipe(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Recipe with the derived regions", "", "Recipe (*.toml)")
        self._try(self.use_recipe, path)

    def _try(self, action: Any, path: str) -> None:
        if path:
            try:
                action(Path(path))
            except HistoquantError as error:
                self._say(str(error), wrong=True)


def button(text: str, action: Any) -> QPushButton:
    """Return a button that does something."""
    button = QPushButton(text)
    button.clicked.connect(lambda _checked=False: action())
    return button


def _swatch(colour: tuple[int, int, int]) -> QIcon:
    pixmap = QPixmap(12, 12)
    pixmap.fill(QColor(*colour))
    return QIcon(pixmap)
