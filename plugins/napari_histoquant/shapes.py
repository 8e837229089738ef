"""Outlines as shapes of a layer and back, without losing a bit of what was not touched.

napari keeps corners as 32-bit floats and knows no holes. Each ring is a shape of its own here, and says in its features
which outline and part it belongs to; a corner that was not moved is given back with the value it came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.drawing import colours_of
from histoquant.errors import InputError
from histoquant.model.geometry import Geometry
from histoquant.model.region_set import Region
from histoquant.readers.geojson import Colour, is_ignored

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FEATURES: Mapping[str, Any] = {
    "name": "",
    "parent": "",
    "class": "",
    "masked": False,
    "counted": True,
    "outline": -1,
    "part": 0,
    "hole": False,
    "label": "",
}
"""Columns of the features and what a new shape has: ``outline`` is its place in the drawing, -1 for a new one, and
``label`` the name where it is written."""

TEXT: Mapping[str, Any] = {"string": "{label}", "color": "white", "size": 10, "anchor": "upper_left"}
"""How the names are written: at a corner, because the middle of a band lies in what it surrounds, and that of a region
often in a part of it that has a name of its own."""

ELLIPSE_CORNERS = 96

FILL = 0.12


class UnfinishedError(InputError):
    """An outline whose first corners are being drawn."""


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes of a layer: rings (n, 2) of (y, x) pixels, and the layer's settings."""

    data: list[NDArray[np.float64]]
    settings: dict[str, Any]


def shapes_of(regions: Sequence[Region], colours: Mapping[str, Colour]) -> Shapes:
    """Return outlines, coordinates in pixels, as shapes: shells and holes of areas, and lines."""
    data: list[NDArray[np.float64]] = []
    kinds: list[str] = []
    rows: list[dict[str, Any]] = []
    edges: list[tuple[float, ...]] = []
    for number, region in enumerate(regions):
        red, green, blue = (value / 255 for value in colours[region.classification or region.name])
        for part, hole, ring in _rings(region.geometry):
            data.append(ring)
            kinds.append("path" if region.is_line else "polygon")
            edges.append((red, green, blue, 1.0))
            rows.append(
                {
                    "name": region.name,
                    "parent": region.parent or "",
                    "class": region.classification or "",
                    "masked": region.masked,
                    "counted": region.counted,
                    "outline": number,
                    "part": part,
                    "hole": hole,
                    "label": region.name if part == 0 and not hole else "",
                }
            )
    settings = {
        "shape_type": kinds,
        "features": features_of(rows),
        "edge_color": np.array(edges) if edges else "white",
        "face_color": fills(np.array(edges), rows) if edges else (1.0, 1.0, 1.0, FILL),
        "edge_width": 3.0,
        "opacity": 1.0,
        "text": TEXT,
    }
    return Shapes(data, settings)


def paths_of(regions: Sequence[Region], simpler_um: float) -> dict[str, Any]:
    """Return the settings of a layer that shows outlines, coordinates in um, as lines only.

    Corners that make no difference of ``simpler_um`` are left out: lines are drawn anew at another zoom.
    """
    simpler = [replace(region, geometry=shapely.simplify(region.geometry, simpler_um)) for region in regions]
    shapes = shapes_of(simpler, colours_of(region.classification or region.name for region in simpler))
    closed = [
        np.vstack([ring, ring[:1]]) if kind == "polygon" else ring
        for ring, kind in zip(shapes.data, shapes.settings["shape_type"], strict=True)
    ]
    told = {key: shapes.settings[key] for key in ("features", "edge_color", "text")}
    return {"data": closed, "shape_type": "path", "face_color": "transparent", **told}


def features_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as the features of a layer."""
    import pandas as pd

    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=type(start)) for name, start in FEATURES.items()})


def fills(edges: NDArray[Any], rows: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Return the fill of each shape: its edge, faint; nothing within a hole."""
    faces = np.array(edges, dtype=float)
    faces[:, 3] = [0.0 if row["hole"] else FILL for row in rows]
    return faces


