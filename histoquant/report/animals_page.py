"""The frame of pages about runs with one row per animal: infarcts, and dendrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from histoquant.model.tables import ENDPOINT_GROUPS, Schema, records
from histoquant.report.charts import dots_chart
from histoquant.report.effects import arrive, effects, left_out
from histoquant.report.gallery import THUMBNAIL_PX, picture_of
from histoquant.report.markup import Html, box, bullets, folded, frame_table, html
from histoquant.report.page import Report, contents, section, whole_page
from histoquant.report.paper import Album
from histoquant.report.run import Run, corrections_summary, read_table

if TYPE_CHECKING:
    import pandas as pd


def animals_page(
    run: Run,
    title: str,
    album: Album,
    results: tuple[str, str],
    pictures: tuple[str, str],
    *,
    tables: Mapping[str, tuple[pd.DataFrame, int]],
    methods: Html,
) -> Report:
    """Return a page: what failed and what to look at first, then results, effects, pictures, tables and methods.

    Parameters
    ----------
    title : str
        When the recipe has no name.
    results, pictures : (heading, HTML)
    tables : name -> (table, number of its columns that head a row)
    """
    parts: list[str] = []
    if len(run.failures):
        rows = [f"{row.slide}: {row.error} {row.remedy}" for row in records(run.failures)]
        parts.append(box("bad", "Failed", bullets(rows)))
    if flagged := [f"{row.animal}: {row.flags}" for row in records(run.by_animal) if row.flags]:
        parts.append(box("warn", "To look at", bullets(flagged)))
    content = {
        results[0]: results[1],
        "Effects": effects(run, album),
        pictures[0]: pictures[1],
        "Left out": left_out(run),
        "Tables": "".join(
            folded(name, frame_table(name, table, list(table.columns), n_heads=heads))
            for name, (table, heads) in tables.items()
        ),
        "Methods": methods,
        "ARRIVE 2.0": arrive(run),
    }
    keys = {name.lower().split(" ")[0]: name for name in content}
    parts += [section(key, name, content[name]) for key, name in keys.items()]
    head = f"<h1>{escape(run.recipe.name or title)}</h1>\n{contents(keys)}"
    return Report(whole_page(run.recipe.name or title, head + "".join(parts)), album.files)


def groups_of(run: Run) -> pd.DataFrame:
    """Return mean and SD of each group by endpoint."""
    return read_table(run.root / "tables" / f"{run.recipe.kind}_groups.csv", ENDPOINT_GROUPS)


def groups_figure(
    run: Run, columns: Mapping[str, str], labels: Mapping[str, str], *, region: str, label: str, album: Album
) -> str:
    """Return a chart with every animal, and the table of its groups.

    Parameters
    ----------
    columns : endpoint -> str
        What is drawn, and how it is called there.
    labels : endpoint -> str
        How every endpoint is called in the table.
    """
    groups, kind = groups_of(run), run.recipe.kind
    wide = groups.pivot_table(index="group", columns="endpoint", values=["mean", "sd"], sort=False, dropna=False)
    drawn = wide["mean"][list(columns)].assign(region=region, **{f"{c}_sd": wide["sd"][c] for c in columns})
    chart = dots_chart(
        run.by_animal.assign(region=region), drawn.reset_index(), dict(columns), chart_id=kind, label=label
    )
    shown = ["group", "endpoint", "n_animals", "mean", "sd", "percent_change", "flags"]
    named = groups.assign(endpoint=groups["endpoint"].map(labels))
    return album.figure(chart, f"results_{kind}") + frame_table("Groups, over animals", named, shown, n_heads=2)


def cards(run: Run, table: pd.DataFrame, say: Callable[[pd.DataFrame], str], alt: str) -> Html:
    """Return the gallery of slides: the overview of each, and a line about it.

    Parameters
    ----------
    table : DataFrame
        Rows of all slides, with ``slide_id`` and ``group``.
    say : callable
        Given the rows of a slide, returns its line.
    alt : str
        What the picture shows.
    """
    figures = []
    for slide, how in run.state["slides"].items():
        own = table[table["slide_id"] == slide]
        line = say(own) if how == "done" else how
        picture = picture_of(slide, run.root / "slides" / slide, THUMBNAIL_PX, alt) if how == "done" else ""
        caption = f'<p class="name">{html(slide)}</p><p>{html(line)}</p>'
        group = own["group"].iloc[0] if len(own) else ""
        figures.append(f'<figure data-group="{html(group)}">{picture}<figcaption>{caption}</figcaption></figure>\n')
    return Html(f'<div class="slides">\n{"".join(figures)}</div>\n')


def corrected_animals(run: Run, name: str, schema: Schema, counted: list[str]) -> dict[str, tuple[pd.DataFrame, int]]:
    """Return the animals as they were measured, and beside it as reviewers left them; nothing without a review.

    Parameters
    ----------
    name : str
        Of the table in the folder of the review.
    counted : list of str
        Columns that are shown.
    """
    summary = corrections_summary(run.root)
    if not summary:
        return {}
    keys = ["animal", "group"]
    after = read_table(run.root / "review" / f"{name}.csv", schema)
    both = run.by_animal[keys + counted].merge(after[keys + counted], on=keys, suffixes=("", "_corrected"))
    who = ", ".join(one["who"] for one in summary["reviewers"])
    return {f"Corrected by hand ({who}; {summary['n_unmatched']} edits unmatched)": (both, 2)}
