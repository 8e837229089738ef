"""Replay a journal of human corrections onto a table of results. The table itself never changes.

An edit is matched to an object by where it is, not by its number, so that corrections hold for the results of another
run as well. Edits that find no object are listed, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.agreement import TOLERANCE_UM
from histoquant.model.edit import ADD, CELL, DELETE, LESION, SPINE, UNDO, Edit, Value, in_effect
from histoquant.model.tables import DISAGREEMENTS, TOUCHED, UNMATCHED, shaped

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MATCH_UM = {CELL: TOLERANCE_UM, SPINE: 0.8, LESION: 2000.0}
"""An edit's object is at most this far from where it was: a cell as in scoring points, a spine as two bright spots of
one spine are from each other; a lesion is looked for on the slice it was drawn on, a fifth of which this is."""

LEAST_MATCH_UM = {CELL: 2.0, SPINE: 0.4, LESION: 2000.0}
"""Reach for the smallest bodies. Between the two, the radius of the object: what lies outside it is another object."""

CLASS = "class"
"""The marker of edits about objects that have one class, by name, in the column of that name."""

Place = Callable[["NDArray[np.float64]"], Sequence[str]]
"""Takes (n, 2) points (y, x) in um and returns their regions, as `RegionSet.assign` does."""


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a slide's table becomes.

    Attributes
    ----------
    cells : DataFrame
        The corrected table: calls as the reviewers left them, deleted rows dropped, added ones at the end with
        ``origin`` = ``added``, numbers of their own, and nothing measured. Without edits the table as it was.
    touched : DataFrame
        One row per edit that stands and found its object, as `tables.TOUCHED` lists them.
    unmatched : DataFrame
        Edits that found no object, and why, as `tables.UNMATCHED` lists them.
    disagreements : DataFrame
        Objects of which two reviewers say different things, as `tables.DISAGREEMENTS` lists them; the later edit holds.
    """

    cells: pd.DataFrame
    touched: pd.DataFrame
    unmatched: pd.DataFrame
    disagreements: pd.DataFrame


def reach_um(area_um2: float | None, kind: str = CELL) -> float:
    """Return how far from an edit its object may be: its radius, within `LEAST_MATCH_UM` and `MATCH_UM`."""
    if area_um2 is None:
        return MATCH_UM[kind]
    return min(max(math.sqrt(max(area_um2, 0.0) / math.pi), LEAST_MATCH_UM[kind]), MATCH_UM[kind])


def replay(
    cells: pd.DataFrame,
    edits: Iterable[Edit],
    *,
    measured: str = "",
    place: Place | None = None,
    pixel_size_um: float | None = None,
    kind: str = CELL,
    classes: Collection[str] | None = None,
) -> Replayed:
    """Apply the edits of one slide to its table.

    Matching is one to one within what one reviewer saw in one table, nearest first, within `reach_um`. An object that
    was added is added, unless it was missing in another table (`Edit.measured`) and is found in this one, or another
    reviewer added it too. Edits taken back, and edits about other kinds of objects, do nothing.

    Parameters
    ----------
    cells : DataFrame
        Called cells, as ``cells.parquet`` holds them; or other objects in those columns, with ``z_um`` where they have
        a depth and ``class`` where they have one class by name.
    edits : iterable of Edit
        Of this slide, by any number of reviewers, in order of time; the later of two holds.
    measured : str
        Key of the measured table that ``cells`` comes from.
    place : callable, optional
        Without it, added objects lie in the region the reviewer saw them in.
    pixel_size_um : float, optional
        For the position of added objects in pixels.
    classes : collection of str, optional
        Names of the classes there are, where objects have one by name; any without it.
    """
    mine = [edit for edit in edits if edit.kind == kind]
    standing = in_effect(mine)
    known = [str(name).removesuffix("_positive") for name in cells.columns if str(name).endswith("_positive")]
    known += [CLASS] * (CLASS in cells.columns)
    objects = _Objects(cells)
    targets = _targets(standing, mine)
    _match(targets, objects, measured)

    ids = {edit.id for edit in mine}
    reasons = {e.id: "the edit it takes back is not there" for e in mine if e.action == UNDO and e.undoes not in ids}
    where: dict[str, int] = {}
    for target in targets:
        where |= dict.fromkeys((edit.id for edit in target.edits), target.where)
    for edit in standing:
        if where[edit.id] < 0:
            reasons[edit.id] = _LOST[where[edit.id]].format(kind)
        elif edit.marker and edit.marker not in known:
            reasons[edit.id] = f"the table has no marker '{edit.marker}'"
        elif edit.marker == CLASS and isinstance(edit.new, bool):
            reasons[edit.id] = "positive and negative are no classes"
        elif edit.marker == CLASS and edit.new and classes is not None and edit.new not in classes:
            reasons[edit.id] = f"these results have no class '{edit.new}'"
        elif edit.marker != CLASS and isinstance(edit.new, str):
            reasons[edit.id] = f"'{edit.new}' is no call of a marker, which is positive or negative"
    # Whether there is a cell does not hang on a marker, so that adding and deleting hold all the same.
    applied = [
        (where[edit.id], edit)
        for edit in standing
        if where[edit.id] >= 0 and (edit.id not in reasons or edit.action in (ADD, DELETE))
    ]
    # What such an edit calls its object does not hold.
    stated = [(row, replace(edit, new=None) if edit.id in reasons else edit) for row, edit in applied]
    everything = _extended(cells, objects.added, known, place, pixel_size_um)
    unmatched = list({edit.id: edit for edit in mine if edit.id in reasons}.values())
    return Replayed(
        _corrected(everything, stated, known) if applied else cells.copy(deep=False),
        _touched(everything, applied),
        listed([(edit, reasons[edit.id]) for edit in unmatched]),
        _disagreements(everything, stated),
    )


