"""Marks of people: where a rater saw positive cells, from CSV, ImageJ, QuPath, or the journals of the run itself."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.corrected import SlideResults, read_slide
from histoquant.errors import Faults, FormatError, HistoquantError, InputError, raise_all
from histoquant.journal import read_journals
from histoquant.model.edit import ADD, DELETE
from histoquant.model.panel import called_markers, counterstain_of
from histoquant.readers.points import read_points_px
from histoquant.report.run import read_run

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from histoquant.model.panel import Panel

MAX_BYTES = 100_000_000
"""Of a CSV: two million marks."""

SUFFIXES = (".csv", ".tsv", ".txt", ".roi", ".zip", ".geojson", ".json", ".gz")
"""Files that are looked for in a folder of marks; what they hold is told by their content."""

PLACES = ("slide_id", "marker", "y_um", "x_um")
SLIDE_NAMES = ("slide", "slide_id", "image")
SHOWN = 3
"""Faults of one kind and file that are told one by one."""


@dataclass(frozen=True, eq=False)
class Marks:
    """What one rater marked.

    Attributes
    ----------
    rater : str
    slides : tuple of str
        Slides the rater looked at, those without a mark too.
    points : DataFrame with columns slide_id, marker, y_um, x_um
        ``marker`` is empty where the rater's file does not say.
    seen : DataFrame with the same columns, or None
        Cells the rater looked at, where that was not all there is.
    """

    rater: str
    slides: tuple[str, ...]
    points: pd.DataFrame
    seen: pd.DataFrame | None = None


class Slides:
    """The slides of a finished run by the names people use for them, each read once.

    Parameters
    ----------
    root : Path
        The run folder.

    Raises
    ------
    InputError
        If it holds no finished run.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._run = root, read_run(root)
        self._read: dict[str, SlideResults] = {}

    def __getitem__(self, slide_id: str) -> SlideResults:
        if slide_id not in self._read:
            self._read[slide_id] = read_slide(self.root, slide_id)
        return self._read[slide_id]

    @property
    def ids(self) -> list[str]:
        """The slides that were analysed."""
        return list(self._run.provenance)

    @property
    def panel(self) -> Panel:
        """The markers of the recipe."""
        return self._run.recipe.panel

    @cached_property
    def markers(self) -> list[str]:
        """What cells can be marked as: positive for a called marker, or a nucleus (the counterstain)."""
        return [*called_markers(self.panel), counterstain_of(self.panel)]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for slide, told in self._run.provenance.items():
            path = str(told["slide"].get("path", ""))
            file = (PureWindowsPath(path) if "\\" in path else PurePath(path)).name
            for name in dict.fromkeys((slide.casefold(), file.casefold(), file.split(".")[0].casefold())):
                names.setdefault(name, []).append(slide)
        return names

    def find(self, name: str) -> str | None:
        """Return the slide of a name: its slide_id, its file, or that without endings; None unless just one is."""
        if name in self._run.provenance:
            return name
        found = self._names.get(PurePath(name.replace("\\", "/")).name.casefold(), [])
        return found[0] if len(found) == 1 else None


def read_marks(paths: Iterable[Path], slides: Slides) -> list[Marks]:
    """Read the marks of all raters.

    Parameters
    ----------
    paths : iterable of Path
        CSV with columns slide, y_um and x_um (or y_px and x_px), and marker and rater where they apply; a row without
        a place says that the slide was looked at. ImageJ .roi or .zip, or GeoJSON, of one slide each, named like it. A
        folder of these is one rater's, unless a CSV names its raters.

    Returns
    -------
    list of Marks
        In order of appearance.

    Raises
    ------
    HistoquantError
        Everything that is wrong with all files, together.
    """
    import pandas as pd

    faults: list[HistoquantError] = []
    rows: list[pd.DataFrame] = []
    for path in paths:
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            remedy = f"Put files there that end in {', '.join(SUFFIXES)}."
            faults.append(FormatError(f"The folder '{path}' holds no marks.", remedy))
        for file in files:
            try:
                rows.append(_file(file, path.resolve().name if path.is_dir() else "", slides))
            except HistoquantError as error:
                faults += error.faults if isinstance(error, Faults) else (error,)
    raise_all(faults)
    marks: list[Marks] = []
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["rater"])
    for rater, mine in table.groupby("rater", sort=False):
        placed = mine[mine["y_um"].notna()]
        points = placed[list(PLACES)].reset_index(drop=True)
        marks.append(Marks(str(rater), tuple(dict.fromkeys(mine["slide_id"])), points))
    return marks


