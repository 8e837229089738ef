"""Effects of a run on the page: how large first, then tested; what is in no test; ARRIVE 2.0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histoquant.model.design import Arrive
from histoquant.model.tables import records
from histoquant.report.charts import MAX_FOREST, forest_chart
from histoquant.report.markup import (
    Html,
    bullets,
    change,
    exact,
    folded,
    frame_table,
    html,
    listed,
    number,
    paragraph,
    plural,
    table,
)
from histoquant.report.paper import Album
from histoquant.report.run import Run

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["endpoint", "region", "comparison"]

MEASURES = {
    "density_per_mm2": "profiles per mm²",
    "fraction_positive": "fraction positive",
    "percent_area": "area positive, %",
    "total_cells": "cells in all",
    "total_profiles": "profiles in all",
    "direct_mm3": "direct, mm³",
    "indirect_mm3": "indirect, mm³",
    "ratio_mm3": "ratio, mm³",
    "indirect_percent_hemisphere": "indirect, % of the hemisphere",
    "swelling_percent": "swelling, %",
    "spines_per_10um": "spines per 10 µm",
    "dendrite_length_um": "length of dendrites, µm",
    "spine_length_um": "length of spines, µm",
    "head_width_um": "width of heads, µm",
}

NBSP = "\u00a0"
"""No line ends within an interval."""

NOT_PROVIDED = "not provided"

INTRODUCTION = (
    "Every group against {reference}, by animal. Change is that of the mean in percent of the mean of {reference}, "
    "with its {level} % interval; g is the difference in pooled SDs. Tests come after the effects, and comparisons "
    "without an effect are shown like those with one: an interval that holds 0 says which effects are still possible, "
    "not that there is none."
)

HINT = "No comparison was made. The command 'histoquant stats' with this folder makes it."


@dataclass(frozen=True)
class Compared:
    """What comparisons have in common.

    Attributes
    ----------
    reference : str
        The group that the others are compared with.
    alpha : float
        Level of the tests.
    groups : tuple of str
        All groups, in the order that decides their colours.
    """

    reference: str
    alpha: float
    groups: tuple[str, ...]

    @property
    def level(self) -> str:
        """Of the intervals, in percent."""
        return exact(100 * (1 - self.alpha))

    @property
    def introduction(self) -> str:
        """What a reader must know of the tables."""
        return INTRODUCTION.format(reference=self.reference, level=self.level)


def endpoint_label(endpoint: str) -> str:
    """Return how the page calls an endpoint: its marker, and what of it.

    Examples
    --------
    >>> endpoint_label("brdu+dcx_total_cells")
    'brdu+dcx, cells in all'
    """
    for measure, words in MEASURES.items():
        if endpoint.endswith(f"_{measure}"):
            return f"{endpoint.removesuffix(f'_{measure}')}, {words}"
    return endpoint


def effects(run: Run, album: Album) -> str:
    """Return every comparison by family, the next study's size, totals and correlations."""
    told = run.inferred.tables
    if told["statistics"].empty:
        return paragraph(HINT if not run.inferred.settings else "There is nothing to compare.")
    rows = told["statistics"].merge(told["estimates"].drop(columns=["n_a", "n_b", "hedges_g"]), on=KEYS)
    reference = run.inferred.settings.get("reference_group", run.reference_group)
    compared = Compared(reference, _alpha(run), tuple(run.group_sizes))
    parts: list[str] = [paragraph(compared.introduction)]
    if "primary" not in set(rows["family"]):
        parts.append(
            paragraph("No primary endpoint was declared in the recipe: what follows is exploratory unless it says so.")
        )
    parts.append(families(rows, compared, album))
    totals, correlated = _totals(told["stereology"]), _correlations(told["correlations"], compared.level)
    return "".join([*parts, next_study(told["next_study"]), totals, correlated])


