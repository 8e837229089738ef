"""A run done again from what its ``run.json`` says, and compared with what it left."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant import store
from histoquant.batch import Outcome, Progress, run_study
from histoquant.errors import HistoquantError, InputError, StoreError, raise_all
from histoquant.inputs import restated_inputs, single_faults
from histoquant.job import Job, source_hashes
from histoquant.journal import FOLDER, journal_paths
from histoquant.report.run import FINISHED, corrections_summary
from histoquant.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd

COMPARED = (
    "tables/*.csv",
    "slides/*/cells.parquet",
    "slides/*/regions.csv",
    "slides/*/sensitivity.csv",
    "slides/*/marker_objects.csv",
    "slides/*/labels.ome.tif",
    "slides/*/regions.geojson",
    "review/*.csv",
)
"""What a run and its repeat must share to the byte. Pictures, the report and provenance name versions and places."""


@dataclass(frozen=True)
class Repeated:
    """How a repeat compares with the run it repeats.

    Attributes
    ----------
    compared : tuple of str
        Files looked at, relative to the run folders.
    differences : tuple of str
        One line per file that is not the same: which, and in what.
    versions : tuple of str
        What was installed otherwise in the first run.
    """

    outcome: Outcome
    compared: tuple[str, ...]
    differences: tuple[str, ...]
    versions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return what was found by name, for JSON."""
        return {name: list(getattr(self, name)) for name in ("compared", "differences", "versions")}


def repeat_run(
    root: Path,
    out: Path,
    *,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    **settings: Any,
) -> Repeated:
    """Do a run again, into another folder, and compare.

    Parameters
    ----------
    root : Path
        Folder of a finished run.
    out : Path
        Folder for the repeat: new or empty, or that of a repeat that was interrupted.
    settings
        What `run_study` takes besides: ``workers`` and the like. No result depends on them.

    Raises
    ------
    InputError, Faults
        If ``root`` holds no finished run, ``out`` holds one, or sources are missing or changed; all are named.
    """
    state = finished_state(root)
    if RunFolder(out).state().get("state") in FINISHED:
        raise InputError(
            f"The folder '{out}' holds a finished run already; a repeat computes everything anew.",
            "Name a new --out, or delete the folder.",
        )
    checked, journals = restated_inputs(state), _journals(root)
    if checked.recipe.kind != "cells":
        raise InputError(
            f"The run in '{root}' is of {checked.recipe.kind}; only runs of cells are repeated and compared.",
            "Run its sheet and recipe again into another folder.",
        )
    rows = checked.taken
    faults: list[HistoquantError] = []
    for number, row in enumerate(rows):
        progress(Progress(number, len(rows), f"{row.slide_id}: is it the file that was analysed"))
        faults += _source_faults(Job(row, checked.recipe, out), state["inputs"].get(row.slide_id))
    raise_all(faults)
    _bring(journals, out)
    outcome = run_study(checked, out, command=command, progress=progress, **settings)
    names = sorted(
        {str(p.relative_to(base).as_posix()) for base in (root, out) for g in COMPARED for p in base.glob(g)}
    )
    return Repeated(
        outcome,
        tuple(names),
        tuple(f"{name}: {what}" for name in names if (what := _difference(root / name, out / name))),
        tuple(_other_versions(state, RunFolder(out).state())),
    )


def _journals(root: Path) -> list[Path]:
    """Return the journals of a run's corrections, which are an input of it as its outlines are.

    Raises
    ------
    InputError
        If its tables are not those of its journals, so that a repeat could not be compared.
    """
    found = journal_paths(root)
    told = {one["journal"]: one["sha256"] for one in corrections_summary(root).get("reviewers", [])}
    if {path.name: store.sha256_of(path) for path in found} != told:
        raise InputError(
            f"The corrections in '{root / FOLDER}' are newer than the tables.",
            f"Write the tables anew first: histoquant report {root}",
        )
    return found


