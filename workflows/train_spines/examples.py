"""Dendrites as the network sees them, with their spines: phantoms, dendrites 0 and 1 of the two-photon stack, Meng."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
import tifffile
from crowd import CULTURE, TISSUE, crowded_stack, light_of
from PIL import Image
from scipy import ndimage

from histoquant.analysis import dendrites
from histoquant.analysis.paths import smooth_path
from histoquant.analysis.ridge import Stack, on_ridge
from histoquant.analysis.spine_network import PLANES, STEP_UM, grid_of, on_straight, planes_of
from histoquant.analysis.spine_scene import Scene, scene_of
from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrites import draw_dendrite, draw_stack, moved, photograph

REACH_UM = 4.0
MENG_UM = {1024: 0.07, 512: 0.14}
"""Assumed: these pictures do not say their pixel size; spines are then 0.5 to 1.6 um long."""

IN_VIVO = 1.6
"""From this blur on nobody counts what lies over and under a shaft: there the answer is neither yes nor no."""

MARK_UM = (3.0, 1.2, 1.2)
"""Marks are at tips, and only so exact: a head lies this near, along w, s and u."""

TRACING = dendrites.Tracing((0.3, 0.5, 0.9), 8.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True, eq=False)
class Example:
    """One dendrite.

    Attributes
    ----------
    kind : str
    planes : (len(PLANES), w, s, u) float16
    heads : (n, 3) float
        On the network's grid.
    ignored : (w, s, u) bool
        Where nothing is learnt, heads apart.
    marks : (n, 3) float
        Tips that a person marked, where that is what is known.
    """

    kind: str
    planes: np.ndarray
    heads: np.ndarray
    ignored: np.ndarray
    marks: np.ndarray

    @classmethod
    def of(cls, kind: str, scene: Scene, heads, ignored=None, marks=()) -> Example:
        """Lay a dendrite and its heads on the grid; heads off it are left out."""
        size = grid_of(scene)
        heads = np.asarray(heads, dtype=float).reshape(-1, 3)
        heads = heads[((heads > -0.5) & (heads < np.array(size) - 0.5)).all(axis=1)]
        planes = planes_of(scene, 0, size[1]).astype(np.float16)
        ignored = np.zeros(size, bool) if ignored is None else ignored
        return cls(kind, planes, heads, ignored, np.asarray(marks, dtype=float).reshape(-1, 3))


PLANES_UM = {"confocal": (0.3, 0.5, 0.7), "coarse": (1.0,), "in vivo": (0.8, 1.0, 1.0, 1.5), "golgi": (0.3, 0.5, 0.7)}
"""Distances of planes, one of them by chance."""


def plans(n: int, seed: int) -> Iterator[DendritePlan]:
    """Phantoms of many optics, voxels, noises and densities; coarse planes and two-photon are the most."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        kind = rng.choice(["confocal", "coarse", "in vivo", "golgi"], p=[0.24, 0.38, 0.28, 0.1])
        in_vivo = kind == "in vivo"
        yield DendritePlan(
            assay="golgi" if kind == "golgi" else "spines",
            size_um=(26.0, 32.0),
            pixel_size_um=float(rng.choice([0.065, 0.08, 0.1, 0.13])),
            z_step_um=float(rng.choice(PLANES_UM[kind])),
            spines_per_10um=(float(rng.uniform(0, 4)), float(rng.uniform(4, 12)), float(rng.uniform(8, 22)))[
                :: int(rng.choice([-1, 1]))
            ],
            tilt_deg=float(rng.uniform(0, 45 if k % 2 else 20)),
            photons=float(np.exp(rng.uniform(*np.log((60, 2000) if in_vivo else (40, 500))))),
            blur=float(rng.uniform(1.8, 2.8) if in_vivo else rng.uniform(0.8, 1.5)),
            seed=int(rng.integers(1 << 30)),
        )


