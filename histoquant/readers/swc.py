"""SWC, the format of traced neurons: one point a line, ``n type x y z radius parent``, here always in um.

Types: 1 soma, 2 axon, 3 basal dendrite, 4 apical dendrite (Cannon et al. 1998, J Neurosci Methods 84:49).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histoquant.analysis.dendrites import Branch
from histoquant.analysis.paths import Points, branch_orders
from histoquant.errors import FormatError

DENDRITE = 3
SOMA = 1


def swc_text(branches: Sequence[Branch], radii_um: Sequence[float]) -> str:
    """Return dendrites as SWC, um. A branch with a parent hangs on the parent's last point.

    Parameters
    ----------
    radii_um : sequence of float
        One per branch; a branch's parent comes before it.
    """
    lines = ["# written by histoquant; all lengths in um", "# n type x y z radius parent"]
    last: list[int] = []
    n = 0
    for branch, radius in zip(branches, radii_um, strict=True):
        before = last[branch.parent] if branch.parent >= 0 else -1
        for z, y, x in branch.path:
            n += 1
            lines.append(f"{n} {DENDRITE} {x:.4f} {y:.4f} {z:.4f} {radius:.4f} {before}")
            before = n
        last.append(n)
    return "\n".join(lines) + "\n"


def read_swc(text: str, file: str) -> tuple[list[Branch], Points | None]:
    """Read the branches of an SWC file and its soma.

    Returns
    -------
    branches : list of Branch
        Stretches between branch points or ends, parents first. Orders are known when there is a soma, else 0.
    soma : (3,) float, um, or None
        Mean of the soma's points.

    Raises
    ------
    FormatError
        If a line is no SWC, a point's parent is not there, or there is no dendrite.
    """
    points: dict[int, tuple[int, Points, int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, kind, parent = int(words[0]), int(float(words[1])), int(words[6])
            x, y, z, _ = (float(word) for word in words[2:6])
        except (ValueError, IndexError) as error:
            raise FormatError(
                f"Trace '{file}', line {number}: '{line.strip():.60}' is no SWC point.",
                "Each line has n, type, x, y, z, radius and parent.",
            ) from error
        if not np.isfinite([x, y, z]).all():
            raise FormatError(f"Trace '{file}', line {number}: a coordinate is not a finite number.", "Mend that line.")
        if name in points:
            raise FormatError(f"Trace '{file}', line {number}: point {name} is there twice.", "Number points once.")
        points[name] = (kind, np.array([z, y, x]), parent)
    lost = [name for name, (_, _, parent) in points.items() if parent >= 0 and parent not in points]
    if lost:
        raise FormatError(f"Trace '{file}': point {lost[0]} hangs on a point that is not there.", "Export it again.")
    soma = [place for kind, place, _ in points.values() if kind == SOMA]
    dendrite = {name: point for name, point in points.items() if point[0] != SOMA}
    children: dict[int, list[int]] = {}
    for name, (_, _, parent) in dendrite.items():
        children.setdefault(parent if parent in dendrite else -1, []).append(name)
    branches = _branches(dendrite, children)
    if not branches:
        raise FormatError(
            f"Trace '{file}': there is no dendrite of two points or more.", "Trace a line, then export it."
        )
    if soma:
        orders = branch_orders([branch.parent for branch in branches])
        branches = [
            Branch(b.path, b.parent, int(order), b.forks, b.name) for b, order in zip(branches, orders, strict=True)
        ]
    return branches, np.mean(soma, axis=0) if soma else None


def _branches(points: dict[int, tuple[int, Points, int]], children: dict[int, list[int]]) -> list[Branch]:
    branches: list[Branch] = []
    waiting: list[tuple[int, int | None, int]] = [(root, None, -1) for root in children.get(-1, [])]
    while waiting:
        name, start, parent = waiting.pop(0)
        line = [] if start is None else [points[start][1]]
        at = name
        while True:
            line.append(points[at][1])
            after = children.get(at, [])
            if len(after) != 1:
                break
            at = after[0]
        number = parent
        if len(line) > 1:
            number = len(branches)
            branches.append(Branch(np.array(line), parent, 0, (start is not None, len(after) > 1), str(number + 1)))
        waiting += [(child, at, number) for child in after]
    return branches
