"""Corrected infarct volumes: a replay of the journals beside results that stay as they are."""

import shutil

import pandas as pd
import pytest
import shapely

from histoquant.batch import write_report
from histoquant.corrected_infarct import FOUND, REDRAWN, read_picture, write_corrected_infarct
from histoquant.errors import InputError
from histoquant.infarct import run_infarct
from histoquant.inputs import KINDS, load
from histoquant.journal import Journal
from histoquant.model.edit import LESION, Edit
from histoquant.phantom import TtcPlan, make_ttc_phantom


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brains")
    make_ttc_phantom(folder / "study", TtcPlan(animals=1, pixel_size_um=90.0, seed=3))
    checked = load(folder / "study" / "study.csv", folder / "study" / "recipe.toml", kinds=KINDS)
    assert not run_infarct(checked, folder / "run").failures
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def about(found, number, **parts):
    row = found.objects.set_index("cell_id").loc[number]
    place = {name: float(row[name]) for name in ("y_um", "x_um", "area_um2")}
    return {"kind": LESION, "region": row["region"], "measured": found.measured, "marker": "class"} | place | parts


def square_in(geometry, side_um):
    middle = geometry.representative_point()
    return shapely.box(*(at + sign * side_um / 2 for sign in (-1, 1) for at in (middle.x, middle.y)))


def test_what_is_read_is_what_was_measured(run):
    """Slices made of their outlines have the areas of the table, to the rounding of the file."""
    found, table = read_picture(run, "R1"), pd.read_csv(run / "slides" / "R1" / "slices.csv")
    again = pd.DataFrame([one.as_row(found.side) for one in found.slices])
    for name in ("infarct_mm2", "ipsilateral_mm2", "contralateral_mm2", "indirect_mm2"):
        assert again[name].to_numpy() == pytest.approx(table[name].to_numpy(), abs=1e-6)
    assert again["flags"].tolist() == table["flags"].fillna("").tolist()
    assert [region.name for region in found.regions if "lesion" in region.name] == []


def test_redrawn_deleted_restored_and_agreed_with(run):
    before = {path: path.read_bytes() for path in (run / "tables").glob("infarct*.csv")}
    found = read_picture(run, "R1")
    ipsilateral = found.slices[1].sides(found.side)[0]
    nowhere = shapely.box(-9e4, -9e4, -8e4, -8e4)
    drawn = shapely.union(square_in(ipsilateral, 1000.0), nowhere)
    with Journal(run, "Anna") as journal:
        journal.record("R1", "call", **about(found, 2), old=FOUND, new=REDRAWN, outline=shapely.to_wkt(drawn))
        journal.record("R1", "delete", **about(found, 3), old=FOUND)
        journal.record("R1", "call", **about(found, 4), old=FOUND, new=REDRAWN, outline=shapely.to_wkt(drawn))
        journal.record("R1", "call", **about(found, 4), old=REDRAWN, new=FOUND)
        journal.record("R1", "accept", **about(found, 5), old=FOUND, new=FOUND)
        journal.record("R1", "delete", **about(found, 6), old=FOUND)
        journal.undo()
    write_report(run)
    assert {path: path.read_bytes() for path in before} == before
    automatic = pd.read_csv(run / "tables" / "infarct_slices.csv")
    corrected = pd.read_csv(run / "review" / "infarct_slices.csv")
    assert list(corrected.columns) == list(automatic.columns)
    one = (automatic["slide_id"] == "R1").to_numpy()
    pd.testing.assert_frame_equal(corrected[~one], automatic[~one])
    expected = automatic[one]["infarct_mm2"].tolist()
    expected[1], expected[2] = 1.0, 0.0
    assert corrected[one]["infarct_mm2"].tolist() == pytest.approx(expected)
    hemispheres = ["ipsilateral_mm2", "contralateral_mm2"]
    assert corrected[hemispheres].to_numpy() == pytest.approx(automatic[hemispheres].to_numpy(), abs=1e-6)
    # a slice that nobody drew on keeps its numbers to the last digit
    assert corrected[one]["infarct_mm2"].tolist()[3:] == expected[3:]
    animals = pd.read_csv(run / "review" / "infarct.csv").set_index("animal")
    volumes = corrected.groupby("animal")["infarct_mm2"].sum() * 2  # slices of 2 mm
    assert animals["direct_mm3"].to_dict() == pytest.approx(volumes.to_dict())
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Corrected by hand (Anna; 0 edits unmatched)" in page
    for path in (run / "review").glob("journal*"):
        path.unlink()
    assert write_corrected_infarct(run) is None
    assert not (run / "review" / "infarct.csv").exists()


def test_lesions_are_found_in_another_analysis_by_place_and_the_rest_is_listed(run):
    found = read_picture(run, "R1")
    off = shapely.to_wkt(square_in(found.slices[0].tissue, 500.0))
    made = {"old": FOUND, "new": REDRAWN, "outline": off}
    aside = float(found.objects["x_um"][0]) + 900
    edits = [
        Edit.made("Anna", "R1", "call", **about(found, 1, measured="another", x_um=aside), **made),
        Edit.made("Anna", "R1", "call", **about(found, 2, measured="another", y_um=-5e4), **made),
    ]
    slices, done = found.corrected(edits)
    assert slices[0].lesion.area == pytest.approx(500.0**2)
    assert slices[1] is found.slices[1]
    assert done.unmatched["id"].tolist() == [edits[1].id]


def test_an_outline_is_ground_or_no_edit():
    place = {"kind": LESION, "y_um": 1.0, "x_um": 1.0, "marker": "class", "new": REDRAWN}
    for wrong in ("POINT (1 1)", "POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))", "no outline"):
        with pytest.raises(InputError, match="its outline is no valid polygon"):
            Edit.made("Anna", "R1", "call", **place, outline=wrong)
    told = Edit.made("Anna", "R1", "call", **place, outline="POLYGON ((0 0, 2 0, 2 2, 0 0))")
    assert Edit.from_dict(told.as_dict()) == told


@pytest.mark.parametrize("text", ['{"type": "FeatureCollection", "features": []}', "{"])
def test_a_picture_that_is_not_whole_is_one_sentence(run, text):
    (run / "slides" / "R1" / "outlines.geojson").write_text(text, "utf-8")
    with pytest.raises(InputError, match="'R1'") as told:
        read_picture(run, "R1")
    assert "Error(" not in str(told.value)
