"""Where work runs: in this process, on processes of this machine, or on a cluster. Only this package knows dask.

Whatever runs it, a piece of work is done by a child process that may crash, hang or run over without taking anything
else along, and what it makes is in the run folder before anybody hears of it.
"""

from histoquant.cluster.child import keep_heap, trim_heap
from histoquant.cluster.local import (
    PLAIN,
    Inline,
    Limits,
    Piece,
    Processes,
    Threads,
    Workers,
    available_memory,
    workers,
)

__all__ = [
    "PLAIN",
    "Inline",
    "Limits",
    "Piece",
    "Processes",
    "Threads",
    "Workers",
    "available_memory",
    "keep_heap",
    "trim_heap",
    "workers",
]
