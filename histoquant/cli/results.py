"""The commands of a run folder: status, stats, report; and what is installed: plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Json, Quiet, app
from histoquant.console import Printer


@app.command(
    epilog="Example:  histoquant status results\n\nEvery minute, for a script:  histoquant status results --json"
)
def status(
    folder: Annotated[Path, typer.Argument(help="Folder given to run as --out.")],
    json_: Json = False,
) -> None:
    """Say how a run stands, while it goes on and after it ended or died. Writes nothing. Exit code 0 or 2."""
    from histoquant.status import lines, read_status

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
    from histoquant.batch import write_report
    from histoquant.inference import as_json, lines, write_statistics
    from histoquant.inputs import read_recipe

    found = write_statistics(folder, recipe=None if recipe is None else read_recipe(recipe), outcomes=covariates)
    report = write_report(folder)
    if json_:
        print(as_json(found))
        return
    tell = Printer(quiet, None)
    for line in lines(found):
        tell(line)
    tell(f"Table:    {folder / 'tables' / 'statistics.csv'}")
    tell(f"Report:   {report}")


@app.command(epilog="Example:  histoquant report results")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    quiet: Quiet = False,
) -> None:
    """Write the HTML report of a finished run again."""
    from histoquant.batch import write_report

    Printer(quiet, None)(f"Report:   {write_report(folder)}")


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
