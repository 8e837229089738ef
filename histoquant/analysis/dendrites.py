"""Dendrites of a stack: where they run, how they branch, how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from histoquant.analysis.dendrite_ends import to_ends
from histoquant.analysis.paths import Points, along_um, branch_orders, foot_of, length_um, smooth_path
from histoquant.analysis.ridge import Stack, on_ridge
from histoquant.analysis.tube_voxels import SMEAR, TubeVoxels, tube_voxels
from histoquant.analysis.tubes import Coarse, tubularity

RIDGE_REACH_UM = 0.6
LEAST_EXTENT_UM = 1.5
COVER_UM = 1.0
"""What lies within this distance of a line belongs to it: shafts are up to 2 um thick."""

GHOST_UM, GHOST_RATIO, GHOST_SHARE = 8.0, 2.0, 0.6
"""A line is a ghost when a line this many times brighter lies over or under this share of it, so near in depth."""

TOUCHING_UM = 3.0
"""Ends as near as this are joined whichever way they point: dendrites curl."""

SHARE_OF_GAP = 0.6
"""Of the widest gap between two ends, over which an end is joined to a dendrite's flank."""

JOIN_COSINE = 0.6
"""Two ends face each other when the gap goes on within 53 degrees of both."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A stretch of dendrite between branch points or ends.

    Attributes
    ----------
    path : (n, 3) float, um
        Its axis, from the root outwards.
    parent : int
        Number of the branch it comes from, -1 for none.
    order : int
        1 at the root, one more beyond each branch point; 0 when not known.
    forks : (bool, bool)
        Whether it begins and ends at a branch point.
    name : str
        What a person called it; empty for what was found.
    """

    path: Points
    parent: int = -1
    order: int = 0
    forks: tuple[bool, bool] = (False, False)
    name: str = ""

    @property
    def length_um(self) -> float:
        """Length of the axis."""
        return length_um(self.path)


@dataclass(frozen=True)
class Tracing:
    """How dendrites are traced.

    Attributes
    ----------
    radii_um : tuple of float
        Of dendrites.
    min_length_um : float
        Shorter pieces are no dendrites.
    spur_um : float
        Side branches up to this length are spines or noise.
    gap_um : float
        Ends that face each other over so much dark are joined.
    contrast : float
        Least answer as a dendrite, in robust standard deviations of the background's.
    """

    radii_um: tuple[float, ...]
    min_length_um: float
    spur_um: float
    gap_um: float
    contrast: float


def trace(stack: Stack, how: Tracing) -> list[Branch]:
    """Find the dendrites of a stack.

    Returns
    -------
    list of Branch
        Trees one after the other, roots first. The root of a tree is its thickest end, as nothing else is known of
        where the soma lies. Empty when there is no dendrite.
    """
    small = Coarse.of(stack)
    tubes = tube_voxels(tubularity(small, how.radii_um), how.contrast, small.voxel_um)
    points = tubes.voxels * np.array(small.voxel_um)
    pairs = _centre_lines(tubes, points, how.spur_um)
    if not len(pairs):
        return []
    # A coarse pixel's centre lies half a block further than its first fine one's.
    shift = np.array([0.0, 0.5, 0.5]) * (np.array(small.voxel_um) - np.array(stack.voxel_um))
    thickness = np.zeros(len(points), dtype=np.float32)
    for z in np.unique(tubes.voxels[:, 0]):
        here = tubes.voxels[:, 0] == z
        thickness[here] = ndimage.gaussian_filter(small.plane(int(z)), 1)[tuple(tubes.voxels[here, 1:].T)]
    chains = _without_ghosts(points, _joined(points, pairs, how), thickness, how.spur_um)
    branches: list[Branch] = []
    for tree in _trees(chains, points, thickness):
        # Blobs of cells hold many short lines, none of them far from the others.
        every = points[np.concatenate([chain for chain, _ in tree])]
        if np.linalg.norm(np.ptp(every * (0.5, 1.0, 1.0), axis=0)) < how.min_length_um:
            continue
        first = len(branches)
        orders = branch_orders([parent for _, parent in tree])
        starts = [chain[0] for chain, _ in tree]
        for (chain, parent), order in zip(tree, orders, strict=True):
            path = smooth_path(points[np.array(chain)] + shift, small.voxel_um)
            path = on_ridge(stack, path, reach_um=RIDGE_REACH_UM)
            forks = (starts.count(chain[0]) > 1 or parent >= 0, chain[-1] in starts)
            path = to_ends(stack, path, (not forks[0], not forks[1]))
            branches.append(Branch(path, parent + first if parent >= 0 else -1, int(order), forks))
    return branches


