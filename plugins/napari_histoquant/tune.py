"""Tune a recipe on what is seen: the real path on the area shown, thresholds moved on its table, the recipe saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Points
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from histoquant.analysis.positivity import Threshold
from histoquant.errors import HistoquantError
from histoquant.form import with_value
from histoquant.inputs import read_recipe
from histoquant.model.panel import called_markers
from histoquant.model.recipe import Recipe, parse_recipe
from histoquant.model.recipe_toml import recipe_toml
from histoquant.model.slide import Slide
from histoquant.preview import Bench, Step, Trial, threshold_of
from histoquant.registry import open_slide
from histoquant.starter import brightfield_recipe, starter_recipe
from histoquant.store import write_bytes
from napari_histoquant.controls import button, soon
from napari_histoquant.form_view import FormView
from napari_histoquant.histogram import Histogram
from napari_histoquant.layers import UNITS, call_colours, cell_layer, kept
from napari_histoquant.opening import calibrated, shown_slide
from napari_histoquant.telling import TellingWidget, walk
from napari_histoquant.view import visible_box

CONTROL_PX = 4_000_000
"""Of a control section that is measured; the batch takes all of it."""

TOML = "Recipe (*.toml)"

NONE = Threshold(math.inf, "none")
"""Of a marker whose threshold is not known yet: nothing reaches it."""

SOURCES = {
    "fixed": "threshold stated",
    "auto": "threshold from this area alone",
    "controls": "threshold from the control",
}


class TuneWidget(TellingWidget):
    """Form, preview and threshold of a recipe for the slide that is shown."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.recipe: Recipe | None = None
        self.trial: Trial | None = None
        self.controls: list[Trial] = []
        self.thresholds: dict[str, Threshold] = {}
        self.worker: Any = None
        self._benches: dict[int, Bench] = {}
        self._control_slides: list[Slide] = []
        self._points: Points | None = None
        self._nuclei: Labels | None = None
        self._drawn = soon(self, self._show_cells)
        self._build()
        self._say("Load a recipe, or begin one from the channels of the slide.")

    # ------------------------------------------------------------------ recipes

    def load(self, path: Path) -> None:
        """Take a recipe from a file.

        Raises
        ------
        HistoquantError
            Every fault of it.
        """
        self._take(read_recipe(path), path.name)
        self._say(f"Recipe '{path.name}'. Zoom to a place, then preview it.")

    def begin(self) -> None:
        """Begin a recipe from the channels of the slide that is shown."""
        slide = shown_slide(self.viewer)
        if slide is None:
            self._say("Open a slide first.", wrong=True)
            return
        text = brightfield_recipe() if slide.brightfield else starter_recipe(slide.channels)
        self._take(parse_recipe(text), "new recipe")
        self._say("Say which channel shows which marker, and how its threshold is found.")

    def save(self, path: Path) -> None:
        """Write the recipe as the batch runs it.

        Raises
        ------
        StoreError
            If the file cannot be written.
        """
        if self.recipe is None:
            self._say("There is no recipe to save yet.", wrong=True)
            return
        write_bytes(path, recipe_toml(self.recipe).encode(), make_folder=False)
        self._say(f"Saved '{path.name}': histoquant run study.csv --recipe {path.name} --out results")

    def _take(self, recipe: Recipe, name: str) -> None:
        self.recipe = recipe
        self._recipe_name.setText(name)
        self._form.show_recipe(recipe)
        marker, markers = self._marker.currentText(), called_markers(recipe.panel)
        self._marker.blockSignals(True)
        self._marker.clear()
        self._marker.addItems(markers)
        if marker in markers:
            self._marker.setCurrentText(marker)
        self._marker.blockSignals(False)
        self.recall()

    def _form_changed(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.recall()

    # ------------------------------------------------------------------ previews

    def preview(self) -> None:
        """Measure the area that is shown, in a thread."""
        slide = shown_slide(self.viewer)
        if slide is None or self.recipe is None:
            self._say("Open a slide and load a recipe first.", wrong=True)
            return
        bench, box = self.bench(slide), visible_box(self.viewer, slide)
        self._start(bench.trial(self.recipe, box), self._previewed)

    def measure_control(self, path: Path) -> None:
        """Measure a negative control: all of it, or a square of `CONTROL_PX` on its tissue.

        Raises
        ------
        HistoquantError
            If it cannot be opened.
        """
        if self.recipe is None:
            self._say("Load a recipe first.", wrong=True)
            return
        self._control_slides.append(kept(calibrated(open_slide(path))))
        self._start(_sampled(self.bench(self._control_slides[-1]), self.recipe), self._controlled)

    def cancel(self) -> None:
        """Stop after the tile that is being worked on."""
        if self.worker is not None:
            self.worker.quit()
            self._say("Stopping after this tile.")

    def bench(self, slide: Slide) -> Bench:
        """Return the bench of a slide: it keeps its surveys."""
        return self._benches.setdefault(id(slide), Bench(slide))

    def _start(self, steps: Any, done: Any) -> None:
        if self.worker is not None:
            self._say("A preview is under way; cancel it first.", wrong=True)
            return
        self.worker = walk(steps)
        self.worker.yielded.connect(self._progressed)
        self.worker.returned.connect(lambda made: self._returned(made, done))
        self.worker.finished.connect(self._ended)
        self._busy(True)
        self.worker.start()

    def _progressed(self, step: Step) -> None:
        self._bar.setRange(0, step.total)
        self._bar.setValue(step.done)
        if step.what:
            self._say(f"{step.what[0].upper()}{step.what[1:]} …")

    def _returned(self, made: Trial | str | None, done: Callable[[Trial], None]) -> None:
        if isinstance(made, str):
            self._say(made, wrong=True)
        elif made is not None:  # nothing is made when it was cancelled
            done(made)

    def _ended(self) -> None:
        self.worker = None
        self._busy(False)
        if self._message.text().startswith("Stopping"):
            self._say("Cancelled; nothing was changed.")

    def _previewed(self, trial: Trial) -> None:
        self.trial = trial
        self.recall()

    def _controlled(self, trial: Trial) -> None:
        self.controls = [each for each in self.controls if each.work.slide.path != trial.work.slide.path] + [trial]
        names = ", ".join(each.work.slide.name for each in self.controls)
        share = 100 * trial.area_mm2 / (np.prod(trial.work.slide.shape) * trial.work.slide.pixel_size_um**2 / 1e6)
        self._control.setText(f"{names} ({share:.0f} % of it)" if share < 99.5 else names)
        self.recall()

    # ------------------------------------------------------------------ calls

    def recall(self) -> None:
        """Call the measured cells anew with the recipe as it is; no pixel is read."""
        recipe, trial = self.recipe, self.trial
        if recipe is None or trial is None:
            self._show_histogram()
            return
        if not trial.fits(recipe):
            self._say("What changed needs pixels: preview again to see it.")
            return
        self.trial = trial = trial.under(recipe)
        faults = []
        self.thresholds = {}
        for marker in called_markers(recipe.panel):
            try:
                self.thresholds[marker] = threshold_of(trial, marker, self._fitting())
            except HistoquantError as error:
                self.thresholds[marker] = NONE
                faults.append(str(error))
        self._show_cells()
        self._show_histogram()
        if faults:
            self._say("\n".join([self._message.text(), *faults]), wrong=True)

    def _fitting(self) -> list[Trial]:
        """Return the controls that were measured as the recipe says."""
        recipe = self.recipe
        return [] if recipe is None else [control.under(recipe) for control in self.controls if control.fits(recipe)]

    def set_threshold(self, value: float) -> None:
        """State the threshold of the marker chosen; its cells are called anew at once."""
        marker = self._marker.currentText()
        if self.recipe is None or not marker:
            return
        value = float(f"{value:.4g}")
        try:
            self.recipe = with_value(self.recipe, ("panel", marker, "positive", "threshold"), value)
        except HistoquantError as error:
            self._say(str(error), wrong=True)
            return
        self._form.show_recipe(self.recipe)
        if self.trial is None or not self.trial.fits(self.recipe):
            return
        self.trial = self.trial.under(self.recipe)
        self.thresholds[marker] = Threshold(value, "fixed")
        self._histogram.show_threshold(value)
        self._show_value(value)
        self._count(self.cells(), called_markers(self.trial.work.panel))
        self._drawn.start()  # the rings follow when the line rests: napari takes half a second for 50,000 of them

    def cells(self) -> Any:
        """Return the cells of the preview with their calls; none is positive for a marker without a threshold."""
        assert self.trial is not None
        return self.trial.called(self.thresholds)

    def _show_cells(self) -> None:
        trial = self.trial
        if trial is None:
            return
        cells, markers = self.cells(), called_markers(trial.work.panel)
        points = self._points
        if points is not None and points in self.viewer.layers and points.metadata["measured"] is trial.measured:
            points.border_color = call_colours(cells, markers)
        else:
            self._replace_layers(trial, cells, markers)
        self._count(cells, markers)

    def _replace_layers(self, trial: Trial, cells: Any, markers: Sequence[str]) -> None:
        for layer in (self._points, self._nuclei):
            if layer is not None and layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        active = self.viewer.layers.selection.active
        px, box = trial.work.slide.pixel_size_um, trial.box
        self._nuclei = self.viewer.add_labels(
            trial.labels,
            name="preview · nuclei",
            scale=(px, px),
            translate=((box.y0 + 0.5) * px, (box.x0 + 0.5) * px),
            units=UNITS,
            opacity=0.6,
        )
        self._nuclei.contour = 1
        data, settings, _ = cell_layer(cells, markers, name="preview · cells")
        self._points = self.viewer.add_points(data, **settings, metadata={"measured": trial.measured})
        self.viewer.layers.selection.active = active

    def _count(self, cells: Any, markers: Sequence[str]) -> None:
        assert self.trial is not None
        lines = [f"{len(cells):,} nuclei in {self.trial.area_mm2:.3f} mm²"]
        for marker in markers:
            if self.thresholds[marker] is NONE:
                continue
            n = int(cells[f"{marker}_positive"].sum())
            share = f"{100 * n / len(cells):.1f} %, " if len(cells) else ""
            source = SOURCES[self.thresholds[marker].source]
            lines.append(f"{marker}+ {n:,} ({share}{n / self.trial.area_mm2:,.0f} per mm²; {source})")
        self._say("\n".join(lines))

    def _show_histogram(self) -> None:
        marker = self._marker.currentText()
        if self.trial is None or marker not in self.trial.work.rules:
            self._histogram.show_values("", np.empty(0), None, None)
            rule = self.recipe.panel[marker].positive if self.recipe and marker else None
            self._show_value(None if rule is None else rule.threshold)
            return
        threshold = self.thresholds[marker]
        value = None if threshold is NONE else threshold.value
        control = [each.values(marker) for each in self._fitting()]
        self._histogram.show_values(
            f"{marker}, above local background",
            self.trial.values(marker),
            np.concatenate(control) if control else None,
            value,
        )
        self._show_value(value)

    def _show_value(self, value: object) -> None:
        self._value.blockSignals(True)
        self._value.setValue(value if isinstance(value, int | float) else self._value.minimum())
        self._value.blockSignals(False)

    # ------------------------------------------------------------------ the widget

    def _build(self) -> None:
        self._recipe_name, self._control = QLabel("none"), QLabel("none measured")
        self._control.setWordWrap(True)
        files = QGridLayout()
        files.addWidget(QLabel("Recipe"), 0, 0)
        files.addWidget(self._recipe_name, 0, 1, 1, 3)
        for column, (text, action) in enumerate(
            (
                ("Load…", lambda: self._ask_open("Recipe", self.load, TOML)),
                ("Begin", self.begin),
                ("Save…", lambda: self._ask_save("Save the recipe", self.save, "recipe.toml", TOML)),
            )
        ):
            files.addWidget(button(text, action), 1, column + 1)
        self._preview, self._cancel = button("Preview here", self.preview), button("Cancel", self.cancel)
        self._measure = button(
            "Measure control…",
            lambda: self._ask_open("A section without the reagent or primary antibody", self.measure_control),
        )
        self._bar = QProgressBar()
        self._bar.setVisible(False)
        work = QHBoxLayout()
        work.addWidget(self._preview, 1)
        work.addWidget(self._cancel)
        control = QHBoxLayout()
        control.addWidget(self._measure)
        control.addWidget(self._control, 1)
        self._marker, self._value = QComboBox(), QDoubleSpinBox()
        self._marker.currentTextChanged.connect(lambda _: self._show_histogram())
        self._value.setRange(1e-4, 1e9)
        self._value.setDecimals(4)
        self._value.setSpecialValueText("not known")
        self._value.setKeyboardTracking(False)
        self._value.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        self._value.valueChanged.connect(self.set_threshold)
        row = QHBoxLayout()
        row.addWidget(QLabel("Marker"))
        row.addWidget(self._marker, 1)
        row.addWidget(QLabel("threshold"))
        row.addWidget(self._value, 1)
        self._histogram = Histogram()
        self._histogram.moved.connect(self.set_threshold)
        self._form = FormView()
        self._form.changed.connect(self._form_changed)
        self._form.refused.connect(lambda text: self._say(text, wrong=True))
        split = QSplitter(Qt.Orientation.Vertical)
        inside = QVBoxLayout(upper := QWidget())
        inside.setContentsMargins(0, 0, 0, 0)
        for part in (files, work, control, row):
            inside.addLayout(part)
        inside.insertWidget(2, self._bar)
        inside.addWidget(self._histogram, 1)
        inside.addWidget(self._message)
        split.addWidget(upper)
        split.addWidget(self._form)
        QVBoxLayout(self).addWidget(split)
        self._busy(False)

    def _busy(self, busy: bool) -> None:
        self._bar.setVisible(busy)
        self._cancel.setEnabled(busy)
        self._preview.setEnabled(not busy)
        self._measure.setEnabled(not busy)


def _sampled(bench: Bench, recipe: Recipe) -> Any:
    yield Step(0, 0, "" if bench.surveyed(recipe) else "surveying the control, once")
    return (yield from bench.trial(recipe, bench.sample_box(recipe, CONTROL_PX)))
