"""Names, types and units of every table we write. The unit is in the column's name.

Empty means "not defined"; a count of nothing is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from histoquant.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Schema = dict[str, str]

CELLS: Schema = {
    "cell_id": "uint32",
    "region": "str",
    "y_um": "float64",
    "x_um": "float64",
    "y_px": "float64",
    "x_px": "float64",
    "area_um2": "float64",
    "major_um": "float64",
    "minor_um": "float64",
    "origin": "str",
}
"""Columns every ``cells.parquet`` has. ``y_px``, ``x_px`` count from the slide's top-left corner, so that the centre
of the first pixel is at 0.5, as in QuPath; um = px x pixel size. Per channel there are ``mean_``, ``ring_mean_``,
``cell_mean_`` and ``background_<channel>``; per called marker ``<marker>_value``, ``<marker>_positive`` and more."""

MARKER_OBJECTS: Schema = {
    "marker": "str",
    "y_um": "float64",
    "x_um": "float64",
    "area_um2": "float64",
    "value": "float64",
    "attached_to": "uint32",
    "autofluorescent": "bool",
    "orphan": "bool",
    "region": "str",
}
"""Objects of a marker that lie on no nucleus; ``attached_to`` is a ``cell_id`` or 0."""

REGIONS: Schema = {
    "slide_id": "str",
    "animal": "str",
    "group": "str",
    "section": "str",
    "region": "str",
    "parent": "str",
    "area_mm2": "float64",
    "masked_area_mm2": "float64",
    "marker": "str",
    "n_cells": "int64",
    "n_positive": "int64",
    "fraction_positive": "float64",
    "density_per_mm2": "float64",
    "threshold": "float64",
    "threshold_source": "str",
    "flags": "str",
    "n_autofluorescent": "int64",
    "n_orphans": "int64",
    "n_condensed": "int64",
    "n_diffuse": "int64",
    "n_fragmented": "int64",
    "area_positive_mm2": "float64",
    "percent_area": "float64",
    "hemisphere": "str",
    "batch": "str",
    "control": "str",
}

CORRECTED: Schema = {
    "n_cells_corrected": "int64",
    "n_positive_corrected": "int64",
    "fraction_positive_corrected": "float64",
    "density_per_mm2_corrected": "float64",
    "n_edits": "int64",
    "n_reviewed": "int64",
}
"""What a review adds to the rows of ``tables/regions.csv``. ``n_edits`` are calls, deletions and additions that stand
and found their cell; ``n_reviewed`` the cells that somebody looked at, whether changed or agreed with."""

ANIMALS: Schema = {
    "animal": "str",
    "group": "str",
    "region": "str",
    "marker": "str",
    "n_sections": "int64",
    "area_mm2": "float64",
    "n_cells": "int64",
    "n_positive": "int64",
    "fraction_positive": "float64",
    "density_per_mm2": "float64",
    "percent_area": "float64",
    "n_sections_failed": "int64",
    "flags": "str",
}

GROUPS: Schema = {
    "group": "str",
    "region": "str",
    "marker": "str",
    "n_animals": "int64",
    "n_sections": "int64",
    "area_mm2": "float64",
    "n_cells": "int64",
    "n_positive": "int64",
    "fraction_positive": "float64",
    "fraction_positive_sd": "float64",
    "density_per_mm2": "float64",
    "density_per_mm2_sd": "float64",
    "percent_area": "float64",
    "reference_group": "str",
    "percent_change_fraction": "float64",
    "percent_change_density": "float64",
    "flags": "str",
}
"""Means and standard deviations are over animals, each animal one value; counts and areas are sums."""

SENSITIVITY: Schema = {
    "factor": "float64",
    "slide_id": "str",
    "animal": "str",
    "group": "str",
    "region": "str",
    "marker": "str",
    "threshold": "float64",
    "n_cells": "int64",
    "n_positive": "int64",
    "fraction_positive": "float64",
    "density_per_mm2": "float64",
}
"""Counts at 0.8 to 1.2 times each threshold; factor 1 repeats the regions table."""

INFARCT_SLICES: Schema = {
    "slide_id": "str",
    "animal": "str",
    "group": "str",
    "slice": "int64",
    "side": "str",
    "infarct_mm2": "float64",
    "ipsilateral_mm2": "float64",
    "contralateral_mm2": "float64",
    "indirect_mm2": "float64",
    "ratio_mm2": "float64",
    "flags": "str",
}
"""``side`` is where the lesion is in the picture. Indirect areas may be below 0 and are kept so."""

INFARCT: Schema = {
    "animal": "str",
    "group": "str",
    "n_slices": "int64",
    "n_negative": "int64",
    "direct_mm3": "float64",
    "indirect_mm3": "float64",
    "ratio_mm3": "float64",
    "ipsilateral_mm3": "float64",
    "contralateral_mm3": "float64",
    "direct_percent_hemisphere": "float64",
    "indirect_percent_hemisphere": "float64",
    "ratio_percent_hemisphere": "float64",
    "direct_percent_brain": "float64",
    "indirect_percent_brain": "float64",
    "ratio_percent_brain": "float64",
    "swelling_percent": "float64",
    "slice_thickness_um": "float64",
    "primary": "str",
    "flags": "str",
}

ENDPOINT_GROUPS: Schema = {
    "group": "str",
    "endpoint": "str",
    "n_animals": "int64",
    "mean": "float64",
    "sd": "float64",
    "reference_group": "str",
    "percent_change": "float64",
    "flags": "str",
}
"""Over animals; those that miss a picture are left out and named."""

STAIN_SCORES: Schema = {
    "slide_id": "str",
    "animal": "str",
    "group": "str",
    "section": "str",
    "region": "str",
    "marker": "str",
    "n_cells": "int64",
    "n_1plus": "int64",
    "n_2plus": "int64",
    "n_3plus": "int64",
    "h_score": "float64",
    "cuts": "str",
    "area_mm2": "float64",
    "mean_od": "float64",
    "iod_od_um2": "float64",
    "nc_ratio": "float64",
    "control": "str",
}
"""Of markers with ``grades``. ``h_score`` is 1 x % 1+ plus 2 x % 2+ plus 3 x % 3+, 0 to 300; ``mean_od`` and
``iod_od_um2`` (optical density times area) are over the region's whole ground; ``nc_ratio`` is the median over its
cells of nucleus over ring, both above local background."""

STAIN_SCORES_ANIMALS: Schema = {
    "animal": "str",
    "group": "str",
    "region": "str",
    "marker": "str",
    "n_sections": "int64",
    "n_cells": "int64",
    "n_1plus": "int64",
    "n_2plus": "int64",
    "n_3plus": "int64",
    "h_score": "float64",
    "cuts": "str",
    "area_mm2": "float64",
    "mean_od": "float64",
    "iod_od_um2": "float64",
}
"""From sums over sections: counts for the H-score, densities times areas for the mean."""

TRANSLOCATION: Schema = {
    "animal": "str",
    "group": "str",
    "region": "str",
    "marker": "str",
    "n_sections": "int64",
    "n_cells": "int64",
    "n_above": "int64",
    "fraction_above": "float64",
    "median_ratio": "float64",
    "r0": "str",
    "flags": "str",
}
"""Of markers with ``translocation``, by innermost region. ``n_cells`` have a ratio of nucleus over ring, both above
local background; ``n_above`` one above ``r0``, the quantile of the control cells of their batch (each, where there are
several)."""

RATIOS: Schema = {
    "animal": "str",
    "group": "str",
    "region": "str",
    "endpoint": "str",
    "numerator": "str",
    "denominator": "str",
    "numerator_value": "float64",
    "denominator_value": "float64",
    "ratio": "float64",
    "log2_ratio": "float64",
    "flags": "str",
}

STEREOLOGY: Schema = {
    "animal": "str",
    "group": "str",
    "region": "str",
    "marker": "str",
    "n_sections": "int64",
    "n_profiles": "int64",
    "profiles_per_mm2": "float64",
    "section_fraction": "float64",
    "hemisphere_fraction": "float64",
    "total_profiles": "float64",
    "abercrombie_factor": "float64",
    "total_cells": "float64",
    "coefficient_of_error": "float64",
    "flags": "str",
}
"""Totals per animal; ``total_cells`` is ``total_profiles`` times Abercrombie's factor."""

