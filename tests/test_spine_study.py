"""A study of dendrites: one command from stacks to densities by animal, failures listed, nothing computed twice."""

import csv
import json
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from histoquant import store
from histoquant.analysis.spine_animals import animal_table
from histoquant.assays import run_assays
from histoquant.cli import app
from histoquant.errors import Faults, InputError
from histoquant.inputs import KINDS, load, load_assays, read_recipe
from histoquant.model import tables
from histoquant.phantom import DendritePlan, make_dendrites, shipped_recipe
from histoquant.repeat import repeat_run
from histoquant.spine_stack import analyse_stack
from histoquant.spine_study import check_spines, run_spines

PLAN = DendritePlan(size_um=(20.0, 30.0), spines_per_10um=(8.0,), animals=2, seed=5)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("dendrites") / "phantom"
    make_dendrites(out, PLAN)
    return out


@pytest.fixture(scope="module")
def finished(study):
    out = study.with_name("run")
    outcome = run_spines(load(study / "study.csv", study / "recipe.toml", kinds=KINDS), out, workers=2)
    assert not outcome.failures
    return out


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_animals_have_densities_and_groups_are_compared(study, finished):
    animals = pd.read_csv(finished / "tables" / "spines.csv")
    assert list(animals) == list(tables.SPINE_ANIMALS)
    for row in animals.itertuples():
        true = pd.read_csv(study / "truth" / f"{row.animal}_s1" / "dendrites.csv")
        # Ends are round and blurred: up to one um is lost at each.
        assert row.dendrite_length_um == pytest.approx(true["length_um"].sum(), abs=2.0)
        per_10um = 10 * true["n_spines"].sum() / true["length_um"].sum()
        assert row.spines_per_10um == pytest.approx(per_10um, rel=0.15)
        own = pd.read_csv(finished / "slides" / f"{row.animal}_s1" / "spines.csv")
        assert row.n_spines == own["included"].sum()
    statistics = pd.read_csv(finished / "tables" / "statistics.csv")
    assert "spine_spines_per_10um" in set(statistics["endpoint"])
    page = (finished / "report.html").read_text()
    assert "spines per 10" in page
    assert "blur of 0.212 um" in page  # the phantom's own, from its recipe
    assert all(f"{animal}_s1" in page for animal in animals["animal"])


