"""Regions drawn on the screen are in the file at once, come back after undo, and carry what is derived from them."""

import numpy as np
import pytest
from napari_histoquant.draw import DrawWidget
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from histoquant.drawing import Drawing
from histoquant.readers.outlines import read_outlines
from tests.conftest import write_geojson


@pytest.fixture
def draw(make_napari_viewer, slide_path, recipe_path, tmp_path, qtbot):
    """A viewer with a slide and the widget, drawing into a new file; returns the viewer, the widget and the file."""
    viewer = make_napari_viewer(show=True)
    viewer.open(slide_path, plugin="histoquant")
    _, widget = viewer.window.add_plugin_dock_widget("histoquant", "Draw regions")
    widget.use_recipe(recipe_path)
    path = tmp_path / "new.geojson"
    widget.open_file(path)
    qtbot.waitUntil(lambda: widget.derived.tissue is not None, timeout=60_000)
    return viewer, widget, path


def add(widget, name, corners):
    widget._name.setCurrentText(name)
    widget._state_next()
    widget.layer.add([np.array(corners, dtype=float)], shape_type="polygon")


def saved(path):
    return [region.name for region in read_outlines(path, 1.0)]


def test_a_polygon_clicked_on_the_canvas_is_saved_where_it_was_clicked(draw, qtbot):
    viewer, widget, path = draw
    corners_um = [(40, 60), (60, 140), (130, 120), (120, 50)]
    widget._name.setCurrentText("lesion")
    widget.start("add_polygon")
    qtbot.wait(200)
    native = viewer.window._qt_viewer.canvas.native
    camera = viewer.scene.camera
    for place in corners_um:
        y, x = np.array([native.height(), native.width()]) / 2 + (np.array(place) - camera.center[-2:]) * camera.zoom
        QTest.mouseMove(native, QPoint(round(x), round(y)))
        QTest.mouseClick(native, Qt.MouseButton.LeftButton, pos=QPoint(round(x), round(y)))
        qtbot.wait(30)
    QTest.keyClick(native, Qt.Key.Key_Escape)
    qtbot.waitUntil(path.exists, timeout=5000)
    (region,) = read_outlines(path, 0.5)
    assert region.name == "lesion"
    drawn = np.array(region.geometry.exterior.coords)[:-1, ::-1]
    assert np.abs(drawn - corners_um).max() < 1.5 / camera.zoom + 0.01  # a pixel of the screen
    qtbot.waitUntil(lambda: widget.derived.layer is not None and len(widget.derived.layer.data) > 0, timeout=5000)
    assert set(widget.derived.layer.features["name"]) == {"band"}


def test_undo_redo_and_another_session(draw, qtbot):
    viewer, widget, path = draw
    add(widget, "lesion", [(10, 10), (10, 90), (90, 50)])
    qtbot.waitUntil(lambda: path.exists() and saved(path) == ["lesion"])
    add(widget, "SVZ", [(200, 200), (200, 300), (300, 250)])
    qtbot.waitUntil(lambda: saved(path) == ["lesion", "SVZ"])
    colours = widget.layer.edge_color
    assert not np.array_equal(colours[0], colours[1])
    widget.undo()
    assert saved(path) == ["lesion"]
    assert len(widget.layer.data) == 1
    viewer.layers.remove(widget.layer)
    again = DrawWidget(viewer)
    qtbot.addWidget(again)
    again.open_file(path)
    again.redo()
    assert saved(path) == ["lesion", "SVZ"]
    again.undo()
    again.undo()
    assert not path.exists()
    assert [len(again.layer.data), again._undo.isEnabled(), again._redo.isEnabled()] == [0, False, True]


def test_what_is_derived_follows_the_lesion(draw, qtbot):
    _, widget, _ = draw
    add(widget, "lesion", [(100, 100), (100, 200), (200, 150)])
    qtbot.waitUntil(lambda: widget.derived.layer is not None and len(widget.derived.layer.data) > 0)
    before = widget.derived.layer.extent.data
    moved = np.array(widget.layer.data[0])
    moved[2] += [100, 0]
    widget.layer.data = [moved]
    qtbot.waitUntil(lambda: widget.derived.layer.extent.data[1, 0] > before[1, 0] + 90)
    texts = [widget._tree.topLevelItem(n).text(0) for n in range(widget._tree.topLevelItemCount())]
    assert texts == ["lesion", "band"]


