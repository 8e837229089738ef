"""The neighbourhood of a dendrite drawn straight, and what is left of it without the shaft.

What is the same along the dendrite is its shaft, with the halo that the optics give it: it is taken away as the running
median along the path, relative to the shaft's brightness there. What is left are spines, and whatever else passes by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.paths import Points, along_um
from histoquant.analysis.ridge import Stack, Straight, straighten

SHAFT_WINDOW_UM = 9.0
"""Length of dendrite that says what its shaft looks like; a spine fills a tenth of it."""

BEYOND_UM = 1.5
"""The picture goes on so far past both ends, so that heads that lean over an end are seen whole."""

SMOOTH_UM, SMOOTH_DEPTH_UM = 0.1, 0.25
"""Standard deviation of what the light is smoothed with, in the plane and along z."""

NO_DEPTH = 8.0
"""Smear of an image of one plane."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A dendrite drawn straight, its shaft, and what is left without it.

    Attributes
    ----------
    straight : Straight
    start_um, length_um : float
        Where on the picture's s axis the dendrite itself begins, and how long it is.
    smooth : (s, u, w) float32
        The light, slightly smoothed.
    rest : (s, u, w) float32
        The light without the shaft and its halo.
    brightness : (s,) float
        Of the shaft.
    radius_um : (s,) float
        Of the shaft, at half its brightness, to the sides.
    noise : float
        Robust standard deviation of ``rest`` far from the dendrite.
    smear : float
        Height of the shaft over its width, as it looks: what is over and under it is the harder to see. `NO_DEPTH`
        where nothing is known of z.
    """

    straight: Straight
    start_um: float
    length_um: float
    smooth: NDArray[np.float32]
    rest: NDArray[np.float32]
    brightness: Points
    radius_um: Points
    noise: float
    smear: float


def scene_of(stack: Stack, path: Points, *, reach_um: float) -> Scene:
    """Draw a dendrite straight and take its shaft away.

    Parameters
    ----------
    path : (n, 3) float, um
        On the ridge.
    reach_um : float
        How far from the path spines are looked for.
    """
    extended = _extended(path)
    straight = straighten(stack, extended, reach_um=reach_um, deep_um=reach_um)
    fine, _, deep = straight.step_um
    flat = straight.light.shape[2] == 1
    smooth = ndimage.gaussian_filter(
        straight.light, (SMOOTH_UM / fine, SMOOTH_UM / fine, 0 if flat else SMOOTH_DEPTH_UM / deep)
    )
    u, w = straight.u_um, straight.w_um
    core = (np.abs(u) <= 0.25)[:, None] & (np.abs(w) <= 0.5)[None]
    bright = smooth[:, core].mean(axis=1)
    bright = ndimage.median_filter(bright, max(3, round(1.5 / fine)), mode="nearest")
    bright = np.maximum(bright, 0.15 * np.median(bright) + 1e-6)
    shape = smooth / bright[:, None, None].astype(np.float32)
    shaft = _running_median(shape, max(3, round(SHAFT_WINDOW_UM / fine))) * bright[:, None, None]
    rest = (smooth - shaft).astype(np.float32)
    far = np.abs(u) > 0.75 * reach_um
    middle = rest[:, far]
    noise = float(1.4826 * np.median(np.abs(middle - np.median(middle)))) if middle.size else 0.0
    floor = 0.01 * float(np.median(bright))
    level = (shaft / np.maximum(bright, 1e-9)[:, None, None]).mean(axis=0)
    radius = _radius_um(shaft, u, w, bright, straight.step_um)
    high = 0.5 * float((level[np.abs(u) <= 0.25].mean(axis=0) > 0.5).sum()) * deep
    return Scene(
        straight, _gone(extended, path), float(along_um(path)[-1]), smooth, rest, bright, radius, max(noise, floor),
        NO_DEPTH if flat else min(high / max(float(np.median(radius)), fine), NO_DEPTH),
    )  # fmt: skip


def _extended(path: Points) -> Points:
    """Return a path that goes straight on past both ends."""
    k = min(len(path) - 1, 8)
    head, tail = path[0] - path[k], path[-1] - path[-1 - k]
    first = path[0] + BEYOND_UM * head / max(np.linalg.norm(head), 1e-9)
    last = path[-1] + BEYOND_UM * tail / max(np.linalg.norm(tail), 1e-9)
    return np.concatenate([[first], path, [last]])


def _gone(extended: Points, path: Points) -> float:
    return float(np.linalg.norm(extended[0] - path[0]))


def _running_median(shape: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Return the median along the first axis, at a step of a tenth of the window and linear between."""
    n = shape.shape[0]
    stride = max(1, window // 10)
    places = np.unique(np.append(np.arange(0, n, stride), n - 1))
    half = window // 2
    known = np.stack([np.median(shape[max(0, p - half) : min(n, p + half + 1)], axis=0) for p in places])
    at = np.interp(np.arange(n), places, np.arange(len(places)))
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(places) - 1)
    share = (at - low)[:, None, None].astype(np.float32)
    return np.asarray(known[low] * (1 - share) + known[high] * share, dtype=np.float32)


def _radius_um(shaft: Points, u: Points, w: Points, bright: Points, step_um: tuple[float, float, float]) -> Points:
    """Return half the width of the shaft at half its brightness, to the sides."""
    level = shaft[:, :, np.abs(w) <= 0.5].mean(axis=2) / np.maximum(bright, 1e-9)[:, None]
    middle = len(u) // 2
    radius = np.zeros(len(level))
    for rows in (level[:, middle:], level[:, middle::-1]):
        below = rows < 0.5
        edge = np.where(below.any(axis=1), below.argmax(axis=1), rows.shape[1] - 1)
        radius += 0.5 * edge * step_um[1]
    return np.asarray(ndimage.median_filter(radius, max(3, round(2.0 / step_um[0])), mode="nearest"))