_NOWHERE, _TAKEN_BACK = -1, -2
_LOST = {
    _NOWHERE: "no {} is where it was, or another edit's is nearer",
    _TAKEN_BACK: "the {} was added by hand, and that was taken back",
}


@dataclass(eq=False)
class _Target:
    """An object as one reviewer saw it in one table, the edits about it, and which object of this table it is."""

    edits: list[Edit] = field(default_factory=list)
    where: int = _NOWHERE

    @property
    def addition(self) -> Edit | None:
        return next((edit for edit in self.edits if edit.action == ADD), None)


def _key(edit: Edit) -> tuple[str, str, float, float, float]:
    # Positions come from a table or a journal, both exact; a nanometre is below any difference between two objects.
    z, y, x = (round(value or 0.0, 3) for value in (edit.z_um, edit.y_um, edit.x_um))
    return edit.who, edit.measured, z, y, x


def _targets(standing: Sequence[Edit], everything: Sequence[Edit]) -> list[_Target]:
    """Return what the edits are about, in order of first mention."""
    targets: dict[tuple[str, str, float, float, float], _Target] = {}
    for edit in standing:
        targets.setdefault(_key(edit), _Target()).edits.append(edit)
    for key in {_key(edit) for edit in everything if edit.action == ADD}:
        if key in targets and targets[key].addition is None:
            targets[key].where = _TAKEN_BACK
    return list(targets.values())


class _Objects:
    """What edits can be about: the rows of the table, then what was added, numbered in one go."""

    def __init__(self, cells: pd.DataFrame) -> None:
        from scipy.spatial import KDTree

        self._axes = [name for name in ("y_um", "x_um", "z_um") if name in cells.columns]
        self.rows = cells[self._axes].to_numpy(dtype=float)
        self.added: list[Edit] = []
        self._places = np.empty((0, len(self._axes)))
        self._tree = KDTree(self.rows) if len(self.rows) else None

    def add(self, edit: Edit) -> int:
        self.added.append(edit)
        return len(self.rows) + len(self.added) - 1

    def _at(self, edit: Edit) -> NDArray[np.float64]:
        # An edit without a depth speaks of the first plane, as `_key` takes it.
        return np.array([getattr(edit, name) or 0.0 for name in self._axes], dtype=float)

    def near(self, edit: Edit, *, rows: bool, not_by: str = "") -> Iterable[tuple[float, int]]:
        """Yield distance and number of the objects within reach; of the added ones those by others than ``not_by``."""
        at, reach = self._at(edit), reach_um(edit.area_um2, edit.kind)
        if rows and self._tree is not None:
            found = self._tree.query_ball_point(at, reach)
            yield from zip(np.linalg.norm(self.rows[found] - at, axis=1).tolist(), found, strict=True)
        if len(self._places) != len(self.added):
            self._places = np.array([self._at(other) for other in self.added])
        distances = np.linalg.norm(self._places - at, axis=1)
        for number in np.flatnonzero(distances <= reach).tolist():
            if self.added[number].who != not_by:
                yield float(distances[number]), len(self.rows) + number


def _match(targets: Sequence[_Target], objects: _Objects, measured: str) -> None:
    """Give every target its object."""
    seen: dict[tuple[str, str], list[_Target]] = {}
    for target in targets:
        seen.setdefault((target.edits[0].who, target.edits[0].measured), []).append(target)
    for (who, table), mine in seen.items():
        taken: set[int] = set()
        found = [target for target in mine if target.addition is None and target.where == _NOWHERE]
        _nearest(found, [objects.near(target.edits[0], rows=True) for target in found], taken)
        new = [(target, target.addition) for target in mine if target.addition is not None]
        near = [objects.near(edit, rows=table != measured, not_by=who) for _, edit in new]
        _nearest([target for target, _ in new], near, taken)
        for target, edit in new:
            if target.where == _NOWHERE:
                target.where = objects.add(edit)


def _nearest(targets: Sequence[_Target], near: Iterable[Iterable[tuple[float, int]]], taken: set[int]) -> None:
    """Give each target the nearest object that no other target is nearer to."""
    for _, n, where in sorted((distance, n, where) for n, found in enumerate(near) for distance, where in found):
        if targets[n].where == _NOWHERE and where not in taken:
            targets[n].where = where
            taken.add(where)


