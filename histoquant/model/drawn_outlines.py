"""Outlines as people draw them: several of one name, over the slide's edge, or not usable at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import shapely

from histoquant.model import geometry as plane
from histoquant.model.region_set import Region

FaultListener: TypeAlias = Callable[..., None]
"""Called with message, remedy and the name of the region that cannot be used."""


def one_per_name(drawn: Iterable[Region], slide_um: tuple[float, float], fault: FaultListener) -> dict[str, Region]:
    """Join outlines of one name, clip them to the slide, and report what cannot be used.

    Parameters
    ----------
    drawn : iterable of Region
        As read, in their order.
    slide_um : (float, float)
        Height and width of the slide.
    fault : callable
        Told of every outline that is empty (unless it is a mask), broken, contradictory or wholly off the slide;
        these are left out.

    Returns
    -------
    dict of str to Region
        In order of first appearance. What was joined or clipped is declared in the region's notes.
    """
    by_name: dict[str, list[Region]] = {}
    for region in drawn:
        if region.masked and region.geometry.is_empty:
            continue  # a mask of nothing takes nothing away
        by_name.setdefault(region.name, []).append(region)
    usable: dict[str, Region] = {}
    for name, several in by_name.items():
        sound = [_is_sound(region, fault) for region in several]
        if all(sound) and _agree(name, several, fault):
            region = _clipped(_joined(several), slide_um)
            if region.geometry.is_empty:
                fault(
                    f"Region '{name}' ({region.origin}) lies wholly off the slide, which is "
                    f"{slide_um[1]:g} x {slide_um[0]:g} um.",
                    "Check that the outlines belong to this slide, and its pixel size.",
                    name,
                )
            else:
                usable[name] = region
    return usable


def _is_sound(region: Region, fault: FaultListener) -> bool:
    problem = ""
    if region.geometry.is_empty:
        problem = "is empty"
    elif not shapely.is_valid(region.geometry):
        problem = f"is not a proper outline ({shapely.is_valid_reason(region.geometry)})"
    elif not region.is_line and not region.geometry.area > 0:
        problem = "has no area"
    if problem:
        fault(f"Region '{region.name}' ({region.origin}) {problem}.", "Draw it again.", region.name)
    return not problem


def _agree(name: str, several: list[Region], fault: FaultListener) -> bool:
    """Say whether outlines of one name can be one region."""
    problems = []
    if len({region.is_line for region in several}) > 1:
        problems.append("some are lines and some are areas")
    elif several[0].is_line and len(several) > 1:
        problems.append("only one line can be meant")
    if len({region.masked for region in several}) > 1:
        problems.append("some are masked and some are not")
    if len({region.parent for region in several}) > 1:
        problems.append("they name different parents")
    if problems:
        fault(
            f"{len(several)} outlines are named '{name}' ({several[0].origin}), but {' and '.join(problems)}.",
            "Give them different names, or draw what belongs together alike.",
            name,
        )
    return not problems


def _joined(several: list[Region]) -> Region:
    if len(several) == 1:
        return several[0]
    return replace(
        several[0],
        geometry=plane.union([region.geometry for region in several]),
        counted=any(region.counted for region in several),
        origin="; ".join(dict.fromkeys(region.origin for region in several)),
        notes=(
            f"{len(several)} outlines of this name joined",
            *(n for region in several for n in region.notes),
        ),
    )


def _clipped(region: Region, slide_um: tuple[float, float]) -> Region:
    """Keep what lies on the slide; a line stays as it is, for a midline may run on beyond."""
    if region.is_line:
        return region
    before = region.geometry.area
    inside = plane.ground(shapely.intersection(region.geometry, plane.slide_rectangle(slide_um)))
    lost = 1 - inside.area / before
    if lost <= 1e-9:  # rounding of an outline drawn along the slide's rim
        return region if not lost > 0 else replace(region, geometry=inside)
    return replace(
        region,
        geometry=inside,
        notes=(*region.notes, f"clipped to the slide: {lost:.2%} of its area lay off it"),
    )
