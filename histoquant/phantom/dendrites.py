"""Dendrites with spines of known place, size and class, and the stack a microscope makes of them.

Shafts, necks and heads are solids filled with points of label; points fall into voxels and are blurred by the optics,
so that any size, tilt and overlap comes out with the right amount of light. Sizes are published ones of thin, mushroom
and stubby spines and of filopodia. Spines stand at any angle round the shaft, so that half of them lie in its shadow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from histoquant.analysis.paths import Points, along_um, frames, resampled
from histoquant.analysis.spine_rules import class_of
from histoquant.phantom.dendrite_plan import DendritePlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS_PER_UM3 = 6000.0
"""Of label. A head of 0.25 um has 50: its light is uncertain by a seventh, as staining is."""

SIGMA_UM = {"spines": (0.30, 0.09, 0.09), "golgi": (0.45, 0.11, 0.11)}
"""Point spread along z, y, x: 63x/1.4 confocal and 100x/1.4 bright field at 520 nm."""

UNEVEN, UNEVEN_UM = 0.12, 0.6
"""Shafts are no pipes: their radius and their label vary by this share, over about this length."""

APART_UM = 3.0
"""Axes keep this distance: nothing tells which way two go on that touch where they cross."""

SHARES = {"mushroom": 0.3, "stubby": 0.2, "thin": 0.44, "filopodium": 0.06}

OFFSET, GREY_PER_PHOTON, READ_NOISE = 100.0, 12.0, 2.0
BACKGROUND_PHOTONS = 4.0
GOLGI_OD, GOLGI_PHOTONS, WHITE = 1.3, 3000.0, 225.0


@dataclass(frozen=True, eq=False)
class Dendrite:
    """A dendrite and its spines.

    Attributes
    ----------
    path : (n, 3) float, um
        Its axis, 0.05 um a step.
    radius_um : float
    position_um, azimuth : (k,) float
        Of each spine's base along the path; angle round it, 0 in the image plane.
    length_um, head_um, neck_um : (k,) float
        From the shaft's surface to the tip; diameters.
    base, head, tip : (k, 3) float, um
        Place of the surface, the head's centre and the tip.
    shadow : (k,) bool
        Whether the head lies over or under the shaft, not clear of it to the side.
    """

    path: Points
    radius_um: float
    position_um: Points
    azimuth: Points
    length_um: Points
    head_um: Points
    neck_um: Points
    base: Points
    head: Points
    tip: Points
    shadow: NDArray[np.bool_]

    @property
    def total_um(self) -> float:
        """Length of the dendrite."""
        return float(along_um(self.path)[-1])

    def classes(self, rules: Any) -> list[str]:
        """Return the class of each spine by a set of rules, from its true sizes."""
        return [
            class_of(length, head, neck, rules=rules)
            for length, head, neck in zip(self.length_um, self.head_um, self.neck_um, strict=True)
        ]


def draw_dendrite(
    start: Points, heading_deg: float, tilt_deg: float, length_um: float, per_10um: float, rng: np.random.Generator
) -> Dendrite:
    """Draw a dendrite that bends gently, and its spines.

    Parameters
    ----------
    start : (3,) float, um
    heading_deg, tilt_deg : float
        In the image plane from x towards y, and out of it.
    per_10um : float
        Spines; their number is that density's, rounded.
    """
    t = np.linspace(0, length_um, int(length_um / 0.05) + 1)
    bend = 0.25 * np.sin(2 * np.pi * t / rng.uniform(25, 45) + rng.uniform(0, 6.3))
    wave = 0.08 * np.sin(2 * np.pi * t / rng.uniform(25, 45) + rng.uniform(0, 6.3))
    heading, tilt = np.radians(heading_deg) + bend, np.radians(tilt_deg) + wave
    step = np.stack([np.sin(tilt), np.cos(tilt) * np.sin(heading), np.cos(tilt) * np.cos(heading)], axis=1)
    path = np.asarray(start) + np.cumsum(step, axis=0) * 0.05
    radius = float(rng.uniform(0.3, 0.5))
    total = float(along_um(path)[-1])
    n = round(per_10um * total / 10)
    kinds = rng.choice(list(SHARES), size=n, p=list(SHARES.values()))
    sizes = np.array([_sizes(kind, rng) for kind in kinds]).reshape(n, 3)
    position, azimuth = _spread(n, total, rng)
    side, up = frames(path)
    index = np.clip(np.searchsorted(along_um(path), position), 0, len(path) - 1)
    # Spines lean by up to 20 degrees along the shaft.
    lean = np.radians(rng.uniform(-20, 20, n))[:, None]
    ahead = np.gradient(path, axis=0)[index]
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-12)
    out = np.cos(azimuth)[:, None] * side[index] + np.sin(azimuth)[:, None] * up[index]
    out = np.cos(lean) * out + np.sin(lean) * ahead
    length, head, neck = sizes.T
    base = path[index] + radius * out
    centre = base + np.maximum(length - head / 2, 0)[:, None] * out
    aside = np.abs(((centre - path[index]) * side[index]).sum(axis=1))
    return Dendrite(
        path, radius, position, azimuth, length, head, neck, base, centre, base + length[:, None] * out,
        aside - head / 2 < radius,
    )  # fmt: skip


def _sizes(kind: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return length, head and neck of a spine of a kind, um."""
    if kind == "mushroom":
        head = float(np.clip(rng.normal(0.7, 0.14), 0.45, 1.1))
        return head + float(rng.uniform(0.3, 1.5)), head, float(np.clip(rng.normal(0.2, 0.05), 0.12, 0.35))
    if kind == "stubby":
        head = float(np.clip(rng.normal(0.5, 0.08), 0.35, 0.7))
        return head * float(rng.uniform(1.0, 1.5)), head, head
    if kind == "thin":
        head = float(np.clip(rng.normal(0.3, 0.04), 0.22, 0.345))
        return float(np.clip(rng.normal(1.2, 0.45), 0.6, 2.6)), head, float(np.clip(rng.normal(0.12, 0.03), 0.08, 0.2))
    head = float(rng.uniform(0.2, 0.28))
    return float(rng.uniform(3.05, 3.8)), head, float(rng.uniform(0.14, 0.18))


