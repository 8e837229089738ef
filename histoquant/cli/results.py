"""The commands of results: status, stats, report of a run folder; fractionator; and what is installed: plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Json, Quiet, app
from histoquant.console import Printer
from histoquant.errors import InputError


@app.command(
    epilog="Example:  histoquant status results\n\nEvery minute, for a script:  histoquant status results --json"
)
def status(
    folder: Annotated[Path, typer.Argument(help="Folder given to run as --out.")],
    json_: Json = False,
) -> None:
    """Say how a run stands, while it goes on and after it ended or died. Writes nothing. Exit code 0 or 2."""
    from histoquant.assays import assay_folders, is_joint
    from histoquant.status import lines, read_status

    if is_joint(folder):
        told = {name: read_status(each) for name, each in assay_folders(folder).items() if each.is_dir()}
        if json_:
            print(json.dumps({"assays": {name: found.as_dict() for name, found in told.items()}}, indent=2))
        for name, found in () if json_ else told.items():
            print("\n".join([f"== {name}", *lines(found)]))
        return
    found = read_status(folder)
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    for line in lines(found):
        print(line)


@app.command(
    epilog="Example:  histoquant stats results\n\nWith other families or another test:  histoquant stats results "
    "--recipe recipe.toml\n\nAgainst behaviour or ELISA:  histoquant stats results --covariates scores.csv"
)
def stats(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", "-r", help="Take [statistics] and [count.stereology] from here; the run's own if not."
        ),
    ] = None,
    covariates: Annotated[
        Path | None, typer.Option("--covariates", "-c", help="CSV: animal, then one column of numbers per outcome.")
    ] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Compare groups by animal: effects with intervals, then tests. Writes tables and the report. Exit code 0 or 2."""
    from histoquant.assays import compare_assays, is_joint
    from histoquant.batch import write_report
    from histoquant.inference import as_json, lines, write_statistics
    from histoquant.inputs import KINDS, read_recipe

    if is_joint(folder):
        if recipe is not None:
            raise InputError("--recipe is for one assay.", f"Give the folder of one, such as {folder / 'assays'}/NAME.")
        found, report = compare_assays(folder, outcomes=covariates), folder / "report.html"
    else:
        rules = None if recipe is None else read_recipe(recipe, kinds=KINDS)
        found = write_statistics(folder, recipe=rules, outcomes=covariates)
        report = write_report(folder)
    if json_:
        print(as_json(found))
        return
    tell = Printer(quiet, None)
    for line in lines(found):
        tell(line)
    tell(f"Table:    {folder / 'tables' / 'statistics.csv'}")
    tell(f"Report:   {report}")


@app.command(
    epilog="Example:  histoquant fractionator points.csv --sites sites.csv --frame-um 50 50 --step-um 200 200 "
    "--height-um 15 --guard-um 3 3 --section-interval 6 --hemispheres 2"
)
def fractionator(
    points: Annotated[
        Path, typer.Argument(help="CSV of detections: animal, section, z_um (top of the object), y_um, x_um.")
    ],
    sites: Annotated[
        Path, typer.Option("--sites", help="CSV of frames: animal, section, y_um, x_um (top left), thickness_um.")
    ],
    frame_um: Annotated[tuple[float, float], typer.Option("--frame-um", help="Counting frame, Y X.")],
    step_um: Annotated[tuple[float, float], typer.Option("--step-um", help="From frame to frame, Y X.")],
    height_um: Annotated[float, typer.Option("--height-um", help="Counted depth.")],
    section_interval: Annotated[int, typer.Option("--section-interval", min=1, help="6 for every 6th section.")],
    hemispheres: Annotated[int, typer.Option("--hemispheres", min=1, max=2, help="Counted; 1 doubles the totals.")],
    guard_um: Annotated[tuple[float, float], typer.Option("--guard-um", help="Guard zones, top and bottom.")] = (0, 0),
    plain_mean: Annotated[
        bool, typer.Option("--plain-mean", help="Mean thickness of sites; by default weighted by their counts.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table here (CSV).")] = None,
    json_: Json = False,
) -> None:
    """Total number of objects per animal from detections in stacks, by the optical fractionator. Exit code 0 or 2."""
    from histoquant.analysis.stereology import Disector
    from histoquant.fractionator import fractionate_files
    from histoquant.store import write_csv

    table = fractionate_files(
        points,
        sites,
        Disector(frame_um, step_um, height_um, *guard_um),
        section_interval=section_interval,
        hemispheres=hemispheres,
        weighted=not plain_mean,
    )
    if out is not None:
        write_csv(out, table, make_folder=False)
    print(table.to_json(orient="records", indent=2) if json_ else table.to_string(index=False, float_format="%.4g"))


@app.command(epilog="Example:  histoquant report results")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    quiet: Quiet = False,
) -> None:
    """Write the HTML report of a finished run again."""
    from histoquant.assays import is_joint, write_reports
    from histoquant.batch import write_report

    Printer(quiet, None)(f"Report:   {write_reports(folder) if is_joint(folder) else write_report(folder)}")


@app.command(epilog="Example:  histoquant export results --to geojson --out for_qupath")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", "-t", help="geojson, anndata, spatialdata, rembi or arrive.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; FOLDER/export.")] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Write a run for QuPath, scverse or a repository: cells and regions, or what is known of the study."""
    from histoquant.export import export_run
    from histoquant.runstate import Progress

    tell = Printer(quiet or json_, None)
    with tell.progress("export") as show:
        written = export_run(folder, to, out, progress=lambda done, of, slide: show(Progress(done, of, slide)))
    if json_:
        print(json.dumps({"files": [str(path) for path in written]}, indent=2))
    for path in written:
        tell(str(path))


@app.command(epilog="Example:  histoquant ratio bax_run bcl2_run --endpoint h_score --out bax_bcl2.csv")
def ratio(
    numerator: Annotated[Path, typer.Argument(help="Folder of a finished run of one marker, such as Bax.")],
    denominator: Annotated[Path, typer.Argument(help="Folder of a finished run of another, such as Bcl-2.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write (CSV).")],
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", "-e", help="fraction_positive, density_per_mm2, percent_area, h_score or mean_od."),
    ] = "fraction_positive",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Divide one marker by another, animal by animal."""
    from histoquant.ratio import write_ratio

    table = write_ratio(numerator, denominator, endpoint, out)
    if json_:
        print(table.to_json(orient="records", indent=2))
    tell = Printer(quiet or json_, None)
    for group, own in table.groupby("group", sort=False):
        values = own["ratio"].dropna()
        names = f"{own['numerator'].iloc[0]} / {own['denominator'].iloc[0]}"
        tell(f"{group}: {names}, mean {values.mean():.3g} (n = {len(values)})")
    tell(f"Ratios:   {out}")


@app.command(epilog="Example:  histoquant plugins")
def plugins(json_: Json = False) -> None:
    """List readers, segmenters and positivity rules, what is not installed and what is broken. Exit code 0 or 2."""
    from histoquant.registry import list_plugins

    found = list_plugins(load=True)
    if json_:
        print(json.dumps([vars(plugin) for plugin in found], indent=2))
    for plugin in () if json_ else found:
        state = f"not installed: {plugin.missing}" if plugin.missing else "ok"
        state = f"BROKEN: {plugin.error}" if plugin.error else state
        print(f"{plugin.kind:<10} {plugin.name:<14} {plugin.distribution} {plugin.version}  {state}")
    raise typer.Exit(2 if any(plugin.error for plugin in found) else 0)
