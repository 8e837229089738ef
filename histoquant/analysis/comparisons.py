"""Tests of groups of animals against one reference group, and the adjustment for having made several.

Every array holds one value per animal.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.effects import LEVEL, UNDEFINED, Interval, difference, welch_error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Values = Mapping[str, "NDArray[np.float64]"]

MAX_SD_RATIO = 2.0
"""Dunnett's test takes all groups for equally spread; beyond this ratio of SDs each is compared by itself."""

SEED = 20240501
"""Of random numbers in tests (Dunnett's integral, permutations too many to list): the same table every time."""

MOST_LISTED = 20_000
"""Up to this number all permutations are made (8 against 8 animals have 12,870), beyond it `DRAWS` random ones."""
DRAWS = 9_999

NO_SPREAD = "no test: the values do not vary"


@dataclass(frozen=True)
class Comparison:
    """A group against the reference group.

    Attributes
    ----------
    p : float
        Of the test; Dunnett's is adjusted for the number of groups already.
    p_alone : float
        As if this were the only comparison; what families are adjusted from.
    interval : Interval
        Of the difference of means. ``simultaneous`` when those of all groups hold together.
    smallest_p : float
        What a test of ranks or permutations can reach at best; NaN for others.
    """

    test: str
    statistic: float = math.nan
    df: float = math.nan
    p: float = math.nan
    p_alone: float = math.nan
    interval: Interval = UNDEFINED
    simultaneous: bool = False
    smallest_p: float = math.nan
    flags: tuple[str, ...] = ()


def too_few(a: ArrayLike, b: ArrayLike) -> str:
    """Return why two groups cannot be tested; empty when they can."""
    n = sorted((np.size(a), np.size(b)))
    return "" if n[0] > 1 else f"no test: n = {np.size(a)} against {np.size(b)} animals"


def compare_means(groups: Values, reference: NDArray[np.float64], *, level: float = LEVEL) -> dict[str, Comparison]:
    """Compare means: Welch's t for one group, Dunnett's test for several.

    When the largest SD is more than `MAX_SD_RATIO` times the smallest, several groups are each compared by Welch's t,
    and their family is adjusted by Holm's method, which is flagged.
    """
    found = {name: Comparison("", flags=(too_few(a, reference),)) for name, a in groups.items()}
    able = {name: a for name, a in groups.items() if not too_few(a, reference)}
    sds = [float(np.std(x, ddof=1)) for x in (*able.values(), reference)] if able else []
    if len(able) < 2:
        return found | {name: welch(a, reference, level=level) for name, a in able.items()}
    if max(sds) > MAX_SD_RATIO * min(sds):
        flag = f"SDs differ more than {MAX_SD_RATIO:g}-fold: Welch's t in place of Dunnett's test"
        return found | {name: welch(a, reference, level=level, flags=(flag,)) for name, a in able.items()}
    if max(sds) == 0:
        return found | {name: welch(a, reference, level=level) for name, a in able.items()}
    return found | dunnett(able, reference, level=level)


def welch(
    a: NDArray[np.float64], b: NDArray[np.float64], *, level: float = LEVEL, flags: tuple[str, ...] = ()
) -> Comparison:
    """Compare two means without taking their SDs for equal."""
    from scipy.stats import t

    interval = difference(a, b, level=level)
    if np.ptp(a) == np.ptp(b) == 0:
        return Comparison("Welch t", interval=interval, flags=(*flags, NO_SPREAD))
    se, df = welch_error(a, b)
    statistic = interval.value / se
    p = float(2 * t.sf(abs(statistic), df))
    return Comparison("Welch t", statistic, df, p, p, interval, flags=flags)


def dunnett(groups: Values, reference: NDArray[np.float64], *, level: float = LEVEL) -> dict[str, Comparison]:
    """Compare several means with one, by Dunnett's test; intervals of the differences are simultaneous."""
    from scipy.stats import dunnett as many_to_one
    from scipy.stats import t

    result = many_to_one(*groups.values(), control=reference, rng=np.random.default_rng(SEED))
    ends = result.confidence_interval(level)
    df = sum(map(len, groups.values())) + len(reference) - len(groups) - 1
    found = {}
    for index, (name, a) in enumerate(groups.items()):
        statistic = float(result.statistic[index])
        alone = float(2 * t.sf(abs(statistic), df))
        # The integral has an error of about 1e-5; a p below that of the one comparison cannot be.
        p = max(float(result.pvalue[index]), alone)
        interval = Interval(float(a.mean() - reference.mean()), float(ends.low[index]), float(ends.high[index]))
        found[name] = Comparison("Dunnett", statistic, df, p, alone, interval, simultaneous=True)
    return found


