"""TIFF of every kind that tifffile knows, and PNG and JPEG pictures."""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError
from histoquant.model.slide import Slide
from histoquant.readers.metadata import (
    density_um,
    most_ome_planes,
    named_channels,
    size_um,
    tiff_channel_names,
    tiff_size_um,
)
from histoquant.readers.pixels import MAX_SEGMENT_BYTES, Pixels, choose_scene, damage_named, rgb_look
from histoquant.readers.segments import CUT_SHORT, Files, TiffPixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND_PX = 1024
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_DIRECTORIES = 20_000
"""Images of one file; more than the channels and planes of any section."""

MAX_TAGS = 4096
_SIZE_TAGS = (256, 257, 258, 277, 278, 322, 323)
_UNSIGNED = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF's types of unsigned numbers: a negative length sends tifffile backwards through its pages."""

MAX_EXPANSION = 4096
"""Decoded bytes for one of the file, in an image of more than a segment's largest size. Deflate, which packs blank
slides best of what slides are written with, has 1032 at most.
"""

_NOT_TISSUE = {"thumbnail", "label", "macro", "map", "label image", "macro image"}


class TiffReader:
    """OME-TIFF, ImageJ, SVS, NDPI, QPTIFF, SCN, BIF, Philips, LSM and plain TIFF; BigTIFF too.

    Scenes are the file's image series without labels, macro pictures and thumbnails.

    Pixel values are those stored: an inverted grey scale (WhiteIsZero) and the orientation tag are left alone,
    so that outlines drawn in other programs fit.
    """

    api = 1
    suffixes = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".lsm", ".stk")

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as TIFF or BigTIFF does."""
        return head[:4] in _TIFF_MAGIC

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the image series."""
        with _opened(path) as (_, series):
            return [name for name, _, _ in series]

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open one image series.

        Raises
        ------
        FormatError
            If the file is damaged, cut short, declares more than it holds, or is no (channel, z, y, x) image.
        InputError
            If the scene does not exist, or has to be named.
        """
        with ExitStack() as undo:
            with _opened(path) as (tif, series):
                name, index, chosen = series[choose_scene(path, [entry[0] for entry in series], scene)]
                _refuse_bomb(path, chosen)
                files = Files(path)
                undo.callback(files.close)
                base = TiffPixels(path, chosen, files)
                smaller = [TiffPixels(path, level, files) for level in chosen.levels[1:] if level.dtype == chosen.dtype]
                levels = [base, *(level for level in smaller if level.shape[:2] == base.shape[:2])]
                names = tiff_channel_names(tif, chosen, index)
                brightfield = False
                if base.is_rgb:
                    channels, brightfield = rgb_look(levels)
                elif len(names) == base.shape[0] // base.samples and base.samples > 1:
                    channels = named_channels(
                        [f"{channel}_{sample}" for channel in names for sample in range(base.samples)],
                        base.shape[0],
                    )
                else:
                    channels = named_channels(names, base.shape[0])
                pixel_size, z_step = tiff_size_um(tif, chosen, index)
            undo.pop_all()
        return Slide(
            name=path.name,
            path=path,
            levels=tuple(level.lazy() for level in levels),
            stored=tuple(levels),
            channels=channels,
            pixel_size_yx_um=pixel_size,
            z_step_um=z_step if base.shape[1] > 1 else None,
            brightfield=brightfield,
            scene=name if len(series) > 1 else None,
            close=files.close,
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[tuple[str, int, Any]]]]:
    """Open a TIFF file and list its image series."""
    import tifffile

    if path.is_dir():
        raise FormatError(f"'{path.name}' is a folder, not a TIFF file.", "Name a file.")
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    was_disabled, level = logger.disabled, logger.level
    logger.addHandler(complaints)
    # Other packages' logging set-up switches loggers off; a damaged file must not pass for a sound one because of that.
    logger.disabled = False
    logger.setLevel(logging.WARNING)
    try:
        with damage_named(path), tifffile.TiffFile(path) as tif:
            _refuse_endless(path, tif)
            series = _tissue_series(path, tif, complaints)
            yield tif, series
            complaints.refuse(path)
    finally:
        logger.removeHandler(complaints)
        logger.disabled = was_disabled
        logger.setLevel(level)


def _refuse_endless(path: Path, tif: Any) -> None:
    """Refuse headers that tifffile would follow for ever, or make lists of any length of."""
    layout, file = tif.tiff, tif.filehandle
    seen: set[int] = set()
    largest_px = 1
    offset = tif.pages.first.offset
    while 0 < offset < file.size and offset not in seen and len(seen) <= MAX_DIRECTORIES:
        seen.add(offset)
        file.seek(offset)
        (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        if n_tags > MAX_TAGS:
            return  # no directory, which tifffile tells
        tags = file.read(n_tags * layout.tagsize)
        largest_px = max(largest_px, _declared_px(path, layout, tags))
        following = file.read(layout.offsetsize)
        if len(following) < layout.offsetsize:
            return  # cut short, which tifffile tells
        (offset,) = struct.unpack(layout.offsetformat, following)
    if offset in seen:
        raise FormatError(f"'{path.name}' lists its image {len(seen)} times over, without an end.", CUT_SHORT)
    if len(seen) > MAX_DIRECTORIES:
        raise FormatError(f"'{path.name}' lists more than {MAX_DIRECTORIES:,} images.", "Save one section per file.")
    if tif.is_ome and most_ome_planes(tif.ome_metadata, largest_px) > MAX_DIRECTORIES:
        raise FormatError(
            f"'{path.name}' speaks of more than {MAX_DIRECTORIES:,} planes in its OME metadata.", CUT_SHORT
        )


def _declared_px(path: Path, layout: Any, tags: bytes) -> int:
    """Return height times width of a directory, 1 for what it does not say; refuse sizes of another type."""
    sides = {256: 1, 257: 1}
    for at in range(0, len(tags) - layout.tagsize + 1, layout.tagsize):
        code, kind = struct.unpack_from(layout.byteorder + "HH", tags, at)
        if code in _SIZE_TAGS and kind not in _UNSIGNED:
            raise FormatError(f"'{path.name}' states a size (tag {code}) that is no whole number.", CUT_SHORT)
        if code in sides:
            value_at = at + 4 + (layout.tagsize - 4) // 2  # after code and type: a count and a value of one width
            (sides[code],) = struct.unpack_from(layout.byteorder + _UNSIGNED[kind], tags, value_at)
    return max(1, sides[256] * sides[257])


def _refuse_bomb(path: Path, series: Any) -> None:
    """Refuse an image that declares far more pixels than the file can hold, before anything is made of that size."""
    files = {page.parent.filehandle.path: page.parent.filehandle.size for page in series if page is not None}
    declared = sum(math.prod(level.shape) * np.dtype(level.dtype).itemsize for level in series.levels)
    held = sum(files.values())
    if declared > max(MAX_SEGMENT_BYTES, MAX_EXPANSION * held):
        raise FormatError(
            f"'{path.name}' declares {declared / 2**30:,.1f} GiB of pixels, but holds only {held:,} bytes.", CUT_SHORT
        )


class _Complaints(logging.Handler):
    """What tifffile only logs in this thread: it goes on without tags and pages that lie behind the file's end.

    Without its description an OME-TIFF would open as a plain one: no names, no size, pages for channels.
    """

    _FATAL = re.compile(r"TiffTag (\d+) .*invalid value offset|invalid page offset|OME series raised")
    _PRIVATE_FROM = 32768
    _PRIVATE_BUT_NEEDED = (34412, 50838, 50839)  # LSM, ImageJ

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._thread = threading.get_ident()
        self._said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._said.append(record.getMessage())

    def refuse(self, path: Path) -> None:
        for said in self._said:
            found = self._FATAL.search(said)
            code = int(found.group(1) or 0) if found else self._PRIVATE_FROM
            if code < self._PRIVATE_FROM or code in self._PRIVATE_BUT_NEEDED:
                raise FormatError(f"'{path.name}' lacks part of its header ({said[:120]}).", CUT_SHORT)


def _tissue_series(path: Path, tif: Any, complaints: _Complaints) -> list[tuple[str, int, Any]]:
    """Return (unique name, index in the file, series) of the series that can show tissue."""
    all_series = tif.series  # reads the headers of all pages
    complaints.refuse(path)
    found = [(series.name.strip(), index, series) for index, series in enumerate(all_series)]
    tissue = [entry for entry in found if entry[0].lower() not in _NOT_TISSUE]
    tissue = [entry for entry in tissue if not entry[2].keyframe.is_reduced] or tissue or found
    if not tissue:
        raise FormatError(f"'{path.name}' holds no image.", CUT_SHORT)
    wanted = [name or (path.stem if len(tissue) == 1 else f"series_{index}") for name, index, _ in tissue]
    unique = named_channels(wanted, len(wanted))
    return [(name, index, series) for name, (_, index, series) in zip(unique, tissue, strict=True)]


MAX_PICTURE_PX = 100_000_000
"""Decoded in one piece, which takes pillow up to seven bytes for each."""


class PictureReader:
    """PNG and JPEG, decoded whole when first read and kept until the slide is closed.

    A picture of more than 100 megapixels is refused: it belongs into a tiled file. The EXIF orientation is
    left alone, so that outlines drawn on the stored pixels fit.
    """

    api = 1
    suffixes = (".png", ".jpg", ".jpeg")

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as PNG or JPEG does."""
        return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))

    def scenes(self, path: Path) -> list[str]:
        """Return the one name there is."""
        return [path.stem]

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open a picture.

        Raises
        ------
        FormatError
            If it is damaged, cut short, or too large to be decoded in one piece.
        InputError
            If a scene of another name is asked for.
        """
        choose_scene(path, self.scenes(path), scene)
        if path.is_dir():
            raise FormatError(f"'{path.name}' is a folder, not a picture.", "Name a file.")
        with damage_named(path):
            pixels, pixel_size = _picture(path)
            channels, brightfield = named_channels((), pixels.shape[0]), False
            if pixels.shape[0] == 3:
                channels, brightfield = rgb_look([pixels])
        return Slide(
            name=path.name,
            path=path,
            levels=(pixels.lazy(),),
            channels=channels,
            pixel_size_yx_um=pixel_size,
            brightfield=brightfield,
            close=pixels.close,
        )


class _PicturePixels(Pixels):
    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any, decode: Callable[[], Any]) -> None:
        n_channels, height, width = shape
        super().__init__(path, (n_channels, 1, height, width), dtype, (n_channels, 1, height, width))
        self._decode = decode
        self._files = Files(path)

    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        picture = self._files.decoded((self.path, 0), self._decode)
        if picture.ndim == 2:
            picture = picture[..., None]
        return np.ascontiguousarray(picture[y, x, c].transpose(2, 0, 1))[:, None]

    def close(self) -> None:
        self._files.close()


def _picture(path: Path) -> tuple[_PicturePixels, tuple[float, float] | None]:
    """Read a picture's header, and return its pixels and pixel size."""
    from PIL import Image

    _refuse_cut_picture(path)
    too_large = FormatError(
        f"'{path.name}' declares more than {MAX_PICTURE_PX // 10**6} megapixels.", "Save it as tiled OME-TIFF."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from 89 megapixels on; twice that raises
        try:
            picture = Image.open(path, formats=("PNG", "JPEG"))
        except Image.DecompressionBombError as e:
            raise too_large from e
    with picture:
        width, height = picture.size
        if width * height > MAX_PICTURE_PX:
            raise too_large
        mode, about, kind = picture.mode, picture.info, picture.format
    deep = False
    if kind == "PNG":
        with path.open("rb") as file:
            bit_depth, colour = file.read(26)[24:]
        deep = bit_depth == 16 and colour != 0  # pillow would cut 16-bit colour to 8 bits
    grey = {"1": "?", "L": "u1", "LA": "u1", "I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}.get(mode)
    n_channels, dtype = (1, grey) if grey else (3, "u2" if deep else "u1")
    if deep and grey:
        n_channels, dtype = 1, "u2"

    def decode() -> NDArray[Any]:
        if deep:
            import imagecodecs

            return np.asarray(imagecodecs.png_decode(path.read_bytes()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                flat = "L" if mode == "LA" else mode if grey else "RGB"
                picture = np.empty((height, width) if grey else (height, width, 3), np.dtype(dtype))
                for y in range(0, height, _BAND_PX):  # to convert it as a whole would take three of it
                    band = opened.crop((0, y, width, min(y + _BAND_PX, height)))
                    picture[y : y + _BAND_PX] = band if band.mode == flat else band.convert(flat)
                return picture

    densities = about.get("dpi") or (0, 0)
    # PNG counts per metre and JPEG may count per cm, and a whole number of those is no print setting
    unit, factor = ("cm", 1 / 2.54) if kind == "PNG" or about.get("jfif_unit") == 2 else ("inch", 1.0)
    x_um, y_um = (density_um(float(density) * factor, unit) for density in densities)
    return _PicturePixels(path, (n_channels, height, width), dtype, decode), size_um(y_um, x_um)


def _refuse_cut_picture(path: Path) -> None:
    """Refuse a picture whose end mark is missing, before anything is decoded."""
    with path.open("rb") as file:
        magic = file.read(8)
        file.seek(max(0, path.stat().st_size - 2**16))
        end = b"IEND" if magic.startswith(b"\x89PNG") else b"\xff\xd9"
        if end not in file.read():
            raise FormatError(f"'{path.name}' ends before its picture does.", CUT_SHORT)
