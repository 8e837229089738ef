"""Infarct volumes: formulas, slices in photographs, outlines corrected by a person, and the command."""

import csv
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import shapely
from typer.testing import CliRunner

from histoquant.analysis import slices as find
from histoquant.analysis import ttc
from histoquant.analysis.infarct import SliceAreas, volumes
from histoquant.analysis.slice_outlines import NEGATIVE, outlined
from histoquant.cli import app
from histoquant.errors import InputError, RecipeError
from histoquant.model.infarct import InfarctSettings
from histoquant.model.recipe import parse_recipe
from histoquant.model.region import Region
from histoquant.phantom import TtcPlan, make_ttc_phantom
from histoquant.phantom.ttc import photograph
from histoquant.readers.geojson import write_geojson
from histoquant.readers.outlines import read_outlines

CONTRA, IPSI, INFARCT = (60, 75, 90, 92, 85, 70), (61, 82, 104, 108, 97, 74), (0, 14, 34, 40, 26, 6)
SETTINGS = InfarctSettings(slice_thickness_um=2000)


def taken(**stated):
    plan = TtcPlan(**stated)
    shot = photograph(plan, 0, 1.0)
    return plan, shot, np.moveaxis(shot.rgb, -1, 0).astype(np.float32)


def areas_of(found):
    return [one.areas(found.side) for one in found.slices]


def test_known_brain():
    whole = volumes([SliceAreas(*each) for each in zip(INFARCT, IPSI, CONTRA, strict=True)], 2.0)
    assert (whole.direct_mm3, whole.indirect_mm3) == (240, 132)
    assert whole.ratio_mm3 == pytest.approx(209.52, abs=0.005)  # slice by slice; from the totals it would be 215.36
    assert (whole.contralateral_mm3, whole.ipsilateral_mm3, whole.n_slices, whole.n_negative) == (944, 1052, 6, 1)
    assert whole.percent_hemisphere("indirect") == pytest.approx(13.98, abs=0.005)
    assert whole.percent_hemisphere("ratio") == pytest.approx(22.20, abs=0.005)
    assert whole.percent_brain("indirect") == pytest.approx(6.99, abs=0.005)
    assert whole.swelling_percent == pytest.approx(11.44, abs=0.005)


def test_negative_slices_are_kept():
    slices = [SliceAreas(*each) for each in zip(INFARCT, IPSI, CONTRA, strict=True)]
    assert [2 * one.indirect_mm2 for one in slices] == [-2, 14, 40, 48, 28, 4]


def test_no_slice_is_no_volume_and_no_percentage():
    nothing = volumes([], 2.0)
    assert nothing.direct_mm3 == nothing.n_slices == 0
    assert math.isnan(nothing.percent_hemisphere("direct"))
    assert math.isnan(nothing.swelling_percent)


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"ground": "blue", "side": "left", "tilt_deg": 30.0, "seed": 2},
        {"touching": True, "seed": 3},
        {"shading": 0.5, "swelling": -0.1, "lesion": 0.45, "seed": 5},
    ],
    ids=["dark", "blue, left, tilted", "touching", "uneven light, shrunken"],
)
def test_photographs(stated):
    """Volumes within 3 %, swelling within a point, Dice at least 0.95."""
    plan, shot, rgb = taken(**stated)
    found = outlined(rgb, plan.pixel_size_um, [], SETTINGS, plan.side)
    assert [one.number for one in found.slices] == [1, 2, 3, 4, 5, 6]
    got = volumes(areas_of(found), 2.0)
    true = volumes([SliceAreas(*each) for each in shot.areas_mm2], 2.0)
    for formula in ("direct", "indirect", "ratio"):
        assert getattr(got, f"{formula}_mm3") == pytest.approx(getattr(true, f"{formula}_mm3"), rel=0.03)
    assert got.swelling_percent == pytest.approx(true.swelling_percent, abs=1.0)
    px = plan.pixel_size_um
    y, x = (np.indices(shot.lesion.shape) + 0.5) * px
    drawn = np.zeros(shot.lesion.shape, np.uint8)
    for one in found.slices:
        drawn[shapely.contains_xy(one.lesion, x, y)] = one.number
    both = np.count_nonzero((drawn == shot.lesion) & (drawn > 0))
    assert 2 * both / (np.count_nonzero(drawn) + np.count_nonzero(shot.lesion)) >= 0.95


def test_a_brain_without_lesion_has_none():
    plan, _, rgb = taken(lesion=0.0, seed=4)
    found = outlined(rgb, plan.pixel_size_um, [], SETTINGS, None)
    assert sum(one.infarct for one in areas_of(found)) == 0  # its white matter is pale on both sides
    assert any("side of the lesion was not given" in note for note in found.notes)


def test_the_side_of_the_lesion_is_seen():
    for side in ("left", "right"):
        plan, _, rgb = taken(side=side, seed=6)
        assert outlined(rgb, plan.pixel_size_um, [], SETTINGS, None).side == side


