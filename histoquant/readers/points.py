"""Points from files: what a person marked in ImageJ (multi-point .roi, .zip of these) or QuPath (GeoJSON)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError, HistoquantError, InputError, raise_all
from histoquant.readers import geojson, imagej_roi
from histoquant.readers.outlines import content_of, json_of, zip_members

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHAT = "Marks"
"""What messages call such a file."""


def read_points_px(path: Path) -> list[tuple[str, NDArray[np.float64]]]:
    """Read every point of a file.

    Parameters
    ----------
    path : Path
        GeoJSON (plain or gzipped), an ImageJ .roi, or a .zip of these; the content decides.

    Returns
    -------
    list of (name, (n, 2) float)
        Points (y, x) in full-resolution pixels, pixel corners at integers, and the class or name they were given.
        Outlines are passed over.

    Raises
    ------
    FormatError
        When the file cannot be read, is too large, or is neither format.
    InputError
        When a point is broken, or there is none.
    Faults
        When there are several of these.
    """
    content = content_of(path, WHAT)
    found: list[tuple[str, NDArray[np.float64]]] = []
    faults: list[HistoquantError] = []

    def add(label: str, read: Any, source: Any) -> None:
        try:
            name, points = read(source)
        except InputError as error:
            faults.append(InputError(f"{WHAT} '{path.name}': '{label}' {error.message}.", "Save it again."))
            return
        if len(points):
            found.append((name.strip(), points))

    if content[:4] == b"Iout":
        add(path.stem, imagej_roi.points_px, content)
    elif content[:2] == b"PK":
        for name, member in zip_members(content, path.name, WHAT):
            if member[:4] == b"Iout":
                add(Path(name).stem, imagej_roi.points_px, member)
    else:
        for number, (feature, _) in enumerate(geojson.features(json_of(content, path.name, WHAT), path.name), start=1):
            add(f"feature {number}", _feature, feature)
    if not found and not faults:
        faults.append(
            FormatError(f"{WHAT} '{path.name}' hold no point.", "Save a multi-point selection, or points of QuPath.")
        )
    raise_all(faults)
    return found


def _feature(feature: dict[str, Any]) -> tuple[str, NDArray[np.float64]]:
    properties, geometry = geojson.properties_of(feature), feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    name = geojson.class_name(properties) or geojson.text(properties.get("name"))
    if not isinstance(geometry, dict) or kind not in ("Point", "MultiPoint"):
        return name, np.empty((0, 2))
    positions = geometry.get("coordinates")
    return name, geojson.corners([positions] if kind == "Point" else positions, 1)[:, ::-1]
