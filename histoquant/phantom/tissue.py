"""The ground of a phantom: outlines of regions, shape of the tissue, where nuclei lie, what glows by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histoquant.model.geometry import Geometry, ground, slide_rectangle
from histoquant.phantom.bodies import DEPOSIT, Bodies
from histoquant.phantom.optics import VEIL_UM
from histoquant.phantom.plan import MOST_CROWDED, PhantomPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

BAND_UM = 500.0
"""Width of the ischemic boundary zone outside the lesion."""

SVZ_UM = 100.0
VENTRICLE_UM = 90.0
CORNERS = 256
"""Of a drawn disc: its area is 99.99 % of the circle's."""

CORE_DENSITY = 0.7
SVZ_DENSITY = 1.7
"""Nuclei relative to the tissue around: cells are lost in a lesion's core and crowded below a ventricle."""

TISSUE_LIGHT, GLASS_LIGHT = 0.06, 0.01


def drawn_regions(plan: PhantomPlan) -> dict[str, Geometry]:
    """Return what a person would draw on every slide: name -> outline, (x, y) in um."""
    height, width = plan.size_um
    if plan.assay == "tunel":
        return {"lesion": _lesion(plan)}
    if plan.assay in ("nuclei", "ihc"):
        return {"field": shapely.box(0.05 * width, 0.05 * height, 0.95 * width, 0.95 * height)}
    y = np.linspace(0.15, 0.85, 57) * height
    wall, strip = _wall_um(y, plan), min(SVZ_UM, 0.1 * width)
    border, far = np.stack([wall + strip, y], 1), np.stack([np.full_like(y, 0.8 * width), y], 1)
    return {
        "svz": shapely.Polygon(np.concatenate([np.stack([wall, y], 1), border[::-1]])),
        "striatum": shapely.Polygon(np.concatenate([border, far[::-1]])),
    }


def true_regions(plan: PhantomPlan) -> dict[str, Geometry]:
    """Return the regions counted in the truth tables: those drawn and those derived from them."""
    regions = drawn_regions(plan)
    if plan.assay == "tunel":
        band = regions["lesion"].buffer(BAND_UM, quad_segs=64) - regions["lesion"]
        regions["ibz_outer"] = ground(band & slide_rectangle(plan.size_um))
    return regions


def _lesion(plan: PhantomPlan) -> Geometry:
    height, width = plan.size_um
    half = min(height, width) / 2
    radius = min(1000.0, max(0.25 * half, 0.88 * half - BAND_UM - 20))
    angle = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    return shapely.Polygon(np.stack([width / 2 + radius * np.cos(angle), height / 2 + radius * np.sin(angle)], 1))


def _wall_um(y_um: NDArray[Any], plan: PhantomPlan) -> NDArray[Any]:
    """Distance of the ventricle's lateral wall from the left of the slide."""
    height, width = plan.size_um
    return np.asarray(width * (0.18 + 0.03 * np.sin(3.5 * y_um / height - 0.6)))


def distance_um(yx_um: NDArray[Any], region: Geometry) -> NDArray[Any]:
    """Return the distance of points to a region's outline, negative inside."""
    x, y = yx_um[:, 1], yx_um[:, 0]
    distance = shapely.distance(shapely.points(x, y), region.boundary)
    return np.asarray(np.where(shapely.contains_xy(region, x, y), -distance, distance))


