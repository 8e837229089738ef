"""A preview gives the rows that a run gives, in the area that is shown."""

import numpy as np
import pandas as pd
import pytest

from histoquant.analysis.positivity import Threshold
from histoquant.errors import InputError
from histoquant.form import with_value
from histoquant.model.recipe import parse_recipe
from histoquant.model.slide import Box
from histoquant.preview import Bench, finished, threshold_of
from histoquant.registry import open_slide
from tests.conftest import RECIPE, make_scene, write_slide

PLACE = ["y_px", "x_px"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    scene = make_scene((420, 400), n=120, spacing=1.7)  # some touch
    slide = open_slide(write_slide(tmp_path_factory.mktemp("preview") / "a.ome.tif", scene.pixels))
    yield Bench(slide)
    slide.close()


@pytest.fixture(scope="module")
def recipe():
    return parse_recipe(RECIPE)


@pytest.fixture(scope="module")
def whole(bench, recipe):
    return finished(bench.trial(recipe))


def inside(cells, box):
    rows = (cells["y_px"] >= box.y0 + 0.5) & (cells["y_px"] < box.y1 + 0.5)
    columns = (cells["x_px"] >= box.x0 + 0.5) & (cells["x_px"] < box.x1 + 0.5)
    return cells[rows & columns].drop(columns="cell_id").reset_index(drop=True)


@pytest.mark.parametrize("box", [Box(100, 301, 57, 260), Box(-50, 200, 300, 999)])
def test_the_cells_of_an_area_are_those_of_the_slide(bench, recipe, whole, box):
    trial = finished(bench.trial(recipe, box))
    expected = inside(whole.measured.cells, trial.box)
    assert 10 < len(expected) < len(whole.measured.cells)
    pd.testing.assert_frame_equal(trial.measured.cells.drop(columns="cell_id"), expected, check_exact=True)


def test_fragments_at_the_edge_of_an_area_are_joined_as_on_the_slide(bench, recipe):
    dying = with_value(
        with_value(recipe, ("panel", "tunel", "orphans"), True), ("panel", "tunel", "death_classes"), True
    )
    box = Box(100, 301, 57, 260)
    trial, slide = finished(bench.trial(dying, box)), finished(bench.trial(dying))
    expected = inside(slide.measured.cells, box)
    pd.testing.assert_frame_equal(trial.measured.cells.drop(columns="cell_id"), expected, check_exact=True)
    assert set(trial.measured.objects["attached_to"]) <= {0, *trial.measured.cells["cell_id"]}


def test_the_nuclei_shown_are_the_nuclei_counted(whole, bench, recipe):
    trial = finished(bench.trial(recipe, Box(100, 301, 57, 260)))
    assert trial.labels.shape == (201, 203)
    assert set(np.unique(trial.labels)) - {0} <= set(trial.measured.cells["cell_id"])
    area = np.bincount(whole.labels.ravel(), minlength=len(whole.measured.cells) + 1)[1:]
    assert np.array_equal(area * 0.25, whole.measured.cells["area_um2"])  # 0.5 um pixels


def test_calls_follow_the_threshold_without_a_pixel(whole, recipe):
    counts = []
    for value in (50.0, 150.0, 1e9):
        moved = whole.under(with_value(recipe, ("panel", "tunel", "positive", "threshold"), value))
        assert moved.measured is whole.measured
        counts.append(int(moved.called({"tunel": threshold_of(moved, "tunel")})["tunel_positive"].sum()))
    assert counts[0] >= counts[1] > counts[2] == 0


def test_what_needs_pixels_is_refused_until_it_is_previewed_again(whole, recipe):
    other = with_value(recipe, ("measure", "ring_um"), 3.0)
    assert not whole.fits(other)
    with pytest.raises(InputError, match="Preview again"):
        whole.under(other)


def test_a_slide_is_surveyed_once_for_a_way_of_measuring(bench, recipe, monkeypatch):
    def refuse(*_):
        raise AssertionError("surveyed again")

    finished(bench.trial(recipe))
    monkeypatch.setattr("histoquant.preview.survey", refuse)
    assert bench.surveyed(with_value(recipe, ("panel", "tunel", "positive", "threshold"), 7.0))
    finished(bench.trial(with_value(recipe, ("panel", "tunel", "positive", "threshold"), 7.0)))
    with pytest.raises(AssertionError, match="again"):
        finished(bench.trial(with_value(recipe, ("background", "percentile"), 20.0)))


def test_thresholds_come_from_where_the_recipe_says(whole, recipe):
    from_controls = whole.under(with_value(recipe, ("panel", "tunel", "positive", "threshold"), "controls"))
    with pytest.raises(InputError, match="none was measured"):
        threshold_of(from_controls, "tunel")
    found = threshold_of(from_controls, "tunel", [whole, whole])
    values = whole.values("tunel")
    median = np.median(values)
    assert found.source == "controls"
    assert found.value == pytest.approx(median + 3 * 1.4826 * np.median(np.abs(values - median)), rel=1e-12)
    assert found.detail["n_nuclei"] == 2 * len(values)
    automatic = whole.under(with_value(recipe, ("panel", "tunel", "positive", "threshold"), "auto"))
    assert threshold_of(automatic, "tunel").source == "auto"
    assert threshold_of(whole, "tunel") == Threshold(150.0, "fixed")


def test_areas_that_cannot_be_previewed_are_refused_in_words(bench, recipe, monkeypatch):
    with pytest.raises(InputError, match="off the slide"):
        finished(bench.trial(recipe, Box(900, 950, 0, 50)))
    monkeypatch.setattr("histoquant.preview.MOST_PX", 1000)
    with pytest.raises(InputError, match="Zoom in"):
        finished(bench.trial(recipe))
    box = bench.sample_box(recipe, 10_000)
    assert box.shape == (100, 100)


def test_progress_counts_the_tiles(bench, recipe, monkeypatch):
    monkeypatch.setattr("histoquant.preview.CORE_PX", 128)
    steps = list(bench.trial(recipe, Box(0, 256, 0, 300)))
    assert [(step.done, step.total) for step in steps] == [(0, 0), *((n, 6) for n in range(7))]
