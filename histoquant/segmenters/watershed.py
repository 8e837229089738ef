"""The classical nucleus segmenter: the same objects however the slide is cut into tiles.

Lengths are in units of the nuclear diameter d; every number that depends on more than the neighbourhood of a
pixel (d and the threshold) is taken once per slide by `Watershed.survey`. A tile is then segmented in five
steps:

1. haze that is wider than a nucleus is removed: a grey opening, smoothed, is subtracted;
2. where the smoothed image is above a part of the threshold, each pixel belongs to the summit that steepest
   ascent leads to, and a summit that stands in another's slope joins it (brightness basins);
3. each basin's pixels above a part of *its own* summit are nucleus: a dim nucleus beside a bright one keeps its size;
4. that mask is split where it has a waist: again basins, of distance to the mask's edge times the root of brightness;
5. objects far smaller or far larger than a nucleus are dropped.

Every step has a reach, and `Watershed.halo_um` adds them up. Filters are exact or sum each pixel's neighbourhood in
one fixed order, never a running sum, so that a pixel's value does not depend on where the crop begins; the basins are
those of `histoquant.analysis.basins`, not of a priority queue.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from histoquant.analysis.basins import local_basins, of_size
from histoquant.analysis.blobs import NOISE_FACTOR, median_diameter, typical_blob
from histoquant.analysis.compiled import compiled
from histoquant.analysis.filters import TRUNCATE, brushed, capped_distance, gauss, opened, without_holes
from histoquant.errors import InputError
from histoquant.segmenters.planes import diameter_px, plane_of, with_signal
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Lengths in diameters.
FINE_SIGMA = 0.05  # smoothing before a pixel is called nucleus
BROAD_SIGMA = 0.15  # smoothing before a summit is called a nucleus: evens out chromatin
HAZE_WINDOW = 1.75  # side of the square a nucleus must not fill, else it is taken for haze
HAZE_SIGMA = 0.2
HOLE = 0.5  # largest extent of a hole that is filled
BRUSH = 0.04  # radius of the opening that takes off filaments
DISTANCE_CAP = 0.6
DISTANCE_SIGMA = 0.05
JOIN_BRIGHTNESS = 0.95  # a summit joins a brighter one when the way there stays above this part of its height
HAZE_TRUNCATE = 2.0
# Exact reach of the filters, then one basin for step 2 and two for step 4: whether a summit joins another depends
# on the neighbour's, half a diameter behind the common border. 288 crops of 48 real images differed from the whole
# no farther than 3.6 diameters from the cut, extent of the object included.
FILTER_REACH = HAZE_WINDOW + TRUNCATE * (BROAD_SIGMA + DISTANCE_SIGMA) + HAZE_TRUNCATE * HAZE_SIGMA
REACH = FILTER_REACH + DISTANCE_CAP + HOLE + 4 * BRUSH + 3 * 0.5
DEFAULT_DIAMETER_UM = 8.0  # of most rodent neurons; used on a slide where nothing can be measured
GLARE, MAX_ROUNDS = 3.0, 8  # debris counts as this many typical nuclei at most


class WatershedParams(BaseModel):
    """Parameters of the classical segmenter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    diameter_um: float | None = Field(
        None,
        gt=0,
        le=200,
        title="Nuclear diameter (um)",
        description="Typical diameter of a nucleus; estimated once per slide when not given.",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=100,
        title="Threshold",
        description="How much the faintest nucleus stands out of its surroundings, where 1 is a typical "
        "bright nucleus of the slide; estimated once per slide when not given.",
    )
    edge: float = Field(
        0.42,
        ge=0.1,
        le=0.9,
        title="Edge",
        description="A nucleus ends where its brightness falls to this part of its summit.",
    )
    split: float = Field(
        0.9,
        ge=0.3,
        le=0.999,
        title="Split",
        description="Touching nuclei are split at a waist narrower than this part of the smaller one; "
        "higher splits more.",
    )
    min_contrast: float = Field(
        0.3,
        ge=0,
        le=1,
        title="Least contrast",
        description="How much of a nucleus's brightness must stand out of the haze around it; "
        "drops out-of-focus nuclei and texture of tissue.",
    )
    min_area: float = Field(
        0.15,
        ge=0,
        le=1,
        title="Smallest area",
        description="Smaller objects are dropped; part of the area of a disc of the nuclear diameter.",
    )
    max_area: float = Field(
        6.0,
        ge=1,
        le=100,
        title="Largest area",
        description="Larger objects are dropped; multiple of the area of a disc of the nuclear diameter.",
    )


