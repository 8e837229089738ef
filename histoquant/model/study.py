"""Study: the sample sheet, from slide to section, animal and group."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from histoquant.errors import HistoquantError, StudyError, raise_all

REQUIRED = ("slide", "animal", "group")
OPTIONAL = (
    "section",
    "section_position_um",
    "hemisphere",
    "regions",
    "control",
    "batch",
    "pixel_size_um",
    "scene",
    "exclude",
)

RECIPE = "recipe"
"""Column of a study of several assays: the recipe of each row, a path relative to the sheet."""

SHOWN = 500
"""Characters of a header that are shown in a message."""


@dataclass(frozen=True)
class StudySlide:
    """One row of the sample sheet. Empty cells are empty strings or None."""

    slide_id: str
    path: Path
    animal: str
    group: str
    section: str = ""
    section_position_um: float | None = None
    hemisphere: str = ""
    regions: Path | None = None
    control: str = ""
    batch: str = ""
    pixel_size_um: float | None = None
    scene: str | None = None
    exclude: str = ""
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """All slides of a study, in the order of the sheet."""

    slides: tuple[StudySlide, ...]
    folder: Path

    @property
    def included(self) -> tuple[StudySlide, ...]:
        """Slides without a reason to leave them out."""
        return tuple(slide for slide in self.slides if not slide.exclude)


def parse_study(text: str, folder: Path, *, source: str = "study.csv", allow_outside: bool = False) -> Study:
    """Read a sample sheet.

    Parameters
    ----------
    text : str
        CSV with a header line; comma, semicolon or tab between cells.
    folder : Path
        The sheet's folder; paths in it are relative to this.
    allow_outside : bool
        Allow relative paths that lead out of the folder.

    Raises
    ------
    StudyError, Faults
        Everything that is wrong with the sheet, each with its line.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise StudyError(f"{source}: the sheet is empty.", f"It needs a header with {', '.join(REQUIRED)}.")
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=True))
    except csv.Error as error:
        raise StudyError(f"{source}: not a readable CSV ({error}).", "Save it again as CSV (UTF-8).") from error
    lines = [(number, row) for number, row in enumerate(rows, start=1) if any(cell.strip() for cell in row)]
    columns = [cell.strip() for cell in lines[0][1]] if lines else []
    missing = [name for name in REQUIRED if name not in columns]
    twice = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    if missing or twice:
        named = ", ".join(missing or twice)[:SHOWN]
        what = f"lacks the column(s) {named}" if missing else f"has the column(s) {named} twice"
        raise StudyError(f"{source}: the sheet {what}.", f"Its header is: {', '.join(columns)[:SHOWN]}.")
    if len(lines) == 1:
        raise StudyError(f"{source}: the sheet lists no slides.", "Add one row per slide.")

    faults: list[HistoquantError] = []
    slides: list[StudySlide] = []
    taken: dict[str, dict[str, int]] = {}
    seen: dict[tuple[str, str, str], int] = {}
    for number, row in lines[1:]:
        if len(row) > len(columns):
            faults.append(StudyError(f"{source} line {number}: more cells than columns.", "Mend that line."))
            continue
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
        try:
            # Each assay has a folder of its own, so that its slides are named for themselves.
            ids = taken.setdefault(cells.get(RECIPE, ""), {})
            slide = _slide(cells, folder, ids, allow_outside)
        except StudyError as error:
            faults.append(StudyError(f"{source} line {number}: {error.message}", error.remedy))
            continue
        key = (str(slide.path), slide.scene or "", cells.get(RECIPE, ""))
        if key in seen:
            faults.append(
                StudyError(
                    f"{source} line {number}: slide '{cells['slide']}' is already in line {seen[key]}.",
                    "Remove one of the two rows, or give each its scene.",
                )
            )
            continue
        seen[key] = number
        ids.setdefault(slide.slide_id.casefold(), 1)
        slides.append(slide)
    groups: dict[str, set[str]] = {}
    for slide in slides:
        if not slide.control:
            groups.setdefault(slide.animal, set()).add(slide.group)
    faults += [
        StudyError(f"{source}: animal '{animal}' is in the groups {', '.join(sorted(names))}.", "Give it one group.")
        for animal, names in groups.items()
        if len(names) > 1
    ]
    raise_all(faults)
    return Study(tuple(slides), folder)


def columns_of(text: str) -> list[str]:
    """Return the columns of a sample sheet; none when it is empty."""
    lines = text.removeprefix("\ufeff").strip().splitlines()[:1]
    return [cell.strip().strip('"') for cell in lines[0].split(_delimiter(text))] if lines else []


