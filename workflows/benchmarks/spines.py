"""How right dendrites and spines are: lengths by angle, phantoms, a two-photon stack and Meng's pictures.

    python workflows/benchmarks/spines.py length
    python workflows/benchmarks/spines.py phantoms [--stacks 8]
    python workflows/benchmarks/spines.py few [--stacks 8]
    python workflows/benchmarks/spines.py twophoton DATA
    python workflows/benchmarks/spines.py meng DATA
    python workflows/benchmarks/spines.py large

DATA is the folder that holds `spines_twophoton` and `spines_meng`. Matching is one to one.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from histoquant.analysis import arbor, dendrites, paths
from histoquant.analysis.dendrites import Branch
from histoquant.analysis.spine_shape import FWHM
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrites import SIGMA_UM

sys.path.insert(0, str(Path(__file__).parents[1] / "train_spines"))
import examples

SETTINGS = SpineSettings()


def matched(found, true, *, lateral_um, axial_um):
    """Return which found and which true points pair, one to one."""
    if not len(found) or not len(true):
        return np.empty(0, int), np.empty(0, int)
    lateral = np.linalg.norm(found[:, None, 1:] - true[None, :, 1:], axis=2)
    near = (lateral <= lateral_um) & (np.abs(found[:, None, 0] - true[None, :, 0]) <= axial_um + 1e-6)
    i, j = linear_sum_assignment(np.where(near, lateral, 1e6))
    return i[near[i, j]], j[near[i, j]]


def pairs(found, true, **near):
    """Return how many found and true points pair, one to one."""
    return len(matched(found, true, **near)[0])


def voxel_line(plane_deg, z_deg, voxel, length_um=40.0):
    plane, z = np.radians([plane_deg, z_deg])
    step = np.array([np.sin(z), np.cos(z) * np.sin(plane), np.cos(z) * np.cos(plane)])
    moved = length_um * step / voxel
    line = np.linspace(0, 1, int(np.abs(moved).max()) + 1)[:, None] * moved + (7.3, 5.13, 5.13)
    return np.round(line) * voxel


def length() -> None:
    voxel = np.array([1.0, 0.1, 0.1])
    print("length / true of straight chains of voxels of 1 x 0.1 x 0.1 um; worst over z tilts of 0 to 60 degrees")
    print("| angle | voxels x pixel, z = 0 | sum of steps, z = 0 | sum of steps, worst z | smoothed path, worst z |")
    print("|---|---|---|---|---|")
    for plane in (0, 10, 15, 22.5, 30, 45, 60):
        flat = voxel_line(plane, 0, voxel)
        steps, smooth = [], []
        for z in range(0, 61, 5):
            chain = voxel_line(plane, z, voxel)
            steps.append(paths.length_um(chain) / 40)
            smooth.append(paths.length_um(paths.smooth_path(chain, voxel)) / 40)
        worst = [max(values, key=lambda v: abs(v - 1)) for values in (steps, smooth)]
        counted, stepped = (len(flat) - 1) * 0.1 / 40, paths.length_um(flat) / 40
        print(f"| {plane:g} | {counted:.3f} | {stepped:.3f} | {worst[0]:.3f} | {worst[1]:.4f} |")
    print("\nstacks of phantoms without spines, 1 um planes, traced: length / true")
    for tilt in (0, 15, 30, 45, 60):
        for seed in range(2):
            rng = np.random.default_rng((seed, tilt))
            one = examples.draw_tilted(tilt, rng)
            plan = DendritePlan(z_step_um=1.0)
            stack = examples.picture_of([one], plan, rng)
            found = dendrites.trace(stack, arbor.tracing_of(SETTINGS))
            print(f"  tilt {tilt:2d}: {sum(b.length_um for b in found) / one.total_um:.4f} in {len(found)} piece(s)")
    print("\nphantoms with 0 to 20 spines per 10 um, any tilt to 60 degrees and any voxel, traced: length / true - 1")
    errors = []
    for seed in range(40):
        rng = np.random.default_rng((seed, 63))
        one = examples.draw_tilted(float(rng.uniform(0, 60)), rng, float(rng.choice([0, 5, 10, 15, 20])))
        plan = DendritePlan(z_step_um=float(rng.choice([0.3, 0.5, 1.0])), pixel_size_um=float(rng.uniform(0.065, 0.13)))
        found = dendrites.trace(examples.picture_of([one], plan, rng), arbor.tracing_of(SETTINGS))
        errors.append(sum(b.length_um for b in found) / one.total_um - 1)
    size = np.abs(errors)
    print(f"  {(size <= 0.02).sum()} of 40 within 2 %; mean size {size.mean():.4f}, mean {np.mean(errors):+.4f}, worst")
    print("  " + ", ".join(f"{errors[k]:+.4f}" for k in np.argsort(-size)[:4]))
    print("\nstacks of three dendrites each, two of which cross, traced: length / true - 1")
    errors, missed = [], 0
    for seed in range(60):
        pixel, z = OPTICS[seed % 3][:2]
        drawn, stack = examples.phantom_stack(DendritePlan(pixel_size_um=pixel, z_step_um=z, seed=860_000 + seed))
        found = dendrites.trace(stack, arbor.tracing_of(SETTINGS))
        for one in drawn:
            own = [b for b in found if np.median(paths.foot_of(b.path, one.path).distance_um) < 0.5]
            missed += len(own) != 1
            errors += [own[0].length_um / one.total_um - 1] if len(own) == 1 else []
    size = np.abs(errors)
    print(f"  {len(size)} in one piece, {missed} not; {(size <= 0.02).sum()} within 2 %, mean {size.mean():.4f}")
    print("  worst " + ", ".join(f"{errors[k]:+.4f}" for k in np.argsort(-size)[:4]))


OPTICS = ((0.065, 0.3, 150, 1.0), (0.1, 0.5, 150, 1.0), (0.13, 1.0, 150, 1.0), (0.13, 1.0, 100, 1.2))
"""Of phantoms: pixel and plane, um, photons, and the blur times a confocal's."""


