"""Write OME-TIFF of any size in the memory of one band: tiled, compressed, pyramidal, reproducible.

TIFF wants whole planes one after the other, while pixels arrive as bands of all channels. Each tile is
therefore compressed once, when its band arrives, and put into a temporary file beside the target; when the
last band is in, tiles are copied from there in the order TIFF wants. No more is held than one band, and one
of each further level. The same pixels give the same bytes, whatever number of threads compresses them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from histoquant.errors import InputError, StoreError
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

BAND_PX = 512
"""Rows asked for at a time, and side of a tile."""

SMALLEST_LEVEL_PX = 1024
"""The pyramid ends at the first level whose longer side is no longer than this."""

COMPRESSION_LEVEL = 4
"""Of deflate. On camera noise of 0.4 to 20 grey levels, level 6 saves 5 % at most and takes twice as long."""

LABELS_COMPRESSION_LEVEL = 3
"""Of zlib-ng's deflate, for label images. On nuclei at 1,800 per mm2 it takes a third of the time of libdeflate's
level 4 (537 against 160 Mpx/s; libdeflate is slow on long runs of one value) for files 3 % larger."""

CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""Above this BigTIFF is written: classic offsets have 32 bits, and headers need some of that."""

_WIDER = {"uint8": np.uint16, "uint16": np.uint32, "uint32": np.uint64}
_PREDICTOR_HORIZONTAL, _PREDICTOR_FLOAT = 2, 3


def write_ome_tiff(
    path: Path,
    shape: tuple[int, int, int],
    dtype: DTypeLike,
    rows: Callable[[int, int], NDArray[Any]],
    *,
    pixel_size_um: float,
    channels: Sequence[str],
    labels: bool = False,
) -> None:
    """Write an image that is computed band by band.

    Level 0 holds the pixels as given. Each further level has half the height and width, rounded up: the mean
    of 2 x 2 pixels, rounded to the nearest and half up, or for labels their top-left pixel. The file appears
    under its name only when it is complete.

    Parameters
    ----------
    path : Path
        Target; its folder must exist. An existing file is replaced.
    shape : (channels, height, width)
        All at least 1.
    dtype : uint8, uint16, uint32 or float32
        Of the file, and of what ``rows`` returns.
    rows : callable
        ``rows(y0, y1)`` returns the (c, y1 - y0, x) array of rows ``y0 <= y < y1``. Called once per band of
        ``BAND_PX`` rows, top to bottom. What it returned is not looked at any more when it is called again.
    pixel_size_um : float
        Side of a pixel.
    channels : sequence of str
        One name per channel.
    labels : bool
        True for label images: numbers are names, so they are never averaged or differenced.

    Raises
    ------
    InputError
        If shape, type, pixel size or names cannot be written, or ``rows`` returns another shape or type.
    StoreError
        If the disk refuses; nothing is left behind and an existing file is untouched.
    """
    path, dtype = Path(path), np.dtype(dtype)
    _check(path, shape, dtype, pixel_size_um, channels)
    # Two machines may write the same file at once, from processes of the same number.
    unique = int.from_bytes(os.urandom(6), "big")
    spilled = path.with_name(f".{path.name}.{unique}.tiles")
    unfinished = path.with_name(f".{path.name}.{unique}.part")
    try:
        with _on_disk(path, open, spilled, "w+b") as file:
            tiles = _Tiles(path, file, _level_shapes(shape), dtype, labels)
            for y0 in range(0, shape[1], BAND_PX):
                y1 = min(y0 + BAND_PX, shape[1])
                tiles.add(_band(path, rows, (y0, y1), shape, dtype))
            _on_disk(path, _assemble, unfinished, tiles, pixel_size_um, list(channels))
        _on_disk(path, os.replace, unfinished, path)
    finally:
        for leftover in (spilled, unfinished):
            with suppress(FileNotFoundError):
                leftover.unlink()


