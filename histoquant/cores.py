"""How many cores there are to work with."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_threads() -> int:
    """Return how many threads one process may use: all cores, or what OMP_NUM_THREADS says.

    Worker processes are started with OMP_NUM_THREADS=1 by dask: workers and threads together never ask for more cores
    than there are.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(stated), available_cores()) if stated.isdigit() and int(stated) > 0 else available_cores()