def test_a_second_start_computes_nothing_and_any_number_of_workers_gives_the_same(study, finished, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("slides/*/spines.csv")}
    told = []
    checked = load(study / "study.csv", study / "recipe.toml", kinds=KINDS)
    run_spines(checked, finished, workers=1, progress=lambda now: told.append(now.message))
    assert told == ["4 stack(s) kept from before"]
    assert before == {p: p.stat().st_mtime_ns for p in finished.glob("slides/*/spines.csv")}
    run_spines(checked, tmp_path / "alone", workers=1)
    for name in ("all_dendrites", "all_spines", "spines", "spines_groups", "statistics"):
        one, other = (folder / "tables" / f"{name}.csv" for folder in (finished, tmp_path / "alone"))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_changed_number_is_computed_again(study, finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    recipe = tmp_path / "recipe.toml"
    before = (study / "recipe.toml").read_text()
    recipe.write_text(before.replace("min_score = 0.25", "min_score = 0.9"))
    assert recipe.read_text() != before
    told = []
    run_spines(
        load(study / "study.csv", recipe, kinds=KINDS), out, workers=2, progress=lambda now: told.append(now.message)
    )
    assert not any("kept" in line for line in told)
    both = [pd.read_csv(folder / "tables" / "spines.csv")["n_spines"].sum() for folder in (out, finished)]
    assert both[0] < both[1]


def test_a_folder_that_was_half_written_over_is_not_taken_for_finished(study, finished, tmp_path, monkeypatch):
    """Killed while another recipe's results were written: the first recipe's mark must not stand beside them."""
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    name = "M1_s1"
    whole = (out / "slides" / name / "spines.csv").read_bytes()

    def dies(path, table):
        if path.name == "sholl.csv":
            raise KeyboardInterrupt
        path.write_text("of another recipe")

    with monkeypatch.context() as killed:
        killed.setattr(store, "write_csv", dies)
        with pytest.raises(KeyboardInterrupt):
            analyse_stack(study / "slides" / f"{name}.ome.tif", out / "slides" / name)
    assert (out / "slides" / name / "spines.csv").read_text() == "of another recipe"
    run_spines(load(study / "study.csv", study / "recipe.toml", kinds=KINDS), out, workers=1)
    assert (out / "slides" / name / "spines.csv").read_bytes() == whole


def test_a_trace_outside_the_study_is_refused(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    (tmp_path / "other.swc").write_text("")
    rows = rows_of(folder / "study.csv")
    write_rows(folder / "study.csv", [row | {"trace": "../other.swc"} for row in rows])
    faults = check_spines(load(folder / "study.csv", folder / "recipe.toml", kinds=KINDS))
    assert len(faults) == len(rows)
    assert "other.swc" in faults[0].error


def test_a_stack_that_fails_is_listed_and_leaves_its_animal_without_numbers(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    broken = folder / "slides" / "M2_s1.ome.tif"
    broken.write_bytes(broken.read_bytes()[:-40_000])
    result = CliRunner().invoke(
        app, ["run", str(folder / "study.csv"), "-r", str(folder / "recipe.toml"), "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert list(failures["slide"]) == ["M2_s1"]
    animals = pd.read_csv(tmp_path / "out" / "tables" / "spines.csv").set_index("animal")
    assert pd.isna(animals.loc["M2", "spines_per_10um"])
    assert "incomplete" in animals.loc["M2", "flags"]
    assert animals.drop("M2")["spines_per_10um"].notna().all()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "failed"


def test_traces_and_steps_of_the_sheet_are_used(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    rows = rows_of(folder / "study.csv")[:1]
    name = rows[0]["animal"]
    trace = next((folder / "truth" / f"{name}_s1" / "traces").glob("*.swc"))
    write_rows(folder / "study.csv", [rows[0] | {"trace": str(trace.relative_to(folder)), "z_step_um": "0.5"}])
    checked = load(folder / "study.csv", folder / "recipe.toml", kinds=KINDS)
    assert check_spines(checked) == []
    run_spines(checked, tmp_path / "out", workers=1)
    told = json.loads((tmp_path / "out" / "slides" / f"{name}_s1" / "provenance.json").read_text())
    assert told["voxel_um"][0] == 0.5
    assert told["trace"]["sha256"]
    dendrites = pd.read_csv(tmp_path / "out" / "slides" / f"{name}_s1" / "dendrites.csv")
    assert set(dendrites["traced_by"]) == {"person"}


def test_check_names_every_fault_of_stacks(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    rows = rows_of(folder / "study.csv")
    rows = [row | {"trace": "", "z_step_um": ""} for row in rows]
    rows[0]["trace"], rows[1]["z_step_um"] = "nowhere.swc", "half"
    (folder / rows[2]["slide"]).write_bytes(b"no picture")
    write_rows(folder / "study.csv", rows)
    result = CliRunner().invoke(app, ["check", str(folder / "study.csv"), "-r", str(folder / "recipe.toml")])
    assert result.exit_code == 2
    faults = check_spines(load(folder / "study.csv", folder / "recipe.toml", kinds=KINDS))
    assert [fault.slide for fault in faults] == [f"{row['animal']}_s1" for row in rows[:3]]
    assert "nowhere.swc" in faults[0].error
    assert "half" in faults[1].error


def test_density_is_pooled_and_dendrites_without_spines_count():
    dendrites = tables.empty(tables.DENDRITES)
    lengths, counts = [90.0, 10.0], [0, 10]
    for number, (length, n) in enumerate(zip(lengths, counts, strict=True)):
        row = dict.fromkeys(tables.DENDRITES, "") | {
            "slide_id": "a", "dendrite_id": str(number), "order": 1, "length_um": length, "mean_diameter_um": 1.0,
            "n_spines": n, "spines_per_10um": 10 * n / length, "tree": number, "included": True,
            "included_length_um": length, "n_included": n, "n_z_shadow": 0, "hidden_factor": 1.0,
        }  # fmt: skip
        dendrites.loc[number] = row
    dendrites = tables.shaped(dendrites, tables.DENDRITES)
    stacks = [("a", "M1", "vehicle"), ("b", "M2", "vehicle")]
    found = animal_table(dendrites, tables.empty(tables.SPINES), stacks=stacks, lost=set()).set_index("animal")
    assert found.loc["M1", "spines_per_10um"] == pytest.approx(1.0)
    assert pd.isna(found.loc["M2", "spines_per_10um"])
    assert "no dendrite" in found.loc["M2", "flags"]


def test_endpoints_of_cells_are_refused_in_recipes_of_spines(study, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        (study / "recipe.toml").read_text()
        + '\n[statistics.primary]\nmarker = "tunel"\nregion = "core"\nmeasure = "density_per_mm2"\n'
    )
    with pytest.raises((Faults, InputError), match="no endpoint of dendrites"):
        load(study / "study.csv", recipe, kinds=KINDS)


def test_a_run_of_spines_is_not_repeated_as_one_of_cells(finished, tmp_path):
    with pytest.raises(InputError, match="of spines"):
        repeat_run(finished, tmp_path / "again")


def test_spines_are_an_assay_of_a_study_of_several(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    write_rows(folder / "study.csv", [row | {"recipe": "recipe.toml"} for row in rows_of(folder / "study.csv")])
    out = tmp_path / "out"
    outcome = run_assays(load_assays(folder / "study.csv"), out, workers=2)
    assert not outcome.failures
    statistics = pd.read_csv(out / "tables" / "statistics.csv")
    assert set(statistics["assay"]) == {"recipe"}
    assert "spines per 10" in (out / "report.html").read_text()


def test_shipped_recipes_of_spines_are_of_that_kind():
    assert {read_recipe(shipped_recipe(name), kinds=KINDS).kind for name in ("spines_confocal", "spines_golgi")} == {
        "spines"
    }
