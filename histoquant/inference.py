"""Totals, comparisons and correlations of a finished run, from its tables into its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoquant import __version__, store
from histoquant.analysis.endpoints import (
    animal_values,
    animals_at_factors,
    infarct_values,
    of_endpoint,
    section_values,
    spine_values,
)
from histoquant.analysis.outcomes import correlate, parse_outcomes
from histoquant.analysis.statistics import FAMILIES, analyse
from histoquant.analysis.stereology import total_counts
from histoquant.errors import InputError
from histoquant.inputs import MAX_SHEET_BYTES, read_text
from histoquant.model.panel import called_markers
from histoquant.model.recipe import Recipe
from histoquant.model.tables import EXCLUSIONS, records, shaped
from histoquant.report.run import INFERRED, Run, read_run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Inference:
    """What was made of a run: its tables by name, and what a person should know."""

    tables: dict[str, pd.DataFrame]
    notes: tuple[str, ...]


def write_statistics(root: Path, *, recipe: Recipe | None = None, outcomes: Path | None = None) -> Inference:
    """Compare the groups of a finished run by animal, and write the tables of `report.run.INFERRED`.

    Parameters
    ----------
    root : Path
        The run folder.
    recipe : Recipe, optional
        Whose ``[statistics]``, ``count.stereology`` and ``count.reference_group`` are taken; those of the run when not
        given. Nothing else of it matters: nothing is counted again.
    outcomes : Path, optional
        CSV with a column ``animal`` and one of numbers per outcome, to be correlated with the endpoints.

    Raises
    ------
    InputError
        If the folder holds no finished run, or the outcomes or the recipe do not fit it.
    MissingExtraError
        If the recipe asks for a mixed model and statsmodels is not installed.
    """
    run = read_run(root)
    inference, settings = _inferred(run, recipe, outcomes)
    for name in INFERRED:
        path = root / "tables" / f"{name}.csv"
        if name in inference.tables:
            store.write_csv(path, inference.tables[name], make_folder=False)
        else:  # of earlier settings
            path.unlink(missing_ok=True)
    store.write_json(root / "statistics.json", settings, make_folder=False)
    return inference


def _inferred(run: Run, recipe: Recipe | None, outcomes: Path | None) -> tuple[Inference, dict[str, Any]]:
    asked = run.recipe if recipe is None else recipe
    kind = run.recipe.kind
    if asked.kind != kind:
        raise InputError(f"The run in '{run.root}' is of {kind}; the recipe is not.", "Give a recipe of that kind.")
    settings, sampling = asked.compared, asked.count.stereology
    reference = _reference(run, recipe)
    if kind != "cells":
        totals, values = None, {"infarct": infarct_values, "spines": spine_values}[kind](run.by_animal)
        blocks = blocks_of(rows_of(run), settings.block) if settings.block else None
        analysis = analyse(values, settings, reference, blocks=blocks)
    else:
        totals = None if sampling is None else total_counts(run.counted, sampling)
        fractions = bool(called_markers(run.recipe.panel))
        values = animal_values(run.animals, totals, fractions=fractions)
        at_factors = animals_at_factors(run.sensitivity, run.counted)
        analysis = analyse(
            values,
            settings,
            reference,
            sections=section_values(run.counted) if settings.test == "mixed" else None,
            blocks=blocks_of(run.counted, settings.block) if settings.block else None,
            curve={factor: animal_values(animals, fractions=fractions) for factor, animals in at_factors.items()},
        )
    tables = {
        "statistics": analysis.statistics,
        "estimates": analysis.estimates,
        "next_study": analysis.next_study,
        "exclusions": _all_exclusions(run, analysis.exclusions),
    }
    notes = [
        f"{endpoint.name} in {endpoint.region} is declared, but not in the tables of this run"
        for endpoint in settings.declared
        if of_endpoint(values, endpoint).empty
    ]
    told: dict[str, Any] = {"histoquant": __version__, "reference_group": reference}
    told["statistics"] = settings.model_dump(mode="json")
    if totals is not None and sampling is not None:
        tables["stereology"] = totals
        told["stereology"] = sampling.model_dump(mode="json")
    if outcomes is not None:
        others = parse_outcomes(
            read_text(outcomes, InputError, "table of outcomes", MAX_SHEET_BYTES), source=outcomes.name
        )
        tables["correlations"] = correlate(values, others, alpha=settings.alpha)
        told["outcomes"] = {"file": outcomes.name, "sha256": store.sha256_of(outcomes)}
        absent = [name for name in others.index if name not in set(values["animal"])]
        notes += [f"{outcomes.name}: not in the study: {', '.join(absent)}"] if absent else []
    return Inference(tables, tuple(notes)), told


def _reference(run: Run, recipe: Recipe | None) -> str:
    """Return the reference group: that of the given recipe, or of the run.

    Raises
    ------
    InputError
        If the given recipe names a group that the study has not.
    """
    name = recipe.count.reference_group if recipe is not None else None
    groups = list(run.group_sizes)
    if name is not None and name not in groups:
        raise InputError(f"The recipe's reference group '{name}' is not in the study.", f"It has: {', '.join(groups)}.")
    return name or run.reference_group


def rows_of(run: Run) -> pd.DataFrame:
    """Return the rows of the sample sheet that a run took, with the columns that it carried through."""
    import pandas as pd

    rows = [
        row | row.get("extra", {}) for row in run.state.get("rows", []) if not row["control"] and not row["exclude"]
    ]
    return pd.DataFrame(rows)


def blocks_of(sections: pd.DataFrame, column: str) -> Mapping[str, str]:
    """Return the block of every animal, from a column that the sample sheet carried into the regions table.

    Raises
    ------
    InputError
        If there is no such column, or an animal is in two blocks.
    """
    if column not in sections:
        raise InputError(f"The sample sheet has no column '{column}', which statistics.block names.", "Add it.")
    blocks = sections.groupby("animal", sort=False)[column].agg(lambda held: sorted(set(map(str, held))))
    for animal, held in blocks.items():
        if len(held) > 1:
            raise InputError(f"Animal '{animal}' has {column} {' and '.join(held)}.", "Give it one.")
    return {str(animal): held[0] for animal, held in blocks.items()}


def _all_exclusions(run: Run, of_animals: pd.DataFrame) -> pd.DataFrame:
    """Return what is in no test: slides left out beforehand and failed ones first, then animals and values."""
    import pandas as pd

    group = {str(row.get("slide_id")): str(row.get("group", "")) for row in run.state.get("rows", [])}
    told = [(slide, "left out beforehand", reason) for slide, reason in run.state.get("excluded", {}).items()]
    told += [(row.slide, f"failed at {row.stage}", row.error) for row in records(run.failures)]
    rows = [
        {"level": "slide", "name": slide, "group": group.get(slide, ""), "what": what, "reason": reason}
        for slide, what, reason in told
    ]
    rows += [dict(zip(EXCLUSIONS, row, strict=True)) for row in of_animals.itertuples(index=False)]
    return shaped(pd.DataFrame(rows, columns=list(EXCLUSIONS)), EXCLUSIONS)


def lines(found: Inference) -> Iterator[str]:
    """Yield what a person reads on a terminal: each effect with its interval first, then its test."""
    family = ""
    keys = [name for name in ("assay", "endpoint", "region", "comparison") if name in found.tables["statistics"]]
    both = found.tables["statistics"].merge(found.tables["estimates"][[*keys, "family"]], on=keys)
    both = both.sort_values("family", key=_in_order, kind="stable")
    for row in records(both):
        if row.family != family:
            family = row.family
            yield f"{family.capitalize()} endpoints"
        n = f"n {row.n_a} v {row.n_b}" if row.comparison else f"n {row.n_b}"
        of = f"{row.assay}: " if "assay" in keys else ""
        yield f"  {of}{row.endpoint} in {row.region}: {row.comparison or 'no comparison'}, {n}"
        if row.comparison:
            change = _with_interval(row.percent_change, row.ci_low, row.ci_high, " %")
            yield f"    mean {_short(row.mean_a)} v {_short(row.mean_b)}; change {change}; g {_short(row.hedges_g)}"
        if not math.isnan(row.p):
            df = "" if math.isnan(row.df) else f", df {row.df:.3g}"
            adjusted = f"{row.p_adjusted:.3g} adjusted ({row.adjustment})"
            yield f"    {row.test}: statistic {row.statistic:.3g}{df}, p {row.p:.3g}; {adjusted}"
        if row.flags:
            yield f"    ! {row.flags}"
    for row in records(found.tables.get("correlations", found.tables["statistics"].iloc[:0])):
        r = _with_interval(row.r, row.ci_low, row.ci_high, "")
        p = "" if math.isnan(row.p) else f", p {row.p:.3g}, {row.p_adjusted:.3g} adjusted"
        about = f"{row.endpoint} in {row.region} with {row.outcome}, {row.scope}, {row.method}"
        yield f"  {about}: n {row.n}, r {r}{p}" + (f" ({row.flags})" if row.flags else "")
    yield from (f"note: {note}" for note in found.notes)


def _in_order(families: pd.Series) -> pd.Series:
    """Return sort keys that put families into the order they were adjusted in."""
    return families.map({name: index for index, name in enumerate(FAMILIES)})


def _short(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3g}"


def _with_interval(value: float, low: float, high: float, unit: str) -> str:
    told = f"{_short(value)}{unit if not math.isnan(value) else ''}"
    return told if math.isnan(low) else f"{told} [{low:.3g}, {high:.3g}]"


def as_json(found: Inference) -> str:
    """Return all tables as JSON, rows by column; what is not defined is null."""
    tables = {
        name: json.loads(table.to_json(orient="records", double_precision=15)) for name, table in found.tables.items()
    }
    return json.dumps(tables | {"notes": list(found.notes)}, indent=2, ensure_ascii=False)
