"""Which centre lines go on in each other: those whose ends face each other, or between which light goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from scipy.spatial import cKDTree

from histoquant.analysis.dendrite_ends import BLUR_UM
from histoquant.analysis.paths import Points, along_um, length_um, units
from histoquant.analysis.ridge import Stack
from histoquant.analysis.tube_voxels import SMEAR

FACING = 0.6
"""Cosine: two ends face each other when the gap goes on within 53 degrees of both. It may be dark."""

TOUCHING_UM, DIM = 3.0, 0.16
"""Ends as near as this may point anywhere, as dendrites curl, if no place between them has less than this share of the
dimmer line's light. In phantoms the darkest place between pieces of one dendrite had 0.3 and more, between two
dendrites 0.03 and less, in transmitted light 0.15 and less."""

HOOK_UM, HOOK_FACING, LIT = 3.0, 0.85, 0.3
"""So much of a line before its end may lead to a spine, so that it does not face where the shaft goes on. Then the
shaft goes on from some point before, to one that faces it within 32 degrees, over so much light."""

SHARE_OF_GAP = 0.6
"""Of the widest gap between two ends, over which an end is joined to a dendrite's flank."""

WAY_POINTS = 12
"""An end points to where it comes from so many points before."""


def joins(
    stack: Stack,
    points: Points,
    chains: list[list[int]],
    light: NDArray[np.float32],
    *,
    spur_um: float,
    gap_um: float,
    min_length_um: float,
) -> list[tuple[int, int]]:
    """Return pairs of points to be joined, without loops.

    Lines are joined near their ends, and an end of a whole dendrite with the flank of another that it points at.

    Parameters
    ----------
    stack : Stack
        In which light between lines is looked for.
    points : (n, 3) float, um
    chains : list of list of int
        Points of each line between branch points and ends.
    light : (n,) float
        At the points.
    spur_um, gap_um, min_length_um : float
        As in `histoquant.analysis.dendrites.Tracing`.
    """
    level = [float(np.median(light[np.array(chain)])) for chain in chains]
    lines = _Lines(stack, points, points / (SMEAR, 1.0, 1.0), chains, level, DisjointSet(range(len(chains))))
    ends = lines.free_ends()
    if not ends:
        return []
    place = lines.flattened[[end.last[0] for end in ends]]
    joined, used = _end_to_end(lines, ends, place, gap_um, spur_um, min_length_um)
    free = [(end, at) for k, (end, at) in enumerate(zip(ends, place, strict=True)) if k not in used]
    return joined + _end_to_flank(lines, free, SHARE_OF_GAP * gap_um, min_length_um)


@dataclass(frozen=True, eq=False)
class _End:
    """A free end: the line it is of, the last points of that from the end inwards, and where each of them points."""

    of: int
    last: NDArray[np.intp]
    ways: Points


@dataclass(frozen=True, eq=False)
class _Lines:
    """Lines, the light of each, and which of them hang together."""

    stack: Stack
    points: Points
    flattened: Points
    chains: list[list[int]]
    level: list[float]
    trees: DisjointSet

    def free_ends(self) -> list[_End]:
        """Return the ends at which no other line begins, and put lines that share an end into one tree."""
        at: dict[int, list[int]] = {}
        for number, chain in enumerate(self.chains):
            for end in (chain[0], chain[-1]):
                at.setdefault(end, []).append(number)
        for numbers in at.values():
            for number in numbers[1:]:
                self.trees.merge(numbers[0], number)
        ends = []
        for number, chain in enumerate(self.chains):
            if length_um(self.points[np.array(chain)]) < 1.0:
                continue
            for line in (np.array(chain), np.array(chain[::-1])):
                if len(at[int(line[0])]) == 1:
                    near = np.flatnonzero(along_um(self.flattened[line]) <= HOOK_UM)
                    before = line[np.minimum(near + WAY_POINTS, len(line) - 1)]
                    ends.append(_End(number, line[near], units(self.flattened[line[near]] - self.flattened[before])))
        return ends

    def lowest(self, one: NDArray[np.intp], other: NDArray[np.intp], a: int, b: int) -> NDArray[np.float64]:
        """Return the least light on the straight way from points to others, (n, m), over that of the dimmer line."""
        box, corner = self.stack.around(self.points[np.concatenate([one, other])], 4 * BLUR_UM)
        begin = (self.points[one] - corner)[:, None, None]
        step = (self.points[other] - corner)[None, :, None] - begin
        way = box.blurred(BLUR_UM).at(begin + np.linspace(0, 1, 25)[:, None] * step)
        return np.asarray(way.min(axis=2) / max(min(self.level[a], self.level[b]), 1e-9))

    def on_from_hooks(self, one: _End, other: _End, gap_um: float) -> tuple[int, int] | None:
        """Return the two points near two ends that face each other over most light; None if none do."""
        gap = self.flattened[other.last][None] - self.flattened[one.last][:, None]
        far = np.linalg.norm(gap, axis=2)
        gap = units(gap)
        facing = np.minimum((gap * one.ways[:, None]).sum(axis=2), -(gap * other.ways).sum(axis=2))
        able = (far <= gap_um) & (facing > HOOK_FACING)
        if not able.any():
            return None
        lowest = np.where(able, self.lowest(one.last, other.last, one.of, other.of), -np.inf)
        i, j = np.unravel_index(int(lowest.argmax()), lowest.shape)
        return (int(one.last[i]), int(other.last[j])) if lowest[i, j] >= LIT else None


