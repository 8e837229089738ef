"""The whole path for one slide: read, segment, measure, call, count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis import fragments, measure, positivity, tiles
from histoquant.analysis.counting import IDENTITY, WEAK_COUNTERSTAIN, Section, count_regions, sensitivity
from histoquant.analysis.marker_objects import marker_objects
from histoquant.analysis.migration import geodesic_distance_um
from histoquant.analysis.positivity import AUTOFLUORESCENCE_CORRELATION, AUTOFLUORESCENCE_K, Threshold
from histoquant.analysis.runs import Runs, runs_of
from histoquant.analysis.stain_scores import score_regions
from histoquant.analysis.tiles import Tile
from histoquant.model.panel import called_markers, counterstain_of
from histoquant.model.recipe import Recipe
from histoquant.model.region_set import RegionSet
from histoquant.model.slide import Box, Slide
from histoquant.model.tables import CELLS, MARKER_OBJECTS, STAIN_SCORES, empty, shaped
from histoquant.picture import flat_pixels
from histoquant.registry import grid_of
from histoquant.stained import floored
from histoquant.survey import FILL_REACH_UM, normalised, segmented_channels, segmenter_of, survey
from histoquant.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

OBJECT_FLOOR_K = 5.0
"""Marker objects off nuclei are sought from this many background SDs; the threshold decides later which count."""

FRAGMENT_AREA_UM2 = 10.0
FRAGMENT_LINK_UM = 8.0


@dataclass(frozen=True, eq=False)
class TileResult:
    """What one tile gives.

    Attributes
    ----------
    runs : Runs
        The objects the tile owns, whole, with numbers that hold within the tile.
    cells : DataFrame
        One row per object owned; ``label`` is its number in ``runs``.
    objects : DataFrame
        Marker objects off nuclei that the tile owns.
    n_cut : int
        Objects larger than the halo allows.
    """

    runs: Runs
    cells: pd.DataFrame
    objects: pd.DataFrame
    n_cut: int


@dataclass(frozen=True, eq=False)
class Measured:
    """All cells of a slide, measured, each with its final number.

    Attributes
    ----------
    cells : DataFrame
    objects : DataFrame
        Marker objects off nuclei; ``attached_to`` holds a ``cell_id`` or 0.
    numbers : DataFrame
        ``tile``, ``label``, ``cell_id``: how the labels of each tile become those of the slide.
    n_cut : int
    """

    cells: pd.DataFrame
    objects: pd.DataFrame
    numbers: pd.DataFrame
    n_cut: int


@dataclass(frozen=True, eq=False)
class SlideResult:
    """Everything a slide gives; equal inputs give equal bytes."""

    cells: pd.DataFrame
    objects: pd.DataFrame
    regions: pd.DataFrame
    sensitivity: pd.DataFrame
    stain_scores: pd.DataFrame
    flags: tuple[str, ...]


def analyse_slide(
    slide: Slide,
    regions: Callable[[Any], RegionSet],
    recipe: Recipe,
    *,
    thresholds: Callable[[pd.DataFrame, Work], Mapping[str, Threshold]],
    mapper: Callable[[Callable[[Tile], TileResult], Iterable[Tile]], Iterable[TileResult]] = map,
) -> SlideResult:
    """Walk the whole path for one slide.

    Parameters
    ----------
    regions : callable
        Takes the tissue outline and returns the regions.
    thresholds : callable
        Takes the measured cells and returns a threshold per marker.
    mapper : callable
        ``map`` or anything that works like it, such as the ``map`` of an executor.
    """
    work = Work(slide, recipe, survey(slide, recipe))
    plan = plan_slide(work)
    parts = mapper(lambda tile: analyse_tile(work, tile), plan)
    measured = join(parts, work)
    return finish(work, measured, regions(work.survey.tissue), thresholds(measured.cells, work), identity={})


def plan_slide(
    work: Work, *, offset_px: tuple[int, int] = (0, 0), within: Box | None = None, core_px: int | None = None
) -> list[Tile]:
    """Cut a slide, or a part of it, into tiles: a pure list, the same on every machine.

    Tiles are as large as the recipe says unless ``core_px`` does; neither changes what is found.
    """
    segmenter, px_um = segmenter_of(work.recipe, work.survey), work.slide.pixel_size_um
    fill_um = FILL_REACH_UM if len(work.recipe.segmented) > 1 else 0.0
    halo_um = float(segmenter.halo_um) + fill_um + measure.reach_um(work.recipe.measure, work.max_object_um)
    halo_px = int(np.ceil(halo_um / px_um)) + 2
    return tiles.plan_tiles(
        work.slide.shape,
        core_px=core_px or work.recipe.tiles.core_px,
        halo_px=halo_px,
        offset_px=offset_px,
        grid_px=grid_of(segmenter, px_um),
        within=within,
    )


def analyse_tile(work: Work, tile: Tile) -> TileResult:
    """Read a tile, segment it, and measure the objects it owns."""
    told, panel, settings = work.survey, work.panel, work.recipe.measure
    raw = flat_pixels(work.slide, tile.box, told.indices, work.recipe.segment)
    segmented = segmented_channels(work.recipe, panel, told.channels)
    seen = floored(raw, told.stains)
    image = normalised(seen, tile.box, told.background, segmented, work.slide.pixel_size_um)
    labels = tiles.canonical(segmenter_of(work.recipe, told)(image[None, None], work.slide.pixel_size_um)[0])
    pixels = measure.Pixels(raw, told.channels, told.background, tile.box, work.slide.pixel_size_um)

    found = [_objects(pixels, labels, name, work) for name in called_markers(panel) if panel[name].orphans]
    with_pieces, pieces = _with_pieces(labels, found, work)
    owned = tiles.own(with_pieces, tile, work.slide.shape)
    renamed = np.zeros(int(with_pieces.max(initial=0)) + 1, dtype=np.uint32)
    renamed[owned.given] = np.arange(1, len(owned.given) + 1)
    cells = measure.measure_nuclei(
        pixels,
        owned.labels,
        owned.mine,
        settings=settings,
        order_statistics=work.order_statistics,
        correlations=work.correlations,
    )
    cells["piece"] = np.isin(cells["label"], renamed[pieces])
    mine = np.concatenate([[False], owned.mine])
    return TileResult(
        runs_of(owned.labels, mine, tile.box),
        cells,
        _own_objects([table for table, _ in found], renamed, mine, tile.core),
        int((owned.mine & owned.cut).sum()),
    )


def _objects(
    pixels: measure.Pixels, labels: NDArray[np.uint32], marker: str, work: Work
) -> tuple[pd.DataFrame, NDArray[np.uint32]]:
    """Return the objects of a marker off nuclei, and their label image."""
    channel = work.channel(marker)
    glowing = [work.channel(name) for name in work.unstained]
    table, image = marker_objects(
        pixels,
        labels,
        channel=channel,
        counterstain=work.channel(counterstain_of(work.panel)),
        unstained=glowing,
        floor=OBJECT_FLOOR_K * work.noise(marker),
        max_object_um=work.max_object_um,
        settings=work.recipe.measure,
    )
    noise = max((work.noise(name) for name in work.unstained), default=0.0)
    glow = table["unstained_value"] > AUTOFLUORESCENCE_K * noise
    glow &= table["correlation"] > AUTOFLUORESCENCE_CORRELATION
    table = table.assign(autofluorescent=glow, marker=marker, number=np.arange(1, len(table) + 1))
    return table, image


def _with_pieces(
    labels: NDArray[np.uint32], found: Sequence[tuple[pd.DataFrame, NDArray[np.uint32]]], work: Work
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Add objects of death markers that hold DNA to the nuclei: a nucleus that fell apart is still a nucleus.

    Returns
    -------
    The labels with the pieces added, and the numbers of the pieces. Tables in ``found`` get a column ``own_label``.
    """
    together, added = labels.copy(), [np.empty(0, dtype=np.uint32)]
    flat, highest = together.ravel(), int(labels.max(initial=0))
    floor = OBJECT_FLOOR_K * work.noise(counterstain_of(work.panel))
    for table, image in found:
        holds_dna = (table["dna_value"] > floor) & (table["attached_label"] == 0) & ~table["autofluorescent"]
        holds_dna &= table["marker"].map(lambda name: work.panel[name].death_classes).astype(bool)
        numbers = table["number"].to_numpy()[holds_dna]
        names = np.zeros(len(table) + 1, dtype=np.uint32)
        names[numbers] = highest + np.arange(1, len(numbers) + 1, dtype=np.uint32)
        highest += len(numbers)
        if len(numbers):
            here = np.flatnonzero(image)
            flat[here] = np.where(flat[here] > 0, flat[here], names[image.ravel()[here]])
        table["own_label"] = names[table["number"]]
        added.append(names[numbers])
    return together, np.concatenate(added)