def test_a_symmetrical_outline_has_its_midline_flagged():
    mask = (np.hypot(*np.ogrid[-60:61, -80:81]) <= 55) | False
    line, by_notches = find.midline(mask)
    assert not by_notches
    assert abs((line[0][1] + line[1][1]) / 2 - 80) < 1.5


def test_shadow_is_ground():
    ground = np.array([42.0, 74.0, 138.0])
    colours = np.array([[42.0, 74, 138], [21, 37, 69], [172, 44, 50], [232, 216, 202]]).T[:, None]
    far = find._off_ground(colours, ground)[0]
    assert far[0] == far[1] == 0
    assert far[2:].min() > 100


def test_pale_ground_is_refused():
    rgb = np.full((3, 200, 200), 230, np.float32)
    with pytest.raises(InputError, match="is like pale tissue"):
        outlined(rgb, 100.0, [], SETTINGS, "left")


def test_a_picture_without_slices_is_refused():
    rgb = np.full((3, 200, 200), 30, np.float32)
    with pytest.raises(InputError, match="no slice of at least"):
        outlined(rgb, 100.0, [], SETTINGS, "left")


def test_unstained_slices_are_refused():
    plan, _, rgb = taken(lesion=0.0)
    grey = np.where(rgb.mean(axis=0) > 60, 210.0, rgb).astype(np.float32)
    with pytest.raises(InputError, match="no red tissue"):
        outlined(grey, plan.pixel_size_um, [], SETTINGS, "left")
    assert outlined(rgb, plan.pixel_size_um, [], SETTINGS, "left").redness is not None


def test_white_comes_from_a_card_or_a_grey_ground():
    assert ttc.white_of((200, 180, 160), None)[1] == "the grey ground of the picture"
    assert ttc.white_of((42, 74, 138), None)[0] == 0
    assert ttc.white_of((42, 74, 138), (200, 180, 160))[0] == pytest.approx(math.log(201 / 171))


def test_outlines_given_again_give_the_same(tmp_path):
    plan, _, rgb = taken(seed=7)
    first = outlined(rgb, plan.pixel_size_um, [], SETTINGS, plan.side)
    path = tmp_path / "outlines.geojson"
    write_geojson(path, [region for one in first.slices for region in one.regions()], plan.pixel_size_um)
    again = outlined(rgb, plan.pixel_size_um, read_outlines(path, plan.pixel_size_um), SETTINGS, plan.side)
    for one, two in zip(areas_of(first), areas_of(again), strict=True):
        assert vars(one) == pytest.approx(vars(two), abs=1e-6)


def test_a_corrected_midline_and_lesion_are_used():
    plan, _, rgb = taken(seed=7)
    first = outlined(rgb, plan.pixel_size_um, [], SETTINGS, plan.side)
    drawn = [region for one in first.slices for region in one.regions()]
    moved = [
        Region(r.name, shapely.transform(r.geometry, lambda xy: xy + np.array([500, 0])), counted=False)
        if "midline" in r.name
        else r
        for r in drawn
        if r.name != "slice 3 lesion"
    ]
    again = outlined(rgb, plan.pixel_size_um, moved, SETTINGS, plan.side)
    assert areas_of(again)[2].infarct == 0 < areas_of(first)[2].infarct
    for one, two in zip(areas_of(first), areas_of(again), strict=True):
        assert two.contralateral > one.contralateral + 1
        assert two.contralateral + two.ipsilateral == pytest.approx(one.contralateral + one.ipsilateral)


def test_drawn_sections_need_no_colour():
    """As traced on Nissl or H&E: a disc of 5 mm with a lesion of known area beyond its midline."""
    disc = shapely.Point(10_000, 10_000).buffer(5000, quad_segs=64)
    line = shapely.LineString([(10_000, 4000), (10_000, 16_000)])
    lesion = shapely.box(9000, 9000, 12_000, 11_000)
    settings = InfarctSettings(slice_thickness_um=1000, stain="outlines")
    drawn = [Region("Section 1", disc), Region("midline", line, counted=False), Region("lesion", lesion)]
    found = outlined(None, 1.0, drawn, settings, "right")
    (areas,) = areas_of(found)
    assert areas.infarct == pytest.approx(4.0)
    assert areas.ipsilateral == pytest.approx(areas.contralateral)
    assert "2.0 mm2 of the lesion beyond the midline not counted" in found.slices[0].all_flags("right")
    halves = [Region("ipsi", shapely.box(0, 0, 4000, 4000)), Region("contra", shapely.box(4000, 0, 7000, 4000))]
    named = outlined(None, 1.0, [*halves, Region("infarct", shapely.box(0, 0, 500, 1000))], settings, None)
    assert vars(areas_of(named)[0]) == pytest.approx({"infarct": 0.5, "ipsilateral": 16.0, "contralateral": 12.0})
    assert NEGATIVE in named.slices[0].all_flags(named.side)
    with pytest.raises(InputError, match="side of the lesion"):
        outlined(None, 1.0, drawn, settings, None)


