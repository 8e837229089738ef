"""The picture of a slide with brain slices: outlines, midlines and lesions over the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.report.figures import canvas, save_picture, scale_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

TISSUE_COLOUR, MIDLINE_COLOUR, LESION_COLOUR = "#FFFFFF", "#56B4E9", "#F0E442"


def draw_slices(
    path: Path,
    picture: NDArray[np.floating],
    picture_um: float,
    *,
    title: str,
    slices: Sequence[tuple[int, Any, Any, Any, str]],
    subtitle: str,
) -> None:
    """Draw a photograph with its slices as PNG.

    Parameters
    ----------
    picture : (y, x, 3) array
        From 0 to 1.
    picture_um : float
        Size of one of its pixels.
    slices : sequence of (number, tissue, midline, lesion, text)
        Outlines in um (x, y); the text stands below the slice.
    """
    height, width = picture.shape[0] * picture_um, picture.shape[1] * picture_um
    figure, axes = canvas(height, width)
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="bilinear")
    for number, tissue, midline, lesion, text in slices:
        for shape, colour, line in ((tissue, TISSUE_COLOUR, 1.0), (lesion, LESION_COLOUR, 1.6)):
            for part in shapely.get_parts(shape):
                for ring in (part.exterior, *part.interiors):
                    x, y = np.asarray(ring.coords).T
                    axes.plot(x, y, color=colour, linewidth=line)
        if midline is not None:
            x, y = np.asarray(midline.coords).T
            axes.plot(x, y, color=MIDLINE_COLOUR, linewidth=1.2, linestyle=(0, (5, 3)))
        left, top, right, bottom = tissue.bounds
        axes.text(left, top, str(number), color="white", fontsize=12, weight="bold", ha="right", va="bottom")
        axes.text((left + right) / 2, bottom, text, color="white", fontsize=8, ha="center", va="top")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    scale_bar(axes, height, width)
    figure.text(0.012, 0.985, title, color="white", fontsize=12, va="top", weight="bold")
    figure.text(0.012, 0.012, subtitle, color="white", fontsize=9, va="bottom")
    save_picture(figure, path)
