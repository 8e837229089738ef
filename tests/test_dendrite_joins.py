"""Which pieces of centre lines are one dendrite: those with light between them, not those that only come near."""

import numpy as np
import pytest

from histoquant.analysis import dendrite_ends, dendrites, paths, ridge
from histoquant.analysis.arbor import tracing_of
from histoquant.analysis.dendrite_joins import joins
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import DendritePlan
from histoquant.phantom.dendrites import draw_stack, photograph

VOXEL = (0.5, 0.2, 0.2)
STEP_UM = 0.25


def scene(lines, lit=()):
    """Return a stack lit along lines and more ways, and the lines' points and chains."""
    light = np.zeros((30, 100, 150), dtype=np.float32)
    for way in (*lines, *lit):
        z, y, x = np.rint(paths.resampled(np.array(way, float), 0.1) / VOXEL).astype(int).T
        for dy, dx in np.ndindex(3, 3):
            light[z, y + dy - 1, x + dx - 1] = 1.0
    points, chains, n = [], [], 0
    for way in lines:
        points.append(paths.resampled(np.array(way, float), STEP_UM))
        chains.append(list(range(n, n + len(points[-1]))))
        n += len(points[-1])
    every = np.concatenate(points)
    return ridge.Stack(light, VOXEL), every, chains


def places(lines, lit=()):
    stack, points, chains = scene(lines, lit)
    found = joins(stack, points, chains, stack.at(points), spur_um=4.0, gap_um=5.0, min_length_um=8.0)
    return [points[list(pair)] for pair in found]


def test_ends_over_each_other_are_joined_by_light_alone():
    over = [(10.0, 6.0, 2.0), (10.0, 6.0, 14.0)]
    under = [(4.0, 7.5, 2.0), (4.0, 7.5, 14.0)]
    assert places([over, under]) == []
    (pair,) = places([over, under], lit=[[over[1], under[1]]])
    assert sorted(pair[:, 0]) == pytest.approx([4, 10])
    # Transmitted light leaves some between any two.
    stack, points, chains = scene([over, under])
    for left, n in ((0.14, 0), (0.2, 1)):
        haze = ridge.Stack(np.maximum(stack.light, left), VOXEL)
        assert len(joins(haze, points, chains, haze.at(points), spur_um=4.0, gap_um=5.0, min_length_um=8.0)) == n


def test_a_shaft_goes_on_from_before_the_spine_that_a_piece_ends_on():
    hooked = [(5.0, 5.0, 2.0), (5.0, 5.0, 12.0), (5.0, 7.4, 12.4)]
    on = [(5.0, 5.0, 15.5), (5.0, 5.0, 26.0)]
    assert places([hooked, on]) == []
    (pair,) = places([hooked, on], lit=[[hooked[1], on[0]]])
    assert pair[:, 1] == pytest.approx([5, 5], abs=0.3)
    assert pair[:, 2] == pytest.approx([12, 15.5], abs=3.1)


def test_a_whole_dendrite_that_a_spine_piece_ends_goes_on_past_it():
    shaft, piece = [(5.0, 5.0, 2.0), (5.0, 5.0, 12.0)], [(5.0, 5.6, 12.4), (5.0, 8.8, 12.4)]
    on = [(5.0, 5.0, 15.5), (5.0, 5.0, 26.0)]
    lit = [[shaft[1], piece[0]], [shaft[1], on[0]]]
    first, *more = places([shaft, piece, on], lit)
    assert first[:, 1] == pytest.approx([5, 5.6], abs=0.3)
    (past,) = more
    assert past[:, 2] == pytest.approx([12, 15.5], abs=0.8)
    # Neither when the piece leads on, nor from what is no dendrite itself.
    branch = [(5.0, 9.4, 12.4), (5.0, 18.0, 12.4)]
    ends = {tuple(pair[:, 2].round()) for pair in places([shaft, piece, on, branch], [*lit, [piece[1], branch[0]]])}
    assert ends == {(12, 12)}
    stub, longer = [(5.0, 5.0, 6.0), shaft[1]], [piece[0], (5.0, 11.0, 12.4)]
    assert len(places([stub, piece, [on[0], (5.0, 5.0, 20.0)]], lit)) == 1
    assert len(places([shaft, longer, on], lit)) == 1


def test_pieces_that_face_each_other_are_joined_in_the_dark():
    (pair,) = places([[(5.0, 5.0, 2.0), (5.0, 5.0, 12.0)], [(5.0, 5.0, 15.5), (5.0, 5.0, 26.0)]])
    assert pair[:, 2] == pytest.approx([12, 15.5], abs=STEP_UM)


