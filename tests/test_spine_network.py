"""The network that finds spines: its weights, its grid, and answers that do not depend on pieces."""

import hashlib

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from histoquant.analysis import spine_network
from histoquant.analysis.ridge import Stack
from histoquant.analysis.spine_scene import scene_of
from histoquant.analysis.spines import spots_of
from histoquant.errors import PluginError

VOXEL = (0.5, 0.1, 0.1)
AXIS = np.column_stack([np.full(120, 6.0), np.full(120, 6.0), np.linspace(3, 33, 120)])
HEADS = np.array([[6.0, 7.2, 8.0], [6.6, 4.7, 16.03], [5.4, 7.5, 24.0]])


def stack_of(heads, voxel=VOXEL):
    """A shaft along x with heads on stalks, as a microscope shows them, and noise."""
    shape = np.array([12.0, 12.0, 36.0]) / voxel
    z, y, x = np.meshgrid(*(np.arange(round(n)) * v for n, v in zip(shape, voxel, strict=True)), indexing="ij")
    light = np.exp(-(((z - 6) / 0.6) ** 2 + ((y - 6) / 0.4) ** 2)).astype(np.float32) * ((x > 3) & (x < 33))
    for head in heads:
        light += 0.6 * np.exp(-(((z - head[0]) / 0.6) ** 2 + ((y - head[1]) / 0.28) ** 2 + ((x - head[2]) / 0.28) ** 2))
        way = np.linspace((6.0, 6.0, head[2]), head, 12)
        for point in way[2:]:
            off = [(a - b) / r for a, b, r in zip((z, y, x), point, (0.6, 0.15, 0.15), strict=True)]
            light += 0.06 * np.exp(-sum(o**2 for o in off))
    return Stack(light + np.random.default_rng(0).normal(0, 0.01, light.shape).astype(np.float32), voxel)


@pytest.fixture(scope="module")
def scene():
    return scene_of(stack_of(HEADS), AXIS, reach_um=4.0)


def test_the_weights_are_small_and_those_that_were_stated():
    assert spine_network.WEIGHTS.stat().st_size < 5e6
    assert hashlib.sha256(spine_network.WEIGHTS.read_bytes()).hexdigest() == spine_network.WEIGHTS_SHA256


def test_tampered_or_missing_weights_are_refused(scene, monkeypatch, tmp_path):
    changed = bytearray(spine_network.WEIGHTS.read_bytes())
    changed[len(changed) // 2] ^= 1
    other = tmp_path / "spines.onnx"
    other.write_bytes(changed)
    monkeypatch.setattr(spine_network, "WEIGHTS", other)
    with pytest.raises(PluginError, match=r"not those of this version: their sha256 is .*Install histoquant again"):
        spine_network.chances(scene)
    monkeypatch.setattr(spine_network, "WEIGHTS", tmp_path / "none.onnx")
    with pytest.raises(PluginError, match="cannot be read"):
        spine_network.chances(scene)


def test_heads_are_found_where_they_are_and_stand_on_the_shaft(scene):
    spots = spots_of(scene, 0.4)
    order = np.argsort(spots.head_um[:, 2])
    assert_allclose(spots.head_um[order], HEADS, atol=0.3)
    assert_allclose(spots.position_um[order], HEADS[:, 2] - 3, atol=0.5)
    assert_allclose(np.hypot(*(spots.base_um[:, :2] - 6).T), scene.radius_um.mean(), atol=0.15)
    assert ((spots.score >= 0.4) & (spots.score <= 1)).all()


def test_heads_are_found_in_a_picture_of_one_plane():
    stack = stack_of(HEADS * (0, 1, 1) + (6, 0, 0))
    flat = Stack(stack.light[12:13], VOXEL)
    spots = spots_of(scene_of(flat, AXIS * (0, 1, 1), reach_um=4.0), 0.3)
    order = np.argsort(spots.head_um[:, 2])
    assert_allclose(spots.head_um[order, 1:], HEADS[:, 1:], atol=0.3)


def test_a_bare_shaft_has_no_spines():
    assert not len(spots_of(scene_of(stack_of([]), AXIS, reach_um=4.0), 0.4))


def test_brightness_has_no_unit(scene):
    stack = stack_of(HEADS)
    brighter = scene_of(Stack(stack.light * 900, stack.voxel_um), AXIS, reach_um=4.0)
    assert_allclose(spine_network.chances(brighter), spine_network.chances(scene), atol=1e-3)


def test_answers_are_the_same_in_pieces_of_any_length(scene, monkeypatch):
    whole = spine_network.chances(scene)
    assert whole.shape == spine_network.grid_of(scene)
    monkeypatch.setattr(spine_network, "PIECE", 64)
    pieces = spine_network.chances(scene)
    assert_allclose(pieces, whole, atol=1e-5)
    # Of no more margin than the network sees nothing changes: the margin that is kept is wide enough.
    monkeypatch.setattr(spine_network, "MARGIN", 64)
    assert_allclose(spine_network.chances(scene), pieces, atol=1e-5)


@pytest.mark.parametrize("voxel", [(0.3, 0.065, 0.065), (1.0, 0.13, 0.13), (1.0, 0.2, 0.2)])
def test_places_of_the_grid_lie_where_the_stack_has_them(voxel):
    scene = scene_of(stack_of(HEADS, voxel), AXIS, reach_um=4.0)
    planes = spine_network.planes_of(scene, 0, spine_network.grid_of(scene)[1])
    light = np.where(planes[3] > 0.2, planes[0], 0)  # 0.8 um to the side and more
    (place,) = np.argwhere(light == light.max())[:1].astype(float)
    (um,) = scene.straight.place(*spine_network.on_straight(scene, place[None]).T)
    off = np.abs(HEADS - um)
    assert (off < (0.6, 0.16, 0.16)).all(axis=1).any()


def test_summits_lie_between_the_steps():
    w, s, u = np.meshgrid(np.arange(9), np.arange(40), np.arange(24), indexing="ij")
    sure = np.zeros(w.shape, dtype=np.float32)
    true = np.array([[4.2, 10.3, 8.6], [6.0, 30.0, 15.0]])
    for place, height in zip(true, (0.9, 0.5), strict=True):
        sure += height * np.exp(-((w - place[0]) ** 2 + (s - place[1]) ** 2 + (u - place[2]) ** 2) / 4)
    places, score = spine_network.summits(sure, 0.3)
    assert_allclose(places, true, atol=0.1)
    assert_allclose(score, (0.9, 0.5), atol=0.1)
    places, score = spine_network.summits(sure, 0.6)
    assert len(places) == 1
    flat, _ = spine_network.summits(sure[4:5], 0.3)
    assert_array_equal(flat[:, 0], 0)
