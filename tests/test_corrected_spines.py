"""Corrected densities of spines: a replay of the journals beside results that stay as they are."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from histoquant.batch import write_report
from histoquant.corrected_spines import measured_key, replay_spines, write_corrected_spines
from histoquant.inputs import KINDS, load
from histoquant.journal import Journal
from histoquant.model import tables
from histoquant.model.edit import SPINE, Edit
from histoquant.model.spine_settings import SpineSettings
from histoquant.phantom import DendritePlan, make_dendrites
from histoquant.report.run import read_table
from histoquant.spine_study import run_spines

PLAN = DendritePlan(size_um=(20.0, 30.0), spines_per_10um=(8.0,), animals=2, seed=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spines")
    make_dendrites(folder / "study", PLAN)
    checked = load(folder / "study" / "study.csv", folder / "study" / "recipe.toml", kinds=KINDS)
    assert not run_spines(checked, folder / "run", workers=2).failures
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def stack_of(root):
    """Return the first stack with two spines: its name, key and spines."""
    for folder in sorted((root / "slides").iterdir()):
        spines = read_table(folder / "spines.csv", tables.SPINES)
        if spines["included"].sum() > 2:
            told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
            return folder.name, measured_key(told), spines[spines["included"]].reset_index(drop=True)
    raise AssertionError("the phantom has no spines")


def about(spine, key, **parts):
    place = {name: float(spine[name]) for name in ("z_um", "y_um", "x_um")}
    what = {"kind": SPINE, "region": spine["dendrite_id"], "measured": key}
    return what | {"area_um2": float(spine["head_area_um2"])} | place | parts


def test_one_deleted_two_added_one_renamed_and_one_taken_back(run):
    slide, key, spines = stack_of(run)
    untouched = {path: path.read_bytes() for name in ("tables", "slides") for path in (run / name).rglob("*.csv")}
    with Journal(run, "Anna") as journal:
        journal.record(slide, "delete", **about(spines.loc[0], key), marker="class", old=spines.loc[0, "class"])
        for aside in (30.0, 31.0):
            at = about(spines.loc[1], key, y_um=aside, area_um2=None)
            journal.record(slide, "add", **at, marker="class", new="thin")
        journal.record(slide, "call", **about(spines.loc[1], key), marker="class", new="filopodium")
        journal.record(slide, "delete", **about(spines.loc[2], key))
        journal.undo()
    write_report(run)
    assert untouched == {path: path.read_bytes() for path in untouched}

    def of(folder, name, schema):
        return read_table(run / folder / f"{name}.csv", schema)

    before, after = of("tables", "all_spines", tables.SPINES), of("review", "spines", tables.SPINES)
    assert len(after) == len(before) - 1 + 2
    own = after[after["slide_id"] == slide].set_index("spine_id")
    assert spines.loc[0, "spine_id"] not in own.index
    assert own.loc[spines.loc[1, "spine_id"], "class"] == "filopodium"
    assert spines.loc[2, "spine_id"] in own.index
    new = own[~own.index.isin(before.loc[before["slide_id"] == slide, "spine_id"])]
    assert new["class"].tolist() == ["thin", "thin"]
    assert new["length_um"].isna().all()

    dendrites, animals = of("review", "dendrites", tables.DENDRITES), of("review", "animals", tables.SPINE_ANIMALS)
    assert dendrites["n_spines"].sum() == len(after)
    assert np.allclose(dendrites["spines_per_10um"], 10 * dendrites["n_spines"] / dendrites["length_um"])
    assert animals["n_spines"].sum() == dendrites["n_included"].sum() == after["included"].sum()
    automatic = of("tables", "spines", tables.SPINE_ANIMALS)
    assert animals["n_spines"].sum() == automatic["n_spines"].sum() + 1
    assert "Corrected by hand (Anna; 0 edits unmatched)" in (run / "report.html").read_text(encoding="utf-8")


def test_a_review_that_only_agrees_changes_no_number(run):
    slide, key, spines = stack_of(run)
    with Journal(run, "Anna") as journal:
        journal.record(slide, "accept", **about(spines.loc[0], key))
    found = write_corrected_spines(run)
    for name, table, schema in (
        ("all_spines", found.spines, tables.SPINES),
        ("all_dendrites", found.dendrites, tables.DENDRITES),
        ("spines", found.animals, tables.SPINE_ANIMALS),
    ):
        pd.testing.assert_frame_equal(table, read_table(run / "tables" / f"{name}.csv", schema), rtol=1e-9)


def test_without_journals_earlier_corrections_go(run):
    slide, key, spines = stack_of(run)
    with Journal(run, "Anna") as journal:
        journal.record(slide, "delete", **about(spines.loc[0], key))
    assert write_corrected_spines(run) is not None
    (run / "review" / "journal.jsonl").unlink()
    assert write_corrected_spines(run) is None
    assert not list((run / "review").glob("*.csv"))


def made(action, spine, key="old", **parts):
    return Edit.made("Anna", "s", action, **about(spine, key, **parts))


def test_edits_are_found_in_another_analysis_by_place_and_the_rest_is_listed(run):
    slide, _, spines = stack_of(run)
    dendrites = read_table(run / "slides" / slide / "dendrites.csv", tables.DENDRITES)
    one = spines.loc[0]
    edits = [
        made("delete", one, y_um=one["y_um"] + 0.2),
        made("delete", spines.loc[1], z_um=spines.loc[1, "z_um"] + 50),
        made("add", spines.loc[1], y_um=90.0, marker="class", new="thin"),
    ]
    after, done = replay_spines(spines, dendrites, edits, SpineSettings(), measured="new")
    assert set(spines["spine_id"]) - set(after["spine_id"]) == {one["spine_id"]}
    assert len(done.unmatched) == 2
    assert done.unmatched["reason"].str.contains("dendrites of this analysis|no spine is where").all()
    same, done = replay_spines(spines, dendrites, edits, SpineSettings(), measured="old")
    assert len(same) == len(after) + 1
    assert len(done.unmatched) == 1


def test_an_added_spine_at_an_unknown_distance_from_forks_is_listed(run):
    slide, _, spines = stack_of(run)
    dendrites = read_table(run / "slides" / slide / "dendrites.csv", tables.DENDRITES)
    edits = [made("add", spines.loc[0], y_um=90.0, marker="class", new="thin")]
    after, done = replay_spines(spines, dendrites, edits, SpineSettings(from_fork_um=5.0), measured="old")
    assert len(after) == len(spines)
    assert done.unmatched["reason"].tolist() == ["how far it is from branch points is not known"]


def test_classes_that_the_rules_do_not_have_are_listed(run):
    slide, _, spines = stack_of(run)
    dendrites = read_table(run / "slides" / slide / "dendrites.csv", tables.DENDRITES)
    edits = [
        made("call", spines.loc[0], marker="class", new="branched"),
        made("add", spines.loc[1], y_um=90.0, marker="class", new="branched"),
        made("call", spines.loc[1], marker="class", new="filopodium"),
    ]
    after, done = replay_spines(spines, dendrites, edits, SpineSettings(), measured="old")
    assert after["class"].tolist() == [spines.loc[0, "class"], "filopodium", *spines.loc[2:, "class"], ""]
    assert done.unmatched["reason"].tolist() == ["these results have no class 'branched'"] * 2
    golgi = SpineSettings(rules="B")
    after, done = replay_spines(spines, dendrites, edits, golgi, measured="old")
    assert after["class"].tolist()[0] == after["class"].tolist()[-1] == "branched"
    assert done.unmatched.empty


def test_two_spines_one_above_the_other_are_two(run):
    slide, _, spines = stack_of(run)
    dendrites = read_table(run / "slides" / slide / "dendrites.csv", tables.DENDRITES)
    stacked = spines.iloc[[0, 1]].copy()
    stacked.loc[1, ["y_um", "x_um"]] = stacked.loc[0, ["y_um", "x_um"]]
    stacked.loc[1, "z_um"] = stacked.loc[0, "z_um"] + 2.0
    after, _ = replay_spines(stacked, dendrites, [made("delete", stacked.loc[1])], SpineSettings(), measured="old")
    assert after["spine_id"].tolist() == [stacked.loc[0, "spine_id"]]
