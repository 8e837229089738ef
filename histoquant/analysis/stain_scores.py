"""Scores of a stain: H-score, mean and integrated optical density, nucleus over cytoplasm.

Intensities of DAB rank cells of one staining batch and are no concentration, and the cuts of an H-score differ between
labs and programs: they stand in every row. Percent positive and percent area are the primary endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.counting import MM2_PER_UM2, Section
from histoquant.model.panel import called_markers, channel_of
from histoquant.model.tables import STAIN_SCORES, STAIN_SCORES_ANIMALS, empty, shaped

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

GRADES = ("n_1plus", "n_2plus", "n_3plus")


def h_score(n_1plus: float, n_2plus: float, n_3plus: float, n_cells: float) -> float:
    """Return the H-score, 0 to 300: the percentages of 1+, 2+ and 3+ cells, weighted by 1, 2 and 3.

    NaN without cells.

    Examples
    --------
    >>> h_score(30, 20, 10, 100)
    100.0
    """
    return 100.0 * (n_1plus + 2 * n_2plus + 3 * n_3plus) / n_cells if n_cells else float("nan")


def grades(values: NDArray[np.float64], cuts: tuple[float, float, float]) -> NDArray[np.int64]:
    """Return the grade of each cell, 0 to 3: how many of the cuts its value is at or above.

    Examples
    --------
    >>> grades(np.array([0.1, 0.2, 0.45, 0.6]), (0.2, 0.4, 0.6))
    array([0, 1, 2, 3])
    """
    return np.searchsorted(np.asarray(cuts), values, side="right").astype(np.int64)


def nucleus_over_ring(cells: pd.DataFrame, channel: str) -> NDArray[np.float64]:
    """Return (mean of the nucleus - background) / (mean of the ring - background); NaN where the ring shows nothing."""
    under = cells[f"background_{channel}"].to_numpy(dtype=float)
    inner = cells[f"mean_{channel}"].to_numpy(dtype=float) - under
    outer = cells[f"ring_mean_{channel}"].to_numpy(dtype=float) - under
    ratio: NDArray[np.float64] = np.where(outer > 0, inner / np.where(outer > 0, outer, 1), np.nan)
    return ratio


def score_regions(
    cells: pd.DataFrame, section: Section, integrated_od_um2: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Score a slide by region and marker.

    Parameters
    ----------
    cells : DataFrame
        Called cells with a ``region`` column.
    integrated_od_um2 : marker -> region -> OD um2
        Over each region's own ground, for the markers with grades.

    Returns
    -------
    DataFrame
        As `tables.STAIN_SCORES` lists it; no rows without such markers.
    """
    import pandas as pd

    regions = section.regions
    ground = regions.table()
    within = {name: [name, *(c for c in regions.counted if name in regions.ancestors(c))] for name in ground["region"]}
    rows: list[dict[str, Any]] = []
    for marker in called_markers(section.panel):
        settings = section.panel[marker]
        if settings.grades is None:
            continue
        of_cell = grades(cells[f"{marker}_value"].to_numpy(dtype=float), settings.grades)
        ratio = nucleus_over_ring(cells, str(channel_of(marker, settings)))
        own = integrated_od_um2[marker]
        for region, area in zip(ground["region"], ground["area_mm2"], strict=True):
            here = cells["region"].isin(within[region]).to_numpy()
            n = [int(np.count_nonzero(of_cell[here] == grade)) for grade in (1, 2, 3)]
            total = sum(own.get(name, 0.0) for name in within[region])
            ratios = ratio[here & np.isfinite(ratio)]
            rows.append(
                {name: section.identity.get(name, "") for name in ("slide_id", "animal", "group", "section", "control")}
                | {
                    "region": region,
                    "marker": marker,
                    "n_cells": int(here.sum()),
                    **dict(zip(GRADES, n, strict=True)),
                    "h_score": h_score(n[0], n[1], n[2], int(here.sum())),
                    "cuts": " ".join(f"{cut:g}" for cut in settings.grades),
                    "area_mm2": area,
                    "mean_od": total * MM2_PER_UM2 / area if area > 0 else np.nan,
                    "iod_od_um2": total,
                    "nc_ratio": float(np.median(ratios)) if len(ratios) else np.nan,
                }
            )
    return shaped(pd.DataFrame(rows), STAIN_SCORES) if rows else empty(STAIN_SCORES)


def score_animals(sections: pd.DataFrame) -> pd.DataFrame:
    """Sum sections to animals: scores of sums, never means of scores."""
    if sections.empty:
        return empty(STAIN_SCORES_ANIMALS)
    keys = ["animal", "group", "region", "marker", "cuts"]
    table = sections.groupby(keys, sort=False, as_index=False).agg(
        n_sections=("slide_id", "nunique"),
        **{name: (name, "sum") for name in ("n_cells", *GRADES, "area_mm2", "iod_od_um2")},
    )
    weighted = table["n_1plus"] + 2 * table["n_2plus"] + 3 * table["n_3plus"]
    table["h_score"] = 100 * weighted / table["n_cells"].where(table["n_cells"] > 0)
    table["mean_od"] = table["iod_od_um2"] * MM2_PER_UM2 / table["area_mm2"].where(table["area_mm2"] > 0)
    return shaped(table, STAIN_SCORES_ANIMALS)
