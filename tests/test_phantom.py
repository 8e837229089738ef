"""Phantoms: the truth they come with is the truth of their pixels, and they are the same every time."""

import json
import tomllib

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.segmentation import expand_labels

from histoquant.errors import InputError
from histoquant.model.recipe import Recipe
from histoquant.model.slide import Box
from histoquant.phantom import PhantomPlan, make_phantom, shipped_recipe
from histoquant.phantom.assays import Subject, make_section, tunel_probability
from histoquant.phantom.optics import READ_NOISE_PHOTONS, Camera, _detected, paint, paint_labels
from histoquant.phantom.study import animal_factors, region_of
from histoquant.phantom.tissue import true_regions

SMALL = {"size_mm": (0.7, 0.6), "pixel_size_um": 0.7}


def whole(section):
    return Box(0, section.shape[0], 0, section.shape[1])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    told = []
    make_phantom(out, PhantomPlan("tunel", **SMALL, animals=1, controls=("no_tdt",)), progress=told.append)
    return out, told


def test_pixels_do_not_depend_on_the_boxes_asked_for():
    _, section = make_section(PhantomPlan("brdu", size_mm=(0.5, 0.7), pixel_size_um=0.5), Subject(0, "vehicle"))
    image, labels = paint(section, whole(section)), paint_labels(section, whole(section))
    for box in (Box(0, 300, 0, 1400), Box(300, 1000, 0, 1400), Box(401, 777, 503, 1311), Box(511, 513, 511, 513)):
        cut = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        np.testing.assert_array_equal(paint(section, box), image[:, *cut])
        np.testing.assert_array_equal(paint_labels(section, box), labels[cut])


def test_light_has_no_seam_between_blocks():
    plan = PhantomPlan("nuclei", size_mm=(1.1, 1.1), pixel_size_um=1.0, photons=20_000.0, bits=16)
    _, section = make_section(plan, Subject(0, "vehicle"))
    image = paint(section, whole(section))[0].astype(float)
    step = np.abs(np.diff(image, axis=0)).mean(1)
    assert abs(step[511] - step.mean()) < 4 * step.std()


def test_same_plan_same_bytes_other_seed_other_bytes(study, tmp_path):
    plan = {**SMALL, "animals": 1, "controls": ("no_tdt",)}
    make_phantom(tmp_path / "again", PhantomPlan("tunel", **plan))
    make_phantom(tmp_path / "other", PhantomPlan("tunel", **plan, seed=1))
    files = sorted(path.relative_to(study[0]) for path in study[0].rglob("*") if path.is_file())
    # Three slides with cells and labels each, orphans of the two that are labelled, two summaries, three at the top.
    assert len(files) == 3 * 3 + 2 + 2 + 3
    for file in files:
        assert (study[0] / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    slide = "slides/M1_s1.ome.tif"
    assert (study[0] / slide).read_bytes() != (tmp_path / "other" / slide).read_bytes()


def test_a_study_is_complete_and_its_recipe_is_valid(study):
    out, told = study
    sheet = pd.read_csv(out / "study.csv", keep_default_na=False)
    assert list(sheet) == ["slide", "animal", "group", "section", "regions", "control", "batch"]
    assert list(sheet["group"]) == ["vehicle", "treated", "control"]
    assert list(sheet["control"]) == ["", "", "no_tdt"]
    assert all((out / name).is_file() for name in [*sheet["slide"], *sheet["regions"]])
    recipe = Recipe.model_validate(tomllib.loads((out / "recipe.toml").read_text("utf-8")))
    with tifffile.TiffFile(out / sheet["slide"][0]) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert {marker.channel for marker in recipe.panel.values()} == {c["Name"] for c in pixels["Channel"]}
    assert pixels["PhysicalSizeX"] == 0.7
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize("name", ["tunel", "brdu_dcx", "ihc_dab", "spines_confocal", "spines_golgi"])
def test_shipped_recipes_are_valid(name):
    assert Recipe.model_validate(tomllib.loads(shipped_recipe(name).read_text("utf-8"))).name == name


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="brdu_dcx"):
        shipped_recipe("golgi")


