"""Slides that are still being scanned: taken once written, waited for until then, the same results in the end."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from histoquant import watch as watching
from histoquant.batch import run_study
from histoquant.errors import InputError, StudyError
from histoquant.inputs import load
from histoquant.status import read_status
from histoquant.watch import Watch, follow, named_by
from tests.conftest import RECIPE, histoquant, make_scene, write_slide
from tests.test_laws import digests

STABLE_S = 30.0
LOOK_S = 5.0


class Clock:
    """Time that passes only while the watch sleeps; what happens meanwhile is scripted by the minute."""

    def __init__(self, script):
        self.now, self.script = 1000.0, dict(script)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for minute in [minute for minute in self.script if 60 * minute <= self.now - 1000]:
            self.script.pop(minute)()


@pytest.fixture
def study(tmp_path):
    """Folder with a recipe of small tiles and slides under way; returns how to write sheets and slides."""
    (tmp_path / "recipe.toml").write_text(f"{RECIPE}[tiles]\ncore_px = 256\n", encoding="utf-8")
    (tmp_path / "scanned").mkdir()
    for number, name in enumerate(("a", "b", "c")):
        write_slide(tmp_path / "scanned" / f"{name}.ome.tif", make_scene(n=40, seed=number).pixels)

    class Study:
        folder = tmp_path
        sheet = tmp_path / "study.csv"
        recipe = tmp_path / "recipe.toml"

        def rows(self, *rows, header="slide,animal,group,control"):
            self.sheet.write_text("\n".join((header, *rows, "")), encoding="utf-8")

        def copy(self, name, part=1.0, to=None):
            """Let the scanner have written a part of a slide."""
            content = (tmp_path / "scanned" / f"{name}.ome.tif").read_bytes()
            (tmp_path / (to or f"{name}.ome.tif")).write_bytes(content[: int(part * len(content))])

    return Study()


@pytest.fixture
def watched(study, monkeypatch):
    """Watch with a scripted clock; returns the outcome, the batches as they were analysed, and what was told."""

    def watched(script, *, analyse=None, until_idle_s=600.0, **settings):
        told, batches, clock = [], [], Clock(script)
        monkeypatch.setattr(watching, "time", clock)

        def run(checked):
            taken = [row.slide_id for row in checked.taken]
            batches.append((round((clock.now - 1000) / 60, 2), taken, dict(checked.waiting)))
            return (analyse and analyse(checked)) or "outcome"

        watch = Watch(study.sheet, study.recipe, STABLE_S, tell=told.append, **settings)
        return follow(watch, run, until_idle_s=until_idle_s, look_every_s=LOOK_S), batches, told

    return watched


def test_slides_are_taken_as_they_are_written_and_the_results_are_those_of_a_plain_run(study, watched):
    study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,")
    study.copy("a")

    def add_row():
        study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,", "c.ome.tif,m1,sham,")

    script = {
        1: lambda: study.copy("b", 0.3),
        2: lambda: study.copy("b", 0.6),  # and here the scanner pauses for longer than a file must rest
        5: lambda: study.copy("b"),
        7: lambda: study.copy("c"),
        8: add_row,
    }
    out = study.folder / "out"
    states = []

    def analyse(checked):
        outcome = run_study(checked, out, workers=1)
        assert not outcome.failures
        states.append(json.loads((out / "run.json").read_text(encoding="utf-8"))["slides"])
        animals = pd.read_csv(out / "tables" / "animals.csv", keep_default_na=False)
        assert set(animals["animal"]) == {row.animal for row in checked.taken}
        incomplete = {row.animal for row in checked.study.included if row.slide_id in checked.waiting} & {"m1"}
        assert ("still to come" in animals["flags"].str.cat()) == bool(incomplete)
        return outcome

    outcome, batches, told = watched(script, analyse=analyse)
    assert [taken for _, taken, _ in batches] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert batches[0][2] == {"b": watching.NOT_THERE}
    assert 5.5 <= batches[1][0] <= 5.7  # rested for 30 s after the last byte
    assert states == [{"a": "done", "b": "waiting"}, {"a": "done", "b": "done"}, dict.fromkeys("abc", "done")]
    assert outcome.n_slides == 3
    assert any("b: cannot be" in line for line in told)
    plain = study.folder / "plain"
    run_study(load(study.sheet, study.recipe), plain, workers=1)
    assert digests(out) == digests(plain)


def test_what_never_comes_or_stays_broken_is_a_failure_in_the_end_and_not_before(study, watched):
    study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,", "never.ome.tif,m3,stroke,")
    study.copy("a")
    study.copy("b", 0.5)
    out = study.folder / "out"
    failures = []

    def analyse(checked):
        outcome = run_study(checked, out, workers=1)
        failures.append([failure.slide for failure in outcome.failures])
        return outcome

    outcome, batches, _ = watched({}, analyse=analyse)
    assert failures == [[], ["b", "never"]]
    assert set(batches[0][2]) == {"b", "never"}
    assert batches[0][2]["never"] == watching.NOT_THERE
    assert batches[1][0] == pytest.approx(batches[0][0] + 10, abs=0.2)
    assert {failure.stage for failure in outcome.failures} == {"check"}


def test_batches_wait_for_the_controls_that_decide_their_thresholds(study, watched):
    text = study.recipe.read_text(encoding="utf-8")
    study.recipe.write_text(
        text.replace("threshold = 150.0", 'threshold = "controls", control = ["no_tdt"]'), encoding="utf-8"
    )
    study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,no_tdt")
    study.copy("a")
    _, batches, told = watched({3: lambda: study.copy("b")})
    assert [taken for _, taken, _ in batches] == [["a", "b"]]
    assert any("a: waits for a section that decides the threshold of 'tunel' (no_tdt)" in line for line in told)


def test_a_sheet_that_is_broken_meanwhile_is_told_and_the_last_good_one_stays(study, watched):
    study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,")
    study.copy("a")
    script = {
        1: lambda: study.rows("a.ome.tif,m1,sham,", "b.ome.tif,,,"),
        2: lambda: study.rows("a.ome.tif,m1,"),
        4: lambda: study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,"),
        5: lambda: study.copy("b"),
    }
    _, batches, told = watched(script)
    assert [taken for _, taken, _ in batches] == [["a"], ["a", "b"]]
    assert sum("the change is not taken" in line for line in told) == 2
    study.rows("a.ome.tif,m1")
    with pytest.raises(StudyError):
        watched({})


def test_a_slide_that_is_written_again_is_taken_again(study, watched):
    study.rows("a.ome.tif,m1,sham,")
    study.copy("a")
    _, batches, _ = watched({3: lambda: study.copy("b", to="a.ome.tif")})
    assert [minute for minute, taken, _ in batches if taken == ["a"]] == pytest.approx([0.5, 3.5], abs=0.2)


def test_files_without_a_row_are_named_or_get_one_from_their_name(study, watched):
    header = "slide,animal,group,section"
    study.rows("a.ome.tif,m1,sham,1", header=header)
    study.copy("a")
    script = {1: lambda: study.copy("b", to="m2_stroke_s7.ome.tif"), 2: lambda: study.copy("c", to="._m2_x_s1.ome.tif")}
    _, batches, told = watched(script, pattern="*.ome.tif")
    assert [taken for _, taken, _ in batches] == [["a"]]
    assert any("m2_stroke_s7.ome.tif: no row in study.csv; taken when listed there" in line for line in told)
    assert not any("._m2" in line for line in told)

    (study.folder / "m2_stroke_s7.ome.tif").unlink()
    rows = []

    def analyse(checked):
        rows.append([(row.slide_id, row.animal, row.group, row.section) for row in checked.study.included])

    _, batches, _ = watched(
        script, analyse=analyse, pattern="*.ome.tif", template="{animal}_{group}_s{section}.ome.tif"
    )
    assert rows == [[("a", "m1", "sham", "1")], [("a", "m1", "sham", "1"), ("m2_stroke_s7", "m2", "stroke", "7")]]


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{animal}_{gruop}.tif", "'gruop' is no column"),
        ("{animal}.tif", "lacks {group}"),
        ("{animal}_{group}_{animal}.tif", "a column is twice"),
        ("{slide}_{animal}_{group}.tif", "'slide' is no column"),
    ],
)
def test_templates_that_say_nothing_are_refused(template, word):
    with pytest.raises(InputError, match=word):
        named_by(template)


def test_names_are_read_literally_but_for_the_columns():
    read = named_by("{animal}.{group}+({section}).tif").fullmatch
    assert read("7.sham+(3).tif").groupdict() == {"animal": "7", "group": "sham", "section": "3"}
    assert read("7xsham+(3).tif") is None
    assert read(".sham+(3).tif") is None


def test_a_column_that_the_sheet_lacks_is_said(study, watched):
    study.rows("a.ome.tif,m1,sham,")
    study.copy("b", to="m2_stroke_s7.ome.tif")
    with pytest.raises(StudyError, match="no column 'section'"):
        watched({}, pattern="*.ome.tif", template="{animal}_{group}_s{section}.ome.tif")
    with pytest.raises(InputError, match="needs --watch-pattern"):
        watched({}, template="{animal}_{group}.ome.tif")
    with pytest.raises(InputError, match="--watch-pattern"):
        watched({}, pattern="/etc/*.tif")


@pytest.mark.skipif(os.name != "posix", reason="SIGINT")
def test_ctrl_c_ends_it_with_130_and_the_same_command_goes_on(study):
    study.rows("a.ome.tif,m1,sham,", "b.ome.tif,m2,stroke,")
    study.copy("a")
    out = study.folder / "out"
    command = ["run", study.sheet, "-r", study.recipe, "-o", out, "-w", 1, "--watch", "--stable", 0.1]
    process = subprocess.Popen(
        [sys.executable, "-m", "histoquant", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not ((out / "report.html").exists() and read_status(out).state == "watching"):
            assert process.poll() is None
            time.sleep(0.05)
        assert read_status(out).counts == {"done": 1, "running": 0, "failed": 0, "waiting": 1}
    finally:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "the same command goes on" in stderr
    assert "b: not written yet" in stdout
    assert read_status(out).state == "incomplete"
    study.copy("b")
    done = histoquant(*command, "--until-idle", 0, check=True)
    assert "2 of 2 slide(s) done." in done.stdout
    assert read_status(out).state == "done"
