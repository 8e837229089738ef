"""Infarct volumes of a study: pictures of brain slices in, volumes by animal out.

A picture takes seconds, so nothing is kept from one start to the next but the outlines. A person corrects lesions in a
review, or any outline in ``slides/<id>/outlines.geojson``, to be named in the sheet's column ``regions``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import __version__, store
from histoquant.analysis.endpoints import endpoint_groups
from histoquant.analysis.infarct import FORMULAS
from histoquant.analysis.infarct_animals import animal_table
from histoquant.analysis.slice_outlines import Outlined, outlined
from histoquant.analysis.ttc import Side
from histoquant.batch import Outcome, reference_of, write_pages
from histoquant.corrected_infarct import write_corrected_infarct
from histoquant.errors import HistoquantError, InputError, RecipeError, StudyError
from histoquant.exclusions import log_exclusions
from histoquant.inference import write_statistics
from histoquant.inputs import Checked
from histoquant.job import Job, open_slide, release, source_hashes
from histoquant.model.infarct import InfarctSettings
from histoquant.model.recipe import Segment
from histoquant.model.study import StudySlide
from histoquant.model.tables import FAILURES, INFARCT_SLICES, empty, shaped
from histoquant.picture import Picture, shrink
from histoquant.readers.outlines import read_outlines, write_geojson
from histoquant.report.infarct_page import render_infarct
from histoquant.report.slices_figure import draw_slices
from histoquant.runstate import Failure, Progress, RunState
from histoquant.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd

WORKING_UM = 60.0
"""Size of the pixels that slices are found in; a slice is 10 mm across."""

SIDES: dict[str, Side] = {"left": "left", "l": "left", "right": "right", "r": "right"}


def settings_of(checked: Checked) -> InfarctSettings:
    """Return what the recipe says about infarcts.

    Raises
    ------
    RecipeError
        If it says nothing.
    """
    if checked.recipe.infarct is None:
        raise RecipeError("The recipe has no [infarct].", "Start from workflows/recipes/ttc.toml.")
    return checked.recipe.infarct


def check_infarct(checked: Checked) -> list[Failure]:
    """Open every picture and its outlines, compute nothing, and return all faults."""
    settings_of(checked)
    failures = []
    for row in checked.taken:
        try:
            _read(row, settings_of(checked))
        except HistoquantError as error:
            failures.append(Failure(row.slide_id, "check", error.message, error.remedy))
        finally:
            release()
    return failures


def run_infarct(
    checked: Checked,
    out: Path,
    *,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Measure the infarcts of a study into a folder.

    Raises
    ------
    RecipeError
        If the recipe has no ``[infarct]``.
    StoreError
        If the folder cannot be used, or another run works in it.
    """
    settings, folder = settings_of(checked), RunFolder(out)
    with folder.held():
        log_exclusions(out, checked.study)
        state = RunState(checked, folder, command)
        with state.under_way():
            tables = _all_measured(state, settings, progress)
            _write_tables(state, tables, settings)
        state.write("failed" if state.failures else "done")
        if tables:
            state.notes += write_statistics(out).notes
            write_corrected_infarct(out)
            write_pages(out, render_infarct(out))
        progress(Progress(len(checked.taken), len(checked.taken), "done"))
    return Outcome(out, len(checked.taken), tuple(state.failures), tuple(state.notes))


def _all_measured(
    state: RunState, settings: InfarctSettings, progress: Callable[[Progress], None]
) -> list[pd.DataFrame]:
    """Measure every picture, and return the tables of slices of those that did not fail."""
    tables, rows = [], state.checked.taken
    for done, row in enumerate(rows):
        progress(Progress(done, len(rows), row.slide_id))
        state.enter(row.slide_id, "finish")
        try:
            table, notes = _measured(Job(row, state.checked.recipe, state.folder.root), settings)
        except HistoquantError as error:
            state.fail(Failure(row.slide_id, "infarct", error.message, error.remedy))
            continue
        finally:
            release()
        tables.append(table)
        state.enter(row.slide_id, "done")
        state.log(row.slide_id, *(f"note: {note}" for note in notes))
        state.touch()
    return tables