def test_a_folder_with_a_study_is_not_overwritten(study):
    with pytest.raises(InputError, match="a study already"):
        make_phantom(study[0], PhantomPlan("nuclei", **SMALL))


def test_tables_and_label_images_name_the_same_cells(study):
    out = study[0]
    cells = pd.read_csv(out / "truth/M1_s1_cells.csv")
    labels = tifffile.imread(out / "truth/M1_s1_labels.ome.tif")
    y, x = np.array(ndimage.center_of_mass(labels > 0, labels, cells["cell_id"])).T
    seen = np.isin(cells["cell_id"], labels)
    away = np.hypot((y + 0.5) * 0.7 - cells["y_um"], (x + 0.5) * 0.7 - cells["x_um"])[seen]
    # An outline of three and four lobes has its centre of mass within 5 % of its radius of its centre.
    assert np.median(away) < 0.25
    assert seen.mean() > 0.99
    assert labels.max() == cells["cell_id"].max()


def test_true_area_is_the_area_of_the_outline():
    plan = PhantomPlan("nuclei", size_mm=(0.4, 0.4), pixel_size_um=0.2, density_per_mm2=800.0)
    cells, section = make_section(plan, Subject(0, "vehicle"))
    pixels = np.bincount(paint_labels(section, whole(section)).ravel(), minlength=len(cells) + 1)[1:]
    gap = cKDTree(cells.yx_um).query(cells.yx_um, k=2)[0][:, 1]
    alone = (gap > 20) & (np.abs(cells.yx_um - 200) < 185).all(1)
    ratio = pixels[alone] * 0.2**2 / (np.pi / 4 * cells.diameter_um[alone] ** 2)
    assert alone.sum() > 20
    # 1,250 pixels per nucleus: counting them is good to 1 %.
    np.testing.assert_allclose(ratio, 1, atol=0.02)


@pytest.mark.parametrize(("density", "diameter"), [(1620.0, 8.0), (3540.0, 7.0)])
def test_density_and_hard_core_are_those_stated(density, diameter):
    plan = PhantomPlan("nuclei", size_mm=(2.0, 2.0), density_per_mm2=density, diameter_um=diameter)
    cells, _ = make_section(plan, Subject(0, "vehicle"))
    # A hard-core pattern varies less than a Poisson one, whose SD is 1 / sqrt(n) = 1.2 % here.
    assert len(cells) / 4 == pytest.approx(density, rel=0.036)
    gap = cKDTree(cells.yx_um).query(cells.yx_um, k=2)[0][:, 1]
    assert gap.min() >= 0.75 * diameter
    assert cells.diameter_um.mean() == pytest.approx(diameter, rel=0.01)
    assert cells.diameter_um.std() / diameter == pytest.approx(0.12, rel=0.1)
    assert cells.hidden.mean() < 0.001


def test_without_hard_core_as_many_are_hidden_as_geometry_says():
    plan = PhantomPlan("nuclei", size_mm=(2.0, 2.0), density_per_mm2=3500.0, diameter_um=7.0, min_distance=0.0)
    cells, _ = make_section(plan, Subject(0, "vehicle"))
    # One neighbour alone hides 1 - exp(-N pi (0.404 d)^2) of equal discs placed at random; layers of density add some.
    one_neighbour = 1 - np.exp(-3500e-6 * np.pi * (0.404 * 7) ** 2)
    assert one_neighbour == pytest.approx(0.084, abs=0.001)
    assert one_neighbour < cells.hidden.mean() < 1.5 * one_neighbour


def test_treatment_halves_the_boundary_zone_and_nothing_else():
    plan = PhantomPlan("tunel")
    positive = {}
    for number, group in enumerate(("vehicle", "treated")):
        for factor in animal_factors(plan, number):
            cells, _ = make_section(plan, Subject(10 * number + round(10 * factor), group, factor))
            region = region_of(plan, cells)
            for name in ("lesion", "ibz_outer"):
                key = group, name
                positive[key] = positive.get(key, 0) + cells.positive["tunel"][region == name].sum()
    assert positive["vehicle", "ibz_outer"] > 1000
    # 3 animals of about 4,100 nuclei in the zone: their number varies by 1 %.
    assert positive["treated", "ibz_outer"] / positive["vehicle", "ibz_outer"] == pytest.approx(0.5, abs=0.03)
    assert positive["treated", "lesion"] / positive["vehicle", "lesion"] == pytest.approx(1, abs=0.12)


