"""Loops over pixels, compiled to machine code on first use.

A compiled loop adds in the order it is written, so that a pixel's value does not depend on where a crop begins, on
the processor, or on how many run: no fused or reordered arithmetic is allowed.

The machine code that is kept is made anew when the file of its loop changes, not when a loop in another file does that
it calls: loops call loops of their own file only.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compile a function on its first call and keep the machine code for the next process.

    The interpreter's lock is released while it runs. Where no cache folder can be written, each process compiles anew.
    """
    return cast(Loop, _Uncalled(loop))


class _Uncalled:
    """A loop that was not called yet: numba takes a third of a second to load, which most commands have no use for."""

    _one_at_a_time = threading.Lock()

    def __init__(self, loop: Callable[..., object]) -> None:
        functools.update_wrapper(self, loop)
        self._loop = loop
        self._compiled: Callable[..., object] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        if self._compiled is None:
            self._prepare()
            assert self._compiled is not None
        return self._compiled(*args, **kwargs)

    def _prepare(self) -> None:
        """Put numba's functions in the places of all loops of the file, where those find each other."""
        names = self._loop.__globals__
        with self._one_at_a_time:
            if self._compiled is not None:
                return
            loops = {name: value for name, value in names.items() if isinstance(value, _Uncalled)}
            mine = {name: value for name, value in loops.items() if value._loop.__globals__ is names}
            made = {value: _by_numba(value._loop) for value in {*mine.values(), self}}
            # At once: another thread must not compile a loop that calls one which is not in its place yet.
            names.update({name: made[value] for name, value in mine.items()})
            for value, done in made.items():
                value._compiled = done


def _by_numba(loop: Callable[..., object]) -> Callable[..., object]:
    import numba

    try:
        done: Callable[..., object] = numba.njit(cache=True, nogil=True, fastmath=False)(loop)
    except RuntimeError:
        done = numba.njit(nogil=True, fastmath=False)(loop)
    return done
