"""A correction made by a person: a frozen value with an inverse, never a mutation.

An edit speaks of an object by where it is, what it is (`kind`, `marker` and its class) and the region it was seen in,
so that cells, spines and lesions can be reviewed alike, and found again in the results of another run.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import shapely

from histoquant.errors import InputError

CALL, ACCEPT, DELETE, ADD, UNDO, UNBLIND = ACTIONS = ("call", "accept", "delete", "add", "undo", "unblind")
"""What an edit may do: state a class, agree with the one that is there, take an object away, add one, take another edit
back, or reveal the names of slides, animals and groups."""

ABOUT_OBJECTS = (CALL, ACCEPT, DELETE, ADD)

CELL, SPINE, LESION = "cell", "spine", "lesion"
"""Kinds of objects that are reviewed; cells unless said otherwise."""

Value = bool | str | None
"""The class of an object: positive or not, or a name (``mushroom``); None where none is stated."""


@dataclass(frozen=True)
class Edit:
    """One correction.

    Attributes
    ----------
    id : str
        Unique among all edits of all reviewers.
    at : str
        When, ISO 8601, UTC.
    who : str
        The reviewer.
    slide_id : str
        Empty for ``unblind``.
    action : str
        One of `ACTIONS`. ``call``: the object's ``marker`` is ``new`` from here on. ``accept``: looked at and agreed;
        with a marker and ``new``, that call stands even where another threshold would change it. ``add``: an object
        that was missed; with a marker and ``new``, its first call, all others negative.
    kind : str
        What the object is.
    region : str
        The region it was seen in; counting places it again by its position.
    y_um, x_um, z_um : float, optional
        Its centre, from the slide's top-left corner.
    area_um2 : float, optional
        Its size.
    marker : str
        Whose call it is.
    old, new : bool, str or None
        The class before and after.
    outline : str
        Of a lesion that was drawn anew: its polygons as WKT, (x, y) in um.
    why : str
        The reviewer's words.
    blinded : bool
        Whether the reviewer could not see animal and group.
    undoes : str
        The edit that an ``undo`` takes back. The undo of an undo is a redo.
    measured : str
        Key of the measured table that was looked at (`measured_key` of the slide): in the same table, an object is at
        exactly this place.

    Raises
    ------
    InputError
        If the parts do not fit the action.
    """

    id: str
    at: str
    who: str
    slide_id: str
    action: str
    kind: str = CELL
    region: str = ""
    y_um: float | None = None
    x_um: float | None = None
    z_um: float | None = None
    area_um2: float | None = None
    marker: str = ""
    old: Value = None
    new: Value = None
    outline: str = ""
    why: str = ""
    blinded: bool = False
    undoes: str = ""
    measured: str = ""

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (kinds is _NUMBER and isinstance(value, bool)):
                raise InputError(f"Edit {self.id!r}: {name} cannot be {value!r}.")
        for name in ("y_um", "x_um", "z_um", "area_um2"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"Edit {self.id!r}: {name} cannot be {value!r}.")
        for problem in self._problems():
            raise InputError(f"Edit {self.id!r}: {problem}.")

    def _problems(self) -> Iterable[str]:
        if not self.id or not self.who:
            yield "it has no id, or no reviewer"
        if self.action not in ACTIONS:
            yield f"there is no action {self.action!r}; there are {', '.join(ACTIONS)}"
        if self.action in ABOUT_OBJECTS and (self.y_um is None or self.x_um is None or not self.slide_id):
            yield f"'{self.action}' needs a slide_id, y_um and x_um"
        if self.action == CALL and (not self.marker or self.new is None):
            yield "'call' needs a marker and a new value"
        if self.outline and not _is_ground(self.outline):
            yield "its outline is no valid polygon"
        if (self.action == UNDO) != bool(self.undoes):
            yield "'undo', and nothing else, names the edit it takes back"
        try:
            when = datetime.fromisoformat(self.at)
        except ValueError:
            when = None
        if when is None or when.utcoffset() != UTC.utcoffset(None):
            yield f"{self.at!r} is not a time in UTC as ISO 8601 writes it"

    @classmethod
    def made(cls, who: str, slide_id: str, action: str, **parts: Any) -> Edit:
        """Return an edit made now, with an id of its own; ``parts`` are the other attributes."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(id=uuid.uuid4().hex, at=at, who=who, slide_id=slide_id, action=action, **parts)

    def inverse(self, *, blinded: bool | None = None) -> Edit:
        """Return the edit, made now, that takes this one back.

        Raises
        ------
        InputError
            If this is an ``unblind``: what was seen cannot be unseen.
        """
        if self.action == UNBLIND:
            raise InputError("Unblinding cannot be undone.", "Edits after it stay marked.")
        return Edit.made(
            self.who,
            self.slide_id,
            UNDO,
            **{name: getattr(self, name) for name in ("kind", "region", "y_um", "x_um", "z_um", "marker", "measured")},
            old=self.new,
            new=self.old,
            blinded=self.blinded if blinded is None else blinded,
            undoes=self.id,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what is stated, by name, for JSON; what is at its default is left out, except ``blinded``."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value
            for name, value in told.items()
            if name in ("slide_id", "blinded", "kind") or value not in ("", None)
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Edit:
        """Return the edit that `as_dict` told of.

        Raises
        ------
        InputError
            If something is missing, unknown, or of the wrong kind.
        """
        names = {field.name for field in fields(cls)}
        unknown = [str(name) for name in told if name not in names]
        missing = [name for name in ("id", "at", "who", "slide_id", "action") if name not in told]
        if unknown or missing:
            what = f"no part of an edit: {', '.join(unknown)}" if unknown else f"it lacks {', '.join(missing)}"
            raise InputError(f"Edit {told.get('id', '?')!r}: {what}.")
        return cls(**told)


def _is_ground(wkt: str) -> bool:
    """Return whether a text is a valid polygon or several, or nothing at all."""
    geometry = shapely.from_wkt(wkt, on_invalid="ignore")
    return geometry is not None and geometry.geom_type in ("Polygon", "MultiPolygon") and bool(geometry.is_valid)


_NUMBER = (int, float, type(None))
_TEXTS = ("id", "at", "who", "slide_id", "action", "kind", "region", "marker", "outline", "why", "undoes", "measured")
_KINDS: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("y_um", "x_um", "z_um", "area_um2"), _NUMBER),
    **dict.fromkeys(("old", "new"), (bool, str, type(None))),
    "blinded": bool,
}


