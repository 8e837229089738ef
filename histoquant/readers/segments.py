"""The segments of a TIFF (tiles or strips): which of them a box needs, reading their bytes, putting pixels together.

tifffile parses the headers and decodes single segments. Positioned reads need no lock, and memory stays flat.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError
from histoquant.readers import codestream
from histoquant.readers.pixels import MAX_SEGMENT_BYTES, Pixels, refuse_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT_SHORT = "Copy it again: the copy was cut short, or export it again from the microscope software."

# Pages of a plain TIFF that does not say what they are: up to so many are channels, more are focal planes.
# Multiplexed sections with more channels come as OME-TIFF or QPTIFF, which do say.
MAX_UNNAMED_CHANNELS = 8

# Largest ratio of decoded to stored bytes: none 1, LZW 12-bit codes for strings of at most 4096 bytes, deflate
# 1032 (https://zlib.net/zlib_tech.html), PackBits 128 bytes from 2. A header that promises more lies.
_MAX_EXPANSION = {1: 1, 5: 2731, 8: 1033, 32946: 1033, 32773: 64}

_CACHE_BYTES = 2**26
_MIN_CHUNK_PX = 256
_RAW_CHUNK_PX = 1024
_BAND_PX = 2**20


class Files:
    """The open files of one slide and the segments decoded last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, FileIO] = {}
        self._lock = threading.Lock()
        self._decoded: OrderedDict[tuple[object, int], NDArray[Any]] = OrderedDict()
        self._decoded_bytes = 0
        self._closed = False

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._decoded.clear()
            self._decoded_bytes = 0
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _was_closed(self) -> FormatError:
        return FormatError(f"'{self._path.name}' was closed before its pixels were read.", "Open it again.")

    def add(self, name: str) -> int:
        """Open a file unless it is open, and return its size in bytes."""
        if name not in self._files:
            self._files[name] = FileIO(name)
        return os.fstat(self._files[name].fileno()).st_size

    def read(self, name: str, offset: int, n_bytes: int) -> bytes:
        """Return exactly ``n_bytes``. Several threads may read at once."""
        if self._closed:
            raise self._was_closed()
        file = self._files[name]
        parts = []
        while n_bytes > 0:  # one call returns at most 2 GiB
            if hasattr(os, "pread"):
                part = os.pread(file.fileno(), n_bytes, offset)
            else:  # Windows has no positioned read
                with self._lock:
                    file.seek(offset)
                    part = file.read(n_bytes) or b""
            if not part:
                raise FormatError(f"'{self._path.name}' ends before byte {offset + n_bytes}.", CUT_SHORT)
            parts.append(part)
            offset, n_bytes = offset + len(part), n_bytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def decoded(self, key: tuple[object, int], decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return a decoded segment from memory, or decode it.

        64 MiB are kept, and the newest segment whatever its size: neighbouring tiles with halos share segments,
        and a page stored as one strip would else be decoded for each of its boxes.
        """
        with self._lock:
            if self._closed:
                raise self._was_closed()
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
        segment = decode()
        with self._lock:
            if not self._closed and key not in self._decoded:
                self._decoded[key] = segment
                self._decoded_bytes += segment.nbytes
                while self._decoded_bytes > _CACHE_BYTES and len(self._decoded) > 1:
                    self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return segment


@dataclass(frozen=True, eq=False)
class Page:
    """Where one page's segments are. ``raw_offset`` is set when its pixels lie in the file as in memory."""

    file: str
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    decode: Callable[..., tuple[Any, Any, Any]]
    decode_options: dict[str, Any]
    raw_offset: int | None


class TiffPixels(Pixels):
    """One pyramid level of one series.

    ``samples`` is how many of a page's samples are channels: 3 for colour with or without alpha, 1 for grey.
    """

    def __init__(self, path: Path, series: Any, files: Files) -> None:
        page = series.keyframe
        if page is None or page.dtype is None or page.shaped[1] != 1:
            raise FormatError(
                f"'{path.name}' stores its pixels in a way that cannot be read ({series.kind}).",
                "Save it as OME-TIFF.",
            )
        self._files = files
        self._separate, _, height, width, contiguous = (int(n) for n in page.shaped)
        self._stored = self._separate * contiguous
        self._contiguous = contiguous
        self.is_rgb = page.photometric in (2, 6) and self._stored in (3, 4)  # RGB, YCbCr
        alpha = self._stored == 2 and tuple(page.extrasamples) in ((1,), (2,))
        self.samples = 3 if self.is_rgb else 1 if alpha else self._stored
        _refuse_palette(path, page)
        order = _page_order(path, series, colour=self._stored > 1)
        self._pages = _pages(path, series, order, files)
        n_groups, n_planes = self._pages.shape
        if self.is_rgb and n_groups > 1:
            raise FormatError(
                f"'{path.name}' holds {n_groups} colour pictures as channels.",
                "Save the one to analyse as a file of its own.",
            )
        raw = all(entry.raw_offset is not None for entry in self._pages.flat)
        self._segment = (int(page.chunks[0]), int(page.chunks[1])) if not raw else (_RAW_CHUNK_PX, _RAW_CHUNK_PX)
        self._grid = (math.ceil(height / self._segment[0]), math.ceil(width / self._segment[1]))
        self._raw_dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        self._size = (height, width)
        rows, columns = self._segment
        if page.is_tiled:  # whole tiles, several when they are tiny
            rows, columns = (n * max(1, _MIN_CHUNK_PX // n) for n in (rows, columns))
        elif not raw:  # whole strips, together about a megapixel
            rows *= max(1, _BAND_PX // (rows * width))
        super().__init__(
            path,
            (n_groups * self.samples, n_planes, height, width),
            page.dtype,
            (self.samples if contiguous > 1 else 1, 1, rows, columns),
        )

    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        """Return the pixels of half-open ranges that lie inside the image."""
        out = np.empty([part.stop - part.start for part in (c, z, y, x)], self.dtype)
        for group in range(c.start // self.samples, (c.stop - 1) // self.samples + 1):
            first = max(c.start, group * self.samples)
            last = min(c.stop, (group + 1) * self.samples)
            samples = range(first - group * self.samples, last - group * self.samples)
            for plane in range(z.start, z.stop):
                page = self._pages[group, plane]
                target = out[first - c.start : last - c.start, plane - z.start]
                if page.raw_offset is None:
                    self._read_segments(page, samples, (y, x), target)
                else:
                    self._read_raw(page, samples, (y, x), target)
        return out

    def _read_segments(self, page: Page, samples: range, box: tuple[slice, slice], out: NDArray[Any]) -> None:
        y, x = box
        rows, columns = self._segment
        n_rows, n_columns = self._grid
        for planar in samples if self._separate > 1 else (0,):
            target = out[planar - samples.start : planar - samples.start + 1] if self._separate > 1 else out
            wanted = slice(0, 1) if self._separate > 1 else slice(samples.start, samples.stop)
            for row in range(y.start // rows, (y.stop - 1) // rows + 1):
                for column in range(x.start // columns, (x.stop - 1) // columns + 1):
                    segment = self._decoded(page, (planar * n_rows + row) * n_columns + column)
                    top, left = row * rows, column * columns
                    y0, y1 = max(y.start, top), min(y.stop, top + rows)
                    x0, x1 = max(x.start, left), min(x.stop, left + columns)
                    part = segment[y0 - top : y1 - top, x0 - left : x1 - left, wanted]
                    target[:, y0 - y.start : y1 - y.start, x0 - x.start : x1 - x.start] = part.transpose(2, 0, 1)

    def _decoded(self, page: Page, index: int) -> NDArray[Any]:
        """Return segment ``index`` as (rows, columns, samples); a segment that was left out is all 0."""

        def decode() -> NDArray[Any]:
            n_bytes = int(page.byte_counts[index])
            if n_bytes == 0:
                return np.zeros((*self._segment, self._contiguous), self.dtype)
            data = self._files.read(page.file, int(page.offsets[index]), n_bytes)
            return np.asarray(page.decode(data, index, **page.decode_options)[0][0])

        return self._files.decoded((page, index), decode)

    def _read_raw(self, page: Page, samples: range, box: tuple[slice, slice], out: NDArray[Any]) -> None:
        y, x = box
        height, width = self._size
        n = self._contiguous
        row_bytes = width * n * self._raw_dtype.itemsize
        assert page.raw_offset is not None
        for planar in samples if self._separate > 1 else (0,):
            start = page.raw_offset + planar * height * row_bytes
            if (x.stop - x.start) * 4 >= width:  # reading the gaps costs less than a call per row
                data = self._files.read(page.file, start + y.start * row_bytes, (y.stop - y.start) * row_bytes)
                pixels = np.frombuffer(data, self._raw_dtype).reshape(-1, width, n)[:, x]
            else:
                left, n_bytes = x.start * row_bytes // width, (x.stop - x.start) * row_bytes // width
                lines = [
                    self._files.read(page.file, start + i * row_bytes + left, n_bytes) for i in range(y.start, y.stop)
                ]
                pixels = np.frombuffer(b"".join(lines), self._raw_dtype).reshape(len(lines), -1, n)
            if self._separate > 1:
                out[planar - samples.start] = pixels[..., 0]
            else:
                out[:] = pixels[..., samples.start : samples.stop].transpose(2, 0, 1)


def _refuse_palette(path: Path, page: Any) -> None:
    """Refuse an image whose values are numbers of colours, not intensities.

    ImageJ stores fluorescence with a green or red display table as a palette image too. There each colour of
    the table only ever rises, so the values are intensities.
    """
    if page.photometric == 3 and page.colormap is not None and np.any(np.diff(page.colormap.astype(int)) < 0):
        raise FormatError(f"'{path.name}' is a palette image.", "Convert it to RGB or to grey values.")


def _page_order(path: Path, series: Any, *, colour: bool) -> NDArray[np.intp]:
    """Return (channel, plane) numbers of the pages of a series."""
    axes = "".join(axis for axis in series.axes if axis not in "SYX")
    lengths = [int(n) for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "SYX"]
    if series.keyframe.shaped[0] > 1 and "S" not in series.axes and axes.endswith("C"):
        axes, lengths = axes[:-1], lengths[:-1]  # Bio-Formats declares separate samples of a page as channels
    role: list[str] = []
    for axis, length in zip(axes, lengths, strict=True):
        if axis in "IQ" and length > 1:  # pages of unknown meaning
            if colour:
                refuse_axis(path, "unknown", length)
            role.append("C" if length <= MAX_UNNAMED_CHANNELS else "Z")
        else:
            if axis not in "CZ":
                refuse_axis(path, axis, length)
            role.append(axis)
    if max(role.count("C"), role.count("Z")) > 1:
        raise FormatError(
            f"'{path.name}' has axes {series.axes}, which do not say what is channel and what is plane.",
            "Save it as OME-TIFF.",
        )
    pages = np.arange(math.prod(lengths)).reshape(lengths)
    sizes = [lengths[role.index(axis)] if axis in role else 1 for axis in "CZ"]
    wanted = [role.index(axis) for axis in "CZ" if axis in role]
    rest = [i for i in range(len(role)) if i not in wanted]
    return pages.transpose(wanted + rest).reshape(sizes)


def _pages(path: Path, series: Any, order: NDArray[np.intp], files: Files) -> NDArray[Any]:
    """Return the checked pages of a series, (channel, plane) objects."""
    found = list(series)
    stored_once = len(found) == 1 and order.size > 1 and series.dataoffset is not None
    if not stored_once and (len(found) < order.size or any(page is None for page in found)):
        present = sum(page is not None for page in found)
        raise FormatError(f"'{path.name}' holds {present} of its {order.size} planes.", CUT_SHORT)
    pages = np.empty(order.shape, object)
    for place, number in np.ndenumerate(order):
        page = found[0 if stored_once else number]
        # ImageJ writes one header for all planes of a large stack, which then lie one after the other
        skip = int(number) * page.nbytes if stored_once else 0
        pages[place] = _page(path, page, skip, files)
    return pages


def _page(path: Path, page: Any, skip: int, files: Files) -> Page:
    name = str(page.parent.filehandle.path)
    n_file = files.add(name)
    keyframe = page.keyframe
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    raw = bool(page.is_final)
    n_segments = math.prod(page.chunked)
    if offsets.size == 0 or (not raw and not offsets.size == counts.size == n_segments):
        raise FormatError(f"'{path.name}' lists {offsets.size} of its {n_segments} segments.", CUT_SHORT)
    end = int(offsets[0]) + skip + page.nbytes if raw else int(np.where(counts > 0, offsets + counts, 0).max())
    if end > n_file:
        raise FormatError(f"'{path.name}' has {n_file} bytes but its pixels reach to byte {end}.", CUT_SHORT)
    segment_bytes = math.prod(page.chunks) * np.dtype(page.dtype).itemsize
    promised = int(counts.max()) * _MAX_EXPANSION.get(int(keyframe.compression), MAX_SEGMENT_BYTES)
    if not raw and keyframe.bitspersample % 8 == 0 and promised > 0 and segment_bytes > promised:
        raise FormatError(
            f"'{path.name}' declares pieces of {segment_bytes} bytes but stores {int(counts.max())} for each.",
            CUT_SHORT,
        )
    if keyframe.compression in codestream.UNBOUNDED:
        raise FormatError(
            f"'{path.name}' is compressed as {codestream.UNBOUNDED[keyframe.compression]}, which is not read.",
            "Save it with another compression, such as zlib.",
        )
    if not raw and segment_bytes > MAX_SEGMENT_BYTES:
        raise FormatError(
            f"'{path.name}' stores its pixels in pieces of {segment_bytes / 2**30:.1f} GiB.",
            "Save it as tiled OME-TIFF.",
        )
    options = {}
    if keyframe.compression in (6, 7, 33007, 34892):  # JPEG keeps tables in the page
        options = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    decode = page.decode
    if keyframe.compression in codestream.PICTURES:
        decode = partial(codestream.decode_within, decode, path, tuple(page.chunks[:2]))
    return Page(
        name,
        offsets,
        counts,
        decode,
        options,
        int(offsets[0]) + skip if raw else None,
    )
