"""A review of lesions: drawn anew on the canvas, kept as they are drawn, counted as the replay counts them."""

import shutil

import numpy as np
import pytest
import shapely
from napari_histoquant.launch import open_review
from napari_histoquant.reviewing import Session
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from histoquant.analysis.review import CLASS
from histoquant.corrected_infarct import REDRAWN, write_corrected_infarct
from histoquant.errors import InputError
from histoquant.journal import read_journal
from histoquant.model.edit import LESION
from tests.napari.reviewed import SECRETS, infarcts_in
from tests.napari.seen import Mouse, found_in, press


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return infarcts_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


def disc(here, index, radius_um=800.0):
    """Return a lesion in the hemisphere with the lesion of a slice."""
    return here.results.slices[index].sides(here.results.side)[0].representative_point().buffer(radius_um)


def test_a_redrawn_lesion_is_what_the_tables_count(root):
    with Session(root, "Anna") as session:
        session.open(session.slides[0])
        here, slide = session.here, session.here.slide_id
        assert (here.objects.kind, session.markers) == ("lesion", [CLASS])
        assert here.objects.region.tolist() == [f"slice {n}" for n in range(1, len(here.objects) + 1)]
        assert session.redraw(here.lesion(session.queue.current)) is None  # nothing was changed, found or not
        index = next(n for n in range(len(here.objects)) if not here.lesion(n).is_empty)
        session.queue.go_to(index)
        lesion = disc(here, index)
        assert session.redraw(here.lesion(index)) is None
        assert session.redraw(lesion) == index
        assert session.redraw(lesion) is None
        assert session.queue.current == index  # one goes on drawing
        assert here.objects.called(index, CLASS) == REDRAWN
        area = shapely.intersection(here.lesion(index), here.results.slices[index].sides(here.results.side)[0]).area
        assert here.told(index)[0].startswith(f"{area / 1e6:.2f} mm²")
        with pytest.raises(InputError, match="drawn on the canvas"):
            session.call(REDRAWN)
        with pytest.raises(InputError, match="drawn, not added"):
            session.add(100.0, 100.0)
        with pytest.raises(InputError, match="lies on another slice"):
            session.redraw(disc(here, (index + 1) % len(here.objects)))
        session.queue.step(1)
        deleted = session.delete()
        slices = write_corrected_infarct(root).infarct_slices
        own = slices[slices["slide_id"] == slide]["infarct_mm2"].tolist()
        assert own[index] == pytest.approx(area / 1e6, abs=1e-4)
        assert own[deleted] == 0
        shown = session.shown
    again = Session(root, "Anna")
    again.open(shown)
    assert again.here.lesion(index).symmetric_difference(here.lesion(index)).area < 1.0
    assert again.here.lesion(deleted).is_empty
    again.undo()
    again.undo()
    assert again.here.lesion(index).equals(again.here.results.slices[index].lesion)
    again.redo()
    assert again.here.objects.called(index, CLASS) == REDRAWN
    again.flip()  # as it was found
    assert again.here.lesion(index).equals(again.here.results.slices[index].lesion)
    again.close()


@pytest.fixture
def review(make_napari_viewer, root):
    widget = open_review(make_napari_viewer(show=True), root, "Anna")
    widget.window().activateWindow()
    yield widget
    widget.close_review()


def edits(widget):
    return read_journal(widget.session.journal.path).edits


def test_what_is_drawn_is_kept_when_the_mouse_rests_or_anything_else_is_done(review, qtbot):
    here = review.session.here
    index = next(n for n in range(len(here.objects)) if not here.lesion(n).is_empty)
    review.session.queue.go_to(index)
    review.show_on_canvas()
    layer = review.viewer.layers[LESION]
    assert (len(layer.data) == 0) == here.lesion(index).is_empty
    ring = np.asarray(disc(here, index).exterior.coords)[:-1, ::-1]
    layer.data = []
    layer.add([ring], shape_type="polygon")
    qtbot.waitUntil(lambda: len(edits(review)) == 1, timeout=5000)
    (edit,) = edits(review)
    assert (edit.action, edit.new, edit.region) == ("call", REDRAWN, here.objects.region[index])
    assert shapely.from_wkt(edit.outline).area == pytest.approx(disc(here, index).area, rel=1e-3)
    assert "mm², found" in review.panel.about.text()
    # a corner is moved, and the next key comes at once: the edit belongs to the lesion that is left
    moved = [layer.data[0] + [300.0, 0.0]]
    layer.data = moved
    assert review.wait_for_drawing.isActive()
    press(review, Qt.Key.Key_Right)
    assert len(edits(review)) == 2
    assert edits(review)[-1].region == here.objects.region[index]
    assert review.session.queue.current != index
    now = review.session.here.lesion(review.session.queue.current)
    assert review.lesion.drawn().symmetric_difference(now).area < 1.0
    press(review, Qt.Key.Key_U)
    assert review.session.queue.current == index
    assert review.lesion.drawn().symmetric_difference(disc(here, index)).area < 1e3
    assert not review.wait_for_drawing.isActive()  # what the review shows is not drawn by a person
    press(review, Qt.Key.Key_D)
    press(review, Qt.Key.Key_Left)
    assert len(review.viewer.layers[LESION].data) == 0


