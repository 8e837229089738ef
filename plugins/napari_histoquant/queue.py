"""What is reviewed, in which order, and what was decided: plain values, no Qt and no napari.

An object has a position, a region and, for each marker, a class. Cells have two classes, negative and positive; spines
and lesions can have others. Decisions are `Edit` values: the objects here show what the edits that stand make of them,
by the rule that `histoquant.analysis.review.replay` counts by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.review import CLASS
from histoquant.analysis.spine_rules import CLASSES
from histoquant.corrected_infarct import FOUND, REDRAWN
from histoquant.model.edit import ACCEPT, ADD, CALL, CELL, DELETE, LESION, SPINE, Edit, Value
from histoquant.model.panel import Marker, Panel
from histoquant.model.spine_settings import SpineSettings

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

EVERYWHERE = ""
"""Stands for all regions in a `Selection`."""

ALL = "all"
BORDERLINE, PLACE = "borderline first", "top to bottom"

_SCATTER = 2654435761
"""Knuth's multiplier: numbers that follow each other land far apart."""

Point = tuple[float, float]


def class_name(value: Value) -> str:
    """Return what a class is called on the screen."""
    if isinstance(value, str):
        return value or "no class"
    return {True: "positive", False: "negative", None: ""}[value]


ROW_UM = {CELL: 100.0, SPINE: 5.0, LESION: 8000.0}
"""Height of the strips that are gone through from left to right when objects come up by their place; of lesions rather
less than from one row of slices to the next."""


@dataclass(frozen=True)
class Selection:
    """Which objects come up, and in which order.

    Attributes
    ----------
    marker : str
        Whose calls are reviewed.
    region : str
        `EVERYWHERE` for all regions.
    show : str
        `ALL`, or those of one class (its `class_name`) as the run called them, so that the list stands still while
        calls are changed.
    order : str
        `BORDERLINE`: nearest to the threshold first; `PLACE`: strip by strip.
    sample : int
        Only so many, drawn at random and shown in random order, for validation; 0 for all.
    seed : int
        Decides which are drawn: the same seed gives the same objects.
    """

    marker: str
    region: str = EVERYWHERE
    show: str = ALL
    order: str = BORDERLINE
    sample: int = 0
    seed: int = 0


