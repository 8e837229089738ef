"""The steps of one slide as a worker does them: each reads what it needs from the run folder and writes what it made.

What travels between the driver and the workers is a `Job`, a key, and small tables; never pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import __version__, pipeline, store
from histoquant.analysis.positivity import Threshold
from histoquant.analysis.runs import Runs, paint
from histoquant.errors import Faults, HistoquantError, RegionError, raise_all
from histoquant.footprint import tile_bytes
from histoquant.grounds import integrated_densities, positive_areas
from histoquant.job import Job, Stamp, open_slide, reader_fingerprint, source_hashes, stamp_of, unchanged
from histoquant.model.geometry import slide_rectangle
from histoquant.model.panel import bound, counterstain_of
from histoquant.model.recipe import RESULT_VERSION
from histoquant.model.region import Region, resolve
from histoquant.model.region_set import RegionSet
from histoquant.model.slide import Slide
from histoquant.ometiff import BAND_PX, write_ome_tiff
from histoquant.picture import Picture, look, look_px, shrink
from histoquant.pipeline import Measured
from histoquant.readers.outlines import read_outlines, write_geojson
from histoquant.report.figures import draw_overview, draw_refused
from histoquant.store import content_key, sha256_of
from histoquant.survey import Survey, segmenter_fingerprint, segmenter_parameters, survey
from histoquant.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BLOCK_TILES = 4
"""Tiles of one block: seconds of work, so that handing it out costs nothing beside doing it."""

OVERVIEW_PX = 1500


@dataclass(frozen=True)
class Extent:
    """How much work a slide is.

    Attributes
    ----------
    n_blocks : int
    n_px, block_px : int
        Pixels of the slide, and of the largest block without its halo.
    tile_bytes : int
        Memory that one tile takes.
    stamp : Stamp
    """

    n_blocks: int
    n_px: int
    block_px: int
    tile_bytes: int
    stamp: Stamp


def check(job: Job) -> Extent:
    """Open a slide and its outlines, compute nothing, and return how much work it is.

    Raises
    ------
    HistoquantError
        Everything that keeps this slide from being analysed, together.
    """
    stamp = stamp_of(job.slide)
    slide = open_slide(job.slide)
    faults: list[HistoquantError] = []
    try:
        bound(job.recipe.panel, slide)
    except HistoquantError as error:
        faults.append(error)
    try:
        height, width = (n * slide.pixel_size_um for n in slide.shape)
        regions_of(job, (height, width), slide.pixel_size_um, tissue=None)
    except HistoquantError as error:
        faults.extend(error.faults if isinstance(error, Faults) else (error,))
    raise_all(faults)
    core = job.recipe.tiles.core_px
    height, width = slide.shape
    n_tiles = -(-height // core) * -(-width // core)
    block_px = BLOCK_TILES * min(core, height) * min(core, width)
    return Extent(-(-n_tiles // BLOCK_TILES), height * width, block_px, tile_bytes(slide, job.recipe), stamp)


def draw_refusal(job: Job, reason: str) -> None:
    """Draw a slide that was read but is refused, with the reason, as its ``overview.png``.

    Raises
    ------
    HistoquantError
        If it cannot even be read.
    """
    slide = open_slide(job.slide)
    level = min(range(len(slide.levels)), key=lambda i: abs(max(slide.levels[i].shape[2:]) - OVERVIEW_PX))
    step = max(1, max(slide.levels[level].shape[2:]) // OVERVIEW_PX)
    pixels = slide.read(level=level)[:, 0, ::step, ::step].astype(np.float32)
    shown = np.moveaxis(pixels[:3], 0, -1) if slide.brightfield else pixels[0]
    low, high = (0.0, 255.0) if slide.brightfield else (float(np.nanmin(shown)), float(np.nanmax(shown)))
    target = job.folder.slide(job.slide.slide_id) / "overview.png"
    with store.whole_file(target) as temporary:
        scaled = np.clip((shown - low) / max(high - low, 1e-6), 0, 1)
        draw_refused(temporary, scaled, title=job.slide.slide_id, reason=reason)


def regions_of(job: Job, slide_um: tuple[float, float], pixel_size_um: float, tissue: Any) -> RegionSet:
    """Return the regions of a slide: its outlines and what the recipe derives from them.

    A control section without outlines is counted as a whole.
    """
    row, recipe = job.slide, job.recipe
    drawn = read_outlines(row.regions, pixel_size_um) if row.regions is not None else []
    rules: Mapping[str, Any] = {} if row.control and not drawn else recipe.regions
    if recipe.count.domain == "tissue" and tissue is not None:
        bare = slide_rectangle(slide_um).difference(tissue)
        drawn = [*drawn, Region("off tissue", bare, counted=False, masked=True, origin="derived: not tissue")]
    return resolve(drawn, rules, slide=slide_um, tissue=tissue, overlap=recipe.count.overlap, slide_name=row.slide_id)


def survey_slide(job: Job) -> str:
    """Survey a slide unless that was done before, and return the key of the survey."""
    recipe, blocks = job.recipe, job.folder.blocks
    with unchanged(job):
        sources = source_hashes(job)
        key = survey_key_of(job, sources)
        told = None if key in blocks else survey(open_slide(job.slide), recipe)
    if told is not None:
        if told.picture is not None and _survey_shows_overview(open_slide(job.slide)):
            blocks.write(_picture_key(key), told.picture.arrays())
        # The sums go along, so that the end of a slide's path need not read the whole file for them again.
        blocks.write(key, told.arrays() | {"sources": np.frombuffer(json.dumps(sources).encode(), dtype=np.uint8)})
    return key


def survey_key_of(job: Job, sources: Mapping[str, str]) -> str:
    """Return the key of the survey of a slide whose files have these hashes."""
    return content_key(
        kind="survey",
        source=sorted(sources.items()),
        reader=reader_fingerprint(job),
        scene=job.slide.scene,
        pixel_size_um=job.slide.pixel_size_um,
        recipe=job.recipe.fingerprint(measured=True),
        segmenter=segmenter_fingerprint(job.recipe.segment),
    )


def sources_of(job: Job, survey_key: str) -> dict[str, str]:
    """Return the sha256 of every file of a slide, as it was when the slide was surveyed."""
    told: dict[str, str] = json.loads(job.folder.blocks.arrays(survey_key)["sources"].tobytes())
    return told


def _picture_key(survey_key: str) -> str:
    return content_key(kind="picture", survey=survey_key)


def _overview_um(slide: Slide) -> float:
    """Return the size of a pixel that the overview needs."""
    return slide.pixel_size_um * max(1.0, max(slide.shape) / OVERVIEW_PX)


def _survey_shows_overview(slide: Slide) -> bool:
    return look_px(slide) * slide.pixel_size_um <= _overview_um(slide)


def picture_of(job: Job, survey_key: str, work: Work) -> Picture:
    """Return a slide in the few pixels of its overview: as the survey saw it, where that is fine enough."""
    if not _survey_shows_overview(work.slide):
        return shrink(work.slide, work.survey.indices, job.recipe.segment, coarse_um=_overview_um(work.slide))
    key, blocks = _picture_key(survey_key), job.folder.blocks
    if key not in blocks:
        blocks.write(key, look(work.slide, work.survey.indices, job.recipe.segment)[1].arrays())
    return Picture.from_arrays(blocks.arrays(key))


def work_of(job: Job, survey_key: str) -> Work:
    """Return slide, recipe and survey together; a worker keeps the last."""
    arrays, _ = job.folder.blocks.read(survey_key)
    return Work(open_slide(job.slide), job.recipe, Survey.from_arrays(arrays))


def block_key(survey_key: str, index: int) -> str:
    """Return the key of a block's results."""
    return content_key(kind="block", survey=survey_key, index=index, tiles=BLOCK_TILES)


