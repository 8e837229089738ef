"""Loops over pixels, compiled to machine code on first use.

A compiled loop adds in the order it is written, so that a pixel's value does not depend on where a crop begins, on
the processor, or on how many run: no fused or reordered arithmetic is allowed.

The machine code that is kept is made anew when the file of its loop changes, not when a loop in another file does that
it calls: loops call loops of their own file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compile a function on its first call and keep the machine code for the next process.

    The interpreter's lock is released while it runs. Where no cache folder can be written, each process compiles anew.
    """
    try:
        done: Loop = numba.njit(cache=True, nogil=True, fastmath=False)(loop)
    except RuntimeError:
        done = numba.njit(nogil=True, fastmath=False)(loop)
    return done
