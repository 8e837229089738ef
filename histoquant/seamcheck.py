"""Whether the cuts between tiles change what is found: one slide, analysed on two tile grids."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import cluster, steps
from histoquant.analysis.runs import Runs
from histoquant.analysis.tiles import plan_tiles
from histoquant.batch import Progress
from histoquant.cluster import Workers
from histoquant.errors import InputError
from histoquant.inputs import read_recipe
from histoquant.job import Job, open_slide, release
from histoquant.model.slide import Box
from histoquant.model.study import StudySlide
from histoquant.pipeline import Measured, TileResult, analyse_tile, join, plan_slide
from histoquant.steps import BLOCK_TILES
from histoquant.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NUMBERED = ("cell_id", "attached_to")
"""Columns that hold running numbers: one object more or less changes all that follow, so they are not compared."""


@dataclass(frozen=True)
class Difference:
    """An object that is not the same on both grids.

    Attributes
    ----------
    kind : str
        ``nucleus``, or the marker whose object off nuclei it is.
    grid : str
        On which grid it was found: ``recipe`` or ``shifted``.
    y_um, x_um, area_um2 : float
    seam_um : float
        Distance of its centre to the nearest cut of either grid.
    nearest_um, nearest_area_um2 : float or None
        Distance and area of the nearest object of its kind on the other grid; None when there is none.
    """

    kind: str
    grid: str
    y_um: float
    x_um: float
    area_um2: float
    seam_um: float
    nearest_um: float | None
    nearest_area_um2: float | None


@dataclass(frozen=True)
class SeamCheck:
    """What two tile grids found on one slide.

    Attributes
    ----------
    core_px : int
    shift_px : (y, x)
    n_tiles, n_nuclei, n_objects, n_cut : (recipe's grid, shifted grid)
        Tiles; nuclei; marker objects off nuclei; objects cut at a seam because they are larger than the halo allows.
    differences : tuple of Difference
        From top to bottom.
    """

    core_px: int
    shift_px: tuple[int, int]
    n_tiles: tuple[int, int]
    n_nuclei: tuple[int, int]
    n_objects: tuple[int, int]
    n_cut: tuple[int, int]
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether both grids gave the same objects with the same measurements."""
        return not self.differences

    @property
    def percent(self) -> float | None:
        """Difference in nuclei in percent of the recipe's grid; None when that has none."""
        first, second = self.n_nuclei
        return 100 * (second - first) / first if first else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON."""
        return {"equal": self.equal, "difference_percent": self.percent} | asdict(self)


def seamcheck(
    slide: Path,
    recipe: Path,
    *,
    pixel_size_um: float | None = None,
    scene: str | None = None,
    shift_px: tuple[int, int] | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SeamCheck:
    """Analyse a slide on the recipe's tile grid and on a shifted one, and compare all objects exactly.

    The survey (background, range, the segmenter's own estimates) is taken once per slide and knows no tiles, so it is
    shared. Calls and counts are made of the finished tables: where these are equal, so is everything that follows.
    Tables are kept, label images are not.

    Parameters
    ----------
    shift_px : (y, x), optional
        How far the grid is moved; by half a tile, or half the slide where that is smaller, when not given.

    Raises
    ------
    InputError
        If the shift leaves the grid as it is, or the slide or recipe cannot be used.
    """
    # Regions are counted in, long after the tiles; a slide without its outlines can be checked too.
    read = read_recipe(recipe).model_copy(update={"regions": {}})
    row = StudySlide(slide.name, slide, "animal", "group", pixel_size_um=pixel_size_um, scene=scene)
    root = Path(tempfile.mkdtemp(prefix="histoquant-seamcheck-"))
    job = Job(row, read, root)
    job.folder.blocks.folder.mkdir()
    try:
        steps.check(job)
        core_px = read.tiles.core_px
        height, width = open_slide(row).shape
        shift = shift_px or (min(core_px, height) // 2, min(core_px, width) // 2)
        offsets = ((0, 0), shift)
        bare = [plan_tiles((height, width), core_px=core_px, halo_px=0, offset_px=offset) for offset in offsets]
        if bare[0] == bare[1]:
            raise InputError(
                f"A shift of {shift[0]} {shift[1]} px leaves the tile grid ({core_px} px) of '{slide}' as it is.",
                "Give --shift other numbers than multiples of the tile.",
            )
        progress(Progress(0, 1, "survey"))
        key = steps.survey_slide(job)
        work = steps.work_of(job, key)
        plans = [plan_slide(work, offset_px=offset) for offset in offsets]
        measured = []
        done, total = 0, sum(map(len, plans))
        # One worker is this process, as for a single image: there is nothing to protect from a plug-in that crashes.
        with contextlib.nullcontext(cluster.Inline()) if workers == 1 else cluster.workers(workers) as pool:
            for name, plan, offset in zip(("recipe's grid", "shifted grid"), plans, offsets, strict=True):
                parts: list[TileResult] = []
                for more in _in_turn(pool, job, key, offset, len(plan)):
                    parts += more
                    done += len(more)
                    progress(Progress(done, total, name))
                measured.append(join(parts, work))
        return _compared(measured, plans, work, shift)
    finally:
        release()
        shutil.rmtree(root, ignore_errors=True)


def _in_turn(workers: Workers, job: Job, key: str, offset: tuple[int, int], n_tiles: int) -> Iterator[list[TileResult]]:
    """Yield the results of all tiles in order; a bounded number is under way, so that few tables wait."""
    under_way: deque[Future[list[TileResult]]] = deque()
    for first in range(0, n_tiles, BLOCK_TILES):
        if len(under_way) == 2 * workers.number:
            yield under_way.popleft().result()
        under_way.append(workers.submit(_tables_of, job, key, offset, first))
    while under_way:
        yield under_way.popleft().result()


def _tables_of(job: Job, key: str, offset: tuple[int, int], first: int) -> list[TileResult]:
    """Analyse some tiles of a grid, on a worker; the runs of labels stay there."""
    work = steps.work_of(job, key)
    tiles = plan_slide(work, offset_px=offset)[first : first + BLOCK_TILES]
    none = Runs(*(np.empty(0, dtype=np.uint32) for _ in Runs.names()))
    return [replace(analyse_tile(work, tile), runs=none) for tile in tiles]


def _compared(measured: list[Measured], plans: list[Any], work: Work, shift: tuple[int, int]) -> SeamCheck:
    cores = [tile.core for plan in plans for tile in plan]
    pairs = [("nucleus", measured[0].cells, measured[1].cells)]
    markers = sorted({marker for part in measured for marker in part.objects["marker"]})
    for marker in markers:
        pairs.append((marker, *(part.objects[part.objects["marker"] == marker] for part in measured)))
    found: list[Difference] = []
    for kind, first, second in pairs:
        found += _differences(kind, first, second, cores, work)
    found.sort(key=lambda each: (each.y_um, each.x_um, each.kind, each.grid))
    return SeamCheck(
        work.recipe.tiles.core_px,
        shift,
        (len(plans[0]), len(plans[1])),
        (len(measured[0].cells), len(measured[1].cells)),
        (len(measured[0].objects), len(measured[1].objects)),
        (measured[0].n_cut, measured[1].n_cut),
        tuple(found),
    )


def _differences(
    kind: str, first: pd.DataFrame, second: pd.DataFrame, cores: list[Box], work: Work
) -> Iterator[Difference]:
    """Yield the rows of each table that the other does not hold, all measurements alike to the last bit."""
    from scipy.spatial import KDTree

    surplus = _surplus(first, second)
    for grid, alone, other in (("recipe", first[surplus[0]], second), ("shifted", second[surplus[1]], first)):
        if alone.empty:
            continue
        points = alone[["y_um", "x_um"]].to_numpy(dtype=float)
        places = other[["y_um", "x_um"]].to_numpy(dtype=float)
        areas = other["area_um2"].to_numpy(dtype=float)
        distances, nearest = KDTree(places).query(points) if len(places) else (None, None)
        seams = _seam_um(points, cores, work)
        for index, (point, area) in enumerate(zip(points, alone["area_um2"], strict=True)):
            yield Difference(
                kind,
                grid,
                float(point[0]),
                float(point[1]),
                float(area),
                float(seams[index]),
                None if distances is None else float(distances[index]),
                None if nearest is None else float(areas[nearest[index]]),
            )


def _surplus(first: pd.DataFrame, second: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of each table have no partner in the other.

    Rows are partners one to one, so that an object that both sides of a seam count is one too many.
    """
    import pandas as pd

    names = [name for name in first if name not in NUMBERED and first[name].dtype.kind in "biuf"]
    rows = pd.concat([first[names], second[names]], ignore_index=True)
    # Grouping by all columns: NaN is a value like others, and numbers are the same only to the last bit.
    number = rows.groupby(names, sort=False, dropna=False).ngroup().to_numpy()
    is_first = np.arange(len(rows)) < len(first)
    n_groups = int(number.max(initial=-1)) + 1
    copies = [np.bincount(number[side], minlength=n_groups) for side in (is_first, ~is_first)]
    rank = pd.Series(number).groupby([number, is_first]).cumcount().to_numpy()
    alone = rank >= np.where(is_first, copies[1][number], copies[0][number])
    return alone[: len(first)], alone[len(first) :]


def _seam_um(points_um: NDArray[np.float64], cores: list[Box], work: Work) -> NDArray[np.float64]:
    """Return how far each (y, x) is from the nearest cut of either grid; the slide's own edges are no cuts."""
    px, (height, width) = work.slide.pixel_size_um, work.slide.shape
    distance = np.full(len(points_um), np.inf)
    for axis, (length, edges) in enumerate(
        ((height, {core.y0 for core in cores}), (width, {core.x0 for core in cores}))
    ):
        for edge in edges - {0, length}:
            distance = np.minimum(distance, np.abs(points_um[:, axis] - edge * px))
    return distance


def report_lines(found: SeamCheck, *, most: int = 40) -> Iterator[str]:
    """Yield a check as text; of many differences the first ``most``."""
    first, second = found.n_nuclei
    percent = "" if found.percent is None else f" ({found.percent:+.3g} %)"
    shift = f"{found.shift_px[0]} x {found.shift_px[1]} px"
    yield f"grid            tiles of {found.core_px} px    shifted by {shift}"
    yield f"tiles           {found.n_tiles[0]:>16,}  {found.n_tiles[1]:>16,}"
    yield f"nuclei          {first:>16,}  {second:>16,}    difference {second - first:+,}{percent}"
    yield f"marker objects  {found.n_objects[0]:>16,}  {found.n_objects[1]:>16,}"
    yield f"cut at a seam   {found.n_cut[0]:>16,}  {found.n_cut[1]:>16,}"
    if found.equal:
        yield "Equal: every object and every measurement is the same on both grids."
        return
    yield f"DIFFERENT: {len(found.differences):,} object(s) are not the same on the other grid."
    yield "kind      grid     y_um      x_um      area_um2  to seam   nearest there"
    for each in found.differences[:most]:
        near = "none" if each.nearest_um is None else f"{each.nearest_um:.2f} um off, {each.nearest_area_um2:.1f} um2"
        yield (
            f"{each.kind:<9} {each.grid:<8} {each.y_um:<9.1f} {each.x_um:<9.1f} {each.area_um2:<9.1f} "
            f"{each.seam_um:<9.1f} {near}"
        )
    if len(found.differences) > most:
        yield f"... and {len(found.differences) - most:,} more; --json lists all."
