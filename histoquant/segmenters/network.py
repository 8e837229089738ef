"""The bundled network: nuclei at the accuracy of much larger ones, on a laptop's processor, without a download.

A crop is segmented in four steps:

1. it is resampled so that a nucleus is `WORKING_PX` pixels across: the only size the network has to know;
2. the network, a U-Net of 2.2 million weights of 8 bits that works at half that resolution inside, gives each pixel a
   probability to be nucleus and a height, 1 in the middle of a nucleus and 0 at its outline, also where two touch;
3. what is probably nucleus is divided among the summits of the height (`histoquant.analysis.basins`);
4. labels go back to the pixels of the crop, outlines interpolated.

The weights are a file in the package (ONNX, which holds numbers and the names of operations but no code), checked
against `WEIGHTS_SHA256` before they are used. How they were made, on what, and what they cannot do is written in
``workflows/train_nuclei/MODEL_CARD.md``.

A network sees a pixel's surroundings through grids of 2 to 16 working pixels, whose phase depends on where a crop
begins. The scale is therefore chosen so that the coarsest cell is a whole number of the slide's pixels, and crops
start at multiples of it (`Network.grid_px`): what the network says about a place is then the same to the bit in every
crop that holds all it can see, and counts do not depend on tiles.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from histoquant.analysis.basins import local_basins, of_size
from histoquant.analysis.blobs import median_diameter
from histoquant.analysis.resample import labels_at, resampled
from histoquant.analysis.weights import session
from histoquant.cores import usable_threads
from histoquant.errors import InputError
from histoquant.segmenters.planes import MIN_DIAMETER_PX, diameter_px, plane_of, with_signal
from histoquant.segmenters.watershed import Watershed

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = Path(__file__).with_name("weights") / "nuclei.onnx"
WEIGHTS_SHA256 = "da1a69c3fa8b7c02f09dc840f8fdaf5de799d90b4ee4bb6bc9eb6202170b37e9"

WORKING_PX = 15.0
"""Diameter of a nucleus, in pixels, as the network was trained to see it."""

CELL = 16
"""Side of the network's coarsest grid: what it is given is a multiple of it."""

PIECE_PX = 6_000_000
PIECE_PX_BYTES = 100
"""Most pixels that are given to the network at once, and the memory it takes for each (measured). A tile of 2,048 px
with its surroundings is one piece; of several each computes its margins anew."""

PIECE_WIDTH = 4096

MARGIN = 128
"""How far the network sees, in working pixels, at most; a multiple of `CELL`. Changing one pixel shows so."""

REACH = (MARGIN + 1.5 * WORKING_PX) / WORKING_PX
"""How far, in diameters, from a crop's edge labels may differ: what the network sees, then two basins, of which whether
they join depends on the neighbour's summit; tested in tests/test_network.py."""

MAX_ROUNDS = 4
MOST_STEP = 1.6

OTHER_STARTS = (0.5, 0.71, 1.41, 2.0)
LOOKED_AT = 4  # windows; a diameter of half the size costs four times as much to look at
SURER = 0.05  # of 136 real images, any margin from 0.05 to 0.10 chose the same diameters
OWN_SIZE = 0.16