def test_the_shape_being_drawn_stays_selected_when_its_neighbours_are_listed_anew(draw, qtbot):
    """Else napari stops to follow the mouse, and the last corner is lost."""
    _, widget, path = draw
    add(widget, "lesion", [(10, 10), (10, 300), (300, 150)])
    qtbot.waitUntil(lambda: path.exists() and saved(path) == ["lesion"])
    widget._lies_in.setCurrentText("lesion")
    widget.layer.selected_data = {0}
    widget._show_derived()
    assert widget.layer.selected_data == {0}
    assert widget._lies_in.currentText() == "lesion"


def test_lines_are_as_wide_on_the_screen_at_every_zoom(draw, qtbot):
    """Seen on the canvas: napari knows the new width long before it draws it."""
    viewer, widget, _ = draw
    add(widget, "lesion", [(100, 0), (100, 400), (380, 400), (380, 0)])
    qtbot.waitUntil(lambda: widget.derived.layer is not None)
    widget.derived.layer.visible = False
    edge = np.array([213, 94, 0])
    viewer.layers.selection.active = viewer.layers[0]
    for zoom in (2.0, 12.0):
        viewer.scene.camera.center = (0, 50, 100)
        viewer.scene.camera.zoom = zoom
        qtbot.wait(400)
        middle = viewer.screenshot(canvas_only=True, flash=False)[:, :, :3].astype(int)
        column = middle[:, middle.shape[1] // 2]
        near = np.abs(column - edge).max(axis=1) < 60
        assert 1 <= near[len(near) // 2 - 20 : len(near) // 2 + 20].sum() <= 4


def test_what_is_derived_lies_below_in_a_colour_of_its_own(draw, qtbot):
    viewer, widget, _ = draw
    add(widget, "own name", [(250, 250), (250, 300), (300, 275)])
    add(widget, "lesion", [(100, 100), (100, 200), (200, 150)])
    qtbot.waitUntil(lambda: widget.derived.layer is not None and len(widget.derived.layer.data) > 0)
    assert viewer.layers.index(widget.derived.layer) == viewer.layers.index(widget.layer) - 1
    assert viewer.layers.selection.active is not widget.derived.layer
    qtbot.waitUntil(lambda: widget._tree.topLevelItemCount() == 3)
    drawn, derived = widget.layer.edge_color[0], widget.derived.layer.edge_color[0]
    assert not np.allclose(drawn, derived)
    listed = widget._tree.topLevelItem(2)
    colour = listed.icon(0).pixmap(12, 12).toImage().pixelColor(6, 6)
    assert (listed.text(0), listed.text(2)) == ("band", "derived")
    assert np.allclose(derived[:3], [colour.redF(), colour.greenF(), colour.blueF()], atol=0.01)


def test_names_parents_and_masks_of_what_is_selected(draw, qtbot):
    _, widget, path = draw
    add(widget, "cortex", [(10, 10), (10, 300), (300, 150)])
    add(widget, "x", [(50, 100), (50, 200), (100, 150)])
    qtbot.waitUntil(lambda: path.exists() and len(saved(path)) == 2)
    widget.layer.selected_data = {1}
    widget._name.setCurrentText("DG")
    widget._lies_in.setCurrentText("cortex")
    widget.layer.selected_data = {1}
    widget.rename()
    told = {region.name: region.parent for region in read_outlines(path, 1.0)}
    assert told == {"cortex": None, "DG": "cortex"}
    assert widget._tree.topLevelItem(0).child(0).text(0) == "DG"
    widget._masked.setChecked(True)
    widget.layer.selected_data = {1}
    widget.rename()
    assert [region.masked for region in read_outlines(path, 1.0)] == [False, True]


def test_untouched_outlines_keep_every_bit_and_foreign_changes_are_not_overwritten(draw, qtbot, outlines_path):
    _, widget, _ = draw
    before = Drawing(outlines_path).regions
    widget.open_file(outlines_path)
    add(widget, "DG", [(10, 10), (10, 30), (30, 20)])
    qtbot.waitUntil(lambda: len(saved(outlines_path)) == 3)
    assert Drawing(outlines_path).regions[:2] == before
    write_geojson(outlines_path, other=[(0, 0), (50, 0), (50, 50)])
    add(widget, "CA1", [(110, 10), (110, 30), (130, 20)])
    qtbot.waitUntil(lambda: "another program" in widget._message.text())
    assert saved(outlines_path) == ["other"]


def test_without_a_slide_it_says_what_to_do(make_napari_viewer, tmp_path, qtbot):
    widget = DrawWidget(make_napari_viewer())
    qtbot.addWidget(widget)
    widget.open_file(tmp_path / "a.geojson")
    assert "Open the slide first" in widget._message.text()
    widget.start("add_polygon")
    assert "Choose the file" in widget._message.text()