def test_lesions_that_were_found_are_shown_to_be_changed(review):
    for shown in review.session.slides:
        review._turn_to(shown)
        for index in range(len(review.session.here.objects)):
            review.session.queue.go_to(index)
            review.show_on_canvas()
            lesion = review.session.here.lesion(index)
            assert review.lesion.drawn().symmetric_difference(lesion).area < 1.0
            assert (len(review.viewer.layers[LESION].data) == 0) == lesion.is_empty
    assert len(edits(review)) == 0


def test_what_is_drawn_hides_no_tissue_and_is_as_wide_at_every_zoom(review, qtbot):
    layer, camera = review.viewer.layers[LESION], review.viewer.scene.camera
    for zoom in (camera.zoom, camera.zoom * 4):
        camera.zoom = zoom
        qtbot.wait(50)
        assert layer.current_face_color in ("transparent", "#00000000")
        assert layer.current_edge_width * zoom == pytest.approx(2.5)
    layer.add([np.array(square(review.session.here, review.session.queue.current))], shape_type="polygon")
    assert layer.edge_width[-1] * zoom == pytest.approx(2.5)
    assert layer.face_color[-1, 3] == 0


@pytest.fixture
def mouse(review, qtbot):
    review.wait_for_drawing.setInterval(50)
    qtbot.wait(200)
    return Mouse(review.viewer, qtbot)


def square(here, index, half_um=800.0):
    """Return the corners (y, x) of a square within a slice."""
    centre = here.results.slices[index].sides(here.results.side)[0].representative_point()
    return [(centre.y + half_um * y, centre.x + half_um * x) for y, x in ((-1, -1), (-1, 1), (1, 1), (1, -1))]


def area_mm2(edit):
    return shapely.from_wkt(edit.outline).area / 1e6


def test_an_outline_ended_by_a_double_click_is_kept_however_slowly_it_is_drawn(review, mouse, qtbot):
    """That double click turns to no other slice, and no rest of the mouse ends the outline."""
    corners, index = square(review.session.here, review.session.queue.current), review.session.queue.current
    mouse.take(LESION, "add_polygon")
    for corner in corners:
        mouse.click(corner)
        qtbot.wait(120)
        assert len(edits(review)) == 0
    mouse.click(corners[-1], double=True)
    qtbot.waitUntil(lambda: len(edits(review)) == 1, timeout=5000)
    assert area_mm2(edits(review)[0]) == pytest.approx(1.6**2, rel=0.05)
    assert review.session.queue.current == index
    mouse.click(corners[0])
    QTest.keyClick(mouse.native, Qt.Key.Key_Escape)  # begun and given up
    qtbot.wait(150)
    assert len(edits(review)) == 1
    assert len(review.viewer.layers[LESION].data) == 1


@pytest.mark.parametrize("key", [Qt.Key.Key_Right, Qt.Key.Key_A, Qt.Key.Key_N])
def test_an_outline_that_is_not_ended_is_kept_by_whatever_comes_next(review, mouse, key):
    here, index = review.session.here, review.session.queue.current
    mouse.take(LESION, "add_polygon")
    for corner in square(here, index):
        mouse.click(corner)
    press(review, key)
    kept = edits(review)[0]
    assert (kept.new, kept.region) == (REDRAWN, here.objects.region[index])
    assert area_mm2(kept) == pytest.approx(1.6**2, rel=0.05)
    assert ("drawn, not added" in review.panel.message.text()) == (key == Qt.Key.Key_N)


def test_a_double_click_on_another_slice_keeps_what_was_drawn_on_this_one(review, mouse):
    here, index = review.session.here, review.session.queue.current
    other = (index + 1) % len(here.objects)
    layer = review.viewer.layers[LESION]
    layer.data = []
    review.wait_for_drawing.setInterval(60_000)
    review.viewer.scene.camera.zoom /= 4
    mouse.qtbot.wait(100)
    layer.add([np.array(square(here, index))], shape_type="polygon")
    mouse.click(here.objects.yx_um[other], double=True)
    assert review.session.queue.current == other
    assert [edit.region for edit in edits(review)] == [here.objects.region[index]]


def test_what_cannot_be_kept_is_told_before_it_is_given_up(review, qtbot):
    here, index = review.session.here, review.session.queue.current
    layer = review.viewer.layers[LESION]
    layer.data = []
    layer.add([np.array(square(here, (index + 1) % len(here.objects)))], shape_type="polygon")
    QTest.keyClick(review.window().windowHandle(), Qt.Key.Key_Right)
    qtbot.waitUntil(lambda: "lies on another slice" in review.panel.message.text())
    qtbot.wait(100)
    assert (review.session.queue.current, len(layer.data)) == (index, 1)
    press(review, Qt.Key.Key_Right)
    assert review.session.queue.current != index
    assert len(edits(review)) == 0


def test_nothing_tells_which_animal_a_brain_is_of(review, root):
    for shown in review.session.slides:
        review._turn_to(shown)
        press(review, Qt.Key.Key_A, Qt.Key.Key_D, Qt.Key.Key_U)
        assert found_in(review.viewer, (*SECRETS, str(root))) == []
    assert review.panel._shown == []
