"""What a recipe says about one region: how it is treated, and how it is derived from others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_BAND_UM = 100_000.0
"""Ten centimetres: beyond any slide, and a guard against a band stated in nm."""

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Coordinate = Annotated[float, Field(ge=-1e7, le=1e7, allow_inf_nan=False)]
PointYX: TypeAlias = tuple[Coordinate, Coordinate]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Band(_Part):
    """The ground within a range of distances from an outline; the ischemic boundary zone is one.

    The range is half-open, ``[from_um, to_um)``, of signed Euclidean distance: negative inside the outline.
    The default is 0 to 500 um outside; published zones differ (0-200 and 200-400 um; +-1 mm; just inside).
    """

    of: Name = Field(title="Of", description="The region whose outline the distance is measured from.")
    from_um: float = Field(
        0.0,
        title="From (um)",
        description="Nearest distance that belongs to the band; negative is inside the outline.",
        ge=-MAX_BAND_UM,
        le=MAX_BAND_UM,
        allow_inf_nan=False,
    )
    to_um: float = Field(
        500.0,
        title="To (um)",
        description="Distance at which the band ends; it belongs to the next band.",
        ge=-MAX_BAND_UM,
        le=MAX_BAND_UM,
        allow_inf_nan=False,
    )

    @model_validator(mode="after")
    def _ordered(self) -> Band:
        if not self.from_um < self.to_um:
            raise ValueError(f"a band must run from a smaller to a larger distance, not {self.from_um} to {self.to_um}")
        return self


class Mirror(_Part):
    """A region reflected across a straight line: the contralateral counterpart of a zone."""

    of: Name = Field(title="Of", description="The region to reflect.")
    midline: Name | tuple[PointYX, PointYX] = Field(
        "midline",
        title="Midline",
        description="A drawn line by name, standing for the straight line through its first and last "
        "point; or two points [[y_um, x_um], [y_um, x_um]].",
    )

    @model_validator(mode="after")
    def _two_points(self) -> Mirror:
        if not isinstance(self.midline, str) and self.midline[0] == self.midline[1]:
            raise ValueError("the two points of the midline are one and the same")
        return self


class Difference(_Part):
    """A region without the ground of others."""

    of: Name = Field(title="Of", description="The region to take from.")
    minus: tuple[Name, ...] = Field(
        title="Minus", description="The regions to take away.", min_length=1, max_length=100
    )


class Intersection(_Part):
    """The ground that several regions share."""

    of: tuple[Name, ...] = Field(title="Of", description="The regions that overlap.", min_length=2, max_length=100)


class RegionRule(_Part):
    """One ``[regions.<name>]`` of a recipe.

    Without a derivation it says how outlines drawn under that name are treated; with one (at most) it makes
    the region. A derived band or mirror is kept within ``tissue`` unless ``within`` says otherwise, and
    everything is kept within the slide. ``tissue`` is the outline found automatically unless one of that
    name was drawn; ``slide`` is the whole slide.
    """

    parent: Name | None = Field(None, title="Parent", description="The region this one lies in, when they overlap.")
    counted: bool | None = Field(
        None,
        title="Counted",
        description="Whether cells are counted here. Default: yes, except for lines, masks and 'tissue'.",
    )
    masked: bool | None = Field(
        None,
        title="Masked",
        description="Whether this is damage to leave out of every region. Default: as drawn.",
    )
    band: Band | None = Field(None, title="Band", description="Derive it as a range of distances from an outline.")
    mirror: Mirror | None = Field(None, title="Mirror", description="Derive it by reflection across a midline.")
    difference: Difference | None = Field(None, title="Difference", description="Derive it as one region minus others.")
    intersection: Intersection | None = Field(
        None, title="Intersection", description="Derive it as what several regions share."
    )
    within: Name | tuple[Name, ...] | None = Field(
        None,
        title="Within",
        description="Keep only what lies in all of these. Default: 'tissue' for a band or mirror.",
    )
    minus: tuple[Name, ...] = Field((), title="Minus", description="Take away the ground of these.", max_length=100)

    @model_validator(mode="after")
    def _consistent(self) -> RegionRule:
        ways = [way for way in ("band", "mirror", "difference", "intersection") if getattr(self, way) is not None]
        if len(ways) > 1:
            raise ValueError(f"a region is derived in one way, not by {' and '.join(ways)}")
        if self.counted and self.masked:
            raise ValueError("a region cannot be both counted and masked")
        return self

    @property
    def derivation(self) -> Band | Mirror | Difference | Intersection | None:
        """The one way in which the region is derived, None when it is drawn."""
        return self.band or self.mirror or self.difference or self.intersection

    @property
    def limits(self) -> tuple[str, ...] | None:
        """What ``within`` names, always as a tuple; None when not stated."""
        return (self.within,) if isinstance(self.within, str) else self.within

    @property
    def sources(self) -> tuple[str, ...]:
        """Every region whose ground this one is made from, in the order the rule names them."""
        names: list[str] = []
        match self.derivation:
            case Band(of=of):
                names = [of]
            case Mirror(of=of, midline=midline):
                names = [of, *([midline] if isinstance(midline, str) else [])]
            case Difference(of=of, minus=minus):
                names = [of, *minus]
            case Intersection(of=several):
                names = [*several]
        return tuple(dict.fromkeys([*names, *(self.limits or ()), *self.minus]))

    def describe(self) -> str:
        """Return the derivation in a few words, for provenance and pictures."""
        match self.derivation:
            case Band(of=of, from_um=low, to_um=high):
                return f"derived: band {low:g} to {high:g} um of {of}"
            case Mirror(of=of, midline=midline):
                return f"derived: mirror of {of} across {midline if isinstance(midline, str) else 'a line'}"
            case Difference(of=of, minus=minus):
                return f"derived: {of} minus {', '.join(minus)}"
            case Intersection(of=several):
                return f"derived: shared by {', '.join(several)}"
        return "drawn"
