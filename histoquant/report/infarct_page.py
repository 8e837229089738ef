"""`report.html` of an infarct study: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoquant.model.tables import INFARCT, INFARCT_SLICES
from histoquant.report.animals_page import animals_page, cards, corrected_animals, groups_figure, groups_of
from histoquant.report.markup import Html, paragraph
from histoquant.report.methods import statistics_text
from histoquant.report.page import Report
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
    run, album = read_run(root), Album()
    slices = read_table(root / "tables" / "infarct_slices.csv", INFARCT_SLICES)
    primary = f"{run.state['recipe']['infarct']['primary']}_mm3"
    columns = {name: LABELS[name] for name in (primary, "swelling_percent")}
    columns[primary] += " (declared)"
    label = "Infarct volume and swelling of every animal, with mean and SD of each group"
    return animals_page(
        run,
        "Infarct volumes",
        album,
        ("Volumes", groups_figure(run, columns, LABELS, region="brain", label=label, album=album)),
        ("Slices", cards(run, slices, _line, "outlines, midlines and infarcts")),
        tables={
            "Animals": (run.by_animal, 2),
            **corrected_animals(run, "infarct", INFARCT, [primary, "swelling_percent"]),
            "Groups by endpoint": (groups_of(run), 2),
            "Slices": (slices, 4),
        },
        methods=infarct_methods(run),
    )


def _line(slices: pd.DataFrame) -> str:
    return f"{len(slices)} slices, infarct {slices['infarct_mm2'].sum():.0f} mm²"


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
