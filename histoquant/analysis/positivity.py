"""Thresholds, positive calls, death classes and double labels: all from the finished table, never from pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from histoquant.errors import InputError
from histoquant.model.panel import Marker, Panel, called_markers, channel_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MAD_TO_SD = 1.4826
AUTOFLUORESCENCE_K = 5.0
AUTOFLUORESCENCE_CORRELATION = 0.8
MIN_CONTROL_NUCLEI = 20


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from.

    Attributes
    ----------
    value : float
        Intensity above local background, raw units.
    source : str
        ``fixed``, ``auto`` or ``controls``.
    detail : mapping
        What it was computed from: sections, number of nuclei, median, spread.
    """

    value: float
    source: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """What a rule may know of a slide beyond its table of cells.

    Attributes
    ----------
    thresholds : marker -> Threshold
    noise : channel -> float
        Standard deviation of background pixels, raw units.
    """

    thresholds: Mapping[str, Threshold]
    noise: Mapping[str, float]

    def scaled(self, factor: float) -> Scene:
        """Return the scene with every threshold multiplied."""
        return replace(self, thresholds={m: replace(t, value=t.value * factor) for m, t in self.thresholds.items()})


class Rule(Protocol):
    """What `call` asks of a positivity rule; `histoquant.registry.Rule` is the whole promise of a plug-in."""

    def value(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the number per cell that is compared with the threshold; NaN where not defined."""
        ...

    def __call__(self, table: pd.DataFrame, scene: Scene) -> NDArray[np.bool_]:
        """Return whether each cell is positive."""
        ...


class _NoParameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Nuclear:
    """Positive when the nucleus' mean is at or above the threshold and so is enough of its area.

    The second condition rejects bright neighbours, red cells and specks of lipofuscin: the column
    ``<marker>_quantile`` holds the intensity that the asked share of the nucleus' pixels reach. An object of the
    marker attached to the nucleus (``<marker>_attached``) makes it positive as well.
    """

    api = 1

    class Params(_NoParameters):
        """The rule has no parameters of its own; the share of pixels is ``fraction`` of the marker."""

    def __init__(self, marker: str, channel: str, params: Params) -> None:
        self.marker, self.channel, self.params = marker, channel, params

    def value(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the nucleus' mean above local background."""
        return _column(table, f"mean_{self.channel}") - _column(table, f"background_{self.channel}")

    def __call__(self, table: pd.DataFrame, scene: Scene) -> NDArray[np.bool_]:
        """Return whether each cell is positive."""
        threshold = scene.thresholds[self.marker].value
        positive = (self.value(table) >= threshold) & (_column(table, f"{self.marker}_quantile") >= threshold)
        if f"{self.marker}_attached" in table:
            positive |= _column(table, f"{self.marker}_attached") >= threshold
        return positive


class Ring:
    """Positive when enough of a ring round the nucleus is at or above the threshold (somata: DCX)."""

    api = 1

    class Params(_NoParameters):
        """The rule has no parameters of its own; the share of pixels is ``fraction`` of the marker."""

    def __init__(self, marker: str, channel: str, params: Params) -> None:
        self.marker, self.channel, self.params = marker, channel, params

    def value(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the intensity above local background that the asked share of the ring reaches."""
        return _column(table, f"{self.marker}_quantile")

    def __call__(self, table: pd.DataFrame, scene: Scene) -> NDArray[np.bool_]:
        """Return whether each cell is positive."""
        return self.value(table) >= scene.thresholds[self.marker].value


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name], dtype=np.float64)


def control_threshold(values: NDArray[np.float64], marker: Marker, *, sections: Sequence[str]) -> Threshold:
    """Return the threshold that negative-control sections give.

    ``median + k x 1.4826 x MAD`` of the values of all their nuclei together, or a quantile of them.

    Parameters
    ----------
    values : (n,) float64
        Value of every nucleus of the batch's control sections; NaN ignored.

    Raises
    ------
    InputError
        If there are fewer than 20 nuclei, or the threshold would not be above 0.
    """
    settings = marker.positive
    assert settings is not None
    values = values[np.isfinite(values)]
    named = ", ".join(sections)
    if len(values) < MIN_CONTROL_NUCLEI:
        raise InputError(
            f"The control section(s) {named} hold {len(values)} nuclei, too few for a threshold.",
            f"Use control sections with at least {MIN_CONTROL_NUCLEI} nuclei, or a fixed threshold.",
        )
    median, spread = _centre(values)
    if settings.quantile is not None:
        value = float(np.quantile(values, settings.quantile))
    else:
        value = median + settings.k * spread
    detail = {"sections": list(sections), "n_nuclei": len(values), "median": median, "robust_sd": spread}
    return _above_zero(Threshold(value, "controls", detail), named)


def automatic_threshold(values: NDArray[np.float64], marker: Marker, *, sections: Sequence[str]) -> Threshold:
    """Return a threshold from all nuclei of a staining batch together.

    Otsu's split of the values, but at least ``median + k`` robust SDs of the lower half: with few or no positives
    Otsu's criterion would cut the negatives in two.

    Raises
    ------
    InputError
        If there are no nuclei, or the threshold would not be above 0.
    """
    settings = marker.positive
    assert settings is not None
    values = values[np.isfinite(values)]
    named = ", ".join(sections)
    if not len(values):
        raise InputError(f"The section(s) {named} hold no nuclei to take a threshold from.", "State a fixed threshold.")
    from skimage.filters import threshold_otsu

    median = float(np.median(values))
    lower = values[values <= median]
    spread = MAD_TO_SD * float(np.median(median - lower))
    otsu = float(threshold_otsu(values)) if values.min() < values.max() else median
    value = max(otsu, median + settings.k * spread)
    detail = {"sections": list(sections), "n_nuclei": len(values), "median": median, "robust_sd": spread, "otsu": otsu}
    return _above_zero(Threshold(value, "auto", detail), named)


def stated_or_found(values: NDArray[np.float64], marker: Marker, *, sections: Sequence[str]) -> Threshold:
    """Return the threshold of a marker as its settings say: as stated, from controls, or automatic.

    Parameters
    ----------
    values : (n,) float64
        Value of every nucleus of the sections that decide; not looked at when the threshold is stated.

    Raises
    ------
    InputError
        As `control_threshold` and `automatic_threshold` do.
    """
    assert marker.positive is not None
    stated = marker.positive.threshold
    if isinstance(stated, float):
        return Threshold(stated, "fixed")
    find = control_threshold if stated == "controls" else automatic_threshold
    return find(values, marker, sections=sections)


def _centre(values: NDArray[np.float64]) -> tuple[float, float]:
    median = float(np.median(values))
    return median, MAD_TO_SD * float(np.median(np.abs(values - median)))


def _above_zero(threshold: Threshold, named: str) -> Threshold:
    if not threshold.value > 0:
        raise InputError(
            f"The section(s) {named} give a threshold of {threshold.value:g}, which is not above background.",
            "Look at these sections, or state a fixed threshold.",
        )
    return threshold


def call(table: pd.DataFrame, panel: Panel, rules: Mapping[str, Rule], scene: Scene) -> pd.DataFrame:
    """Add the calls of every marker to a measured table.

    Parameters
    ----------
    table : DataFrame
        Measured cells.
    rules : marker -> Rule

    Returns
    -------
    DataFrame
        With ``<marker>_value``, ``<marker>_positive``, and where they apply ``<marker>_autofluorescent`` (bright in an
        unstained channel and correlated with it pixel by pixel; not positive) and ``<marker>_class``.
    """
    called = table.copy(deep=False)
    for name in called_markers(panel):
        marker, rule = panel[name], rules[name]
        called[f"{name}_value"] = rule.value(table)
        positive = np.asarray(rule(table, scene), dtype=bool)
        glow = autofluorescent(table, name, panel, scene)
        if glow is not None:
            called[f"{name}_autofluorescent"] = glow & positive
            positive = positive & ~glow
        called[f"{name}_positive"] = positive
        if marker.death_classes:
            called[f"{name}_class"] = death_classes(table, positive, panel)
    return called


def autofluorescent(table: pd.DataFrame, name: str, panel: Panel, scene: Scene) -> NDArray[np.bool_] | None:
    """Return which objects shine in an unstained channel as they do in the marker's; None without such a channel.

    Brighter than background by 5 robust SDs in the unstained channel, and pixel correlation above 0.8.
    """
    unstained = [other for other, marker in panel.items() if marker.role == "autofluorescence"]
    if not unstained:
        return None
    found = np.zeros(len(table), dtype=bool)
    for other in unstained:
        channel = str(channel_of(other, panel[other]))
        above = _column(table, f"mean_{channel}") - _column(table, f"background_{channel}")
        bright = above > AUTOFLUORESCENCE_K * scene.noise[channel]
        found |= bright & (_column(table, correlation_column(name, other)) > AUTOFLUORESCENCE_CORRELATION)
    return found


def correlation_column(marker: str, unstained: str) -> str:
    """Return the column that holds the pixel correlation of a marker with an unstained channel."""
    return f"{marker}_correlation_{unstained}"


def death_classes(table: pd.DataFrame, positive: NDArray[np.bool_], panel: Panel) -> NDArray[np.object_]:
    """Return ``condensed``, ``diffuse`` or ``fragmented`` for each positive cell, empty for the others.

    Condensed: smaller than 0.6 of the slide's median nuclear area and counterstain mean above 1.5 of its median.
    Fragmented: several pieces joined into one cell (column ``n_pieces``).
    """
    counterstain = next(name for name, marker in panel.items() if marker.role == "counterstain")
    channel = str(channel_of(counterstain, panel[counterstain]))
    above = _column(table, f"mean_{channel}") - _column(table, f"background_{channel}")
    area = _column(table, "area_um2")
    classes = np.full(len(table), "", dtype=object)
    if not len(table):
        return classes
    condensed = (area < 0.6 * np.median(area)) & (above > 1.5 * np.median(above))
    classes[positive] = "diffuse"
    classes[positive & condensed] = "condensed"
    classes[positive & (np.asarray(table["n_pieces"]) > 1)] = "fragmented"
    return classes
