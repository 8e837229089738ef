"""What the widget shows is what the command line and Python give; what it saves is what it ran."""

import numpy as np
import pandas as pd
import pytest
from napari_histoquant import tune, view
from napari_histoquant.layers import marker_colours

from histoquant.analysis.positivity import Threshold
from histoquant.inputs import read_recipe
from histoquant.model.region import resolve
from histoquant.model.slide import Box
from histoquant.pipeline import analyse_slide, finish
from histoquant.readers.outlines import read_outlines
from histoquant.registry import open_slide

LONG = 120_000  # ms; loops compile once


@pytest.fixture
def tuned(make_napari_viewer, ran, qtbot):
    """A viewer with a slide, and the widget with its recipe."""
    viewer = make_napari_viewer(show=True)
    viewer.open(ran / "M1.ome.tif", plugin="histoquant")
    viewer.reset_view()
    _, widget = viewer.window.add_plugin_dock_widget("histoquant", "Tune a recipe")
    widget.load(ran / "recipe.toml")
    return viewer, widget


def done(qtbot, widget):
    qtbot.waitUntil(lambda: widget.worker is None, timeout=LONG)


def test_python_command_line_and_widget_give_the_same_tables(tuned, ran, qtbot):
    viewer, widget = tuned
    viewer.scene.camera.zoom = 0.5  # all of the slide is shown
    widget.preview()
    done(qtbot, widget)
    assert widget.trial.box == Box(0, 400, 0, 420)
    recipe = read_recipe(ran / "recipe.toml")
    regions = read_outlines(ran / "r.geojson", 0.5)
    by_command = pd.read_parquet(ran / "out" / "slides" / "M1" / "cells.parquet")

    def placed(tissue):
        return resolve(regions, recipe.regions, slide=(200.0, 210.0), tissue=tissue, slide_name="M1")

    slide = open_slide(ran / "M1.ome.tif")
    thresholds = {"tunel": Threshold(150.0, "fixed")}
    by_python = analyse_slide(slide, placed, recipe, thresholds=lambda cells, work: thresholds)
    slide.close()
    trial = widget.trial
    by_widget = finish(trial.work, trial.measured, placed(trial.work.survey.tissue), widget.thresholds, identity={})
    assert by_command["tunel_positive"].sum() > 10
    for table in (by_python.cells, by_widget.cells):
        pd.testing.assert_frame_equal(table, by_command, check_exact=True)
    pd.testing.assert_frame_equal(by_widget.regions, by_python.regions, check_exact=True)
    shown = widget.cells()
    common = [column for column in shown if column in by_command]
    assert {"cell_id", "tunel_value", "tunel_positive", "mean_TUNEL"} <= set(common)
    pd.testing.assert_frame_equal(shown[common], by_command[common], check_exact=True)


def test_the_area_shown_is_the_area_measured(tuned, qtbot):
    viewer, widget = tuned
    viewer.scene.camera.center = (0, 100, 100)
    viewer.scene.camera.zoom = 12.0
    qtbot.wait(100)
    box = view.visible_box(viewer, viewer.layers[0].metadata["histoquant_slide"])
    assert 0 < box.y0 < 200 < box.y1 < 400
    widget.preview()
    done(qtbot, widget)
    assert widget.trial.box == box
    labels, points = (layer for layer in viewer.layers if layer.name.startswith("preview"))
    assert labels.data.shape == box.shape
    # each point lies on its nucleus: layers of the preview lie on each other
    place = np.array([labels.world_to_data(point) for point in points.data])
    ids = [labels.data[tuple(np.round(each).astype(int))] for each in place]
    assert ids == list(widget.cells()["cell_id"])


def test_a_threshold_that_moves_calls_anew_and_reads_nothing(tuned, qtbot, monkeypatch):
    _, widget = tuned
    widget.preview()
    done(qtbot, widget)
    before = int(widget.cells()["tunel_positive"].sum())
    monkeypatch.setattr("histoquant.preview.analyse_tile", None)
    widget.set_threshold(1e6)
    assert widget.cells()["tunel_positive"].sum() == 0 < before
    assert widget.recipe.panel["tunel"].positive.threshold == 1e6
    assert widget._value.value() == 1e6
    assert "tunel+ 0 " in widget._message.text()
    qtbot.waitUntil(lambda: len(np.unique(widget._points.border_color, axis=0)) == 1)
    widget._histogram.moved.emit(150.0)  # as dragging the line does
    colour = np.array(marker_colours(["tunel"])["tunel"])
    qtbot.waitUntil(
        lambda: (np.abs(widget._points.border_color - colour).max(axis=1) < 1e-6).sum() == before, timeout=5000
    )
    assert widget._histogram.line.get_xdata()[0] == 150.0
    assert f"tunel+ {before:,}" in widget._message.text()


