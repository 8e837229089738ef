"""How a run stands: read while it goes on, after it ended, and after it died."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest

from histoquant import lock
from histoquant.batch import run_study
from histoquant.errors import InputError
from histoquant.inputs import load
from histoquant.lock import Holder
from histoquant.status import duration, lines, read_status
from tests.conftest import RECIPE, histoquant, make_scene, write_slide

ROWS = """slide,animal,group,exclude
a.ome.tif,m1,sham,
b.ome.tif,m2,sham,
gone.ome.tif,m3,sham,
c.ome.tif,m4,sham,torn
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: two sound slides of 4 blocks, one that is missing, one left out."""
    folder = tmp_path_factory.mktemp("status")
    for name, seed in (("a", 1), ("b", 2)):
        write_slide(folder / f"{name}.ome.tif", make_scene(n=60, seed=seed).pixels)
    (folder / "study.csv").write_text(ROWS, encoding="utf-8")
    (folder / "recipe.toml").write_text(f"{RECIPE}[tiles]\ncore_px = 128\n", encoding="utf-8")
    moments = []

    def look(_):
        moments.append(read_status(folder / "out"))

    run_study(load(folder / "study.csv", folder / "recipe.toml"), folder / "out", workers=1, progress=look)
    return folder, moments


@pytest.fixture
def run(finished, tmp_path):
    """The run.json of that run in a folder of its own, with changes."""

    def change(**content):
        state = json.loads((finished[0] / "out" / "run.json").read_text(encoding="utf-8"))
        (tmp_path / "run.json").write_text(json.dumps(state | content), encoding="utf-8")
        return tmp_path

    return change


def listing(folder):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_a_finished_run_and_what_failed_in_it(finished):
    folder, _ = finished
    before = listing(folder)
    status = read_status(folder / "out")
    assert listing(folder) == before
    assert (status.state, status.holder, status.eta_s) == ("failed", "", None)
    assert [(s.slide, s.state, s.blocks_done, s.blocks) for s in status.slides] == [
        ("a", "done", 4, 4), ("b", "done", 4, 4), ("gone", "failed", 0, 0)
    ]  # fmt: skip
    assert status.blocks_done == status.blocks == 8
    gone = status.slides[2]
    assert (gone.stage, status.excluded) == ("check", {"c": "torn"})
    assert "there is no such file" in gone.reason
    assert gone.remedy
    text = "\n".join(lines(status))
    assert gone.reason in text
    assert gone.remedy in text
    assert "3 slide(s): 2 done, 1 failed." in text


def test_while_it_goes_on_it_is_seen_to_and_only_goes_forward(finished):
    _, moments = finished
    assert {status.state for status in moments} == {"running"}
    assert all(f"process {os.getpid()} on" in status.holder for status in moments)
    blocks = [status.blocks_done for status in moments]
    assert blocks == sorted(blocks)
    assert moments[-1].blocks == 8
    assert all(list(lines(status)) for status in moments)
    stages = {slide.stage for status in moments for slide in status.slides if slide.state == "running"}
    assert stages <= {"survey", "segment", "join", "threshold", "finish"}


def test_what_is_under_way_is_named_with_the_time_left(run, monkeypatch):
    start = "2026-01-01T00:00:00+00:00"
    told = {
        "state": "running", "start": start, "written": "2026-01-01T00:01:00+00:00", "blocks_computed": 3,
        "progressed": "2026-01-01T00:01:00+00:00",
        "slides": {"a": "segment", "b": "waiting", "gone": "failed"},
        "blocks": {"a": {"done": 3, "of": 4}, "b": {"done": 0, "of": 6}},
    }  # fmt: skip
    out = run(**told)
    with lock.locked(out):
        status = read_status(out, at=datetime.fromisoformat(start) + timedelta(seconds=90))
        assert (status.state, status.blocks_done, status.blocks) == ("running", 3, 10)
        assert status.eta_s == pytest.approx(7 * 60 / 3)
        assert status.silent_s == 30
        text = "\n".join(lines(status))
        assert "a     running  segment: 3 of 4 block(s)" in text
        assert "3 of 10 block(s), about 2 min left; last sign of life 30 s ago" in text
        # Blocks kept from before do not make it look faster.
        run(**told | {"blocks_computed": 1})
        assert read_status(out).eta_s == pytest.approx(7 * 60)
        run(**told | {"blocks_computed": 0})
        assert read_status(out).eta_s is None
        assert json.dumps(status.as_dict())
    run(**told)
    died = read_status(out)
    assert (died.state, died.eta_s, died.counts["running"]) == ("died", None, 0)
    assert "The same command goes on." in list(lines(died))[-1]


def test_slides_measured_one_by_one_have_a_time_left_too(run):
    """Of tasks on other nodes: one has ended, one works, one was killed long ago, two have not begun."""
    now = datetime.fromisoformat("2026-01-01T00:10:00+00:00")
    started = "2026-01-01T00:00:00+00:00"
    out = run(
        state="by slide",
        start=started,
        written=started,
        failures=[],
        blocks={},
        slides=dict.fromkeys("abcde", "waiting"),
    )

    def task(slide, stage, blocks, computed, seconds, *, ago=5, state="running"):
        written = now - timedelta(seconds=ago)
        told = {
            "state": state, "slides": {slide: stage}, "blocks": {slide: dict(zip(("done", "of"), blocks, strict=True))},
            "blocks_computed": computed, "start": (written - timedelta(seconds=seconds)).isoformat(),
            "written": written.isoformat(), "machine": {"host": "node7"},
        }  # fmt: skip
        (out / "slides" / slide).mkdir(parents=True, exist_ok=True)
        (out / "slides" / slide / "task.json").write_text(json.dumps(told), encoding="utf-8")

    assert read_status(out, at=now).eta_s is None  # nothing was computed yet
    task("a", "threshold", (10, 10), 10, 300, ago=100, state="done")
    assert read_status(out, at=now).eta_s is None  # and now nothing works
    task("b", "segment", (4, 10), 2, 60)
    task("c", "segment", (5, 10), 5, 140, ago=300)
    status = read_status(out, at=now)
    assert [(s.state, s.blocks_done, s.blocks) for s in status.slides] == [
        ("waiting", 10, 10), ("running", 4, 10), ("waiting", 5, 10), ("waiting", 0, 0), ("waiting", 0, 0)
    ]  # fmt: skip
    # 500 s for 17 blocks; 6 + 5 are left, and 20 of slides that nobody has opened.
    assert status.eta_s == pytest.approx(500 / 17 * 31)
    *_, counts, last = lines(status)
    assert "5 slide(s): 1 running, 4 waiting." in counts
    assert "1 of 5, 19 block(s), about 15 min left with 1 at once." in last
    task("d", "segment", (0, 10), 0, 20)
    assert read_status(out, at=now).eta_s == pytest.approx(500 / 17 * 31 / 2)


def test_how_it_can_end(run):
    slides = {"a": "done", "b": "done", "late": "waiting"}
    told = {"state": "done", "slides": slides, "waiting": {"late": "not written yet"}}
    here = Holder.this_process()
    machine = {"host": here.host, "process": here.pid, "process_born": here.born}
    status = read_status(run(**told, machine=machine))
    assert status.state == "watching"
    assert [s.reason for s in status.slides if s.state == "waiting"] == ["not written yet"]
    # The number of the process was given to another one.
    assert read_status(run(**told, machine=machine | {"process_born": 1.0})).state == "incomplete"
    assert read_status(run(state="interrupted")).state == "interrupted"
    stopped = read_status(run(state="stopped", reason="Cannot write 'x': No space left on device."))
    assert "No space left on device" in list(lines(stopped))[-1]


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_for_real_then_gone_on_with(finished, tmp_path):
    finished, _ = finished
    out = tmp_path / "out"
    command = ["run", finished / "study.csv", "--recipe", finished / "recipe.toml", "--out", out, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "histoquant", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not ((out / "run.json").exists() and read_status(out).blocks_done >= 2):
            assert process.poll() is None
            time.sleep(0.02)
        assert read_status(out).state == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = listing(out)
    died = json.loads(histoquant("status", out, "--json", check=True).stdout)
    assert listing(out) == before
    assert died["state"] == "died"
    assert 2 <= died["blocks_done"] <= died["blocks"] == 8
    assert histoquant(*command).returncode == 1  # one slide is missing
    assert histoquant("status", out, check=True).stdout.count(" done") == 3
    log = (out / "slides" / "a" / "log.txt").read_text(encoding="utf-8")
    assert log.count("histoquant 0.") == 2
    assert "kept from before" in log
    assert "FAILED at check" in (out / "slides" / "gone" / "log.txt").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_one_sentence(tmp_path, histoquant):
    with pytest.raises(InputError, match="holds no run"):
        read_status(tmp_path)
    done = histoquant("status", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        read_status(tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (99.4, "99 s"), (600, "10 min"), (9000, "2.5 h")])
def test_time_spans(seconds, text):
    assert duration(seconds) == text
