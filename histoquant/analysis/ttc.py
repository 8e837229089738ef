"""Which tissue of a slice stained with TTC is infarcted.

Living tissue turns the dye red, dead tissue stays pale. Redness is the logarithm of red over the mean of green and
blue: a shadow dims all three alike and leaves it as it is. How red living tissue is on a picture is read from the
hemisphere without lesion of the same picture, so that staining time and camera do not matter. White matter is pale in
both hemispheres: pale tissue whose mirror image is pale too is taken for it, unless it is thicker here.

Colours are (3, y, x) from 0 to 255, masks (y, x) bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from histoquant.analysis.slices import FoundSlice

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Literal["left", "right"]

SMOOTHED_UM = 120.0
VESSEL_UM = 300.0
"""Red lines in an infarct narrower than this are vessels, pale lines in living tissue are none of it."""

GREY_TINT = 0.35
GREY_LEVEL = 60.0
"""The ground is grey, and shows the colour of the light, when the logarithms of its colours' ratios are below this and
it is this bright."""

LEAST_REDNESS = 0.25
"""Of living tissue, above white. Below, nothing on the picture is stained."""


@dataclass(frozen=True)
class Redness:
    """How red white and living tissue are on a picture, as logarithms.

    Attributes
    ----------
    white, living : float
    balanced : str
        Where white comes from.
    """

    white: float
    living: float
    balanced: str

    def limit(self, part: float) -> float:
        """Return the redness below which tissue is pale."""
        return self.white + part * (self.living - self.white)


def redness(rgb: NDArray[np.float32], mask: NDArray[np.bool_], pixel_size_um: float) -> NDArray[np.float64]:
    """Return the redness of each pixel of the tissue, grain smoothed away; the ground's colour does not enter."""
    from scipy import ndimage

    # The logarithm first: of a border pixel half red and half pale it is half way, while their light is mostly pale.
    red, green, blue = rgb.astype(np.float64)
    ratio = np.where(mask, np.log((red + 1) / ((green + blue) / 2 + 1)), 0.0)
    sigma = SMOOTHED_UM / pixel_size_um
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(np.float64), sigma), 1e-6)
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(ratio, sigma) / weight
    return smooth


def white_of(ground: Sequence[float], stated: Sequence[float] | None) -> tuple[float, str]:
    """Return how red white is under the light of a picture, and where that comes from."""
    if stated is not None:
        return _log_ratio(stated), "a card stated in the recipe"
    tints = [abs(float(np.log((a + 1) / (b + 1)))) for a, b in zip(ground, (*ground[1:], ground[0]), strict=True)]
    if max(tints) < GREY_TINT and min(ground) >= GREY_LEVEL:
        return _log_ratio(ground), "the grey ground of the picture"
    return 0.0, "nothing: the ground is not grey and no card is stated"


def _log_ratio(colour: Sequence[float]) -> float:
    return float(np.log((colour[0] + 1) / ((colour[1] + colour[2]) / 2 + 1)))


def hemispheres(found: FoundSlice) -> dict[Side, NDArray[np.bool_]]:
    """Return both halves of a slice, as they lie in the picture."""
    (y0, x0), (y1, x1) = found.midline_px
    rows, columns = np.indices(found.mask.shape)
    right = (columns - x0) * (y1 - y0) - (rows - y0) * (x1 - x0) > 0
    return {"left": found.mask & ~right, "right": found.mask & right}


def palest_side(slices: Sequence[FoundSlice], red: NDArray[np.float64]) -> Side:
    """Return the hemisphere that is less red, over all slices of a picture."""
    means: dict[Side, float] = {}
    for side in ("left", "right"):
        parts = [red[hemispheres(found)[side]] for found in slices]
        means[side] = float(np.concatenate(parts).mean())
    return "left" if means["left"] < means["right"] else "right"


def calibrated(
    slices: Sequence[FoundSlice], red: NDArray[np.float64], lesion_side: Side, white: tuple[float, str]
) -> Redness | None:
    """Return how red living tissue is: the median of the hemispheres without lesion; None when nothing is stained."""
    other: Side = "right" if lesion_side == "left" else "left"
    living = float(np.median(np.concatenate([red[hemispheres(found)[other]] for found in slices])))
    return Redness(white[0], living, white[1]) if living - white[0] >= LEAST_REDNESS else None


def infarct_mask(
    found: FoundSlice,
    pale: NDArray[np.bool_],
    lesion_side: Side,
    pixel_size_um: float,
    *,
    mirror_um: float,
    min_mm2: float,
) -> NDArray[np.bool_]:
    """Return the infarct of a slice.

    Parameters
    ----------
    pale : (y, x) bool
        What is less red than the limit, anywhere in the picture.
    mirror_um : float
        How far off the mirror image of white matter may lie.
    min_mm2 : float
        Smaller spots are left out.
    """
    from scipy import ndimage

    # Nothing beyond the slice's box matters; the other slices of the picture would cost most of the time.
    rows, columns = (np.flatnonzero(found.mask.any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    whole = np.zeros_like(found.mask)
    ends = [(y - rows[0], x - columns[0]) for y, x in found.midline_px]
    found, pale = replace(found, mask=found.mask[box], midline_px=(ends[0], ends[1])), pale[box]

    halves = hemispheres(found)
    ipsilateral = halves[lesion_side]
    other = halves["right" if lesion_side == "left" else "left"]
    pale_here, pale_there = pale & ipsilateral, pale & other
    reach = VESSEL_UM / pixel_size_um / 2
    # White matter there says how thick it is here; an infarct is thicker, or lies where no mirror image is pale.
    widest = min(float(ndimage.distance_transform_edt(pale_there).max()), mirror_um / pixel_size_um)
    unlike = pale_here & ~_mirrored(_grown(pale_there, mirror_um / pixel_size_um), found)
    core = _opened(pale_here, max(widest + 1, reach)) | _opened(unlike, reach)
    core = ndimage.binary_fill_holes(_shrunk(_grown(core, 2 * reach), 2 * reach)) & ipsilateral
    whole[box] = _of_size(core, min_mm2 * 1e6 / pixel_size_um**2)
    return whole


def _mirrored(mask: NDArray[np.bool_], found: FoundSlice) -> NDArray[np.bool_]:
    """Return the mirror image of a mask about a slice's midline."""
    (y0, x0), (y1, x1) = found.midline_px
    along = np.array([y1 - y0, x1 - x0]) / max(np.hypot(y1 - y0, x1 - x0), 1e-9)
    result = np.zeros_like(mask)
    y, x = np.nonzero(found.mask)
    offset = np.stack([y - y0, x - x0], axis=1)
    back = 2 * (offset @ along)[:, None] * along - offset + (y0, x0)
    rows, columns = np.rint(back).astype(int).T
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    result[y[inside], x[inside]] = mask[rows[inside], columns[inside]]
    return result


def _grown(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    grown: NDArray[np.bool_] = ndimage.distance_transform_edt(~mask) <= radius_px
    return grown


def _shrunk(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    shrunk: NDArray[np.bool_] = ndimage.distance_transform_edt(mask) > radius_px
    return shrunk


def _opened(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    return _grown(_shrunk(mask, radius_px), radius_px)


def _of_size(mask: NDArray[np.bool_], least_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= least_px
    large[0] = False
    kept: NDArray[np.bool_] = large[pieces]
    return kept
