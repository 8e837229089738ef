"""The size of a spine: length, head and neck, from how they look at half of the head's brightness.

Light draws a point as wide as most heads are. So a head's diameter is what is left of its look without a point's,
squares from squares, over what a ball of diameter 1 adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.paths import Points
from histoquant.analysis.spine_scene import SMOOTH_UM, Scene
from histoquant.analysis.spines import Spots

STEP_UM = 0.04
PATCH_UM = 1.3
"""Heads are measured within this distance of their brightest point."""

FWHM = float(np.sqrt(8 * np.log(2)))
"""Width at half height of a bell curve, over its standard deviation."""

BALL = 0.66
"""By how much a ball of diameter 1 is wider at half height than a point, in squares: measured on phantoms."""

LEAST = 0.4
"""Of the optics' width: no head is told to be smaller."""


@dataclass(frozen=True, eq=False)
class Shapes:
    """Sizes of spines.

    Attributes
    ----------
    tip : (n, 3) float, um
        The far edge of the head.
    length_um : (n,) float
        From the shaft's surface to the tip.
    head_um : (n,) float
        Diameter of the head, across the spine, without the blur of the optics.
    looks_um, neck_um : (n,) float
        Width of the head, and the least width between it and the shaft, as they look; where a head sits on the shaft,
        the neck is as wide as the spine is there.
    area_um2 : (n,) float
        Of the head, seen from above, without the blur.
    """

    tip: Points
    length_um: Points
    head_um: Points
    looks_um: Points
    neck_um: Points
    area_um2: Points


def shapes_of(scene: Scene, found: Spots, *, resolution_um: float, pixel_um: float) -> Shapes:
    """Measure spines, one by one.

    Parameters
    ----------
    resolution_um : float
        Width at half height that the optics give a point, in the plane.
    pixel_um : float
        Side of the stack's pixels.
    """
    n = len(found)
    tip = np.empty((n, 3))
    length, looks, neck, area = (np.empty(n) for _ in range(4))
    for k in range(n):
        tip[k], looks[k], neck[k], area[k] = _shape(scene, found.suw[k], found.base_um[k], found.head_um[k])
        length[k] = np.linalg.norm(tip[k] - found.base_um[k])
    head = diameter_um(looks, resolution_um, pixel_um)
    return Shapes(tip, length, head, looks, neck, area * (head / looks) ** 2)


def diameter_um(looks_um: Points, resolution_um: float, pixel_um: float) -> Points:
    """Return the diameters of balls that look so wide, in light that has been smoothed by `SMOOTH_UM`.

    A pixel is a box of its size, and values between pixels are linear: together half a pixel of standard deviation.
    """
    point = resolution_um**2 + FWHM**2 * (SMOOTH_UM**2 + (pixel_um / 2) ** 2)
    return np.asarray(np.maximum(np.sqrt(np.maximum(looks_um**2 - point, 0)) / BALL, LEAST * resolution_um))


def _shape(scene: Scene, suw: Points, base: Points, spot: Points) -> tuple[Points, float, float, float]:
    straight = scene.straight
    fine_s, fine_u, _ = straight.step_um
    mid_u = straight.light.shape[1] // 2
    s, u, w = suw
    plane = scene.rest[:, :, round(w)]
    peak = float(scene.rest[round(s), round(u), round(w)])
    # The head: what is brighter than half of it and hangs together with it, beyond the shaft's surface.
    reach_s, reach_u = round(PATCH_UM / fine_s), round(PATCH_UM / fine_u)
    s0, u0 = max(0, round(s) - reach_s), max(0, round(u) - reach_u)
    patch = plane[s0 : round(s) + reach_s + 1, u0 : round(u) + reach_u + 1]
    aside = (np.arange(u0, u0 + patch.shape[1]) - mid_u) * fine_u
    outside = np.abs(aside) > (0.5 * scene.radius_um[round(s)] if abs((u - mid_u) * fine_u) > 0.3 else -1)
    labels, _ = ndimage.label((patch > 0.5 * peak) & outside[None])
    own = labels == labels[round(s) - s0, round(u) - u0]
    own &= labels > 0
    if not own.any():
        own[round(s) - s0, round(u) - u0] = True
    # Across and along the spine, in the plane.
    way = np.array([(spot - base) @ _along(straight.path, round(s)), (spot - base) @ straight.side[round(s)]])
    way = way / np.linalg.norm(way) if np.linalg.norm(way) > 0.05 else np.array([0.0, 1.0 if u >= mid_u else -1.0])
    across = np.array([-way[1], way[0]])

    def profile(along_um: float, direction: Points, span: NDArray[np.float64]) -> Points:
        points_s = s + (along_um * way[0] + span * direction[0]) / fine_s
        points_u = u + (along_um * way[1] + span * direction[1]) / fine_u
        return np.asarray(ndimage.map_coordinates(plane, [points_s, points_u], order=1, mode="nearest"))

    span = np.arange(-PATCH_UM, PATCH_UM + 1e-9, STEP_UM)
    width = _width(profile(0.0, across, span))
    outwards = profile(0.0, way, span[span >= 0])
    below = np.flatnonzero(outwards < 0.5 * peak)
    beyond = float(below[0] * STEP_UM) if len(below) else PATCH_UM
    tip = spot + beyond * (way[0] * _along(straight.path, round(s)) + way[1] * straight.side[round(s)])
    # The neck: between the head's near edge and the shaft's surface, where there is anything between.
    gap = float(np.linalg.norm(spot - base))
    inner = np.arange(width / 2 + 0.1, gap - 0.05, 0.08) if width > 0 else np.empty(0)
    necks = [_width(profile(-float(d), across, span)) for d in inner]
    # With nothing between, the spine is as wide as it is where it meets the shaft.
    neck = min(necks) if necks else min(width, _width(profile(-min(gap, 0.5 * width), across, span)))
    return tip, width, neck, float(own.sum() * fine_s * fine_u)


def _along(path: Points, index: int) -> Points:
    step = path[min(index + 1, len(path) - 1)] - path[max(index - 1, 0)]
    return np.asarray(step / max(np.linalg.norm(step), 1e-12))


def _width(profile: Points) -> float:
    """Return the width at half height round the middle of a profile, um, NaN where it is dark; between its steps."""
    middle = len(profile) // 2
    reach = max(1, int(0.15 / STEP_UM))
    top = middle - reach + int(np.argmax(profile[middle - reach : middle + reach + 1]))
    half = 0.5 * profile[top]
    if half <= 0:
        return float("nan")
    width = 0.0
    for side in (profile[top:], profile[top::-1]):
        below = np.flatnonzero(side < half)
        if not len(below):
            width += (len(side) - 1) * STEP_UM
            continue
        k = int(below[0])
        width += (k - (half - side[k]) / max(side[k - 1] - side[k], 1e-12)) * STEP_UM
    return width
