"""Outlines being drawn: nothing is lost, everything can be undone, and QuPath's numbers come back as they went."""

import json

import numpy as np
import pytest
import shapely

from histoquant.drawing import CUT, Drawing, colours_of, derive
from histoquant.errors import FormatError, StoreError
from histoquant.model.recipe import parse_recipe
from histoquant.model.region import Region, resolve
from histoquant.readers.outlines import read_outlines
from tests.conftest import write_geojson

LESION = Region("lesion", shapely.Polygon([(10, 10), (60.123456789012345, 12), (40, 70.1)]))
CORTEX = Region("cortex", shapely.box(100, 100, 200, 180), parent="hemisphere")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.geojson"


def names(drawing):
    return [region.name for region in drawing.regions]


def test_every_edit_is_in_the_file_at_once(path):
    drawing = Drawing(path, who="me")
    assert drawing.change([LESION])
    assert read_outlines(path, 1.0)[0].geometry == LESION.geometry
    assert drawing.change([LESION, CORTEX])
    assert [region.parent for region in read_outlines(path, 1.0)] == [None, "hemisphere"]
    assert not drawing.change([LESION, CORTEX])  # nothing new: no line in the history
    rows = [json.loads(line) for line in drawing.history.read_text().splitlines()]
    assert [(row["what"], row["at"], len(row["old"]), len(row["new"]), row["who"]) for row in rows] == [
        ("edit", 0, 0, 1, "me"),
        ("edit", 1, 0, 1, "me"),
    ]


def test_undo_and_redo_reach_back_across_sessions(path):
    first = Drawing(path)
    for step in ([LESION], [LESION, CORTEX], [CORTEX]):
        first.change(step)
    again = Drawing(path)
    assert names(again) == ["cortex"]
    assert again.undo()
    assert names(again) == ["lesion", "cortex"]
    third = Drawing(path)
    assert third.undo()
    assert names(third) == ["lesion"]
    assert third.redo()
    assert third.redo()
    assert names(third) == ["cortex"]
    assert not third.redo()
    assert third.undo()
    assert third.undo()
    assert third.change([LESION, Region("DG", shapely.box(0, 0, 5, 5))])
    assert third.n_redo == 0  # an edit after an undo is where it goes on
    assert names(Drawing(path)) == ["lesion", "DG"]
    assert len(Drawing(path).history.read_text().splitlines()) == 10  # nothing was ever taken out of it


def test_with_everything_undone_there_is_no_file_which_no_reader_would_take(path):
    drawing = Drawing(path)
    drawing.change([LESION])
    drawing.undo()
    assert not path.exists()
    assert Drawing(path).redo()
    assert path.exists()


def test_a_crash_between_history_and_outlines_loses_nothing(path):
    drawing = Drawing(path)
    drawing.change([LESION])
    before = path.read_bytes()
    drawing.change([LESION, CORTEX])
    path.write_bytes(before)  # the history got the edit, the file did not
    assert names(Drawing(path)) == ["lesion", "cortex"]
    assert len(read_outlines(path, 1.0)) == 2


def test_a_line_that_a_crash_cut_off_never_counted(path):
    drawing = Drawing(path)
    drawing.change([LESION])
    whole = drawing.history.read_bytes()
    drawing.history.write_bytes(whole + b'{"what": "edit", "at": 1, "ol')
    again = Drawing(path)
    assert names(again) == ["lesion"]
    assert again.change([LESION, CORTEX])
    assert CUT in again.history.read_bytes()
    assert names(Drawing(path)) == ["lesion", "cortex"]
    assert Drawing(path).undo()
    drawing.history.write_bytes(whole + b"rubbish\n")  # the control: a whole line of rubbish is damage
    with pytest.raises(FormatError, match="line 2"):
        Drawing(path)


def test_outlines_of_another_program_are_where_it_begins_and_its_later_changes_are_edits(path):
    write_geojson(path, lesion=[(0, 0), (50, 0), (50, 50)])
    drawing = Drawing(path)
    assert not drawing.undo()  # what was there is no edit of ours
    assert not drawing.history.exists()  # looking leaves no trace
    drawing.change([*drawing.regions, CORTEX])
    write_geojson(path, lesion=[(0, 0), (50, 0), (50, 90)])
    with pytest.raises(StoreError, match="changed by another program"):
        drawing.change([LESION])
    again = Drawing(path)
    assert names(again) == ["lesion"]
    assert again.undo()
    assert names(again) == ["lesion", "cortex"]
    assert names(Drawing(path)) == ["lesion", "cortex"]


def test_what_qupath_wrote_is_written_back_to_the_last_bit(path):
    rng = np.random.default_rng(1)
    ring = rng.uniform(0, 20_000, (40, 2))
    ring = ring[np.argsort(np.arctan2(*(ring - ring.mean(axis=0)).T))]
    write_geojson(path, lesion=ring.tolist(), hole=[(1 / 3, 0.1), (1e-7, 77.7), (5, 1234.5678901234567)])
    before = [feature["geometry"]["coordinates"] for feature in json.loads(path.read_text())["features"]]
    drawing = Drawing(path)
    drawing.change([*drawing.regions, CORTEX])
    after = [feature["geometry"]["coordinates"] for feature in json.loads(path.read_text())["features"]]
    assert after[:2] == before
    in_um = [region.geometry for region in read_outlines(path, 0.3)]  # the control: by way of um it is not so
    assert [shapely.get_coordinates(shape).tolist() for shape in in_um] != [[*rings[0]] for rings in before]


def test_colours_belong_to_names():
    told = colours_of(["svz", "lesion", "my region", "lesion"])
    assert told["svz"] == colours_of(["SVZ"])["SVZ"]
    assert len(set(told.values())) == 3


RULES = parse_recipe("""
schema = 1
[panel.dapi]
role = "counterstain"
[regions.band]
band = { of = "lesion", from_um = 0, to_um = 20 }
[regions.other_side]
mirror = { of = "band", midline = "midline" }
""").regions


def test_what_is_derived_live_is_what_a_run_derives():
    tissue = shapely.box(0, 0, 60, 60)
    found = derive([LESION], RULES, slide_um=(100, 120), pixel_size_um=0.5, tissue=tissue)
    drawn = Region("lesion", shapely.transform(LESION.geometry, lambda xy: xy * 0.5))
    expected = resolve([drawn], {"band": RULES["band"]}, slide=(100, 120), tissue=tissue)["band"]
    assert [region.name for region in found.regions] == ["band"]
    assert found.regions[0].geometry == expected.geometry
    assert found.waiting == ("other_side waits for midline",)


def test_faults_of_an_unfinished_drawing_are_said_not_raised():
    twice = [LESION, Region("band", shapely.box(0, 0, 9, 9))]
    found = derive(twice, RULES, slide_um=(100, 120), pixel_size_um=0.5)
    assert found.regions == ()
    assert any("both drawn" in said for said in found.waiting)
