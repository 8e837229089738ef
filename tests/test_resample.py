from fractions import Fraction

import numpy as np
import pytest

from histoquant.analysis.resample import labels_at, resampled


def test_scale_1_changes_nothing_and_goes_on_by_reflection():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(resampled(image, Fraction(1), (3, 4)), image)
    assert np.array_equal(resampled(image, Fraction(1), (5, 7)), np.pad(image, ((0, 2), (0, 3)), mode="reflect"))


@pytest.mark.parametrize("scale", [Fraction(n, 70) for n in (16, 35, 57, 70, 119, 210)])
def test_an_even_image_stays_even_and_a_slope_stays_where_it_is(scale):
    shape = (int(40 * scale), int(50 * scale))
    assert resampled(np.full((40, 50), 3.5, np.float32), scale, shape) == pytest.approx(3.5)
    slope = np.tile(np.arange(50, dtype=np.float32), (40, 1))
    inner = slice(int(6 * scale) + 2, -int(6 * scale) - 2)  # away from the edges, where it is folded back
    expected = (np.arange(shape[1]) + 0.5) / float(scale) - 0.5
    assert resampled(slope, scale, shape)[:, inner].mean(axis=0) == pytest.approx(
        expected[inner], abs=0.1
    )  # a triangle of broken width is off by that


def test_shrinking_averages():
    """A checkerboard shrunk by half is grey; single pixels, as picked by interpolation alone, would be 0 and 1."""
    board = np.indices((40, 40)).sum(axis=0).astype(np.float32) % 2
    assert resampled(board, Fraction(1, 2), (20, 20))[1:-1, 1:-1] == pytest.approx(0.5)
    assert board[::2, ::2].std() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)])
def test_tiny_images(shape):
    image = np.ones(shape, np.float32)
    assert resampled(image, Fraction(16, 23), (16, 16)) == pytest.approx(1)
    assert np.array_equal(labels_at(np.ones(shape, np.uint32), image, 0.5, Fraction(16, 23), (4, 5)), np.ones((4, 5)))


def test_labels_come_back_to_the_pixels_they_were_made_from():
    rows, columns = np.indices((60, 60))
    discs = [(20, 20, 9, 7), (40, 38, 12, 4_000_000_000)]
    truth, image = np.zeros((60, 60), np.uint32), np.zeros((60, 60), np.float32)
    for y, x, radius, label in discs:
        inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        truth[inside], image[inside] = label, 1
    for scale in (Fraction(3, 5), Fraction(1), Fraction(7, 5)):
        shape = (int(60 * scale), int(60 * scale))
        level = resampled(image, scale, shape)
        small = np.zeros(shape, np.uint32)
        for y, x, _, label in discs:
            y_at, x_at = (np.indices(shape) + 0.5) / float(scale) - 0.5
            small[(level > 0.2) & (np.hypot(y_at - y, x_at - x) < 14)] = label
        back = labels_at(small, level, 0.5, scale, (60, 60))
        assert set(np.unique(back)) == {0, 7, 4_000_000_000}
        assert (back != truth).mean() < (0.02 if scale < 1 else 0.01)
    assert np.array_equal(labels_at(truth, image, 0.5, Fraction(1), (60, 60)), truth)


@pytest.mark.parametrize("cell_px", [7, 17, 40])
def test_crops_on_one_grid_agree_to_the_bit(cell_px):
    rng, scale = np.random.default_rng(0), Fraction(16, cell_px)
    image = rng.random((9 * cell_px + 3, 8 * cell_px + 1)).astype(np.float32)
    y, x = 3 * cell_px, 2 * cell_px
    whole, part = resampled(image, scale, (144, 128)), resampled(image[y:, x:], scale, (96, 96))
    assert np.array_equal(whole[48 + 8 : -8, 32 + 8 : -8], part[8:-8, 8:-8])
    level, labels = rng.random((144, 128)).astype(np.float32), rng.integers(0, 9, (144, 128)).astype(np.uint32)
    back = labels_at(labels, level, 0.5, scale, image.shape)
    cut = labels_at(labels[48:, 32:], level[48:, 32:], 0.5, scale, image[y:, x:].shape)
    near = slice(cell_px, -cell_px)
    assert np.array_equal(back[y:, x:][near, near], cut[near, near])
    assert back.any()
