"""What a run folder holds of a stack of dendrites, for a review of its spines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant import store
from histoquant.analysis.review import Replayed
from histoquant.corrected_spines import measured_key, replay_spines
from histoquant.errors import InputError
from histoquant.model.edit import SPINE, Edit
from histoquant.model.region_set import Region
from histoquant.model.spine_settings import SpineSettings
from histoquant.model.tables import DENDRITES, SPINES
from histoquant.readers.traces import read_traces
from histoquant.report.run import read_table

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StackResults:
    """What a run found in one stack; all places are index x voxel, as the tables have them.

    Attributes
    ----------
    slide_id : str
    spines, dendrites : DataFrame
        As `tables.SPINES` and `tables.DENDRITES` list them.
    paths : dendrite_id -> (n, 3) float
        z, y, x in um along each dendrite.
    measured : str
        Key of what the tables were made from, for `Edit.measured`.
    voxel_um : (z, y, x)
    settings : SpineSettings
    provenance : dict
    """

    slide_id: str
    spines: pd.DataFrame
    dendrites: pd.DataFrame
    paths: Mapping[str, NDArray[np.float64]]
    measured: str
    voxel_um: tuple[float, float, float]
    settings: SpineSettings
    provenance: Mapping[str, Any]

    @property
    def pixel_size_um(self) -> float:
        """Width of a voxel."""
        return self.voxel_um[2]

    @property
    def regions(self) -> list[Region]:
        """The dendrites as lines seen from above."""
        return [Region(name, shapely.LineString(path[:, 2:0:-1])) for name, path in self.paths.items()]

    def replay(self, edits: Iterable[Edit], *, kind: str = SPINE) -> Replayed:
        """Return what the edits of a journal make of the spines; those of other stacks are left out."""
        mine = [edit for edit in edits if edit.slide_id == self.slide_id and edit.kind == kind]
        return replay_spines(self.spines, self.dendrites, mine, self.settings, measured=self.measured)[1]

    def dendrite_at(self, y_um: float, x_um: float) -> tuple[str, float]:
        """Return the dendrite nearest to a place seen from above, and its depth there in um.

        Raises
        ------
        InputError
            If none is as near as a spine's head can be.
        """
        here = shapely.Point(x_um, y_um)
        lines = {name: shapely.LineString(path[:, ::-1]) for name, path in self.paths.items()}
        away = {name: line.distance(here) for name, line in lines.items()}
        if not away or min(away.values()) > self.settings.reach_um:
            raise InputError(
                f"No dendrite lies within {self.settings.reach_um:g} um of that place.",
                "A spine is counted on a dendrite; point nearer to one.",
            )
        name = min(away, key=lambda each: away[each])
        nearest = lines[name].interpolate(lines[name].project(here))
        return name, float(nearest.z)


def read_stack_results(root: Path, slide_id: str, settings: SpineSettings) -> StackResults:
    """Read what a run folder holds of a stack.

    Raises
    ------
    InputError
        If the folder does not hold it, or was written before stacks kept their dendrites.
    """
    folder = store.RunFolder(root).slide(slide_id)
    lines = folder / "traces" / "dendrites.csv"
    if not lines.is_file():
        raise InputError(
            f"The run in '{root}' holds no dendrites of stack '{slide_id}'.", "Run the study again with --fresh."
        )
    try:
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        voxel = (float(told["voxel_um"][0]), float(told["voxel_um"][1]), float(told["voxel_um"][2]))
        key = measured_key(told)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"Cannot use the results of stack '{slide_id}' in '{root}': {error!r}.", "Run the study again with --fresh."
        ) from error
    spines, dendrites = (
        read_table(folder / f"{name}.csv", schema) for name, schema in (("spines", SPINES), ("dendrites", DENDRITES))
    )
    paths = {branch.name: branch.path for branch in read_traces(lines, voxel[1])} if len(dendrites) else {}
    return StackResults(slide_id, spines, dendrites, paths, key, voxel, settings, told)
