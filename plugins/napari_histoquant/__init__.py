"""histoquant in napari: open slides and runs, draw regions, tune a recipe, review.

A front end and nothing else: what it shows is what `histoquant.pipeline` computes, and what is not about widgets or
layers lives in histoquant, where it needs no screen.
"""

from __future__ import annotations

from importlib.util import find_spec

from histoquant.errors import MissingExtraError

_BINDINGS = ("PySide6", "PyQt6", "PyQt5", "PySide2")

if find_spec("napari") is None or find_spec("qtpy") is None or not any(map(find_spec, _BINDINGS)):
    raise MissingExtraError(
        "The napari plug-in needs napari and Qt, which are not installed.", "pip install 'histoquant[gui]'"
    )
