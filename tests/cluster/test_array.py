"""One slide per job, nothing between the jobs but the run folder: a Slurm array, and Snakemake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from histoquant.status import read_status
from tests.cluster.conftest import until
from tests.faults.test_resume import blocks_of, digests

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def submit(study, recipe, out, command, **environment):
    """Submit a study as an array and return how it was told to be looked at."""
    settings = {"CORES": "1", "MEMORY_MB": "2000", "WALLTIME": "00:10:00", "AT_ONCE": "2", "HISTOQUANT": str(command)}
    return subprocess.run(
        [WORKFLOWS / "slurm" / "submit.sh", study, recipe, out],
        capture_output=True, text=True, check=False, timeout=120, env=os.environ | settings | environment,
    )  # fmt: skip


@pytest.fixture
def command(tmp_path):
    """The command line as a file that nodes can call."""
    path = tmp_path / "histoquant"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m histoquant "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def logs(out):
    return "\n".join(path.read_text(encoding="utf-8") for path in Path(f"{out}.jobs").glob("*.log"))


def test_the_sample_study_as_an_array_is_the_same_to_the_byte(slurm, sample, command, tmp_path):
    study, recipe, here = sample
    out = tmp_path / "out"
    told = submit(study, recipe, out, command)
    assert told.returncode == 0, told.stderr
    assert len(slurm.jobs()) == 9
    until(lambda: (out / "run.json").exists())
    until(lambda: read_status(out).counts["running"] > 0)
    status = read_status(out)
    assert status.state == "by slide"
    assert len(status.slides) == 8
    assert status.counts["running"] <= 2
    until(lambda: not slurm.jobs(), 240)
    assert digests(out) == digests(here), logs(out)
    assert read_status(out).state == "done"


def test_a_task_stops_before_its_walltime_and_goes_on(slurm, large, command):
    """And one that is killed is made up for by the last job."""
    lab, expected = large
    files = lab.study / "study.csv", lab.study / "recipe.toml"
    environment = lab.environment | {"LAB_DELAY": "0.7", "WALLTIME": "00:01:00", "WARNING_S": "30"}
    told = submit(*files, lab.out, command, **environment)
    assert told.returncode == 0, told.stderr
    until(lambda: len(blocks_of(lab.out)) > 5)
    until(lambda: read_status(lab.out).eta_s)
    victim = next(number for number in slurm.jobs() if number.endswith("_1"))
    slurm.ask("scancel", victim)
    until(lambda: "queued again" in logs(lab.out), 90)
    kept = blocks_of(lab.out)
    until(lambda: not slurm.jobs(), 300)
    assert digests(lab.out) == expected, logs(lab.out)
    held = blocks_of(lab.out)
    assert {block: held[block] for block in kept} == kept


def test_slides_and_studies_keep_out_of_each_other(lab):
    lab.slides("m1,vehicle,", "m2,treated,")
    first = lab.start("--workers", 1, "--slide", "a", LAB_DELAY=0.5)
    until(lambda: lab.calls > 0)
    whole = lab.run("--workers", 1)
    assert whole.returncode == 2
    assert f"works on slide 'a' in '{lab.out}': process {first.pid}" in whole.stderr
    same = lab.run("--workers", 1, "--slide", "a")
    assert same.returncode == 2
    assert f"process {first.pid}" in same.stderr
    other = lab.run("--workers", 1, "--slide", "b")
    assert other.returncode == 0, other.stderr
    first.communicate()
    assert first.returncode == 0
    unknown = lab.run("--slide", "c")
    assert unknown.returncode == 2
    assert "no slide 'c'" in unknown.stderr
    assert lab.run("--workers", 1).returncode == 0
    assert lab.calls == 32  # 16 tiles of each slide, once


def test_snakemake_walks_the_same_path(sample, command, tmp_path):
    snakemake = Path(sys.executable).with_name("snakemake")
    if not snakemake.exists() and shutil.which("snakemake") is None:
        pytest.skip("snakemake is not installed")
    study, recipe, here = sample
    out = tmp_path / "out"
    told = {"study": study, "recipe": recipe, "out": out, "histoquant": command, "cores": 1, "memory_mb": 2000}
    done = subprocess.run(
        [
            snakemake if snakemake.exists() else "snakemake", "-s", WORKFLOWS / "snakemake" / "Snakefile",
            "--cores", "2", "--quiet", "all", "--config", *(f"{name}={value}" for name, value in told.items()),
        ],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(here)