def analyse_block(job: Job, survey_key: str, index: int) -> bool:
    """Analyse one block of tiles unless that was done before; return whether it was done now."""
    key = block_key(survey_key, index)
    blocks = job.folder.blocks
    if key in blocks:
        return False
    with unchanged(job):
        arrays, tables = _analysed(work_of(job, survey_key), index)
    blocks.write(key, arrays, tables)
    return True


def _analysed(work: Work, index: int) -> tuple[dict[str, NDArray[Any]], dict[str, pd.DataFrame]]:
    """Return the labels of a block's tiles, as runs, and its tables."""
    import pandas as pd

    plan = pipeline.plan_slide(work)
    first = index * BLOCK_TILES
    arrays: dict[str, NDArray[Any]] = {}
    cells, objects, n_cut = [], [], 0
    for number, tile in enumerate(plan[first : first + BLOCK_TILES], start=first):
        part = pipeline.analyse_tile(work, tile)
        arrays |= {_run_array(number, name): column for name, column in part.runs.arrays().items()}
        cells.append(part.cells.assign(tile=number))
        objects.append(part.objects.assign(tile=number))
        n_cut += part.n_cut
    arrays["n_cut"] = np.array(n_cut)
    return arrays, {"cells": pd.concat(cells, ignore_index=True), "objects": pd.concat(objects, ignore_index=True)}


