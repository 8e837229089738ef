"""Corrected tables: a replay of the journals beside results that stay as they are."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from shapely import box

from histoquant.analysis.counting import count_regions, recount, side_by_side
from histoquant.batch import run_study, write_report
from histoquant.corrected import read_slide, write_corrected
from histoquant.errors import FormatError, InputError
from histoquant.inputs import load
from histoquant.journal import Journal
from histoquant.model.panel import Marker
from histoquant.model.region import Band, Region, RegionRule, resolve
from histoquant.model.tables import CORRECTED, MARKER_OBJECTS, TOUCHED, empty
from histoquant.readers.outlines import read_outlines, write_geojson
from histoquant.repeat import repeat_run
from tests.conftest import RECIPE, write_slide
from tests.conftest import write_geojson as write_polygons
from tests.test_counting import cells_of, section_of

COUNTS = ["n_cells", "n_positive", "fraction_positive", "density_per_mm2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, scene):
    """A run of two slides, and the study it is of."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("a", "b"):
        write_slide(folder / f"{name}.ome.tif", scene.pixels)
    outlines = {"left": [(20, 20), (200, 20), (200, 380), (20, 380)], "lesion": [(30, 30), (190, 30), (190, 370)]}
    write_polygons(folder / "r.geojson", **outlines)
    sheet = "slide,animal,group,regions\na.ome.tif,m1,vehicle,r.geojson\nb.ome.tif,m2,treated,r.geojson\n"
    (folder / "study.csv").write_text(sheet, encoding="utf-8")
    rules = '[regions.lesion]\nparent = "left"\n[regions.rim]\nparent = "left"\nwithin = "left"\n'
    (folder / "recipe.toml").write_text(
        RECIPE + rules + 'band = { of = "lesion", from_um = 0, to_um = 20 }\n', encoding="utf-8"
    )
    checked = load(folder / "study.csv", folder / "recipe.toml")
    assert not run_study(checked, folder / "out", workers=1).failures
    return folder


@pytest.fixture
def results(made, tmp_path):
    return shutil.copytree(made / "out", tmp_path / "out")


def sums(root, *patterns):
    paths = sorted(path for pattern in patterns for path in root.glob(pattern))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def table(root, name):
    return pd.read_csv(root / f"{name}.csv", keep_default_na=False, dtype=str)


def review(root, *, who="Anna", slide="a", flips=(), deletes=(), adds=(), accepts=()):
    held = read_slide(root, slide)
    cells = held.cells.set_index("cell_id")
    with Journal(root, who) as journal:
        for action, ids in (("call", flips), ("delete", deletes), ("accept", accepts)):
            for cell_id in ids:
                cell = cells.loc[cell_id]
                parts = {name: float(cell[name]) for name in ("y_um", "x_um", "area_um2")}
                parts |= {"region": str(cell["region"]), "measured": held.measured}
                positive = bool(cell["tunel_positive"])
                if action != "delete":
                    parts |= {"marker": "tunel", "old": positive, "new": positive ^ (action == "call")}
                journal.record(slide, action, **parts)
        for y_um, x_um in adds:
            parts = {"y_um": y_um, "x_um": x_um, "area_um2": 40.0, "marker": "tunel", "new": True}
            journal.record(slide, "add", **parts, measured=held.measured)
    return cells


def test_outlines_of_a_slide_come_back_as_they_were(tmp_path):
    drawn = [
        Region("hemisphere", box(0, 0, 1000, 1000)),
        Region("lesion", box(200, 200, 400, 500), parent="hemisphere", counted=False),
        Region("tear", box(0, 0, 100, 100), counted=False, masked=True),
    ]
    rules = {"rim": RegionRule(band=Band(of="lesion", from_um=0, to_um=55.5), parent="hemisphere")}
    made = resolve(drawn, rules, slide=(1000.0, 2000.0))
    write_geojson(tmp_path / "regions.geojson", made, 0.325)
    back = type(made)(tuple(read_outlines(tmp_path / "regions.geojson", 0.325)), made.slide_um)
    points = np.random.default_rng(0).uniform(0, 1000, (5000, 2)) * (1, 2)
    assert set(made.assign(points)) == {"hemisphere", "rim", "masked", "outside"}
    assert np.array_equal(back.assign(points), made.assign(points))
    assert [back.ancestors(name) for name in back.counted] == [made.ancestors(name) for name in made.counted]


