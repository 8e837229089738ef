"""Workers behind a dask scheduler, as on a cluster, and what can happen to them. Nothing that is finished is lost.

The same with jobs of a real Slurm: ``tests/cluster``.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.faults.test_resume import TILES_OF_BLOCK, blocks_of, digests

ROWS = ("m1,vehicle,", "m2,treated,")
TILES = 2 * 7 * 7


def secrets_of(files):
    """Return how a profile names the files of certificates."""
    if files is None:
        return "plain = true\n"
    return "[tls]\n" + "".join(
        f'{name} = "{path}"\n' for name, path in zip(("ca", "cert", "key"), files.values(), strict=True)
    )


def certificates(folder):
    """Write a certificate that is its own authority, and its key."""
    from distributed.security import Security

    made = Security.temporary()
    folder.mkdir()
    for name, content in (("cert", made.tls_ca_file), ("key", made.tls_client_key)):
        (folder / f"{name}.pem").write_text(content, encoding="ascii")
    cert = folder / "cert.pem"
    return {"ca-file": cert, "cert": cert, "key": folder / "key.pem"}


class Scheduler:
    """A dask scheduler and its workers as somebody else would start them, on loopback."""

    def __init__(self, root, environment, *, host="127.0.0.1", files=None):
        self.root, self.environment, self.host = root, environment, host
        self.secrets = [] if files is None else ["--protocol", "tls"]
        for name, path in (files or {}).items():
            self.secrets += [f"--tls-{name}", str(path)]
        self.file = root / "scheduler.json"
        self.processes = []
        self.profile = root / "address.toml"
        self.profile.write_text(
            f'schema = 1\nkind = "address"\nfile = "{self.file}"\nmemory_gb = 2.0\n{secrets_of(files)}',
            encoding="utf-8",
        )
        self.scheduler = self._start("dask_scheduler", "--host", host, "--port", "0", "--no-dashboard")

    def worker(self, *options):
        options = ("--no-nanny", *options) if "--nanny" not in options else options
        return self._start(
            "dask_worker", "--nthreads", "1", "--memory-limit", "2GB", "--host", self.host, "--no-dashboard",
            "--local-directory", str(self.root), "--death-timeout", "20", *options,
        )  # fmt: skip

    def _start(self, program, *options):
        with (self.root / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", f"distributed.cli.{program}", "--scheduler-file", str(self.file),
                    *self.secrets, *options,
                ],
                stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def scheduler(lab):
    lab.slides(*ROWS, shape=(400, 420), n=150)
    started = Scheduler(lab.root, lab.environment | {"LAB_DELAY": "0.1"})
    yield started
    started.stop()


@pytest.fixture
def expected(lab, scheduler):
    done = lab.run("--workers", 2, out=lab.root / "here")
    assert done.returncode == 0, done.stderr
    (lab.root / "lab.log").unlink()
    return digests(lab.root / "here")


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_workers_come_and_go_and_the_bytes_are_the_same(lab, scheduler, expected):
    """One is killed, one freezes until it is killed, one retires, others come: each costs the block it was at."""
    workers = [scheduler.worker(), scheduler.worker()]
    process = lab.start("--cluster", scheduler.profile)
    until(lambda: lab.calls > 10)
    kept = blocks_of(lab.out)
    children = psutil.Process(workers[0].pid).children(recursive=True)
    workers[0].kill()
    workers.append(scheduler.worker("--lifetime", "6s"))
    until(lambda: lab.calls > 25)
    workers[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    workers[1].kill()
    until(lambda: workers[2].poll() is not None)  # it retired
    scheduler.worker()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert digests(lab.out) == expected
    held = blocks_of(lab.out)
    assert kept
    assert {block: held[block] for block in kept} == kept
    assert TILES <= lab.calls <= TILES + 3 * TILES_OF_BLOCK
    if importlib.util.find_spec("bokeh"):  # it comes with histoquant[cluster]
        page = (lab.out / "performance.html").read_text(encoding="utf-8")
        assert "segment-" in page  # dask's report has the pieces by stage
        assert page.index("Content-Security-Policy") < page.index("<script")
    assert children
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_scheduler_that_dies_is_one_sentence_and_a_new_one_goes_on(lab, scheduler, expected):
    scheduler.worker()
    process = lab.start("--cluster", scheduler.profile)
    until(lambda: len(blocks_of(lab.out)) > 6)
    kept = blocks_of(lab.out)
    scheduler.scheduler.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "The dask scheduler has gone" in errors
    assert "Traceback" not in errors
    scheduler.file.unlink()
    again = Scheduler(lab.root, scheduler.environment)
    try:
        again.worker()
        done = lab.run("--cluster", again.profile)
        assert done.returncode == 0, done.stderr
    finally:
        again.stop()
    assert digests(lab.out) == expected
    held = blocks_of(lab.out)
    assert {block: held[block] for block in kept} == kept


def test_a_run_is_not_lost_for_a_report_of_it(lab, scheduler, expected):
    """The scheduler of somebody else has no bokeh, and the report of an earlier run stays no longer than the run."""
    broken = lab.root / "broken" / "bokeh"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('No module named bokeh')\n", encoding="utf-8")
    scheduler.stop()
    scheduler.file.unlink(missing_ok=True)
    paths = os.pathsep.join([str(broken.parent), scheduler.environment["PYTHONPATH"]])
    without = Scheduler(lab.root, scheduler.environment | {"PYTHONPATH": paths})
    out = lab.root / "here"
    (out / "performance.html").write_text("of an earlier run", encoding="utf-8")
    try:
        without.worker()
        done = lab.run("--cluster", without.profile, out=out)
    finally:
        without.stop()
    assert done.returncode == 0, done.stderr
    assert digests(out) == expected
    notes = json.loads((out / "run.json").read_text(encoding="utf-8"))["notes"]
    assert [note for note in notes if note.startswith("dask made no report of the run (ImportError")]
    assert not (out / "performance.html").exists()


def test_a_crash_takes_its_slide_and_no_innocent_block_along(lab, scheduler):
    """Dask itself would blame the death of a worker on all that the worker had queued."""
    lab.slides(ROWS[0], "m2,treated,0.51", ROWS[1])
    lab.set_mode("fault")
    workers = [scheduler.worker("--nthreads", "2")]
    done = lab.run("--cluster", scheduler.profile)
    assert done.returncode == 1, done.stderr
    state = json.loads((lab.out / "run.json").read_text(encoding="utf-8"))
    assert state["slides"] == {"a": "done", "b": "failed", "c": "done"}
    (failure,) = state["failures"]
    assert "SIGSEGV" in failure["error"]
    assert workers[0].poll() is None  # the worker itself never noticed


def test_workers_under_a_nanny_are_refused_with_the_remedy(lab, scheduler):
    scheduler.worker("--nanny")
    done = lab.run("--cluster", scheduler.profile)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "--no-nanny" in line


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="histoquant[cluster] is not installed")
def test_certificates_by_files_and_no_talk_without_them(lab):
    lab.slides(*ROWS)
    ours, others = certificates(lab.root / "ours"), certificates(lab.root / "others")
    started = Scheduler(lab.root, lab.environment, files=ours)
    try:
        started.worker()
        until(started.file.exists)
        address = json.loads(started.file.read_text(encoding="utf-8"))["address"]
        assert address.startswith("tls://127.0.0.1:")
        done = lab.run("--cluster", started.profile)
        assert done.returncode == 0, done.stderr
        assert lab.run("--workers", 2, out=lab.root / "here").returncode == 0
        assert digests(lab.out) == digests(lab.root / "here")
        for name, where, secrets in (("others", address, others), ("none", address.replace("tls", "tcp"), None)):
            path = lab.root / f"{name}.toml"
            path.write_text(
                f'schema = 1\nkind = "address"\naddress = "{where}"\n{secrets_of(secrets)}', encoding="utf-8"
            )
            done = lab.run("--cluster", path, out=lab.root / f"{name}_out")
            assert done.returncode == 2
            (line,) = done.stderr.strip().splitlines()
            assert f"No dask scheduler with workers at '{where}'" in line
    finally:
        started.stop()


def test_plain_talk_over_a_network_is_noted(lab):
    """Loopback is the control: what stays on this machine needs no encryption."""
    from types import SimpleNamespace

    from histoquant.cluster.remote import overheard

    def told(address):
        return overheard(SimpleNamespace(scheduler=SimpleNamespace(address=address)))

    for quiet in (
        "tcp://127.0.0.1:8786",
        "tcp://localhost:1",
        "tcp://[::1]:8786",
        "tls://10.1.2.3:8786",
        "inproc://1/2",
    ):
        assert told(quiet) == ""
    for loud in ("tcp://10.1.2.3:8786", "tcp://[fe80::1]:8786", "tcp://node1:8786"):
        assert "is encrypted" in told(loud)


def test_no_scheduler_is_one_sentence(lab):
    lab.slides(*ROWS)
    path = lab.root / "address.toml"
    path.write_text('schema = 1\nkind = "address"\naddress = "tcp://127.0.0.1:9"\nplain = true\n', encoding="utf-8")
    done = lab.run("--cluster", path, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "No dask scheduler with workers at 'tcp://127.0.0.1:9'" in line
    assert os.path.exists(lab.out / "run.json")
