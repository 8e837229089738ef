"""A recipe's form on the screen: sections that fold, one line per entry of `histoquant.form`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QSpinBox,
    QTreeWidget,
    QTreeWidgetItem,
    QWidget,
)

from histoquant.errors import HistoquantError
from histoquant.form import Entry, entries, names_in, with_value, words_of
from histoquant.model.recipe import Recipe

OPEN = ("Positive when",)
"""Sections that are unfolded at first, by a part of their name."""

FAR = 1e9
"""What stands for no bound: spin boxes must have one."""

NUMBER = "number"
ARROW_PX = 54
"""Of a choice, beside its word."""


class FormView(QTreeWidget):
    """The form of a recipe. Every change gives another recipe, or says why it is not allowed."""

    changed = Signal(object)
    refused = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.recipe: Recipe | None = None
        self.fields: dict[tuple[str, ...], QWidget] = {}
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._lines: dict[tuple[str, ...], QTreeWidgetItem] = {}
        self.setHeaderHidden(True)
        self.setColumnCount(2)
        self.header().setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setMinimumHeight(180)

    def show_recipe(self, recipe: Recipe) -> None:
        """Show a recipe: lines whose value changed are made anew, all of them where others are needed."""
        self.recipe = recipe
        wanted = {entry.path: entry for entry in entries(recipe)}
        if list(wanted) != list(self._entries):
            self._rebuild(wanted)
            return
        for path, entry in wanted.items():
            if entry != self._entries[path]:
                self._fill(entry)

    def _rebuild(self, wanted: dict[tuple[str, ...], Entry]) -> None:
        sections = [self.topLevelItem(n) for n in range(self.topLevelItemCount())]
        unfolded = {section.text(0): section.isExpanded() for section in sections}
        place = self.verticalScrollBar().value()
        self.clear()
        self.fields, self._entries, self._lines = {}, {}, {}
        made: dict[str, QTreeWidgetItem] = {}
        for entry in wanted.values():
            if entry.section not in made:
                section = made[entry.section] = QTreeWidgetItem([entry.section])
                self.addTopLevelItem(section)
                section.setFirstColumnSpanned(True)
                section.setExpanded(unfolded.get(entry.section, any(part in entry.section for part in OPEN)))
            self._lines[entry.path] = QTreeWidgetItem([entry.title])
            made[entry.section].addChild(self._lines[entry.path])
            self._fill(entry)
        self.verticalScrollBar().setValue(place)

    def _fill(self, entry: Entry) -> None:
        told = entry.help + ("" if entry.default is None else f"\nDefault: {_words(entry.default)}")
        field = _field(entry, partial(self._set, entry.path))
        for owner in (field, *field.findChildren(QWidget)):
            owner.setToolTip(told)
        self._lines[entry.path].setToolTip(0, told)
        self._entries[entry.path], self.fields[entry.path] = entry, field
        self.setItemWidget(self._lines[entry.path], 1, field)

    def _set(self, path: tuple[str, ...], value: Any) -> None:
        assert self.recipe is not None
        try:
            if isinstance(value, HistoquantError):
                raise value
            changed = with_value(self.recipe, path, value)
        except HistoquantError as error:
            self.refused.emit(str(error))
            return
        if changed == self.recipe:
            return
        wanted = {entry.path: entry for entry in entries(changed)}
        if path in wanted:  # the field that was changed shows it already, and must outlive its own signal
            self._entries[path] = wanted[path]
        self.recipe = changed
        if list(wanted) != list(self._entries):
            QTimer.singleShot(0, lambda: self.show_recipe(self.recipe) if self.recipe is not None else None)
        self.changed.emit(changed)


def _words(value: Any) -> str:
    """Return a default as words."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _field(entry: Entry, tell: Callable[[Any], None]) -> QWidget:
    """Return what an entry is changed with; it tells every finished change."""
    if entry.truth:
        return _truth(entry, tell)
    if entry.number is not None and entry.choices:
        return _Either(entry, tell)
    if entry.choices:
        return _choice(entry, tell)
    if entry.number is not None and not entry.text:
        return _Optional(entry, tell) if entry.optional else _number(entry, entry.value, tell)
    return _line(entry, tell)


