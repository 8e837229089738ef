"""Write a phantom study: slides, outlines, truth, sample sheet and recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import InputError, StoreError
from histoquant.model.slide import Box
from histoquant.ometiff import write_ome_tiff
from histoquant.phantom.assays import Cells, Subject, make_section
from histoquant.phantom.optics import BLOCK_PX, Section, paint, paint_brightfield, paint_labels
from histoquant.phantom.plan import PhantomPlan
from histoquant.phantom.tissue import distance_um, drawn_regions, true_regions

if TYPE_CHECKING:
    import pandas as pd

LABELS_UP_TO_PX = 25_000_000
"""Larger slides get no image of true labels: the table of cells says the same in a hundredth of the room."""

BARE_RECIPE = """schema = 1
name = "nuclei"

[panel.dapi]
channel = "DAPI"
role = "counterstain"

[segment]
segmenter = "network"
"""


def shipped_recipe(name: str) -> Path:
    """Return where a recipe that comes with histoquant lies, in a checkout or in an installed package.

    Raises
    ------
    InputError
        If there is none of that name; the remedy lists those there are.
    """
    package = Path(__file__).parents[1]
    folders = [package / "recipes", package.parent / "workflows" / "recipes"]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise InputError(f"No recipe named '{name}' comes with histoquant.", f"Choose one of {', '.join(known)}.")


def begin_study(out: Path, recipe: str) -> Path:
    """Make the folders and the recipe of a study, and return where its sample sheet is to be written, last of all.

    Parameters
    ----------
    recipe : str
        Text of ``recipe.toml``.

    Raises
    ------
    InputError
        If the folder holds a study already.
    StoreError
        If it cannot be written.
    """
    sheet = out / "study.csv"
    if sheet.exists():
        raise InputError(f"{out}: there is a study already.", "Give another folder, or remove that study first.")
    try:
        for folder in ("slides", "truth"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        (out / "recipe.toml").write_text(recipe, "utf-8")
    except OSError as error:
        raise refused(out, error) from error
    return sheet


def refused(out: Path, error: OSError) -> StoreError:
    """Return what to say when the disk refuses a study."""
    return StoreError(
        f"{out}: could not be written ({error.strerror or error}).", "Choose a folder that can be written to."
    )


def make_phantom(out: Path, plan: PhantomPlan, *, progress: Callable[[float], None] | None = None) -> Path:
    """Make a synthetic study of known truth that can be run as it is.

    Writes ``slides/*.ome.tif``, ``regions.geojson`` (the same outlines on every slide), ``recipe.toml``, ``study.csv``
    and under ``truth/``: ``<slide>_cells.csv``, ``<slide>_labels.ome.tif`` (slides up to 25 megapixels),
    ``<slide>_orphans.csv`` where there are marker bodies without a nucleus, ``regions.csv`` and ``effects.csv``.
    The sample sheet is written last, so a folder with one holds a whole study.

    Parameters
    ----------
    out : Path
        Folder; made when it is not there, and must not hold a study.
    plan : PhantomPlan
    progress : callable, optional
        Told the share done, from 0 to 1, after each band of each slide.

    Returns
    -------
    Path
        Of ``study.csv``.

    Raises
    ------
    InputError
        If the folder holds a study already.
    StoreError
        If the folder cannot be written.
    """
    out = Path(out)
    recipe = shipped_recipe(plan.facts.recipe).read_text("utf-8") if plan.facts.recipe else BARE_RECIPE
    sheet = begin_study(out, recipe)
    try:
        _write_regions(out / "regions.geojson", plan)
    except OSError as error:
        raise refused(out, error) from error
    slides = _slides(plan)
    told = progress or (lambda share: None)
    counts = []
    for index, (row, subject) in enumerate(slides):
        cells, section = make_section(plan, subject)
        name = Path(row["slide"]).name.removesuffix(".ome.tif")

        def part_done(rows: int, index: int = index) -> None:
            told((index + rows / plan.shape_px[0]) / len(slides))

        write_slide(out / row["slide"], plan, section, part_done)
        _write_truth(out / "truth", name, plan, cells, section)
        counts += [{"slide": name, **row_of(row), **count} for count in _counts(plan, cells)]
    _write_effects(out / "truth", plan, counts)
    _write_table(sheet, [row for row, _ in slides])
    return sheet


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return whose slide a row of the sample sheet is."""
    return {key: row[key] for key in ("animal", "group", "section", "control")}


def animal_factors(plan: PhantomPlan, group: int) -> list[float]:
    """Return each animal's level of label: log-normal quantiles of mean 1 in random order."""
    from scipy.stats import norm

    if plan.animals == 1:
        return [1.0]
    spread = np.exp(plan.animal_cv * norm.ppf((np.arange(plan.animals) + 0.5) / plan.animals))
    rng = np.random.default_rng((plan.seed, 1_000_000 + group))
    return [float(level) for level in rng.permutation(spread / spread.mean())]


def _slides(plan: PhantomPlan) -> list[tuple[dict[str, Any], Subject]]:
    """Rows of the sample sheet and what is on each slide."""
    slides: list[tuple[dict[str, Any], Subject]] = []

    def add(animal: str, group: str, section: int, factor: float, control: str) -> None:
        row = {
            "slide": f"slides/{animal}_s{section}.ome.tif",
            "animal": animal,
            "group": group,
            "section": section,
            "regions": "regions.geojson",
            "control": control,
            "batch": "1",
        }
        slides.append((row, Subject(len(slides), group, factor, control)))

    for number, group in enumerate(plan.groups):
        for index, factor in enumerate(animal_factors(plan, number)):
            for section in range(1, plan.sections + 1):
                add(f"M{number * plan.animals + index + 1}", group, section, factor, "")
    for index, kind in enumerate(plan.control_kinds):
        add(f"control_{index + 1}", "control", 1, 1.0, kind)
    return slides


def _write_regions(path: Path, plan: PhantomPlan) -> None:
    """As QuPath writes it: x, y in full-resolution pixels."""
    features = []
    for name, outline in drawn_regions(plan).items():
        ring = np.asarray(outline.exterior.coords) / plan.pixel_size_um
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring.round(3).tolist()]},
                "properties": {"objectType": "annotation", "name": name, "classification": {"name": name}},
            }
        )
    text = json.dumps({"type": "FeatureCollection", "features": features})
    path.write_text(text + "\n", "utf-8")


def write_slide(path: Path, plan: PhantomPlan, section: Section, done: Callable[[int], None]) -> None:
    """Write a section as a microscope would; ``done`` is told how many rows are written."""
    height, width = section.shape
    if plan.facts.brightfield:
        _write_picture(path, plan, section, done)
        return

    def rows(y0: int, y1: int) -> Any:
        pixels = paint(section, Box(y0, y1, 0, width))
        done(y1)
        return pixels

    channels = plan.facts.channels
    write_ome_tiff(
        path,
        (len(channels), height, width),
        section.camera.dtype,
        rows,
        pixel_size_um=plan.pixel_size_um,
        channels=channels,
    )


def _write_picture(path: Path, plan: PhantomPlan, section: Section, done: Callable[[int], None]) -> None:
    """Write a brightfield section as a tiled RGB OME-TIFF, tile by tile."""
    import tifffile

    height, width = section.shape

    def tiles() -> Iterator[Any]:
        for top in range(0, height, BLOCK_PX):
            for left in range(0, width, BLOCK_PX):
                box = Box(top, min(top + BLOCK_PX, height), left, min(left + BLOCK_PX, width))
                tile = np.full((BLOCK_PX, BLOCK_PX, 3), 255, np.uint8)
                tile[: box.shape[0], : box.shape[1]] = np.moveaxis(paint_brightfield(section, box), 0, -1)
                yield tile
            done(min(top + BLOCK_PX, height))

    size = {f"PhysicalSize{axis}": plan.pixel_size_um for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    try:
        with tifffile.TiffWriter(path, ome=True) as tiff:
            tiff.write(
                tiles(),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(BLOCK_PX, BLOCK_PX),
                photometric="rgb",
                compression="zlib",
                metadata={"axes": "YXS", **size, **units},
            )
    except OSError as error:
        raise StoreError(f"{path}: could not be written ({error.strerror or error}).", "Make room.") from error


def _write_truth(folder: Path, name: str, plan: PhantomPlan, cells: Cells, section: Section) -> None:
    table: dict[str, Any] = {
        "cell_id": np.arange(1, len(cells) + 1),
        "region": region_of(plan, cells),
        "y_um": cells.yx_um[:, 0].round(2),
        "x_um": cells.yx_um[:, 1].round(2),
        "diameter_um": cells.diameter_um.round(2),
        "area_um2": (np.pi / 4 * cells.diameter_um**2).round(2),
        "kind": cells.kind,
        "hidden": cells.hidden,
    }
    for marker in plan.facts.markers:
        table[f"{marker}_positive"] = cells.positive[marker]
        table[f"{marker}_amplitude"] = cells.amplitude[marker].round(3)
    source = {"tunel": "lesion", "brdu": "svz", "dcx": "svz"}.get(plan.assay)
    if source:
        table[f"distance_to_{source}_um"] = distance_um(cells.yx_um, drawn_regions(plan)[source]).round(2)
    _write_table(folder / f"{name}_cells.csv", table)
    if len(cells.orphans_um):
        y, x = cells.orphans_um.T.round(2)
        _write_table(folder / f"{name}_orphans.csv", {"y_um": y, "x_um": x})
    height, width = section.shape
    if height * width <= LABELS_UP_TO_PX:
        write_ome_tiff(
            folder / f"{name}_labels.ome.tif",
            (1, height, width),
            np.uint32,
            lambda y0, y1: paint_labels(section, Box(y0, y1, 0, width))[None],
            pixel_size_um=plan.pixel_size_um,
            channels=("labels",),
            labels=True,
        )


def region_of(plan: PhantomPlan, cells: Cells) -> Any:
    """Return the region each cell's centre lies in, "outside" where there is none; (n,) str."""
    import shapely

    region = np.full(len(cells), "outside", object)
    for name, outline in true_regions(plan).items():
        region[shapely.contains_xy(outline, cells.yx_um[:, 1], cells.yx_um[:, 0])] = name
    return region


def _counts(plan: PhantomPlan, cells: Cells) -> list[dict[str, Any]]:
    """Count one slide truly, by region and marker; without markers, by region only."""
    region, counts = region_of(plan, cells), []
    areas_mm2 = {name: outline.area / 1e6 for name, outline in true_regions(plan).items()}
    for name in (*areas_mm2, "outside"):
        here = region == name
        for marker in plan.facts.markers or ("dapi",):
            positive = cells.positive[marker][here].sum() if marker in cells.positive else None
            counts.append(
                {
                    "region": name,
                    "marker": marker,
                    "n_cells": int(here.sum()),
                    "n_positive": None if positive is None else int(positive),
                    "area_mm2": areas_mm2.get(name),
                }
            )
    return counts


def _write_effects(folder: Path, plan: PhantomPlan, counts: list[dict[str, Any]]) -> None:
    """Write what the slides truly hold, by slide and by group."""
    import pandas as pd

    table = pd.DataFrame(counts).astype({"n_positive": "Int64", "area_mm2": "Float64"})
    _write_table(folder / "regions.csv", _with_rates(table))
    animals = table[table["control"] == ""]
    keys = ["region", "marker", "group"]
    groups = animals.groupby(keys, sort=False)[["n_cells", "n_positive", "area_mm2"]].sum(min_count=1)
    groups.insert(0, "n_animals", animals.groupby(keys, sort=False)["animal"].nunique())
    groups = _with_rates(groups.reset_index())
    # Every animal has the same regions, so the change of the count is the change of the density.
    first = groups["group"] == next(iter(plan.groups))
    reference = groups[first].rename(columns={"n_positive": "before"})[[*keys[:2], "before"]]
    before = groups.merge(reference, on=keys[:2], how="left")["before"]
    change = (groups["n_positive"] / before.where(before > 0) - 1) * 100
    groups["percent_change"] = change.where(~first).astype("Float64").round(2)
    _write_table(folder / "effects.csv", groups)


def _with_rates(table: pd.DataFrame) -> pd.DataFrame:
    counted = table["n_positive"].fillna(table["n_cells"])
    return table.assign(
        area_mm2=table["area_mm2"].round(6),
        density_per_mm2=(counted / table["area_mm2"]).round(3),
        fraction_positive=(table["n_positive"] / table["n_cells"].where(table["n_cells"] > 0)).round(6),
    )


def _write_table(path: Path, rows: Any) -> None:
    import pandas as pd

    try:
        pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")
    except OSError as error:
        raise StoreError(f"{path}: could not be written ({error.strerror or error}).", "Make room.") from error
