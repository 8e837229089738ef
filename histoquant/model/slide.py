"""A slide: lazy pixels with channel names and a pixel size in um."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import InputError, PixelSizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ISOTROPY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Box:
    """A half-open rectangle of full-resolution pixels: rows ``y0 <= y < y1``, columns ``x0 <= x < x1``."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    def grown(self, margin: int, within: tuple[int, int]) -> Box:
        """Return the box grown by ``margin`` pixels on each side and clipped to an image of shape ``within``."""
        return Box(
            max(0, self.y0 - margin),
            min(within[0], self.y1 + margin),
            max(0, self.x0 - margin),
            min(within[1], self.x1 + margin),
        )


@dataclass(frozen=True, eq=False)
class Slide:
    """Lazy pixels of one section.

    Attributes
    ----------
    name : str
        What to call it in messages; usually the file's name.
    path : Path
        File or folder it was opened from.
    levels : tuple of dask arrays, each (c, z, y, x)
        Full resolution first, then smaller ones. ``z`` is 1 for a single plane. Chunks are the file's own tiles.
    channels : tuple of str
        One name per channel, unique.
    pixel_size_yx_um : (float, float) or None
        Height and width of a full-resolution pixel in um; None when the file does not say.
    z_step_um : float or None
        Distance between planes in um, when there is more than one and the file says.
    brightfield : bool
        True for an RGB picture of transmitted light (dark on bright).
    scene : str or None
        Which scene of a many-scene file this is.
    close : callable
        Releases the file. Safe to call twice.
    stored : tuple of array-like, each sliced as (c, z, y, x)
        The same pixels as ``levels``, where a box can be decoded at once; empty where it cannot. `read` then spares
        dask's task for each chunk and its copy of the whole, which are 40 % of reading a box of 2348 px of a zlib TIFF.
    """

    name: str
    path: Path
    levels: tuple[Any, ...]
    channels: tuple[str, ...]
    pixel_size_yx_um: tuple[float, float] | None
    z_step_um: float | None = None
    brightfield: bool = False
    scene: str | None = None
    close: Callable[[], None] = lambda: None
    stored: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not self.levels or any(level.ndim != 4 for level in self.levels):
            raise InputError(f"Slide '{self.name}': pixels must be (c, z, y, x).")
        if len(self.channels) != self.levels[0].shape[0]:
            raise InputError(
                f"Slide '{self.name}': {self.levels[0].shape[0]} channels but {len(self.channels)} channel names."
            )
        if len(set(self.channels)) != len(self.channels):
            raise InputError(f"Slide '{self.name}': channel names {self.channels} are not unique.")
        if self.stored and [part.shape for part in self.stored] != [level.shape for level in self.levels]:
            raise InputError(f"Slide '{self.name}': what is stored is not what its levels show.")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in full-resolution pixels."""
        return int(self.levels[0].shape[2]), int(self.levels[0].shape[3])

    @property
    def n_planes(self) -> int:
        """Number of focal planes."""
        return int(self.levels[0].shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""
        dtype: np.dtype[Any] = self.levels[0].dtype
        return dtype

    @property
    def pixel_size_um(self) -> float:
        """Side of a full-resolution pixel in um.

        Raises
        ------
        PixelSizeError
            If the file does not say, or its pixels are not square to 1 %.
        """
        if self.pixel_size_yx_um is None:
            raise PixelSizeError(
                f"Slide '{self.name}': no pixel size in the file.",
                "Add pixel_size_um to its row in study.csv, or give --pixel-size-um.",
            )
        y, x = self.pixel_size_yx_um
        if not (np.isfinite(y) and np.isfinite(x) and y > 0 and x > 0):
            raise PixelSizeError(
                f"Slide '{self.name}': pixel size {y} x {x} um is not a positive number.",
                "State the true one as pixel_size_um in study.csv, or with --pixel-size-um.",
            )
        if abs(y - x) > ISOTROPY_TOLERANCE * max(y, x):
            raise PixelSizeError(
                f"Slide '{self.name}': pixels are not square ({y:g} x {x:g} um).",
                "Resample the image, or state the true size as pixel_size_um if the file is wrong.",
            )
        return (y + x) / 2

    def with_pixel_size(self, pixel_size_um: float | None) -> Slide:
        """Return the slide with a stated pixel size, or itself when None."""
        if pixel_size_um is None:
            return self
        return replace(self, pixel_size_yx_um=(float(pixel_size_um), float(pixel_size_um)))

    def downsample(self, level: int) -> float:
        """Return how many full-resolution pixels one pixel of ``level`` spans along an edge."""
        return float(self.shape[1] / self.levels[level].shape[3])

    def channel_index(self, channel: str | int) -> int:
        """Return the index of a channel given by name (any case) or by number.

        Raises
        ------
        InputError
            If the slide has no such channel; the message lists those it has.
        """
        if isinstance(channel, int) or (channel.isdigit() and channel not in self.channels):
            if 0 <= int(channel) < len(self.channels):
                return int(channel)
        else:
            lowered = [name.casefold() for name in self.channels]
            if channel in self.channels:
                return self.channels.index(channel)
            if lowered.count(channel.casefold()) == 1:
                return lowered.index(channel.casefold())
        raise InputError(
            f"Slide '{self.name}': no channel '{channel}'; it has {', '.join(self.channels)}.",
            "Name one of these in the recipe's [panel] or with --channel.",
        )

    def read(self, box: Box | None = None, *, channels: Sequence[int] | None = None, level: int = 0) -> NDArray[Any]:
        """Read pixels.

        Parameters
        ----------
        box : Box, optional
            Rows and columns in pixels *of the level read*. The whole level when not given.
        channels : sequence of int, optional
            Which channels, in this order. All when not given.
        level : int
            Pyramid level, 0 = full resolution.

        Returns
        -------
        (c, z, y, x) array of the slide's dtype
        """
        if self.stored:
            return _decoded(self.stored[level], box, channels)
        pixels = self.levels[level]
        if box is not None:
            pixels = pixels[:, :, box.y0 : box.y1, box.x0 : box.x1]
        if channels is not None:
            pixels = pixels[list(channels)]
        return np.asarray(pixels.compute(scheduler="synchronous"))


def _decoded(pixels: Any, box: Box | None, channels: Sequence[int] | None) -> NDArray[Any]:
    """Return a box of what is stored: channels that follow each other at once, others one by one."""
    whole = slice(None)
    place = (whole, whole, whole) if box is None else (whole, slice(box.y0, box.y1), slice(box.x0, box.x1))
    known = range(pixels.shape[0])
    numbers = list(known) if channels is None else [known[channel] for channel in channels]
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return np.asarray(pixels[(slice(numbers[0], numbers[0] + len(numbers)), *place)])
    return np.concatenate([pixels[(slice(number, number + 1), *place)] for number in numbers])
