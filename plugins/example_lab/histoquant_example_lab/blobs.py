"""A segmenter: whatever is bright and hangs together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabBlobs:
    """Connected regions of the first channel at or above a threshold, within two diameters."""

    api = 1

    class Params(BaseModel):
        """What a recipe may set."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        threshold: float = Field(0.5, gt=0, description="Background is 0, bright nuclei are about 1.")
        min_diameter_um: float = Field(3.0, ge=0, description="What is smaller is dust.")
        max_diameter_um: float = Field(25.0, gt=0, description="What is larger is a clump or a fold.")

        @model_validator(mode="after")
        def _in_order(self) -> LabBlobs.Params:
            if self.min_diameter_um > self.max_diameter_um:
                raise ValueError("min_diameter_um is larger than max_diameter_um")
            return self

    def __init__(self, params: Params) -> None:
        self.params = params

    @property
    def halo_um(self) -> float:
        """The largest object that is kept, and therefore enough.

        An object whose centroid is in a tile's core and that is cut by the tile's edge reaches over the whole
        halo, is larger than ``max_diameter_um``, and is left out there as it is in the whole image.
        """
        return self.params.max_diameter_um

    def __call__(self, image: NDArray[np.float32], pixel_size_um: float) -> NDArray[np.uint32]:
        """Return labels (z, y, x), 0 = background; a diameter is the longer side of the box in y, x."""
        labels: NDArray[np.int32]
        labels, _ = ndimage.label(image[0] >= self.params.threshold)
        keep = np.zeros(labels.max(initial=0) + 1, dtype=np.uint32)
        for number, (_, rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            diameter_um = max(rows.stop - rows.start, columns.stop - columns.start) * pixel_size_um
            if self.params.min_diameter_um <= diameter_um <= self.params.max_diameter_um:
                keep[number] = number
        return keep[labels]
