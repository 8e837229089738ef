import itertools
import math

import numpy as np
import pytest

from histoquant.analysis.agreement import Score, match_points, pool, score_labels
from histoquant.errors import InputError


def discs(centres, radius, shape, dtype=np.uint32):
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, dtype=dtype)
    for number, (y, x) in enumerate(centres, start=1):
        labels[np.hypot(rows - y, columns - x) <= radius] = number
    return labels


@pytest.fixture
def truth():
    return discs([(10, 10), (10, 40), (40, 10), (40, 40)], 6, (50, 50))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.uint64])
def test_identical_labels_match_completely_whatever_their_ids(truth, dtype):
    renamed = np.array([0, 40, 7, 200, 99], dtype=dtype)[truth]
    [score] = score_labels(renamed, truth, iou=(1.0,))
    assert (score.tp, score.fp, score.fn) == (4, 0, 0)
    assert score.f1 == score.ap == score.panoptic_quality == score.segmentation_quality == 1


def test_ids_far_apart_are_looked_up_by_sorting(truth):
    scattered = np.array([0, 3, 4_000_000_000, 17, 4_294_967_295], dtype=np.uint32)[truth]
    [score] = score_labels(scattered, truth)
    assert (score.n_pred, score.tp) == (4, 4)


def test_known_counts_and_ratios():
    truth = np.zeros((10, 30), dtype=np.uint16)
    truth[:, :8], truth[:, 10:18], truth[:, 20:28] = 1, 2, 3
    labels = np.zeros_like(truth)
    labels[:, :6] = 5  # IoU 6/8
    labels[:, 10:13] = 6  # IoU 3/8
    labels[0, 29] = 7  # nothing there
    low, half = score_labels(labels, truth, iou=(0.3, 0.5))
    assert (half.n_pred, half.n_true, half.tp, half.fp, half.fn) == (3, 3, 1, 2, 2)
    assert half.precision == half.recall == half.f1 == pytest.approx(1 / 3)
    assert half.ap == pytest.approx(1 / 5)
    assert half.panoptic_quality == pytest.approx(0.75 / 3)
    assert half.panoptic_quality == pytest.approx(half.segmentation_quality * half.f1)
    assert (low.tp, low.iou_sum) == (2, pytest.approx(0.75 + 0.375))


def test_one_object_over_two_counts_once(truth):
    merged = np.where(np.isin(truth, (1, 2)), 1, truth)
    [score] = score_labels(merged, truth, iou=(0.2,))
    assert (score.n_pred, score.n_true, score.tp) == (3, 4, 3)


def test_below_half_the_assignment_has_most_matches():
    # The first prediction overlaps both truths, and the first truth best; taking its best leaves the other two
    # without partners.
    truth = np.array([[1] * 6 + [2] * 5 + [0] * 5])
    labels = np.array([[8] * 2 + [9] * 9 + [0] * 5])
    [score] = score_labels(labels, truth, iou=(0.3,))
    assert score.tp == 2
    assert score.iou_sum == pytest.approx(2 / 6 + 5 / 9)


def test_assignment_equals_exhaustive_search():
    rng = np.random.default_rng(4)
    for _ in range(20):
        truth, labels = (rng.integers(0, 5, (6, 6)) for _ in range(2))
        best = (0, 0.0)
        ids, true_ids = np.unique(labels[labels > 0]), np.unique(truth[truth > 0])
        for chosen in itertools.permutations([*true_ids, *[-1] * len(ids)], len(ids)):
            values = [
                np.sum((labels == a) & (truth == b)) / np.sum((labels == a) | (truth == b))
                for a, b in zip(ids, chosen, strict=True)
            ]
            kept = [value for value in values if value >= 0.1]
            best = max(best, (len(kept), round(sum(kept), 9)))
        [score] = score_labels(labels, truth, iou=(0.1,))
        assert (score.tp, round(score.iou_sum, 9)) == best


def test_empty_images():
    nothing, something = np.zeros((5, 5), dtype=np.uint32), np.eye(5, dtype=np.uint32)
    [both], [invented], [missed] = (
        score_labels(*pair) for pair in ((nothing, nothing), (something, nothing), (nothing, something))
    )
    assert math.isnan(both.f1)
    assert math.isnan(both.precision)
    assert (invented.f1, invented.fp, missed.f1, missed.fn) == (0, 1, 0, 1)
    assert pool([both, invented]).mean["f1"] == 0  # the empty image is left out, not counted as 1
    assert math.isnan(pool([both]).mean["f1"])
    assert score_labels(np.zeros((0, 4), int), np.zeros((0, 4), int))[0].n_true == 0