def test_animals_spread_as_stated_round_their_group():
    factors = animal_factors(PhantomPlan("tunel", animals=200, animal_cv=0.18), 0)
    assert np.mean(factors) == pytest.approx(1)
    assert np.std(factors) == pytest.approx(0.18, rel=0.05)
    assert animal_factors(PhantomPlan("tunel", animals=1), 0) == [1.0]


def test_tunel_falls_with_distance_to_its_baseline():
    chance = tunel_probability(np.array([-900.0, -1.0, 0.0, 300.0, 600.0, 900.0]), 0.3)
    np.testing.assert_allclose(chance[[2, 4, 5]], [0.3, 0.005, 0.005])
    assert chance[0] < chance[1] < chance[2]
    assert chance[2] > chance[3] > chance[4]


def test_label_is_bright_in_positive_nuclei_only():
    plan = PhantomPlan("tunel", size_mm=(0.9, 0.9))
    cells, section = make_section(plan, Subject(0, "vehicle"))
    labels, image = paint_labels(section, whole(section)), paint(section, whole(section)).astype(float)
    mean = ndimage.mean(image[1], labels, np.arange(1, len(cells) + 1))
    unstained = ndimage.mean(image[2], labels, np.arange(1, len(cells) + 1))
    plain = (cells.kind == "nucleus") & ~cells.hidden
    positive = cells.positive["tunel"]
    assert positive.sum() > 50
    assert np.nanpercentile(mean[positive], 2) > np.nanpercentile(mean[plain], 97)
    assert np.nanmedian(unstained[positive]) < np.nanpercentile(mean[positive], 2)
    glowing = cells.kind == "autofluorescent"
    assert not positive[glowing].any()
    assert np.nanmin(unstained[glowing]) > np.nanpercentile(unstained[plain], 90)
    condensed = cells.kind == "condensed"
    assert np.median(cells.diameter_um[condensed]) ** 2 < 0.6 * plan.diameter**2


def test_controls_without_label_and_with_all_labelled():
    plan = PhantomPlan("tunel", **SMALL, controls=("no_tdt", "dnase"))
    bare, _ = make_section(plan, Subject(0, "control", control="no_tdt"))
    assert not bare.positive["tunel"].any()
    assert len(bare.orphans_um) == 0
    full, _ = make_section(plan, Subject(0, "control", control="dnase"))
    assert full.positive["tunel"].all()
    for assay in ("brdu", "dcx"):
        cells, section = make_section(PhantomPlan(assay, **SMALL), Subject(0, "control", control="no_primary"))
        assert not cells.positive["brdu"].any()
        assert not cells.positive["dcx"].any()
        assert len(section.fibres.yx_um) == 0


def test_orphans_keep_away_from_nuclei():
    cells, _ = make_section(PhantomPlan("tunel"), Subject(0, "vehicle"))
    assert len(cells.orphans_um) > 5
    assert cKDTree(cells.yx_um).query(cells.orphans_um)[0].min() > 4


def test_new_cells_lie_in_touching_clusters_and_dapi_is_weak():
    plan = PhantomPlan("brdu")
    cells, _ = make_section(plan, Subject(0, "vehicle"))
    new = cells.positive["brdu"] & (region_of(plan, cells) == "svz")
    gap = cKDTree(cells.yx_um[new]).query(cells.yx_um[new], k=2)[0][:, 1]
    assert np.mean(gap < 1.15 * plan.diameter) > 0.85
    assert np.median(cells.light[:, 0]) == pytest.approx(0.3, rel=0.1)
    assert (cells.positive["brdu"] & cells.positive["dcx"]).sum() > 20


