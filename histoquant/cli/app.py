"""What all commands share: the application, the options that mean the same everywhere, and how errors leave."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from histoquant import __version__
from histoquant.errors import Faults, HistoquantError

app = typer.Typer(
    name="histoquant",
    help="From a folder of microscope slides to counts per region, section, animal and group.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The base of every error about the command's own words. Typer brings click along under a name that changed between its
# versions; this is the same class in all of them.
_CommandError: Any = typer.BadParameter.__mro__[2]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Log = Annotated[Path | None, typer.Option("--log", help="Also write what is printed to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Recipe = Annotated[Path, typer.Option("--recipe", "-r", help="The recipe (TOML).")]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, help="Processes; as many as there are cores when not given.")
]
Cluster = Annotated[
    Path | None, typer.Option("--cluster", help="Where to run (TOML), as those in workflows/clusters; this machine.")
]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="Allow relative paths in the sheet that leave its folder.")
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"histoquant {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line; errors of the user's input are one sentence each, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except HistoquantError as error:
        for fault in error.faults if isinstance(error, Faults) else (error,):
            print(f"histoquant: {fault}", file=sys.stderr)
        code = 2
    except typer.Abort:  # what some versions of typer make of Ctrl-C; others return 130
        code = 130
    except _CommandError as error:
        error.show()
        code = 2
    if code == 130:
        print("histoquant: interrupted; what is finished is kept, the same command goes on.", file=sys.stderr)
    sys.exit(code or 0)
