"""Dendrites that a person traced: SWC and CSV in um, GeoJSON and ImageJ lines in pixels of the stack.

CSV has columns ``dendrite_id, z_um, y_um, x_um`` in path order. Lines of GeoJSON (LineString) and ImageJ (freehand,
segmented, straight) lie in a plane: their depth is not known, and is found in the stack.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import shapely

from histoquant.analysis.dendrites import Branch
from histoquant.errors import FormatError, InputError
from histoquant.readers import imagej_roi
from histoquant.readers.swc import read_swc

COLUMNS = ("dendrite_id", "z_um", "y_um", "x_um")
MAX_BYTES = 50_000_000


def read_traces(path: Path, pixel_size_um: float) -> list[Branch]:
    """Read a person's traces.

    Parameters
    ----------
    pixel_size_um : float
        Of the stack, for the formats that are in pixels.

    Returns
    -------
    list of Branch
        With names; z is NaN where the format does not say.

    Raises
    ------
    FormatError
        If the file is missing, too large, damaged, or holds no line.
    InputError
        If its columns are not those of a trace.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"Trace '{path.name}' is larger than 50 MB.", "Name a trace, not an image.")
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"Trace '{path}' cannot be read ({error.strerror or error}).", "Correct --trace.") from error
    if content[:4] == b"Iout":
        return [_imagej(content, path, pixel_size_um)]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"Trace '{path.name}' is neither text nor an ImageJ ROI.", "Give SWC, CSV, GeoJSON or a .roi line."
        ) from error
    if text.lstrip()[:1] in ("{", "["):
        return _geojson(text, path.name, pixel_size_um)
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if "," in first:
        return _csv(text, path.name)
    return read_swc(text, path.name)[0]


def _csv(text: str, file: str) -> list[Branch]:
    import pandas as pd

    try:
        table = pd.read_csv(io.StringIO(text), dtype={"dendrite_id": str})
    except (ValueError, pd.errors.ParserError) as error:
        raise FormatError(f"Trace '{file}': not a CSV table ({error}).", "Mend the file.") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(
            f"Trace '{file}': there is no column {', '.join(missing)}.",
            "A trace has dendrite_id, z_um, y_um, x_um, in path order and in um.",
        )
    place = table[list(COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(place[["y_um", "x_um"]].to_numpy()).all() or np.isinf(place["z_um"]).any():
        row = int(np.flatnonzero(~np.isfinite(place[["y_um", "x_um"]].to_numpy()).all(axis=1))[:1].sum()) + 2
        raise InputError(f"Trace '{file}', line {row}: a coordinate is not a number.", "Mend that line.")
    branches = []
    for name, rows in table.groupby("dendrite_id", sort=False):
        points = place.loc[rows.index].to_numpy(dtype=np.float64)
        if len(points) < 2:
            raise InputError(f"Trace '{file}': dendrite {name} has one point only.", "Trace a line.")
        branches.append(Branch(points, name=str(name)))
    if not branches:
        raise FormatError(f"Trace '{file}': there is no dendrite in it.", "Trace a line, then export it.")
    return branches


def _geojson(text: str, file: str, pixel_size_um: float) -> list[Branch]:
    try:
        told = json.loads(text)
        features = told["features"] if isinstance(told, dict) and "features" in told else told
        features = features if isinstance(features, list) else [features]
        branches = []
        for number, feature in enumerate(features, start=1):
            shape = feature.get("geometry", feature)
            if shape.get("type") != "LineString":
                continue
            points = np.array([pair[:2] for pair in shape["coordinates"]], dtype=np.float64)
            name = str((feature.get("properties") or {}).get("name") or number)
            branches.append(_flat(points, pixel_size_um, name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"Trace '{file}': not GeoJSON as QuPath writes it ({error}).", "Export it again.") from error
    if not branches:
        raise FormatError(f"Trace '{file}': there is no line (LineString) in it.", "Draw dendrites as lines.")
    return branches


def _imagej(content: bytes, path: Path, pixel_size_um: float) -> Branch:
    try:
        name, shape = imagej_roi.shape_px(content)
    except InputError as error:
        raise FormatError(f"Trace '{path.name}' {error.message}.", "Save a freehand or segmented line.") from error
    if not isinstance(shape, shapely.LineString):
        raise FormatError(f"Trace '{path.name}' is no line.", "Save a freehand or segmented line.")
    return _flat(np.asarray(shape.coords), pixel_size_um, name or path.stem)


def _flat(xy_px: np.ndarray, pixel_size_um: float, name: str) -> Branch:
    """Return a line of pixels, whose corners are at integers, as a path in um, whose voxel centres are."""
    if len(xy_px) < 2 or not np.isfinite(xy_px).all():
        raise ValueError(f"line {name} has no two points")
    yx = (xy_px[:, ::-1] - 0.5) * pixel_size_um
    return Branch(np.column_stack([np.full(len(yx), np.nan), yx]), name=name)
