"""Replaying corrections onto a table: by geometry, each once, none dropped."""

import numpy as np
import pandas as pd
import pytest

from histoquant.analysis.review import MATCH_UM, reach_um, replay
from histoquant.model.edit import Edit

SERIAL = iter(range(10**9))


def table(points, positive=(), region="SVZ", radius=4.0):
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    n = len(points)
    called = np.zeros(n, dtype=bool)
    called[list(positive)] = True
    return pd.DataFrame(
        {
            "cell_id": np.arange(1, n + 1, dtype=np.uint32),
            "region": pd.Series([region] * n, dtype="str"),
            "y_um": points[:, 0],
            "x_um": points[:, 1],
            "y_px": points[:, 0] / 0.5,
            "x_px": points[:, 1] / 0.5,
            "area_um2": np.full(n, np.pi * radius**2),
            "tunel_value": np.linspace(0, 1, n),
            "tunel_positive": called,
            "tunel_class": pd.Series(np.where(called, "diffuse", ""), dtype="str"),
            "brdu_positive": np.zeros(n, dtype=bool),
            "origin": pd.Series(["auto"] * n, dtype="str"),
        }
    )


def edit(action, at, **parts):
    usual = {"id": f"e{next(SERIAL)}", "at": "2026-01-01T10:00:00+00:00", "who": "Anna", "slide_id": "s"}
    if action == "call":
        usual |= {"marker": "tunel", "new": True}
    return Edit(**(usual | {"action": action, "y_um": at[0], "x_um": at[1], "area_um2": 50.0} | parts))


@pytest.fixture
def cells():
    return table([(10, 10), (10, 30), (30, 10), (30, 30)], positive=[0])


def test_no_edits_are_the_table_itself(cells):
    done = replay(cells, [])
    pd.testing.assert_frame_equal(done.cells, cells, check_exact=True)
    assert len(done.touched) == len(done.unmatched) == len(done.disagreements) == 0


def test_calls_deletions_and_additions(cells):
    before = cells.copy(deep=True)
    edits = [
        edit("call", (10, 10), new=False, old=True),
        edit("call", (10, 30)),
        edit("delete", (30, 10)),
        edit("add", (50, 50), marker="tunel", new=True, area_um2=20.0, region="DG"),
        edit("accept", (30, 30), marker="tunel", old=False, new=False),
    ]
    done = replay(cells, edits, pixel_size_um=0.5)
    pd.testing.assert_frame_equal(cells, before, check_exact=True)  # raw results never change
    out = done.cells.set_index("cell_id")
    assert list(out.index) == [1, 2, 4, 5]
    assert out["tunel_positive"].tolist() == [False, True, False, True]
    assert out["tunel_class"].tolist() == ["", "", "", ""]  # what a person calls has no class by intensity
    assert not out["brdu_positive"].any()
    assert out["origin"].tolist() == ["auto", "auto", "auto", "added"]
    assert out.loc[5, ["region", "y_px", "area_um2"]].tolist() == ["DG", 100.0, 20.0]
    assert np.isnan(out.loc[5, "tunel_value"])
    pd.testing.assert_series_equal(done.cells.dtypes, cells.dtypes)
    assert done.touched["action"].tolist() == ["call", "call", "delete", "add", "accept"]
    assert done.touched["cell_id"].tolist() == [1, 2, 3, 5, 4]
    assert done.unmatched.empty


def test_the_same_edits_twice_are_the_same_edits_once(cells):
    edits = [edit("call", (10, 30)), edit("delete", (30, 10)), edit("add", (50, 50), marker="tunel", new=True)]
    once = replay(cells, edits)
    twice = replay(cells, edits + edits)
    pd.testing.assert_frame_equal(once.cells, twice.cells, check_exact=True)
    pd.testing.assert_frame_equal(once.touched, twice.touched, check_exact=True)
    # also when what was corrected is corrected again: a neighbour is not taken for the deleted one
    near = table([(10, 10), (14.2, 10), (30, 30)])
    delete = [edit("delete", (10, 10))]
    again = replay(replay(near, delete).cells, delete)
    assert again.cells["cell_id"].tolist() == [2, 3]
    assert len(again.unmatched) == 1


def test_a_later_call_holds_and_what_was_taken_back_does_not(cells):
    first, second = edit("call", (10, 30), new=True), edit("call", (10, 30), new=False)
    undo = edit("undo", (10, 30), undoes=second.id)
    redo = edit("undo", (10, 30), undoes=undo.id)

    def called(*edits):
        return bool(replay(cells, edits).cells["tunel_positive"][1])

    assert [called(first), called(first, second), called(first, second, undo)] == [True, False, True]
    assert not called(first, second, undo, redo)
    lost = replay(cells, [first, edit("undo", (10, 30), undoes="gone")])
    assert lost.unmatched["reason"].tolist() == ["the edit it takes back is not there"]
    assert lost.cells["tunel_positive"][1]


