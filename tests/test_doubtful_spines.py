"""Which heads are spines of their own, and what doubtful ones are worth where there are no sure ones."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from histoquant.analysis import arbor, spines
from histoquant.analysis.dendrites import Branch, lay_on_ridge
from histoquant.analysis.ridge import Stack
from histoquant.analysis.spine_scene import scene_of
from histoquant.analysis.spine_shape import Shapes
from histoquant.analysis.spines import Spots
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import DendritePlan
from histoquant.phantom.dendrites import draw_dendrite, draw_stack, moved, photograph


def spots_of(suw, score):
    """Heads at voxels of a straight picture of 0.1 um."""
    suw = np.array(suw, dtype=float)
    return Spots(suw, 0.1 * suw[:, ::-1], 0.1 * suw[:, ::-1], 0.1 * suw[:, 0], np.array(score, dtype=float))


def found_of(head_um, score):
    """What is known of a dendrite's heads at places, um."""
    spots, sizes = spots_of(10 * np.array(head_um, dtype=float)[:, ::-1], score), np.zeros(len(score))
    return arbor.Found(None, spots, Shapes(spots.head_um, sizes, sizes, sizes, sizes, sizes))


def test_doubtful_places_are_worth_a_fifth_of_the_odds_on_a_bare_dendrite():
    score = np.array([0.25, 0.5, 0.75])
    assert_allclose(spines.weighed(score, np.zeros(3)), [1 / 16, 1 / 6, 3 / 8])
    assert_allclose(spines.weighed(score, np.array([0.0, 0.75, 0.75])), [1 / 16, 1 / 3, 0.6])
    for enough in (2.0, 9.0):
        assert_allclose(spines.weighed(score, np.full(3, enough)), score)


def test_a_head_that_two_dendrites_claim_is_of_the_one_that_bears_spines():
    here, beside, far = (5.0, 2.0, 2.0), (5.6, 2.3, 2.3), (5.0, 2.0, 3.0)

    def owned(bare, spiny, likely=(0.5, 5.5)):
        one, other = arbor._owned([found_of(*bare), found_of(*spiny)], np.array(likely))
        return one.spots.score.tolist(), other.spots.score.tolist()

    # Of the likelier one, and as sure as the surest is of it.
    assert owned(([here], [0.7]), ([beside], [0.12])) == ([], [0.7])
    assert owned(([here], [0.7]), ([beside], [0.12]), likely=(5.5, 5.5)) == ([0.7], [])
    assert owned(([here], [0.9]), ([beside], [0.06])) == ([0.9], [])
    # A head is no claim to another that lies far, and one claim takes no two heads.
    assert owned(([here], [0.7]), ([far], [0.9])) == ([0.7], [0.9])
    assert owned(([here, far], [0.7, 0.6]), ([beside], [0.8])) == ([0.6], [0.8])
    assert arbor._owned([None, None], np.ones(2)) == [None, None]


def test_a_neighbours_head_beside_a_bare_dendrite_is_no_spine_of_it(monkeypatch):
    line = np.column_stack([np.zeros(201), np.zeros(201), np.linspace(0, 20, 201)])
    branches = [Branch(line), Branch(line + np.array([0.0, 4.0, 0.0]))]
    monkeypatch.setattr(arbor, "_radius_of", lambda one: 0.4)
    bare = found_of([(0.0, 1.8, 10.0)], [0.7])
    spiny = found_of([(0.0, 1.9, 10.1), *((0.0, 5.2, float(x)) for x in range(1, 19, 3))], [0.2] + 6 * [0.9])
    one, other = arbor._one_owner([bare, spiny], branches)
    assert (len(one.spots), len(other.spots)) == (0, 7)
    assert_allclose(other.spots.score[0], 0.7)
    one, other = arbor._one_owner([bare, spiny.take(np.arange(1))], branches)
    assert (len(one.spots), len(other.spots)) == (1, 0)
    # From 5 per 10 um on, more spines are no better claim.
    many = [
        found_of([(0.0, 1.8, 10.0)] + n * [(0.0, y, 1.0)], [score] + n * [0.9])
        for y, n, score in ((-1, 10, 0.7), (5, 40, 0.3))
    ]
    one, other = arbor._one_owner(many, branches)
    assert (len(one.spots), len(other.spots)) == (11, 40)


