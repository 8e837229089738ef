"""A study of several assays on the same animals: each is a run of its own, then all are compared together.

Assays differ in everything that a run has one of: panel, thresholds by staining batch, regions, kind of picture. So
each has its own run folder, ``assays/<name>/``, which resumes, is reviewed and repeated like any other. What they share
are the animals: their endpoints are put side by side, and families of comparisons are adjusted over all assays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant import __version__, store
from histoquant.analysis.statistics import adjust
from histoquant.batch import NO_LIMITS, Outcome, check_study, reference_of, run_study, write_pages, write_report
from histoquant.cluster import Limits
from histoquant.cluster.profile import Profile
from histoquant.errors import InputError, StoreError
from histoquant.infarct import check_infarct, run_infarct
from histoquant.inference import Inference, write_statistics
from histoquant.inputs import Checked
from histoquant.model.tables import (
    ESTIMATES,
    EXCLUSIONS,
    FAILURES,
    NEXT_STUDY,
    P_ALONE,
    STATISTICS,
    Schema,
    empty,
    shaped,
)
from histoquant.report.run import read_run
from histoquant.report.study_page import ASSAYS, STUDY, render_study
from histoquant.runstate import Failure, Progress
from histoquant.spine_study import check_spines, run_spines

if TYPE_CHECKING:
    import pandas as pd

JOINT: dict[str, Schema] = {
    "statistics": STATISTICS,
    "estimates": ESTIMATES | P_ALONE,
    "next_study": NEXT_STUDY,
    "exclusions": EXCLUSIONS,
}
"""Tables that are written for all assays together, with a column ``assay`` before the others."""


def is_joint(root: Path) -> bool:
    """Return whether a folder holds a study of several assays."""
    return (root / STUDY).is_file()


def assay_folders(root: Path) -> dict[str, Path]:
    """Return the run folders of a study of several assays, by assay.

    Raises
    ------
    InputError
        If the study's file is damaged.
    """
    try:
        names = json.loads((root / STUDY).read_text(encoding="utf-8"))["assays"]
        return {str(name): root / ASSAYS / str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Cannot use '{root / STUDY}': {error!r}.", "Run the study again; it goes on.") from error


def check_any(checked: Checked) -> list[Failure]:
    """Open every slide of a study of cells, infarcts or spines, compute nothing, and return all faults."""
    kind = checked.recipe.kind
    if kind == "cells":
        return check_study(checked)[1]
    return check_infarct(checked) if kind == "infarct" else check_spines(checked)


def check_assays(assays: Mapping[str, Checked]) -> tuple[list[str], list[Failure]]:
    """Open every slide of every assay, compute nothing; return the sound ones and all faults."""
    sound: list[str] = []
    failures: list[Failure] = []
    for name, checked in assays.items():
        found = check_any(checked)
        faulty = {failure.slide for failure in found}
        sound += [f"{name}/{row.slide_id}" for row in checked.taken if row.slide_id not in faulty]
        failures += [_of_assay(name, failure) for failure in found]
    return sound, failures


def run_assays(
    assays: Mapping[str, Checked],
    out: Path,
    *,
    workers: int | None = None,
    limits: Limits = NO_LIMITS,
    profile: Profile | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Run every assay of a study, then compare and report them together.

    Parameters
    ----------
    assays : assay -> Checked
        As `inputs.load_assays` gives them.
    out : Path
        Folder of the study. The other parameters are those of `batch.run_study`.

    Raises
    ------
    InputError
        If assays have different reference groups.
    StoreError
        If a folder cannot be used.
    """
    reference = _one_reference(assays)
    _claim(out)
    store.write_json(
        out / STUDY,
        {
            "schema": 1,
            "histoquant": __version__,
            "command": list(command),
            "reference_group": reference,
            "assays": {name: dict(checked.files.get("recipe_file", {})) for name, checked in assays.items()},
        },
    )
    failures: list[Failure] = []
    notes: list[str] = []
    n_slides = 0
    for name, checked in assays.items():

        def told(now: Progress, name: str = name) -> None:
            progress(replace(now, message=f"{name}: {now.message}"))

        folder = out / ASSAYS / name
        kind = checked.recipe.kind
        if kind == "infarct":
            outcome = run_infarct(checked, folder, command=command, progress=told)
        elif kind == "spines":
            outcome = run_spines(checked, folder, workers=workers, fresh=fresh, command=command, progress=told)
        else:
            outcome = run_study(
                checked,
                folder,
                workers=workers,
                limits=limits,
                profile=profile,
                fresh=fresh,
                command=command,
                progress=told,
            )
        n_slides += outcome.n_slides
        failures += [_of_assay(name, failure) for failure in outcome.failures]
        notes += [f"{name}: {note}" for note in outcome.notes]
    write_joint(out)
    return Outcome(out, n_slides, tuple(failures), tuple(notes))


