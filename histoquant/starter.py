"""A sample sheet and a recipe to start from, made by looking into the slides of a folder."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from histoquant import registry, store
from histoquant.errors import HistoquantError, InputError
from histoquant.model.recipe import parse_recipe
from histoquant.model.slide import Slide
from histoquant.model.study import OPTIONAL, REQUIRED

SKIPPED_SUFFIXES = (".csv", ".toml", ".txt", ".md", ".geojson", ".json", ".roi", ".zip", ".xml", ".log", ".html")
CHANNEL_TOKEN = re.compile(r"^(?P<before>.*?)(?P<letter>ch|d|c|w)(?P<number>\d{1,2})$", re.IGNORECASE)
COUNTERSTAINS = ("dapi", "hoechst", "dna", "draq", "h33342", "propidium")
CYTOPLASMIC = ("dcx", "doublecortin", "gfap", "iba1")
UNSTAINED = ("af", "autofluorescence", "unstained", "empty")


def write_starter(folder: Path, sheet: Path, *, pixel_size_um: float | None = None, force: bool = False) -> list[str]:
    """Write a sample sheet and, beside it, ``recipe.toml``.

    Returns
    -------
    list of str
        What was found and what a person still has to fill in.

    Raises
    ------
    InputError
        If the folder holds no slide, or a file would be overwritten.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'.", "Name the folder with the slides.")
    recipe = sheet.with_name("recipe.toml")
    there = [path for path in (sheet, recipe) if path.exists()]
    if there and not force:
        raise InputError(f"'{there[0]}' already exists.", "Name another --out, or give --force to replace it.")
    rows: list[dict[str, str]] = []
    lines: list[str] = []
    channels: list[tuple[str, ...]] = []
    unknown: list[str] = []
    for path, scene in _scenes(_slides(folder)):
        named = path.name if scene is None else f"{path.name} [{scene}]"
        try:
            slide = registry.open_slide(path, scene=scene)
        except HistoquantError as error:
            lines.append(f"{named}: left out. {error}")
            continue
        lines.append(f"{named}: {_described(slide)}")
        if not slide.brightfield:
            channels.append(slide.channels)
        if slide.pixel_size_yx_um is None and pixel_size_um is None:
            unknown.append(named)
        rows.append(_row(slide, path, sheet.parent, pixel_size_um) | {"scene": scene or ""})
        slide.close()
    if not rows:
        raise InputError(f"The folder '{folder}' holds no slide that histoquant reads.", " ".join(lines))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*REQUIRED, *OPTIONAL], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    store.write_bytes(sheet, text.getvalue().encode())
    lines.append(f"Wrote {sheet}: fill in animal, group, control and regions.")
    if channels:
        store.write_bytes(recipe, starter_recipe(Counter(channels).most_common(1)[0][0]).encode())
        lines.append(f"Wrote {recipe}: say which channel shows which marker, and how its threshold is found.")
    else:
        store.write_bytes(recipe, brightfield_recipe().encode())
        lines.append(f"Wrote {recipe}: nuclei by their hematoxylin; say which marker another stain shows, if one does.")
    if 0 < len(channels) < len(rows):
        lines.append(
            f"{len(rows) - len(channels)} of the slides are brightfield pictures, which a recipe for fluorescence "
            "channels refuses: put them into a study of their own."
        )
    if unknown:
        lines.append(f"Fill in pixel_size_um, which these do not say: {', '.join(unknown)}.")
    return lines


def _slides(folder: Path) -> Iterator[Path]:
    """Yield what may be a slide, files that hold one channel each of one field as one pattern."""
    files: list[Path] = []
    for path in sorted(folder.rglob("*")):
        inside_zarr = any(parent.suffix == ".zarr" for parent in path.parents)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or inside_zarr or path.suffix.casefold() in SKIPPED_SUFFIXES or path.name == "README":
            continue
        if path.is_file() or path.suffix == ".zarr":
            files.append(path)
    series: dict[tuple[Path, str, str, str], list[tuple[int, Path]]] = {}
    for path in files:
        match = CHANNEL_TOKEN.match(path.stem)
        if match and path.is_file():
            key = (path.parent, match["before"], match["letter"], path.suffix)
            series.setdefault(key, []).append((int(match["number"]), path))
    grouped: dict[Path, Path] = {}
    for (parent, before, letter, suffix), members in series.items():
        numbers = sorted(number for number, _ in members)
        if len(members) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and _one_field(members):
            width = "?" * len(str(numbers[-1]))
            pattern = Path(glob.escape(str(parent))) / (glob.escape(before + letter) + width + suffix)
            grouped |= {path: pattern for _, path in members}
    yield from dict.fromkeys(grouped.get(path, path) for path in files)