class Watershed:
    """Nuclei by local basins of brightness and shape; see the module for how.

    Parameters
    ----------
    params : WatershedParams
        With ``diameter_um`` and ``threshold`` given, or filled in by `survey`.
    """

    api: ClassVar[int] = 1
    Params: ClassVar[type[WatershedParams]] = WatershedParams

    def __init__(self, params: WatershedParams) -> None:
        self.params = params

    @property
    def halo_um(self) -> float:
        """How far from a crop's edge labels may differ from those of the whole slide, in um.

        An object reaches farther by its own extent, which is the caller's to add.

        Raises
        ------
        InputError
            If the diameter is not known yet.
        """
        return REACH * self._resolved()[0]

    def survey(self, samples: list[NDArray[np.float32]], pixel_size_um: float) -> WatershedParams:
        """Fill in the diameter and the threshold from sample windows of a slide.

        The diameter starts from blobs in scale space (Lindeberg 1998), which also works where nuclei touch,
        and is then replaced by the median size of the objects it leads to until it stays. The threshold is
        half of Otsu's (1979), which lies midway between background and the bulk of nuclei, and never within
        the noise.

        Parameters
        ----------
        samples : list of (1, 1, y, x) float32
            Background 0, bright nuclei about 1. Of very many, 16 of those with more signal are looked at.
        pixel_size_um : float

        Returns
        -------
        WatershedParams without None; a slide without objects gets a diameter of 8 um.
        """
        params = self.params
        if None not in (params.diameter_um, params.threshold):
            return params
        planes = with_signal([plane_of(sample) for sample in samples])
        noise = _pixel_noise(planes)
        diameter, brightness = typical_blob(planes, noise) or (DEFAULT_DIAMETER_UM / pixel_size_um, np.inf)
        planes = [np.minimum(plane, np.float32(GLARE * brightness)) for plane in planes]
        if params.diameter_um is not None:
            diameter = params.diameter_um / pixel_size_um
        elif brightness < np.inf:
            diameter = self._settled(diameter, planes, noise)
        return params.model_copy(
            update={
                "diameter_um": params.diameter_um or min(diameter * pixel_size_um, 200.0),
                "threshold": params.threshold or _threshold(planes, diameter, noise),
            }
        )

    def _settled(self, diameter: float, planes: list[NDArray[np.float32]], noise: float) -> float:
        """Return the diameter in pixels that the objects found with it have."""
        for _ in range(MAX_ROUNDS):
            threshold = self.params.threshold or _threshold(planes, diameter, noise)
            found = median_diameter(_labels_of(planes, diameter, threshold, self.params))
            if found is None:
                break
            # Steps are bounded: one bad round must not throw a good estimate away.
            previous, diameter = diameter, min(max(found, diameter / 1.6), diameter * 1.6)
            if abs(math.log(diameter / previous)) < 0.02:
                break
        return diameter

    def __call__(self, image: NDArray[np.float32], pixel_size_um: float) -> NDArray[np.uint32]:
        """Label the nuclei of one crop.

        Parameters
        ----------
        image : (1, 1, y, x) float32
            Background 0, bright nuclei about 1.
        pixel_size_um : float

        Returns
        -------
        (1, y, x) uint32, 0 = background, ids from 1 without gaps

        Raises
        ------
        InputError
            If the image has several channels or planes, the parameters are not resolved, or a nucleus is less
            than three pixels across.
        """
        diameter_um, threshold = self._resolved()
        diameter = diameter_px(diameter_um, pixel_size_um)
        return _labels(plane_of(image), diameter, threshold, self.params)[np.newaxis]

    def _resolved(self) -> tuple[float, float]:
        if self.params.diameter_um is None or self.params.threshold is None:
            raise InputError(
                "The watershed segmenter has no diameter or threshold yet.",
                "Give diameter_um and threshold, or use the parameters that survey() returns.",
            )
        return self.params.diameter_um, self.params.threshold


def _haze(broad: NDArray[np.float32], diameter: float) -> NDArray[np.float32]:
    """Return what is wider than a nucleus: opened with a square, smoothed, not below 0."""
    wide = opened(broad, int(HAZE_WINDOW * diameter))
    return gauss(np.maximum(wide, 0, out=wide), HAZE_SIGMA * diameter, HAZE_TRUNCATE)