def _bring(journals: Sequence[Path], out: Path) -> None:
    try:
        for path in journals:
            (out / FOLDER).mkdir(parents=True, exist_ok=True)
            store.write_bytes(out / FOLDER / path.name, path.read_bytes())
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"Cannot write in '{out}': {error.strerror or error}.", "Name another --out.") from error


def finished_state(root: Path) -> dict[str, Any]:
    """Return the ``run.json`` of a finished run.

    Raises
    ------
    InputError
        If there is none, or the run is not finished.
    """
    if not (root / "run.json").is_file():
        raise InputError(f"'{root}' holds no run: there is no run.json.", "Name the folder given to run as --out.")
    state = RunFolder(root).state()
    if state.get("state") not in FINISHED or "inputs" not in state:
        raise InputError(
            f"The run in '{root}' is not finished (state '{state.get('state', '?')}').",
            "Finish it first: the command that made it goes on where it stopped.",
        )
    return state


def _source_faults(job: Job, told: Mapping[str, Any] | None) -> Iterator[HistoquantError]:
    """Yield what is missing or changed since the run; of a slide that failed then, nothing is known to compare."""
    if told is None:
        return
    row = job.slide
    try:
        found = source_hashes(job)
        regions = store.sha256_of(row.regions) if row.regions else None
    except HistoquantError as error:
        yield from single_faults(error)
        return
    except OSError as error:
        yield InputError(
            f"Slide '{row.slide_id}': cannot read '{error.filename}': {error.strerror or error}.", "Put the file back."
        )
        return
    changed = [name for name in {**told["sources"], **found} if found.get(name) != told["sources"].get(name)]
    if row.regions and regions != told["regions_sha256"]:
        changed.append(row.regions.name)
    for name in changed:
        yield InputError(
            f"Slide '{row.slide_id}': '{name}' is not as it was when it was analysed (sha256 in run.json).",
            "Put that file back, or analyse the study anew with its sheet and recipe.",
        )


def _difference(first: Path, second: Path) -> str:
    """Return in what two files differ; empty when they are the same to the byte."""
    for path, whose in ((first, "first run"), (second, "repeat")):
        if not path.is_file():
            return f"is not in the {whose}"
    if filecmp.cmp(first, second, shallow=False):
        return ""
    if first.suffix not in (".csv", ".parquet"):
        return "differs"
    return _tables_difference(_table(first), _table(second))


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False, dtype=str)


def _tables_difference(first: pd.DataFrame, second: pd.DataFrame) -> str:
    names, others = list(map(str, first)), list(map(str, second))
    if names != others:
        return f"other columns ({', '.join(sorted({*names} ^ {*others})) or 'in another order'})"
    if len(first) != len(second):
        return f"{len(first)} rows in the first run, {len(second)} in the repeat"
    unequal = {name: (first[name] != second[name]) & (first[name].notna() | second[name].notna()) for name in names}
    told = [f"{name} in {n} row(s)" for name, rows in unequal.items() if (n := int(rows.sum()))]
    return f"differs in {', '.join(told)}" if told else "same values, but not the same bytes (another library wrote it)"


def _other_versions(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between what two runs were made with."""
    for name in ("histoquant", "result_version"):
        if first.get(name) != second.get(name):
            yield f"{name}: {first.get(name)}, now {second.get(name)}"
    for name in dict.fromkeys((*first.get("versions", {}), *second.get("versions", {}))):
        before, after = (state.get("versions", {}).get(name, "not installed") for state in (first, second))
        if before != after:
            yield f"{name}: {before}, now {after}"
    before, after = (first.get("plugins", []), second.get("plugins", []))
    yield from (f"plug-in then: {name}" for name in before if name not in after)
    yield from (f"plug-in now: {name}" for name in after if name not in before)
    before, after = (state.get("machine", {}).get("platform") for state in (first, second))
    if before != after:
        yield f"platform: {before}, now {after}"