def _centre_lines(tubes: TubeVoxels, points: Points, spur_um: float) -> NDArray[np.intp]:
    """Return the centre lines of all objects, as pairs of voxels that follow each other.

    From one end of an object the cheapest ways lead to all its voxels, cheap where the answer is best (Sato et al.
    2000, TEASAR). The longest way is the first line and covers what lies beside it; so on with the rest. Not the
    dearest one: that is a spine's, where the answer is low, and leaves the end of the shaft as a spur.
    """
    if not len(points):
        return np.empty((0, 2), dtype=np.intp)
    graph = tubes.ways(points)
    n_objects, of = csgraph.connected_components(graph, directed=False)
    extent = np.zeros(n_objects)
    for axis in range(3):
        low, high = np.full(n_objects, np.inf), np.full(n_objects, -np.inf)
        np.minimum.at(low, of, points[:, axis])
        np.maximum.at(high, of, points[:, axis])
        extent = np.maximum(extent, high - low)
    pairs: list[NDArray[np.intp]] = []
    order = np.argsort(of, kind="stable")
    edges = np.searchsorted(of[order], np.arange(n_objects + 1))
    for number in np.flatnonzero(extent > LEAST_EXTENT_UM):
        members = order[edges[number] : edges[number + 1]]
        own = graph[members][:, members]
        flattened = points[members] / (SMEAR, 1.0, 1.0)
        far, _ = _ways_from(int(np.argmin(points[members].sum(axis=1))), own, flattened)
        far, back = _ways_from(int(np.argmax(far)), own, flattened)
        pairs += [members[line] for line in _lines(flattened, far, back, spur_um)]
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.intp)


def _ways_from(first: int, graph: sparse.csr_array, places: Points) -> tuple[Points, NDArray[np.int32]]:
    """Return how long the cheapest ways from a voxel to all others are, um, and the voxel before the last on each."""
    cost, back = csgraph.dijkstra(graph, directed=False, indices=first, return_predecessors=True)
    step = np.linalg.norm(places - places[np.maximum(back, 0)], axis=1)
    long = np.zeros(len(places))
    for voxel in np.argsort(cost, kind="stable")[1:]:
        long[voxel] = long[back[voxel]] + step[voxel]
    return long, back


def _lines(places: Points, far: Points, back: NDArray[np.int32], spur_um: float) -> list[NDArray[np.intp]]:
    """Return the steps of an object's lines, (k, 2) each, from the cheapest ways to all its voxels."""
    tree = cKDTree(places)
    covered, on_line = np.zeros(len(places), dtype=bool), np.zeros(len(places), dtype=bool)
    found = []
    for target in np.argsort(-far, kind="stable"):
        if covered[target]:
            continue
        line = [int(target)]
        while back[line[-1]] >= 0 and not on_line[line[-1]]:
            line.append(int(back[line[-1]]))
        steps = np.array(line)
        length = float(np.linalg.norm(places[target] - places[steps[-1]]))
        # Also what is too short for a branch covers its surroundings: they are no branch either.
        near = tree.query_ball_point(places[steps], COVER_UM)
        covered[np.unique(np.concatenate([np.asarray(n, dtype=np.intp) for n in near]))] = True
        if length > spur_um or not on_line.any():
            on_line[steps] = True
            found.append(np.stack([steps[:-1], steps[1:]], axis=1))
    return found


def _joined(points: Points, pairs: NDArray[np.intp], how: Tracing) -> list[list[int]]:
    """Return chains of points between branch points and ends, without spurs and with gaps closed."""
    chains = _without_spurs(points, pairs, how.spur_um)
    joins = _joins(points, chains, how)
    if joins:
        kept = np.concatenate([np.stack([chain[:-1], chain[1:]], axis=1) for chain in map(np.array, chains)])
        chains = _without_spurs(points, np.concatenate([kept, np.array(joins)]), how.spur_um)
    return chains


