"""Objects to regions, sections, animals and groups. Everything adds up.

A cell is counted in the one leaf region that holds its centroid and in that region's ancestors, or ``outside``. An
animal is the ratio of the sums over its sections, never a mean of ratios; a group is the mean over its animals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.positivity import Rule, Scene, Threshold, call
from histoquant.model.edit import ACCEPT, ADD, DELETE
from histoquant.model.panel import Panel, called_markers, counterstain_of
from histoquant.model.tables import ANIMALS, CORRECTED, GROUPS, REGIONS, SENSITIVITY, SENSITIVITY_FACTORS, empty, shaped

if TYPE_CHECKING:
    import pandas as pd

    from histoquant.model.region import RegionSet

MM2_PER_UM2 = 1e-6

EXISTENCE = (ADD, DELETE)
"""Corrections that concern every marker."""

WEAK_COUNTERSTAIN = "counterstain too weak for fractions"
"""The flag of a slide on which the counterstain is no denominator."""

IDENTITY = ("slide_id", "animal", "group", "section", "hemisphere", "batch", "control")
"""What every row about a slide starts with."""


@dataclass(frozen=True)
class Section:
    """What counting needs to know of one slide.

    Attributes
    ----------
    identity : mapping
        One entry for each of `IDENTITY`, and the further columns of the sample sheet.
    regions : RegionSet
    panel : Panel
    thresholds : marker -> Threshold
    doubles : pairs of markers
    fractions : bool
        False when the counterstain is too weak for a denominator.
    flags : sequence of str
        Remarks that hold for every row of the slide.
    area_positive_um2 : marker -> region -> um2
        Area at or above the threshold, in counted regions without their children; for markers with ``area``.
    """

    identity: Mapping[str, str]
    regions: RegionSet
    panel: Panel
    thresholds: Mapping[str, Threshold]
    doubles: Sequence[tuple[str, str]]
    fractions: bool = True
    flags: Sequence[str] = ()
    area_positive_um2: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def count_regions(cells: pd.DataFrame, objects: pd.DataFrame, section: Section) -> pd.DataFrame:
    """Count a slide's cells by region and marker.

    Parameters
    ----------
    cells : DataFrame
        Called cells with a ``region`` column.
    objects : DataFrame
        Marker objects off nuclei, with ``marker``, ``region``, ``orphan``.

    Returns
    -------
    DataFrame
        One row per region x marker as `tables.REGIONS` lists them. A parent's row is the sum of its children and its
        own rest. Double labels are markers named ``A+B``.
    """
    import pandas as pd

    ground = section.regions.table()
    counted = section.regions.counted
    lineage = {name: section.regions.ancestors(name) if name in counted else () for name in ground["region"]}
    n_cells = _by_region(cells["region"], lineage)
    rows: list[dict[str, Any]] = []
    for marker, positive in _positives(cells, section).items():
        single = marker if marker in section.panel else None
        n_positive = _by_region(cells["region"][positive], lineage)
        orphans = objects[(objects["marker"] == single) & objects["orphan"]]
        further = _classes(cells, single) | {"n_orphans": orphans["region"]}
        extra = {column: _by_region(where, lineage) for column, where in further.items()}
        area_positive = section.area_positive_um2.get(marker)
        positive_um2 = dict.fromkeys(lineage, np.nan)
        if area_positive is not None:
            positive_um2 = _summed(area_positive, lineage)
        threshold = section.thresholds.get(marker)
        for region, parent, area, masked in ground.itertuples(index=False):
            rows.append(
                {
                    **section.identity,
                    "region": region,
                    "parent": parent,
                    "area_mm2": area,
                    "masked_area_mm2": masked,
                    "marker": marker,
                    "n_cells": n_cells[region],
                    "n_positive": n_positive[region],
                    "threshold": threshold.value if threshold else np.nan,
                    "threshold_source": threshold.source if threshold else "",
                    "flags": "; ".join(section.flags),
                    **{column: counts[region] for column, counts in extra.items()},
                    "area_positive_mm2": positive_um2[region] * MM2_PER_UM2,
                }
            )
    table = pd.DataFrame(rows)
    table["fraction_positive"] = _ratio(table["n_positive"], table["n_cells"]) if section.fractions else np.nan
    table["density_per_mm2"] = _ratio(table["n_positive"], table["area_mm2"])
    table["percent_area"] = 100 * _ratio(table["area_positive_mm2"], table["area_mm2"])
    return shaped(table, REGIONS)


def _positives(cells: pd.DataFrame, section: Section) -> dict[str, Any]:
    """Return per marker and double label which cells are positive; the counterstain when nothing else is asked."""
    called = {name: np.asarray(cells[f"{name}_positive"], dtype=bool) for name in called_markers(section.panel)}
    if not called:
        return {counterstain_of(section.panel): np.ones(len(cells), dtype=bool)}
    return called | {f"{a}+{b}": called[a] & called[b] for a, b in section.doubles}


def _classes(cells: pd.DataFrame, marker: str | None) -> dict[str, Any]:
    """Return where the cells of each further kind lie."""
    counts: dict[str, Any] = {}
    glow = f"{marker}_autofluorescent"
    counts["n_autofluorescent"] = cells["region"][cells[glow]] if glow in cells else cells["region"][:0]
    for kind in ("condensed", "diffuse", "fragmented"):
        column = f"{marker}_class"
        of_kind = cells[column] == kind if column in cells else np.zeros(len(cells), dtype=bool)
        counts[f"n_{kind}"] = cells["region"][of_kind]
    return counts


def _by_region(where: pd.Series, lineage: Mapping[str, Sequence[str]]) -> dict[str, int]:
    counts = where.value_counts()
    return {n: int(v) for n, v in _summed({n: counts.get(n, 0) for n in lineage}, lineage).items()}


def _summed(own: Mapping[str, float], lineage: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Add every region's own value to its ancestors."""
    total = {name: own.get(name, 0) for name in lineage}
    for name, ancestors in lineage.items():
        for ancestor in ancestors:
            total[ancestor] += own.get(name, 0)
    return total


