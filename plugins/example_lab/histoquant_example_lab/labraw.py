r"""LABRAW, the format of an imagined home-built microscope.

One line of text, then the pixels::

    LABRAW 1 <channels> <height> <width> <pixel_size_um> <name>,<name>,...\n
    uint16, little-endian, channel after channel, row after row
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError, InputError
from histoquant.model.slide import Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"LABRAW 1 "
PIXEL = np.dtype("<u2")
BAND_ROWS = 256


@dataclass(frozen=True)
class _Pixels:
    """What dask needs of an array: it reads rows when asked, opens the file for that, and closes it again."""

    path: Path
    start: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any] = PIXEL
    ndim: int = 4

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[np.uint16]:
        channels, planes, rows, columns = index
        _, _, height, width = self.shape
        wanted = np.arange(height)[rows]
        first, last = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        bands = []
        with self.path.open("rb") as file:
            for channel in range(*channels.indices(self.shape[0])):
                file.seek(self.start + (channel * height + first) * width * PIXEL.itemsize)
                band = np.fromfile(file, PIXEL, (last - first) * width)
                bands.append(band.reshape(1, last - first, width)[planes, :, columns][:, wanted - first])
        return np.stack(bands)


class LabrawReader:
    """Read LABRAW files."""

    api = 1
    suffixes = (".labraw",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Return whether the file begins as LABRAW does."""
        return head.startswith(MAGIC)

    def scenes(self, path: Path) -> list[str]:
        """Return no names: a file holds one scene."""
        return []

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open a file; no pixel is read.

        Raises
        ------
        InputError
            If a scene is named.
        FormatError
            If the header is not as documented, or the file is not as long as it says.
        """
        import dask.array

        if scene is not None:
            raise InputError(f"Slide '{path.name}': a LABRAW file has no scenes.", "Leave the scene empty.")
        with path.open("rb") as file:
            header = file.readline(4096)
        try:
            fields = header.removeprefix(MAGIC).decode().rstrip("\n").split(" ", 4)
            channels, height, width = (int(number) for number in fields[:3])
            pixel_size_um, names = float(fields[3]), tuple(fields[4].split(","))
        except (ValueError, IndexError) as error:
            raise FormatError(f"Slide '{path.name}': its LABRAW header cannot be read: {header!r}.") from error
        n_bytes, found = channels * height * width * PIXEL.itemsize, path.stat().st_size - len(header)
        if found != n_bytes:
            raise FormatError(
                f"Slide '{path.name}': {found} bytes of pixels where the header announces {n_bytes}.",
                "Copy the file again from the microscope.",
            )
        pixels = _Pixels(path, len(header), (channels, 1, height, width))
        return Slide(
            name=path.name,
            path=path,
            levels=(dask.array.from_array(pixels, (1, 1, BAND_ROWS, width), name=False, fancy=False),),
            channels=names,
            pixel_size_yx_um=(pixel_size_um, pixel_size_um),
        )
