"""Features of a nucleus against numbers worked out by hand, and against slow and plain definitions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from histoquant.analysis import measure
from histoquant.analysis.background import Background
from histoquant.analysis.compartments import Compartment, compartment, nearest_labels, rings
from histoquant.analysis.correlation import CORRELATION_SIGMA_UM
from histoquant.analysis.marker_objects import marker_objects, touching
from histoquant.analysis.measure import ANNULUS_SAMPLES, Pixels, local_background, measure_nuclei
from histoquant.analysis.tiles import canonical
from histoquant.errors import InputError
from histoquant.model.recipe import Measure
from histoquant.model.slide import Box

SETTINGS = Measure()


def pixels_of(raw, *, box=None, pixel_size_um=1.0, background=0.0):
    raw = np.asarray(raw)
    box = box or Box(0, raw.shape[1], 0, raw.shape[2])
    channels = [f"c{i}" for i in range(len(raw))]
    grid, each = np.full((len(raw), 2, 2), background, dtype=np.float32), np.ones(len(raw), dtype=np.float32)
    return Pixels(raw, channels, Background(grid, 40.0, each, each), box, pixel_size_um)


def measured(pixels, labels, *, mine=None, order_statistics=None, correlations=None, how=SETTINGS):
    mine = np.ones(int(labels.max()), dtype=bool) if mine is None else mine
    return measure_nuclei(
        pixels,
        labels,
        mine,
        settings=how,
        order_statistics=order_statistics or {},
        correlations=correlations or {},
    )


def ring_labels(labels, width_px):
    """Paint the rings of all objects into an image."""
    objects = compartment(labels, np.ones(int(labels.max()), dtype=bool))
    image = np.zeros_like(labels)
    ring = rings(labels, objects, width_px)
    image.ravel()[ring.flat] = ring.owners() + 1
    return image


def slow_nearest(labels, width_px):
    """Look, for every pixel, at every labelled one; the first in order of distance, rows and columns wins."""
    there = np.argwhere(labels > 0)
    nearest = np.zeros_like(labels)
    if len(there):
        for pixel in np.ndindex(labels.shape):
            y, x = (np.array(pixel) - there).T
            squared = y * y + x * x
            first = np.argmin((squared * 1000 + y) * 1000 + x)
            if squared[first] <= width_px * width_px:
                nearest[pixel] = labels[tuple(there[first])]
    return nearest


def nuclei(side, *, dtype=np.uint16, seed=0, channels=3):
    """Make a crowded field of blobs, some touching and some at the edge, on a noisy ground."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2.5)
    labels, _ = ndimage.label(field > 0.08)
    halves = 2 * labels + (np.arange(side) // 8 % 2) * (labels > 0)
    raw = rng.integers(20, 60, (channels, side, side)) + (labels > 0) * rng.integers(0, 150, (channels, side, side))
    return canonical(halves), raw.astype(dtype)


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


LABELS = hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 3))
SPARSE = st.tuples(LABELS, st.integers(0, 2**32 - 1)).map(
    lambda drawn: canonical(np.where(np.random.default_rng(drawn[1]).random(drawn[0].shape) < 0.15, drawn[0], 0))
)


@settings(deadline=None, max_examples=150)
@given(labels=st.one_of(LABELS.map(canonical), SPARSE), width_px=st.floats(0.0, 7.0))
def test_rings_are_what_a_look_at_every_pixel_gives(labels, width_px):
    expected = slow_nearest(labels, width_px)
    assert np.array_equal(ring_labels(labels, width_px), np.where(labels == 0, expected, 0))
    everywhere = compartment(np.ones_like(labels), np.array([True]))
    assert np.array_equal(nearest_labels(labels, everywhere, width_px), expected.ravel())


