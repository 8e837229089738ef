"""The command of pictures of brain slices: infarct."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Json, Log, Outside, Quiet, Recipe, app
from histoquant.console import Printer


@app.command(
    epilog="Example:  histoquant infarct study.csv --recipe ttc.toml --out infarcts\n\n"
    "After correcting slides/R1/outlines.geojson, name it in the sheet's column regions and run the same command again."
)
def infarct(
    study: Annotated[Path, typer.Argument(help="The sample sheet (CSV); one row per picture.")],
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to make, or to fill again.")],
    allow_outside: Outside = False,
    quiet: Quiet = False,
    log: Log = None,
    json_: Json = False,
) -> None:
    """Measure infarct volumes in pictures of TTC slices, or from drawn outlines. Exit code 0, 1 some failed, 2, 130."""
    from histoquant.infarct import run_infarct
    from histoquant.inputs import KINDS, load

    tell = Printer(quiet or json_, log)
    checked = load(study, recipe, allow_outside=allow_outside, kinds=KINDS)
    with tell.progress("infarct") as show:
        outcome = run_infarct(checked, out, command=sys.argv, progress=show)
    if json_:
        failures = [vars(failure) for failure in outcome.failures]
        print(json.dumps({"out": str(out), "failures": failures}, indent=2))
    for failure in outcome.failures:
        print(f"{failure.slide}: {failure.error} {failure.remedy}", file=sys.stderr)
    tell(f"{outcome.n_slides - len(outcome.failures)} of {outcome.n_slides} picture(s) measured.")
    if len(outcome.failures) < outcome.n_slides:
        tell(f"Report:   {out / 'report.html'}")
        tell(f"Volumes:  {out / 'tables' / 'infarct.csv'}")
        tell(f"Pictures: {out / 'slides' / '*' / 'overview.png'}")
    raise typer.Exit(1 if outcome.failures else 0)
