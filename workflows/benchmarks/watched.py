"""Run a command and watch its whole family of processes: wall time, processor time, peak memory."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

EVERY_S = 0.05


@dataclass(frozen=True)
class Usage:
    """What a command used, all its processes together.

    ``rss_mb`` adds up what each process has resident, so that shared libraries count once per process;
    ``largest_mb`` is the largest single process.
    """

    wall_s: float
    cpu_s: float
    rss_mb: float
    largest_mb: float


def watched(command: Sequence[str]) -> Usage:
    """Run a command to its end.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        family = _Family(psutil.Process(process.pid))
        watcher = threading.Thread(target=family.watch, daemon=True)
        watcher.start()
        output, _ = process.communicate()
        wall_s = time.perf_counter() - start
        family.done.set()
        watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output.decode()[-2000:]}")
    return Usage(wall_s, sum(family.cpu_s.values()), family.rss / 2**20, family.largest / 2**20)


class _Family:
    """A process and its descendants, sampled until ``done``."""

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self.done = threading.Event()
        self.cpu_s: dict[int, float] = {}
        self.rss = self.largest = 0

    def watch(self) -> None:
        while not self.done.wait(EVERY_S):
            try:
                members = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            held = []
            for member in members:
                try:
                    with member.oneshot():
                        held.append(member.memory_info().rss)
                        times = member.cpu_times()
                        self.cpu_s[member.pid] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue
            self.rss = max(self.rss, sum(held))
            self.largest = max(self.largest, max(held, default=0))
