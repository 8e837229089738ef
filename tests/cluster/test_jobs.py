"""Workers in jobs of a real Slurm: the same bytes as on one machine, whatever happens to jobs and driver."""

import json
import os
import stat

import psutil
import pytest

from histoquant.cluster.queues import job_name
from tests.cluster.conftest import until
from tests.conftest import histoquant
from tests.faults.test_resume import TILES_OF_BLOCK, blocks_of, digests, state_of

ROWS = ("m1,vehicle,", "m2,treated,")
TILES = 2 * 7 * 7


def finished(process):
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors


def machines(out):
    """Return which jobs did something, by ``performance.csv``."""
    rows = (out / "performance.csv").read_text(encoding="utf-8").splitlines()
    return {row.split(",")[1] for row in rows if row.startswith("worker,")}


def test_the_sample_study_is_the_same_to_the_byte(jobqueue, sample, profile, tmp_path):
    study, recipe, here = sample
    out = tmp_path / "out"
    told = histoquant("run", study, "--recipe", recipe, "--out", out, "--cluster", profile())
    assert told.returncode == 0, told.stderr
    assert digests(out) == digests(here)
    assert len(machines(out)) == 2
    assert "segment-" in (out / "performance.html").read_text(encoding="utf-8")
    workers = state_of(out)["workers"]
    assert (workers["kind"], workers["machines_at_most"]) == ("slurm", 2)
    assert workers["dashboard"].startswith("http://127.0.0.1:")
    until(lambda: not jobqueue.jobs(job_name(out)))
    assert list((out / ".cluster" / "logs").glob("*.err"))


def test_a_job_that_is_cancelled_is_replaced_and_nothing_is_lost(jobqueue, large, profile):
    lab, expected = large
    process = lab.start("--cluster", profile(), LAB_DELAY=0.25)
    until(lambda: lab.calls > 20)
    name, kept = job_name(lab.out), blocks_of(lab.out)
    first = jobqueue.jobs(name)
    assert len(first) == 2
    victim = next(iter(first))
    jobqueue.ask("scancel", victim)
    until(lambda: len(set(jobqueue.jobs(name)) - set(first)) == 1)  # another one was asked for
    finished(process)
    assert digests(lab.out) == expected
    held = blocks_of(lab.out)
    assert kept
    assert {block: held[block] for block in kept} == kept
    assert TILES <= lab.calls <= TILES + TILES_OF_BLOCK


def test_a_driver_that_is_killed_leaves_no_jobs_and_is_resumed(jobqueue, large, profile):
    lab, expected = large
    # More jobs than there is room for: some wait in the queue when the driver dies, and would start later for nobody.
    cluster = profile(jobs=10)
    process = lab.start("--cluster", cluster, LAB_DELAY=0.25)
    name = job_name(lab.out)
    until(lambda: lab.calls > 20 and "PENDING" in jobqueue.jobs(name).values())
    process.kill()
    process.communicate()
    kept = blocks_of(lab.out)
    assert kept
    told = json.loads(histoquant("status", lab.out, "--json", check=True).stdout)
    assert told["state"] == "died"
    assert jobqueue.jobs(name)
    cancelled = histoquant("cancel", lab.out)
    assert cancelled.returncode == 0, cancelled.stderr
    until(lambda: not jobqueue.jobs(name))
    calls = lab.calls
    process = lab.start("--cluster", profile())
    finished(process)
    assert digests(lab.out) == expected
    held = blocks_of(lab.out)
    # A block that was begun may have been written between the kill and the look, and once more after it.
    assert {block: held[block] for block in kept} == kept
    assert lab.calls - calls < TILES
    until(lambda: not jobqueue.jobs(name))


def test_workers_retire_before_their_walltime_and_others_take_over(jobqueue, large, profile):
    lab, expected = large
    cluster = profile(jobs=1, walltime="00:01:00", job="retire_before_min = 0.8")
    process = lab.start("--cluster", cluster, LAB_DELAY=0.2)
    finished(process)
    assert digests(lab.out) == expected
    jobs = machines(lab.out)
    assert len(jobs) >= 2
    # They left by themselves: Slurm ended none at its walltime.
    said = [path.read_text(encoding="utf-8") for path in (lab.out / ".cluster" / "logs").glob("*.err")]
    assert not [text for text in said if "DUE TO TIME LIMIT" in text]
    assert [text for text in said if "lifetime" in text]
    assert lab.calls <= TILES + TILES_OF_BLOCK * len(jobs)


