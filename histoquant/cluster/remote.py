"""Workers on other machines: jobs of a queueing system, or whatever an existing dask scheduler has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from histoquant.cluster import node, queues
from histoquant.cluster.local import PLAIN, Piece
from histoquant.cluster.node import Node
from histoquant.cluster.performance import Performance
from histoquant.cluster.profile import AddressProfile, QueueProfile
from histoquant.errors import ClusterError, WorkerDiedError

ASK_EVERY_S = 5.0
"""How often jobs that ended are asked for again. Dask's own adaptive mode, together with workers that retire, went
round for ever: it counts finished work that left with its worker as work to be done."""

REPORT_LIMIT_S = 120
"""How long dask may take for its report; it took a second for 12,000 pieces; workers slow to answer take longer."""

REPORT_POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">"""
"""Dask's page names pictures and scripts of other places. It works without them, and tells nobody that it is read."""

PRIORITY = {"finish": 4, "threshold": 3, "join": 2, "segment": 1}
"""Which stages go first among those that wait for a worker: slides are finished before new ones are begun."""

SETTINGS = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 10,  # crashes are in children: a worker dies of its machine
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.retry.count": 3,
    # The last ones are in dask's report, so that driver and page stay small whatever the size of the study.
    "distributed.scheduler.dashboard.tasks.task-stream-length": 10_000,
}


