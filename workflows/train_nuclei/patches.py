"""Patches to learn from: a random piece of a field, bent, blurred and lit in ways other microscopes would.

A field says what a nucleus is; everything here says what does not matter: size within what a wrong diameter would do,
orientation, focus, gain, offset, gamma, noise, shading, haze, compression, and how bright each nucleus is.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from stored import Field, plain

SIDE = 224
MARGIN = 24
"""Objects are measured on a patch wider by this, and then cut: a nucleus at the rim keeps its true middle."""

SCALE_ERROR = 0.3
STRETCH = 0.18

CROWDED = 0.25
"""Part of the patches that get nuclei of another patch of the same group on top."""

VISIBLE = 0.6
"""Of a nucleus that lies under others at least this part must be seen; of less nothing is learnt."""


def groups(fields: list[Field]) -> NDArray[np.float64]:
    """Return the chance of each field: the root of how many there are of a kind and size, bounded from below.

    Half of the real images come from one microscope; the few from others are worth more to a network that should
    work on a third one.
    """
    keys = [field.group for field in fields]
    count = {key: keys.count(key) for key in keys}
    share = {key: max(5.0, math.sqrt(n)) for key, n in count.items()}
    for key in share:
        share[key] *= {"phantom": 1.4, "colour": 0.8}.get(key.split()[0], 1.0)
    chance = np.array([share[key] / count[key] for key in keys])
    return chance / chance.sum()


def patch(
    fields: list[Field], chance: NDArray[Any], rng: np.random.Generator, working_px: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an image (1, SIDE, SIDE) float32 and its targets (3, SIDE, SIDE): nucleus, height, weight.

    ``working_px`` is what a nucleus measures after an image was resampled for the network.
    """
    side = SIDE + 2 * MARGIN
    chosen = rng.choice(len(fields), p=chance)
    image, labels = _drawn(fields, chosen, side, rng, working_px)
    if fields[chosen].kind in ("fluorescence", "phantom") and rng.random() < CROWDED:
        other = _alike(fields, chosen, rng)
        image, labels = _crowded(image, labels, *_drawn(fields, other, side, rng, working_px), rng)
    targets = _targets(labels)
    image = _seen(image, labels, rng)
    inner = slice(MARGIN, MARGIN + SIDE)
    return np.ascontiguousarray(image[None, inner, inner]), np.ascontiguousarray(targets[:, inner, inner])


def _alike(fields: list[Field], chosen: int, rng: np.random.Generator) -> int:
    """Return another field of the same group, or the same."""
    alike = [index for index, field in enumerate(fields) if field.group == fields[chosen].group]
    return alike[rng.integers(len(alike))]