def _truth(entry: Entry, tell: Callable[[Any], None]) -> QWidget:
    if entry.optional:
        words = {"as usual": None, "yes": True, "no": False}
        box = QComboBox()
        box.addItems(list(words))
        box.setCurrentText(next(word for word, value in words.items() if value == entry.value))
        box.textActivated.connect(lambda word: tell(words[word]))
        return box
    tick = QCheckBox()
    tick.setChecked(bool(entry.value))
    tick.toggled.connect(tell)
    return tick


def _choice(entry: Entry, tell: Callable[[Any], None]) -> QComboBox:
    box = QComboBox()
    box.addItems(["", *entry.choices] if entry.optional else list(entry.choices))
    box.setCurrentText(entry.value or "")
    box.textActivated.connect(lambda word: tell(word or None))
    return box


class _WholeBox(QSpinBox):
    """A number that scrolling through the form does not change."""

    def wheelEvent(self, event: Any) -> None:
        """Leave the wheel to the form."""
        event.ignore()


class _NumberBox(QDoubleSpinBox):
    """A number that scrolling through the form does not change, without idle zeros."""

    def textFromValue(self, value: float) -> str:
        """Return the number as it is written."""
        return f"{value:.6g}"

    def wheelEvent(self, event: Any) -> None:
        """Leave the wheel to the form."""
        event.ignore()


def _number(entry: Entry, value: float | None, tell: Callable[[Any], None]) -> QSpinBox | QDoubleSpinBox:
    bounds, whole = entry.bounds, entry.number is int
    low, high = (-FAR if bounds.low is None else bounds.low), (FAR if bounds.high is None else bounds.high)
    box: QSpinBox | QDoubleSpinBox
    if whole:
        box = _WholeBox()
        box.setRange(int(low), int(high))
        box.setValue(int(value or 0))
    else:
        box = _NumberBox()
        near = 1e-4  # the smallest step that is shown: the bound itself is not allowed
        box.setDecimals(4)
        box.setRange(low + near * bounds.open_low, high - near * bounds.open_high)
        box.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        box.setValue(float(value or 0.0))
    box.setKeyboardTracking(False)
    box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    box.valueChanged.connect(tell)
    return box


def _line(entry: Entry, tell: Callable[[Any], None]) -> QLineEdit:
    line = QLineEdit(words_of(entry) if entry.names else "" if entry.value is None else str(entry.value))
    line.setPlaceholderText("as the help says" if entry.optional else "none" if entry.names else "")

    def finished() -> None:
        text = line.text().strip()
        if entry.names:
            try:
                tell(names_in(entry, text))
            except HistoquantError as error:
                tell(error)
        elif entry.number is int and text.isdigit():
            tell(int(text))
        else:
            tell(text or None)

    line.editingFinished.connect(finished)
    return line


class _Optional(QWidget):
    """A number that need not be stated."""

    def __init__(self, entry: Entry, tell: Callable[[Any], None]) -> None:
        super().__init__()
        self.stated = QCheckBox()
        self.stated.setChecked(entry.value is not None)
        self.box = _number(entry, entry.value, lambda value: tell(value) if self.stated.isChecked() else None)
        self.box.setEnabled(entry.value is not None)
        self.stated.toggled.connect(self.box.setEnabled)
        self.stated.toggled.connect(lambda on: tell(self.box.value() if on else None))
        _in_a_row(self, self.stated, self.box)


class _Either(QWidget):
    """A word, or a number."""

    def __init__(self, entry: Entry, tell: Callable[[Any], None]) -> None:
        super().__init__()
        self.word = QComboBox()
        self.word.addItems([*entry.choices, NUMBER])
        widest = max(map(self.word.fontMetrics().horizontalAdvance, (*entry.choices, NUMBER)))
        self.word.setMinimumWidth(widest + ARROW_PX)  # no word is cut to make room for the number
        is_number = not isinstance(entry.value, str)
        self.word.setCurrentText(NUMBER if is_number else entry.value)
        self.box = _number(entry, entry.value if is_number else None, tell)
        self.box.setVisible(is_number)
        self.word.textActivated.connect(lambda word: self.box.setVisible(word == NUMBER))
        self.word.textActivated.connect(lambda word: None if word == NUMBER else tell(word))
        _in_a_row(self, self.word, self.box)


def _in_a_row(owner: QWidget, *parts: QWidget) -> None:
    row = QHBoxLayout(owner)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(4)
    for part in parts:
        row.addWidget(part)
    row.addStretch(1)
