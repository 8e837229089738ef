"""What the reviews of a run of infarcts make of its results: corrected volumes, a replay of the journals.

Nothing that a run wrote of its own accord is changed. ``review/infarct_slices.csv`` and ``infarct.csv`` hold corrected
numbers in the columns of ``tables/infarct_slices.csv`` and ``infarct.csv``. Every run and every report writes them
anew. What is reviewed is the lesion of each slice, which has one even where nothing was found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from histoquant import store
from histoquant.analysis import review
from histoquant.analysis.infarct_animals import animal_table
from histoquant.analysis.review import CLASS, Replayed
from histoquant.analysis.slice_outlines import OutlinedSlice, slices_of
from histoquant.analysis.ttc import Side
from histoquant.corrected import elsewhere, summary_of, write_replayed
from histoquant.errors import FormatError, InputError, RegionError
from histoquant.inputs import restated_inputs
from histoquant.journal import Written, all_edits
from histoquant.model.edit import CALL, DELETE, LESION, Edit
from histoquant.model.region_set import Region
from histoquant.model.tables import DISAGREEMENTS, INFARCT_SLICES, empty, shaped
from histoquant.readers.outlines import read_outlines
from histoquant.report.run import Run, read_table

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("infarct_slices", "infarct", "unmatched", "disagreements")
"""What is written into the review folder, each as NAME.csv."""

FOUND, REDRAWN = "found", "redrawn"
"""Classes of a lesion: as the run has it, or as a person drew it."""

_DISAGREEMENTS = {"slide_id": "str"} | DISAGREEMENTS
_AGAIN = "Measure the study again with the same command."


@dataclass(frozen=True, eq=False)
class PictureResults:
    """What a run folder holds of a picture of slices, for a review.

    Attributes
    ----------
    slide_id : str
    slices : list of OutlinedSlice
        As the run left them.
    side : "left" or "right"
    measured : str
        Key of what the outlines were made from, for `Edit.measured`.
    pixel_size_um : float
    """

    slide_id: str
    slices: list[OutlinedSlice]
    side: Side
    measured: str
    pixel_size_um: float

    @property
    def regions(self) -> list[Region]:
        """The outlines of slices, hemispheres and midlines."""
        every = [region for one in self.slices for region in one.regions()]
        return [region for region in every if not region.name.endswith("lesion")]

    @cached_property
    def objects(self) -> pd.DataFrame:
        """The slices as objects of a review: a place inside each, its size, and the class of its lesion."""
        import pandas as pd

        points = [one.tissue.representative_point() for one in self.slices]
        return pd.DataFrame(
            {
                "cell_id": [one.number for one in self.slices],
                "region": [f"slice {one.number}" for one in self.slices],
                "y_um": [point.y for point in points],
                "x_um": [point.x for point in points],
                "area_um2": [one.tissue.area for one in self.slices],
                "origin": "auto",
                CLASS: FOUND,
            }
        )

    def replay(self, edits: Iterable[Edit], *, kind: str = LESION) -> Replayed:
        """Return which slice each edit is about; edits of other pictures are left out."""
        mine = [edit for edit in edits if edit.slide_id == self.slide_id]
        return review.replay(self.objects, mine, measured=self.measured, kind=kind)

    def corrected(self, edits: Sequence[Edit]) -> tuple[list[OutlinedSlice], Replayed]:
        """Return the slices with their lesions as the edits leave them; of several the last one holds."""
        done = self.replay(edits)
        by_id = {edit.id: edit for edit in edits}
        lesions: dict[int, Any] = {}
        for made, number in zip(done.touched["id"], done.touched["cell_id"], strict=True):
            lesions[int(number)] = lesion_after(by_id[made], lesions.get(int(number)))
        return [
            one if lesions.get(one.number) is None else redrawn(one, lesions[one.number]) for one in self.slices
        ], done


def lesion_after(edit: Edit, before: Any | None) -> Any | None:
    """Return a lesion after an edit, None standing for what the run found."""
    if edit.action == DELETE:
        return shapely.Polygon()
    if edit.action == CALL:
        return shapely.from_wkt(edit.outline) if edit.new == REDRAWN and edit.outline else None
    return before


def redrawn(one: OutlinedSlice, lesion: Any) -> OutlinedSlice:
    """Return a slice with another lesion; what lies beside the slice is cut off."""
    return replace(one, lesion=shapely.intersection(lesion, one.tissue))


def read_picture(root: Path, slide_id: str) -> PictureResults:
    """Read what a run folder holds of a picture.

    Raises
    ------
    InputError
        If the folder does not hold it, or it is damaged.
    """
    folder = store.RunFolder(root).slide(slide_id)
    table = read_table(folder / "slices.csv", INFARCT_SLICES)
    try:
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        px, side = float(told["pixel_size_um"]), told["side"]
        flags = {
            int(n): str(text).split("; ") for n, text in zip(table["slice"], table["flags"].fillna(""), strict=True)
        }
        slices = slices_of(read_outlines(folder / "outlines.geojson", px), flags)
        return PictureResults(slide_id, slices, side, measured_key(told), px)
    except (RegionError, FormatError) as error:
        raise InputError(f"Slide '{slide_id}' in '{root}': {error.message}", error.remedy) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot use the results of slide '{slide_id}' in '{root}': {error!r}.", _AGAIN) from error


def measured_key(provenance: Mapping[str, Any]) -> str:
    """Return what the outlines of a picture were made from, in short: for `Edit.measured`."""
    made_from = [provenance[name] for name in ("histoquant", "recipe", "sources", "regions_sha256", "side")]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class InfarctCorrections:
    """What the journals of a run of infarcts come to.

    Attributes
    ----------
    infarct_slices, infarct : DataFrame
        As the tables of the run, with corrected numbers.
    unmatched, disagreements : DataFrame
    slides : list of str
        Pictures that were reviewed.
    journals : sequence of Written
    """

    infarct_slices: pd.DataFrame
    infarct: pd.DataFrame
    unmatched: pd.DataFrame
    disagreements: pd.DataFrame
    slides: list[str]
    journals: Sequence[Written]

    def summary(self) -> dict[str, Any]:
        """Return who reviewed what, and what came of it, for JSON."""
        return summary_of(self.journals, self.slides, self.unmatched, self.disagreements)


def correct_infarct(run: Run, journals: Sequence[Written]) -> InfarctCorrections:
    """Replay journals onto the results of a run of infarcts; nothing is written.

    Raises
    ------
    InputError
        If a table or an outline of the run is missing or damaged.
    """
    import pandas as pd

    edits = all_edits(journals)
    automatic = read_table(run.root / "tables" / "infarct_slices.csv", INFARCT_SLICES)
    parts, reviewed = [], []
    unmatched, disagreements = [elsewhere(edits, run.provenance, LESION)], [empty(_DISAGREEMENTS)]
    for slide, rows in automatic.groupby("slide_id", sort=False):
        about = [edit for edit in edits if edit.slide_id == slide and edit.kind == LESION]
        if about:
            reviewed.append(str(slide))
            found = read_picture(run.root, str(slide))
            slices, done = found.corrected(about)
            before = {one.number: one for one in found.slices}
            again = {one.number: one.as_row(found.side) for one in slices if one is not before[one.number]}
            rows = rows.copy()
            for index, number in zip(rows.index, rows["slice"], strict=True):
                for name, value in again.get(int(number), {}).items():
                    rows.loc[index, name] = value
            unmatched.append(done.unmatched)
            disagreements.append(done.disagreements.assign(slide_id=slide)[list(_DISAGREEMENTS)])
        parts.append(rows)
    slices_after = shaped(pd.concat(parts), INFARCT_SLICES) if parts else automatic
    return InfarctCorrections(
        slices_after,
        _animals(run, slices_after),
        pd.concat(unmatched, ignore_index=True),
        pd.concat(disagreements, ignore_index=True),
        reviewed,
        journals,
    )


def _animals(run: Run, slices: pd.DataFrame) -> pd.DataFrame:
    """Return the animals table with corrected numbers; animals that miss a picture stay without."""
    assert run.recipe.infarct is not None
    rows = restated_inputs(run.state).taken
    lost = {row.animal for row in rows if row.slide_id not in run.provenance}
    return animal_table(slices, run.recipe.infarct, lost, {row.animal: row.group for row in rows if not row.control})


def write_corrected_infarct(root: Path) -> InfarctCorrections | None:
    """Write what the journals of a finished run of infarcts make of its tables, as `write_replayed` does."""
    return write_replayed(root, TABLES, correct_infarct)
