"""What napari asks when a file or folder is dropped on it: slides, run folders, outlines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from histoquant import registry, steps
from histoquant.drawing import read_pixels
from histoquant.errors import FormatError, HistoquantError, InputError, PixelSizeError
from histoquant.inputs import restated_inputs
from histoquant.job import Job
from histoquant.model.panel import called_markers
from histoquant.model.region_set import RegionSet
from histoquant.model.slide import Slide
from histoquant.readers.first_bytes import first_bytes
from napari_histoquant import asking
from napari_histoquant.layers import SLIDE, LayerData, cell_layer, named, outline_layer, slide_layers

Reader = Callable[[str | list[str]], list[LayerData]]

OUTLINE_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".roi", ".zip")


def reader_of(path: str | list[str]) -> Reader | None:
    """Return the function that opens a file or folder, None when it is nothing of ours; the content decides."""
    if not isinstance(path, str):
        return None
    where = Path(path)
    if _slide_folder(where) is not None or (where / "run.json").is_file():
        return _opener(open_run)
    if where.name.casefold().endswith(OUTLINE_SUFFIXES):
        return _opener(open_outlines) if _holds_outlines(where) else None
    try:
        registry.reader_of(where)
    except HistoquantError:
        return None
    return _opener(open_slide)


def _opener(function: Callable[[Path], list[LayerData]]) -> Reader:
    def opened(path: str | list[str]) -> list[LayerData]:
        assert isinstance(path, str)
        return function(Path(path))

    return opened


def _holds_outlines(path: Path) -> bool:
    try:
        head = first_bytes(path)
    except HistoquantError:
        return False
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return head[:4] == b"Iout" or head[:2] in (b"PK", b"\x1f\x8b") or start in (b"{", b"[")


# ---------------------------------------------------------------------- slides


def open_slide(path: Path) -> list[LayerData]:
    """Return the layers of a slide; of a file with many scenes those of the one chosen.

    Raises
    ------
    HistoquantError
        If it cannot be opened, or nobody knows its pixel size.
    """
    return slide_layers(calibrated(registry.open_slide(path, scene=_scene(path))))


def calibrated(slide: Slide) -> Slide:
    """Return a slide whose pixel size is known, asking for it where the file does not say.

    Raises
    ------
    PixelSizeError
        If nobody says.
    """
    try:
        slide.pixel_size_um  # noqa: B018  asked for what it raises
    except PixelSizeError:
        stated = asking.ask_pixel_size(f"Slide '{slide.name}'") if slide.pixel_size_yx_um is None else None
        if stated is None:
            slide.close()
            raise
        return slide.with_pixel_size(stated)
    return slide


def _scene(path: Path) -> str | None:
    plugin = registry.reader_of(path)
    scenes: list[str] = registry.load("reader", plugin.name)().scenes(path)
    if len(scenes) < 2:
        return None
    chosen = asking.ask_which("Scene", f"'{path.name}' holds {len(scenes)} scenes:", scenes)
    if chosen is None:
        raise InputError(f"Slide '{path.name}' holds {len(scenes)} scenes and none was chosen.", "Choose one.")
    return chosen


# ---------------------------------------------------------------------- outlines


def open_outlines(path: Path) -> list[LayerData]:
    """Return the outlines of a GeoJSON or ImageJ file as shapes, at the pixel size of the slide that is open.

    Raises
    ------
    HistoquantError
        If the file is no such file, or nobody says what its pixels are worth.
    """
    regions = read_pixels(path)
    slide = shown_slide()
    size = slide.pixel_size_um if slide is not None else asking.ask_pixel_size(f"Outlines '{path.name}'")
    if size is None:
        raise PixelSizeError(
            f"Outlines '{path.name}' are in pixels, and no slide is open that says how large these are.",
            "Open their slide first.",
        )
    return [outline_layer(regions, size, name=f"outlines · {path.name}", path=path)]


def shown_slide(viewer: Any = None) -> Slide | None:
    """Return the slide that is shown: that of the active layer, else of the uppermost that has one."""
    if viewer is None:
        from napari import current_viewer

        viewer = current_viewer()
    if viewer is None:
        return None
    active = viewer.layers.selection.active
    for layer in (*([active] if active is not None else []), *reversed(viewer.layers)):
        slide = layer.metadata.get(SLIDE)
        if slide is not None:
            assert isinstance(slide, Slide)
            return slide
    return None


# ---------------------------------------------------------------------- run folders


def _slide_folder(path: Path) -> str | None:
    """Return the slide of a folder of results, None for another folder."""
    inside = path.parent.name == "slides" and (path.parent.parent / "run.json").is_file()
    return path.name if inside and (path / "provenance.json").is_file() else None


def open_run(path: Path) -> list[LayerData]:
    """Return one slide of a run with its regions and cells: of a run folder the one chosen, else that of its folder.

    Raises
    ------
    HistoquantError
        If nothing was analysed there, or the slide itself cannot be opened any more.
    """
    slide_id = _slide_folder(path)
    root = path if slide_id is None else path.parent.parent
    if slide_id is None:
        known = sorted(each.parent.name for each in root.glob("slides/*/provenance.json"))
        if not known:
            raise InputError(f"The run '{root}' holds no analysed slide.", "Run the study first.")
        slide_id = asking.ask_which("Slide", f"{len(known)} slides were analysed in '{root.name}':", known)
        if slide_id is None:
            raise InputError(f"The run '{root.name}' holds {len(known)} slides and none was chosen.", "Choose one.")
    return run_layers(root, slide_id)


def run_layers(root: Path, slide_id: str) -> list[LayerData]:
    """Return a slide of a run as layers: its channels, its regions as they were counted, its cells by their calls.

    Raises
    ------
    HistoquantError
        If its files are damaged or gone.
    """
    import pandas as pd

    folder = root / "slides" / slide_id
    try:
        state = json.loads((root / "run.json").read_text(encoding="utf-8"))
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        cells = pd.read_parquet(folder / "cells.parquet")
    except (OSError, ValueError) as error:
        raise FormatError(
            f"The results of slide '{slide_id}' in '{root}' cannot be read ({error}).", "Run the study again."
        ) from error
    checked = restated_inputs(state)
    row = next((row for row in checked.study.slides if row.slide_id == slide_id), None)
    if row is None:
        raise InputError(f"The run '{root}' does not list the slide '{slide_id}'.", "Run the study again.")
    slide = registry.open_slide(row.path, scene=row.scene, pixel_size_um=row.pixel_size_um)
    px = slide.pixel_size_um
    regions = _regions(Job(row, checked.recipe, root), slide, told)
    in_pixels = [
        replace(region, geometry=_scaled(region.geometry, 1 / px)) for region in regions if region.name != "slide"
    ]
    markers = called_markers(checked.recipe.panel)
    counted = outline_layer(in_pixels, px, name=f"regions · {named(slide)}")
    counted[1]["metadata"] = {}  # results: nothing to draw on
    outlines = [counted] if in_pixels else []
    return [*slide_layers(slide), *outlines, cell_layer(cells, markers, name=f"cells · {named(slide)}")]


def _regions(job: Job, slide: Slide, told: dict[str, Any]) -> RegionSet:
    """Return the regions of a finished slide, within the tissue that the run found while its survey is kept."""
    tissue = None
    key = steps.survey_key_of(job, told["sources"])
    if key in job.folder.blocks:
        tissue = steps.work_of(job, key).survey.tissue
    height, width = (n * slide.pixel_size_um for n in slide.shape)
    return steps.regions_of(job, (height, width), slide.pixel_size_um, tissue)


def _scaled(geometry: Any, factor: float) -> Any:
    import shapely

    return shapely.transform(geometry, lambda xy: xy * factor)