def _read(row: StudySlide, settings: InfarctSettings) -> tuple[Picture, float, list[Any], Side | None]:
    """Return a picture, the size of its pixels in um, its outlines and the side of its lesion."""
    slide = open_slide(row)
    px = slide.pixel_size_um
    if settings.stain == "ttc" and len(slide.channels) < 3:
        raise InputError(
            f"Slide '{row.slide_id}' is no colour picture.", "Photograph in colour, or give stain = 'outlines'."
        )
    stated = row.hemisphere.strip().casefold()
    if stated and stated not in SIDES:
        raise StudyError(
            f"Slide '{row.slide_id}': hemisphere is '{row.hemisphere}'.", "Write left or right, as in the picture."
        )
    if settings.stain == "outlines" and row.regions is None:
        raise StudyError(f"Slide '{row.slide_id}' has no outlines.", "Name them in the column regions.")
    drawn = read_outlines(row.regions, px) if row.regions is not None else []
    indices = tuple(range(min(3, len(slide.channels))))
    return shrink(slide, indices, Segment(), coarse_um=WORKING_UM), px, drawn, SIDES.get(stated)


def _measured(job: Job, settings: InfarctSettings) -> tuple[pd.DataFrame, list[str]]:
    """Measure one picture, write its folder, and return the table of its slices and what to know of it."""
    row = job.slide
    picture, px, drawn, side = _read(row, settings)
    colour = picture.means if settings.stain == "ttc" else None
    try:
        found = outlined(colour, picture.px * px, drawn, settings, side)
    except HistoquantError as error:
        raise InputError(f"Slide '{row.slide_id}': {error.message}", error.remedy) from error
    table = _slice_table(row, found)
    target = job.folder.slide(row.slide_id)
    store.write_csv(target / "slices.csv", table)
    write_geojson(target / "outlines.geojson", [r for one in found.slices for r in one.regions()], px)
    top = float(picture.means.max())
    shown = np.moveaxis(picture.means / (255.0 if top <= 255 else top), 0, -1)
    texts = [f"{one.areas(found.side).infarct:.1f} mm²" for one in found.slices]
    with store.whole_file(target / "overview.png") as temporary:
        draw_slices(
            temporary,
            np.repeat(shown, 3, axis=2) if shown.shape[2] < 3 else shown,
            picture.px * px,
            title=row.slide_id,
            slices=[
                (one.number, one.tissue, one.midline, one.lesion, text)
                for one, text in zip(found.slices, texts, strict=True)
            ],
            subtitle=f"lesion {found.side}; outlines white, midline blue, infarct yellow",
        )
    told = None if found.redness is None else vars(found.redness) | {"limit": found.redness.limit(settings.pale_below)}
    store.write_json(
        target / "provenance.json",
        {
            "slide": {"slide_id": row.slide_id, **job.identity},
            "sources": source_hashes(job),
            "regions_sha256": None if row.regions is None else store.sha256_of(row.regions),
            "pixel_size_um": px,
            "recipe": settings.model_dump(mode="json"),
            "side": found.side,
            "redness": told,
            "notes": found.notes,
            "warnings": sorted({flag for one in found.slices for flag in one.all_flags(found.side)}),
            "histoquant": __version__,
        },
    )
    return table, found.notes


def _slice_table(row: StudySlide, found: Outlined) -> pd.DataFrame:
    import pandas as pd

    whose = {"slide_id": row.slide_id, "animal": row.animal, "group": row.group}
    rows = [whose | one.as_row(found.side) for one in found.slices]
    return shaped(pd.DataFrame(rows), INFARCT_SLICES)


def _write_tables(state: RunState, tables: Sequence[pd.DataFrame], settings: InfarctSettings) -> None:
    import pandas as pd

    folder = state.folder
    listed = pd.DataFrame([vars(failure) for failure in state.failures], columns=list(FAILURES))
    store.write_csv(folder.root / "failures.csv", listed, make_folder=False)
    slices = pd.concat(tables, ignore_index=True) if tables else empty(INFARCT_SLICES)
    store.write_csv(folder.table("infarct_slices"), slices)
    failed = {failure.slide for failure in state.failures}
    lost = {row.animal for row in state.checked.taken if row.slide_id in failed}
    group_of = {row.animal: row.group for row in state.checked.taken if not row.control}
    animals = animal_table(slices, settings, lost, group_of)
    store.write_csv(folder.table("infarct"), animals)
    endpoints = [*(f"{name}_mm3" for name in FORMULAS), "indirect_percent_hemisphere", "swelling_percent"]
    groups = endpoint_groups(
        animals, endpoints, reference_of(state.checked), known="direct_mm3", differences=("swelling_percent",)
    )
    store.write_csv(folder.table("infarct_groups"), groups)