def test_dcx_rings_its_own_nucleus_and_processes_ring_none():
    plan = PhantomPlan("dcx", size_mm=(1.6, 1.2), photons=2000.0)
    cells, section = make_section(plan, Subject(0, "vehicle"))
    labels, dcx = paint_labels(section, whole(section)), paint(section, whole(section))[2].astype(float)
    ring = expand_labels(labels, distance=2 / plan.pixel_size_um) * (labels == 0)
    level = section.camera.offset + 0.3 * plan.photons * section.camera.grey_per_photon
    covered = ndimage.mean(dcx >= level, ring, np.arange(1, len(cells) + 1))
    positive, striatum = cells.positive["dcx"], region_of(plan, cells) == "striatum"
    assert positive.sum() > 50
    assert np.nanmean(covered[positive] >= 0.4) > 0.97
    # Out in the striatum somata do not crowd, but processes from the strip cross nuclei there.
    assert np.nanmean(covered[striatum & ~positive] >= 0.4) < 0.02
    assert np.nanmax(covered[striatum & ~positive]) > 0.02


def test_outlines_are_in_pixels_and_the_band_is_500_um_wide(study):
    drawn = json.loads((study[0] / "regions.geojson").read_text())["features"]
    assert [feature["properties"]["name"] for feature in drawn] == ["lesion"]
    ring = np.array(drawn[0]["geometry"]["coordinates"][0])
    assert np.ptp(ring[:, 0]) * 0.7 == pytest.approx(2 * 75, rel=1e-3)
    plan = PhantomPlan("tunel", size_mm=(4.0, 4.0))
    regions = true_regions(plan)
    radius = np.sqrt(regions["lesion"].area / np.pi)
    assert radius == pytest.approx(1000, rel=1e-3)
    # Science: a disc of 1 mm has 3.927 mm2 within the 500 um outside its rim.
    assert regions["ibz_outer"].area / 1e6 == pytest.approx(3.927, rel=2e-3)


def test_effects_are_the_counts_of_the_cell_tables(study):
    out = study[0]
    effects = pd.read_csv(out / "truth/effects.csv").set_index(["group", "region"])
    for group, slide in (("vehicle", "M1_s1"), ("treated", "M2_s1")):
        cells = pd.read_csv(out / f"truth/{slide}_cells.csv")
        for region, rows in cells.groupby("region"):
            truth = effects.loc[(group, region)]
            assert (truth["n_cells"], truth["n_positive"]) == (len(rows), rows["tunel_positive"].sum())
    band = effects.loc[("treated", "ibz_outer")]
    assert band["density_per_mm2"] == pytest.approx(band["n_positive"] / band["area_mm2"], abs=1e-3)
    before = effects.loc[("vehicle", "ibz_outer"), "n_positive"]
    assert band["percent_change"] == pytest.approx((band["n_positive"] / before - 1) * 100, abs=0.01)


@pytest.mark.parametrize("light", [5.0, 50.0, 1000.0])
def test_noise_is_that_of_counting_photons(light):
    camera = Camera(0.5, 16, 400.0, 3.0)
    grey = _detected(np.full((400, 400), light, np.float32), camera, np.random.default_rng(0)).astype(float)
    photons = (grey - camera.offset) / camera.grey_per_photon
    # 160,000 pixels: the mean is known to sd / 400, the variance to 0.4 %.
    variance = light + READ_NOISE_PHOTONS**2
    assert photons.mean() == pytest.approx(light, abs=5 * np.sqrt(variance) / 400 + 0.01)
    assert photons.var() == pytest.approx(variance, rel=0.03)


def test_blur_is_that_of_a_20x_objective():
    # FWHM 0.32 um at 520 nm and NA 0.8, apart from the width of the pixel itself.
    sigma_px = Camera(0.1, 12, 400.0, 3.0).psf_sigma_px
    assert np.sqrt(sigma_px**2 - 1 / 12) * 0.1 * 2.355 == pytest.approx(0.32, abs=0.005)


@pytest.mark.parametrize(
    "wrong",
    [
        {"assay": "golgi"},
        {"pixel_size_um": 0.0},
        {"size_mm": (0.1, 2.0)},
        {"animals": 0},
        {"bits": 10},
        {"controls": ("no_primary",)},
        {"density_per_mm2": 12_000.0},
        {"effect": -1.5},
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(wrong):
    with pytest.raises(InputError):
        PhantomPlan(**{"assay": "tunel", **wrong})
