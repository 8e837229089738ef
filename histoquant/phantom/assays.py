"""Who is labelled in a phantom's section: TUNEL round a lesion, BrdU and DCX below the ventricle, or nobody."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.phantom.bodies import CYTOPLASM, DEPOSIT, FIBRE_STEP_UM, Bodies, Fibres
from histoquant.phantom.optics import Camera, Section, haze
from histoquant.phantom.plan import PhantomPlan
from histoquant.phantom.tissue import (
    Tissue,
    deposit_colour,
    distance_um,
    drawn_regions,
    hidden_nuclei,
    illumination,
    lipofuscin,
    place_nuclei,
    veil,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIAMETER_SD = 0.12
UNSPECIFIC, UNSPECIFIC_SD = 0.06, 0.015
"""Antibody or enzyme that sticks to every cell where its label would be, relative to a typical positive one."""

TUNEL_BASELINE = 0.005
TUNEL_RIM = 0.30
TUNEL_FALL_UM = 600.0
TUNEL_CORE = 0.10
TUNEL_SHAPES = {"condensed": 0.5, "diffuse": 0.4, "fragmented": 0.1}
ORPHANS_PER_POSITIVE = 0.03

BRDU_PER_MM2 = {"brdu": 1200.0, "dcx": 600.0}
"""In the strip below the ventricle of vehicle animals; published ranges are 200 to 5,000."""

BRDU_SCATTERED = 0.02
BRDU_SPECKLED = 0.2
DCX_OF_BRDU, DCX_IN_STRIP, DCX_IN_STRIATUM = 0.5, {"brdu": 0.15, "dcx": 0.3}, {"brdu": 0.05, "dcx": 0.15}
DCX_FALL_UM = 300.0
SOMA_RIM_UM = 2.5

IHC_POSITIVE = 0.35
IHC_LIGHT = (0.5, 1.4)
"""DAB of positive nuclei relative to `optics.STAIN_OD`: optical densities of 0.3 to 0.85, all grades."""


@dataclass(frozen=True)
class Subject:
    """Which section is made.

    Attributes
    ----------
    number : int
        Of the slide within the study; with the plan's seed it decides everything random.
    group : str
    factor : float
        The animal's own level of label relative to its group's.
    control : str
        Kind of staining control, empty for none.
    """

    number: int
    group: str
    factor: float = 1.0
    control: str = ""


@dataclass
class Cells:
    """True cells of a section; row i has label i + 1."""

    yx_um: NDArray[Any]
    diameter_um: NDArray[Any]
    kind: NDArray[Any]
    positive: dict[str, NDArray[Any]]
    amplitude: dict[str, NDArray[Any]]
    hidden: NDArray[Any]
    light: NDArray[Any]
    orphans_um: NDArray[Any]

    def __len__(self) -> int:
        return len(self.yx_um)


def make_section(plan: PhantomPlan, subject: Subject) -> tuple[Cells, Section]:
    """Return the true cells of one section and the section as the microscope finds it."""
    seed = (plan.seed, subject.number)
    rng = np.random.default_rng((*seed, 0))
    tissue = Tissue.draw(plan, rng)
    n_channels = len(plan.facts.channels)
    make = {"tunel": _tunel, "nuclei": _bare, "brdu": _neurogenesis, "dcx": _neurogenesis, "ihc": _ihc}[plan.assay]
    cells, parts, fibres = make(plan, subject, tissue, rng)
    if plan.facts.markers and not plan.facts.brightfield:
        parts += [_autofluorescent(cells, n_channels, rng), lipofuscin(cells.yx_um, n_channels, rng)]
    cells.hidden = hidden_nuclei(cells.yx_um, cells.diameter_um)
    bodies = Bodies.together(parts)
    light = veil(tissue, n_channels, rng)
    section = Section(
        shape=plan.shape_px,
        camera=Camera(plan.pixel_size_um, plan.bits, plan.photons, plan.headroom),
        bodies=bodies,
        fibres=fibres,
        veil=light + haze(bodies, fibres, tissue.present.shape, n_channels),
        illumination=illumination(plan, rng),
        seed=seed,
    )
    return cells, section


def _stained(plan: PhantomPlan, yx_um: NDArray[Any], rng: np.random.Generator) -> Cells:
    """Nuclei with counterstain and unspecific staining, none of them positive."""
    n, facts = len(yx_um), plan.facts
    diameter = plan.diameter * np.clip(rng.normal(1, DIAMETER_SD, n), 0.65, 1.35)
    light = np.zeros((n, len(facts.channels)))
    # The same DNA in a larger nucleus is paler.
    light[:, 0] = facts.counterstain * rng.lognormal(0, 0.18, n) * (plan.diameter / diameter)
    for channel in facts.markers.values():
        light[:, channel] = np.maximum(rng.normal(UNSPECIFIC, UNSPECIFIC_SD, n), 0.01)
    nothing = np.zeros(n)
    return Cells(
        yx_um=yx_um,
        diameter_um=diameter,
        kind=np.full(n, "nucleus", object),
        positive={marker: nothing.astype(bool) for marker in facts.markers},
        amplitude={marker: nothing.copy() for marker in facts.markers},
        hidden=nothing.astype(bool),
        light=light,
        orphans_um=np.empty((0, 2)),
    )


def _label(cells: Cells, marker: str, channel: int, chosen: NDArray[Any], light: NDArray[Any]) -> None:
    """Make the chosen cells positive for a marker, and put the label into the nucleus."""
    cells.positive[marker] = chosen
    cells.amplitude[marker][chosen] = light
    cells.light[chosen, channel] += light


def _nuclear_bodies(cells: Cells, chosen: NDArray[Any], rng: np.random.Generator, texture: float) -> Bodies:
    rows = np.flatnonzero(chosen)
    return Bodies.draw(
        rng, cells.yx_um[rows], cells.diameter_um[rows], cells.light[rows], cell=rows + 1, texture=texture
    )


def _no_fibres(n_channels: int) -> Fibres:
    return Fibres(np.empty((0, 2)), np.empty((0, n_channels)))


def _bare(
    plan: PhantomPlan, subject: Subject, tissue: Tissue, rng: np.random.Generator
) -> tuple[Cells, list[Bodies], Fibres]:
    cells = _stained(plan, place_nuclei(plan, tissue, rng)[0], rng)
    return cells, [_nuclear_bodies(cells, np.ones(len(cells), bool), rng, 0.3)], _no_fibres(1)


def _ihc(
    plan: PhantomPlan, subject: Subject, tissue: Tissue, rng: np.random.Generator
) -> tuple[Cells, list[Bodies], Fibres]:
    """Nuclei blue with hematoxylin, a share of them brown: weak, moderate and strong alike."""
    cells = _stained(plan, place_nuclei(plan, tissue, rng)[0], rng)
    chance = IHC_POSITIVE * subject.factor * (1 + plan.groups.get(subject.group, 0.0) * plan.effects["dab"])
    positive = _drawn_evenly(np.full(len(cells), chance), cells.yx_um[:, 0], rng) & (not subject.control)
    _label(cells, "dab", 1, positive, rng.uniform(*IHC_LIGHT, int(positive.sum())))
    return cells, [_nuclear_bodies(cells, np.ones(len(cells), bool), rng, 0.1)], _no_fibres(2)


def tunel_probability(lesion_distance_um: NDArray[Any], rim: float) -> NDArray[Any]:
    """Return the chance of a nucleus to be TUNEL positive.

    Highest at the lesion's rim, falling to the baseline over ``TUNEL_FALL_UM`` outside and to ``TUNEL_CORE`` over
    150 um inside: label peaks at the boundary of the core (Li 1995, Stroke; Fujimura 1998).

    Parameters
    ----------
    lesion_distance_um : (n,) float
        Negative inside.
    rim : float
        Chance at the rim.
    """
    away = np.clip(1 - lesion_distance_um / TUNEL_FALL_UM, 0, 1)
    outside = TUNEL_BASELINE + (rim - TUNEL_BASELINE) * away**2
    inside = TUNEL_CORE + (rim - TUNEL_CORE) * np.exp(np.minimum(lesion_distance_um, 0) / 150)
    return np.asarray(np.clip(np.where(lesion_distance_um < 0, inside, outside), 0, 1))


def _tunel(
    plan: PhantomPlan, subject: Subject, tissue: Tissue, rng: np.random.Generator
) -> tuple[Cells, list[Bodies], Fibres]:
    cells = _stained(plan, place_nuclei(plan, tissue, rng)[0], rng)
    n = len(cells)
    lesion = drawn_regions(plan)["lesion"]
    distance = distance_um(cells.yx_um, lesion)
    chance = tunel_probability(distance, TUNEL_RIM) * subject.factor
    if dose := plan.groups.get(subject.group, 0.0):
        # The effect is on the expected count of the zone, whole: outside it and in the core nothing changes.
        chance = np.where((distance >= 0) & (distance < 500), chance * (1 + dose * plan.effects["tunel"]), chance)
    shape = rng.choice(list(TUNEL_SHAPES), n, p=list(TUNEL_SHAPES.values()))
    positive = _drawn_evenly(chance, distance, rng)
    if subject.control == "no_tdt":
        positive = np.zeros(n, bool)
    elif subject.control == "dnase":
        positive, shape = np.ones(n, bool), np.full(n, "diffuse")
    cells.kind[positive] = shape[positive]
    _label(cells, "tunel", 1, positive, rng.lognormal(np.log(0.85), 0.3, int(positive.sum())))

    condensed = cells.kind == "condensed"
    cells.diameter_um[condensed] *= rng.uniform(0.5, 0.7, int(condensed.sum()))
    cells.light[condensed, 0] *= 2.0
    fragmented = cells.kind == "fragmented"
    cells.light[fragmented, 0] *= 1.8
    parts = [_nuclear_bodies(cells, ~fragmented & ~positive, rng, 0.3)]
    parts.append(_nuclear_bodies(cells, ~fragmented & positive, rng, 0.2))
    parts.append(_fragments(cells, np.flatnonzero(fragmented), rng))
    n_orphans = rng.poisson(ORPHANS_PER_POSITIVE * positive.sum()) if not subject.control else 0
    cells.orphans_um = _between_nuclei(cells, n_orphans, rng)
    light = np.zeros((len(cells.orphans_um), len(plan.facts.channels)))
    light[:, 1] = rng.lognormal(np.log(0.8), 0.3, len(light))
    parts.append(Bodies.draw(rng, cells.orphans_um, rng.uniform(2.2, 3.5, len(light)), light, layer=DEPOSIT))
    return cells, parts, _no_fibres(len(plan.facts.channels))


def _drawn_evenly(chance: NDArray[Any], along: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Draw cells, each with its chance, so that the count up to any place along an axis is the expected one.

    Systematic sampling (Madow 1949): a random start, then every whole number of the summed chances. It leaves a small
    study the effect it was planned with, where independent draws would add 5 to 10 % of noise.
    """
    order = np.argsort(along, kind="stable")
    total = np.floor(np.concatenate([[0.0], np.cumsum(np.minimum(chance, 1)[order])]) + rng.random())
    drawn = np.zeros(len(chance), bool)
    drawn[order] = np.diff(total) > 0
    return drawn


