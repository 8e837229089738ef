"""Spines along a dendrite, found in three dimensions.

The neighbourhood of the path is drawn straight (`histoquant.analysis.spine_scene`), and a small network says how sure
each place there is the middle of a head (`histoquant.analysis.spine_network`). Each summit of that is a spine, which
stands where the brightest way from its head meets the shaft. The network sees a few um at a time, and here and there
takes noise beside a bare shaft for a head: what it says of a place is weighed by how many other sure spines the
dendrite bears.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.paths import Points
from histoquant.analysis.spine_network import chances, on_straight, summits
from histoquant.analysis.spine_scene import Scene

LEAN_UM = 1.2
"""A spine stands at most so far along the dendrite from its head."""

SURE = 0.5
"""From this answer of the network on a spine is sure."""

FEW_PER_10UM, BARE_PER_10UM = 2.0, 0.5
"""Where there are fewer other sure spines than `FEW_PER_10UM`, the odds of a spine go with their density plus
`BARE_PER_10UM`: on a dendrite without any they are a fifth of what the network says."""


@dataclass(frozen=True, eq=False)
class Spots:
    """Heads of spines beside a shaft.

    Attributes
    ----------
    suw : (n, 3) float
        Place in the straight picture, voxels.
    head_um, base_um : (n, 3) float, um
        Centre of the head, and where it meets the shaft's surface.
    position_um : (n,) float
        Of the base along the dendrite.
    score : (n,) float
        How sure each is a spine, 0 to 1.
    """

    suw: Points
    head_um: Points
    base_um: Points
    position_um: Points
    score: Points

    def __len__(self) -> int:
        return len(self.suw)


def weighed(score: Points, others_per_10um: Points) -> Points:
    """Return how sure spines are, told how many other sure ones there are on their dendrite.

    Parameters
    ----------
    score : array of float
        What the network says, 0 to 1.
    others_per_10um : array of float
        Other spines of `SURE` or more over the length of the dendrite: none vouches for itself.
    """
    odds = (BARE_PER_10UM + np.minimum(others_per_10um, FEW_PER_10UM)) / (BARE_PER_10UM + FEW_PER_10UM)
    return np.asarray(odds * score / (odds * score + 1 - score))


def spots_of(scene: Scene, least: float) -> Spots:
    """Find the heads of spines beside a shaft.

    Parameters
    ----------
    least : float
        Score from which on a place is a spine.
    """
    places, score = summits(chances(scene), least)
    suw = on_straight(scene, places)
    straight = scene.straight
    fine_s, fine_u, deep = straight.step_um
    s, u, w = suw.T
    n = len(suw)
    mid_u, mid_w = straight.light.shape[1] // 2, straight.light.shape[2] // 2
    u_um, w_um = (u - mid_u) * fine_u, (w - mid_w) * deep
    distance = np.maximum(np.hypot(u_um, w_um), 1e-6)
    radius = scene.radius_um[np.round(s).astype(int)]
    out_u, out_w = u_um / distance, w_um / distance  # unit vector outwards

    # The brightest way to the shaft among straight ones that lean: the one whose darkest place is the brightest.
    leans = np.linspace(-LEAN_UM, LEAN_UM, 9)
    surface = np.minimum(radius, 0.9 * distance)
    share = np.linspace(0, 1, 9)  # from the head to the shaft's surface
    way = share[None, None] * (distance - surface)[:, None, None]
    lean = share[None, None] * leans[None, :, None] / fine_s
    out = (out_u[:, None, None], out_w[:, None, None])
    light = _look(scene.smooth, s[:, None, None] + lean, u[:, None, None] - out[0] * way / fine_u,
                  w[:, None, None] - out[1] * way / deep)  # fmt: skip
    lowest = light.min(axis=2) - 0.02 * np.abs(leans)[None] * np.maximum(light[:, :1, 0], 1e-9)
    foot_s = np.clip(s + leans[lowest.argmax(axis=1)] / fine_s, 0, len(straight.path) - 1)
    base = straight.place(foot_s, mid_u + out_u * radius / fine_u, mid_w + out_w * radius / deep)
    return Spots(suw, straight.place(s, u, w), base.reshape(n, 3), foot_s * fine_s - scene.start_um, score)


def _look(volume: NDArray[np.float32], s: Points, u: Points, w: Points) -> Points:
    """Return a straight picture's value at voxels, fractions allowed, its edge beyond."""
    shape = np.broadcast_shapes(np.shape(s), np.shape(u), np.shape(w))
    index = np.stack([np.broadcast_to(a, shape) for a in (s, u, w)])
    return np.asarray(ndimage.map_coordinates(volume, index, order=1, mode="nearest"), dtype=np.float64)
