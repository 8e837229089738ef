"""Outlines being drawn: saved at every edit, with a history that can be undone across sessions.

Two files lie side by side: the outlines as GeoJSON, which QuPath and `histoquant run` read, and
``<outlines>.history.jsonl``, to which every edit adds one line and which nothing ever shortens. An undo is an edit as
well. Here outlines are `Region` values whose coordinates are **full-resolution pixels**, as in the file, so that what
was not touched is written back to the last bit.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import shapely

from histoquant.errors import FormatError, HistoquantError, StoreError
from histoquant.model.geometry import Geometry
from histoquant.model.region import SLIDE, TISSUE, Region, RegionRule, RegionSet, resolve
from histoquant.readers.geojson import Colour, geojson_text
from histoquant.readers.outlines import read_outlines
from histoquant.store import write_bytes

NAMED: dict[str, Colour] = {
    "lesion": (213, 94, 0),
    "cortex": (86, 180, 233),
    "striatum": (0, 158, 115),
    "SVZ": (240, 228, 66),
    "DG": (204, 121, 167),
    "hippocampus": (0, 114, 178),
    "corpus callosum": (230, 159, 0),
    "hemisphere": (190, 190, 190),
    "tissue": (160, 200, 160),
    "midline": (255, 255, 255),
    "Ignore": (255, 85, 85),
}
"""Names offered first, with their colours (Okabe and Ito 2008, but for the last four). "Ignore" masks, as in QuPath."""

CUT = b"#cut off"
"""What is put behind a line of the history that a crash cut off."""

MORE: tuple[Colour, ...] = ((127, 227, 196), (255, 179, 138), (185, 167, 255), (155, 209, 255), (214, 230, 133))


def colours_of(names: Iterable[str]) -> dict[str, Colour]:
    """Return a colour for every name: its own where it is a known one, in any case, else one of `MORE` in turn."""
    known = {name.casefold(): colour for name, colour in NAMED.items()}
    told: dict[str, Colour] = {}
    n_others = 0
    for name in dict.fromkeys(names):
        if name.casefold() in known:
            told[name] = known[name.casefold()]
        else:
            told[name] = MORE[n_others % len(MORE)]
            n_others += 1
    return told


@dataclass(frozen=True)
class _Edit:
    """Some outlines in a row replaced by others."""

    at: int
    old: tuple[Region, ...]
    new: tuple[Region, ...]

    @property
    def inverse(self) -> _Edit:
        return _Edit(self.at, self.new, self.old)

    def on(self, regions: tuple[Region, ...]) -> tuple[Region, ...]:
        return (*regions[: self.at], *self.new, *regions[self.at + len(self.old) :])

    @classmethod
    def between(cls, before: tuple[Region, ...], after: tuple[Region, ...]) -> _Edit:
        shorter = min(len(before), len(after))
        head = next((n for n in range(shorter) if before[n] != after[n]), shorter)
        tail = next((n for n in range(shorter - head) if before[-1 - n] != after[-1 - n]), shorter - head)
        return cls(head, before[head : len(before) - tail], after[head : len(after) - tail])


class Drawing:
    """The outlines of one slide, being drawn.

    Parameters
    ----------
    path : Path
        GeoJSON; it need not be there yet.
    who : str, optional
        Who draws; the name of the account when not given.

    Attributes
    ----------
    regions : tuple of Region
        In the order of the file; **coordinates in pixels**.

    Raises
    ------
    HistoquantError
        If the outlines or their history cannot be read.
    """

    def __init__(self, path: Path, *, who: str = "") -> None:
        self.path = path
        self.who = who or _account()
        self.history = path.with_name(f"{path.name}.history.jsonl")
        self.regions: tuple[Region, ...] = ()
        self._done: list[_Edit] = []
        self._undone: list[_Edit] = []
        self._unwritten: list[tuple[_Edit, str, str]] = []
        self._size = 0
        self._sum = ""
        self._open()

    def change(self, regions: Sequence[Region]) -> bool:
        """Put these outlines in the place of what was there, and save; return whether anything changed.

        Raises
        ------
        StoreError
            If nothing can be written, or another program wrote to the files meanwhile.
        """
        edit = _Edit.between(self.regions, tuple(regions))
        if edit.old == edit.new:
            return False
        self._apply(edit, "edit")
        return True

    def undo(self) -> bool:
        """Take back the last edit that stands, of this session or an earlier one; return whether there was one."""
        if not self._done:
            return False
        self._apply(self._done[-1].inverse, "undo")
        return True

    def redo(self) -> bool:
        """Do again what was undone last; return whether there was anything."""
        if not self._undone:
            return False
        self._apply(self._undone[-1], "redo")
        return True

    @property
    def n_undo(self) -> int:
        """How many edits can be undone."""
        return len(self._done)

    @property
    def n_redo(self) -> int:
        """How many edits can be done again."""
        return len(self._undone)

    @property
    def colours(self) -> dict[str, Colour]:
        """A colour for every class or name."""
        return colours_of(region.classification or region.name for region in self.regions)

    def _open(self) -> None:
        content = self.path.read_bytes() if self.path.is_file() else b""
        sums = [""]
        for edit, what, said in self._lines():
            self._take_in(edit, what)
            sums.append(said)
        found = _sha256(content) if content else ""
        self._sum = sums[-1]
        if found == self._sum:
            return
        if found in sums[-2:-1]:  # the last edit reached the history, but the outlines were not saved any more
            self._save()
            return
        # What was drawn before there was a history is where it begins; what another program changed since is an edit.
        drawn = read_pixels(self.path) if content else ()
        edit = _Edit.between(self.regions, drawn)
        self._sum = found
        if edit.old != edit.new:
            what = "edit" if len(sums) > 1 else "begin"
            self._unwritten = [(edit, what, found)]
            self._take_in(edit, what)

    def _take_in(self, edit: _Edit, what: str) -> None:
        """Follow an edit: the outlines, and what can be undone and done again after it."""
        self.regions = edit.on(self.regions)
        if what == "undo":
            self._undone.append(self._done.pop())
            return
        if what != "begin":
            self._done.append(edit)
        self._undone = self._undone[:-1] if what == "redo" else []

    def _lines(self) -> list[tuple[_Edit, str, str]]:
        """Return the lines of the history; one that was cut off by a crash never counted."""
        content = self.history.read_bytes() if self.history.is_file() else b""
        self._size = len(content)
        told = []
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                edit = _Edit(row["at"], tuple(map(_region, row["old"])), tuple(map(_region, row["new"])))
                told.append((edit, row["what"], row["outlines_sha256"]))
            except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
                if line.endswith(CUT):
                    continue
                raise FormatError(
                    f"The history '{self.history.name}' is damaged in line {number} ({type(error).__name__}: {error}).",
                    "Move it away to begin a new one; the outlines themselves stay.",
                ) from error
        return told

    def _apply(self, edit: _Edit, what: str) -> None:
        self._refuse_strangers()
        text = self._text(edit.on(self.regions))
        for line in (*self._unwritten, (edit, what, _sha256(text) if text else "")):
            self._write_line(*line)
        self._unwritten = []
        self._take_in(edit, what)
        self._save()

    def _refuse_strangers(self) -> None:
        size = self.history.stat().st_size if self.history.is_file() else 0
        content = self.path.read_bytes() if self.path.is_file() else b""
        if size != self._size or (_sha256(content) if content else "") != self._sum:
            raise StoreError(
                f"The outlines '{self.path.name}' were changed by another program since they were opened here.",
                "Open them again: what it drew is kept as an edit that can be undone.",
            )

    def _text(self, regions: tuple[Region, ...]) -> bytes:
        if not regions:
            return b""
        colours = colours_of(region.classification or region.name for region in regions)
        return geojson_text(regions, 1.0, colours=colours).encode()

    def _save(self) -> None:
        text = self._text(self.regions)
        if text:
            write_bytes(self.path, text, make_folder=False)
        else:  # GeoJSON without any outline is refused by all who read it
            self.path.unlink(missing_ok=True)
        self._sum = _sha256(text) if text else ""

    def _write_line(self, edit: _Edit, what: str, outlines_sha256: str) -> None:
        row = {
            "what": what,
            "at": edit.at,
            "old": [_as_json(region) for region in edit.old],
            "new": [_as_json(region) for region in edit.new],
            "outlines_sha256": outlines_sha256,
            "who": self.who,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            with self.history.open("ab") as file:
                if self._size and not self._ends_whole():
                    line = CUT + b"\n" + line  # what a crash cut off is closed, and marked as what it is
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
        except OSError as error:
            raise StoreError(
                f"Cannot write '{self.history}': {error.strerror or error}.", "Make room or give write permission."
            ) from error

    def _ends_whole(self) -> bool:
        with self.history.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def read_pixels(path: Path) -> tuple[Region, ...]:
    """Return the outlines of a file, GeoJSON or ImageJ's, with coordinates in pixels; raises as `read_outlines`."""
    return tuple(replace(region, origin="drawn", notes=()) for region in read_outlines(path, 1.0))


