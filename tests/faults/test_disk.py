"""Disks that fill up, refuse, or go away: one sentence, the right exit code, and the same command goes on later."""

import csv
import json
import shutil
import subprocess
import time

import pytest

from tests.conftest import make_scene, write_slide
from tests.faults.test_resume import blocks_of, digests, state_of

ROWS = ("m1,vehicle,", "m2,treated,")


def mounted(*command):
    done = subprocess.run(["mount", *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs rights that are not there: {done.stderr.strip()}")


@pytest.fixture
def share(tmp_path):
    """A folder on which the test mounts something."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    folder = tmp_path / "share"
    folder.mkdir()
    yield folder
    # os.path.ismount does not see a folder that is bound to another one of the same disk.
    while not subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False).returncode:
        pass


def one_sentence(done, *words):
    """Check that a run told nothing but why it could not go on."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("histoquant: ")
    assert "run the same command again" in line or "--out" in line
    for word in words:
        assert word in line
    assert "Traceback" not in done.stdout


def test_a_disk_that_fills_up(lab, share):
    """Room is made bit by bit: not even for run.json, for some blocks, for all of them but not for the pictures."""
    lab.slides(*ROWS)
    assert lab.run(out=lab.root / "reference").returncode == 0
    held = {}
    mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", share)
    for room in ("4k", "60k", "400k"):
        mounted("-o", f"remount,size={room}", share)
        one_sentence(lab.run("--workers", 2, out=share), "No space left on device")
        assert not list(share.rglob(".*.part"))
        now = blocks_of(share)
        assert {name: now.get(name) for name in held} == held
        assert len(now) > len(held) or room == "4k"
        held = now
    mounted("-o", "remount,size=100m", share)
    done = lab.run("--workers", 2, out=share)
    assert done.returncode == 0, done.stderr
    assert digests(share) == digests(lab.root / "reference")
    now = blocks_of(share)
    assert {name: now.get(name) for name in held} == held


def test_a_scratch_disk_that_is_full_is_not_needed(lab, share):
    lab.slides(ROWS[0], shape=(120, 120), n=12)
    assert lab.run("--workers", 1, out=lab.root / "reference").returncode == 0
    mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", share)
    (share / "full").write_bytes(bytes(4096))
    done = lab.run("--workers", 1, TMPDIR=share)
    assert done.returncode == 0, done.stderr
    assert digests(lab.out) == digests(lab.root / "reference")


def test_a_folder_that_may_only_be_read(lab, share):
    lab.slides(ROWS[0])
    mounted("-t", "tmpfs", "-o", "size=50m", "tmpfs", share)
    mounted("-o", "remount,ro", share)
    one_sentence(lab.run("--workers", 1, out=share), "Read-only file system")
    one_sentence(lab.run("--workers", 1, out=share / "new"), "Read-only file system")
    mounted("-o", "remount,rw", share)
    assert lab.run("--workers", 1, out=share).returncode == 0
    before = digests(share)
    mounted("-o", "remount,ro", share)
    one_sentence(lab.run("--workers", 1, out=share), "Read-only file system")
    assert digests(share) == before


def test_a_share_that_vanishes_and_comes_back(lab, share):
    lab.slides(*ROWS)
    disk = lab.root / "disk"
    disk.mkdir()
    mounted("--bind", disk, share)
    process = lab.start("--workers", 2, out=share / "out", LAB_DELAY=0.4)
    while lab.calls < 9:
        assert process.poll() is None
        time.sleep(0.02)
    subprocess.run(["umount", "-l", str(share)], check=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    (line,) = errors.strip().splitlines()
    assert "run the same command again" in line.casefold()
    assert list(share.iterdir()) == []  # no second run folder was begun on the disk below
    assert blocks_of(disk / "out")
    mounted("--bind", disk, share)
    done = lab.run("--workers", 2, out=share / "out")
    assert done.returncode == 0, done.stderr
    assert state_of(share / "out")["blocks_reused"] > 0


def test_slides_that_vanish_or_change_while_the_run_is_on(lab):
    lab.slides(*ROWS, "m3,treated,")
    process = lab.start("--workers", 1, LAB_DELAY=0.3)
    while lab.calls < 2:
        assert process.poll() is None
        time.sleep(0.02)
    (lab.study / "b.ome.tif").rename(lab.study / "away")
    write_slide(lab.study / "c.ome.tif", make_scene((210, 220), 40, seed=9).pixels)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    with (lab.out / "failures.csv").open(newline="", encoding="utf-8") as file:
        b, c = csv.DictReader(file)
    assert (b["slide"], c["slide"]) == ("b", "c")
    assert "Slide 'b': its file cannot be read any more" in b["error"]
    assert "Slide 'c': its file was changed while the run worked on it" in c["error"]
    assert "same command again" in b["remedy"]
    assert "same command again" in c["remedy"]
    assert state_of(lab.out)["slides"] == {"a": "done", "b": "failed", "c": "failed"}
    (lab.study / "away").rename(lab.study / "b.ome.tif")
    done = lab.run("--workers", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads((lab.out / "slides" / "c" / "provenance.json").read_text(encoding="utf-8"))
    fresh = lab.run("--workers", 2, out=lab.root / "fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert digests(lab.out) == digests(lab.root / "fresh")
    assert told["sources"]
