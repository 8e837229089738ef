"""What is taken once per slide, never per tile: background, range, noise, tissue and the segmenter's own numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import registry
from histoquant.analysis.background import Background, estimate, find_tissue, outline
from histoquant.analysis.compiled import compiled
from histoquant.analysis.filters import TRUNCATE, gauss, opened
from histoquant.analysis.stains import Stains
from histoquant.model.panel import Panel, bound, channel_of
from histoquant.model.recipe import BackgroundSettings, Recipe, Segment, plugin_parameters
from histoquant.model.slide import Box, Slide
from histoquant.picture import COARSE_UM, Picture, block_means, flat_pixels, look
from histoquant.stained import Found, floored, stained, stains_of
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import BaseModel

SAMPLE_PX = 768
MAX_SAMPLES = 48

SPECK_UM = 3.5
"""Narrower than a nucleus of any neuron or glial cell, wider than specks of lipofuscin and their clusters."""

SPECK_HEADROOM = 1.5

SIGMA = (68.27, 1.0)
QUARTER = (25.0, 0.3186)
"""Percentiles of a half-normal, and their values in standard deviations. What is unmixed from under much of another
stain lies far below 0 and is no noise: the lowest quarter of what is below the background tells of it least."""

SOFTENED_UM = 1.0
"""Standard deviation by which unmixed stains are smoothed for the segmenter's own estimates. The grain of tissue, of
chromatin and of JPEG is sharper than in fluorescence and was taken for nuclei of 3 pixels on a real H&E slide. On 51
training images of BBBC038 the F1 of the network rose from 0.70 to 0.73, of the watershed from 0.54 to 0.65."""

HALF_A_LEVEL_OD = 0.001
"""Optical density of half a grey level of 8 bits below white."""

FILL_SIGMA_UM = 1.5
FILL_BELOW = 0.3
FILL_REACH_UM = max(SPECK_UM, TRUNCATE * FILL_SIGMA_UM)


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
    picture : Picture or None
        The slide as the survey saw it; kept apart from the rest.
    stains : Stains or None
        How a brightfield slide is unmixed; its channels are then stains.
    """

    channels: tuple[str, ...]
    indices: tuple[int, ...]
    background: Background
    noise: NDArray[np.float32]
    segmenter: dict[str, Any]
    tissue_wkb: bytes
    notes: tuple[str, ...]
    picture: Picture | None = None
    stains: Stains | None = None

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
        if self.stains is not None:
            told["stains"] = self.stains.as_dict()
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
            stains=Stains.from_dict(told["stains"]) if "stains" in told else None,
        )


def survey(slide: Slide, recipe: Recipe) -> Survey:
    """Look at a whole slide once.

    Raises
    ------
    InputError
        If the slide lacks a channel, is brightfield and the recipe names no stains, or holds pixels that are not
        finite.
    PixelSizeError
        If its pixel size is not known.
    PluginError
        If the segmenter is missing.
    """
    import shapely

    seen = _seen(slide, recipe)
    pixel_size_um, found, stains = slide.pixel_size_um, seen.found, seen.stains
    slide, panel, indices, channels = seen.slide, seen.panel, seen.indices, seen.channels
    coarse, picture = floored(seen.coarse, stains), seen.picture
    tissue_mask = find_tissue(picture.means, picture.px * pixel_size_um)
    background = estimate(
        coarse, picture.px, pixel_size_um=pixel_size_um, settings=recipe.background, tissue=tissue_mask
    )
    segmented = segmented_channels(recipe, panel, channels)

    def sample(box: Box) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        raw = flat_pixels(slide, box, indices, recipe.segment)
        image = normalised(floored(raw, stains), box, background, segmented, pixel_size_um)
        if stains is not None:
            image = gauss(image, SOFTENED_UM / pixel_size_um, 3.0)
        return image[None, None], _below(raw, box, background)

    samples, below = zip(*in_order(sample, _sample_boxes(slide.shape, tissue_mask, picture.px)), strict=True)
    if stains is None:
        noise = _noise(below, least=0.5 if slide.dtype.kind in "iu" else 0.0, rank=SIGMA)
    else:
        noise = _noise(below, least=HALF_A_LEVEL_OD, rank=QUARTER)
    params, estimated = resolved_segmenter(recipe.segment, list(samples), pixel_size_um)
    notes = [*notices(recipe.segment)]
    notes += [f"{name} was not given and is estimated as {value:.4g}" for name, value in estimated.items()]
    notes += [
        f"channel '{channel}' holds one and the same value everywhere"
        for channel, image in zip(channels, picture.means, strict=True)
        if image.min() == image.max()
    ]
    if slide.n_planes > 1:
        notes.append(f"{slide.n_planes} focal planes were projected to one ({recipe.segment.z})")
    if found is not None:
        notes += found.notes
    tissue = outline(tissue_mask, picture.px * pixel_size_um)
    return Survey(
        channels,
        indices,
        background,
        noise,
        params,
        shapely.to_wkb(tissue),
        tuple(notes),
        picture,
        stains,
    )