def in_effect(edits: Iterable[Edit]) -> list[Edit]:
    """Return the edits about objects that stand: each id once, those taken back left out, in the order given."""
    once = {edit.id: edit for edit in edits}
    taken_back: set[str] = set()
    for edit in reversed(once.values()):  # an undo that was itself undone later takes nothing back
        if edit.action == UNDO and edit.id not in taken_back:
            taken_back.add(edit.undoes)
    return [edit for edit in once.values() if edit.action in ABOUT_OBJECTS and edit.id not in taken_back]


def undo_and_redo(edits: Iterable[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Return what can be undone and what can be redone, the next one last in each.

    What can be undone are edits about objects that stand. What can be redone are undos with no newer edit after them;
    to redo one is to record its `Edit.inverse`.
    """
    done: dict[str, Edit] = {}
    undone: dict[str, Edit] = {}
    known: dict[str, Edit] = {}
    for edit in edits:
        known[edit.id] = edit
        if edit.action in ABOUT_OBJECTS:
            done[edit.id] = edit
            undone.clear()
        elif edit.undoes in done:
            del done[edit.undoes]
            undone[edit.id] = edit
        elif edit.undoes in undone:
            original = known[undone.pop(edit.undoes).undoes]
            done[original.id] = original
    return list(done.values()), list(undone.values())