def _without_ghosts(
    points: Points, chains: list[list[int]], light: NDArray[np.float32], spur_um: float
) -> list[list[int]]:
    """Drop chains that run over or under a much brighter one, or within the thickness of a longer one.

    Optics may draw a bright shaft a second time: in vivo (two-photon) 4 to 6 um over it, as dim as a sixth.
    """
    members = np.concatenate([np.array(chain) for chain in chains]) if chains else np.empty(0, dtype=np.intp)
    if not len(members):
        return chains
    chain_of = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
    size = np.array([len(chain) for chain in chains])
    above = cKDTree(points[members][:, 1:])
    pairs = []
    for number, chain in enumerate(chains):
        steps = np.array(chain)
        hidden = 0
        for step, near in zip(steps, above.query_ball_point(points[steps][:, 1:], COVER_UM), strict=True):
            other = members[near]
            apart = np.abs(points[other, 0] - points[step, 0])
            ghost = (light[other] > GHOST_RATIO * max(float(light[step]), 0.0)) & (apart <= GHOST_UM)
            double = (size[chain_of[near]] > size[number]) & (apart <= SMEAR * COVER_UM)
            hidden += bool(((ghost | double) & (chain_of[near] != number)).any())
        if hidden <= GHOST_SHARE * len(steps):
            pairs.append(np.stack([steps[:-1], steps[1:]], axis=1))
    return _without_spurs(points, np.concatenate(pairs), spur_um) if pairs else []


def _without_spurs(points: Points, pairs: NDArray[np.intp], spur_um: float) -> list[list[int]]:
    """Cut a forest into chains, dropping its shortest short twig until there is none."""
    while True:
        chains = _chains(len(points), pairs)
        count = np.bincount([end for chain in chains for end in (chain[0], chain[-1])], minlength=len(points))
        twigs = [
            (float(np.linalg.norm((points[chain[0]] - points[chain[-1]]) / (SMEAR, 1.0, 1.0))), chain)
            for chain in chains
            if (count[chain[0]] == 1) != (count[chain[-1]] == 1)
        ]
        short = sorted((size, chain) for size, chain in twigs if size <= spur_um)
        if not short:
            return chains
        # One twig per branch point and round: of two at a point, the longer may be the dendrite's own end.
        seen: set[int] = set()
        drop: set[tuple[int, int]] = set()
        for _, chain in short:
            fork = chain[0] if count[chain[0]] > 1 else chain[-1]
            if fork not in seen:
                seen.add(fork)
                drop |= {(min(a, b), max(a, b)) for a, b in pairwise(chain)}
        pairs = np.array([pair for pair in pairs if (min(pair), max(pair)) not in drop]).reshape(-1, 2)


def _chains(n: int, pairs: NDArray[np.intp]) -> list[list[int]]:
    """Return the chains of a forest between points that have not two neighbours."""
    beside: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    chains, done = [], set()
    for start in sorted(beside):
        if len(beside[start]) == 2:
            continue
        for step in beside[start]:
            if (start, step) in done:
                continue
            chain = [start, step]
            while len(beside[chain[-1]]) == 2:
                first, second = beside[chain[-1]]
                chain.append(second if first == chain[-2] else first)
            done |= {(start, step), (chain[-1], chain[-2])}
            chains.append(chain)
    return chains


