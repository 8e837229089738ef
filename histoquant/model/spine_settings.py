"""The `[spines]` section of a recipe: every number that changes what is traced, found, classed and counted."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SpineSettings(BaseModel):
    """How dendrites are traced and spines found and counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    light: Literal["bright", "dark"] = Field(
        "bright", title="Light", description="'bright' for fluorescence; 'dark' for Golgi and other absorbing stains."
    )
    rules: Literal["A", "B"] = Field(
        "A", title="Rule set", description="A: head and neck in fluorescence (Rodriguez 2008); B: Golgi (Risher 2014)."
    )
    z_factor: float = Field(
        1.0,
        gt=0,
        le=5,
        title="z factor",
        description="True um of tissue per um of stage travel: refraction times shrinkage.",
    )
    dendrite_radii_um: tuple[float, ...] = Field(
        (0.3, 0.5, 0.9), min_length=1, title="Radii (um)", description="Radii of dendrites that are looked for."
    )
    dendrite_contrast: float = Field(
        6.0, gt=0, le=1000, title="Dendrite contrast", description="Least answer as a tube, in SD of the background's."
    )
    min_dendrite_um: float = Field(
        10.0, gt=0, le=1000, title="Shortest dendrite (um)", description="Shorter trees are not traced."
    )
    spur_um: float = Field(
        5.0, gt=0, le=50, title="Spur (um)", description="Side branches up to this length are not dendrites."
    )
    gap_um: float = Field(
        6.0,
        ge=0,
        le=50,
        title="Gap (um)",
        description="Ends this near are joined: through the dark if they face each other.",
    )
    reach_um: float = Field(
        4.0, ge=1, le=10, title="Reach (um)", description="How far from a dendrite's axis heads are looked for."
    )
    min_score: float = Field(
        0.25,
        gt=0,
        lt=1,
        title="Score",
        description="A place counts as the head of a spine from this score on. Odds are lowered on dendrites that bear "
        "few sure spines, to a third where there are none.",
    )
    resolution_um: float = Field(
        0.25,
        gt=0,
        le=2,
        title="Resolution (um)",
        description="Width at half height that the optics give a point in the plane. It is taken out of the widths of "
        "heads; necks that look no wider are not compared.",
    )
    min_segment_um: float = Field(
        0.0, ge=0, le=1000, title="Shortest segment (um)", description="Shorter segments are listed, but not included."
    )
    from_fork_um: float = Field(
        0.0,
        ge=0,
        le=50,
        title="From branch points (um)",
        description="Length left out at each branch point, with the spines on it.",
    )
    orders: tuple[int, ...] | None = Field(
        None, title="Orders", description="Branch orders that are included; all when not given."
    )
    hidden: Literal["none", "area", "radial"] = Field(
        "none",
        title="Hidden spines",
        description="Also report density corrected for spines over and under the shaft (Golgi). Never for comparing "
        "the same place.",
    )
    sholl_step_um: float = Field(10.0, gt=0, le=200, title="Sholl step (um)", description="Distance of the spheres.")

    @model_validator(mode="after")
    def _rules_fit_the_light(self) -> SpineSettings:
        if self.light == "dark" and self.rules == "A":
            raise ValueError("rules A compare heads with necks, which transmitted light does not show: use rules = 'B'")
        if any(not 0.05 <= radius <= 10 for radius in self.dendrite_radii_um):
            raise ValueError("dendrite_radii_um must lie between 0.05 and 10")
        return self
