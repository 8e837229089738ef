"""The command of one stack of dendrites: spines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Json, Quiet, app
from histoquant.console import Printer


@app.command(epilog="Example:  histoquant spines cell1.tif --out cell1 --pixel-size-um 0.5 0.1 0.1 --trace cell1.swc")
def spines(
    stack: Annotated[
        Path, typer.Argument(help="Stack (z, y, x) or picture of dendrites, of any format histoquant reads.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables, traces and pictures.")],
    pixel_size_um: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--pixel-size-um", help="Depth, height and width of a voxel, when the file does not say."),
    ] = None,
    channel: Annotated[str | None, typer.Option("--channel", "-c", help="Name or number; the recipe's.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", "-t", help="A person's trace: SWC or CSV in um, GeoJSON or ImageJ line in pixels."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "-r", help="Recipe with [spines]; spines_confocal, or spines_golgi for RGB."),
    ] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Trace the dendrites of one stack and find the spines on them: lengths in 3-D, spines per 10 um, classes."""
    from histoquant.spine_stack import analyse_stack

    tell = Printer(quiet or json_, None)
    found = analyse_stack(
        stack, out, voxel_um=pixel_size_um, channel=channel, traced=trace, recipe=recipe, progress=tell
    )
    if json_:
        print(json.dumps(found, indent=2))
        return
    for note in (*found["flags"], *found["notes"]):
        tell(f"note: {note}")
    density = "" if found["spines_per_10um"] is None else f", {found['spines_per_10um']:.2f} per 10 um"
    tell(
        f"{found['n_dendrites']} dendrite(s), {found['length_um']:,.1f} um, {found['n_spines']} spines{density}: "
        f"{out / 'overview.png'}"
    )