FRACTIONATOR: Schema = {
    "animal": "str",
    "total": "float64",
    "n_counted": "int64",
    "n_sections": "int64",
    "n_sites": "int64",
    "ssf": "float64",
    "hemisphere_fraction": "float64",
    "asf": "float64",
    "tsf": "float64",
    "thickness_um": "float64",
    "ce_m0": "float64",
    "ce_m1": "float64",
}
"""Totals by the optical fractionator: ``n_counted / ssf / hemisphere_fraction / asf / tsf``."""

STATISTICS: Schema = {
    "endpoint": "str",
    "region": "str",
    "comparison": "str",
    "n_a": "int64",
    "n_b": "int64",
    "mean_a": "float64",
    "mean_b": "float64",
    "percent_change": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "hedges_g": "float64",
    "test": "str",
    "statistic": "float64",
    "df": "float64",
    "p": "float64",
    "p_adjusted": "float64",
    "adjustment": "str",
    "flags": "str",
}
"""One row per endpoint, region and group compared: ``comparison`` is "a vs b", b the reference group; n are animals.
The change is that of a in percent of b, with its own 95 % interval (1 - alpha); g is positive when a is larger."""

ESTIMATES: Schema = {
    "endpoint": "str",
    "region": "str",
    "comparison": "str",
    "family": "str",
    "n_a": "int64",
    "n_b": "int64",
    "sd_a": "float64",
    "sd_b": "float64",
    "difference": "float64",
    "difference_ci_low": "float64",
    "difference_ci_high": "float64",
    "simultaneous": "bool",
    "hedges_g": "float64",
    "hedges_g_ci_low": "float64",
    "hedges_g_ci_high": "float64",
    "smallest_p": "float64",
}
"""What belongs to the rows of `STATISTICS` beside it. ``simultaneous``: the intervals of all groups hold together.
``smallest_p`` is what a test of ranks or permutations can reach at best with so few animals."""

