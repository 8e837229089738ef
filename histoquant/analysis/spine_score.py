"""How sure a candidate is a spine: boosted trees whose numbers lie beside this file, in plain JSON.

They were fitted by ``workflows/train_spines/train.py``; its model card says on what, and how well they do elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoquant.analysis.paths import Points
from histoquant.analysis.spines import FEATURES
from histoquant.errors import FormatError

WEIGHTS = Path(__file__).with_name("spine_score.json")
WEIGHTS_SHA256 = "c985b46e96f84bf356e2e87e07caf2b14f445e40d4564c866e6efbad4a3c1ebc"


@dataclass(frozen=True, eq=False)
class Trees:
    """Boosted trees over `FEATURES`.

    Attributes
    ----------
    bias : float
        Log odds before the first tree.
    feature : (trees, nodes) int
        Which feature a node asks for; -1 at a leaf.
    threshold : (trees, nodes) float
        At most this goes to ``left``, more to ``right``; at a leaf, what it adds to the log odds.
    left, right : (trees, nodes) int
    """

    bias: float
    feature: NDArray[np.int64]
    threshold: Points
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    def __call__(self, features: Points) -> Points:
        """Return the probability that each candidate is a spine, (n,)."""
        odds = np.full(len(features), self.bias)
        rows = np.arange(len(features))
        for feature, threshold, left, right in zip(self.feature, self.threshold, self.left, self.right, strict=True):
            node = np.zeros(len(features), dtype=np.int64)
            while (inner := feature[node] >= 0).any():
                asked = features[rows, np.maximum(feature[node], 0)]
                step = np.where(asked <= threshold[node], left[node], right[node])
                node = np.where(inner, step, node)
            odds += threshold[node]
        return np.asarray(1 / (1 + np.exp(-odds)))


@cache
def scorer() -> Trees:
    """Return the trees that come with histoquant.

    Raises
    ------
    FormatError
        If the file is missing, damaged, or of other features.
    """
    try:
        content = WEIGHTS.read_bytes()
    except OSError as error:
        raise FormatError(f"'{WEIGHTS}' cannot be read ({error.strerror}).", "Install histoquant again.") from error
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise FormatError(f"'{WEIGHTS}' is not what histoquant came with.", "Install histoquant again.")
    told = json.loads(content)
    if tuple(told["features"]) != FEATURES:
        raise FormatError(f"'{WEIGHTS}' scores other features.", "Install histoquant again.")
    return Trees(
        float(told["bias"]),
        np.array(told["feature"], dtype=np.int64),
        np.array(told["threshold"], dtype=np.float64),
        np.array(told["left"], dtype=np.int64),
        np.array(told["right"], dtype=np.int64),
    )