class Objects:
    """The objects of one slide as columns, and what a reviewer made of them.

    Attributes
    ----------
    kind : str
        What they are: ``cell``, ``spine`` or ``lesion``.
    yx_um : (n, 2) float64
    z_um : (n,) float64
        NaN where objects have no depth.
    area_um2 : (n,) float64
    label : (n,) uint32
        Number in the label image or the table; 0 for an object that was added.
    region : (n,) object
    choices : marker -> classes
        The first is what an object is called when nobody says otherwise; of spines, no class.
    automatic, classes : marker -> (n,) int8
        Place in ``choices`` as the run called it (-1 for what was added), and as it is called now.
    share : marker -> (n,) float64
        What decides the call, as a share of its threshold: 1 is at the threshold; NaN where nothing was measured.
    reviewed : marker -> (n,) bool
    gone : (n,) bool
        Deleted, or an addition that was taken back.
    """

    def __init__(
        self,
        kind: str,
        yx_um: NDArray[np.float64],
        region: NDArray[np.object_],
        *,
        choices: Mapping[str, tuple[Value, ...]],
        automatic: Mapping[str, NDArray[np.int8]],
        share: Mapping[str, NDArray[np.float64]],
        table: Mapping[str, NDArray[np.generic]],
    ) -> None:
        n = self._n_found = len(yx_um)
        self.kind, self.yx_um, self.region, self.choices = kind, yx_um, region, dict(choices)
        self.area_um2 = np.asarray(table["area_um2"], dtype=float)
        self.z_um = np.asarray(table["z_um"], dtype=float) if "z_um" in table else np.full(n, np.nan)
        self.label = np.asarray(table["label"], dtype=np.uint32)
        self.automatic = {name: np.asarray(codes, dtype=np.int8) for name, codes in automatic.items()}
        self.classes = {name: codes.copy() for name, codes in self.automatic.items()}
        self.share = dict(share)
        self.reviewed = {name: np.zeros(n, dtype=bool) for name in self.choices}
        self.gone = np.zeros(n, dtype=bool)
        self._edits: dict[int, list[Edit]] = {}

    @classmethod
    def of_cells(cls, cells: pd.DataFrame, panel: Panel, thresholds: Mapping[str, float]) -> Objects:
        """Return the cells of a slide.

        Parameters
        ----------
        cells : DataFrame
            As ``cells.parquet`` holds them.
        thresholds : marker -> intensity
            Of the markers to review.
        """
        automatic, share = {}, {}
        for marker, threshold in thresholds.items():
            automatic[marker] = cells[f"{marker}_positive"].to_numpy(dtype=np.int8)
            share[marker] = _deciding(cells, marker, panel[marker]) / threshold
        return cls(
            CELL,
            cells[["y_um", "x_um"]].to_numpy(dtype=float),
            cells["region"].to_numpy(dtype=object),
            choices=dict.fromkeys(thresholds, (False, True)),
            automatic=automatic,
            share=share,
            table={"area_um2": cells["area_um2"].to_numpy(), "label": cells["cell_id"].to_numpy()},
        )

    @classmethod
    def of_spines(cls, spines: pd.DataFrame, settings: SpineSettings) -> Objects:
        """Return the spines of a stack, each on its dendrite; how sure the network was decides whether it is one.

        Parameters
        ----------
        spines : DataFrame
            As `tables.SPINES` lists them.
        """
        classes = ("", *CLASSES[settings.rules])
        named = spines["class"].fillna("").tolist()
        columns = {"area_um2": "head_area_um2", "label": "spine_id", "z_um": "z_um"}
        return cls(
            SPINE,
            spines[["y_um", "x_um"]].to_numpy(dtype=float),
            spines["dendrite_id"].to_numpy(dtype=object),
            choices={CLASS: classes},
            automatic={CLASS: np.array([classes.index(name) for name in named], dtype=np.int8)},
            share={CLASS: spines["score"].to_numpy(dtype=float) / settings.min_score},
            table={name: spines[column].to_numpy() for name, column in columns.items()},
        )

    @classmethod
    def of_slices(cls, slices: pd.DataFrame) -> Objects:
        """Return the lesions of a picture, one for each slice, as `PictureResults.objects` lists them."""
        n = len(slices)
        return cls(
            LESION,
            slices[["y_um", "x_um"]].to_numpy(dtype=float),
            slices["region"].to_numpy(dtype=object),
            choices={CLASS: (FOUND, REDRAWN)},
            automatic={CLASS: np.zeros(n, dtype=np.int8)},
            share={CLASS: np.full(n, np.nan)},
            table={"area_um2": slices["area_um2"].to_numpy(), "label": slices["cell_id"].to_numpy()},
        )

    def __len__(self) -> int:
        return len(self.yx_um)

    @property
    def regions(self) -> list[str]:
        """Names of the regions that hold objects, sorted."""
        return sorted(set(self.region[: self._n_found].tolist()))

    def called(self, index: int, marker: str) -> Value:
        """Return the class of an object as it is called now."""
        return self.choices[marker][int(self.classes[marker][index])]

    def edits_of(self, index: int) -> Sequence[Edit]:
        """Return the edits about an object that stand, in order."""
        return tuple(self._edits.get(index, ()))

    def append(self, edit: Edit) -> int:
        """Make room for an object that an ``add`` brings, and return its index; it is gone until that edit is put."""
        self.yx_um = np.vstack([self.yx_um, [[edit.y_um, edit.x_um]]])
        self.z_um = np.append(self.z_um, np.nan if edit.z_um is None else edit.z_um)
        self.region = np.append(self.region, np.array([edit.region], dtype=object))
        self.area_um2 = np.append(self.area_um2, np.nan if edit.area_um2 is None else edit.area_um2)
        self.label = np.append(self.label, np.uint32(0))
        self.gone = np.append(self.gone, True)
        for name in self.choices:
            self.automatic[name] = np.append(self.automatic[name], np.int8(-1))
            self.classes[name] = np.append(self.classes[name], np.int8(0))
            self.share[name] = np.append(self.share[name], np.nan)
            self.reviewed[name] = np.append(self.reviewed[name], False)
        return len(self) - 1

    def was_there(self, index: int) -> bool:
        """Return whether the run found the object or its addition stands; deleted ones were there."""
        return index < self._n_found or any(edit.action == ADD for edit in self.edits_of(index))

    def put(self, index: int, edit: Edit) -> None:
        """Let an edit about an object stand."""
        self._edits.setdefault(index, []).append(edit)
        self._settle(index)

    def take_back(self, index: int, edit_id: str) -> None:
        """Let an edit about an object stand no more."""
        self._edits[index] = [edit for edit in self._edits.get(index, []) if edit.id != edit_id]
        self._settle(index)

    def _settle(self, index: int) -> None:
        """Work out an object's state from the edits about it: for each marker the last one holds."""
        edits = self._edits.get(index, [])
        self.gone[index] = not self.was_there(index) or (bool(edits) and edits[-1].action == DELETE)
        for name, classes in self.choices.items():
            self.classes[name][index] = max(self.automatic[name][index], 0)
            self.reviewed[name][index] = False
            for edit in edits:
                if edit.action in (DELETE, ADD):
                    self.reviewed[name][index] = True
                if edit.marker == name and edit.action in (CALL, ACCEPT, ADD):
                    self.reviewed[name][index] = True
                    if edit.new in classes:
                        self.classes[name][index] = classes.index(edit.new)

    def chosen(self, selection: Selection) -> NDArray[np.intp]:
        """Return the indices of a selection in the order in which they come up; added objects are not among them."""
        automatic = self.automatic[selection.marker]
        wanted = automatic >= 0
        if selection.region != EVERYWHERE:
            wanted &= self.region == selection.region
        if selection.show != ALL:
            names = [class_name(value) for value in self.choices[selection.marker]]
            wanted &= automatic == names.index(selection.show)
        found = np.flatnonzero(wanted)
        if selection.sample:
            rng = np.random.default_rng(selection.seed)
            return found[rng.permutation(len(found))[: selection.sample]]
        y, x = self.yx_um[found].T
        by_place = np.lexsort((found, x, np.floor(y / ROW_UM[self.kind])))
        if selection.order == PLACE:
            return found[by_place]
        distance = np.abs(self.share[selection.marker][found] - 1)
        return found[by_place[np.argsort(distance[by_place], kind="stable")]]  # NaN last

    def counts(self, marker: str, region: str = EVERYWHERE) -> Counts:
        """Return how many objects there are and how many of each class but the first, before and after review."""
        here = np.ones(len(self), dtype=bool) if region == EVERYWHERE else self.region == region
        found, left = here & (self.automatic[marker] >= 0), here & ~self.gone
        return Counts(
            int(found.sum()),
            int((self.automatic[marker][found] > 0).sum()),
            int(left.sum()),
            int((self.classes[marker][left] > 0).sum()),
        )

    def within(self, top_left: Point, bottom_right: Point, marker: str, most: int) -> NDArray[np.intp]:
        """Return the objects in a rectangle of (y, x) in um, in order; at most so many.

        Where there are more, those of the first class (negative cells) are thinned out, always the same ones.
        """
        found = np.flatnonzero(self._inside(top_left, bottom_right))
        if len(found) <= most:
            return found
        scattered = (found * _SCATTER) % 2**32  # the same order of the same objects, whatever the rectangle
        first = np.lexsort((scattered, self.classes[marker][found] == 0))[:most]
        return np.sort(found[first])

    def n_within(self, top_left: Point, bottom_right: Point) -> int:
        """Return how many objects lie in a rectangle."""
        return int(self._inside(top_left, bottom_right).sum())

    def _inside(self, top_left: Point, bottom_right: Point) -> NDArray[np.bool_]:
        y, x = self.yx_um.T
        return np.asarray(
            (y >= top_left[0]) & (y <= bottom_right[0]) & (x >= top_left[1]) & (x <= bottom_right[1]), dtype=bool
        )

    def nearest(self, y_um: float, x_um: float, within_um: float) -> int | None:
        """Return the object nearest to a point, of those that are not gone; None when none is so near."""
        if not len(self):
            return None
        squares = np.square(self.yx_um - (y_um, x_um)).sum(axis=1)
        squares[self.gone] = np.inf
        index = int(np.argmin(squares))
        return index if squares[index] <= within_um**2 else None


