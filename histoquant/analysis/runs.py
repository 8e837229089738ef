"""Objects as runs: stretches of pixels of one object in one row, in a fiftieth of the room of a label image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.model.slide import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of objects, in raster order.

    Attributes
    ----------
    row : (n,) unsigned integer
        Row of the slide.
    first : (n,) unsigned integer
        Column of the slide where the run begins.
    length : (n,) unsigned integer
        Pixels.
    label : (n,) unsigned integer
        Number of the object, > 0.
    """

    row: NDArray[Any]
    first: NDArray[Any]
    length: NDArray[Any]
    label: NDArray[Any]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the runs as arrays of the smallest type that holds them; `Runs` takes them back."""
        return {name: column.astype(np.min_scalar_type(column.max(initial=0))) for name, column in vars(self).items()}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(column.name for column in fields(cls))


def runs_of(labels: NDArray[np.uint32], kept: NDArray[np.bool_], box: Box) -> Runs:
    """Return some objects of a label image as runs.

    Parameters
    ----------
    labels : (y, x) uint32, 0 = background
    kept : (labels.max() + 1,) bool
        Which objects; ``kept[0]`` must be False.
    box : Box
        Where the image lies on the slide.
    """
    labels = np.ascontiguousarray(labels)
    found = np.empty((4, _count(labels, kept)), dtype=np.uint32)
    _fill(labels, kept, box.y0, box.x0, found)
    return Runs(*found)


def paint(runs: Runs, cells: NDArray[np.uint32], image: NDArray[np.uint32], top: int) -> None:
    """Paint runs into rows of a slide, where no object lies yet.

    Parameters
    ----------
    cells : (runs.label.max() + 1,) uint32
        What to paint for each label; 0 = nothing.
    image : (y, x) uint32, 0 = background
        Whole rows of the slide, changed in place.
    top : int
        Row of the slide that is the first of ``image``.
    """
    within = slice(*np.searchsorted(runs.row, (top, top + len(image))))
    row, first, length, label = (getattr(runs, name)[within].astype(np.int64) for name in Runs.names())
    _paint(row - top, first, length, cells[label], image)


@compiled
def _count(labels: NDArray[np.uint32], kept: NDArray[np.bool_]) -> int:
    n = 0
    for y in range(labels.shape[0]):
        last = np.uint32(0)
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label != last:
                if kept[label]:
                    n += 1
                last = label
    return n


@compiled
def _fill(labels: NDArray[np.uint32], kept: NDArray[np.bool_], y0: int, x0: int, found: NDArray[np.uint32]) -> None:
    n = 0
    for y in range(labels.shape[0]):
        last = np.uint32(0)
        start = 0
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label == last:
                continue
            if kept[last]:
                found[2, n - 1] = x - start
            if kept[label]:
                found[0, n] = y0 + y
                found[1, n] = x0 + x
                found[3, n] = label
                start = x
                n += 1
            last = label
        if kept[last]:
            found[2, n - 1] = labels.shape[1] - start


@compiled
def _paint(
    row: NDArray[np.int64],
    first: NDArray[np.int64],
    length: NDArray[np.int64],
    cell: NDArray[np.uint32],
    image: NDArray[np.uint32],
) -> None:
    for i in range(len(row)):
        for x in range(first[i], first[i] + length[i]):
            if image[row[i], x] == 0:
                image[row[i], x] = cell[i]
