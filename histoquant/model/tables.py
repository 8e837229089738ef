"""Names, types and units of every table we write. The unit is in the column's name.

Empty means "not defined"; a count of nothing is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