def _deciding(cells: pd.DataFrame, name: str, marker: Marker) -> NDArray[np.float64]:
    """Return the intensity that decides a cell's call.

    `Nuclear` asks that both the mean and the intensity that the wanted share of pixels reach are at the threshold, so
    that the lower one decides, or else that an attached body is.
    """
    value = cells[f"{name}_value"].to_numpy(dtype=float)
    if marker.rule == "nuclear":
        value = np.fmin(value, cells[f"{name}_quantile"].to_numpy(dtype=float))
        if f"{name}_attached" in cells:
            value = np.fmax(value, cells[f"{name}_attached"].to_numpy(dtype=float))
    return value


@dataclass(frozen=True)
class Counts:
    """Objects, and those of another class than the first (positive cells): as the run found them, and as they are."""

    automatic: int
    automatic_positive: int
    corrected: int
    corrected_positive: int


class Queue:
    """A walk through the objects of a selection."""

    def __init__(self, objects: Objects, selection: Selection) -> None:
        self.objects, self.selection = objects, selection
        self.indices = objects.chosen(selection)
        self.at = 0
        self._aside: int | None = None
        self.to_first_open()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def current(self) -> int | None:
        """Index of the object that is looked at; None when there is none."""
        if self._aside is not None:
            return self._aside
        return int(self.indices[self.at]) if len(self) else None

    @property
    def aside(self) -> bool:
        """Whether the current object is not one of the selection."""
        return self._aside is not None

    @property
    def coming(self) -> int | None:
        """Index of the object that comes next."""
        return int(self.indices[self.at + 1]) if self.at + 1 < len(self) else None

    @property
    def n_reviewed(self) -> int:
        """How many objects of the selection were looked at."""
        return int(self.objects.reviewed[self.selection.marker][self.indices].sum())

    def to_first_open(self) -> None:
        """Go to the first object that was not looked at yet; to the last one when all were."""
        open_ones = np.flatnonzero(~self.objects.reviewed[self.selection.marker][self.indices])
        self.at = int(open_ones[0]) if len(open_ones) else max(0, len(self) - 1)

    def step(self, by: int) -> bool:
        """Go on (1) or back (-1) and say whether there was anywhere to go; what lies aside is left."""
        if self._aside is not None:
            self._aside = None
            return True
        there = self.at + by
        if not 0 <= there < len(self):
            return False
        self.at = there
        return True

    def go_to(self, index: int) -> None:
        """Look at an object; one that is not in the selection is looked at aside, and the next step leads back."""
        place = np.flatnonzero(self.indices == index)
        self._aside = None if len(place) else index
        if len(place):
            self.at = int(place[0])