def test_the_control_is_measured_and_gives_the_threshold(tuned, ran, qtbot):
    _, widget = tuned
    widget._form._set(("panel", "tunel", "positive", "threshold"), "controls")
    widget.preview()
    done(qtbot, widget)
    assert "none was measured" in widget._message.text()
    assert widget.cells()["tunel_positive"].sum() == 0
    widget.measure_control(ran / "M1.ome.tif")
    done(qtbot, widget)
    values = widget.controls[0].values("tunel")
    assert len(values) > len(widget.trial.measured.cells)  # all of the control, a part of the slide
    median = np.median(values)
    expected = median + 3 * 1.4826 * np.median(np.abs(values - median))
    assert widget.thresholds["tunel"].value == pytest.approx(expected, rel=1e-12)
    assert len(widget._histogram.axes.get_legend().get_texts()) == 2


def test_what_is_saved_is_the_recipe_that_ran(tuned, tmp_path, qtbot):
    _, widget = tuned
    form = widget._form
    form.fields["panel", "tunel", "positive", "k"].setValue(4.5)
    form.fields["measure", "ring_um"].setValue(2.5)
    form.fields["segment", "diameter_um"].box.setValue(9.0)
    widget.set_threshold(123.4)
    path = tmp_path / "saved.toml"
    widget.save(path)
    saved = read_recipe(path)
    assert saved == widget.recipe
    assert saved.panel["tunel"].positive.threshold == 123.4
    assert (saved.panel["tunel"].positive.k, saved.measure.ring_um, saved.segment.diameter_um) == (4.5, 2.5, 9.0)


def test_the_threshold_of_a_recipe_is_shown_before_any_preview(tuned):
    _, widget = tuned
    assert widget._value.value() == 150.0
    widget._form._set(("panel", "tunel", "positive", "threshold"), "auto")
    assert widget._value.text() == "not known"
    assert widget.recipe.panel["tunel"].positive.threshold == "auto"


def test_the_form_shows_the_words_of_the_fields_and_refuses_in_words(tuned, qtbot):
    _, widget = tuned
    field = widget._form.fields["measure", "background_inner_um"]
    assert "Inner radius of the local background annulus" in field.toolTip()
    assert field.suffix() == ""
    assert (field.minimum(), field.maximum()) == (1e-4, 200)
    field.setValue(60.0)  # beyond the outer radius
    assert "background_outer_um must be larger" in widget._message.text()
    assert widget.recipe.measure.background_inner_um == 15.0


def test_another_segmenter_brings_its_own_lines(tuned, qtbot):
    _, widget = tuned
    assert ("segment", "certainty") not in widget._form.fields
    widget._form.fields["segment", "segmenter"].textActivated.emit("network")
    qtbot.waitUntil(lambda: ("segment", "certainty") in widget._form.fields)
    assert widget.recipe.segment.segmenter == "network"


def test_a_preview_can_be_cancelled_and_leaves_nothing(tuned, qtbot, monkeypatch):
    viewer, widget = tuned
    monkeypatch.setattr("histoquant.preview.CORE_PX", 64)
    seen = []

    def cancel(step):
        seen.append(step)
        widget.cancel()

    widget.preview()
    widget.worker.yielded.connect(cancel)
    done(qtbot, widget)
    assert seen
    assert seen[-1].done < 40
    assert widget.trial is None
    assert "Cancelled" in widget._message.text()
    assert len(viewer.layers) == 2
    assert widget._preview.isEnabled()


def test_faults_are_one_sentence(tuned, make_napari_viewer, qtbot, monkeypatch):
    _, widget = tuned
    monkeypatch.setattr("histoquant.preview.MOST_PX", 10)
    widget.preview()
    done(qtbot, widget)
    assert "Zoom in" in widget._message.text()
    alone = tune.TuneWidget(make_napari_viewer())
    qtbot.addWidget(alone)
    alone.preview()
    assert "Open a slide" in alone._message.text()


def test_a_recipe_begins_from_the_channels(tuned, qtbot):
    _, widget = tuned
    widget.begin()
    assert {name: marker.role for name, marker in widget.recipe.panel.items()} == {
        "dapi": "counterstain",
        "tunel": "nuclear",
    }
