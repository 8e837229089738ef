"""A review of a run folder: its slides under coded names, one of them open, every decision in the journal at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.corrected import SlideResults, read_slide
from histoquant.errors import InputError
from histoquant.inputs import restated_inputs
from histoquant.journal import Journal
from histoquant.model.edit import ACCEPT, ADD, CALL, DELETE, Edit
from histoquant.model.panel import bound, called_markers, channel_of
from histoquant.model.recipe import Recipe
from histoquant.model.region import SLIDE
from histoquant.model.region_set import Region
from histoquant.model.slide import Slide
from histoquant.registry import open_slide
from histoquant.report.run import read_run
from napari_histoquant.crops import Crops, contrast_limits
from napari_histoquant.names import Names
from napari_histoquant.queue import EVERYWHERE, Objects, Queue, Selection

if TYPE_CHECKING:
    import pandas as pd

PICK_UM = 15.0
"""A click this near to an object means that object."""


@dataclass(eq=False)
class OpenSlide:
    """The slide that is looked at.

    Attributes
    ----------
    results : SlideResults
        What the run folder holds of it, under its true name, which is not to be shown while the review is blind.
    pixels : Slide
    thresholds : marker -> intensity
    objects : Objects
    crops : Crops
    limits : channel -> (black, white)
        Of the channels in which something was measured.
    """

    results: SlideResults
    pixels: Slide
    labels: Slide | None
    thresholds: Mapping[str, float]
    objects: Objects
    crops: Crops
    limits: Mapping[str, tuple[float, float]]

    @property
    def slide_id(self) -> str:
        """Its true name."""
        return self.results.slide_id

    def close(self) -> None:
        """Let go of its files."""
        self.pixels.close()
        if self.labels is not None:
            self.labels.close()


class Session:
    """One reviewer's sitting with one run.

    Parameters
    ----------
    root : Path
        The run folder.
    who : str
        The reviewer.
    blinded : bool
        Whether animals, groups and slide names are hidden.

    Attributes
    ----------
    slides : list of str
        Slides by the names that are shown, in the order of these.
    here : OpenSlide or None
    queue : Queue or None

    Raises
    ------
    InputError
        If the folder holds no finished run, or nothing in it was called.
    StoreError, FormatError
        As `Journal`.
    """

    def __init__(self, root: Path, who: str, *, blinded: bool = True) -> None:
        run = read_run(root)
        self.root, self.recipe = root, run.recipe
        self._told = run.provenance
        self._rows = {row.slide_id: row for row in restated_inputs(run.state).study.slides}
        if not self.markers:
            raise InputError(f"The run in '{root}' calls no marker, so there is nothing to review.")
        if not self._told:
            raise InputError(f"The run in '{root}' holds no analysed slide.", "See its failures.csv.")
        self.journal = Journal(root, who, blinded=blinded)
        self.names = Names.of_run(root, self._rows.values(), self._told, blinded=self.journal.blinded)
        self.here: OpenSlide | None = None
        self.queue: Queue | None = None
        self._place: dict[str, int] = {}  # edit -> object of the open slide

    @property
    def markers(self) -> list[str]:
        """Markers whose calls can be reviewed."""
        return called_markers(self.recipe.panel)

    @property
    def slides(self) -> list[str]:
        """Slides by the names that are shown."""
        return self.names.listed

    @property
    def blinded(self) -> bool:
        """Whether names are hidden."""
        return self.names.blinded

    @property
    def shown(self) -> str:
        """Name that is shown for the open slide."""
        return "" if self.here is None else self.names.shown(self.here.slide_id)

    @property
    def channel(self) -> int:
        """Number of the channel that shows the selection's marker; 0 where that is a stain of a picture."""
        assert self.here is not None
        assert self.queue is not None
        pixels, marker = self.here.pixels, self.queue.selection.marker
        return 0 if pixels.brightfield else pixels.channel_index(channel_of(marker, self.recipe.panel[marker]))

    @property
    def outlines(self) -> list[Region]:
        """Regions of the open slide, coordinates in um, under the names that are shown."""
        assert self.here is not None
        veiled = self.names.veiled
        return [
            replace(
                region,
                name=veiled(region.name),
                parent=region.parent and veiled(region.parent),
                classification=region.classification and veiled(region.classification),
                notes=(),
            )
            for region in self.here.results.regions
            if region.name != SLIDE and not region.geometry.is_empty
        ]

    @property
    def belongs(self) -> str:
        """Where the open slide belongs; empty while the review is blind."""
        if self.blinded or self.here is None:
            return ""
        row = self._rows[self.here.slide_id]
        return f"animal {row.animal} · group {row.group}" + (f" · section {row.section}" if row.section else "")

    def last_slide(self) -> str:
        """Return where the last edit was made, by the name that is shown; the first slide without one."""
        made = [edit.slide_id for edit in self.journal.edits if edit.slide_id in self._told]
        return self.names.shown(made[-1]) if made else self.slides[0]

    def open(self, shown: str, selection: Selection | None = None) -> None:
        """Turn to a slide, given by the name that is shown.

        Raises
        ------
        HistoquantError
            If its files cannot be read; the slide that was open stays so. Messages tell true names.
        """
        found = self._opened(self.names.true(shown))
        self.close_slide()
        self.here = found
        self._take_in(found)
        selection = selection or Selection(self.markers[0])
        if selection.region not in found.objects.regions:
            selection = replace(selection, region=EVERYWHERE)
        self.select(selection)

    def _opened(self, slide_id: str) -> OpenSlide:
        results, row = read_slide(self.root, slide_id), self._rows[slide_id]
        told = results.provenance["thresholds"]
        thresholds = {name: float(told[name]["value"]) for name in self.markers}
        objects = Objects.of_cells(results.cells, self.recipe.panel, thresholds)
        pixels = open_slide(row.path, scene=row.scene, pixel_size_um=results.pixel_size_um)
        if self.blinded:  # nothing that is shown holds on to the true name
            pixels = replace(pixels, name=self.names.shown(slide_id), path=Path(self.names.shown(slide_id)))
        path = self.root / "slides" / slide_id / "labels.ome.tif"
        labels = open_slide(path, pixel_size_um=results.pixel_size_um) if path.is_file() else None
        crops = Crops(pixels, self.recipe.segment, labels)
        limits = _limits(results.cells, pixels, self.recipe, thresholds)
        return OpenSlide(results, pixels, labels, thresholds, objects, crops, limits)

    def _take_in(self, here: OpenSlide) -> None:
        """Show what the reviewer did to this slide before, found again as `replay` finds it."""
        self._place = {}
        mine = [edit for edit in self.journal.edits if edit.slide_id == here.slide_id]
        if not mine:
            return
        objects = here.objects
        touched = here.results.replay(mine, kind=objects.kind).touched
        rows = {int(label): index for index, label in enumerate(objects.label)}
        edits = {edit.id: edit for edit in mine}
        for made, label in zip(touched["id"].tolist(), touched["cell_id"].tolist(), strict=True):
            if label not in rows:
                rows[label] = objects.append(edits[made])
            self._put(rows[label], edits[made])

    def _put(self, index: int, edit: Edit) -> None:
        assert self.here is not None
        self._place[edit.id] = index
        self.here.objects.put(index, edit)

    def close_slide(self) -> None:
        """Let go of the open slide."""
        if self.here is not None:
            self.here.close()
        self.here = self.queue = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sitting; everything is in the journal already."""
        self.close_slide()
        self.journal.close()

    def select(self, selection: Selection) -> None:
        """Walk through other objects of the open slide, from the first that was not looked at."""
        assert self.here is not None
        self.queue = Queue(self.here.objects, selection)

    # What a reviewer does. Each returns the object it was about; None when there was none.

    def accept(self, why: str = "") -> int | None:
        """Agree with the call of the current object, and go on."""
        return self._decide(ACCEPT, why)

    def flip(self, why: str = "") -> int | None:
        """Give the current object its next class (of a cell: the other one), and go on."""
        return self._decide(CALL, why)

    def delete(self, why: str = "") -> int | None:
        """Say that the current object is none, and go on."""
        return self._decide(DELETE, why)

    def _decide(self, action: str, why: str) -> int | None:
        if self.here is None or self.queue is None or self.queue.current is None:
            return None
        index, objects, marker = self.queue.current, self.here.objects, self.queue.selection.marker
        if not objects.was_there(index):
            return None
        old = objects.called(index, marker)
        choices = objects.choices[marker]
        new = {ACCEPT: old, CALL: choices[(choices.index(old) + 1) % len(choices)], DELETE: None}[action]
        edit = self.journal.record(
            self.here.slide_id, action, **self._told_of(index), marker=marker, old=old, new=new, why=why
        )
        self._put(index, edit)
        self.queue.step(1)
        return index

    def _told_of(self, index: int) -> dict[str, Any]:
        assert self.here is not None
        objects = self.here.objects
        y, x = objects.yx_um[index].tolist()
        area = float(objects.area_um2[index])
        return {
            "kind": objects.kind,
            "region": str(objects.region[index]),
            "y_um": y,
            "x_um": x,
            "area_um2": area if np.isfinite(area) else None,
            "measured": self.here.results.measured,
        }

    def add(self, y_um: float, x_um: float, why: str = "") -> int | None:
        """Add an object that was missed, of the selection's marker's second class (a positive cell), and look at it."""
        if self.here is None or self.queue is None:
            return None
        objects, marker = self.here.objects, self.queue.selection.marker
        edit = self.journal.record(
            self.here.slide_id,
            ADD,
            kind=objects.kind,
            region=self.here.results.place(np.array([[y_um, x_um]]))[0],
            y_um=float(y_um),
            x_um=float(x_um),
            marker=marker,
            new=objects.choices[marker][1],
            measured=self.here.results.measured,
            why=why,
        )
        index = objects.append(edit)
        self._put(index, edit)
        self.queue.go_to(index)
        return index

    def undo(self) -> int | None:
        """Take back the last edit, and look at its object; the slide it was made on is opened."""
        return self._look_at(self.journal.undo())

    def redo(self) -> int | None:
        """Make again what was undone last, and look at its object; the slide it was made on is opened."""
        return self._look_at(self.journal.redo())

    def _look_at(self, edit: Edit | None) -> int | None:
        if edit is None or edit.slide_id not in self._told:
            return None
        # What was undone in an earlier sitting has no place yet; opening the slide gives every edit one.
        if self.here is None or self.here.slide_id != edit.slide_id or edit.id not in self._place:
            self.open(self.names.shown(edit.slide_id), None if self.queue is None else self.queue.selection)
        else:
            self._revise(edit)
        index = self._place.get(edit.id)
        if index is not None and self.here is not None and self.queue is not None:
            if self.here.objects.was_there(index):
                self.queue.go_to(index)
            elif self.queue.current == index:
                self.queue.step(1)  # back from an addition that was taken back
        return index

    def _revise(self, edit: Edit) -> None:
        """Let an edit stand that did not, or the other way round."""
        assert self.here is not None
        index = self._place[edit.id]
        if any(other.id == edit.id for other in self.here.objects.edits_of(index)):
            self.here.objects.take_back(index, edit.id)
        else:
            self.here.objects.put(index, edit)

    def unblind(self, why: str) -> None:
        """Show the names from now on: an edit in the journal, which marks every later one."""
        if self.journal.blinded:
            self.journal.unblind(why)
        self.names = self.names.revealed()


def _limits(
    cells: pd.DataFrame, pixels: Slide, recipe: Recipe, thresholds: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return black and white of each channel of a fluorescence slide."""
    if pixels.brightfield:
        return {}
    panel = bound(recipe.panel, pixels)
    shown = {str(marker.channel): thresholds.get(name) for name, marker in panel.items()}
    limits = {name: contrast_limits(cells, name, shown.get(name)) for name in pixels.channels}
    return {name: pair for name, pair in limits.items() if pair is not None}
