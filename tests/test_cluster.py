"""Where work runs: profiles, submit scripts, and workers on this machine that are nobody else's business."""

import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from histoquant import cluster
from histoquant.cluster.pool import Pool
from histoquant.cluster.profile import QueueProfile, parse_profile, walltime_s
from histoquant.cluster.queues import job_name, submit_script
from histoquant.errors import ClusterError, Faults, WorkerMemoryError
from tests.faults.test_resume import digests

SHIPPED = Path(__file__).parents[1] / "workflows" / "clusters"

QUEUE = """
schema = 1
kind = "{kind}"
[job]
cores = 4
memory_gb = 8.0
walltime = "1-02:30:00"
queue = "long"
account = "lab"
{job}
[scale]
max_jobs = 3
"""

needs_jobqueue = pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed (histoquant[cluster])"
)


def test_two_runs_on_one_machine_do_not_quarrel_and_nobody_outside_reaches_them():
    """A warning is an error here: dask warns when its port is taken."""
    before = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
    with cluster.workers(1) as first, cluster.workers(1) as second:
        assert [workers.submit(len, "ab").result() for workers in (first, second)] == [2, 2]
        listening = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening - before} <= {"127.0.0.1"}


def nap(folder, seconds):
    """Sleep, and say from when to when."""
    begun = time.time()
    time.sleep(seconds)
    (folder / f"{os.getpid()}_{begun}").write_text(f"{begun} {time.time()}")


