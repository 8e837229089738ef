"""The optical fractionator on tables: detections in stacks and the sites they were counted at, to totals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histoquant.analysis.stereology import Disector, fractionate
from histoquant.errors import HistoquantError, InputError, raise_all
from histoquant.inputs import read_text
from histoquant.model.tables import FRACTIONATOR, shaped

if TYPE_CHECKING:
    import pandas as pd

MAX_POINTS_BYTES = 500_000_000
"""Some ten million detections."""

POINTS = ("animal", "section", "z_um", "y_um", "x_um")
SITES = ("animal", "section", "y_um", "x_um", "thickness_um")
NAMES = ("animal", "section")


def fractionate_files(
    points: Path,
    sites: Path,
    disector: Disector,
    *,
    section_interval: int,
    hemispheres: int,
    weighted: bool = True,
) -> pd.DataFrame:
    """Return the total of every animal, as `tables.FRACTIONATOR` lists it.

    Parameters
    ----------
    points : Path
        CSV with the columns of `POINTS`, one row per detection; ``radius_um`` where objects are no points.
    sites : Path
        CSV with the columns of `SITES`, one row per counting frame, also of those without a detection; ``surface_um``,
        where the upper face of the section does not lie at z = 0. Sections with numbers for names are ordered by them,
        others as they are listed.
    section_interval, hemispheres : int
        Every which section was counted, in 1 or 2 hemispheres.

    Raises
    ------
    InputError, Faults
        If a table cannot be used, or any site is too thin for the disector; all animals' faults together.
    """
    import pandas as pd

    held, frames = _read(points, POINTS, ("radius_um",)), _read(sites, SITES, ("surface_um",))
    if "surface_um" not in frames:
        frames["surface_um"] = 0.0
    unsampled = [name for name in dict.fromkeys(held["animal"]) if name not in set(frames["animal"])]
    faults: list[HistoquantError] = [
        InputError(f"{points.name} has animal '{name}', {sites.name} has not.", "List the sites of every animal.")
        for name in unsampled
    ]
    rows = []
    for animal, mine in frames.groupby("animal", sort=False):
        numbers = pd.to_numeric(mine["section"], errors="coerce")
        ordered = mine.iloc[numbers.argsort(kind="stable")] if numbers.notna().all() else mine
        try:
            found = fractionate(
                held[held["animal"] == animal],
                ordered,
                disector,
                section_fraction=1 / section_interval,
                hemisphere_fraction=hemispheres / 2,
                weighted=weighted,
            )
        except InputError as error:
            faults.append(InputError(f"Animal '{animal}': {error.message}", error.remedy))
            continue
        rows.append({"animal": animal, "hemisphere_fraction": hemispheres / 2} | found._asdict())
    raise_all(faults)
    return shaped(pd.DataFrame(rows, columns=list(FRACTIONATOR)), FRACTIONATOR)


def _read(path: Path, needed: Sequence[str], further: Sequence[str]) -> pd.DataFrame:
    """Read a table whose columns are numbers but for the names."""
    import pandas as pd

    text = read_text(path, InputError, "table", MAX_POINTS_BYTES)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skipinitialspace=True)
    except ValueError as error:
        raise InputError(f"{path.name}: not a readable CSV ({error}).", "Save it again as CSV (UTF-8).") from error
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"{path.name} lacks the column(s) {', '.join(missing)}.", f"It needs {', '.join(needed)}.")
    table = table[[*needed, *(name for name in further if name in table)]].copy()
    for name in [name for name in table if name not in NAMES]:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.isna().any():
            line = int(numbers.isna().to_numpy().argmax())
            raise InputError(
                f"{path.name} line {line + 2}: {name} is '{table[name].iloc[line]}', not a number.", "Mend that line."
            )
        table[name] = numbers.astype(float)
    return table
