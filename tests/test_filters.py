"""Filters against scipy's, and the promise that a crop does not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from histoquant.analysis.filters import brushed, capped_distance, gauss, opened, without_holes

SHAPES = st.tuples(st.integers(1, 23), st.integers(1, 23))
IMAGES = arrays(np.float32, SHAPES, elements=st.floats(-100, 100, width=32))
MASKS = arrays(np.bool_, SHAPES)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(140, 171)).astype(np.float32)


@given(IMAGES, st.sampled_from([0.4, 0.8, 2.3, 9.0]))
@settings(max_examples=60, deadline=None)
def test_gauss_is_scipys_to_rounding(image, sigma):
    expected = ndimage.gaussian_filter(image.astype(np.float64), sigma, mode="nearest", truncate=3.0)
    np.testing.assert_allclose(gauss(image, sigma, 3.0), expected, atol=1e-4)


@given(IMAGES, st.sampled_from([1, 3, 5, 9, 17, 29]))
@settings(max_examples=60, deadline=None)
def test_opening_is_scipys_exactly(image, side):
    np.testing.assert_array_equal(opened(image, side), ndimage.grey_opening(image, size=(side, side), mode="nearest"))


def test_an_even_side_is_made_odd(noise):
    np.testing.assert_array_equal(opened(noise, 6), opened(noise, 7))


@given(MASKS, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_brush_is_scipys_exactly(mask, radius):
    expected = ndimage.binary_opening(mask, iterations=radius) if radius else mask
    np.testing.assert_array_equal(brushed(mask, radius), expected)


@given(MASKS, st.sampled_from([1.0, 2.5, 9.6]))
@settings(max_examples=80, deadline=None)
def test_distance_is_scipys_up_to_the_cap(mask, cap):
    # scipy says nothing useful of an image without any ground; here such a pixel is at the cap.
    expected = np.full(mask.shape, cap) if mask.all() else np.minimum(ndimage.distance_transform_edt(mask), cap)
    np.testing.assert_array_equal(capped_distance(mask, cap), expected.astype(np.float32))


@given(MASKS, st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_holes_by_their_extent(mask, extent):
    gaps, _ = ndimage.label(~mask)
    expected = mask.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(gaps), start=1):
        inner = rows.start > 0 and columns.start > 0 and rows.stop < mask.shape[0] and columns.stop < mask.shape[1]
        if inner and max(rows.stop - rows.start, columns.stop - columns.start) <= extent:
            expected |= gaps == number
    np.testing.assert_array_equal(without_holes(mask, extent), expected)


def test_a_field_of_many_holes_keeps_its_list():
    """More runs of ground than the list of runs begins with."""
    mask = np.ones((201, 201), dtype=bool)
    mask[1::2, 1::2] = False
    assert without_holes(mask, 1).all()
    assert not without_holes(mask, 0.5)[1::2, 1::2].any()


@pytest.mark.parametrize(
    ("name", "reach", "act"),
    [
        ("gauss", 7, lambda image: gauss(image, 2.3, 3.0)),
        ("opened", 26, lambda image: opened(image, 27)),
        ("distance", 10, lambda image: capped_distance(image > 0.3, 9.6)),
        ("brushed", 4, lambda image: brushed(image > -0.5, 2)),
    ],
)
def test_a_crop_gives_the_same_bits(noise, name, reach, act):
    whole = act(noise)
    inner = (slice(reach, -reach), slice(reach, -reach))
    for y, x in ((0, 0), (1, 3), (5, 8), (13, 2)):
        crop = act(np.ascontiguousarray(noise[y : y + 100, x : x + 101]))
        np.testing.assert_array_equal(crop[inner], whole[y : y + 100, x : x + 101][inner], err_msg=name)
    # The control: nearer to the edge than the reach the crop does show.
    assert not np.array_equal(act(np.ascontiguousarray(noise[5:105, 8:109])), whole[5:105, 8:109])
