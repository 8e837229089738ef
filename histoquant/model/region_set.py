"""Regions of a slide: named outlines in um, and the set of them in which every point has exactly one place.

Outlines are shapely geometries with coordinates (x, y) in um, the slide's top-left corner at (0, 0). How a
set is made from drawn outlines and a recipe's rules is in `histoquant.model.region`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import shapely

from histoquant.errors import InputError, RegionError
from histoquant.model import geometry as plane
from histoquant.model.geometry import Geometry

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from histoquant.model.slide import Box

OUTSIDE = "outside"
"""Where a point is that lies in no counted region."""

MASKED = "masked"
"""Where a point is that lies on masked ground, whatever else is there."""

UM2_PER_MM2 = 1e6


@dataclass(frozen=True)
class Region:
    """One named outline.

    Attributes
    ----------
    name : str
        Free text, trimmed, not empty.
    geometry : Polygon, MultiPolygon or LineString, (x, y) in um
        A line is for reference only (a midline, a ventricular wall): it is never counted. A derived region
        that came out empty has an empty polygon.
    parent : str or None
        The region this one lies in.
    counted : bool
        Whether cells are counted here. False for what serves as a reference only.
    masked : bool
        Whether this is ground to leave out everywhere: tears, folds, bubbles.
    classification : str or None
        The class QuPath gave it.
    origin : str
        Where it comes from: ``drawn in FILE``, ``derived: band 0 to 500 um of lesion``.
    notes : tuple of str
        Declared repairs: what was changed about the outline, and by how much.
    """

    name: str
    geometry: Geometry
    parent: str | None = None
    counted: bool = True
    masked: bool = False
    classification: str | None = None
    origin: str = "drawn"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise InputError(f"A region's name must be trimmed and not empty, not '{self.name}'.")
        if self.geometry.geom_type not in ("Polygon", "MultiPolygon", "LineString"):
            raise InputError(f"Region '{self.name}': an outline cannot be a {self.geometry.geom_type}.")

    @property
    def is_line(self) -> bool:
        """True for an open line, which has no ground."""
        return bool(self.geometry.geom_type == "LineString")

    @property
    def holds_cells(self) -> bool:
        """True when cells can be counted in it: counted, not masked, not a line."""
        return self.counted and not self.masked and not self.is_line


@dataclass(frozen=True)
class RegionSet:
    """The regions of one slide, made by `histoquant.model.region.resolve`.

    The slide is shared out without gap or overlap: masked ground first, then each point to the deepest
    counted region on it, then ``outside``. Counts (`assign`) and areas (`table`) follow this one rule, so
    they add up.

    Attributes
    ----------
    regions : tuple of Region
        In canonical order: parents before their children, otherwise in order of appearance.
    slide_um : (float, float)
        Height and width of the slide in um.
    notes : tuple of str
        Every declared repair and every region that came out empty, each with its region.
    """

    regions: tuple[Region, ...]
    slide_um: tuple[float, float]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Region:
        for region in self.regions:
            if region.name == name:
                return region
        raise RegionError(f"There is no region '{name}'; there are {', '.join(r.name for r in self.regions)}.")

    def __contains__(self, name: object) -> bool:
        return any(region.name == name for region in self.regions)

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Names of the regions in which cells are counted, in canonical order."""
        return tuple(region.name for region in self.regions if region.holds_cells)

    @property
    def empty(self) -> tuple[str, ...]:
        """Names of the counted regions without any ground on this slide: rows with area 0."""
        return tuple(name for name in self.counted if self[name].geometry.is_empty)

    @cached_property
    def masked_ground(self) -> Geometry:
        """Ground of all masked regions together; empty when there are none."""
        return plane.union([region.geometry for region in self.regions if region.masked])

    def _lineage(self, name: str) -> list[Region]:
        """Return every region that this one lies in, nearest first, counted or not."""
        line = []
        parent = self[name].parent
        while parent is not None:
            line.append(self[parent])
            parent = self[parent].parent
        return line

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return the counted regions that this one lies in, nearest first."""
        return tuple(region.name for region in self._lineage(name) if region.holds_cells)

    def children(self, name: str) -> tuple[str, ...]:
        """Return the counted regions whose nearest counted ancestor this one is, in canonical order."""
        return tuple(child for child in self.counted if self.ancestors(child)[:1] == (name,))

    @cached_property
    def _deepest_first(self) -> tuple[str, ...]:
        """Names of the counted regions in the order in which they claim ground; equals in canonical order."""
        return tuple(sorted(self.counted, key=lambda name: -len(self._lineage(name))))

    @cached_property
    def _shares(self) -> dict[str, Geometry]:
        """Ground of each counted region that no deeper one holds, and of ``outside``; masks not yet taken away."""
        shares: dict[str, Geometry] = {}
        taken = shapely.Polygon()
        for name in self._deepest_first:
            shares[name] = plane.ground(shapely.difference(self[name].geometry, taken))
            taken = shapely.union(taken, self[name].geometry)
        shares[OUTSIDE] = plane.ground(shapely.difference(plane.slide_rectangle(self.slide_um), taken))
        return shares

    def grounds(self) -> dict[str, Geometry]:
        """Return the ground that each name stands for by itself: parts that do not overlap and make up the slide.

        Every counted region without its children and without masked ground, in canonical order, then ``masked`` when
        there are masks, then ``outside``: where `assign` puts a point.
        """
        own = {
            name: plane.ground(shapely.difference(share, self.masked_ground)) for name, share in self._shares.items()
        }
        masked = {} if self.masked_ground.is_empty else {MASKED: self.masked_ground}
        return {**{name: own[name] for name in self.counted}, **masked, OUTSIDE: own[OUTSIDE]}

    def assign(self, points_yx_um: ArrayLike) -> NDArray[np.object_]:
        """Say for each point where it counts.

        Parameters
        ----------
        points_yx_um : (n, 2) array of (y, x) in um

        Returns
        -------
        (n,) object array of str
            The deepest counted region on or around the point; ``masked`` on masked ground, whatever else is
            there; ``outside`` in none. On a shared border the first in canonical order among the deepest.

        Raises
        ------
        InputError
            When a point is not finite.
        """
        points = plane.as_points(points_yx_um)
        place = np.full(len(points), OUTSIDE, dtype=object)
        left = np.arange(len(points))
        claims = [
            (MASKED, self.masked_ground),
            *((name, self[name].geometry) for name in self._deepest_first),
        ]
        for name, shape in claims:
            claimed = plane.covers(shape, points[left])
            place[left[claimed]] = name
            left = left[~claimed]
        return place

    def table(self) -> pd.DataFrame:
        """Return the areas.

        Returns
        -------
        DataFrame with columns region, parent, area_mm2, masked_area_mm2
            A row for every counted region in canonical order, then ``masked`` when there are masks, then
            ``outside``. ``parent`` is the nearest counted ancestor, "" for none. ``area_mm2`` is without
            masked ground, of which the region had ``masked_area_mm2``; a parent's areas cover its children.
            Leaves, parents' own rest, ``outside`` and ``masked`` together make up the slide.
        """
        import pandas as pd

        free, lost = dict.fromkeys((*self.counted, OUTSIDE), 0.0), dict.fromkeys((*self.counted, OUTSIDE), 0.0)
        for name, share in self._shares.items():
            for holder in (name,) if name == OUTSIDE else (name, *self.ancestors(name)):
                free[holder] += shapely.difference(share, self.masked_ground).area
                lost[holder] += shapely.intersection(share, self.masked_ground).area
        rows = [(name, "".join(self.ancestors(name)[:1]), free[name], lost[name]) for name in self.counted]
        if not self.masked_ground.is_empty:
            rows.append((MASKED, "", self.masked_ground.area, 0.0))
        rows.append((OUTSIDE, "", free[OUTSIDE], lost[OUTSIDE]))
        table = pd.DataFrame(rows, columns=["region", "parent", "area_mm2", "masked_area_mm2"])
        return table.assign(
            area_mm2=table["area_mm2"] / UM2_PER_MM2, masked_area_mm2=table["masked_area_mm2"] / UM2_PER_MM2
        )

    def signed_distance_um(self, name: str, points_yx_um: ArrayLike) -> NDArray[np.float64]:
        """Return each point's Euclidean distance to a region's outline in um, negative inside; (n,) float.

        Unsigned for a line. NaN throughout for a region without ground. Where the slide's rim cuts the
        outline, the rim is not its border: -inf inside a region that ends nowhere but at the rim.
        """
        return plane.signed_distance_um(self[name].geometry, plane.as_points(points_yx_um), self.slide_um)

    def lines_px(self, pixel_size_um: float) -> Iterator[tuple[Region, list[NDArray[np.float64]]]]:
        """Yield each region with its rings as (n, 2) arrays of (y, x) in pixels, for drawing.

        Pixel corners are at integers; subtract 0.5 for a viewer that puts pixel centres there.
        """
        for region in self.regions:
            yield region, plane.rings_yx_px(region.geometry, pixel_size_um)

    def pixel_mask(self, region: str | Geometry, box: Box, pixel_size_um: float) -> NDArray[np.bool_]:
        """Return which pixels of a box have their centre in a region (a name) or outline; (h, w) bool.

        The answer for a pixel does not depend on the box. Outlines that share a border share no pixel.
        """
        geometry = self[region].geometry if isinstance(region, str) else region
        if geometry.geom_type not in ("Polygon", "MultiPolygon"):
            raise RegionError(f"A {geometry.geom_type} covers no pixels; only an area does.")
        return plane.pixel_mask(geometry, box, pixel_size_um)
