"""A review of spines: the same queue, keys and journal as for cells, in three dimensions and with classes by name."""

import shutil

import numpy as np
import pytest
from napari_histoquant.crops import IN_FOCUS_UM, StackCrops, pyramid
from napari_histoquant.launch import open_review
from napari_histoquant.queue import ALL, Selection, class_name
from napari_histoquant.review_layers import CURRENT, OBJECTS
from napari_histoquant.reviewing import Session
from qtpy.QtCore import Qt

from histoquant.analysis.review import CLASS
from histoquant.analysis.spine_rules import CLASSES
from histoquant.corrected_spines import write_corrected_spines
from histoquant.errors import InputError
from histoquant.journal import read_journal
from histoquant.model import tables
from histoquant.registry import open_slide
from histoquant.report.run import read_table
from tests.napari.reviewed import SECRETS, spines_in
from tests.napari.seen import Mouse, found_in, press, strings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return spines_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def session(root):
    with Session(root, "Anna") as session:
        session.open(most_spines(session))
        yield session


def most_spines(session):
    """Return the stack that has most spines, by the name that is shown."""

    def count(shown):
        session.open(shown)
        return len(session.here.objects)

    return max(session.slides, key=count)


def tables_of(root, slide):
    return read_table(root / "slides" / slide / "spines.csv", tables.SPINES)


def test_spines_are_outlined_as_wide_as_they_look(session, root):
    table, px = tables_of(root, session.here.slide_id), session.here.results.pixel_size_um
    point_um, within = session.here.results.settings.resolution_um, 0
    for index, row in enumerate(table.itertuples()):
        long = np.hypot(row.y_um - row.base_y_um, row.x_um - row.base_x_um)
        if long < 1.2:  # those that lie whole in their crop
            wide, within = np.hypot(row.head_width_um, point_um), within + 1
            outlined = session.here.crop(index).inside.sum() * px**2
            assert outlined == pytest.approx(long * wide + np.pi / 4 * wide**2, rel=0.3)
    assert within > 3


def test_spines_come_up_with_their_classes_and_dendrites(session, root):
    found, table = session.here.objects, tables_of(root, session.here.slide_id)
    assert (found.kind, session.markers) == ("spine", [CLASS])
    assert np.array_equal(found.yx_um, table[["y_um", "x_um"]])
    assert np.array_equal(found.z_um, table["z_um"])
    assert found.choices[CLASS] == ("", *CLASSES["A"])
    assert [found.called(n, CLASS) for n in range(len(found))] == table["class"].fillna("").tolist()
    assert found.regions == sorted(table["dendrite_id"].unique())
    # nearest to the least score first
    first = found.chosen(Selection(CLASS))
    assert first[0] == np.abs(table["score"] / 0.4 - 1).argmin()
    names = [class_name(value) for value in found.choices[CLASS]]
    shown = [n for name in names for n in found.chosen(Selection(CLASS, show=name)).tolist()]
    assert sorted(shown) == sorted(found.chosen(Selection(CLASS, show=ALL)).tolist())


