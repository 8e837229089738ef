"""The widgets of a review: what is chosen, what is seen, what can be done. It decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from histoquant.drawing import colours_of
from histoquant.model.edit import ACCEPT, ADD, CALL, CELL, DELETE, UNBLIND, UNDO, Edit, Value
from napari_histoquant.controls import swatch
from napari_histoquant.queue import ALL, BORDERLINE, EVERYWHERE, PLACE, Selection, class_name
from napari_histoquant.review_layers import CLASS_COLOURS, GONE_COLOUR
from napari_histoquant.reviewing import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "accept": ("Accept", ("A", "Space")),
    "flip": ("Flip", ("F",)),
    "delete": ("Delete", ("D",)),
    "add": ("Add at mouse", ("N",)),
    "previous": ("Previous", ("Left",)),
    "next": ("Next", ("Right",)),
    "undo": ("Undo", ("U", "Ctrl+Z")),
    "redo": ("Redo", ("R", "Ctrl+Y")),
}
"""What can be done with a key: its name on the button, and its keys."""

SHOWN_EDITS = 3
PANEL_PX = 390
CROP_PX = {1: 330, 2: 150, 3: 112}
"""About the side of a crop on the screen, by how many lie beside each other."""

_SAID = {ACCEPT: "accepted", CALL: "called", DELETE: "deleted", ADD: "added", UNDO: "undid:", UNBLIND: "unblinded"}


class ReviewPanel(QWidget):
    """Everything beside the canvas."""

    selected = Signal(object)
    slide_chosen = Signal(str)

    def __init__(self, actions: dict[str, Callable[..., None]]) -> None:
        super().__init__()
        self.actions = actions
        self._classes: list[Value] = []
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._quiet = False
        self._regions: list[str] = [EVERYWHERE]
        self.slide, self.marker, self.region, self.show_, self.order = (QComboBox() for _ in range(5))
        self.order.addItems([BORDERLINE, PLACE])
        self.sample, self.seed = QSpinBox(), QSpinBox()
        self.sample.setRange(0, 100_000)
        self.sample.setSpecialValueText("all")
        self.sample.setToolTip("Only so many, drawn at random, for validation")
        self.seed.setToolTip("The same number draws the same ones")
        self.progress, self.about, self.counted = QProgressBar(), QLabel(), QLabel()
        self.message, self.left_out, self.recent, self.belongs = (QLabel() for _ in range(4))
        self.why = QLineEdit()
        self.why.setPlaceholderText("why (kept with the next edit); Enter goes back to the keys")
        self.unblind = QPushButton("Unblind …")
        self._legend, self._named = QLabel(), QGridLayout()
        self._crops = QGridLayout()
        self._crops.setVerticalSpacing(2)
        self._shown: list[tuple[QLabel, QLabel]] = []
        self._arrange()
        self.slide.activated.connect(lambda _: self.slide_chosen.emit(self.slide.currentText()))
        for combo in (self.marker, self.region, self.show_, self.order):
            combo.activated.connect(self._changed)
        for number in (self.sample, self.seed):
            number.editingFinished.connect(self._changed)
        self.why.returnPressed.connect(self.setFocus)

    def _arrange(self) -> None:
        form = QFormLayout()
        form.addRow("Slide", self.slide)
        form.addRow(self.belongs)
        form.addRow("Marker", self.marker)
        form.addRow("Region", self.region)
        form.addRow("Show", _row(self.show_, self.order))
        form.addRow("Sample", _row(self.sample, QLabel("seed"), self.seed))
        keys = QGridLayout()
        for place, (name, (label, shortcuts)) in enumerate(KEYS.items()):
            button = QPushButton(f"{label}   {' / '.join(_shown(key) for key in shortcuts)}")
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.clicked.connect(self.actions[name])
            keys.addWidget(button, place // 2, place % 2)
        self._legend.setWordWrap(True)
        close = QPushButton("Close review")
        for button, name in ((self.unblind, "unblind"), (close, "close")):
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.clicked.connect(self.actions[name])
        for label in (self.about, self.counted, self.message, self.left_out, self.recent, self.belongs):
            label.setWordWrap(True)
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.message.setStyleSheet("color: #FFB000")
        for label in (self.message, self.left_out):
            label.hide()
        inside = QWidget()
        scrolled = QScrollArea()
        scrolled.setWidget(inside)
        scrolled.setWidgetResizable(True)
        scrolled.setFrameShape(QFrame.Shape.NoFrame)
        scrolled.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scrolled.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        around = QVBoxLayout(self)
        around.setContentsMargins(0, 0, 0, 0)
        around.addWidget(scrolled)
        around.addWidget(_row(self.unblind, close))
        self.setMinimumWidth(PANEL_PX)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.progress)
        layout.addLayout(self._crops)
        for widget in (self.about, self._legend, self.left_out):
            layout.addWidget(widget)
        layout.addLayout(self._named)
        layout.addLayout(keys)
        for widget in (self.why, self.counted, self.recent, self.message):
            layout.addWidget(widget)
        layout.addStretch(1)

    def bindings(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what every key does; the digits give the classes that have names."""
        listed = [(key, self.actions[name]) for name, (_, keys) in KEYS.items() for key in keys]
        return listed + [(str(n), partial(self.actions["call"], name)) for n, name in enumerate(self._classes, start=1)]

    # What is chosen

    def begin(self, session: Session) -> None:
        """List what a session has to choose from."""
        _fill(self.slide, session.slides, session.shown)
        _fill(self.marker, session.markers, self.marker.currentText())
        self.unblind.setVisible(session.blinded)

    def selection(self, session: Session) -> Selection:
        """Return what is chosen."""
        return Selection(
            marker=self.marker.currentText() or session.markers[0],
            region=self._regions[max(0, self.region.currentIndex())],
            show=self.show_.currentText(),
            order=self.order.currentText(),
            sample=self.sample.value(),
            seed=self.seed.value(),
        )

    def _changed(self, *_: object) -> None:
        if not self._quiet:
            self.selected.emit(None)
            self.setFocus()

    def take_why(self) -> str:
        """Return the reviewer's words for the next edit, and clear them."""
        words = str(self.why.text()).strip()
        self.why.clear()
        return words

    # What is shown

    def show_slide(self, session: Session) -> None:
        """List the regions of the open slide and say which slide it is."""
        assert session.here is not None
        assert session.queue is not None
        self._quiet = True
        _fill(self.slide, session.slides, session.shown)
        self._list_classes(session.here.objects.choices[session.queue.selection.marker])
        _fill(
            self.show_,
            [ALL, *map(class_name, session.here.objects.choices[session.queue.selection.marker])],
            session.queue.selection.show,
        )
        self.belongs.setText(session.belongs)
        self.belongs.setVisible(not session.blinded)
        self._regions = [EVERYWHERE, *session.here.objects.regions]
        colours = colours_of(region.classification or region.name for region in session.outlines)
        colour_of = {region.name: colours[region.classification or region.name] for region in session.outlines}
        self.region.clear()
        self.region.addItem("everywhere")
        for name in self._regions[1:]:
            veiled, told = session.names.veiled(name), _region(session, name)
            if veiled in colour_of:
                self.region.addItem(swatch(colour_of[veiled]), told)
            else:
                self.region.addItem(told)
        self.region.setCurrentIndex(self._regions.index(session.queue.selection.region))
        self._quiet = False

    def _list_classes(self, choices: tuple[Value, ...]) -> None:
        """Say which colour is which class, and offer those that have names, each with a key."""
        colours = zip(choices, CLASS_COLOURS, strict=False)
        shown = [(class_name(value), colour) for value, colour in colours] + [("deleted", GONE_COLOUR)]
        spans = [f'<span style="color:{colour}">○&nbsp;{name.replace(" ", "&nbsp;")}</span>' for name, colour in shown]
        self._legend.setText(" &nbsp; ".join([*spans, "tinted:&nbsp;looked&nbsp;at"]))
        named: list[Value] = [value for value in choices if isinstance(value, str) and value]
        if named == self._classes:
            return
        self._classes = named
        while (item := self._named.takeAt(0)) is not None:
            item.widget().deleteLater()
        for place, name in enumerate(named):
            button = QPushButton(f"{class_name(name)}   {place + 1}")
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.clicked.connect(partial(self._call, name))
            self._named.addWidget(button, place // 2, place % 2)

    def _call(self, name: Value, _: bool = False) -> None:
        self.actions["call"](name)

    @staticmethod
    def zoom_for(side_px: int, n_pictures: int) -> int:
        """Return how many pixels of the screen show one of a crop."""
        return max(1, round(CROP_PX[_columns(n_pictures)] / side_px))

    def show_crops(self, pictures: list[NDArray[np.uint8]], names: list[str]) -> None:
        """Show the crops of the current object, each under its name."""
        if len(self._shown) != len(pictures):
            for labels in self._shown:
                for label in labels:
                    self._crops.removeWidget(label)
                    label.deleteLater()
            self._shown = []
            for place in range(len(pictures)):
                row, column = divmod(place, _columns(len(pictures)))
                labels = QLabel(), QLabel()
                for offset, label in enumerate(labels):
                    label.setAlignment(Qt.AlignmentFlag.AlignCenter)
                    self._crops.addWidget(label, 2 * row + offset, column)
                self._shown.append(labels)
        for (title, pixels), picture, name in zip(self._shown, pictures, names, strict=True):
            height, width = picture.shape[:2]
            image = QImage(picture.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
            pixels.setPixmap(QPixmap.fromImage(image))
            title.setText(name)

    def show_state(self, session: Session) -> None:
        """Show progress, the current object, counts and the last edits."""
        here, queue = session.here, session.queue
        assert here is not None
        assert queue is not None
        objects, selection = here.objects, queue.selection
        self.progress.setRange(0, max(1, len(queue)))
        self.progress.setValue(queue.n_reviewed)
        self.progress.setFormat(f"{queue.n_reviewed:,} of {len(queue):,} looked at")
        index = queue.current
        if index is None:
            self.about.setText(f"No {objects.kind} fits this choice on this slide.")
        else:
            share = objects.share[selection.marker][index]
            called = f"{selection.marker} {class_name(objects.called(index, selection.marker))}"
            told = [
                f"{objects.kind} off the list" if queue.aside else f"{objects.kind} {queue.at + 1:,} of {len(queue):,}",
                _region(session, str(objects.region[index])),
                "deleted" if objects.gone[index] else called,
                *([f"{share:.2f} x threshold"] if np.isfinite(share) else []),
                *here.told(index),
                *(["looked at"] if objects.reviewed[selection.marker][index] else []),
            ]
            self.about.setText(" · ".join(told))
        counts = objects.counts(selection.marker, selection.region)
        where = "slide" if selection.region == EVERYWHERE else _region(session, selection.region)
        if objects.kind == CELL:
            told = [
                f"{selection.marker} positive in {where}:",
                f"{counts.automatic_positive:,} of {counts.automatic:,} by the run,",
                f"{counts.corrected_positive:,} of {counts.corrected:,} corrected",
            ]
        else:
            told = [f"{objects.kind}s in {where}:", f"{counts.automatic:,} by the run, {counts.corrected:,} corrected"]
        self.counted.setText(" ".join(told))
        edits = session.journal.edits[-SHOWN_EDITS:][::-1]
        self.recent.setText("\n".join(self._line(session, edit) for edit in edits))

    def show_left_out(self, n_left_out: int) -> None:
        """Say that not all points are drawn."""
        _say(self.left_out, f"{n_left_out:,} more here; come nearer to see all" if n_left_out else "")

    def _line(self, session: Session, edit: Edit) -> str:
        """Return an edit of the journal as the reviewer may see it."""
        when = datetime.fromisoformat(edit.at).astimezone().strftime("%H:%M:%S")
        slide = session.names.shown(edit.slide_id) if edit.slide_id in session.names.codes else ""
        change = " → ".join(filter(None, (class_name(edit.old), class_name(edit.new)))) if edit.action == CALL else ""
        if edit.action in (ACCEPT, ADD):
            change = class_name(edit.new)
        said = _SAID[edit.action]
        if edit.action == UNDO:
            by_id = {other.id: other for other in session.journal.edits}
            undone, n_undos = by_id.get(edit.undoes), 1
            while undone is not None and undone.action == UNDO:
                undone, n_undos = by_id.get(undone.undoes), n_undos + 1
            said = _SAID[UNDO] if n_undos % 2 else "redid:"  # an undo that is undone is what was done before
            change = _SAID[undone.action] if undone is not None else ""
        marked = "" if edit.blinded or edit.action == UNBLIND else "(not blind)"
        marker = edit.marker if change and edit.action != UNDO else ""
        parts = (when, slide, said, marker, change, marked)
        return "  ".join(part for part in parts if part)

    def tell(self, text: str) -> None:
        """Show what went wrong; nothing when all is well."""
        _say(self.message, text)


def _region(session: Session, name: str) -> str:
    """Return what a region of the open slide is called, as a reviewer may read it."""
    assert session.here is not None
    return session.here.region_word + session.names.veiled(name)


def _columns(n_pictures: int) -> int:
    return {0: 1, 1: 1, 2: 2, 4: 2}.get(n_pictures, 3)


def _say(label: QLabel, text: str) -> None:
    """Show a text; without one the label takes no room."""
    label.setText(text)
    label.setVisible(bool(text))


def _row(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def _fill(combo: QComboBox, names: list[str], current: str) -> None:
    combo.clear()
    combo.addItems(names)
    combo.setCurrentIndex(max(0, combo.findText(current)))


def _shown(key: str) -> str:
    return {"Left": "←", "Right": "→"}.get(key, key)
