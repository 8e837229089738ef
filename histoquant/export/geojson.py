"""Regions and cells of a slide as QuPath reads them: annotations and detections, in pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant import store
from histoquant.errors import InputError
from histoquant.model.panel import called_markers
from histoquant.readers.geojson import COLOURS
from histoquant.registry import open_slide
from histoquant.report.run import RERUN, Run

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BAND_PX = 2048
"""Rows of labels that are held at once: of a slide of 40 000 px, 330 MB."""

REACH_PX = 512
"""How far a nucleus may reach beyond its band; 100 um at the finest pixels."""

NEGATIVE = "Negative"
"""QuPath's own name for cells that are positive for nothing."""


def write_cells(run: Run, slide: str, path: Path) -> Path:
    """Write a slide's regions as annotations and its cells as detections, and return the path.

    Cells are classified by what they are positive for, ``brdu: dcx`` for both, as QuPath names it; their measurements
    are the numbers of ``cells.parquet``. Outlines follow the edges of the pixels, so that areas are those of the table.

    Raises
    ------
    InputError
        If a file of the slide is missing or damaged.
    """
    folder = run.root / "slides" / slide
    cells = read_cells(folder)
    try:
        regions = json.loads((folder / "regions.geojson").read_text(encoding="utf-8"))["features"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"Cannot use '{folder / 'regions.geojson'}': {error!r}.", RERUN) from error
    markers = called_markers(run.recipe.panel)
    with store.whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        file.write(",\n".join(json.dumps(feature) for feature in regions))
        first = not regions
        for row, outline in outlines(folder / "labels.ome.tif", cells):
            file.write(("" if first else ",\n") + json.dumps(_detection(row, outline, markers)))
            first = False
        file.write("\n]}\n")
    return path


def read_cells(folder: Path) -> pd.DataFrame:
    """Return the cells of a slide.

    Raises
    ------
    InputError
        If they cannot be read.
    """
    import pandas as pd

    try:
        return pd.read_parquet(folder / "cells.parquet")
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read '{folder / 'cells.parquet'}': {error}.", RERUN) from error


def outlines(path: Path, cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield every cell's row with its outline in pixels, from the top of the slide to its bottom.

    Parameters
    ----------
    path : Path
        Of the label image, whose numbers are those of ``cell_id``.

    Raises
    ------
    InputError
        If a cell is not in the image.
    """
    from scipy.ndimage import find_objects

    slide = open_slide(path)
    try:
        labels, height = slide.levels[0][0, 0], slide.shape[0]
        for top in range(0, max(height, 1), BAND_PX):
            mine = cells[(cells["y_px"] >= top) & (cells["y_px"] < top + BAND_PX)]
            if mine.empty:
                continue
            start = max(0, top - REACH_PX)
            band = np.asarray(labels[start : min(height, top + BAND_PX + REACH_PX)])
            places = find_objects(band.astype(np.int64, copy=False))
            for row in mine.to_dict("records"):
                number = int(row["cell_id"])
                place = places[number - 1] if number <= len(places) else None
                if place is None:
                    raise InputError(f"'{path}' does not show cell {number}.", RERUN)
                outline = outline_px(band[place] == number)
                moved = (place[1].start, place[0].start + start)
                yield {str(k): v for k, v in row.items()}, shapely.transform(outline, lambda xy, by=moved: xy + by)
    finally:
        slide.close()


def outline_px(mask: NDArray[np.bool_]) -> Any:
    """Return the outline of a mask along the edges of its pixels; (x, y), the first pixel reaching from 0 to 1.

    Examples
    --------
    >>> outline_px(np.array([[True, True], [True, False]])).area
    3.0
    """
    change = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (y, begins), (_, ends) = np.nonzero(change == 1), np.nonzero(change == -1)
    whole = shapely.union_all(shapely.box(begins, y, ends, y + 1))
    return shapely.simplify(whole, 0)  # takes corners off that lie on a line


def _detection(row: dict[str, Any], outline: Any, markers: list[str]) -> dict[str, Any]:
    positive = [name for name in markers if row[f"{name}_positive"]]
    colour = COLOURS[markers.index(positive[0]) % len(COLOURS)] if positive else (112, 112, 225)
    numbers = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_) and np.isfinite(value)
    }
    properties = {
        "objectType": "detection",
        "name": str(row["cell_id"]),
        "classification": {"name": ": ".join(positive) or NEGATIVE, "color": list(colour)},
        "measurements": numbers,
        "metadata": {"region": row["region"]},
    }
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(outline)), "properties": properties}
