"""Every animal and group, marker by marker, and what becomes of them at other thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoquant.model.panel import called_markers
from histoquant.model.tables import GROUPS, records
from histoquant.report.charts import curve_chart, dots_chart
from histoquant.report.markup import change, exact, frame_table, html, number, paragraph, table
from histoquant.report.paper import Album
from histoquant.report.run import REST, Run, threshold_curve

if TYPE_CHECKING:
    import pandas as pd

ENDPOINTS = {"density_per_mm2": "positive profiles per mm²", "fraction_positive": "fraction of cells that are positive"}


def _shown(frame: pd.DataFrame, marker: str) -> pd.DataFrame:
    """Return the rows of a marker that charts show: counted regions."""
    return frame[(frame["marker"] == marker) & ~frame["region"].isin(REST)]


def results(run: Run, album: Album) -> str:
    """Return chart and table of groups, marker by marker."""
    if run.groups.empty:
        return paragraph("No animal could be counted.")
    parts = []
    called = called_markers(run.recipe.panel)
    for index, marker in enumerate(run.markers):
        groups, animals = _shown(run.groups, marker), _shown(run.animals, marker)
        # Of a counterstain every nucleus is "positive": its fraction says nothing.
        plain = not called
        endpoints = {"density_per_mm2": "nuclear profiles per mm²"} if plain else ENDPOINTS
        parts.append(f"<h3>{html(marker)}{' (all nuclei)' if plain else ''}</h3>\n")
        if groups.empty:
            parts.append(paragraph("There is no counted region: see the groups table for the whole slide."))
        else:
            label = f"{marker} by region and group: every animal, group mean and standard deviation"
            chart = dots_chart(animals, groups, endpoints, chart_id=f"results-{index}", label=label)
            caption = "Every dot is an animal (point at it for its name); thick line: group mean; thin line: ± 1 SD."
            parts.append(album.figure(chart, f"results_{marker}", caption))
        columns = [name for name in GROUPS if name not in ("marker", "reference_group")]
        columns = ["region", "group", *(name for name in columns if name not in ("region", "group"))]
        mine = run.groups[run.groups["marker"] == marker].sort_values("region", key=_in_order, kind="stable")
        caption = (
            f"{marker}: groups. Means and SD over animals; counts and areas are sums; "
            f"change is against {run.reference_group}"
        )
        parts.append(frame_table(caption, mine, columns, n_heads=2))
    parts.append(
        paragraph(
            "The animal is the unit: each animal gives one value per region, from the sums over its sections, and n is "
            f"the number of animals. The change against {run.reference_group} is descriptive here; its interval and "
            "its test are under effects."
        )
    )
    return "".join(parts)


def _in_order(values: pd.Series) -> pd.Series:
    """Return sort keys that keep the order in which names first appear."""
    order = {name: index for index, name in enumerate(dict.fromkeys(values))}
    return values.map(order)


def sensitivity(run: Run, album: Album) -> str:
    """Return curves and tables of groups over multiples of the thresholds."""
    if run.sensitivity.empty:
        return paragraph("There is no threshold in this run.")
    curve = threshold_curve(run)
    column, name = "density_per_mm2", ENDPOINTS["density_per_mm2"]
    text = (
        "Every threshold was multiplied by the factors below and the cells were counted again (in double labels, both "
    )
    parts: list[str] = [paragraph(text + "thresholds). A result that holds only at factor 1 hangs on the threshold.")]
    for index, marker in enumerate(run.markers):
        mine = _shown(curve, marker)
        if mine.empty:
            continue
        label = f"{marker}: mean density of each group at 0.8 to 1.2 times the threshold, by region"
        chart = curve_chart(mine, column, name, chart_id=f"sensitivity-{index}", label=label)
        factors = sorted(set(mine["factor"]))
        rows = []
        for (region, group), part in mine.sort_values("region", key=_in_order, kind="stable").groupby(
            ["region", "group"], sort=False
        ):
            at = {
                row.factor: f"{number(row.density_per_mm2)} {_bracket(row.percent_change_density)}"
                for row in records(part)
            }
            rows.append((region, group, *(at.get(factor, "").strip() for factor in factors)))
        caption = f"{marker}: mean {name} at multiples of the threshold (change against {run.reference_group})"
        headings = ["Region", "Group", *(f"× {exact(factor)}" for factor in factors)]
        figure = album.figure(chart, f"sensitivity_{marker}")
        parts.append(f"<h3>{html(marker)}</h3>\n{figure}" + table(caption, headings, rows, n_heads=2))
    return "".join(parts)


def _bracket(percent: float) -> str:
    return f"({change(percent)})" if change(percent) else ""
