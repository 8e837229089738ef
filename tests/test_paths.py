"""Length within 2 % at every angle; Sholl, orders, feet: known answers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from histoquant.analysis import paths
from histoquant.errors import InputError

VOXELS = [(1.0, 0.12, 0.12), (0.3, 0.065, 0.065), (0.5, 0.1, 0.1)]


def chain(direction, voxel, length_um=40.0):
    """Voxels of a thin straight line, one step along its longest axis each, as a skeleton has them."""
    moved = length_um * direction / voxel
    line = np.linspace(0, 1, int(np.abs(moved).max()) + 1)[:, None] * moved + (7.3, 5.13, 5.13)
    return np.round(line) * voxel


def direction(plane_deg, z_deg):
    plane, z = np.radians([plane_deg, z_deg])
    return np.array([np.sin(z), np.cos(z) * np.sin(plane), np.cos(z) * np.cos(plane)])


@pytest.mark.parametrize("voxel", VOXELS)
def test_length_is_within_two_percent_at_every_angle(voxel):
    smooth, steps = [], []
    for plane in range(0, 61, 5):
        for z in range(0, 61, 5):
            line = chain(direction(plane, z), np.array(voxel))
            smooth.append(paths.length_um(paths.smooth_path(line, voxel)) / 40)
            steps.append(paths.length_um(line) / 40)
    assert np.abs(np.array(smooth) - 1).max() < 0.02
    assert np.max(steps) > 1.07  # the control: the same chains by the sum of their steps


def test_length_of_an_arc_is_kept_by_smoothing():
    voxel, angle = np.array([0.5, 0.1, 0.1]), np.linspace(0, np.pi / 2, 9000)
    arc = np.stack([2 + angle, 25 * np.sin(angle), 25 * np.cos(angle)], axis=1)
    voxels = np.round(arc / voxel)
    voxels = voxels[np.concatenate([[True], np.abs(np.diff(voxels, axis=0)).max(axis=1) > 0])]
    true = paths.length_um(arc)
    assert paths.length_um(paths.smooth_path(voxels * voxel, voxel)) == pytest.approx(true, rel=0.01)


def test_pixel_counting_and_step_sum_err_as_published():
    # science: 0.707 at 45 degrees by counting, 1.082 at 22.5 by steps
    flat = np.array([1.0, 0.1, 0.1])
    diagonal = chain(direction(45, 0), flat, 30.0)
    assert (len(diagonal) - 1) * 0.1 / 30 == pytest.approx(0.707, abs=0.005)
    assert paths.length_um(chain(direction(22.5, 0), flat, 30.0)) / 30 == pytest.approx(1.082, abs=0.005)


def test_two_dimensions_inflate_density_by_the_cosine():
    path = chain(direction(0, 30), np.array([0.3, 0.1, 0.1]))
    flat = path * (0, 1, 1)
    assert paths.length_um(path[[0, -1]]) / paths.length_um(flat[[0, -1]]) == pytest.approx(1.155, abs=0.003)


def test_z_factor_stretches_z_only():
    path = np.array([[0, 0, 0], [3.0, 0, 4.0]])
    assert paths.length_um(path) == 5
    assert paths.length_um(path, z_factor=2) == pytest.approx(np.hypot(6, 4))


def test_short_paths_are_left_alone():
    assert paths.length_um(np.zeros((1, 3))) == 0
    two = np.array([[0, 0, 0], [0, 0, 1.0]])
    assert_array_equal(paths.smooth_path(two, (1, 1, 1)), two)


def radial(n=4, length=100.0):
    out = []
    for k in range(n):
        step = np.array([0, np.sin(2 * np.pi * k / n), np.cos(2 * np.pi * k / n)])
        out.append(np.linspace(0, length, 101)[:, None] * step)
    return out


def test_sholl_of_four_radial_dendrites():
    found = paths.sholl(radial(), (0, 0, 0))
    assert_array_equal(found.crossings, [4] * 9 + [0])
    assert_allclose(found.ring_length_um, 40)
    assert found.ring_length_um.sum() == pytest.approx(400)
    assert (found.enclosing_radius_um, found.critical_radius_um, found.schoenen_index(4)) == (90, 10, 1)
    assert found.decay() < 0


def test_sholl_beyond_one_fork():
    straight = radial()
    fork = np.linspace(0, 50, 51)[:, None] * np.array([0.0, 0.0, 1.0])
    arms = [fork[-1] + np.linspace(0, 55, 56)[:, None] * np.array([0, s * 0.3, 0.95]) for s in (-1, 1)]
    found = paths.sholl([fork, *arms, *straight[1:]], (0, 0, 0))
    assert_array_equal(found.crossings[:4], 4)
    assert_array_equal(found.crossings[4:9], 5)  # at the fork itself its arms have begun


def test_sholl_sees_both_crossings_of_a_step_through_a_sphere():
    chord = np.array([[0, 8.0, -20.0], [0, 8.0, 20.0]])
    found = paths.sholl([chord], (0, 0, 0))
    assert_array_equal(found.crossings[:2], 2)
    assert found.ring_length_um[0] == pytest.approx(2 * np.sqrt(10**2 - 8**2))
    with pytest.raises(InputError, match="apart do not exist"):
        paths.sholl([chord], (0, 0, 0), step_um=0)


def test_orders_grow_outwards():
    assert_array_equal(paths.branch_orders([-1, 0, 0, 2, -1]), [1, 2, 2, 3, 1])
    with pytest.raises(InputError, match="own ancestor"):
        paths.branch_orders([1, 0])


def test_foot_lies_between_points():
    foot = paths.foot_of(np.array([[0, 2.0, 3.3]]), np.array([[0, 0, 0], [0, 0, 2], [0, 0, 9.0]]))
    assert (foot.position_um[0], foot.distance_um[0], foot.index[0]) == pytest.approx((3.3, 2, 1))


def test_resampling_keeps_ends_and_length():
    path = np.array([[0, 0, 0], [0, 3.0, 4.0], [0, 3.0, 10.0]])
    even = paths.resampled(path, 0.25)
    assert_array_equal(even[[0, -1]], path[[0, -1]])
    assert paths.steps_um(even).max() <= 0.25 + 1e-9
