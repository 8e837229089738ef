"""What an overview shows: a control no brighter than what it controls."""

import numpy as np

from histoquant.model.recipe import parse_recipe
from histoquant.phantom import shipped_recipe
from histoquant.report.figures import _composite

PANEL = parse_recipe(shipped_recipe("tunel").read_text()).panel
CHANNELS = ("DAPI", "TUNEL", "AF")


def glow(tunel, thresholds):
    picture = np.zeros((3, 40, 40), np.float32)
    picture[1] = tunel
    return float(_composite(picture, PANEL, CHANNELS, thresholds)[..., :3].max())


def test_a_control_does_not_glow_like_a_stained_section():
    """It has as much light of its own, or more, and nothing above the threshold."""
    rng = np.random.default_rng(1)
    outside = np.zeros((40, 40), bool)
    outside[:, :8] = True
    stained = np.where(outside, 5, 100 + rng.normal(0, 1, (40, 40))).astype(np.float32)
    control = np.where(outside, 5, 160 + rng.normal(0, 1, (40, 40))).astype(np.float32)
    stained[10:20, 10:20] += 60
    assert glow(stained, {"tunel": 40.0}) > 2 * glow(control, {"tunel": 40.0})
    assert glow(control, {}) > 2 * glow(control, {"tunel": 40.0})


def test_thresholds_that_are_unknown_leave_the_picture_as_it_is():
    stained = 100 + np.arange(1600, dtype=np.float32).reshape(40, 40) / 40
    for value in (np.nan, np.inf, 0.0):
        assert glow(stained, {"tunel": value}) == glow(stained, {})
