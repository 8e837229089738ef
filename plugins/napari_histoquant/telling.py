"""What the widgets share: a line in which they tell how things went, files that are asked for, and work in threads."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from napari.qt.threading import thread_worker
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QLabel, QWidget

from histoquant.errors import HistoquantError

WRONG_COLOUR = "#ff8a80"


class TellingWidget(QWidget):
    """A widget that says what it did, and in one sentence what is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._message = QLabel()
        self._message.setWordWrap(True)
        self._message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self._message.setStyleSheet(f"color: {WRONG_COLOUR}" if wrong else "")
        self._message.setText(text)

    def _ask_open(self, title: str, action: Callable[[Path], object], kinds: str = "") -> None:
        """Ask for a file and do something with it, unless nobody chose one."""
        path, _ = QFileDialog.getOpenFileName(self, title, "", kinds)
        self._try(action, path)

    def _ask_save(self, title: str, action: Callable[[Path], object], start: str, kinds: str, **settings: Any) -> None:
        """Ask for a file that need not be there yet, and do something with it."""
        path, _ = QFileDialog.getSaveFileName(self, title, start, kinds, **settings)
        self._try(action, path)

    def _try(self, action: Callable[[Path], object], path: str) -> None:
        if path:
            try:
                action(Path(path))
            except HistoquantError as error:
                self._say(str(error), wrong=True)


@thread_worker  # type: ignore[misc]
def walk(steps: Generator[Any, Any, Any]) -> Any:
    """Go through steps in a thread, and return what they return, or the sentence that says why there is nothing.

    napari asks between two steps whether to go on. An error that is returned it would raise.
    """
    try:
        made = yield from steps
    except HistoquantError as error:
        return str(error)
    return made
