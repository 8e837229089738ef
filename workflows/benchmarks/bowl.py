"""The images of the 2018 Data Science Bowl (BBBC038, CC0), nuclei outlined by people, as a folder.

``images/ID.png``, ``labels/ID.png`` and ``index.csv`` with the columns id, kind, split, h, w.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread

STATED_UM = 0.5
"""Pixel size that is stated for every image; wrong for most of them."""


class Drawn(NamedTuple):
    """One image: bright nuclei on a dark ground, and its labels."""

    name: str
    kind: str
    grey: NDArray[np.float32]
    labels: NDArray[np.uint16]


def read(folder: Path, split: str) -> Iterator[Drawn]:
    """Read the images of a split by kind and name, fluorescence first.

    Of those taken in transmitted light the absorbance of red is given: hematoxylin takes most of that light, eosin next
    to none.
    """
    with (folder / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    for row in sorted(rows, key=lambda row: (row["kind"] != "fluorescence", row["kind"], row["id"])):
        raw: NDArray[Any] = imread(folder / "images" / f"{row['id']}.png")
        if row["kind"] == "fluorescence":
            grey = raw[..., :3].mean(axis=-1) if raw.ndim == 3 else raw
        else:
            red = (raw[..., 0] if raw.ndim == 3 else raw).astype(np.float32)
            grey = -np.log10((red + 1) / 256)
        labels = imread(folder / "labels" / f"{row['id']}.png")
        yield Drawn(row["id"], row["kind"], np.asarray(grey, np.float32), np.asarray(labels, np.uint16))