def phantom_stack(plan: DendritePlan):
    """Return a phantom's dendrites and its stack, as light, with nothing else in it."""
    rng = np.random.default_rng(plan.seed)
    drawn, shape = draw_stack(plan, 1.0, rng)
    return drawn, Stack(
        light_of(photograph(drawn, shape, plan, rng)), (plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um)
    )


def on_grid(scene: Scene, points_um):
    """Return where points lie on the network's grid, (n, 3)."""
    straight, size = scene.straight, grid_of(scene)
    places = np.empty((len(points_um), 3))
    for k, point in enumerate(points_um):
        off = point - straight.path
        aside, up = (off * straight.side).sum(axis=1), (off * straight.up).sum(axis=1)
        left = np.linalg.norm(off - aside[:, None] * straight.side - up[:, None] * straight.up, axis=1)
        nearest = int((left + 0.02 * np.hypot(aside, up)).argmin())
        um = (up[nearest] if size[0] > 1 else 0.0, nearest * straight.step_um[0], aside[nearest])
        places[k] = np.array(um) / STEP_UM + (size[0] // 2, 0, (size[2] - 1) / 2)
    return places


def around(size, places, reach_um):
    """Return which places of the grid lie in an ellipsoid around some."""
    near, reach = np.zeros(size, bool), np.array(reach_um) / STEP_UM
    for place in places:
        low = np.clip(np.floor(place - reach).astype(int), 0, size)
        high = np.clip(np.ceil(place + reach).astype(int) + 1, 0, size)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        near[box] |= sum(((g - c) / r) ** 2 for g, c, r in zip(np.ogrid[box], place, reach, strict=True)) <= 1
    return near


def brightest(planes, where):
    """Return the place of the grid at which the strongest blob of what is left without the shaft is, where asked."""
    rest = planes[PLANES.index("rest")].astype(np.float32)
    # SciPy's Laplacian of a width of 0 is the picture itself: a single plane is looked at as a plane.
    flat = rest.shape[0] == 1
    answer = np.zeros_like(rest)
    for size in (1.8, 2.7):
        answer -= size**2 * ndimage.gaussian_laplace(
            rest[0] if flat else rest, (size, size) if flat else (0.5, size, size)
        )
    return np.array(np.unravel_index(np.where(where, answer, -np.inf).argmax(), answer.shape))


def of_phantom(plan: DendritePlan) -> Iterator[Example]:
    """Return a phantom's dendrites; in vivo what lies over and under a shaft is left open."""
    in_vivo = plan.blur > IN_VIVO
    drawn, stack = crowded_stack(plan, TISSUE if in_vivo else CULTURE)
    for one in drawn:
        scene = scene_of(stack, on_ridge(stack, one.path[::4], reach_um=0.6), reach_um=REACH_UM)
        hidden = around(grid_of(scene), on_grid(scene, one.head[one.shadow]), (1.0, 0.35, 0.35))
        yield Example.of(
            "golgi" if plan.assay == "golgi" else "in vivo" if in_vivo else "confocal",
            scene,
            on_grid(scene, one.head[~one.shadow] if in_vivo else one.head),
            hidden if in_vivo else None,
        )


def two_photon(folder: Path):
    """Return the stack, and for dendrites 0 and 1 the trace on its ridge and the tips a person marked."""
    pixels = tifffile.imread(folder / "tp0.tif").astype(np.float32)
    stack = Stack(pixels - np.median(pixels), (1.0, 0.12, 0.12))
    marks, traces = pd.read_csv(folder / "tp0_spines.csv"), pd.read_csv(folder / "tp0_trace.csv")
    place = ["z_um", "y_um", "x_um"]
    found = []
    for number in (0, 1):
        chain = traces.loc[traces["dendrite_id"] == number, place].to_numpy()
        path = on_ridge(stack, smooth_path(chain, stack.voxel_um), reach_um=0.6)
        found.append((path, marks.loc[marks["dendrite_id"] == number, place].to_numpy()))
    return stack, found


def of_two_photon(folder: Path) -> Iterator[Example]:
    stack, marked = two_photon(folder)
    for number, (path, tips) in enumerate(marked):
        scene = scene_of(stack, path, reach_um=REACH_UM)
        size, marks = grid_of(scene), on_grid(scene, tips)
        # Marks are tips: which head is meant, and that what lies beside it is none, is told by `train.seen`.
        yield Example.of(f"two-photon {number}", scene, [], around(size, marks, MARK_UM), marks)


def meng_picture(path: Path) -> Stack:
    grey = np.asarray(Image.open(path).convert("L")).astype(np.float32)
    size = MENG_UM[grey.shape[0]]
    return Stack(grey[None], (1.0, size, size))


def of_meng(folder: Path, split: str) -> Iterator[Example]:
    notes = json.loads((folder / "annotations.json").read_text())
    for name in sorted(name for name in notes if name.startswith(split)):
        stack = meng_picture(folder / name)
        polygons = [shapely.Polygon(entry["xy"]).buffer(0) for entry in notes[name]]
        for branch in dendrites.trace(stack, TRACING):
            scene = scene_of(stack, branch.path, reach_um=REACH_UM)
            size = grid_of(scene)
            places = np.moveaxis(np.indices(size), 0, -1).reshape(-1, 3)
            yx = scene.straight.place(*on_straight(scene, places).T)[:, 1:] / stack.voxel_um[1:]
            points, planes = shapely.points(yx[:, ::-1]), planes_of(scene, 0, size[1])
            heads, marked = [], np.zeros(size, bool)
            for polygon in polygons:
                inside = shapely.covers(polygon, points).reshape(size)
                if inside.sum() >= 4:
                    heads.append(brightest(planes, inside))
                    marked |= inside
            yield Example.of(f"meng {split}", scene, heads, marked)


def picture_of(drawn, plan: DendritePlan, rng) -> Stack:
    """Return the stack of some dendrites, in a box with room round them."""
    low = np.min([one.path.min(axis=0) for one in drawn], axis=0) - 4.0
    high = np.max([one.path.max(axis=0) for one in drawn], axis=0) + 4.0
    voxel = np.array([plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um])
    shape = tuple(int(n) for n in np.ceil((high - low) / voxel).astype(int) + 1)
    pixels = photograph([moved(one, -low) for one in drawn], shape, plan, rng).astype(np.float32)
    return Stack(pixels - np.median(pixels), tuple(voxel))


def draw_tilted(tilt_deg: float, rng, per_10um: float = 0.0):
    """Draw one dendrite of 40 um at a tilt, at any angle in the plane."""
    return draw_dendrite(np.zeros(3), float(rng.uniform(0, 90)), tilt_deg, 40.0, per_10um, rng)


def large_stack() -> Stack:
    """Return 2048 x 2048 x 100 voxels of 16 bit: one phantom of dendrites, four by four times, and noise."""
    rng = np.random.default_rng(7)
    plan = DendritePlan(size_um=(51.2, 51.2), pixel_size_um=0.1, z_step_um=0.3, tilt_deg=10.0)
    drawn, shape = draw_stack(plan, 1.0, rng)
    tile = photograph(drawn, shape, plan, rng)
    planes = np.zeros((100, *tile.shape[1:]), dtype=np.uint16)
    planes[:] = np.median(tile)
    planes[: min(100, len(tile))] = tile[:100]
    whole = np.empty((100, 2048, 2048), dtype=np.uint16)
    for z in range(100):
        whole[z] = np.tile(planes[z], (4, 4))
        whole[z] += rng.integers(0, 20, whole[z].shape, dtype=np.uint16)
    return Stack(whole, (0.3, 0.1, 0.1), float(np.median(whole[::10, ::8, ::8])))
