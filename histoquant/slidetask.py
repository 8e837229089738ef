"""One slide of a study, measured by a process of its own: what a job array or a workflow manager runs.

Many such processes may work in one run folder, on different slides. What they share is files that are written whole;
the run of the whole study that follows finds every slide measured, and makes calls, counts and tables of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from histoquant.errors import InputError
from histoquant.inputs import Checked
from histoquant.means import Means, analysed
from histoquant.model.study import Study
from histoquant.runstate import Failure, Progress, RunState
from histoquant.store import TASK, RunFolder


def measure_slide(
    checked: Checked,
    slide_id: str,
    out: Path,
    means: Means,
    *,
    command: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Failure]:
    """Measure one slide of a study into a run folder, unless that was done before.

    Returns
    -------
    What failed: nothing, or the slide.

    Raises
    ------
    InputError
        If the study has no such slide.
    StoreError
        If the folder cannot be used, or another run works in it or on the slide; what is finished is kept.
    """
    rows = tuple(row for row in checked.taken if row.slide_id == slide_id)
    if not rows:
        known = [row.slide_id for row in checked.taken]
        few = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        raise InputError(f"The study has no slide '{slide_id}' to analyse.", f"Its slides are {few}.")
    folder = RunFolder(out)
    with folder.slide_held(slide_id):
        if not (out / "run.json").exists():
            RunState(checked, folder, command).write("by slide")  # which slides there are, for `status`
        only = replace(checked, study=Study(rows, checked.study.folder), waiting={})
        state = RunState(only, folder, command, path=folder.slide(slide_id) / TASK)
        with state.under_way():
            failures, _ = analysed(state, means, progress, measure_only=True)
        state.write("failed" if failures else "done")
    return failures
