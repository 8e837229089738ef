"""Hands and eyes of the scripted session: mouse and keys in a napari window, files chosen in dialogs, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QFileDialog, QLineEdit, QPushButton, QTabBar, QWidget

WINDOW = (1390, 980)
FEWEST_COLOURS = 500
"""Of a picture: fewer would be a canvas that was not drawn."""

PATIENCE_S = 120.0
"""The first preview on a machine compiles its loops, which takes a busy one half a minute."""


class Hands:
    """One window of napari, and a person before it.

    Parameters
    ----------
    title : str
        Of the window.
    pictures : Path
        Where pictures of it are saved.
    """

    def __init__(self, title: str, pictures: Path) -> None:
        self.viewer = napari.Viewer(title=title)
        self.viewer.window.resize(*WINDOW)
        self.pictures = pictures
        self.canvas = self.viewer.window._qt_viewer.canvas.native
        self.window = self.viewer.window._qt_window
        settle()

    def widget(self, name: str) -> QWidget:
        """Open one of the plug-in's widgets, as its menu does, beside those that are open."""
        _, widget = self.viewer.window.add_plugin_dock_widget("histoquant", name, tabify=True)
        settle()
        return widget

    def turn_to(self, name: str) -> None:
        """Click on the tab of a widget that lies behind another."""
        for bar in self.window.findChildren(QTabBar):
            for number in range(bar.count()):
                if bar.tabText(number).startswith(name):
                    QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=bar.tabRect(number).center())
                    settle()
                    return
        raise RuntimeError(f"There is no tab '{name}'.")

    def to_front(self) -> None:
        """Turn to this window."""
        self.window.raise_()
        self.window.activateWindow()
        settle(0.1)

    def press(self, key: Qt.Key) -> None:
        """Press a key in the window."""
        QTest.keyClick(self.window.windowHandle(), key)
        QApplication.processEvents()

    def look_at(self, place_um: tuple[float, float], zoom: float) -> None:
        """Move the canvas to a place (y, x)."""
        self.viewer.scene.camera.center = (0, *place_um)
        self.viewer.scene.camera.zoom = zoom
        settle(0.4)

    def click_corners(self, corners_um: Sequence[tuple[float, float]]) -> None:
        """Click on the canvas at each corner (y, x), and end the outline with Esc."""
        for corner in corners_um:
            place = self._on_screen(corner)
            QTest.mouseMove(self.canvas, place)
            # napari follows the mouse a moment later, and a click before that would count where the mouse was
            wait_until(lambda corner=corner: self._is_at(corner), f"the mouse arrives at {corner}")
            settle(0.05)
            QTest.mouseClick(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
            settle(0.04)
        QTest.keyClick(self.canvas, Qt.Key.Key_Escape)

    def _is_at(self, place_um: tuple[float, float]) -> bool:
        """Return whether napari has seen the mouse at a place, to two pixels of the screen."""
        away = np.abs(np.array(self.viewer.cursor.position[-2:]) - place_um).max()
        return bool(away * self.viewer.scene.camera.zoom < 2)

    def _on_screen(self, place_um: tuple[float, float]) -> QPoint:
        camera = self.viewer.scene.camera
        size = np.array([self.canvas.height(), self.canvas.width()])
        moved = (np.array(place_um) - camera.center[-2:]) * camera.zoom / self.canvas.devicePixelRatio()
        y, x = size / 2 + moved
        return QPoint(round(x), round(y))

    def take(self, name: str) -> None:
        """Take a picture of the whole window.

        Raises
        ------
        RuntimeError
            If there is hardly anything on it.
        """
        settle(0.4)
        picture = self.viewer.screenshot(canvas_only=False, flash=False)[..., :3]
        n_colours = len(np.unique(picture.reshape(-1, 3), axis=0))
        if n_colours < FEWEST_COLOURS:
            raise RuntimeError(f"The picture '{name}' has {n_colours} colours only: the canvas was not drawn.")
        few = Image.fromarray(picture).quantize(256, kmeans=1, dither=Image.Dither.NONE)  # a third of the size
        few.save(self.pictures / f"{name}.png", optimize=True)


def settle(seconds: float = 0.2) -> None:
    """Let the screen catch up."""
    QTest.qWait(round(1000 * seconds))
    QApplication.processEvents()


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Wait for something; raises `TimeoutError` when it does not come."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {PATIENCE_S:.0f} s in vain: {what}.")
        settle(0.05)


def click(inside: QWidget, text: str) -> None:
    """Click on the button that has a text."""
    (button,) = (each for each in inside.findChildren(QPushButton) if each.text() == text)
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def type_over(field: QLineEdit, text: str) -> None:
    """Write a text in the place of what a field holds."""
    field.selectAll()
    QTest.keyClick(field, Qt.Key.Key_Delete)
    QTest.keyClicks(field, text)
    QTest.keyClick(field, Qt.Key.Key_Return)


def choose(inside: QWidget, text: str, path: Path) -> None:
    """Click on a button that asks for a file, state its path in the dialog, and confirm."""

    def answer(dialog: QFileDialog) -> None:
        dialog.findChild(QLineEdit, "fileNameEdit").setText(str(path))  # typed, it would be completed to other files
        (box,) = dialog.findChildren(QDialogButtonBox)
        confirm = next(each for each in box.buttons() if box.buttonRole(each) == QDialogButtonBox.ButtonRole.AcceptRole)
        QTest.mouseClick(confirm, Qt.MouseButton.LeftButton)

    answer_with(QFileDialog, answer)
    click(inside, text)
    settle(0.1)


def answer_with(kind: type[QWidget], answer: Callable[[Any], object]) -> None:
    """Answer a dialog once it is open, and again while it stays so."""
    answered = []

    def look() -> None:
        shown = [each for each in QApplication.topLevelWidgets() if isinstance(each, kind) and each.isVisible()]
        if shown:
            answered.append(shown[0])
            answer(shown[0])
        if shown or not answered:
            QTimer.singleShot(300, look)

    QTimer.singleShot(100, look)
