"""A segmenter that fails in any way takes its slide with it and nothing else."""

import csv
import json
import sys
import time

import pandas as pd
import pytest

from tests.faults.conftest import gone, workers_of
from tests.faults.test_resume import digests

GOOD = ("m1,vehicle,", "m2,treated,")
BAD = "m2,treated,0.51"

WRONG = [
    ("raise_", 1, (), "KeyError: 'nuclei'", "error.log"),
    ("leave", 1, (), "SystemExit: 3", "error.log"),
    ("crash", 2, (), "exit code 3", "'obedient' (obedient-lab 1.0"),
    ("fault", 1, (), "SIGSEGV", "'obedient' (obedient-lab 1.0"),
    ("hang_in_c", 1, ("--block-timeout", 12), "more than 12 s", "--block-timeout"),
    ("eat", 2, ("--memory", 1.5), "out of memory", "core_px"),
    ("refuse_memory", 1, (), "out of memory", "core_px"),
]


def failures(out):
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(lab, name, index):
    """Return the rows of a table for the slide as a whole."""
    rows = pd.read_csv(lab.out / "tables" / f"{name}.csv").fillna({"flags": ""})
    return rows[rows["region"] == "slide"].set_index(index)


@pytest.mark.parametrize(("mode", "workers", "options", "error", "remedy"), WRONG, ids=[row[0] for row in WRONG])
def test_only_the_guilty_slide_fails(lab, mode, workers, options, error, remedy):
    lab.slides(GOOD[0], BAD, GOOD[1])
    lab.set_mode(mode)
    done = lab.run("--workers", workers, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (failure,) = failures(lab.out)
    assert (failure["slide"], failure["stage"]) == ("b", "segment")
    assert "Slide 'b'" in failure["error"]
    assert error in failure["error"]
    assert remedy in failure["remedy"]
    assert failure["error"] in done.stderr

    state = json.loads((lab.out / "run.json").read_text(encoding="utf-8"))
    assert state["state"] == "failed"
    assert state["slides"] == {"a": "done", "b": "failed", "c": "done"}
    animals = table(lab, "animals", "animal")
    assert animals.loc["m1", "flags"] == ""
    assert animals.loc["m2", "flags"] == "incomplete: 1 section(s) failed"
    assert animals.loc["m2", "n_cells"] > 20
    groups = table(lab, "groups", "group")
    assert groups.loc["vehicle", "flags"] == ""
    assert groups.loc["treated", "flags"] == "m2 incomplete: 1 section(s) failed"


def test_an_animal_that_failed_altogether_is_in_the_tables(lab):
    lab.slides(GOOD[0], "m3,treated,0.51", GOOD[1])
    lab.set_mode("raise_")
    done = lab.run("--workers", 1)
    assert done.returncode == 1, done.stderr
    animals = table(lab, "animals", "animal")
    assert list(animals.loc["m3", ["n_sections", "n_sections_failed", "n_cells"]]) == [0, 1, 0]
    assert animals.loc["m3"].isna()[["fraction_positive", "density_per_mm2"]].all()
    groups = table(lab, "groups", "group")
    assert groups.loc["treated", "n_animals"] == 1
    assert groups.loc["treated", "flags"] == "m3 incomplete: 1 section(s) failed"
    assert groups.loc["treated", "fraction_positive"] == animals.loc["m2", "fraction_positive"]
    assert (lab.out / "report.html").exists()


def test_a_worker_that_was_killed_by_chance_costs_nothing(lab):
    lab.slides(GOOD[0], BAD)
    lab.set_mode("crash_once")
    done = lab.run("--workers", 2)
    assert done.returncode == 0, done.stderr
    assert not failures(lab.out)
    assert "was done again: its process was killed" in done.stdout


@pytest.mark.parametrize("memory", [1.7, 1.0])
def test_what_runs_out_of_memory_gets_a_fresh_worker_then_all_of_the_memory(lab, memory):
    """Two workers of 0.7 GB are too small for what needs 1 GB; one with the memory of both does it, or nothing does."""
    lab.slides(GOOD[0], BAD, shape=(120, 120), n=12)
    lab.set_mode("feast")
    done = lab.run("--workers", 2, "--memory", memory)
    state = json.loads((lab.out / "run.json").read_text(encoding="utf-8"))
    again = [note for note in state["notes"] if note.startswith("Slide 'b': block") and "ran out of memory" in note]
    if memory == 1.7:
        assert done.returncode == 0, done.stderr
        assert not failures(lab.out)
        assert len(again) >= 2
        assert lab.run("--workers", 2, out=lab.root / "ample").returncode == 0
        assert digests(lab.out) == digests(lab.root / "ample")
    else:
        assert done.returncode == 1, done.stderr
        (failure,) = failures(lab.out)
        assert failure["slide"] == "b"
        assert "it ran out of memory: more than 0.7 GB" in failure["error"]
        assert len(again) == 2
        assert state["slides"]["a"] == "done"


def test_what_does_not_fit_into_the_memory_is_refused_before_it_is_tried(lab):
    lab.slides(*GOOD)
    done = lab.run("--workers", 2, "--memory", 0.4)
    assert done.returncode == 2
    assert "core_px" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert json.loads((lab.out / "run.json").read_text(encoding="utf-8"))["state"] == "stopped"
    assert lab.calls == 0
    done = lab.run("--workers", 2, "--memory", 0.8)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 workers" in done.stdout


def test_no_worker_outlives_its_run(lab):
    """Not even one that hangs in compiled code with the interpreter's lock held, where the kernel can see to it."""
    lab.slides(BAD)
    lab.set_mode("hang_in_c" if sys.platform == "linux" else "hang")
    process = lab.start("--workers", 1)
    while not lab.calls:
        assert process.poll() is None
        time.sleep(0.05)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.communicate()
    assert gone(workers)
