"""The worker processes of one machine: whichever is idle takes the next piece of work."""

from __future__ import annotations

import queue
import threading

from histoquant.cluster.child import Answer, Child


class Pool:
    """Worker processes that share the memory of one machine.

    Parameters
    ----------
    number : int
        Processes.
    memory_bytes : int
        Shared evenly; a process that takes more than its share is ended.
    """

    def __init__(self, number: int, memory_bytes: int) -> None:
        self.number, self.memory_bytes = number, memory_bytes
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._all = [Child() for _ in range(number)]
        for child in self._all:
            child.start()  # they load their libraries while this process goes on
            self._idle.put(child)

    @property
    def share_bytes(self) -> int:
        """Memory one process may take."""
        return max(0, self.memory_bytes) // self.number

    def keep(self, number: int) -> None:
        """Go on with fewer processes, each with a larger share. Only while none is busy."""
        for _ in range(self.number - number):
            self._idle.get().end()
        self.number = min(self.number, number)

    def ask(self, call: bytes, limit_s: float | None, *, alone: bool = False) -> Answer:
        """Have a call made by whichever process is idle; raises as `Child.ask` does.

        Parameters
        ----------
        alone : bool
            With nothing beside it on this machine, and the memory of all: for a piece whose process died, which may
            have been for what others took.
        """
        if alone:
            with self._gate:  # nobody else takes a process until this one has them all and is done
                taken = [self._idle.get() for _ in range(self.number)]
                try:
                    return taken[0].ask(call, limit_s, self.memory_bytes)
                finally:
                    for child in taken:
                        self._idle.put(child)
        with self._gate:
            child = self._idle.get()
        try:
            return child.ask(call, limit_s, self.share_bytes)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End all processes at once; what they were doing is lost."""
        for child in self._all:
            child.end()
