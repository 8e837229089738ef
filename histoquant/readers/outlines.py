"""Outlines from files: GeoJSON as QuPath writes it, and ImageJ's .roi and .zip; the content decides which.

QuPath states coordinates in full-resolution pixels (x, y) with pixel corners at integers, the image's
top-left at (0, 0) (https://qupath.readthedocs.io, Exporting annotations), and so does ImageJ for areas.
ImageJ may mean pixel centres in open lines, half a pixel away; lines are read as they stand.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapely

from histoquant.errors import FormatError, HistoquantError, InputError, PixelSizeError, RegionError, raise_all
from histoquant.model import geometry as plane
from histoquant.model.geometry import Geometry
from histoquant.model.region import Region
from histoquant.readers import geojson, imagej_roi
from histoquant.readers.first_bytes import is_there
from histoquant.readers.geojson import write_geojson

__all__ = ["read_outlines", "write_geojson"]

MAX_BYTES = 100_000_000
"""More than a million corners. A larger file holds cells rather than regions, or is a bomb."""

MAX_JSON_LISTS = 2_000_000
MAX_JSON_VALUES = 8_000_000
"""A corner is one list of two or three values. In memory a list takes up to 70 times its brackets, and 100 MB of
nothing but brackets 2 GB.
"""

MAX_MEMBERS = 20_000
"""Entries of one ROI zip."""

ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the standard library raises on damaged, encrypted or foreign zips (found by damaging 10,000 of them)."""


def read_outlines(path: Path, pixel_size_um: float) -> list[Region]:
    """Read every outline of a file.

    Parameters
    ----------
    path : Path
        GeoJSON (plain or gzipped), an ImageJ .roi, or a .zip of these.
    pixel_size_um : float
        Side of a full-resolution pixel of the slide the outlines were drawn on.

    Returns
    -------
    list of Region
        In the order of the file. Open lines are not counted; a class or name that begins with "Ignore"
        makes an outline masked. An outline without a name takes its class, or ``region_1``, ``region_2``...
        What was repaired is in the region's notes; what was passed over in those of the first region.

    Raises
    ------
    FormatError
        When the file cannot be read, is too large, or is neither format.
    RegionError
        When an outline is broken, or there is none.
    Faults
        When there are several of these.
    """
    if not (math.isfinite(pixel_size_um) and pixel_size_um > 0):
        raise PixelSizeError(f"Outlines '{path.name}': pixel size {pixel_size_um} um is not a positive number.")
    drawing = _Drawing(path.name, pixel_size_um)
    content = content_of(path)
    if content[:4] == b"Iout":
        drawing.add_imagej(content, path.stem)
    elif content[:2] == b"PK":
        for name, member in zip_members(content, path.name):
            if member[:4] == b"Iout":
                drawing.add_imagej(member, Path(name).stem)
            else:
                drawing.passed_over(f"files that are no ImageJ ROI ('{Path(name).name}')")
    else:
        for feature, parent in geojson.features(json_of(content, path.name), path.name):
            drawing.add_feature(feature, parent)
    return drawing.finished()


# ---------------------------------------------------------------------- from bytes to features


def content_of(path: Path, what: str = "Outlines") -> bytes:
    """Return the bytes of a file of outlines or points, unpacked when it is gzipped."""
    remedy = f"Give the GeoJSON or ImageJ ROI file that holds this slide's {what.lower()}."
    if is_there(path) and not path.is_file():  # to open a pipe is to wait for whoever writes into it
        raise FormatError(f"{what} '{path.name}' are a folder, device or pipe, not a file.", remedy)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise FormatError(f"{what} '{path.name}' cannot be read ({e}).", remedy) from e
    if len(content) > MAX_BYTES:
        raise FormatError(
            f"{what} '{path.name}' hold more than {MAX_BYTES // 1_000_000} MB.",
            "Export annotations only, without detections or cells.",
        )
    if not content.strip():
        raise FormatError(f"{what} '{path.name}' are empty.", remedy)
    return content


def zip_members(content: bytes, file: str, what: str = "Outlines") -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each entry; nothing is written to disk, so names are only names."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            left = MAX_BYTES
            if len(entries) > MAX_MEMBERS or sum(entry.file_size for entry in entries) > left:
                raise FormatError(
                    f"{what} '{file}': the zip unpacks to more than {MAX_MEMBERS} entries or "
                    f"{MAX_BYTES // 1_000_000} MB.",
                    "Save only the regions of this slide from ImageJ's ROI Manager.",
                )
            for entry in entries:
                # macOS adds a shadow of every file under this name
                if entry.filename.startswith("__MACOSX/"):
                    continue
                with archive.open(entry) as member:
                    unpacked = member.read(left + 1)
                left -= len(unpacked)
                if left < 0:
                    raise FormatError(f"{what} '{file}': the zip holds more than it states.", "Save it again.")
                yield entry.filename, unpacked
    except ZIP_FAULTS as e:
        raise FormatError(f"{what} '{file}': the zip is damaged or encrypted ({e}).", "Save it again.") from e


