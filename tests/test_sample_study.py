"""The main job on studies whose truth is known: the sample study, and phantoms made here."""

import pandas as pd
import pytest

from histoquant.analysis.agreement import match_points
from histoquant.batch import run_study
from histoquant.inputs import load
from histoquant.phantom import PhantomPlan, make_phantom
from histoquant.samples import sample_study
from histoquant.single import score_files, segment_image

PLACE = ["y_um", "x_um"]


def positives(cells, truth, marker):
    return match_points(
        cells[cells[f"{marker}_positive"]][PLACE], truth[truth[f"{marker}_positive"]][PLACE], tolerance_um=4.0
    )


def test_the_sample_study_shows_its_true_effect(tmp_path):
    study = sample_study(tmp_path / "made", print)
    outcome = run_study(load(study, study.with_name("recipe.toml")), tmp_path / "out", workers=2)
    assert not outcome.failures
    groups = pd.read_csv(tmp_path / "out" / "tables" / "groups.csv").set_index(["group", "region", "marker"])
    truth = pd.read_csv(study.parent / "truth" / "effects.csv").set_index(["group", "region", "marker"])
    zone = ("treated", "ibz_outer", "tunel")
    for column in ("percent_change_density", "percent_change_fraction"):
        assert abs(groups.loc[zone, column] - truth.loc[zone, "percent_change"]) < 10
        assert abs(groups.loc[zone, column] + 50) < 10
    assert groups.loc[zone, "reference_group"] == "vehicle"
    # Area does not depend on any cell: it is the drawn lesion's band, and known.
    assert groups.loc[zone, "area_mm2"] == pytest.approx(truth.loc[zone, "area_mm2"], rel=0.01)
    found = []
    for slide in sorted((tmp_path / "out" / "slides").glob("M*")):
        cells = pd.read_parquet(slide / "cells.parquet")
        true = pd.read_csv(study.parent / "truth" / f"{slide.name}_cells.csv")
        assert match_points(cells[PLACE], true[PLACE], tolerance_um=4.0).f1 > 0.97
        found.append(positives(cells, true, "tunel").f1)
        assert {"condensed", "diffuse"} <= set(cells["tunel_class"])
        assert cells["distance_to_lesion_um"].min() < 0 < cells["distance_to_lesion_um"].max()
    assert sum(found) / len(found) >= 0.95
    effects = pd.read_csv(tmp_path / "out" / "tables" / "statistics.csv").set_index(["endpoint", "region"])
    effect = effects.loc[("tunel_density_per_mm2", "ibz_outer")]
    assert effect["percent_change"] == pytest.approx(groups.loc[zone, "percent_change_density"])
    assert effect["ci_low"] < -50 < effect["ci_high"] < 0
    assert (effect["n_a"], effect["n_b"], effect["test"]) == (3, 3, "Welch t")
    curve = pd.read_csv(tmp_path / "out" / "tables" / "sensitivity.csv")
    assert set(curve["factor"]) == {0.8, 0.9, 1.0, 1.1, 1.2}


@pytest.mark.parametrize(("density_per_mm2", "least"), [(1600.0, 0.98), (3500.0, 0.97)])
def test_nuclei_of_thin_sections(tmp_path, density_per_mm2, least):
    plan = PhantomPlan("nuclei", animals=1, seed=21, density_per_mm2=density_per_mm2, size_mm=(0.7, 0.7))
    make_phantom(tmp_path, plan)
    (slide,) = (tmp_path / "slides").iterdir()
    (truth,) = (tmp_path / "truth").glob("*_labels.ome.tif")
    segment_image(slide, tmp_path / "labels.tif", channel="DAPI", pixel_size_um=None, settings={})
    assert score_files(tmp_path / "labels.tif", truth, iou=(0.5,))["f1"] >= least


def test_brdu_and_dcx(tmp_path):
    """Clusters of touching nuclei and weak DAPI."""
    study = make_phantom(tmp_path / "p", PhantomPlan("brdu", animals=1, seed=22, size_mm=(1.2, 1.2)))
    assert not run_study(load(study, study.with_name("recipe.toml")), tmp_path / "out", workers=2).failures
    regions = pd.read_csv(tmp_path / "out" / "tables" / "regions.csv")
    double = regions[regions["marker"] == "brdu+dcx"].set_index(["slide_id", "region"])["n_positive"]
    for marker in ("brdu", "dcx"):
        single = regions[regions["marker"] == marker].set_index(["slide_id", "region"])["n_positive"]
        assert (double <= single).all()
    assert double.sum() > 0
    area = regions[regions["marker"] == "dcx"].set_index(["slide_id", "region"])["percent_area"]
    assert (area.drop("control_1_s1", errors="ignore") >= 0).all()
    assert area.loc[("M1_s1", "svz")] > 5 * area.loc[("control_1_s1", "svz")]
    for name in ("M1_s1", "M2_s1"):
        cells = pd.read_parquet(tmp_path / "out" / "slides" / name / "cells.parquet")
        truth = pd.read_csv(tmp_path / "p" / "truth" / f"{name}_cells.csv")
        assert positives(cells, truth, "brdu").f1 >= 0.95
        assert positives(cells, truth, "dcx").f1 >= 0.95
