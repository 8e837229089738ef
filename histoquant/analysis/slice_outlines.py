"""Slices of one picture as outlines: found by colour, or drawn by a person, who may also correct what was found.

What was found and what was drawn take the same way from outlines to areas, so that a corrected lesion is counted as a
found one is. Geometry is in um, (x, y) with y downwards; left and right are those of the picture, dorsal is up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.analysis import slices as find
from histoquant.analysis import ttc
from histoquant.analysis.background import outline
from histoquant.analysis.infarct import SliceAreas
from histoquant.analysis.ttc import Redness, Side
from histoquant.errors import InputError, RegionError
from histoquant.model.geometry import pixel_mask
from histoquant.model.infarct import InfarctSettings
from histoquant.model.region import Region
from histoquant.model.slide import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROLES = (
    ("midline", re.compile(r"midline|mittellinie", re.I)),
    ("lesion", re.compile(r"lesion|infarct", re.I)),
    ("ipsilateral", re.compile(r"\bipsi", re.I)),
    ("contralateral", re.compile(r"\bcontra", re.I)),
    ("slice", re.compile(r"^(slice|section|tissue|brain)\b", re.I)),
)
"""What an outline is, by its name; the first that fits."""

BY_SYMMETRY = "midline by symmetry only, swelling moves it"
NEGATIVE = "negative indirect area"
OVER_MIDLINE_MM2 = 0.5
"""Lesion on the other side of the midline that is not mentioned."""


@dataclass(frozen=True, eq=False)
class OutlinedSlice:
    """One slice.

    Attributes
    ----------
    number : int
        From 1 in reading order.
    tissue, lesion : shapely geometry
    midline : LineString or None
        None where both hemispheres were drawn.
    halves : mapping of "ipsilateral", "contralateral" to geometry, or None
        Hemispheres as drawn.
    flags : tuple of str
    """

    number: int
    tissue: Any
    lesion: Any
    midline: Any
    halves: dict[str, Any] | None = None
    flags: tuple[str, ...] = ()

    def sides(self, side: Side) -> tuple[Any, Any]:
        """Return the ipsilateral and the contralateral hemisphere."""
        if self.halves is not None:
            return self.halves["ipsilateral"], self.halves["contralateral"]
        right = shapely.intersection(self.tissue, _right_of(self.midline, self.tissue))
        left = shapely.difference(self.tissue, right)
        return (right, left) if side == "right" else (left, right)

    def areas(self, side: Side) -> SliceAreas:
        """Return the slice's areas in mm2."""
        ipsilateral, contralateral = self.sides(side)
        infarct = shapely.intersection(self.lesion, ipsilateral).area
        return SliceAreas(infarct / 1e6, ipsilateral.area / 1e6, contralateral.area / 1e6)

    def all_flags(self, side: Side) -> list[str]:
        """Return what a person should know of the slice."""
        areas = self.areas(side)
        over_mm2 = shapely.intersection(self.lesion, self.sides(side)[1]).area / 1e6
        flags = [*self.flags, *([NEGATIVE] if areas.indirect_mm2 < 0 else [])]
        if over_mm2 > OVER_MIDLINE_MM2:
            flags.append(f"{over_mm2:.1f} mm2 of the lesion beyond the midline not counted")
        return flags

    def as_row(self, side: Side) -> dict[str, Any]:
        """Return what `tables.INFARCT_SLICES` lists of the slice, but whose it is."""
        areas = self.areas(side)
        return {
            "slice": self.number,
            "side": side,
            "infarct_mm2": areas.infarct,
            "ipsilateral_mm2": areas.ipsilateral,
            "contralateral_mm2": areas.contralateral,
            "indirect_mm2": areas.indirect_mm2,
            "ratio_mm2": areas.ratio_mm2,
            "flags": "; ".join(self.all_flags(side)),
        }

    def regions(self) -> list[Region]:
        """Return the outlines as regions, to be exported, corrected and given again."""
        name = f"slice {self.number}"
        made = [Region(name, self.tissue)]
        if self.midline is not None:
            made.append(Region(f"{name} midline", self.midline, counted=False))
        for half, geometry in (self.halves or {}).items():
            made.append(Region(f"{name} {half}", geometry, parent=name))
        if not self.lesion.is_empty:
            made.append(Region(f"{name} lesion", self.lesion, counted=False))
        return made


@dataclass(frozen=True, eq=False)
class Outlined:
    """All slices of a picture.

    Attributes
    ----------
    slices : list of OutlinedSlice
    side : "left" or "right"
        Where the lesion is.
    redness : Redness or None
        How red living tissue is; None where nothing was told by colour.
    notes : list of str
    """

    slices: list[OutlinedSlice]
    side: Side
    redness: Redness | None
    notes: list[str]


