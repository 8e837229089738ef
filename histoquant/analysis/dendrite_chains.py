"""Centre lines as chains of points: spurs and ghosts dropped, gaps closed, cut where two dendrites meet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from histoquant.analysis.dendrite_joins import joins
from histoquant.analysis.paths import Points, along_um
from histoquant.analysis.ridge import Stack
from histoquant.analysis.tube_voxels import SMEAR

COVER_UM = 1.0
"""What lies within this distance of a line belongs to it: shafts are up to 2 um thick."""

GHOST_UM, GHOST_RATIO, GHOST_SHARE = 8.0, 2.0, 0.6
"""A line is a ghost when a line this many times brighter lies over or under this share of it, so near in depth."""

SHARP_COSINE, SHARP_UM = -0.3, 4.0
"""No dendrite turns by more than 107 degrees between so much before a place and so much after it."""


def joined(
    stack: Stack,
    points: Points,
    pairs: NDArray[np.intp],
    light: NDArray[np.float32],
    *,
    spur_um: float,
    gap_um: float,
    min_length_um: float,
) -> list[list[int]]:
    """Return chains of points between branch points and ends, without spurs and with gaps closed.

    Parameters
    ----------
    points : (n, 3) float, um
    pairs : (k, 2) int
        Points that follow each other.
    light : (n,) float
        At the points.
    spur_um, gap_um, min_length_um : float
        As in `histoquant.analysis.dendrites.Tracing`.
    """
    chains = _without_spurs(points, pairs, spur_um)
    found = joins(stack, points, chains, light, spur_um=spur_um, gap_um=gap_um, min_length_um=min_length_um)
    if found:
        kept = np.concatenate([np.stack([chain[:-1], chain[1:]], axis=1) for chain in map(np.array, chains)])
        chains = _without_spurs(points, np.concatenate([kept, np.array(found)]), spur_um)
    return chains


def without_ghosts(
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


def without_turns(points: Points, chains: list[list[int]], least_um: float) -> list[list[int]]:
    """Cut chains where they turn back, if both parts are long: there two dendrites meet near their ends."""
    cut, waiting = [], list(chains)
    while waiting:
        chain = waiting.pop(0)
        path = points[np.array(chain)] / (SMEAR, 1.0, 1.0)
        along = along_um(path)
        before = path - path[np.searchsorted(along, along - SHARP_UM).clip(0)]
        after = path[np.searchsorted(along, along + SHARP_UM).clip(0, len(path) - 1)] - path
        size = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        cosine = (before * after).sum(axis=1) / np.maximum(size, 1e-9)
        cosine[(along < least_um) | (along > along[-1] - least_um)] = 1.0
        sharpest = int(cosine.argmin())
        if cosine[sharpest] < SHARP_COSINE:
            waiting += [chain[:sharpest], chain[sharpest + 1 :]]
        else:
            cut.append(chain)
    return cut


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
