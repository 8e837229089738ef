"""Agreement of raters, against published and hand-made values."""

import math

import numpy as np
import pytest

from histoquant.analysis.raters import bland_altman, consensus, cv_percent, icc
from histoquant.errors import InputError

# three raters of eight images, made up for the project's specification, where the values below are stated
A = [12, 25, 31, 8, 44, 19, 27, 36]
B = [14, 27, 30, 9, 47, 22, 25, 39]
C = [11, 24, 34, 7, 43, 18, 29, 35]
COUNTS = np.array([A, B, C]).T

# Shrout and Fleiss 1979, table 2: four judges of six targets, and their table 4
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


@pytest.mark.parametrize(("form", "value"), [("1,1", 0.97774), ("A,1", 0.97776), ("C,1", 0.97976)])
def test_the_stated_vectors(form, value):
    found = icc(COUNTS, form)
    assert found.value == pytest.approx(value, abs=5e-6)
    assert found.low < found.value < found.high <= 1
    assert (found.n_images, found.n_raters) == (8, 3)


@pytest.mark.parametrize(
    ("form", "value", "low", "high"),
    # intervals as the R package psych 2.3 prints them for this table
    [("1,1", 0.17, -0.13, 0.72), ("A,1", 0.29, 0.02, 0.76), ("C,1", 0.71, 0.34, 0.95)],
)
def test_shrout_and_fleiss(form, value, low, high):
    found = icc(SHROUT_FLEISS, form)
    assert [round(part, 2) for part in (found.value, found.low, found.high)] == [value, low, high]


def test_what_each_form_minds():
    base = np.array([5.0, 20, 30, 60])
    shifted = np.stack([base, base + 10], axis=1)
    assert icc(shifted, "C,1").value == 1
    assert icc(shifted, "A,1").value < 0.98
    assert icc(shifted, "1,1").value < icc(shifted, "C,1").value
    same = icc(np.stack([base, base], axis=1))
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_the_interval_covers_what_it_should():
    """True ICC 0.8 by construction: the 95 % interval covers it in 95 % of 400 draws, give or take 4 SD of 1.1 %."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        image, rater, rest = rng.normal(0, 2, (30, 1)), rng.normal(0, 0.5, (1, 6)), rng.normal(0, 0.75**0.5, (30, 6))
        found = icc(image + rater + rest)
        covered += found.low <= 0.8 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.045)


@pytest.mark.parametrize("counts", [[[1, 2]], [[1], [2]], np.full((4, 3), 7.0), np.zeros((3, 2))])
def test_what_is_not_defined_is_nan(counts):
    assert math.isnan(icc(np.array(counts, dtype=float)[:, :1]).value)
    for form in ("1,1", "A,1", "C,1"):
        found = icc(counts, form)
        assert math.isnan(found.value)
        assert math.isnan(found.low)


def test_bland_altman():
    found = bland_altman(A, B)
    assert found.n == 8
    assert found.bias == -1.375
    assert found.sd == pytest.approx(1.923, abs=5e-4)
    assert (found.low, found.high) == (pytest.approx(-5.143, abs=5e-4), pytest.approx(2.393, abs=5e-4))
    assert found.bias_percent == pytest.approx(100 * -1.375 / 25.9375)
    assert bland_altman(B, A).bias == 1.375
    assert math.isnan(bland_altman([], []).bias)
    assert bland_altman([3.0], [1.0]).bias == 2
    assert math.isnan(bland_altman([3.0], [1.0]).low)
    with pytest.raises(InputError, match="cannot be compared"):
        bland_altman(A, B[:-1])
    with pytest.raises(InputError, match="no full table"):
        icc([[1, 2], [3, math.nan]])


def test_cv():
    assert np.mean(cv_percent(COUNTS[:, :2])) == pytest.approx(6.63, abs=5e-3)  # of A and B, as the bias above
    assert np.isnan(cv_percent([[0, 0], [1, 3]])).tolist() == [True, False]


def test_consensus_is_what_most_marked():
    anna, ben, cleo = [[0, 0], [50, 50], [90, 90]], [[0, 2], [51, 50]], [[1, 1], [70, 70]]
    found = consensus([anna, ben, cleo], tolerance_um=4.0)
    assert found.tolist() == [[pytest.approx(1 / 3), 1.0], [50.5, 50.0]]
    assert len(consensus([anna, ben], tolerance_um=4.0)) == 2  # of two, both
    assert len(consensus([anna, [], []], tolerance_um=4.0)) == 0
    assert consensus([], tolerance_um=4.0).shape == (0, 2)
