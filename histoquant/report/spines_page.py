"""`report.html` of a study of dendrites: one self-contained page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant.model.tables import DENDRITES, ENDPOINT_GROUPS, FAILURES, SPINE_ANIMALS, SPINES, records
from histoquant.report.charts import dots_chart
from histoquant.report.effects import MEASURES, arrive, effects, left_out
from histoquant.report.gallery import THUMBNAIL_PX, picture_of
from histoquant.report.markup import Html, box, bullets, folded, frame_table, html, paragraph
from histoquant.report.methods import statistics_text
from histoquant.report.page import Report, contents, section, whole_page
from histoquant.report.paper import Album
from histoquant.report.run import Run, read_run, read_table

if TYPE_CHECKING:
    import pandas as pd

CLASSES = (
    "Classes cut a continuum: lengths and widths come first, and shares of classes are compared within one optics only."
)


def render_spines(root: Path) -> Report:
    """Return the page about a run of dendrites, and its figures.

    Raises
    ------
    InputError
        If a table is missing or damaged.
    """
    state = json.loads((root / "run.json").read_text(encoding="utf-8"))
    animals, groups, dendrites, spines = (
        read_table(root / "tables" / f"{name}.csv", schema)
        for name, schema in (
            ("spines", SPINE_ANIMALS),
            ("spines_groups", ENDPOINT_GROUPS),
            ("all_dendrites", DENDRITES),
            ("all_spines", SPINES),
        )
    )
    failures = read_table(root / "failures.csv", FAILURES)
    title = state["recipe"].get("name") or "Dendrites and spines"
    album = Album()
    parts: list[str] = []
    if len(failures):
        rows = [f"{row.slide}: {row.error} {row.remedy}" for row in records(failures)]
        parts.append(box("bad", "Failed", bullets(rows)))
    if flagged := [f"{row.animal}: {row.flags}" for row in records(animals) if row.flags]:
        parts.append(box("warn", "To look at", bullets(flagged)))
    run = read_run(root)
    content = {
        "Densities": _results(animals, groups, album),
        "Effects": effects(run, album),
        "Stacks": _gallery(root, state, dendrites),
        "Left out": left_out(run),
        "Tables": _tables(animals, groups, dendrites, spines),
        "Methods": spines_methods(run),
        "ARRIVE 2.0": arrive(run),
    }
    keys = {name.lower().split(" ")[0]: name for name in content}
    parts += [section(key, name, content[name]) for key, name in keys.items()]
    head = f"<h1>{escape(title)}</h1>\n{contents(keys)}"
    return Report(whole_page(title, head + "".join(parts)), album.files)


def _results(animals: pd.DataFrame, groups: pd.DataFrame, album: Album) -> str:
    columns = ["spines_per_10um", "spine_length_um", "head_width_um"]
    wide = groups.pivot_table(index="group", columns="endpoint", values=["mean", "sd"], sort=False, dropna=False)
    drawn = wide["mean"][columns].assign(region="dendrite", **{f"{c}_sd": wide["sd"][c] for c in columns}).reset_index()
    chart = dots_chart(
        animals.assign(region="dendrite"),
        drawn,
        {column: MEASURES[column] for column in columns},
        chart_id="spines",
        label="Density, length and width of spines of every animal, with mean and SD of each group",
    )
    shown = ["group", "endpoint", "n_animals", "mean", "sd", "percent_change", "flags"]
    named = groups.assign(endpoint=groups["endpoint"].map(MEASURES))
    return album.figure(chart, "results_spines") + frame_table("Groups, over animals", named, shown, n_heads=2)


def _gallery(root: Path, state: dict[str, Any], dendrites: pd.DataFrame) -> Html:
    cards = []
    for slide, how in state["slides"].items():
        own = dendrites[dendrites["slide_id"] == slide]
        n, length = int(own["n_spines"].sum()), own["length_um"].sum()
        lines = [how] if how != "done" else [f"{len(own)} dendrite(s), {length:,.0f} µm, {n} spines"]
        folder = root / "slides" / slide
        picture = (
            picture_of(slide, folder, THUMBNAIL_PX, "traces and spines on the projection") if how == "done" else ""
        )
        caption = f'<p class="name">{html(slide)}</p>' + "".join(f"<p>{html(line)}</p>" for line in lines)
        group = own["group"].iloc[0] if len(own) else ""
        cards.append(f'<figure data-group="{html(group)}">{picture}<figcaption>{caption}</figcaption></figure>\n')
    note = paragraph("Every dendrite drawn straight, with its spines, is in slides/<slide>/strips.png.")
    return Html(f'{note}<div class="slides">\n{"".join(cards)}</div>\n')


def _tables(animals: pd.DataFrame, groups: pd.DataFrame, dendrites: pd.DataFrame, spines: pd.DataFrame) -> str:
    classes = spines.groupby(["slide_id", "class"], sort=False).size().rename("n_spines").reset_index()
    return "".join(
        folded(name, frame_table(name, table, list(table.columns), n_heads=heads))
        for name, table, heads in (
            ("Animals", animals, 2),
            ("Groups by endpoint", groups, 2),
            ("Dendrites", dendrites[[name for name in dendrites if name not in ("region", "hidden_factor")]], 3),
            ("Classes of spines by stack", classes, 2),
        )
    )


def spines_methods(run: Run) -> Html:
    """Return how dendrites and spines were found, counted and compared."""
    settings = run.state["recipe"]["spines"]
    dark = settings["light"] == "dark"
    traced = sorted({"person" if told.get("trace") else "histoquant" for told in run.provenance.values()})
    by = {"person": "traced by a person and laid on their ridges", "histoquant": "traced in three dimensions"}
    text = (
        f"Dendrites were {' or '.join(by[who] for who in traced) or 'traced'} in "
        f"{'optical density' if dark else 'fluorescence'}; lengths are those of smoothed paths in um"
        + (f", depth times {settings['z_factor']:g}" if settings["z_factor"] != 1 else "")
        + ". Spines are bright spots beside the shaft that a scorer takes for spines with at least "
        f"{settings['min_score']:g}. An animal's density is all its included spines over the length of all its "
        f"included dendrites, those without spines among them. Classes follow rule set {settings['rules']}. {CLASSES} "
    )
    return paragraph(f"{text}Measured with histoquant {run.state['histoquant']}. {statistics_text(run)}")
