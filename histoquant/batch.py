"""A whole study: many slides, resume, thresholds by staining batch, and the honest list of failures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histoquant import store
from histoquant.analysis.counting import count_animals, count_groups
from histoquant.analysis.stain_scores import score_animals
from histoquant.analysis.translocation import translocated
from histoquant.cluster import Inline, Limits
from histoquant.cluster.profile import Profile
from histoquant.corrected import write_corrected
from histoquant.corrected_infarct import write_corrected_infarct
from histoquant.corrected_spines import write_corrected_spines
from histoquant.exclusions import log_exclusions
from histoquant.inference import write_statistics
from histoquant.inputs import Checked
from histoquant.job import release
from histoquant.journal import read_journals
from histoquant.means import Means, analysed
from histoquant.model.tables import FAILURES, REGIONS, SENSITIVITY, STAIN_SCORES, TRANSLOCATION, empty, shaped
from histoquant.report.html import render_report
from histoquant.report.infarct_page import render_infarct
from histoquant.report.page import Report
from histoquant.report.paper import FIGURE_NAMES, FIGURES
from histoquant.report.spines_page import render_spines
from histoquant.runstate import Failure, Progress, RunState
from histoquant.schedule import check_slides
from histoquant.steps import Extent, SlideReport
from histoquant.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Failure", "Outcome", "Progress", "check_study", "run_study", "write_pages", "write_report"]

REFERENCE_NAMES = ("vehicle", "sham", "saline", "placebo", "control")
"""A group of one of these names is what the others are compared with, unless the recipe names another."""

NO_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    root: Path
    n_slides: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def check_study(checked: Checked) -> tuple[dict[str, Extent], list[Failure]]:
    """Open every slide in this process, compute nothing.

    Returns
    -------
    extents : slide_id -> Extent
        Of the sound slides, how much work each is.
    failures : list of Failure
        All faults of all other slides.
    """
    extents, failures = check_slides(checked, Inline())
    release()
    return extents, failures


def run_study(
    checked: Checked,
    out: Path,
    *,
    workers: int | None = None,
    limits: Limits = NO_LIMITS,
    profile: Profile | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Analyse a study into a run folder.

    Slides are opened and analysed by worker processes only, so that a plug-in that crashes takes one slide with it and
    not the run. A script that calls this needs the usual ``if __name__ == "__main__":``.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; as many as there are cores when not given. The tables do not depend on it.
    limits : Limits
        Memory of the run and time of a block.
    profile : Profile, optional
        Where slides are analysed; processes on this machine when not given. They are opened here in any case, so that
        no job waits in a queue for a slide that is not there.
    fresh : bool
        Forget what an earlier run left in the folder.

    Raises
    ------
    InputError
        If not even one tile fits into the memory.
    StoreError
        If the folder cannot be used, or another run works in it; what is finished is kept.
    ClusterError
        If the cluster gives no workers; what is finished is kept.
    """
    folder = RunFolder(out)
    with folder.held():
        read_journals(out)  # what is wrong with them is said now, not after a weekend
        log_exclusions(out, checked.study)
        if fresh:
            folder.clear()
        state = RunState(checked, folder, command)
        with state.under_way():
            failures, reports = analysed(state, Means(workers, limits, profile), progress)
            _write_tables(state, failures, reports)
        state.write("failed" if failures else "done")
        if reports:
            state.notes += write_statistics(out).notes
            write_report(out)
    return Outcome(out, len(checked.taken), tuple(failures), tuple(state.notes))


def write_report(root: Path) -> Path:
    """Write ``report.html`` and ``figures/`` of a finished run; corrections made by hand are replayed first.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InputError
        If the folder holds no finished run.
    FormatError, Faults
        If journals of corrections are damaged.
    """
    recipe = RunFolder(root).state().get("recipe", {})
    for part, correct, render in (
        ("infarct", write_corrected_infarct, render_infarct),
        ("spines", write_corrected_spines, render_spines),
    ):
        if recipe.get(part) is not None:
            correct(root)
            return write_pages(root, render(root))
    write_corrected(root)
    return write_pages(root, render_report(root))


