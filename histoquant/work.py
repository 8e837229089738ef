"""A slide, a recipe and what was surveyed, tied together: what every step of the path needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from histoquant import registry
from histoquant.analysis import positivity
from histoquant.analysis.positivity import Scene, Threshold
from histoquant.model.panel import Panel, bound, called_markers, channel_of
from histoquant.model.recipe import Recipe, plugin_parameters
from histoquant.model.slide import Slide
from histoquant.stained import stained
from histoquant.survey import Survey

DEFAULT_OBJECT_UM = 40.0
"""Largest object kept exact at seams when neither it nor a diameter is known."""


@dataclass(frozen=True)
class Work:
    """A slide, a recipe and what was surveyed, tied together: what every step of the path needs.

    A brightfield slide is given as it was opened, and is here what the recipe reads: its stains.
    """

    slide: Slide
    recipe: Recipe
    survey: Survey

    def __post_init__(self) -> None:
        if self.survey.stains is not None:
            object.__setattr__(self, "slide", stained(self.slide, self.survey.stains))

    @cached_property
    def panel(self) -> Panel:
        """The recipe's panel with the channel names of this slide."""
        return bound(self.recipe.panel, self.slide)

    @cached_property
    def max_object_um(self) -> float:
        """Extent up to which objects are exact at seams."""
        stated = self.recipe.tiles.max_object_um
        diameter = self.survey.segmenter.get("diameter_um")
        return stated or (2.5 * diameter if diameter else DEFAULT_OBJECT_UM)

    @cached_property
    def unstained(self) -> tuple[str, ...]:
        """Names of the channels that show autofluorescence only."""
        return tuple(name for name, marker in self.panel.items() if marker.role == "autofluorescence")

    @cached_property
    def order_statistics(self) -> dict[str, tuple[int, str, float]]:
        """What the rules need to know of the pixels, for `measure.measure_nuclei`."""
        return {
            f"{name}_quantile": (self.channel(name), self.panel[name].role, self.panel[name].fraction)
            for name in called_markers(self.panel)
        }

    @cached_property
    def correlations(self) -> dict[str, tuple[int, int]]:
        """Which channels are correlated over each cell, for `measure.measure_nuclei`."""
        return {
            positivity.correlation_column(name, other): (self.channel(name), self.channel(other))
            for name in called_markers(self.panel)
            for other in self.unstained
        }

    def channel(self, marker: str) -> int:
        """Return where a marker's channel stands among the surveyed ones."""
        return self.survey.channels.index(str(self.panel[marker].channel))

    def noise(self, marker: str) -> float:
        """Return the standard deviation of background pixels in a marker's channel."""
        return float(self.survey.noise[self.channel(marker)])

    @cached_property
    def rules(self) -> dict[str, positivity.Rule]:
        """The positivity rule of each called marker."""
        return rules_of(self.panel)

    def scene(self, thresholds: Mapping[str, Threshold]) -> Scene:
        """Return what rules may know of the slide."""
        noise = {c: float(n) for c, n in zip(self.survey.channels, self.survey.noise, strict=True)}
        return Scene(thresholds, noise)


def rules_of(panel: Panel) -> dict[str, positivity.Rule]:
    """Return the positivity rule of each called marker of a bound panel.

    Raises
    ------
    PluginError, RecipeError
        If a rule is missing, or its parameters do not fit.
    """
    rules = {}
    for name in called_markers(panel):
        marker = panel[name]
        assert marker.positive is not None
        cls = registry.load("rule", marker.rule)
        where = f"[panel.{name}] positive, rule '{marker.rule}'"
        params = plugin_parameters(cls.Params, marker.positive.parameters, where=where)
        rules[name] = cls(name, str(channel_of(name, marker)), params)
    return rules