def slices_of(regions: Sequence[Region], flags: Mapping[int, Sequence[str]]) -> list[OutlinedSlice]:
    """Return the slices that `OutlinedSlice.regions` made outlines of.

    Parameters
    ----------
    flags : slice number -> flags
        As `OutlinedSlice.all_flags` told them; those that areas make are made anew.

    Raises
    ------
    RegionError
        If an outline is missing.
    """
    by_name = {region.name: region.geometry for region in regions}
    made = []
    for number, told in flags.items():
        name = f"slice {number}"
        halves = {half: by_name.get(f"{name} {half}") for half in ("ipsilateral", "contralateral")}
        line, drawn = by_name.get(f"{name} midline"), None not in halves.values()
        if name not in by_name or (line is None and not drawn):
            raise RegionError(f"the outlines of slice {number} are not whole.", "Measure the study again.")
        lesion = by_name.get(f"{name} lesion", shapely.Polygon())
        own = tuple(flag for flag in told if flag == BY_SYMMETRY)
        made.append(OutlinedSlice(number, by_name[name], lesion, line, halves if drawn else None, own))
    return made


def outlined(
    rgb: NDArray[np.float32] | None,
    pixel_size_um: float,
    drawn: Sequence[Region],
    settings: InfarctSettings,
    side: Side | None,
) -> Outlined:
    """Return the slices of a picture.

    Parameters
    ----------
    rgb : (3, y, x) float32 from 0 to 255, or None
        None where only what was drawn counts.
    drawn : sequence of Region
        Outlines named "slice", "midline", "lesion", "ipsilateral", "contralateral", with or without a number: which
        slice they belong to is told by where they lie.
    side : "left", "right" or None
        Where the lesion is; taken from the picture when None, with a note.

    Raises
    ------
    InputError
        If there is no slice, or nothing that could be told from pale tissue.
    """
    by_role: dict[str, list[Region]] = {role: [] for role, _ in ROLES}
    notes = []
    for region in drawn:
        role = next((role for role, pattern in ROLES if pattern.search(region.name)), None)
        if role is None:
            notes.append(f"outline '{region.name}' is neither slice, midline, lesion nor hemisphere and is not used")
        else:
            by_role[role].append(region)
    if settings.stain == "outlines" or rgb is None:
        slices = _drawn_slices(by_role)
        chosen = side or _larger_side(slices, notes)
        return Outlined(_with_lesions(slices, by_role["lesion"], notes), chosen, None, notes)
    return _by_colour(rgb, pixel_size_um, by_role, settings, side, notes)


def _by_colour(
    rgb: NDArray[np.float32],
    px: float,
    by_role: dict[str, list[Region]],
    settings: InfarctSettings,
    side: Side | None,
    notes: list[str],
) -> Outlined:
    if by_role["slice"] or by_role["ipsilateral"]:
        slices = _drawn_slices(by_role, midlines_missing=True)
        whole = Box(0, rgb.shape[1], 0, rgb.shape[2])
        masks = [pixel_mask(one.tissue, whole, px) for one in slices]
        found = [find.FoundSlice(mask, *find.midline(mask)) for mask in masks]
        mask = np.logical_or.reduce(masks)
        ground = np.median(rgb[:, ~mask], axis=1) if (~mask).any() else np.zeros(3)
    else:
        ground = find.ground_colour(rgb)
        mask = find.tissue_mask(rgb, ground, px)
        found = find.find_slices(mask, px, min_mm2=settings.min_slice_mm2, order=settings.order)
        if not found:
            raise InputError(
                f"no slice of at least {settings.min_slice_mm2:g} mm2 was found.",
                "Check pixel_size_um and min_slice_mm2, or draw the slices.",
            )
        slices = [OutlinedSlice(i, outline(f.mask, px), shapely.Polygon(), None) for i, f in enumerate(found, 1)]
    placed = []
    for one, f in zip(slices, found, strict=True):
        lines = [line.geometry for line in by_role["midline"] if shapely.intersects(line.geometry, one.tissue)]
        (y0, x0), (y1, x1) = f.midline_px
        axis = shapely.LineString([((x0 + 0.5) * px, (y0 + 0.5) * px), ((x1 + 0.5) * px, (y1 + 0.5) * px)])
        own = one.midline or (lines[0] if lines else None)
        flags = one.flags if own is not None or f.by_notches or one.halves else (*one.flags, BY_SYMMETRY)
        placed.append(replace(one, midline=None if one.halves else own or axis, flags=flags))
    ends = [one.midline if one.midline is not None else _border(one) for one in placed]
    found = [replace(f, midline_px=_ends_px(line, px)) for f, line in zip(found, ends, strict=True)]
    red = ttc.redness(rgb, mask, px)
    chosen = side or ttc.palest_side(found, red)
    if side is None:
        notes.append(f"the side of the lesion was not given; the paler hemispheres are {chosen}")
    white = ttc.white_of([float(c) for c in ground], settings.white)
    told = ttc.calibrated(found, red, chosen, white)
    if by_role["lesion"]:
        return Outlined(_with_lesions(placed, by_role["lesion"], notes), chosen, told, notes)
    if told is None:
        raise InputError(
            "no red tissue was found in the hemispheres without lesion, so that nothing can be called pale.",
            "Check the side in the column hemisphere and the stain, state white in the recipe, or draw the lesions.",
        )
    pale = (red < told.limit(settings.pale_below)) & mask
    done = []
    for one, f in zip(placed, found, strict=True):
        dead = ttc.infarct_mask(f, pale, chosen, px, mirror_um=settings.mirror_um, min_mm2=settings.min_lesion_mm2)
        done.append(replace(one, lesion=shapely.intersection(outline(dead, px), one.tissue)))
    return Outlined(done, chosen, told, notes)