P_ALONE: Schema = {"p_alone": "float64"}
"""In `ESTIMATES` since there are studies of several assays: p of a comparison by itself, from which families are
adjusted."""

NEXT_STUDY: Schema = {
    "endpoint": "str",
    "region": "str",
    "reference_group": "str",
    "n_animals": "int64",
    "cv_percent": "float64",
    "reduction_percent": "float64",
    "alpha": "float64",
    "power": "float64",
    "animals_per_group": "float64",
}
"""Animals per group that would find a reduction, were the reference group to vary as it did here."""

EXCLUSIONS: Schema = {"level": "str", "name": "str", "group": "str", "what": "str", "reason": "str"}
"""What is in no test: slides, animals, and values of animals; with the reason."""

CORRELATIONS: Schema = {
    "endpoint": "str",
    "region": "str",
    "outcome": "str",
    "scope": "str",
    "method": "str",
    "n": "int64",
    "r": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "p": "float64",
    "p_adjusted": "float64",
    "adjustment": "str",
    "flags": "str",
}
"""Image endpoints against outcomes measured otherwise; ``scope``: over all animals, or within groups."""

DENDRITES: Schema = {
    "slide_id": "str",
    "animal": "str",
    "group": "str",
    "region": "str",
    "dendrite_id": "str",
    "order": "Int64",
    "length_um": "float64",
    "mean_diameter_um": "float64",
    "n_spines": "int64",
    "spines_per_10um": "float64",
    "flags": "str",
    "tree": "Int64",
    "parent": "str",
    "included": "bool",
    "included_length_um": "float64",
    "n_included": "int64",
    "n_z_shadow": "int64",
    "hidden_factor": "float64",
    "traced_by": "str",
}
"""One row per stretch of dendrite between branch points or ends; those without spines have 0. ``n_spines`` are all on
[0, ``length_um``); ``n_included`` and ``included_length_um`` are those the recipe's rules of inclusion leave."""

