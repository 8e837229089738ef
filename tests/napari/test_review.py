"""A review without a screen: what comes up, what a decision does, and that it is what the tables are counted from."""

import contextlib
import shutil

import numpy as np
import pandas as pd
import pytest
from napari_histoquant.crops import Crops, Plane, contrast_limits, outline
from napari_histoquant.queue import ALL, EVERYWHERE, PLACE, Objects, Queue, Selection
from napari_histoquant.reviewing import Session

from histoquant.analysis.review import replay
from histoquant.errors import FormatError, InputError
from histoquant.journal import read_journal
from histoquant.model.edit import Edit
from histoquant.model.panel import Marker, Positive
from histoquant.model.recipe import Segment
from histoquant.registry import open_slide
from tests.napari.reviewed import SECRETS, run_in

PANEL = {"tunel": Marker(role="nuclear", positive=Positive(threshold=100.0))}


def cells(values, regions=None, places=None):
    """Return a table of cells, one for each value; those of 100 and more are positive."""
    values = np.asarray(values, dtype=float)
    places = [(10.0 * n, 5.0) for n in range(len(values))] if places is None else places
    return pd.DataFrame(
        {
            "cell_id": np.arange(1, len(values) + 1, dtype=np.uint32),
            "region": ["SVZ"] * len(values) if regions is None else regions,
            "y_um": [float(y) for y, _ in places],
            "x_um": [float(x) for _, x in places],
            "area_um2": 50.0,
            "origin": "auto",
            "tunel_value": values,
            "tunel_quantile": values + 20,
            "tunel_positive": values >= 100,
        }
    )


def objects(*arguments, **named):
    return Objects.of_cells(cells(*arguments, **named), PANEL, {"tunel": 100.0})


def test_borderline_cells_come_first():
    found = objects([10, 99, 300, 103, np.nan, 90])
    assert found.chosen(Selection("tunel")).tolist() == [1, 3, 5, 0, 2, 4]
    assert found.chosen(Selection("tunel", order=PLACE)).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_decides_a_call_decides_what_is_borderline():
    """A bright mean with a dark half is far below the threshold; an attached body decides alone."""
    table = cells([300, 50]).assign(tunel_quantile=[101.0, 60.0], tunel_attached=[np.nan, 250.0])
    found = Objects.of_cells(table, PANEL, {"tunel": 100.0})
    assert found.share["tunel"].tolist() == [1.01, 2.5]


def test_selections_by_region_and_call():
    found = objects([10, 120, 30, 140], regions=["SVZ", "SVZ", "DG", "DG"])
    assert found.chosen(Selection("tunel", "DG")).tolist() == [3, 2]
    assert found.chosen(Selection("tunel", show="positive")).tolist() == [1, 3]
    assert found.chosen(Selection("tunel", "DG", show="negative")).tolist() == [2]
    assert found.chosen(Selection("tunel", "nowhere")).tolist() == []


def test_a_sample_is_random_and_the_same_again():
    found = objects(np.linspace(1, 200, 500))
    drawn = found.chosen(Selection("tunel", sample=50, seed=7))
    assert len(set(drawn.tolist())) == 50
    assert drawn.tolist() == found.chosen(Selection("tunel", sample=50, seed=7)).tolist()
    assert drawn.tolist() != found.chosen(Selection("tunel", sample=50, seed=8)).tolist()
    # of 500 cells, 50 at random: the mean index is 249.5 with a standard error of 19; ordered ones would give 24
    assert abs(drawn.mean() - 249.5) < 80
    assert len(found.chosen(Selection("tunel", sample=9999))) == 500


