"""What napari asks when a file is dropped on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoquant.registry import open_slide

LayerData = tuple[Any, dict[str, Any], str]


def slide_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return the function that opens a slide."""
    return _slide if isinstance(path, str) else None


def _slide(path: str | list[str]) -> list[LayerData]:
    assert isinstance(path, str)
    slide = open_slide(Path(path))
    return [([level[n, 0] for level in slide.levels], {"name": name}, "image") for n, name in enumerate(slide.channels)]