def phantoms(stacks: int) -> None:
    rows, heads = [], []
    for seed in range(stacks):
        for number, (pixel, z, photons, blur) in enumerate(OPTICS):
            settings = SETTINGS.model_copy(update={"resolution_um": FWHM * SIGMA_UM["spines"][2] * blur})
            plan = DendritePlan(
                pixel_size_um=pixel, z_step_um=z, photons=photons, blur=blur, seed=930_000 + seed,
                spines_per_10um=(0.0, 5.0, 10.0) if seed % 2 else (5.0, 15.0, 0.0),
            )  # fmt: skip
            drawn, stack = examples.phantom_stack(plan)
            branches = dendrites.lay_on_ridge(stack, [Branch(one.path[::4], name="1") for one in drawn])
            for one, branch, found in zip(drawn, branches, arbor.find_spines(stack, branches, settings), strict=True):
                near = {"lateral_um": 0.5, "axial_um": max(1.0, z)}
                hits = list(zip(*matched(found.spots.head_um, one.head, **near), strict=True))
                clear = pairs(found.spots.head_um, one.head[~one.shadow], **near)
                counts = (len(one.head), int((~one.shadow).sum()), len(found.spots), len(hits), clear)
                rows.append((number, *counts, one.total_um, branch.length_um))
                _, told = arbor.tables_of([branch], [found], settings)
                for i, j in hits:
                    right = told["class"].iloc[i] == one.classes("A")[j]
                    heads.append((number, one.head_um[j], told["head_width_um"].iloc[i], right))
    table, head_table = np.array(rows), np.array(heads)
    for number, (pixel, z, photons, blur) in enumerate(OPTICS):
        part, wide = table[table[:, 0] == number][:, 1:], head_table[head_table[:, 0] == number][:, 1:]
        with_spines, without = part[part[:, 0] > 0], part[part[:, 0] == 0]
        sizes = [np.median(wide[own][:, :2], axis=0) for own in (wide[:, 0] < 0.35, wide[:, 0] > 0.45)]
        n, clear, found, hit, hit_clear = with_spines[:, :5].sum(axis=0)
        length_error = np.abs(part[:, 6] / part[:, 5] - 1).max()
        print(
            f"pixel {pixel:g}, z {z:g} um, {photons:g} photons, blur {blur:g}: "
            f"spines {n:.0f} (clear of the shaft {clear:.0f}), found {found:.0f}; "
            f"recall all {hit / n:.3f}, clear {hit_clear / clear:.3f}; precision {hit / found:.3f}; "
            f"density / true {found / n:.3f}; without spines: {len(without)} dendrites, "
            f"{without[:, 2].sum():.0f} spines found; worst length error {length_error:.4f}; "
            f"class right {wide[:, 2].mean():.3f}; true and told head widths, medians: "
            + ", ".join(f"{true:.3f} {told:.3f}" for true, told in sizes),
            flush=True,
        )


def few(stacks: int) -> None:
    """Print how many spines are found on dendrites that bear none, or few, traced with nothing beside them."""
    for pixel, z, photons, blur in OPTICS:
        told = []
        for per_10um in (0.0, 1.0, 3.0):
            true, found, right = 0, 0, 0
            for seed in range(stacks):
                rng = np.random.default_rng((seed, 2027, round(per_10um)))
                one = examples.draw_tilted(float(rng.uniform(0, 30)), rng, per_10um)
                plan = DendritePlan(pixel_size_um=pixel, z_step_um=z, photons=photons, blur=blur)
                stack = examples.picture_of([one], plan, rng)
                traced = dendrites.trace(stack, arbor.tracing_of(SETTINGS))
                n = sum(len(here.spots) for here in arbor.find_spines(stack, traced, SETTINGS) if here)
                true, found, right = true + len(one.head), found + n, right + (n == len(one.head))
            told.append(f"{per_10um:g} per 10 um: {true} spines, found {found}, as many as there are on {right}")
        print(
            f"pixel {pixel:g}, z {z:g} um, {photons:g} photons, blur {blur:g}; {stacks} each: " + "; ".join(told),
            flush=True,
        )