@dataclass(frozen=True)
class Tissue:
    """Tissue on its slide, on the grid of pitch ``VEIL_UM``.

    Attributes
    ----------
    present : (gy, gx) float
        1 in tissue, 0 on glass.
    crowding : (gy, gx) float
        Density of nuclei relative to its mean over the tissue; 0 on glass.
    """

    present: NDArray[Any]
    crowding: NDArray[Any]

    @classmethod
    def draw(cls, plan: PhantomPlan, rng: np.random.Generator) -> Tissue:
        """Draw the shape of one section's tissue, its layers and its ventricle."""
        y, x = grid_um(plan)
        height, width = plan.size_um
        v, u = 2 * y / height - 1, 2 * x / width - 1
        present = np.ones((y.shape[0], x.shape[1]))
        layers = np.exp(-((v - 0.5 + 0.1 * np.sin(3 * u)) ** 2) / 0.015)
        crowding = 1 + 0.5 * layers - 0.35 * np.exp(-((v + 0.55 + 0.1 * u) ** 2) / 0.03)
        if plan.assay != "nuclei":
            angle = np.arctan2(v, u)
            edge = 0.94 + sum(
                rng.uniform(0, 0.03 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5, 9)
            )
            depth_um = (edge - (np.abs(u) ** 3 + np.abs(v) ** 3) ** (1 / 3)) * min(height, width) / 2
            present = np.clip(depth_um / VEIL_UM + 0.5, 0, 1)
        if plan.assay == "tunel":
            lesion = _lesion(plan)
            radius = np.sqrt(lesion.area / np.pi)
            inside = np.hypot(y - height / 2, x - width / 2) < radius
            crowding = crowding * np.where(inside, CORE_DENSITY, 1.0)
        elif plan.assay in ("brdu", "dcx"):
            beyond = x - _wall_um(y, plan)
            taper = np.sqrt(np.clip(np.minimum(y / height - 0.1, 0.9 - y / height) / 0.15, 0, 1))
            half = min(VENTRICLE_UM, 0.08 * width) * taper / 2
            present = present * (1 - np.clip((half - np.abs(beyond + half)) / VEIL_UM + 0.5, 0, 1) * (taper > 0))
            crowding = np.where((beyond >= 0) & (beyond < SVZ_UM), SVZ_DENSITY, np.minimum(crowding, 1.2))
        crowding = np.where(present >= 0.5, crowding, 0.0)
        crowding = crowding / crowding[present >= 0.5].mean()
        return cls(present, np.minimum(crowding, MOST_CROWDED))

    def crowding_at(self, yx_um: NDArray[Any]) -> NDArray[Any]:
        """Return the relative density at points; outside the slide that of its nearest edge."""
        place = np.rint(yx_um / VEIL_UM).astype(np.int64)
        rows, columns = (np.clip(place[:, k], 0, self.crowding.shape[k] - 1) for k in (0, 1))
        return np.asarray(self.crowding[rows, columns])