def tissue_of(slide: Slide, recipe: Recipe) -> Any:
    """Return the outline of the tissue as a survey finds it, a shapely geometry in um (x, y), without the rest of it.

    Raises as `survey` does.
    """
    picture = _seen(slide, recipe).picture
    coarse_um = picture.px * slide.pixel_size_um
    return outline(find_tissue(picture.means, coarse_um), coarse_um)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A slide looked at once, its stains unmixed; ``coarse`` and ``picture`` are those of `look`."""

    slide: Slide
    found: Found | None
    panel: Panel
    indices: tuple[int, ...]
    channels: tuple[str, ...]
    coarse: NDArray[np.float32]
    picture: Picture

    @property
    def stains(self) -> Stains | None:
        return None if self.found is None else self.found.stains


def _seen(slide: Slide, recipe: Recipe) -> _Seen:
    slide.pixel_size_um  # noqa: B018  asked for what it raises, before anything is read
    panel = bound(recipe.panel, slide)
    found = stains_of(slide, recipe)
    slide = slide if found is None else stained(slide, found.stains)
    wanted = {str(channel_of(name, marker)) for name, marker in panel.items()}
    indices = tuple(index for index, channel in enumerate(slide.channels) if channel in wanted)
    channels = tuple(slide.channels[index] for index in indices)
    return _Seen(slide, found, panel, indices, channels, *look(slide, indices, recipe.segment))


def segmented_channels(recipe: Recipe, panel: Any, channels: tuple[str, ...]) -> tuple[int, ...]:
    """Return which of the surveyed channels are segmented together."""
    return tuple(channels.index(str(channel_of(name, panel[name]))) for name in recipe.segmented)


def normalised(
    raw: NDArray[Any], box: Box, told: Background, segmented: tuple[int, ...], pixel_size_um: float
) -> NDArray[np.float32]:
    """Return the (y, x) image a segmenter sees: background 0, bright nuclei about 1.

    The first channel leads. The others fill in what it does not show: they fade out where the first, smoothed over
    `FILL_SIGMA_UM`, reaches `FILL_BELOW`, so that a brilliant nucleus does not outshine its neighbours. They are also
    held below `SPECK_HEADROOM` times their opening by a square of `SPECK_UM`, because a speck of lipofuscin must not
    look like a nucleus that the counterstain missed. A pixel depends on others as far as `FILL_REACH_UM`.
    """
    first, *others = (_scaled(raw[c], told.at(box, c), told.scale[c]) for c in segmented)
    if not others:
        return first
    shown = gauss(first, FILL_SIGMA_UM / pixel_size_um)
    fading = np.clip(1 - shown / np.float32(FILL_BELOW), 0, 1)
    side = max(1, round(SPECK_UM / pixel_size_um))
    for plane in others:
        held = np.minimum(plane, np.float32(SPECK_HEADROOM) * opened(plane, side))
        first = np.maximum(first, fading * held)
    return first


def alone(raw: NDArray[Any], pixel_size_um: float, settings: BackgroundSettings) -> NDArray[np.float32]:
    """Return a (y, x) image as a segmenter sees it, taking it for a whole slide of one channel.

    For arrays that are no slide: benchmarks, training, notebooks.
    """
    factor = min(max(1, int(COARSE_UM / pixel_size_um)), *raw.shape)
    coarse = block_means(raw[np.newaxis], factor)
    told = estimate(coarse, factor, pixel_size_um=pixel_size_um, settings=settings)
    return _scaled(raw, told.at(Box(0, raw.shape[0], 0, raw.shape[1]), 0), told.scale[0])


@compiled
def _scaled(raw: NDArray[Any], background: NDArray[np.float32], scale: np.float32) -> NDArray[np.float32]:
    """Return a plane above its background, in units of the channel's range."""
    result = np.empty(raw.shape, dtype=np.float32)
    for y in range(raw.shape[0]):
        row, under, out = raw[y], background[y], result[y]
        for x in range(raw.shape[1]):
            out[x] = (np.float32(row[x]) - under[x]) / scale
    return result


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


def _below(raw: NDArray[Any], box: Box, background: Background) -> list[NDArray[Any]]:
    """Return, for each channel, how far pixels of a box lie below the background: every other row and column."""
    below = []
    for channel, plane in enumerate(raw):
        above = (plane[::2, ::2] - background.at(box, channel)[::2, ::2]).ravel()
        below.append(-above[above <= 0])
    return below


def _noise(below: Sequence[list[NDArray[Any]]], *, least: float, rank: tuple[float, float]) -> NDArray[np.float32]:
    """Return the standard deviation of background pixels per channel.

    Pixels below the background are background and nothing else, so the spread of that side is taken.

    Parameters
    ----------
    below : what `_below` gave for each box
    least : float
        0.5 grey levels is the least a digitised image can tell.
    rank : (percentile, its value in standard deviations)
    """
    spread = []
    for parts in zip(*below, strict=True):
        values = np.concatenate(parts)
        spread.append(max(float(np.percentile(values, rank[0])) / rank[1] if len(values) else 0.0, least))
    return np.asarray(spread, dtype=np.float32)


def resolved_segmenter(
    segment: Segment, samples: list[NDArray[np.float32]], pixel_size_um: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the segmenter's parameters with every estimate filled in, and the estimates by name."""
    cls = registry.load("segmenter", segment.segmenter)
    given = segmenter_parameters(segment)
    if not hasattr(cls, "survey"):
        return given.model_dump(mode="json"), {}
    filled = cls(given).survey(samples, pixel_size_um)
    # Numbers only: a segmenter may also pin what it works with, such as the sum of its weights.
    estimated = {
        name: value
        for name, value in filled.model_dump().items()
        if getattr(given, name) is None and isinstance(value, int | float)
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


def notices(segment: Segment) -> tuple[str, ...]:
    """Return what everyone who uses results of a recipe's segmenter must know: a sentence, or none."""
    notice = getattr(registry.load("segmenter", segment.segmenter), "notice", None)
    return (notice,) if notice else ()


@lru_cache(maxsize=4)
def _segmenter(name: str, params: str) -> Any:
    cls = registry.load("segmenter", name)
    return cls(cls.Params.model_validate_json(params))


def segmenter_of(recipe: Recipe, told: Survey) -> Any:
    """Return the segmenter, ready to use; one is kept per process."""
    return _segmenter(recipe.segment.segmenter, json.dumps(told.segmenter, sort_keys=True))
