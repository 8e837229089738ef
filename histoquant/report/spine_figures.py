"""Pictures of dendrites: where they run, which spines were found on them, and each drawn straight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.report.figures import BACKDROP, length_label, nice_length_um, save_picture

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CLASS_COLOURS = {
    "mushroom": "#E69F00",
    "stubby": "#56B4E9",
    "thin": "#F0E442",
    "long thin": "#009E73",
    "filopodium": "#CC79A7",
    "branched": "#D55E00",
    "": "#FFFFFF",
}
"""Okabe and Ito; white where the optics do not tell the class."""

TRACE_COLOUR = "#7FE3C4"
MOST_INCHES, LEAST_INCHES = 16.0, 5.0
MOST_STRIPS = 24


def stretched(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture between 0 and 1, its dim parts lifted; spines are a tenth as bright as shafts."""
    low, high = np.percentile(picture, [5.0, 99.7])
    return np.asarray(np.sqrt(np.clip((picture - low) / max(high - low, 1e-9), 0, 1)), dtype=np.float32)


def draw_dendrites(
    path: Path,
    projection: NDArray[np.float32],
    pixel_um: float,
    *,
    title: str,
    paths: Sequence[NDArray[np.float64]],
    names: Sequence[str],
    spines: pd.DataFrame,
) -> None:
    """Draw a projection with traces, spines coloured by class, and a scale bar, as PNG.

    Parameters
    ----------
    projection : (y, x) float32
        Bright on dark.
    paths : sequence of (n, 3) float, um
    """
    from matplotlib.figure import Figure

    height, width = (n * pixel_um for n in projection.shape)
    wide, tall = (max(MOST_INCHES * side / max(width, height), LEAST_INCHES) for side in (width, height))
    figure = Figure(figsize=(wide + 0.2, tall + 0.9), facecolor=BACKDROP)
    axes = figure.add_axes((0.01, 0.06, 0.98, 0.89))
    half = pixel_um / 2
    axes.imshow(stretched(projection), cmap="gray", extent=(-half, width - half, height - half, -half))
    for line, name in zip(paths, names, strict=True):
        axes.plot(line[:, 2], line[:, 1], color=TRACE_COLOUR, linewidth=0.7, alpha=0.8)
        middle = line[len(line) // 2]
        axes.annotate(
            name, (middle[2], middle[1]), xytext=(6, -8), textcoords="offset points", color=TRACE_COLOUR, fontsize=8
        )
    _spots(axes, spines["x_um"], spines["y_um"], spines["class"])
    _bar(axes, width, height)
    axes.set_xlim(-half, width - half)
    axes.set_ylim(height - half, -half)
    axes.axis("off")
    figure.text(0.01, 0.965, title, color="white", fontsize=12)
    if len(spines):
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=7, frameon=False, labelcolor="white", fontsize=9
        )
    save_picture(figure, path, dpi=100)


def draw_strips(path: Path, strips: Sequence[dict[str, Any]], *, title: str) -> None:
    """Draw dendrites straight, one below the other: as they are, and with the spines found on them, as PNG.

    Parameters
    ----------
    strips : sequence of dict
        ``name``, ``picture`` ((u, s) float32), ``step_um`` (s, u), ``start_um`` and a table ``spots`` with ``s_um``,
        ``u_um`` and ``class``. The first `MOST_STRIPS` are drawn.
    """
    from matplotlib.figure import Figure

    shown = list(strips)[:MOST_STRIPS]
    longest = max((strip["picture"].shape[1] * strip["step_um"][0] for strip in shown), default=10.0)
    scale = (MOST_INCHES - 0.4) / longest
    heights = [2 * strip["picture"].shape[0] * strip["step_um"][1] * scale + 0.45 for strip in shown]
    figure = Figure(figsize=(MOST_INCHES, sum(heights) + 0.7), facecolor=BACKDROP)
    total = sum(heights) + 0.7
    top = total - 0.5
    figure.text(0.0125, 1 - 0.3 / total, title, color="white", fontsize=12)
    for strip, height in zip(shown, heights, strict=True):
        n_u, n_s = strip["picture"].shape
        length, wide = n_s * strip["step_um"][0], n_u * strip["step_um"][1]
        picture = stretched(strip["picture"])
        start = strip["start_um"]
        for half in (0, 1):
            tall = wide * scale
            bottom = top - 0.25 - (half + 1) * tall - half * 0.03
            axes = figure.add_axes((0.2 / MOST_INCHES, bottom / total, length * scale / MOST_INCHES, tall / total))
            axes.imshow(picture, cmap="gray", aspect="auto", extent=(-start, length - start, wide / 2, -wide / 2))
            axes.axis("off")
            if half:
                spots = strip["spots"]
                _spots(axes, spots["s_um"], spots["u_um"], spots["class"])
                axes.set_xlim(-start, length - start)
                axes.set_ylim(wide / 2, -wide / 2)
            else:
                _bar(axes, length, wide / 2, origin=-start)
        figure.text(0.2 / MOST_INCHES, (top - 0.18) / total, strip["name"], color=TRACE_COLOUR, fontsize=9)
        top -= height
    save_picture(figure, path, dpi=100)


def _spots(axes: Any, x: Any, y: Any, classes: Any) -> None:
    for name, colour in CLASS_COLOURS.items():
        chosen = classes == name
        if chosen.any():
            label = f"{name or 'class not told'} ({int(chosen.sum())})"
            axes.scatter(x[chosen], y[chosen], s=34, facecolors="none", edgecolors=colour, linewidths=1.0, label=label)


def _bar(axes: Any, width: float, height: float, origin: float = 0.0) -> None:
    length = nice_length_um(width)
    x = origin + 0.02 * width
    y = height * 0.97 if origin == 0 else height * 0.8
    axes.plot([x, x + length], [y, y], color="white", linewidth=3, solid_capstyle="butt")
    axes.annotate(
        length_label(length), (x + length / 2, y), xytext=(0, 4), textcoords="offset points", color="white",
        ha="center", fontsize=9,
    )  # fmt: skip
