"""A real Slurm, and studies to send there."""

import contextlib
import copy
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.cluster.private_slurm import PrivateSlurm, why_not
from tests.conftest import histoquant
from tests.faults.conftest import Lab
from tests.faults.test_resume import digests

PROFILE = """
schema = 1
kind = "slurm"
[job]
cores = 1
memory_gb = 2.0
walltime = "{walltime}"
scratch = "{scratch}"
{job}
[scale]
max_jobs = {jobs}
[network]
interface = "lo"
"""


@contextlib.contextmanager
def a_slurm(**settings):
    """Give a Slurm that everything started meanwhile talks to."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    system = PrivateSlurm(folder, **settings)
    before = dict(os.environ)
    os.environ |= system.environment
    # A job that ends is replaced after so long; dask's own 15 s suit jobs that last for hours.
    os.environ["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "2s"
    try:
        system.start()
        yield system
        system.stop()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm():
    with a_slurm() as system:
        yield system


@pytest.fixture
def three_nodes(large):
    """A Slurm of which a node can be lost."""
    with a_slurm(nodes=3, silence_s=10) as system:
        yield system


@pytest.fixture
def jobqueue(slurm):
    """Slurm, where dask-jobqueue is installed too."""
    for name in ("dask_jobqueue", "cryptography"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (histoquant[cluster])")
    return slurm


@pytest.fixture
def profile(tmp_path):
    """Return a function that writes a cluster profile."""

    def write(*, jobs=2, walltime="00:10:00", job=""):
        path = tmp_path / "slurm.toml"
        path.write_text(PROFILE.format(jobs=jobs, walltime=walltime, job=job, scratch=tmp_path), encoding="utf-8")
        return path

    return write


@pytest.fixture
def lab(tmp_path, slurm):
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def two_slides(tmp_path_factory, slurm):
    """Two slides of 49 tiles, and what a run on this machine makes of them."""
    made = Lab(tmp_path_factory.mktemp("two"))
    made.slides("m1,vehicle,", "m2,treated,", shape=(400, 420), n=150)
    done = made.run("--workers", 2)
    assert done.returncode == 0, done.stderr
    return made, digests(made.out)


@pytest.fixture
def large(two_slides, tmp_path):
    """The two slides with a run folder and a log of their own."""
    made, expected = two_slides
    lab = copy.copy(made)
    lab.root, lab.out = tmp_path, tmp_path / "out"
    lab.environment = made.environment | {"LAB_LOG": str(tmp_path / "lab.log")}
    return lab, expected


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The sample study, its recipe with the quicker segmenter, and what a run on this machine makes of it.

    Tests only read it: processes of tests side by side share the one that the first of them makes.
    """
    folder, root = Path(__file__).parents[2] / "sample_images", tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "sample"
    files, here, ended = (folder / "study.csv", root / "recipe.toml"), root / "here", root / "ended"
    try:
        root.mkdir()
    except FileExistsError:
        until(ended.exists, 600)
        assert (here / "report.html").exists(), "its run failed in the process that made it"
        return *files, here
    recipe = (folder / "recipe.toml").read_text(encoding="utf-8").replace('"network"', '"watershed"')
    files[1].write_text(recipe, encoding="utf-8")
    try:
        histoquant("run", files[0], "--recipe", files[1], "--out", here, "--workers", 2, check=True)
    finally:
        ended.touch()
    return *files, here


def until(condition, seconds=180):
    """Wait for something that takes seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
