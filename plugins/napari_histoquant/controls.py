"""Small parts of the widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QPushButton, QWidget

PAUSE_MS = 60
"""Pause after which what depends on an edit follows it: a few pictures a second while a corner is dragged."""


def soon(owner: QWidget, action: Callable[[], Any]) -> QTimer:
    """Return a timer that does something once, a moment after it was started last."""
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(PAUSE_MS)
    timer.timeout.connect(action)
    return timer


def button(text: str, action: Callable[[], Any]) -> QPushButton:
    """Return a button that does something."""
    button = QPushButton(text)
    button.clicked.connect(lambda _checked=False: action())
    return button


def swatch(colour: tuple[int, int, int]) -> QIcon:
    """Return a small square of a colour."""
    pixmap = QPixmap(12, 12)
    pixmap.fill(QColor(*colour))
    return QIcon(pixmap)
