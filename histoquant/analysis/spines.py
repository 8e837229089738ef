"""Spines along a dendrite, found in three dimensions.

The neighbourhood of the path is drawn straight. What is the same along the dendrite is its shaft, with the halo that
the optics give it: it is taken away as the running median along the path, relative to the shaft's brightness there.
What is left are spines, and whatever else passes by. Each bright spot of that is a candidate, described by numbers
without a unit of brightness, and scored (`histoquant.analysis.spine_score`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from histoquant.analysis.paths import Points, along_um
from histoquant.analysis.ridge import Stack, Straight, straighten

SCALES_UM = (0.12, 0.18, 0.27, 0.4)
"""Sigma of the blobs looked for: heads of 0.2 to 1.1 um, blurred by the microscope."""

SHAFT_WINDOW_UM = 9.0
"""Length of dendrite that says what its shaft looks like; a spine fills a tenth of it."""

BEYOND_UM = 1.5
"""The picture goes on so far past both ends, so that heads that lean over an end are seen whole."""

APART_UM = (0.2, 0.2, 0.6)
"""No two candidates are nearer than this along, aside and in depth, where shafts look round."""

ROUND_SMEAR, MOST_APART = 1.6, 1.5
"""Height over width of a shaft as confocal microscopes show it. Light that is smeared more tells less apart: candidates
stay farther off each other in proportion, up to so many times."""

LEAST_ANSWER = 3.5
"""Of a candidate, in robust standard deviations of the answers far from the dendrite."""

RIVAL_UM = 0.8
"""How far off another candidate may be another bright spot of the same spine; depth counts half."""

NO_RIVAL = -3.0

NO_DEPTH = 8.0
"""Smear of an image of one plane."""

FEATURES = (
    "answer_noise", "answer_shaft", "peak_noise", "peak_shaft", "scale", "off_surface", "elevation", "bridge",
    "surround", "beyond_near", "beyond_far", "along_near", "along_far", "halo", "shaft_radius", "depth", "inward",
    "sharpness", "end", "aside", "mirror", "smear", "rival", "valley",
)  # fmt: skip
"""Numbers a candidate is scored by, in this order."""


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


@dataclass(frozen=True, eq=False)
class Candidates:
    """Bright spots beside a shaft.

    Attributes
    ----------
    suw : (n, 3) float
        Place in the straight picture, voxels.
    head_um, base_um : (n, 3) float, um
        Centre of the head, and where it meets the shaft's surface.
    position_um : (n,) float
        Of the base along the dendrite.
    features : (n, len(FEATURES)) float
    """

    suw: Points
    head_um: Points
    base_um: Points
    position_um: Points
    features: Points = field(repr=False)

    def __len__(self) -> int:
        return len(self.suw)


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
    smooth = ndimage.gaussian_filter(straight.light, (0.1 / fine, 0.1 / fine, 0 if flat else 0.25 / deep))
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


def answers(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return how strongly blobs answer in what is left of a scene, and which of `SCALES_UM` answers most."""
    fine_s, fine_u, deep = scene.straight.step_um
    flat = scene.rest.shape[2] == 1
    best, scale = None, np.zeros(scene.rest.shape, dtype=np.int8)
    for k, sigma in enumerate(SCALES_UM):
        if sigma < fine_u and k < len(SCALES_UM) - 1:
            continue  # narrower than a pixel there is noise only
        across = (sigma / fine_s, sigma / fine_u, 0 if flat else max(0.5, sigma) / deep)
        answer = -(
            ndimage.gaussian_filter(scene.rest, across, order=(2, 0, 0)) * across[0] ** 2
            + ndimage.gaussian_filter(scene.rest, across, order=(0, 2, 0)) * across[1] ** 2
        )
        if best is None:
            best = answer
        else:
            scale[answer > best] = k
            best = np.maximum(best, answer)
    assert best is not None
    return best, scale


