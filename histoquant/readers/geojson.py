"""GeoJSON as QuPath writes it: features in, features out.

Coordinates are full-resolution pixels (x, y) with pixel corners at integers. What QuPath puts where is read
from its ``QuPathTypeAdapters.java`` (https://github.com/qupath/qupath): type, name, class and lock under
``properties``, nested objects under ``properties.childObjects``, and what it does not know itself, as text,
under ``properties.metadata``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.errors import FormatError, InputError
from histoquant.model.geometry import Geometry
from histoquant.model.region import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_REGIONS = ("detection", "cell", "tile", "tmaCore", "root")
"""QuPath objects that are no regions: what was found in the image, not what was drawn on it."""

LEGACY_IDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
"""What QuPath 0.2 wrote as a feature's id, and its name for the same since."""

MAX_COORDINATE_PX = 1e8
"""A hundred times the widest slide."""

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
)
"""Told apart with any colour vision (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/)."""


def features(document: Any, file: str) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield each feature of a GeoJSON document, and the name of the QuPath object it is nested in."""
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise FormatError(f"Outlines '{file}' are JSON, but not GeoJSON.", "Export annotations from QuPath as GeoJSON.")
    ahead: list[tuple[Any, str | None]] = [(feature, None) for feature in reversed(document)]
    while ahead:
        feature, parent = ahead.pop()
        if isinstance(feature, dict) and feature.get("type") not in ("Feature", None):
            feature = {"type": "Feature", "geometry": feature}
        if not isinstance(feature, dict):
            raise FormatError(f"Outlines '{file}': {str(feature)[:40]!r} is not a feature.", "Export it again.")
        yield feature, parent
        properties = properties_of(feature)
        nested = properties.get("childObjects")
        if isinstance(nested, list):
            name, label = text(properties.get("name")), class_name(properties)
            transparent = object_type(feature) in NOT_REGIONS or is_ignored(name) or is_ignored(label)
            inside = parent if transparent else name or label or parent
            ahead.extend((child, inside) for child in reversed(nested))


def properties_of(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a feature's properties, empty when it has none."""
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def text(value: Any) -> str:
    """Return a JSON value as trimmed text, empty when it is none."""
    return value.strip() if isinstance(value, str) else ""


def class_name(properties: dict[str, Any]) -> str:
    """Return the class of a QuPath object, without the star that marks a class its own measurements skip."""
    stated = properties.get("classification")
    if isinstance(stated, dict):
        names = stated.get("names")
        stated = ": ".join(map(str, names)) if isinstance(names, list) else stated.get("name")
    return text(stated).rstrip("*").strip()


def is_ignored(name: str) -> bool:
    """Say whether a name or class marks ground to leave out, as QuPath's class "Ignore*" does."""
    return name.casefold().startswith("ignore")


def object_type(feature: dict[str, Any]) -> str:
    """Return what QuPath calls the object: in its properties, or before 0.3 in its id."""
    stated = properties_of(feature)
    by_id = LEGACY_IDS.get(text(feature.get("id")), "annotation")
    return text(stated.get("objectType")) or text(stated.get("object_type")) or by_id


def shape_px(geometry: Any) -> Geometry:
    """Return a GeoJSON geometry as a shape in pixels.

    Raises
    ------
    InputError
        When it outlines neither an area nor a line. The message reads on from the name of the outline.
    """
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    parts = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon", "LineString"):
        raise InputError(f"is a {kind or 'shape without a type'}, which outlines no region")
    if not isinstance(parts, list) or not parts:
        raise InputError("has no coordinates")
    if kind == "LineString":
        return shapely.LineString(corners(parts, 2))
    polygons = [parts] if kind == "Polygon" else parts
    if not all(isinstance(polygon, list) and polygon for polygon in polygons):
        raise InputError("has a part without coordinates")
    rings = [[corners(ring, 3) for ring in polygon] for polygon in polygons]
    shapes = [shapely.Polygon(shell, holes) for shell, *holes in rings]
    return shapes[0] if kind == "Polygon" else shapely.MultiPolygon(shapes)


def corners(positions: Any, least: int) -> NDArray[np.float64]:
    """Return GeoJSON positions as (n, 2) array of (x, y)."""
    try:
        corners = np.array(positions)
    except ValueError as e:  # positions of different lengths
        raise InputError("has coordinates that are not pairs of numbers") from e
    if corners.ndim != 2 or corners.shape[1] not in (2, 3) or corners.dtype.kind not in "iuf":
        raise InputError("has coordinates that are not pairs of numbers")
    corners = corners[:, :2].astype(float)  # a third number is a height, which no slide has
    if not (np.abs(corners) <= MAX_COORDINATE_PX).all():
        raise InputError(f"has coordinates that are not finite, or beyond {MAX_COORDINATE_PX:.0e} pixels")
    if len(np.unique(corners, axis=0)) < least:
        raise InputError(f"has fewer than {least} different points")
    return corners


def write_geojson(
    path: Path, regions: Iterable[Region], pixel_size_um: float, *, colours: Mapping[str, Colour] | None = None
) -> None:
    """Write regions as QuPath does, whole or not at all.

    Parameters
    ----------
    path : Path
        The file; an older one is replaced.
    regions : iterable of Region
        A ``RegionSet`` is one. Regions without ground are left out: GeoJSON has no empty outline that
        QuPath reads.
    pixel_size_um : float
        Side of a full-resolution pixel; coordinates are written in pixels.
    colours : mapping of class or name to (red, green, blue), optional
        The others take those of ``COLOURS`` in turn.

    Notes
    -----
    Parent, mask and whether it is counted stand under ``metadata``, where QuPath keeps what it does not know
    itself, as text.
    """
    document = geojson_text(regions, pixel_size_um, colours=colours)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def geojson_text(
    regions: Iterable[Region], pixel_size_um: float, *, colours: Mapping[str, Colour] | None = None
) -> str:
    """Return what `write_geojson` writes; equal regions give equal text."""
    known = dict(colours or {})
    features = []
    for region in regions:
        if region.geometry.is_empty:
            continue
        colour_of = region.classification or region.name
        colour = known.setdefault(colour_of, COLOURS[len(known) % len(COLOURS)])
        in_pixels = shapely.transform(region.geometry, lambda xy: xy / pixel_size_um)
        properties: dict[str, Any] = {"objectType": "annotation", "name": region.name}
        if region.classification is None:
            properties["color"] = colour
        else:
            properties["classification"] = {"name": region.classification, "color": colour}
        known_to_us = {
            "parent": region.parent,
            "masked": "true" if region.masked else None,
            "counted": None if region.counted or region.masked or region.is_line else "false",
        }
        properties |= {
            "isLocked": False,
            "metadata": {key: value for key, value in known_to_us.items() if value},
        }
        geometry = shapely.geometry.mapping(in_pixels)
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False, allow_nan=False)
