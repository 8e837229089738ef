"""What the canvas shows: napari 0.9 tells its size and camera under other names than those before."""

from __future__ import annotations

from typing import Any

import numpy as np

from histoquant.model.slide import Box, Slide
from napari_histoquant.layers import SLIDE


def camera_of(viewer: Any) -> Any:
    """Return the camera of a viewer."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def fit_lines(layer: Any, width: float) -> None:
    """Draw the lines of shapes so wide, in their own pixels."""
    if len(layer.data):
        layer.edge_width = [width] * len(layer.data)
        layer.refresh()  # without it napari draws the new width with the next change only


def visible_box(viewer: Any, slide: Slide) -> Box:
    """Return the part of a slide that the canvas shows, in full-resolution pixels."""
    height, width = slide.shape
    if hasattr(viewer, "canvas"):
        camera, px = camera_of(viewer), slide.pixel_size_um
        middle = np.array(camera.center[-2:]) / px
        half = np.array(viewer.canvas.size) / camera.zoom / px / 2
        (y0, x0), (y1, x1) = np.floor(middle - half), np.ceil(middle + half)
    else:
        layer = next(layer for layer in viewer.layers if layer.metadata.get(SLIDE) is slide)
        factors = layer.downsample_factors[layer.data_level][-2:] if layer.multiscale else np.ones(2)
        (y0, x0), (y1, x1) = layer.corner_pixels[:, -2:] * factors + [[0, 0], factors]
    return Box(max(0, int(y0)), min(height, int(y1)), max(0, int(x0)), min(width, int(x1)))
