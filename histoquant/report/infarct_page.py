"""`report.html` of an infarct study: one self-contained page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant.model.tables import ENDPOINT_GROUPS, FAILURES, INFARCT, INFARCT_SLICES, records
from histoquant.report.charts import dots_chart
from histoquant.report.effects import arrive, effects, left_out
from histoquant.report.gallery import THUMBNAIL_PX, picture_of
from histoquant.report.markup import Html, box, bullets, folded, frame_table, html, paragraph
from histoquant.report.methods import statistics_text
from histoquant.report.page import Report, contents, section, whole_page
from histoquant.report.paper import Album
from histoquant.report.run import Run, read_run, read_table

if TYPE_CHECKING:
    import pandas as pd

LABELS = {
    "direct_mm3": "Direct, mm³",
    "indirect_mm3": "Indirect, mm³",
    "ratio_mm3": "Ratio, mm³",
    "indirect_percent_hemisphere": "Indirect, % of the hemisphere",
    "swelling_percent": "Swelling, %",
}

FORMULAS = (
    "Direct is the infarct as it lies there. Indirect is what the undamaged rest of the hemisphere lacks against the "
    "other one (Swanson 1990): it takes swelling to be inside the infarct only. Ratio is the infarct's share of its "
    "hemisphere, of the size of the other one (McBride 2015, Reglodi 2002): it takes off the swelling round it too, "
    "and is larger. The study's declared volume is the {primary} one. Slices with a negative indirect area are kept."
)


def render_infarct(root: Path) -> Report:
    """Return the page about a folder that `histoquant infarct` wrote, and its figures.

    Raises
    ------
    InputError
        If a table is missing or damaged.
    """
    state = json.loads((root / "run.json").read_text(encoding="utf-8"))
    settings = state["recipe"]["infarct"]
    animals, groups = (
        read_table(root / "tables" / f"{name}.csv", schema)
        for name, schema in (("infarct", INFARCT), ("infarct_groups", ENDPOINT_GROUPS))
    )
    slices = read_table(root / "tables" / "infarct_slices.csv", INFARCT_SLICES)
    failures = read_table(root / "failures.csv", FAILURES)
    title = state["recipe"].get("name") or "Infarct volumes"
    album = Album()
    parts: list[str] = []
    if len(failures):
        rows = [f"{row.slide}: {row.error} {row.remedy}" for row in records(failures)]
        parts.append(box("bad", "Failed", bullets(rows)))
    flagged: dict[str, list[str]] = {}
    for row in records(animals):
        for flag in filter(None, row.flags.split("; ")):
            flagged.setdefault(flag, []).append(row.animal)
    if flagged:
        remarks = [f"{flag}: {', '.join(names)}" for flag, names in flagged.items()]
        parts.append(box("warn", "To look at", bullets(remarks)))
    primary = f"{settings['primary']}_mm3"
    run = read_run(root)
    content = {
        "Volumes": _results(animals, groups, primary, album),
        "Effects": effects(run, album),
        "Slices": _gallery(root, state, slices),
        "Left out": left_out(run),
        "Tables": _tables(animals, groups, slices),
        "Methods": infarct_methods(run),
        "ARRIVE 2.0": arrive(run),
    }
    keys = {name.lower().split(" ")[0]: name for name in content}
    parts += [section(key, name, content[name]) for key, name in keys.items()]
    head = f"<h1>{escape(title)}</h1>\n{contents(keys)}"
    return Report(whole_page(title, head + "".join(parts)), album.files)


def _results(animals: pd.DataFrame, groups: pd.DataFrame, primary: str, album: Album) -> str:
    wide = groups.pivot_table(index="group", columns="endpoint", values=["mean", "sd"], sort=False, dropna=False)
    columns = [primary, "swelling_percent"]
    drawn = wide["mean"][columns].assign(region="brain", **{f"{c}_sd": wide["sd"][c] for c in columns}).reset_index()
    chart = dots_chart(
        animals.assign(region="brain"),
        drawn,
        {column: f"{LABELS[column]}" + (" (declared)" if column == primary else "") for column in columns},
        chart_id="infarct",
        label="Infarct volume and swelling of every animal, with mean and SD of each group",
    )
    shown = ["group", "endpoint", "n_animals", "mean", "sd", "percent_change", "flags"]
    named = groups.assign(endpoint=groups["endpoint"].map(LABELS))
    return album.figure(chart, "results_infarct") + frame_table("Groups, over animals", named, shown, n_heads=2)


def _gallery(root: Path, state: dict[str, Any], slices: pd.DataFrame) -> Html:
    cards = []
    for slide, how in state["slides"].items():
        own = slices[slices["slide_id"] == slide]
        lines = [f"{how}"] if how != "done" else [f"{len(own)} slices, infarct {own['infarct_mm2'].sum():.0f} mm²"]
        folder = root / "slides" / slide
        picture = picture_of(slide, folder, THUMBNAIL_PX, "outlines, midlines and infarcts") if how == "done" else ""
        caption = f'<p class="name">{html(slide)}</p>' + "".join(f"<p>{html(line)}</p>" for line in lines)
        group = own["group"].iloc[0] if len(own) else ""
        cards.append(f'<figure data-group="{html(group)}">{picture}<figcaption>{caption}</figcaption></figure>\n')
    return Html(f'<div class="slides">\n{"".join(cards)}</div>\n')


def _tables(animals: pd.DataFrame, groups: pd.DataFrame, slices: pd.DataFrame) -> str:
    return "".join(
        folded(name, frame_table(name, table, list(table.columns), n_heads=heads))
        for name, table, heads in (("Animals", animals, 2), ("Groups by endpoint", groups, 2), ("Slices", slices, 4))
    )


def infarct_methods(run: Run) -> Html:
    """Return how infarcts were measured and compared."""
    settings = run.state["recipe"]["infarct"]
    told = (
        "Slices were found by colour, parted where they touch, and divided at a midline through the notches of the "
        "longitudinal fissure. Tissue was called pale when less than "
        f"{100 * settings['pale_below']:g} % of the redness of the hemisphere without lesion, on the same picture, was "
        "left; pale tissue with a pale mirror image is white matter unless it is thicker. "
        if settings["stain"] == "ttc"
        else "Slices, hemispheres and lesions were drawn by a person. "
    )
    distance = f"One slice stands for {settings['slice_thickness_um'] / 1000:g} mm. "
    by = f"Measured with histoquant {run.state['histoquant']}. "
    return paragraph(f"{told}{distance}{FORMULAS.format(primary=settings['primary'])} {by}{statistics_text(run)}")