class Remote:
    """Workers behind a dask scheduler.

    Nothing is kept in futures of dask: what a piece made is in the run folder, its short answer is fetched at once and
    released. A piece whose worker goes away, at its walltime or otherwise, is done by another one, perhaps for the
    second time, which is harmless.
    """

    def __init__(self, client: Any, machine: Node, count: Callable[[], int], jobs: Jobs | None = None) -> None:
        self.performance = Performance()
        self._client, self._node, self._count, self._jobs = client, machine, count, jobs
        self._dashboard = str(client.dashboard_link)  # asked once: the scheduler is, and it may be gone later
        self._begun = time.time()
        client.get_task_stream(start=0, stop=0)  # from now on the scheduler takes notes
        self._waiting: dict[Future[Any], None] = {}
        self._numbers = itertools.count()
        self._alive, self._most, self._backlog = 0, 0, 1
        self._fault: ClusterError | None = None
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="histoquant jobs", daemon=True)
        self._keeper.start()

    @property
    def number(self) -> int:
        """Pieces worked on at once now; those of one job while there is none yet."""
        return max(1, self._alive) * self._node.workers

    def expect(self, pieces: int) -> None:
        """Be told how many pieces are still to come: so many jobs are asked for."""
        self._backlog = pieces

    def told(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the workers."""
        told = {"machines": self._alive, "machines_at_most": self._most, "workers_each": self._node.workers}
        return told | (self._jobs.told() if self._jobs else {}) | {"dashboard": self._dashboard}

    def report(self) -> str:
        """Return dask's report on what was done when; what it needs is in the page itself, nothing is fetched.

        Raises
        ------
        ClusterError
            If the scheduler cannot make it.
        """
        asked = {"start": self._begun, "last_count": 0, "code": "histoquant run", "mode": "inline"}
        try:
            made = self._client.sync(
                self._client.scheduler.performance_report, **asked, callback_timeout=REPORT_LIMIT_S
            )
        except (
            Exception
        ) as error:  # whatever is wrong with dask's pictures, or with a bokeh that somebody else installed
            reason = " ".join(str(error).split())[:200]
            raise ClusterError(
                f"dask made no report of the run ({type(error).__name__}: {reason}).", "Nothing else is missing."
            ) from error
        return str(made).replace("<head>", f"<head>{REPORT_POLICY}", 1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, piece: Piece = PLAIN) -> Future[Any]:
        """Send a piece of work to whichever worker is free."""
        future: Future[Any] = Future()
        self._waiting[future] = None
        self._client.loop.add_callback(self._follow, future, pickle.dumps((fn, args)), piece)
        if self._fault is not None:
            self._fail(self._fault)
        return future

    async def _follow(self, future: Future[Any], call: bytes, piece: Piece) -> None:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        given: Any = None
        error: Exception | None = None
        try:
            key = f"{piece.stage}-{self._node.run}-{next(self._numbers)}"
            sent = self._client.submit(
                node.ask, call, piece, self._node, key=key, pure=False, priority=PRIORITY.get(piece.stage, 0)
            )
            try:
                answer = await sent._result()
            finally:
                sent.release()
            self.performance.add(piece.stage, piece.slide, answer)
            given = answer.value()
        except KilledWorker:
            error = WorkerDiedError(
                "the machines it was given to were lost one after the other.", "Look into .cluster/logs of the folder."
            )
        except (asyncio.CancelledError, FutureCancelledError):
            error = ClusterError("The dask scheduler has gone.", "Start it, then run the same command again.")
        except Exception as raised:  # noqa: BLE001 - a future carries whatever its work raised
            error = raised
        if self._waiting.pop(future, future) is None:
            if error is None:
                future.set_result(given)
            else:
                future.set_exception(error)

    def _fail(self, error: ClusterError) -> None:
        self._fault = error
        for future in list(self._waiting):
            if self._waiting.pop(future, future) is None:
                future.set_exception(error)

    def _keep(self) -> None:
        """Count the workers, and ask for jobs in place of those that ended."""
        while not self._ended.is_set():
            with contextlib.suppress(Exception):  # a moment without an answer is no reason to lose a weekend's run
                self._alive = self._count()
                self._most = max(self._most, self._alive)
            if self._jobs is not None:
                fault = self._jobs.ask(math.ceil(self._backlog / self._node.workers))
                if fault is not None:
                    self._fail(fault)
            self._ended.wait(ASK_EVERY_S if self._alive else 0.5)

    def close(self) -> None:
        """Ask for no more jobs."""
        self._ended.set()
        self._keeper.join()


class Jobs:
    """The jobs of a run: as many as there is work for, asked for again when they end."""

    def __init__(self, profile: QueueProfile, root: Path, workers: int) -> None:
        self.profile, self.root, self.workers = profile, root, workers
        self.name = queues.job_name(root)
        self.cluster: Any = None
        self._accepted, self._refusal, self._asked, self._at = 0, "", 0, 0.0

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Give dask's cluster; its jobs end with this block.

        Raises
        ------
        ClusterError
            If the queue cannot be reached.
        """
        folder = self.root / ".cluster"
        make = queues.cluster_class(self.profile.kind)
        queues.cancel_jobs(self.profile.kind, self.name)  # of a driver that was killed
        job_class = queues.telling(make.job_cls, self._on_accepted, self._on_refused)
        network = self.profile.network
        with _secrets(folder / "tls", network.tls) as security:
            told = queues.options(self.profile, self.name, self.workers, folder / "logs")
            cluster = make(
                job_cls=job_class,
                security=security,
                protocol="tls://" if security is not None else "tcp://",
                scheduler_options={"dashboard_address": "127.0.0.1:0", "dashboard": network.dashboard},
                silence_logs=logging.CRITICAL,
                **told,
            )
            with cluster:
                self.cluster = cluster
                yield cluster

    def _on_accepted(self) -> None:
        self._accepted += 1

    def _on_refused(self, reason: str) -> None:
        self._refusal = reason

    def count(self) -> int:
        """Return how many jobs work now."""
        return len(self.cluster.scheduler.workers)

    def ask(self, useful: int) -> ClusterError | None:
        """Ask for as many jobs as there is work for, if that was not done a moment ago.

        Returns
        -------
        Why there will be none: the queue refused the first one. Later refusals may be a queue that restarts.
        """
        if self._refusal and not self._accepted:
            return ClusterError(
                f"The queue refused the job of a worker: {self._refusal}.",
                "Correct the cluster profile; histoquant check --cluster FILE shows the script.",
            )
        if time.monotonic() - self._at < ASK_EVERY_S and self._at:
            return None
        self._at = time.monotonic()
        scale = self.profile.scale
        wanted = min(scale.max_jobs, max(scale.min_jobs, useful))
        idle = [w.name for w in list(self.cluster.scheduler.workers.values()) if not w.processing]
        surplus = idle[: max(0, self.count() - wanted)]
        for name in surplus:  # dask's own scale() would end any, not only those with nothing to do
            self.cluster.worker_spec.pop(name, None)
        self._asked = max(wanted, self.count() - len(surplus))
        self.cluster.scale(jobs=self._asked)
        return None

    def told(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the jobs."""
        refused = {"refused": self._refusal} if self._refusal else {}
        return {"kind": self.profile.kind, "job_name": self.name, "jobs_asked_for": self._asked, **refused}


@contextlib.contextmanager
def _secrets(folder: Path, wanted: bool) -> Iterator[Any]:
    """Give the certificate and key of one run, in files that only their owner can read; they go with this block.

    They are files because jobs must find them, on the disk that they share with the driver anyway; in a submit script
    anybody could read them.
    """
    if not wanted:
        yield None
        return
    from distributed.security import Security

    made = Security.temporary()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(mode=0o700)
    paths = {}
    for name, content in (("cert", made.tls_ca_file), ("key", made.tls_client_key)):
        paths[name] = str((folder / f"{name}.pem").resolve())
        handle = os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(content)
    roles = {f"tls_{role}_{what}": paths[what] for role in ("scheduler", "worker", "client") for what in paths}
    try:
        yield Security(require_encryption=True, tls_ca_file=paths["cert"], **roles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def queued(profile: QueueProfile, root: Path, workers: int, memory_bytes: int) -> Iterator[Remote]:
    """Give workers in jobs of a queueing system; the jobs end with this block.

    Parameters
    ----------
    root : Path
        The run folder: certificates and logs are in its ``.cluster``.
    workers, memory_bytes : int
        Tiles worked on at once in a job, and their memory together.
    """
    import dask
    from distributed import Client

    jobs = Jobs(profile, root, workers)
    with dask.config.set(SETTINGS), jobs.opened() as cluster, Client(cluster, set_as_default=False) as client:
        remote = Remote(client, Node(_run_name(), workers, memory_bytes), jobs.count, jobs)
        try:
            yield remote
        finally:
            remote.close()


@contextlib.contextmanager
def connected(profile: AddressProfile) -> Iterator[tuple[Any, int, int]]:
    """Connect to a scheduler that runs already; give the client, and cores and memory (bytes) of its smallest worker.

    Raises
    ------
    ClusterError
        If it does not answer, or has no workers.
    """
    import dask
    from distributed import Client
    from distributed.security import Security

    security = None
    if profile.tls is not None:
        files = {"cert": profile.tls.cert, "key": profile.tls.key}
        roles = {f"tls_client_{what}": path for what, path in files.items()}
        security = Security(require_encryption=True, tls_ca_file=profile.tls.ca, **roles)
    named = profile.address or profile.file
    how = {"address": profile.address} if profile.address else {"scheduler_file": profile.file}
    with dask.config.set(SETTINGS), contextlib.ExitStack() as held:
        try:
            client = held.enter_context(Client(**how, security=security, timeout=20, set_as_default=False))
            client.wait_for_workers(1, timeout=60)
            found = client.scheduler_info(n_workers=-1)["workers"].values()
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"No dask scheduler with workers at '{named}': {' '.join(str(error).split()) or type(error).__name__}.",
                "Start it and its workers (with --no-nanny), or correct the cluster profile.",
            ) from error
        cores = min(int(each["nthreads"]) for each in found)
        stated = int((profile.memory_gb or 0) * 1e9)
        memory = stated or min(int(each["memory_limit"] or 0) for each in found)
        if not memory:
            raise ClusterError(f"The workers at '{named}' have no memory limit.", "State memory_gb in the profile.")
        yield client, cores, memory


def overheard(client: Any) -> str:
    """Return what a person should know of a scheduler that is talked to in plain over a network; else nothing."""
    protocol, _, place = str(client.scheduler.address).partition("://")
    host = place.rpartition(":")[0].strip("[]")
    if protocol != "tcp" or host.startswith("127.") or host in ("localhost", "::1"):
        return ""
    return (
        f"nothing between here and the dask scheduler at '{place}' is encrypted, and whoever reaches it can run "
        "programs as its owner: give [tls] in the cluster profile, with a scheduler and workers that have certificates"
    )


@contextlib.contextmanager
def borrowed(client: Any, workers: int, memory_bytes: int) -> Iterator[Remote]:
    """Give workers of a scheduler that somebody else runs; they stay when this block ends."""
    remote = Remote(client, Node(_run_name(), workers, memory_bytes), lambda: len(client.nthreads()))
    try:
        yield remote
    finally:
        remote.close()


def _run_name() -> str:
    """Return a name that no other run has; dask's own messages stop here, ours say what is the matter."""
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return f"{os.getpid()}_{time.time_ns():x}"