def test_pool_sums_objects_and_averages_images():
    crowded, lonely = Score(0.5, 99, 99, 99, 90.0), Score(0.5, 1, 1, 0, 0.0)
    together = pool([crowded, lonely])
    assert together.pooled.f1 == 0.99
    assert together.mean["f1"] == 0.5
    assert together.n_images == 2


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.full((4, 4), -1), "negative"),
        (np.zeros((4, 4), dtype=bool), "bool"),
        (np.zeros((4, 5), dtype=int), "pixels"),
    ],
)
def test_what_is_no_label_image_of_the_same_picture_is_refused(labels, reason):
    with pytest.raises(InputError, match=reason):
        score_labels(labels, np.zeros((4, 4), dtype=np.uint32))


def test_thresholds_out_of_range_and_mixed_ones_are_refused(truth):
    for threshold in (0, 1.1):
        with pytest.raises(InputError, match="IoU"):
            score_labels(truth, truth, iou=(threshold,))
    with pytest.raises(InputError, match="pooled"):
        pool(score_labels(truth, truth, iou=(0.5, 0.7)))
    with pytest.raises(InputError, match="pooled"):
        pool([])


def test_tens_of_thousands_of_objects():
    side = 270
    truth = np.kron(np.arange(1, side**2 + 1, dtype=np.uint32).reshape(side, side), np.ones((6, 6), np.uint32))
    [score] = score_labels(np.roll(truth, 1, axis=1), truth, iou=(0.5,))
    # Shifted by 1 of 6 columns, IoU = 5/7; the first of each row lost its pixels to the row above it.
    assert (score.n_true, score.tp) == (side**2, side**2)
    assert score.segmentation_quality == pytest.approx(5 / 7)


def test_points_are_matched_one_to_one_within_the_tolerance():
    true = [(0.0, 0.0), (0.0, 10.0), (50.0, 50.0)]
    found = [(0.0, 3.0), (0.0, 1.0), (0.0, 14.5)]
    match = match_points(found, true, tolerance_um=4.0)
    assert match.pairs.tolist() == [[1, 0]]  # 3 um is near enough, but the place is taken; 4.5 um is too far
    assert match.distance_um.tolist() == [1.0]
    assert (match.precision, match.recall, match.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_points_prefer_most_pairs_then_shortest():
    # 0 - 3 - 6 - 9: matching the two in the middle would leave the outer ones alone.
    match = match_points([(0.0, 0.0), (6.0, 0.0)], [(3.5, 0.0), (9.5, 0.0)], tolerance_um=4.0)
    assert match.pairs.tolist() == [[0, 0], [1, 1]]


def test_points_at_the_tolerance_count_and_beyond_do_not():
    assert match_points([(0, 0)], [(0, 4.0)], tolerance_um=4.0).tp == 1
    assert match_points([(0, 0)], [(0, 4.001)], tolerance_um=4.0).tp == 0
    assert match_points([(1, 2)], [(1, 2)], tolerance_um=0).tp == 1


def test_no_points():
    neither, missed = match_points([], []), match_points([], [(1, 1)])
    assert math.isnan(neither.f1)
    assert (missed.recall, missed.f1, missed.tp) == (0, 0, 0)
    assert missed.pairs.shape == (0, 2)


def test_many_crowded_points_recover_their_partners():
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2) * 8.0
    order = rng.permutation(len(grid))
    found = (grid + rng.uniform(-1, 1, grid.shape))[order]
    match = match_points(found, grid, tolerance_um=9.0)  # each point sees several candidates
    assert match.tp == len(grid)
    assert np.array_equal(match.pairs[:, 1], order)


@pytest.mark.parametrize(
    ("found", "tolerance", "reason"),
    [([(0, np.nan)], 4, "finite"), ([(0, 0)], -1, "tolerance"), ([(0, 0, 0)], 4, "shapes"), ([1.0, 2.0], 4, "shapes")],
)
def test_points_that_cannot_be_matched_are_refused(found, tolerance, reason):
    with pytest.raises(InputError, match=reason):
        match_points(found, [(0, 0)], tolerance_um=tolerance)