def twophoton(data: Path) -> None:
    stack, marked = examples.two_photon(data / "spines_twophoton")
    branches = [Branch(path, name=str(number)) for number, (path, _) in enumerate(marked)]
    t0 = time.time()
    traced = dendrites.trace(stack, arbor.tracing_of(SETTINGS))
    print(f"traced {len(traced)} pieces, {sum(b.length_um for b in traced):.0f} um, in {time.time() - t0:.0f} s")
    found = arbor.find_spines(stack, branches, SETTINGS)
    for number, (path, tips) in enumerate(marked):
        one = found[number]
        n = len(one.spots)
        for what, place in (("heads", one.spots.head_um), ("tips", one.shapes.tip)):
            hit = pairs(place, tips, lateral_um=1.0, axial_um=2.0)
            print(
                f"dendrite {number}, found {what} to marked tips: recall {hit / len(tips):.3f} precision {hit / n:.3f}"
            )
        covered = dendrites.covered(path, traced, within_um=1.0)
        whole = paths.length_um(path)
        here = {}
        feet = [paths.foot_of(b.path, path) for b in traced]
        for within in (1.0, 1.5):
            # What goes on past the ends of the person's path has its foot at an end.
            beside = [(foot.position_um > 0) & (foot.position_um < whole) for foot in feet]
            near = [((foot.distance_um < within) & on)[1:] for foot, on in zip(feet, beside, strict=True)]
            here[within] = sum(float(paths.steps_um(b.path)[k].sum()) for b, k in zip(traced, near, strict=True))
        told = ", ".join(f"{own:.1f} um within {d} ({own / whole - 1:+.3f})" for d, own in here.items())
        print(
            f"  spines {n}, marked {len(tips)}, density error {n / len(tips) - 1:+.3f}; length {whole:.1f} um, "
            f"traced here {told}, covered {covered:.3f}"
        )


CLASSES = {"M": "mushroom", "S": "stubby", "T": "thin", "F": "filopodium"}


def meng(data: Path, split: str = "val") -> None:
    import shapely

    folder = data / "spines_meng"
    notes = json.loads((folder / "annotations.json").read_text())
    n_true = n_found = n_hit = n_classed = n_right = 0
    for name in sorted(name for name in notes if name.startswith(split)):
        stack = examples.meng_picture(folder / name)
        found = arbor.find_spines(stack, dendrites.trace(stack, examples.TRACING), SETTINGS)
        _, table = arbor.tables_of([Branch(np.zeros((2, 3)))] * len(found), found, SETTINGS)
        centres = table[["y_um", "x_um"]].to_numpy() / stack.voxel_um[1]
        shapes = [shapely.Polygon(entry["xy"]).buffer(0) for entry in notes[name]]
        inside = np.array([[shape.covers(shapely.Point(x, y)) for shape in shapes] for y, x in centres]).reshape(
            len(centres), len(shapes)
        )
        i, j = linear_sum_assignment(-inside.astype(float)) if inside.size else ([], [])
        matches = [(a, b) for a, b in zip(i, j, strict=True) if inside[a, b]]
        n_true, n_found, n_hit = n_true + len(shapes), n_found + len(centres), n_hit + len(matches)
        for a, b in matches:
            true = CLASSES.get(notes[name][b]["class"])
            if true:
                n_classed += 1
                n_right += table["class"].iloc[a] == true
    print(
        f"{split}: {n_true} spines, found {n_found}, centre in polygon {n_hit}: recall {n_hit / n_true:.3f} precision "
        f"{n_hit / n_found:.3f} F1 {2 * n_hit / (n_true + n_found):.3f}; class right {n_right} of {n_classed} "
        f"({n_right / n_classed:.3f}; without 'branched', which rule set A does not have; pixel sizes assumed)"
    )


def large() -> None:
    """2048 x 2048 x 100 voxels of 0.3 x 0.1 x 0.1 um with 12 dendrites: time and memory of the analysis."""
    stack = examples.large_stack()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    t0 = time.time()
    branches = dendrites.trace(stack, arbor.tracing_of(SETTINGS))
    t1 = time.time()
    found = arbor.find_spines(stack, branches, SETTINGS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    n = sum(len(one.spots) for one in found if one)
    print(f"{stack.light.shape}: {len(branches)} pieces, {sum(b.length_um for b in branches):.0f} um, {n} spines")
    print(f"traced in {t1 - t0:.0f} s, spines in {time.time() - t1:.0f} s")
    print(f"peak {peak:.2f} GB (before: {base:.2f} GB, the stack itself {stack.light.nbytes / 1e9:.2f} GB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["length", "phantoms", "few", "twophoton", "meng", "large"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--stacks", type=int, default=4)
    given = parser.parse_args()
    if given.what in ("twophoton", "meng"):
        if given.data is None:
            parser.error("say where the data are")
        {"twophoton": twophoton, "meng": meng}[given.what](given.data)
    elif given.what in ("phantoms", "few"):
        {"phantoms": phantoms, "few": few}[given.what](given.stacks)
    else:
        {"length": length, "large": large}[given.what]()


if __name__ == "__main__":
    main()