def _spread(n: int, total: float, rng: np.random.Generator) -> tuple[Points, Points]:
    """Return places along and round a shaft; no two bases are nearer than 0.5 um while there is room."""
    position, azimuth = np.zeros(n), np.zeros(n)
    for k in range(n):
        for _ in range(60):
            position[k], azimuth[k] = rng.uniform(0.2, total - 0.2), rng.uniform(0, 2 * np.pi)
            near = np.abs(position[:k] - position[k]) < 0.5
            turn = np.abs((azimuth[:k] - azimuth[k] + np.pi) % (2 * np.pi) - np.pi)
            if not (near & (turn < 1.0)).any():
                break
    order = np.argsort(position, kind="stable")
    return position[order], azimuth[order]


def _tube(path: Points, radius: float, rng: np.random.Generator, *, uneven: float = 0.0) -> Points:
    """Return label in a tube; ``uneven`` is the standard deviation of its radius and of its label along it."""
    line = resampled(path, 0.05)
    total = float(along_um(line)[-1])
    n = rng.poisson(POINTS_PER_UM3 * np.pi * radius**2 * total)
    side, up = frames(line)
    at = rng.integers(0, len(line), n)
    wide = np.full(len(line), radius)
    if uneven:
        swell, label = ndimage.gaussian_filter1d(
            rng.normal(size=(2, len(line))), UNEVEN_UM / 0.05, axis=1, mode="nearest"
        ) * np.sqrt(2 * np.sqrt(np.pi) * UNEVEN_UM / 0.05)
        wide *= np.clip(1 + uneven * swell, 0.6, 1.6)
        at = at[rng.uniform(0, 1, n) < np.clip(0.85 + uneven * label[at], 0.3, 1.0)]
        n = len(at)
    turn, out = rng.uniform(0, 2 * np.pi, n)[:, None], (wide[at] * np.sqrt(rng.uniform(0, 1, n)))[:, None]
    along = np.gradient(line, axis=0)[at] * rng.uniform(-0.5, 0.5, n)[:, None]
    return np.asarray(line[at] + out * (np.cos(turn) * side[at] + np.sin(turn) * up[at]) + along)


def _ball(centre: Points, diameter: float, rng: np.random.Generator) -> Points:
    n = rng.poisson(POINTS_PER_UM3 * np.pi / 6 * diameter**3)
    way = rng.normal(size=(n, 3))
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-12)
    return np.asarray(centre + way * (diameter / 2 * np.cbrt(rng.uniform(0, 1, n)))[:, None])


def label_points(dendrites: list[Dendrite], rng: np.random.Generator) -> Points:
    """Return where label sits in dendrites and spines, (n, 3) um."""
    parts = []
    for one in dendrites:
        parts.append(_tube(one.path, one.radius_um, rng, uneven=UNEVEN))
        for base, head, size, neck in zip(one.base, one.head, one.head_um, one.neck_um, strict=True):
            parts.append(_ball(head, size, rng))
            if np.linalg.norm(head - base) > 0.06:
                parts.append(_tube(np.stack([base, head]), neck / 2, rng))
    return np.concatenate(parts)


