"""Seams: every object has one owner, wherever the cuts are."""

import numpy as np
import pytest

from histoquant.analysis.tiles import Tile, canonical, own, plan_tiles
from histoquant.errors import InputError
from histoquant.model.slide import Box


def discs(shape, n, seed=0):
    """Label image of n discs of radius 2 to 6 that do not touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(n):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 6)
        near = (y - cy) ** 2 + (x - cx) ** 2
        if not labels[near <= (r + 2) ** 2].any():
            labels[near <= r**2] = labels.max() + 1
    return labels


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (200, 7)])
@pytest.mark.parametrize("offset", [(0, 0), (13, 40)])
def test_cores_cover_the_image_exactly_once(shape, offset):
    seen = np.zeros(shape, dtype=int)
    for tile in plan_tiles(shape, core_px=64, halo_px=9, offset_px=offset):
        seen[tile.core.y0 : tile.core.y1, tile.core.x0 : tile.core.x1] += 1
        assert tile.box == tile.core.grown(9, shape)
    assert (seen == 1).all()


@pytest.mark.parametrize("core_px", [64, 97, 150])
def test_every_object_has_exactly_one_owner(core_px):
    truth = discs((220, 310), 220)
    owners = np.zeros(int(truth.max()) + 1, dtype=int)
    for tile in plan_tiles(truth.shape, core_px=core_px, halo_px=14):
        box = tile.box
        part = truth[box.y0 : box.y1, box.x0 : box.x1]
        found = own(part, tile, truth.shape)
        for label in np.flatnonzero(found.mine) + 1:
            owners[np.unique(part[found.labels == label])] += 1
        assert not (found.mine & found.cut).any()
    assert (owners[1:] == 1).all()


def test_an_object_larger_than_the_halo_is_reported():
    labels = np.zeros((100, 100), dtype=np.uint32)
    labels[40:60, 5:95] = 1
    tile = plan_tiles(labels.shape, core_px=64, halo_px=10)[0]
    found = own(labels[tile.box.y0 : tile.box.y1, tile.box.x0 : tile.box.x1], tile, labels.shape)
    assert found.cut.tolist() == [True]


def test_touching_the_slides_own_edge_is_not_a_cut():
    labels = np.zeros((50, 50), dtype=np.uint32)
    labels[0:5, 0:5] = 1
    tile = Tile(Box(0, 50, 0, 50), Box(0, 50, 0, 50))
    assert own(labels, tile, labels.shape).cut.tolist() == [False]


def test_numbers_do_not_depend_on_the_numbers_given():
    labels = discs((80, 80), 20)
    shuffled = np.random.default_rng(1).permutation(np.arange(1, labels.max() + 1))
    lut = np.concatenate([[0], shuffled * 7]).astype(np.int64)
    assert np.array_equal(canonical(labels), canonical(lut[labels]))
    firsts = [np.flatnonzero(canonical(labels).ravel() == i)[0] for i in range(1, labels.max() + 1)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    "numbers",
    [
        lambda n: np.arange(n)[::-1] + 1,
        lambda n: (np.arange(n) + 1) * 7,
        lambda n: (np.arange(n) + 1) * 10**15,
        lambda n: 2**64 - 1 - np.arange(n, dtype=np.uint64),
        lambda n: (np.arange(n) + 1).astype(">i4"),
        lambda n: (np.arange(n) + 1).astype(np.uint8),
    ],
)
def test_the_number_an_object_was_given_is_told(numbers):
    """However large the numbers are, and also where no pixel is free."""
    labels = discs((60, 70), 12)
    given = numbers(int(labels.max()) + 1)
    tile = Tile(Box(0, 60, 0, 70), Box(0, 60, 0, 70))
    for image in (np.concatenate([np.zeros(1, given.dtype), given])[labels], given[labels]):
        found = own(image, tile, image.shape)
        assert found.labels.dtype == np.uint32
        assert np.array_equal(np.concatenate([np.zeros(1, given.dtype), found.given])[found.labels], image)
        firsts = [np.argmax(found.labels.ravel() == i) for i in range(1, len(found.given) + 1)]
        assert firsts == sorted(firsts)


def test_a_centroid_far_from_the_slides_corner_is_exact():
    """Half a pixel below the core's edge, and on it."""
    labels = np.zeros((8, 8), dtype=np.uint32)
    labels[3:5, 2:4] = 1
    for y0, mine in ((10**6, False), (10**6 - 1, True)):
        tile = Tile(Box(0, y0 + 3, 0, 8), Box(y0, y0 + 8, 0, 8))
        assert own(labels, tile, (10**7, 8)).mine.tolist() == [False]
        below = Tile(Box(y0 + 3 + (not mine), y0 + 8, 0, 8), Box(y0, y0 + 8, 0, 8))
        assert own(labels, below, (10**7, 8)).mine.tolist() == [mine]


@pytest.mark.parametrize("bad", [np.zeros((4, 4), dtype=np.float32), np.full((4, 4), -1)])
def test_labels_must_be_whole_and_not_negative(bad):
    with pytest.raises(InputError, match="Labels must"):
        canonical(bad)


def test_more_objects_than_16_bits_hold():
    labels = np.zeros((600, 600), dtype=np.uint32)
    labels[::2, ::2] = np.arange(1, 90001, dtype=np.uint32).reshape(300, 300)
    assert canonical(labels).max() == 90000
