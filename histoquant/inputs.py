"""The two files a person writes, read and checked together: the sample sheet and the recipe."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from histoquant import store
from histoquant.analysis.mixed import require_statsmodels
from histoquant.cluster.profile import MAX_PROFILE_BYTES, Profile, parse_profile
from histoquant.controls import named_batch
from histoquant.errors import ClusterError, Faults, HistoquantError, InputError, RecipeError, StudyError, raise_all
from histoquant.model.panel import called_markers
from histoquant.model.recipe import Recipe, build_recipe, parse_recipe
from histoquant.model.study import RECIPE, Study, StudySlide, columns_of, inside, parse_study, with_rows
from histoquant.store import RunFolder
from histoquant.survey import segmenter_fingerprint, segmenter_parameters
from histoquant.work import rules_of

CELLS, KINDS = ("cells",), ("cells", "infarct", "spines")
"""Kinds of recipes: those that most commands take, and all."""

OTHER_KINDS = {
    "cells": ("the recipe is one of cells.", "Give one with [spines] or [infarct]."),
    "infarct": (
        "the recipe has no panel: it measures infarcts and counts no cells.",
        "Use histoquant infarct, or name the markers under [panel].",
    ),
    "spines": (
        "the recipe is one of spines; this command counts cells.",
        "Use histoquant run with a sheet of stacks, or histoquant spines with one stack.",
    ),
}
"""What is said when a command does not take a recipe, by its kind."""

MAX_SHEET_BYTES = 5_000_000
MAX_RECIPE_BYTES = 200_000
"""Ten thousand slides, and a hundred times the longest recipe. What is larger is another file, or made to do harm."""


@dataclass(frozen=True)
class Checked:
    """A study and recipe that fit together as far as can be seen without opening a slide.

    Attributes
    ----------
    files : mapping
        ``sheet`` and ``recipe_file`` where they were read from files: each with its ``path`` and ``sha256``.
    waiting : slide_id -> str
        Slides that are still to come, and why; the tables flag their animals as incomplete.
    """

    study: Study
    recipe: Recipe
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> tuple[StudySlide, ...]:
        """Slides to analyse: those that are neither left out nor still to come."""
        return tuple(row for row in self.study.included if row.slide_id not in self.waiting)


def load(
    study_path: Path,
    recipe_path: Path,
    *,
    allow_outside: bool = False,
    more: Sequence[Mapping[str, str]] = (),
    kinds: Collection[str] = CELLS,
) -> Checked:
    """Read a sample sheet and a recipe.

    Parameters
    ----------
    kinds : collection of str
        What the recipe may be of; see `Recipe.kind`.
    more : sequence of mappings
        Further rows, by column; those whose slide the sheet lists itself are left out.

    Raises
    ------
    HistoquantError
        Every fault of both, together.
    """
    faults: list[HistoquantError] = []
    study: Study | None = None
    recipe: Recipe | None = None
    try:
        text = read_text(study_path, StudyError, "sample sheet", MAX_SHEET_BYTES)
        text = with_rows(text, more, source=study_path.name) if more else text
        study = parse_study(text, study_path.parent, source=study_path.name, allow_outside=allow_outside)
    except HistoquantError as error:
        faults += single_faults(error)
    try:
        recipe = read_recipe(recipe_path, kinds=kinds)
    except HistoquantError as error:
        faults += single_faults(error)
    if study is not None and recipe is not None:
        faults += [*_batch_faults(study, recipe), *_statistics_faults(study, recipe)]
    raise_all(faults)
    assert study is not None
    assert recipe is not None
    files = {
        name: {"path": str(path.resolve()), "sha256": store.sha256_of(path)}
        for name, path in (("sheet", study_path), ("recipe_file", recipe_path))
    }
    return Checked(study, recipe, files)


def names_recipes(study_path: Path) -> bool:
    """Return whether a sample sheet has a column of recipes, and so may hold several assays."""
    text = read_text(study_path, StudyError, "sample sheet", MAX_SHEET_BYTES)
    return RECIPE in columns_of(text)


def load_assays(study_path: Path, *, allow_outside: bool = False) -> dict[str, Checked]:
    """Read a sample sheet whose rows name their recipes: a study of several assays on the same animals.

    Returns
    -------
    dict
        By assay, which is called like the file of its recipe: its rows and its recipe. Column ``recipe`` does not go
        with the rows; each assay is a study for itself.

    Raises
    ------
    HistoquantError
        Every fault of the sheet and of all recipes, together.
    """
    text = read_text(study_path, StudyError, "sample sheet", MAX_SHEET_BYTES)
    study = parse_study(text, study_path.parent, source=study_path.name, allow_outside=allow_outside)
    faults: list[HistoquantError] = [
        StudyError(f"{study_path.name}: slide '{row.slide_id}' names no recipe.", "Fill in the column recipe.")
        for row in study.slides
        if not row.extra.get(RECIPE)
    ]
    assays: dict[str, Checked] = {}
    for cell in dict.fromkeys(row.extra[RECIPE] for row in study.slides if row.extra.get(RECIPE)):
        rows = tuple(
            replace(row, extra={name: value for name, value in row.extra.items() if name != RECIPE})
            for row in study.slides
            if row.extra.get(RECIPE) == cell
        )
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(cell).stem).strip("_") or "assay"
        if name in assays:
            faults.append(
                StudyError(f"{study_path.name}: two recipes are called '{name}'.", "Rename one of the files.")
            )
            continue
        try:
            path = inside(cell, study_path.parent, allow_outside)
            recipe = read_recipe(path, kinds=KINDS)
        except HistoquantError as error:
            faults += single_faults(error)
            continue
        part = Study(rows, study.folder)
        found = [*_batch_faults(part, recipe), *_statistics_faults(part, recipe)]
        faults += [type(fault)(f"Assay '{name}': {fault.message}", fault.remedy) for fault in found]
        files = {
            key: {"path": str(file.resolve()), "sha256": store.sha256_of(file)}
            for key, file in (("sheet", study_path), ("recipe_file", path))
        }
        assays[name] = Checked(part, recipe, files)
    raise_all(faults)
    return assays


def stated_inputs(checked: Checked, folder: RunFolder, finished: Iterable[str]) -> dict[str, Any]:
    """Return what a run was given, so that `restated_inputs` can give it again: for ``run.json``.

    Parameters
    ----------
    finished : iterable of slide_id
        Slides whose results are in the folder. The hashes of their files are those the results were made from, as
        their ``provenance.json`` tells; hashing again here might find files that were changed meanwhile.
    """
    hashes = {}
    for slide in finished:
        told = json.loads((folder.slide(slide) / "provenance.json").read_text(encoding="utf-8"))
        hashes[slide] = {"sources": told["sources"], "regions_sha256": told["regions_sha256"]}
    return {
        **checked.files,
        "waiting": dict(checked.waiting),
        "rows": [{name: _absolute(value) for name, value in asdict(row).items()} for row in checked.study.slides],
        "inputs": hashes,
    }


def _absolute(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def restated_inputs(state: Mapping[str, Any]) -> Checked:
    """Return the study and recipe of a run from its ``run.json``.

    Raises
    ------
    InputError
        If they are not there, or not as `stated_inputs` wrote them.
    """
    try:
        slides = [
            StudySlide(**row | {"path": Path(row["path"]), "regions": Path(row["regions"]) if row["regions"] else None})
            for row in state["rows"]
        ]
        folder, recipe = Path(state["study"]), state["recipe"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"run.json does not say what the run was given ({type(error).__name__}: {error}).",
            "Run the study with its sheet and recipe.",
        ) from error
    files = {name: state[name] for name in ("sheet", "recipe_file") if name in state}
    waiting = state.get("waiting", {})
    return Checked(Study(tuple(slides), folder), build_recipe(recipe, source="run.json"), files, waiting)


def read_recipe(path: Path, *, kinds: Collection[str] = CELLS) -> Recipe:
    """Read a recipe, and check that the plug-ins it names are there and take their parameters.

    Parameters
    ----------
    kinds : collection of str
        What it may be of; see `Recipe.kind`.

    Raises
    ------
    HistoquantError
        Every fault of it, together.
    """
    recipe = parse_recipe(read_text(path, RecipeError, "recipe", MAX_RECIPE_BYTES), source=path.name)
    if recipe.kind not in kinds:
        raise RecipeError(f"{path.name}: {OTHER_KINDS[recipe.kind][0]}", OTHER_KINDS[recipe.kind][1])
    if recipe.kind == "spines":
        return recipe  # no nuclei are segmented, and none are called
    segmenter_parameters(recipe.segment)
    segmenter_fingerprint(recipe.segment)  # finds weights that are missing, before any slide is opened
    rules_of(recipe.panel)
    return recipe


def read_profile(path: Path) -> Profile:
    """Read a cluster profile.

    Raises
    ------
    HistoquantError
        Every fault of it, together.
    """
    text = read_text(path, ClusterError, "cluster profile", MAX_PROFILE_BYTES)
    return parse_profile(text, source=path.name)


def read_text(path: Path, kind: type[HistoquantError], called: str, max_bytes: int) -> str:
    """Return the text of a file that a person wrote.

    Raises
    ------
    HistoquantError
        Of the given kind, if it cannot be read, is too large, or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)  # asked of what was read: a device has no size
        if len(content) > max_bytes:
            raise kind(f"The {called} '{path}' is larger than {max_bytes / 1e6:g} MB.", "Name the right file.")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()  # any line ends
    except UnicodeDecodeError as error:
        raise kind(f"The {called} '{path}' is not UTF-8 text.", "Save it again as UTF-8.") from error
    except OSError as error:
        raise kind(f"Cannot read the {called} '{path}': {error.strerror or error}.", "Check the path.") from error