def _own_objects(
    tables: Sequence[pd.DataFrame], renamed: NDArray[np.uint32], mine: NDArray[np.bool_], core: Box
) -> pd.DataFrame:
    """Return the marker objects a tile owns: those attached to its nuclei, and free ones centred in its core."""
    import pandas as pd

    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    attached = renamed[table["attached_label"]]
    y, x = table["y_px"], table["x_px"]
    # Centres of pixels are at halves, cores at whole numbers, exactly as for the centroids of nuclei.
    inside = (y >= core.y0 + 0.5) & (y < core.y1 + 0.5) & (x >= core.x0 + 0.5) & (x < core.x1 + 0.5)
    table = table.assign(attached_label=attached, own_label=renamed[table["own_label"]])
    columns = ["marker", "y_px", "x_px", "area_px", "value", "autofluorescent", "attached_label", "own_label"]
    return table.loc[np.where(attached > 0, mine[attached], inside), columns]


def join(parts: Iterable[TileResult], work: Work) -> Measured:
    """Put the tables of all tiles together and number the cells from top left to bottom right.

    The numbers depend on where the cells lie, not on how the slide was cut.
    """
    import pandas as pd

    cells, objects, n_cut = [], [], 0
    for index, part in enumerate(parts):
        cells.append(part.cells.assign(tile=index))
        objects.append(part.objects.assign(tile=index))
        n_cut += part.n_cut
    return number(pd.concat(cells, ignore_index=True), pd.concat(objects, ignore_index=True), n_cut, work)