def compare_ranks(groups: Values, reference: NDArray[np.float64], *, level: float = LEVEL) -> dict[str, Comparison]:
    """Compare by the exact Mann-Whitney test, each group by itself; with ties all assignments of animals are made."""
    from scipy.stats import PermutationMethod, mannwhitneyu

    found = {}
    for name, a in groups.items():
        if reason := too_few(a, reference):
            found[name] = Comparison("", flags=(reason,))
            continue
        both = np.concatenate([a, reference])
        tied = len(np.unique(both)) < len(both)
        possible = math.comb(len(both), len(a))
        draws = np.inf if possible <= MOST_LISTED else DRAWS
        method = PermutationMethod(n_resamples=draws, rng=np.random.default_rng(SEED)) if tied else "exact"
        result = mannwhitneyu(a, reference, method=method)
        smallest = 2 / (possible if possible <= MOST_LISTED or not tied else DRAWS + 1)
        found[name] = _without_df(
            "Mann-Whitney, exact" if draws == np.inf or not tied else f"Mann-Whitney, {DRAWS} permutations",
            float(result.statistic),
            float(result.pvalue),
            difference(a, reference, level=level),
            smallest,
        )
    return found


def compare_permuted(
    groups: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, float],
    *,
    blocks: Mapping[str, str] | None = None,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compare by exchanging animals between a group and the reference; the statistic is Welch's t.

    A studentised statistic keeps the level also when the groups differ in spread (Janssen 1997).

    Parameters
    ----------
    groups, reference : animal -> value
    blocks : animal -> block
        Animals are exchanged within their block only (sex, cohort).
    """
    found = {}
    for name, group in groups.items():
        a, b = (np.array(list(members.values()), dtype=float) for members in (group, reference))
        if reason := too_few(a, b):
            found[name] = Comparison("", flags=(reason,))
            continue
        values = np.concatenate([a, b])
        if np.ptp(values) == 0:
            found[name] = Comparison("permutation of animals", flags=(NO_SPREAD,))
            continue
        held = blocks or {}
        places: dict[str, list[int]] = {}
        for index, animal in enumerate((*group, *reference)):
            places.setdefault(held.get(animal, ""), []).append(index)
        sizes = [sum(index < len(a) for index in block) for block in places.values()]
        masks, all_of_them = _assignments(tuple(map(tuple, places.values())), tuple(sizes), len(values))
        observed = float(_welch_t(values, np.arange(len(values)) < len(a)))
        # Equal statistics in another order of adding must count as equal.
        extreme = int((np.abs(_welch_t(values, masks)) >= abs(observed) * (1 - 1e-9)).sum())
        p = extreme / len(masks) if all_of_them else (extreme + 1) / (len(masks) + 1)
        mirrored = all(2 * size == len(block) for size, block in zip(sizes, places.values(), strict=True))
        smallest = (2 if mirrored else 1) / len(masks) if all_of_them else 1 / (len(masks) + 1)
        test = "permutation of animals" + (" within blocks" if len(places) > 1 else "")
        test += ", exact" if all_of_them else f", {DRAWS} draws"
        found[name] = _without_df(test, observed, p, difference(a, b, level=level), smallest)
    return found


def _without_df(test: str, statistic: float, p: float, interval: Interval, smallest: float) -> Comparison:
    return Comparison(test, statistic, math.nan, p, p, interval, smallest_p=smallest)


@functools.lru_cache(maxsize=4)  # the endpoints of a study have the same animals
def _assignments(blocks: tuple[tuple[int, ...], ...], sizes: tuple[int, ...], n: int) -> tuple[NDArray[np.bool_], bool]:
    """Return which animals form the first group in every assignment, or in random ones when there are too many.

    Parameters
    ----------
    blocks : indices of the animals of each block
    sizes : how many of each block belong to the first group

    Returns
    -------
    (assignments, n) bool, and whether these are all
    """
    possible = math.prod(math.comb(len(block), size) for block, size in zip(blocks, sizes, strict=True))
    if possible > MOST_LISTED:
        rng = np.random.default_rng(SEED)
        masks = np.zeros((DRAWS, n), dtype=bool)
        for block, size in zip(blocks, sizes, strict=True):
            chosen = np.argsort(rng.random((DRAWS, len(block))), axis=1)[:, :size]
            np.put_along_axis(masks, np.asarray(block)[chosen], True, axis=1)
        return masks, False
    choices = (itertools.combinations(block, size) for block, size in zip(blocks, sizes, strict=True))
    masks = np.zeros((possible, n), dtype=bool)
    for row, parts in enumerate(itertools.product(*choices)):
        masks[row, list(itertools.chain(*parts))] = True
    return masks, True


def _welch_t(values: NDArray[np.float64], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return Welch's t of every assignment; infinite where a difference has no spread."""
    centred = values - values.mean()
    first = masks.astype(float)
    means, parts = [], []
    for share in (first, 1 - first):
        n = share.sum(axis=-1)
        mean = share @ centred / n
        means.append(mean)
        parts.append((share @ centred**2 - n * mean**2).clip(min=0) / (n - 1) / n)
    gap, squared = means[0] - means[1], parts[0] + parts[1]
    flat = squared <= 1e-12 * float(centred @ centred)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = gap / np.sqrt(np.where(flat, 0.0, squared))
    return np.asarray(np.where(flat & (np.abs(gap) <= 1e-6 * np.abs(centred).max()), 0.0, t))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p adjusted by Holm's method; all are of one family."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Return p adjusted for the false discovery rate of Benjamini and Hochberg."""
    values = np.asarray(p, dtype=float)
    if not values.size:
        return values
    from scipy.stats import false_discovery_control  # a second to load, for nothing in a study without tests

    return np.asarray(false_discovery_control(values))
