"""Fields in a file: images of 8 bits, so that all of them can be carried anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH, BEND = -0.5, 30.0, 4.0
"""An image from LOW to HIGH is stored in steps of 0.007 about 0 and of 0.03 about 1, far below the noise that patches
get."""


@dataclass
class Field:
    """One image to learn from.

    Attributes
    ----------
    image : (y, x) uint8
        Coded; see `coded` and `plain`.
    labels : (y, x) uint16
        0 = background.
    diameter_px : float
    kind : str
        fluorescence, grey_bright, colour or phantom.
    group : str
        The same for images that seem to come from one microscope: of one kind and, when they were read, one size.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint16]
    diameter_px: float
    kind: str
    group: str


def coded(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return an image, background 0 and nuclei about 1, in 8 bits: finest about 0."""
    low, high = np.arcsinh(BEND * LOW), np.arcsinh(BEND * HIGH)
    return np.round((np.arcsinh(BEND * np.clip(image, LOW, HIGH)) - low) / (high - low) * 255).astype(np.uint8)


def plain(code: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the image that was `coded`."""
    low, high = np.arcsinh(BEND * LOW), np.arcsinh(BEND * HIGH)
    table = np.sinh(np.arange(256) / 255 * (high - low) + low) / BEND
    return table.astype(np.float32)[code]


def save(path: Path, fields: list[Field]) -> None:
    """Write fields to one compressed file."""
    arrays = {}
    for index, field in enumerate(fields):
        arrays[f"{index:05d}_image"], arrays[f"{index:05d}_labels"] = field.image, field.labels
    arrays["names"] = np.array([field.name for field in fields])
    arrays["groups"] = np.array([field.group for field in fields])
    arrays["kinds"] = np.array([field.kind for field in fields])
    arrays["diameters"] = np.array([field.diameter_px for field in fields])
    np.savez_compressed(path, **arrays)


def load(path: Path) -> list[Field]:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        told = zip(file["names"], file["diameters"], file["kinds"], file["groups"], strict=True)
        return [
            Field(str(name), file[f"{i:05d}_image"], file[f"{i:05d}_labels"], float(diameter), str(kind), str(group))
            for i, (name, diameter, kind, group) in enumerate(told)
        ]
