"""What is taken once per slide, never per tile: background, range, noise, tissue and the segmenter's own numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import registry
from histoquant.analysis.background import Background, estimate, find_tissue, outline
from histoquant.errors import InputError
from histoquant.model.panel import bound, channel_of
from histoquant.model.recipe import Recipe, Segment, plugin_parameters
from histoquant.model.slide import Box, Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import BaseModel

COARSE_UM = 2.0
SAMPLE_PX = 768
MAX_SAMPLES = 48
BAND_PX = 512

SPECK_UM = 3.5
"""Narrower than a nucleus of any neuron or glial cell, wider than specks of lipofuscin and their clusters."""

SPECK_HEADROOM = 1.5

FILL_SIGMA_UM = 1.5
FILL_BELOW = 0.3
FILL_REACH_UM = max(SPECK_UM, 3 * FILL_SIGMA_UM)


@dataclass(frozen=True, eq=False)
class Survey:
    """Slide-wide numbers that every tile uses.

    Attributes
    ----------
    channels : tuple of str
        Channels the recipe reads, in the slide's order; the order of every (c, ...) array below.
    indices : tuple of int
        Their numbers in the slide.
    background : Background
    noise : (c,) float32
        Standard deviation of a full-resolution background pixel, raw units.
    segmenter : mapping
        Parameters of the segmenter with every estimate filled in.
    tissue_wkb : bytes
        Outline of the tissue in um (x, y), well-known binary.
    notes : tuple of str
        What was estimated, and what a person should know.
    """

    channels: tuple[str, ...]
    indices: tuple[int, ...]
    background: Background
    noise: NDArray[np.float32]
    segmenter: dict[str, Any]
    tissue_wkb: bytes
    notes: tuple[str, ...]

    @property
    def tissue(self) -> Any:
        """Outline of the tissue, a shapely geometry in um (x, y)."""
        import shapely

        return shapely.from_wkb(self.tissue_wkb)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the survey as plain arrays, to be kept; `from_arrays` is the way back."""
        told = {
            "channels": self.channels,
            "indices": self.indices,
            "step_px": self.background.step_px,
            "segmenter": self.segmenter,
            "notes": self.notes,
        }
        return {
            "grid": self.background.grid,
            "scale": self.background.scale,
            "coarse_noise": self.background.noise,
            "noise": self.noise,
            "tissue": np.frombuffer(self.tissue_wkb, dtype=np.uint8),
            "told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Survey:
        """Rebuild a survey from what `arrays` gave."""
        told = json.loads(arrays["told"].tobytes())
        background = Background(arrays["grid"], told["step_px"], arrays["scale"], arrays["coarse_noise"])
        return cls(
            tuple(told["channels"]),
            tuple(told["indices"]),
            background,
            arrays["noise"],
            told["segmenter"],
            arrays["tissue"].tobytes(),
            tuple(told["notes"]),
        )


def survey(slide: Slide, recipe: Recipe) -> Survey:
    """Look at a whole slide once.

    Raises
    ------
    InputError
        If the slide lacks a channel, is brightfield, or holds pixels that are not finite.
    PixelSizeError
        If its pixel size is not known.
    PluginError
        If the segmenter is missing.
    """
    import shapely

    pixel_size_um = slide.pixel_size_um
    panel = bound(recipe.panel, slide)
    wanted = {str(channel_of(name, marker)) for name, marker in panel.items()}
    indices = tuple(index for index, channel in enumerate(slide.channels) if channel in wanted)
    channels = tuple(slide.channels[index] for index in indices)
    coarse, coarse_px = shrink(slide, indices, recipe.segment, coarse_um=COARSE_UM)
    tissue_mask = find_tissue(coarse, coarse_px * pixel_size_um)
    background = estimate(
        coarse, coarse_px, pixel_size_um=pixel_size_um, settings=recipe.background, tissue=tissue_mask
    )
    boxes = _sample_boxes(slide.shape, tissue_mask, coarse_px)
    raw = [flat_pixels(slide, box, indices, recipe.segment) for box in boxes]
    noise = _noise(raw, boxes, background)

    segmented = segmented_channels(recipe, panel, channels)
    samples = [
        normalised(part, box, background, segmented, pixel_size_um)[None, None]
        for part, box in zip(raw, boxes, strict=True)
    ]
    params, estimated = resolved_segmenter(recipe.segment, samples, pixel_size_um)
    notes = [f"{name} was not given and is estimated as {value:.4g}" for name, value in estimated.items()]
    notes += [
        f"channel '{channel}' holds one and the same value everywhere"
        for channel, image in zip(channels, coarse, strict=True)
        if image.min() == image.max()
    ]
    if slide.n_planes > 1:
        notes.append(f"{slide.n_planes} focal planes were projected to one ({recipe.segment.z})")
    tissue = outline(tissue_mask, coarse_px * pixel_size_um)
    return Survey(channels, indices, background, noise, params, shapely.to_wkb(tissue), tuple(notes))


def segmented_channels(recipe: Recipe, panel: Any, channels: tuple[str, ...]) -> tuple[int, ...]:
    """Return which of the surveyed channels are segmented together."""
    return tuple(channels.index(str(channel_of(name, panel[name]))) for name in recipe.segmented)


def flat_pixels(slide: Slide, box: Box, indices: tuple[int, ...], segment: Segment, level: int = 0) -> NDArray[Any]:
    """Read a box as one plane per channel.

    Returns
    -------
    (c, y, x) array; float32 when planes were averaged, else of the slide's type

    Raises
    ------
    InputError
        If pixels are NaN or infinite, or the plane asked for does not exist.
    """
    pixels = slide.read(box, channels=indices, level=level)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(
            f"Slide '{slide.name}': {int((~np.isfinite(pixels)).sum())} pixel(s) near row {box.y0}, column {box.x0} "
            "are NaN or infinite.",
            "Export the image again with numbers everywhere.",
        )
    if pixels.shape[1] == 1:
        return np.asarray(pixels[:, 0])
    if segment.z == "max":
        return np.asarray(pixels.max(axis=1))
    if segment.z == "mean":
        return np.asarray(pixels.mean(axis=1, dtype=np.float64), dtype=np.float32)
    if not 0 <= segment.z < pixels.shape[1]:
        raise InputError(
            f"Slide '{slide.name}': no focal plane {segment.z}; it has 0 to {pixels.shape[1] - 1}.",
            "Correct z under [segment] in the recipe.",
        )
    plane: NDArray[Any] = pixels[:, segment.z]
    return plane


def normalised(
    raw: NDArray[Any], box: Box, told: Background, segmented: tuple[int, ...], pixel_size_um: float
) -> NDArray[np.float32]:
    """Return the (y, x) image a segmenter sees: background 0, bright nuclei about 1.

    The first channel leads. The others fill in what it does not show: they fade out where the first, smoothed over
    `FILL_SIGMA_UM`, reaches `FILL_BELOW`, so that a brilliant nucleus does not outshine its neighbours. They are also
    held below `SPECK_HEADROOM` times their opening by a square of `SPECK_UM`, because a speck of lipofuscin must not
    look like a nucleus that the counterstain missed. A pixel depends on others as far as `FILL_REACH_UM`.
    """
    from scipy import ndimage

    first, *others = ((raw[c].astype(np.float32) - told.at(box, c)) / told.scale[c] for c in segmented)
    if not others:
        return np.asarray(first)
    sigma = FILL_SIGMA_UM / pixel_size_um
    shown = ndimage.gaussian_filter(first, sigma, mode="nearest", truncate=3.0)
    fading = np.clip(1 - shown / np.float32(FILL_BELOW), 0, 1)
    side = max(1, round(SPECK_UM / pixel_size_um))
    for plane in others:
        opened = ndimage.grey_opening(plane, size=(side, side), mode="nearest")
        first = np.maximum(first, fading * np.minimum(plane, np.float32(SPECK_HEADROOM) * opened))
    return np.asarray(first)


def shrink(
    slide: Slide, indices: tuple[int, ...], segment: Segment, *, coarse_um: float
) -> tuple[NDArray[np.float32], float]:
    """Return the whole slide by block means at about a given pixel size, read band by band.

    The smallest pyramid level that is still fine enough is read; without a pyramid the full resolution is.

    Returns
    -------
    (c, y, x) float32, and how many full-resolution pixels one of its pixels spans
    """
    wanted = coarse_um / slide.pixel_size_um
    level = max((i for i in range(len(slide.levels)) if slide.downsample(i) <= max(1.0, wanted)), key=slide.downsample)
    height, width = (int(n) for n in slide.levels[level].shape[2:])
    factor = min(max(1, int(wanted / slide.downsample(level))), height, width)
    step = max(1, BAND_PX // factor) * factor
    bands = []
    for y0 in range(0, height, step):
        box = Box(y0, min(y0 + step, height), 0, width)
        bands.append(_block_means(flat_pixels(slide, box, indices, segment, level), factor))
    return np.concatenate(bands, axis=1), factor * slide.downsample(level)


def _block_means(pixels: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Return means over blocks of ``factor`` x ``factor``; blocks at the image's edge are means of what is there."""
    if factor == 1:
        return pixels.astype(np.float32)
    rows = np.arange(0, pixels.shape[1], factor)
    columns = np.arange(0, pixels.shape[2], factor)
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=1, dtype=np.float64), columns, axis=2)
    heights = np.diff([*rows, pixels.shape[1]])
    widths = np.diff([*columns, pixels.shape[2]])
    means: NDArray[np.float32] = (sums / np.outer(heights, widths)).astype(np.float32)
    return means


def _sample_boxes(shape: tuple[int, int], tissue: NDArray[np.bool_], coarse_px: float) -> list[Box]:
    """Return windows spread evenly over the tissue; the whole slide when it is small. They depend on the slide only."""
    height, width = shape
    cells = [
        Box(y0, min(y0 + SAMPLE_PX, height), x0, min(x0 + SAMPLE_PX, width))
        for y0 in range(0, height, SAMPLE_PX)
        for x0 in range(0, width, SAMPLE_PX)
    ]
    if len(cells) <= MAX_SAMPLES:
        return cells
    stained = []
    for box in cells:
        y0, y1, x0, x1 = (int(edge / coarse_px) for edge in (box.y0, box.y1, box.x0, box.x1))
        stained.append(tissue[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].mean())
    inside = [box for box, share in zip(cells, stained, strict=True) if share > 0.5] or cells
    chosen = np.unique(np.linspace(0, len(inside) - 1, MAX_SAMPLES).round().astype(int))
    return [inside[index] for index in chosen]


def _noise(raw: list[NDArray[Any]], boxes: list[Box], background: Background) -> NDArray[np.float32]:
    """Return the standard deviation of background pixels per channel.

    Pixels below the background are background and nothing else, so the spread of that side is taken.
    """
    spread = []
    for channel in range(len(background.scale)):
        below = []
        for part, box in zip(raw, boxes, strict=True):
            above = (part[channel][::2, ::2] - background.at(box, channel)[::2, ::2]).ravel()
            below.append(-above[above <= 0])
        values = np.concatenate(below)
        # The 68.27th percentile of a half-normal is its standard deviation; 0.5 grey levels is the least a
        # digitised image can tell.
        spread.append(max(float(np.percentile(values, 68.27)) if len(values) else 0.0, 0.5 if _whole(raw) else 0.0))
    return np.asarray(spread, dtype=np.float32)


def _whole(raw: list[NDArray[Any]]) -> bool:
    return raw[0].dtype.kind in "iu"


def resolved_segmenter(
    segment: Segment, samples: list[NDArray[np.float32]], pixel_size_um: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the segmenter's parameters with every estimate filled in, and the estimates by name."""
    cls = registry.load("segmenter", segment.segmenter)
    given = segmenter_parameters(segment)
    if not hasattr(cls, "survey"):
        return given.model_dump(mode="json"), {}
    filled = cls(given).survey(samples, pixel_size_um)
    estimated = {
        name: value for name, value in filled.model_dump().items() if getattr(given, name) is None and value is not None
    }
    return filled.model_dump(mode="json"), estimated


def segmenter_parameters(segment: Segment) -> BaseModel:
    """Return the parameters a recipe gives to its segmenter, checked by the segmenter's own model."""
    params = registry.load("segmenter", segment.segmenter).Params
    given = dict(segment.parameters)
    if segment.diameter_um is not None and "diameter_um" in params.model_fields:
        given["diameter_um"] = segment.diameter_um
    return plugin_parameters(params, given, where=f"[segment] of segmenter '{segment.segmenter}'")


def segmenter_fingerprint(segment: Segment) -> str:
    """Return which segmenter with which weights finds the nuclei; part of the key of all that is measured."""
    told = registry.fingerprint_of("segmenter", segment.segmenter)
    cls = registry.load("segmenter", segment.segmenter)
    return f"{told} {cls(segmenter_parameters(segment)).weights_sha256}" if hasattr(cls, "weights_sha256") else told


@lru_cache(maxsize=4)
def _segmenter(name: str, params: str) -> Any:
    cls = registry.load("segmenter", name)
    return cls(cls.Params.model_validate_json(params))


def segmenter_of(recipe: Recipe, told: Survey) -> Any:
    """Return the segmenter, ready to use; one is kept per process."""
    return _segmenter(recipe.segment.segmenter, json.dumps(told.segmenter, sort_keys=True))
