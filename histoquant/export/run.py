"""What a finished run is written as, for whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from histoquant import store
from histoquant.errors import InputError, StoreError
from histoquant.export.cells import write_anndata, write_spatialdata
from histoquant.export.geojson import write_cells
from histoquant.export.metadata import arrive_metadata, rembi_metadata
from histoquant.report.run import Run, read_run

KINDS = {
    "geojson": "regions and cells of every slide for QuPath: <slide>.geojson, in pixels",
    "anndata": "all cells in one table: cells.h5ad",
    "spatialdata": "every slide with labels, regions and cells: <slide>.zarr, in um",
    "rembi": "how specimens were made, imaged and analysed: rembi.json",
    "arrive": "the ARRIVE 2.0 Essential 10: arrive.json",
}
"""What `export_run` writes."""

OF_CELLS = ("geojson", "anndata", "spatialdata")


INSTEAD = {
    "infarct": "Its outlines are in slides/<id>/outlines.geojson, which QuPath opens.",
    "spines": "Its traces are in slides/<id>/traces, in SWC, which neuron viewers open.",
}
"""What runs of no cells have in place of them."""


def export_run(
    root: Path, kind: str, out: Path | None = None, *, progress: Callable[[int, int, str], None] = lambda *_: None
) -> list[Path]:
    """Write a finished run in another form.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    out : Path, optional
        Folder to write to; ``export`` in the run folder when not given. Files of the same names are replaced.
    progress : callable
        Told how many slides are done, of how many, and which is next.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    InputError
        If the kind is not known, or the folder holds no finished run, or none of cells where cells are asked for.
    MissingExtraError
        If the package that writes it is not installed.
    StoreError
        If it cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"There is no export '{kind}'.", f"Choose one of {', '.join(KINDS)}.")
    run = read_run(root)
    if kind in OF_CELLS and run.recipe.kind != "cells":
        raise InputError(f"The run in '{root}' is of {run.recipe.kind}: it has no cells.", INSTEAD[run.recipe.kind])
    folder = root / "export" if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot make '{folder}': {error.strerror or error}.", "Name another folder.") from error
    if kind in ("rembi", "arrive"):
        path = folder / f"{kind}.json"
        store.write_json(path, rembi_metadata(run) if kind == "rembi" else arrive_metadata(run))
        return [path]
    if kind == "anndata":
        return [write_anndata(run, folder / "cells.h5ad")]
    return _by_slide(run, kind, folder, progress)


def _by_slide(run: Run, kind: str, folder: Path, progress: Callable[[int, int, str], None]) -> list[Path]:
    write, ending = (write_cells, "geojson") if kind == "geojson" else (write_spatialdata, "zarr")
    written = []
    for number, slide in enumerate(run.provenance):
        progress(number, len(run.provenance), slide)
        written.append(write(run, slide, folder / f"{slide}.{ending}"))
    return written