def grid_um(plan: PhantomPlan) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the (gy, 1) and (1, gx) coordinates of the grid of pitch ``VEIL_UM`` that covers a slide."""
    y, x = (np.arange(int(np.ceil(side / VEIL_UM)) + 2) * VEIL_UM for side in plan.size_um)
    return y[:, None], x[None, :]


def place_nuclei(
    plan: PhantomPlan, tissue: Tissue, rng: np.random.Generator, given_um: NDArray[Any] | None = None
) -> tuple[NDArray[Any], int]:
    """Place nuclei at random with a hard core (Matern's second process).

    Of points thrown at random each is kept when no earlier one lies within the hard core. Throwing
    ``-ln(1 - d pi r2) / (pi r2)`` keeps the density d on average (Matern 1960; Illian et al. 2008, eq. 6.5.3).

    Parameters
    ----------
    plan, tissue
    rng : numpy Generator
    given_um : (n, 2) float, optional
        Places taken before any other; those too close to an earlier one are dropped.

    Returns
    -------
    yx_um : (n, 2) float
        Given places that were kept come first.
    n_given : int
        How many those are.
    """
    from scipy.spatial import cKDTree

    core_um, (height, width) = plan.hard_core_um, plan.size_um
    core_mm2 = np.pi * core_um**2 / 1e6

    def thrown_per_mm2(density_per_mm2: Any) -> Any:
        return -np.log1p(-density_per_mm2 * core_mm2) / core_mm2 if core_mm2 else density_per_mm2

    # Thrown beyond the slide's rim too, so that nuclei there have as many rivals as elsewhere.
    low, high = np.array([-core_um, -core_um]), np.array([height + core_um, width + core_um])
    highest = thrown_per_mm2(plan.density * tissue.crowding.max())
    n_thrown = rng.poisson(highest * np.prod(high - low) / 1e6)
    thrown = rng.uniform(low, high, (n_thrown, 2))
    wanted = thrown_per_mm2(plan.density * tissue.crowding_at(thrown))
    thrown = thrown[rng.random(n_thrown) * highest < wanted]
    n_given = 0 if given_um is None else len(given_um)
    points = thrown if given_um is None else np.concatenate([given_um, thrown])
    kept = np.ones(len(points), bool)
    if core_um > 0 and len(points):
        pairs = cKDTree(points).query_pairs(core_um, output_type="ndarray")
        kept[pairs.max(axis=1)] = False
    kept &= ((points >= 0) & (points < (height, width))).all(1)
    return points[kept], int(kept[:n_given].sum())


def hidden_nuclei(yx_um: NDArray[Any], diameter_um: NDArray[Any]) -> NDArray[Any]:
    """Tell which nuclei are covered to more than half by neighbours, taking each as the disc of its area.

    Overlaps with several neighbours are added up, so a nucleus is rather called hidden than not.
    """
    from scipy.spatial import cKDTree

    covered = np.zeros(len(yx_um))
    if len(yx_um) > 1:
        pairs = cKDTree(yx_um).query_pairs(float(diameter_um.max()), output_type="ndarray")
        distance = np.hypot(*(yx_um[pairs[:, 0]] - yx_um[pairs[:, 1]]).T)
        lens = _lens_area(distance, diameter_um[pairs[:, 0]] / 2, diameter_um[pairs[:, 1]] / 2)
        for side in (0, 1):
            covered += np.bincount(pairs[:, side], lens, len(yx_um))
    return np.asarray(covered > 0.5 * np.pi / 4 * diameter_um**2)


def _lens_area(distance: NDArray[Any], r1: NDArray[Any], r2: NDArray[Any]) -> NDArray[Any]:
    """Area shared by two discs; it is the smaller disc when one lies within the other."""
    d = np.maximum(distance, 1e-9)
    first = np.clip((d**2 + r1**2 - r2**2) / (2 * d * r1), -1, 1)
    second = np.clip((d**2 + r2**2 - r1**2) / (2 * d * r2), -1, 1)
    kite = np.maximum((-d + r1 + r2) * (d + r1 - r2) * (d - r1 + r2) * (d + r1 + r2), 0)
    return np.asarray(r1**2 * np.arccos(first) + r2**2 * np.arccos(second) - np.sqrt(kite) / 2)


def lipofuscin(yx_um: NDArray[Any], n_channels: int, rng: np.random.Generator) -> Bodies:
    """Put clusters of 0.5 to 2 um specks, bright in every channel, in and around one cell in nine."""
    hosts = yx_um[rng.random(len(yx_um)) < 0.11]
    centres = hosts + rng.normal(0, 2.5, hosts.shape)
    specks = np.repeat(centres, rng.integers(2, 8, len(hosts)), axis=0)
    specks = specks + rng.normal(0, 1.4, specks.shape)
    light = rng.lognormal(np.log(0.5), 0.5, len(specks))[:, None] * deposit_colour(n_channels)
    diameter = rng.uniform(0.5, 2.0, len(specks))
    return Bodies.draw(rng, specks, diameter, light, layer=DEPOSIT, texture=0.0)


def deposit_colour(n_channels: int) -> NDArray[Any]:
    """Return the light of autofluorescent matter by channel: broad, weaker where DAPI is seen."""
    return np.array([0.25, 1.0, 1.0][:n_channels])


def veil(tissue: Tissue, n_channels: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return the faint light of tissue and glass, (c, gy, gx), mottled by a sixth over about 50 um."""
    from scipy.ndimage import gaussian_filter

    light = np.empty((n_channels, *tissue.present.shape), np.float32)

    def mottle() -> NDArray[Any]:
        field = gaussian_filter(rng.standard_normal(tissue.present.shape), 50 / VEIL_UM, mode="wrap")
        return np.asarray(np.clip(field / field.std(), -2, 2))

    shared = mottle()
    for channel in range(n_channels):
        ground_light = TISSUE_LIGHT * (0.6 if channel == 0 else 1.0) * tissue.present
        light[channel] = GLASS_LIGHT + ground_light * (1 + 0.16 * shared + 0.06 * mottle())
    return light


def illumination(plan: PhantomPlan, rng: np.random.Generator) -> NDArray[Any]:
    """Return a smooth field over the slide that reaches 15 % above or below 1."""
    y, x = (side / side.max() for side in grid_um(plan))
    field = sum(np.cos(np.pi * (rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x + rng.uniform(0, 2))) for _ in range(3))
    field = field - np.mean(field)
    return np.asarray(1 + 0.15 * field / np.abs(field).max(), np.float32)