def write_pages(root: Path, report: Report) -> Path:
    """Write a report and its figures, and return where the page is.

    Figures of an earlier report that are no longer among them go; other files in the folder stay.
    """
    for name, content in report.figures.items():
        store.write_bytes(root / name, content)
    for old in (root / FIGURES).glob("*"):
        if f"{FIGURES}/{old.name}" not in report.figures and re.fullmatch(FIGURE_NAMES, old.name):
            old.unlink()
    path = root / "report.html"
    store.write_bytes(path, report.page.encode("utf-8"), make_folder=False)
    return path


def _write_tables(state: RunState, failures: Sequence[Failure], reports: dict[str, SlideReport]) -> None:
    """Write the study's tables and the list of failures."""
    import pandas as pd

    folder = state.folder
    listed = pd.DataFrame([vars(failure) for failure in failures], columns=list(FAILURES))
    store.write_csv(folder.root / "failures.csv", listed, make_folder=False)
    regions = _stacked((report.regions for report in reports.values()), REGIONS)
    curve = _stacked((report.sensitivity for report in reports.values()), SENSITIVITY)
    rows = [row for row in state.checked.study.included if not row.control]
    to_come = [row.animal for row in rows if row.slide_id in state.checked.waiting]
    lost = [row.animal for row in state.checked.taken if not row.control and row.slide_id not in reports]
    animals = count_animals(
        regions[regions["control"] == ""],
        failed=Counter(lost),
        groups={row.animal: row.group for row in rows},
        waiting=Counter(to_come),
    )
    store.write_csv(folder.table("regions"), regions)
    store.write_csv(folder.table("animals"), animals)
    store.write_csv(folder.table("groups"), count_groups(animals, reference_group=reference_of(state.checked)))
    store.write_csv(folder.table("sensitivity"), curve)
    scores = _stacked((report.stain_scores for report in reports.values()), STAIN_SCORES)
    if len(scores):
        store.write_csv(folder.table("stain_scores"), scores)
        scored = score_animals(scores[scores["control"] == ""])
        scored = scored[~scored["animal"].isin(lost)]  # an animal that lost a section has no score of all its sections
        store.write_csv(folder.table("stain_scores_animals"), scored)
    moved = _translocation(state, reports)
    if len(moved):
        store.write_csv(folder.table("translocation"), moved)


def _translocation(state: RunState, reports: dict[str, SlideReport]) -> pd.DataFrame:
    """Return which share of cells has a marker in the nucleus, by the ratios of the controls of their batch."""
    import pandas as pd

    panel = state.checked.recipe.panel
    if not any(marker.translocation for marker in panel.values()):
        return empty(TRANSLOCATION)
    cells = []
    for row in state.checked.taken:
        if row.slide_id in reports:
            of_slide = pd.read_parquet(state.folder.slide(row.slide_id) / "cells.parquet")
            identity = {"slide_id": row.slide_id, "animal": row.animal, "group": row.group}
            cells.append(of_slide.assign(**identity, batch=row.batch, control=row.control))
    return translocated(pd.concat(cells, ignore_index=True), panel) if cells else empty(TRANSLOCATION)


def reference_of(checked: Checked) -> str:
    """Return the group that the others are compared with."""
    groups = list(dict.fromkeys(row.group for row in checked.study.included if not row.control))
    if checked.recipe.count.reference_group is not None:
        return checked.recipe.count.reference_group
    known = [group for group in groups if group.casefold() in REFERENCE_NAMES]
    return (known or groups)[0]


def _stacked(tables: Iterable[pd.DataFrame], schema: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    held = list(tables)
    return shaped(pd.concat(held, ignore_index=True), schema) if held else empty(schema)
