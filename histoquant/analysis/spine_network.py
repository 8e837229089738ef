"""How sure each place beside a dendrite is the middle of a spine's head, by a small network.

It sees the dendrite drawn straight, on a grid of `STEP_UM`, the only size it knows, in planes without a unit of
brightness (`PLANES`). It is a U-Net of 320 thousand weights that halves its grid twice, along the dendrite and
to its sides. Its weights are a file in the package (ONNX, which holds numbers and the names of operations but no code),
checked against `WEIGHTS_SHA256` before they are used. How they were made, on what, and how well they do elsewhere is
written in ``workflows/train_spines/MODEL_CARD.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoquant.analysis.paths import Points
from histoquant.analysis.spine_scene import NO_DEPTH, Scene
from histoquant.analysis.weights import session

WEIGHTS = Path(__file__).with_name("spines.onnx")
WEIGHTS_SHA256 = "47d0d048b6212322118f327748b4d620f9ab9f8b27aa39b6a83469677314d250"

STEP_UM = (0.4, 0.1, 0.1)
"""Of the network's grid along w (depth), s (the dendrite) and u (aside)."""

CELL = 4
"""Side of the network's coarsest cell along s and u: what it is given is a multiple of it."""

PIECE, MARGIN = 256, 32
"""Steps along the dendrite that are looked at together, and how many more are seen at each end: more than what the
network's answer to a place depends on."""

FLAT = 21
"""So many times a picture of one plane is given, one above the other: as many planes as its middle one sees."""

PLANES = ("light", "rest", "rest_noise", "aside", "height", "off_surface", "smear", "noise", "on_dendrite")
"""What the network sees: light, and what is left without the shaft, over the shaft's brightness; the latter over the
noise; distance to the side, along w and from the shaft's surface; how much light is smeared along z; the noise over the
shaft's brightness; and where the dendrite itself is."""