def test_a_job_that_its_walltime_ends_is_replaced_and_nothing_is_lost(jobqueue, large, profile):
    """The site grants a minute of the ten that the worker was told of: it does not retire, Slurm ends it."""
    lab, expected = large
    cluster = profile(jobs=1, job='directives = ["--time=00:01:00"]')
    process = lab.start("--cluster", cluster, LAB_DELAY=0.9)
    until(lambda: lab.calls > 40)
    kept = blocks_of(lab.out)
    finished(process)
    assert digests(lab.out) == expected
    said = [path.read_text(encoding="utf-8") for path in (lab.out / ".cluster" / "logs").glob("*.err")]
    ended = [text for text in said if "DUE TO TIME LIMIT" in text]
    assert len(ended) >= 1
    jobs = machines(lab.out)
    assert len(jobs) > len(ended)  # the last one ended when all was done
    held = blocks_of(lab.out)
    assert kept
    assert {block: held[block] for block in kept} == kept
    assert TILES <= lab.calls <= TILES + TILES_OF_BLOCK * len(ended)


def test_a_node_that_is_lost_costs_the_block_in_work(jobqueue, large, three_nodes, profile):
    """One of two nodes that work goes without a word; the run goes on with the other, and with a third one."""
    lab, expected = large
    cluster = profile(jobs=2, job='directives = ["--exclusive"]')  # each job on a node of its own
    process = lab.start("--cluster", cluster, LAB_DELAY=0.4, SLURM_CONF=three_nodes.conf)
    name = job_name(lab.out)
    until(lambda: lab.calls > 20 and len(three_nodes.jobs(name)) == 2)
    first = {job: three_nodes.node_of(job) for job in three_nodes.jobs(name)}
    assert len(set(first.values())) == 2
    victim, node = next(iter(first.items()))
    kept = blocks_of(lab.out)
    three_nodes.lose(node, victim)
    until(lambda: set(three_nodes.jobs(name)) - set(first))
    (other,) = set(three_nodes.jobs(name)) - set(first)
    until(lambda: three_nodes.node_of(other))
    assert three_nodes.node_of(other) not in first.values()
    until(lambda: f"{node} down" in three_nodes.ask("sinfo", "-h", "-N", "-o", "%N %T").replace("*", ""))
    finished(process)
    assert digests(lab.out) == expected
    assert len(machines(lab.out)) == 3
    held = blocks_of(lab.out)
    assert kept
    assert {block: held[block] for block in kept} == kept
    assert TILES <= lab.calls <= TILES + TILES_OF_BLOCK


def test_a_queue_that_refuses_is_one_sentence(jobqueue, lab, profile):
    lab.slides(ROWS[0])
    done = lab.run("--cluster", profile(job='queue = "nowhere"'))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "invalid partition" in line
    assert "check --cluster" in line
    assert state_of(lab.out)["state"] == "stopped"


def test_nobody_else_can_talk_to_a_run(jobqueue, large, profile):
    from distributed import Client
    from distributed.security import Security

    lab, _ = large
    process = lab.start("--cluster", profile(jobs=1), LAB_DELAY=0.3)
    try:
        until(lambda: lab.calls > 4)
        secrets = lab.out / ".cluster" / "tls"
        assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
        assert {path.name for path in secrets.iterdir()} == {"cert.pem", "key.pem"}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets.iterdir())
        (number,) = jobqueue.jobs(job_name(lab.out))
        script = jobqueue.ask("scontrol", "write", "batch_script", number, "-")
        assert str(secrets / "key.pem") in script
        assert (secrets / "key.pem").read_text(encoding="ascii").splitlines()[1] not in script
        address = next(word for word in script.split() if word.startswith("tls://"))
        with pytest.raises(OSError, match=r"reset|closed|timed out"):
            Client(address.replace("tls://", "tcp://"), timeout=2)
        with pytest.raises(OSError, match=r"(?i)certificate|ssl|closed|timed out"):
            Client(address, timeout=2, security=Security.temporary())  # another run's certificates
        listening = psutil.Process(process.pid).net_connections("inet")
        assert {each.laddr.ip for each in listening if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    finally:
        process.send_signal(2)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not secrets.exists()
    until(lambda: not jobqueue.jobs(job_name(lab.out)))


def test_a_worker_sees_the_gpu_it_was_given(jobqueue, lab, profile):
    lab.slides(*ROWS)
    done = lab.run("--cluster", profile(job="gpus = 1"))
    assert done.returncode == 0, done.stderr
    seen = {line.split()[1] for line in (lab.root / "lab.log").read_text(encoding="utf-8").splitlines()}
    assert seen == {"0"}  # each node has one, and no job is given another's
    assert os.environ.get("CUDA_VISIBLE_DEVICES", "none") not in seen
