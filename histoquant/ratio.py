"""The ratio of two markers by animal, from two runs: Bax over Bcl-2, stained on neighbouring sections.

The ratio is one of animal values, never of cells or sections, and its logarithm is what statistics take: a ratio and
its inverse then lie equally far from 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoquant import store
from histoquant.errors import InputError
from histoquant.model.tables import ANIMALS, RATIOS, STAIN_SCORES_ANIMALS, shaped
from histoquant.report.run import REST, read_table

if TYPE_CHECKING:
    import pandas as pd

ENDPOINTS = {
    "fraction_positive": ("animals", ANIMALS),
    "density_per_mm2": ("animals", ANIMALS),
    "percent_area": ("animals", ANIMALS),
    "h_score": ("stain_scores_animals", STAIN_SCORES_ANIMALS),
    "mean_od": ("stain_scores_animals", STAIN_SCORES_ANIMALS),
}


def ratio_table(numerator: Path, denominator: Path, endpoint: str) -> pd.DataFrame:
    """Return the ratio of an endpoint of two runs by animal and region.

    Parameters
    ----------
    numerator, denominator : Path
        Folders of finished runs with one marker each.
    endpoint : str
        One of `ENDPOINTS`.

    Returns
    -------
    DataFrame
        As `tables.RATIOS` lists it. Animals of one run only have rows without a ratio, and say so.

    Raises
    ------
    InputError
        If the endpoint is not known, a run lacks it or holds several markers, or no animal is in both.
    """
    if endpoint not in ENDPOINTS:
        raise InputError(f"There is no endpoint '{endpoint}'.", f"Choose one of {', '.join(ENDPOINTS)}.")
    above, below = (_values(folder, endpoint) for folder in (numerator, denominator))
    table = above.merge(below, on=["animal", "group", "region"], how="outer", suffixes=("_a", "_b"), sort=False)
    if not (table["value_a"].notna() & table["value_b"].notna()).any():
        raise InputError(
            f"No animal and region is in both '{numerator}' and '{denominator}'.",
            "Name the animals alike in both sheets.",
        )
    usable = (table["value_a"] > 0) & (table["value_b"] > 0)
    table["ratio"] = (table["value_a"] / table["value_b"]).where(table["value_b"] > 0)
    table["log2_ratio"] = np.log2(table["ratio"].where(usable))
    table["flags"] = [_flag(a, b) for a, b in zip(table["value_a"], table["value_b"], strict=True)]
    named = table.assign(
        endpoint=endpoint, numerator=above["marker"].iloc[0], denominator=below["marker"].iloc[0]
    ).rename(columns={"value_a": "numerator_value", "value_b": "denominator_value"})
    return shaped(named.drop(columns=["marker_a", "marker_b"]), RATIOS)


def write_ratio(numerator: Path, denominator: Path, endpoint: str, out: Path) -> pd.DataFrame:
    """Write `ratio_table` as CSV and return it."""
    table = ratio_table(numerator, denominator, endpoint)
    store.write_csv(out, table)
    return table


def _flag(above: float, below: float) -> str:
    if np.isnan(above) or np.isnan(below):
        return "in one run only"
    return "" if above > 0 and below > 0 else "a value is 0: no logarithm"


def _values(folder: Path, endpoint: str) -> pd.DataFrame:
    name, schema = ENDPOINTS[endpoint]
    path = folder / "tables" / f"{name}.csv"
    if not path.is_file():
        raise InputError(
            f"'{folder}' has no {name}.csv.",
            "Name the folder of a finished run" + (" whose recipe has grades." if name != "animals" else "."),
        )
    table = read_table(path, schema)
    table = table[~table["region"].isin(REST)]
    markers = list(dict.fromkeys(table["marker"]))
    if len(markers) != 1:
        raise InputError(
            f"'{folder}' has {len(markers)} markers ({', '.join(markers)}); a ratio takes runs of one each.",
            "Run them with a recipe each.",
        )
    return table[["animal", "group", "region", "marker"]].assign(value=table[endpoint])
