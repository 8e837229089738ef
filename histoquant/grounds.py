"""What a marker comes to over the ground of each region, cells or not: area above the threshold, optical density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.positivity import Threshold
from histoquant.model.panel import called_markers
from histoquant.model.region_set import RegionSet
from histoquant.model.slide import Box
from histoquant.picture import flat_pixels, parts
from histoquant.threads import in_order
from histoquant.work import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray


def positive_areas(work: Work, regions: RegionSet, thresholds: Mapping[str, Threshold]) -> dict[str, dict[str, float]]:
    """Return the area at or above the threshold in each region's own ground, for the markers that ask for it.

    Intensities are above the slide-wide background; the slide is read part by part.

    Returns
    -------
    marker -> region -> um2
    """
    markers = [name for name in called_markers(work.panel) if work.panel[name].area]
    if not markers:
        return {}
    told = work.survey

    def bright(plane: NDArray[Any], box: Box, marker: str) -> NDArray[Any]:
        return plane - told.background.at(box, work.channel(marker)) >= thresholds[marker].value

    area_um2 = work.slide.pixel_size_um**2
    summed = _over_grounds(work, regions, markers, bright)
    return {marker: {name: n * area_um2 for name, n in by_region.items()} for marker, by_region in summed.items()}


def integrated_densities(work: Work, regions: RegionSet) -> dict[str, dict[str, float]]:
    """Return the sum of optical density times area in each region's own ground, for the markers with grades.

    The density of blank glass is 0. Nothing is clipped at 0, or noise of unstained ground would add up.

    Returns
    -------
    marker -> region -> OD um2
    """
    markers = [name for name in called_markers(work.panel) if work.panel[name].grades]
    if not markers:
        return {}
    area_um2 = work.slide.pixel_size_um**2
    summed = _over_grounds(work, regions, markers, lambda plane, box, marker: plane)
    return {marker: {name: n * area_um2 for name, n in by_region.items()} for marker, by_region in summed.items()}


def _over_grounds(
    work: Work, regions: RegionSet, markers: Sequence[str], value: Callable[[NDArray[Any], Box, str], NDArray[Any]]
) -> dict[str, dict[str, float]]:
    """Add up a value of every pixel over each region's own ground; the slide is read part by part, in one order."""
    px, grounds = work.slide.pixel_size_um, regions.grounds()
    indices = tuple(work.survey.indices[work.channel(marker)] for marker in markers)

    def count(box: Box) -> NDArray[np.float64]:
        raw = flat_pixels(work.slide, box, indices, work.recipe.segment)
        values = [value(plane, box, marker) for plane, marker in zip(raw, markers, strict=True)]
        summed = np.zeros((len(markers), len(grounds)))
        for n, ground in enumerate(grounds.values()):
            if not ground.is_empty:
                mask = regions.pixel_mask(ground, box, px)
                summed[:, n] = [part[mask].sum(dtype=np.float64) for part in values]
        return summed

    total = np.sum(list(in_order(count, parts(work.slide))), axis=0)
    return {
        marker: {name: float(n) for name, n in zip(grounds, summed, strict=True)}
        for marker, summed in zip(markers, total, strict=True)
    }
