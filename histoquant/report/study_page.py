"""`report.html` of a study of several assays: what they share, side by side; each assay has a page of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant.errors import InputError
from histoquant.model.design import Endpoint, Statistics
from histoquant.model.tables import ESTIMATES, EXCLUSIONS, NEXT_STUDY, STATISTICS, records
from histoquant.report.charts import dots_chart
from histoquant.report.effects import KEYS, Compared, endpoint_label, families, next_study
from histoquant.report.kinds import METHODS
from histoquant.report.markup import Html, box, facts, html, paragraph, plural, table
from histoquant.report.page import Report, contents, section, whole_page
from histoquant.report.paper import Album
from histoquant.report.run import RERUN, Run, read_run, read_table

if TYPE_CHECKING:
    import pandas as pd

STUDY, ASSAYS = "study.json", "assays"
"""File that says which assays a study has, and folder of their runs."""

SECTIONS = {
    "asked": "What was asked",
    "results": "Declared endpoints",
    "effects": "Effects and tests",
    "assays": "Assays",
    "left_out": "Left out",
    "methods": "Methods",
}


def render_study(root: Path) -> Report:
    """Return the page about a study of several assays, and its figures.

    Raises
    ------
    InputError
        If a file of it is missing or damaged.
    """
    try:
        told = json.loads((root / STUDY).read_text(encoding="utf-8"))
        runs = {str(name): read_run(root / ASSAYS / str(name)) for name in told["assays"]}
        reference = str(told["reference_group"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot use '{root / STUDY}': {error!r}.", RERUN) from error
    album = Album()
    groups = dict.fromkeys(group for run in runs.values() for group in run.group_sizes)
    compared = Compared(reference, max(_settings(run).alpha for run in runs.values()), tuple(groups))
    content = {
        "asked": _asked(runs, compared),
        "results": _results(runs, album),
        "effects": _effects(root, compared, album),
        "assays": _assays(runs),
        "left_out": _left_out(root),
        "methods": _methods(runs),
    }
    links = {key: SECTIONS[key] for key in content}
    sections = [section(key, SECTIONS[key], text) for key, text in content.items()]
    title = f"{len(runs)} assays, {plural(len(groups), 'group')}"
    head = f"<h1>{escape(title)}</h1>\n" + facts({"histoquant": told.get("histoquant", "")}) + contents(links)
    return Report(whole_page(title, "".join([head, _failures(runs), *sections])), album.files)


def _settings(run: Run) -> Statistics:
    """Return the rules that an assay was compared by."""
    told = run.inferred.settings.get("statistics")
    return run.recipe.compared if told is None else Statistics.model_validate(told)


def _page(assay: str) -> str:
    return f"{ASSAYS}/{assay}/report.html"


def _link(assay: str) -> Html:
    return Html(f'<a href="{html(_page(assay))}">{html(assay)}</a>')


def _failures(runs: Mapping[str, Run]) -> str:
    rows = [
        (assay, row.slide, row.stage, row.error, row.remedy)
        for assay, run in runs.items()
        for row in records(run.failures)
    ]
    if not rows:
        return ""
    listing = table("What failed, why, and what to do", ["Assay", "Slide", "Stage", "Error", "Remedy"], rows)
    return box("bad", f"{plural(len({row[:2] for row in rows}), 'slide')} failed", listing)


def _asked(runs: Mapping[str, Run], compared: Compared) -> str:
    sizes = [(group, *(run.group_sizes.get(group, 0) for run in runs.values())) for group in compared.groups]
    declared = [
        (assay, "primary" if endpoint == settings.primary else "key secondary", _label(endpoint), endpoint.region)
        for assay, run in runs.items()
        for settings in [_settings(run)]
        for endpoint in settings.declared
    ]
    return table("Animals of each group (n), by assay", ["Group", *runs], sizes) + table(
        "Endpoints declared beforehand", ["Assay", "Family", "Endpoint", "Region"], declared
    )


def _label(endpoint: Endpoint) -> str:
    return endpoint_label(endpoint.name)


def _results(runs: Mapping[str, Run], album: Album) -> str:
    intro = "Every animal of the endpoints that were declared; all others stand in the assays' own pages."
    parts: list[str] = [paragraph(intro)]
    for assay, run in runs.items():
        for number, endpoint in enumerate(_settings(run).declared):
            animals = _animals(run, endpoint)
            if animals.empty:
                continue
            measured = animals.groupby(["region", "group"], sort=False)[endpoint.measure]
            groups = measured.mean().to_frame().assign(**{f"{endpoint.measure}_sd": measured.std(ddof=1)}).reset_index()
            name = f"{_label(endpoint)} in {endpoint.region}"
            chart = dots_chart(
                animals,
                groups,
                {endpoint.measure: _label(endpoint)},
                chart_id=f"results-{assay}-{number}",
                label=f"{name} ({assay}): every animal, group mean and standard deviation",
            )
            parts.append(f"<h3>{html(name)} <span class='soft'>({html(assay)})</span></h3>\n")
            caption = "Every dot is an animal (point at it for its name); thick line: group mean; thin line: ± 1 SD."
            parts.append(album.figure(chart, f"results_{assay}_{endpoint.name}", caption))
    return "".join(parts)


def _animals(run: Run, endpoint: Endpoint) -> pd.DataFrame:
    """Return ``region, group, animal`` and the measure of an endpoint, where the tables of animals hold it."""
    if run.recipe.kind != "cells":
        rows = run.by_animal.assign(region=endpoint.region)
    else:
        rows = run.animals
        if endpoint.measure.startswith("total_"):
            rows = run.inferred.tables["stereology"]
        rows = rows[(rows["marker"] == endpoint.marker) & (rows["region"] == endpoint.region)]
    return rows[["region", "group", "animal", endpoint.measure]]


def _effects(root: Path, compared: Compared, album: Album) -> str:
    folder = root / "tables"
    assay = {"assay": "str"}
    estimates = read_table(folder / "estimates.csv", assay | ESTIMATES).drop(columns=["n_a", "n_b", "hedges_g"])
    rows = read_table(folder / "statistics.csv", assay | STATISTICS).merge(estimates, on=["assay", *KEYS])
    if rows.empty:
        return paragraph("There is nothing to compare.")
    note = (
        "p is adjusted in families over all assays: the primary endpoints of all assays are one family (Holm), their "
        "key secondary ones another (Holm), all others a third (Benjamini-Hochberg). The assays' own pages adjust "
        "within the assay only."
    )
    named = rows.assign(region=rows["region"] + " (" + rows["assay"] + ")")
    sizes = read_table(folder / "next_study.csv", assay | NEXT_STUDY)
    sizes = sizes.assign(region=sizes["region"] + " (" + sizes["assay"] + ")")
    shown = families(named, compared, album)
    return paragraph(compared.introduction) + paragraph(note) + shown + next_study(sizes)


def _assays(runs: Mapping[str, Run]) -> str:
    rows = []
    for assay, run in runs.items():
        states = list(run.state["slides"].values())
        done, warned = states.count("done"), sum(bool(told["warnings"]) for told in run.provenance.values())
        rows.append((_link(assay), run.recipe.name, done, len(states) - done, warned))
    headings = ["Assay", "Recipe", "Slides done", "Slides failed", "Slides with warnings"]
    note = "Slides, thresholds, sensitivity, provenance and ARRIVE 2.0 stand in the page of each assay."
    return table("The assays, each with a page of its own", headings, rows) + paragraph(note)


def _left_out(root: Path) -> str:
    rows = read_table(root / "tables" / "exclusions.csv", {"assay": "str"} | EXCLUSIONS)
    if rows.empty:
        return paragraph("No slide, animal or value was left out.")
    headings = ["Assay", "What", "Name", "Group", "Of it", "Reason"]
    cells: list[tuple[Any, ...]] = list(rows[["assay", *EXCLUSIONS]].itertuples(index=False, name=None))
    return table("Left out of every test", headings, cells, n_heads=3)


def _methods(runs: Mapping[str, Run]) -> str:
    parts: list[str] = []
    for assay, run in runs.items():
        text = METHODS[run.recipe.kind](run)
        parts.append(f"<h3>{html(assay)}</h3>\n<blockquote>{text}</blockquote>\n")
    return "".join(parts)
