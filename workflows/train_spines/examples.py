"""Candidates with answers: phantoms, dendrites 0 and 1 of the two-photon stack, and the train pictures of Meng."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy.optimize import linear_sum_assignment

from histoquant.analysis import dendrites, spines
from histoquant.analysis.paths import smooth_path
from histoquant.analysis.ridge import Stack, on_ridge
from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrites import draw_dendrite, draw_stack, moved, photograph

REACH_UM = 4.0
MENG_UM = {1024: 0.07, 512: 0.14}
"""Assumed: these pictures do not say their pixel size; spines are then 0.5 to 1.6 um long."""

IN_VIVO = 1.6
FAINT = np.log(7.0)
"""Answer of a candidate, in SD of the background's, below which a mark beside it is not believed to mean it."""
TRACING = dendrites.Tracing((0.3, 0.5, 0.9), 8.0, 4.0, 5.0, 6.0)


def matched(found, true, answer, *, lateral_um, axial_um):
    """Return which candidates are a true spine: one to one, near, and of several the brightest."""
    hit = np.zeros(len(found), bool)
    if len(found) and len(true):
        lateral = np.linalg.norm(found[:, None, 1:] - true[None, :, 1:], axis=2)
        axial = np.abs(found[:, None, 0] - true[None, :, 0])
        near = (lateral <= lateral_um) & (axial <= axial_um)
        cost = np.where(near, lateral - 0.3 * answer[:, None], 1e3)
        i, j = linear_sum_assignment(cost)
        hit[i[near[i, j]]] = True
    return hit


def plans(n: int, seed: int) -> Iterator[DendritePlan]:
    """Phantoms of many optics, voxels, noises and densities."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        in_vivo = k % 2 == 0
        yield DendritePlan(
            assay="golgi" if k % 6 == 1 else "spines",
            size_um=(26.0, 32.0),
            pixel_size_um=float(rng.choice([0.065, 0.08, 0.1, 0.13])),
            z_step_um=1.0 if in_vivo else float(rng.choice([0.3, 0.5, 0.7, 1.0])),
            spines_per_10um=(float(rng.uniform(0, 4)), float(rng.uniform(4, 12)), float(rng.uniform(8, 24))),
            tilt_deg=float(rng.uniform(0, 45)),
            photons=float(np.exp(rng.uniform(np.log(40), np.log(400)))),
            blur=float(rng.uniform(1.8, 2.8)) if in_vivo else float(rng.uniform(0.8, 1.5)),
            seed=int(rng.integers(1 << 30)),
        )


def phantom_stack(plan: DendritePlan):
    """Return a phantom's dendrites and its stack, as light."""
    rng = np.random.default_rng(plan.seed)
    drawn, shape = draw_stack(plan, 1.0, rng)
    pixels = photograph(drawn, shape, plan, rng)
    light = pixels.astype(np.float32)
    if light.ndim == 4:
        light = -np.log10(np.maximum(light, 1) / np.percentile(light, 95)).mean(axis=3)
    return drawn, Stack(
        (light - np.median(light)).astype(np.float32), (plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um)
    )


def of_phantoms(n: int, seed: int):
    for plan in plans(n, seed):
        drawn, stack = phantom_stack(plan)
        for one in drawn:
            path = on_ridge(stack, one.path[::4], reach_um=0.6)
            found = spines.candidates(spines.scene_of(stack, path, reach_um=REACH_UM))
            reach = {"lateral_um": 0.5, "axial_um": max(1.0, plan.z_step_um)}
            hit = matched(found.head_um, one.head, found.features[:, 0], **reach)
            keep = np.ones(len(hit), bool)
            if plan.blur > IN_VIVO:
                # With light smeared along z nobody counts what lies over and under a shaft: no answer, not a no.
                keep = ~matched_any(found.head_um, one.head[one.shadow], **reach) | (
                    hit & matched_any(found.head_um, one.head[~one.shadow], **reach)
                )
            yield found.features[keep], hit[keep], f"phantom {plan.assay}"


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


def of_two_photon(folder: Path):
    stack, marked = two_photon(folder)
    for number, (path, tips) in enumerate(marked):
        found = spines.candidates(spines.scene_of(stack, path, reach_um=REACH_UM))
        hit = matched(found.head_um, tips, found.features[:, 0], lateral_um=1.3, axial_um=3.0)
        # What lies beside a mark without being the match is no sure negative: marks are tips, not heads.
        near = matched_any(found.head_um, tips, 1.0, 3.0) & ~hit
        # Nor is a mark where next to nothing shines: its nearest noise would be learnt as a spine.
        near |= hit & (found.features[:, 0] < FAINT)
        yield found.features[~near], hit[~near], f"two-photon {number}"


def matched_any(found, true, lateral_um, axial_um):
    if not len(found) or not len(true):
        return np.zeros(len(found), bool)
    lateral = np.linalg.norm(found[:, None, 1:] - true[None, :, 1:], axis=2)
    return ((lateral <= lateral_um) & (np.abs(found[:, None, 0] - true[None, :, 0]) <= axial_um)).any(axis=1)


def meng_picture(path: Path) -> Stack:
    grey = np.asarray(Image.open(path).convert("L")).astype(np.float32)
    size = MENG_UM[grey.shape[0]]
    return Stack(grey[None], (1.0, size, size))


def inside(points_px, polygon) -> np.ndarray:
    """Return which points (y, x) lie in a polygon of (x, y)."""
    import shapely

    shape = shapely.Polygon(polygon).buffer(0)
    return shapely.covers(shape, shapely.points(points_px[:, ::-1]))


def of_meng(folder: Path, split: str):
    notes = json.loads((folder / "annotations.json").read_text())
    for name in sorted(notes):
        if not name.startswith(split):
            continue
        stack = meng_picture(folder / name)
        polygons = [entry["xy"] for entry in notes[name]]
        for branch in dendrites.trace(stack, TRACING):
            found = spines.candidates(spines.scene_of(stack, branch.path, reach_um=REACH_UM))
            if not len(found):
                continue
            points = found.head_um[:, 1:] / stack.voxel_um[1:]
            hit = np.zeros(len(found), bool)
            for polygon in polygons:
                within = inside(points, polygon)
                if within.any():
                    hit[np.flatnonzero(within)[found.features[within, 0].argmax()]] = True
            yield found.features, hit, f"meng {split}"


def gather(data: Path, *, phantoms: int, seed: int):
    rows, answers, kinds = [], [], []
    sources = [
        of_phantoms(phantoms, seed),
        of_two_photon(data / "spines_twophoton"),
        of_meng(data / "spines_meng", "train"),
    ]
    for source in sources:
        for features, hit, kind in source:
            rows.append(features)
            answers.append(hit)
            kinds += [kind] * len(hit)
            print(kind, len(hit), int(hit.sum()), flush=True)
    return np.concatenate(rows), np.concatenate(answers), np.array(kinds)


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
