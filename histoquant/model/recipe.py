"""Recipe: every number that changes a result, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from histoquant.errors import RecipeError, raise_all
from histoquant.model.design import (
    BRAIN,
    DENDRITE,
    INFARCT,
    INFARCT_MEASURES,
    SPINE,
    SPINE_MEASURES,
    Arrive,
    Endpoint,
    Statistics,
    Stereology,
)
from histoquant.model.infarct import InfarctSettings
from histoquant.model.panel import Marker, Panel, called_markers, channel_of, counterstain_of, named_stains
from histoquant.model.region_rule import RegionRule
from histoquant.model.spine_settings import SpineSettings

RESULT_VERSION = 3
"""Raised whenever the same slide and recipe would give other numbers than before."""


class Segment(BaseModel):
    """How nuclei are found. Keys not listed here are parameters of the segmenter itself."""

    model_config = ConfigDict(frozen=True, extra="allow")

    segmenter: str = Field("network", title="Segmenter", description="Name of an installed segmenter.")
    diameter_um: float | None = Field(
        None, gt=0, le=200, title="Nuclear diameter (um)", description="Typical diameter; estimated when not given."
    )
    channels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        title="Markers segmented",
        description="The first shows nuclei, the others fill in where it does not; the counterstain when not given.",
    )
    z: Literal["max", "min", "mean"] | int = Field(
        "max",
        title="Focal planes",
        description="How a stack becomes one plane: 'max', 'min' (what is dark on bright), 'mean' or a plane's number.",
    )
    min_snr: float = Field(
        3.0,
        ge=0,
        title="Counterstain quality gate",
        description="Below this signal-to-noise ratio of the counterstain no fractions are reported.",
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """Keys meant for the segmenter plug-in."""
        return dict(self.model_extra or {})


class Tiles(BaseModel):
    """How a slide is cut for computing. Laws say these change no result; they are kept with it all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    core_px: int = Field(2048, ge=64, le=16384, title="Core (px)", description="Side of the area a tile owns.")
    max_object_um: float | None = Field(
        None,
        gt=0,
        le=500,
        title="Largest object (um)",
        description="Objects up to this extent are exact at seams; 2.5 diameters when not given.",
    )


class BackgroundSettings(BaseModel):
    """How the slide-wide background is found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_um: float = Field(
        100.0,
        gt=0,
        le=10_000,
        title="Background window (um)",
        description="Side of the squares in which the background level is read. Several times a nucleus, so that each "
        "square shows some background; smaller than the shading of the illumination.",
    )
    percentile: float = Field(
        10.0,
        ge=0,
        le=50,
        title="Background percentile",
        description="Rank of the pixel taken as background in each square. Must lie below the part of the square that "
        "is free of nuclei: 10 serves layers that are up to 85 % nuclei.",
    )


class StainSettings(BaseModel):
    """How the stains of brightfield slides are told apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: Literal["estimated", "reference"] = Field(
        "estimated",
        title="Stain vectors",
        description="'estimated' once per slide, with the reference where that fails; 'reference' takes the same for "
        "all slides.",
    )


class Measure(BaseModel):
    """Where intensities are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ring_um: float = Field(2.0, gt=0, le=20, title="Ring (um)", description="Width of the perinuclear ring.")
    background_inner_um: float = Field(
        15.0, gt=0, le=200, title="Background from (um)", description="Inner radius of the local background annulus."
    )
    background_outer_um: float = Field(
        25.0, gt=0, le=300, title="Background to (um)", description="Outer radius of the local background annulus."
    )
    attach_um: float = Field(
        2.0, ge=0, le=20, title="Attach (um)", description="Marker objects this near to a nucleus belong to it."
    )
    min_object_um2: float = Field(
        3.0, gt=0, title="Smallest marker object (um2)", description="Smaller marker objects are specks, not orphans."
    )

    @model_validator(mode="after")
    def _annulus_has_width(self) -> Measure:
        if self.background_outer_um <= self.background_inner_um:
            raise ValueError("background_outer_um must be larger than background_inner_um")
        return self


class Count(BaseModel):
    """How cells are counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Literal["slide", "tissue"] = Field(
        "slide", title="Where", description="'tissue' masks everything off the tissue, in counts and in areas."
    )
    distance_to: tuple[str, ...] = Field(
        (), title="Distance to", description="Outlines whose signed distance becomes a column of every cell."
    )
    migration_from: tuple[str, ...] = Field(
        (),
        title="Migration from",
        description="Outlines whose distance through tissue, round masked ground and glass, becomes a column.",
    )
    double: tuple[tuple[str, str], ...] | None = Field(
        None, title="Double labels", description="Pairs of markers; every pair of called markers when not given."
    )
    overlap: Literal["error", "first"] = Field(
        "error", title="Overlap", description="Undeclared overlap is an error, or the first region keeps the ground."
    )
    reference_group: str | None = Field(
        None, title="Reference group", description="Group others are compared with; the sheet's first when not given."
    )
    stereology: Stereology | None = Field(
        None, title="Stereology", description="How sections were sampled; totals per animal follow from it."
    )


