"""A positivity rule: how many times brighter than its surroundings a nucleus is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from histoquant.analysis.positivity import Scene


class LabRatio:
    """Positive when mean / local background is at or above the threshold, and the nucleus is large enough.

    A ratio does not depend on exposure, which helps where sessions differ; it needs a camera offset near 0.
    """

    api = 1

    class Params(BaseModel):
        """What a recipe may set."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        min_area_um2: float = Field(0.0, ge=0, description="Smaller objects are never positive.")

    def __init__(self, marker: str, channel: str, params: Params) -> None:
        self.marker, self.channel, self.params = marker, channel, params

    def value(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return mean / background of each nucleus, NaN where the background is not above 0."""
        mean = table[f"mean_{self.channel}"].to_numpy(np.float64)
        background = table[f"background_{self.channel}"].to_numpy(np.float64)
        ratio = np.full(len(table), np.nan)
        np.divide(mean, background, out=ratio, where=background > 0)
        return ratio

    def __call__(self, table: pd.DataFrame, scene: Scene) -> NDArray[np.bool_]:
        """Return which nuclei are positive."""
        large = table["area_um2"].to_numpy(np.float64) >= self.params.min_area_um2
        bright = self.value(table) >= scene.thresholds[self.marker].value
        return np.logical_and(bright, large)
