"""Panel: which channel shows which marker, and where in the cell to look for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from histoquant.errors import InputError
from histoquant.model.slide import Slide

Role = Literal["counterstain", "nuclear", "cytoplasmic", "dendrite", "autofluorescence"]
Stain = Literal["hematoxylin", "dab", "eosin", "residual"]

# The compartment a role is read from decides the rule and the share of its pixels that must reach the threshold:
# half of the nucleus (TUNEL, BrdU) or two fifths of a perinuclear ring (DCX somata).
_RULE_BY_ROLE = {"nuclear": "nuclear", "cytoplasmic": "ring"}
_FRACTION_BY_ROLE = {"nuclear": 0.5, "cytoplasmic": 0.4}


class Positive(BaseModel):
    """When a cell counts as positive for a marker. Keys not listed here are parameters of the rule itself."""

    model_config = ConfigDict(frozen=True, extra="allow")

    rule: str | None = Field(
        None, title="Rule", description="Positivity rule; by default 'nuclear' or 'ring', after the marker's role."
    )
    threshold: float | Literal["auto", "controls"] = Field(
        "auto",
        title="Threshold",
        description="Intensity above local background; 'controls' takes it from negative-control sections of the same "
        "staining batch, 'auto' from all sections of the batch together.",
    )
    control: tuple[str, ...] = Field(
        ("no_tdt", "no_primary"), min_length=1, title="Control kinds", description="Values of the control column used."
    )
    k: float = Field(3.0, ge=0, le=50, title="k", description="Control threshold = median + k robust SDs.")
    quantile: float | None = Field(
        None, gt=0, lt=1, title="Quantile", description="Take this quantile of the control nuclei instead of k SDs."
    )
    fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Share of pixels",
        description="Share of the compartment's pixels that must reach the threshold; 0.5 (nucleus) or 0.4 (ring).",
    )

    @model_validator(mode="after")
    def _threshold_is_usable(self) -> Positive:
        if isinstance(self.threshold, float) and not self.threshold > 0:
            raise ValueError("threshold must be above 0, or 'auto', or 'controls'")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """Keys meant for the rule plug-in."""
        return dict(self.model_extra or {})


class Translocation(BaseModel):
    """When a marker is in the nucleus rather than round it: by its ratio in control sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    control: tuple[str, ...] = Field(
        min_length=1,
        title="Control kinds",
        description="Values of the control column: sections that are stained, of animals in which the marker rests in "
        "the cytoplasm (naive, sham). Sections without stain have no ratio.",
    )
    quantile: float = Field(
        0.95, gt=0, lt=1, title="Quantile", description="Of the ratios of the batch's control cells; above it is in."
    )


class Marker(BaseModel):
    """One marker of the panel: data, not code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str | int | None = Field(
        None, title="Channel", description="Channel name or number; by default the marker's own name."
    )
    stain: Stain | None = Field(
        None, title="Stain", description="Of a brightfield slide: the stain, instead of a channel."
    )
    role: Role = Field(title="Role", description="Where in the cell the marker shows.")
    positive: Positive | None = Field(None, title="Positive when", description="How cells are called positive.")
    area: bool = Field(False, title="Percent area", description="Also report the share of area above the threshold.")
    grades: tuple[float, float, float] | None = Field(
        None,
        title="Grades",
        description="Cuts of 1+, 2+ and 3+ for an H-score: the marker's value from which a cell is of each grade.",
    )
    translocation: Translocation | None = Field(
        None,
        title="Translocation",
        description="Count cells whose nucleus shows more of the marker, relative to the ring round it, than control "
        "cells do (NF-kB p65).",
    )
    orphans: bool = Field(
        False, title="Orphans", description="Also find objects of this marker that lie on no nucleus (TUNEL bodies)."
    )
    death_classes: bool = Field(
        False,
        title="Death classes",
        description="Sort positives into condensed, diffuse and fragmented, and join fragments of one nucleus.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Marker:
        if self.channel is not None and self.stain is not None:
            raise ValueError(f"has both a channel ('{self.channel}') and a stain ('{self.stain}'); keep one")
        return self

    @model_validator(mode="after")
    def _positive_fits_role(self) -> Marker:
        if self.positive is not None and self.role not in _RULE_BY_ROLE and self.positive.rule is None:
            raise ValueError(f"role '{self.role}' has no default rule; name one in positive.rule")
        if self.positive is None and (self.area or self.orphans or self.death_classes or self.grades):
            raise ValueError("area, grades, orphans and death_classes need a threshold: add positive = { ... }")
        if self.grades is not None and not 0 < self.grades[0] < self.grades[1] < self.grades[2]:
            raise ValueError("grades must be three rising numbers above 0, such as [0.2, 0.4, 0.6]")
        return self

    @property
    def rule(self) -> str:
        """Name of the positivity rule; only for markers that have one."""
        if self.positive is None:
            raise ValueError("this marker is not called")
        return self.positive.rule or _RULE_BY_ROLE[self.role]

    @property
    def fraction(self) -> float:
        """Share of the compartment's pixels that must reach the threshold."""
        stated = self.positive.fraction if self.positive is not None else None
        return stated if stated is not None else _FRACTION_BY_ROLE.get(self.role, 0.5)


