"""A finished run folder as values: what `run.json`, the tables and the slides' provenance say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant.analysis.counting import count_groups
from histoquant.analysis.endpoints import animals_at_factors
from histoquant.errors import InputError
from histoquant.model.recipe import Recipe, build_recipe
from histoquant.model.region_set import MASKED, OUTSIDE
from histoquant.model.tables import (
    ANIMALS,
    CORRECTED,
    CORRELATIONS,
    DISAGREEMENTS,
    ENDPOINT_GROUPS,
    ESTIMATES,
    EXCLUSIONS,
    FAILURES,
    GROUPS,
    INFARCT,
    NEXT_STUDY,
    P_ALONE,
    REGIONS,
    SENSITIVITY,
    SPINE_ANIMALS,
    STAIN_SCORES_ANIMALS,
    STATISTICS,
    STEREOLOGY,
    TRANSLOCATION,
    UNMATCHED,
    Schema,
    empty,
    shaped,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FINISHED", "RERUN", "REST", "Run", "read_run", "read_table", "threshold_curve"]

FINISHED = ("done", "failed")
"""States of `run.json` in which the tables belong to the run it describes; ``failed`` means that some slides did."""

REST = (OUTSIDE, MASKED)
"""Rows of the tables that are no counted region."""

RERUN = "Run the same command again; it goes on where it stopped."

_STATE_KEYS = ("state", "recipe", "slides")
_OTHER_PROVENANCE_KEYS = ("slide", "sources", "pixel_size_um", "notes", "warnings")
_PROVENANCE_KEYS = ("slide", "sources", "pixel_size_um", "segmenter", "thresholds", "notes", "warnings")


_OF_ANIMALS = {"infarct": INFARCT, "spines": SPINE_ANIMALS}
"""Tables of animals of runs of no cells, by what they are of."""

EXCLUSION_LOG = "exclusions.jsonl"
"""File of a run folder in which `histoquant.exclusions` notes what was left out by whom and when."""

_ENTRY_KEYS = ("when", "who", "action", "slide", "reason", "after_unblinding")

INFERRED: dict[str, Schema] = {
    "statistics": STATISTICS,
    "estimates": ESTIMATES,
    "next_study": NEXT_STUDY,
    "exclusions": EXCLUSIONS,
    "stereology": STEREOLOGY,
    "correlations": CORRELATIONS,
}
"""Tables made from those of a finished run; the last two where they were asked for."""


@dataclass(frozen=True, eq=False)
class Inferred:
    """Comparisons of a run: `INFERRED` by name, and what ``statistics.json`` says they were made with."""

    tables: dict[str, pd.DataFrame]
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Reviewed:
    """What corrections made by hand come to.

    Attributes
    ----------
    summary : dict
        The content of ``review/review.json``.
    regions, groups : DataFrame
        As the tables of the run, with corrected numbers; rows as there.
    unmatched, disagreements : DataFrame
    """

    summary: dict[str, Any]
    regions: pd.DataFrame
    groups: pd.DataFrame
    unmatched: pd.DataFrame
    disagreements: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes
    ----------
    state : dict
        The content of ``run.json``.
    failures, regions, animals, groups, sensitivity : DataFrame
        As `histoquant.model.tables` lists them; without rows in a run of no cells, all but the failures.
    provenance : slide_id -> dict
        Of the slides that were analysed, in the order of the sample sheet.
    reviewed : Reviewed or None
    """

    root: Path
    state: dict[str, Any]
    recipe: Recipe
    failures: pd.DataFrame
    regions: pd.DataFrame
    animals: pd.DataFrame
    groups: pd.DataFrame
    sensitivity: pd.DataFrame
    provenance: dict[str, dict[str, Any]]
    reviewed: Reviewed | None = None

    @cached_property
    def stain_scores(self) -> pd.DataFrame:
        """Scores by animal of markers with grades; no rows without such markers."""
        path = self.root / "tables" / "stain_scores_animals.csv"
        return read_table(path, STAIN_SCORES_ANIMALS) if path.is_file() else empty(STAIN_SCORES_ANIMALS)

    @cached_property
    def translocation(self) -> pd.DataFrame:
        """Shares of cells with a marker in the nucleus; no rows without markers that say when."""
        path = self.root / "tables" / "translocation.csv"
        return read_table(path, TRANSLOCATION) if path.is_file() else empty(TRANSLOCATION)

    @cached_property
    def inferred(self) -> Inferred:
        """What `stats` made of the run; empty tables when it did not.

        Raises
        ------
        InputError
            If a file of it is damaged.
        """
        path = self.root / "statistics.json"
        files = {name: self.root / "tables" / f"{name}.csv" for name in INFERRED}
        tables = {
            name: read_table(files[name], schema) if files[name].is_file() else empty(schema)
            for name, schema in INFERRED.items()
        }
        return Inferred(tables, _json(path, ("statistics", "reference_group")) if path.is_file() else {})

    @cached_property
    def exclusion_log(self) -> list[dict[str, Any]]:
        """Who left out which slide, when and why, oldest first."""
        return read_exclusion_log(self.root)

    @property
    def counted(self) -> pd.DataFrame:
        """Rows of the regions table that enter the animals: those of slides that are no control."""
        return self.regions[self.regions["control"] == ""]

    @property
    def markers(self) -> list[str]:
        """Counted markers and double labels, in the order of the tables."""
        return list(dict.fromkeys(self.regions["marker"]))

    @cached_property
    def by_animal(self) -> pd.DataFrame:
        """One row per animal and marker in a region; per animal in a run of infarcts or of spines."""
        if self.recipe.kind == "cells":
            return self.animals
        return read_table(self.root / "tables" / f"{self.recipe.kind}.csv", _OF_ANIMALS[self.recipe.kind])

    @cached_property
    def group_sizes(self) -> dict[str, int]:
        """Number of animals by group, in the order of the tables."""
        return {str(k): int(n) for k, n in self.by_animal.groupby("group", sort=False)["animal"].nunique().items()}

    @property
    def reference_group(self) -> str:
        """The group that the others are compared with; empty when nothing was counted."""
        groups, kind = self.groups, self.recipe.kind
        if kind != "cells":
            groups = read_table(self.root / "tables" / f"{kind}_groups.csv", ENDPOINT_GROUPS)
        return "" if groups.empty else str(groups["reference_group"].iloc[0])


