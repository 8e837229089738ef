"""What only the person at the screen knows: a pixel size, which scene, which slide."""

from __future__ import annotations

from collections.abc import Sequence


def _parent() -> object | None:
    """Return napari's window, None when it is not open."""
    from qtpy.QtWidgets import QApplication, QMainWindow

    if QApplication.instance() is None:
        return None
    windows = (each for each in QApplication.topLevelWidgets() if isinstance(each, QMainWindow) and each.isVisible())
    return next(windows, None)


def ask_pixel_size(what: str) -> float | None:
    """Ask for a pixel size in um; None when nobody can or wants to say."""
    if _parent() is None:
        return None
    from qtpy.QtWidgets import QInputDialog

    text = f"{what}: no pixel size in the file.\nSide of a full-resolution pixel in um:"
    value, stated = QInputDialog.getDouble(_parent(), "Pixel size", text, 0.5, 0.001, 1000.0, 4)
    return float(value) if stated else None


def ask_which(title: str, text: str, choices: Sequence[str]) -> str | None:
    """Ask for one of several; the first when nobody can be asked, None when nobody wants to say."""
    if _parent() is None:
        return choices[0]
    from qtpy.QtWidgets import QInputDialog

    chosen, stated = QInputDialog.getItem(_parent(), title, text, list(choices), 0, False)
    return str(chosen) if stated else None
