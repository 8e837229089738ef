"""Pictures a scientist looks at first."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.model.panel import Panel, called_markers

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from histoquant.analysis.raters import BlandAltman
    from histoquant.model.region_set import RegionSet

# Colours of Okabe & Ito, which people with any colour vision can tell apart; regions use the lighter half.
MARKER_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")
REGION_COLOURS = ("#FFFFFF", "#7FE3C4", "#FFB38A", "#B9A7FF", "#9BD1FF", "#F7A8C4", "#D6E685")
SHAPES = ("o", "s", "^", "D")
MASK_COLOUR = "#FF5555"
BACKDROP = "#111418"


def nice_length_um(extent_um: float) -> float:
    """Return a round length of about a fifth of an extent, for a scale bar.

    Examples
    --------
    >>> nice_length_um(3000), nice_length_um(180)
    (500.0, 50.0)
    """
    target = extent_um / 5
    power = 10.0 ** math.floor(math.log10(target))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= target)


FULL_GLOW = 2.0
"""Multiple of its threshold, above the background, at which a marker glows fully at the earliest."""


def length_label(length_um: float) -> str:
    """Return a length with its unit, in mm from 1 mm on."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def draw_overview(
    path: Path,
    picture: NDArray[np.float32],
    picture_um: float,
    *,
    title: str,
    panel: Panel,
    channels: Sequence[str],
    regions: RegionSet,
    cells: pd.DataFrame,
    thresholds: Mapping[str, float],
) -> None:
    """Draw a slide with its regions, its positive cells and a scale bar, as PNG.

    Parameters
    ----------
    picture : (c, y, x) float32
        The whole slide, shrunk; the counterstain is shown in grey, each marker as a glow in its colour.
    picture_um : float
        Size of one of its pixels in um.
    thresholds : marker -> float
        Intensity above the background from which a cell is positive: what is not well above it never glows fully, so
        that a control does not look brighter than what it controls.
    """
    height, width = picture.shape[1] * picture_um, picture.shape[2] * picture_um
    figure, axes = canvas(height, width)
    shown = _composite(picture, panel, channels, thresholds)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="bilinear")
    _draw_regions(axes, regions, height)
    entries = []
    for index, name in enumerate(called_markers(panel)):
        positive = cells[cells[f"{name}_positive"].astype(bool)]
        colour, shape = MARKER_COLOURS[index % len(MARKER_COLOURS)], SHAPES[index % len(SHAPES)]
        size = float(np.clip(30000 / max(len(positive), 1), 6, 40)) * (1 + 0.8 * index)
        marks = axes.scatter(
            positive["x_um"], positive["y_um"], s=size, marker=shape, fc="none", edgecolors=colour, linewidths=0.8
        )
        entries.append((marks, f"{name}+  {len(positive):,} of {len(cells):,} cells"))
    if not entries:
        marks = axes.scatter(cells["x_um"], cells["y_um"], s=3, c=MARKER_COLOURS[0], linewidths=0)
        entries.append((marks, f"{len(cells):,} nuclei"))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    legend = figure.legend(
        *zip(*entries, strict=True), loc="lower left", ncols=2, frameon=False, labelcolor="white", fontsize=10
    )
    for handle in legend.legend_handles:
        handle.set_sizes([36])
    scale_bar(axes, height, width)
    figure.text(0.012, 0.985, title, color="white", fontsize=12, va="top", weight="bold")
    save_picture(figure, path)


def draw_refused(path: Path, picture: NDArray[Any], *, title: str, reason: str) -> None:
    """Draw a slide that was read but cannot be analysed, with the reason, as PNG.

    Parameters
    ----------
    picture : (y, x) or (y, x, 3) array
        Values from 0 to 1.
    """
    import textwrap

    figure, axes = canvas(picture.shape[0], picture.shape[1])
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    figure.text(0.012, 0.985, title, color="white", fontsize=12, va="top", weight="bold")
    figure.text(0.012, 0.012, "\n".join(textwrap.wrap(reason, 110)), color=MASK_COLOUR, fontsize=9, va="bottom")
    save_picture(figure, path)


