"""What a run spent its time and memory on, added up while it goes on: small however large the study is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from histoquant.cluster.child import Answer


@dataclass
class Spent:
    """What pieces of work of one kind took together.

    Attributes
    ----------
    n : int
    seconds, longest_s : float
        Of all, and of the longest.
    peak_bytes : int
        The most memory that the process of any of them was seen to take.
    """

    n: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    peak_bytes: int = 0

    def add(self, answer: Answer) -> None:
        """Count one more piece."""
        self.n += 1
        self.seconds += answer.seconds
        self.longest_s = max(self.longest_s, answer.seconds)
        self.peak_bytes = max(self.peak_bytes, answer.peak_bytes)


class Performance:
    """Pieces of work by slide and stage, and by the machine that did them. Threads may add at once."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str, str], Spent] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, slide: str, answer: Answer) -> None:
        """Count a finished piece of work."""
        with self._lock:
            for key in (("slide", slide, stage), ("worker", answer.where, stage)):
                self._spent.setdefault(key, Spent()).add(answer)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each slide and stage, then for each worker and stage: for ``performance.csv``."""
        with self._lock:
            held = sorted(self._spent.items())
        for (kind, name, stage), spent in held:
            yield {
                "kind": kind,
                "name": name,
                "stage": stage,
                "n": spent.n,
                "seconds": round(spent.seconds, 2),
                "longest_s": round(spent.longest_s, 2),
                "peak_mb": spent.peak_bytes // 1_000_000,
            }
