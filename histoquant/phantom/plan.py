"""What a phantom study is made of: the plan a user states, and the facts of each assay."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

from histoquant.errors import InputError

MOST_CROWDED = 2.0
"""The densest band has at most this many times the mean density."""


@dataclass(frozen=True)
class Assay:
    """Facts of one assay.

    Attributes
    ----------
    channels : tuple of str
        As they are named in the file; the first shows DNA.
    markers : dict
        Channel number of each marker that a cell can be positive for.
    effects : dict
        Marker -> true relative change of its positive count in treated animals where the study expects one.
    groups : tuple of str
        The first is the reference.
    control : str
        The staining control that lacks the label; empty when there is nothing to control.
    recipe : str
        Name of the shipped recipe; empty when the study brings its own.
    density_per_mm2, diameter_um : float
        Nuclei, when the plan does not say.
    counterstain : float
        Strength of DAPI; the acid of BrdU staining weakens it.
    brightfield : bool
        Whether the channels are stains, seen as a picture in red, green and blue.
    """

    channels: tuple[str, ...]
    markers: dict[str, int]
    effects: dict[str, float]
    groups: tuple[str, ...] = ("vehicle", "treated")
    control: str = ""
    recipe: str = ""
    density_per_mm2: float = 1620.0
    diameter_um: float = 8.0
    counterstain: float = 1.0
    brightfield: bool = False


_BRDU_DCX = Assay(
    channels=("DAPI", "BrdU", "DCX"),
    markers={"brdu": 1, "dcx": 2},
    effects={"brdu": 0.6, "dcx": 0.4},
    control="no_primary",
    recipe="brdu_dcx",
    diameter_um=7.5,
    counterstain=0.3,
)

ASSAYS = {
    "tunel": Assay(
        channels=("DAPI", "TUNEL", "AF"),
        markers={"tunel": 1},
        effects={"tunel": -0.5},
        control="no_tdt",
        recipe="tunel",
        density_per_mm2=1800.0,
        diameter_um=7.5,
    ),
    "brdu": _BRDU_DCX,
    "dcx": _BRDU_DCX,
    "ihc": Assay(
        channels=("hematoxylin", "dab"),
        markers={"dab": 1},
        effects={"dab": -0.4},
        control="no_primary",
        recipe="ihc_dab",
        brightfield=True,
    ),
    "nuclei": Assay(channels=("DAPI",), markers={}, effects={}, groups=("vehicle",)),
}
"""Densities: 1,620 per mm2 is what 10 um of mouse cortex show of its neurons, 3,540 of all its nuclei."""


def group_doses(doses: tuple[float, ...]) -> dict[str, float]:
    """Return the treated groups of a phantom study, each with its share of the effect."""
    named = {1: ["treated"], 2: ["low", "high"]}
    return dict(zip(named.get(len(doses), [f"dose {i + 1}" for i in range(len(doses))]), doses, strict=True))


@dataclass(frozen=True)
class PhantomPlan:
    """A phantom study, apart from where it is written.

    Attributes
    ----------
    assay : str
        "tunel", "brdu", "dcx", "ihc" or "nuclei".
    size_mm : (float, float)
        Height and width of every slide.
    pixel_size_um : float
        From 0.1 to 2.
    animals : int
        Per group.
    sections : int
        Per animal.
    seed : int
        Same plan, same bytes.
    density_per_mm2, diameter_um : float, optional
        Nuclei: mean number over the tissue, mean equivalent diameter (SD 12 %). The assay's own when not given.
    min_distance : float
        Hard core: no two nuclei are closer than this many mean diameters. At the default 0.75 nuclei touch and overlap
        at the rim, as in a thin section; 0 places them as if a thick section were projected, and 5 to 8 %
        are then hidden.
    doses : tuple of float
        Treated groups, each with its share of the effect; (0.5, 1) makes "low" and "high".
    effect : float, optional
        True relative change in treated animals of the assay's first marker ("dcx": of DCX), -0.5 = half.
    controls : tuple of str, optional
        Staining controls, one section each. Two that lack the label when not given; "dnase" makes every nucleus
        TUNEL positive.
    animal_cv : float
        Spread between animals of a group. Animals are quantiles of that spread, not draws from it, so that a
        small study shows the stated effect; what it truly shows is in the truth tables.
    bits : int
        8, 12 or 16.
    photons : float
        Detected per pixel from a typical nucleus.
    headroom : float
        The camera's range is full at this many times the light of a typical nucleus; condensed nuclei have two.

    Raises
    ------
    InputError
        If the plan cannot be carried out.
    """

    assay: str
    size_mm: tuple[float, float] = (2.2, 2.2)
    pixel_size_um: float = 0.5
    animals: int = 3
    sections: int = 1
    seed: int = 0
    density_per_mm2: float | None = None
    diameter_um: float | None = None
    min_distance: float = 0.75
    effect: float | None = None
    doses: tuple[float, ...] = (1.0,)
    controls: tuple[str, ...] | None = None
    animal_cv: float = 0.18
    bits: int = 12
    photons: float = 400.0
    headroom: float = 3.0

    def __post_init__(self) -> None:
        if self.assay not in ASSAYS:
            raise InputError(f"There is no phantom assay '{self.assay}'.", f"Choose one of {', '.join(ASSAYS)}.")
        within = {
            "size_mm": all(0.2 <= side <= 40 for side in self.size_mm) and len(self.size_mm) == 2,
            "pixel_size_um": 0.1 <= self.pixel_size_um <= 2,
            "animals": 1 <= self.animals <= 999,
            "sections": 1 <= self.sections <= 999,
            "seed": self.seed >= 0,
            "density_per_mm2": 0 <= self.density <= 20_000,
            "diameter_um": 4 <= self.diameter <= 20,
            "min_distance": 0 <= self.min_distance <= 1,
            "effect": self.effect is None or -1 <= self.effect <= 2,
            "doses": 1 <= len(self.doses) <= 9 and all(0 <= dose <= 1 for dose in self.doses),
            "controls": set(self.control_kinds) <= set(self.known_controls),
            "animal_cv": 0 <= self.animal_cv <= 0.5,
            "bits": self.bits in (8, 12, 16),
            "photons": 10 <= self.photons <= 20_000,
            "headroom": 1 <= self.headroom <= 10,
        }
        for name, fits in within.items():
            if not fits:
                raise InputError(
                    f"Phantom plan: {name} = {getattr(self, name)} is out of bounds.",
                    "See the bounds of histoquant.phantom.PhantomPlan.",
                )
        if MOST_CROWDED * self.density * pi * self.hard_core_um**2 / 1e6 > 0.9:
            raise InputError(
                f"Phantom plan: {self.density:g} nuclei per mm2 of {self.diameter:g} um do not fit at a distance of "
                f"{self.min_distance:g} diameters.",
                "Lower density_per_mm2, diameter_um or min_distance.",
            )

    @property
    def facts(self) -> Assay:
        """What is fixed for the assay."""
        return ASSAYS[self.assay]

    @property
    def density(self) -> float:
        """Nuclei per mm2 of tissue."""
        return self.facts.density_per_mm2 if self.density_per_mm2 is None else self.density_per_mm2

    @property
    def diameter(self) -> float:
        """Mean diameter of nuclei in um."""
        return self.facts.diameter_um if self.diameter_um is None else self.diameter_um

    @property
    def hard_core_um(self) -> float:
        """Smallest distance between centres of nuclei."""
        return self.min_distance * self.diameter

    @property
    def known_controls(self) -> tuple[str, ...]:
        """Staining controls the assay knows."""
        return {"": (), "no_tdt": ("no_tdt", "dnase")}.get(self.facts.control, (self.facts.control,))

    @property
    def control_kinds(self) -> tuple[str, ...]:
        """One entry per control section."""
        if self.controls is not None:
            return self.controls
        return (self.facts.control, self.facts.control) if self.facts.control else ()

    @property
    def effects(self) -> dict[str, float]:
        """True relative change of each marker's positive count in treated animals."""
        effects = dict(self.facts.effects)
        if self.effect is not None and effects:
            effects["dcx" if self.assay == "dcx" else next(iter(effects))] = self.effect
        return effects

    @property
    def groups(self) -> dict[str, float]:
        """Groups, the reference first, each with its share of the effect."""
        reference, *treated = self.facts.groups
        return {reference: 0.0} | (group_doses(self.doses) if treated else {})

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of a slide in pixels."""
        height, width = (round(side * 1000 / self.pixel_size_um) for side in self.size_mm)
        return height, width

    @property
    def size_um(self) -> tuple[float, float]:
        """Height and width of a slide in um, a whole number of pixels."""
        height, width = (side * self.pixel_size_um for side in self.shape_px)
        return height, width


SAMPLE_PLAN = PhantomPlan(
    "tunel",
    size_mm=(1.55, 1.55),
    pixel_size_um=1.0,
    seed=20240,
    density_per_mm2=1300.0,
    diameter_um=8.0,
    bits=8,
    photons=20_000.0,
    headroom=6.0,
)
"""The study in sample_images: coarse pixels, few grey levels and a long exposure, so that eight slides take 8 MB."""
