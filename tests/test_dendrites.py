"""Tracing: lengths of tilted dendrites, ridges, forks, noise; the same for any strips."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from histoquant.analysis import dendrite_chains, dendrite_ends, dendrites, paths, ridge, tube_voxels, tubes
from histoquant.analysis.arbor import tracing_of
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import DendritePlan
from histoquant.phantom.dendrites import draw_dendrite, moved, photograph

HOW = dendrites.Tracing((0.3, 0.5, 0.9), 8.0, 4.0, 4.0, 6.0)
VOXEL = (1.0, 0.2, 0.2)


def tube(lines, shape=(22, 110, 150), radius=0.55, noise=0.03, voxel=VOXEL):
    """A stack of bright tubes along lines of points, as a Gaussian across them, smeared along z."""
    grid = np.stack(np.meshgrid(*(np.arange(n) * v for n, v in zip(shape, voxel, strict=True)), indexing="ij"), axis=-1)
    light = np.zeros(shape, dtype=np.float32)
    for line in lines:
        fine = paths.resampled(np.asarray(line, dtype=float), 0.1)
        for point in fine:
            low = np.clip(np.floor((point - 2.5) / voxel).astype(int), 0, None)
            box = tuple(slice(a, int((p + 2.5) / v) + 2) for a, p, v in zip(low, point, voxel, strict=True))
            off = (grid[box] - point) / (1.6, 1.0, 1.0)
            light[box] = np.maximum(light[box], np.exp(-(off**2).sum(axis=-1) / radius**2))
    light += np.random.default_rng(0).normal(0, noise, shape).astype(np.float32)
    return ridge.Stack(light, voxel)


def line(tilt_deg, plane_deg, length=17.0, start=(3.0, 3.0, 4.0)):
    tilt, plane = np.radians([tilt_deg, plane_deg])
    step = np.array([np.sin(tilt), np.cos(tilt) * np.sin(plane), np.cos(tilt) * np.cos(plane)])
    return np.array([start, np.asarray(start) + length * step])


@pytest.mark.parametrize(("tilt", "plane"), [(0, 0), (0, 37), (30, 20), (50, 45)])
def test_traced_length_is_true_at_any_angle(tilt, plane):
    drawn = line(tilt, plane)
    (branch,) = dendrites.trace(tube([drawn]), HOW)
    # Ends of tubes are round and blurred: up to a radius at each is not the path's error, so it is cut off both.
    foot = paths.foot_of(branch.path, drawn)
    inner = (foot.position_um > 1.5) & (foot.position_um < 15.5)
    within = branch.path[inner]
    true = np.ptp(foot.position_um[inner])
    assert paths.length_um(within) == pytest.approx(true, rel=0.02)
    assert branch.length_um == pytest.approx(17, abs=1.5)
    assert foot.distance_um[inner].max() < 0.3


def test_a_fork_makes_three_branches_with_orders():
    trunk = line(0, 40, 10)
    arms = [np.array([trunk[1], trunk[1] + step]) for step in ((0, 9.0, 1.0), (0, 0.5, 10.0))]
    found = dendrites.trace(tube([trunk, *arms]), HOW)
    assert len(found) == 3
    assert sorted(branch.order for branch in found) == [1, 2, 2]
    assert [branch.parent for branch in found] == [-1, 0, 0]
    total = sum(branch.length_um for branch in found)
    assert total == pytest.approx(10 + np.hypot(9, 1) + np.hypot(0.5, 10), abs=2.0)


def test_noise_has_no_dendrites_and_neither_has_nothing():
    noise = np.random.default_rng(1).normal(100, 5, (12, 90, 90)).astype(np.float32)
    assert dendrites.trace(ridge.Stack(noise, VOXEL, 100.0), HOW) == []
    assert dendrites.trace(ridge.Stack(np.zeros((5, 60, 60), np.float32), VOXEL), HOW) == []


def test_a_gap_is_bridged_and_a_wide_one_is_not():
    whole = line(0, 0, 22.0)
    parts = [np.array([whole[0], whole[0] + (0, 0, 9.0)]), np.array([whole[0] + (0, 0, 11.5), whole[1]])]
    assert len(dendrites.trace(tube(parts), HOW)) == 1
    far = [parts[0], parts[1] + (0, 0, 5.0)]
    assert len(dendrites.trace(tube(far), HOW)) == 2


def test_a_trace_beside_the_ridge_is_laid_on_it():
    drawn = line(20, 30)
    stack = tube([drawn])
    beside = paths.resampled(drawn, 0.5) + np.array([0.0, 0.35, -0.25])
    (laid,) = dendrites.lay_on_ridge(stack, [dendrites.Branch(beside)])
    before, after = (paths.foot_of(path, drawn).distance_um for path in (beside, laid.path))
    assert before[2:-2].min() > 0.3
    assert after[6:-6].max() < 0.15


def test_a_line_without_depth_finds_it():
    drawn = line(30, 20)
    stack = tube([drawn])
    found = ridge.with_depth(stack, drawn * (np.nan, 1.0, 1.0))
    true = np.interp(paths.along_um(found * (0, 1, 1)), [0, np.hypot(*(drawn[1] - drawn[0])[1:])], drawn[:, 0])
    assert np.abs(found[:, 0] - true).max() <= 1.0 + 1e-6  # one plane


def test_tubularity_does_not_depend_on_strips(monkeypatch):
    stack = tube([line(10, 35)])
    whole = tubes.tubularity(tubes.Coarse.of(stack), (0.3, 0.9))
    monkeypatch.setattr(tubes, "STRIP_VOXELS", 22 * 150 * 17)
    assert_array_equal(tubes.tubularity(tubes.Coarse.of(stack), (0.3, 0.9)), whole)
    middle = tuple(np.rint(line(10, 35).mean(axis=0) / VOXEL).astype(int))
    assert whole[middle] > 20 * np.median(whole[whole > 0])


def test_tube_voxels_do_not_depend_on_strips_and_touch_as_neighbours_do(monkeypatch):
    answer = tubes.tubularity(tubes.Coarse.of(tube([line(10, 35)])), (0.3, 0.9))
    whole = tube_voxels.tube_voxels(answer, 6.0, VOXEL)
    monkeypatch.setattr(tubes, "STRIP_VOXELS", 22 * 150 * 17)
    assert len(tubes.strips(answer.shape)) > 3
    again = tube_voxels.tube_voxels(answer, 6.0, VOXEL)
    for name in ("voxels", "answer", "best", "pairs"):
        assert_array_equal(getattr(again, name), getattr(whole, name))
    mask = np.zeros(answer.shape, dtype=bool)
    mask[tuple(whole.voxels.T)] = True
    counted = ndimage.convolve(mask.astype(int), np.ones((3, 3, 3), int), mode="constant")[mask] - 1
    assert len(whole.pairs) > 100
    assert_array_equal(np.bincount(whole.pairs.ravel(), minlength=len(whole.voxels)), counted)


def test_covered_counts_what_is_near_from_above():
    path = paths.resampled(line(0, 0, 10), 0.1)
    half = dendrites.Branch(path[:51] + np.array([3.0, 0.4, 0]))
    assert dendrites.covered(path, [half], within_um=0.5) == pytest.approx(0.53, abs=0.03)
    assert dendrites.covered(path, [], within_um=0.5) == 0


def rod(spine_x=None):
    """Return a stack with a shaft along x from 5 to 25 um, and a spine that stands on it towards lower y."""
    z, y, x = np.arange(0, 12, 1.0)[:, None, None], np.arange(0, 8, 0.2)[:, None], np.arange(0, 30, 0.2)
    solid = np.exp(-(((z - 6) / 1.0) ** 2) - ((y - 4) / 0.5) ** 2) * ((x >= 5) & (x <= 25))
    if spine_x is not None:
        solid += 0.7 * np.exp(-(((z - 6) / 1.0) ** 2) - ((x - spine_x) / 0.3) ** 2) * ((y >= 1.5) & (y < 3.5))
    light = ndimage.gaussian_filter(solid, (0, 1.5, 1.5)).astype(np.float32)
    light += np.random.default_rng(0).normal(0, 0.01, light.shape).astype(np.float32)
    return ridge.Stack(light, VOXEL)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("off", [-2.5, 0.0, 0.8, 2.5])
def test_free_ends_lie_where_the_light_of_the_shaft_ends(off, flat):
    stack = rod()
    if flat:
        stack = ridge.Stack(stack.light[6:7], VOXEL)
    z = 0.0 if flat else 6.0
    path = paths.resampled(np.array([(z, 4.0, 5 - off), (z, 4.0, 25 + off)]), 0.25)
    found = dendrite_ends.to_ends(stack, path, (True, True))
    assert found[[0, -1], 2] == pytest.approx((5, 25), abs=0.35)
    assert paths.length_um(found) == pytest.approx(20, rel=0.02)
    one = dendrite_ends.to_ends(stack, path, (False, True))
    assert one[[0, -1], 2] == pytest.approx((5 - off, 25), abs=0.35)
    if flat:
        assert (found[:, 0] == 0).all()


def test_an_end_on_a_spine_goes_back_to_the_shaft():
    path = paths.resampled(np.array([(6.0, 4.0, 5.0), (6.0, 4.0, 22.5), (6.0, 2.0, 23.2)]), 0.25)
    found = dendrite_ends.to_ends(rod(spine_x=23.2), path, (False, True))
    assert found[-1] == pytest.approx((6, 4, 25), abs=0.4)


def test_a_line_ends_with_the_shaft_and_not_on_the_dearest_spine():
    # In this phantom the way to a spine 6 um before the end costs more than the way to the end.
    plan, rng = DendritePlan(pixel_size_um=0.13, z_step_um=1.0), np.random.default_rng(48)
    one = draw_dendrite(np.zeros(3), 30.0, 40.0, 24.0, 15.0, rng)
    one = moved(one, 4.0 - one.path.min(axis=0))
    shape = tuple(int(n) for n in np.ceil((one.path.max(axis=0) + 4) / (1.0, 0.13, 0.13)))
    pixels = photograph([one], shape, plan, np.random.default_rng(48))
    stack = ridge.Stack(pixels, (1.0, 0.13, 0.13), float(np.median(pixels)))
    (found,) = dendrites.trace(stack, tracing_of(SpineSettings()))
    assert found.length_um == pytest.approx(one.total_um, rel=0.03)


def test_dendrites_that_cross_near_their_ends_are_two():
    one = np.array([(3.0, 3.0, 2.0), (3.0, 3.0, 16.0)])
    other = np.array([(3.0, 9.5, 2.0), (3.0, 2.8, 16.0)])
    found = dendrites.trace(tube([one, other], radius=0.4), HOW)
    assert len(found) == 2
    for drawn in (one, other):
        off = min(np.percentile(paths.foot_of(branch.path, drawn).distance_um, 90) for branch in found)
        assert off < 0.3
    assert sum(branch.length_um for branch in found) == pytest.approx(14 + np.hypot(6.7, 14), rel=0.08)


@pytest.mark.parametrize(("turn_deg", "after_um", "pieces"), [(150, 12, 2), (90, 12, 1), (150, 5, 1)])
def test_chains_are_cut_where_they_turn_back_and_both_parts_are_long(turn_deg, after_um, pieces):
    x, back = np.arange(0, 12, 0.25), np.arange(0.25, after_um, 0.25)
    turn = np.radians(turn_deg)
    there = np.stack([0 * x, 0 * x, x], axis=1)
    points = np.concatenate([
        there, there[-1] + np.stack([0 * back, back * np.sin(turn), back * np.cos(turn)], axis=1)
    ])  # fmt: skip
    chains = dendrite_chains.without_turns(points, [list(range(len(points)))], 8.0)
    assert len(chains) == pieces
    assert sum(len(chain) for chain in chains) == len(points) - (pieces - 1)
    assert abs(len(chains[0]) - len(there if pieces == 2 else points)) <= 1


def test_a_gap_that_the_tracing_bridged_is_no_end():
    stack = rod()
    light = stack.light.copy()
    light[:, :, round(22.3 / VOXEL[2]) : round(23.7 / VOXEL[2])] *= 0.1
    path = paths.resampled(np.array([(6.0, 4.0, 5.0), (6.0, 4.0, 24.7)]), 0.25)
    found = dendrite_ends.to_ends(ridge.Stack(light, VOXEL), path, (False, True))
    assert found[-1, 2] == pytest.approx(25, abs=0.4)


def test_ends_are_left_where_light_goes_on_or_there_is_none():
    inside = paths.resampled(np.array([(6.0, 4.0, 10.0), (6.0, 4.0, 19.5)]), 0.25)
    assert_array_equal(dendrite_ends.to_ends(rod(), inside, (True, True))[-1], inside[-1])
    dark = ridge.Stack(np.full((12, 40, 150), -1.0, np.float32), VOXEL)
    assert_array_equal(dendrite_ends.to_ends(dark, inside, (True, True)), inside)
