"""Where a traced dendrite ends.

Centre lines stop too early or too late: the last of a shaft is faint, and a spine beside it can look like its end.
So the last of a path is walked anew, straight on along the light, until that falls.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from histoquant.analysis.paths import Points, along_um, frames, length_um, resampled, units
from histoquant.analysis.ridge import Stack

ANEW_UM, BEYOND_UM = 3.0, 5.0
"""So much of a path is walked anew, and up to so far past where it ended."""

BEFORE_UM = 8.0
"""The light is compared with that of so much of the path before."""

FALLS_TO, LATELY_UM, FAINTEST = 0.4, 0.6, 0.3
"""A tube ends where blurred light falls to half of what it lately was; shafts are often dim at their ends, so not of
what it was before them. A little less than half, as noise makes the brightest of a few too bright. Fainter than this
share of the shaft before is never what the light is compared with."""

GAP_UM = 0.8
"""A darker place no longer than this is not the end."""

NEARLY_STRAIGHT = 0.9
"""Cosine of how far aside the tracing's end may lie from a walk's to be the end of the same shaft."""

STEP_UM, AHEAD_UM, BLUR_UM = 0.2, 1.0, 0.25

TURNS_DEG = (8.0, 16.0, 24.0)
PER_DEG, PLAIN = 0.004, 0.8
"""Light over the shaft's that must be gained for a turn of a degree; a shaft bends gently, a spine stands off. Places
this bright are all the same: spines are brighter than the shaft."""

STIFF = 0.8
"""How much of its way a step keeps."""


def to_ends(stack: Stack, path: Points, free: tuple[bool, bool]) -> Points:
    """Return a path on its ridge whose free ends lie where the light of the shaft ends.

    A path whose light does not end soon, or that is short, is left.

    Parameters
    ----------
    path : (n, 3) float, um
    free : (bool, bool)
        Whether the path begins and ends freely; other ends stay.
    """
    for is_free in free:
        path = path[::-1]  # the beginning first, and the right way round after two
        if is_free and length_um(path) > 3 * ANEW_UM:
            path = _to_end(stack, _without_spine(stack, path))
    return path


def _without_spine(stack: Stack, path: Points) -> Points:
    """Return a path without a spine at its end so long that no shaft is walked anew."""
    left = length_um(path) - along_um(path)
    near = np.flatnonzero(left <= ANEW_UM + BEFORE_UM)
    box, corner = stack.around(path[near], 2.5)
    light = box.blurred(BLUR_UM).at(path[near] - corner)
    level = float(np.median(light[left[near] >= ANEW_UM]))
    bright = near[light >= PLAIN * level]
    dim = light[np.searchsorted(-left[near], -ANEW_UM)] < FAINTEST * level
    return path[: bright[-1] + 1] if dim and len(bright) else path


def _to_end(stack: Stack, path: Points) -> Points:
    left = length_um(path) - along_um(path)
    kept = path[left >= ANEW_UM]
    before = kept[left[: len(kept)] <= ANEW_UM + BEFORE_UM]
    flat = np.array([0.0 if stack.flat else 1.0, 1.0, 1.0])
    way = units((kept[-1] - before[len(before) // 2]) * flat)
    box, corner = stack.around(np.concatenate([before, kept[-1:] + (ANEW_UM + BEYOND_UM) * way]), 2.5)
    box = box.blurred(BLUR_UM)
    level = float(np.median(box.at(resampled(before, 0.1) - corner)))
    if level <= 0:
        return path

    def lit(points: Points) -> Points:
        return np.asarray(box.at(points - corner) / level, dtype=np.float64)

    walked = _walked(lit, kept[-1], way, ANEW_UM + BEYOND_UM, flat=stack.flat)
    if walked is None:
        return path
    ahead = (path[-1] - walked[-1]) * flat
    straight = units(ahead) @ units(walked[-1] - kept[-1] + way) > NEARLY_STRAIGHT
    if straight and float(np.linalg.norm(ahead)) > GAP_UM and lit(path[left <= AHEAD_UM]).max() >= FALLS_TO:
        # The light goes on after a longer gap, which the tracing bridged.
        kept, walked = path, _walked(lit, path[-1], units(ahead), BEYOND_UM, flat=stack.flat)
    return path if walked is None else np.concatenate([kept, walked[1:]])


def _walked(
    lit: Callable[[Points], Points], at: Points, way: Points, at_most_um: float, *, flat: bool
) -> Points | None:
    """Walk straight on along the light; return the points from the first on, or None if the light does not end."""
    ahead_um = np.linspace(STEP_UM, AHEAD_UM, 5)[:, None]
    walked, last, lately = [at], 0, [float(lit(at[None])[0])]
    while (len(walked) - last) * STEP_UM <= GAP_UM:
        if len(walked) * STEP_UM > at_most_um:
            return None
        ways, turns = _ways(way, flat=flat)
        seen = np.minimum(lit(walked[-1] + ways[:, None] * ahead_um), PLAIN).mean(axis=1)
        way = units(STIFF * way + (1 - STIFF) * ways[(seen - PER_DEG * turns).argmax()])
        walked.append(walked[-1] + STEP_UM * way)
        light = float(lit(walked[-1][None])[0])
        if light >= FALLS_TO * float(np.clip(max(lately), FAINTEST, 1.0)):
            last = len(walked) - 1
            lately = [*lately, light][-round(LATELY_UM / STEP_UM) :]
    return np.array(walked[: last + 1])


def _ways(way: Points, *, flat: bool) -> tuple[Points, Points]:
    """Return unit vectors within a cone round a way, (n, 3), and by how many degrees each turns off it."""
    (side,), (up,) = (axes[:1] for axes in frames(np.stack([-way, way])))
    ways, turns = [way], [0.0]
    for turn in TURNS_DEG:
        for round_it in np.radians((0, 180) if flat else range(0, 360, 45)):
            across = np.cos(round_it) * side + np.sin(round_it) * up
            ways.append(np.cos(np.radians(turn)) * way + np.sin(np.radians(turn)) * across)
            turns.append(turn)
    return np.array(ways), np.array(turns)