def test_ties_go_down_then_right():
    """The control of the test above: the order of ways matters, and is this one."""
    labels = np.zeros((5, 5), dtype=np.uint32)
    labels[0, 2], labels[2, 0], labels[2, 4], labels[4, 2] = 1, 2, 3, 4
    assert ring_labels(labels, 2.0)[2, 2] == 4
    labels[4, 2] = 0
    assert ring_labels(labels, 2.0)[2, 2] == 3
    labels[2, 4] = 0
    assert ring_labels(labels, 2.0)[2, 2] == 2


def test_a_wide_ring_is_right_too():
    labels = np.zeros((70, 70), dtype=np.uint32)
    labels[30:33, 5:8], labels[50, 60] = 1, 2
    assert np.array_equal(ring_labels(labels, 40.0), np.where(labels == 0, slow_nearest(labels, 40.0), 0))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_every_feature_by_plain_numpy(dtype, seed):
    labels, raw = nuclei(70, dtype=dtype, seed=seed)
    assert labels.max() > 20
    how = Measure(background_inner_um=6, background_outer_um=14)
    pixels = pixels_of(raw, box=Box(31, 101, 57, 127), background=33.0)
    table = measured(
        pixels,
        labels,
        order_statistics={"q": (1, "nuclear", 0.4), "p": (2, "cytoplasmic", 0.25)},
        correlations={"r": (0, 2)},
        how=how,
    )
    ring_of, values = slow_nearest(labels, how.ring_um), raw.astype(np.float64)
    smooth = [ndimage.gaussian_filter(plane.astype(np.float64), CORRELATION_SIGMA_UM, truncate=3.0) for plane in values]
    step = max(1, int(np.sqrt(np.pi * (14**2 - 6**2) / ANNULUS_SAMPLES)))
    around = [
        (y, x)
        for y in range(-14, 15)
        for x in range(-14, 15)
        if y % step == 0 == x % step and 6**2 <= y * y + x * x <= 14**2
    ]
    assert table["label"].tolist() == list(range(1, labels.max() + 1))
    fallbacks = 0
    for row in table.itertuples():
        nucleus, cell = labels == row.label, ring_of == row.label
        ring = cell & ~nucleus
        y, x = np.nonzero(nucleus)
        assert row.area_px == len(y)
        # Sums of the slide's coordinates, not of the crop's.
        assert (row.y_px, row.x_px) == ((y + 31).sum() / len(y) + 0.5, (x + 57).sum() / len(x) + 0.5)
        second = np.cov(np.stack([y, x]), bias=True) + np.eye(2) / 12
        minor, major = 4 * np.sqrt(np.linalg.eigvalsh(second))
        assert (row.major_px, row.minor_px) == pytest.approx((major, minor))

        points = [(int(row.y_px) - 31 + dy, int(row.x_px) - 57 + dx) for dy, dx in around]
        free = [p for p in points if 0 <= p[0] < 70 and 0 <= p[1] < 70 and labels[p] == 0]
        fallbacks += len(free) < 16
        background = [np.median([plane[p] for p in free]) if len(free) >= 16 else 33.0 for plane in values]
        for c, plane in enumerate(values):
            # Sums of whole numbers are exact, and the inputs are whole in every type.
            assert getattr(row, f"mean_c{c}") == plane[nucleus].sum() / nucleus.sum()
            assert getattr(row, f"cell_mean_c{c}") == plane[cell].sum() / cell.sum()
            assert getattr(row, f"background_c{c}") == background[c]
            if ring.any():
                assert getattr(row, f"ring_mean_c{c}") == plane[ring].sum() / ring.sum()
            else:
                assert np.isnan(getattr(row, f"ring_mean_c{c}"))
        largest = np.sort(values[1][nucleus])[::-1]
        assert row.q == largest[max(1, int(np.ceil(0.4 * len(y) - 1e-9))) - 1] - background[1]
        if ring.any():
            largest = np.sort(values[2][ring])[::-1]
            assert row.p == largest[max(1, int(np.ceil(0.25 * ring.sum() - 1e-9))) - 1] - background[2]
        assert row.r == pytest.approx(np.corrcoef(smooth[0][cell], smooth[2][cell])[0, 1], nan_ok=True, abs=1e-9)
    assert 0 <= fallbacks < len(table)


