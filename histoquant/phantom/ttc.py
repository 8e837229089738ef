"""Phantom photographs of brain slices stained with TTC, of known lesions, volumes and swelling.

A slice is a superellipse with the notches of the longitudinal fissure, red, with a pale arch of white matter in both
hemispheres. The hemisphere with the lesion is stretched sideways: that is the swelling. Everything is computed in the
slice's own millimetres and painted into the photograph turned, shaded and noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import InputError
from histoquant.phantom.plan import group_doses

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIVING = (172.0, 44.0, 50.0)
PALE = (232.0, 216.0, 202.0)
WHITE_MATTER = (222.0, 176.0, 170.0)
GROUNDS = {"dark": (30.0, 33.0, 40.0), "blue": (42.0, 74.0, 138.0)}

PROFILE = (0.62, 0.82, 0.95, 1.0, 0.97, 0.84)
"""Size of a rat's slices from rostral to caudal, relative to the largest, of 15 x 10.6 mm."""

LARGEST_MM = (15.0, 10.6)
LESION = (0.0, 0.62, 0.95, 1.0, 0.72, 0.25)
"""Size of the lesion along the brain, relative to its largest."""

NOTCH_MM, NOTCH_WIDTH_MM = 0.9, 0.8


@dataclass(frozen=True)
class TtcPlan:
    """A phantom TTC study.

    Attributes
    ----------
    animals : int
        Per group; each has one photograph of six slices.
    pixel_size_um : float
        From 20 to 200.
    doses : tuple of float
        Treated groups, each with its share of the effect; (0.5, 1) makes "low" and "high".
    effect : float
        Relative change of the infarct of treated animals; 0 is none. Where a lesion reaches the outline of its slice it
        changes less: what is true stands in ``truth/infarct.csv``.
    lesion : float
        Radius of the largest lesion in parts of the hemisphere's width; 0 is a brain without.
    swelling : float
        By how much larger the hemisphere with the lesion is.
    tilt_deg : float
        Slices are turned by up to this.
    shading : float
        Unevenness of the light.
    shadow : bool
        Slices cast a shadow on the ground and on the slices beside them.
    touching : bool
        Slices of a row touch.
    ground : "dark" or "blue"
    side : "left" or "right"
    thickness_um : float
    seed : int
    """

    animals: int = 3
    pixel_size_um: float = 60.0
    effect: float = 0.0
    doses: tuple[float, ...] = (1.0,)
    lesion: float = 0.55
    swelling: float = 0.10
    tilt_deg: float = 8.0
    shading: float = 0.2
    shadow: bool = True
    touching: bool = False
    ground: str = "dark"
    side: str = "right"
    thickness_um: float = 2000.0
    seed: int = 0

    def __post_init__(self) -> None:
        within = {
            "animals": 1 <= self.animals <= 999,
            "pixel_size_um": 20 <= self.pixel_size_um <= 200,
            "doses": 1 <= len(self.doses) <= 9 and all(0 <= dose <= 1 for dose in self.doses),
            "effect": -1 <= self.effect <= 0.5,
            "lesion": 0 <= self.lesion <= 0.8,
            "swelling": -0.3 <= self.swelling <= 0.4,
            "tilt_deg": 0 <= self.tilt_deg <= 40,
            "shading": 0 <= self.shading <= 0.5,
            "ground": self.ground in GROUNDS,
            "side": self.side in ("left", "right"),
            "thickness_um": 100 <= self.thickness_um <= 10_000,
            "seed": self.seed >= 0,
        }
        for name, fits in within.items():
            if not fits:
                raise InputError(
                    f"Phantom plan: {name} = {getattr(self, name)} is out of bounds.",
                    "See the bounds of histoquant.phantom.TtcPlan.",
                )


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph and its truth.

    Attributes
    ----------
    rgb : (y, x, 3) uint8
    lesion : (y, x) uint8
        Number of the slice where its infarct is, else 0.
    areas_mm2 : list of (infarct, ipsilateral, contralateral)
        By slice, in reading order, from a grid ten times finer than tissue can be seen.
    """

    rgb: NDArray[np.uint8]
    lesion: NDArray[np.uint8]
    areas_mm2: list[tuple[float, float, float]]


def photograph(plan: TtcPlan, animal: int, factor: float) -> Photograph:
    """Take the photograph of one brain; ``factor`` scales the area of its infarcts."""
    rng = np.random.default_rng((plan.seed, animal))
    px = plan.pixel_size_um / 1000
    pitch = (LARGEST_MM[0] * (1 + max(plan.swelling, 0) / 2) + (-0.25 if plan.touching else 2.6), LARGEST_MM[1] + 3.0)
    rows, columns = 2, 3
    size_mm = (rows * pitch[1] + 4.0, columns * pitch[0] + 4.0)
    shape = tuple(round(side / px) for side in size_mm)
    y, x = (np.indices(shape) + 0.5) * px
    colour = np.broadcast_to(np.array(GROUNDS[plan.ground])[:, None, None], (3, *shape)).copy()
    lesion, areas = np.zeros(shape, np.uint8), []
    light = np.ones(shape)
    for index, size in enumerate(PROFILE):
        centre = (2 + pitch[1] * (index // columns + 0.5), 2 + pitch[0] * (index % columns + 0.5))
        if plan.touching:  # the row is pushed together until its slices meet
            widths = [
                LARGEST_MM[0] * s * (1 + plan.swelling / 2) for s in PROFILE[3 * (index // 3) : 3 * (index // 3) + 3]
            ]
            left = 2 + (columns * pitch[0] - sum(widths)) / 2
            centre = (centre[0], left + sum(widths[: index % 3]) + widths[index % 3] / 2)
        tilt = math.radians(rng.uniform(-plan.tilt_deg, plan.tilt_deg)) * (0.3 if plan.touching else 1)
        one = _Slice(plan, size, LESION[index] * math.sqrt(factor) * plan.lesion)
        v, u = _turned(y - centre[0], x - centre[1], tilt)
        u = u + one.shift_mm
        inside = one.inside(v, u)
        dead = inside & one.dead(v, u)
        white = inside & one.white_matter(v, u) & ~dead
        grain = 1 + 0.05 * rng.standard_normal(shape)
        for mask, tint in ((inside, LIVING), (white, WHITE_MATTER), (dead, PALE)):
            for channel in range(3):
                colour[channel][mask] = tint[channel]
        colour[:, inside] *= grain[inside]
        lesion[dead] = index + 1
        areas.append(one.areas())
        if plan.shadow:
            sv, su = _turned(y - centre[0] - 0.7, x - centre[1] - 0.9, tilt)
            light[one.inside(sv, su + one.shift_mm) & ~inside] *= 0.6
    slope = 1 + plan.shading * (0.6 * (x / size_mm[1] - 0.5) + 0.8 * (y / size_mm[0] - 0.5) * rng.choice([-1, 1]))
    seen = colour * light * slope + rng.normal(0, 2.5, (3, *shape))
    return Photograph(np.moveaxis(np.clip(seen, 0, 255), 0, -1).round().astype(np.uint8), lesion, areas)


def _turned(dy: NDArray[Any], dx: NDArray[Any], angle: float) -> tuple[NDArray[Any], NDArray[Any]]:
    c, s = math.cos(angle), math.sin(angle)
    return dy * c + dx * s, dx * c - dy * s


class _Slice:
    """One slice in its own millimetres: v from dorsal to ventral, u from left to right of the midline."""

    def __init__(self, plan: TtcPlan, size: float, lesion: float) -> None:
        self.half_width, self.half_height = LARGEST_MM[0] / 2 * size, LARGEST_MM[1] / 2 * size
        self.stretch = 1 + plan.swelling if lesion > 0 else 1.0
        self.sign = 1 if plan.side == "right" else -1
        self.radius = lesion
        # The photograph's middle of the slice is that of its outline, not the midline.
        self.shift_mm = self.sign * self.half_width * (self.stretch - 1) / 2

    def _own(self, u: NDArray[Any]) -> NDArray[Any]:
        """Return u as it was before the swelling, from 0 at the midline to 1 at the side, by hemisphere."""
        swollen = self.sign * u > 0
        unswollen: NDArray[Any] = np.where(swollen, u / self.stretch, u) / self.half_width
        return unswollen

    def inside(self, v: NDArray[Any], u: NDArray[Any]) -> NDArray[np.bool_]:
        w, h = self._own(u), v / self.half_height
        body = np.abs(w) ** 2.4 + np.abs(h) ** 2.4 <= 1
        depth = NOTCH_MM * np.maximum(0, 1 - np.abs(u) / (NOTCH_WIDTH_MM / 2))
        result: NDArray[np.bool_] = body & (v > -self.half_height + depth) & (v < self.half_height - 0.7 * depth)
        return result

    def dead(self, v: NDArray[Any], u: NDArray[Any]) -> NDArray[np.bool_]:
        if self.radius == 0:
            return np.zeros(np.shape(v), dtype=bool)
        w, h = self.sign * self._own(u), v / self.half_height
        result: NDArray[np.bool_] = (w > 0.06) & (
            ((w - 0.78) / self.radius) ** 2 + ((h + 0.05) / (1.25 * self.radius)) ** 2 <= 1
        )
        return result

    def white_matter(self, v: NDArray[Any], u: NDArray[Any]) -> NDArray[np.bool_]:
        w, h = np.abs(self._own(u)), v / self.half_height
        arch = np.hypot(w / 0.66, (h - 0.12) / 0.62)
        result: NDArray[np.bool_] = (np.abs(arch - 1) < 0.055) & (h < 0.12)
        return result

    def areas(self) -> tuple[float, float, float]:
        """Return infarct, ipsilateral and contralateral area in mm2."""
        step = 0.01
        u = np.arange(-1.5 * self.half_width, 1.5 * self.half_width, step) + step / 2
        v = np.arange(-1.05 * self.half_height, 1.05 * self.half_height, step) + step / 2
        v, u = np.meshgrid(v, u, indexing="ij")
        inside = self.inside(v, u)
        ipsilateral = inside & (self.sign * u > 0)
        dead = inside & self.dead(v, u)
        return tuple(float(np.count_nonzero(m) * step**2) for m in (dead, ipsilateral, inside & ~ipsilateral))  # type: ignore[return-value]


def make_ttc_phantom(out: Path, plan: TtcPlan, *, progress: Callable[[float], None] | None = None) -> Path:
    """Make a TTC study of known truth that `histoquant infarct` takes as it is; returns the path of ``study.csv``.

    Writes ``slides/*.png``, ``recipe.toml``, ``study.csv`` and under ``truth/`` ``slices.csv``, ``infarct.csv`` and
    ``<slide>_lesion.png``, whose values are the numbers of slices.

    Raises
    ------
    InputError
        If the folder holds a study already.
    StoreError
        If the folder cannot be written.
    """
    import pandas as pd
    from PIL import Image

    from histoquant.analysis.infarct import FORMULAS, SliceAreas, volumes
    from histoquant.phantom.study import begin_study, refused, shipped_recipe

    out = Path(out)
    sheet = begin_study(out, shipped_recipe("ttc").read_text("utf-8"))
    groups = {"vehicle": 0.0} | group_doses(plan.doses)
    rows: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    brains: list[dict[str, Any]] = []
    spread = (
        np.random.default_rng(plan.seed).permutation(np.linspace(0.75, 1.25, plan.animals))
        if plan.animals > 1
        else [1.0]
    )
    try:
        for number in range(len(groups) * plan.animals):
            group, animal = list(groups)[number // plan.animals], f"R{number + 1}"
            factor = float(spread[number % plan.animals]) * (1 + plan.effect * groups[group])
            taken = photograph(plan, number, factor)
            Image.fromarray(taken.rgb).save(out / "slides" / f"{animal}.png")
            Image.fromarray(taken.lesion).save(out / "truth" / f"{animal}_lesion.png")
            rows.append(
                {
                    "slide": f"slides/{animal}.png",
                    "animal": animal,
                    "group": group,
                    "hemisphere": plan.side,
                    "pixel_size_um": plan.pixel_size_um,
                }
            )
            areas = [SliceAreas(*each) for each in taken.areas_mm2]
            slices += [
                {
                    "slide": animal,
                    "slice": i,
                    "infarct_mm2": s.infarct,
                    "ipsilateral_mm2": s.ipsilateral,
                    "contralateral_mm2": s.contralateral,
                }
                for i, s in enumerate(areas, start=1)
            ]
            whole = volumes(areas, plan.thickness_um / 1000)
            brain: dict[str, Any] = {"animal": animal, "group": group}
            brain |= {f"{formula}_mm3": getattr(whole, f"{formula}_mm3") for formula in FORMULAS}
            brains.append(brain | {"swelling_percent": whole.swelling_percent})
            if progress:
                progress((number + 1) / (len(groups) * plan.animals))
        pd.DataFrame(slices).round(4).to_csv(out / "truth" / "slices.csv", index=False, lineterminator="\n")
        pd.DataFrame(brains).round(4).to_csv(out / "truth" / "infarct.csv", index=False, lineterminator="\n")
        pd.DataFrame(rows).to_csv(sheet, index=False, lineterminator="\n")
    except OSError as error:
        raise refused(out, error) from error
    return sheet
