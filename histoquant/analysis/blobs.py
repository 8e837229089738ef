"""Blobs in scale space: how large and how bright the typical nucleus of a slide is, before anything is segmented."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.analysis.filters import blob_answer, gauss
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

OCTAVES_PX = (4, 8, 16, 32, 64)
NOISE_FACTOR = 8.0
"""How far a blob must stand out of smoothed white noise: that of real images is correlated, and smoothed away less."""


def typical_blob(planes: list[NDArray[np.float32]], noise: float) -> tuple[float, float] | None:
    """Return diameter in pixels and brightness of typical blobs, or None when there are none.

    A disc of diameter d answers strongest to a Laplacian of Gaussian of sigma d / sqrt(8), normalised by sigma^2
    (Lindeberg 1998). Large scales are looked at in shrunken images. The strength of a blob is that answer times its
    part of the brightness there, which tells a nucleus from the grain of a larger one. Blobs well below the typical
    strength are left out; the typical one is a median by area and root of strength, so that neither many specks nor
    little bright debris decides.
    """
    found = [np.empty((3, 0)), *in_order(lambda plane: _blobs(plane, noise), planes)]
    diameter, brightness, strength = np.concatenate(found, axis=1)
    if not len(diameter):
        return None
    typical = weighted_median(strength, diameter**2 * np.sqrt(strength))
    strong = strength > 0.6 * typical
    diameter, brightness, strength = diameter[strong], brightness[strong], strength[strong]
    weight = np.minimum(strength, typical) * diameter
    return weighted_median(diameter, weight), weighted_median(brightness, weight)


@compiled
def _tops(answer: NDArray[np.float32], floor: float) -> NDArray[np.bool_]:
    """Return where the middle of three (y, x) layers is above a floor and no lower than any of its 26 neighbours."""
    _, height, width = answer.shape
    top = np.zeros((height, width), dtype=np.bool_)
    for y in range(height):
        for x in range(width):
            value = answer[1, y, x]
            if not value > floor:
                continue
            highest = True
            for layer in range(3):
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        highest = highest and answer[layer, v, u] <= value
            top[y, x] = highest
    return top


def _shrunk(plane: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    height, width = (n // factor * factor for n in plane.shape)
    blocks = plane[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def weighted_median(values: NDArray[Any], weights: NDArray[Any]) -> float:
    """Return the value at which half of the weight is reached."""
    order = np.argsort(values, kind="stable")
    total = weights[order].cumsum()
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def median_diameter(labels: list[NDArray[np.uint32]]) -> float | None:
    """Return the median equivalent diameter in pixels of all objects, each weighed by it; None without objects."""
    areas = np.concatenate([np.bincount(part.ravel())[1:] for part in labels])
    diameters = 2 * np.sqrt(areas / math.pi)
    return weighted_median(diameters, diameters) if len(areas) else None


def _blobs(plane: NDArray[np.float32], noise: float) -> NDArray[np.float64]:
    """Return diameter in pixels, brightness and strength of each blob of a plane."""
    found = [np.empty((3, 0))]
    for octave in OCTAVES_PX:
        factor = max(1, octave // 8)
        small = _shrunk(plane, factor)
        if min(small.shape) < 8:
            break
        scales = octave / factor * 2.0 ** (np.arange(-1, 4) / 3)
        sigmas = scales / math.sqrt(8)
        answer = np.stack([blob_answer(small, s) for s in sigmas])
        floor = np.maximum(NOISE_FACTOR * noise / factor / (math.sqrt(2 * math.pi) * sigmas), 1e-3)
        for k in (1, 2, 3):  # the first and last scale only tell whether their neighbours are maxima
            blob = _tops(answer[k - 1 : k + 2], floor[k])
            height = answer[k][blob]
            light = np.maximum(gauss(small, sigmas[k] / 2)[blob], height)
            found.append(np.stack([np.full(len(height), scales[k] * factor), light, height**2 / light]))
    return np.concatenate(found, axis=1)
