"""Loops over pixels before and after their first call."""

import subprocess
import sys
import threading

import numpy as np

from histoquant.analysis.compiled import compiled


@compiled
def _double(value):
    return 2 * value


@compiled
def _doubled_sum(values):
    total = 0.0
    for value in values:
        total += _double(value)
    return total


def test_a_loop_finds_those_it_calls_whoever_calls_first():
    kept, told = _doubled_sum, []
    together = threading.Barrier(4)

    def call():
        together.wait()
        told.append((_doubled_sum(np.arange(5.0)), kept(np.arange(5.0))))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [(20.0, 20.0)] * 4
    assert _double(3) == 6
    assert kept is not _doubled_sum  # numba's function has taken its place
    assert _doubled_sum.py_func.__name__ == kept.__name__ == "_doubled_sum"


def test_numba_is_loaded_by_the_first_call_and_not_before():
    script = """
import sys
import numpy as np
import histoquant.batch
from histoquant.analysis.runs import _count
print("numba" in sys.modules)
assert _count(np.eye(9, dtype=np.uint32), np.array([False, True])) == 9
print("numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