def test_counting_the_same_cells_again_gives_the_same_rows():
    cells = cells_of()
    cells["a_class"] = np.where(cells["a_positive"], "condensed", "")
    rows = count_regions(cells, empty(MARKER_OBJECTS), section_of())
    pd.testing.assert_frame_equal(recount(rows, cells), rows, check_exact=True)
    fewer = recount(rows, cells.iloc[::2])
    expected = count_regions(cells.iloc[::2], empty(MARKER_OBJECTS), section_of())
    pd.testing.assert_frame_equal(fewer, expected, check_exact=True)
    weak = count_regions(
        cells, empty(MARKER_OBJECTS), section_of(fractions=False, flags=["counterstain too weak for fractions"])
    )
    pd.testing.assert_frame_equal(recount(weak, cells), weak, check_exact=True)
    nothing = side_by_side(rows, recount(rows, cells), empty(TOUCHED), cells)
    assert (nothing[["n_edits", "n_reviewed"]] == 0).all(axis=None)
    assert nothing["n_positive_corrected"].tolist() == rows["n_positive"].tolist()


def test_a_counterstain_alone_is_counted_again_too():
    panel = {"dapi": Marker(channel="D", role="counterstain")}
    cells = cells_of().drop(columns=["a_positive", "b_positive"])
    rows = count_regions(cells, empty(MARKER_OBJECTS), section_of(panel=panel, thresholds={}, doubles=[]))
    pd.testing.assert_frame_equal(recount(rows, cells), rows, check_exact=True)
    assert recount(rows, cells.iloc[:-1])["n_positive"].sum() < rows["n_positive"].sum()


def test_edits_count_for_their_marker_and_region_and_its_ancestors():
    cells = cells_of().assign(cell_id=np.arange(3000))
    rows = count_regions(cells, empty(MARKER_OBJECTS), section_of())
    touched = pd.DataFrame(
        [
            ("1", "Anna", "call", 1, "cortex", "a", True),
            ("2", "Anna", "delete", 2, "cortex", "", True),
            ("3", "Anna", "accept", 3, "striatum", "b", True),
            ("4", "Ben", "call", 1, "cortex", "a", True),
        ],
        columns=list(TOUCHED),
    )
    told = rows.join(side_by_side(rows, rows, touched, cells)).set_index(["region", "marker"])
    for region, marker, n_edits, n_reviewed in (
        ("cortex", "a", 3, 2),
        ("cortex", "b", 1, 1),
        ("cortex", "a+b", 3, 2),
        ("striatum", "a", 0, 0),
        ("striatum", "b", 0, 1),
        ("hemisphere", "a", 3, 2),
        ("hemisphere", "b", 1, 2),
        ("outside", "a", 0, 0),
    ):
        assert told.loc[(region, marker), ["n_edits", "n_reviewed"]].tolist() == [n_edits, n_reviewed], (region, marker)


def test_nobody_reviewed_nothing_changes(results):
    before = sums(results, "tables/*.csv", "slides/*/*")
    assert write_corrected(results) is None
    write_report(results)
    assert sums(results, "tables/*.csv", "slides/*/*") == before
    assert not (results / "review").exists()
    assert not set(CORRECTED) & set(table(results / "tables", "regions"))