def test_positives_are_drawn_before_negatives_where_there_are_too_many():
    found = objects([10] * 90 + [200] * 10, places=[(n % 10, n // 10) for n in range(100)])
    everything = (0, 0), (10, 10)
    assert found.within(*everything, "tunel", 1000).tolist() == list(range(100))
    few = found.within(*everything, "tunel", 30)
    assert len(few) == 30
    assert set(range(90, 100)) <= set(few.tolist())
    assert found.within(*everything, "tunel", 30).tolist() == few.tolist()
    assert found.n_within(*everything) == 100
    assert found.within((0, 0), (0, 9), "tunel", 1000).tolist() == list(range(0, 100, 10))


def test_classes_with_other_names_than_yes_and_no():
    """Spines have classes; the same object goes round them, and a decision counts as seen."""
    spines = Objects(
        "spine",
        np.zeros((2, 2)),
        np.array(["d1", "d1"], dtype=object),
        choices={"class": ("none", "mushroom", "stubby", "thin")},
        automatic={"class": np.array([1, 3], dtype=np.int8)},
        share={"class": np.full(2, np.nan)},
        table={"area_um2": np.full(2, np.nan), "label": np.array([1, 2])},
    )
    edit = Edit.made("Anna", "s1", "call", kind="spine", y_um=0.0, x_um=0.0, marker="class", old="mushroom", new="thin")
    spines.put(0, edit)
    assert (spines.called(0, "class"), spines.called(1, "class")) == ("thin", "thin")
    assert spines.reviewed["class"].tolist() == [True, False]
    spines.take_back(0, edit.id)
    assert spines.called(0, "class") == "mushroom"


def test_the_walk_stops_at_both_ends():
    queue = Queue(objects([101, 102, 103]), Selection("tunel"))
    assert [queue.step(-1), queue.step(1), queue.step(1), queue.step(1)] == [False, True, True, False]
    assert queue.current == 2
    queue.objects.append(Edit.made("Anna", "s", "add", y_um=1.0, x_um=1.0))
    queue.go_to(3)
    assert (queue.current, queue.aside) == (3, True)
    assert queue.step(1)
    assert (queue.current, queue.aside) == (2, False)
    assert Queue(objects([]), Selection("tunel")).current is None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def opened():
    """Return a function that opens a session, which the test's end closes if the test did not."""
    with contextlib.ExitStack() as sessions:
        yield lambda root, who="Anna": sessions.enter_context(Session(root, who))


def as_replayed(session):
    """Return the open slide's objects that are left: place and call, as the tables would be counted from them."""
    table = pd.read_parquet(session.root / "slides" / session.here.slide_id / "cells.parquet")
    edits = [edit for edit in session.journal.edits if edit.slide_id == session.here.slide_id]
    left = replay(table, edits, measured=session.here.results.measured).cells
    return sorted(zip(left["y_um"], left["x_um"], left["tunel_positive"], strict=True))


def as_shown(session):
    found = session.here.objects
    return sorted(
        (*found.yx_um[n].tolist(), bool(found.called(n, "tunel"))) for n in range(len(found)) if not found.gone[n]
    )


def test_what_is_shown_is_what_the_journal_replays_to(root, opened):
    """At every step of a random walk through all actions, on the canvas and after opening again."""
    rng = np.random.default_rng(3)
    names = "accept flip delete add undo redo next previous far".split()
    session = opened(root)
    session.open(session.slides[0])
    before = as_shown(session)
    for n in range(120):
        action = rng.choice(names, p=[0.2, 0.2, 0.12, 0.1, 0.15, 0.1, 0.05, 0.05, 0.03])
        if action == "add":
            session.add(*rng.uniform(1, 120, 2).tolist())
        elif action == "far":
            session.queue.go_to(int(rng.integers(len(session.here.objects))))
        elif action in ("next", "previous"):
            session.queue.step(1 if action == "next" else -1)
        else:
            getattr(session, action)()
        if n % 10 == 0:
            assert as_shown(session) == as_replayed(session)
    shown, reviewed = as_shown(session), session.here.objects.reviewed["tunel"].sum()
    assert shown == as_replayed(session)
    assert shown != before  # the walk did something
    with_edits = len(session.journal.edits)
    session.close()
    again = opened(root)
    again.open(again.last_slide())
    assert len(again.journal.edits) == with_edits
    assert as_shown(again) == shown
    assert again.here.objects.reviewed["tunel"].sum() == reviewed


def test_undo_goes_back_to_the_slide_it_was_made_on(root, opened):
    session = opened(root)
    first, second = session.slides
    session.open(first)
    flipped = session.flip()
    session.open(second)
    session.accept()
    session.undo()
    assert session.shown == second
    session.undo()
    assert (session.shown, session.queue.current) == (first, flipped)
    assert as_shown(session) == as_replayed(session)
    assert session.undo() is None
    session.redo()
    assert session.here.objects.reviewed["tunel"][flipped]


def test_counts_before_and_after(root, opened):
    session = opened(root)
    session.open(session.slides[0], Selection("tunel", show="negative"))
    before = session.here.objects.counts("tunel")
    assert (before.automatic, before.automatic_positive) == (before.corrected, before.corrected_positive)
    session.flip()
    session.delete()
    after = session.here.objects.counts("tunel")
    assert (after.automatic, after.automatic_positive) == (before.automatic, before.automatic_positive)
    assert (after.corrected, after.corrected_positive) == (before.corrected - 1, before.corrected_positive + 1)
    regions = [session.here.objects.counts("tunel", name) for name in session.here.objects.regions]
    assert sum(part.corrected_positive for part in regions) == after.corrected_positive
    assert session.here.objects.counts("tunel", EVERYWHERE) == after


def test_every_decision_says_what_was_seen(root, opened):
    session = opened(root)
    session.open(session.slides[1], Selection("tunel", show=ALL))
    index = session.queue.current
    session.flip("lies under a vessel")
    (edit,) = read_journal(session.journal.path).edits
    found = session.here.objects
    assert [edit.y_um, edit.x_um] == found.yx_um[index].tolist()
    assert (edit.region, edit.marker, edit.why) == (found.region[index], "tunel", "lies under a vessel")
    assert (edit.old, edit.new, edit.blinded, edit.kind) == (not edit.new, edit.new, True, "cell")
    assert edit.area_um2 == pytest.approx(found.area_um2[index])


def test_two_reviewers_do_not_see_each_other(root, opened):
    anna, ben = opened(root), opened(root, "Ben")
    for session in (anna, ben):
        session.open(session.slides[0])
    anna.flip()
    assert ben.slides == anna.slides
    again = opened(root, "Carla")
    again.open(again.slides[0])
    assert again.queue.n_reviewed == ben.queue.n_reviewed == 0
    assert anna.queue.n_reviewed == 1


def test_names_are_coded_until_they_are_revealed(root, opened):
    session = opened(root)
    told = f"Slide 'Tapirlabel_7': cannot open {root}/slides/Narwhallabel_3 of Axolotl (Quagga), litter Zorilla"
    veiled = session.names.veiled(told)
    assert [secret for secret in SECRETS if secret in told] != []
    assert [secret for secret in SECRETS if secret in veiled + "".join(session.slides)] == []
    assert str(root) not in veiled
    assert session.names.shown("Tapirlabel_7") in veiled  # the code, so that the reviewer knows which
    session.open(session.slides[0])
    session.accept()
    session.unblind("done")
    session.accept()
    assert session.names.veiled(told) == told
    assert sorted(session.slides) == ["Narwhallabel_3", "Tapirlabel_7"]
    assert [(edit.action, edit.blinded) for edit in session.journal.edits] == [
        ("accept", True), ("unblind", True), ("accept", False)
    ]  # fmt: skip
    session.close()
    later = opened(root)  # asks for blinding, and does not get it any more
    assert not later.blinded


def test_a_slide_that_is_gone_is_one_sentence(root, opened):
    session = opened(root)
    session.open(session.slides[0])
    missing = session.slides[1]
    row = session._rows[session.names.true(missing)]
    moved = row.path.rename(row.path.with_suffix(".away"))
    try:
        with pytest.raises(FormatError, match=r"Tapirlabel_7|Narwhallabel_3"):
            session.open(missing)
        assert session.shown == session.slides[0]  # the one before stays
    finally:
        moved.rename(row.path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Session(tmp_path, "Anna")


def test_planes_and_crops_are_the_pixels_of_the_slide(root, made):
    slide = open_slide(made.parent / "Ibexfolder" / "Tapirlabel_7.ome.tif")
    whole = slide.read()[:, 0]
    plane = Plane(slide, 0, (1,), Segment())
    assert plane.shape == whole.shape[1:]
    assert np.array_equal(np.asarray(plane), whole[1])
    assert np.array_equal(plane[10:50:3, 20:], whole[1, 10:50:3, 20:])
    assert plane[5, 7] == whole[1, 5, 7]
    labels = open_slide(made / "slides" / "Tapirlabel_7" / "labels.ome.tif")
    table = pd.read_parquet(made / "slides" / "Tapirlabel_7" / "cells.parquet")
    crops = Crops(slide, Segment(), labels)
    cell = table.iloc[len(table) // 2]
    crop = crops.at(cell["y_um"], cell["x_um"], int(cell["cell_id"]))
    half = len(crop.inside) // 2
    y, x = int(cell["y_px"]), int(cell["x_px"])
    assert crop.pixels[:, half, half].tolist() == whole[:, y, x].tolist()
    # the object lies wholly in its crop, and its area is the table's
    assert crop.inside.sum() * slide.pixel_size_um**2 == pytest.approx(cell["area_um2"])
    assert crops.at(cell["y_um"], cell["x_um"], int(cell["cell_id"])) is crop
    corner = crops.at(0.1, 0.1)
    assert not corner.pixels[:, : half - 1].any()  # beyond the rim
    assert corner.pixels[0, half, half] == whole[0, 0, 0]
    for each in (slide, labels):
        each.close()


def test_the_threshold_looks_the_same_on_every_slide():
    table = pd.DataFrame({"mean_TUNEL": [50.0, 400.0], "background_TUNEL": [40.0, 60.0]})
    assert contrast_limits(table, "TUNEL", 100.0) == (50.0, 350.0)
    low, high = contrast_limits(table, "TUNEL", None)
    assert (low, high) == (50.0, pytest.approx(400, rel=0.01))
    assert contrast_limits(table, "DAPI", None) is None
    assert contrast_limits(table.iloc[:0], "TUNEL", 100.0) is None


def test_an_outline_lies_just_outside():
    inside = np.zeros((5, 5), dtype=bool)
    inside[2, 2] = True
    border, beside = outline(inside, 3)
    assert border.shape == beside.shape == (15, 15)
    assert not border[6:9, 6:9].any()
    assert border.sum() == 12  # four sides of three pixels, no corners
    assert beside.sum() == 16
    assert not (beside & border).any()
    assert not beside[6:9, 6:9].any()