def measured_key(survey_key: str) -> str:
    """Return the key of a slide's measured table."""
    return content_key(kind="measured", survey=survey_key, tiles=BLOCK_TILES)


def _run_array(tile: int, name: str) -> str:
    """Return the name under which a block keeps an array of the runs of a tile."""
    return f"runs_{tile}_{name}"


def join_slide(job: Job, survey_key: str, n_blocks: int) -> str:
    """Put the blocks of a slide together and return the key of the measured table."""
    import pandas as pd

    key = measured_key(survey_key)
    blocks = job.folder.blocks
    if key not in blocks:
        cells, objects, n_cut = [], [], 0
        for index in range(n_blocks):
            arrays, tables = blocks.read(block_key(survey_key, index))
            cells.append(tables["cells"])
            objects.append(tables["objects"])
            n_cut += int(arrays["n_cut"])
        work = work_of(job, survey_key)
        joined = pipeline.number(
            pd.concat(cells, ignore_index=True), pd.concat(objects, ignore_index=True), n_cut, work
        )
        tables = {"cells": joined.cells, "objects": joined.objects, "numbers": joined.numbers}
        blocks.write(key, {"n_cut": np.array(joined.n_cut)}, tables)
    return key


@dataclass(frozen=True)
class Joined:
    """A slide whose cells are measured."""

    job: Job
    survey_key: str
    measured_key: str


def measured_of(item: Joined) -> Measured:
    """Return the measured cells of a joined slide."""
    arrays, tables = item.job.folder.blocks.read(item.measured_key)
    return Measured(tables["cells"], tables["objects"], tables["numbers"], int(arrays["n_cut"]))


@dataclass(frozen=True, eq=False)
class SlideReport:
    """What the driver keeps of a finished slide."""

    regions: pd.DataFrame
    sensitivity: pd.DataFrame
    stain_scores: pd.DataFrame
    notes: tuple[str, ...]


def finish_slide(item: Joined, thresholds: Mapping[str, Threshold], flags: Sequence[str]) -> SlideReport:
    """Call, count and write everything a slide's folder holds."""
    with unchanged(item.job):
        return _finished(item, thresholds, flags)


def _finished(item: Joined, thresholds: Mapping[str, Threshold], flags: Sequence[str]) -> SlideReport:
    job = item.job
    work = work_of(job, item.survey_key)
    px = work.slide.pixel_size_um
    slide_um = (work.slide.shape[0] * px, work.slide.shape[1] * px)
    regions = regions_of(job, slide_um, px, work.survey.tissue)
    _check_outlines_named(job, regions)
    measured = measured_of(item)
    areas = positive_areas(work, regions, thresholds)
    densities = integrated_densities(work, regions)
    result = pipeline.finish(
        work,
        measured,
        regions,
        thresholds,
        identity=job.identity,
        flags=flags,
        area_positive_um2=areas,
        integrated_od_um2=densities,
    )
    target = job.folder.slide(job.slide.slide_id)
    store.write_parquet(target / "cells.parquet", result.cells)
    store.write_csv(target / "regions.csv", result.regions)
    store.write_csv(target / "sensitivity.csv", result.sensitivity)
    if densities:
        store.write_csv(target / "stain_scores.csv", result.stain_scores)
    if any(marker.orphans for marker in work.panel.values()):
        store.write_csv(target / "marker_objects.csv", result.objects)
    with store.whole_file(target / "regions.geojson") as temporary:
        write_geojson(temporary, regions, px)
    _keep_labels(item, work, measured.numbers, target / "labels.ome.tif")
    del measured  # of a large slide a hundred megabytes, and the picture takes its share
    with store.whole_file(target / "overview.png") as temporary:
        picture = picture_of(job, item.survey_key, work)
        draw_overview(
            temporary,
            picture.means,
            picture.px * px,
            title=job.slide.slide_id,
            panel=work.panel,
            channels=work.survey.channels,
            regions=regions,
            cells=result.cells,
            thresholds={name: threshold.value for name, threshold in thresholds.items()},
        )
    store.write_json(target / "provenance.json", _provenance(item, work, thresholds, result.flags))
    return SlideReport(result.regions, result.sensitivity, result.stain_scores, (*work.survey.notes, *result.flags))