def _one_field(members: Sequence[tuple[int, Path]]) -> bool:
    """Return whether files are single channels of one shape: then they are taken as one slide."""
    shapes = set()
    for _, path in members:
        try:
            slide = registry.open_slide(path)
        except HistoquantError:
            return False
        shapes.add((len(slide.channels), slide.levels[0].shape, str(slide.dtype)))
        slide.close()
    return len(shapes) == 1 and next(iter(shapes))[0] == 1


def _scenes(paths: Iterable[Path]) -> Iterator[tuple[Path, str | None]]:
    """Yield each slide with each of its scenes; None for a file of one."""
    for path in paths:
        scenes: list[str] = []
        with contextlib.suppress(HistoquantError):  # what is wrong with the file is said when it is opened
            reader = registry.load("reader", registry.reader_of(path).name)
            scenes = reader().scenes(path) if path.exists() else []
        yield from ((path, scene) for scene in (scenes if len(scenes) > 1 else [None]))


def _described(slide: Slide) -> str:
    height, width = slide.shape
    kind = "brightfield (RGB)" if slide.brightfield else f"channels {', '.join(slide.channels)}"
    size = "no pixel size" if slide.pixel_size_yx_um is None else f"{slide.pixel_size_yx_um[1]:.4g} um per pixel"
    planes = f", {slide.n_planes} planes" if slide.n_planes > 1 else ""
    return f"{width} x {height} px{planes}, {kind}, {size}"


def _row(slide: Slide, path: Path, folder: Path, pixel_size_um: float | None) -> dict[str, str]:
    try:
        named = path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        named = str(path.resolve())
    stated = pixel_size_um if slide.pixel_size_yx_um is None else None
    stem = re.sub(r"[^A-Za-z0-9]+", "_", path.stem).strip("_") or "animal"
    size = "" if stated is None else f"{stated:g}"
    return {"slide": named, "animal": stem, "group": "ungrouped", "pixel_size_um": size}


def starter_recipe(channels: Sequence[str]) -> str:
    """Return the text of a recipe for slides with these channels; what each shows is guessed from its name."""
    names = _marker_names(channels)
    lowered = [channel.casefold() for channel in channels]
    counterstain = next((i for i, name in enumerate(lowered) if any(dye in name for dye in COUNTERSTAINS)), 0)
    lines = [
        "# A recipe to start from. What each channel shows was guessed from its name: correct it.",
        "schema = 1",
        "",
    ]
    for index, (name, channel) in enumerate(zip(names, channels, strict=True)):
        role = "nuclear"
        if index == counterstain:
            role = "counterstain"
        elif lowered[index] in UNSTAINED:
            role = "autofluorescence"
        elif any(word in lowered[index] for word in CYTOPLASMIC):
            role = "cytoplasmic"
        lines += [f"[panel.{name}]", f"channel = {_toml(channel)}", f'role = "{role}"']
        if role in ("nuclear", "cytoplasmic"):
            lines += [
                '# threshold: a number (intensity above background), "controls" (from sections marked in the',
                '# column control of the sample sheet), or "auto" (from all sections of the batch).',
                'positive = { threshold = "auto" }',
            ]
        lines.append("")
    return _finished([*lines, *SEGMENT_AND_REGIONS])


def brightfield_recipe() -> str:
    """Return the text of a recipe for brightfield slides: nuclei by hematoxylin, a marker in DAB to fill in."""
    lines = [
        "# A recipe to start from, for brightfield slides: stains instead of channels.",
        "schema = 1",
        "",
        "[panel.hematoxylin]",
        'stain = "hematoxylin"',
        'role = "counterstain"',
        "",
        '# A marker in brown (DAB), by its name; pink is stain = "eosin". The threshold is an optical density.',
        "# [panel.caspase]",
        '# stain = "dab"',
        '# role = "nuclear"    # or "cytoplasmic"',
        "# positive = { threshold = 0.2 }",
        "",
    ]
    return _finished([*lines, *SEGMENT_AND_REGIONS])


SEGMENT_AND_REGIONS = (
    "[segment]",
    'segmenter = "network"',
    "# diameter_um = 8.0    # estimated on every slide when not given",
    "",
    "# Regions are drawn in QuPath or ImageJ and named in the column regions. Others can be derived from them:",
    "# [regions.ibz_outer]",
    '# band = { of = "lesion", from_um = 0.0, to_um = 500.0 }',
    "",
)


def _finished(lines: Sequence[str]) -> str:
    """Return the lines of a recipe as text that was read back."""
    text = "\n".join(lines)
    parse_recipe(text, source="starter")
    return text


def _marker_names(channels: Sequence[str]) -> list[str]:
    names: list[str] = []
    for channel in channels:
        name = re.sub(r"[^a-z0-9]+", "_", channel.casefold()).strip("_")
        name = name if name[:1].isalpha() else f"channel_{name}".rstrip("_")
        while name in names:
            name += "_2"
        names.append(name)
    return names


def _toml(value: Any) -> str:
    """Return a TOML basic string."""
    import json

    return json.dumps(str(value), ensure_ascii=False)
