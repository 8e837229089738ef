"""What a phantom study of dendrites is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from histoquant.errors import InputError

Modality = Literal["spines", "golgi"]

RECIPES: dict[str, str] = {"spines": "spines_confocal", "golgi": "spines_golgi"}


@dataclass(frozen=True)
class DendritePlan:
    """A phantom study of dendrites, apart from where it is written.

    Attributes
    ----------
    assay : str
        "spines" (fluorescence) or "golgi" (dark on bright).
    size_um : (float, float)
        Height and width of every stack. Its depth is what its dendrites need.
    pixel_size_um, z_step_um : float
        0.05 to 0.3, and 0.2 to 2.
    animals, sections : int
        Animals per group, stacks per animal.
    seed : int
        Same plan, same bytes.
    spines_per_10um : tuple of float
        Of the vehicle's dendrites, one after the other in each stack; 0 to 30. Values over three make a stack's last
        dendrite cross its first.
    effect : float
        True relative change of density in treated animals.
    tilt_deg : float
        Dendrites rise and fall by up to this angle.
    photons : float
        Detected per pixel from the middle of a shaft.
    blur : float
        Point spread, times that of a confocal (or of a bright field with 100x/1.4 oil): two-photon in vivo has 2 to 3.
    """

    assay: Modality = "spines"
    size_um: tuple[float, float] = (36.0, 44.0)
    pixel_size_um: float = 0.1
    z_step_um: float = 0.5
    animals: int = 2
    sections: int = 1
    seed: int = 0
    spines_per_10um: tuple[float, ...] = (0.0, 6.0, 12.0)
    effect: float = 0.4
    tilt_deg: float = 20.0
    photons: float = 150.0
    blur: float = 1.0

    def __post_init__(self) -> None:
        if self.assay not in RECIPES:
            raise InputError(f"There is no phantom assay '{self.assay}' of dendrites.", "Choose spines or golgi.")
        within = {
            "size_um": len(self.size_um) == 2 and all(15 <= side <= 400 for side in self.size_um),
            "pixel_size_um": 0.05 <= self.pixel_size_um <= 0.3,
            "z_step_um": 0.2 <= self.z_step_um <= 2,
            "animals": 1 <= self.animals <= 99,
            "sections": 1 <= self.sections <= 99,
            "seed": self.seed >= 0,
            "spines_per_10um": 1 <= len(self.spines_per_10um) <= 6
            and all(0 <= density <= 30 for density in self.spines_per_10um),
            "effect": -1 <= self.effect <= 2,
            "tilt_deg": 0 <= self.tilt_deg <= 60,
            "photons": 10 <= self.photons <= 5000,
            "blur": 0.5 <= self.blur <= 4,
        }
        for name, fits in within.items():
            if not fits:
                raise InputError(
                    f"Phantom plan: {name} = {getattr(self, name)} is out of bounds.",
                    "See the bounds of histoquant.phantom.DendritePlan.",
                )

    @property
    def groups(self) -> tuple[str, str]:
        """The first is the reference."""
        return "vehicle", "treated"