def _joins(points: Points, chains: list[list[int]], how: Tracing) -> list[tuple[int, int]]:
    """Return pairs of points to be joined, without loops: ends that face each other, and ends that face a flank."""
    count: dict[int, int] = {}
    for chain in chains:
        for end in (chain[0], chain[-1]):
            count[end] = count.get(end, 0) + 1
    ends, ways, tree_of = [], [], []
    parent = list(range(len(chains)))
    at: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for number, chain in enumerate(chains):
        for end in (chain[0], chain[-1]):
            if end in at:
                parent[root(number)] = root(at[end])
            at[end] = number
    flattened = points / (SMEAR, 1.0, 1.0)
    for number, chain in enumerate(chains):
        if length_um(points[np.array(chain)]) < 1.0:
            continue
        for line in (chain, chain[::-1]):
            if count[line[0]] == 1:
                way = flattened[line[0]] - flattened[line[min(len(line) - 1, 12)]]
                ends.append(line[0])
                ways.append(way / max(np.linalg.norm(way), 1e-9))
                tree_of.append(number)
    if not ends:
        return []
    place, way = flattened[np.array(ends)], np.array(ways)
    gap = place[None] - place[:, None]
    size = np.linalg.norm(gap, axis=2)
    unit = gap / np.maximum(size, 1e-9)[..., None]
    facing = np.minimum((unit * way[:, None]).sum(axis=2), -(unit * way[None]).sum(axis=2))
    near = (size <= how.gap_um) & ((facing > JOIN_COSINE) | (size < TOUCHING_UM)) & (size > 0)
    joins, used = [], set()
    for i, j in sorted(zip(*np.nonzero(np.triu(near)), strict=True), key=lambda pair: size[pair]):
        if i in used or j in used or root(tree_of[i]) == root(tree_of[j]):
            continue
        used |= {i, j}
        parent[root(tree_of[i])] = root(tree_of[j])
        joins.append((ends[i], ends[j]))
    # An end of a whole dendrite may also point at the flank of another, from which it branches off.
    whole: dict[int, list[int]] = {}
    for number, chain in enumerate(chains):
        whole.setdefault(root(number), []).extend((chain[0], chain[-1]))
    long = {tree for tree, of in whole.items() if np.linalg.norm(np.ptp(flattened[of], axis=0)) >= how.min_length_um}
    members = np.concatenate([np.array(chain) for chain in chains])
    chain_of = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
    close = cKDTree(flattened[members]).query_ball_point(place, SHARE_OF_GAP * how.gap_um)
    for i, found in enumerate(close):
        if i in used or not found or root(tree_of[i]) not in long:
            continue
        step = flattened[members[found]] - place[i]
        far = np.linalg.norm(step, axis=1)
        ahead = (step @ way[i]) / np.maximum(far, 1e-9)
        for k in np.argsort(far, kind="stable"):
            other = int(chain_of[found[k]])
            if ahead[k] > JOIN_COSINE and root(other) != root(tree_of[i]) and root(other) in long:
                long.add(root(other))
                parent[root(tree_of[i])] = root(other)
                joins.append((ends[i], int(members[found[k]])))
                break
    return joins


def _trees(
    chains: list[list[int]], points: Points, thickness: NDArray[np.float32]
) -> list[list[tuple[list[int], int]]]:
    """Order chains into trees from their brightest end: chains run outwards, each with the number of its parent."""
    at: dict[int, list[int]] = {}
    for number, chain in enumerate(chains):
        for end in (chain[0], chain[-1]):
            at.setdefault(end, []).append(number)

    def bright(end: int) -> float:
        """Return the light near an end: ends are dimmer than what they are ends of, so a few points count."""
        chain = chains[at[end][0]]
        line = chain if chain[0] == end else chain[::-1]
        return float(np.median(thickness[np.array(line[: max(4, len(line) // 4)])]))

    ends = sorted((end for end, of in at.items() if len(of) == 1), key=lambda end: (-bright(end), end))
    done: set[int] = set()
    trees = []
    for end in ends:
        if at[end][0] in done:
            continue
        tree: list[tuple[list[int], int]] = []
        waiting = [(at[end][0], end, -1)]
        while waiting:
            number, start, parent = waiting.pop(0)
            if number in done:
                continue
            done.add(number)
            chain = chains[number] if chains[number][0] == start else chains[number][::-1]
            tree.append((chain, parent))
            waiting += [(other, chain[-1], len(tree) - 1) for other in at[chain[-1]] if other not in done]
        trees.append(tree)
    return trees


def lay_on_ridge(stack: Stack, traced: Sequence[Branch]) -> list[Branch]:
    """Return a person's traces smoothed and moved onto the ridges beside them."""
    laid = []
    for branch in traced:
        path = smooth_path(branch.path, stack.voxel_um)
        laid.append(replace(branch, path=on_ridge(stack, path, reach_um=RIDGE_REACH_UM)))
    return laid


def off_forks(branches: Sequence[Branch], index: int, position_um: Points, margin_um: float) -> NDArray[np.bool_]:
    """Return which places along a branch keep a distance from its branch points."""
    total = float(along_um(branches[index].path)[-1])
    begin, end = branches[index].forks
    keep = np.ones(len(position_um), dtype=bool)
    if begin:
        keep &= position_um >= margin_um
    if end:
        keep &= position_um < total - margin_um
    return keep


def covered(path: Points, by: Sequence[Branch], *, within_um: float) -> float:
    """Return the share of a path's points that lie within a distance of some branch, seen from above."""
    near = np.zeros(len(path), dtype=bool)
    above = path * (0.0, 1.0, 1.0)
    for branch in by:
        near |= foot_of(above, branch.path * (0.0, 1.0, 1.0)).distance_um <= within_um
    return float(near.mean()) if len(path) else 0.0
