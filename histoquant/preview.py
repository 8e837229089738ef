"""The path of one slide on a part of it, for whoever is choosing a recipe: the same numbers as a run's, sooner.

A `Bench` surveys its slide once for each way of measuring; a `Trial` is a measured area, whose cells are called anew
in milliseconds when a threshold moves. The laws of the tiles hold here as well: the rows of an area are those that a
run gives the same cells, but for ``cell_id``, which counts within the area, and classes of death, which are judged
against the median nucleus of what was measured.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis import positivity
from histoquant.analysis.positivity import Threshold
from histoquant.analysis.runs import Runs, paint
from histoquant.errors import InputError
from histoquant.model.panel import called_markers
from histoquant.model.recipe import Recipe
from histoquant.model.slide import Box, Slide
from histoquant.pipeline import FRAGMENT_LINK_UM, Measured, analyse_tile, join, plan_slide
from histoquant.survey import Survey, segmenter_fingerprint, survey
from histoquant.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CORE_PX = 1024
"""Of an area's tiles: a second or two each, so that progress shows and a cancel is heard."""

MOST_PX = 64_000_000
"""Of an area; what takes longer than a few minutes is a run."""

MARGIN = 4
"""Links of fragments by which an area is measured larger, so that what fell apart is whole at its edge."""


@dataclass(frozen=True)
class Step:
    """How far a trial has come: ``done`` of ``total`` tiles; ``what`` says what comes next."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, eq=False)
class Trial:
    """The cells of one area, measured.

    Attributes
    ----------
    work : Work
    box : Box
        The area, in full-resolution pixels.
    measured : Measured
        The cells whose centre lies in the box; `pipeline.finish` takes them.
    runs : sequence of Runs
        The outlines of what each tile owns.
    """

    work: Work
    box: Box
    measured: Measured
    runs: Sequence[Runs]

    def fits(self, recipe: Recipe) -> bool:
        """Say whether a recipe would measure the same: then no pixel is needed to call its cells."""
        mine = self.work.recipe
        return recipe.fingerprint(measured=True) == mine.fingerprint(measured=True)

    def under(self, recipe: Recipe) -> Trial:
        """Return the trial under another recipe that measures the same.

        Raises
        ------
        InputError
            If it does not.
        """
        if recipe == self.work.recipe:
            return self
        if not self.fits(recipe):
            raise InputError("The recipe now measures something else than the preview.", "Preview again.")
        return replace(self, work=Work(self.work.slide, recipe, self.work.survey))

    def values(self, marker: str) -> NDArray[np.float64]:
        """Return what is compared with the threshold of a marker, for each cell; NaN where not defined."""
        return np.asarray(self.work.rules[marker].value(self.measured.cells), dtype=float)

    def called(self, thresholds: Mapping[str, Threshold]) -> pd.DataFrame:
        """Return the cells with their calls, the columns of ``cells.parquet`` but for regions."""
        return positivity.call(self.measured.cells, self.work.panel, self.work.rules, self.work.scene(thresholds))

    @property
    def area_mm2(self) -> float:
        """Area of the box."""
        height, width = self.box.shape
        return height * width * self.work.slide.pixel_size_um**2 / 1e6

    @cached_property
    def labels(self) -> NDArray[np.uint32]:
        """Nuclei of the box as a (y, x) image; the numbers are those of ``cell_id``, 0 = background."""
        numbers = self.measured.numbers
        cells = [np.zeros(int(runs.label.max(initial=0)) + 1, dtype=np.uint32) for runs in self.runs]
        for tile, label, cell in numbers[["tile", "label", "cell_id"]].itertuples(index=False):
            cells[tile][label] = cell
        rows = [runs.row.min(initial=self.box.y0) for runs in self.runs]
        ends = [runs.row.max(initial=self.box.y1 - 1) for runs in self.runs]
        top, bottom = int(min(rows, default=self.box.y0)), int(max(ends, default=self.box.y1 - 1)) + 1
        image = np.zeros((bottom - top, self.work.slide.shape[1]), dtype=np.uint32)
        for runs, named in zip(self.runs, cells, strict=True):
            paint(runs, named, image, top)
        return image[self.box.y0 - top : self.box.y1 - top, self.box.x0 : self.box.x1].copy()


class Bench:
    """A slide on which recipes are tried.

    Parameters
    ----------
    slide : Slide
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self._surveys: dict[tuple[str, str], Survey] = {}

    @property
    def whole(self) -> Box:
        """The whole slide."""
        return Box(0, self.slide.shape[0], 0, self.slide.shape[1])

    def surveyed(self, recipe: Recipe) -> bool:
        """Say whether the slide was surveyed for what a recipe measures."""
        return self._key(recipe) in self._surveys

    def work(self, recipe: Recipe) -> Work:
        """Return slide, recipe and survey together; the slide is surveyed once for each way of measuring."""
        key = self._key(recipe)
        if key not in self._surveys:
            self._surveys[key] = survey(self.slide, recipe)
        return Work(self.slide, recipe, self._surveys[key])

    def _key(self, recipe: Recipe) -> tuple[str, str]:
        return recipe.fingerprint(measured=True), segmenter_fingerprint(recipe.segment)

    def trial(self, recipe: Recipe, box: Box | None = None) -> Generator[Step, None, Trial]:
        """Measure an area; yields after every tile, returns the trial.

        Parameters
        ----------
        box : Box, optional
            The area in full-resolution pixels, cut to the slide; the whole slide when not given.

        Raises
        ------
        InputError
            If nothing of the area lies on the slide, or it is larger than `MOST_PX`.
        """
        box = self.whole if box is None else box.grown(0, self.slide.shape)
        height, width = box.shape
        if height <= 0 or width <= 0:
            raise InputError(f"Slide '{self.slide.name}': the area shown lies off the slide.", "Move to the slide.")
        if height * width > MOST_PX:
            raise InputError(
                f"The area shown is {height * width / 1e6:.0f} megapixels; a preview takes up to {MOST_PX / 1e6:.0f}.",
                "Zoom in, or save the recipe and run the batch.",
            )
        yield Step(0, 0, "" if self.surveyed(recipe) else "surveying the slide, once")
        work = self.work(recipe)
        within = None if box == self.whole else _with_margin(work, box)
        plan = plan_slide(work, within=within, core_px=CORE_PX)
        parts = []
        yield Step(0, len(plan), "finding nuclei")
        for tile in plan:
            parts.append(analyse_tile(work, tile))
            yield Step(len(parts), len(plan), "finding nuclei")
        measured = join(parts, work)
        if within is not None:
            measured = _inside(measured, box)
        return Trial(work, box, measured, [part.runs for part in parts])

    def sample_box(self, recipe: Recipe, most_px: int) -> Box:
        """Return the whole slide when it is no larger than that, else a square of so many pixels on its tissue."""
        height, width = self.slide.shape
        if height * width <= most_px:
            return self.whole
        tissue = self.work(recipe).survey.tissue
        side = int(most_px**0.5)
        middle = (width / 2, height / 2)
        if not tissue.is_empty:
            point, px_um = tissue.representative_point(), self.slide.pixel_size_um
            middle = (point.x / px_um, point.y / px_um)
        y0, x0 = (
            int(min(max(0, centre - side / 2), max(0, n - side)))
            for centre, n in ((middle[1], height), (middle[0], width))
        )
        return Box(y0, min(y0 + side, height), x0, min(x0 + side, width))


