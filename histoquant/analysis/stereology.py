"""From counts in sampled sections to totals per animal, with the precision that the sampling allows.

Notation: ``Q`` counted objects; ``ssf``, ``asf``, ``tsf`` the sampled fractions of sections, of area and of thickness;
``T`` thickness of a section as cut, ``t`` as mounted, ``h`` height of an object (Abercrombie) or of the counted part of
the section (fractionator). A fraction of anything sampled is undone by dividing by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from histoquant.errors import InputError
from histoquant.model.tables import STEREOLOGY, empty, records, shaped

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from histoquant.model.design import Stereology

MIN_SECTIONS = 3
"""With fewer sections nothing can be said about how they vary along the brain."""

ALPHA = {0: 12.0, 1: 240.0}
"""Divisors of the variance between sections by smoothness class m (Gundersen 1999)."""


def scale_up(counted: float, *, section_fraction: float, hemisphere_fraction: float = 1.0) -> float:
    """Return the total that a count in a sample of sections stands for: every 8th section of one half gives x 16.

    Raises
    ------
    InputError
        If a fraction is not above 0 and at most 1.
    """
    for name, fraction in (("section", section_fraction), ("hemisphere", hemisphere_fraction)):
        if not 0 < fraction <= 1:
            raise InputError(f"The {name} fraction is {fraction:g}.", "It must be above 0 and at most 1.")
    return counted / section_fraction / hemisphere_fraction


def abercrombie_factor(*, section_um: float, object_um: float, lost_cap_um: float = 0.0) -> float:
    """Return the share of counted profiles that are objects of their own: T / (T + h - 2 k).

    An object that reaches into two sections shows a profile in both. Caps of less than ``k`` are not seen
    (Abercrombie 1946; lost caps: Hedreen 1998).

    Parameters
    ----------
    section_um : float
        Thickness T of the section as cut; the mounted section is thinner and gives a wrong factor.
    object_um : float
        Mean height h of the objects across the section.
    lost_cap_um : float
        Height k of what is lost on each side.

    Raises
    ------
    InputError
        If a length is not above 0, or the caps are as high as the object.
    """
    if section_um <= 0 or object_um <= 0 or lost_cap_um < 0 or 2 * lost_cap_um >= object_um:
        raise InputError(
            f"Sections of {section_um:g} um with objects of {object_um:g} um that lose {lost_cap_um:g} um on each side "
            "give no correction.",
            "All lengths must be above 0, and two caps lower than the object.",
        )
    return section_um / (section_um + object_um - 2 * lost_cap_um)


class Precision(NamedTuple):
    """Gundersen's coefficient of error and what it is made of.

    ``between`` is the variance of the systematic sample of sections as estimated; a negative one counts as 0 in ``ce``.
    """

    ce: float
    total: float
    noise: float
    between: float


def coefficient_of_error(counts: ArrayLike, *, m: int = 1) -> Precision:
    """Return how precisely counts in systematically sampled sections tell their total (Gundersen 1999).

    Parameters
    ----------
    counts : (n,) array
        Objects per section, in the order of the sections.
    m : 0 or 1
        Smoothness class; 1 when the counts change smoothly from section to section.

    Returns
    -------
    Precision
        All NaN for fewer than `MIN_SECTIONS` sections; ``ce`` is NaN when nothing was counted.
    """
    q = np.asarray(counts, dtype=float)
    if q.size < MIN_SECTIONS:
        return Precision(math.nan, math.nan, math.nan, math.nan)
    total = float(q.sum())
    a, b, c = float(q @ q), float(q[:-1] @ q[1:]), float(q[:-2] @ q[2:])
    between = (3 * (a - total) - 4 * b + c) / ALPHA[m]
    ce = math.sqrt(total + max(0.0, between)) / total if total > 0 else math.nan
    return Precision(ce, total, total, between)


@dataclass(frozen=True)
class Disector:
    """Where and how deep objects are counted.

    Attributes
    ----------
    frame_um, step_um : (y, x) in um
        Size of the counting frame, and the distance between the starts of neighbouring frames.
    height_um : float
        Depth h of the counted part.
    guard_top_um, guard_bottom_um : float
        Kept free above and below, where knife and mounting lose objects.
    """

    frame_um: tuple[float, float]
    step_um: tuple[float, float]
    height_um: float
    guard_top_um: float = 0.0
    guard_bottom_um: float = 0.0

    def __post_init__(self) -> None:
        if min(*self.frame_um, *self.step_um, self.height_um) <= 0 or min(self.guard_top_um, self.guard_bottom_um) < 0:
            raise InputError("Frame, step and height of a disector must be above 0 um, its guard zones not below 0.")
        if any(frame > step for frame, step in zip(self.frame_um, self.step_um, strict=True)):
            raise InputError("Counting frames overlap: they are larger than their step.", "Make the step larger.")

    @property
    def area_fraction(self) -> float:
        """Share of the area that lies in frames, asf."""
        return math.prod(self.frame_um) / math.prod(self.step_um)


def in_frame(
    y_um: ArrayLike,
    x_um: ArrayLike,
    *,
    corner_um: tuple[float, float],
    frame_um: tuple[float, float],
    radius_um: ArrayLike = 0.0,
) -> np.ndarray:
    """Return which objects an unbiased counting frame counts (Gundersen 1977).

    Counted is what lies in the frame or touches its inclusion lines, left and bottom, and touches neither the exclusion
    lines, top and right, nor their extensions: upwards from the top left corner, and downwards along the right side.
    Frames side by side so count every object once. ``y`` grows downwards, as in pictures.

    Parameters
    ----------
    y_um, x_um : (n,) arrays
        Centres.
    corner_um : (y, x)
        Top left corner of the frame.
    radius_um : float or (n,) array
        Objects are discs; points when 0.

    Returns
    -------
    (n,) bool
    """
    # In the frame's own coordinates: right and up, from its bottom left corner.
    height, width = frame_um
    x = np.asarray(x_um, dtype=float) - corner_um[1]
    y = corner_um[0] + height - np.asarray(y_um, dtype=float)
    radius = np.broadcast_to(np.asarray(radius_um, dtype=float), x.shape)
    inside = np.hypot(x - np.clip(x, 0, width), y - np.clip(y, 0, height)) <= radius
    to_top = np.hypot(x - np.clip(x, 0, width), y - height)
    to_right = np.hypot(x - width, np.maximum(y - height, 0))  # the right side goes on downwards
    to_upward = np.hypot(x, np.maximum(height - y, 0))
    touched = (to_top <= radius) | (to_right <= radius) | (to_upward <= radius)
    return np.asarray(inside & ~touched)


class Fractionator(NamedTuple):
    """An estimate by the optical fractionator.

    ``total`` is empty when nothing was sampled; ``thickness_um`` is what the thickness fraction ``tsf`` was made with.
    """

    total: float
    n_counted: int
    n_sections: int
    n_sites: int
    ssf: float
    asf: float
    tsf: float
    thickness_um: float
    ce_m0: float
    ce_m1: float


def fractionate(
    points: pd.DataFrame,
    sites: pd.DataFrame,
    disector: Disector,
    *,
    section_fraction: float,
    hemisphere_fraction: float = 1.0,
    weighted: bool = True,
) -> Fractionator:
    """Estimate the number of objects in an animal: N = Q / (ssf asf tsf), tsf = h / t.

    Parameters
    ----------
    points : DataFrame
        ``section``, ``z_um`` (where the top of the object comes into focus), ``y_um``, ``x_um``, and ``radius_um`` when
        objects are no points.
    sites : DataFrame
        One row per frame: ``section`` (in order along the brain), ``y_um``, ``x_um`` of the frame's top left corner,
        ``surface_um`` (z of the section's upper face) and ``thickness_um``, mounted, measured there.
    weighted : bool
        Weight the thickness by the objects counted at each site, as is right when dense parts shrink otherwise; the
        plain mean over sites when False.

    Raises
    ------
    InputError
        If at any site guard zones and counted depth together are thicker than the section: what is missing there
        cannot be made up.
    """
    need = disector.guard_top_um + disector.height_um + disector.guard_bottom_um
    thin = sites[~(sites["thickness_um"] >= need)]
    if len(thin):
        first_um = thin["thickness_um"].iloc[0]
        raise InputError(
            f"{len(thin)} of {len(sites)} sites are thinner than guard zones and counted depth together "
            f"({need:g} um); the first, in section '{thin['section'].iloc[0]}', has {first_um:g} um.",
            "Count less depth, or leave that section out with a reason.",
        )
    unsampled = sorted(set(points["section"]) - set(sites["section"]), key=str)
    if unsampled:
        raise InputError(
            f"There are objects but no sites in section '{unsampled[0]}'.", "List the frames of every section."
        )
    counted = np.zeros(len(sites), dtype=int)
    by_section = dict(tuple(points.groupby("section", sort=False)))
    for index, site in enumerate(records(sites)):
        mine = by_section.get(site.section)
        if mine is None:
            continue
        depth = mine["z_um"].to_numpy(float) - site.surface_um - disector.guard_top_um
        # In focus at the upper plane already: its top lies above the counted part.
        deep = (depth > 0) & (depth <= disector.height_um)
        framed = in_frame(
            mine["y_um"],
            mine["x_um"],
            corner_um=(site.y_um, site.x_um),
            frame_um=disector.frame_um,
            radius_um=mine.get("radius_um", 0.0),
        )
        counted[index] = int((deep & framed).sum())
    total, thickness = int(counted.sum()), sites["thickness_um"].to_numpy(float)
    mean = math.nan
    if len(sites):
        mean = float(counted @ thickness / total) if weighted and total else float(thickness.mean())
    tsf = disector.height_um / mean
    per_section = sites.assign(n=counted).groupby("section", sort=False)["n"].sum().to_numpy()
    sampled = scale_up(total, section_fraction=section_fraction, hemisphere_fraction=hemisphere_fraction)
    return Fractionator(
        total=sampled / disector.area_fraction / tsf,
        n_counted=total,
        n_sections=len(per_section),
        n_sites=len(sites),
        ssf=section_fraction,
        asf=disector.area_fraction,
        tsf=tsf,
        thickness_um=mean,
        ce_m0=coefficient_of_error(per_section, m=0).ce,
        ce_m1=coefficient_of_error(per_section, m=1).ce,
    )


def total_counts(sections: pd.DataFrame, settings: Stereology) -> pd.DataFrame:
    """Return totals per animal, region and marker from counts in thin sections, as `tables.STEREOLOGY` lists them.

    What is counted in one focal plane are profiles: ``total_profiles`` counts an object once for each section that
    shows it. ``total_cells`` is corrected for that and empty when the recipe does not say how.

    Parameters
    ----------
    sections : DataFrame
        Rows of `counting.count_regions` of all slides, controls left out. Slides of an animal with the same ``section``
        are one section; without a name each is its own. They are ordered by ``section_position_um``, by numbers in
        ``section``, or else as in the sample sheet, which is flagged.
    """
    import pandas as pd

    if sections.empty:
        return empty(STEREOLOGY)
    keys = ["animal", "group", "region", "marker"]
    rows = []
    for animal, mine in sections.groupby("animal", sort=False):
        named = mine["section"].where(mine["section"] != "", "\0" + mine["slide_id"])  # no name: a section by itself
        order, remark = _section_order(mine.assign(named=named))
        refusal = _hemisphere_refusal(mine, settings)
        for (_, group, region, marker), part in mine.assign(named=named).groupby(keys, sort=False):
            per_section = part.groupby("named")["n_positive"].sum()
            counts = [int(per_section.get(name, 0)) for name in order]
            rows.append(
                _total_row(counts, part, settings, str(marker))
                | {"animal": animal, "group": group, "region": region, "marker": marker}
                | {"flags": "; ".join(filter(None, [remark, refusal, _few_sections(len(per_section))]))}
            )
            if len(per_section) < MIN_SECTIONS:
                rows[-1]["coefficient_of_error"] = math.nan
            if refusal:
                rows[-1] |= {"total_profiles": math.nan, "total_cells": math.nan, "coefficient_of_error": math.nan}
    return shaped(pd.DataFrame(rows), STEREOLOGY)


def _total_row(counts: Sequence[int], part: pd.DataFrame, settings: Stereology, marker: str) -> dict[str, float]:
    section_fraction, hemisphere_fraction = 1 / settings.section_interval, settings.hemispheres / 2
    profiles, area = sum(counts), float(part["area_mm2"].sum())
    total = scale_up(profiles, section_fraction=section_fraction, hemisphere_fraction=hemisphere_fraction)
    height = settings.heights.get(marker, settings.heights.get(""))
    factor = math.nan
    if height is not None and settings.section_thickness_um is not None:
        factor = abercrombie_factor(
            section_um=settings.section_thickness_um, object_um=height, lost_cap_um=settings.lost_cap_um
        )
    return {
        "n_sections": part["named"].nunique(),
        "n_profiles": profiles,
        "profiles_per_mm2": profiles / area if area > 0 else math.nan,
        "section_fraction": section_fraction,
        "hemisphere_fraction": hemisphere_fraction,
        "total_profiles": total,
        "abercrombie_factor": factor,
        "total_cells": total * factor,
        "coefficient_of_error": coefficient_of_error(counts, m=settings.smoothness).ce,
    }


def _section_order(sections: pd.DataFrame) -> tuple[list[str], str]:
    """Return the names of an animal's sections along the brain, and a remark where the order is a guess."""
    first = sections.drop_duplicates("named")
    for column in ("section_position_um", "section"):
        if column in first:
            try:
                places = [float(text) for text in first[column]]
            except ValueError:
                continue
            if not any(math.isnan(place) for place in places):
                return [name for _, name in sorted(zip(places, first["named"], strict=True))], ""
    return list(first["named"]), "sections taken in the order of the sample sheet"


def _hemisphere_refusal(sections: pd.DataFrame, settings: Stereology) -> str:
    """Return why no total can be given: the sheet and the recipe say different things about the hemispheres."""
    sides = sorted(set(sections["hemisphere"]) - {""})
    both = len(sides) > 1 or any(side.casefold() in ("both", "bilateral") for side in sides)
    if sides and both != (settings.hemispheres == 2):
        told = " and ".join(sides)
        return f"no total: the recipe says {settings.hemispheres} hemisphere(s), the sample sheet {told}"
    return ""


def _few_sections(n: int) -> str:
    return f"coefficient of error not defined for {n} section(s)" if n < MIN_SECTIONS else ""