def _account() -> str:
    with suppress(OSError, KeyError, ImportError):  # an account without a name, as in some containers
        return getpass.getuser()
    return ""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_json(region: Region) -> dict[str, Any]:
    told = {
        "name": region.name,
        "parent": region.parent,
        "class": region.classification,
        "masked": region.masked or None,
        "counted": None if region.counted else False,
        "geometry": shapely.geometry.mapping(region.geometry),
    }
    return {key: value for key, value in told.items() if value is not None}


def _region(told: Mapping[str, Any]) -> Region:
    return Region(
        told["name"],
        shapely.geometry.shape(told["geometry"]),
        parent=told.get("parent"),
        classification=told.get("class"),
        masked=told.get("masked", False),
        counted=told.get("counted", True),
    )


@dataclass(frozen=True)
class Derived:
    """What a recipe makes of a drawing.

    Attributes
    ----------
    regions : tuple of Region
        The derived ones, coordinates in um.
    waiting : tuple of str
        What is not there yet and why, a sentence each.
    """

    regions: tuple[Region, ...]
    waiting: tuple[str, ...]


def in_um(regions: Iterable[Region], pixel_size_um: float) -> list[Region]:
    """Return regions drawn in pixels as the batch reads them from the file."""
    return [
        replace(region, geometry=shapely.transform(region.geometry, lambda xy: xy * pixel_size_um))
        for region in regions
    ]