def grid_of(scene: Scene) -> tuple[int, int, int]:
    """Return how many steps the network's grid takes along w, s and u."""
    straight = scene.straight
    n_s, n_u, n_w = straight.light.shape
    fine_s, fine_u, deep = straight.step_um
    return (
        2 * round((n_w // 2) * deep / STEP_UM[0]) + 1,
        CELL * int(np.ceil(((n_s - 1) * fine_s / STEP_UM[1] + 1) / CELL)),
        CELL * max(1, round((n_u - 1) * fine_u / STEP_UM[2] / CELL)),
    )


def on_straight(scene: Scene, places: Points) -> Points:
    """Return where places of the grid, (n, 3) w, s, u, lie in the straight picture: (n, 3) voxels s, u, w."""
    shape, grid = np.array(scene.straight.light.shape), grid_of(scene)
    w, s, u = places.T
    step = scene.straight.step_um
    suw = np.stack([
        s * STEP_UM[1] / step[0],
        shape[1] // 2 + (u - (grid[2] - 1) / 2) * STEP_UM[2] / step[1],
        shape[2] // 2 + (w - grid[0] // 2) * STEP_UM[0] / step[2],
    ], axis=1)  # fmt: skip
    return np.asarray(np.clip(suw, 0, shape - 1))


def planes_of(scene: Scene, first: int, last: int) -> NDArray[np.float32]:
    """Return what the network sees of a part of a dendrite.

    Parameters
    ----------
    first, last : int
        Steps of the grid along the dendrite, the last not among them.

    Returns
    -------
    (len(PLANES), w, s, u) float32
    """
    straight = scene.straight
    n_s, n_u, n_w = straight.light.shape
    size_w, _, size_u = grid_of(scene)
    s_um = np.arange(first, last) * STEP_UM[1]
    u_um = (np.arange(size_u) - (size_u - 1) / 2) * STEP_UM[2]
    w_um = (np.arange(size_w) - size_w // 2) * STEP_UM[0]
    fine_s, fine_u, deep = straight.step_um
    low = int(np.clip(np.floor(s_um[0] / fine_s), 0, n_s - 1))
    high = int(np.clip(np.ceil(s_um[-1] / fine_s), low, n_s - 1))
    near = slice(low, high + 1)
    at = (w_um / deep + n_w // 2, s_um / fine_s - low, u_um / fine_u + n_u // 2)
    bright = scene.brightness[near, None, None].astype(np.float32)
    closest = np.clip(np.round(s_um / fine_s).astype(int), 0, n_s - 1)
    off = np.hypot(u_um, 0.5 * w_um[:, None, None]) - scene.radius_um[closest][None, :, None]
    rest = scene.rest[near]
    planes = np.empty((len(PLANES), size_w, len(s_um), size_u), dtype=np.float32)
    planes[0] = np.clip(_on_grid(scene.smooth[near] / bright, at), -0.5, 4)
    planes[1] = np.clip(_on_grid(rest / bright, at), -1, 4)
    planes[2] = np.arcsinh(_on_grid(rest / np.float32(2 * scene.noise), at)) / 3
    planes[3] = np.abs(u_um) / 4
    planes[4] = np.abs(w_um)[:, None, None] / 4
    planes[5] = np.clip(off, -1, 4) / 4
    planes[6] = scene.smear / NO_DEPTH
    planes[7] = np.clip(np.log10(scene.noise / scene.brightness[closest]), -3, 0)[:, None] / 3 + 1
    planes[8] = ((s_um >= scene.start_um) & (s_um <= scene.start_um + scene.length_um))[:, None]
    return planes


def _on_grid(volume: NDArray[np.float32], at: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]) -> NDArray[np.float32]:
    """Return a straight picture, (s, u, w), linear between its voxels, at places along w, s and u."""
    volume = volume.transpose(2, 0, 1)
    for axis, places in enumerate(at):
        low = np.clip(np.floor(places).astype(int), 0, volume.shape[axis] - 1)
        high = np.minimum(low + 1, volume.shape[axis] - 1)
        share = np.clip(places - low, 0, 1).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        volume = np.take(volume, low, axis) * (1 - share) + np.take(volume, high, axis) * share
    return volume


def chances(scene: Scene) -> NDArray[np.float32]:
    """Return how sure each place of the grid is the middle of a spine's head, (w, s, u), 0 to 1.

    Raises
    ------
    FormatError
        If the weights are missing or are not those that came with this version.
    """
    # One thread: results are the same to the bit however many cores there are.
    network = session(WEIGHTS, WEIGHTS_SHA256, 1)
    size = grid_of(scene)
    sure = np.empty(size, dtype=np.float32)
    for first in range(0, size[1], PIECE):
        last = min(first + PIECE, size[1])
        begin, end = max(0, first - MARGIN), min(size[1], last + MARGIN)
        planes = planes_of(scene, begin, end)
        if size[0] == 1:
            planes = planes.repeat(FLAT, axis=1)
        (answer,) = network.run(None, {"planes": planes[np.newaxis]})
        middle = answer[0, 0, FLAT // 2 : FLAT // 2 + 1] if size[0] == 1 else answer[0, 0]
        sure[:, first:last] = middle[:, first - begin : last - begin]
    return sure


def summits(sure: NDArray[np.float32], least: float) -> tuple[Points, Points]:
    """Find summits of the network's answer.

    Returns
    -------
    places : (n, 3) float
        Along w, s and u, between the steps of the grid.
    score : (n,) float
        ``least`` or more.
    """
    size = [1 if sure.shape[0] == 1 else 3, 3, 3]
    peaks = np.argwhere((ndimage.maximum_filter(sure, size=size, mode="nearest") == sure) & (sure >= least))
    places = peaks.astype(float)
    for axis, n in enumerate(sure.shape):
        inner = (peaks[:, axis] > 0) & (peaks[:, axis] < n - 1)
        before, after = peaks.copy(), peaks.copy()
        before[inner, axis] -= 1
        after[inner, axis] += 1
        a, b, c = (sure[tuple(p.T)].astype(float) for p in (before, peaks, after))
        places[:, axis] += np.where(inner, 0.5 * (a - c) / np.minimum(a - 2 * b + c, -1e-9), 0.0).clip(-0.5, 0.5)
    return places, sure[tuple(peaks.T)].astype(np.float64)