def test_recipe():
    told = parse_recipe("schema = 1\n[infarct]\nslice_thickness_um = 1000\n")
    assert told.infarct.primary == "indirect"
    with pytest.raises(RecipeError, match=r"infarct.slice_thickness_um"):
        parse_recipe("schema = 1\n[infarct]\n")
    with pytest.raises(RecipeError, match="Did you mean 'pale_below'"):
        parse_recipe("schema = 1\n[infarct]\nslice_thickness_um = 1000\npale_belo = 0.4\n")
    wrong = 'schema = 1\n[infarct]\nslice_thickness_um = 1000\n[statistics]\nprimary = { marker = "infarct", region = '
    with pytest.raises(RecipeError, match="no endpoint of infarcts"):
        parse_recipe(wrong + '"core", measure = "ratio_mm3" }\n')
    recipe = parse_recipe(wrong + '"brain", measure = "ratio_mm3" }\n')
    assert recipe.compared.primary.name == "infarct_ratio_mm3"  # the declared endpoint goes before the formula
    with pytest.raises(RecipeError, match="counterstain"):
        parse_recipe("schema = 1\n")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ttc")
    make_ttc_phantom(folder / "study", TtcPlan(animals=2, pixel_size_um=90.0, effect=-0.5, seed=11))
    return folder / "study"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_command(study, tmp_path):
    out = tmp_path / "out"
    done = run("infarct", study / "study.csv", "--recipe", study / "recipe.toml", "--out", out, "--quiet")
    assert done.exit_code == 0, done.output
    got = pd.read_csv(out / "tables" / "infarct.csv").set_index("animal")
    true = pd.read_csv(study / "truth" / "infarct.csv").set_index("animal")
    for column in ("direct_mm3", "indirect_mm3", "ratio_mm3"):
        assert np.allclose(got[column], true[column], rtol=0.04)  # pixels of 90 um
    groups = pd.read_csv(out / "tables" / "infarct_groups.csv")
    direct = groups[(groups["endpoint"] == "direct_mm3") & (groups["group"] == "treated")].iloc[0]
    means = true.groupby("group")["direct_mm3"].mean()  # the skull cuts lesions: less than half is gone
    assert direct["percent_change"] == pytest.approx(100 * (means["treated"] / means["vehicle"] - 1), abs=2)
    assert direct["percent_change"] < -30
    assert json.loads((out / "run.json").read_text())["state"] == "done"
    for name in ("overview.png", "outlines.geojson", "slices.csv", "provenance.json", "log.txt"):
        assert (out / "slides" / "R1" / name).stat().st_size > 0
    compared = pd.read_csv(out / "tables" / "statistics.csv").merge(pd.read_csv(out / "tables" / "estimates.csv"))
    effects = compared.set_index("endpoint")
    assert effects["family"].to_dict()["infarct_indirect_mm3"] == "primary"
    assert (effects["family"] == "primary").sum() == 1
    assert effects.loc["infarct_direct_mm3", "percent_change"] == pytest.approx(direct["percent_change"])
    before = (out / "report.html").read_bytes()
    for command in ("stats", "report"):
        assert run(command, out, "--quiet").exit_code == 0
    assert (out / "report.html").read_bytes() == before
    assert (out / "figures" / "results_infarct.svg").is_file()
    page = before.decode()
    assert "Indirect, mm³ (declared)" in page
    assert page.count("<img") == 4
    first = (out / "tables" / "infarct.csv").read_bytes()
    run("infarct", study / "study.csv", "--recipe", study / "recipe.toml", "--out", out, "--quiet")
    assert (out / "tables" / "infarct.csv").read_bytes() == first


def test_a_broken_picture_fails_alone(study, tmp_path):
    broken = tmp_path / "study"
    shutil.copytree(study, broken)
    (broken / "slides" / "R3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    out = tmp_path / "out"
    done = run("infarct", broken / "study.csv", "--recipe", broken / "recipe.toml", "--out", out, "--quiet")
    assert done.exit_code == 1
    with (out / "failures.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["R3"]
    animals = pd.read_csv(out / "tables" / "infarct.csv").set_index("animal")
    assert animals.loc["R3", "flags"] == "incomplete: a picture failed"
    assert np.isnan(animals.loc["R3", "direct_mm3"])
    groups = pd.read_csv(out / "tables" / "infarct_groups.csv")
    assert set(groups.loc[groups["group"] == "treated", "flags"]) == {"left out, incomplete: R3"}
    assert set(groups.loc[groups["group"] == "treated", "n_animals"]) == {1}


def test_check_and_run_say_what_the_recipe_is_for(study, tmp_path):
    assert run("check", study / "study.csv", "--recipe", study / "recipe.toml").exit_code == 0
    refused = run("run", study / "study.csv", "--recipe", study / "recipe.toml", "--out", tmp_path / "out")
    assert isinstance(refused.exception, RecipeError)
    assert "histoquant infarct" in str(refused.exception)
    sheet = tmp_path / "study.csv"
    sheet.write_text(
        (study / "study.csv").read_text().replace("slides/", f"{study}/slides/").replace(",right,", ",up,", 1)
    )
    assert run("check", sheet, "--recipe", study / "recipe.toml").exit_code == 2
