"""From dendrites of a stack to tables: their length and diameter, and the spines on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histoquant.analysis import spine_rules
from histoquant.analysis.dendrites import Branch, Tracing, off_forks
from histoquant.analysis.paths import Points, foot_of, length_um
from histoquant.analysis.ridge import Stack
from histoquant.analysis.spine_scene import Scene, scene_of
from histoquant.analysis.spine_shape import Shapes, shapes_of
from histoquant.analysis.spines import BARE_PER_10UM, SURE, Spots, spots_of, weighed
from histoquant.model import tables
from histoquant.model.spine_settings import SpineSettings

if TYPE_CHECKING:
    import pandas as pd

NO_DIP = 0.85
"""Two heads with no more of a dip between them than to this share of the dimmer one are one spine."""

LIKELY, TALL_UM, EVEN = 0.4, 0.8, 0.6
"""Unless both have this score, and one lies so far above the other or has less than this share of its light. No head is
as tall, or as uneven: what fills the dip is the blur of the brighter one, or that along z."""

SAME_UM, SAME_DEPTH_UM = 0.6, 1.5
"""Heads found from two dendrites so near to each other are one spine."""

CLAIM = 0.1
"""A dendrite of which this says that it bears a head may be its owner, if another is surer that the head is one."""

MANY_PER_10UM = 5.0
"""Of dendrites that claim one head, one with sure spines is the likelier owner; more of them than this add nothing."""

SHORT_UM = 0.8
"""Shorter paths have no sides to look at."""

BESIDE_AXIS_UM = 2.0
"""Planes so near to the axis are seen in the picture of a straight dendrite."""


@dataclass(frozen=True, eq=False)
class Shaft:
    """What is kept of a dendrite drawn straight when its spines are known: all scenes of a large stack take gigabytes.

    Attributes
    ----------
    picture : (u, s) float32
        The brightest of the planes near the axis, seen from above.
    step_um : (float, float)
        Spacing along s and u.
    start_um : float
        Where on the s axis the dendrite begins.
    radius_um : (s,) float
    """

    picture: NDArray[np.float32]
    step_um: tuple[float, float]
    start_um: float
    radius_um: Points

    @classmethod
    def of(cls, scene: Scene) -> Shaft:
        """Return what is kept of a scene."""
        near = np.abs(scene.straight.w_um) <= BESIDE_AXIS_UM
        picture = np.ascontiguousarray(scene.smooth[:, :, near].max(axis=2).T)
        return cls(picture, scene.straight.step_um[:2], scene.start_um, scene.radius_um)

    def aside_um(self, suw: Points) -> Points:
        """Return how far to the side of the axis, with their sign, places of the straight picture lie."""
        return np.asarray((suw[:, 1] - len(self.picture) // 2) * self.step_um[1])


@dataclass(frozen=True, eq=False)
class Found:
    """The spines of one dendrite.

    Attributes
    ----------
    shaft : Shaft
    spots : Spots
    shapes : Shapes
    """

    shaft: Shaft
    spots: Spots
    shapes: Shapes

    def take(self, keep: NDArray[Any]) -> Found:
        """Return some of them."""
        return Found(
            self.shaft,
            _taken(self.spots, keep),
            Shapes(**{k: v[keep] for k, v in vars(self.shapes).items()}),
        )


def _taken(spots: Spots, keep: NDArray[Any]) -> Spots:
    return Spots(**{name: values[keep] for name, values in vars(spots).items()})


def tracing_of(settings: SpineSettings) -> Tracing:
    """Return how a recipe traces."""
    return Tracing(
        settings.dendrite_radii_um,
        settings.min_dendrite_um,
        settings.spur_um,
        settings.gap_um,
        settings.dendrite_contrast,
    )


def find_spines(stack: Stack, branches: Sequence[Branch], settings: SpineSettings) -> list[Found | None]:
    """Find the spines of dendrites; each belongs to one.

    Parameters
    ----------
    branches : sequence of Branch
        On their ridges.

    Returns
    -------
    list of Found or None
        One per branch; None where a branch is too short to have sides.
    """
    found: list[Found | None] = []
    for branch in branches:
        if length_um(branch.path) < SHORT_UM:
            found.append(None)
            continue
        scene = scene_of(stack, branch.path, reach_um=settings.reach_um)
        spots = spots_of(scene, min(CLAIM, settings.min_score))
        spots = _taken(spots, _apart(scene, spots))
        on = spine_rules.on_segment(spots.position_um, scene.length_um)
        shapes = shapes_of(scene, spots, resolution_um=settings.resolution_um, pixel_um=stack.voxel_um[2])
        found.append(Found(Shaft.of(scene), spots, shapes).take(on))
    return _weighed(_one_owner(found, branches), branches, settings.min_score)


def _apart(scene: Scene, spots: Spots) -> NDArray[np.intp]:
    """Return the heads that are spines of their own: of several bright spots on one spine, the surest."""
    from scipy import ndimage

    place = spots.suw * np.array(scene.straight.step_um)
    peak = scene.rest[tuple(np.round(spots.suw).astype(int).T)]

    def are_one(k: int, surer: int) -> bool:
        off, light = place[k] - place[surer], sorted((peak[k], peak[surer]))
        if np.linalg.norm(off * (1.0, 1.0, 0.5)) > 1.6:
            return False
        if spots.score[k] >= LIKELY and (abs(off[2]) >= TALL_UM or light[0] < EVEN * light[1]):
            return False
        way = np.linspace(spots.suw[k], spots.suw[surer], 12).T
        between = ndimage.map_coordinates(scene.rest, way, order=1, mode="nearest").min()
        return bool(between > NO_DIP * light[0])

    kept: list[int] = []
    for k in np.argsort(-spots.score, kind="stable").tolist():
        if not any(are_one(k, surer) for surer in kept):
            kept.append(k)
    return np.sort(np.array(kept, dtype=np.intp))


def _one_owner(found: list[Found | None], branches: Sequence[Branch]) -> list[Found | None]:
    """Drop what is another dendrite's shaft, and let each spine be of one dendrite."""
    shafts = [(branch.path, _radius_of(one)) for branch, one in zip(branches, found, strict=True)]
    kept: list[NDArray[np.bool_]] = []
    for number, one in enumerate(found):
        keep = np.ones(0 if one is None else len(one.spots), dtype=bool)
        for other, (path, radius) in enumerate(shafts):
            if other == number or not keep.size:
                continue
            assert one is not None
            off = foot_of(one.spots.head_um / (3.0, 1.0, 1.0), path / (3.0, 1.0, 1.0))
            keep &= off.distance_um > 0.9 * radius
        kept.append(keep)
    found = [None if one is None else one.take(keep) for one, keep in zip(found, kept, strict=True)]
    n_sure, whole_um = _sure_on_tree(found, branches)
    return _owned(found, BARE_PER_10UM + np.minimum(10 * n_sure / whole_um, MANY_PER_10UM))