def regions_in(
    data: Sequence[NDArray[Any]],
    kinds: Sequence[str],
    features: pd.DataFrame,
    before: Sequence[Region],
) -> tuple[list[Region], list[dict[str, Any]]]:
    """Return the outlines that shapes stand for.

    Parameters
    ----------
    data : sequence of (n, 2) arrays
        Corners (y, x) in pixels.
    kinds : sequence of str
        napari's type of each shape.
    features : DataFrame
        Of `FEATURES`.
    before : sequence of Region
        The drawing the shapes were made from; corners that are still where they were keep their exact value.

    Returns
    -------
    regions : list of Region
        Coordinates in pixels. A hole whose shell is gone is gone.
    rows : list of dict
        The features the shapes have now.
    """
    # A shape that napari drops for want of corners leaves its features behind, at the end.
    known = features.to_dict("records")[: len(data)]
    rows = [{name: row.get(name, start) for name, start in FEATURES.items()} for row in known]
    groups: list[list[int]] = []
    place: dict[tuple[int, int], int] = {}
    shells: set[tuple[int, int]] = set()
    by_outline: dict[int, int] = {}
    for shape, row in enumerate(rows):
        outline, part = int(row["outline"]), int(row["part"])
        copied = not row["hole"] and (outline, part) in shells
        if not 0 <= outline < len(before) or copied or (row["hole"] and (outline, part) not in shells):
            row |= {"outline": -1, "part": 0}
            groups.append([] if row["hole"] else [shape])
            continue
        if not row["hole"]:
            shells.add((outline, part))
        if outline not in by_outline:
            by_outline[outline] = len(groups)
            groups.append([])
        place[outline, part] = by_outline[outline]
        groups[by_outline[outline]].append(shape)
    regions: list[Region] = []
    for shapes in groups:
        if not shapes:
            continue
        first = rows[shapes[0]]
        old = before[first["outline"]] if first["outline"] >= 0 else None
        rings = [(int(rows[n]["part"]), bool(rows[n]["hole"]), _corners(data[n], kinds[n])) for n in shapes]
        is_line = kinds[shapes[0]] in ("line", "path")
        regions.append(_region(first, rings, is_line=is_line, old=old))
        for n in shapes:
            label = str(first["name"]) if n == shapes[0] else ""
            rows[n] |= {"outline": len(regions) - 1, "label": label}
            rows[n] |= {name: first[name] for name in ("name", "parent", "class", "masked", "counted")}
    return regions, rows


def _rings(geometry: Geometry) -> list[tuple[int, bool, NDArray[np.float64]]]:
    """Return part, whether it is a hole, and corners (y, x) of every ring; the last corner is not the first again."""
    if geometry.geom_type == "LineString":
        return [(0, False, shapely.get_coordinates(geometry)[:, ::-1])]
    found = []
    for part, polygon in enumerate(shapely.get_parts(geometry)):
        for hole, ring in ((False, polygon.exterior), *((True, inner) for inner in polygon.interiors)):
            found.append((part, hole, shapely.get_coordinates(ring)[:-1, ::-1]))
    return found


def _corners(shape: NDArray[Any], kind: str) -> NDArray[np.float64]:
    """Return the corners (y, x) of a shape; an ellipse, which napari keeps as its box, gets `ELLIPSE_CORNERS`."""
    corners = np.asarray(shape, dtype=float)
    if kind != "ellipse":
        return corners
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    centre = corners.mean(axis=0)
    return np.asarray(
        centre + np.cos(angle) * (corners[1] - corners[0]) / 2 + np.sin(angle) * (corners[3] - corners[0]) / 2
    )


def _region(
    told: Mapping[str, Any], rings: list[tuple[int, bool, NDArray[np.float64]]], *, is_line: bool, old: Region | None
) -> Region:
    exact = _exact(old)
    rings = [
        (part, hole, np.array([exact.get(_key(corner), tuple(corner)) for corner in ring]))
        for part, hole, ring in rings
    ]
    name = str(told["name"]).strip() or "region"
    masked = bool(told["masked"]) or is_ignored(name) or is_ignored(str(told["class"]))
    region = Region(
        name,
        _geometry(rings, is_line=is_line, many=old is not None and old.geometry.geom_type == "MultiPolygon"),
        parent=str(told["parent"]).strip() or None,
        classification=str(told["class"]).strip() or None,
        masked=masked and not is_line,
        counted=bool(told["counted"]) and not is_line,
    )
    return old if old is not None and replace(old, origin="drawn", notes=()) == region else region


def _exact(old: Region | None) -> dict[tuple[np.float32, np.float32], tuple[float, float]]:
    """Return the exact corner (y, x) for each that napari rounded."""
    if old is None:
        return {}
    corners = shapely.get_coordinates(old.geometry)[:, ::-1]
    return {_key(corner): (corner[0], corner[1]) for corner in corners}


def _key(corner: NDArray[np.float64]) -> tuple[np.float32, np.float32]:
    return np.float32(corner[0]), np.float32(corner[1])


def _geometry(rings: list[tuple[int, bool, NDArray[np.float64]]], *, is_line: bool, many: bool) -> Geometry:
    least = 2 if is_line else 3
    if any(len(np.unique(ring, axis=0)) < least for _, _, ring in rings):
        raise UnfinishedError(f"An outline has fewer than {least} different corners.", "Draw on, or delete it.")
    if is_line:
        return shapely.LineString(rings[0][2][:, ::-1])
    parts: dict[int, list[Any]] = {}
    for part, hole, ring in rings:
        parts.setdefault(part, []).insert(len(parts.get(part, [])) if hole else 0, ring[:, ::-1])
    polygons = [shapely.Polygon(shell, holes) for shell, *holes in parts.values()]
    return polygons[0] if len(polygons) == 1 and not many else shapely.MultiPolygon(polygons)
