"""Kill a run at any moment and start it again: the same bytes, and nothing that was finished is done twice."""

import hashlib
import json
import os
import random
import shutil
import signal
import time

import pandas as pd
import pytest

from histoquant import lock, store
from histoquant.errors import StoreError
from histoquant.lock import Holder
from histoquant.store import RunFolder
from tests.conftest import write_geojson
from tests.faults.conftest import gone, workers_of

ROWS = ("m1,vehicle,", "m2,treated,")
KILLS = 30
WORKERS = 2
TILES_OF_BLOCK = 4
NOT_RESULTS = (
    "run.json", "report.html", "log.txt", "performance.csv", "performance.html", "task.json", lock.LOCK,
)  # fmt: skip


def digests(out):
    """Everything that a run leaves and that does not name when or where it ran."""
    files = [path for path in out.rglob("*") if path.is_file() and not {".blocks", ".cluster"} & set(path.parts)]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.name not in NOT_RESULTS
    }


def state_of(out):
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def blocks_of(out):
    """Finished blocks, each with what changes when it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob(".blocks/??/*.block")}


@pytest.mark.timeout(1800)  # thirty starts of the program, on a machine that may do much else
def test_thirty_kills(lab):
    """The driver, a worker, or all at once, at random moments; a run that ends between two kills is begun anew."""
    lab.slides(*ROWS, shape=(400, 420), n=150)
    n_tiles, n_blocks, delay_s = 2 * 7 * 7, 2 * 13, 0.05
    begun = time.monotonic()
    reference = lab.run("--workers", WORKERS, out=lab.root / "reference", LAB_DELAY=delay_s)
    assert reference.returncode == 0, reference.stderr
    longest = 0.6 * (time.monotonic() - begun)
    expected = digests(lab.root / "reference")
    assert "slides/a/labels.ome.tif" in expected
    assert lab.calls == n_tiles
    rng = random.Random(20261123)
    fell = dict.fromkeys(("driver", "worker", "all"), 0)
    whole_runs, kept, stages = 1, {}, set()
    while sum(fell.values()) < KILLS:
        process = lab.start("--workers", WORKERS, LAB_DELAY=delay_s)
        while not (lab.out / lock.LOCK).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        workers, victim = workers_of(process), rng.choice(list(fell))
        if victim == "worker" and workers:
            rng.choice(workers).kill()
            fell["worker"] += 1
            time.sleep(rng.uniform(0, longest / 4))
            workers += workers_of(process)
            victim = "driver"
        if process.poll() is None:
            process.kill()
            for worker in workers if victim == "all" else ():
                worker.kill()
            fell["all" if victim == "all" else "driver"] += 1
        process.communicate()
        assert gone(workers)
        held = blocks_of(lab.out)
        assert {name: held.get(name) for name in kept} == kept  # nothing finished was written again
        kept = held
        stages.add(len(held))
        if process.returncode == 0:
            assert digests(lab.out) == expected
            shutil.rmtree(lab.out)
            whole_runs, kept = whole_runs + 1, {}
    done = lab.run("--workers", WORKERS)
    assert done.returncode == 0, done.stderr
    assert digests(lab.out) == expected
    held = blocks_of(lab.out)
    assert {name: held.get(name) for name in kept} == kept
    assert not list(lab.out.rglob(".*.part"))
    again = lab.calls - (whole_runs + 1) * n_tiles
    print(f"killed {fell}; {whole_runs} whole runs; files held at a kill: {sorted(stages)}; tiles done again {again}")
    assert 0 <= again <= TILES_OF_BLOCK * (fell["worker"] + WORKERS * (fell["driver"] + fell["all"]))
    state = state_of(lab.out)
    assert state["blocks_computed"] + state["blocks_reused"] == n_blocks


def test_a_change_costs_what_depends_on_it(lab):
    lab.slides(ROWS[0])
    recipe, sheet = lab.study / "recipe.toml", lab.study / "study.csv"
    text = recipe.read_text(encoding="utf-8")
    labels = lab.out / "slides" / "a" / "labels.ome.tif"

    def run():
        before = lab.calls
        done = lab.run("--workers", 1)
        assert done.returncode == 0, done.stderr
        state = state_of(lab.out)
        return lab.calls - before, state["blocks_computed"], state["blocks_reused"]

    assert run() == (16, 4, 0)
    first, written = digests(lab.out), labels.stat().st_mtime_ns
    recipe.write_text(text.replace("150.0", "300.0"), encoding="utf-8")
    assert run() == (0, 0, 4)
    assert digests(lab.out)["tables/regions.csv"] != first["tables/regions.csv"]
    write_geojson(lab.study / "r.geojson", left=[(0, 0), (110, 0), (110, 210), (0, 210)])
    head, row = sheet.read_text(encoding="utf-8").splitlines()
    sheet.write_text(f"{head},regions\n{row},r.geojson\n", encoding="utf-8")
    assert run() == (0, 0, 4)
    assert "left" in set(pd.read_csv(lab.out / "tables" / "regions.csv")["region"])
    assert labels.stat().st_mtime_ns == written
    recipe.write_text(text.replace('mode = "work"', 'mode = "work"\nlevel = 0.5'), encoding="utf-8")
    assert run() == (16, 4, 0)
    assert labels.stat().st_mtime_ns > written
    recipe.write_text(text, encoding="utf-8")
    sheet.write_text(f"{head}\n{row}\n", encoding="utf-8")
    assert run() == (0, 0, 4)
    assert digests(lab.out) == first


def test_damaged_blocks_are_computed_again_and_reported(lab):
    lab.slides(ROWS[0])
    assert lab.run("--workers", 1).returncode == 0
    expected, calls = digests(lab.out), lab.calls
    paths = [path for path in lab.out.glob(".blocks/??/*.block") if b'"runs_' in path.read_bytes()]
    whole = {path: path.read_bytes() for path in paths}
    assert len(whole) == 4
    flipped = bytearray(whole[paths[0]])
    flipped[len(flipped) // 2] ^= 1
    paths[0].write_bytes(flipped)
    paths[1].write_bytes(whole[paths[1]][:1000])
    paths[2].write_bytes(b"")
    done = lab.run("--workers", 1)
    assert done.returncode == 0, done.stderr
    told = "a: 3 stored file(s) were damaged and computed again"
    assert told in done.stdout
    assert told in state_of(lab.out)["notes"]
    assert lab.calls == calls + 3 * TILES_OF_BLOCK
    assert (state_of(lab.out)["blocks_computed"], state_of(lab.out)["blocks_reused"]) == (3, 1)
    assert digests(lab.out) == expected
    assert {path: path.read_bytes() for path in paths} == whole
    assert "computed again" not in lab.run("--workers", 1).stdout


def test_two_runs_into_one_folder(lab):
    lab.slides(*ROWS)
    first = lab.start("--workers", 1, LAB_DELAY=0.5)
    folder = RunFolder(lab.out)
    while (holder := folder.holder()) is None:
        assert first.poll() is None
        time.sleep(0.05)
    assert holder.pid == first.pid
    before = (lab.out / "run.json").exists()
    second = lab.run("--workers", 1)
    assert second.returncode == 2
    assert f"process {first.pid} on {holder.host}, since {holder.since}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert before <= (lab.out / "run.json").exists()
    first.kill()
    first.communicate()
    assert folder.holder() is None
    third = lab.run("--workers", 1)
    assert third.returncode == 0, third.stderr
    assert folder.holder() is None


def test_interrupted_and_stopped_runs_say_so(lab):
    lab.slides(*ROWS)
    process = lab.start("--workers", 2, LAB_DELAY=0.5)
    while not lab.calls:
        assert process.poll() is None
        time.sleep(0.05)
    workers = workers_of(process)
    assert workers
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert gone(workers)
    assert state_of(lab.out)["state"] == "interrupted"
    assert state_of(lab.out)["slides"]["a"] in ("survey", "segment", "waiting")
    assert lab.run().returncode == 0


@pytest.mark.parametrize("kind", ["unknown here", "no such call"])
def test_where_the_file_system_has_no_locks(tmp_path, monkeypatch, kind):
    if kind == "unknown here":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")))
    assert lock.holder(tmp_path) is None
    with lock.locked(tmp_path):
        assert lock.holder(tmp_path).pid == os.getpid()
        with pytest.raises(StoreError, match=f"process {os.getpid()} on ") as caught, lock.locked(tmp_path):
            pass
        assert "remove" not in caught.value.remedy
    assert lock.holder(tmp_path) is None

    me = Holder.this_process()
    for left, taken_over in (
        (Holder(me.host, me.pid, me.since, me.born - 3600), True),  # the number was given anew, as after a reboot
        (Holder(me.host, 2**22 + 1, me.since, me.born), True),
        (me, False),
        (Holder("elsewhere", 2**22 + 1, me.since, me.born), False),
    ):
        store.write_json(tmp_path / lock.OWNER, vars(left))
        assert (lock.holder(tmp_path) is None) == taken_over
        if taken_over:
            with lock.locked(tmp_path):
                assert lock.holder(tmp_path).pid == os.getpid()
        else:
            with pytest.raises(StoreError) as caught, lock.locked(tmp_path):
                pass
            assert ("remove" in caught.value.remedy) == (left.host == "elsewhere")
            assert left.host in caught.value.message
    (tmp_path / lock.OWNER).unlink()
    assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK]


def test_leftovers_of_killed_writers_are_swept_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path / "out")
    with folder.held():
        pass
    slide = folder.slide("a")
    slide.mkdir()
    (folder.blocks.folder / "ab").mkdir()
    ours = [
        folder.root / ".run.json.abcd_012.part",
        slide / ".cells.parquet.abcd_012.part",
        slide / ".labels.ome.tif.123.tiles",
        slide / ".labels.ome.tif.123.part",
        folder.blocks.folder / "ab" / ".abc.block.abcd_012.part",
    ]
    theirs = [folder.root / "thesis.part", slide / ".hidden", slide / "notes.123.part", tmp_path / ".a.abcd_012.part"]
    for path in (*ours, *theirs):
        path.write_bytes(b"x")
    with folder.held():
        assert not [path for path in ours if path.exists()]
        assert all(path.exists() for path in theirs)
