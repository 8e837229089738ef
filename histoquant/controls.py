"""Thresholds of a staining batch, and whether its controls are sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis import positivity
from histoquant.analysis.positivity import Threshold
from histoquant.errors import InputError
from histoquant.model.panel import Positive, called_markers
from histoquant.model.recipe import Recipe
from histoquant.steps import Joined, measured_of, work_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

GATE_NEGATIVE_MAX = 0.01
GATE_POSITIVE_MIN = 0.90
"""A staining batch is sound when at most 1 % of its negative-control nuclei and at least 90 % of its DNase-treated
ones are positive."""


def batch_thresholds(recipe: Recipe, batch: str, joined: Sequence[Joined]) -> tuple[dict[str, Threshold], list[str]]:
    """Return the threshold of every marker of a staining batch, and remarks on its controls.

    Raises
    ------
    InputError
        If a marker's threshold comes from controls and the batch has none that could be analysed.
    """
    thresholds: dict[str, Threshold] = {}
    flags: list[str] = []
    for name in called_markers(recipe.panel):
        settings = recipe.panel[name].positive
        assert settings is not None
        if isinstance(settings.threshold, float):
            thresholds[name] = Threshold(settings.threshold, "fixed")
            continue
        from_controls = settings.threshold == "controls"
        kinds = sections_deciding(settings) or ()
        wanted = [item for item in joined if item.job.slide.control in kinds]
        if not wanted:
            raise InputError(
                f"{named_batch(batch)} has no analysed section for the threshold of '{name}' "
                f"({', '.join(settings.control) if from_controls else 'auto'}).",
                "Add a control section to the batch, or state a fixed threshold in the recipe.",
            )
        values = np.concatenate([_marker_values(item, name) for item in wanted])
        sections = [item.job.slide.slide_id for item in wanted]
        thresholds[name] = positivity.stated_or_found(values, recipe.panel[name], sections=sections)
    for item in joined:
        if item.job.slide.control:
            flags += _gates(item, thresholds)
    return thresholds, flags


def sections_deciding(settings: Positive) -> tuple[str, ...] | None:
    """Return which sections of a batch decide a marker's threshold, as in the sheet's control column.

    Returns
    -------
    The kinds of control; ``("",)`` when the sections that are no controls do; None when the threshold is stated.
    """
    if isinstance(settings.threshold, float):
        return None
    return settings.control if settings.threshold == "controls" else ("",)


def named_batch(batch: str) -> str:
    """Return how messages call a staining batch."""
    return f"Staining batch '{batch}'" if batch else "The study (no batch column)"


def _marker_values(item: Joined, name: str) -> NDArray[np.float64]:
    work = work_of(item.job, item.survey_key)
    return np.asarray(work.rules[name].value(measured_of(item).cells), dtype=float)


def _gates(item: Joined, thresholds: Mapping[str, Threshold]) -> list[str]:
    """Return what is wrong with a control section: too many positives without the reagent, too few with DNase."""
    work = work_of(item.job, item.survey_key)
    cells = positivity.call(measured_of(item).cells, work.panel, work.rules, work.scene(thresholds))
    row, flags = item.job.slide, []
    if not len(cells):
        return []
    for name in called_markers(work.panel):
        settings = work.panel[name].positive
        assert settings is not None
        share = float(cells[f"{name}_positive"].mean())
        if row.control in settings.control and share > GATE_NEGATIVE_MAX:
            flags.append(f"negative control {row.slide_id} is {100 * share:.1f} % {name} positive (limit 1 %)")
        if row.control == "dnase" and work.panel[name].orphans and share < GATE_POSITIVE_MIN:
            flags.append(f"positive control {row.slide_id} is only {100 * share:.0f} % {name} positive (limit 90 %)")
    return flags
