"""Dendrites of a stack: where they run, how they branch, how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from histoquant.analysis.dendrite_chains import COVER_UM, joined, without_ghosts, without_turns
from histoquant.analysis.dendrite_ends import to_ends
from histoquant.analysis.paths import Points, along_um, branch_orders, foot_of, length_um, smooth_path
from histoquant.analysis.ridge import Stack, on_ridge
from histoquant.analysis.tube_voxels import SMEAR, TubeVoxels, tube_voxels
from histoquant.analysis.tubes import Coarse, tubularity

RIDGE_REACH_UM = 0.6
LEAST_EXTENT_UM = 1.5


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
        Ends this near are joined: through the dark if they face each other, else where light goes on.
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
    # A coarse pixel's centre lies half a block further than its first fine one's.
    shift = np.array([0.0, 0.5, 0.5]) * (np.array(small.voxel_um) - np.array(stack.voxel_um))
    points = tubes.voxels * np.array(small.voxel_um) + shift
    pairs = _centre_lines(tubes, points, how.spur_um)
    if not len(pairs):
        return []
    thickness = np.zeros(len(points), dtype=np.float32)
    for z in np.unique(tubes.voxels[:, 0]):
        here = tubes.voxels[:, 0] == z
        thickness[here] = ndimage.gaussian_filter(small.plane(int(z)), 1)[tuple(tubes.voxels[here, 1:].T)]
    chains = joined(
        stack, points, pairs, thickness, spur_um=how.spur_um, gap_um=how.gap_um, min_length_um=how.min_length_um
    )
    chains = without_turns(points, without_ghosts(points, chains, thickness, how.spur_um), how.min_length_um)
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
            path = smooth_path(points[np.array(chain)], small.voxel_um)
            path = on_ridge(stack, path, reach_um=RIDGE_REACH_UM)
            forks = (starts.count(chain[0]) > 1 or parent >= 0, chain[-1] in starts)
            path = to_ends(stack, path, (not forks[0], not forks[1]))
            path = on_ridge(stack, path, reach_um=RIDGE_REACH_UM)  # what was walked wavers, most of all in depth
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
