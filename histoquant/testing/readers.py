"""Whether a reader keeps its promises, on a file of its format."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from histoquant.errors import HistoquantError
from histoquant.model.slide import Box, Slide
from histoquant.readers.first_bytes import HEAD_BYTES
from histoquant.registry import interface_faults
from histoquant.testing.promises import BrokenPromises

READ_PX = 2048


def check_reader(reader: type[Any], path: Path | str) -> None:
    """Check a reader on a file of its format.

    Parameters
    ----------
    reader : class
    path : Path or str
        A small file (some thousand pixels wide, several tiles). Folders are files too.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``suffixes``; it knows its own file, by content and not
        by name; scenes that open, an unknown one refused; pixels (c, z, y, x) in a lazy dask array, of a
        real type, as the Slide says; a pixel size that is unknown or positive; smaller levels after larger; a
        box gives the same pixels as a crop of everything, also read by four threads at once; and no handle
        stays open after ``close`` (looked for where the system lists them, as Linux does).
    """
    path = Path(path)
    faults = BrokenPromises("reader", reader)
    faults.found += interface_faults("reader", reader)
    faults.stop_if_any()
    good = isinstance(reader.suffixes, tuple) and all(s == s.lower() and s[:1] == "." for s in reader.suffixes)
    faults.expect(good, f"suffixes {reader.suffixes!r} is not a tuple of lower-case endings with their dot")
    made: list[Any] = []
    with faults.when("making it without arguments"):
        made.append(reader())
    faults.stop_if_any()
    _check_matches(faults, made[0], path)
    scenes: list[str | None] = []
    with faults.when("scenes"):
        scenes = made[0].scenes(path)
        faults.expect(
            isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes),
            "scenes is not a list of str",
        )
    with faults.when("opening a scene that is not there"):
        try:
            made[0].open(path, scene="no such scene").close()
        except HistoquantError:
            pass
        else:
            faults.expect(False, "it opens a scene that the file does not have")
    refused: list[str] = []
    for scene in scenes or [None]:
        with faults.when(f"opening scene {scene}"):
            _check_scene(faults, made[0], path, scene, refused)
    faults.expect(len(refused) < max(1, len(scenes)), f"it opens no scene of the file: {'; '.join(refused)}")
    kept = _held(path)
    faults.expect(not kept, f"after close it still holds {', '.join(kept)}")
    faults.stop_if_any()


def _check_scene(faults: BrokenPromises, reader: Any, path: Path, scene: str | None, refused: list[str]) -> None:
    try:
        slide = reader.open(path, scene=scene)
    except HistoquantError as error:
        refused.append(str(error))  # a scene may be refused in words, as one with a time axis; not all of them
        return
    if not isinstance(slide, Slide):
        faults.expect(False, f"open returns {type(slide).__name__}, not a Slide")
        return
    try:
        _check_slide(faults, slide, path)
    finally:
        slide.close()
        slide.close()


def _check_matches(faults: BrokenPromises, reader: Any, path: Path) -> None:
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    with faults.when("matches"):
        answer = reader.matches(path, head)
        faults.expect(answer is True, f"matches gives {answer!r}, not True, for {path.name}")
    junk = {
        "random bytes": np.random.default_rng(4).bytes(HEAD_BYTES),
        "zero bytes": bytes(HEAD_BYTES),
        "an empty file": b"",
        "a web page": b"<!DOCTYPE html><html><body>Please log in</body></html>",
        "a folder": None,
    }
    for what, content in junk.items():
        with tempfile.TemporaryDirectory() as folder, faults.when(f"matches for {what} called {path.name}"):
            impostor = Path(folder) / path.name
            if content is None:
                impostor.mkdir()
            else:
                impostor.write_bytes(content)
            answer = reader.matches(impostor, content or b"")
            faults.expect(answer is False, f"matches gives {answer!r}, not False, for {what} called {path.name}")


def _check_slide(faults: BrokenPromises, slide: Slide, path: Path) -> None:
    import dask.array

    faults.expect(slide.path == path, f"Slide.path is {slide.path}, so that a worker cannot open it again")
    faults.expect(slide.name and slide.channels and all(slide.channels), "the slide or a channel has an empty name")
    faults.expect(
        slide.pixel_size_yx_um is None or all(np.isfinite(p) and p > 0 for p in slide.pixel_size_yx_um),
        f"pixel size {slide.pixel_size_yx_um} um is neither unknown (None) nor positive",
    )
    faults.expect(slide.dtype.kind in "uif", f"pixels are {slide.dtype}, not integer or float")
    for number, level in enumerate(slide.levels):
        where = f"level {number}"
        if not isinstance(level, dask.array.Array):
            faults.expect(False, f"{where} is {type(level).__name__}, not a dask array")
            continue
        larger = slide.levels[max(0, number - 1)]
        shrinks = level.shape[:2] == larger.shape[:2] and level.shape[2:] <= larger.shape[2:]
        faults.expect(shrinks, f"{where} has shape {level.shape} after {larger.shape}")
        in_memory = _bytes_in_memory(level)
        faults.expect(
            in_memory < max(level.nbytes // 2, 1),
            f"{where} is not lazy: {in_memory} of its {level.nbytes} bytes are in memory before it is read",
        )
        with faults.when(f"reading {where}"):
            _check_boxes(faults, slide, number)


def _bytes_in_memory(level: Any) -> int:
    """Return the bytes of numpy arrays that lie in a dask graph."""
    seen: set[int] = set()

    def walk(node: Any) -> int:
        if id(node) in seen or isinstance(node, (str, bytes, int, float)):
            return 0
        seen.add(id(node))
        if isinstance(node, np.ndarray):
            return 0 if isinstance(node, np.memmap) else node.nbytes
        if isinstance(node, Mapping):
            return sum(walk(each) for each in node.values())
        if isinstance(node, (list, tuple, set, frozenset)):
            return sum(walk(each) for each in node)
        # dask's own nodes: Task(args, kwargs), DataNode(value)
        return sum(walk(getattr(node, name)) for name in ("args", "kwargs", "value") if hasattr(node, name))

    return walk(dict(level.__dask_graph__()))


def _check_boxes(faults: BrokenPromises, slide: Slide, level: int) -> None:
    c, z, height, width = slide.levels[level].shape
    rows, columns = min(height, READ_PX), min(width, READ_PX)
    everything = slide.read(Box(0, rows, 0, columns), level=level)
    where = f"level {level}"
    announced, found = (slide.dtype, (c, z, rows, columns)), (everything.dtype, everything.shape)
    faults.expect(found == announced, f"{where} reads as {found}, but is announced as {announced}")
    rng = np.random.default_rng(5)
    boxes = [Box(0, 1, 0, 1), Box(rows - 1, rows, columns - 1, columns), Box(0, rows, 0, columns)]
    for _ in range(13):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in (rows, columns))
        boxes.append(Box(y0, y1, x0, x1))
    with ThreadPoolExecutor(4) as threads:
        for read in (map, threads.map):
            for box, pixels in zip(boxes, read(lambda box: slide.read(box, level=level), boxes), strict=True):
                crop = everything[:, :, box.y0 : box.y1, box.x0 : box.x1]
                faults.expect(
                    np.array_equal(pixels, crop, equal_nan=crop.dtype.kind == "f"),
                    f"{where}, {box}: a box {'read alone' if read is map else 'read by one of four threads'} "
                    "is not the crop of everything",
                )
    for chosen in ([c - 1], list(reversed(range(c)))):
        pixels = slide.read(Box(0, rows, 0, columns), channels=chosen, level=level)
        same = np.array_equal(pixels, everything[chosen], equal_nan=pixels.dtype.kind == "f")
        faults.expect(same, f"{where}: reading channels {chosen} does not give these channels")
    corner = slide.read(Box(height - 1, height, width - 1, width), level=level)
    faults.expect(corner.shape == (c, z, 1, 1), f"{where}: the last pixel reads as {corner.shape}")


def _held(path: Path) -> list[str]:
    """Return the open files and memory maps of this process that are the path or lie in it."""
    import gc

    gc.collect()
    prefix = str(path.resolve())
    handles, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    if not handles.is_dir():
        return []
    names = {str(handle.resolve()) for handle in handles.iterdir() if handle.is_symlink()}
    names |= {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    return sorted(name for name in names if name == prefix or name.startswith(prefix + "/"))