@pytest.mark.parametrize("end", ["node.dask_teardown(None)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_process_does_not_outlive_its_worker(end):
    """Whatever the rest of it waits for, and whatever dask does about signals."""
    script = f"""
import os, signal, time
from histoquant.cluster import node
node.LAST_S = 0.1
signal.signal(signal.SIGTERM, lambda *told: None)
node.dask_setup(None)
{end}
while True:
    time.sleep(1)
"""
    begun = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
    assert time.monotonic() - begun < 50


def test_a_piece_that_asks_for_it_is_done_with_nothing_beside_it(tmp_path):
    folders = [tmp_path / name for name in ("alone", "beside")]
    for folder in folders:
        folder.mkdir()
    with cluster.workers(2) as workers:
        futures = [workers.submit(nap, folders[1], 0.2) for _ in range(3)]
        futures.append(workers.submit(nap, folders[0], 0.3, piece=cluster.Piece(alone=True)))
        futures += [workers.submit(nap, folders[1], 0.2) for _ in range(3)]
        for future in futures:
            future.result()
    spans = {f.name: [tuple(map(float, p.read_text().split())) for p in f.iterdir()] for f in folders}
    ((start, end),) = spans["alone"]
    assert all(b <= start or a >= end for a, b in spans["beside"])
    assert len(spans["beside"]) == 6
    # The control: of the others some did run side by side.
    assert any(a < c < b for a, b in spans["beside"] for c, _ in spans["beside"])


def take(n_bytes):
    held = np.ones(n_bytes // 8)
    time.sleep(0.5)
    return len(held)


def test_memory_is_shared_and_one_alone_may_take_all_of_it():
    pool = Pool(2, 1_600_000_000)
    try:
        call = pickle.dumps((take, (1_000_000_000,)))
        with pytest.raises(WorkerMemoryError, match=r"more than 0\.8 GB"):
            pool.ask(call, None)
        answer = pool.ask(call, None, alone=True)
        assert answer.value() == 125_000_000
        assert 1_000_000_000 < answer.peak_bytes < 1_600_000_000
    finally:
        pool.close()


def test_threads_keep_slides_apart_and_give_the_same_bytes(study, histoquant, tmp_path):
    folder = study()
    files = (folder / "study.csv", "--recipe", folder / "recipe.toml")
    (tmp_path / "threads.toml").write_text('schema = 1\nkind = "threads"\nworkers = 3\n', encoding="utf-8")
    (tmp_path / "local.toml").write_text('schema = 1\nkind = "local"\nworkers = 1\n', encoding="utf-8")
    for name in ("threads", "local"):
        done = histoquant("run", *files, "--out", tmp_path / name, "--cluster", tmp_path / f"{name}.toml")
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "threads") == digests(tmp_path / "local")
    assert threading.active_count() < 50


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_sound(path):
    profile = parse_profile(path.read_text(encoding="utf-8"), source=path.name)
    assert profile.kind == path.stem
    # What a comment offers can be taken as it is, but for what excludes each other.
    lines = path.read_text(encoding="utf-8").splitlines()
    offered = [line[2:] if line.startswith("# ") and " = " in line.split("#")[1] else line for line in lines]
    text = "\n".join(line for line in offered if not line.startswith(("plain", "dask", "Jobs")))
    assert parse_profile(text, source=path.name) != profile or path.stem == "address"


def test_all_faults_of_a_profile_come_together(study, histoquant, tmp_path):
    folder = study()
    path = tmp_path / "slurm.toml"
    path.write_text(
        QUEUE.format(kind="slurm", job='queu = "a"\nworkers = 9').replace("1-02:30:00", "soon").replace("= 3", "= 0"),
        encoding="utf-8",
    )
    for command in ("run", "check"):
        where = ("--out", tmp_path / "out") if command == "run" else ()
        done = histoquant(command, folder / "study.csv", "--recipe", folder / "recipe.toml", "--cluster", path, *where)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 3
        for words in ("job.walltime: a walltime is like", "'job.queu'. Did you mean 'queue'?", "scale.max_jobs"):
            assert any(words in line for line in lines)
    assert not (tmp_path / "out").exists()
    path.write_text('schema = 1\nkind = "local"\n', encoding="utf-8")
    done = histoquant(
        "run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", tmp_path / "out", "--cluster", path,
        "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--workers does not go with --cluster" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind = ", "not valid TOML"),
        ("schema = 1", "there is no kind"),
        ('schema = 1\nkind = "slrum"', "Give one of local, threads, slurm"),
        ('schema = 2\nkind = "local"', "schema"),
        ('schema = 1\nkind = "address"\naddress = "tcp://x:1"', "plain = true"),
        ('schema = 1\nkind = "address"\naddress = "tls://x:1"\nplain = true', "plain = true talks to tcp:// only"),
        (
            'schema = 1\nkind = "address"\naddress = "tcp://x:1"\ntls = { ca = "a", cert = "b", key = "c" }',
            "begins with tls",
        ),
        (QUEUE.format(kind="pbs", job="workers = 5"), "5 workers need 5 cores"),
        (QUEUE.format(kind="pbs", job="retire_before_min = 9999"), "no time to work"),
        (QUEUE.format(kind="pbs", job='prologue = ["a\\nb"]'), "each is one line"),
        (QUEUE.format(kind="lsf", job="gpus = 2"), "gpus"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(text, said):
    with pytest.raises((ClusterError, Faults), match=r".") as caught:
        parse_profile(text, source="c.toml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("04:00", 14400), ("04:00:10", 14410), ("2-00:00:00", 172800), ("100:00:00", 360000)]
)
def test_walltimes(text, seconds):
    assert walltime_s(text) == seconds


@needs_jobqueue
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("slurm", ["#SBATCH -p long", "#SBATCH -A lab", "--cpus-per-task=4", "--mem=7630M", "-t 26:30:00", "-N 1",
                   "--gres=gpu:1"]),
        ("pbs", ["#PBS -q long", "#PBS -A lab", "select=1:ncpus=4:mem=7630mb:ngpus=1", "walltime=26:30:00"]),
        ("lsf", ["#BSUB -q long", '#BSUB -P "lab"', "#BSUB -n 4", "#BSUB -W 26:30", '#BSUB -gpu "num=1"']),
        ("sge", ["#$ -q long", "#$ -P lab", "#$ -l h_vmem=1908M,gpu=1", "#$ -pe smp 4", "h_rt=26:30:00"]),
    ],
)  # fmt: skip
def test_submit_scripts(kind, asked, tmp_path):
    profile = parse_profile(QUEUE.format(kind=kind, job='gpus = 1\nprologue = ["module load x"]'))
    assert isinstance(profile, QueueProfile)
    assert profile.job.n_workers == 1  # one tile at a time on a GPU, by all cores
    script = submit_script(profile, tmp_path, 1)
    for words in asked:
        assert words in script
    assert "module load x" in script
    assert "export OMP_NUM_THREADS=4" in script
    assert "-m histoquant.cluster.node tls://DRIVER:PORT" in script
    assert "--nthreads 1 " in script
    # It retires 5 minutes before 26.5 hours, and not all at once.
    assert "--lifetime 90345s --lifetime-stagger 4755s" in script
    assert job_name(tmp_path) in script
    assert list(tmp_path.iterdir()) == []


@needs_jobqueue
def test_what_a_study_would_take_is_told_before_it_is_queued(study, histoquant, tmp_path):
    folder = study()
    path = tmp_path / "slurm.toml"
    path.write_text(QUEUE.format(kind="slurm", job=""), encoding="utf-8")
    files = (folder / "study.csv", "--recipe", folder / "recipe.toml", "--cluster", path)
    done = histoquant("check", *files)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH -p long" in done.stdout
    assert "12 tile(s) at once" in done.stdout
    assert "2 of 2 slide(s) can be analysed" in done.stdout
    told = json.loads(histoquant("check", *files, "--json").stdout)["estimate"]
    assert (told["n_slides"], told["n_blocks"], told["tiles_each"]) == (2, 2, 4)
    assert 0 < told["block_s"] < 60
    assert told["memory_each_bytes"] < 8e9


def test_what_asyncio_says_of_waits_that_nobody_waits_for_any_more_is_not_shown(caplog):
    with cluster.workers(1) as workers:
        assert workers.submit(len, "ab").result() == 2
        logging.getLogger("asyncio").error("Future exception was never retrieved")
        logging.getLogger("asyncio").error("something else")
    told = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert told == ["something else"]
