"""The command for what is left in a queue: cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoquant.cli.app import Quiet, app
from histoquant.console import Printer
from histoquant.errors import InputError


@app.command(epilog="Example:  histoquant cancel results")
def cancel(
    root: Annotated[Path, typer.Argument(help="The run folder.")],
    quiet: Quiet = False,
) -> None:
    """End the jobs that a run with --cluster left in the queue when its driver was killed."""
    from histoquant.cluster.queues import cancel_jobs, job_name
    from histoquant.store import RunFolder

    folder = RunFolder(root)
    kind = folder.state().get("workers", {}).get("kind")
    if kind is None:
        raise InputError(f"'{root}' holds no run with jobs in a queue.", "Name the folder given to run as --out.")
    holder = folder.holder()
    if holder is not None:
        raise InputError(
            f"A run works in '{root}': {holder}.", "Stop it with Ctrl-C there (kill -INT); it ends its jobs itself."
        )
    number = cancel_jobs(kind, job_name(root))
    Printer(quiet, None)(f"{number} job(s) cancelled.")