def journal_marks(slides: Slides) -> list[Marks]:
    """Return each reviewer of the run as a rater, who looked at the cells that the journal speaks of, and at no others.

    An edit without a marker says that the cell is there, and its calls are agreed with.
    """
    import pandas as pd

    found = []
    for journal in read_journals(slides.root):
        points: list[pd.DataFrame] = []
        seen: list[pd.DataFrame] = []
        mine = [slide for slide in slides.ids if any(edit.slide_id == slide for edit in journal.edits)]
        for slide in mine:
            held = slides[slide]
            done = held.replay(journal.edits)
            before, after = held.cells.set_index("cell_id"), done.cells.set_index("cell_id")
            for marker in slides.markers:
                about = done.touched["marker"].isin(["", marker]) | done.touched["action"].isin((ADD, DELETE))
                if marker == counterstain_of(slides.panel):
                    about |= True
                cells = pd.unique(done.touched["cell_id"][about])
                positive = after.loc[after.index.isin(cells)]
                if f"{marker}_positive" in positive:
                    positive = positive[positive[f"{marker}_positive"].astype(bool)]
                for into, table in ((points, positive), (seen, before.loc[before.index.isin(cells)])):
                    into.append(table[["y_um", "x_um"]].assign(slide_id=slide, marker=marker)[list(PLACES)])
        if mine:
            name = f"{journal.who} (review)"
            tables = (pd.concat(parts, ignore_index=True) for parts in (points, seen))
            found.append(Marks(name, tuple(mine), *tables))
    return found


def _file(path: Path, rater: str, slides: Slides) -> pd.DataFrame:
    """Return the marks of a file with columns slide_id, marker, y_um, x_um, rater."""
    head = _head(path)
    if head[:4] == b"Iout" or head[:2] in (b"PK", b"\x1f\x8b") or head.lstrip()[:1] in (b"{", b"["):
        return _points(path, rater or path.resolve().parent.name, slides)
    return _csv(path, rater or _stem(path), slides)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise FormatError(f"Cannot read the marks '{path}': {error.strerror or error}.", "Check the path.") from error


def _stem(path: Path) -> str:
    name = path.name
    while PurePath(name).suffix.lower() in SUFFIXES:
        name = PurePath(name).stem
    return name


def _points(path: Path, rater: str, slides: Slides) -> pd.DataFrame:
    import pandas as pd

    slide = slides.find(_stem(path)) or (slides.ids[0] if len(slides.ids) == 1 else None)
    if slide is None:
        raise InputError(
            f"Marks '{path.name}': no slide is called '{_stem(path)}'; there are {_some(slides.ids)}.",
            "Name the file like its slide.",
        )
    known = {name.casefold(): name for name in slides.markers}
    px, parts = slides[slide].pixel_size_um, []
    for name, points in read_points_px(path):
        _check_places(path.name, slides[slide], points * px, stated="px")
        marker = known.get(name.casefold(), "")
        parts.append(pd.DataFrame({"marker": marker, "y_um": points[:, 0] * px, "x_um": points[:, 1] * px}))
    return pd.concat(parts, ignore_index=True).assign(slide_id=slide, rater=rater)