def families(rows: pd.DataFrame, compared: Compared, album: Album) -> str:
    """Return chart and table of comparisons, family by family.

    Parameters
    ----------
    rows : DataFrame
        Comparisons with the columns of `tables.STATISTICS` and `tables.ESTIMATES`.
    """
    return "".join(
        _of_family(str(family), mine, compared, album, f"effects-{index}")
        for index, (family, mine) in enumerate(rows.groupby("family", sort=False))
    )


def _alpha(run: Run) -> float:
    return float(run.inferred.settings.get("statistics", {}).get("alpha", run.recipe.statistics.alpha))


def _of_family(family: str, rows: pd.DataFrame, compared: Compared, album: Album, chart_id: str) -> str:
    several = plural(rows[["endpoint", "region"]].drop_duplicates().shape[0], "endpoint")
    parts = [f"<h3>{html(family.capitalize())} ({several})</h3>\n"]
    drawn = rows[rows["percent_change"].notna() & (rows["comparison"] != "")]
    if 0 < len(drawn) <= MAX_FOREST:
        labelled = drawn.assign(
            label=[f"{endpoint_label(row.endpoint)}, {row.region}" for row in records(drawn)],
            group=[_group(row.comparison, compared) for row in records(drawn)],
        )
        label = f"{family} endpoints: change in percent with its {compared.level} % interval, for every comparison"
        chart = forest_chart(labelled, compared.groups, chart_id=chart_id, label=label)
        note = f"Change against {compared.reference} with its {compared.level} % interval, on a scale of ratios."
        parts.append(album.figure(chart, f"effects_{family}", note))
    # What is the same in every row stands once, above; the row is wide enough without it.
    adjustments = [text for text in dict.fromkeys(rows["adjustment"]) if text]
    once = len(adjustments) == 1
    caption = f"{family.capitalize()} endpoints" + (f"; p adjusted by {adjustments[0]}" if once else "")
    headings = [
        "Endpoint",
        "Region",
        "Comparison",
        "n",
        "Means",
        f"Change [{compared.level} % CI]",
        f"g [{compared.level} % CI]",
    ]
    headings += ["Test", "Statistic", "df", "p", "p adjusted", "Adjustment"]
    cells = [
        (
            endpoint_label(row.endpoint),
            row.region,
            row.comparison,
            f"{row.n_a}{NBSP}v{NBSP}{row.n_b}" if row.comparison else str(row.n_b),
            f"{number(row.mean_a) or '–'} v{NBSP}{number(row.mean_b) or '–'}" if row.comparison else number(row.mean_b),
            _percent(row),
            _interval(number(row.hedges_g), row.hedges_g_ci_low, row.hedges_g_ci_high),
            row.test,
            number(row.statistic),
            "" if math.isnan(row.df) else exact(round(row.df, 1)),
            _p(row.p),
            _p(row.p_adjusted),
            "" if once else row.adjustment,
        )
        for row in records(rows)
    ]
    return "".join(parts) + table(caption, headings, cells, n_heads=3) + _flags(rows)


def _flags(rows: pd.DataFrame) -> str:
    """Return every flag once, with the comparisons it is about: in a column of its own it would be one word wide."""
    about: dict[str, list[str]] = {}
    for row in records(rows):
        for flag in filter(None, row.flags.split("; ")):
            name = f"{endpoint_label(row.endpoint)} in {row.region}"
            about.setdefault(flag, []).append(f"{name}: {row.comparison}" if row.comparison else name)
    if not about:
        return ""
    found = []
    for flag, names in about.items():
        where = "every comparison" if len(names) == len(rows) > 1 else "; ".join(names)
        found.append(Html(f'⚠ {html(flag)} <span class="soft">({html(where)})</span>'))
    return bullets(found)


def _group(comparison: str, compared: Compared) -> str:
    """Return the group that a comparison is about; names may hold anything, so it is looked up."""
    return comparison.removesuffix(f" vs {compared.reference}")


def _p(value: float) -> str:
    return f"<{NBSP}0.0001" if value < 1e-4 else number(value)