def read_run(root: Path) -> Run:
    """Read a run folder.

    Raises
    ------
    InputError
        If it holds no finished run, or a file of it is missing or damaged.
    """
    if (root / "study.json").is_file():
        raise InputError(f"'{root}' holds several runs.", f"Name one of those in '{root / 'assays'}'.")
    if not (root / "run.json").is_file():
        raise InputError(f"'{root}' holds no run: there is no run.json.", "Name the folder given to run as --out.")
    state = _json(root / "run.json", _STATE_KEYS)
    if state["state"] not in FINISHED:
        raise InputError(f"The run in '{root}' is not finished (state '{state['state']}').", RERUN)
    slides = [slide for slide, how in state["slides"].items() if how == "done"]
    held = {folder.name: folder for folder in (root / "slides").iterdir()} if (root / "slides").is_dir() else {}
    missing = [slide for slide in slides if slide not in held]
    if missing:
        raise InputError(f"The run in '{root}' lacks the folder of slide {', '.join(missing)}.", RERUN)
    recipe = build_recipe(state["recipe"], source="run.json")
    of_cells = recipe.kind == "cells"
    tables = {"regions": REGIONS, "animals": ANIMALS, "groups": GROUPS, "sensitivity": SENSITIVITY}
    keys = _PROVENANCE_KEYS if of_cells else _OTHER_PROVENANCE_KEYS
    held_tables = {
        name: read_table(root / "tables" / f"{name}.csv", schema) if of_cells else empty(schema)
        for name, schema in tables.items()
    }
    return Run(
        root,
        state,
        recipe,
        failures=read_table(root / "failures.csv", FAILURES),
        **held_tables,
        provenance={slide: _json(held[slide] / "provenance.json", keys) for slide in slides},
        reviewed=_reviewed(root) if of_cells else None,
    )


def _reviewed(root: Path) -> Reviewed | None:
    summary, folder = corrections_summary(root), root / "review"
    if not summary:
        return None
    return Reviewed(
        summary,
        read_table(folder / "regions.csv", REGIONS),
        read_table(folder / "groups.csv", GROUPS),
        read_table(folder / "unmatched.csv", UNMATCHED),
        read_table(folder / "disagreements.csv", {"slide_id": "str"} | DISAGREEMENTS),
    )


def threshold_curve(run: Run) -> pd.DataFrame:
    """Return the groups table at every multiple of the thresholds, by the counting rule of the run itself.

    Returns
    -------
    DataFrame
        The columns of `tables.GROUPS` and ``factor``; at factor 1 the rows of the groups table.
    """
    import pandas as pd

    parts = [
        count_groups(animals, reference_group=run.reference_group).assign(factor=factor)
        for factor, animals in animals_at_factors(run.sensitivity, run.counted).items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else run.groups.iloc[:0].assign(factor=1.0)


def _json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read '{path}': {error}.", RERUN) from error
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else keys
    if missing:
        raise InputError(f"'{path}' lacks {', '.join(missing)}.", RERUN)
    return dict(content)


def corrections_summary(root: Path) -> dict[str, Any]:
    """Return what ``review/review.json`` tells of the corrections in the tables; empty when there are none."""
    path = root / "review" / "review.json"
    return _json(path, ("reviewers",)) if path.is_file() else {}


def read_exclusion_log(root: Path) -> list[dict[str, Any]]:
    """Return the log of exclusions of a run folder, oldest first; empty when nothing was ever left out.

    Raises
    ------
    InputError
        If a line of it is damaged.
    """
    path = root / EXCLUSION_LOG
    if not path.exists():
        return []
    entries = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            entry = json.loads(line)
            if not isinstance(entry, dict) or not set(_ENTRY_KEYS) <= set(entry):
                raise ValueError(f"line {number} is no entry")
            entries.append(entry)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot use '{path}': {error}.", "Mend that line, or bring the file back.") from error
    return entries


def read_text(path: Path) -> pd.DataFrame:
    """Read a table as text, so that an animal called NA or 007 keeps its name, and a number its digits.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot use '{path}': {error}", RERUN) from error


def read_table(path: Path, schema: Schema) -> pd.DataFrame:
    """Read a table of a run with the types of its schema."""
    import pandas as pd

    text = read_text(path)
    schema = schema | {name: kind for name, kind in (CORRECTED | P_ALONE).items() if name in text}
    try:
        for name in text.columns.intersection([name for name, kind in schema.items() if kind != "str"]):
            if schema[name] == "bool":
                text[name] = text[name] == "True"
            elif schema[name] == "float64":  # pandas 2 reads a last digit less when it is left to find the type
                text[name] = text[name].where(text[name] != "", "nan").astype("float64")
            else:
                text[name] = pd.to_numeric(text[name].where(text[name] != ""))
        return shaped(text, schema)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot use '{path}': {error}", RERUN) from error