def test_corrections_stand_beside_results_that_do_not_change(results):
    raw = sums(results, "slides/*/*", "tables/animals.csv", "tables/groups.csv", "tables/sensitivity.csv")
    automatic = table(results / "tables", "regions")
    held = read_slide(results, "a")
    lesion = held.cells[held.cells["region"] == "lesion"]
    negative = lesion[~lesion["tunel_positive"]]["cell_id"].tolist()
    review(results, flips=negative[:2], deletes=[negative[2]], adds=[(150.0, 45.0)], accepts=[negative[3]])
    write_report(results)
    assert sums(results, "slides/*/*", "tables/animals.csv", "tables/groups.csv", "tables/sensitivity.csv") == raw
    beside = table(results / "tables", "regions")
    pd.testing.assert_frame_equal(beside[list(automatic)], automatic)  # as text: not one digit
    row = beside.set_index(["slide_id", "region"]).loc[("a", "lesion")]
    assert int(row["n_cells_corrected"]) == int(row["n_cells"]) - 1
    assert int(row["n_positive_corrected"]) == int(row["n_positive"]) + 2
    assert (row["n_edits"], row["n_reviewed"]) == ("3", "4")
    left = beside.set_index(["slide_id", "region"]).loc[("a", "left")]  # the added cell lies in it and in no child
    assert int(left["n_cells_corrected"]) == int(left["n_cells"])
    assert (left["n_edits"], left["n_reviewed"]) == ("4", "5")
    other = beside[beside["slide_id"] == "b"]
    assert (other["n_positive_corrected"] == other["n_positive"]).all()
    assert (other["density_per_mm2_corrected"] == other["density_per_mm2"]).all()
    # the corrected tables have the columns of those they stand for, and add up
    regions, animals = table(results / "review", "regions"), table(results / "review", "animals")
    assert list(regions) == [name for name in automatic if name in regions]
    assert list(animals) == list(table(results / "tables", "animals"))
    for name in COUNTS:
        assert regions[name].tolist() == beside[f"{name}_corrected"].tolist()
    mine = animals.set_index(["animal", "region"]).loc[("m1", "lesion")]
    assert mine["n_positive"] == row["n_positive_corrected"]
    assert mine["density_per_mm2"] == row["density_per_mm2_corrected"]
    cells = pd.read_parquet(results / "review" / "cells" / "a.parquet")
    assert cells["origin"].value_counts().to_dict() == {"auto": len(held.cells) - 1, "added": 1}
    assert cells["region"].iloc[-1] == "left"
    summary = json.loads((results / "review" / "review.json").read_text(encoding="utf-8"))
    assert summary["slides"] == ["a"]
    assert [summary["reviewers"][0][name] for name in ("who", "n_edits", "n_accepted", "n_blinded")] == [
        "Anna",
        4,
        1,
        5,
    ]
    assert "Corrections by hand" in (results / "report.html").read_text(encoding="utf-8")
    # when nothing bears them out any more, they go
    shutil.move(results / "review" / "journal.jsonl", results / "kept.jsonl")
    write_report(results)
    assert list(table(results / "tables", "regions")) == list(automatic)
    assert not list((results / "review").glob("*.csv"))


def test_two_reviewers_and_slides_that_are_not_there(results):
    cells = review(results, flips=[5, 6])
    review(results, who="Ben", flips=[6])
    with Journal(results, "Ben") as ben:
        cell = cells.loc[5]
        where = {
            "y_um": float(cell["y_um"]),
            "x_um": float(cell["x_um"]),
            "measured": read_slide(results, "a").measured,
        }
        ben.record("a", "delete", **where)
        ben.record("gone", "delete", **where)
        ben.record("a", "call", kind="spine", marker="class", new="thin", **where)
    found = write_corrected(results)
    assert len(found.journals) == 2
    assert found.disagreements["said"].tolist() == ["Anna: there; Ben: none there"]
    reasons = ["slide 'gone' is not in these results", "these results hold no spines"]
    assert found.unmatched["reason"].tolist() == reasons
    assert table(results / "review", "unmatched")["who"].tolist() == ["Ben", "Ben"]
    page = write_report(results).read_text(encoding="utf-8")
    assert "slide &#x27;gone&#x27; is not in these results" in page
    assert "Anna: there; Ben: none there" in page
    corrected = found.cells["a"].set_index("cell_id")
    assert 5 not in corrected.index
    assert corrected.loc[6, "tunel_positive"] != cells.loc[6, "tunel_positive"]


def test_a_repeat_takes_the_corrections_along(results, tmp_path):
    review(results, flips=[3], adds=[(150.0, 45.0)])
    with pytest.raises(InputError, match="newer than the tables"):
        repeat_run(results, tmp_path / "again", workers=1)
    write_report(results)
    repeated = repeat_run(results, tmp_path / "again", workers=1)
    assert repeated.differences == ()
    assert "review/regions.csv" in repeated.compared
    assert set(CORRECTED) < set(table(tmp_path / "again" / "tables", "regions"))


def test_a_damaged_journal_stops_a_run_before_it_begins(made, results):
    review(results, flips=[3, 4])
    journal = results / "review" / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join([lines[0], "{}\n", lines[2]]), encoding="utf-8")
    before = (results / "run.json").read_bytes()
    with pytest.raises(FormatError, match="line 2"):
        run_study(load(made / "study.csv", made / "recipe.toml"), results, workers=1)
    assert (results / "run.json").read_bytes() == before


def test_results_of_an_older_version_are_refused_with_the_remedy(results):
    (results / "slides" / "a" / "regions.geojson").unlink()
    with pytest.raises(InputError, match=r"no regions.geojson of slide 'a'.*nothing is segmented again"):
        read_slide(results, "a")