def _percent(row: Any) -> str:
    if math.isnan(row.percent_change):
        return ""
    low, high = (change(end).removesuffix("%").strip() for end in (row.ci_low, row.ci_high))
    return f"{change(row.percent_change)} " + (f"[{low}{NBSP}to{NBSP}{high}]" if low else "")


def _interval(value: str, low: float, high: float) -> str:
    return f"{value} [{number(low)}{NBSP}to{NBSP}{number(high)}]" if value and not math.isnan(low) else value


def next_study(rows: pd.DataFrame) -> str:
    """Return how many animals the next study needs; empty when nothing says."""
    if rows.empty:
        return ""
    cells = []
    for names, part in rows.groupby(["endpoint", "region"], sort=False):
        endpoint, region = map(str, names)
        sizes = {row.reduction_percent: row.animals_per_group for row in records(part)}
        cv = number(float(part["cv_percent"].iloc[0]))
        cells.append((endpoint_label(endpoint), region, cv, *(number(size).split(".")[0] for size in sizes.values())))
    first = rows.iloc[0]
    caption = (
        f"Animals per group for the next study: two-sided t test, {exact(100 * first['power'])} % power, level "
        f"{exact(first['alpha'])}, were {first['reference_group']} to vary as it did here (n = {first['n_animals']})"
    )
    headings = ["Endpoint", "Region", "CV, %", *(f"−{exact(size)} %" for size in rows["reduction_percent"].unique())]
    return "<h3>Size of the next study</h3>\n" + table(caption, headings, cells, n_heads=2)


