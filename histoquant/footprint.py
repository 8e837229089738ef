"""How much memory a tile takes, so that as many are worked on at once as fit."""

from __future__ import annotations

import math

from histoquant import registry
from histoquant.analysis import measure
from histoquant.errors import HistoquantError
from histoquant.model.panel import channel_of
from histoquant.model.recipe import Recipe
from histoquant.model.slide import Slide
from histoquant.survey import FILL_REACH_UM, segmenter_parameters
from histoquant.work import DEFAULT_OBJECT_UM

HALO_UM = 100.0
"""What a segmenter needs round a tile when it cannot tell yet: the built-in one at a diameter of 18 um."""

PROCESS_BYTES = 300_000_000
"""A worker with its libraries loaded, a slide open and 64 MB of decoded segments, before the first tile."""

PX_BYTES = 48
CHANNEL_PX_BYTES = 4
"""Peak of a tile per pixel of its box, and more per channel that is read. Measured: 47 bytes with three channels of 16
bits and the built-in segmenter; a quarter more is kept free for those of labs."""

STAIN_PX_BYTES = 11
"""More for a brightfield slide: its red, green and blue, and stains as floats, which are raised to 0 in a copy."""


def tile_bytes(slide: Slide, recipe: Recipe) -> int:
    """Return the memory that one tile takes at its peak, its halo included.

    Segmenters that look at the slide before they know their halo are taken to need `HALO_UM`.
    """
    params = segmenter_parameters(recipe.segment)
    segmenter = registry.load("segmenter", recipe.segment.segmenter)(params)
    diameter_um = getattr(params, "diameter_um", None) or 0.0
    object_um = recipe.tiles.max_object_um or 2.5 * diameter_um or DEFAULT_OBJECT_UM
    try:
        segmenter_um = float(segmenter.halo_um)
    except HistoquantError:
        segmenter_um = HALO_UM
    halo_um = segmenter_um + FILL_REACH_UM + measure.reach_um(recipe.measure, object_um)
    halo_px = math.ceil(halo_um / slide.pixel_size_um) + 2
    sides = [min(n, recipe.tiles.core_px + 2 * halo_px) for n in slide.shape]
    n_channels = len({channel_of(name, marker) for name, marker in recipe.panel.items()})
    n_px = math.prod(sides)
    try:
        own = int(segmenter.memory_bytes(n_px, slide.pixel_size_um)) if hasattr(segmenter, "memory_bytes") else 0
    except HistoquantError:
        own = 0
    stains = STAIN_PX_BYTES if slide.brightfield else 0
    return n_px * (PX_BYTES + CHANNEL_PX_BYTES * n_channels + stains) + own