def _csv(path: Path, rater: str, slides: Slides) -> pd.DataFrame:
    columns, lines = _lines(path)
    named = {name: columns.index(name) for name in columns}
    unit = next((unit for unit in ("um", "px") if f"y_{unit}" in named and f"x_{unit}" in named), None)
    slide_column = next((name for name in SLIDE_NAMES if name in named), None)
    called = slides.find(_stem(path)) or (slides.ids[0] if len(slides.ids) == 1 else None)  # as files of points are
    if unit is None or (slide_column is None and called is None):
        lacking = "y_um and x_um (or y_px and x_px)" if unit is None else "slide"
        raise InputError(
            f"Marks '{path.name}' lack the column(s) {lacking}; they have {', '.join(columns) or 'none'}.",
            "Name the columns so; um are from the slide's top-left corner.",
        )
    faults = _LineFaults(path.name)
    known = {name.casefold(): name for name in slides.markers}
    rows: list[dict[str, Any]] = []
    for number, cells in lines:
        told = {name: cells[index] if index < len(cells) else "" for name, index in named.items()}
        name = told[slide_column] if slide_column else str(called)
        slide, marker = slides.find(name), known.get(told.get("marker", "").casefold())
        place = [_number(told[f"{axis}_{unit}"]) for axis in "yx"]
        if slide is None:
            faults.add("slide", number, f"no slide is called '{name}'; there are {_some(slides.ids)}")
        elif marker is None and told.get("marker"):
            faults.add("marker", number, f"no marker is called '{told['marker']}'; there are {_some(slides.markers)}")
        elif place[0] is None or place[1] is None or math.isnan(place[0]) != math.isnan(place[1]):
            faults.add("place", number, f"'{told[f'y_{unit}']}', '{told[f'x_{unit}']}' is no place")
        else:
            row = {"slide_id": slide, "marker": marker or "", "rater": told.get("rater") or rater}
            rows.append(row | {"y": place[0], "x": place[1]})
    found = faults.found()
    table = _frame(rows)
    for slide_id, mine in table.groupby("slide_id", sort=False):
        held = slides[str(slide_id)]
        px = held.pixel_size_um if unit == "px" else 1.0
        try:
            _check_places(path.name, held, mine[["y", "x"]].dropna().to_numpy() * px, stated=unit)
        except InputError as error:
            found.append(error)
    if not rows and not found:
        found.append(InputError(f"Marks '{path.name}' hold no row.", "Write one row per mark below the header."))
    raise_all(found)
    scale = table["slide_id"].map(lambda slide: slides[slide].pixel_size_um) if unit == "px" else 1.0
    return table.assign(y_um=table["y"] * scale, x_um=table["x"] * scale).drop(columns=["y", "x"])


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=["slide_id", "marker", "rater", "y", "x"]).astype({"y": float, "x": float})


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the columns of a CSV, and its rows with their line numbers; comma, semicolon or tab, UTF-8 or UTF-16."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FormatError(
                f"Marks '{path.name}' hold more than {MAX_BYTES // 1_000_000} MB.", "Name the right file."
            )
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        lines = text.splitlines()
        start = 1 if lines and lines[0].casefold().startswith("sep=") else 0  # what Excel puts before the header
        if not "".join(lines[start:]).strip():
            raise FormatError(f"Marks '{path.name}' are empty.", "Write one row per mark: slide, y_um, x_um.")
        delimiter = max(",;\t", key=lines[start].count)
        table = list(csv.reader(io.StringIO("\n".join(lines[start:])), delimiter=delimiter, strict=True))
    except OSError as error:
        if isinstance(error, HistoquantError):
            raise
        raise FormatError(f"Cannot read the marks '{path}': {error.strerror or error}.", "Check the path.") from error
    except (UnicodeError, csv.Error) as error:
        raise FormatError(
            f"Marks '{path.name}' are no CSV, ImageJ ROI or GeoJSON ({error}).", "Save them again as CSV (UTF-8)."
        ) from error
    columns = [cell.strip().casefold() for cell in table[0]]
    rows = [([cell.strip() for cell in row], number) for number, row in enumerate(table[1:], start=start + 2)]
    return columns, [(number, row) for row, number in rows if any(row)]


def _number(text: str) -> float | None:
    """Return a number, nan for an empty cell, None for what is neither; a decimal comma is one."""
    if not text:
        return math.nan
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_places(file: str, slide: SlideResults, points_um: NDArray[np.float64], *, stated: str) -> None:
    """Refuse marks that lie off their slide, and say when they would lie on it in the other unit."""
    size = np.array(slide.shape_px) * slide.pixel_size_um
    off = np.any((points_um < 0) | (points_um > size), axis=1)
    if not off.any():
        return
    otherwise = points_um * (slide.pixel_size_um if stated == "um" else 1 / slide.pixel_size_um)
    height, width = size
    where = f"Marks '{file}': {off.sum()} of {len(points_um)} marks lie off slide '{slide.slide_id}'"
    where += f", which is {height:g} x {width:g} um"
    if ((otherwise >= 0) & (otherwise <= size)).all():
        taken, unit = ("pixels", "px") if stated == "um" else ("um", "um")
        raise InputError(f"{where}; taken as {taken}, all lie on it.", f"Name the columns y_{unit} and x_{unit}.")
    y, x = points_um[off][0]
    raise InputError(
        f"{where}; the first is at y = {y:g}, x = {x:g} um.", "Is it another slide, or are y and x swapped?"
    )


class _LineFaults:
    """Faults of the lines of a file, many of one kind told as one."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[str, list[tuple[int, str]]] = {}

    def add(self, kind: str, line: int, what: str) -> None:
        self._found.setdefault(kind, []).append((line, what))

    def found(self) -> list[HistoquantError]:
        faults: list[HistoquantError] = []
        for lines in self._found.values():
            for number, what in lines[:SHOWN]:
                faults.append(InputError(f"Marks '{self.file}' line {number}: {what}.", "Correct that line."))
            if len(lines) > SHOWN:
                faults.append(InputError(f"Marks '{self.file}': {len(lines) - SHOWN} more lines of this kind."))
        return faults


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
