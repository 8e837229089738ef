"""What the reviews of a run of spines make of its results: corrected densities, a replay of the journals.

Nothing that a run wrote of its own accord is changed. ``review/spines.csv``, ``dendrites.csv`` and ``animals.csv`` hold
corrected numbers in the columns of ``tables/all_spines.csv``, ``all_dendrites.csv`` and ``spines.csv``. Every run and
every report writes them anew. A spine is matched in space, and its region is its dendrite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant.analysis import review
from histoquant.analysis.review import Replayed
from histoquant.analysis.spine_animals import animal_table
from histoquant.analysis.spine_rules import CLASSES, density_per_10um
from histoquant.corrected import elsewhere, summary_of, write_replayed
from histoquant.inputs import restated_inputs
from histoquant.journal import Written, all_edits
from histoquant.model.edit import ADD, SPINE, Edit
from histoquant.model.spine_settings import SpineSettings
from histoquant.model.tables import DENDRITES, DISAGREEMENTS, SPINES, empty, records, shaped
from histoquant.report.run import Run, read_table

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("dendrites", "spines", "animals", "unmatched", "disagreements")
"""What is written into the review folder, each as NAME.csv."""

_MADE_FROM = ("histoquant", "fingerprint", "scorer_sha256", "stated", "sources")


def measured_key(provenance: Mapping[str, Any]) -> str:
    """Return what the tables of a stack were made from, in short: for `Edit.measured`."""
    made_from = [*(provenance[name] for name in _MADE_FROM), (provenance["trace"] or {}).get("sha256")]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class SpineCorrections:
    """What the journals of a run of spines come to.

    Attributes
    ----------
    dendrites, spines, animals : DataFrame
        As the tables of the run, with corrected numbers. Spines that were added have nothing measured.
    unmatched, disagreements : DataFrame
    slides : list of str
        Stacks that were reviewed.
    journals : sequence of Written
    """

    dendrites: pd.DataFrame
    spines: pd.DataFrame
    animals: pd.DataFrame
    unmatched: pd.DataFrame
    disagreements: pd.DataFrame
    slides: list[str]
    journals: Sequence[Written]

    def summary(self) -> dict[str, Any]:
        """Return who reviewed what, and what came of it, for JSON."""
        return summary_of(self.journals, self.slides, self.unmatched, self.disagreements)


def replay_spines(
    spines: pd.DataFrame, dendrites: pd.DataFrame, edits: Sequence[Edit], settings: SpineSettings, *, measured: str
) -> tuple[pd.DataFrame, Replayed]:
    """Apply the edits of one stack to its spines.

    A spine that was added lies on the dendrite it was seen on, and counts where that does. One that was added to
    another analysis, whose dendrites are not these, and that this one did not find, is listed as unmatched.

    Parameters
    ----------
    spines, dendrites : DataFrame
        As `tables.SPINES` and `tables.DENDRITES` list them, of the stack.
    settings : SpineSettings
        Of the run. Classes that its rules do not have are listed as unmatched. Where spines do not count wherever they
        lie on an included dendrite (``from_fork_um``), one that was added is listed so too: how far it is from a branch
        point was not measured.
    measured : str
        `measured_key` of the stack.

    Returns
    -------
    DataFrame
        The corrected spines.
    Replayed
        What was replayed; ``cell_id`` is the ``spine_id``.
    """
    import pandas as pd

    table = spines.rename(columns={"spine_id": "cell_id", "dendrite_id": "region", "head_area_um2": "area_um2"})
    done = review.replay(table, edits, measured=measured, kind=SPINE, classes=CLASSES[settings.rules])
    made_in = {edit.id: edit.measured for edit in edits}
    known = set(spines["spine_id"])
    included = dendrites.set_index("dendrite_id")["included"]
    new = done.touched[(done.touched["action"] == ADD) & ~done.touched["cell_id"].isin(known)]
    other = "the dendrites of this analysis are not those it was added to"
    strange, lost = {}, {}
    for row in records(new):
        if made_in[row.id] != measured or row.region not in included.index:
            strange[row.id], lost[row.id] = int(row.cell_id), other
        elif settings.from_fork_um > 0:
            strange[row.id], lost[row.id] = int(row.cell_id), "how far it is from branch points is not known"
    told = [(edit, lost[edit.id]) for edit in edits if edit.id in lost]
    back = done.cells[~done.cells["cell_id"].isin(list(strange.values()))].rename(
        columns={"cell_id": "spine_id", "region": "dendrite_id", "area_um2": "head_area_um2"}
    )
    added = ~back["spine_id"].isin(known)
    back["included"] = back["included"].where(~added, back["dendrite_id"].map(included)).astype(bool)
    back["slide_id"] = str(dendrites["slide_id"].iloc[0]) if len(dendrites) else ""
    unmatched = pd.concat([done.unmatched, review.listed(told)], ignore_index=True) if told else done.unmatched
    touched = done.touched[~done.touched["cell_id"].isin(list(strange.values()))]
    return shaped(back, SPINES), Replayed(done.cells, touched, unmatched, done.disagreements)


def recounted(dendrites: pd.DataFrame, spines: pd.DataFrame) -> pd.DataFrame:
    """Return the table of dendrites with the spines counted again."""
    counts = {
        "n_spines": spines.groupby(["slide_id", "dendrite_id"]).size(),
        "n_included": spines[spines["included"]].groupby(["slide_id", "dendrite_id"]).size(),
        "n_z_shadow": spines[spines["z_shadow"]].groupby(["slide_id", "dendrite_id"]).size(),
    }
    keys = list(zip(dendrites["slide_id"], dendrites["dendrite_id"], strict=True))
    again = dendrites.assign(**{name: [int(found.get(key, 0)) for key in keys] for name, found in counts.items()})
    again["spines_per_10um"] = [
        density_per_10um(int(n), float(length)) for n, length in zip(again["n_spines"], again["length_um"], strict=True)
    ]
    return again


def correct_spines(run: Run, journals: Sequence[Written]) -> SpineCorrections:
    """Replay journals onto the results of a run of spines; nothing is written.

    Raises
    ------
    InputError
        If a table of the run is missing or damaged.
    """
    import pandas as pd

    edits = all_edits(journals)
    dendrites, spines = (
        read_table(run.root / "tables" / f"all_{name}.csv", schema)
        for name, schema in (("dendrites", DENDRITES), ("spines", SPINES))
    )
    settings = run.recipe.spines
    assert settings is not None  # this is for runs of spines
    parts, reviewed = [], []
    unmatched, disagreements = [elsewhere(edits, run.provenance, SPINE)], [empty(_DISAGREEMENTS)]
    for slide, told in run.provenance.items():
        about = [edit for edit in edits if edit.slide_id == slide]
        own = spines[spines["slide_id"] == slide]
        if about:
            reviewed.append(slide)
            lines = dendrites[dendrites["slide_id"] == slide]
            own, done = replay_spines(own, lines, about, settings, measured=measured_key(told))
            unmatched.append(done.unmatched)
            disagreements.append(done.disagreements.assign(slide_id=slide)[list(_DISAGREEMENTS)])
        parts.append(own)
    corrected = shaped(pd.concat(parts, ignore_index=True), SPINES) if parts else spines
    again = recounted(dendrites, corrected)
    return SpineCorrections(
        again,
        corrected,
        _animals(run, again, corrected),
        pd.concat(unmatched, ignore_index=True),
        pd.concat(disagreements, ignore_index=True),
        reviewed,
        journals,
    )


_DISAGREEMENTS = {"slide_id": "str"} | DISAGREEMENTS


def _animals(run: Run, dendrites: pd.DataFrame, spines: pd.DataFrame) -> pd.DataFrame:
    """Return the animals table with corrected numbers; animals that miss a stack stay without."""
    rows = restated_inputs(run.state).taken
    taken = [(row.slide_id, row.animal, row.group) for row in rows if not row.control]
    lost = {animal for slide, animal, _ in taken if slide not in run.provenance}
    return animal_table(dendrites, spines, stacks=taken, lost=lost)


def write_corrected_spines(root: Path) -> SpineCorrections | None:
    """Write what the journals of a finished run of spines make of its tables, as `write_replayed` does."""
    return write_replayed(root, TABLES, correct_spines)
