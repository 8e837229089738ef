"""Infarct volumes from the areas of brain slices, corrected for swelling.

For slice i of thickness d let I be the infarct, P the hemisphere it is in (ipsilateral) and C the other one, as areas::

    direct    V = sum I d
    indirect  V = sum (C - (P - I)) d          Swanson et al. 1990, J Cereb Blood Flow Metab 10:290
    ratio     V = sum (I / P) C d              McBride et al. 2015; slice form of Reglodi et al. 2002

Indirect takes the other hemisphere for what this one was, and swelling to be inside the infarct only; ratio also takes
off the swelling round it and gives more. Which one is used can change a result by half: all three are reported, and the
study declares one beforehand. A slice in which the undamaged rest is larger than the other hemisphere has a negative
indirect area. It is kept: clipping it on one side only would bias the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FORMULAS = ("direct", "indirect", "ratio")


@dataclass(frozen=True)
class SliceAreas:
    """Areas of one slice in mm2.

    Attributes
    ----------
    infarct, ipsilateral, contralateral : float
        The infarct is part of the ipsilateral hemisphere.
    """

    infarct: float
    ipsilateral: float
    contralateral: float

    @property
    def direct_mm2(self) -> float:
        """The infarct as it is."""
        return self.infarct

    @property
    def indirect_mm2(self) -> float:
        """What the ipsilateral hemisphere lacks of undamaged tissue; may be below 0."""
        return self.contralateral - (self.ipsilateral - self.infarct)

    @property
    def ratio_mm2(self) -> float:
        """The infarct's share of its hemisphere, of the size of the other; NaN without a hemisphere."""
        return self.infarct / self.ipsilateral * self.contralateral if self.ipsilateral > 0 else math.nan


@dataclass(frozen=True)
class Volumes:
    """Infarct of one brain.

    Attributes
    ----------
    direct_mm3, indirect_mm3, ratio_mm3 : float
    contralateral_mm3, ipsilateral_mm3 : float
    n_slices, n_negative : int
        Slices, and those whose indirect area is below 0.
    """

    direct_mm3: float
    indirect_mm3: float
    ratio_mm3: float
    contralateral_mm3: float
    ipsilateral_mm3: float
    n_slices: int
    n_negative: int

    def percent_hemisphere(self, formula: str) -> float:
        """Return a volume in percent of the contralateral hemisphere."""
        return 100 * _share(self._volume(formula), self.contralateral_mm3)

    def percent_brain(self, formula: str) -> float:
        """Return a volume in percent of the brain, taken as twice the contralateral hemisphere."""
        return 100 * _share(self._volume(formula), 2 * self.contralateral_mm3)

    @property
    def swelling_percent(self) -> float:
        """How much larger the ipsilateral hemisphere is, in percent of the other; below 0 where tissue is lost."""
        return 100 * _share(self.ipsilateral_mm3 - self.contralateral_mm3, self.contralateral_mm3)

    def _volume(self, formula: str) -> float:
        return {"direct": self.direct_mm3, "indirect": self.indirect_mm3, "ratio": self.ratio_mm3}[formula]


def volumes(slices: Sequence[SliceAreas], thickness_mm: float) -> Volumes:
    """Add up the slices of one brain.

    Parameters
    ----------
    slices : sequence of SliceAreas
        A brain without any has volumes of 0 and percentages of NaN.
    thickness_mm : float
        From one slice to the next.

    Examples
    --------
    >>> one = volumes([SliceAreas(infarct=14, ipsilateral=82, contralateral=75)], 2.0)
    >>> one.direct_mm3, one.indirect_mm3, round(one.ratio_mm3, 2), round(one.swelling_percent, 2)
    (28.0, 14.0, 25.61, 9.33)
    """
    d = thickness_mm
    return Volumes(
        direct_mm3=sum(s.direct_mm2 for s in slices) * d,
        indirect_mm3=sum(s.indirect_mm2 for s in slices) * d,
        ratio_mm3=sum(s.ratio_mm2 for s in slices) * d,
        contralateral_mm3=sum(s.contralateral for s in slices) * d,
        ipsilateral_mm3=sum(s.ipsilateral for s in slices) * d,
        n_slices=len(slices),
        n_negative=sum(s.indirect_mm2 < 0 for s in slices),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
