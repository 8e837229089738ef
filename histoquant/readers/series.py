"""A channel series: the files of one field that hold one channel each, named by a pattern, as one slide."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from histoquant.errors import FormatError
from histoquant.model.slide import Slide
from histoquant.readers.first_bytes import is_there


def is_pattern(path: Path) -> bool:
    """Say whether a path holds ``*``, ``?`` or ``[`` and nothing is called that literally."""
    return re.search(r"[*?\[]", str(path)) is not None and not is_there(path)


def matched_files(pattern: Path) -> list[Path]:
    """Return the files and folders that a pattern stands for, in natural order.

    Raises
    ------
    FormatError
        If there is none, or the pattern is none.
    """
    if "**" in pattern.parts:
        raise FormatError(
            f"Slide '{pattern.name}': '**' searches every folder there is ({pattern}).",
            "Name the folder that the files of the series are in.",
        )
    # Folders that exist as written are taken literally: 'run [2]/x_*.tif' is about x, not about the folder.
    start = 1 if pattern.anchor else 0
    base, parts = Path(pattern.anchor), list(pattern.parts[start:])
    while parts and is_there(base / parts[0]):
        base /= parts.pop(0)
    try:
        # Without hidden files, as in a shell: macOS puts '._x.tif' beside every 'x.tif' on a network disk.
        matches = [match for match in base.glob(str(Path(*parts))) if not match.name.startswith(".")]
    except (ValueError, OSError) as error:
        raise FormatError(f"Slide '{pattern.name}': {error}.", "Correct the pattern.") from error
    if not matches:
        raise FormatError(
            f"Slide '{pattern.name}': there is no such file, and none in '{base}' matches it as a pattern.",
            "Correct the path; in a sample sheet it is relative to the sheet.",
        )
    return sorted(matches, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    # 'd2' before 'd10': the split gives text and numbers by turns; numbers are ordered by value.
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece) if place % 2 else 0, piece) for place, piece in enumerate(pieces)]


def _differing(files: Sequence[Path]) -> list[str]:
    """Return the part of each path that differs, in whole words: 'd0' and 'd1', not '0' and '1'."""
    words = [re.findall(r"[^\W\d_]+\d*|\d+|[\W_]+", file.with_suffix("").as_posix()) for file in files]
    same = [len(set(column)) == 1 for column in zip(*words, strict=False)]
    lead = [*same, False].index(False)
    same = [len(set(column)) == 1 for column in zip(*(reversed(each[lead:]) for each in words), strict=False)]
    trail = [*same, False].index(False)
    names = ["".join(each[lead : len(each) - trail]).strip(" _-.") for each in words]
    if "" in names or len(set(names)) < len(names):
        return [file.stem for file in files]
    return names


def open_series(pattern: Path, open_file: Callable[[Path], Slide], *, scene: str | None) -> Slide:
    """Open the files of a channel series as one slide; a series of one file is that file.

    Parameters
    ----------
    pattern : Path
        What the files are called.
    open_file : callable
        Opens one file of the series at the scene asked for.
    scene : str or None
        What ``open_file`` was asked for.

    Raises
    ------
    FormatError
        If no file matches, one cannot be opened, or they differ in more than their channels.
    """
    files = matched_files(pattern)
    if len(files) == 1:
        return open_file(files[0])
    with ExitStack() as opened:
        slides = []
        for file in files:
            slides.append(open_file(file))
            opened.callback(slides[-1].close)
        series = _stacked(pattern, slides, _differing(files), scene)
        return replace(series, close=opened.pop_all().close)


def _stacked(pattern: Path, slides: Sequence[Slide], parts: Sequence[str], scene: str | None) -> Slide:
    """Return one Slide of all channels; the caller keeps the files and closes them."""
    import dask.array

    first = slides[0]

    def same_field(what: str, values: Sequence[Any], remedy: str) -> Any:
        for slide, value in zip(slides, values, strict=True):
            if value != values[0]:
                raise FormatError(
                    f"Slide '{pattern.name}': the files of a channel series must agree in {what}, but "
                    f"'{first.path.name}' has {values[0]} and '{slide.path.name}' has {value}.",
                    remedy,
                )
        return values[0]

    narrower = "Write a pattern that matches the channels of one field only."
    same_field("shape (z, y, x)", [slide.levels[0].shape[1:] for slide in slides], narrower)
    same_field("pixel type", [str(slide.dtype) for slide in slides], narrower)
    stated = "State the true one as pixel_size_um in study.csv, or with --pixel-size-um."
    pixel_size = same_field("pixel size (y, x) in um", [slide.pixel_size_yx_um for slide in slides], stated)
    z_step_um = same_field("distance of planes in um", [slide.z_step_um for slide in slides], narrower)
    levels = []
    for level in zip(*(slide.levels for slide in slides), strict=False):
        if len({pixels.shape[1:] for pixels in level}) > 1:
            break  # pyramids of different steps: the levels that fit are kept
        levels.append(dask.array.concatenate(level))
    return Slide(
        name=pattern.name,
        path=pattern,
        levels=tuple(levels),
        channels=tuple(
            part if len(slide.channels) == 1 else f"{part}_{channel}"
            for part, slide in zip(parts, slides, strict=True)
            for channel in slide.channels
        ),
        pixel_size_yx_um=pixel_size,
        z_step_um=z_step_um,
        # What was asked for: names that readers make up for an only scene differ from file to file.
        scene=scene,
    )
