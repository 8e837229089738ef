"""Queueing systems: the submit script of a worker's job, and jobs that nobody waits for any more."""

from __future__ import annotations

import getpass
import hashlib
import math
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoquant.cluster.profile import QueueProfile, walltime_s
from histoquant.errors import ClusterError, MissingExtraError

DEATH_TIMEOUT_S = 60
"""A job that finds no driver for so long ends: one that waited in the queue while the driver was killed."""

STAGGER = 0.05
"""Part of their time by which workers retire apart from each other, so that they do not all leave at once."""


def job_name(root: Path) -> str:
    """Return how the jobs of a run folder are called, always the same: what an earlier driver left is found by it."""
    path = str(root.resolve())
    safe = re.sub(r"[^A-Za-z0-9]+", "_", root.resolve().name)[:20]
    return f"histoquant-{safe}-{hashlib.sha256(path.encode()).hexdigest()[:6]}"


def cluster_class(kind: str) -> Any:
    """Return dask-jobqueue's class of a queueing system.

    Raises
    ------
    MissingExtraError
        If dask-jobqueue is not installed.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        import cryptography  # noqa: F401 - for the certificates of a run
        import dask_jobqueue

        # A module of dask-jobqueue makes Ctrl-C end its process with exit code 0, as if all were done.
        signal.signal(signal.SIGINT, on_interrupt)
    except ImportError as error:
        raise MissingExtraError(
            f"Jobs of a queueing system need {error.name}, which is not installed.",
            "pip install 'histoquant[cluster]'",
        ) from error
    return getattr(dask_jobqueue, f"{kind.upper()}Cluster")


def options(profile: QueueProfile, name: str, workers: int, logs: Path) -> dict[str, Any]:
    """Return what dask-jobqueue is to be told of a job.

    Parameters
    ----------
    name : str
        Of the job.
    workers : int
        Tiles worked on at once.
    logs : Path
        Folder for what jobs print.
    """
    job, seconds = profile.job, walltime_s(profile.job.walltime)
    mebibytes = math.ceil(job.memory_bytes / 2**20)
    lifetime = seconds - job.retire_before_s
    threads = max(1, job.cores // workers)
    # Exported here, because dask's worker would set them to 1 whatever the job has.
    exports = [f"export {v}_NUM_THREADS={threads}" for v in ("OMP", "OPENBLAS", "MKL", "NUMBA")]
    told: dict[str, Any] = {
        "job_name": name,
        "cores": workers,
        "processes": 1,
        "memory": f"{job.memory_bytes}B",
        "walltime": _clock(seconds, profile.kind),
        "queue": job.queue,
        "interface": profile.network.interface,
        "death_timeout": DEATH_TIMEOUT_S,
        "local_directory": job.scratch,
        "worker_command": "histoquant.cluster.node",
        "worker_extra_args": [
            # Children are watched one by one; dask's own limit would count this process only.
            *("--memory-limit", "0", "--no-dashboard"),
            # Even without its pages a worker answers over HTTP: nobody but the job's own machine.
            *("--dashboard-address", "127.0.0.1:0"),
            *("--lifetime", f"{(1 - STAGGER) * lifetime:.0f}s"),
            *("--lifetime-stagger", f"{STAGGER * lifetime:.0f}s"),
        ],
        "job_script_prologue": [*exports, *job.prologue],
        "job_directives_skip": list(job.skip),
        "log_directory": str(logs),
        "python": shlex.quote(job.python or sys.executable),
    }
    directives = list(job.directives)
    if profile.kind == "slurm":
        told |= {"account": job.account, "job_cpu": job.cores, "job_mem": f"{mebibytes}M"}
        directives = ["-N 1", *(["--gres=gpu:1"] if job.gpus else []), *directives]
    elif profile.kind == "pbs":
        spec = f"select=1:ncpus={job.cores}:mem={mebibytes}mb" + (":ngpus=1" if job.gpus else "")
        told |= {"account": job.account, "resource_spec": spec}
    elif profile.kind == "lsf":
        told |= {"project": job.account, "ncpus": job.cores, "mem": job.memory_bytes}
        directives = [*(['-gpu "num=1"'] if job.gpus else []), *directives]
    else:
        each = math.ceil(mebibytes / job.cores)  # Grid Engine counts memory by the core
        told |= {"project": job.account, "resource_spec": f"h_vmem={each}M" + (",gpu=1" if job.gpus else "")}
        directives = [f"-pe smp {job.cores}", *directives]
    return told | {"job_extra_directives": directives}


def _clock(seconds: int, kind: str) -> str:
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours:02d}:{minutes:02d}" if kind == "lsf" else f"{hours:02d}:{minutes:02d}:00"


def submit_script(profile: QueueProfile, root: Path, workers: int) -> str:
    """Return the submit script of a worker's job as it would be sent, but for the driver's address and certificates."""
    told = options(profile, job_name(root), workers, root / ".cluster" / "logs")
    del told["log_directory"]  # dask-jobqueue would make the folder
    job = cluster_class(profile.kind).job_cls("tls://DRIVER:PORT", name="WORKER", **told)
    return str(job.job_script())


def telling(job_class: Any, accepted: Callable[[], None], refused: Callable[[str], None]) -> Any:
    """Return a kind of job that tells whether the queue took it: dask-jobqueue only logs a refusal."""
    from distributed.core import Status

    class Telling(job_class):  # type: ignore[misc]
        async def _submit_job(self, script: str) -> Any:
            try:
                given = await super()._submit_job(script)
            except (RuntimeError, OSError) as error:
                self.status = Status.failed
                refused(_reason(error))
                raise
            accepted()
            return given

    return Telling


def _reason(error: BaseException) -> str:
    """Return what a queue's command said, in one line."""
    if isinstance(error, OSError):
        return f"{error.filename or 'its command'}: {error.strerror or error}"
    said = str(error).partition("stderr:")[2].strip() or str(error)
    return " ".join(said.split())


def cancel_jobs(kind: str, name: str) -> int:
    """End all jobs of one's own that have a name, and return how many there were.

    Raises
    ------
    ClusterError
        If the queue's commands are not there, or fail.
    """
    user = getpass.getuser()
    listing = {
        "slurm": ["squeue", "--noheader", f"--user={user}", f"--name={name}", "--format=%A"],
        "pbs": ["qselect", "-u", user, "-N", name[:15]],
        "lsf": ["bjobs", "-noheader", "-u", user, "-J", name, "-o", "jobid"],
        "sge": ["qstat", "-u", user, "-r"],
    }[kind]
    said = _called(listing)
    if kind == "sge":  # it lists names below the jobs and cuts them in the table
        found = re.findall(rf"^ *(\d+) .*\n +Full jobname: +{re.escape(name)} *$", said, re.MULTILINE)
    else:
        found = said.split()
    numbers = [number for number in found if number[0].isdigit()]
    if numbers:
        _called([{"slurm": "scancel", "lsf": "bkill"}.get(kind, "qdel"), *numbers])
    return len(numbers)


def _called(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]} cannot be called: {error}.", "Run this where jobs are submitted.") from error
    # LSF says with an error that there are no jobs.
    if done.returncode and "not found" not in done.stderr:
        raise ClusterError(f"{command[0]} failed: {' '.join(done.stderr.split())}.", "Look at the queue by hand.")
    return done.stdout