def _owned(found: list[Found | None], likely: Points) -> list[Found | None]:
    """Give each spine that several dendrites claim to the one that is surer of it and bears more, with the best score.

    Parameters
    ----------
    likely : (n,) float
        How many spines to expect of each dendrite, against the others.
    """
    owner = np.repeat(np.arange(len(found)), [0 if one is None else len(one.spots) for one in found])
    spots = [one.spots for one in found if one is not None]
    if not len(owner):
        return found
    head, score = (np.concatenate([getattr(one, name) for one in spots]) for name in ("head_um", "score"))
    claim = score * likely[owner]
    told, free, kept = score.copy(), np.ones(len(owner), dtype=bool), np.ones(len(owner), dtype=bool)
    for k in np.argsort(-score, kind="stable"):
        if not free[k]:
            continue
        apart = np.abs(head - head[k])
        same = free & (apart[:, 0] < SAME_DEPTH_UM) & (np.hypot(apart[:, 1], apart[:, 2]) < SAME_UM)
        same &= owner != owner[k]
        same[k] = True
        best = np.flatnonzero(same)[claim[same].argmax()]
        told[best] = score[k]
        free &= ~same
        kept &= ~same
        kept[best] = True
    owned: list[Found | None] = []
    for number, one in enumerate(found):
        own = owner == number
        owned.append(one and replace(one, spots=replace(one.spots, score=told[own])).take(kept[own]))
    return owned


def _sure_on_tree(found: Sequence[Found | None], branches: Sequence[Branch]) -> tuple[NDArray[np.int64], Points]:
    """Return how many sure spines each branch's whole tree bears, and its length, so that branches add up."""
    tree = trees_of(branches)
    sure = [0 if one is None else int((one.spots.score >= SURE).sum()) for one in found]
    n_sure = np.bincount(tree, sure).astype(np.int64)
    whole_um = np.bincount(tree, [length_um(branch.path) for branch in branches])
    return n_sure[tree], np.maximum(whole_um[tree], SHORT_UM)


def _weighed(found: list[Found | None], branches: Sequence[Branch], least: float) -> list[Found | None]:
    """Weigh each score by the other sure spines of the whole tree and drop those below the least."""
    kept: list[Found | None] = []
    for one, n_sure, whole_um in zip(found, *_sure_on_tree(found, branches), strict=True):
        if one is not None:
            score = one.spots.score
            score = weighed(score, 10 * (n_sure - (score >= SURE)) / whole_um)
            one = replace(one, spots=replace(one.spots, score=score)).take(score >= least)
        kept.append(one)
    return kept


def trees_of(branches: Sequence[Branch]) -> NDArray[np.int64]:
    """Return which tree each branch is of, from 1 on."""
    tree = np.zeros(len(branches), dtype=np.int64)
    for number, branch in enumerate(branches):
        tree[number] = tree[branch.parent] if branch.parent >= 0 else tree[:number].max(initial=0) + 1
    return tree


def _radius_of(found: Found | None) -> float:
    return 0.3 if found is None else float(np.median(found.shaft.radius_um))