def _check_outlines_named(job: Job, regions: RegionSet) -> None:
    for name in (*job.recipe.count.distance_to, *job.recipe.count.migration_from):
        if name not in regions and not job.slide.control:
            raise RegionError(
                f"Slide '{job.slide.slide_id}': no outline '{name}' to take distances to.",
                "Draw it, or correct distance_to and migration_from under [count] in the recipe.",
            )


def _keep_labels(item: Joined, work: Work, numbers: pd.DataFrame, path: Path) -> None:
    """Write the label image unless the one that is there came from the same cells: thresholds do not change it."""
    blocks = item.job.folder.blocks
    key = content_key(kind="labels", measured=item.measured_key, histoquant=__version__)
    if key in blocks and path.exists() and blocks.arrays(key)["sha256"].tobytes() == bytes.fromhex(sha256_of(path)):
        return
    write_labels(item, work, numbers, path)
    blocks.write(key, {"sha256": np.frombuffer(bytes.fromhex(sha256_of(path)), dtype=np.uint8)})


def write_labels(item: Joined, work: Work, numbers: pd.DataFrame, path: Path) -> None:
    """Write the label image of a slide from the runs its blocks hold, band by band.

    Where objects of two tiles share pixels, the tile that comes first keeps them.
    """
    plan = pipeline.plan_slide(work)
    cells: dict[Any, NDArray[np.uint32]] = {}
    label, cell = numbers["label"].to_numpy(), numbers["cell_id"].to_numpy()
    for tile, here in numbers.groupby("tile").indices.items():
        cells[tile] = np.zeros(int(label[here].max()) + 1, dtype=np.uint32)
        cells[tile][label[here]] = cell[here]

    blocks = item.job.folder.blocks
    row_of_tiles = len({(tile.core.x0, tile.core.x1) for tile in plan})

    @lru_cache(maxsize=max(2, 2 * row_of_tiles // BLOCK_TILES + 2))
    def block(index: int) -> dict[str, NDArray[Any]]:
        return blocks.arrays(block_key(item.survey_key, index))

    height, width = work.slide.shape
    canvas = np.empty((1, min(BAND_PX, height), width), dtype=np.uint32)

    def rows(y0: int, y1: int) -> NDArray[np.uint32]:
        band = canvas[:, : y1 - y0]
        band.fill(0)
        for number, tile in enumerate(plan):
            if number in cells and tile.box.y0 < y1 and tile.box.y1 > y0:
                held = block(number // BLOCK_TILES)
                runs = Runs(*(held[_run_array(number, name)] for name in Runs.names()))
                paint(runs, cells[number], band[0], y0)
        return band

    write_ome_tiff(
        path,
        (1, *work.slide.shape),
        np.uint32,
        rows,
        pixel_size_um=work.slide.pixel_size_um,
        channels=["nuclei"],
        labels=True,
    )


def _provenance(item: Joined, work: Work, thresholds: Mapping[str, Threshold], flags: Sequence[str]) -> dict[str, Any]:
    """Return where every number of a slide comes from. Nothing here changes from run to run."""
    job = item.job
    noise = dict(zip(work.survey.channels, work.survey.noise.tolist(), strict=True))
    return {
        "histoquant": __version__,
        "result_version": RESULT_VERSION,
        "slide": {key: str(value) for key, value in asdict(job.slide).items() if value not in (None, "", {})},
        "sources": sources_of(job, item.survey_key),
        "reader": reader_fingerprint(job),
        "regions_sha256": store.sha256_of(job.slide.regions) if job.slide.regions else None,
        "pixel_size_um": work.slide.pixel_size_um,
        "shape_px": list(work.slide.shape),
        "channels": list(work.slide.channels),
        "counterstain": counterstain_of(work.panel),
        **({} if work.survey.stains is None else {"stains": work.survey.stains.as_dict()}),
        "recipe": job.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        "fingerprint": job.recipe.fingerprint(),
        "measured_key": item.measured_key,
        "segmenter": {
            "plugin": segmenter_fingerprint(job.recipe.segment),
            "given": segmenter_parameters(job.recipe.segment).model_dump(mode="json"),
            "used": work.survey.segmenter,
        },
        "background_sd": noise,
        "thresholds": {name: {"value": t.value, "source": t.source, **t.detail} for name, t in thresholds.items()},
        "tile_core_px": job.recipe.tiles.core_px,
        "notes": list(work.survey.notes),
        "warnings": list(flags),
    }
