"""Dendrites and spines of a study: stacks in, densities by animal out.

A stack is the unit of work and of resume: its ``provenance.json`` is written last, and its folder is taken over by the
next start when the stack, its trace, the recipe and the network are what that says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from histoquant import cluster, registry, store
from histoquant.analysis.endpoints import endpoint_groups
from histoquant.analysis.spine_animals import animal_table
from histoquant.analysis.spine_network import WEIGHTS_SHA256
from histoquant.batch import Outcome, reference_of, write_pages
from histoquant.cores import available_cores
from histoquant.corrected_spines import write_corrected_spines
from histoquant.errors import HistoquantError, StudyError
from histoquant.exclusions import log_exclusions
from histoquant.inference import write_statistics
from histoquant.inputs import Checked
from histoquant.model.design import SPINE_MEASURES
from histoquant.model.recipe import Recipe
from histoquant.model.study import StudySlide, inside
from histoquant.model.tables import DENDRITES, FAILURES, SPINES, empty, shaped
from histoquant.report.run import read_table
from histoquant.report.spines_page import render_spines
from histoquant.runstate import Failure, Progress, RunState
from histoquant.spine_input import channel_of, recipe_of, voxel_of
from histoquant.spine_stack import analyse_stack
from histoquant.store import RunFolder

TRACE, Z_STEP = "trace", "z_step_um"
"""Columns of the sheet: a person's trace of the stack, relative to the sheet, and the distance of its planes."""


def check_spines(checked: Checked) -> list[Failure]:
    """Open every stack, compute nothing, and return all faults."""
    failures = []
    for row in checked.taken:
        try:
            slide = registry.open_slide(row.path, scene=row.scene, pixel_size_um=row.pixel_size_um)
            try:
                recipe_of(checked.recipe, brightfield=slide.brightfield)
                voxel_of(slide, None, z_step_um=_z_step(row))
                if not slide.brightfield:
                    slide.channel_index(channel_of(checked.recipe))
            finally:
                slide.close()
            trace = _trace(row, checked.study.folder)
            if trace is not None and not trace.is_file():
                raise StudyError(f"Slide '{row.slide_id}': there is no trace '{trace}'.", "Correct the column trace.")
        except HistoquantError as error:
            failures.append(Failure(row.slide_id, "check", error.message, error.remedy))
    return failures