def _check(
    path: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    pixel_size_um: float,
    channels: Sequence[str],
) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: an image of shape {shape} cannot be written.", "Give (channels, height, width).")
    if dtype.name not in (*_WIDER, "float32"):
        raise InputError(f"{path}: pixels of type {dtype} cannot be written.", "Convert to uint8/16/32 or float32.")
    if not (np.isfinite(pixel_size_um) and pixel_size_um > 0):
        raise InputError(f"{path}: a pixel size of {pixel_size_um} um is not a positive number.", "State the true one.")
    if len(channels) != shape[0] or len(set(channels)) != len(channels):
        raise InputError(f"{path}: {shape[0]} channels cannot be named {list(channels)}.", "Give one name to each.")


def _on_disk(path: Path, action: Callable[..., Any], *arguments: Any) -> Any:
    """Do something to files, and say which target failed when the disk refuses."""
    try:
        return action(*arguments)
    except OSError as error:
        raise StoreError(
            f"{path}: could not be written ({error.strerror or error}).",
            "Check that its folder exists, may be written to, and has room.",
        ) from error


def _band(
    path: Path,
    rows: Callable[[int, int], NDArray[Any]],
    extent: tuple[int, int],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    band = np.asarray(rows(*extent))
    expected = (shape[0], extent[1] - extent[0], shape[2])
    if band.shape != expected or band.dtype != dtype:
        raise InputError(
            f"{path}: rows from {extent[0]} are {band.dtype} {band.shape}, not {dtype} {expected}.",
            "Return what was announced as shape and dtype.",
        )
    return band


def _level_shapes(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    shapes = [shape]
    while max(shapes[-1][1:]) > SMALLEST_LEVEL_PX:
        channels, height, width = shapes[-1]
        shapes.append((channels, (height + 1) // 2, (width + 1) // 2))
    return shapes


def _halve(band: NDArray[Any], out: NDArray[Any], *, labels: bool) -> None:
    """Fill ``out`` with half the rows and columns of a (c, y, x) band; an odd last row or column counts twice."""
    if labels:
        out[:] = band[:, ::2, ::2]
        return
    for plane, half in zip(band, out, strict=True):
        even = np.pad(plane, ((0, plane.shape[0] % 2), (0, plane.shape[1] % 2)), mode="edge")
        corners = (even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2])
        if band.dtype.kind == "f":
            half[:] = sum(corner * np.float32(0.25) for corner in corners)
        else:
            total = np.full(half.shape, 2, _WIDER[band.dtype.name])
            for corner in corners:
                total += corner
            half[:] = total >> 2


@dataclass
class _Tiles:
    """Compressed tiles of all levels in a temporary file, and where each is.

    ``places[level][channel]`` lists (offset, bytes) row by row, since bands come top to bottom. ``waiting[level]`` is
    the band of a level that is being filled, and ``n_waiting`` how many of its rows are.
    """

    path: Path
    file: IO[bytes]
    shapes: list[tuple[int, int, int]]
    dtype: np.dtype[Any]
    labels: bool
    places: list[list[list[tuple[int, int]]]] = field(init=False)
    waiting: list[NDArray[Any]] = field(init=False)
    digest: Any = field(init=False)

    def __post_init__(self) -> None:
        self.places = [[[] for _ in range(shape[0])] for shape in self.shapes]
        self.waiting = [np.empty((c, min(BAND_PX, height), width), self.dtype) for c, height, width in self.shapes[1:]]
        self.n_waiting = [0 for _ in self.waiting]
        self.rows_done = [0 for _ in self.shapes]
        self.bytes = 0
        self.digest = hashlib.blake2b(repr((self.shapes, self.dtype.str)).encode(), digest_size=16)
        self.blank = self._compressed(np.zeros((BAND_PX, BAND_PX), self.dtype.newbyteorder("<")))

    @property
    def predictor(self) -> int | None:
        if self.labels:
            return None
        return _PREDICTOR_FLOAT if self.dtype.kind == "f" else _PREDICTOR_HORIZONTAL

    def add(self, band: NDArray[Any], level: int = 0) -> None:
        """Take the next full band of a level, or its last; what it makes complete further up follows."""
        self.rows_done[level] += band.shape[1]
        pieces = [
            (c, plane[:, x0 : x0 + BAND_PX]) for c, plane in enumerate(band) for x0 in range(0, plane.shape[1], BAND_PX)
        ]
        for (channel, _), encoded in zip(
            pieces, in_order(self._encoded, (pixels for _, pixels in pieces)), strict=True
        ):
            self._keep(level, channel, encoded)
        if level == len(self.waiting):
            return
        waiting, done = self.waiting[level], self.n_waiting[level]
        ready = done + (band.shape[1] + 1) // 2
        _halve(band, waiting[:, done:ready], labels=self.labels)
        complete = ready == BAND_PX or self.rows_done[level + 1] + ready == self.shapes[level + 1][1]
        self.n_waiting[level] = 0 if complete else ready
        if complete:
            self.add(waiting[:, :ready], level + 1)

    def _encoded(self, pixels: NDArray[Any]) -> bytes:
        """Return a tile compressed; tiles of nothing, most of a label image of a section on glass, are all the same."""
        if not pixels.view(f"u{pixels.dtype.itemsize}").any():  # -0.0 is not nothing
            return self.blank
        tile = np.zeros((BAND_PX, BAND_PX), self.dtype.newbyteorder("<"))
        tile[: pixels.shape[0], : pixels.shape[1]] = pixels
        return self._compressed(tile)

    def _compressed(self, tile: Any) -> bytes:
        import imagecodecs

        if self.labels:
            return bytes(imagecodecs.zlibng_encode(tile, LABELS_COMPRESSION_LEVEL))
        if self.predictor == _PREDICTOR_HORIZONTAL:
            tile = imagecodecs.delta_encode(tile, axis=-1)
        elif self.predictor == _PREDICTOR_FLOAT:
            tile = imagecodecs.floatpred_encode(tile, axis=-1)
        return bytes(imagecodecs.deflate_encode(tile, COMPRESSION_LEVEL))

    def _keep(self, level: int, channel: int, encoded: bytes) -> None:
        _on_disk(self.path, self.file.write, encoded)
        self.digest.update(encoded)
        self.places[level][channel].append((self.bytes, len(encoded)))
        self.bytes += len(encoded)

    def in_order(self, level: int) -> Iterator[bytes]:
        """Yield the tiles of a level plane by plane, each row by row."""
        for plane in self.places[level]:
            for offset, size in plane:
                self.file.seek(offset)
                yield self.file.read(size)


def _assemble(target: Path, tiles: _Tiles, pixel_size_um: float, channels: list[str]) -> None:
    import tifffile

    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": pixel_size_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_size_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": channels},
        "Creator": "histoquant",
        # OME asks for an identifier; taken from the pixels it is unique and still the same every time.
        "UUID": str(UUID(bytes=tiles.digest.digest(), version=4)),
    }
    bigtiff = tiles.bytes > CLASSIC_TIFF_BYTES
    with tifffile.TiffWriter(target, bigtiff=bigtiff, ome=True, byteorder="<") as tiff:
        for level, shape in enumerate(tiles.shapes):
            pixels_per_cm = 1e4 / (pixel_size_um * 2**level)
            tiff.write(
                tiles.in_order(level),
                shape=shape,
                dtype=tiles.dtype,
                tile=(BAND_PX, BAND_PX),
                compression="zlib",
                predictor=tiles.predictor,
                photometric="minisblack",
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subifds=len(tiles.shapes) - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
                metadata=metadata if level == 0 else None,
                software="histoquant",
            )
    with open(target, "r+b") as file:
        os.fsync(file.fileno())
