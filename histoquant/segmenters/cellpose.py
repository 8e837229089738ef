"""Cellpose-SAM (Pachitariu, Rariden and Stringer 2025) through the package cellpose, an extra of histoquant.

The network finds for each pixel the way to the middle of its object; pixels that end in one place are one object. What
the package would pass over in silence is refused here or done explicitly:

* the weights are a file whose sum and parts were looked at (`histoquant.segmenters.cellpose_weights`); the sum is part
  of the key of stored results. Neither a default model nor random weights can take their place;
* the image is one plane, brought to 0 for background and 1 for bright nuclei once per slide. It is given as the first
  of three channels, the other two empty, and cellpose's own normalisation, which takes percentiles of whatever crop it
  is given, is off;
* objects are dropped for their size in um2 and not for their share of the crop;
* the number type is chosen once per slide, and kept for it on every machine.

Crops are as different as a transformer makes them: it looks at squares of 256 working pixels, and where these lie
depends on where a crop begins. `Cellpose.halo_um` keeps every square that sees a crop's edge away from what is kept;
``histoquant seamcheck`` counts what is left, for a slide and a model.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from histoquant.analysis.basins import of_size
from histoquant.errors import InputError, PluginError
from histoquant.segmenters.cellpose_network import (
    INSTALL,
    Precision,
    fast_precision,
    missing_package,
    network_of,
    squares_at_once,
)
from histoquant.segmenters.cellpose_weights import Weights, weights_of
from histoquant.segmenters.planes import diameter_px, plane_of
from histoquant.segmenters.watershed import Watershed

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLPOSE_PX = 30.0
"""Diameter of an object, in pixels, to which cellpose scales whatever diameter it is told."""

SQUARE = 256
"""Side of what the network looks at at once, in working pixels."""

OVERLAP = 0.1

LEAST_PX = 32
"""Smaller crops are laid on an empty ground of this side, at least: cellpose scales it to a whole number of pixels."""

_LOCK = threading.Lock()
"""Cellpose keeps settings in its module."""

BASE_BYTES = 900_000_000
"""What torch and cellpose take once imported, and the network on one square."""

WORKING_PX_BYTES = 75
CROP_PX_BYTES = 110
"""Peak of a crop per working pixel and per own pixel; 61 and 91 measured with crops of 1 and 2.6 megapixels."""


class CellposeParams(BaseModel):
    """Parameters of Cellpose-SAM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    diameter_um: float | None = Field(
        None,
        gt=0,
        le=200,
        title="Nuclear diameter (um)",
        description="Typical diameter of a nucleus; estimated once per slide when not given.",
    )
    model: str = Field(
        "cpsam_v2",
        min_length=1,
        title="Model",
        description="Path of a file of Cellpose-SAM weights, or a built-in name (cpsam_v2, cpsam), which is downloaded "
        "once when it is not there.",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        title="Sum of the weights",
        description="The sha256 the file of weights has to have; that of the file found when not given.",
    )
    working_px: float = Field(
        30.0,
        ge=7.5,
        le=120,
        title="Working diameter (px)",
        description="A nucleus is scaled to be this many pixels across, 30 as in training; with 15 it takes a quarter "
        "of the time.",
    )
    flow_threshold: float = Field(
        0.4,
        ge=0,
        le=3,
        title="Flow threshold",
        description="Objects whose shape explains the flows worse than this are dropped; higher keeps more, 0 all.",
    )
    cellprob_threshold: float = Field(
        0.0,
        ge=-6,
        le=6,
        title="Cell probability",
        description="A pixel is in a nucleus when its log odds are above this; higher makes nuclei fewer and smaller.",
    )
    min_area: float = Field(
        0.08,
        ge=0,
        le=1,
        title="Smallest area",
        description="Smaller objects are dropped; part of the area of a disc of the nuclear diameter.",
    )
    precision: Precision | None = Field(
        None,
        title="Number type",
        description="bfloat16 or float32; when not given the one that is fast on the machine that surveys the slide.",
    )


