"""One ImageJ ROI from its bytes to a shape in pixels (x, y), corners at integers.

The format is decoded by roifile after ImageJ's own ``ij/io/RoiDecoder.java``; what a decoded ROI covers is
said here.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.errors import InputError
from histoquant.model.geometry import Geometry, even_odd

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVAL_CORNERS = 256
"""An inscribed polygon of so many corners has 99.99 % of the ellipse's area."""

CURVE_PIECES = 32
"""Straight pieces for one curved segment of a composite."""

CURVE_POINTS = {0: 1, 1: 1, 2: 2, 3: 3, 4: 0}
"""Points that follow each code of a java.awt.geom.PathIterator: move, line, quadratic, cubic, close."""

MAX_COMPOSITE = 2_000_000
"""Numbers in the path of a composite, three to a corner."""

AREAS = ("POLYGON", "FREEHAND", "TRACED", "RECT", "OVAL")
LINES = ("LINE", "POLYLINE", "FREELINE")


def shape_px(content: bytes) -> tuple[str, Geometry | None]:
    """Return an ROI's name (may be empty) and shape, None for points.

    Raises
    ------
    InputError
        When it is damaged, or of a kind that outlines neither an area nor a line. The message reads on from
        the name of the ROI.
    """
    import roifile

    roi = _read(content)
    name, kind, subtype = str(roi.name), str(roi.roitype.name), str(roi.subtype.name)
    if kind == "POINT":
        return name, None
    if subtype in ("TEXT", "IMAGE", "ARROW") or kind not in (*AREAS, *LINES):
        what = subtype if subtype in ("TEXT", "IMAGE", "ARROW") else kind
        raise InputError(f"is of ImageJ's kind {what}, which outlines nothing")
    if roi.options & roifile.ROI_OPTIONS.SPLINE_FIT:
        raise InputError("is a fitted spline, of which the file holds only the control points")
    if roi.composite:
        return name, _composite(_finite(roi.multi_coordinates))
    if kind in ("RECT", "OVAL"):
        if kind == "RECT" and roi.rounded_rect_arc_size:
            raise InputError("is a rectangle with rounded corners, which the file does not outline")
        return name, _boxed(roi, oval=kind == "OVAL")
    if kind == "LINE":
        corners = _finite([[roi.x1, roi.y1], [roi.x2, roi.y2]])
    else:
        corners = _finite(roi.coordinates()).reshape(-1, 2)
    least = 2 if kind in LINES else 3
    if len(np.unique(corners, axis=0)) < least:
        raise InputError(f"has fewer than {least} different points")
    return name, shapely.LineString(corners) if kind in LINES else shapely.Polygon(corners)


def points_px(content: bytes) -> tuple[str, NDArray[np.float64]]:
    """Return the name and the points of an ROI as (n, 2) of (y, x), pixel corners at integers; none of other kinds.

    ImageJ states points from the centre of the first pixel (``Roi.useLineSubpixelConvention`` in its source), half a
    pixel from its corner.

    Raises
    ------
    InputError
        When it is damaged. The message reads on from the name of the ROI.
    """
    roi = _read(content)
    if roi.roitype.name != "POINT":
        return str(roi.name), np.empty((0, 2))
    return str(roi.name), _finite(roi.coordinates()).reshape(-1, 2)[:, ::-1] + 0.5


def _read(content: bytes) -> Any:
    import roifile

    try:
        with _complaints_raised(roifile.logger()):
            return roifile.ImagejRoi.frombytes(content)
    except (ValueError, TypeError, struct.error) as e:
        raise InputError(f"is a damaged ROI ({e})") from e


@contextmanager
def _complaints_raised(logger: logging.Logger) -> Iterator[None]:
    """Raise what roifile only logs in this thread: it goes on without a name that lies behind the file's end."""
    raising, was_disabled = _Raising(), logger.disabled
    logger.addHandler(raising)
    logger.disabled = False  # other packages' logging set-up switches loggers off
    try:
        yield
    finally:
        logger.removeHandler(raising)
        logger.disabled = was_disabled


class _Raising(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            raise ValueError(record.getMessage())


def _boxed(roi: Any, *, oval: bool) -> Geometry:
    """Return the rectangle or ellipse that fills a bounding box."""
    x, y, width, height = (
        (roi.xd, roi.yd, roi.widthd, roi.heightd)
        if roi.subpixelrect
        else (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top)
    )
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0):
        raise InputError(f"has a bounding box of {width:g} x {height:g} pixels")
    if not oval:
        return shapely.box(x, y, x + width, y + height)
    turn = np.arange(OVAL_CORNERS) * (2 * np.pi / OVAL_CORNERS)
    xs, ys = x + width / 2 * (1 + np.cos(turn)), y + height / 2 * (1 + np.sin(turn))
    return shapely.Polygon(np.stack([xs, ys], axis=1))


def _finite(positions: Any) -> NDArray[np.float64]:
    """Return positions as float64; a header that declares some may come without any."""
    if positions is None:
        raise InputError("has no positions")
    # asked before they are widened: to widen a signalling NaN is a floating-point error
    if not np.isfinite(positions).all():
        raise InputError("has positions that are not finite")
    return np.asarray(positions, dtype=float)


def _composite(path: NDArray[np.float64]) -> Geometry:
    """Return what lies in an odd number of a path's rings, as ImageJ's ShapeRoi fills it."""
    if len(path) > MAX_COMPOSITE:
        raise InputError(f"is a composite of more than {MAX_COMPOSITE // 3:,} corners")
    rings: list[list[NDArray[np.float64]]] = []
    at = 0
    while at < len(path):
        code = int(path[at])
        n_points = CURVE_POINTS.get(code)
        if n_points is None or at + 1 + 2 * n_points > len(path) or (code != 0 and not rings):
            raise InputError("is a composite with a damaged path")
        points = path[at + 1 : at + 1 + 2 * n_points].reshape(-1, 2)
        if code == 0:
            rings.append([points])
        elif code in (1, 2, 3):
            rings[-1].append(points if code == 1 else _curve(np.vstack([rings[-1][-1][-1:], points])))
        at += 1 + 2 * n_points
    corners = [np.vstack(ring) for ring in rings]
    # by even-odd also within a ring that crosses itself; joined in pairs, n rings cost n log n
    shapes = [even_odd(ring) for ring in corners if len(np.unique(ring, axis=0)) > 2]
    if not shapes:
        raise InputError("is a composite without an area")
    while len(shapes) > 1:
        pairs = zip(shapes[0::2], shapes[1::2], strict=False)
        rest = shapes[-1:] if len(shapes) % 2 else []
        shapes = [shapely.symmetric_difference(one, other) for one, other in pairs] + rest
    return shapes[0]


def _curve(control: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points on a Bezier curve after its start, by de Casteljau's construction."""
    share = np.linspace(0, 1, CURVE_PIECES + 1)[1:, None, None]
    points = np.broadcast_to(control, (CURVE_PIECES, *control.shape))
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - share) + points[:, 1:] * share
    return points[:, 0]