def test_what_is_shown_is_what_the_tables_become(session, root):
    """Renamed, deleted, added, undone: the counts of the review are those of its replay, also when opened again."""
    slide, found = session.here.slide_id, session.here.objects
    session.call("filopodium", "long")
    deleted = session.delete()
    session.flip()
    session.undo()
    before = found.counts(CLASS)
    path = session.here.results.paths[found.regions[0]]
    y, x = path[len(path) // 2, 1:]
    added = session.add(float(y) + 1.0, float(x))
    assert found.counts(CLASS).corrected == before.corrected + 1 == len(tables_of(root, slide))
    assert (found.region[added], found.called(added, CLASS)) == (found.regions[0], "")
    assert abs(found.z_um[added] - path[len(path) // 2, 0]) <= 4.0
    session.call("stubby")
    edits = [edit for edit in session.journal.edits if edit.action != "undo"]
    assert all(edit.z_um is not None and edit.kind == "spine" and edit.blinded for edit in edits)
    corrected = write_corrected_spines(root)
    own = corrected.spines[corrected.spines["slide_id"] == slide]
    assert len(own) == found.counts(CLASS).corrected
    for dendrite in found.regions:
        lines = corrected.dendrites
        n = lines[(lines["slide_id"] == slide) & (lines["dendrite_id"] == dendrite)]["n_spines"].item()
        assert n == found.counts(CLASS, dendrite).corrected
    assert len(corrected.unmatched) == 0
    assert (own["class"] == "stubby").sum() == ((found.classes[CLASS] == 2) & ~found.gone).sum()
    shown = session.shown
    session.close()
    again = Session(root, "Anna")
    again.open(shown)
    assert np.array_equal(again.here.objects.classes[CLASS], found.classes[CLASS])
    assert np.array_equal(np.flatnonzero(again.here.objects.gone), [deleted])
    again.close()


def test_flipping_goes_round_the_classes_that_have_names(session):
    found, index = session.here.objects, session.queue.current
    seen = []
    for _ in range(5):
        session.queue.go_to(index)
        session.flip()
        seen.append(found.called(index, CLASS))
    assert set(seen[:4]) == set(CLASSES["A"])
    assert seen[4] == seen[0]


def test_a_spine_is_added_to_a_dendrite_or_not_at_all(session):
    n = len(session.here.objects)
    height = session.here.pixels.shape[0] * session.here.pixels.pixel_size_um
    far = [at for at in np.linspace(0, height, 40) if not near_any(session, at, 0.0)]
    with pytest.raises(InputError, match="No dendrite lies within 4 um"):
        session.add(far[0], 0.0)
    assert len(session.here.objects) == n
    assert session.journal.edits == []


def near_any(session, y, x):
    paths = session.here.results.paths.values()
    return any(np.hypot(*(path[:, 1:] - (y, x)).T).min() < 5 for path in paths)


def test_a_stack_without_its_dendrites_is_one_sentence(root):
    with Session(root, "Anna") as session:
        slide = session.names.true(session.slides[0])
        (root / "slides" / slide / "traces" / "dendrites.csv").unlink()
        with pytest.raises(InputError, match=r"holds no dendrites of stack .*\n?.*"):
            session.open(session.slides[0])


def test_crops_show_what_is_in_focus_and_everything(made):
    slide = open_slide(made.parent / "Ibexfolder" / "Tapirlabel_7.ome.tif")
    stack, px = slide.read()[0], slide.pixel_size_um
    step = 0.5
    z, y, x = (n // 2 for n in stack.shape)
    crops = StackCrops(slide, (0,), step, dark=False)
    crop = crops.at(z * step, y * px, x * px, (y * px, x * px - 1.0), 0.6)
    half, near = len(crop.inside) // 2, round(IN_FOCUS_UM / step)
    square = stack[:, y - half : y + half + 1, x - half : x + half + 1]
    assert np.array_equal(crop.pixels[0], square[z - near : z + near + 1].max(axis=0))
    assert np.array_equal(crop.pixels[1], square.max(axis=0))
    # a spine 1 um long and 0.6 um wide, with round ends
    assert crop.inside.sum() * px**2 == pytest.approx(0.6 + np.pi * 0.09, rel=0.15)
    assert crop.inside[half, half]
    assert not crop.inside[half, half + 5]
    assert crops.at(z * step, y * px, x * px, (y * px, x * px - 1.0), 0.6) is crop
    dark = StackCrops(slide, (0,), step, dark=True).at(z * step, y * px, x * px)
    assert np.array_equal(dark.pixels[1], square.min(axis=0))
    assert not dark.inside.any()
    column = stack[:, y - 1 : y + 2, x - 1 : x + 2].mean(axis=(1, 2))
    assert crops.depth_um(y * px, x * px, z * step, 1e3) == np.argmax(column) * step
    assert abs(crops.depth_um(y * px, x * px, 0.0, 1.0)) <= 1.0
    slide.close()


def test_golgi_stacks_are_shown_dark_on_bright(tmp_path_factory):
    root = shutil.copytree(spines_in(tmp_path_factory.getbasetemp(), "golgi"), tmp_path_factory.mktemp("golgi") / "run")
    with Session(root, "Anna") as session:
        session.open(most_spines(session))
        assert session.here.objects.choices[CLASS] == ("", *CLASSES["B"])
        assert session.here.pixels.brightfield
        (level, *_), *_ = pyramid(session.here.pixels, session.here.segment)
        assert np.array_equal(np.asarray(level), np.moveaxis(session.here.pixels.read().min(axis=1), 0, -1))
        crop = session.here.crop(session.queue.current)
        assert crop.pixels.shape[0] == 6
        assert (crop.pixels[3:] <= crop.pixels[:3]).all()  # of all planes the darkest
        assert session.accept() is not None
        (edit,) = read_journal(session.journal.path).edits
        assert edit.z_um is not None


@pytest.fixture
def review(make_napari_viewer, root):
    viewer = make_napari_viewer(show=True)
    widget = open_review(viewer, root, "Anna")
    widget._turn_to(most_spines(widget.session))
    widget.window().activateWindow()
    yield widget
    widget.close_review()


def test_keys_name_classes_and_the_canvas_follows(review):
    found, queue = review.session.here.objects, review.session.queue
    first = queue.current
    press(review, Qt.Key.Key_4)
    assert found.called(first, CLASS) == "filopodium"
    assert queue.current != first
    ring, points = review.viewer.layers[CURRENT], review.viewer.layers[OBJECTS]
    assert np.allclose(ring.data, found.yx_um[[queue.current]])
    assert len(points.data) == len(found.within((-50.0, -50.0), (200.0, 200.0), CLASS, 1000))
    # the first voxel's centre is at 0, of the pixels as of the spines
    assert np.allclose(review.viewer.layers[0].translate, 0)
    assert [title.text() for title, _ in review.panel._shown] == ["its planes", "all planes"]
    texts = review.panel._legend.text(), review.panel.counted.text(), review.panel.about.text()
    assert all(name in texts[0] for name in CLASSES["A"])
    assert texts[1].startswith("spines in slide:")
    assert texts[2].startswith("spine ")
    assert f" · dendrite {found.region[queue.current]} · " in texts[2]
    assert [review.panel.region.itemText(n) for n in range(2)] == ["everywhere", f"dendrite {found.regions[0]}"]
    assert [review.panel.show_.itemText(n) for n in range(3)] == [ALL, "no class", "mushroom"]
    review.panel.show_.setCurrentText("thin")
    review.panel.selected.emit(None)
    assert review.session.queue.selection.show == "thin"
    review.viewer.cursor.position = (-5.0, -5.0)
    press(review, Qt.Key.Key_N)
    assert "Point at the spine to add" in review.panel.message.text()


def test_a_double_click_turns_to_a_spine_and_leaves_the_view_as_wide(review, qtbot):
    found, queue = review.session.here.objects, review.session.queue
    alone = np.hypot(*(found.yx_um[:, None] - found.yx_um[None]).transpose(2, 0, 1)) + 9 * np.eye(len(found))
    wanted = next(n for n in np.argsort(-alone.min(axis=1)) if n != queue.current)
    review.viewer.scene.camera.center = found.yx_um.mean(axis=0)
    qtbot.wait(200)
    zoom = review.viewer.scene.camera.zoom
    Mouse(review.viewer, qtbot).click(found.yx_um[wanted], double=True)
    assert queue.current == wanted
    assert review.viewer.scene.camera.zoom == zoom
    callbacks = list(review.viewer.mouse_double_click_callbacks)
    review.close_review()
    assert review.viewer.mouse_double_click_callbacks != callbacks


def test_nothing_tells_which_animal_a_stack_is_of(review, root):
    words = (*SECRETS, str(root))
    for shown in review.session.slides:
        review._turn_to(shown)
        press(review, Qt.Key.Key_A, Qt.Key.Key_1, Qt.Key.Key_U)
        assert found_in(review.viewer, words) == []
    assert len(list(strings(review.viewer))) > 300
