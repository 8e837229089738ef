"""The review panel: keys decide, the canvas follows, nothing tells a reviewer which animal it is."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from napari_histoquant import launch
from napari_histoquant.launch import dock_review, open_review
from napari_histoquant.review_layers import CURRENT, GONE_COLOUR, LINE_PX, OBJECTS, REGIONS, STEADY
from napari_histoquant.review_start import UnblindDialog
from napari_histoquant.review_widget import ReviewWidget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from histoquant.journal import read_journal
from tests.napari.reviewed import SECRETS, run_in
from tests.napari.seen import found_in, press, strings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def root(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "results"))


@pytest.fixture
def review(make_napari_viewer, root):
    """Return a function that opens the review of the run in a viewer that is shown."""
    opened = []

    def start(who="Anna", blinded=True):
        viewer = make_napari_viewer(show=True)
        opened.append(open_review(viewer, root, who, blinded=blinded))
        opened[-1].window().activateWindow()
        QApplication.processEvents()
        return opened[-1]

    yield start
    for widget in opened:
        widget.close_review()


def edits(widget):
    return read_journal(widget.session.journal.path).edits


def test_every_key_does_what_its_button_says(review):
    widget = review()
    queue, found = widget.session.queue, widget.session.here.objects
    first, second, third = queue.indices[:3].tolist()
    calls = found.classes["tunel"].copy()
    press(widget, Qt.Key.Key_A, Qt.Key.Key_F, Qt.Key.Key_D)
    assert [edit.action for edit in edits(widget)] == ["accept", "call", "delete"]
    assert queue.at == 3
    assert found.classes["tunel"][first] == calls[first]
    assert found.classes["tunel"][second] == 1 - calls[second]
    assert found.gone[third]
    press(widget, (Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier), Qt.Key.Key_U)
    assert not found.gone[third]
    assert found.classes["tunel"][second] == calls[second]
    assert queue.current == second
    assert "undid:  called" in widget.panel.recent.text().splitlines()[0]
    press(widget, Qt.Key.Key_R, (Qt.Key.Key_Y, Qt.KeyboardModifier.ControlModifier))
    assert found.gone[third]
    assert [line.split("  ", 2)[2] for line in widget.panel.recent.text().splitlines()[:2]] == [
        "redid:  deleted",
        "redid:  called",
    ]
    press(widget, Qt.Key.Key_Left, Qt.Key.Key_Left, Qt.Key.Key_Right)
    assert queue.at == 1
    press(widget, Qt.Key.Key_Space)
    assert queue.at == 2
    # letters typed into a field are letters
    widget.panel.why.setFocus()
    n = len(edits(widget))
    press(widget, Qt.Key.Key_A, Qt.Key.Key_D, Qt.Key.Key_D)
    assert (widget.panel.why.text(), len(edits(widget))) == ("add", n)
    press(widget, Qt.Key.Key_Return, Qt.Key.Key_F)
    assert (edits(widget)[-1].why, widget.panel.why.text()) == ("add", "")


def test_a_cell_is_added_where_the_mouse_is(review):
    widget = review()
    widget.viewer.cursor.position = (33.0, 44.5)
    press(widget, Qt.Key.Key_N)
    (edit,) = edits(widget)
    assert (edit.action, edit.y_um, edit.x_um, edit.new) == ("add", 33.0, 44.5, True)
    assert "off the list" in widget.panel.about.text()
    widget.viewer.cursor.position = (-5.0, 44.5)
    press(widget, Qt.Key.Key_N)
    assert len(edits(widget)) == 1
    assert "not on the slide" in widget.panel.message.text()
    press(widget, Qt.Key.Key_U)
    assert widget.session.here.objects.gone[-1]
    assert "off the list" not in widget.panel.about.text()


def test_the_canvas_shows_each_cell_where_and_what_it_is(review):
    widget = review()
    viewer, found = widget.viewer, widget.session.here.objects
    points, ring = viewer.layers[OBJECTS], viewer.layers[CURRENT]
    current = widget.session.queue.current
    assert np.allclose(ring.data, found.yx_um[[current]])
    shown = {tuple(place): colour for place, colour in zip(points.data.tolist(), points.border_color, strict=True)}
    here = tuple(found.yx_um[current].tolist())
    before = shown[here]
    press(widget, Qt.Key.Key_F, Qt.Key.Key_Left)
    flipped = dict(zip(map(tuple, points.data.tolist()), points.border_color, strict=True))
    assert not np.allclose(flipped[here], before)
    press(widget, Qt.Key.Key_D, Qt.Key.Key_Left)
    gone = dict(zip(map(tuple, points.data.tolist()), points.border_color, strict=True))
    assert np.allclose(gone[here][:3], int(GONE_COLOUR[1:3], 16) / 255)
    # a channel's pixel lies where the table says: um, counted from the corner of the first pixel
    image = viewer.layers["TUNEL"]
    px = widget.session.here.pixels.pixel_size_um
    assert np.allclose(image.data_to_world((0, 0)), (px / 2, px / 2))
    assert np.allclose(
        image.extent.world[1] - image.extent.world[0] + px, np.multiply(image.data[0].shape, px), atol=2 * px
    )


def test_regions_are_outlines_that_cannot_be_moved_and_tell_no_name(review):
    widget = review()
    viewer = widget.viewer
    shown = viewer.layers[REGIONS]
    assert not shown.editable
    assert list(shown.features["name"]) == ["SVZ", "(hidden) core"]
    assert set(shown.shape_type) == {"path"}
    px = widget.session.here.pixels.pixel_size_um
    assert np.allclose(shown.data[0].max(axis=0), np.array([256, 160]) * px)  # um from the corner, as the cells
    assert viewer.layers.index(shown) < viewer.layers.index(viewer.layers[OBJECTS])
    for factor in (1.0, 3.0, 0.2):
        viewer.scene.camera.zoom *= factor
        on_screen = shown.edge_width[0] * viewer.scene.camera.zoom
        assert LINE_PX / STEADY <= on_screen <= LINE_PX * STEADY
    icon = widget.panel.region.itemIcon(widget.panel.region.findText("SVZ"))
    colour = icon.pixmap(12, 12).toImage().pixelColor(6, 6)
    assert np.allclose(shown.edge_color[0][:3], [colour.redF(), colour.greenF(), colour.blueF()], atol=0.01)
    widget.close_review()
    assert len(viewer.layers) == 0


def test_choices_change_what_comes_up(review):
    widget = review()
    panel, found = widget.panel, widget.session.here.objects
    panel.region.setCurrentIndex(panel.region.findText("SVZ"))
    panel.region.activated.emit(panel.region.currentIndex())
    assert set(found.region[widget.session.queue.indices]) == {"SVZ"}
    assert "in SVZ" in panel.counted.text()
    panel.show_.setCurrentText("positive")
    panel.show_.activated.emit(0)
    assert (found.automatic["tunel"][widget.session.queue.indices] == 1).all()
    panel.sample.setValue(3)
    panel.sample.editingFinished.emit()
    assert len(widget.session.queue) == 3
    assert "0 of 3" in panel.progress.format()
    press(widget, Qt.Key.Key_A)
    assert "1 of 3" in panel.progress.format()


def test_nothing_that_can_be_seen_tells_which_animal_it_is(review, root, monkeypatch):
    """Of the slides on the screen, of messages, of the journal, of dialogs; and the scan finds the names when shown."""
    widget = review()
    words = (*SECRETS, str(root))
    n_texts = 0
    for shown in widget.session.slides:
        widget._turn_to(shown)
        press(widget, Qt.Key.Key_A, Qt.Key.Key_F, Qt.Key.Key_U)
        widget.viewer.cursor.position = (20.0, 20.0)
        QApplication.processEvents()
        assert found_in(widget.viewer, words) == []
        n_texts += len(list(strings(widget.viewer)))
    assert n_texts > 1000  # the scan sees napari's own menus as well
    # an error about a file that is gone
    row = widget.session._rows[widget.session.names.true(widget.session.slides[0])]
    moved = row.path.rename(row.path.with_suffix(".away"))
    try:
        widget._turn_to(widget.session.slides[0])
        assert widget.panel.message.text() != ""
        assert found_in(widget.viewer, words) == []
    finally:
        moved.rename(row.path)
    # the dialog that asks whether to unblind; staying blind changes nothing
    dialog = UnblindDialog(widget)
    dialog.show()
    assert not dialog.confirm.isEnabled()
    assert found_in(widget.viewer, words) == []
    dialog.reject()
    monkeypatch.setattr(UnblindDialog, "exec", lambda dialog: 0)
    widget.unblind()
    assert widget.session.blinded
    assert found_in(widget.viewer, words) == []
    # control: once unblinded, the names are there to be found
    monkeypatch.setattr(UnblindDialog, "exec", lambda dialog: dialog.reason.setText("reviewed") or 1)
    widget.unblind()
    seen = {word for word, _ in found_in(widget.viewer, words)}
    assert {"Tapirlabel", "Narwhallabel"} <= seen
    assert seen & {"Quagga", "Dugong"}
    assert seen & {"Axolotl", "Okapi"}
    press(widget, Qt.Key.Key_A)
    assert [(edit.action, edit.blinded, edit.why) for edit in edits(widget)[-2:]] == [
        ("unblind", True, "reviewed"), ("accept", False, "")
    ]  # fmt: skip
    assert "(not blind)" in widget.panel.recent.text()


def test_the_start_page_asks_who_and_forgets_the_folder(make_napari_viewer, root):
    widget = dock_review(make_napari_viewer())
    widget.start.propose(root)
    assert root.name in widget.start.begin.text()
    widget.start.who.setText("  ")
    widget.start.begin.click()
    assert "reviewer's name" in widget.start.message.text()
    widget.start.who.setText("Ben")
    widget.start.begin.click()
    assert (widget.session.journal.who, widget.session.blinded) == ("Ben", True)
    assert (widget.start.root, widget.start.message.text()) == (None, "")
    widget.close_review()


def test_the_command_says_what_the_start_page_proposes(make_napari_viewer, root, monkeypatch):
    """`histoquant review DIR --not-blind` without a name: the page asks for it, and the tick is not set."""
    import napari

    made = []
    monkeypatch.setattr(napari, "Viewer", lambda title: made.append(make_napari_viewer(title=title)) or made[-1])
    monkeypatch.setattr(napari, "run", lambda: None)
    launch.review(root, blinded=False)
    (widget,) = (each for each in QApplication.allWidgets() if isinstance(each, ReviewWidget))
    assert (widget.start.root, widget.start.blind.isChecked(), widget.session) == (root, False, None)
    made[0].window.remove_dock_widget("all")
    launch.review(root, "Anna", blinded=False)
    widget = next(each for each in QApplication.allWidgets() if isinstance(each, ReviewWidget) and each.session)
    assert (widget.session.journal.who, widget.session.blinded) == ("Anna", False)
    widget.close_review()


def test_other_layers_would_tell_names(make_napari_viewer, root):
    viewer = make_napari_viewer()
    viewer.add_image(np.zeros((8, 8)), name="Tapirlabel_7")
    with pytest.raises(ValueError, match="Other layers are open"):
        open_review(viewer, root, "Anna")


def test_closing_leaves_the_viewer_as_it_was(review, root):
    widget = review()
    press(widget, Qt.Key.Key_F)
    widget.panel.actions["close"]()
    assert len(widget.viewer.layers) == 0
    assert widget.session is None
    assert widget.viewer.title == widget._title
    press(widget, Qt.Key.Key_F)  # the keys are free again
    assert widget.open(root, "Anna")
    assert widget.session.queue.n_reviewed == 1