def canvas(height: float, width: float) -> tuple[Any, Any]:
    """Return a figure without pyplot's global state, and axes that leave room for title and legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratio = float(np.clip(height / width, 0.25, 4))
    inches = (10.0, 10.0 * ratio + 1.1) if ratio <= 1 else (max(10.0 / ratio, 5.0), 11.1)
    figure = Figure(figsize=inches, dpi=150, facecolor=BACKDROP)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.01, 0.06, 0.98, 0.89))
    axes.set_axis_off()
    return figure, axes


def save_picture(figure: Any, path: Path, **settings: Any) -> None:
    """Write a figure on the dark backdrop as PNG.

    Only runs of equal bytes are sought: in less than half the time of zlib's usual search, which cost as much as all
    else about a small slide, and 4 % larger (the sample study's overviews).
    """
    packed = {"compress_type": zlib.Z_RLE}
    figure.savefig(path, format="png", facecolor=BACKDROP, metadata={"Software": None}, pil_kwargs=packed, **settings)


def _composite(
    picture: NDArray[np.float32], panel: Panel, channels: Sequence[str], thresholds: Mapping[str, float]
) -> NDArray[np.float32]:
    """Return an RGBA picture: counterstain grey-blue, each called marker a glow in its colour.

    With an alpha of 1, because matplotlib would add one in double precision and double the memory of a large picture.
    """
    from matplotlib.colors import to_rgb

    mixed = np.zeros((*picture.shape[1:], 4), dtype=np.float32)
    called = called_markers(panel)
    for name, marker in panel.items():
        if marker.role == "counterstain":
            colour, strength = (0.55, 0.62, 0.80), 0.75
        elif name in called:
            colour, strength = to_rgb(MARKER_COLOURS[called.index(name) % len(MARKER_COLOURS)]), 0.7
        else:
            continue
        plane = picture[channels.index(str(marker.channel))]
        # Most of the tissue has a glow of its own, which differs from slide to slide; optical density has none.
        glows = name in called and marker.stain is None
        low, high = np.percentile(plane, (50 if glows else 5, 99.7)).astype(np.float32)
        threshold = thresholds.get(name, 0.0)
        if math.isfinite(threshold):
            high = max(high, low + np.float32(FULL_GLOW * threshold))
        if high > low:
            shade = np.clip((plane - low) / (high - low), 0, 1) ** np.float32(0.7)
            for part, share in enumerate(colour):
                mixed[..., part] += np.float32(strength * share) * shade
    mixed[..., 3] = 1
    return np.minimum(mixed, 1, out=mixed)


def _draw_regions(axes: Any, regions: RegionSet, height_um: float) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.2, foreground="black", alpha=0.7)]
    for index, (region, rings) in enumerate(regions.lines_px(1.0)):
        unseen = region.geometry.is_empty or region.name in ("slide", "off tissue")
        if unseen or (region.name == "tissue" and not region.counted):
            continue
        colour = MASK_COLOUR if region.masked else REGION_COLOURS[index % len(REGION_COLOURS)]
        style = "-" if region.name in regions.counted else (0, (4, 3))
        for ring in rings:
            axes.plot(ring[:, 1], ring[:, 0], color=colour, linewidth=1.3, linestyle=style, path_effects=outline)
        # The name stands at the region's top, inside the slide, where positives of the core do not hide it.
        left, top, right, _ = region.geometry.bounds
        axes.text(
            (left + right) / 2,
            max(top, 0.02 * height_um),
            region.name.replace("_", " "),
            color=colour,
            fontsize=10,
            ha="center",
            va="bottom",
            path_effects=outline,
        )


def scale_bar(axes: Any, height: float, width: float) -> None:
    """Draw a scale bar of a round length into the lower right corner; everything in um."""
    length = nice_length_um(width)
    right, y = width * 0.98, height * 0.975
    axes.plot([right - length, right], [y, y], color="white", linewidth=4, solid_capstyle="butt")
    axes.text(right - length / 2, y - 0.008 * height, length_label(length), color="white", ha="center", va="bottom")


def draw_bland_altman(path: Path, panels: Sequence[tuple[str, NDArray[Any], BlandAltman]], *, title: str) -> None:
    """Draw differences over means, one panel per pair of raters, with bias and limits of agreement, as PNG.

    Parameters
    ----------
    panels : sequence of (name, (n, 2) counts of first and second, BlandAltman)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.1 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, counts, told) in zip(grid, panels, strict=False):
        first, second = counts[:, 0].astype(float), counts[:, 1].astype(float)
        axes.axhline(0, color="#BBBBBB", linewidth=0.8)
        axes.scatter((first + second) / 2, first - second, s=22, color="#0072B2", alpha=0.75, linewidths=0, zorder=3)
        for value, style, label in (
            (told.bias, "-", "bias"),
            (told.low, "--", "− 1.96 SD"),
            (told.high, "--", "+ 1.96 SD"),
        ):
            if math.isfinite(value):
                axes.axhline(value, color="#D55E00", linestyle=style, linewidth=1.1)
                place = axes.get_yaxis_transform()
                text = f"{label} {value:.1f}".replace("-", "−")
                axes.text(0.99, value, text, transform=place, ha="right", va="bottom", fontsize=7, color="#A04600")
        axes.margins(0.12, 0.25)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("mean of both counts", fontsize=8)
        axes.set_ylabel("difference", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(path, format="png")
