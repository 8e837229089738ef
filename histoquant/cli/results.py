"""The commands of a run folder: status, report; and what is installed: plugins."""

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


@app.command(epilog="Example:  histoquant report results")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    quiet: Quiet = False,
) -> None:
    """Write the HTML report of a finished run again."""
    from histoquant.batch import write_report

    Printer(quiet, None)(f"Report:   {write_report(folder)}")


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