def json_of(content: bytes, file: str, what: str = "Outlines") -> Any:
    """Return what a file's JSON holds, unless that is too much."""
    if content.count(b"[") + content.count(b"{") > MAX_JSON_LISTS or content.count(b",") > MAX_JSON_VALUES:
        raise FormatError(
            f"{what} '{file}' hold more than {MAX_JSON_LISTS:,} corners or other parts.",
            "Export annotations only, without detections or cells.",
        )
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise FormatError(
            f"{what} '{file}' are neither GeoJSON nor ImageJ ROIs ({e}).",
            "Export annotations from QuPath as GeoJSON, or save a .roi or .zip from ImageJ's ROI Manager.",
        ) from e


# ---------------------------------------------------------------------- from features to regions


class _Drawing:
    """The outlines of one file in the making: regions, faults, and what was passed over."""

    def __init__(self, file: str, pixel_size_um: float) -> None:
        self.file, self.pixel_size_um = file, pixel_size_um
        self.regions: list[dict[str, Any]] = []
        self.faults: list[HistoquantError] = []
        self.n_seen = 0
        self.skipped: dict[str, int] = {}

    def passed_over(self, what: str) -> None:
        self.skipped[what] = self.skipped.get(what, 0) + 1

    def fault(self, label: str, problem: object) -> None:
        self.faults.append(
            RegionError(
                f"Outlines '{self.file}': outline {self.n_seen}{f' ({label!r})' if label else ''} {problem}.",
                "Draw it again as a plain polygon (or an open line), and save the file anew.",
            )
        )

    def add_imagej(self, content: bytes, stem: str) -> None:
        """Take in one ROI; its name is the one stored in it, else that of its file."""
        self.n_seen += 1
        try:
            stored, shape = imagej_roi.shape_px(content)
        except InputError as e:
            self.fault(stem, e.message)
            return
        if shape is None:
            self.passed_over("points")
        else:
            self._add(stored.strip() or stem.strip(), shape, {})

    def add_feature(self, feature: dict[str, Any], nested_in: str | None) -> None:
        """Take in one GeoJSON feature."""
        self.n_seen += 1
        properties = geojson.properties_of(feature)
        geometry = feature.get("geometry")
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        name = geojson.text(properties.get("name"))
        if geojson.object_type(feature) in geojson.NOT_REGIONS:
            self.passed_over(f"QuPath {geojson.object_type(feature)} objects")
        elif kind in ("Point", "MultiPoint"):
            self.passed_over("points")
        elif geometry is None:
            self.passed_over("features without a shape")
        else:
            try:
                shape = geojson.shape_px(geometry)
            except InputError as e:
                self.fault(name or geojson.class_name(properties), e.message)
                return
            metadata = properties.get("metadata")
            stated = {**metadata} if isinstance(metadata, dict) else {}
            parent = geojson.text(properties.get("parent")) or geojson.text(stated.get("parent")) or nested_in
            self._add(name, shape, {**stated, "parent": parent, "class": geojson.class_name(properties)})

    def _add(self, name: str, shape_px: Geometry, stated: dict[str, Any]) -> None:
        """Bring a shape to um, untangle it where that is harmless, and keep it."""
        label = stated.get("class") or None
        shape = shapely.transform(shape_px, lambda xy: xy * self.pixel_size_um)
        is_line = shape.geom_type == "LineString"
        try:
            shape, repair = (shape, "") if is_line else plane.untangled(plane.ground(shape))
        except InputError as e:
            self.fault(name or label or "", e.message)
            return
        if not is_line and not shape.area > 0:
            self.fault(name or label or "", "has no area")
            return
        masked = not is_line and (
            geojson.text(stated.get("masked")) == "true"
            or any(geojson.is_ignored(text) for text in (name, label or ""))
        )
        self.regions.append(
            {
                "name": name or label or "",
                "geometry": shape,
                "parent": stated.get("parent"),
                "counted": not is_line and geojson.text(stated.get("counted")) != "false",
                "masked": masked,
                "classification": label,
                "notes": (repair,) if repair else (),
            }
        )

    def finished(self) -> list[Region]:
        """Name what has no name, declare what was passed over, and raise what was found wrong."""
        skipped = ", ".join(f"{count} {what}" for what, count in self.skipped.items())
        if not self.regions and not self.faults:
            self.faults.append(
                RegionError(
                    f"Outlines '{self.file}' hold no outline{f', only {skipped}' if skipped else ''}.",
                    "Draw at least one polygon, or leave the slide's 'regions' empty in study.csv.",
                )
            )
        raise_all(self.faults)
        taken = {region["name"] for region in self.regions}
        free = (f"region_{number}" for number in itertools.count(1) if f"region_{number}" not in taken)
        for region in self.regions:
            region["name"] = region["name"] or next(free)
        if skipped:
            self.regions[0]["notes"] += (f"passed over in '{self.file}': {skipped}",)
        return [Region(**region, origin=f"drawn in {self.file}") for region in self.regions]