def test_heads_without_a_dip_are_two_where_both_are_likely_and_one_is_far_above_or_much_dimmer():
    light = np.ones((40, 20, 20), dtype=np.float32)
    scene = SimpleNamespace(straight=SimpleNamespace(step_um=(0.1, 0.1, 0.1)), rest=light)
    here, over, beside, far = (10, 10, 5), (10, 10, 14), (15, 10, 5), (30, 10, 5)
    for other, score, kept in (
        (over, (0.9, 0.39), [0]),
        (over, (0.39, 0.9), [1]),
        (over, (0.9, 0.41), [0, 1]),
        (beside, (0.9, 0.8), [0]),
        (far, (0.9, 0.3), [0, 1]),
    ):
        assert_array_equal(arbor._apart(scene, spots_of([here, other], score)), kept)
    for dim, score, kept in ((0.5, 0.8, [0, 1]), (0.5, 0.39, [0]), (0.7, 0.8, [0])):
        light[13:] = dim
        assert_array_equal(arbor._apart(scene, spots_of([here, beside], (0.9, score))), kept)
    light[13:] = 1.0
    light[12:14] = 0.5
    assert_array_equal(arbor._apart(scene, spots_of([here, beside], (0.9, 0.3))), [0, 1])


@pytest.mark.parametrize(("parent", "kept"), [(0, [3, 1]), (-1, [3, 0])])
def test_sure_spines_anywhere_on_a_tree_vouch_for_doubtful_ones(parent, kept):
    lines = [np.column_stack([np.zeros(101), np.zeros(101), np.linspace(a, a + 10, 101)]) for a in (0.0, 10.0)]
    branches = [Branch(lines[0]), Branch(lines[1], parent=parent)]

    def found(score):
        return found_of(np.zeros((len(score), 3)), score)

    weighed = arbor._weighed([found([0.9, 0.9, 0.9]), found([0.3])], branches, 0.25)
    assert [len(one.spots) for one in weighed] == kept
    if kept[1]:
        # 1.5 sure ones on 10 um: odds of 3/7 times 2/2.5.
        assert_allclose(weighed[1].spots.score, [12 / 47])
        # The sure ones have one less, 1 on 10 um: odds of 9 times 1.5/2.5.
        assert_allclose(weighed[0].spots.score, [27 / 32] * 3)
    assert arbor._weighed([None, found([0.3])], branches, 0.25)[0] is None


def test_a_bare_dendrite_that_a_spiny_one_crosses_has_no_spines():
    plan = DendritePlan(pixel_size_um=0.1, z_step_um=0.5, seed=920_002, spines_per_10um=(5.0, 15.0, 0.0))
    rng = np.random.default_rng(plan.seed)
    drawn, shape = draw_stack(plan, 1.0, rng)
    pixels = photograph(drawn, shape, plan, rng)
    stack = Stack(pixels, (plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um), float(np.median(pixels)))
    branches = lay_on_ridge(stack, [Branch(one.path[::4]) for one in drawn])
    alone = arbor.find_spines(stack, branches[2:], SpineSettings())
    together = arbor.find_spines(stack, branches, SpineSettings())
    assert len(alone[0].spots) == 1
    assert len(together[2].spots) == 0
    assert len(together[1].spots) == pytest.approx(len(drawn[1].head), rel=0.1)


def test_a_bare_dendrite_in_little_light_has_no_spines():
    rng = np.random.default_rng((4, 7))
    drawn = draw_dendrite(np.zeros(3), float(rng.uniform(0, 90)), 0.0, 40.0, 0.0, rng)
    plan = DendritePlan(pixel_size_um=0.13, z_step_um=1.0, photons=100, blur=1.2)
    voxel = np.array([plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um])
    low, high = drawn.path.min(axis=0) - 4.0, drawn.path.max(axis=0) + 4.0
    one = moved(drawn, -low)
    pixels = photograph([one], tuple(np.ceil((high - low) / voxel).astype(int) + 1), plan, rng).astype(np.float32)
    stack = Stack(pixels - np.median(pixels), tuple(voxel))
    (branch,) = lay_on_ridge(stack, [Branch(one.path[::4])])
    settings = SpineSettings()
    assert len(spines.spots_of(scene_of(stack, branch.path, reach_um=4.0), settings.min_score)) >= 3
    (found,) = arbor.find_spines(stack, [branch], settings)
    assert not len(found.spots)