Panel = dict[str, Marker]


def channel_of(name: str, marker: Marker) -> str | int:
    """Return the channel a marker is read from: its stain, or as stated, else the marker's own name."""
    if marker.stain is not None:
        return marker.stain
    return name if marker.channel is None else marker.channel


def named_stains(panel: Panel) -> set[str]:
    """Return the stains that a panel's markers name; empty for one of fluorescence channels."""
    return {marker.stain for marker in panel.values() if marker.stain is not None}


def bound(panel: Panel, slide: Slide) -> Panel:
    """Return the panel with every channel named as this slide names it; of a brightfield slide, every stain.

    Raises
    ------
    InputError
        If the slide is a brightfield picture and the markers are channels, or the other way round, or if it lacks a
        channel; all that are missing are named.
    """
    if named_stains(panel):
        _check_brightfield(panel, slide)
        return {name: marker.model_copy(update={"channel": marker.stain}) for name, marker in panel.items()}
    if slide.brightfield:
        raise InputError(
            f"Slide '{slide.name}' is a brightfield (RGB) picture, but the recipe's markers are fluorescence channels.",
            'Name stains instead, such as stain = "hematoxylin" for the counterstain under [panel]; or leave the slide '
            "out of this study.",
        )
    named, missing = {}, []
    for name, marker in panel.items():
        try:
            channel = slide.channels[slide.channel_index(channel_of(name, marker))]
        except InputError:
            missing.append(f"'{channel_of(name, marker)}' ({name})")
        else:
            named[name] = marker.model_copy(update={"channel": channel})
    if missing:
        raise InputError(
            f"Slide '{slide.name}': no channel {', '.join(missing)}; it has {', '.join(slide.channels)}.",
            "Name its channels under [panel] in the recipe, or correct the slide.",
        )
    return named


def _check_brightfield(panel: Panel, slide: Slide) -> None:
    """Refuse a slide whose markers cannot be unmixed from red, green and blue."""
    named = ", ".join(f"'{marker.stain}' ({name})" for name, marker in panel.items())
    if not slide.brightfield:
        raise InputError(
            f"Slide '{slide.name}' is no brightfield picture (8-bit colour, dark on bright), but the recipe's markers "
            f"are stains: {named}; it has channels {', '.join(slide.channels)}.",
            "Name these channels under [panel] in the recipe, or leave the slide out of this study.",
        )
    unmixed = named_stains(panel) <= set(slide.channels)
    if not unmixed and (str(slide.dtype) != "uint8" or len(slide.channels) != 3):
        raise InputError(
            f"Slide '{slide.name}': stains are unmixed from 8-bit red, green and blue, not from "
            f"{len(slide.channels)} channels of type {slide.dtype}.",
            "Export it as 8-bit RGB.",
        )


def counterstain_of(panel: Panel) -> str:
    """Return the name of the panel's counterstain; the recipe guarantees there is exactly one."""
    return next(name for name, marker in panel.items() if marker.role == "counterstain")


def called_markers(panel: Panel) -> list[str]:
    """Return the names of the markers that cells are called positive for, in the panel's order."""
    return [name for name, marker in panel.items() if marker.positive is not None]