def candidates(scene: Scene) -> Candidates:
    """Find every bright spot beside a shaft and describe it."""
    straight = scene.straight
    answer, scale = answers(scene)
    fine_s, fine_u, deep = straight.step_um
    u, w = straight.u_um, straight.w_um
    wider = float(np.clip(scene.smear / ROUND_SMEAR, 1.0, MOST_APART))
    size = [max(3, 2 * round(wider * a / s) + 1) for a, s in zip(APART_UM, (fine_s, fine_u, deep), strict=True)]
    size[2] = 1 if len(w) == 1 else size[2]
    far = answer[:, np.abs(u) > 0.75 * np.abs(u).max()]
    noise = float(1.4826 * np.median(np.abs(far - np.median(far)))) if far.size else 0.0
    noise = max(noise, 0.005 * float(np.median(scene.brightness)))
    peaks = (ndimage.maximum_filter(answer, size=size, mode="nearest") == answer) & (answer > LEAST_ANSWER * noise)
    s, i, j = np.nonzero(peaks)
    distance = np.hypot(u[i], w[j] * _flattening(straight))
    # Heads stand off the shaft by more than half its radius; what is nearer is the shaft's own unevenness.
    keep = (distance > 0.6 * scene.radius_um[s]) & (distance < np.abs(u).max() - 0.2)
    s, i, j = s[keep], i[keep], j[keep]
    suw = np.stack([s, i, j], axis=1).astype(float)
    return _described(scene, suw, answer[s, i, j] / noise, answer[s, i, j], np.take(SCALES_UM, scale[s, i, j]))


def _flattening(straight: Straight) -> float:
    """Return by how much distances up and down count: light is smeared along z, and the shaft's halo with it."""
    return 0.5 if len(straight.w_um) > 1 else 1.0


def _look(volume: NDArray[np.float32], s: Points, u: Points, w: Points) -> Points:
    """Return a straight picture's value at voxels, fractions allowed, its edge beyond."""
    shape = np.broadcast_shapes(np.shape(s), np.shape(u), np.shape(w))
    index = np.stack([np.broadcast_to(a, shape) for a in (s, u, w)])
    return np.asarray(ndimage.map_coordinates(volume, index, order=1, mode="nearest"), dtype=np.float64)


def _beside_rivals(scene: Scene, suw: Points, answer: Points) -> tuple[Points, Points]:
    """Compare candidates with the strongest one nearby: two heads have a valley between them, two spots of one do not.

    Returns
    -------
    rival : (n,) float
        Logarithm of the strongest neighbour's answer over the own; `NO_RIVAL` where there is none.
    valley : (n,) float
        The darkest place on the way there, over the darker of the two; 0 where there is none.
    """
    place = suw * scene.straight.step_um * np.array([1.0, 1.0, 0.5])
    rival, valley = np.full(len(suw), NO_RIVAL), np.zeros(len(suw))
    pairs = cKDTree(place).query_pairs(RIVAL_UM, output_type="ndarray") if len(suw) else np.zeros((0, 2), int)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    # The strongest neighbour of each comes last, and stays.
    pairs = pairs[np.argsort(answer[pairs[:, 1]], kind="stable")]
    strongest = np.full(len(suw), -1)
    strongest[pairs[:, 0]] = pairs[:, 1]
    own = np.flatnonzero(strongest >= 0)
    other = strongest[own]
    share = np.linspace(0, 1, 12)[None, :, None]
    way = suw[own, None] * (1 - share) + suw[other, None] * share
    light = _look(scene.rest, *np.moveaxis(way, -1, 0))
    rival[own] = np.clip(np.log(np.maximum(answer[other], 1e-9) / np.maximum(answer[own], 1e-9)), NO_RIVAL, None)
    valley[own] = light.min(axis=1) / np.maximum(np.minimum(light[:, 0], light[:, -1]), 1e-9)
    return rival, valley