def finished(steps: Generator[Step, None, Trial]) -> Trial:
    """Go through all steps of a trial and return it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            trial: Trial = end.value
            return trial


def threshold_of(trial: Trial, marker: str, controls: Iterable[Trial] = ()) -> Threshold:
    """Return the threshold of a marker, as a batch of this area and these controls would have it.

    Raises
    ------
    InputError
        If it comes from controls and there is none, or too few nuclei for one.
    """
    settings = trial.work.panel[marker].positive
    assert settings is not None
    deciding = list(controls) if settings.threshold == "controls" else [trial]
    if not deciding:
        raise InputError(
            f"The threshold of '{marker}' comes from negative controls, and none was measured here.",
            "Measure a control section, or state a threshold.",
        )
    values = np.concatenate([each.values(marker) for each in deciding])
    sections = [each.work.slide.name for each in deciding]
    return positivity.stated_or_found(values, trial.work.panel[marker], sections=sections)


def _with_margin(work: Work, box: Box) -> Box:
    """Return the area to measure so that all cells of a box are whole."""
    if not any(work.panel[name].death_classes for name in called_markers(work.panel)):
        return box
    return box.grown(int(np.ceil(MARGIN * FRAGMENT_LINK_UM / work.slide.pixel_size_um)), work.slide.shape)


def _inside(measured: Measured, box: Box) -> Measured:
    """Return the cells and marker objects centred in a box; cells are numbered anew."""
    kept = measured.cells[_centred(measured.cells, box)].reset_index(drop=True)
    names = dict(zip(kept["cell_id"], np.arange(1, len(kept) + 1, dtype=np.uint32), strict=True))
    kept["cell_id"] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    objects = measured.objects
    attached = objects["attached_to"].map(lambda cell: names.get(cell, 0)).astype(np.uint32)
    belongs = np.where(objects["attached_to"] > 0, attached > 0, _centred(objects, box))
    objects = objects.assign(attached_to=attached)[belongs]
    numbers = measured.numbers[measured.numbers["cell_id"].isin(list(names))]
    numbers = numbers.assign(cell_id=numbers["cell_id"].map(names).astype(np.uint32))
    return Measured(kept, objects.reset_index(drop=True), numbers, measured.n_cut)


def _centred(table: pd.DataFrame, box: Box) -> pd.Series[bool]:
    """Say which things of a table have their centre in a box; centres of pixels are at halves."""
    y, x = table["y_px"], table["x_px"]
    return (y >= box.y0 + 0.5) & (y < box.y1 + 0.5) & (x >= box.x0 + 0.5) & (x < box.x1 + 0.5)
