"""Outcomes measured otherwise (behaviour, ELISA, western blot), joined with image endpoints by animal.

They are correlated with endpoints and enter no family of theirs: another method, another question.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.comparisons import benjamini_hochberg
from histoquant.analysis.endpoints import WITHIN
from histoquant.errors import HistoquantError, InputError, raise_all
from histoquant.model.design import endpoint_name
from histoquant.model.tables import CORRELATIONS, empty, shaped

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

METHODS = ("pearson", "spearman")
SCOPES = ("all animals", "within groups")

MIN_PAIRS = 4
"""Fisher's transformation has an SE of 1 / sqrt(n - 3)."""


def parse_outcomes(text: str, *, source: str = "outcomes.csv") -> pd.DataFrame:
    """Read a table with one row per animal: a column ``animal``, and one number per outcome; empty is not measured.

    Parameters
    ----------
    text : str
        CSV with a header line; comma, semicolon or tab between cells. Columns that hold words only (sex, notes) and
        ``group`` are left out.

    Returns
    -------
    DataFrame
        Outcomes as columns, indexed by animal.

    Raises
    ------
    InputError, Faults
        Everything that is wrong, each with its line.
    """
    import pandas as pd

    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise InputError(
            f"{source}: the table is empty.", "It needs a header with 'animal' and one column per outcome."
        )
    header = text.lstrip().splitlines()[0]
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True))
    except csv.Error as error:
        raise InputError(f"{source}: not a readable CSV ({error}).", "Save it again as CSV (UTF-8).") from error
    lines = [(n, [cell.strip() for cell in row]) for n, row in enumerate(rows, start=1) if any(map(str.strip, row))]
    columns = lines[0][1]
    if "animal" not in columns or len(set(columns)) < len(columns):
        what = "has a column twice" if "animal" in columns else "has no column 'animal'"
        raise InputError(f"{source}: the table {what}.", f"Its header is: {', '.join(columns)[:200]}.")
    faults: list[HistoquantError] = []
    held: dict[str, tuple[int, dict[str, str]]] = {}
    for line, row in lines[1:]:
        cells = dict(zip(columns, row, strict=False))
        name = cells.get("animal", "")
        if not name or name in held or len(row) > len(columns):
            what = f"animal '{name}' is in line {held[name][0]} already" if name in held else "no animal is named"
            what = "more cells than columns" if len(row) > len(columns) else what
            faults.append(InputError(f"{source} line {line}: {what}.", "One row per animal."))
            continue
        held[name] = line, cells
    found: dict[str, list[float]] = {}
    for column in columns:
        texts = [(line, cells.get(column, "")) for line, cells in held.values()]
        numbers = [_number(text) for _, text in texts]
        if column in ("animal", "group") or all(number is None for number in numbers):
            continue
        faults += [
            InputError(f"{source} line {line}: {column} is '{text}', not a number.", "Leave it empty if not measured.")
            for (line, text), number in zip(texts, numbers, strict=True)
            if number is None
        ]
        if not all(number is None or math.isnan(number) for number in numbers):
            found[column] = [math.nan if number is None else number for number in numbers]
    raise_all(faults)
    if not found:
        raise InputError(f"{source}: there is no column of numbers.", "Add one column per outcome.")
    return pd.DataFrame(found, index=list(held))


def _number(text: str) -> float | None:
    """Return a number, NaN for an empty cell, None for words."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def correlate(values: pd.DataFrame, outcomes: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Correlate every endpoint with every outcome over animals, as `tables.CORRELATIONS` lists it.

    Over all animals a correlation may say no more than that the groups differ in both; so it is also given within
    groups, each group's mean (of ranks, for Spearman) taken off. All are exploratory; each method in each scope is one
    family.

    Parameters
    ----------
    values : DataFrame
        As `endpoints.animal_values` gives them.
    outcomes : DataFrame
        As `parse_outcomes` gives them.

    Raises
    ------
    InputError
        If no animal of the study is among the outcomes.
    """
    import pandas as pd

    kept = values[(values["n_sections"] > 0) & values["value"].notna()]
    if not set(values["animal"]) & set(outcomes.index):
        raise InputError(
            f"None of the animals of the outcomes ({', '.join(outcomes.index[:3])}, ...) is in the study.",
            "Name them as in the sample sheet.",
        )
    rows: list[dict[str, Any]] = []
    for names, mine in kept.groupby(WITHIN, sort=False):
        marker, measure, region = map(str, names)
        for outcome in outcomes:
            paired = mine.assign(other=mine["animal"].map(outcomes[outcome])).dropna(subset=["other"])
            about = {"endpoint": endpoint_name(marker, measure), "region": region, "outcome": outcome}
            rows += [
                about | {"scope": scope, "method": method} | _correlation(paired, scope, method, 1 - alpha)
                for method in METHODS
                for scope in SCOPES
            ]
    if not rows:
        return empty(CORRELATIONS)
    table = pd.DataFrame(rows).assign(p_adjusted=math.nan, adjustment="")
    for (_, _), part in table[table["p"].notna()].groupby(["scope", "method"]):
        table.loc[part.index, "p_adjusted"] = benjamini_hochberg(part["p"])
        table.loc[part.index, "adjustment"] = f"Benjamini-Hochberg, {len(part)} correlations"
    return shaped(table, CORRELATIONS)


def _correlation(paired: pd.DataFrame, scope: str, method: str, level: float) -> dict[str, Any]:
    """Return r, its interval by Fisher's transformation, and p by the t with the degrees of freedom left.

    Of Spearman's coefficient the variance is larger by (1 + r^2 / 2) (Bonett and Wright 2000).
    """
    from scipy.stats import norm, rankdata, t

    x, y = (paired[name].to_numpy(float) for name in ("value", "other"))
    n, taken = len(x), 0
    empty_row: dict[str, Any] = {"n": n, "r": math.nan, "ci_low": math.nan, "ci_high": math.nan, "p": math.nan}
    if method == "spearman" and n:
        x, y = rankdata(x), rankdata(y)
    if scope == "within groups" and n:
        taken = paired["group"].nunique() - 1
        x, y = (_less_group_means(values, paired["group"].to_numpy()) for values in (x, y))
    if n - taken < MIN_PAIRS:
        return empty_row | {"flags": "too few animals"}
    spread = math.sqrt(float(x @ x - n * x.mean() ** 2) * float(y @ y - n * y.mean() ** 2))
    if spread <= 1e-12 * math.sqrt(float(x @ x) * float(y @ y)) or spread == 0:
        return empty_row | {"flags": "the values do not vary"}
    r = max(-1.0, min(1.0, float((x - x.mean()) @ (y - y.mean())) / spread))
    df = n - 2 - taken
    p = float(2 * t.sf(abs(r) * math.sqrt(df / (1 - r * r)), df)) if abs(r) < 1 else 0.0
    if abs(r) == 1:
        return {"n": n, "r": r, "ci_low": r, "ci_high": r, "p": p, "flags": ""}
    se = math.sqrt((1 + r * r / 2 if method == "spearman" else 1) / (n - taken - 3))
    half = float(norm.ppf((1 + level) / 2)) * se
    low, high = (math.tanh(math.atanh(r) + sign * half) for sign in (-1, 1))
    return {"n": n, "r": r, "ci_low": low, "ci_high": high, "p": p, "flags": ""}


def _less_group_means(values: NDArray[np.float64], groups: NDArray[Any]) -> NDArray[np.float64]:
    left = values.copy()
    for group in set(groups):
        left[groups == group] -= values[groups == group].mean()
    return left
