"""A few threads for work that lets go of the interpreter's lock: decoding, compressing, compiled loops."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from histoquant.cores import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 4
"""Each holds a part of an image in memory, and beyond four the disk, not decoding, sets the pace."""


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` of each item, in the order of the items whatever thread is done first.

    At most one result more than there are threads is under way, so memory does not grow with the number of items.
    What ``work`` raises is raised here, and nothing is begun after it.
    """
    n_threads = min(MOST_THREADS, available_cores())
    if n_threads == 1:
        yield from map(work, items)
        return
    under_way: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > n_threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
