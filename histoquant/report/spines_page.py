"""`report.html` of a study of dendrites: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoquant.model.tables import DENDRITES, SPINE_ANIMALS, SPINES
from histoquant.report.animals_page import animals_page, cards, corrected_animals, groups_figure, groups_of
from histoquant.report.effects import MEASURES
from histoquant.report.markup import Html, paragraph
from histoquant.report.methods import statistics_text
from histoquant.report.page import Report
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
    run, album = read_run(root), Album()
    dendrites, spines = (
        read_table(root / "tables" / f"all_{name}.csv", schema)
        for name, schema in (("dendrites", DENDRITES), ("spines", SPINES))
    )
    columns = {name: MEASURES[name] for name in ("spines_per_10um", "spine_length_um", "head_width_um")}
    label = "Density, length and width of spines of every animal, with mean and SD of each group"
    note = paragraph("Every dendrite drawn straight, with its spines, is in slides/<slide>/strips.png.")
    classes = spines.groupby(["slide_id", "class"], sort=False).size().rename("n_spines").reset_index()
    return animals_page(
        run,
        "Dendrites and spines",
        album,
        ("Densities", groups_figure(run, columns, MEASURES, region="dendrite", label=label, album=album)),
        ("Stacks", note + cards(run, dendrites, _line, "traces and spines, projected")),
        tables={
            "Animals": (run.by_animal, 2),
            **corrected_animals(run, "animals", SPINE_ANIMALS, ["n_spines", "spines_per_10um"]),
            "Groups by endpoint": (groups_of(run), 2),
            "Dendrites": (dendrites[[name for name in dendrites if name not in ("region", "hidden_factor")]], 3),
            "Classes of spines by stack": (classes, 2),
        },
        methods=spines_methods(run),
    )


def _line(dendrites: pd.DataFrame) -> str:
    length, n = dendrites["length_um"].sum(), int(dendrites["n_spines"].sum())
    return f"{len(dendrites)} dendrite(s), {length:,.0f} µm, {n} spines"


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
        + ". Spines are places beside the shaft that a small network takes for their heads with at least "
        f"{settings['min_score']:g}; where a dendrite bears few other sure ones, each needs more, "
        "and a head between two dendrites is of the likelier. "
        f"Widths of heads are without the optics' blur of {settings['resolution_um']:g} um. "
        "An animal's density is all its included spines over the length of all its included dendrites, those without "
        f"spines among them. Classes follow rule set {settings['rules']}. {CLASSES} "
    )
    return paragraph(f"{text}Measured with histoquant {run.state['histoquant']}. {statistics_text(run)}")