def _totals(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    note = (
        "Totals undo the sampling of sections and hemispheres. Profiles count an object once for each section that "
        "shows it; cells are corrected for that by Abercrombie's factor. The coefficient of error (Gundersen) is that "
        "of the sampling within an animal."
    )
    shown = frame_table("Totals by animal", rows, list(rows.columns), n_heads=4)
    return "<h3>Totals</h3>\n" + paragraph(note) + folded(f"Totals ({plural(len(rows), 'row')})", shown)


def _correlations(rows: pd.DataFrame, level: str) -> str:
    if rows.empty:
        return ""
    cells = [
        (
            endpoint_label(row.endpoint),
            row.region,
            row.outcome,
            row.scope,
            row.method,
            row.n,
            _interval(number(row.r), row.ci_low, row.ci_high),
            _p(row.p),
            _p(row.p_adjusted),
            row.adjustment,
            row.flags,
        )
        for row in records(rows)
    ]
    headings = ["Endpoint", "Region", "Outcome", "Over", "Method", "n", f"r [{level} % CI]", "p", "p adjusted"]
    caption = "Image endpoints with outcomes measured otherwise, by animal; exploratory"
    shown = table(caption, [*headings, "Adjustment", "Flags"], cells, n_heads=3)
    note = (
        "Over all animals a correlation may only say that the groups differ in both; within groups their means are "
        "taken off first."
    )
    return "<h3>Correlations with other outcomes</h3>\n" + paragraph(note) + shown


def left_out(run: Run) -> str:
    """Return what is in no test, and the log of who left out which slide."""
    return _not_tested(run) + _exclusion_log(run)


def _exclusion_log(run: Run) -> str:
    if not run.exclusion_log:
        return ""
    cells = [
        (
            entry["when"].replace("T", " ").replace("+00:00", " UTC"),
            entry["who"],
            entry["slide"],
            "left out" if entry["action"] == "exclude" else "taken in again",
            entry["reason"],
            "yes" if entry["after_unblinding"] else "no",
        )
        for entry in run.exclusion_log
    ]
    headings = ["When", "Who", "Slide", "What", "Reason", "After unblinding"]
    return table("Slides left out or taken in again, as the sample sheet changed", headings, cells)


def _not_tested(run: Run) -> str:
    rows = run.inferred.tables["exclusions"]
    if rows.empty and not run.inferred.settings:
        return paragraph(HINT)
    if rows.empty:
        return paragraph("No slide, animal or value was left out.")
    headings = ["What", "Name", "Group", "Of it", "Reason"]
    cells = [(row.level, row.name, row.group, row.what, row.reason) for row in records(rows.rename(columns=str))]
    return table("Left out of every test", headings, cells, n_heads=2)


def arrive(run: Run) -> str:
    """Return the ARRIVE 2.0 Essential 10, filled from the run and the recipe; what is not known is said to be so."""
    cells = [
        (item, what, text or Html(f'<span class="soft">{NOT_PROVIDED}</span>')) for item, what, text in arrive_rows(run)
    ]
    note = "Filled from this run; what only you know is written under [statistics.arrive] of the recipe."
    return f'<p class="note">{html(note)}</p>\n' + table(
        "ARRIVE 2.0, the Essential 10", ["Item", "Detail", "This study"], cells, n_heads=2
    )


def arrive_rows(run: Run) -> list[tuple[str, str, str]]:
    """Return items, details and what is known of them; an item's name stands in its first row only."""
    settings = run.inferred.settings.get("statistics") or run.recipe.compared.model_dump(mode="json")
    said = Arrive.model_validate(settings.get("arrive", {}))
    sizes = [f"{group}: {n}" for group, n in run.group_sizes.items()]
    statistics, gone = run.inferred.tables["statistics"], run.inferred.tables["exclusions"]
    primary = settings.get("primary")
    endpoints = list(dict.fromkeys(f"{endpoint_label(r.endpoint)} in {r.region}" for r in records(statistics)))
    reasons = [f"{row.level} {row.name}: {row.reason}" for row in records(gone)]
    none = "none" if run.inferred.settings else ""
    late = [entry["slide"] for entry in run.exclusion_log if entry["after_unblinding"]]
    by_group = [f"{group}: {n}" for group, n in gone.loc[gone["group"] != "", "group"].value_counts(sort=False).items()]
    return [
        ("1 Study design", "Groups", "; ".join(sizes)),
        ("", "Experimental unit", "the animal"),
        ("2 Sample size", "Animals in each group", "; ".join(sizes)),
        ("", "How it was decided", said.sample_size),
        ("3 Inclusion and exclusion", "Criteria set beforehand", said.criteria),
        ("", "Excluded, with the reason", listed(reasons) or none),
        ("", "Excluded by group", "; ".join(by_group) or none),
        ("", "Excluded or taken in after unblinding", listed(list(dict.fromkeys(late))) or none),
        ("", "n of each analysis", "in the tables of effects above" if endpoints else ""),
        ("4 Randomisation", "Method", said.randomisation),
        ("", "Confounders", said.confounders),
        ("5 Blinding", "Who did not know the groups, and when", said.blinding),
        ("6 Outcome measures", "All that were assessed", listed(endpoints)),
        ("", "Primary", f"{endpoint_label(_name(primary))} in {primary['region']}" if primary else ""),
        ("7 Statistical methods", "Tests", "; ".join(_tests(statistics))),
        ("", "Assumptions", "SDs compared before Dunnett's test: beyond a ratio of 2 Welch's t with Holm's adjustment"
         if settings.get("test") in ("means", "mixed") and endpoints else
         "tests without a distribution" if endpoints else ""),
        ("8 Experimental animals", "Species, strain, sex, age", said.animals),
        ("9 Experimental procedures", "What was done", said.procedures),
        ("10 Results", "Effects with intervals", "in the tables of effects above" if endpoints else ""),
    ]  # fmt: skip


def _name(endpoint: dict[str, str]) -> str:
    return f"{endpoint['marker']}_{endpoint['measure']}"


def _tests(statistics: pd.DataFrame) -> Sequence[str]:
    tested = statistics[statistics["test"] != ""]
    pairs = tested[["test", "adjustment"]].drop_duplicates()
    return [f"{row.test} ({row.adjustment})" if row.adjustment else row.test for row in records(pairs)]