def _ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    """Divide; not defined over 0."""
    return numerator / denominator.where(denominator > 0)


def recount(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Count a slide's cells again, into the rows that `count_regions` made of it.

    Areas, thresholds, orphans and positive areas stay as they are, for they are not counted from cells. With the same
    cells, the rows stay as they are.

    Parameters
    ----------
    rows : DataFrame
        Rows of one slide, as `tables.REGIONS` lists them.
    cells : DataFrame
        Its cells, corrected.
    """
    import pandas as pd

    lineage = _lineage(rows)
    fractions = not rows["flags"].str.contains(WEAK_COUNTERSTAIN, regex=False).any()
    parts = []
    for marker, mine in rows.groupby("marker", sort=False):
        positive, single = np.ones(len(cells), dtype=bool), f"{marker}_positive" in cells
        for name in called_of(str(marker), cells):
            positive &= cells[f"{name}_positive"].to_numpy(dtype=bool)
        counts = {"n_cells": cells["region"], "n_positive": cells["region"][positive]}
        counts |= _classes(cells, str(marker) if single else None)
        by_column = {column: _by_region(where, lineage) for column, where in counts.items()}
        parts.append(mine.assign(**{column: mine["region"].map(by) for column, by in by_column.items()}))
    table = pd.concat(parts).loc[rows.index] if parts else rows.copy()
    table["fraction_positive"] = _ratio(table["n_positive"], table["n_cells"]) if fractions else np.nan
    table["density_per_mm2"] = _ratio(table["n_positive"], table["area_mm2"])
    return table


def called_of(marker: str, cells: pd.DataFrame) -> list[str]:
    """Return whose calls a row of the tables counts: the marker's, both of ``A+B``, none for a counterstain."""
    if f"{marker}_positive" in cells:
        return [marker]
    return [name for name in marker.split("+") if f"{name}_positive" in cells]


def side_by_side(
    rows: pd.DataFrame, corrected: pd.DataFrame, touched: pd.DataFrame, cells: pd.DataFrame
) -> pd.DataFrame:
    """Return, for the rows of one slide, the `tables.CORRECTED` columns: what a review made of them.

    Parameters
    ----------
    corrected : DataFrame
        What `recount` made of ``rows``.
    touched : DataFrame
        Edits that found their cell (`review.Replayed.touched`).
    cells : DataFrame
        For the names of its calls.
    """
    import pandas as pd

    lineage = _lineage(rows)
    parts = []
    for marker, mine in rows.groupby("marker", sort=False):
        about = touched[
            touched["marker"].isin(["", *called_of(str(marker), cells)]) | touched["action"].isin(EXISTENCE)
        ]
        changes = _by_region(about["region"][about["action"] != ACCEPT], lineage)
        looked_at = _by_region(about.drop_duplicates("cell_id")["region"], lineage)
        parts.append(mine.assign(n_edits=mine["region"].map(changes), n_reviewed=mine["region"].map(looked_at)))
    told = pd.concat(parts).loc[rows.index] if parts else rows.assign(n_edits=0, n_reviewed=0)
    for name in ("n_cells", "n_positive", "fraction_positive", "density_per_mm2"):
        told[f"{name}_corrected"] = corrected[name]
    return told[list(CORRECTED)].astype(CORRECTED)


def _lineage(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Return the ancestors of each region, nearest first, as the rows of a slide tell."""
    parent = dict(zip(rows["region"], rows["parent"], strict=True))
    lineage: dict[str, list[str]] = {}
    for region in parent:
        lineage[region], above = [], parent[region]
        while above:
            lineage[region].append(above)
            above = parent[above]
    return lineage


def sensitivity(
    cells: pd.DataFrame, objects: pd.DataFrame, section: Section, *, rules: Mapping[str, Rule], scene: Scene
) -> pd.DataFrame:
    """Return the counts at 0.8, 0.9, 1.0, 1.1 and 1.2 times every threshold, as `tables.SENSITIVITY` lists them."""
    import pandas as pd

    if not section.thresholds:
        return empty(SENSITIVITY)
    parts = []
    for factor in SENSITIVITY_FACTORS:
        scaled = scene.scaled(factor)
        recalled = call(cells, section.panel, rules, scaled)
        table = count_regions(recalled, objects, section)
        table["threshold"] *= factor
        table["factor"] = factor
        parts.append(table[list(SENSITIVITY)])
    return shaped(pd.concat(parts), SENSITIVITY)


def count_animals(
    sections: pd.DataFrame,
    *,
    failed: Mapping[str, int] | None = None,
    groups: Mapping[str, str] | None = None,
    waiting: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Sum sections to animals: every rate is a ratio of sums.

    Parameters
    ----------
    sections : DataFrame
        Rows of `count_regions` of all slides, controls left out.
    failed : animal -> number of sections
        Sections that could not be analysed; their animals are flagged as incomplete.
    groups : animal -> group
        Of all animals of the study. One that failed altogether has rows with 0 sections and no rates.
    waiting : animal -> number of sections
        Sections that are still to come; their animals are flagged as incomplete too.
    """
    import pandas as pd

    if sections.empty:
        return empty(ANIMALS)
    keys = ["animal", "group", "region", "marker"]
    defined = sections["fraction_positive"].notna()
    work = sections.assign(
        denominator=sections["n_cells"].where(defined, 0), numerator=sections["n_positive"].where(defined, 0)
    )
    table = work.groupby(keys, sort=False, dropna=False, as_index=False).agg(
        n_sections=("slide_id", "nunique"),
        area_mm2=("area_mm2", "sum"),
        n_cells=("n_cells", "sum"),
        n_positive=("n_positive", "sum"),
        numerator=("numerator", "sum"),
        denominator=("denominator", "sum"),
        area_positive_mm2=("area_positive_mm2", lambda values: values.sum(skipna=False)),
        flags=("flags", _joined),
    )
    table["fraction_positive"] = _ratio(table["numerator"], table["denominator"])
    table["density_per_mm2"] = _ratio(table["n_positive"], table["area_mm2"])
    table["percent_area"] = 100 * _ratio(table["area_positive_mm2"], table["area_mm2"])
    missing = dict(failed or {})
    absent = [(a, g) for a, g in (groups or {}).items() if a in missing and a not in set(table["animal"])]
    if absent:
        where = table[["region", "marker"]].drop_duplicates()
        nothing = dict.fromkeys(("n_sections", "n_cells", "n_positive", "area_mm2"), 0) | {"flags": ""}
        table = pd.concat([table, *(where.assign(animal=a, group=g, **nothing) for a, g in absent)], ignore_index=True)
    table["n_sections_failed"] = [missing.get(animal, 0) for animal in table["animal"]]
    reasons = ((missing, "failed"), (dict(waiting or {}), "still to come"))
    table["flags"] = [
        _joined([flags, *(f"incomplete: {n[animal]} section(s) {why}" for n, why in reasons if n.get(animal))])
        for flags, animal in zip(table["flags"], table["animal"], strict=True)
    ]
    return shaped(table.drop(columns=["numerator", "denominator", "area_positive_mm2"]), ANIMALS)


def count_groups(animals: pd.DataFrame, *, reference_group: str) -> pd.DataFrame:
    """Average animals to groups; changes are in percent of the reference group's mean."""
    if animals.empty:
        return empty(GROUPS)
    keys = ["group", "region", "marker"]
    flags = [
        _joined([flags.replace("incomplete:", f"{animal} incomplete:")])
        for animal, flags in zip(animals["animal"], animals["flags"], strict=True)
    ]
    named = animals.assign(flags=flags, analysed=animals["n_sections"] > 0)
    table = named.groupby(keys, sort=False, as_index=False).agg(
        n_animals=("analysed", "sum"),
        n_sections=("n_sections", "sum"),
        area_mm2=("area_mm2", "sum"),
        n_cells=("n_cells", "sum"),
        n_positive=("n_positive", "sum"),
        fraction_positive_sd=("fraction_positive", "std"),
        fraction_positive=("fraction_positive", "mean"),
        density_per_mm2_sd=("density_per_mm2", "std"),
        density_per_mm2=("density_per_mm2", "mean"),
        percent_area=("percent_area", "mean"),
        flags=("flags", _joined),
    )
    reference = table[table["group"] == reference_group].set_index(["region", "marker"])
    where = [(region, marker) for region, marker in zip(table["region"], table["marker"], strict=True)]
    for short, column in (("fraction", "fraction_positive"), ("density", "density_per_mm2")):
        base = np.array([reference[column].get(key, np.nan) for key in where], dtype=float)
        base[base == 0] = np.nan
        change = 100 * (table[column] / base - 1)
        table[f"percent_change_{short}"] = change.where(table["group"] != reference_group)
    table["reference_group"] = reference_group
    return shaped(table, GROUPS)


def _joined(flags: Iterable[str]) -> str:
    """Join remarks, each once, in order of appearance."""
    single = (part for text in flags for part in text.split("; ") if part)
    return "; ".join(dict.fromkeys(single))