class Cellpose:
    """Nuclei by Cellpose-SAM; see the module for how.

    Parameters
    ----------
    params : CellposeParams
        With ``diameter_um`` and ``precision`` given, or filled in by `survey`.
    """

    api: ClassVar[int] = 1
    Params: ClassVar[type[CellposeParams]] = CellposeParams
    needs: ClassVar[dict[str, str]] = {"cellpose": INSTALL, "torch": INSTALL}
    notice: ClassVar[str] = (
        "the weights of cellpose were trained on data under CC-BY-NC: they, and results made with them, are for "
        "non-commercial use"
    )

    def __init__(self, params: CellposeParams) -> None:
        self.params = params

    @property
    def weights_sha256(self) -> str:
        """Sum of the file of weights that is used.

        Raises
        ------
        MissingExtraError
            If cellpose is not installed.
        PluginError
            If the weights are missing, are not those asked for, or are no Cellpose-SAM.
        """
        return self._weights().sha256

    @property
    def halo_um(self) -> float:
        """How far from a crop's edge labels may differ from those of the whole slide, in um.

        Every square of 256 working pixels that sees the edge, and then one nucleus, whose pixels are gathered together.

        Raises
        ------
        InputError
            If the diameter is not known yet.
        """
        return (SQUARE / self.params.working_px + 1) * self._diameter_um()

    def memory_bytes(self, n_px: int, pixel_size_um: float) -> int:
        """Return the memory that a process needs for a crop of so many pixels, the network included."""
        scale = self.params.working_px * pixel_size_um / self._diameter_um()
        # While it is read; 1.8 times the file measured, 1.3 times in bfloat16.
        network = 2 * self._weights().path.stat().st_size
        return BASE_BYTES + network + int(n_px * (WORKING_PX_BYTES * scale**2 + CROP_PX_BYTES))

    def survey(self, samples: list[NDArray[np.float32]], pixel_size_um: float) -> CellposeParams:
        """Fill in the diameter, as the watershed finds it, the sum of the weights and the number type.

        Parameters
        ----------
        samples : list of (1, 1, y, x) float32
            Background 0, bright nuclei about 1.
        pixel_size_um : float

        Returns
        -------
        CellposeParams without None; a slide without objects gets a diameter of 8 um.
        """
        params = self.params
        found: dict[str, Any] = {"sha256": self.weights_sha256, "precision": params.precision or fast_precision()}
        if params.diameter_um is None:
            found["diameter_um"] = Watershed(Watershed.Params()).survey(samples, pixel_size_um).diameter_um
        return params.model_copy(update=found)

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
        MissingExtraError
            If cellpose is not installed.
        PluginError
            If the weights are missing or wrong, what they give is no number, or the graphics card is full.
        """
        diameter = diameter_px(self._diameter_um(), pixel_size_um)
        plane = plane_of(image)
        weights = self._weights()  # before the image is looked at: an empty tile must not hide that they are missing
        if not plane.size:
            return np.zeros((1, *plane.shape), dtype=np.uint32)
        network = network_of(weights, self.params.precision or fast_precision())
        return _labels(network, weights.path, plane, diameter, self.params)[np.newaxis]

    def _weights(self) -> Weights:
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise missing_package(package)
        return weights_of(self.params.model, self.params.sha256)

    def _diameter_um(self) -> float:
        if self.params.diameter_um is None:
            raise InputError(
                "Cellpose has no nuclear diameter yet.",
                "Give diameter_um, or use the parameters that survey() returns.",
            )
        return self.params.diameter_um


def _labels(
    network: Any, path: Path, plane: NDArray[np.float32], diameter: float, params: CellposeParams
) -> NDArray[np.uint32]:
    """Return the (y, x) labels of a plane; the diameter is in pixels."""
    import torch

    height, width = plane.shape
    least = max(LEAST_PX, math.ceil(2 * diameter / params.working_px))
    image = np.zeros((max(height, least), max(width, least), 3), dtype=np.float32)
    image[:height, :width, 0] = plane
    try:
        # Said outright, torch does not warn that it skips a check that cellpose's tensors need not pass; what is not
        # finite is refused below.
        with _LOCK, torch.sparse.check_sparse_tensor_invariants(enable=False), np.errstate(invalid="ignore"):
            masks, (_, _, log_odds), _ = network.eval(
                image,
                channel_axis=-1,
                # A dict: given False, cellpose changes its default for the whole process.
                normalize={"normalize": False},
                diameter=diameter * CELLPOSE_PX / params.working_px,
                flow_threshold=params.flow_threshold,
                cellprob_threshold=params.cellprob_threshold,
                min_size=-1,  # a number of pixels; of_size below drops small ones by their part of a nucleus
                max_size_fraction=1.0,  # a share of the crop would drop a nucleus in one crop and not in another
                batch_size=squares_at_once(),
                bsize=SQUARE,
                tile_overlap=OVERLAP,
                augment=False,
                resample=True,
                do_3D=False,
                stitch_threshold=0.0,
            )
    except torch.OutOfMemoryError as error:
        raise PluginError(
            f"The graphics card has no memory left for cellpose on a crop of {height} x {width} pixels.",
            "Run fewer --workers, or give a smaller core_px under [tiles] in the recipe.",
        ) from error
    if not np.isfinite(log_odds).all():
        raise PluginError(
            f"Cellpose with the weights '{path}' gives no numbers in {params.precision or 'its number type'}.",
            "Bring the file of weights again, or give precision = 'float32'.",
        )
    labels = np.ascontiguousarray(masks.reshape(image.shape[:2])[:height, :width], dtype=np.uint32)
    return of_size(labels, params.min_area * math.pi / 4 * diameter**2, np.inf)