class Recipe(BaseModel):
    """A whole recipe. Unknown keys are refused at every level."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema", title="Schema", description="Version of this file format.")
    name: str = Field("", max_length=200, title="Name", description="What the recipe is called in reports.")
    panel: Panel = Field(default_factory=dict, title="Panel", description="Markers by name.")
    segment: Segment = Field(default_factory=Segment, title="Nuclei")
    tiles: Tiles = Field(default_factory=Tiles, title="Tiles")
    background: BackgroundSettings = Field(default_factory=BackgroundSettings, title="Background")
    stains: StainSettings = Field(default_factory=StainSettings, title="Stains")
    measure: Measure = Field(default_factory=Measure, title="Measurement")
    regions: dict[str, RegionRule] = Field(default_factory=dict, title="Regions", description="By region name.")
    count: Count = Field(default_factory=Count, title="Counting")
    statistics: Statistics = Field(default_factory=Statistics, title="Statistics")
    infarct: InfarctSettings | None = Field(
        None, title="Infarct", description="For `histoquant infarct`, in place of a panel."
    )
    spines: SpineSettings | None = Field(None, title="Spines", description="Of recipes of dendrites only.")

    @field_validator("panel")
    @classmethod
    def _names_make_columns(cls, panel: Panel) -> Panel:
        for name in panel:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"marker name '{name}' must be a letter followed by letters, digits or _")
        return panel

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        if not self.panel and self.infarct is not None:
            self._declares("infarcts", INFARCT, BRAIN, INFARCT_MEASURES)
            return self
        counterstains = [name for name, marker in self.panel.items() if marker.role == "counterstain"]
        if self.spines is not None:
            if [marker.role for marker in self.panel.values()] != ["dendrite"]:
                raise ValueError("a recipe with [spines] needs a panel of one marker, with role = 'dendrite'")
            self._declares("dendrites", SPINE, DENDRITE, SPINE_MEASURES)
            return self
        if len(counterstains) != 1:
            raise ValueError(f"the panel needs exactly one counterstain, it has {len(counterstains)}")
        stains = named_stains(self.panel)
        if unstated := [name for name, marker in self.panel.items() if stains and marker.stain is None]:
            raise ValueError(
                f"the panel mixes stains with channels ({', '.join(unstated)}): a slide has one or the other"
            )
        if {"dab", "eosin"} <= stains:
            raise ValueError("the panel names dab and eosin: beside hematoxylin only one of them can be told apart")
        if "residual" in stains and not {"dab", "eosin"} & stains:
            raise ValueError("the residual is what two stains leave: name dab or eosin as well")
        for marker in self.segment.channels or ():
            if marker not in self.panel:
                raise ValueError(f"segment.channels: no marker '{marker}' in the panel")
        called = called_markers(self.panel)
        for pair in self.count.double or ():
            for marker in pair:
                if marker not in called:
                    raise ValueError(f"count.double: '{marker}' is not a marker with a positive rule")
        counted = self.counted
        for endpoint in self.statistics.declared:
            if endpoint.marker not in counted:
                raise ValueError(f"statistics: '{endpoint.marker}' is not counted; known are {', '.join(counted)}")
            for measures, part in ((INFARCT_MEASURES, "infarct"), (SPINE_MEASURES, "spines")):
                if endpoint.measure in measures:
                    raise ValueError(f"statistics: '{endpoint.measure}' is measured by recipes with [{part}] only")
        for marker in self.count.stereology.heights if self.count.stereology else ():
            if marker and marker not in counted:
                raise ValueError(f"count.stereology.object_height_um: '{marker}' is not counted")
        return self

    def _declares(self, what: str, marker: str, region: str, measures: tuple[str, ...]) -> None:
        """Refuse endpoints and tests that recipes of something else than cells do not have."""
        for endpoint in self.statistics.declared:
            if (endpoint.marker, endpoint.region) != (marker, region) or endpoint.measure not in measures:
                raise ValueError(
                    f"statistics: {endpoint.name} in {endpoint.region} is no endpoint of {what}, which have "
                    f"marker = '{marker}', region = '{region}' and as measure {', '.join(measures)}"
                )
        if self.statistics.test == "mixed":
            raise ValueError(f"statistics.test: 'mixed' nests sections in animals; of {what} an animal has one value")

    @property
    def kind(self) -> Literal["cells", "infarct", "spines"]:
        """What the recipe measures."""
        if self.spines is not None:
            return "spines"
        return "infarct" if not self.panel and self.infarct is not None else "cells"

    @property
    def compared(self) -> Statistics:
        """What is compared: `statistics`, with a primary endpoint where it names none.

        Of infarcts that is the volume that ``[infarct]`` declares, of dendrites the density of spines.
        """
        if self.statistics.primary is not None:
            return self.statistics
        if self.spines is not None:
            named = {"marker": SPINE, "region": DENDRITE, "measure": "spines_per_10um"}
        elif self.infarct is not None:
            named = {"marker": INFARCT, "region": BRAIN, "measure": f"{self.infarct.primary}_mm3"}
        else:
            return self.statistics
        primary = Endpoint.model_validate(named)
        rest = tuple(one for one in self.statistics.secondary if one != primary)
        return self.statistics.model_copy(update={"primary": primary, "secondary": rest})

    @property
    def segmented(self) -> tuple[str, ...]:
        """Names of the markers that are segmented together."""
        if self.segment.channels is not None:
            return self.segment.channels
        return tuple(name for name, marker in self.panel.items() if marker.role == "counterstain")

    @property
    def double_labels(self) -> tuple[tuple[str, str], ...]:
        """Pairs of markers whose double-positive cells are counted."""
        if self.count.double is not None:
            return self.count.double
        return tuple(combinations(called_markers(self.panel), 2))

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of what is counted: called markers and double labels, or every nucleus when none is called."""
        called = called_markers(self.panel)
        if not called:
            return (counterstain_of(self.panel),)
        return (*called, *(f"{a}+{b}" for a, b in self.double_labels))

    def fingerprint(self, *, measured: bool = False) -> str:
        """Return a sha256 of everything that decides the results.

        Parameters
        ----------
        measured : bool
            Only of the part that decides the measured table: segmentation, tiling, background, measurement and what
            is read from which channel. Thresholds, regions and counting do not enter.
        """
        content = self.model_dump(mode="json", by_alias=True)
        content["result_version"] = RESULT_VERSION
        del content["name"], content["statistics"]["arrive"]  # words for readers: no number hangs on them
        # What was added to recipes later enters where it is used, so that other recipes keep their fingerprint.
        if self.count.stereology is None:
            del content["count"]["stereology"]
        if self.statistics.model_copy(update={"arrive": Arrive()}) == Statistics():
            del content["statistics"]
        if self.infarct is None:  # recipes of cells keep the fingerprint they had before there were others
            del content["infarct"]
        for marker in content["panel"].values():
            for later in ("grades", "translocation"):
                if marker[later] is None:
                    del marker[later]
        if self.spines is None:  # recipes of nuclei keep the fingerprint they had before there were spines
            del content["spines"]
        decides = ["result_version", "segment", "tiles", "background", "measure"]
        if named_stains(self.panel):
            decides.append("stains")
        else:  # What cannot matter does not enter: recipes of channels keep the fingerprint they had before stains.
            del content["stains"]
            for marker in content["panel"].values():
                del marker["stain"]
        if measured:
            content = {key: content[key] for key in decides}
            content["read"] = {
                name: [
                    str(channel_of(name, marker)),
                    marker.role,
                    marker.fraction,
                    marker.orphans,
                    marker.positive is not None,
                ]
                for name, marker in self.panel.items()
            }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def parse_recipe(text: str, *, source: str = "recipe") -> Recipe:
    """Read a recipe from TOML text.

    Raises
    ------
    RecipeError
        If the text is not TOML or one thing in it is wrong.
    Faults
        If several things are wrong; all are listed.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise RecipeError(f"{source}: not valid TOML ({error}).", "Mend that line.") from error
    return build_recipe(content, source=source)


def build_recipe(content: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Check a recipe given as nested mappings; raises as `parse_recipe` does."""
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise_all(_describe(fault, source) for fault in error.errors())
        raise AssertionError from error