def _fragments(cells: Cells, rows: NDArray[Any], rng: np.random.Generator) -> Bodies:
    """Replace each nucleus by three fragments round its place; its area and centre become theirs."""
    turn = rng.uniform(0, 2 * np.pi, (len(rows), 1)) + np.arange(3) * (2 * np.pi / 3)
    diameter = rng.uniform(2.0, 3.0, (len(rows), 3))
    radius = rng.uniform(1.9, 2.5, (len(rows), 3))
    places = cells.yx_um[rows][:, None] + radius[..., None] * np.stack([np.sin(turn), np.cos(turn)], -1)
    area = diameter**2
    cells.yx_um[rows] = (places * area[..., None]).sum(1) / area.sum(1)[:, None]
    cells.diameter_um[rows] = np.sqrt(area.sum(1))
    light = np.repeat(cells.light[rows], 3, axis=0)
    label = np.repeat(rows + 1, 3)
    return Bodies.draw(rng, places.reshape(-1, 2), diameter.ravel(), light, cell=label, texture=0.1)


def _between_nuclei(cells: Cells, n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Choose up to n places near positive nuclei from which no nucleus is nearer than 4 um."""
    from scipy.spatial import cKDTree

    hosts = cells.yx_um[cells.positive["tunel"]]
    if n == 0 or len(hosts) == 0:
        return np.empty((0, 2))
    tried = hosts[rng.integers(0, len(hosts), 8 * n)] + rng.normal(0, 15, (8 * n, 2))
    gap, nearest = cKDTree(cells.yx_um).query(tried)
    return np.asarray(tried[gap > cells.diameter_um[nearest] / 2 * 1.3 + 4][:n])


def _autofluorescent(cells: Cells, n_channels: int, rng: np.random.Generator) -> Bodies:
    """Let a few negative cells glow by themselves in all channels, nucleus and cytoplasm."""
    negative = ~np.any(list(cells.positive.values()), axis=0)
    share = 0.005 if n_channels == 3 and "tunel" in cells.positive else 0.001
    rows = np.flatnonzero(negative & (rng.random(len(cells)) < share))
    cells.kind[rows] = "autofluorescent"
    light = rng.uniform(0.5, 0.9, len(rows))[:, None] * deposit_colour(n_channels)
    return Bodies.draw(rng, cells.yx_um[rows], cells.diameter_um[rows] * 1.3, light, layer=DEPOSIT)


def _neurogenesis(
    plan: PhantomPlan, subject: Subject, tissue: Tissue, rng: np.random.Generator
) -> tuple[Cells, list[Bodies], Fibres]:
    """Proliferating clusters in the strip below the ventricle, neuroblasts there and on their way out."""
    regions = drawn_regions(plan)
    dose = plan.groups.get(subject.group, 0.0)
    level = {marker: subject.factor * (1 + dose * effect) for marker, effect in plan.effects.items()}
    clusters = _clusters(plan, regions["svz"], BRDU_PER_MM2[plan.assay] * level["brdu"], rng)
    places, n_clustered = place_nuclei(plan, tissue, rng, clusters)
    cells = _stained(plan, places, rng)
    n, stained = len(cells), not subject.control
    in_svz, in_striatum = (
        shapely.contains_xy(regions[name], places[:, 1], places[:, 0]) for name in ("svz", "striatum")
    )
    brdu = np.arange(n) < n_clustered
    brdu |= in_striatum & (rng.random(n) < BRDU_SCATTERED * level["brdu"])
    away = distance_um(places, regions["svz"])
    chance = np.where(in_svz, DCX_IN_STRIP[plan.assay], 0.0)
    chance = np.where(in_striatum, DCX_IN_STRIATUM[plan.assay] * np.exp(-away / DCX_FALL_UM), chance)
    chance = np.where(brdu & in_svz, DCX_OF_BRDU, chance) * level["dcx"]
    dcx = stained & (rng.random(n) < chance)
    brdu &= stained

    speckled = brdu & (rng.random(n) < BRDU_SPECKLED)
    cells.kind[speckled] = "speckled"
    light = rng.lognormal(np.log(0.9), 0.25, n) * np.where(speckled, 0.5, 1.0)
    _label(cells, "brdu", 1, brdu, light[brdu])
    cells.positive["dcx"] = dcx
    cells.amplitude["dcx"][dcx] = rng.lognormal(np.log(0.8), 0.25, int(dcx.sum()))
    sticking = cells.light[:, 2].copy()
    cells.light[:, 2] = 0.0  # DCX lies in the cytoplasm, and so does what sticks there in its place
    parts = [_nuclear_bodies(cells, ~speckled, rng, 0.3), _nuclear_bodies(cells, speckled, rng, 0.6)]
    parts.append(_somata(parts, sticking + cells.amplitude["dcx"], rng))
    return cells, parts, _processes(cells, 1 if plan.assay == "brdu" else 2, rng)


def _clusters(plan: PhantomPlan, region: Any, per_mm2: float, rng: np.random.Generator) -> NDArray[Any]:
    """Places of cells in clusters of 2 to 6 that touch one another, each grown from a random first cell."""
    x0, y0, x1, y1 = region.bounds
    n_thrown = rng.poisson(per_mm2 / 4 * (x1 - x0) * (y1 - y0) / 1e6)
    first = rng.uniform((y0, x0), (y1, x1), (n_thrown, 2))
    first = first[shapely.contains_xy(region, first[:, 1], first[:, 0])]
    size = rng.integers(2, 7, len(first))
    members = np.repeat(first[:, None], 6, axis=1)
    everyone = np.arange(len(first))
    for k in range(1, 6):
        beside, turn = rng.integers(0, k, len(first)), rng.uniform(0, 2 * np.pi, len(first))
        step = plan.diameter * rng.uniform(0.9, 1.1, len(first))
        members[:, k] = members[everyone, beside] + step[:, None] * np.stack([np.sin(turn), np.cos(turn)], 1)
    cells = members[np.arange(6) < size[:, None]]
    return np.asarray(cells[shapely.contains_xy(region, cells[:, 1], cells[:, 0])])


def _somata(nuclei: list[Bodies], dcx: NDArray[Any], rng: np.random.Generator) -> Bodies:
    """Give each cell cytoplasm of its own DCX: the shape of the nucleus, wider by ``SOMA_RIM_UM`` all round."""
    own = Bodies.together(nuclei)
    light = np.zeros_like(own.light)
    light[:, 2] = dcx[own.cell.astype(np.int64) - 1]
    wide, slim = (own.diameter_um / 2 * np.sqrt(own.aspect) ** power + SOMA_RIM_UM for power in (1, -1))
    return replace(
        own,
        diameter_um=2 * np.sqrt(wide * slim),
        aspect=wide / slim,
        light=light,
        layer=np.full(len(own), CYTOPLASM, np.int8),
        texture=np.full(len(own), 0.15),
        pattern=rng.permuted(own.pattern, axis=0),
    )


def _processes(cells: Cells, most: int, rng: np.random.Generator) -> Fibres:
    """Grow processes of 20 to 80 um out of DCX somata; they lead away from the ventricle, rightwards, and waver."""
    rows = np.repeat(np.flatnonzero(cells.positive["dcx"]), most)
    rows = rows[(np.arange(len(rows)) % most == 0) | (rng.random(len(rows)) < 0.5)]
    steps = int(80 / FIBRE_STEP_UM)
    heading = rng.normal(0, 0.5, (len(rows), 1)) + np.cumsum(rng.normal(0, 0.06, (len(rows), steps)), axis=1)
    direction = np.stack([np.sin(heading), np.cos(heading)], -1)
    start = (cells.diameter_um[rows] / 2 + SOMA_RIM_UM * 0.5)[:, None, None] * direction[:, :1]
    path = cells.yx_um[rows][:, None] + start + FIBRE_STEP_UM * np.cumsum(direction, axis=1)
    length = rng.uniform(20, 80, (len(rows), 1))
    drawn = np.arange(steps) * FIBRE_STEP_UM < length
    # Thins out towards its tip.
    light = 0.8 * cells.amplitude["dcx"][rows][:, None] * (1 - 0.6 * np.arange(steps) * FIBRE_STEP_UM / length)
    colour = np.zeros((int(drawn.sum()), cells.light.shape[1]))
    colour[:, 2] = light[drawn]
    return Fibres(path[drawn], colour)