@settings(deadline=None, max_examples=100)
@given(
    values=hnp.arrays(np.int16, st.integers(1, 60), elements=st.integers(-5, 5) | st.integers(-(2**15), 2**15 - 1)),
    fraction=st.floats(0.01, 1.0),
)
def test_selection_is_sorting(values, fraction):
    labels = np.ones((1, len(values)), dtype=np.uint32)
    table = measured(pixels_of(values[None, None]), labels, order_statistics={"q": (0, "nuclear", fraction)})
    needed = max(1, int(np.ceil(fraction * len(values) - 1e-9)))
    assert table["q"][0] == np.sort(values)[len(values) - needed]


def test_a_black_channel_correlates_with_nothing():
    labels, raw = nuclei(40)
    raw[2] = 0
    assert measured(pixels_of(raw), labels, correlations={"r": (0, 2)})["r"].isna().all()


@pytest.mark.parametrize("corner", [(0, 0), (1, 3), (17, 8)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_row_is_the_same_bytes_in_every_crop(corner, dtype):
    """Floats with a fraction: their sums would show another order of adding."""
    labels, raw = nuclei(150, seed=3)
    raw = (raw * 1.37).astype(dtype)
    wanted = {"order_statistics": {"q": (1, "nuclear", 0.4)}, "correlations": {"r": (0, 2)}}
    whole = measured(pixels_of(raw), labels, **wanted)
    inner = whole[(whole["y_px"] - 75).abs().lt(20) & (whole["x_px"] - 75).abs().lt(20)].drop(columns="label")
    y0, x0 = corner
    part, box = labels[y0:140, x0:145], Box(y0, 140, x0, 145)
    cropped = measured(pixels_of(raw[:, y0:140, x0:145], box=box), canonical(part), **wanted)
    found = cropped.merge(inner[["y_px", "x_px", "area_px"]], on=["y_px", "x_px", "area_px"]).drop(columns="label")
    assert len(found) == len(inner) > 10
    pd.testing.assert_frame_equal(
        found.sort_values(["y_px", "x_px"], ignore_index=True),
        inner.sort_values(["y_px", "x_px"], ignore_index=True),
        check_exact=True,
    )


def test_how_many_nuclei_are_measured_at_once_does_not_matter(monkeypatch):
    labels, raw = nuclei(90)
    wanted = {"order_statistics": {"q": (1, "cytoplasmic", 0.4)}, "correlations": {"r": (0, 2)}}
    at_once = measured(pixels_of(raw), labels, **wanted)
    monkeypatch.setattr(measure, "NUCLEI_AT_ONCE", 7)
    assert len(at_once) > 21
    pd.testing.assert_frame_equal(measured(pixels_of(raw), labels, **wanted), at_once, check_exact=True)


@pytest.mark.parametrize(
    "other",
    [
        lambda raw: raw.astype(">u2"),
        lambda raw: raw.astype(np.float16),
        lambda raw: raw.astype(np.int64),
        lambda raw: np.asfortranarray(raw),
        lambda raw: raw.repeat(2, axis=2)[:, :, ::2],
    ],
)
def test_the_way_pixels_are_kept_does_not_matter(other):
    labels, raw = nuclei(40)
    wanted = {"order_statistics": {"q": (1, "nuclear", 0.4)}, "correlations": {"r": (0, 2)}}
    pd.testing.assert_frame_equal(
        measured(pixels_of(other(raw)), labels, **wanted), measured(pixels_of(raw), labels, **wanted)
    )


def test_a_mask_is_a_channel():
    labels, raw = nuclei(40)
    means = measured(pixels_of(raw > 50), labels)["mean_c1"]
    assert means.tolist() == [np.mean(raw[1][labels == label] > 50) for label in range(1, labels.max() + 1)]


@pytest.mark.parametrize("mine", [[True], [True, True, True]])
def test_labels_that_do_not_fit_the_list_of_objects_are_refused(mine):
    """Compiled loops do not look where they write."""
    labels = np.array([[1, 0, 2]], dtype=np.uint32)
    with pytest.raises(InputError, match=r"Label 2 in an image of 1|Object 3 has no pixel"):
        measured(pixels_of(np.zeros((1, 1, 3), dtype=np.uint8)), labels, mine=np.array(mine))


@settings(deadline=None, max_examples=150)
@given(image=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 3)))
def test_touching_pixels_are_grouped_as_a_library_groups_them(image):
    expected, n = ndimage.label(image >= 2, structure=np.ones((3, 3)))
    found = touching(image, lambda rows: np.full(image[rows].shape, 0.5, dtype=np.float32), 1.5)
    painted = np.zeros(image.shape, dtype=int)
    painted.ravel()[found.flat] = found.owners() + 1
    assert len(found) == n
    assert np.array_equal(painted, expected)
    boxes = [[y.start, y.stop, x.start, x.stop] for y, x in ndimage.find_objects(expected)]
    assert found.boxes.tolist() == boxes
    assert all(
        (np.diff(found.flat[a:b].astype(int)) > 0).all() for a, b in zip(found.starts, found.starts[1:], strict=False)
    )