def number(cells: pd.DataFrame, objects: pd.DataFrame, n_cut: int, work: Work) -> Measured:
    """Join fragments, number the cells, and point marker objects at the cells they belong to."""
    import pandas as pd

    px = work.slide.pixel_size_um
    cells = cells.sort_values(["y_px", "x_px", "area_px"], kind="stable", ignore_index=True)
    numbers = cells[["tile", "label"]]
    dying = [name for name in called_markers(work.panel) if work.panel[name].death_classes]
    order = np.arange(len(cells))
    if dying:
        small = (cells["area_px"] * px**2 < FRAGMENT_AREA_UM2).to_numpy()
        order = fragments.group(
            cells,
            small & (_shining(cells, dying, work) | cells["piece"].to_numpy()),
            alone=small & cells["piece"].to_numpy(),
            link_px=FRAGMENT_LINK_UM / px,
        )
    numbers = numbers.assign(cell_id=(order + 1).astype(np.uint32))
    cells = cells.drop(columns=["tile", "label", "piece"])
    if dying:
        cells = fragments.merge(cells, order)
    cells.insert(0, "cell_id", np.arange(1, len(cells) + 1, dtype=np.uint32))

    if len(objects):
        for label, column in (("attached_label", "attached_to"), ("own_label", "is_cell")):
            names = numbers.rename(columns={"label": label, "cell_id": column})
            objects = objects.merge(names, on=["tile", label], how="left")
            objects[column] = objects[column].fillna(0).astype(np.uint32)
        objects = objects[objects["is_cell"] == 0]
        objects = objects.drop(columns=["tile", "attached_label", "own_label", "is_cell"])
        objects = objects.sort_values(["marker", "y_px", "x_px"], kind="stable", ignore_index=True)
    else:
        columns = ["marker", "y_px", "x_px", "area_px", "value", "attached_to", "autofluorescent"]
        objects = pd.DataFrame({name: pd.Series(dtype=MARKER_OBJECTS.get(name, "float64")) for name in columns})
    for name in called_markers(work.panel):
        if work.panel[name].orphans:
            held = objects[(objects["marker"] == name) & (objects["attached_to"] > 0) & ~objects["autofluorescent"]]
            strongest = held.groupby("attached_to")["value"].max()
            cells[f"{name}_attached"] = cells["cell_id"].map(strongest).astype(float)
    return Measured(_in_um(cells, px), _in_um(objects, px), numbers, n_cut)


