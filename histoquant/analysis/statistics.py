"""Endpoints of a study compared by animal: effects first, then tests, adjusted in families declared beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.comparisons import (
    Comparison,
    benjamini_hochberg,
    compare_means,
    compare_permuted,
    compare_ranks,
    holm,
)
from histoquant.analysis.effects import Interval, animals_needed, hedges_g, percent_change
from histoquant.analysis.endpoints import WITHIN, exclusions, of_endpoint
from histoquant.analysis.mixed import fit_mixed
from histoquant.errors import InputError
from histoquant.model.design import Endpoint, Statistics
from histoquant.model.tables import ESTIMATES, NEXT_STUDY, P_ALONE, STATISTICS, empty, records, shaped

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FAMILIES = {
    "primary": (holm, "Holm"),
    "key secondary": (holm, "Holm"),
    "exploratory": (benjamini_hochberg, "Benjamini-Hochberg"),
}
"""How p is adjusted in each family, in the order in which they are reported."""

REDUCTIONS_PERCENT = (25, 30, 50)
POWER = 0.8
"""What the sizes of a next study are given for."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """The tables of an analysis, as `tables` lists them by the same names."""

    statistics: pd.DataFrame
    estimates: pd.DataFrame
    next_study: pd.DataFrame
    exclusions: pd.DataFrame


def analyse(
    values: pd.DataFrame,
    settings: Statistics,
    reference: str,
    *,
    sections: pd.DataFrame | None = None,
    blocks: Mapping[str, str] | None = None,
    curve: Mapping[float, pd.DataFrame] | None = None,
) -> Analysis:
    """Compare every group with the reference group in every endpoint.

    Parameters
    ----------
    values : DataFrame
        As `animal_values` gives them.
    reference : str
        The reference group.
    sections : DataFrame, optional
        Values of sections, with the columns of ``values``; for the mixed model.
    blocks : animal -> block, optional
        Within which permutations exchange animals.
    curve : factor -> DataFrame, optional
        ``values`` at multiples of the thresholds; results that change are flagged as threshold-dependent.

    Raises
    ------
    MissingExtraError
        If a mixed model is asked for and statsmodels is not installed.
    """
    import pandas as pd

    kept = values[(values["n_sections"] > 0) & values["value"].notna()]
    groups = list(dict.fromkeys(values["group"]))
    others = [name for name in groups if name != reference]
    rows: list[dict[str, Any]] = []
    next_study: list[dict[str, Any]] = []
    for endpoint in _endpoints(values, settings):
        whole = of_endpoint(values, endpoint)
        mine = of_endpoint(kept, endpoint)
        by_group = {name: _by_animal(mine, name) for name in dict.fromkeys([*groups, reference])}
        base = by_group[reference]
        compared = _compared(
            {name: by_group[name] for name in others},
            base,
            settings,
            nested=None if sections is None else of_endpoint(sections[sections["value"].notna()], endpoint),
            reference=reference,
            blocks=blocks,
        )
        about = {"endpoint": endpoint.name, "region": endpoint.region, "family": _family(endpoint, settings)}
        if not others:
            alone = "one group only: nothing to compare" if len(whole) else "not in the tables of this run"
            rows.append(about | _row(np.empty(0), _array(base), Comparison("", flags=(alone,)), settings))
        for name in others:
            told = compared[name]
            remarks = told.flags if len(whole) else ("not in the tables of this run",)
            flags = (*remarks, *_of_animals(whole, (name, reference)))
            row = _row(_array(by_group[name]), _array(base), replace(told, flags=flags), settings)
            row["comparison"] = f"{name} vs {reference}"
            dependent = _threshold_dependent(endpoint, name, reference, settings, curve or {})
            row["flags"] = "; ".join(dict.fromkeys(filter(None, [row["flags"], dependent])))
            rows.append(about | row)
        next_study += _next_study(endpoint, reference, _array(base), max(len(others), 1), settings)
    adjust(rows)
    frame = pd.DataFrame(rows)
    return Analysis(
        shaped(frame[list(STATISTICS)], STATISTICS) if rows else empty(STATISTICS),
        shaped(frame[list(ESTIMATES | P_ALONE)], ESTIMATES | P_ALONE) if rows else empty(ESTIMATES | P_ALONE),
        shaped(pd.DataFrame(next_study), NEXT_STUDY) if next_study else empty(NEXT_STUDY),
        exclusions(values),
    )


def _endpoints(values: pd.DataFrame, settings: Statistics) -> list[Endpoint]:
    """Return what is compared: the declared endpoints, whether they are there or not, then all others."""
    held = records(values[WITHIN].drop_duplicates())
    found = [Endpoint(marker=row.marker, region=row.region, measure=row.measure) for row in held]
    return [*settings.declared, *(one for one in found if one not in settings.declared)]


def _by_animal(values: pd.DataFrame, group: str) -> dict[str, float]:
    mine = values[values["group"] == group]
    return dict(zip(mine["animal"], mine["value"], strict=True))


def _array(of_animals: Mapping[str, float]) -> NDArray[np.float64]:
    return np.array(list(of_animals.values()), dtype=np.float64)


def _compared(
    groups: Mapping[str, Mapping[str, float]],
    base: Mapping[str, float],
    settings: Statistics,
    *,
    nested: pd.DataFrame | None,
    reference: str,
    blocks: Mapping[str, str] | None,
) -> dict[str, Comparison]:
    level = 1 - settings.alpha
    if settings.test == "permutation":
        found = compare_permuted(groups, base, blocks=blocks, level=level)
    elif settings.test == "ranks":
        found = compare_ranks({name: _array(group) for name, group in groups.items()}, _array(base), level=level)
    else:
        found = compare_means({name: _array(group) for name, group in groups.items()}, _array(base), level=level)
    if settings.test == "mixed" and nested is not None:
        found = _nested(found, nested, reference)
    return {
        name: replace(told, flags=(*told.flags, *_out_of_reach(told, settings.alpha))) for name, told in found.items()
    }


def _nested(by_animal: Mapping[str, Comparison], sections: pd.DataFrame, reference: str) -> dict[str, Comparison]:
    """Return the mixed model's tests; where there are none the animals' own stand, and say why."""
    able = [name for name, told in by_animal.items() if told.test]
    if not able:
        return dict(by_animal)
    fit = fit_mixed(sections[sections["group"].isin([*able, reference])], reference)
    if fit.failed:
        why = f"no mixed model ({fit.failed}): tested by animal"
        return {
            name: replace(told, flags=(*told.flags, why)) if name in able else told for name, told in by_animal.items()
        }
    return {
        name: replace(
            told, test="mixed model, t", statistic=fit.t[name], df=fit.df, p=fit.p[name], p_alone=fit.p[name], flags=()
        )
        if name in able
        else told
        for name, told in by_animal.items()
    }


def _out_of_reach(told: Comparison, alpha: float) -> tuple[str, ...]:
    if told.smallest_p > alpha:
        return (f"can never be significant: with so few animals p is at least {told.smallest_p:.2g}",)
    return ()


def _of_animals(values: pd.DataFrame, groups: Sequence[str]) -> tuple[str, ...]:
    """Return remarks on the animals of a comparison."""
    mine = values[values["group"].isin(groups)]
    partial = mine.loc[mine["flags"].str.contains("incomplete:", regex=False) & (mine["n_sections"] > 0), "animal"]
    lost = mine.loc[(mine["n_sections"] == 0) | mine["value"].isna(), "animal"]
    return tuple(
        f"{what}: {', '.join(dict.fromkeys(names))}"
        for what, names in (("incomplete animals", partial), ("animals without a value", lost))
        if len(names)
    )


def _row(a: NDArray[np.float64], b: NDArray[np.float64], told: Comparison, settings: Statistics) -> dict[str, Any]:
    level = 1 - settings.alpha
    change, g = percent_change(a, b, level=level), hedges_g(a, b, level=level)
    gap = told.interval
    if math.isnan(gap.value) and a.size and b.size:
        gap = Interval(float(a.mean() - b.mean()), math.nan, math.nan)
    flags = list(told.flags)
    if min(a.size, b.size) > 1 and math.isnan(change.low):
        flags.append("no interval of the change: a mean is not above 0")
    return {
        "comparison": "",
        "n_a": a.size,
        "n_b": b.size,
        "mean_a": float(a.mean()) if a.size else math.nan,
        "mean_b": float(b.mean()) if b.size else math.nan,
        "sd_a": float(a.std(ddof=1)) if a.size > 1 else math.nan,
        "sd_b": float(b.std(ddof=1)) if b.size > 1 else math.nan,
        "percent_change": change.value,
        "ci_low": change.low,
        "ci_high": change.high,
        "difference": gap.value,
        "difference_ci_low": gap.low,
        "difference_ci_high": gap.high,
        "simultaneous": told.simultaneous,
        "hedges_g": g.value,
        "hedges_g_ci_low": g.low,
        "hedges_g_ci_high": g.high,
        "test": told.test,
        "statistic": told.statistic,
        "df": told.df,
        "p": told.p,
        "p_alone": told.p_alone,
        "smallest_p": told.smallest_p,
        "flags": "; ".join(filter(None, flags)),
    }


def _family(endpoint: Endpoint, settings: Statistics) -> str:
    if endpoint == settings.primary:
        return "primary"
    return "key secondary" if endpoint in settings.secondary else "exploratory"


def adjust(rows: list[dict[str, Any]]) -> None:
    """Add adjusted p to rows, family by family: doses times endpoints.

    Families are adjusted from the p of each comparison alone, and never to below that of the test itself: Dunnett's is
    adjusted for the groups of one endpoint already, and adjusting it again would count them twice.

    Parameters
    ----------
    rows : list of dict
        Comparisons with ``endpoint, region, family, test, p, p_alone``, and ``assay`` where there are several.
    """
    for family, (method, named) in FAMILIES.items():
        tested = [row for row in rows if row["family"] == family and not math.isnan(row["p"])]
        for row in rows:
            if row["family"] == family:
                row |= {"p_adjusted": math.nan, "adjustment": ""}
        several = f"{len(tested)} {family} comparisons"
        endpoints = {(row.get("assay"), row["endpoint"], row["region"]) for row in tested}
        by_dunnett = family == "primary" and len(endpoints) == 1 and all(row["test"] == "Dunnett" for row in tested)
        adjusted = method([row["p_alone"] for row in tested])
        for row, p in zip(tested, adjusted, strict=True):
            if len(tested) == 1:
                row |= {"p_adjusted": row["p"], "adjustment": f"none: the only {family} comparison"}
            elif by_dunnett:
                row |= {"p_adjusted": row["p"], "adjustment": f"Dunnett, {several}"}
            else:
                row |= {"p_adjusted": max(float(p), row["p"]), "adjustment": f"{named}, {several}"}


def _threshold_dependent(
    endpoint: Endpoint, group: str, reference: str, settings: Statistics, curve: Mapping[float, pd.DataFrame]
) -> str:
    """Return how a change hangs on the threshold; empty when it does not, or cannot be seen to."""
    found: dict[float, Interval] = {}
    for factor, values in curve.items():
        mine = of_endpoint(values[values["value"].notna()], endpoint)
        a, b = (_array(_by_animal(mine, name)) for name in (group, reference))
        change = percent_change(a, b, level=1 - settings.alpha)
        if not math.isnan(change.value):
            found[factor] = change
    if 1.0 not in found:
        return ""
    at_one = found[1.0]
    turned = [factor for factor, change in found.items() if np.sign(change.value) != np.sign(at_one.value)]
    other = [factor for factor, change in found.items() if change.excludes(0) != at_one.excludes(0)]
    told = []
    if turned:
        told.append(f"the sign changes at {_times(turned)}")
    if other:
        told.append(f"the interval {'includes' if at_one.excludes(0) else 'excludes'} 0 at {_times(other)}")
    return f"threshold-dependent: {', '.join(told)}" if told else ""


def _times(factors: Sequence[float]) -> str:
    return ", ".join(f"x {factor:g}" for factor in sorted(factors))


def _next_study(
    endpoint: Endpoint, reference: str, base: NDArray[np.float64], n_groups: int, settings: Statistics
) -> list[dict[str, Any]]:
    """Return how many animals would show reductions, the level shared by the groups compared (Bonferroni)."""
    if base.size < 2 or base.mean() <= 0 or base.std() == 0:
        return []
    cv, alpha = float(base.std(ddof=1) / base.mean()), settings.alpha / n_groups
    rows = []
    for percent in REDUCTIONS_PERCENT:
        try:
            n: float = animals_needed(percent / 100 / cv, alpha=alpha, power=POWER)
        except InputError:
            n = math.nan
        rows.append(
            {"endpoint": endpoint.name, "region": endpoint.region, "reference_group": reference}
            | {"n_animals": base.size, "cv_percent": 100 * cv, "reduction_percent": percent}
            | {"alpha": alpha, "power": POWER, "animals_per_group": n}
        )
    return rows
