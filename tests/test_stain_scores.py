"""H-score, optical densities and nucleus over cytoplasm; the ratio of two markers by animal."""

import math

import numpy as np
import pandas as pd
import pytest

from histoquant import registry
from histoquant.analysis.stain_scores import grades, h_score, nucleus_over_ring, score_animals
from histoquant.analysis.stains import HEMATOXYLIN, REFERENCES, Stains
from histoquant.batch import run_study
from histoquant.errors import InputError, RecipeError
from histoquant.inputs import load
from histoquant.model.recipe import parse_recipe
from histoquant.model.slide import Box
from histoquant.phantom import PhantomPlan, make_phantom
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.optics import GLASS_GREY, stain_od
from histoquant.ratio import ratio_table
from histoquant.stained import stained

PLAN = PhantomPlan("ihc", size_mm=(0.45, 0.45), pixel_size_um=0.5, animals=1, seed=8, controls=())


def test_h_score():
    assert h_score(30, 20, 10, 100) == 100  # 40/30/20/10 % of 0/1+/2+/3+
    assert h_score(0, 0, 50, 50) == 300
    assert math.isnan(h_score(0, 0, 0, 0))


def test_a_cut_is_reached_when_it_is_met():
    assert list(grades(np.array([0.199, 0.2, 0.4, 0.599, 0.6]), (0.2, 0.4, 0.6))) == [0, 1, 2, 2, 3]


def test_nucleus_over_ring():
    cells = pd.DataFrame(
        {"background_dab": [0.1, 0.1, 0.1], "mean_dab": [0.5, 0.3, 0.2], "ring_mean_dab": [0.2, 0.5, 0.1]}
    )
    ratio = nucleus_over_ring(cells, "dab")
    assert ratio[:2] == pytest.approx([4.0, 0.5])
    assert np.isnan(ratio[2])  # a ring that shows nothing


def test_animals_are_sums_of_sections():
    sections = pd.DataFrame(
        {
            "slide_id": ["a", "b"],
            "animal": "M1",
            "group": "vehicle",
            "region": "field",
            "marker": "dab",
            "cuts": "0.2 0.4 0.6",
            "n_cells": [100, 900],
            "n_1plus": [100, 0],
            "n_2plus": [0, 0],
            "n_3plus": [0, 0],
            "area_mm2": [1.0, 3.0],
            "iod_od_um2": [0.4e6, 0.0],
        }
    )
    (row,) = score_animals(sections).itertuples()
    assert row.h_score == pytest.approx(10.0)  # the mean of the two sections' scores would be 50
    assert row.mean_od == pytest.approx(0.1)
    assert row.n_sections == 2


@pytest.mark.parametrize("text", ["[0.4, 0.2, 0.6]", "[0.0, 0.2, 0.4]", "[0.2, 0.4]"])
def test_grades_must_rise(text):
    with pytest.raises(RecipeError, match="grades"):
        parse_recipe(
            '[panel.h]\nstain = "hematoxylin"\nrole = "counterstain"\n[panel.dab]\nstain = "dab"\nrole = "nuclear"\n'
            f"positive = {{ threshold = 0.2 }}\ngrades = {text}\n"
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ihc")
    make_phantom(folder / "study", PLAN)
    run_study(load(folder / "study" / "study.csv", folder / "study" / "recipe.toml"), folder / "run", workers=1)
    return folder


def test_optical_density_of_the_phantom_is_recovered(study):
    """Within 0.01 where densities are below 1, by the white and the vectors it was made with."""
    slide = registry.open_slide(study / "study" / "slides" / "M1_s1.ome.tif")
    assert slide.brightfield
    assert slide.pixel_size_um == PLAN.pixel_size_um
    vectors = (HEMATOXYLIN, REFERENCES["dab"])
    known = Stains(("hematoxylin", "dab"), vectors, (GLASS_GREY,) * 3, 1.0, False, (), 1.0)
    box = Box(0, 512, 0, 512)
    seen = stained(slide, known).read(box)[:2, 0]
    slide.close()
    true = stain_od(make_section(PLAN, Subject(0, "vehicle"))[1], box)
    for found, made in zip(seen, true, strict=True):
        for low in np.arange(0, 0.9, 0.1):
            here = (made >= low) & (made < low + 0.1)
            if here.sum() > 200:
                assert (found - made)[here].mean() == pytest.approx(0, abs=0.01)


def test_scores_of_a_run(study):
    scores = pd.read_csv(study / "run" / "tables" / "stain_scores.csv").set_index(["slide_id", "region"])
    regions = pd.read_csv(study / "run" / "tables" / "regions.csv").set_index(["slide_id", "region"])
    truth = pd.read_csv(study / "study" / "truth" / "regions.csv").set_index(["slide", "region"])
    for key, row in scores[scores.index.get_level_values("region") == "field"].iterrows():
        # Positive within two points of the truth; what reaches the first cut is what is positive, but for rims.
        assert regions.loc[key, "fraction_positive"] == pytest.approx(truth.loc[key, "fraction_positive"], abs=0.02)
        graded = row["n_1plus"] + row["n_2plus"] + row["n_3plus"]
        assert graded == pytest.approx(regions.loc[key, "n_positive"], abs=3)
        assert row["h_score"] == pytest.approx(h_score(row["n_1plus"], row["n_2plus"], row["n_3plus"], row["n_cells"]))
        assert row["cuts"] == "0.2 0.4 0.6"
        assert row["iod_od_um2"] == pytest.approx(row["mean_od"] * row["area_mm2"] * 1e6)
        assert row["nc_ratio"] > 1
    animals = pd.read_csv(study / "run" / "tables" / "stain_scores_animals.csv").set_index(["animal", "region"])
    assert animals.loc[("M2", "field"), "h_score"] < animals.loc[("M1", "field"), "h_score"]  # the effect is -40 %


def test_a_finished_slide_gives_its_scores_again(study):
    before = (study / "run" / "tables" / "stain_scores.csv").read_bytes()
    sheet, recipe = study / "study" / "study.csv", study / "study" / "recipe.toml"
    run_study(load(sheet, recipe), study / "run", workers=1)
    assert (study / "run" / "tables" / "stain_scores.csv").read_bytes() == before


def test_mean_density_is_that_of_the_ground(study):
    scores = pd.read_csv(study / "run" / "tables" / "stain_scores.csv").set_index(["slide_id", "region"])
    od = stain_od(make_section(PLAN, Subject(0, "vehicle"))[1], Box(0, 900, 0, 900))[1]
    inner = od[45:855, 45:855]  # the field leaves out a twentieth on each side
    assert scores.loc[("M1_s1", "field"), "mean_od"] == pytest.approx(inner.mean(), abs=0.012)


def test_ratio_by_animal(study):
    same = ratio_table(study / "run", study / "run", "h_score")
    assert set(same["ratio"]) == {1.0}
    assert set(same["log2_ratio"]) == {0.0}
    assert len(same) == 2
    with pytest.raises(InputError, match="no endpoint"):
        ratio_table(study / "run", study / "run", "n_cells")
    with pytest.raises(InputError, match=r"has no animals.csv"):
        ratio_table(study / "run", study / "study", "fraction_positive")
