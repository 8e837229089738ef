"""Runs: what is painted is what was there, band by band, and the first object keeps its pixels."""

import numpy as np
import pytest

from histoquant.analysis.runs import Runs, paint, runs_of
from histoquant.model.slide import Box


def picture(seed, shape=(60, 70), n=9):
    """Rectangles that overlap, touch each other and touch the edge."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    for label in range(1, n + 1):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        labels[y : y + rng.integers(1, 25), x : x + rng.integers(1, 25)] = label
    return labels


def every(labels):
    return np.arange(int(labels.max()) + 1) > 0


def painted(runs, names, shape, tops):
    whole = np.zeros(shape, np.uint32)
    for top, bottom in zip(tops, [*tops[1:], shape[0]], strict=True):
        paint(runs, names, whole[top:bottom], top)
    return whole


@pytest.mark.parametrize("seed", range(20))
def test_painting_gives_the_labels_back_for_any_bands(seed):
    labels = picture(seed)
    at, shape = Box(13, 73, 40, 110), (100, 120)
    slide = np.zeros(shape, np.uint32)
    slide[at.y0 : at.y1, at.x0 : at.x1] = labels
    runs = runs_of(labels, every(labels), at)
    names = np.arange(int(labels.max()) + 1, dtype=np.uint32)
    for tops in ([0], [0, 14, 15, 50], [0, 13, 73]):
        assert np.array_equal(painted(runs, names, shape, tops), slide)
    assert not np.array_equal(painted(runs, names[::-1].copy(), shape, [0]), slide)


def test_runs_by_hand():
    labels = np.array([[1, 1, 2, 0, 2], [0, 0, 0, 0, 0], [3, 0, 0, 2, 2]], np.uint32)
    runs = runs_of(labels, np.array([False, True, True, False]), Box(10, 13, 5, 10))
    assert np.array_equal(
        np.stack(list(vars(runs).values())), [[10, 10, 10, 12], [5, 7, 9, 8], [2, 1, 1, 2], [1, 2, 2, 2]]
    )
    assert len(runs_of(labels, np.zeros(4, bool), Box(10, 13, 5, 10)).row) == 0


def test_names_join_objects_and_leave_some_out():
    labels = np.array([[1, 2, 0, 3]], np.uint32)
    runs = runs_of(labels, every(labels), Box(0, 1, 0, 4))
    assert painted(runs, np.array([0, 7, 7, 0], np.uint32), (1, 4), [0]).tolist() == [[7, 7, 0, 0]]


def test_the_first_object_keeps_its_pixels():
    first = runs_of(np.array([[1, 1, 0]], np.uint32), np.array([False, True]), Box(0, 1, 0, 3))
    second = runs_of(np.array([[1, 1, 0]], np.uint32), np.array([False, True]), Box(0, 1, 1, 4))
    band = np.zeros((1, 5), np.uint32)
    for cell, runs in ((5, first), (6, second)):
        paint(runs, np.array([0, cell], np.uint32), band, 0)
    assert band.tolist() == [[5, 5, 6, 0, 0]]


def test_kept_runs_are_small_and_the_same():
    labels = picture(3, (300, 300), 200)
    runs = runs_of(labels, every(labels), Box(70_000, 70_300, 0, 300))
    kept = runs.arrays()
    assert [column.dtype for column in kept.values()] == ["uint32", "uint16", "uint8", "uint8"]
    back = Runs(*(kept[name] for name in Runs.names()))
    names = np.arange(201, dtype=np.uint32)
    shown = []
    for held in (runs, back):
        band = np.zeros((300, 300), np.uint32)
        paint(held, names, band, 70_000)
        shown.append(band)
    assert np.array_equal(*shown)
    assert np.array_equal(shown[0], labels)
    nothing = runs_of(np.zeros((3, 3), np.uint32), np.array([False]), Box(0, 3, 0, 3)).arrays()
    assert [column.nbytes for column in nothing.values()] == [0, 0, 0, 0]
