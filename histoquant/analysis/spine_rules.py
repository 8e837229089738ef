"""Rules of counting spines: which segment one lies on, its class, density, and what Golgi hides.

Classes cut a continuum: in electron microscopy every measure of head and neck has one mode and no subtypes (Ofer et al.
2021). Lengths and widths come first, classes second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RuleSet = Literal["A", "B"]
CLASSES = {
    "A": ("mushroom", "stubby", "thin", "filopodium"),
    "B": ("filopodium", "mushroom", "stubby", "thin", "long thin", "branched"),
}


def class_of(
    length_um: float, head_um: float, neck_um: float = float("nan"), *, rules: RuleSet, n_heads: int = 1
) -> str:
    """Return the class of a spine.

    A, fluorescence in 3-D (Rodriguez et al. 2008, PLoS ONE 3:e1997, as the tree is coded in Dendritic Spine Counter)::

        head / neck > 1.1 and head >= 0.35     mushroom
        head / neck <= 1.1, length / head < 2.5    stubby
        else                                   filopodium when length > 3, thin when not

    B, Golgi in 2-D (Risher et al. 2014, PLoS ONE 9:e107591, as coded by another group), the first that holds::

        L > 2 or (W / L < 0.25 and L > 1.5)    filopodium
        W > 0.6                                mushroom
        L / W < 1 and L < 1                    stubby
        L < 1, else                            thin, long thin

    Parameters
    ----------
    length_um : float
        L, from base to tip, the head included.
    head_um : float
        W, widest extent of the head.
    neck_um : float
        Narrowest width between base and head. Rule set B does not look at it.
    n_heads : int
        Two and more are "branched" in B.

    Returns
    -------
    str
        Empty when a measure the rule needs is not known: necks of 0.1 to 0.2 um are below the resolution of light, and
        no class is made up from what the optics did not show.
    """
    if not (length_um >= 0 and head_um > 0):
        return ""
    if rules == "B":
        return _golgi_class(length_um, head_um, n_heads)
    if not neck_um > 0:
        return ""
    if head_um / neck_um > 1.1:
        if head_um >= 0.35:
            return "mushroom"
    elif length_um / head_um < 2.5:
        return "stubby"
    return "filopodium" if length_um > 3 else "thin"


def _golgi_class(length_um: float, head_um: float, n_heads: int) -> str:
    if n_heads >= 2:
        return "branched"
    if length_um > 2 or (length_um > 1.5 and head_um / length_um < 0.25):
        return "filopodium"
    if head_um > 0.6:
        return "mushroom"
    if length_um / head_um < 1 and length_um < 1:
        return "stubby"
    return "thin" if length_um < 1 else "long thin"


def density_per_10um(n_spines: int, length_um: float) -> float:
    """Return spines per 10 um of dendrite; NaN for no length. A dendrite without spines has 0."""
    return 10.0 * n_spines / length_um if length_um > 0 else float("nan")


def on_segment(position_um: NDArray[np.float64], length_um: float) -> NDArray[np.bool_]:
    """Return which bases lie on [0, length): half open, so that the spines of segments laid end to end add up."""
    return (position_um >= 0) & (position_um < length_um)


def pooled_density(counts: Sequence[int], lengths_um: Sequence[float]) -> float:
    """Return the density of a neuron: all its spines over all its length, segments without spines included."""
    return density_per_10um(int(np.sum(counts)), float(np.sum(lengths_um)))


def animal_density(neurons: Sequence[tuple[Sequence[int], Sequence[float]]]) -> float:
    """Return the density of an animal: the mean over its neurons of each neuron's pooled density; NaN without any."""
    values = [pooled_density(counts, lengths) for counts, lengths in neurons]
    return float(np.mean(values)) if values else float("nan")


def hidden_factor(
    shaft_radius_um: float, length_um: float, head_um: float, *, form: Literal["area", "radial"] = "area"
) -> float:
    """Return by how much the spines seen beside a shaft are to be multiplied for those above and below it.

    With R the radius of the shaft, L the length of a spine, S the diameter of its head and cos t = (R + S) / (R + L)::

        area     pi [(R + L)^2 - R^2] / (2 [(R + L)^2 t - (R + S)(R + L) sin t])
        radial   pi / (2 t)

    "area" has the form of Feldman & Peters 1979 (J Comp Neurol 188:527), space that holds spines over space in which
    they are seen; "radial" takes spines to stand straight out, seen when the head clears the shaft. They differ much,
    and the density that is seen is what comparisons of one place need (Horner & Arbuthnott 1991): correct only to
    compare places, cells or species.

    Raises
    ------
    InputError
        If a measure is not positive, or spines are no longer than their heads.
    """
    if not (shaft_radius_um > 0 and 0 < head_um < length_um):
        raise InputError(
            f"No spine of {length_um:g} um with a head of {head_um:g} um clears a shaft of {shaft_radius_um:g} um.",
            "The correction needs lengths above 0, and spines longer than their heads.",
        )
    edge, reach = shaft_radius_um + head_um, shaft_radius_um + length_um
    angle = math.acos(edge / reach)
    if form == "radial":
        return math.pi / (2 * angle)
    seen = 2 * (reach**2 * angle - edge * reach * math.sin(angle))
    return math.pi * (reach**2 - shaft_radius_um**2) / seen
