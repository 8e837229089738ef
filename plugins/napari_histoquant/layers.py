"""Slides, cells and outlines as napari layers: in um from the slide's top-left corner, read as they are shown.

A pixel's centre lies half a pixel from its corner, so that images are moved by that much; outlines and cells, which
count from the corner, are not.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.drawing import colours_of
from histoquant.model.recipe import Segment
from histoquant.model.region_set import Region
from histoquant.model.slide import Slide
from histoquant.picture import shrink
from histoquant.report.figures import MARKER_COLOURS
from histoquant.starter import COUNTERSTAINS, UNSTAINED
from napari_histoquant.shapes import shapes_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LayerData = tuple[Any, dict[str, Any], str]

SLIDE = "histoquant_slide"
OUTLINES, DRAWN = "histoquant_outlines", "histoquant_drawn"
"""Keys of a layer's metadata: the `Slide` an image shows; the file that a layer of outlines is drawn into, or None; the
outlines it shows, when they can be drawn on."""

UNITS = ("um", "um")

COLOURMAPS = ("green", "magenta", "yellow", "cyan", "red")
COUNTERSTAIN_COLOURMAP, UNSTAINED_COLOURMAP = "bop blue", "bop orange"

FLAT_PX = 4096
"""A slide without a pyramid and larger than this is read once when it is opened, for a level of about half of that
side: napari would read all of it again at every move."""

LOOKED_AT_PX = 4_000_000
BLACK, BLACK_AMONG_OTHERS, FULL = 1.0, 50.0, 99.8
"""Percentiles of the smallest level that are shown as black, alone and where channels are added up, and in full colour.
Half of a fluorescent section is background at least; shown, it would drown the other channels."""

CELL_UM = 9.0
NEGATIVE = (0.75, 0.75, 0.75, 0.55)
BOTH = (1.0, 1.0, 1.0, 1.0)
"""Colours of cells that are positive for no marker, and for several."""


def slide_layers(slide: Slide) -> list[LayerData]:
    """Return a slide as one image layer per channel, or one of RGB.

    Raises
    ------
    PixelSizeError
        If its pixel size is not known.
    """
    px = slide.pixel_size_um
    levels = _levels(slide)
    place: dict[str, Any] = {"scale": (px, px), "translate": (px / 2, px / 2), "units": UNITS}
    if slide.n_planes > 1:
        step = slide.z_step_um or px
        place = {"scale": (step, px, px), "translate": (0, px / 2, px / 2), "units": ("um", *UNITS)}
    name = named(slide)
    shared = place | {"metadata": {SLIDE: kept(slide)}, "multiscale": len(levels) > 1}
    if slide.brightfield:
        pictures = [_moved(level[:3]) for level in levels]
        return [(_data(pictures), shared | {"name": name, "rgb": True}, "image")]
    maps = _colourmaps(slide.channels)
    smallest = levels[-1]
    layers: list[LayerData] = []
    for index, channel in enumerate(slide.channels):
        settings = {
            "name": f"{channel} · {name}",
            "colormap": maps[index],
            "contrast_limits": _limits(smallest[index], alone=len(slide.channels) == 1),
            "blending": "additive",
            "visible": maps[index] != UNSTAINED_COLOURMAP,
        }
        layers.append((_data([level[index] for level in levels]), shared | settings, "image"))
    return layers


def kept(slide: Slide) -> Slide:
    """Return a slide that closes its files when nothing holds it any more, as when its layers are removed."""
    weakref.finalize(slide, slide.close)
    return slide


def named(slide: Slide) -> str:
    """Return what a slide is called in the list of layers: its file without endings, and its scene."""
    stem = Path(slide.name).name
    for ending in (".tif", ".tiff", ".zarr", ".ome"):
        stem = stem.removesuffix(ending)
    return f"{stem} [{slide.scene}]" if slide.scene else stem


def _levels(slide: Slide) -> list[Any]:
    """Return the levels, each (c, y, x) or (c, z, y, x), with a small one added to a large slide that has none."""
    if slide.n_planes > 1:
        return list(slide.levels)
    levels = [level[:, 0] for level in slide.levels]
    if max(levels[-1].shape[1:]) > FLAT_PX:
        factor = -(-2 * max(slide.shape) // FLAT_PX)
        every = tuple(range(len(slide.channels)))
        picture = shrink(slide, every, Segment(), coarse_um=factor * slide.pixel_size_um).means
        whole = slide.dtype.kind in "iu"
        levels.append((np.rint(picture) if whole else picture).astype(slide.dtype))
    return levels


def _data(levels: list[Any]) -> Any:
    return levels if len(levels) > 1 else levels[0]


def _moved(level: Any) -> Any:
    """Return (c, ...) as (..., c)."""
    import dask.array as da

    return (np if isinstance(level, np.ndarray) else da).moveaxis(level, 0, -1)


def _colourmaps(channels: Sequence[str]) -> list[str]:
    """Return a colour map per channel, by what its name says: the counterstain blue, what is unstained orange."""
    maps, free = [], 0
    for channel in channels:
        told = channel.casefold()
        if any(name in told for name in COUNTERSTAINS):
            maps.append(COUNTERSTAIN_COLOURMAP)
        elif told in UNSTAINED or "autofluor" in told:
            maps.append(UNSTAINED_COLOURMAP)
        else:
            maps.append(COLOURMAPS[free % len(COLOURMAPS)])
            free += 1
    return ["gray"] if len(channels) == 1 else maps


def _limits(level: Any, *, alone: bool) -> tuple[float, float]:
    """Return the intensities between which a channel is shown, from its smallest level."""
    if level.ndim == 3:
        level = level[level.shape[0] // 2]
    step = max(1, int(np.ceil(np.sqrt(level.size / LOOKED_AT_PX))))
    seen = np.asarray(level[::step, ::step])
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(seen, (BLACK if alone else BLACK_AMONG_OTHERS, FULL)))
    return low, max(high, low + (1.0 if seen.dtype.kind in "iu" else 1e-6))


def outline_layer(
    regions_px: Sequence[Region], pixel_size_um: float, *, name: str, path: Path | None = None
) -> LayerData:
    """Return outlines, coordinates in pixels, as a layer of shapes with a colour and a name each."""
    shapes = shapes_of(regions_px, colours_of(region.classification or region.name for region in regions_px))
    settings = shapes.settings | {
        "name": name,
        "scale": (pixel_size_um, pixel_size_um),
        "units": UNITS,
        "metadata": {OUTLINES: path, DRAWN: tuple(regions_px)},
    }
    return shapes.data, settings, "shapes"


def cell_layer(cells: pd.DataFrame, markers: Sequence[str], *, name: str) -> LayerData:
    """Return cells as points coloured by what they are positive for.

    Parameters
    ----------
    cells : DataFrame
        Rows of ``cells.parquet``.
    """
    import pandas as pd

    columns = [str(column) for column in cells.columns]
    kept = [each for each in columns if each in ("cell_id", "region") or each.endswith(("_value", "_positive"))]
    settings = {
        "name": name,
        "features": pd.DataFrame(cells[kept]).reset_index(drop=True),
        "size": CELL_UM,
        "face_color": "transparent",
        "border_color": call_colours(cells, markers),
        "border_width": 0.15,
        "units": UNITS,
        "opacity": 1.0,
    }
    return cells[["y_um", "x_um"]].to_numpy(dtype=float), settings, "points"


def call_colours(cells: pd.DataFrame, markers: Sequence[str]) -> NDArray[np.float32]:
    """Return a colour (r, g, b, a) per cell: grey, that of the one marker it is positive for, or white for several."""
    colours = np.tile(np.array(NEGATIVE, dtype=np.float32), (len(cells), 1))
    n_positive = np.zeros(len(cells), dtype=np.int64)
    for marker, colour in marker_colours(markers).items():
        positive = cells[f"{marker}_positive"].to_numpy(dtype=bool)
        colours[positive] = colour
        n_positive += positive
    colours[n_positive > 1] = BOTH
    return colours


def marker_colours(markers: Sequence[str]) -> Mapping[str, tuple[float, float, float, float]]:
    """Return the colour of each marker, the same as in the report."""
    told = {}
    for index, marker in enumerate(markers):
        code = MARKER_COLOURS[index % len(MARKER_COLOURS)]
        red, green, blue = (int(code[at : at + 2], 16) / 255 for at in (1, 3, 5))
        told[marker] = (red, green, blue, 1.0)
    return told
