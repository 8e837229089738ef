"""Hands and eyes of a reviewer: keys that are pressed, and every text that can be seen in a viewer."""

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QAction
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QAbstractItemView, QApplication, QComboBox, QTabBar


def press(widget, *keys):
    """Press keys in the window, as a keyboard does."""
    for key in keys:
        key, modifier = key if isinstance(key, tuple) else (key, Qt.KeyboardModifier.NoModifier)
        QTest.keyClick(widget.window().windowHandle(), key, modifier)
        QApplication.processEvents()
    widget.show_on_canvas()


class Mouse:
    """A mouse on the canvas, at places (y, x) in um."""

    def __init__(self, viewer, qtbot):
        self.viewer, self.qtbot = viewer, qtbot
        self.native = viewer.window._qt_viewer.canvas.native

    def take(self, layer, tool):
        """Take a tool of a layer in hand."""
        self.viewer.layers.selection.active = self.viewer.layers[layer]
        self.viewer.layers[layer].mode = tool
        self.qtbot.wait(100)

    def click(self, place, double=False):
        """Click where napari sees the mouse at a place, to two pixels of the screen."""
        camera = self.viewer.scene.camera
        size = np.array([self.native.height(), self.native.width()])
        y, x = size / 2 + (np.array(place) - camera.center[-2:]) * camera.zoom
        at = QPoint(round(x), round(y))

        def arrived():
            # A mouse that is there already does not move, and a new viewer would not know where it is.
            for there in (at + QPoint(1, 0), at):
                QTest.mouseMove(self.native, there)
                QApplication.processEvents()
            return np.abs(self.viewer.cursor.position[-2:] - np.array(place)).max() < 2 / camera.zoom

        self.qtbot.waitUntil(arrived)
        (QTest.mouseDClick if double else QTest.mouseClick)(self.native, Qt.MouseButton.LeftButton, pos=at)
        if double:
            QTest.mouseRelease(self.native, Qt.MouseButton.LeftButton, pos=at)


def strings(viewer):
    """Yield every text that a window, a dialog, a layer or the viewer holds, and where."""
    for widget in QApplication.allWidgets():
        yield from texts(widget)
    for window in QApplication.topLevelWidgets():
        for action in window.findChildren(QAction):
            yield from texts(action)
    for part in ("title", "status", "help"):
        yield f"viewer.{part}", getattr(viewer, part)
    for layer in viewer.layers:
        told = [layer.name, layer.metadata, layer.source, layer.help, layer, layer.events]
        told += [layer.get_status(position, world=True) for position in ((5.0, 5.0), (20.0, 20.0))]
        told += [getattr(layer, part, "") for part in ("features", "properties", "text", "colormap", "units")]
        told += [vars(part) for part in layer.data if hasattr(part, "__dict__")] if layer.multiscale else []
        yield f"layer {layer.name}", told
    from napari.utils.notifications import notification_manager

    yield "notifications", [record.message for record in notification_manager.records]


def texts(thing):
    """Yield what a widget or action shows, whatever it is."""
    for part in (
        "text placeholderText toolTip statusTip whatsThis windowTitle objectName title toPlainText accessibleName "
        "accessibleDescription iconText format specialValueText prefix suffix currentText windowFilePath"
    ).split():
        method = getattr(thing, part, None)
        if callable(method):
            yield f"{type(thing).__name__}.{part}", method()
    if isinstance(thing, QComboBox):
        roles = (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.UserRole, Qt.ItemDataRole.ToolTipRole)
        for index in range(thing.count()):
            yield "QComboBox.item", [thing.itemData(index, role) for role in roles]
    if isinstance(thing, QTabBar):
        yield "QTabBar", [(thing.tabText(index), thing.tabToolTip(index)) for index in range(thing.count())]
    if isinstance(thing, QAbstractItemView) and thing.model() is not None:
        model = thing.model()
        for row in range(model.rowCount()):
            for role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.EditRole):
                yield f"{type(thing).__name__}.model", str(model.data(model.index(row, 0), role))


def found_in(viewer, words):
    """Return which of the words stand anywhere, and where."""
    return sorted({(word, where) for where, text in strings(viewer) for word in words if word in str(text)})