def single_faults(error: HistoquantError) -> list[HistoquantError]:
    """Return the faults an error stands for: itself, or each of several."""
    return list(error.faults) if isinstance(error, Faults) else [error]


def _batch_faults(study: Study, recipe: Recipe) -> list[HistoquantError]:
    """Return which staining batches lack the controls that a threshold is to come from."""
    faults: list[HistoquantError] = []
    for name in called_markers(recipe.panel):
        settings = recipe.panel[name].positive
        assert settings is not None
        if settings.threshold != "controls":
            continue
        for batch in dict.fromkeys(slide.batch for slide in study.included):
            held = {slide.control for slide in study.included if slide.batch == batch}
            if not held.intersection(settings.control):
                faults.append(
                    StudyError(
                        f"{named_batch(batch)} has no control section ({' or '.join(settings.control)}), "
                        f"but the threshold of '{name}' is to come from one.",
                        "Mark it in the control column, or state a fixed threshold in the recipe.",
                    )
                )
    for name, marker in recipe.panel.items():
        wanted = marker.translocation.control if marker.translocation is not None else ()
        for batch in dict.fromkeys(slide.batch for slide in study.included) if wanted else ():
            held = {slide.control for slide in study.included if slide.batch == batch}
            if not held.intersection(wanted):
                faults.append(
                    StudyError(
                        f"{named_batch(batch)} has no control section ({' or '.join(wanted)}) for the translocation of "
                        f"'{name}'.",
                        "Mark stained sections of animals without it in the control column.",
                    )
                )
    if not [slide for slide in study.included if not slide.control]:
        faults.append(StudyError("Every slide of the study is a control or excluded.", "Add slides to count."))
    return faults


def _statistics_faults(study: Study, recipe: Recipe) -> list[HistoquantError]:
    """Return why groups could not be compared as the recipe asks; found now, not after a night of counting."""
    faults: list[HistoquantError] = []
    settings = recipe.statistics
    if settings.test == "mixed":
        try:
            require_statsmodels()
        except HistoquantError as error:
            faults.append(error)
    if settings.block is not None:
        held: dict[str, set[str]] = {}
        for slide in study.included:
            row = {"batch": slide.batch} | slide.extra
            if settings.block not in row:
                lacking = f"The sample sheet has no column '{settings.block}', which statistics.block names."
                faults.append(StudyError(lacking, "Add it, with one value for each animal."))
                break
            if not slide.control:
                held.setdefault(slide.animal, set()).add(row[settings.block])
        faults += [
            StudyError(f"Animal '{animal}' has {settings.block} {' and '.join(sorted(values))}.", "Give it one.")
            for animal, values in held.items()
            if len(values) > 1
        ]
    return faults