def derive(
    drawn: Iterable[Region],
    rules: Mapping[str, RegionRule],
    *,
    slide_um: tuple[float, float],
    pixel_size_um: float,
    tissue: Geometry | None = None,
) -> Derived:
    """Return the bands, mirrors and other derived regions of a drawing, those whose sources are drawn already.

    Parameters
    ----------
    drawn : iterable of Region
        Coordinates in pixels.
    rules : mapping
        ``recipe.regions``.
    slide_um : (height, width)
    tissue : geometry in um, optional
        Outline of the tissue, once a survey found it.
    """
    drawn = in_um(drawn, pixel_size_um)
    there = {region.name for region in drawn} | {SLIDE, TISSUE}
    applied: dict[str, RegionRule] = {}
    left = dict(rules)
    while ready := [name for name, rule in left.items() if set(rule.sources) <= there]:
        applied |= {name: left.pop(name) for name in ready}
        there.update(ready)
    waiting = [
        f"{name} waits for {', '.join(source for source in rule.sources if source not in there)}"
        for name, rule in left.items()
    ]
    ways = {name for name, rule in applied.items() if rule.derivation is not None}
    try:
        made: Iterable[Region] = _resolved(drawn, applied, slide_um, tissue)
    except HistoquantError as error:
        return Derived((), (*waiting, *str(error).splitlines()))
    return Derived(tuple(region for region in made if region.name in ways), tuple(waiting))


def _resolved(
    drawn: Iterable[Region], rules: Mapping[str, RegionRule], slide_um: tuple[float, float], tissue: Geometry | None
) -> RegionSet:
    if tissue is None and any(TISSUE in rule.sources for rule in rules.values()):
        tissue = shapely.box(0.0, 0.0, slide_um[1], slide_um[0])
    return resolve(drawn, rules, slide=slide_um, tissue=tissue)