def _claim(out: Path) -> None:
    """Make the folder of a study, or accept it when it is empty or holds one already.

    Raises
    ------
    StoreError
        If it holds something else, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise StoreError(f"Cannot use '{out}': {error.strerror or error}.", "Name another --out.") from error
    if held and STUDY not in held:
        raise StoreError(
            f"The folder '{out}' is not empty and holds no study of several assays.", "Name an empty or new --out."
        )


def compare_assays(root: Path, *, outcomes: Path | None = None) -> Inference:
    """Compare the groups in every assay again, then all together; the report follows."""
    found = {name: write_statistics(folder, outcomes=outcomes) for name, folder in assay_folders(root).items()}
    notes = [f"{name}: {note}" for name, each in found.items() for note in each.notes]
    return Inference(write_joint(root), tuple(notes))


def write_joint(root: Path) -> dict[str, pd.DataFrame]:
    """Write the tables and the report of all assays together, from those of each, and return the tables."""
    import pandas as pd

    runs = {name: read_run(folder) for name, folder in assay_folders(root).items()}
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in JOINT}
    failed = []
    for assay, run in runs.items():
        for name, held in parts.items():
            held.append(run.inferred.tables[name].assign(assay=assay))
        failed.append(run.failures.assign(slide=f"{assay}/" + run.failures["slide"]))
    tables = {name: _joined(held, JOINT[name]) for name, held in parts.items()}
    if len(tables["statistics"]):
        tables["statistics"] = _adjusted(tables["statistics"], tables["estimates"])
    for name, table in tables.items():
        store.write_csv(root / "tables" / f"{name}.csv", table)
    store.write_csv(root / "failures.csv", shaped(pd.concat(failed), FAILURES))
    write_pages(root, render_study(root))
    return tables


def write_reports(root: Path) -> Path:
    """Write the report of every assay, then that of the study, and return where the latter is."""
    for folder in assay_folders(root).values():
        write_report(folder)
    return write_pages(root, render_study(root))


def _joined(tables: Sequence[pd.DataFrame], schema: Schema) -> pd.DataFrame:
    import pandas as pd

    held = [table for table in tables if len(table)]
    schema = {"assay": "str"} | schema
    return shaped(pd.concat(held, ignore_index=True), schema) if held else empty(schema)


def _adjusted(statistics: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with p adjusted over all assays: a study asks its questions once."""
    import pandas as pd

    keys = ["assay", "endpoint", "region", "comparison"]
    rows = statistics.merge(estimates[[*keys, "family", "p_alone"]], on=keys, how="left", validate="1:1")
    told: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    adjust(told)
    return shaped(pd.DataFrame(told)[list(statistics.columns)], {"assay": "str"} | STATISTICS)


def _one_reference(assays: Mapping[str, Checked]) -> str:
    """Return the group that every assay compares with.

    Raises
    ------
    InputError
        If they do not agree.
    """
    held = {name: reference_of(checked) for name, checked in assays.items()}
    if len(set(held.values())) > 1:
        told = ", ".join(f"{name}: {group}" for name, group in held.items())
        raise InputError(
            f"The assays compare with different groups ({told}).", "Give each recipe the same count.reference_group."
        )
    return next(iter(held.values()))


def _of_assay(name: str, failure: Failure) -> Failure:
    return replace(failure, slide=f"{name}/{failure.slide}")
