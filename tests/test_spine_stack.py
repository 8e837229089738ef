"""One stack from its file to tables; phantoms with truth; bad input in one sentence."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from histoquant.analysis import arbor, paths, spine_network
from histoquant.analysis.dendrites import Branch, lay_on_ridge
from histoquant.analysis.ridge import Stack
from histoquant.errors import InputError, PixelSizeError, RecipeError
from histoquant.inputs import read_recipe
from histoquant.model import tables
from histoquant.model.recipe import parse_recipe
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import DendritePlan, make_dendrites, shipped_recipe
from histoquant.phantom.dendrites import draw_stack, photograph
from histoquant.readers.traces import read_traces
from histoquant.spine_stack import analyse_stack

PLAN = DendritePlan(size_um=(20.0, 26.0), spines_per_10um=(8.0, 0.0), animals=1, seed=3, tilt_deg=10.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("spines") / "phantom"
    make_dendrites(out, PLAN)
    return out


@pytest.fixture(scope="module")
def analysed(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysed") / "M1"
    found = analyse_stack(study / "slides/M1_s1.ome.tif", out)
    return found, out


def near(found, true, lateral_um=0.5, axial_um=1.0):
    from scipy.optimize import linear_sum_assignment

    lateral = np.linalg.norm(found[:, None, 1:] - true[None, :, 1:], axis=2)
    ok = (lateral <= lateral_um) & (np.abs(found[:, None, 0] - true[None, :, 0]) <= axial_um)
    i, j = linear_sum_assignment(np.where(ok, lateral, 1e3))
    return int(ok[i, j].sum())


PLACE = ["z_um", "y_um", "x_um"]


def test_a_phantom_is_traced_and_its_spines_found(study, analysed):
    found, out = analysed
    dendrites, spines = pd.read_csv(out / "dendrites.csv"), pd.read_csv(out / "spines.csv")
    truth = study / "truth/M1_s1"
    true_dendrites, true_spines = pd.read_csv(truth / "dendrites.csv"), pd.read_csv(truth / "spines.csv")
    assert list(dendrites)[: len(tables.DENDRITES)] == list(tables.DENDRITES)
    assert list(spines)[: len(tables.SPINES)] == list(tables.SPINES)
    assert len(dendrites) == 2
    # Ends are round and blurred: up to half a um at each.
    assert np.allclose(sorted(dendrites["length_um"]), sorted(true_dendrites["length_um"]), atol=1.2)
    clear = true_spines[~true_spines["z_shadow"]]
    assert near(spines[PLACE].to_numpy(), clear[PLACE].to_numpy()) >= 0.8 * len(clear)
    assert near(spines[PLACE].to_numpy(), true_spines[PLACE].to_numpy()) >= 0.8 * len(spines)
    # The dendrite without spines is in the table, with next to none.
    assert dendrites["n_spines"].min() <= 1
    assert dendrites["n_spines"].sum() == len(spines) == found["n_spines"]
    assert np.allclose(dendrites["spines_per_10um"], 10 * dendrites["n_spines"] / dendrites["length_um"])
    assert set(spines["class"].fillna("")) <= {"mushroom", "stubby", "thin", "filopodium", ""}
    assert (spines["position_um"] >= 0).all()
    assert json.loads((out / "provenance.json").read_text())["scorer_sha256"] == spine_network.WEIGHTS_SHA256
    for picture in ("overview.png", "strips.png"):
        assert (out / picture).stat().st_size > 10_000
    assert len(list((out / "traces").glob("*.swc"))) == 2
    lines = {branch.name: branch.path for branch in read_traces(out / "traces" / "dendrites.csv", 0.1)}
    told = pd.read_csv(out / "dendrites.csv", dtype={"dendrite_id": str}).set_index("dendrite_id")["length_um"]
    assert {name: paths.length_um(path) for name, path in lines.items()} == pytest.approx(told.to_dict())


def test_axes_of_phantoms_keep_apart_where_they_cross():
    from scipy.spatial.distance import cdist

    plan = DendritePlan()
    for seed in (0, 1, 5):  # side by side as drawn, the axes of 0 and 5 would come within 1.1 and 0.3 um
        drawn, shape = draw_stack(plan, 1.0, np.random.default_rng(seed))
        for k, one in enumerate(drawn):
            assert all(cdist(one.path, other.path).min() > 2.9 for other in drawn[:k])
            assert (one.path[:, 0] > 4).all()
            assert (one.path[:, 0] < (shape[0] - 1) * plan.z_step_um - 4).all()


@pytest.mark.parametrize(("pixel_um", "blur"), [(0.065, 1.0), (0.1, 1.2)])
def test_diameters_are_those_of_the_heads_not_of_the_blur(pixel_um, blur):
    plan = DendritePlan(size_um=(20.0, 52.0), spines_per_10um=(8.0,), pixel_size_um=pixel_um, blur=blur, seed=5)
    drawn, shape = draw_stack(plan, 1.0, np.random.default_rng(5))
    pixels = photograph(drawn, shape, plan, np.random.default_rng(6))
    stack = Stack(pixels, (0.5, pixel_um, pixel_um), float(np.median(pixels)))
    (branch,) = lay_on_ridge(stack, [Branch(drawn[0].path[::4])])
    settings = SpineSettings(resolution_um=2.355 * 0.09 * blur)
    (found,) = arbor.find_spines(stack, [branch], settings)
    clear = np.flatnonzero(~drawn[0].shadow)
    apart = np.linalg.norm(drawn[0].head[clear, None] - found.spots.head_um[None], axis=2)
    met = clear[apart.min(axis=1) < 0.4]
    told, true = found.shapes.head_um[apart.argmin(axis=1)[apart.min(axis=1) < 0.4]], drawn[0].head_um[met]
    small = true < 0.35
    assert min(small.sum(), (~small).sum()) >= 4
    assert np.median(told[small]) == pytest.approx(np.median(true[small]), abs=0.08)
    assert np.median(told[~small]) == pytest.approx(np.median(true[~small]), rel=0.15)
    assert np.median(found.shapes.looks_um) > np.median(told)  # a point looks wider than most heads are


def test_equal_inputs_give_equal_bytes(study, analysed, tmp_path):
    analyse_stack(study / "slides/M1_s1.ome.tif", tmp_path / "again")
    for name in ("dendrites.csv", "spines.csv", "sholl.csv", "traces/tree_1.swc"):
        assert (tmp_path / "again" / name).read_bytes() == (analysed[1] / name).read_bytes()


def test_segments_of_a_dendrite_add_up(study):
    rng = np.random.default_rng((PLAN.seed, 0))
    drawn, shape = draw_stack(PLAN, 1.0, rng)
    pixels = photograph(drawn, shape, PLAN, rng)
    stack = Stack(pixels, (0.5, 0.1, 0.1), float(np.median(pixels)))
    (whole,) = lay_on_ridge(stack, [Branch(drawn[0].path[::4])])
    (all_of,) = arbor.find_spines(stack, [whole], SpineSettings())
    middle = len(whole.path) // 2
    halves = [Branch(whole.path[: middle + 1]), Branch(whole.path[middle:])]
    parts = arbor.find_spines(stack, halves, SpineSettings())
    assert abs(sum(len(part.spots) for part in parts) - len(all_of.spots)) <= 1  # the shaft of each half is its own
    total = sum(paths.length_um(half.path) for half in halves)
    assert total == pytest.approx(whole.length_um)
    fewer = arbor.find_spines(stack, [whole], SpineSettings(min_score=0.9))[0]
    assert len(fewer.spots) <= len(all_of.spots)


def test_inclusion_rules_leave_out_but_list(study, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(shipped_recipe("spines_confocal").read_text() + "min_segment_um = 500.0\n")
    found = analyse_stack(study / "slides/M1_s1.ome.tif", tmp_path / "out", recipe=recipe)
    dendrites = pd.read_csv(tmp_path / "out/dendrites.csv")
    assert found["spines_per_10um"] is None
    assert (dendrites["flags"] == "not_included").all()
    assert dendrites["n_included"].sum() == 0 < dendrites["n_spines"].sum()


def test_golgi_goes_the_same_path(tmp_path):
    plan = DendritePlan("golgi", size_um=(16.0, 22.0), spines_per_10um=(6.0,), animals=1, seed=5, tilt_deg=5.0)
    make_dendrites(tmp_path / "golgi", plan)
    slide = tmp_path / "golgi/slides/M1_s1.ome.tif"
    found = analyse_stack(slide, tmp_path / "out")
    true = pd.read_csv(tmp_path / "golgi/truth/M1_s1/dendrites.csv")
    assert found["length_um"] == pytest.approx(true["length_um"].sum(), abs=1.5)
    assert found["n_spines"] >= 0.5 * (true["n_spines"] - true["n_z_shadow"]).sum()
    with pytest.raises(InputError, match="brightfield"):
        analyse_stack(slide, tmp_path / "no", recipe=shipped_recipe("spines_confocal"))


def test_a_person_s_trace_is_used_in_any_format(study, tmp_path, histoquant):
    trace = study / "truth/M1_s1/traces/dendrite_1.swc"
    slide = study / "slides/M1_s1.ome.tif"
    told = analyse_stack(slide, tmp_path / "out", traced=trace)
    true = pd.read_csv(study / "truth/M1_s1/dendrites.csv")["length_um"][0]
    assert told["n_dendrites"] == 1
    assert told["length_um"] == pytest.approx(true, rel=0.02)
    table = pd.read_csv(tmp_path / "out/dendrites.csv")
    assert table["traced_by"].tolist() == ["person"]
    # The same in pixels is refused, with the reason.
    place = pd.read_csv(trace, sep=" ", comment="#", header=None)[[4, 3, 2]].to_numpy()
    in_pixels = pd.DataFrame(place / (0.5, 0.1, 0.1), columns=PLACE)
    in_pixels.insert(0, "dendrite_id", 1)
    in_pixels.to_csv(tmp_path / "px.csv", index=False)
    done = histoquant("spines", slide, "--out", tmp_path / "px", "--trace", tmp_path / "px.csv")
    assert done.returncode == 2
    assert "looks like pixels" in done.stderr
    assert "Traceback" not in done.stderr
    in_pixels[PLACE] = place + 400.0
    in_pixels.to_csv(tmp_path / "off.csv", index=False)
    with pytest.raises(InputError, match="lie off the stack"):
        analyse_stack(slide, tmp_path / "off", traced=tmp_path / "off.csv")


def write(path, pixels, **kwargs):
    tifffile.imwrite(path, pixels, photometric="minisblack", **kwargs)
    return path


RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 60, (6, 80, 90), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "voxel", "error", "says"),
    [
        (NOISE, None, PixelSizeError, "no pixel size"),
        (NOISE, (0.5, 0.1, 0.0), PixelSizeError, "does not exist"),
        (NOISE, (0.1, 0.1, 0.5), PixelSizeError, "not square"),
        (np.full((6, 80, 90), 7, np.uint8), (0.5, 0.1, 0.1), InputError, "every pixel is 7"),
        (np.where(NOISE > 40, 255, NOISE).astype(np.uint8), (0.5, 0.1, 0.1), InputError, "saturated"),
        (NOISE.reshape(90, 80, 6).copy(), (0.5, 0.1, 0.1), InputError, "axes look exchanged"),
        (np.full((4, 40, 40), np.nan, np.float32), (0.5, 0.1, 0.1), InputError, "NaN"),
    ],
)
def test_what_cannot_be_measured_is_refused(pixels, voxel, error, says, tmp_path):
    path = write(tmp_path / "a.tif", pixels)
    with pytest.raises(error, match=says):
        analyse_stack(path, tmp_path / "out", voxel_um=voxel)
    assert not (tmp_path / "out").exists()


def test_planes_without_a_distance_are_refused(tmp_path):
    path = write(tmp_path / "a.ome.tif", NOISE, metadata={"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1})
    with pytest.raises(PixelSizeError, match="how far apart"):
        analyse_stack(path, tmp_path / "out")


def test_planes_stored_as_channels_are_refused(tmp_path):
    many = np.concatenate([NOISE, NOISE])
    path = write(tmp_path / "a.ome.tif", many, metadata={"axes": "CYX"})
    with pytest.raises(InputError, match="look like channels"):
        analyse_stack(path, tmp_path / "out", voxel_um=(0.5, 0.1, 0.1))


def test_one_plane_is_flagged_and_noise_has_no_dendrite(tmp_path):
    path = write(tmp_path / "a.tif", NOISE[0])
    found = analyse_stack(path, tmp_path / "out", voxel_um=(1.0, 0.1, 0.1))
    assert found["flags"] == ["length_2d"]
    assert found["n_dendrites"] == 0
    assert found["notes"] == ["no dendrite was found"]
    assert list(pd.read_csv(tmp_path / "out/dendrites.csv")) == list(tables.DENDRITES)


def test_recipes_of_spines_are_checked(tmp_path):
    golgi = shipped_recipe("spines_golgi").read_text()
    with pytest.raises(RecipeError, match="transmitted light"):
        parse_recipe(golgi.replace('rules = "B"', 'rules = "A"'))
    with pytest.raises(RecipeError, match="role = 'dendrite'"):
        parse_recipe(golgi.replace('role = "dendrite"', 'role = "nuclear"'))
    with pytest.raises(RecipeError, match="one of spines"):
        read_recipe(shipped_recipe("spines_golgi"))
    assert (
        parse_recipe(golgi).fingerprint()
        != parse_recipe(golgi.replace("min_score = 0.15", "min_score = 0.6")).fingerprint()
    )
