"""Counts of several raters of the same images: intraclass correlation, Bland-Altman limits, coefficient of variation.

Notation: n images (rows) are each counted by k raters (columns). MSR, MSC and MSE are the mean squares of rows, columns
and residual of the two-way analysis of variance, MSW the mean square within rows of the one-way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histoquant.analysis.agreement import match_points
from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

IccForm = Literal["1,1", "A,1", "C,1"]

LEVEL = 0.95
"""Confidence of the intervals, and share of differences within the limits of agreement."""


@dataclass(frozen=True)
class Icc:
    """An intraclass correlation with its confidence interval.

    Attributes
    ----------
    form : str
        As McGraw and Wong name it: ``1,1`` one-way random; ``A,1`` two-way, absolute agreement: a rater who counts
        more than another lowers it; ``C,1`` two-way, consistency: only the order counts.
    value, low, high : float
        nan when it is not defined: fewer than 2 images or raters, or no image differs from any other.
    n_images, n_raters : int
    """

    form: str
    value: float
    low: float
    high: float
    n_images: int
    n_raters: int

    def as_dict(self) -> dict[str, Any]:
        """Return the parts by name, for JSON."""
        return asdict(self)


def icc(counts: ArrayLike, form: IccForm = "A,1") -> Icc:
    """Return the intraclass correlation of single counts.

    Parameters
    ----------
    counts : (n, k) float
        One row per image, one column per rater.
    form : {"1,1", "A,1", "C,1"}
        For counts that are to be compared between raters, ``A,1``.

    Raises
    ------
    InputError
        If the table is not of n rows and k columns, or holds a value that is not finite.

    References
    ----------
    Shrout, Fleiss 1979, Psychological Bulletin 86:420-428; McGraw, Wong 1996, Psychological Methods 1:30-46 (table 4
    for the values, table 7 for the intervals; with the corrections of 1996, 1:390).

    Examples
    --------
    >>> round(icc([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]).value, 2)
    0.29
    """
    from scipy.stats import f as fisher

    x = np.asarray(counts, dtype=float)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(
            f"Counts of shape {x.shape} are no full table.", "Give one row per image, one column per rater."
        )
    n, k = x.shape
    undefined = Icc(form, math.nan, math.nan, math.nan, n, k)
    if n < 2 or k < 2:
        return undefined
    rows, columns, mean = x.mean(axis=1), x.mean(axis=0), x.mean()
    msr = float(k * ((rows - mean) ** 2).sum() / (n - 1))
    msc = float(n * ((columns - mean) ** 2).sum() / (k - 1))
    mse = float(((x - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (k - 1)))
    msw = float(((x - rows[:, None]) ** 2).sum() / (n * (k - 1)))
    upper = (1 + LEVEL) / 2
    if form == "A,1":
        below = msr + (k - 1) * mse + k * (msc - mse) / n
        if not below > 0:
            return undefined
        value = (msr - mse) / below
        if mse == 0 and msc == 0:
            return Icc(form, 1.0, 1.0, 1.0, n, k)  # every rater says the same of every image
        if value >= 1:
            return Icc(form, value, math.nan, math.nan, n, k)
        a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
        degrees = (a * msc + b * mse) ** 2 / ((a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1)))
        rest = (k * n - k - n) * mse
        over, under = float(fisher.ppf(upper, n - 1, degrees)), float(fisher.ppf(upper, degrees, n - 1))
        low = n * (msr - over * mse) / (over * (k * msc + rest) + n * msr)
        high = n * (under * msr - mse) / (k * msc + rest + n * under * msr)
        return Icc(form, value, low, high, n, k)
    noise, degrees = (msw, n * (k - 1)) if form == "1,1" else (mse, (n - 1) * (k - 1))
    if not msr + (k - 1) * noise > 0:
        return undefined
    value = (msr - noise) / (msr + (k - 1) * noise)
    if noise == 0:
        return Icc(form, 1.0, 1.0, 1.0, n, k)
    low = msr / noise / float(fisher.ppf(upper, n - 1, degrees))
    high = msr / noise * float(fisher.ppf(upper, degrees, n - 1))
    return Icc(form, value, (low - 1) / (low + k - 1), (high - 1) / (high + k - 1), n, k)


@dataclass(frozen=True)
class BlandAltman:
    """How two raters' counts of the same images differ.

    Attributes
    ----------
    n : int
        Images.
    bias : float
        Mean of first - second; nan without images.
    sd : float
        Standard deviation of the differences; nan below 2 images.
    low, high : float
        Limits of agreement, bias -+ 1.96 SD: where 95 % of the differences lie, if they are normal.
    bias_percent : float
        Bias in percent of the mean of both; nan when both counted nothing.
    """

    n: int
    bias: float
    sd: float
    low: float
    high: float
    bias_percent: float

    def as_dict(self) -> dict[str, Any]:
        """Return the parts by name, for JSON."""
        return asdict(self)


def bland_altman(first: ArrayLike, second: ArrayLike) -> BlandAltman:
    """Compare two raters' counts of the same images.

    Parameters
    ----------
    first, second : (n,) float

    Raises
    ------
    InputError
        If they are not of one length, or hold a value that is not finite.

    References
    ----------
    Bland, Altman 1986, Lancet 327:307-310.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(f"Counts of shapes {a.shape} and {b.shape} cannot be compared.", "Give one count per image.")
    if not len(a):
        return BlandAltman(0, *[math.nan] * 5)
    difference = a - b
    bias = float(difference.mean())
    sd = float(difference.std(ddof=1)) if len(a) > 1 else math.nan
    middle = float((a + b).mean() / 2)
    percent = 100 * bias / middle if middle else math.nan
    return BlandAltman(len(a), bias, sd, bias - 1.96 * sd, bias + 1.96 * sd, percent)


