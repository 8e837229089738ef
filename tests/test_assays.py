"""Studies of several assays: sheets that name recipes, comparisons over all of them, and one from slides to report."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from histoquant.assays import compare_assays, run_assays, write_joint, write_reports
from histoquant.cli import app
from histoquant.errors import HistoquantError, InputError, StoreError
from histoquant.inference import write_statistics
from histoquant.inputs import load_assays
from histoquant.phantom import JointPlan, make_joint_phantom
from histoquant.report.run import read_run

from .test_report import CALLED, Page, region_row, small_study, write_run

PRIMARY = '[statistics]\nprimary = { marker = "tunel", region = "core" }\n'
OTHER = CALLED.replace("tunel]", "brdu]").replace('"tunel"', '"brdu"')


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def write_sheet(folder, rows, **recipes):
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "study.csv").write_text("slide,animal,group,control,recipe\n" + "\n".join(rows) + "\n")
    return folder / "study.csv"


def counted(animals, shift, marker):
    """Rows of two groups of animals whose densities lie ``shift`` apart."""
    rows = []
    for i in range(animals):
        for group, more in (("vehicle", 0), ("treated", shift)):
            rows.append(region_row(f"{group}{i}", f"{group}{i}", group, positive=40 + 3 * i + more, marker=marker))
    return rows


@pytest.fixture
def joint(tmp_path):
    """A folder as `run_assays` leaves it, of two assays that both declare a primary endpoint."""
    root = tmp_path / "study"
    write_run(root / "assays" / "tunel", counted(6, -12, "tunel"), recipe=CALLED + PRIMARY)
    write_run(root / "assays" / "brdu", counted(6, 1, "brdu"), recipe=OTHER + PRIMARY.replace("tunel", "brdu"))
    for name in ("tunel", "brdu"):
        write_statistics(root / "assays" / name)
    told = {"schema": 1, "reference_group": "vehicle", "assays": {"tunel": {}, "brdu": {}}}
    (root / "study.json").write_text(json.dumps(told))
    return root


def test_rows_go_with_their_recipe_and_slides_are_named_within_it(tmp_path):
    rows = ["a/M1.tif,M1,vehicle,,tunel.toml", "b/M1.tif,M1,vehicle,,sub/brdu.toml", "a/c.tif,c,x,no_tdt,tunel.toml"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "brdu.toml").write_text(OTHER.replace('threshold = "controls", k = 3.0', "threshold = 9.0"))
    assays = load_assays(write_sheet(tmp_path, rows, tunel=CALLED))
    assert list(assays) == ["tunel", "brdu"]
    assert [row.slide_id for row in assays["tunel"].study.slides] == ["M1", "c"]
    assert [row.slide_id for row in assays["brdu"].study.slides] == ["M1"]
    assert all("recipe" not in row.extra for each in assays.values() for row in each.study.slides)


def test_all_faults_of_all_recipes_come_at_once(tmp_path):
    rows = ["a.tif,M1,vehicle,,tunel.toml", "b.tif,M2,vehicle,,", "c.tif,M3,vehicle,,bad.toml", "d.tif,M4,x,,none.toml"]
    with pytest.raises(HistoquantError) as told:
        load_assays(write_sheet(tmp_path, rows, tunel=CALLED, bad="schema = 2\n"))
    text = str(told.value)
    for part in ("slide 'b' names no recipe", "Assay 'tunel': ", "no control section", "bad.toml", "none.toml"):
        assert part in text


def test_recipes_outside_the_folder_and_of_one_name_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tunel.toml").write_text(CALLED)
    rows = [
        "a.tif,M1,v,,tunel.toml",
        "b.tif,M1,v,,x/tunel.toml",
        "c.tif,M1,v,,../o.toml",
        "d.tif,c,v,no_tdt,tunel.toml",
    ]
    with pytest.raises(HistoquantError) as told:
        load_assays(write_sheet(tmp_path, rows, tunel=CALLED))
    assert "two recipes are called 'tunel'" in str(told.value)
    assert "leaves the study's folder" in str(told.value)


def test_sheet_without_recipes_needs_one(tmp_path):
    sheet = tmp_path / "study.csv"
    sheet.write_text("slide,animal,group\na.tif,M1,vehicle\n")
    for command in (("check", sheet), ("run", sheet, "--out", tmp_path / "out")):
        assert "needs --recipe" in str(run(*command).exception)
    sheet.write_text("slide,animal,group,recipe\na.tif,M1,vehicle,x.toml\n")
    assert "x.toml" in str(run("check", sheet).exception)
    assert "one assay" in str(run("run", sheet, "--out", tmp_path / "out", "--watch").exception)


def test_families_reach_over_all_assays(joint):
    alone = {name: read_run(joint / "assays" / name).inferred.tables for name in ("tunel", "brdu")}
    tables = write_joint(joint)
    both = tables["statistics"].merge(tables["estimates"][["assay", "endpoint", "region", "family", "p_alone"]])
    primary = both[both["family"] == "primary"].set_index("assay")
    assert list(primary.index) == ["tunel", "brdu"]
    assert set(primary["adjustment"]) == {"Holm, 2 primary comparisons"}
    p = primary["p_alone"]
    assert primary.loc["tunel", "p_adjusted"] == pytest.approx(min(1, 2 * p["tunel"]))  # Holm: the smaller one twice
    assert primary.loc["brdu", "p_adjusted"] == pytest.approx(max(2 * p["tunel"], p["brdu"]))
    for name, each in alone.items():  # within an assay it is the only one
        row = each["statistics"].iloc[0]
        assert row["p_adjusted"] == row["p"] == primary.loc[name, "p"]
    assert len(tables["statistics"]) == sum(len(each["statistics"]) for each in alone.values())
    kept = pd.read_csv(joint / "tables" / "statistics.csv")
    assert list(kept["assay"].unique()) == ["tunel", "brdu"]


def test_page_of_all_assays(joint):
    write_joint(joint)
    for name in ("tunel", "brdu"):
        assert not (joint / "assays" / name / "report.html").exists()
    page = Page(write_reports(joint).read_text())
    links = {attributes["href"] for attributes in page.named("a")}
    for name in ("tunel", "brdu"):
        assert (joint / "assays" / name / "report.html").is_file()
        assert f"assays/{name}/report.html" in links
        assert (joint / "figures" / f"results_{name}_{name}_density_per_mm2.pdf").is_file()
    assert "Primary (2 endpoints)" in page.text
    assert "tunel, profiles per mm², core (tunel)" in page.text


def test_commands_on_a_study_of_several_assays(joint, tmp_path):
    write_joint(joint)
    told = run("stats", joint)
    assert told.exit_code == 0, told.output
    assert "tunel: tunel_density_per_mm2 in core: treated vs vehicle, n 6 v 6" in told.output
    assert told.output.count("Primary endpoints") == 1
    told = json.loads(run("status", joint, "--json").output)
    assert {name: each["state"] for name, each in told["assays"].items()} == {"tunel": "done", "brdu": "done"}
    assert "== brdu" in run("status", joint).output
    assert run("report", joint).exit_code == 0
    with pytest.raises(InputError, match="holds several runs"):
        read_run(joint)
    (tmp_path / "r.toml").write_text(CALLED)
    assert "is for one assay" in str(run("stats", joint, "--recipe", tmp_path / "r.toml").exception)


def test_failures_of_an_assay_stand_first_and_name_it(tmp_path):
    root = tmp_path / "study"
    write_run(root / "assays" / "tunel", small_study(), failures=[("s9", "check", "Bad <b>file</b>.", "Mend it.")])
    (root / "study.json").write_text(json.dumps({"reference_group": "vehicle", "assays": {"tunel": {}}}))
    compare_assays(root)
    page = Page((root / "report.html").read_text())
    assert "1 slide failed" in page.text
    assert "Bad <b>file</b>." in page.text
    assert pd.read_csv(root / "failures.csv")["slide"].tolist() == ["tunel/s9"]


def test_another_folder_is_not_taken(tmp_path):
    rows = ["a.tif,M1,vehicle,,tunel.toml", "b.tif,c,x,no_tdt,tunel.toml"]
    assays = load_assays(write_sheet(tmp_path, rows, tunel=CALLED))
    with pytest.raises(StoreError, match="not empty"):
        run_assays(assays, tmp_path)
    other = load_assays(write_sheet(tmp_path, rows, tunel=CALLED + '[count]\nreference_group = "low"\n'))
    with pytest.raises(InputError, match="different groups"):
        run_assays({"a": assays["tunel"], "b": other["tunel"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_study_file_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json"):
        compare_assays(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_assays_from_slides_to_one_report(tmp_path):
    """-50 % TUNEL, +60 % BrdU, no effect on the infarct: 3 groups of 8 animals, in one command."""
    made = tmp_path / "made"
    sheet = make_joint_phantom(made, JointPlan(animals=8, size_mm=(1.2, 1.2), pixel_size_um=1.0))
    for name in ("tunel", "brdu"):  # the watershed finds the nuclei of phantoms as well, in a fraction of the time
        text = (made / f"{name}.toml").read_text().replace('"network"', '"watershed"').replace("min_area = 0.4\n", "")
        (made / f"{name}.toml").write_text(text)
    out = tmp_path / "out"
    told = run("run", sheet, "--out", out, "--quiet", "--workers", 2)
    assert told.exit_code == 0, told.output
    keys = ["assay", "endpoint", "region", "group"]
    statistics = pd.read_csv(out / "tables" / "statistics.csv").merge(pd.read_csv(out / "tables" / "estimates.csv"))
    statistics["group"] = statistics["comparison"].str.removesuffix(" vs vehicle")
    primary = statistics[statistics["family"] == "primary"].set_index(keys)
    drawn = pd.read_csv(made / "truth" / "effects.csv").set_index(keys)["percent_change"]
    planned = {"tunel": -50.0, "brdu": 60.0, "ttc": 0.0}
    assert len(primary) == 6
    for (assay, endpoint, region, group), row in primary.iterrows():
        assert (row["n_a"], row["n_b"]) == (8, 8)
        for truth in (planned[assay] * (0.5 if group == "low" else 1), drawn[assay, endpoint, region, group]):
            assert row["ci_low"] < truth < row["ci_high"], (assay, group)
        # What was measured is what the slides hold, far closer than the animals' spread.
        assert row["percent_change"] == pytest.approx(drawn[assay, endpoint, region, group], abs=6)
        if assay == "ttc":
            assert row["p_adjusted"] > 0.5
        elif group == "high":
            assert row["p_adjusted"] < 0.01
            assert not row["ci_low"] < 0 < row["ci_high"]
    page = Page((out / "report.html").read_text())
    assert "Primary (3 endpoints)" in page.text
    assert len(page.named("svg")) == 3 + 2  # every declared endpoint, and the effects of both families