def _delimiter(text: str) -> str:
    header = text.lstrip().splitlines()[0]
    return max(",;\t", key=header.count)


def with_rows(text: str, rows: Sequence[Mapping[str, str]], *, source: str = "study.csv") -> str:
    """Return a sample sheet with rows added at its end; those whose slide it lists already are left out.

    Parameters
    ----------
    rows : sequence of mappings
        Cells by column.

    Raises
    ------
    StudyError
        If the sheet has no column for a cell.
    """
    if not text.strip():
        return text  # parse_study says what is wrong
    delimiter = _delimiter(text)
    columns, *lines = [
        [cell.strip() for cell in line] for line in csv.reader(io.StringIO(text), delimiter=delimiter) if any(line)
    ]
    lacking = sorted({name for row in rows for name in row if name not in columns})
    if lacking:
        raise StudyError(
            f"{source}: the sheet has no column '{lacking[0]}', which file names are to fill.", "Add it to the header."
        )
    place = columns.index("slide")
    listed = {PurePath(line[place]) for line in lines if len(line) > place}
    added = io.StringIO()
    writer = csv.DictWriter(added, columns, delimiter=delimiter, lineterminator="\n")
    writer.writerows(row for row in rows if PurePath(row["slide"]) not in listed)
    return f"{text.rstrip()}\n{added.getvalue()}"


def _slide(cells: dict[str, str], folder: Path, taken: dict[str, int], allow_outside: bool) -> StudySlide:
    for name in REQUIRED:
        if not cells.get(name):
            raise StudyError(f"the cell '{name}' is empty.", "Fill it in.")
    regions = cells.get("regions", "")
    pixel_size_um = _number(cells, "pixel_size_um")
    if pixel_size_um is not None and not 0 < pixel_size_um < 1000:
        raise StudyError(f"pixel_size_um is {pixel_size_um:g}.", "It must be above 0 and below 1000 um.")
    path = inside(cells["slide"], folder, allow_outside)
    scene = cells.get("scene") or None
    return StudySlide(
        slide_id=_slide_id(path, scene, taken),
        path=path,
        animal=cells["animal"],
        group=cells["group"],
        section=cells.get("section", ""),
        section_position_um=_number(cells, "section_position_um"),
        hemisphere=cells.get("hemisphere", ""),
        regions=inside(regions, folder, allow_outside) if regions else None,
        control=cells.get("control", ""),
        batch=cells.get("batch", ""),
        pixel_size_um=pixel_size_um,
        scene=scene,
        exclude=cells.get("exclude", ""),
        extra={name: value for name, value in cells.items() if name and name not in (*REQUIRED, *OPTIONAL)},
    )


def _number(cells: dict[str, str], name: str) -> float | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise StudyError(f"{name} is '{text}', not a number.", "Write it with a decimal point.") from error
    if value != value or value in (float("inf"), float("-inf")):
        raise StudyError(f"{name} is '{text}'.", "Write a finite number.")
    return value


def inside(text: str, folder: Path, allow_outside: bool) -> Path:
    """Return the path a cell names; refuse relative ones that lead out of the study's folder.

    Raises
    ------
    StudyError
        If it does, or cannot be a path.
    """
    if "\0" in text:
        raise StudyError("a path holds a NUL character.", "Mend the path.")
    path = Path(text)
    if path.is_absolute():
        return path
    try:
        resolved = (folder / path).resolve()
    except (OSError, RuntimeError) as error:  # links that lead round in a circle
        raise StudyError(f"the path '{text}' leads nowhere.", "Mend the path.") from error
    if not allow_outside and not resolved.is_relative_to(folder.resolve()):
        raise StudyError(f"the path '{text}' leaves the study's folder.", "Write it absolute, or give --allow-outside.")
    return folder / path


def _slide_id(path: Path, scene: str | None, taken: dict[str, int]) -> str:
    """Return the file stem made safe for any file system, unique within the study.

    ``taken`` holds each id given before, and the last number that was put after it.
    """
    stem = path.name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if stem.casefold().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    else:
        stem = path.stem
    name = stem + (f"_{scene}" if scene else "")
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[:80] or "slide"
    unique, number = safe, taken.get(safe.casefold(), 1)
    while unique.casefold() in taken:
        number += 1
        unique = f"{safe}_{number}"
    if number > 1:
        taken[safe.casefold()] = number
    return unique
