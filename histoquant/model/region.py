"""Regions: from drawn outlines and a recipe's rules to the regions of one slide.

``Region`` and ``RegionSet`` (what results), ``RegionRule`` (what a recipe says) and `resolve` (how one
follows from the other) are all reached from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Literal

import shapely

from histoquant.errors import HistoquantError, RegionError, raise_all
from histoquant.model import geometry as plane
from histoquant.model.drawn_outlines import one_per_name
from histoquant.model.geometry import Geometry
from histoquant.model.region_rule import Band, Difference, Intersection, Mirror, RegionRule
from histoquant.model.region_set import MASKED, OUTSIDE, Region, RegionSet

__all__ = [
    "MASKED",
    "OUTSIDE",
    "Band",
    "Difference",
    "Intersection",
    "Mirror",
    "Region",
    "RegionRule",
    "RegionSet",
    "resolve",
]

SLIDE, TISSUE = "slide", "tissue"

CHILD_TOLERANCE = 1e-3
"""Share of its area by which a child may stick out of its parent: the width of a drawn line."""

OVERLAP_TOLERANCE_UM2 = 1.0
OVERLAP_TOLERANCE = 1e-6
"""Overlap below both, the latter as a share of the smaller region, is rounding of a shared border."""


def resolve(
    drawn: Iterable[Region],
    rules: Mapping[str, RegionRule],
    *,
    slide: tuple[float, float],
    tissue: Geometry | None = None,
    overlap: Literal["error", "first"] = "error",
    slide_name: str = "",
) -> RegionSet:
    """Apply a recipe's rules to the outlines of one slide.

    Parameters
    ----------
    drawn : iterable of Region
        Outlines as read. Several of one name become one region.
    rules : mapping of region name to RegionRule
        How outlines of that name are treated, or how a region of that name is derived. Empty for a control
        slide on which what the rules need was never drawn.
    slide : (float, float)
        Height and width of the slide in um; everything is kept within it.
    tissue : valid Polygon or MultiPolygon, optional
        The tissue found automatically, empty on a blank slide; the region ``tissue`` unless an outline of that
        name was drawn. It is a reference unless ``[regions.tissue]`` counts it.
    overlap : {"error", "first"}
        What undeclared overlap of counted regions means: a fault, or that the earlier in the list keeps the
        ground.
    slide_name : str
        What to call the slide in messages.

    Returns
    -------
    RegionSet
        With the one region ``slide``, the whole of it, when nothing else is counted.

    Raises
    ------
    RegionError
        For the one fault there is.
    Faults
        For all faults there are, when there are several.
    """
    work = _Resolution(slide, rules, f"Slide '{slide_name}': " if slide_name else "")
    work.take_in(drawn, tissue)
    work.derive()
    work.relate()
    work.share_ground(overlap)
    raise_all(work.faults)
    return work.finished()


@dataclass
class _Resolution:
    """The regions of one slide in the making, and every fault met on the way."""

    slide_um: tuple[float, float]
    rules: Mapping[str, RegionRule]
    where: str
    faults: list[HistoquantError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    regions: dict[str, Region] = field(default_factory=dict)
    built_in: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    def fault(self, message: str, remedy: str, *names: str) -> None:
        """Take down a fault; whatever builds on the regions named is not faulted once more."""
        self.faults.append(RegionError(f"{self.where}{message}", remedy))
        self.broken.update(names)

    def take_in(self, drawn: Iterable[Region], tissue: Geometry | None) -> None:
        """Take in the outlines that can be used, with ``tissue`` and ``slide``."""
        outlines = list(drawn)
        for name in dict.fromkeys([*(region.name for region in outlines), *self.rules]):
            if name in (MASKED, OUTSIDE) or (name == SLIDE and not self._may_rule_slide(outlines)):
                self.fault(f"A region cannot be named '{name}': the name has a fixed meaning.", "Rename it.", name)
        outlines = [region for region in outlines if region.name not in self.broken]
        self.regions = one_per_name(outlines, self.slide_um, self.fault)
        whole = plane.slide_rectangle(self.slide_um)
        if TISSUE in self.regions:
            self.regions[TISSUE] = replace(self.regions[TISSUE], counted=False)
        elif tissue is not None and TISSUE not in self.broken:
            on_slide = plane.ground(shapely.intersection(tissue, whole))  # empty on a blank slide, which is no fault
            self.regions[TISSUE] = Region(TISSUE, on_slide, counted=False, origin="found: outline of the tissue")
            self.built_in.add(TISSUE)
        self.regions[SLIDE] = Region(SLIDE, whole, counted=False, origin="the whole slide")
        self.built_in.add(SLIDE)

    def _may_rule_slide(self, outlines: list[Region]) -> bool:
        """Say whether the slide is only counted or made a child by its rule, not drawn or derived."""
        rule = self.rules.get(SLIDE)
        bent = rule is not None and (rule.derivation is not None or rule.sources or rule.masked)
        return not bent and all(region.name != SLIDE for region in outlines)

    def derive(self) -> None:
        """Apply each rule, sources first."""
        made = self._rules_that_apply()
        known = {*self.regions, *made, *self.broken}
        graph: dict[str, tuple[str, ...]] = {}
        for name, rule in made.items():
            for source in rule.sources:
                if source not in known:
                    self.fault(
                        f"Region '{name}' needs '{source}', which this slide does not have; it has "
                        f"{', '.join(sorted(known - {name}))}.",
                        f"Draw an outline named '{source}' on this slide, or correct [regions.{name}].",
                        name,
                    )
            graph[name] = tuple(s for s in dict.fromkeys([*rule.sources, *self._limits(name)]) if s in known)
        try:
            order = [name for name in TopologicalSorter(graph).static_order() if name in made]
        except CycleError as e:
            # the sorter goes from a source to what needs it; reversed, each name is followed by what it needs
            circle = " needs ".join(f"'{name}'" for name in reversed(e.args[1]))
            self.fault(f"Regions are derived in a circle: {circle}.", "Derive one of them from an outline.", *graph)
            order = []
        for name in order:
            if self.broken.isdisjoint((name, *graph[name])):
                self._apply(name)
            else:
                self.broken.add(name)
        # order of appearance: as drawn, then as the recipe lists them
        self.regions = {name: self.regions[name] for name in [*self.regions, *made] if name in self.regions}

    def _rules_that_apply(self) -> dict[str, RegionRule]:
        """Return the rules of what is drawn or derived here, and note those of what is not."""
        made: dict[str, RegionRule] = {}
        for name, rule in self.rules.items():
            if name in self.broken:
                continue
            if rule.derivation is None and name not in self.regions:
                self.notes.append(f"region '{name}': in the recipe, but not drawn on this slide")
            elif rule.derivation is not None and name in self.regions and name not in self.built_in:
                self.fault(
                    f"Region '{name}' is both drawn ({self.regions[name].origin}) and derived by the recipe.",
                    f"Rename the outline, or remove the derivation from [regions.{name}].",
                    name,
                )
            else:
                made[name] = rule
        return made

    def _limits(self, name: str) -> tuple[str, ...]:
        """Return what a region is kept within: as stated, else a known tissue for a band or mirror."""
        rule = self.rules[name]
        if rule.limits is not None:
            return rule.limits
        tissue_rule = self.rules.get(TISSUE)
        known = TISSUE in self.regions or (tissue_rule is not None and tissue_rule.derivation is not None)
        return (TISSUE,) if known and name != TISSUE and (rule.band or rule.mirror) else ()

    def _apply(self, name: str) -> None:
        """Make one region as its rule says; its sources are there."""
        rule, shapes = self.rules[name], {region.name: region.geometry for region in self.regions.values()}
        problem = self._misused_line(name)
        if problem:
            self.fault(f"Region '{name}': {problem}.", f"Correct [regions.{name}], or draw an area.", name)
            return
        match rule.derivation:
            case Band(of=of, from_um=low, to_um=high):
                shape = plane.band(shapes[of], low, high, self.slide_um)
            case Mirror(of=of, midline=str(midline)):
                ends = shapely.get_coordinates(shapes[midline])[[0, -1]]
                shape = plane.mirrored(shapes[of], ends)
            case Mirror(of=of, midline=(start, end)):
                shape = plane.mirrored(shapes[of], (start[::-1], end[::-1]))
            case Difference(of=of, minus=minus):
                shape = shapely.difference(shapes[of], plane.union([shapes[other] for other in minus]))
            case Intersection(of=several):
                shape = shapely.intersection_all([shapes[other] for other in several])
            case _:
                shape = shapes[name]
        if rule.derivation is None:
            region = self.regions[name]
        else:
            region = Region(name, shapely.Polygon(), origin=rule.describe())
            if (rule.band or rule.mirror) and not self._limits(name):
                self.notes.append(f"region '{name}': kept within the slide only, for no outline of the tissue is known")
        if not region.is_line:
            shape = shapely.intersection_all([shape, shapes[SLIDE], *(shapes[limit] for limit in self._limits(name))])
            shape = plane.ground(shapely.difference(shape, plane.union([shapes[other] for other in rule.minus])))
        masked = region.masked if rule.masked is None else rule.masked
        counted = region.counted if rule.counted is None else rule.counted
        if masked and rule.counted:
            self.fault(
                f"Region '{name}' ({region.origin}) is masked, but [regions.{name}] counts it.",
                "Set masked = false, or do not count it.",
                name,
            )
        self.regions[name] = replace(region, geometry=shape, masked=masked, counted=counted and not masked)

    def _misused_line(self, name: str) -> str:
        """Say what is wrong when a line stands where an area is needed, or the other way round."""
        rule = self.rules[name]
        areas = {*rule.sources, *self._limits(name)}
        match rule.derivation:
            case None if self.regions[name].is_line and (areas or rule.counted or rule.masked):
                return "it is a line, which can neither be counted, masked nor cut"
            case Band(of=of, from_um=low) if self.regions[of].is_line:
                if low < 0:
                    return f"'{of}' is a line and has no inside, so the band cannot start at {low:g} um"
                areas -= {of}
            case Mirror(midline=str(midline)):
                if not self.regions[midline].is_line:
                    return f"'{midline}' is an area, and a midline must be a line"
                ends = shapely.get_coordinates(self.regions[midline].geometry)[[0, -1]]
                if (ends[0] == ends[1]).all():
                    return f"'{midline}' ends where it starts, so it gives no direction"
                areas -= {midline}
        lines = [f"'{area}'" for area in sorted(areas) if self.regions[area].is_line]
        return f"{' and '.join(lines)} must be an area, not a line" if lines else ""

    def relate(self) -> None:
        """Set each region's parent, and check that it lies in it."""
        known = {*self.regions, *self.broken}
        for name, region in list(self.regions.items()):
            rule = self.rules.get(name)
            parent = rule.parent if rule is not None and rule.parent is not None else region.parent
            self.regions[name] = replace(region, parent=parent)
            if parent is None:
                continue
            if parent not in known:
                self.fault(
                    f"Region '{name}' names the parent '{parent}', which this slide does not have; it has "
                    f"{', '.join(sorted(known - {name}))}.",
                    f"Draw '{parent}', or correct the parent of '{name}'.",
                    name,
                )
            elif parent not in self.broken and (self.regions[parent].is_line or self.regions[parent].masked):
                self.fault(f"Region '{name}' cannot lie in '{parent}', a line or mask.", "Name another parent.", name)
        sound = {name: region for name, region in self.regions.items() if name not in self.broken}
        try:
            TopologicalSorter({n: (r.parent,) for n, r in sound.items() if r.parent is not None}).prepare()
        except CycleError as e:
            circle = " lies in ".join(f"'{name}'" for name in reversed(e.args[1]))
            self.fault(f"Parents go round in a circle: {circle}.", "Remove one of these parents.", *e.args[1])
        for name, region in sound.items():
            if region.parent in sound and name not in self.broken and not (region.is_line or region.masked):
                self._check_inside(region, sound[region.parent])

    def _check_inside(self, child: Region, parent: Region) -> None:
        astray = shapely.difference(child.geometry, parent.geometry).area
        if astray > CHILD_TOLERANCE * child.geometry.area:
            self.fault(
                f"Region '{child.name}' does not lie in its parent '{parent.name}': "
                f"{astray / child.geometry.area:.1%} of it is outside.",
                f'Correct the outlines, or cut it with within = "{parent.name}" in [regions.{child.name}].',
                child.name,
            )

    def share_ground(self, overlap: Literal["error", "first"]) -> None:
        """Let no two unrelated counted regions hold the same ground; count the slide when nothing else is."""
        if not any(region.holds_cells for region in self.regions.values()):
            self.regions[SLIDE] = replace(self.regions[SLIDE], counted=True)
        order = self._in_canonical_order()
        lineage = {region.name: self._lineage(region) for region in order}
        sound = [region.name for region in order if region.holds_cells and region.name not in self.broken]
        for first, second in combinations(sound, 2):
            one, other = self.regions[first], self.regions[second]
            if first in lineage[second] or not shapely.intersects(one.geometry, other.geometry):
                continue
            shared = shapely.intersection(one.geometry, other.geometry).area
            smaller = min(one.geometry.area, other.geometry.area)
            if shared <= max(OVERLAP_TOLERANCE_UM2, OVERLAP_TOLERANCE * smaller):
                continue
            if overlap == "first":
                kept = plane.ground(shapely.difference(other.geometry, one.geometry))
                note = f"{shared:.6g} um2 shared with '{first}' were left to '{first}'"
                self.regions[second] = replace(other, geometry=kept, notes=(*other.notes, note))
            else:
                self.fault(
                    f"Regions '{first}' and '{second}' overlap by {shared:.6g} um2 "
                    f"({shared / smaller:.1%} of the smaller), and neither is declared to lie in the other.",
                    f'In [regions.{second}] set parent = "{first}", minus = ["{first}"] or counted = false.',
                )

    def _lineage(self, region: Region) -> set[str]:
        names: set[str] = set()
        while region.parent is not None:
            names.add(region.parent)
            region = self.regions[region.parent]
        return names

    def _in_canonical_order(self) -> list[Region]:
        """Return the regions, each parent followed by its children, otherwise in order of appearance."""
        children: dict[str | None, list[Region]] = {}
        for region in self.regions.values():
            children.setdefault(region.parent, []).append(region)
        order, ahead = [], children.get(None, [])[::-1]
        while ahead:
            region = ahead.pop()
            order.append(region)
            ahead.extend(children.get(region.name, [])[::-1])
        return order

    def finished(self) -> RegionSet:
        """Return the set; ``slide`` and ``tissue`` only when counted or named by a rule or parent."""
        named = {*self.rules, *(region.parent for region in self.regions.values())}
        regions = tuple(
            replace(region, counted=region.holds_cells)
            for region in self._in_canonical_order()
            if region.holds_cells or region.name in named or region.name not in self.built_in
        )
        notes = [f"region '{region.name}': {note}" for region in regions for note in region.notes]
        notes += [f"region '{region.name}': empty on this slide" for region in regions if region.geometry.is_empty]
        return RegionSet(regions, self.slide_um, (*notes, *self.notes))