class NetworkParams(BaseModel):
    """Parameters of the bundled network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    diameter_um: float | None = Field(
        None,
        gt=0,
        le=200,
        title="Nuclear diameter (um)",
        description="Typical diameter of a nucleus; estimated once per slide when not given.",
    )
    probability: float = Field(
        0.5,
        gt=0,
        lt=1,
        title="Probability",
        description="A pixel is in a nucleus when that is more probable than this; higher makes nuclei smaller.",
    )
    split: float = Field(
        0.6,
        ge=0.1,
        le=0.999,
        title="Split",
        description="Two summits are one nucleus when the way between them stays above this part of the lower; "
        "higher splits more.",
    )
    certainty: float = Field(
        0.5,
        ge=0,
        lt=1,
        title="Certainty",
        description="Objects whose summit is lower are dropped: debris, and nuclei far out of focus.",
    )
    min_area: float = Field(
        0.08,
        ge=0,
        le=1,
        title="Smallest area",
        description="Smaller objects are dropped; part of the area of a disc of the nuclear diameter.",
    )


class Network:
    """Nuclei by the bundled network; see the module for how.

    Parameters
    ----------
    params : NetworkParams
        With ``diameter_um`` given, or filled in by `survey`.
    """

    api: ClassVar[int] = 1
    Params: ClassVar[type[NetworkParams]] = NetworkParams
    weights_sha256: ClassVar[str] = WEIGHTS_SHA256

    def __init__(self, params: NetworkParams) -> None:
        self.params = params

    @property
    def halo_um(self) -> float:
        """How far from a crop's edge labels may differ from those of the whole slide, in um.

        Raises
        ------
        InputError
            If the diameter is not known yet.
        """
        return REACH * self._diameter_um()

    def grid_px(self, pixel_size_um: float) -> int:
        """Return at multiples of how many pixels crops start: one cell of the network's coarsest grid."""
        return _cell_px(self._diameter_um() / pixel_size_um)

    def memory_bytes(self, n_px: int, pixel_size_um: float) -> int:
        """Return the memory that the network takes for a crop of so many pixels: that of its largest piece."""
        scale = 1.0
        if self.params.diameter_um is not None:
            scale = CELL / _cell_px(self.params.diameter_um / pixel_size_um)
        return int(PIECE_PX_BYTES * min(n_px * scale**2, PIECE_PX))

    def survey(self, samples: list[NDArray[np.float32]], pixel_size_um: float) -> NetworkParams:
        """Fill in the diameter from sample windows of a slide.

        It starts from what the watershed finds, turns to a much smaller or larger one when the network is surer at
        that and finds nuclei of just that size, and is then replaced by the median size of the network's own objects
        until it stays.

        Parameters
        ----------
        samples : list of (1, 1, y, x) float32
            Background 0, bright nuclei about 1.
        pixel_size_um : float

        Returns
        -------
        NetworkParams without None; a slide without objects gets a diameter of 8 um.
        """
        if self.params.diameter_um is not None:
            return self.params
        start = Watershed(Watershed.Params()).survey(samples, pixel_size_um).diameter_um
        assert start is not None  # survey() leaves no None
        planes = with_signal([plane_of(sample) for sample in samples])
        if not planes:
            return self.params.model_copy(update={"diameter_um": start})
        diameter = first = self._surest(start / pixel_size_um, planes)
        for _ in range(MAX_ROUNDS):
            found = median_diameter([_labels(plane, diameter, self.params) for plane in planes])
            if found is None:
                break
            # Bounded: fragments in a few bad rounds must not throw a good estimate away.
            previous, diameter = diameter, min(max(found, first / MOST_STEP, MIN_DIAMETER_PX), first * MOST_STEP)
            if abs(math.log(diameter / previous)) < 0.03:
                break
        return self.params.model_copy(update={"diameter_um": min(diameter * pixel_size_um, 200.0)})

    def _surest(self, start: float, planes: list[NDArray[np.float32]]) -> float:
        """Return the diameter in pixels, ``start`` or far from it, at which the network is surest of what it says.

        Another than the first must be believed clearly more, and lead to objects of its own size: at a wrong one the
        network finds parts of nuclei, or clumps, but is in doubt.
        """
        planes = planes[:: max(1, len(planes) // LOOKED_AT)]
        best, most = start, _certainty(planes, start) + SURER
        for factor in OTHER_STARTS:
            diameter = start * factor
            if diameter < MIN_DIAMETER_PX:
                continue
            sure = _certainty(planes, diameter)
            if sure <= most:
                continue
            found = median_diameter([_labels(plane, diameter, self.params) for plane in planes])
            if found is not None and abs(math.log(found / diameter)) < OWN_SIZE:
                best, most = diameter, sure
        return best

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
            If the image has several channels or planes, the diameter is not known, or a nucleus is less than three
            pixels across.
        PluginError
            If the weights are not those that came with this version.
        """
        diameter = diameter_px(self._diameter_um(), pixel_size_um)
        return _labels(plane_of(image), diameter, self.params)[np.newaxis]

    def _diameter_um(self) -> float:
        if self.params.diameter_um is None:
            raise InputError(
                "The network has no nuclear diameter yet.",
                "Give diameter_um, or use the parameters that survey() returns.",
            )
        return self.params.diameter_um


def _labels(image: NDArray[np.float32], diameter: float, params: NetworkParams) -> NDArray[np.uint32]:
    """Return the (y, x) labels of a plane; the diameter is in pixels."""
    if not image.size:
        return np.zeros(image.shape, dtype=np.uint32)
    scale = Fraction(CELL, _cell_px(diameter))
    probability, height = _maps(image, scale)
    labels, summit = local_basins(height, probability > np.float32(params.probability), join=params.split, rounds=2)
    if not len(summit):
        return np.zeros(image.shape, dtype=np.uint32)
    sure = height.ravel()[summit] >= np.float32(params.certainty)
    labels = np.concatenate([[0], np.where(sure, np.arange(1, len(sure) + 1), 0)]).astype(np.uint32)[labels]
    disc = math.pi / 4 * WORKING_PX**2
    labels = of_size(labels, params.min_area * disc, np.inf)
    return labels_at(labels, probability, params.probability, scale, image.shape)


def _certainty(planes: list[NDArray[np.float32]], diameter: float) -> float:
    """Return how sure the network is of pixels that may be nucleus, 0 to 1."""
    said = [_maps(plane, Fraction(CELL, _cell_px(diameter)))[0] for plane in planes]
    doubt = np.concatenate([probability[probability > 0.1] for probability in said])
    return float(np.abs(2 * doubt - 1).mean()) if len(doubt) else 0.0


def _cell_px(diameter: float) -> int:
    """Return how many pixels of an image a cell of the coarsest grid takes, nuclei being so many pixels across."""
    return max(1, round(CELL * diameter / WORKING_PX))


def _maps(image: NDArray[np.float32], scale: Fraction) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return probability and height of an image at working resolution, (y, x) float32 each."""
    shape = tuple(math.ceil(n * scale) for n in image.shape)
    padded = tuple(-(-n // CELL) * CELL for n in shape)
    plane = resampled(image, scale, padded)
    network = session(WEIGHTS, WEIGHTS_SHA256, usable_threads())
    maps = np.empty((2, *padded), dtype=np.float32)
    for seen_x, kept_x in _pieces(padded[1], PIECE_WIDTH):
        for seen_y, kept_y in _pieces(padded[0], PIECE_PX // (seen_x.stop - seen_x.start)):
            (answer,) = network.run(None, {"image": plane[np.newaxis, np.newaxis, seen_y, seen_x]})
            top, left = kept_y.start - seen_y.start, kept_x.start - seen_x.start
            kept = maps[:, kept_y, kept_x]
            kept[:] = answer[0, :, top : top + kept.shape[1], left : left + kept.shape[2]]
    return np.ascontiguousarray(maps[0, : shape[0], : shape[1]]), np.ascontiguousarray(maps[1, : shape[0], : shape[1]])


def _pieces(n: int, most: int) -> list[tuple[slice, slice]]:
    """Cut a line into pieces of about equal length: what the network sees, and what is kept of its answer."""
    count, step = 1, n
    while step > CELL and step + MARGIN * min(count - 1, 2) > most:
        count += 1
        step = -(-n // (count * CELL)) * CELL
    kept = [slice(start, min(n, start + step)) for start in range(0, n, step)]
    return [(slice(max(0, part.start - MARGIN), min(n, part.stop + MARGIN)), part) for part in kept]