def run_spines(
    checked: Checked,
    out: Path,
    *,
    workers: int | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Trace the dendrites of all stacks of a study and find their spines, into a run folder.

    Stacks are analysed by worker processes, one each; a stack that fails is listed and stops no other.

    Parameters
    ----------
    workers : int, optional
        Processes; as many as there are cores when not given. The tables do not depend on it.
    fresh : bool
        Forget what an earlier run left in the folder.

    Raises
    ------
    StoreError
        If the folder cannot be used, or another run works in it.
    """
    folder = RunFolder(out)
    with folder.held():
        if fresh:
            folder.clear()
        state = RunState(checked, folder, command)
        log_exclusions(out, checked.study)
        with state.under_way():
            _analyse(state, workers, progress)
            order = list(state.slides)
            state.failures.sort(key=lambda failure: order.index(failure.slide))
            _write_tables(state)
        state.write("failed" if state.failures else "done")
        if "done" in state.slides.values():
            state.notes += write_statistics(out).notes
            write_corrected_spines(out)
            write_pages(out, render_spines(out))
    return Outcome(out, len(checked.taken), tuple(state.failures), tuple(state.notes))


def _analyse(state: RunState, number: int | None, progress: Callable[[Progress], None]) -> None:
    """Analyse every stack that is not finished."""
    rows, folder = state.checked.taken, state.folder
    to_do = []
    for row in rows:
        if _finished(row, state.checked, folder):
            state.enter(row.slide_id, "finish")
            state.enter(row.slide_id, "done")
        else:
            to_do.append(row)
    done = len(rows) - len(to_do)
    progress(Progress(done, len(rows), f"{done} stack(s) kept from before" if done else "stacks"))
    if not to_do:
        return
    (folder.root / "slides").mkdir(exist_ok=True)
    wanted = min(available_cores() if number is None else number, len(to_do))
    with cluster.workers(wanted) as pool:
        asked: dict[Future[Any], StudySlide] = {}
        for row in to_do:
            state.enter(row.slide_id, "finish")
            target, base = folder.slide(row.slide_id), state.checked.study.folder
            asked[pool.submit(_one, row, state.checked.recipe, target, base)] = row
        state.write("running")
        for future in as_completed(asked):
            row = asked[future]
            done += 1
            try:
                notes = future.result()
            except HistoquantError as error:
                state.fail(Failure(row.slide_id, "spines", error.message, error.remedy))
                progress(Progress(done, len(rows), f"FAILED {row.slide_id}: {error.message}"))
                continue
            state.enter(row.slide_id, "done")
            state.log(row.slide_id, *(f"note: {note}" for note in notes))
            state.touch()
            progress(Progress(done, len(rows), row.slide_id))


def _one(row: StudySlide, recipe: Recipe, target: Path, base: Path) -> list[str]:
    """Analyse one stack into its folder, in a worker; return what to know of it."""
    found = analyse_stack(
        row.path,
        target,
        traced=_trace(row, base),
        recipe=recipe,
        scene=row.scene,
        pixel_um=row.pixel_size_um,
        z_step_um=_z_step(row),
        about=_about(row),
    )
    return [*found["flags"], *found["notes"]]


def _about(row: StudySlide) -> dict[str, str]:
    return {"slide_id": row.slide_id, "animal": row.animal, "group": row.group}


def _trace(row: StudySlide, base: Path) -> Path | None:
    text = row.extra.get(TRACE, "")
    return inside(text, base, False) if text else None


def _z_step(row: StudySlide) -> float | None:
    text = row.extra.get(Z_STEP, "")
    if not text:
        return None
    try:
        step = float(text)
    except ValueError:
        step = math.nan
    if not (math.isfinite(step) and step > 0):
        raise StudyError(f"Slide '{row.slide_id}': z_step_um is '{text}'.", "Write a number of um above 0.")
    return step


def _finished(row: StudySlide, checked: Checked, folder: RunFolder) -> bool:
    """Return whether an earlier run finished a stack from the same files, with the same recipe and network."""
    try:
        told = json.loads((folder.slide(row.slide_id) / "provenance.json").read_text(encoding="utf-8"))
        trace = _trace(row, checked.study.folder)
        same: bool = (
            told["fingerprint"] == checked.recipe.fingerprint()
            and told["scorer_sha256"] == WEIGHTS_SHA256
            and told["slide"] == _about(row)
            and told["stated"] == [row.scene, row.pixel_size_um, _z_step(row)]
            and (told["trace"] or {}).get("sha256") == (None if trace is None else store.sha256_of(trace))
            and told["sources"] == {file.name: store.sha256_of(file) for file in registry.slide_files(row.path)}
        )
    except (OSError, ValueError, KeyError, TypeError, HistoquantError):
        return False
    return same


def _write_tables(state: RunState) -> None:
    """Write the study's tables from those of the stacks, and the list of failures."""
    import pandas as pd

    folder = state.folder
    listed = pd.DataFrame([vars(failure) for failure in state.failures], columns=list(FAILURES))
    store.write_csv(folder.root / "failures.csv", listed, make_folder=False)
    done = [row.slide_id for row in state.checked.taken if state.slides[row.slide_id] == "done"]
    held = {}
    for name, schema in (("dendrites", DENDRITES), ("spines", SPINES)):
        tables = [read_table(folder.slide(slide) / f"{name}.csv", schema) for slide in done]
        tables = [table for table in tables if len(table)]
        held[name] = shaped(pd.concat(tables, ignore_index=True), schema) if tables else empty(schema)
        store.write_csv(folder.table(f"all_{name}"), held[name])
    rows = [row for row in state.checked.taken if not row.control]
    animals = animal_table(
        held["dendrites"],
        held["spines"],
        stacks=[(row.slide_id, row.animal, row.group) for row in rows],
        lost={row.animal for row in rows if row.slide_id not in done},
    )
    store.write_csv(folder.table("spines"), animals)
    groups = endpoint_groups(animals, SPINE_MEASURES, reference_of(state.checked), known="spines_per_10um")
    store.write_csv(folder.table("spines_groups"), groups)
