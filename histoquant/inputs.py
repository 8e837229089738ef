"""The two files a person writes, read and checked together: the sample sheet and the recipe."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from histoquant.controls import named_batch
from histoquant.errors import Faults, HistoquantError, InputError, RecipeError, StudyError, raise_all
from histoquant.model.panel import called_markers
from histoquant.model.recipe import Recipe, parse_recipe
from histoquant.model.study import Study, parse_study
from histoquant.survey import segmenter_parameters
from histoquant.work import rules_of

MAX_SHEET_BYTES = 5_000_000
MAX_RECIPE_BYTES = 200_000
"""Ten thousand slides, and a hundred times the longest recipe. What is larger is another file, or made to do harm."""


@dataclass(frozen=True)
class Checked:
    """A study and recipe that fit together as far as can be seen without opening a slide."""

    study: Study
    recipe: Recipe


def load(study_path: Path, recipe_path: Path, *, allow_outside: bool = False) -> Checked:
    """Read a sample sheet and a recipe.

    Raises
    ------
    HistoquantError
        Every fault of both, together.
    """
    faults: list[HistoquantError] = []
    study: Study | None = None
    recipe: Recipe | None = None
    try:
        text = _text(study_path, StudyError, "sample sheet", MAX_SHEET_BYTES)
        study = parse_study(text, study_path.parent, source=study_path.name, allow_outside=allow_outside)
    except HistoquantError as error:
        faults += single_faults(error)
    try:
        text = _text(recipe_path, RecipeError, "recipe", MAX_RECIPE_BYTES)
        recipe = parse_recipe(text, source=recipe_path.name)
        segmenter_parameters(recipe.segment)
        rules_of(recipe.panel)
    except HistoquantError as error:
        faults += single_faults(error)
    if study is not None and recipe is not None:
        faults += _batch_faults(study, recipe)
    raise_all(faults)
    assert study is not None
    assert recipe is not None
    return Checked(study, recipe)


def _text(path: Path, kind: type[InputError], called: str, max_bytes: int) -> str:
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
    if not [slide for slide in study.included if not slide.control]:
        faults.append(StudyError("Every slide of the study is a control or excluded.", "Add slides to count."))
    return faults
