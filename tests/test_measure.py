"""Features of a nucleus against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import ndimage

from histoquant.analysis.measure import (
    CORRELATION_SIGMA_UM,
    Pixels,
    local_background,
    marker_objects,
    measure_nuclei,
    ring_labels,
)
from histoquant.model.recipe import Measure
from histoquant.model.slide import Box

SETTINGS = Measure()


def pixels_of(raw, *, box=None, pixel_size_um=1.0, background=0.0):
    raw = np.asarray(raw)
    box = box or Box(0, raw.shape[1], 0, raw.shape[2])
    channels = [f"c{i}" for i in range(len(raw))]
    return Pixels(raw, channels, np.full(raw.shape, background, dtype=np.float32), box, pixel_size_um)


def measured(pixels, labels, *, mine=None, order_statistics=None, correlations=None, settings=SETTINGS):
    mine = np.ones(int(labels.max()), dtype=bool) if mine is None else mine
    return measure_nuclei(
        pixels,
        labels,
        mine,
        settings=settings,
        order_statistics=order_statistics or {},
        correlations=correlations or {},
    )


def test_a_square_by_hand():
    labels = np.zeros((9, 9), dtype=np.uint32)
    labels[3:5, 4:8] = 1
    raw = np.arange(81, dtype=np.uint16).reshape(1, 9, 9)
    row = measured(pixels_of(raw, box=Box(100, 109, 200, 209)), labels).iloc[0]
    assert row["area_px"] == 8
    assert (row["y_px"], row["x_px"]) == (100 + 4.0, 200 + 6.0)
    assert row["mean_c0"] == raw[0, 3:5, 4:8].mean()
    # A w x h rectangle has second moments w^2/12 and h^2/12: axes 4 sqrt of them.
    assert row["major_px"] == pytest.approx(4 * 4 / np.sqrt(12))
    assert row["minor_px"] == pytest.approx(4 * 2 / np.sqrt(12))


def test_the_share_of_pixels_above_a_threshold_is_the_order_statistic():
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 60), dtype=np.uint32)
    for index in range(9):
        side = 3 + index
        labels[20 * (index // 3) : 20 * (index // 3) + side, 20 * (index % 3) : 20 * (index % 3) + side] = index + 1
    raw = rng.integers(0, 50, (1, 60, 60)).astype(np.uint16)
    for fraction in (0.3, 0.5, 0.7, 1.0):
        table = measured(pixels_of(raw), labels, order_statistics={"q": (0, "nuclear", fraction)})
        for label, value, background in zip(table["label"], table["q"], table["background_c0"], strict=True):
            inside = raw[0][labels == label].astype(float)
            for threshold in range(-5, 60):
                share = np.mean(inside - background >= threshold)
                assert (share >= fraction - 1e-9) == (value >= threshold)


def test_rings_are_clipped_at_neighbours_and_have_the_right_width():
    labels = np.zeros((21, 21), dtype=np.uint32)
    labels[10, 5], labels[10, 9] = 1, 2
    rings = ring_labels(labels, 3.0)
    y, x = np.mgrid[:21, :21]
    to_first, to_second = np.hypot(y - 10, x - 5), np.hypot(y - 10, x - 9)
    nearest = np.minimum(to_first, to_second)
    assert ((rings > 0) == ((nearest <= 3) & (nearest > 0))).all()
    assert (rings[(to_first < to_second) & (rings > 0)] == 1).all()
    assert (rings[(to_second < to_first) & (rings > 0)] == 2).all()
    assert ring_labels(labels, 0.5).max() == 0


def test_ring_and_cell_means_by_hand():
    labels = np.zeros((15, 15), dtype=np.uint32)
    labels[6:9, 6:9] = 1
    raw = np.zeros((1, 15, 15), dtype=np.uint16)
    raw[0, 6:9, 6:9] = 90
    ring = ring_labels(labels, 2.0) == 1
    raw[0][ring] = 30
    row = measured(pixels_of(raw), labels).iloc[0]
    assert row["ring_mean_c0"] == 30
    assert row["cell_mean_c0"] == pytest.approx((9 * 90 + ring.sum() * 30) / (9 + ring.sum()))


def test_background_is_the_median_round_the_nucleus_without_other_nuclei():
    rng = np.random.default_rng(1)
    raw = rng.normal(100, 2, (1, 81, 81)).astype(np.float32)
    labels = np.zeros((81, 81), dtype=np.uint32)
    labels[38:43, 38:43] = 1
    labels[15:30, 10:70] = 2
    raw[0][labels > 0] = 5000
    found = local_background(pixels_of(raw), labels, np.array([40.5]), np.array([40.5]), settings=SETTINGS)
    assert found[0, 0] == pytest.approx(100, abs=0.5)


def test_without_free_ground_the_slide_wide_background_is_used():
    labels = np.full((81, 81), 2, dtype=np.uint32)
    labels[38:43, 38:43] = 1
    pixels = pixels_of(np.full((1, 81, 81), 500, dtype=np.uint16), background=77.0)
    assert local_background(pixels, labels, np.array([40.5]), np.array([40.5]), settings=SETTINGS)[0, 0] == 77


def test_half_the_pixel_size_gives_the_same_um():
    labels = np.zeros((80, 80), dtype=np.uint32)
    labels[30:44, 30:50] = 1
    raw = np.random.default_rng(2).integers(0, 1000, (1, 80, 80)).astype(np.uint16)
    coarse = measured(pixels_of(raw, pixel_size_um=1.0), labels).iloc[0]
    fine_raw, fine_labels = raw.repeat(2, 1).repeat(2, 2), labels.repeat(2, 0).repeat(2, 1)
    fine = measured(pixels_of(fine_raw, pixel_size_um=0.5), fine_labels).iloc[0]
    assert fine["area_px"] * 0.25 == coarse["area_px"]
    assert fine["mean_c0"] == coarse["mean_c0"]
    assert fine["major_px"] * 0.5 == pytest.approx(coarse["major_px"], rel=0.01)
    # The 2 um ring is 2 px or 4 px wide; its outline is a circle of whole pixels either way.
    assert fine["ring_mean_c0"] == pytest.approx(coarse["ring_mean_c0"], rel=0.1)


def test_only_what_is_mine_is_measured_but_everything_bounds_the_ring():
    labels = np.zeros((20, 20), dtype=np.uint32)
    labels[8:12, 4:8], labels[8:12, 9:13] = 1, 2
    raw = np.random.default_rng(3).integers(0, 9, (1, 20, 20)).astype(np.uint16)
    both = measured(pixels_of(raw), labels)
    first = measured(pixels_of(raw), labels, mine=np.array([True, False]))
    assert first.equals(both.iloc[:1])


def test_correlation_by_numpy():
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 1000, (2, 12, 12)).astype(np.uint16)
    labels = np.zeros((12, 12), dtype=np.uint32)
    labels[2:9, 3:10] = 1
    found = measured(pixels_of(raw), labels, correlations={"r": (0, 1)})["r"].iloc[0]
    cell = np.maximum(labels, ring_labels(labels, SETTINGS.ring_um)) == 1
    smooth = [ndimage.gaussian_filter(plane.astype(float), CORRELATION_SIGMA_UM, truncate=3.0) for plane in raw]
    assert found == pytest.approx(np.corrcoef(smooth[0][cell], smooth[1][cell])[0, 1])


def test_an_image_without_objects_has_a_table_without_rows():
    table = measured(
        pixels_of(np.zeros((2, 8, 8), dtype=np.uint8)),
        np.zeros((8, 8), dtype=np.uint32),
        order_statistics={"q": (0, "cytoplasmic", 0.4)},
        correlations={"r": (0, 1)},
    )
    assert len(table) == 0
    assert {"mean_c0", "ring_mean_c1", "background_c0", "q", "r"} <= set(table.columns)


def test_marker_objects_are_attached_within_2_um_and_left_alone_beyond():
    labels = np.zeros((60, 60), dtype=np.uint32)
    labels[10:20, 10:20] = 1
    raw = np.zeros((3, 60, 60), dtype=np.uint16)
    raw[2, 12:15, 21:24] = 50  # with DNA
    raw[0, 12:15, 21:24] = 100  # 2 px from the nucleus
    raw[0, 40:43, 40:44] = 80  # far from any
    raw[1, 40:43, 40:44] = 60  # and it shines in the unstained channel too
    raw[0, 50, 50] = 200  # a speck
    raw[0, 30, 20:45] = 200  # a fold, 25 um long
    raw[0, 13:17, 13:17] = 90  # on the nucleus
    found, image = marker_objects(
        pixels_of(raw),
        labels,
        channel=0,
        counterstain=2,
        unstained=(1,),
        floor=20.0,
        max_object_um=20.0,
        settings=SETTINGS,
    )
    assert (image[12:15, 21:24] == 1).all()
    assert (image[40:43, 40:44] == 2).all()
    assert np.count_nonzero(image) == 21
    assert found["dna_value"].tolist() == [50, 0]
    assert found["correlation"].iloc[1] == pytest.approx(1.0)
    assert found["attached_label"].tolist() == [1, 0]
    assert found["value"].tolist() == [100, 80]
    assert found["area_px"].tolist() == [9, 12]
    assert found["y_px"].tolist() == [13.5, 41.5]
    assert found["unstained_value"].tolist() == [0, 60]
