"""What the reviews of a run make of its results: the corrected tables, a replay of the journals.

Nothing that a run wrote of its own accord is changed. ``review/cells/<slide_id>.parquet``, ``review/regions.csv``,
``animals.csv`` and ``groups.csv`` hold corrected numbers in the columns of the tables they stand beside; in
``tables/regions.csv`` automatic and corrected counts stand side by side. Every run and every report writes them anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from histoquant import __version__, store
from histoquant.analysis import review
from histoquant.analysis.counting import count_animals, count_groups, recount, side_by_side
from histoquant.analysis.review import Replayed
from histoquant.errors import FormatError, InputError
from histoquant.journal import FOLDER, Written, all_edits, read_journals
from histoquant.model.edit import CELL, Edit, in_effect
from histoquant.model.region_set import RegionSet
from histoquant.model.tables import CORRECTED, DISAGREEMENTS, empty
from histoquant.readers.outlines import read_outlines
from histoquant.report.run import Run, read_run, read_text

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

TABLES = ("regions", "animals", "groups", "unmatched", "disagreements")
"""What is written into the review folder beside the cells, each as NAME.csv."""

RATES = ("n_cells", "n_positive", "fraction_positive", "density_per_mm2")


@dataclass(frozen=True, eq=False)
class SlideResults:
    """What a run folder holds of a slide, for a review.

    Attributes
    ----------
    slide_id : str
    cells : DataFrame
        ``cells.parquet``, as the run left it.
    measured : str
        Key of the measured table, for `Edit.measured`.
    pixel_size_um : float
    shape_px : (int, int)
        Height and width of the slide.
    regions : RegionSet
        Its regions, those derived from others too.
    provenance : dict
    """

    slide_id: str
    cells: pd.DataFrame
    measured: str
    pixel_size_um: float
    shape_px: tuple[int, int]
    regions: RegionSet
    provenance: dict[str, Any]

    def replay(self, edits: Iterable[Edit], *, kind: str = CELL) -> Replayed:
        """Return what the edits of a journal make of the cells; those of other slides are left out."""
        mine = [edit for edit in edits if edit.slide_id == self.slide_id]
        return review.replay(
            self.cells,
            mine,
            measured=self.measured,
            place=self.place,
            pixel_size_um=self.pixel_size_um,
            kind=kind,
        )

    def place(self, points_yx_um: NDArray[Any]) -> list[str]:
        """Return the region of each point (y, x) in um."""
        return [str(name) for name in self.regions.assign(points_yx_um)]


def read_slide(root: Path, slide_id: str) -> SlideResults:
    """Read what a run folder holds of a slide.

    Raises
    ------
    InputError
        If the folder does not hold it, or was written before slides kept their regions.
    """
    import pandas as pd

    folder = store.RunFolder(root).slide(slide_id)
    try:
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        px, (height, width) = float(told["pixel_size_um"]), told["shape_px"]
        drawn = [] if _no_outlines(folder / "regions.geojson") else read_outlines(folder / "regions.geojson", px)
        cells = pd.read_parquet(folder / "cells.parquet")
        return SlideResults(
            slide_id,
            cells,
            str(told["measured_key"]),
            px,
            (int(height), int(width)),
            RegionSet(tuple(drawn), (height * px, width * px)),
            told,
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise InputError(f"The run in '{root}' holds no {name} of slide '{slide_id}'.", _AGAIN) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError | InputError):
            raise
        raise InputError(f"Cannot use the results of slide '{slide_id}' in '{root}': {error!r}.", _AGAIN) from error


_AGAIN = "Run the study again with the same command; nothing is segmented again."


def _no_outlines(path: Path) -> bool:
    return not json.loads(path.read_text(encoding="utf-8"))["features"]


@dataclass(frozen=True, eq=False)
class Corrections:
    """What the journals of a run come to.

    Attributes
    ----------
    regions, animals, groups : DataFrame
        As the tables of the run, with corrected numbers.
    beside : DataFrame
        The `tables.CORRECTED` columns, for the rows of ``tables/regions.csv``.
    cells : slide_id -> DataFrame
        The corrected cells of the slides that were reviewed.
    unmatched, disagreements : DataFrame
    journals : sequence of Written
    """

    regions: pd.DataFrame
    animals: pd.DataFrame
    groups: pd.DataFrame
    beside: pd.DataFrame
    cells: dict[str, pd.DataFrame]
    unmatched: pd.DataFrame
    disagreements: pd.DataFrame
    journals: Sequence[Written]

    def summary(self) -> dict[str, Any]:
        """Return who reviewed what, and what came of it, for JSON."""
        return summary_of(self.journals, list(self.cells), self.unmatched, self.disagreements)


def summary_of(
    journals: Sequence[Written], slides: list[str], unmatched: pd.DataFrame, disagreements: pd.DataFrame
) -> dict[str, Any]:
    """Return who reviewed what, and what came of it, for JSON."""
    return {
        "histoquant": __version__,
        "reviewers": [told_of(journal) for journal in journals],
        "slides": slides,
        "n_unmatched": len(unmatched),
        "n_disagreements": len(disagreements),
    }


def told_of(journal: Written) -> dict[str, Any]:
    """Return who wrote a journal and how much of it stands, for JSON."""
    standing = in_effect(journal.edits)
    return {
        "who": journal.who,
        "journal": journal.path.name,
        "sha256": store.sha256_of(journal.path),
        "n_edits": sum(edit.action != "accept" for edit in standing),
        "n_accepted": sum(edit.action == "accept" for edit in standing),
        "n_blinded": sum(edit.blinded for edit in standing),
        "n_standing": len(standing),
        "first": min((edit.at for edit in journal.edits), default=""),
        "last": max((edit.at for edit in journal.edits), default=""),
        "torn_lines": list(journal.torn),
    }


def correct(run: Run, journals: Sequence[Written]) -> Corrections:
    """Replay journals onto the results of a run; nothing is written.

    Raises
    ------
    InputError
        As `read_slide`.
    """
    import pandas as pd

    edits = all_edits(journals)
    cells: dict[str, pd.DataFrame] = {}
    regions, beside, unmatched, disagreements = [], [], [elsewhere(edits, set(run.regions["slide_id"]), CELL)], []
    automatic = run.regions.drop(columns=list(CORRECTED), errors="ignore")
    for slide, rows in automatic.groupby("slide_id", sort=False):
        about = [edit for edit in edits if edit.slide_id == slide]
        if not about:
            regions.append(rows)
            same = {f"{name}_corrected": rows[name] for name in RATES}
            beside.append(rows.assign(**same, n_edits=0, n_reviewed=0)[list(CORRECTED)])
            continue
        done = read_slide(run.root, str(slide)).replay(about)
        cells[str(slide)] = done.cells
        regions.append(recount(rows, done.cells))
        beside.append(side_by_side(rows, regions[-1], done.touched, done.cells))
        unmatched.append(done.unmatched)
        disagreements.append(done.disagreements.assign(slide_id=slide)[["slide_id", *DISAGREEMENTS]])
    counted = _stacked(regions, automatic)
    animals = _animals(run, counted)
    groups = count_groups(animals, reference_group=run.reference_group)
    disagreements.append(empty({"slide_id": "str"} | DISAGREEMENTS))
    return Corrections(
        counted,
        animals,
        groups,
        _stacked(beside, empty(CORRECTED)),
        cells,
        pd.concat(unmatched, ignore_index=True),
        pd.concat(disagreements, ignore_index=True),
        journals,
    )


def _stacked(parts: Sequence[pd.DataFrame], nothing: pd.DataFrame) -> pd.DataFrame:
    """Return tables one below the other, rows in the order they had."""
    import pandas as pd

    return pd.concat(parts).sort_index(kind="stable") if parts else nothing


def elsewhere(edits: Sequence[Edit], held: Collection[str], kind: str) -> pd.DataFrame:
    """Return the edits about slides, and about kinds of objects, that some results do not hold."""
    standing = in_effect(edits)
    lost = [
        (edit, f"slide '{edit.slide_id}' is not in these results") for edit in standing if edit.slide_id not in held
    ]
    other = [edit for edit in standing if edit.slide_id in held and edit.kind != kind]
    return review.listed([*lost, *((edit, f"these results hold no {edit.kind}s") for edit in other)])


def _animals(run: Run, counted: pd.DataFrame) -> pd.DataFrame:
    """Return the animals table with corrected numbers; what it tells besides of its animals stays."""
    keys = ["animal", "group", "region", "marker"]
    again = count_animals(counted[counted["control"] == ""]).set_index(keys)
    animals = run.animals.copy()
    where = animals.set_index(keys).index
    known = where.isin(again.index)
    for name in RATES:
        animals.loc[known, name] = again[name].reindex(where[known]).to_numpy()
    return animals


def forget(folder: Path, tables: Iterable[str]) -> None:
    """Remove what an earlier replay wrote into the folder of a review and no journal bears out any more."""
    for name in (*(f"{table}.csv" for table in tables), "review.json"):
        (folder / name).unlink(missing_ok=True)


class Replayable(Protocol):
    """What the journals of a run come to: tables by the names they are written under."""

    def summary(self) -> dict[str, Any]:
        """Return who reviewed what, and what came of it, for JSON."""
        ...


Found = TypeVar("Found", bound=Replayable)


def write_replayed(
    root: Path, tables: Iterable[str], correct: Callable[[Run, Sequence[Written]], Found]
) -> Found | None:
    """Write what the journals of a finished run make of its tables; None when nobody reviewed it.

    What an earlier replay wrote and no journal bears out any more is removed.

    Parameters
    ----------
    tables : iterable of str
        Attributes of what ``correct`` returns, each written as NAME.csv.

    Raises
    ------
    InputError
        If the folder holds no finished run.
    FormatError, Faults
        If journals are damaged.
    StoreError
        If it cannot be written.
    """
    folder, journals = root / FOLDER, read_journals(root)
    if not journals:
        forget(folder, tables)
        return None
    found = correct(read_run(root), journals)
    for name in tables:
        store.write_csv(folder / f"{name}.csv", getattr(found, name))
    store.write_json(folder / "review.json", found.summary())
    return found


def write_corrected(root: Path) -> Corrections | None:
    """Do as `write_replayed` for a run of cells, and write corrected counts beside those of ``tables/regions.csv``."""
    folder, beside = root / FOLDER, store.RunFolder(root).table("regions")
    journals = read_journals(root)
    shutil.rmtree(folder / "cells", ignore_errors=True)
    if not journals and not (folder / "review.json").exists():
        return None
    run = read_run(root)
    text = read_text(beside)
    text = text[[name for name in text.columns if name not in CORRECTED]]
    if not journals:
        forget(folder, TABLES)
        store.write_csv(beside, text, make_folder=False)
        return None
    found = correct(run, journals)
    for slide, cells in found.cells.items():
        store.write_parquet(folder / "cells" / f"{slide}.parquet", cells)
    for name in TABLES:
        store.write_csv(folder / f"{name}.csv", getattr(found, name))
    store.write_json(folder / "review.json", found.summary())
    store.write_csv(beside, text.join(found.beside), make_folder=False)
    return found
