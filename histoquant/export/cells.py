"""Cells of a run as AnnData, and slides as SpatialData. Both packages are optional and imported here only."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant import store
from histoquant.errors import InputError, MissingExtraError, StoreError
from histoquant.export.geojson import read_cells
from histoquant.readers.outlines import read_outlines
from histoquant.registry import open_slide
from histoquant.report.run import Run

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = ("animal", "group", "section", "batch", "control")
PLACES = ("y_um", "x_um", "y_px", "x_px", "cell_id")
"""Numbers of a cell that are no measurements of it."""


def write_anndata(run: Run, path: Path) -> Path:
    """Write all cells of a run as one AnnData, and return the path.

    ``X`` holds the measurements, one column each, with its unit in its name; ``obs`` whose cell it is, its region and
    its calls; ``obsm["spatial"]`` x and y in um within its slide; ``uns["histoquant"]`` recipe and thresholds as JSON.
    Cells of control sections are among them, marked in ``obs["control"]``.

    Raises
    ------
    MissingExtraError
        If anndata is not installed.
    InputError
        If a run has no cells at all, or a file of it cannot be read.
    """
    _needs("anndata")
    import pandas as pd

    parts = [_cells(run, slide) for slide in run.provenance]
    held = [part for part in parts if len(part)]
    if not held:
        raise InputError(f"The run in '{run.root}' has no cells.", "There is nothing to export.")
    table = _anndata(run, pd.concat(held, ignore_index=True))
    with store.whole_file(path) as temporary:
        table.write_h5ad(temporary)
    return path


def write_spatialdata(run: Run, slide: str, path: Path) -> Path:
    """Write a slide as SpatialData, and return the path.

    Elements: ``labels`` (the nuclei), ``regions`` (as counted) and the table ``cells``, which annotates the labels by
    ``cell_id``; all in the coordinate system ``um``. Without cells there is no table. The slide's own pixels stay where
    they are; its path is in the table's ``uns``.

    Raises
    ------
    MissingExtraError
        If spatialdata is not installed.
    InputError
        If a file of the slide cannot be read.
    StoreError
        If it cannot be written.
    """
    _needs("spatialdata")
    import geopandas
    import pandas as pd
    import spatialdata
    from spatialdata.models import Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    cells = _cells(run, slide)
    folder, told = run.root / "slides" / slide, run.provenance[slide]
    px = float(told["pixel_size_um"])
    regions = read_outlines(folder / "regions.geojson", px)
    labels = open_slide(folder / "labels.ome.tif")
    temporary = path.with_name(f".{path.name}.part")
    try:
        elements: dict[str, Any] = {
            "labels": {
                "labels": Labels2DModel.parse(
                    labels.levels[0][0, 0],
                    dims=("y", "x"),
                    transformations={"um": Scale([px, px], axes=("y", "x"))},
                )
            },
        }
        if len(cells):
            table = _anndata(run, cells)
            table.obs["element"] = pd.Categorical(["labels"] * len(cells))
            table.uns["histoquant"]["slide"] = str(told["slide"].get("path", ""))
            parsed = TableModel.parse(table, region="labels", region_key="element", instance_key="cell_id")
            elements["tables"] = {"cells": parsed}
        if regions:
            shapes = geopandas.GeoDataFrame(
                {"region": [region.name for region in regions]}, geometry=[region.geometry for region in regions]
            )
            elements["shapes"] = {"regions": ShapesModel.parse(shapes, transformations={"um": Identity()})}
        shutil.rmtree(temporary, ignore_errors=True)
        spatialdata.SpatialData(**elements).write(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except OSError as error:
        raise StoreError(f"Cannot write '{path}': {error.strerror or error}.", "Make room.") from error
    finally:
        labels.close()
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _cells(run: Run, slide: str) -> pd.DataFrame:
    identity = run.provenance[slide]["slide"]
    cells = read_cells(run.root / "slides" / slide)
    return cells.assign(slide_id=slide, **{name: str(identity.get(name, "")) for name in IDENTITY})


def _anndata(run: Run, cells: pd.DataFrame) -> Any:
    import anndata
    import pandas as pd

    numeric = [name for name in cells if pd.api.types.is_numeric_dtype(cells[name]) and name not in PLACES]
    measured = [name for name in numeric if not pd.api.types.is_bool_dtype(cells[name])]
    rest = [name for name in cells if name not in measured and name not in PLACES]
    names = cells["slide_id"] + ":" + cells["cell_id"].astype(str)
    obs = cells[["slide_id", *(name for name in rest if name != "slide_id")]].set_index(pd.Index(names.to_numpy()))
    for name in obs:
        if not pd.api.types.is_bool_dtype(obs[name]):
            obs[name] = obs[name].fillna("").astype(str).astype("category")
    obs["cell_id"] = cells["cell_id"].to_numpy("int64")
    thresholds = {slide: told["thresholds"] for slide, told in run.provenance.items()}
    about = {
        "version": str(run.state.get("histoquant", "")),
        "fingerprint": str(run.state.get("fingerprint", "")),
        "recipe": json.dumps(run.state["recipe"]),
        "thresholds": json.dumps(thresholds),
    }
    return anndata.AnnData(
        X=cells[measured].to_numpy("float64"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(measured)),
        obsm={"spatial": cells[["x_um", "y_um"]].to_numpy("float64")},
        uns={"histoquant": about},
    )


def _needs(package: str) -> None:
    if find_spec(package) is None:
        raise MissingExtraError(
            f"The package {package} is not installed.", f"Install it: pip install 'histoquant[{package}]'."
        )
