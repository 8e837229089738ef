"""What a stack of dendrites is read from: a recipe, the size of its voxels, its light, and a person's traces of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoquant.analysis.dendrites import Branch, lay_on_ridge
from histoquant.analysis.ridge import Stack, with_depth
from histoquant.errors import InputError, PixelSizeError
from histoquant.model.recipe import Recipe, parse_recipe
from histoquant.model.slide import Box, Slide
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import shipped_recipe

Voxel = tuple[float, float, float]

ROWS = 256
"""Rows of a stack that are read at a time."""

OD_STEPS = 100.0
"""Optical density is kept in hundredths, as bytes: the densest that 8 bits can tell is 2.41."""

MOST_SATURATED = 0.2
"""Share of a stack at the top of its range beyond which there is nothing to measure."""

SATURATED_SHAFT = 0.2
MANY_PLANES = 2
"""A stack with this many times more planes than rows or columns has its axes exchanged."""


def recipe_of(given: Recipe | Path | None, *, brightfield: bool) -> Recipe:
    """Return the recipe of a stack: the given one, or the shipped one for its light.

    Raises
    ------
    InputError
        If it cannot be read, is not one of spines, or looks for bright dendrites in transmitted light.
    """
    if isinstance(given, Recipe):
        recipe, name = given, given.name or "of the study"
    else:
        source = given or shipped_recipe("spines_golgi" if brightfield else "spines_confocal")
        try:
            text = source.read_text("utf-8")
        except OSError as error:
            raise InputError(
                f"Recipe '{source}' cannot be read ({error.strerror or error}).", "Correct --recipe."
            ) from error
        recipe, name = parse_recipe(text, source=source.name), source.name
    if recipe.spines is None:
        raise InputError(f"Recipe '{name}' has no [spines] section.", "Give a recipe of dendrites.")
    if brightfield and recipe.spines.light == "bright":
        raise InputError(
            f"The stack is brightfield (RGB), but recipe '{name}' looks for bright dendrites.",
            "Set light = 'dark' and rules = 'B' under [spines], or take the recipe spines_golgi.",
        )
    return recipe


def channel_of(recipe: Recipe) -> str | int:
    """Return the channel that shows the dendrites: the first when the recipe names none."""
    marker = next(iter(recipe.panel.values()))
    return 0 if marker.channel is None else marker.channel


def voxel_of(slide: Slide, stated: Voxel | None, *, z_step_um: float | None = None) -> Voxel:
    """Return depth, height and width of a voxel in um: as stated, or of the file where nothing is.

    Raises
    ------
    PixelSizeError
        If a size is not known, or not positive.
    InputError
        If the axes look exchanged, or planes look like channels.
    """
    planes, (height, width) = slide.n_planes, slide.shape
    if planes > MANY_PLANES * min(height, width):
        raise InputError(
            f"Stack '{slide.name}': {planes} planes of {height} x {width} pixels: its axes look exchanged.",
            "Save it as planes, rows, columns (z, y, x).",
        )
    if planes == 1 and len(slide.channels) > 6:
        raise InputError(
            f"Stack '{slide.name}': {len(slide.channels)} channels of one plane each: its planes look like channels.",
            "Save it with a z axis (ImageJ: Image > Hyperstacks > Re-order).",
        )
    if stated is not None:
        if not all(math.isfinite(size) and size > 0 for size in stated):
            raise PixelSizeError(
                f"Stack '{slide.name}': a voxel of {' x '.join(f'{size:g}' for size in stated)} um does not exist.",
                "Give --pixel-size-um Z Y X, three numbers above 0.",
            )
        if abs(stated[1] - stated[2]) > 0.01 * max(stated[1:]):
            raise PixelSizeError(
                f"Stack '{slide.name}': pixels are not square ({stated[1]:g} x {stated[2]:g} um).",
                "Give --pixel-size-um as Z Y X; resample the stack if its pixels are not square.",
            )
        return stated
    try:
        pixel = slide.pixel_size_um
    except PixelSizeError as error:
        raise PixelSizeError(error.message, "Give --pixel-size-um Z Y X.") from error
    step = z_step_um if z_step_um is not None else slide.z_step_um
    if planes > 1 and step is None:
        raise PixelSizeError(
            f"Stack '{slide.name}': {planes} planes, but the file does not say how far apart they are.",
            "Give --pixel-size-um Z Y X (in a sheet the column z_step_um): without the z step no length in three "
            "dimensions is known.",
        )
    return (step if step is not None else pixel, pixel, pixel)


def read_stack(
    slide: Slide, voxel: Voxel, channel: str | int, settings: SpineSettings
) -> tuple[Stack, tuple[str, ...]]:
    """Read the light of a stack's dendrites, and what is to be flagged about the whole.

    Raises
    ------
    InputError
        If pixels are all alike, not numbers, or a fifth of them are at the top of their range.
    """
    planes, (height, width) = slide.n_planes, slide.shape
    indices = tuple(range(len(slide.channels))) if slide.brightfield else (slide.channel_index(channel),)
    dark = settings.light == "dark"
    kind = np.dtype(np.uint8) if dark else (slide.dtype if slide.dtype.kind == "u" else np.dtype(np.float32))
    light = np.empty((planes, height, width), dtype=kind)
    white = _white(slide, indices) if dark else np.ones(1)
    top = np.iinfo(slide.dtype).max if slide.dtype.kind == "u" else math.inf
    at_top, low, high = 0, math.inf, -math.inf
    for y0 in range(0, height, ROWS):
        pixels = slide.read(Box(y0, min(y0 + ROWS, height), 0, width), channels=indices)
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise InputError(
                f"Stack '{slide.name}': pixels near row {y0} are NaN or infinite.", "Export it with numbers everywhere."
            )
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        at_top += int((pixels >= top).sum()) if not dark else int((pixels <= 0).all(axis=0).sum())
        if dark:
            density = -np.log10(np.maximum(pixels.astype(np.float32), 1.0) / white[:, None, None, None]).mean(axis=0)
            light[:, y0 : y0 + ROWS] = np.clip(np.rint(OD_STEPS * density), 0, 255)
        else:
            light[:, y0 : y0 + ROWS] = pixels[0]
    if low == high:
        raise InputError(
            f"Stack '{slide.name}': every pixel is {low:g}: there is nothing in it.", "Choose another channel or file."
        )
    if at_top > MOST_SATURATED * light.size:
        raise InputError(
            f"Stack '{slide.name}': {at_top / light.size:.0%} of its voxels are {'black' if dark else 'saturated'}.",
            "Image it again with less light or gain: what is cut off cannot be measured.",
        )
    every = light.ravel()[:: max(1, light.size // 4_000_000)]
    ground = float(np.median(every))
    flags = [] if planes > 1 else ["length_2d"]
    bright = every[every > ground + 0.5 * (float(np.percentile(every, 99.9)) - ground)]
    if not dark and bright.size and float((bright >= top).mean()) > SATURATED_SHAFT:
        flags.append("saturated")
    return Stack(light, voxel, ground), tuple(flags)


def _white(slide: Slide, indices: Sequence[int]) -> NDArray[np.float64]:
    """Return what blank glass is in each channel: the mode is tissue and glass alike, so a high percentile is."""
    height, width = slide.shape
    rows = min(ROWS, height)
    pixels = slide.read(Box((height - rows) // 2, (height + rows) // 2, 0, width), channels=tuple(indices))
    return np.asarray(np.maximum(np.percentile(pixels, 90, axis=(1, 2, 3)), 1.0))


def traces_on(stack: Stack, traced: Sequence[Branch], file: str) -> list[Branch]:
    """Return a person's traces on the ridges beside them.

    Raises
    ------
    InputError
        If they lie off the stack, look like pixels, or follow nothing bright.
    """
    size = np.array(stack.light.shape) * stack.voxel_um
    every = np.concatenate([branch.path for branch in traced])
    if np.isnan(every[:, 0]).any():
        traced = [
            Branch(with_depth(stack, b.path), b.parent, b.order, b.forks, b.name) if np.isnan(b.path).any() else b
            for b in traced
            if _inside(b.path, size).all()
        ] or list(traced)
        every = np.concatenate([branch.path for branch in traced])
    if stack.flat:
        every = every * (0.0, 1.0, 1.0)
        traced = [Branch(b.path * (0.0, 1.0, 1.0), b.parent, b.order, b.forks, b.name) for b in traced]
    outside = ~_inside(every, size)
    in_pixels = _inside(every * stack.voxel_um, size)
    if outside.mean() > 0.02:
        extent = " x ".join(f"{side:.4g}" for side in size)
        if in_pixels.all():
            farthest = " / ".join(f"{value:.4g}" for value in every.max(axis=0))
            raise InputError(
                f"Trace '{file}': it reaches to {farthest}, beyond the stack of {extent} um, "
                "but not beyond its pixels: it looks like pixels, not um.",
                "Multiply z, y and x by the size of a voxel.",
            )
        raise InputError(
            f"Trace '{file}': {outside.mean():.0%} of its points lie off the stack ({extent} um in z, y, x).",
            "Give the trace of this stack, in um from its first voxel.",
        )
    laid = lay_on_ridge(stack, traced)
    there, shifted = _light_below(stack, every), _light_below(stack, every * stack.voxel_um)
    if there < 0.5 * shifted and shifted > 0:
        raise InputError(
            f"Trace '{file}': there is little light along it, and much where it would lie in pixels.",
            "It looks like pixels, not um: multiply z, y and x by the size of a voxel.",
        )
    return laid


def _inside(points: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.bool_]:
    known = np.where(np.isnan(points), 0.0, points)
    return np.asarray(((known >= -1.0) & (known <= size + 1.0)).all(axis=1))


def _light_below(stack: Stack, points: NDArray[np.float64]) -> float:
    """Return the median light at points, above the ground."""
    index = np.rint(points[:: max(1, len(points) // 2000)] / stack.voxel_um).astype(int)
    index = np.clip(index, 0, np.array(stack.light.shape) - 1)
    return float(np.median(stack.light[tuple(index.T)].astype(np.float64)) - stack.ground)