def test_an_added_cell_can_be_called_deleted_and_taken_back(cells):
    add = edit("add", (50, 50), marker="tunel", new=True)
    flip, brdu = edit("call", (50, 50), new=False), edit("call", (50, 50), marker="brdu")
    out = replay(cells, [add, flip, brdu]).cells
    assert len(out) == 5
    assert out.iloc[4][["tunel_positive", "brdu_positive"]].tolist() == [False, True]
    assert len(replay(cells, [add, edit("delete", (50, 50))]).cells) == 4
    # nothing may come to stand for a cell that was added by mistake, however near it lies
    beside = edit("add", (11, 10), marker="tunel", new=True)
    gone = replay(cells, [beside, edit("call", (11, 10), new=False), edit("undo", (11, 10), undoes=beside.id)])
    pd.testing.assert_frame_equal(gone.cells, cells, check_exact=True)
    assert gone.unmatched["reason"].tolist() == ["the cell was added by hand, and that was taken back"]


def test_an_edit_reaches_as_far_as_its_cell_and_no_further(cells):
    assert [reach_um(area) for area in (None, 1.0, np.pi * 9, 1e4)] == [MATCH_UM["cell"], 2.0, 3.0, MATCH_UM["cell"]]
    small = {"area_um2": np.pi * 9}
    for away, found in ((2.99, True), (3.01, False)):
        done = replay(cells, [edit("call", (10 + away, 30), **small)])
        assert bool(done.cells["tunel_positive"][1]) == found
        assert len(done.unmatched) == (not found)
    row = done.unmatched.iloc[0]
    assert row["reason"] == "no cell is where it was, or another edit's is nearer"
    assert row[["who", "action", "marker", "new", "y_um"]].tolist() == ["Anna", "call", "tunel", "positive", 13.01]


def test_matching_is_one_to_one_and_nearest_first():
    cells = table([(10, 10), (10, 17)])
    # two nuclei were one in the other run: the nearer edit has it, the other one is listed
    done = replay(cells, [edit("call", (10, 12.5)), edit("call", (10, 10.5), new=False)])
    assert done.touched["cell_id"].tolist() == [1]
    assert done.unmatched["x_um"].tolist() == [12.5]
    # an exact match is never given up so that one more edit finds a partner
    done = replay(cells, [edit("call", (10, 13.4)), edit("call", (10, 17), new=False)])
    assert done.touched.set_index("cell_id")["action"].to_dict() == {1: "call", 2: "call"}
    assert done.cells["tunel_positive"].tolist() == [True, False]


def test_what_was_missed_in_one_run_and_is_found_in_another_is_counted_once():
    missed = edit("add", (50, 50), marker="tunel", new=True, measured="run 1")
    here = table([(10, 10)])
    assert len(replay(here, [missed], measured="run 1").cells) == 2
    found = table([(10, 10), (50.8, 49.5)])
    other = replay(found, [missed], measured="run 2").cells
    assert other["cell_id"].tolist() == [1, 2]
    assert other["tunel_positive"].tolist() == [False, True]
    # but in the table it was made on, a cell added close to another one is a second cell
    assert len(replay(found, [missed], measured="run 1").cells) == 3


def test_two_reviewers_who_add_the_same_cell_add_one_and_where_they_disagree_is_listed(cells):
    anna = [edit("add", (50, 50), marker="tunel", new=True), edit("call", (10, 30)), edit("delete", (30, 30))]
    ben = [
        edit("add", (51, 50), marker="tunel", new=True, who="Ben"),
        edit("call", (10, 30), new=False, who="Ben"),
        edit("accept", (30, 30), marker="tunel", new=False, who="Ben"),
    ]
    both = replay(cells, anna + ben)
    assert both.cells["cell_id"].tolist() == [1, 2, 3, 4, 5]
    assert not both.cells["tunel_positive"][1]
    assert both.disagreements["said"].tolist() == ["Anna: positive; Ben: negative", "Anna: none there; Ben: there"]
    # one reviewer may add two close cells
    assert len(replay(cells, [anna[0], edit("add", (52, 50), marker="tunel", new=True)]).cells) == 6
    assert replay(cells, anna).disagreements.empty


def test_what_the_table_does_not_have_is_listed(cells):
    odd = [
        edit("call", (10, 10), marker="ki67"),
        edit("call", (10, 30), new="mushroom"),
        edit("add", (50, 50), marker="ki67", new=True),
        edit("call", (10, 30), kind="spine"),
    ]
    done = replay(cells, odd)
    assert done.unmatched["reason"].tolist() == [
        "the table has no marker 'ki67'",
        "'mushroom' is no call of a marker, which is positive or negative",
        "the table has no marker 'ki67'",
    ]
    assert len(done.cells) == 5  # the cell is there, whatever it is positive for
    assert done.cells["tunel_positive"].tolist() == [True, False, False, False, False]


def test_an_empty_table_takes_additions():
    done = replay(table([]), [edit("add", (5, 5), marker="tunel", new=True), edit("delete", (9, 9))])
    assert done.cells["cell_id"].tolist() == [1]
    assert done.unmatched["action"].tolist() == ["delete"]


def test_added_cells_are_placed_by_the_outlines(cells):
    add = edit("add", (50, 50), marker="tunel", new=True, region="SVZ")
    placed = replay(cells, [add], place=lambda points: ["DG" if y > 40 else "SVZ" for y, _ in points])
    assert placed.cells["region"].tolist() == ["SVZ"] * 4 + ["DG"]
