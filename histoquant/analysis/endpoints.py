"""Endpoints: one value per animal, marker, region and measure, in one long table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.counting import count_animals
from histoquant.errors import InputError
from histoquant.model.design import (
    BRAIN,
    DENDRITE,
    INFARCT,
    INFARCT_MEASURES,
    SPINE,
    SPINE_MEASURES,
    Endpoint,
    endpoint_name,
)
from histoquant.model.region_set import MASKED, OUTSIDE
from histoquant.model.tables import ENDPOINT_GROUPS, EXCLUSIONS, empty, records, shaped

if TYPE_CHECKING:
    import pandas as pd

RATES = ("density_per_mm2", "fraction_positive", "percent_area")
TOTALS = ("total_cells", "total_profiles")

WITHIN = ["marker", "measure", "region"]
"""Columns that name an endpoint."""


def animal_values(animals: pd.DataFrame, totals: pd.DataFrame | None = None, *, fractions: bool = True) -> pd.DataFrame:
    """Return every value of every animal in one long table.

    Parameters
    ----------
    animals : DataFrame
        As `counting.count_animals` gives it. Of ``outside`` and ``masked`` nothing is compared, unless nothing else is
        there: then no region was drawn, and ``outside`` is the whole slide.
    totals : DataFrame, optional
        As `stereology.total_counts` gives it.
    fractions : bool
        False when no marker is called: of all nuclei every one is positive.

    Returns
    -------
    DataFrame
        ``marker, measure, region, animal, group, value, n_sections, flags``, values of analysed animals that are not
        defined included.

    Raises
    ------
    InputError
        If a row is not an animal.
    """
    import pandas as pd

    parts = []
    for table, measures in ((animals, RATES), (totals, TOTALS)):
        if table is None or table.empty:
            continue
        require_animals(table)
        for measure in measures:
            # Of a marker without the measure nothing is lacking; of one with it, what is not defined is said.
            has = table[measure].notna().groupby(table["marker"]).transform("any")
            told = has.any() and (fractions or measure != "fraction_positive")
            if told and not (measure == "total_profiles" and table["total_cells"].notna().any()):
                columns = ["marker", "region", "animal", "group", "n_sections", "flags"]
                parts.append(table.loc[has, columns].assign(measure=measure, value=table[measure].astype(float)))
    if not parts:
        return pd.DataFrame(columns=[*WITHIN, "animal", "group", "value", "n_sections", "flags"])
    values = pd.concat(parts, ignore_index=True)
    drawn = ~values["region"].isin((OUTSIDE, MASKED))
    kept = values[drawn] if drawn.any() else values[values["region"] == OUTSIDE]
    # Marker by marker and region by region, as in the other tables; measures of one place side by side.
    order = kept.groupby(["marker", "region"], sort=False).ngroup()
    return kept.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def infarct_values(animals: pd.DataFrame) -> pd.DataFrame:
    """Return volumes and swelling of every animal with the columns of `animal_values`.

    Parameters
    ----------
    animals : DataFrame
        As `tables.INFARCT` lists it. Animals that miss a picture have no values, and say so.
    """
    return _one_row_each(animals, INFARCT, BRAIN, INFARCT_MEASURES, of="n_slices", known="direct_mm3")


def spine_values(animals: pd.DataFrame) -> pd.DataFrame:
    """Return densities, lengths and widths of every animal with the columns of `animal_values`.

    Parameters
    ----------
    animals : DataFrame
        As `tables.SPINE_ANIMALS` lists it. Animals that miss a stack have no values, and say so.
    """
    return _one_row_each(animals, SPINE, DENDRITE, SPINE_MEASURES, of="n_stacks", known="spines_per_10um")


def _one_row_each(
    animals: pd.DataFrame, marker: str, region: str, measures: Sequence[str], *, of: str, known: str
) -> pd.DataFrame:
    """Return the values of a table with one row per animal.

    Parameters
    ----------
    of : str
        Column that says of how many slides or slices an animal's values are.
    known : str
        Column without a value in animals that are left out.
    """
    import pandas as pd

    columns = animals[["animal", "group", "flags"]].assign(
        marker=marker, region=region, n_sections=animals[of].where(animals[known].notna(), 0)
    )
    return pd.concat(
        [columns.assign(measure=measure, value=animals[measure].astype(float)) for measure in measures],
        ignore_index=True,
    )


def endpoint_groups(
    animals: pd.DataFrame, endpoints: Sequence[str], reference: str, *, known: str, differences: Sequence[str] = ()
) -> pd.DataFrame:
    """Return mean and SD over the animals of each group, and the change against the reference group.

    Parameters
    ----------
    animals : DataFrame
        One row per animal.
    known : str
        Column without a value in animals that are left out.
    differences : sequence of str
        Endpoints that may be about 0, of which no change in percent is told.

    Returns
    -------
    DataFrame
        As `tables.ENDPOINT_GROUPS` lists it.
    """
    import pandas as pd

    rows = []
    for group, own in animals.groupby("group", sort=False):
        left_out = [str(animal) for animal in own.loc[own[known].isna(), "animal"]]
        told = {"group": group, "reference_group": reference, "n_animals": len(own) - len(left_out)}
        for endpoint in endpoints:
            mean = own[endpoint].mean()
            before = animals.loc[animals["group"] == reference, endpoint].mean()
            compared = group != reference and before > 0 and endpoint not in differences
            rows.append(
                told
                | {
                    "endpoint": endpoint,
                    "mean": mean,
                    "sd": own[endpoint].std(ddof=1),
                    "percent_change": 100 * (mean / before - 1) if compared else np.nan,
                    "flags": f"left out, incomplete: {', '.join(left_out)}" if left_out else "",
                }
            )
    return shaped(pd.DataFrame(rows), ENDPOINT_GROUPS) if rows else empty(ENDPOINT_GROUPS)


def section_values(sections: pd.DataFrame) -> pd.DataFrame:
    """Return the values of sections with the columns of `animal_values`; only for models that know of animals."""
    import pandas as pd

    columns = ["marker", "region", "animal", "group"]
    return pd.concat(
        [sections[columns].assign(measure=measure, value=sections[measure].astype(float)) for measure in RATES],
        ignore_index=True,
    )


def animals_at_factors(sensitivity: pd.DataFrame, sections: pd.DataFrame) -> Mapping[float, pd.DataFrame]:
    """Return the animals table at every multiple of the thresholds, by the counting rule of the run itself.

    Parameters
    ----------
    sensitivity : DataFrame
        As `tables.SENSITIVITY` lists it.
    sections : DataFrame
        As `tables.REGIONS` lists it, controls left out.
    """
    keys = ["slide_id", "region", "marker"]
    ground = sections[[*keys, "area_mm2", "area_positive_mm2", "flags"]]
    recounted = sensitivity.merge(ground, on=keys)
    return {
        factor: count_animals(recounted[recounted["factor"] == factor]) for factor in dict.fromkeys(recounted["factor"])
    }


def of_endpoint(values: pd.DataFrame, endpoint: Endpoint) -> pd.DataFrame:
    """Return the rows of an endpoint."""
    where = [values[name] == getattr(endpoint, name) for name in WITHIN]
    return values[np.logical_and.reduce(where)]


def require_animals(table: pd.DataFrame) -> None:
    """Refuse a table whose rows are not animals: sections or cells taken for animals would make any study significant.

    Raises
    ------
    InputError
        If an animal has several rows of a marker in a region, or is in several groups.
    """
    keys = ["animal", "marker", "region"]
    twice = table[table.duplicated(keys)]
    if len(twice):
        row = twice.iloc[0]
        n = int((table[keys] == row[keys]).all(axis=1).sum())
        raise InputError(
            f"Animal '{row['animal']}' has {n} rows of {row['marker']} in {row['region']}: rows must be animals.",
            "Sum sections and cells to animals first; they are no independent observations.",
        )
    groups = table.groupby("animal")["group"].nunique()
    if (groups > 1).any():
        name = groups.index[groups > 1][0]
        raise InputError(f"Animal '{name}' is in {groups[name]} groups.", "Give it one group.")


def exclusions(values: pd.DataFrame) -> pd.DataFrame:
    """Return animals and values that are in no test, as `tables.EXCLUSIONS` lists them."""
    import pandas as pd

    lost = values[values["n_sections"] == 0].drop_duplicates("animal")
    rows = [
        {"level": "animal", "name": row.animal, "group": row.group, "what": "all endpoints"}
        | {"reason": f"no section could be analysed ({row.flags})" if row.flags else "no section could be analysed"}
        for row in records(lost)
    ]
    undefined = values[(values["n_sections"] > 0) & values["value"].isna()]
    rows += [
        {"level": "value", "name": row.animal, "group": row.group}
        | {"what": f"{endpoint_name(row.marker, row.measure)} in {row.region}"}
        | {"reason": f"not defined ({row.flags})" if row.flags else "not defined: nothing to divide by"}
        for row in records(undefined)
    ]
    return shaped(pd.DataFrame(rows), EXCLUSIONS) if rows else empty(EXCLUSIONS)