def tables_of(
    branches: Sequence[Branch],
    found: Sequence[Found | None],
    settings: SpineSettings,
    *,
    flags: Sequence[str] = (),
    about: dict[str, str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of dendrites and of spines.

    Parameters
    ----------
    flags : sequence of str
        That hold for the whole stack.
    about : dict, optional
        ``slide_id``, ``animal``, ``group`` and ``region``, empty when not given.
    """
    import pandas as pd

    whose = {"slide_id": "", "animal": "", "group": "", "region": ""} | (about or {})
    dendrites, rows, n_spines = [], [], 0
    names = [branch.name or str(number + 1) for number, branch in enumerate(branches)]
    tree = trees_of(branches)
    for number, (branch, one) in enumerate(zip(branches, found, strict=True)):
        length = length_um(branch.path, z_factor=settings.z_factor)
        stretch = length / max(branch.length_um, 1e-9)
        own = list(flags)
        included = length >= settings.min_segment_um and (settings.orders is None or branch.order in settings.orders)
        own += [] if included else ["not_included"]
        own += ["too_short_for_spines"] if one is None else []
        ends = sum(branch.forks) * settings.from_fork_um
        kept = np.zeros(0, dtype=bool)
        shadow = np.zeros(0, dtype=bool)
        if one is not None:
            kept = off_forks(branches, number, one.spots.position_um, settings.from_fork_um) & included
            shadow = _in_shadow(one)
            for i in range(len(one.spots)):
                n_spines += 1
                rows.append(_spine_row(one, i, settings, stretch) | {
                    "slide_id": whose["slide_id"], "dendrite_id": names[number], "spine_id": n_spines,
                    "z_shadow": bool(shadow[i]), "included": bool(kept[i]),
                })  # fmt: skip
        n = len(kept)
        dendrites.append({
            **whose, "dendrite_id": names[number], "order": branch.order or pd.NA, "length_um": length,
            "mean_diameter_um": float("nan") if one is None else 2 * float(one.shaft.radius_um.mean()),
            "n_spines": n, "spines_per_10um": spine_rules.density_per_10um(n, length), "flags": ";".join(own),
            "tree": int(tree[number]), "parent": names[branch.parent] if branch.parent >= 0 else "",
            "included": included, "included_length_um": max(length - ends, 0.0) if included else 0.0,
            "n_included": int(kept.sum()), "n_z_shadow": int(shadow.sum()),
            "hidden_factor": _hidden(one, settings), "traced_by": "person" if branch.name else "histoquant",
        })  # fmt: skip
    return (
        tables.shaped(pd.DataFrame(dendrites), tables.DENDRITES) if dendrites else tables.empty(tables.DENDRITES),
        tables.shaped(pd.DataFrame(rows), tables.SPINES) if rows else tables.empty(tables.SPINES),
    )


def _spine_row(one: Found, i: int, settings: SpineSettings, stretch: float) -> dict[str, Any]:
    shapes, spots = one.shapes, one.spots
    head, looks, neck = (float(sizes[i]) for sizes in (shapes.head_um, shapes.looks_um, shapes.neck_um))
    # Head and neck are compared as they look. Where a neck looks no wider than a point does, it may be any narrower:
    # heads that look alike are not told apart.
    compared = head * neck / looks if neck > settings.resolution_um or looks / neck > 1.1 else float("nan")
    row: dict[str, Any] = {
        "position_um": float(spots.position_um[i]) * stretch,
        "length_um": float(shapes.length_um[i]),
        "head_width_um": head,
        "head_area_um2": float(shapes.area_um2[i]),
        "neck_width_um": neck,
        "class": spine_rules.class_of(float(shapes.length_um[i]), head, compared, rules=settings.rules),
        "score": float(one.spots.score[i]),
    }
    for name, place in (("", spots.head_um[i]), ("tip_", shapes.tip[i]), ("base_", spots.base_um[i])):
        row |= {f"{name}{axis}_um": float(value) for axis, value in zip("zyx", place, strict=True)}
    return row


def _in_shadow(one: Found) -> NDArray[np.bool_]:
    """Return which heads lie over or under the shaft, where the halo along z hides most of their like."""
    radius = one.shaft.radius_um[np.clip(one.spots.suw[:, 0].astype(int), 0, len(one.shaft.radius_um) - 1)]
    return np.asarray(np.abs(one.shaft.aside_um(one.spots.suw)) < radius)


def _hidden(one: Found | None, settings: SpineSettings) -> float:
    """Return the correction for hidden spines, from the means of a dendrite; NaN when not asked for or not defined."""
    if settings.hidden == "none" or one is None or not len(one.spots):
        return float("nan")
    radius = float(one.shaft.radius_um.mean())
    length, head = float(np.median(one.shapes.length_um)), float(np.median(one.shapes.head_um))
    if not (math.isfinite(head) and head < length):
        return float("nan")
    return spine_rules.hidden_factor(radius, length, head, form=settings.hidden)