SPINE_ANIMALS: Schema = {
    "animal": "str",
    "group": "str",
    "n_stacks": "int64",
    "n_dendrites": "int64",
    "dendrite_length_um": "float64",
    "n_spines": "int64",
    "spines_per_10um": "float64",
    "spine_length_um": "float64",
    "head_width_um": "float64",
    "flags": "str",
}
"""Over what the recipe's rules of inclusion leave of an animal's dendrites: density is spines over length of all of
them, not a mean of densities. Lengths and widths are means over spines."""

SPINES: Schema = {
    "slide_id": "str",
    "dendrite_id": "str",
    "spine_id": "int64",
    "position_um": "float64",
    "z_um": "float64",
    "y_um": "float64",
    "x_um": "float64",
    "length_um": "float64",
    "head_width_um": "float64",
    "head_area_um2": "float64",
    "class": "str",
    "score": "float64",
    "neck_width_um": "float64",
    "tip_z_um": "float64",
    "tip_y_um": "float64",
    "tip_x_um": "float64",
    "base_z_um": "float64",
    "base_y_um": "float64",
    "base_x_um": "float64",
    "z_shadow": "bool",
    "included": "bool",
}
"""``z_um``, ``y_um``, ``x_um`` are the centre of the head; um = index x voxel, so that the centre of a stack's first
voxel is at 0. ``head_width_um`` and ``head_area_um2`` are without the blur that the recipe's ``resolution_um`` says,
and no head is told to be smaller than 0.4 of that; ``neck_width_um`` is as it looks. ``score``, 0 to 1, is what
the network says, its odds lowered on trees that bear fewer than 2 sure spines per 10 um."""

FAILURES: Schema = {"slide": "str", "stage": "str", "error": "str", "remedy": "str"}

TOUCHED: Schema = {
    "id": "str",
    "who": "str",
    "action": "str",
    "cell_id": "uint32",
    "region": "str",
    "marker": "str",
    "blinded": "bool",
}
"""Edits of a review that stand, each with the cell it is about."""

UNMATCHED: Schema = {
    "slide_id": "str",
    "id": "str",
    "at": "str",
    "who": "str",
    "action": "str",
    "kind": "str",
    "region": "str",
    "y_um": "float64",
    "x_um": "float64",
    "area_um2": "float64",
    "marker": "str",
    "old": "str",
    "new": "str",
    "why": "str",
    "blinded": "bool",
    "reason": "str",
}
"""Edits of a review that found no cell in these results, and why."""

DISAGREEMENTS: Schema = {
    "cell_id": "uint32",
    "region": "str",
    "y_um": "float64",
    "x_um": "float64",
    "marker": "str",
    "said": "str",
}
"""Cells of which two reviewers say different things; without a marker it is about whether there is a cell."""

SENSITIVITY_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.2)


def shaped(table: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Return the table with the schema's columns first, in its order and types, others after; row numbers dropped.

    Raises
    ------
    InputError
        If a column of the schema is missing or cannot take its type.
    """
    missing = [name for name in schema if name not in table.columns]
    if missing:
        raise InputError(f"The table lacks the column(s) {', '.join(missing)}.")
    ordered = table[[*schema, *(name for name in table.columns if name not in schema)]]
    try:
        return ordered.astype(schema).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"The table does not fit its columns: {error}.") from error


def empty(schema: Schema) -> pd.DataFrame:
    """Return a table with the schema's columns and no rows."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in schema.items()})


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield the rows of a table, each with its columns as attributes."""
    return frame.itertuples(index=False)
