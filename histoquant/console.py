"""What the command line prints: lines to the terminal and to a log file, and progress with the time left."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from histoquant.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from histoquant.batch import Progress


class Printer:
    """Prints lines to the terminal and to a log file."""

    def __init__(self, quiet: bool, log: Path | None) -> None:
        self.quiet, self.log = quiet, log
        if log is not None:
            self._append("")

    def __call__(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, flush=True)  # into a file or pipe too: a watch lasts for days
        if self.log is not None:
            self._append(text + "\n")

    def _append(self, text: str) -> None:
        assert self.log is not None
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"Cannot write the log '{self.log}': {error.strerror}.", "Name another.") from error

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[Progress], None]]:
        """Give a callback that shows a bar with the time left on a terminal, and plain lines otherwise."""
        if self.quiet or not sys.stderr.isatty():
            yield self._line
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=None)

            def show(step: Progress) -> None:
                bar.update(task, completed=step.done, total=step.total, description=f"{title}  {step.message[:60]}")

            yield show

    def _line(self, step: Progress) -> None:
        self(f"[{step.done}/{step.total}] {step.message}")