def _end_to_end(
    lines: _Lines, ends: list[_End], place: Points, gap_um: float, spur_um: float, min_length_um: float
) -> tuple[list[tuple[int, int]], set[int]]:
    """Return the joins between ends, the nearest first, and which ends are used up."""
    near = cKDTree(place).query_pairs(gap_um, output_type="ndarray")
    far = np.linalg.norm(place[near[:, 0]] - place[near[:, 1]], axis=1)
    nearest = np.lexsort((near[:, 1], near[:, 0], far))
    joined: list[tuple[int, int]] = []
    partner: dict[int, int] = {}
    used: set[int] = set()
    for hooked in (False, True, True):
        for (i, j), apart_um in zip(near[nearest].tolist(), far[nearest], strict=True):
            one, other = ends[i], ends[j]
            if i in used or j in used or lines.trees.connected(one.of, other.of):
                continue
            join, tips = None, (int(one.last[0]), int(other.last[0]))
            gap = units(place[j] - place[i])
            if hooked:
                join = lines.on_from_hooks(one, other, gap_um)
            elif min(gap @ one.ways[0], -gap @ other.ways[0]) > FACING:
                join = tips
            elif apart_um < TOUCHING_UM and lines.lowest(one.last[:1], other.last[:1], one.of, other.of) >= DIM:
                join = lines.on_from_hooks(one, other, gap_um) or tips
            if join is not None:
                used |= {i, j}
                partner |= {i: j, j: i}
                lines.trees.merge(one.of, other.of)
                joined.append(join)
        if hooked:
            used -= _led_nowhere(lines, ends, partner, spur_um, min_length_um)
    return joined, set(partner)


def _led_nowhere(
    lines: _Lines, ends: list[_End], partner: dict[int, int], spur_um: float, min_length_um: float
) -> set[int]:
    """Return the ends of whole dendrites joined with no more than a spine, from which nothing goes on."""
    of = [end.of for end in ends]
    long_um = [length_um(lines.flattened[chain]) for chain in lines.chains]
    joined = Counter(of[k] for k in partner)
    return {
        k
        for k, other in partner.items()
        if joined[of[other]] == 1 and long_um[of[other]] <= spur_um and long_um[of[k]] >= min_length_um
    }


def _end_to_flank(
    lines: _Lines, free: list[tuple[_End, Points]], gap_um: float, min_length_um: float
) -> list[tuple[int, int]]:
    """Return the joins of ends of whole dendrites with flanks of others that they point at over light."""
    if not free:
        return []
    whole = {
        number
        for tree in lines.trees.subsets()
        if np.linalg.norm(np.ptp(lines.flattened[[lines.chains[n][k] for n in tree for k in (0, -1)]], axis=0))
        >= min_length_um
        for number in tree
    }
    members = np.concatenate([np.array(chain) for chain in lines.chains])
    chain_of = np.repeat(np.arange(len(lines.chains)), [len(chain) for chain in lines.chains])
    beside = cKDTree(lines.flattened[members]).query_ball_point([place for _, place in free], gap_um)
    joined = []
    for (end, place), flanks in zip(free, beside, strict=True):
        step = lines.flattened[members[flanks]] - place
        for k in np.argsort(np.linalg.norm(step, axis=1), kind="stable") if end.of in whole else ():
            other, flank = int(chain_of[flanks[k]]), members[flanks[k] : flanks[k] + 1]
            ahead = other in whole and units(step[k]) @ end.ways[0] > FACING
            if not ahead or lines.trees.connected(end.of, other):
                continue
            if lines.lowest(end.last[:1], flank, end.of, other) >= DIM:
                lines.trees.merge(end.of, other)
                joined.append((int(end.last[0]), int(flank[0])))
                break
    return joined
