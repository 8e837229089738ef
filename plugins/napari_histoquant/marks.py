"""Save a Points layer as marks for `histoquant agree`: um from the slide's corner, whatever the layer's scale."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from histoquant.errors import PixelSizeError

MICROMETRE = ("micrometer", "um", "µm")


def write_marks(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write the points of a layer; a file called like its slide needs no column that names it.

    Parameters
    ----------
    data : (n, d) array
        Places in the layer's own pixels; the last two are y and x.
    attributes : dict
        Of the layer: ``scale``, ``translate``, ``units``.

    Raises
    ------
    PixelSizeError
        If the layer is not in um: it was made without a slide.
    """
    units = [str(unit) for unit in attributes.get("units") or ()][-2:]
    if len(units) != 2 or not set(units) <= set(MICROMETRE):
        raise PixelSizeError(
            f"The layer '{attributes.get('name', 'points')}' is not in um.",
            "Open the slide first, so that new layers take its scale.",
        )
    points = np.asarray(data, dtype=float).reshape(-1, len(attributes["scale"]))[:, -2:]
    places = points * np.asarray(attributes["scale"])[-2:] + np.asarray(attributes["translate"])[-2:]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("y_um", "x_um"), *((f"{y:.4f}", f"{x:.4f}") for y, x in places)])
    return [path]