@dataclass(frozen=True)
class Pair:
    """One rater against another; of the run, ``first`` is the run and ``second`` the truth.

    Attributes
    ----------
    marker, first, second : str
    n_first, n_second, tp : int
        Places of either, and pairs of them.
    counts : tuple of (slide_id, region, n_first, n_second, tp)
        The same, image by image.
    bland_altman : BlandAltman
        Of the counts, first - second.
    """

    marker: str
    first: str
    second: str
    counts: tuple[tuple[str, str, int, int, int], ...]
    bland_altman: BlandAltman

    @property
    def n_first(self) -> int:
        """Places of the first."""
        return sum(row[2] for row in self.counts)

    @property
    def n_second(self) -> int:
        """Places of the second."""
        return sum(row[3] for row in self.counts)

    @property
    def tp(self) -> int:
        """Pairs of places."""
        return sum(row[4] for row in self.counts)

    @property
    def precision(self) -> float:
        """Share of the first's places that the second has; nan without any."""
        return self.tp / self.n_first if self.n_first else math.nan

    @property
    def recall(self) -> float:
        """Share of the second's places that the first has; nan without any."""
        return self.tp / self.n_second if self.n_second else math.nan

    @property
    def f1(self) -> float:
        """2 pairs / all places of both; nan without any."""
        both = self.n_first + self.n_second
        return 2 * self.tp / both if both else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON; None where a ratio is not defined."""
        numbers = {name: getattr(self, name) for name in ("n_first", "n_second", "tp", "precision", "recall", "f1")}
        told = {"marker": self.marker, "first": self.first, "second": self.second, "n_images": len(self.counts)}
        whole: dict[str, Any] = plain(told | numbers | {"bland_altman": self.bland_altman.as_dict()})
        return whole


@dataclass(frozen=True)
class Correlated:
    """Counts of several raters, of the images that all of them looked at.

    Attributes
    ----------
    marker : str
    raters : tuple of str
    forms : tuple of Icc
        ``A,1``, ``C,1`` and ``1,1``.
    cv_percent : float
        Mean over images of 100 SD / mean over raters; nan below two raters.
    """

    marker: str
    raters: tuple[str, ...]
    forms: tuple[Icc, ...]
    cv_percent: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON; None where a number is not defined."""
        told = {"marker": self.marker, "raters": list(self.raters), "cv_percent": self.cv_percent}
        whole: dict[str, Any] = plain(told | {"icc": [one.as_dict() for one in self.forms]})
        return whole


def cv_percent(counts: ArrayLike) -> NDArray[np.float64]:
    """Return 100 s / mean over the raters of each image; nan for an image where all counted nothing.

    Parameters
    ----------
    counts : (n, k) float
        At least two raters.
    """
    x = np.asarray(counts, dtype=float)
    mean = x.mean(axis=1)
    cv: NDArray[np.float64] = 100 * x.std(axis=1, ddof=1) / np.where(mean > 0, mean, np.nan)
    return cv


def consensus(raters: Sequence[ArrayLike], *, tolerance_um: float) -> NDArray[np.float64]:
    """Return the places that more than half of the raters marked: the mean of their marks; (n, 2) float.

    Raters are taken one after the other, each mark joined one to one with the nearest place so far, within the
    tolerance of the mean of its marks.

    Parameters
    ----------
    raters : sequence of (n, 2) float
        Marks in um.
    """
    centre, votes = np.empty((0, 2)), np.empty(0, dtype=int)
    for marks in raters:
        points = np.asarray(marks, dtype=float).reshape(-1, 2)
        mine, place = match_points(points, centre, tolerance_um=tolerance_um).pairs.T
        new = np.setdiff1d(np.arange(len(points)), mine)
        centre[place] += (points[mine] - centre[place]) / (votes[place, None] + 1)
        votes[place] += 1
        centre, votes = np.concatenate([centre, points[new]]), np.concatenate([votes, np.ones(len(new), dtype=int)])
    return centre[2 * votes > len(raters)]


def plain(told: Any) -> Any:
    """Return what JSON can hold: None for nan, in dicts and lists too."""
    if isinstance(told, dict):
        return {name: plain(value) for name, value in told.items()}
    if isinstance(told, list):
        return [plain(value) for value in told]
    return None if isinstance(told, float) and math.isnan(told) else told