def _described(scene: Scene, suw: Points, answer_noise: Points, answer: Points, scale_um: Points) -> Candidates:
    straight = scene.straight
    fine_s, fine_u, deep = straight.step_um
    s, u, w = suw.T
    n = len(suw)
    mid_u, mid_w = straight.light.shape[1] // 2, straight.light.shape[2] // 2
    u_um, w_um = (u - mid_u) * fine_u, (w - mid_w) * deep
    distance = np.maximum(np.hypot(u_um, w_um), 1e-6)
    index = np.clip(s.astype(int), 0, len(scene.brightness) - 1)
    bright, radius = scene.brightness[index], scene.radius_um[index]
    peak = _look(scene.rest, s, u, w)
    light = np.maximum(_look(scene.smooth, s, u, w), 1e-9)
    out_u, out_w = u_um / distance, w_um / distance  # unit vector outwards

    # The brightest way to the shaft among straight ones that lean by up to 1.2 um: its darkest place is the bridge.
    leans = np.linspace(-1.2, 1.2, 9)
    surface = np.minimum(radius, 0.9 * distance)
    share = np.linspace(0, 1, 9)  # from the head to the shaft's surface
    way = share[None, None] * (distance - surface)[:, None, None]
    on_s = s[:, None, None] + share[None, None] * leans[None, :, None] / fine_s
    on_u = u[:, None, None] - out_u[:, None, None] * way / fine_u
    on_w = w[:, None, None] - out_w[:, None, None] * way / deep
    lowest = _look(scene.smooth, on_s, on_u, on_w).min(axis=2) - 0.02 * np.abs(leans)[None] * light[:, None]
    best = lowest.argmax(axis=1)
    bridge = lowest[np.arange(n), best] / light
    foot_s = np.clip(s + leans[best] / fine_s, 0, len(straight.path) - 1)

    def off(along: float, out: float) -> Points:
        """Return what is left at a distance along the dendrite and outwards from each head, relative to its peak."""
        step = out_u * out / fine_u
        return _look(scene.rest, s + along / fine_s, u + step, w + out_w * out / deep) / np.maximum(peak, 1e-9)

    ring = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    wide = (2.5 * scale_um + 0.2)[:, None]
    around = _look(
        scene.rest, s[:, None] + wide * np.cos(ring) / fine_s, u[:, None] + wide * np.sin(ring) / fine_u, w[:, None]
    )
    halo = 1 - peak / light
    depth = np.ones(n)
    if straight.light.shape[2] > 1:
        above, below = (_look(scene.rest, s, u, w + sign * 1.5 / deep) for sign in (1, -1))
        depth = (above + below) / 2 / np.maximum(peak, 1e-9)
    rival, valley = _beside_rivals(scene, suw, answer)
    ends = np.minimum(s * fine_s - scene.start_um, scene.start_um + scene.length_um - s * fine_s)
    features = np.stack([
        np.log(answer_noise), np.log(np.maximum(answer, 1e-9) / bright), np.log(np.maximum(peak, 1e-9) / scene.noise),
        np.log(np.maximum(peak, 1e-9) / bright), scale_um, distance - radius, np.abs(w_um), bridge,
        around.mean(axis=1) / np.maximum(peak, 1e-9), off(0, 0.5), off(0, 1.0),
        np.maximum(off(0.6, 0), off(-0.6, 0)), np.maximum(off(1.2, 0), off(-1.2, 0)), halo, radius, depth,
        off(0, -0.5), answer / np.maximum(peak, 1e-9), np.clip(ends, -1.5, 1.5), np.abs(u_um) - radius,
        _look(scene.rest, s, 2 * mid_u - u, w) / np.maximum(peak, 1e-9), np.full(n, scene.smear),
        rival, valley,
    ], axis=1)  # fmt: skip
    head = straight.place(s, u, w)
    base = straight.place(foot_s, mid_u + out_u * radius / fine_u, mid_w + out_w * radius / deep)
    return Candidates(suw, head, base, foot_s * fine_s - scene.start_um, np.clip(features, -20, 20))