def _labels_of(
    planes: list[NDArray[np.float32]], diameter: float, threshold: float, params: WatershedParams
) -> list[NDArray[np.uint32]]:
    return list(in_order(lambda plane: _labels(plane, diameter, threshold, params), planes))


def _labels(
    image: NDArray[np.float32], diameter: float, threshold: float, params: WatershedParams
) -> NDArray[np.uint32]:
    """Return the (y, x) labels of a plane; the diameter is in pixels."""
    if not image.size:
        return np.zeros(image.shape, dtype=np.uint32)
    broad = gauss(image, BROAD_SIGMA * diameter)
    if broad.max() <= threshold:  # bare glass: no summit can be a nucleus
        return np.zeros(image.shape, dtype=np.uint32)
    haze = _haze(broad, diameter)
    fine = gauss(image, FINE_SIGMA * diameter)
    fine -= haze
    clear = np.subtract(broad, haze, out=haze)

    basin, summit = local_basins(clear, fine > np.float32(params.edge * threshold), join=JOIN_BRIGHTNESS, rounds=1)
    if not len(summit):
        return basin
    height = clear.ravel()[summit]
    nucleus = (height > threshold) & (height > params.min_contrast * broad.ravel()[summit])
    del broad
    height_of = np.concatenate([[np.inf], np.where(nucleus, height, np.inf)]).astype(np.float32)
    mask = _above_part(fine, basin, height_of * np.float32(params.edge))
    del fine
    mask = brushed(without_holes(mask, HOLE * diameter), max(1, round(BRUSH * diameter)))

    distance = gauss(capped_distance(mask, DISTANCE_CAP * diameter), DISTANCE_SIGMA * diameter)
    _weigh(distance, clear, basin, height_of)
    del clear, basin
    labels, _ = local_basins(distance, mask, join=params.split, rounds=2)
    del distance, mask
    disc = math.pi / 4 * diameter**2
    return of_size(labels, params.min_area * disc, params.max_area * disc)


@compiled
def _above_part(
    fine: NDArray[np.float32], basin: NDArray[np.uint32], limit_of: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return where an image is above the limit of its basin."""
    mask = np.empty(fine.shape, dtype=np.bool_)
    for y in range(fine.shape[0]):
        values, basins, out = fine[y], basin[y], mask[y]
        for x in range(fine.shape[1]):
            out[x] = basins[x] > 0 and values[x] > limit_of[basins[x]]
    return mask


@compiled
def _weigh(
    distance: NDArray[np.float32],
    clear: NDArray[np.float32],
    basin: NDArray[np.uint32],
    height_of: NDArray[np.float32],
) -> None:
    """Multiply distance by the root of brightness, 1 at the summit.

    The root: it decides where shapes do not, and it is exact to the last bit, as a power is not.
    """
    low, one = np.float32(0.05), np.float32(1)
    for y in range(distance.shape[0]):
        out, values, basins = distance[y], clear[y], basin[y]
        for x in range(distance.shape[1]):
            if out[x] > 0:
                out[x] *= np.sqrt(min(max(values[x] / height_of[basins[x]], low), one))


def _pixel_noise(planes: list[NDArray[np.float32]]) -> float:
    """Return the standard deviation of a pixel's noise, from second differences along rows, blind to slopes.

    Their 80th percentile, for a camera whose offset was cut off leaves more than half of the pixels at 0.
    """
    bends = [np.abs(np.diff(plane, n=2, axis=1)).ravel() for plane in planes if plane.shape[1] > 2]
    return float(np.percentile(np.concatenate(bends), 80)) / (1.2816 * math.sqrt(6)) if bends else 0.0


def _threshold(planes: list[NDArray[np.float32]], diameter: float, noise: float) -> float:
    """Return half of Otsu's threshold of what stands above background, at least well above smoothed noise."""
    from skimage.filters import threshold_otsu

    values = list(in_order(lambda plane: np.maximum(gauss(plane, FINE_SIGMA * diameter), 0).ravel(), planes))
    pooled = np.concatenate(values) if values else np.zeros(1)
    # White noise of a pixel, smoothed by a Gaussian of s pixels, has 1 / (2 sqrt(pi) s) of its deviation.
    smoothed = noise / max(1.0, 2 * math.sqrt(math.pi) * BROAD_SIGMA * diameter)
    return max(0.5 * float(threshold_otsu(pooled, nbins=1024)), NOISE_FACTOR * smoothed, 1e-3)
