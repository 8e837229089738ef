"""A review of a run folder: its slides under coded names, one of them open, every decision in the journal at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from histoquant.corrected_infarct import REDRAWN
from histoquant.errors import InputError
from histoquant.inputs import restated_inputs
from histoquant.journal import Journal
from histoquant.model.edit import ACCEPT, ADD, CALL, DELETE, LESION, Edit, Value
from histoquant.model.geometry import Geometry
from histoquant.model.region import SLIDE
from histoquant.model.region_set import Region
from histoquant.report.run import read_run
from napari_histoquant.names import Names
from napari_histoquant.queue import ALL, EVERYWHERE, Queue, Selection, class_name
from napari_histoquant.subjects import OpenPicture, OpenSlide, markers_of, opened

OUTLINE_DIGITS, OUTLINE_UM = 3, 0.01
"""Outlines are kept to so many digits of a um; those that differ by less are the same."""


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
        run = self.run = read_run(root)
        self.root = root
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
        """Markers whose calls can be reviewed; of spines, the class."""
        return markers_of(self.run)

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
        return self.here.channel(self.queue.selection.marker)

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
        found = opened(self.run, self._rows[self.names.true(shown)], shown if self.blinded else None)
        self.close_slide()
        self.here = found
        self._take_in(found)
        selection = selection or Selection(self.markers[0])
        if selection.region not in found.objects.regions:
            selection = replace(selection, region=EVERYWHERE)
        if selection.show not in map(class_name, found.objects.choices[selection.marker]):
            selection = replace(selection, show=ALL)
        self.select(selection)

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
        if self.here is None or self.queue is None or self.queue.current is None:
            return None
        marker = self.queue.selection.marker
        named = [value for value in self.here.objects.choices[marker] if value != ""]
        old = self.here.objects.called(self.queue.current, marker)
        return self._decide(CALL, why, named[(named.index(old) + 1) % len(named)] if old in named else named[0])

    def call(self, value: Value, why: str = "") -> int | None:
        """Give the current object a class, or agree when it has that, and go on."""
        if self.here is None or self.queue is None or self.queue.current is None:
            return None
        same = self.here.objects.called(self.queue.current, self.queue.selection.marker) == value
        return self._decide(ACCEPT if same else CALL, why, value)

    def delete(self, why: str = "") -> int | None:
        """Say that the current object is none, and go on."""
        return self._decide(DELETE, why)

    def redraw(self, lesion: Geometry) -> int | None:
        """Keep the outline of the current lesion as it was drawn, (x, y) in um; nothing when it is that already.

        Raises
        ------
        InputError
            If most of it does not lie on the slice that is looked at.
        """
        here, current = self.here, None if self.queue is None else self.queue.current
        if not isinstance(here, OpenPicture) or current is None or self.queue is None:
            return None
        tissue = here.results.slices[current].tissue
        if not lesion.is_empty and shapely.intersection(lesion, tissue).area < 0.5 * lesion.area:
            raise InputError(
                "What is drawn lies on another slice than the one that is looked at.",
                "Turn to that slice first, then draw its lesion.",
            )
        if shapely.equals_exact(here.lesion(current).normalize(), lesion.normalize(), tolerance=OUTLINE_UM):
            return None
        marker = self.queue.selection.marker
        edit = self.journal.record(
            here.slide_id,
            CALL,
            **self._told_of(current),
            marker=marker,
            old=here.objects.called(current, marker),
            new=REDRAWN,
            outline=shapely.to_wkt(lesion, rounding_precision=OUTLINE_DIGITS),
        )
        self._put(current, edit)
        return current

    def _decide(self, action: str, why: str, called: Value = None) -> int | None:
        if self.here is None or self.queue is None or self.queue.current is None:
            return None
        index, objects, marker = self.queue.current, self.here.objects, self.queue.selection.marker
        if not objects.was_there(index):
            return None
        if objects.kind == LESION and called == REDRAWN:
            raise InputError("A lesion is drawn on the canvas.", "Change its outline in the layer 'lesion'.")
        old = objects.called(index, marker)
        new = {ACCEPT: old, CALL: called, DELETE: None}[action]
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
        area, z = (float(column[index]) for column in (objects.area_um2, objects.z_um))
        return {
            "kind": objects.kind,
            "region": str(objects.region[index]),
            "z_um": z if np.isfinite(z) else None,
            "y_um": y,
            "x_um": x,
            "area_um2": area if np.isfinite(area) else None,
            "measured": self.here.results.measured,
        }

    def add(self, y_um: float, x_um: float, why: str = "") -> int | None:
        """Add an object that was missed, and look at it: a positive cell, or a spine that has no class yet.

        Raises
        ------
        InputError
            If there can be none.
        """
        if self.here is None or self.queue is None:
            return None
        objects, marker = self.here.objects, self.queue.selection.marker
        region, z_um = self.here.seen_at(y_um, x_um)
        edit = self.journal.record(
            self.here.slide_id,
            ADD,
            kind=objects.kind,
            region=region,
            z_um=z_um,
            y_um=float(y_um),
            x_um=float(x_um),
            marker=marker,
            new=True if True in objects.choices[marker] else "",
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