def test_an_end_is_joined_to_the_flank_it_points_at_by_light_alone():
    trunk, arm = [(5.0, 3.0, 2.0), (5.0, 3.0, 26.0)], [(5.0, 16.0, 14.0), (5.0, 5.4, 14.0)]
    assert places([trunk, arm]) == []
    (pair,) = places([trunk, arm], lit=[[arm[1], (5.0, 3.0, 14.0)]])
    assert pair[1] == pytest.approx([5, 3, 14], abs=0.3)


def test_a_line_of_no_light_is_joined_to_none_that_it_touches():
    stack, points, chains = scene([[(5.0, 5.0, 2.0), (5.0, 5.0, 12.0)], [(5.0, 6.5, 2.0), (5.0, 6.5, 12.0)]])
    dark = ridge.Stack(np.zeros_like(stack.light), VOXEL)
    assert joins(dark, points, chains, dark.at(points), spur_um=4.0, gap_um=5.0, min_length_um=8.0) == []
    assert joins(stack, points[:0], [], stack.at(points[:0]), spur_um=4.0, gap_um=5.0, min_length_um=8.0) == []


def test_a_shaft_that_is_dim_before_its_end_is_followed_to_it():
    z, y, x = np.arange(0, 12, 1.0)[:, None, None], np.arange(0, 8, 0.2)[:, None], np.arange(0, 30, 0.2)
    shaft = np.exp(-(((z - 6) / 1.0) ** 2) - ((y - 4) / 0.5) ** 2) * np.where(x < 21.5, 1.0, 0.35) * (x <= 25)
    noise = np.random.default_rng(0).normal(0, 0.01, shaft.shape)
    stack = ridge.Stack((shaft + noise).astype(np.float32), (1.0, 0.2, 0.2))
    path = paths.resampled(np.array([(6.0, 4.0, 5.0), (6.0, 4.0, 24.0)]), 0.25)
    found = dendrite_ends.to_ends(stack, path, (False, True))
    assert found[-1, 2] == pytest.approx(25, abs=0.35)


def test_a_path_that_ends_on_a_long_spine_is_walked_on_along_the_shaft():
    z, y, x = np.arange(0, 12, 1.0)[:, None, None], np.arange(0, 12, 0.2)[:, None], np.arange(0, 30, 0.2)
    shaft = np.exp(-(((z - 6) / 1.0) ** 2) - ((y - 4) / 0.5) ** 2) * (x <= 25)
    spine = 0.2 * np.exp(-(((z - 6) / 1.0) ** 2) - ((x - 23) / 0.3) ** 2) * ((y > 4) & (y < 8.5))
    noise = np.random.default_rng(0).normal(0, 0.01, shaft.shape)
    stack = ridge.Stack((np.maximum(shaft, spine) + noise).astype(np.float32), (1.0, 0.2, 0.2))
    path = paths.resampled(np.array([(6.0, 4.0, 5.0), (6.0, 4.0, 23.0), (6.0, 8.2, 23.0)]), 0.25)
    ended = dendrite_ends.to_ends(stack, path, (False, True))
    assert ended[-1] == pytest.approx([6, 4, 25], abs=0.5)
    assert paths.length_um(ended) == pytest.approx(20, abs=0.5)
    # What is as short as most spines is walked anew with the rest.
    short = path[path[:, 1] < 6]
    assert len(dendrite_ends._without_spine(stack, short)) == len(short)


@pytest.mark.parametrize(("seed", "within"), [(1007, 0.02), (1034, 0.007), (2045, 0.02), (2078, 0.02), (2084, 0.02)])
def test_dendrites_that_cross_are_whole_and_apart(seed, within):
    # Ends over each other, ends that waver in depth, gaps where another dendrite passes over, a spine beside an end.
    plan = DendritePlan(pixel_size_um=0.13, z_step_um=1.0)
    rng = np.random.default_rng((seed, 7))
    drawn, shape = draw_stack(plan, float(rng.uniform(0.8, 1.7)), rng)
    pixels = photograph(drawn, shape, plan, rng)
    found = dendrites.trace(
        ridge.Stack(pixels, (1.0, 0.13, 0.13), float(np.median(pixels))), tracing_of(SpineSettings())
    )
    assert len(found) == len(drawn)
    for one in drawn:
        (own,) = [branch for branch in found if np.median(paths.foot_of(branch.path, one.path).distance_um) < 0.5]
        assert own.length_um == pytest.approx(one.total_um, rel=within)
