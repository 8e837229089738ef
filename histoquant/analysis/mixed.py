"""Sections nested in animals: a linear model with a random intercept per animal.

statsmodels takes the normal distribution for the test of a fixed effect, which is wrong for a dozen animals: groups
differ between animals, so the t distribution with (animals - groups) degrees of freedom is taken here. It may also
return a fit whose variance between animals has collapsed to 0 and call it converged: here a warning is a failure, and a
fit must agree with the t of the animals' means.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from histoquant.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

EXTRA = "pip install 'histoquant[stats]'"

BALANCED_TOLERANCE = 1e-3
"""With as many sections in every animal both t are the same but for the optimiser's error."""

UNBALANCED_TOLERANCE = 0.5
"""With unequal numbers the model weights animals otherwise; a t that is further away than this and a quarter of itself
is the collapsed fit."""


class MixedFit(NamedTuple):
    """Tests of the groups against the reference; ``failed`` says why there are none."""

    t: dict[str, float]
    df: int
    p: dict[str, float]
    failed: str


def require_statsmodels() -> None:
    """Raise what to install when the mixed model cannot be fitted.

    Raises
    ------
    MissingExtraError
        If statsmodels is not installed.
    """
    from importlib.util import find_spec

    if find_spec("statsmodels") is None:
        raise MissingExtraError("The mixed model needs statsmodels, which is not installed.", f"Install it: {EXTRA}")


def fit_mixed(sections: pd.DataFrame, reference: str) -> MixedFit:
    """Fit value ~ group + (1 | animal) by restricted maximum likelihood, and test groups against the reference.

    Parameters
    ----------
    sections : DataFrame
        ``animal``, ``group``, ``value``; one row per section, no value missing.
    reference : str
        Group that the others are compared with.

    Raises
    ------
    MissingExtraError
        If statsmodels is not installed.
    """
    require_statsmodels()
    from scipy.stats import t as student

    others = [name for name in dict.fromkeys(sections["group"]) if name != reference]
    n_animals = sections["animal"].nunique()
    df = n_animals - len(others) - 1
    sizes = sections.groupby("animal")["value"].size()
    reason = _unfit(sections, sizes, df)
    if reason:
        return MixedFit({}, df, {}, reason)
    of_animals = _animal_t(sections, reference, others, df)
    t, warned = _fitted(sections, others)
    if warned:
        return MixedFit({}, df, {}, f"statsmodels: {warned}")
    for name in others:
        off = abs(t[name] - of_animals[name])
        balanced = sizes.nunique() == 1
        allowed = BALANCED_TOLERANCE * max(1.0, abs(of_animals[name]))
        if not balanced:
            allowed = UNBALANCED_TOLERANCE + abs(of_animals[name]) / 4
        if not off <= allowed:
            told = f"t of {name} is {t[name]:.3g}, that of the animals' means {of_animals[name]:.3g}"
            return MixedFit({}, df, {}, f"the fit is not to be trusted: {told}")
    return MixedFit(t, df, {name: float(2 * student.sf(abs(value), df)) for name, value in t.items()}, "")


def _unfit(sections: pd.DataFrame, sizes: pd.Series, df: int) -> str:
    if sections.empty:
        return "it has no values by section"
    if df < 1:
        return "too few animals"
    if sizes.max() < 2:
        return "every animal has one section only"
    if np.ptp(sections["value"].to_numpy(float)) == 0:
        return "the values do not vary"
    return ""


def _fitted(sections: pd.DataFrame, others: Sequence[str]) -> tuple[dict[str, float], str]:
    """Return the estimate over its standard error of every group, or the first thing statsmodels warned of."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    values = sections["value"].to_numpy(float)
    scaled = (values - values.mean()) / values.std()  # far from 0 and 1 the optimisers lose their way
    design = np.column_stack([np.ones(len(values)), *((sections["group"] == name).to_numpy(float) for name in others)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            # Powell first: lbfgs alone collapses the variance between animals and says that it converged.
            result = MixedLM(scaled, design, groups=sections["animal"].to_numpy()).fit(
                reml=True, method=["powell", "lbfgs"]
            )
            errors = result.bse_fe
        except (Warning, ValueError, np.linalg.LinAlgError) as problem:
            return {}, str(problem).split("\n")[0]
    if not np.isfinite(errors).all() or (np.asarray(errors) <= 0).any():
        return {}, "no standard errors"
    return {name: float(result.fe_params[i + 1] / errors[i + 1]) for i, name in enumerate(others)}, ""


def _animal_t(sections: pd.DataFrame, reference: str, others: Sequence[str], df: int) -> dict[str, float]:
    """Return the t of the animals' means, with the SD of all groups together."""
    means = sections.groupby(["group", "animal"])["value"].mean()
    groups: dict[str, NDArray[np.float64]] = {
        name: means[name].to_numpy(float) for name in (reference, *others) if name in means.index.get_level_values(0)
    }
    pooled = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in groups.values()) / df)
    base = groups[reference]
    return {
        name: float((groups[name].mean() - base.mean()) / (pooled * math.sqrt(1 / len(groups[name]) + 1 / len(base))))
        if pooled > 0
        else math.nan
        for name in others
    }
