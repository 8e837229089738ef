"""How a study is designed: the sampling behind its totals, and what is compared by which test."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Measure = Literal[
    "density_per_mm2",
    "fraction_positive",
    "percent_area",
    "total_cells",
    "total_profiles",
    "direct_mm3",
    "indirect_mm3",
    "ratio_mm3",
    "indirect_percent_hemisphere",
    "swelling_percent",
    "spines_per_10um",
    "dendrite_length_um",
    "spine_length_um",
    "head_width_um",
]
"""Values that an animal has of a marker in a region; each is an endpoint. Totals need ``[count.stereology]``; volumes,
their share of the hemisphere and swelling are of infarcts; what has um is of dendrites."""

INFARCT, BRAIN = "infarct", "brain"
"""What stands for marker and region of infarct volumes, so that they are endpoints like the others."""

INFARCT_MEASURES = ("direct_mm3", "indirect_mm3", "ratio_mm3", "indirect_percent_hemisphere", "swelling_percent")

SPINE, DENDRITE = "spine", "dendrite"
"""What stands for marker and region of spines."""

SPINE_MEASURES = ("spines_per_10um", "dendrite_length_um", "spine_length_um", "head_width_um")

Test = Literal["means", "ranks", "permutation", "mixed"]


class Stereology(BaseModel):
    """Systematic sampling of sections, from which totals per animal follow.

    Which hemispheres were cut and counted cannot be seen on a slide, so it has to be said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    section_interval: int = Field(
        ge=1, le=10_000, title="Section interval", description="6 when every 6th section was counted."
    )
    hemispheres: Literal[1, 2] = Field(
        title="Hemispheres counted", description="1 when one half of the brain was counted: totals are doubled."
    )
    section_thickness_um: float | None = Field(
        None,
        gt=0,
        le=1000,
        title="Section thickness (um)",
        description="As cut, not as mounted. With the objects' height it corrects totals for profiles counted twice.",
    )
    object_height_um: float | dict[str, float] | None = Field(
        None,
        title="Object height (um)",
        description="Mean height of the counted objects across the section; one number, or one for each marker.",
    )
    lost_cap_um: float = Field(
        0.0, ge=0, le=50, title="Lost cap (um)", description="Height of an object's cap too thin to be seen, each side."
    )
    smoothness: Literal[0, 1] = Field(
        1, title="Smoothness class", description="m of Gundersen's coefficient of error: 1 for smooth structures."
    )

    @model_validator(mode="after")
    def _correction_is_whole(self) -> Stereology:
        given = [self.section_thickness_um is not None, self.object_height_um is not None]
        if any(given) and not all(given):
            raise ValueError("section_thickness_um and object_height_um are needed together")
        for marker, height in self.heights.items():
            if not 0 < height <= 1000:
                raise ValueError(f"object_height_um of {marker or 'all markers'} must be above 0 and at most 1000")
            if height <= 2 * self.lost_cap_um:
                raise ValueError(f"an object of {height:g} um cannot lose two caps of {self.lost_cap_um:g} um")
        return self

    @property
    def heights(self) -> dict[str, float]:
        """Heights by marker; of all markers under the empty name."""
        height = self.object_height_um
        if height is None:
            return {}
        return dict(height) if isinstance(height, dict) else {"": height}


class Endpoint(BaseModel):
    """One value per animal: a measure of a marker in a region."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    marker: str = Field(min_length=1, title="Marker", description="Of the panel, or a double label 'A+B'.")
    region: str = Field(min_length=1, title="Region", description="Name of a counted region, drawn or derived.")
    measure: Measure = Field(
        "density_per_mm2",
        title="Measure",
        description="Which value of the animal; totals need [count.stereology], volumes [infarct], lengths [spines].",
    )

    @property
    def name(self) -> str:
        """What the endpoint is called in tables, without its region."""
        return endpoint_name(self.marker, self.measure)


def endpoint_name(marker: str, measure: str) -> str:
    """Return what an endpoint is called in tables."""
    return f"{marker}_{measure}"


class Arrive(BaseModel):
    """What only a person knows of the ARRIVE 2.0 Essential 10; empty is shown as "not provided"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_size: str = Field("", title="Sample size", description="How the number of animals was decided.")
    criteria: str = Field("", title="Criteria", description="For leaving animals and data in or out, set beforehand.")
    randomisation: str = Field("", title="Randomisation", description="How animals came into their groups.")
    confounders: str = Field("", title="Confounders", description="How they were minimised.")
    blinding: str = Field("", title="Blinding", description="At allocation, conduct, assessment and analysis.")
    animals: str = Field("", title="Animals", description="Species, strain, sex, age or weight.")
    procedures: str = Field("", title="Procedures", description="What was done, when, where and why.")


class Statistics(BaseModel):
    """What is compared, by which test, and which comparisons belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    primary: Endpoint | None = Field(
        None, title="Primary endpoint", description="The one that the study was made for, declared beforehand."
    )
    secondary: tuple[Endpoint, ...] = Field(
        (), title="Key secondary endpoints", description="Holm's family. What is not declared is exploratory."
    )
    test: Test = Field(
        "means",
        title="Test",
        description="'means': Welch's t, or Dunnett's for several groups against one; 'ranks': exact Mann-Whitney; "
        "'permutation': of animals between groups; 'mixed': sections nested in animals.",
    )
    block: str | None = Field(
        None,
        title="Block",
        description="Column of the sample sheet (sex, cohort) within which 'permutation' exchanges animals.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, title="Alpha", description="Level of the tests, and 1 - alpha that of the intervals."
    )
    arrive: Arrive = Field(default_factory=Arrive, title="ARRIVE")

    @model_validator(mode="after")
    def _families_are_apart(self) -> Statistics:
        if self.block is not None and self.test != "permutation":
            raise ValueError("block restricts permutations: it needs test = 'permutation'")
        declared = [e for e in (self.primary, *self.secondary) if e is not None]
        if twice := [e for e in declared if declared.count(e) > 1]:
            raise ValueError(f"{twice[0].name} in {twice[0].region} is declared twice")
        return self

    @property
    def declared(self) -> tuple[Endpoint, ...]:
        """The primary endpoint and the key secondary ones."""
        return ((self.primary,) if self.primary else ()) + self.secondary