def photograph(
    dendrites: list[Dendrite], shape: tuple[int, int, int], plan: DendritePlan, rng: np.random.Generator
) -> NDArray[Any]:
    """Return the stack: (z, y, x) uint16 of fluorescence, (z, y, x, 3) uint8 of Golgi."""
    voxel = np.array([plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um])
    points = label_points(dendrites, rng)
    # Planes are points in focus, not slabs: label is gathered in finer planes, blurred, and every k-th is seen.
    finer = max(1, int(np.ceil(plan.z_step_um / 0.15)))
    index = np.round(points / (voxel / (finer, 1, 1))).astype(int)
    fine_shape = ((shape[0] - 1) * finer + 1, *shape[1:])
    inside = ((index >= 0) & (index < fine_shape)).all(axis=1)
    volume = np.zeros(fine_shape, dtype=np.float32)
    np.add.at(volume, tuple(index[inside].T), 1.0)
    volume /= POINTS_PER_UM3 * float(np.prod(voxel)) / finer
    sigma = plan.blur * np.array(SIGMA_UM[plan.assay]) / (voxel / (finer, 1, 1))
    light = ndimage.gaussian_filter(volume, sigma, mode="nearest")
    if plan.assay == "spines":
        light = light[::finer]
        specks = ndimage.gaussian_filter(rng.normal(size=light.shape).astype(np.float32), (1, 6, 6))
        mean = plan.photons * light + BACKGROUND_PHOTONS * (1 + 0.2 * specks / specks.std())
        grey = GREY_PER_PHOTON * rng.poisson(np.maximum(mean, 0.1)) + rng.normal(
            OFFSET, READ_NOISE * GREY_PER_PHOTON, light.shape
        )
        return np.asarray(np.clip(np.rint(grey), 0, 65535), dtype=np.uint16)
    haze = ndimage.gaussian_filter(volume, sigma * (5, 5, 5), mode="nearest")
    density = GOLGI_OD * (0.75 * light + 1.2 * haze)[::finer]
    colour = np.array([1.0, 1.06, 1.12])  # brown-black
    mean = WHITE * 10.0 ** (-density[..., None] * colour)
    grey = mean + rng.normal(size=mean.shape) * np.sqrt(mean * WHITE / GOLGI_PHOTONS)
    return np.asarray(np.clip(np.rint(grey), 0, 255), dtype=np.uint8)


def draw_stack(
    plan: DendritePlan, factor: float, rng: np.random.Generator
) -> tuple[list[Dendrite], tuple[int, int, int]]:
    """Draw the dendrites of one stack and say how many voxels it takes.

    They run from left to right below each other; a third and further one crosses the first, over or under it.

    Parameters
    ----------
    factor : float
        What the plan's densities are multiplied with.
    """
    height, width = plan.size_um
    dendrites = []
    n = len(plan.spines_per_10um)
    for k, density in enumerate(plan.spines_per_10um):
        tilt = float(rng.uniform(-plan.tilt_deg, plan.tilt_deg))
        length = (width - 9.0) / np.cos(np.radians(max(abs(tilt), 5.0)))
        row = (k + 0.7) * height / (n + 0.4)
        heading = float(rng.uniform(-8, 8))
        if k >= 2:
            # Across: from the lower left to the upper right.
            heading = -np.degrees(np.arctan2(0.72 * height, width - 9.0))
            row = 0.86 * height
            length /= np.cos(np.radians(heading))
        start = np.array([0.0, row, 4.5])
        dendrites.append(draw_dendrite(start, heading, tilt, 0.92 * length, min(density * factor, 30.0), rng))
        middle = dendrites[-1].path[:, 0].mean()
        # Dendrites lie at depths that keep them from meeting where they cross.
        dendrites[-1] = moved(dendrites[-1], np.array([4.5 * k - middle, 0.0, 0.0]))
        while _nearest(dendrites[-1], dendrites[:-1]) < APART_UM:
            dendrites[-1] = moved(dendrites[-1], np.array([1.0, 0.0, 0.0]))
    low = min(float(one.path[:, 0].min()) for one in dendrites) - 4.5
    high = max(float(one.path[:, 0].max()) for one in dendrites) + 4.5
    dendrites = [moved(one, np.array([-low, 0.0, 0.0])) for one in dendrites]
    shape = (
        int(np.ceil((high - low) / plan.z_step_um)) + 1,
        round(height / plan.pixel_size_um),
        round(width / plan.pixel_size_um),
    )
    return dendrites, shape


def _nearest(one: Dendrite, others: list[Dendrite]) -> float:
    """Return how near the axis of a dendrite comes to those of others."""
    return min((float(cKDTree(other.path).query(one.path)[0].min()) for other in others), default=np.inf)


def moved(one: Dendrite, by: Points) -> Dendrite:
    """Return a dendrite moved as a whole."""
    places = {name: getattr(one, name) + by for name in ("path", "base", "head", "tip")}
    rest = ("radius_um", "position_um", "azimuth", "length_um", "head_um", "neck_um", "shadow")
    return Dendrite(**places, **{name: getattr(one, name) for name in rest})