def _drawn_slices(by_role: dict[str, list[Region]], *, midlines_missing: bool = False) -> list[OutlinedSlice]:
    """Return the slices a person drew, in the order of the file; without their lesions."""
    made: list[OutlinedSlice] = []
    for region in by_role["slice"]:
        lines = [line.geometry for line in by_role["midline"] if shapely.intersects(line.geometry, region.geometry)]
        halves = _halves(by_role, region.geometry)
        if not lines and halves is None and not midlines_missing:
            raise RegionError(
                f"slice '{region.name}' has neither a midline nor both hemispheres.", "Draw one, or give stain = 'ttc'."
            )
        made.append(
            OutlinedSlice(len(made) + 1, region.geometry, shapely.Polygon(), lines[0] if lines else None, halves)
        )
    if not made and by_role["ipsilateral"] and by_role["contralateral"]:
        union = shapely.union_all([r.geometry for role in ("ipsilateral", "contralateral") for r in by_role[role]])
        made.append(OutlinedSlice(1, union, shapely.Polygon(), None, _halves(by_role, union)))
    if not made:
        raise RegionError(
            "no slice was drawn.", "Draw outlines named 'slice' with a 'midline', or 'ipsilateral' and 'contralateral'."
        )
    return made


def _halves(by_role: dict[str, list[Region]], tissue: Any) -> dict[str, Any] | None:
    halves = {}
    for role in ("ipsilateral", "contralateral"):
        parts = [
            r.geometry for r in by_role[role] if shapely.intersection(r.geometry, tissue).area > 0.5 * r.geometry.area
        ]
        if not parts:
            return None
        halves[role] = shapely.union_all(parts)
    return halves


def _with_lesions(slices: list[OutlinedSlice], lesions: list[Region], notes: list[str]) -> list[OutlinedSlice]:
    """Return slices with the lesions drawn on them; a slice without any has none."""
    union = shapely.union_all([lesion.geometry for lesion in lesions]) if lesions else shapely.Polygon()
    done = [replace(one, lesion=shapely.intersection(union, one.tissue)) for one in slices]
    lost_mm2 = (union.area - sum(one.lesion.area for one in done)) / 1e6
    if lost_mm2 > OVER_MIDLINE_MM2:
        notes.append(f"{lost_mm2:.1f} mm2 of drawn lesions lie on no slice")
    if not lesions:
        notes.append("no lesion was drawn: the infarct is 0")
    return done


def _larger_side(slices: list[OutlinedSlice], notes: list[str]) -> Side:
    if any(one.halves is None for one in slices):
        raise InputError(
            "the side of the lesion is not given.",
            "Write left or right, as in the picture, into the column hemisphere.",
        )
    notes.append("the side of the lesion is that of the hemispheres named ipsilateral")
    return "left"  # hemispheres are named; left and right decide nothing


def _border(one: OutlinedSlice) -> Any:
    """Return a line between drawn hemispheres: the perpendicular bisector of their centres."""
    assert one.halves is not None
    a, b = (one.halves[name].centroid for name in ("ipsilateral", "contralateral"))
    left, right = sorted(((a.x, a.y), (b.x, b.y)))
    middle = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    along = (right[1] - left[1], left[0] - right[0])
    return shapely.LineString([middle, (middle[0] - along[0], middle[1] - along[1])])


def _ends_px(line: Any, px: float) -> tuple[tuple[float, float], tuple[float, float]]:
    (x0, y0), *_, (x1, y1) = _downwards(line)
    return (y0 / px - 0.5, x0 / px - 0.5), (y1 / px - 0.5, x1 / px - 0.5)


def _downwards(line: Any) -> list[tuple[float, float]]:
    points = [(x, y) for x, y, *_ in line.coords]
    return points if points[0][1] <= points[-1][1] else points[::-1]


def _right_of(line: Any, tissue: Any) -> Any:
    """Return the ground to the right of a midline, which goes on straight beyond its ends."""
    points = np.array(_downwards(line))
    left, top, right, bottom = tissue.bounds
    far = 4 * max(right - left, bottom - top, 1.0)
    first, last = points[0] - points[1], points[-1] - points[-2]
    points[0] = points[0] + far * first / max(np.hypot(*first), 1e-9)
    points[-1] = points[-1] + far * last / max(np.hypot(*last), 1e-9)
    corners = [(right + 2 * far, points[-1][1]), (right + 2 * far, points[0][1])]
    return shapely.make_valid(shapely.Polygon([*map(tuple, points), *corners]))
