"""The commands that put people beside a run: review, agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Json, Quiet, app
from histoquant.console import Printer
from histoquant.errors import MissingExtraError


@app.command(
    epilog="Examples:  histoquant review results          (the window asks for your name)\n\n"
    "Begin at once:  histoquant review results --who Anna\n\n"
    "With names shown, every edit marked as not blind:  histoquant review results --who Anna --not-blind"
)
def review(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    who: Annotated[
        str, typer.Option("--who", help="The reviewer, who has a journal of their own; the window asks when not given.")
    ] = "",
    not_blind: Annotated[
        bool, typer.Option("--not-blind", help="Show animals, groups and slide names; every edit is marked so.")
    ] = False,
) -> None:
    """Open a run in napari: look at its cells, correct them, blind to animal and group."""
    from histoquant.report.run import read_run

    read_run(folder)  # what is wrong with the folder is said before a window opens
    try:
        from napari_histoquant.launch import review as open_review
    except MissingExtraError:
        raise  # says itself what is missing
    except ImportError as error:
        raise MissingExtraError(
            f"Reviewing needs histoquant's napari plug-in ({error}).", "pip install 'histoquant[gui]'"
        ) from error
    open_review(folder, who, blinded=not not_blind)


@app.command(
    epilog="Example:  histoquant agree results --marks anna.csv --marks ben.csv --out agreement\n\n"
    "Nuclei instead of calls, in one region:  histoquant agree results --marks anna.zip --marker dapi --region SVZ\n\n"
    "What reviewers of the run decided:  histoquant agree results --journals --json"
)
def agree(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    marks: Annotated[
        list[Path] | None,
        typer.Option(
            "--marks",
            "-m",
            help="CSV (slide, y_um, x_um or y_px, x_px; marker, rater), ImageJ .roi or .zip, GeoJSON points, or a "
            "folder of one rater's; repeat for further raters.",
        ),
    ] = None,
    journals: Annotated[bool, typer.Option("--journals", help="Take the run's reviewers as raters too.")] = False,
    marker: Annotated[
        list[str] | None, typer.Option("--marker", help="What the marks mark: a marker, or the counterstain.")
    ] = None,
    region: Annotated[list[str] | None, typer.Option("--region", help="Compare within this region only.")] = None,
    tolerance_um: Annotated[
        float | None, typer.Option("--tolerance-um", help="Largest distance of a match; 4.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables and plots; FOLDER/agreement.")
    ] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Compare a run with marks of people: F1, ICC, Bland-Altman; and the raters with each other."""
    from histoquant.agree import agree, report_lines, write_agreement
    from histoquant.analysis.agreement import TOLERANCE_UM

    found = agree(
        folder,
        marks or [],
        journals=journals,
        markers=marker or (),
        regions=region or (),
        tolerance_um=TOLERANCE_UM if tolerance_um is None else tolerance_um,
    )
    written = write_agreement(found, out or folder / "agreement")
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    tell = Printer(quiet, None)
    for line in report_lines(found):
        tell(line)
    tell(f"Written:  {', '.join(str(path) for path in written)}")
