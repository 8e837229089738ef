"""What the built-in segmenters look at: one plane of one channel, and a few windows of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_DIAMETER_PX = 3.0

SURVEYED = 16
SURVEYED_PX = 512


def plane_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (y, x) plane of a (1, 1, y, x) image.

    Raises
    ------
    InputError
        If the image has several channels or planes.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 1):
        raise InputError(
            f"A built-in segmenter takes one channel and one plane, not an image of shape {image.shape}.",
            "Combine the channels and project the stack first.",
        )
    return np.ascontiguousarray(image[0, 0], dtype=np.float32)


def with_signal(planes: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the middles of up to 16 windows, evenly from the half with more signal."""
    planes = [plane for plane in planes if plane.size]
    if len(planes) > SURVEYED:
        signal = [float(np.clip(plane[::4, ::4], 0, 1).mean(dtype=np.float64)) for plane in planes]
        upper = np.argsort(signal, kind="stable")[-max(SURVEYED, len(planes) // 2) :]
        planes = [planes[i] for i in upper[np.linspace(0, len(upper) - 1, SURVEYED).round().astype(int)]]
    starts = [[max(0, (n - SURVEYED_PX) // 2) for n in plane.shape] for plane in planes]
    return [plane[y : y + SURVEYED_PX, x : x + SURVEYED_PX] for plane, (y, x) in zip(planes, starts, strict=True)]


def diameter_px(diameter_um: float, pixel_size_um: float) -> float:
    """Return a nuclear diameter in pixels.

    Raises
    ------
    InputError
        If a nucleus is less than three pixels across.
    """
    diameter = diameter_um / pixel_size_um
    if diameter < MIN_DIAMETER_PX * (1 - 1e-6):  # what survey() held at the limit is not below it by rounding
        raise InputError(
            f"Nuclei of {diameter_um:g} um are {diameter:.1f} pixels of {pixel_size_um:g} um across.",
            "Give the true diameter_um or pixel size, or scan at a higher magnification.",
        )
    return diameter