def _extended(
    cells: pd.DataFrame, added: Sequence[Edit], known: Sequence[str], place: Place | None, pixel_size_um: float | None
) -> pd.DataFrame:
    """Return the table with what was added at its end: placed, sized, negative, not measured."""
    import pandas as pd

    if not added:
        return cells
    points = np.array([(edit.y_um, edit.x_um) for edit in added], dtype=float)
    last = int(cells["cell_id"].max()) if len(cells) else 0
    told: dict[str, Any] = {
        "cell_id": range(last + 1, last + 1 + len(added)),
        "region": [edit.region for edit in added] if place is None else list(place(points)),
        "y_um": points[:, 0].tolist(),
        "x_um": points[:, 1].tolist(),
        "z_um": [edit.z_um or 0.0 for edit in added],
        "area_um2": [math.nan if edit.area_um2 is None else edit.area_um2 for edit in added],
        "origin": ["added"] * len(added),
    }
    if pixel_size_um is not None:
        told |= {"y_px": (points[:, 0] / pixel_size_um).tolist(), "x_px": (points[:, 1] / pixel_size_um).tolist()}
    new = {}
    for name, kind in cells.dtypes.items():
        nothing = {"f": math.nan, "b": False, "i": 0, "u": 0}.get(kind.kind, "")
        new[name] = pd.Series(told.get(str(name), [nothing] * len(added)), dtype=kind)
    return pd.concat([cells, pd.DataFrame(new)], ignore_index=True)


def _corrected(everything: pd.DataFrame, applied: Sequence[tuple[int, Edit]], known: Sequence[str]) -> pd.DataFrame:
    """Return the table as the edits leave it, one after the other."""
    alive = np.ones(len(everything), dtype=bool)
    calls = {name: everything[f"{name}_positive"].to_numpy(dtype=bool, copy=True) for name in known if name != CLASS}
    classes = everything[CLASS].to_numpy(dtype=object, copy=True) if CLASS in known else None
    for where, edit in applied:
        alive[where] = edit.action != DELETE
        if edit.marker in calls and edit.action != DELETE and isinstance(edit.new, bool):
            calls[edit.marker][where] = edit.new
        if edit.marker == CLASS and classes is not None and edit.action != DELETE and isinstance(edit.new, str):
            classes[where] = edit.new
    corrected = everything.copy(deep=False)
    if classes is not None:
        corrected[CLASS] = classes.astype(str)
    for name, positive in calls.items():
        changed = positive != everything[f"{name}_positive"].to_numpy(dtype=bool)
        corrected[f"{name}_positive"] = positive
        # What software told apart by intensity does not hold for what a person calls otherwise.
        if f"{name}_autofluorescent" in corrected:
            corrected[f"{name}_autofluorescent"] &= ~changed
        if f"{name}_class" in corrected:
            corrected[f"{name}_class"] = corrected[f"{name}_class"].where(~changed, "")
    return corrected[alive].reset_index(drop=True)


def _touched(everything: pd.DataFrame, applied: Sequence[tuple[int, Edit]]) -> pd.DataFrame:
    import pandas as pd

    ids, regions = everything["cell_id"].to_numpy(), everything["region"].to_numpy()
    rows = [
        (edit.id, edit.who, edit.action, ids[where], regions[where], edit.marker, edit.blinded)
        for where, edit in applied
    ]
    return shaped(pd.DataFrame(rows, columns=list(TOUCHED)), TOUCHED)


def listed(edits: Sequence[tuple[Edit, str]]) -> pd.DataFrame:
    """Return edits, each with the reason why it found nothing, as `tables.UNMATCHED` lists them."""
    import pandas as pd

    rows = [
        {name: getattr(edit, name, "") for name in UNMATCHED}
        | {"old": _word(edit.old), "new": _word(edit.new), "reason": reason}
        for edit, reason in edits
    ]
    return shaped(pd.DataFrame(rows, columns=list(UNMATCHED)), UNMATCHED)


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "positive" if value else "negative"
    return value or ""


def _disagreements(everything: pd.DataFrame, applied: Sequence[tuple[int, Edit]]) -> pd.DataFrame:
    """Return where what one reviewer left an object as is not what another did: its being there, or a call."""
    import pandas as pd

    said: dict[tuple[int, str], dict[str, str]] = {}
    for where, edit in applied:
        said.setdefault((where, ""), {})[edit.who] = "none there" if edit.action == DELETE else "there"
        if edit.marker and edit.new is not None and edit.action != DELETE:
            said.setdefault((where, edit.marker), {})[edit.who] = _word(edit.new)
    rows = []
    for (where, marker), by in said.items():
        if len(set(by.values())) > 1:
            cell = everything.iloc[where]
            told = "; ".join(f"{who}: {what}" for who, what in sorted(by.items()))
            rows.append((cell["cell_id"], cell["region"], cell["y_um"], cell["x_um"], marker, told))
    return shaped(pd.DataFrame(rows, columns=list(DISAGREEMENTS)), DISAGREEMENTS)