def _drawn(
    fields: list[Field], chosen: int, side: int, rng: np.random.Generator, working_px: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return a square of a field, or four fields side by side where one is too small to fill it."""

    def scale_of(field: Field) -> float:
        return working_px / field.diameter_px * math.exp(rng.uniform(-SCALE_ERROR, SCALE_ERROR))

    field = fields[chosen]
    scale = scale_of(field)
    if scale * min(field.image.shape) >= 0.7 * side:
        return _piece(field, scale, side, rng)
    image, labels = np.zeros((side, side), np.float32), np.zeros((side, side), np.int32)
    top, half = 0, side // 2
    for y, x in ((0, 0), (0, half), (half, 0), (half, half)):
        other = fields[_alike(fields, chosen, rng)]
        part, ids = _piece(other, scale_of(other), half, rng)
        image[y : y + half, x : x + half] = part
        labels[y : y + half, x : x + half] = np.where(ids > 0, ids + top, ids)
        top += int(ids.max(initial=0))
    return image, labels


def _crowded(
    image: NDArray[np.float32],
    labels: NDArray[np.int32],
    other_image: NDArray[np.float32],
    other_labels: NDArray[np.int32],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Lay some nuclei of one patch upon another: light adds up, or the nearer one hides the farther."""
    n = int(other_labels.max(initial=0))
    if n < 1:
        return image, labels
    kept = rng.random(n + 1) < rng.uniform(0.2, 0.8)
    kept[0] = False
    above = (other_labels > 0) & kept[np.maximum(other_labels, 0)]
    soft = cv2.GaussianBlur(above.astype(np.float32), (0, 0), 1.0)
    light = other_image * soft * math.exp(rng.normal(0, 0.3))
    image = np.maximum(image, light) if rng.random() < 0.6 else image + light
    top = int(labels.max(initial=0))
    below = np.maximum(labels, 0)
    before = np.bincount(below.ravel(), minlength=top + 1)
    after = np.bincount(below[~above], minlength=top + 1)
    hidden = after < VISIBLE * before
    hidden[0] = False
    labels = np.where(hidden[below], -1, labels)
    return image, np.where(above, other_labels + top, labels)


def _piece(
    field: Field, scale: float, side: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Cut, turn, mirror and resample a square piece of a field."""
    height, width = field.image.shape
    reach = side / scale
    # Turns by right angles keep pixels square; free ones are for half of the pieces.
    angle = rng.integers(4) * math.pi / 2 + (rng.uniform(-0.8, 0.8) if rng.random() < 0.5 else 0.0)
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([stretch * mirror, 1 / stretch]) / scale  # from patch to field
    slack = [max(0.0, extent - reach) / 2 for extent in (width, height)]
    centre = np.array([width / 2 + rng.uniform(-1, 1) * slack[0], height / 2 + rng.uniform(-1, 1) * slack[1]])
    offset = centre - matrix @ np.array([side / 2, side / 2])
    warp = np.concatenate([matrix, offset[:, None]], axis=1)
    # Only what the piece needs, so that large fields cost no more than small ones.
    corners = matrix @ np.array([[0, side, 0, side], [0, 0, side, side]]) + offset[:, None]
    x0, y0 = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 4, 0)
    x1, y1 = np.ceil(corners.max(axis=1)).astype(int) + 4
    image = plain(field.image[y0:y1, x0:x1])
    labels = field.labels[y0:y1, x0:x1].astype(np.float32)
    warp[:, 2] -= (x0, y0)
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    flags = cv2.WARP_INVERSE_MAP
    image = cv2.warpAffine(image, warp, (side, side), flags=cv2.INTER_LINEAR | flags, borderMode=cv2.BORDER_REFLECT_101)
    ids = cv2.warpAffine(labels, warp, (side, side), flags=cv2.INTER_NEAREST | flags, borderValue=-1)
    # Beyond the field: its edge goes on, nothing is there, and nothing is learnt (-1).
    return image, ids.astype(np.int32)


def _targets(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return nucleus (0 or 1), height (0 to 1) and weight of each pixel.

    Height is the distance to the object's own outline, relative to its largest, falling off to half towards the far
    ends of long objects, so that each has one summit.
    """
    outside = labels < 0
    labels = np.where(outside, 0, labels)
    present = np.zeros(labels.max() + 1, dtype=bool)
    present[labels] = True
    present[0] = False
    dense = (present.cumsum() * present).astype(np.int32)[labels]
    n = int(dense.max())
    foreground = dense > 0
    edge = np.zeros(dense.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(dense, axis=axis) != 0
        low, high = [slice(None)] * 2, [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        edge[tuple(low)] |= differs
        edge[tuple(high)] |= differs
    distance = cv2.distanceTransform((foreground & ~edge).astype(np.uint8), cv2.DIST_L2, 5) + 0.5
    distance[~foreground] = 0
    where = np.flatnonzero(foreground)
    flat, depth = dense.ravel()[where], distance.ravel()[where]
    most = np.zeros(n + 1, np.float32)
    np.maximum.at(most, flat, depth)
    y, x = np.divmod(where, dense.shape[1])
    deep = depth >= 0.9 * most[flat]
    weight = np.bincount(flat[deep], minlength=n + 1)
    middle = [np.bincount(flat[deep], v[deep], minlength=n + 1) / np.maximum(weight, 1) for v in (y, x)]
    away = np.hypot(y - middle[0][flat], x - middle[1][flat]).astype(np.float32)
    farthest = np.zeros(n + 1, np.float32)
    np.maximum.at(farthest, flat, away)
    height = np.zeros(dense.shape, np.float32)
    height.ravel()[where] = depth / np.maximum(most[flat], 0.5) * (1 - 0.5 * away / np.maximum(farthest[flat], 1))
    # Where two objects touch a few pixels decide; they would be lost among the others.
    grown = cv2.dilate(dense.astype(np.float32), np.ones((3, 3), np.uint8))
    inverted = np.where(foreground, -dense, -1e6).astype(np.float32)
    least = -cv2.dilate(inverted, np.ones((3, 3), np.uint8))
    seam = (foreground & (least < grown)).astype(np.float32)
    importance = 1 + 5 * cv2.GaussianBlur(seam, (0, 0), 1.2)
    importance[outside] = 0
    return np.stack([foreground, height, importance]).astype(np.float32)


def _smooth_noise(side: int, cell: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field of deviation about 1, grains of ``cell`` pixels."""
    n = max(2, math.ceil(side / cell) + 1)
    return cv2.resize(rng.standard_normal((n, n)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)


def _seen(image: NDArray[np.float32], labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the image as some other microscope might have taken it."""
    side = image.shape[0]
    chance = rng.random(13)
    if chance[0] < 0.35:  # each nucleus brighter or dimmer than it was
        own = np.exp(rng.normal(0, rng.uniform(0.15, 0.6), 4096)).astype(np.float32)
        gain = np.where(labels > 0, own[labels % 4096], 1).astype(np.float32)
        image = image * cv2.GaussianBlur(gain, (0, 0), 0.8)
    if chance[1] < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0))
    elif chance[1] < 0.5:  # sharpened
        image = image + rng.uniform(0.3, 1.0) * (image - cv2.GaussianBlur(image, (0, 0), 1.5))
    if chance[2] < 0.5:
        power = math.exp(rng.uniform(-0.5, 0.45))
        image = np.sign(image) * np.abs(image) ** power
    if chance[3] < 0.3:  # out-of-focus light of the neighbourhood
        image = image + rng.uniform(0.1, 0.8) * cv2.GaussianBlur(image, (0, 0), rng.uniform(6, 25))
    if chance[11] < 0.15:  # haze of a thick sample: where nuclei are many, and nowhere else
        crowd = cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), rng.uniform(8, 40))
        image = image + rng.uniform(0.2, 2.0) * crowd
    if chance[4] < 0.4:  # shading, and light that is nobody's
        image = image * np.exp(0.25 * _smooth_noise(side, rng.uniform(40, 150), rng))
    if chance[12] < 0.12:  # over-exposed
        image = np.minimum(image, float(np.percentile(image, rng.uniform(80, 99))) * rng.uniform(0.5, 1.0) + 0.05)
    if chance[5] < 0.3:
        image = image + rng.uniform(0.02, 0.2) * _smooth_noise(side, rng.uniform(8, 100), rng)
    if chance[6] < 0.15:  # grain of chromatin or tissue
        image = image * (1 + rng.uniform(0.05, 0.3) * _smooth_noise(side, rng.uniform(2, 5), rng))
    if chance[7] < 0.6:
        noise = rng.uniform(0, 0.12) + rng.uniform(0, 0.15) * np.sqrt(np.maximum(image, 0))
        grain = rng.standard_normal(image.shape).astype(np.float32)
        if chance[8] < 0.4:  # correlated, as after resampling
            grain = cv2.GaussianBlur(grain, (0, 0), 0.8) * 2
        image = image + noise * grain
    if chance[9] < 0.2:  # 8 bit, clipped, JPEG
        low, high = float(image.min()), max(float(np.percentile(image, rng.uniform(97, 100))), 0.2)
        grey = np.clip((image - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        _, code = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
        image = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255 * (high - low) + low
    gain = math.exp(rng.uniform(-0.7, 0.6) if chance[10] < 0.9 else rng.uniform(-1.3, 1.2))
    return np.asarray(image * gain + rng.normal(0, 0.04), dtype=np.float32)