def test_bodies_are_measured_like_nuclei_and_attached_to_what_most_pixels_are_near():
    labels, raw = nuclei(120, seed=5)
    rng = np.random.default_rng(5)
    for y, x in rng.integers(5, 110, (60, 2)):
        raw[1, y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = 400
    how = Measure(min_object_um2=2.0)
    found, image = marker_objects(
        pixels_of(raw, background=30.25),
        labels,
        channel=1,
        counterstain=0,
        unstained=(2, 0),
        floor=250.0,
        max_object_um=9.0,
        settings=how,
    )
    assert len(found) > 15
    assert 0 < (found["attached_label"] > 0).sum() < len(found)
    near = slow_nearest(labels, how.attach_um)
    around = slow_nearest(image, how.ring_um)
    smooth = [ndimage.gaussian_filter(plane.astype(np.float64), CORRELATION_SIGMA_UM, truncate=3.0) for plane in raw]
    for number, row in enumerate(found.itertuples(), 1):
        body = image == number
        assert 2 <= row.area_px == body.sum()
        assert (labels[body] > 0).mean() <= 0.5
        votes = np.bincount(near[body], minlength=2)[1:]
        assert row.attached_label == (len(votes) - np.argmax(votes[::-1]) if votes.any() else 0)
        assert row.value == (raw[1][body] - 30.25).mean()
        assert row.dna_value == (raw[0][body] - 30.25).mean()
        assert row.unstained_value == pytest.approx(max(raw[c][body].mean() for c in (0, 2)) - 30.25)
        r = [np.corrcoef(smooth[1][around == number], smooth[c][around == number])[0, 1] for c in (0, 2)]
        assert row.correlation == pytest.approx(max(r))


def test_a_marker_without_objects_has_a_table_without_rows():
    labels, raw = nuclei(40)
    found, image = marker_objects(
        pixels_of(raw),
        labels,
        channel=1,
        counterstain=0,
        unstained=(2,),
        floor=1e6,
        max_object_um=9.0,
        settings=SETTINGS,
    )
    assert len(found) == 0
    assert not image.any()


def test_a_list_of_pixels_by_hand():
    labels = np.array([[0, 2, 2], [1, 2, 0], [1, 0, 3]], dtype=np.uint32)
    listed = compartment(labels, np.array([True, True, False]))
    assert isinstance(listed, Compartment)
    assert listed.flat.tolist() == [3, 6, 1, 2, 4]
    assert listed.starts.tolist() == [0, 2, 5]
    assert listed.boxes.tolist() == [[1, 3, 0, 1], [0, 2, 1, 3]]
    assert listed.part(slice(1, 5)).flat.tolist() == listed.kept(np.array([False, True])).flat.tolist() == [1, 2, 4]
    assert listed.total(np.arange(9).reshape(3, 3)).tolist() == [9, 7]
