"""Where a number comes from, and the same run again from what its folder says."""

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from histoquant.batch import run_study
from histoquant.errors import Faults, InputError
from histoquant.inputs import load, restated_inputs
from histoquant.repeat import repeat_run
from tests.conftest import RECIPE, make_scene, write_geojson, write_slide

SHEET = (
    "slide,animal,group,section,regions,control,batch,exclude,litter\n"
    "a.ome.tif,007,sham,1,r.geojson,,one,,x\n"
    "b.ome.tif,008,stroke,1,r.geojson,,one,,y\n"
    "n.ome.tif,009,sham,1,,no_tdt,one,,x\n"
    "gone.ome.tif,008,stroke,2,,,one,,y\n"
    "c.ome.tif,010,stroke,1,,,one,folded,\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with controls, outlines, a further column, a missing slide and one left out; and its run."""
    folder = tmp_path_factory.mktemp("repeat")
    for name, seed in (("a", 1), ("b", 2), ("n", 3)):
        scene = make_scene(n=60, seed=seed, share=0.0 if name == "n" else 0.3)
        write_slide(folder / f"{name}.ome.tif", scene.pixels)
    write_geojson(folder / "r.geojson", left=[(0, 0), (200, 0), (200, 400), (0, 400)])
    (folder / "study.csv").write_text(SHEET, encoding="utf-8")
    text = RECIPE.replace("threshold = 150.0", 'threshold = "controls", control = ["no_tdt"]')
    (folder / "recipe.toml").write_text(f"{text}[tiles]\ncore_px = 256\n", encoding="utf-8")
    checked = load(folder / "study.csv", folder / "recipe.toml")
    run_study(checked, folder / "out", workers=1, command=["histoquant", "run", "study.csv"])
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run folder; the sources stay where they are."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def told(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_number_leads_to_what_is_behind_it(made):
    """From a row of the tables to the slide's provenance, from there to run.json, and to the files."""
    out, state = made / "out", told(made / "out" / "run.json")
    rows = {row["slide_id"]: row for row in state["rows"]}
    table = pd.read_csv(out / "tables" / "regions.csv", dtype={"animal": str})
    assert set(table["slide_id"]) == {"a", "b", "n"} == set(state["inputs"])
    for row in table.itertuples():
        provenance = told(out / "slides" / row.slide_id / "provenance.json")
        behind = provenance["thresholds"][row.marker]
        assert row.threshold == behind["value"] == state["thresholds"]["one"][row.marker]["value"]
        assert (behind["source"], behind["sections"]) == ("controls", ["n"])
        assert state["thresholds"]["one"][row.marker] == behind
        assert provenance["sources"] == state["inputs"][row.slide_id]["sources"]
        assert provenance["sources"] == {f"{row.slide_id}.ome.tif": sha256(made / f"{row.slide_id}.ome.tif")}
        regions = None if row.slide_id == "n" else sha256(made / "r.geojson")
        assert provenance["regions_sha256"] == state["inputs"][row.slide_id]["regions_sha256"] == regions
        assert provenance["fingerprint"] == state["fingerprint"]
        assert provenance["recipe"] == state["recipe"]
        assert any(provenance["segmenter"]["plugin"] in plugin for plugin in state["plugins"])
        assert any(provenance["reader"] in plugin for plugin in state["plugins"])
        assert rows[row.slide_id]["animal"] == row.animal
    assert state["sheet"] == {"path": str(made / "study.csv"), "sha256": sha256(made / "study.csv")}
    assert state["recipe_file"]["sha256"] == sha256(made / "recipe.toml")
    assert state["command"] == ["histoquant", "run", "study.csv"]
    assert Path(state["working_folder"]) == Path.cwd()
    assert {"numpy", "numba", "scikit-image", "tifffile"} <= set(state["versions"])


def test_the_study_and_recipe_come_back_as_they_were(made):
    again = restated_inputs(told(made / "out" / "run.json"))
    before = load(made / "study.csv", made / "recipe.toml")
    assert again == before
    assert again.study.slides[1].extra == {"litter": "y"}
    assert again.study.slides[4].exclude == "folded"


def test_no_file_of_results_tells_the_time(made):
    """So that two runs can be compared byte for byte; run.json, logs and report say when."""
    day = told(made / "out" / "run.json")["start"][:10]
    timed = {
        path.name
        for path in (made / "out").rglob("*")
        if path.suffix in (".csv", ".json", ".jsonl", ".txt", ".html") and day in path.read_text(encoding="utf-8")
    }
    assert timed == {"run.json", "log.txt", "report.html", "exclusions.jsonl"}


def test_a_repeat_is_the_same_to_the_byte(made, tmp_path, histoquant, monkeypatch):
    """From another working folder, with the sheet and recipe gone."""
    for name in ("study.csv", "recipe.toml"):
        (made / name).rename(made / f"{name}.away")
    monkeypatch.chdir(tmp_path)
    try:
        done = histoquant("run", "--repeat", made / "out", "--out", tmp_path / "again", "--workers", 1, "--json")
    finally:
        for name in ("study.csv", "recipe.toml"):
            (made / f"{name}.away").rename(made / name)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"]
    assert found["differences"] == found["versions"] == []
    assert {"tables/animals.csv", "tables/groups.csv", "slides/a/cells.parquet", "slides/n/labels.ome.tif"} <= {
        *found["compared"]
    }
    assert (tmp_path / "again" / "report.html").exists()
    assert told(tmp_path / "again" / "run.json")["slides"]["gone"] == "failed"
    again = histoquant("run", "--repeat", made / "out", "--out", tmp_path / "again")
    assert again.returncode == 2
    assert "holds a finished run already" in again.stderr


def test_what_differs_is_said(run, tmp_path):
    cells = run / "slides" / "a" / "cells.parquet"
    table = pd.read_parquet(cells)
    table.loc[[3, 5], "area_um2"] += 1e-9
    table.to_parquet(cells, index=False, compression="zstd")
    animals = run / "tables" / "animals.csv"
    animals.write_text(animals.read_text(encoding="utf-8").replace("008,", "08,"), encoding="utf-8")
    groups = run / "tables" / "groups.csv"
    groups.write_text("".join(groups.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    (run / "slides" / "b" / "labels.ome.tif").unlink()
    state = told(run / "run.json")
    state["versions"]["scipy"] = "0.1"
    state["plugins"].append("Segmenter 'lab' of lab 2.0 lab:Lab")
    (run / "run.json").write_text(json.dumps(state), encoding="utf-8")
    found = repeat_run(run, tmp_path / "again", workers=1)
    rows = len(pd.read_csv(tmp_path / "again" / "tables" / "groups.csv"))
    assert found.differences == (
        "slides/a/cells.parquet: differs in area_um2 in 2 row(s)",
        "slides/b/labels.ome.tif: is not in the first run",
        f"tables/animals.csv: differs in animal in {rows // 2} row(s)",
        f"tables/groups.csv: {rows - 1} rows in the first run, {rows} in the repeat",
    )
    assert len(found.versions) == 2
    assert found.versions[0].startswith("scipy: 0.1, now ")
    assert found.versions[1] == "plug-in then: Segmenter 'lab' of lab 2.0 lab:Lab"


def test_sources_that_changed_or_are_gone_are_all_named_before_anything_is_computed(made, run, tmp_path):
    kept = {name: (made / name).read_bytes() for name in ("a.ome.tif", "r.geojson")}
    try:
        (made / "a.ome.tif").unlink()
        (made / "r.geojson").write_bytes(kept["r.geojson"] + b" ")
        with pytest.raises(Faults) as caught:
            repeat_run(run, tmp_path / "again", workers=1)
    finally:
        for name, content in kept.items():
            (made / name).write_bytes(content)
    assert len(caught.value.faults) == 2
    assert "'a.ome.tif': there is no such file" in str(caught.value)
    assert "Slide 'b': 'r.geojson' is not as it was" in str(caught.value)
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_repeated_is_one_sentence(run, tmp_path, histoquant):
    state = told(run / "run.json")
    (run / "run.json").write_text(json.dumps(state | {"state": "interrupted"}), encoding="utf-8")
    with pytest.raises(InputError, match="not finished"):
        repeat_run(run, tmp_path / "again")
    del state["rows"]
    (run / "run.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(InputError, match="what the run was given"):
        repeat_run(run, tmp_path / "again")
    for arguments, word in (
        (("--repeat", tmp_path), "holds no run"),
        (("--repeat", run, "--fresh"), "--fresh does not go with --repeat"),
        (("study.csv", "--repeat", run), "STUDY does not go with --repeat"),
        (("--out", tmp_path / "x"), "run needs STUDY"),
        (("study.csv", "--recipe", "r.toml"), "run needs --out"),
        (("study.csv", "--recipe", "r.toml", "--out", "x", "--until-idle", "5"), "Give --watch too"),
    ):
        done = histoquant("run", *arguments)
        assert done.returncode == 2
        assert word in done.stderr
        assert "Traceback" not in done.stderr


def test_the_chunks_of_a_folder_are_told_apart(tmp_path):
    from histoquant.job import Job, source_hashes

    class Row:
        path = tmp_path / "s.zarr"

    for name in ("0/0", "0/1", "1/0"):
        (Row.path / name).mkdir(parents=True)
        (Row.path / name / "0").write_text(name, encoding="utf-8")
    assert set(source_hashes(Job(Row, None, tmp_path))) == {"0/0/0", "0/1/0", "1/0/0"}