def _shining(cells: pd.DataFrame, markers: Sequence[str], work: Work) -> NDArray[np.bool_]:
    """Return which cells stand out in a death marker.

    That must not depend on the threshold, or raising it could raise a count; the noise of the channel decides.
    """
    shining = np.zeros(len(cells), dtype=bool)
    for name in markers:
        channel = work.panel[name].channel
        above = (cells[f"mean_{channel}"] - cells[f"background_{channel}"]).to_numpy()
        shining |= above > OBJECT_FLOOR_K * work.noise(name)
    return shining


def finish(
    work: Work,
    measured: Measured,
    regions: RegionSet,
    thresholds: Mapping[str, Threshold],
    *,
    identity: Mapping[str, str],
    flags: Sequence[str] = (),
    area_positive_um2: Mapping[str, Mapping[str, float]] | None = None,
    integrated_od_um2: Mapping[str, Mapping[str, float]] | None = None,
) -> SlideResult:
    """Call, place and count the measured cells of a slide; no pixel is read."""
    panel = work.panel
    scene = work.scene(thresholds)
    cells = _placed(measured.cells, regions, work)
    cells = positivity.call(cells, panel, work.rules, scene)
    cells["origin"] = "auto"
    objects = _placed(measured.objects, regions, work)
    limit = np.array([thresholds[marker].value for marker in objects["marker"]], dtype=float)
    objects["orphan"] = (
        (objects["attached_to"] == 0) & ~objects["autofluorescent"].astype(bool) & (objects["value"] >= limit)
    )
    remarks = [*flags, *regions.notes]
    fractions = counterstain_snr(measured.cells, work) >= work.recipe.segment.min_snr or not len(cells)
    if not fractions:
        remarks.append(WEAK_COUNTERSTAIN)
    if measured.n_cut:
        remarks.append(f"{measured.n_cut} object(s) larger than {work.max_object_um:g} um at a seam")
    section = Section(
        identity=dict.fromkeys(IDENTITY, "") | dict(identity),
        regions=regions,
        panel=panel,
        thresholds=thresholds,
        doubles=work.recipe.double_labels,
        fractions=fractions,
        flags=[remark.replace(";", ",") for remark in remarks],
        area_positive_um2=area_positive_um2 or {},
    )
    return SlideResult(
        shaped(cells, CELLS),
        shaped(objects, MARKER_OBJECTS),
        count_regions(cells, objects, section),
        sensitivity(cells, objects, section, rules=work.rules, scene=scene),
        score_regions(cells, section, integrated_od_um2) if integrated_od_um2 else empty(STAIN_SCORES),
        tuple(remarks),
    )


def _in_um(table: pd.DataFrame, pixel_size_um: float) -> pd.DataFrame:
    """Return a table of things in pixels with their places and sizes in um; the places in pixels stay."""
    measured = table.copy(deep=False)
    for name in ("y", "x", "major", "minor"):
        if f"{name}_px" in table:
            measured[f"{name}_um"] = table[f"{name}_px"] * pixel_size_um
    measured["area_um2"] = table["area_px"] * pixel_size_um**2
    return measured.drop(columns=["area_px", "major_px", "minor_px"], errors="ignore")


def _placed(table: pd.DataFrame, regions: RegionSet, work: Work) -> pd.DataFrame:
    """Return a table of things with their region, and their distances to named outlines."""
    placed = table.copy(deep=False)
    points = placed[["y_um", "x_um"]].to_numpy(dtype=float)
    placed["region"] = regions.assign(points)
    for name in work.recipe.count.distance_to:
        placed[f"distance_to_{name}_um"] = regions.signed_distance_um(name, points) if name in regions else np.nan
    if work.recipe.count.migration_from:
        walkable = work.survey.tissue - regions.masked_ground
        for name in work.recipe.count.migration_from:
            column = f"migration_from_{name}_um"
            placed[column] = np.nan
            if name in regions:
                origin = regions[name].geometry
                placed[column] = geodesic_distance_um(points, origin, walkable, slide_um=regions.slide_um)
    return placed


def counterstain_snr(cells: pd.DataFrame, work: Work) -> float:
    """Return the median over nuclei of counterstain above background, in SDs of background pixels; NaN without any."""
    channel = work.panel[counterstain_of(work.panel)].channel
    noise = work.noise(counterstain_of(work.panel))
    signal = (cells[f"mean_{channel}"] - cells[f"background_{channel}"]).median()
    return float(signal / noise) if noise > 0 else float("inf")
