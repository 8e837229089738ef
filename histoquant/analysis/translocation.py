"""Which cells hold a marker in the nucleus rather than round it, judged by the cells of control sections.

The ratio of nucleus over ring is relative: cytoplasm above and below the nucleus shines into it, more in a thick
section. So it has no threshold of its own. R0 is a quantile of the control cells of the same staining batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.stain_scores import nucleus_over_ring
from histoquant.model.panel import Panel, channel_of
from histoquant.model.tables import TRANSLOCATION, empty, shaped

if TYPE_CHECKING:
    import pandas as pd

MIN_CONTROLS = 20
"""Control cells below which a 95 % quantile is the largest of them, and so none is taken."""


def translocated(cells: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """Count the cells above R0 by animal, innermost region and marker.

    Parameters
    ----------
    cells : DataFrame
        Measured cells of all slides, with ``slide_id, animal, group, batch, control, region``.
    panel : Panel
        Its markers with ``translocation``.

    Returns
    -------
    DataFrame
        As `tables.TRANSLOCATION` lists it. Cells of control sections enter R0 only. Cells of a batch without enough
        controls are in no count, and their animal says so.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, marker in panel.items():
        rule = marker.translocation
        if rule is None:
            continue
        ratio = pd.Series(nucleus_over_ring(cells, str(channel_of(name, marker))), index=cells.index)
        held = cells[["slide_id", "animal", "group", "batch", "control", "region"]].assign(ratio=ratio)
        sound = held[np.isfinite(held["ratio"])]
        controls = sound[sound["control"].isin(rule.control)].groupby("batch")["ratio"]
        r0 = {str(batch): float(np.quantile(own, rule.quantile)) for batch, own in controls if len(own) >= MIN_CONTROLS}
        counted = held[held["control"] == ""]
        for (animal, group, region), mine in counted.groupby(["animal", "group", "region"], sort=False):
            limits = mine["batch"].astype(str).map(r0)
            known = mine[np.isfinite(mine["ratio"]) & limits.notna()]
            above = int((known["ratio"] > limits[known.index]).sum())
            lost = sorted(set(mine.loc[limits.isna(), "batch"].astype(str)))
            rows.append(
                {"animal": animal, "group": group, "region": region, "marker": name}
                | {"n_sections": mine["slide_id"].nunique(), "n_cells": len(known), "n_above": above}
                | {"fraction_above": above / len(known) if len(known) else np.nan}
                | {"median_ratio": float(known["ratio"].median()) if len(known) else np.nan}
                | {"r0": " ".join(f"{value:.6g}" for value in dict.fromkeys(limits.dropna()))}
                | {"flags": f"fewer than {MIN_CONTROLS} control cells in batch {', '.join(lost)}" if lost else ""}
            )
    return shaped(pd.DataFrame(rows), TRANSLOCATION) if rows else empty(TRANSLOCATION)