def plugin_parameters(model: type[BaseModel], values: Mapping[str, Any], *, where: str) -> BaseModel:
    """Check the parameters of a plug-in with its own model; errors name the place in the recipe."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise_all(_describe(fault, where, known=tuple(model.model_fields)) for fault in error.errors())
        raise AssertionError from error


def _describe(fault: Any, source: str, known: tuple[str, ...] | None = None) -> RecipeError:
    place = ".".join(str(part) for part in fault["loc"]) or "the recipe"
    if fault["type"] == "extra_forbidden":
        choices = known if known is not None else _known_keys(fault["loc"])
        close = get_close_matches(str(fault["loc"][-1]), choices, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"Known here: {', '.join(choices)}."
        return RecipeError(f"{source}: unknown key '{place}'.", remedy)
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r:.80})"
    return RecipeError(f"{source}: {place}: {message}{shown}.", "Mend this value.")


def _known_keys(place: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the keys that are allowed beside a key that is not."""
    models: dict[str, type[BaseModel]] = {
        "panel": Marker,
        "segment": Segment,
        "tiles": Tiles,
        "background": BackgroundSettings,
        "stains": StainSettings,
        "measure": Measure,
        "regions": RegionRule,
        "count": Count,
        "infarct": InfarctSettings,
        "statistics": Statistics,
        "spines": SpineSettings,
    }
    if len(place) == 1:
        return ("schema", "name", *models)
    inner: dict[Any, type[BaseModel]] = {("count", "stereology"): Stereology, ("statistics", "arrive"): Arrive}
    inner |= {("statistics", "primary"): Endpoint, ("statistics", "secondary"): Endpoint}
    model = inner.get(place[:2], models.get(place[0])) if len(place) > 2 else models.get(place[0])
    return tuple(model.model_fields) if model else ()
