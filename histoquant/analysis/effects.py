"""How large an effect is, with its interval; and how many animals would show it. Always before any p.

Every array holds one value per animal. ``a`` is the group, ``b`` the one it is compared with. An interval that cannot
be given is NaN.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Of an interval, where nothing else is asked."""

MOST_ANIMALS = 10_000
"""Where the search for a group size ends: no study of animals is larger."""


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, null: float) -> bool:
        """Return whether a value lies outside; never of an interval that is not defined."""
        return bool(self.low > null or self.high < null)


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def percent_change(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the mean of a in percent of that of b, less 100, with the interval of the logarithm of their ratio.

    se^2 = s_a^2 / (n_a m_a^2) + s_b^2 / (n_b m_b^2), with the t of n_a + n_b - 2 degrees of freedom. Without two
    animals in each group, or when a mean is not above 0, there is no interval; over a mean of 0 no change.
    """
    a, b = _values(a), _values(b)
    if not a.size or not b.size or b.mean() <= 0:
        return UNDEFINED
    value = float(100 * (a.mean() / b.mean() - 1))
    if min(a.size, b.size) < 2 or a.mean() <= 0:
        return Interval(value, math.nan, math.nan)
    se = math.sqrt(sum(x.var(ddof=1) / x.size / x.mean() ** 2 for x in (a, b)))
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, a.size + b.size - 2) * se
    centre = math.log(a.mean() / b.mean())
    return Interval(value, *(100 * math.expm1(end) for end in (centre - half, centre + half)))


def difference(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the difference of means with Welch's interval."""
    a, b = _values(a), _values(b)
    if not a.size or not b.size:
        return UNDEFINED
    value = float(a.mean() - b.mean())
    if min(a.size, b.size) < 2 or np.ptp(a) == np.ptp(b) == 0:
        return Interval(value, math.nan, math.nan)
    from scipy.stats import t

    se, df = welch_error(a, b)
    half = float(t.ppf((1 + level) / 2, df)) * se
    return Interval(value, value - half, value + half)


def welch_error(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the standard error of a difference of means and its degrees of freedom, by Welch and Satterthwaite."""
    parts = [float(x.var(ddof=1)) / x.size for x in (a, b)]
    return math.sqrt(sum(parts)), sum(parts) ** 2 / sum(
        v * v / (x.size - 1) for v, x in zip(parts, (a, b), strict=True)
    )


def hedges_g(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the difference in pooled SDs, g = d (1 - 3 / (4 df - 1)), with the interval of the noncentral t.

    References
    ----------
    Hedges L. V. (1981), J. Educ. Stat. 6: 107-128; Cumming G., Finch S. (2001), Educ. Psychol. Meas. 61: 532-574.
    """
    a, b = _values(a), _values(b)
    if min(a.size, b.size) < 2:
        return UNDEFINED
    df = a.size + b.size - 2
    pooled = math.sqrt(((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / df)
    if pooled == 0:
        return UNDEFINED
    correction, scale = 1 - 3 / (4 * df - 1), math.sqrt(1 / a.size + 1 / b.size)
    d = float(a.mean() - b.mean()) / pooled
    ends = (_noncentrality(d / scale, df, share) for share in ((1 + level) / 2, (1 - level) / 2))
    return Interval(correction * d, *(correction * scale * end for end in ends))


def _noncentrality(t: float, df: int, share: float) -> float:
    """Return the noncentrality at which a t as observed or smaller has the given probability."""
    from scipy.optimize import brentq
    from scipy.stats import chi2

    ends = t * np.sqrt(chi2.ppf((1e-12, 1 - 1e-12), df) / df)
    return float(brentq(lambda at: noncentral_t_cdf(t, df, at) - share, ends.min() - 8, ends.max() + 8, xtol=1e-9))


def noncentral_t_cdf(t: float, df: float, shift: float) -> float:
    """Return the probability that a noncentral t, (z + shift) / s with s = sqrt(chi^2 / df), is at most ``t``.

    scipy's ``nct`` gives NaN for a t of the other sign than a large shift. Here it is an integral over s of the normal
    distribution's Phi(t s - shift), or for a large t over z of the probability that s is at least (z + shift) / t:
    whichever is the smoother. Right to 1e-6, with one degree of freedom to 1e-4.
    """
    from scipy.special import gammaincc, gammaincinv, gammaln, ndtr

    if t < 0:
        return 1 - noncentral_t_cdf(-t, df, -shift)
    nodes, weights = _gauss_nodes()
    if t > 5:
        half = 9.0
        z = half * nodes
        least = np.maximum(z + shift, 0) / t  # of s
        held = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * gammaincc(df / 2, df * least**2 / 2)
    else:
        low, high = np.sqrt(2 * gammaincinv(df / 2, (1e-13, 1 - 1e-13)))  # of chi
        half = (high - low) / 2
        chi = low + half * (nodes + 1)
        density = np.exp((df - 1) * np.log(chi) - chi * chi / 2 - (df / 2 - 1) * math.log(2) - gammaln(df / 2))
        held = density * ndtr(t * chi / math.sqrt(df) - shift)
    return float(weights @ held * half)


@functools.cache
def _gauss_nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights


def t_power(n_animals: int, effect: float, *, alpha: float = 0.05) -> float:
    """Return the power of a two-sided t test of two groups of ``n_animals`` each; ``effect`` is in SDs."""
    from scipy.stats import t

    df, shift = 2 * n_animals - 2, abs(effect) * math.sqrt(n_animals / 2)
    critical = t.ppf(1 - alpha / 2, df)
    return 1 - noncentral_t_cdf(critical, df, shift) + noncentral_t_cdf(-critical, df, shift)


def animals_needed(effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return how many animals per group a two-sided t test needs.

    Parameters
    ----------
    effect : float
        Difference of the means in SDs: a reduction by 30 % at a coefficient of variation of 40 % is 0.75.

    Raises
    ------
    InputError
        If the effect is 0, or so small that more than `MOST_ANIMALS` would be needed.
    """
    least, most = 2, 2
    while effect and most < MOST_ANIMALS and t_power(most, effect, alpha=alpha) < power:
        least, most = most + 1, 2 * most
    if not effect or most >= MOST_ANIMALS:
        raise InputError(f"No group of up to {MOST_ANIMALS} animals shows an effect of {effect:g} SD.")
    while least < most:
        middle = (least + most) // 2
        if t_power(middle, effect, alpha=alpha) >= power:
            most = middle
        else:
            least = middle + 1
    return least


def _values(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
