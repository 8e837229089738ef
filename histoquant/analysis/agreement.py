"""Detections against truth: label images matched by overlap, points matched by distance.

Notation: a predicted and a true object may be matched when their intersection over union, IoU = |P & T| / |P
| T|, is at least a threshold; each object takes part in at most one match. TP, FP and FN are matched pairs,
predictions without a partner and true objects without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

TOLERANCE_UM = 4.0
"""Half a rodent neuron's nucleus: a point further off lies outside the nucleus it would be credited with."""

METRICS = ("precision", "recall", "f1", "ap", "segmentation_quality", "panoptic_quality")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


@dataclass(frozen=True)
class Score:
    """How well predicted objects match true ones at one threshold.

    A ratio with nothing below the line is nan: precision without predictions, recall without true objects,
    and ``f1``, ``ap`` and ``panoptic_quality`` when an image holds neither. Means over images leave nan out,
    so an empty image that was rightly found empty neither helps nor harms; any object invented there gives
    ``f1 = 0``.

    Attributes
    ----------
    iou : float
        Smallest intersection over union of a match.
    n_pred, n_true : int
        Objects predicted and objects in the truth.
    tp : int
        Matched pairs.
    iou_sum : float
        Sum of the IoU of the matched pairs.
    """

    iou: float
    n_pred: int
    n_true: int
    tp: int
    iou_sum: float

    @property
    def fp(self) -> int:
        """Predictions without a partner."""
        return self.n_pred - self.tp

    @property
    def fn(self) -> int:
        """True objects without a partner."""
        return self.n_true - self.tp

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return _ratio(self.tp, self.n_pred)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return _ratio(self.tp, self.n_true)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, self.n_pred + self.n_true)

    @property
    def ap(self) -> float:
        """TP / (TP + FP + FN), called average precision in the 2018 Data Science Bowl and StarDist."""
        return _ratio(self.tp, self.n_pred + self.n_true - self.tp)

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the matched pairs."""
        return _ratio(self.iou_sum, self.tp)

    @property
    def panoptic_quality(self) -> float:
        """Sum of matched IoU / (TP + FP/2 + FN/2), i.e. segmentation quality x F1 (Kirillov 2019)."""
        return _ratio(2 * self.iou_sum, self.n_pred + self.n_true)

    def as_dict(self) -> dict[str, float]:
        """Return counts and ratios by name, for a table or JSON."""
        counts = {name: getattr(self, name) for name in ("iou", "n_pred", "n_true", "tp", "fp", "fn")}
        return counts | {name: getattr(self, name) for name in METRICS}


@dataclass(frozen=True)
class PooledScore:
    """Scores of several images together.

    Attributes
    ----------
    pooled : Score
        Counts summed over all objects of all images: a crowded image weighs more.
    mean : mapping of str to float
        Mean over images of each of `METRICS`: each image weighs the same. Images where a ratio is nan are
        left out; nan when that leaves none.
    n_images : int
        Images put together.
    """

    pooled: Score
    mean: Mapping[str, float]
    n_images: int


@dataclass(frozen=True, eq=False)
class PointMatch:
    """One-to-one matching of found and true points.

    Attributes
    ----------
    n_found, n_true : int
        Points on either side.
    pairs : (n, 2) int64
        Row of the found and row of the true point of each match, in order of the found row.
    distance_um : (n,) float64
        Distance of each match.
    """

    n_found: int
    n_true: int
    pairs: NDArray[np.int64]
    distance_um: NDArray[np.float64]

    @property
    def tp(self) -> int:
        """Matched pairs."""
        return len(self.pairs)

    @property
    def precision(self) -> float:
        """Matched / found; nan when nothing was found."""
        return _ratio(self.tp, self.n_found)

    @property
    def recall(self) -> float:
        """Matched / true; nan when there is nothing to find."""
        return _ratio(self.tp, self.n_true)

    @property
    def f1(self) -> float:
        """2 matched / (found + true); nan when both are empty."""
        return _ratio(2 * self.tp, self.n_found + self.n_true)


def score_labels(labels: ArrayLike, truth: ArrayLike, *, iou: Sequence[float] = (0.5,)) -> tuple[Score, ...]:
    """Score a label image against the truth.

    Above an IoU of 0.5 an object can have one partner only; at and below it the assignment with most matches
    is taken and, among those, the one with the largest sum of IoU.

    Parameters
    ----------
    labels, truth : (..., y, x) unsigned or signed integers of equal shape, 0 = background
        Ids need not be consecutive and need not agree.
    iou : sequence of float, each in (0, 1]
        A match needs an IoU of at least this much.

    Returns
    -------
    tuple of Score, one per threshold

    Raises
    ------
    InputError
        If the shapes differ, an image is not of integers or has negative ids, or a threshold is out of range.

    Examples
    --------
    >>> truth = np.array([[1, 1, 0, 2, 2]])
    >>> labels = np.array([[7, 7, 0, 0, 9]])
    >>> [score] = score_labels(labels, truth, iou=(0.6,))
    >>> score.tp, score.fp, score.fn, score.f1
    (1, 1, 1, 0.5)
    """
    if any(not 0 < threshold <= 1 for threshold in iou):
        raise InputError(f"IoU thresholds {tuple(iou)} are not all in (0, 1].", "Give for instance 0.5.")
    n_pred, n_true, row, column, overlap = _overlaps(_checked(labels, "labels"), _checked(truth, "truth"))
    scores = []
    for threshold in iou:
        near = overlap >= threshold
        chosen = _assign(row[near], column[near], 1 - overlap[near])
        scores.append(Score(float(threshold), n_pred, n_true, len(chosen), float(overlap[near][chosen].sum())))
    return tuple(scores)


def pool(scores: Iterable[Score]) -> PooledScore:
    """Put the scores of several images at one threshold together.

    Raises
    ------
    InputError
        If there are none, or they are of different thresholds.
    """
    scores = list(scores)
    if len({score.iou for score in scores}) != 1:
        raise InputError(
            f"Scores of {len({score.iou for score in scores})} IoU thresholds cannot be pooled.",
            "Pool the scores of one threshold at a time, of at least one image.",
        )
    pooled = Score(
        scores[0].iou,
        sum(score.n_pred for score in scores),
        sum(score.n_true for score in scores),
        sum(score.tp for score in scores),
        math.fsum(score.iou_sum for score in scores),
    )
    mean = {}
    for name in METRICS:
        defined = [value for value in (getattr(score, name) for score in scores) if not math.isnan(value)]
        mean[name] = _ratio(math.fsum(defined), len(defined))
    return PooledScore(pooled, mean, len(scores))


def match_points(found_um: ArrayLike, true_um: ArrayLike, *, tolerance_um: float = TOLERANCE_UM) -> PointMatch:
    """Match found points to true ones, one to one.

    The assignment has as many pairs as can be had within the tolerance and, among those, the smallest sum of
    distances.

    Parameters
    ----------
    found_um, true_um : (n, d) float
        Points in um, for instance rows of (y, x). Either may be empty.
    tolerance_um : float
        Largest distance of a pair, inclusive.

    Raises
    ------
    InputError
        If the arrays are not (n, d) with the same d, hold a value that is not finite, or the tolerance is
        negative.

    Examples
    --------
    >>> match = match_points([[0.0, 0.0], [50.0, 0.0]], [[0.0, 3.0]])
    >>> match.pairs.tolist(), match.precision, match.recall
    ([[0, 0]], 0.5, 1.0)
    """
    from scipy.spatial import KDTree

    found, true = np.asarray(found_um, dtype=np.float64), np.asarray(true_um, dtype=np.float64)
    found, true = (points.reshape(0, 2) if points.size == 0 else points for points in (found, true))
    if found.ndim != 2 or true.ndim != 2 or (len(found) and len(true) and found.shape[1] != true.shape[1]):
        raise InputError(
            f"Points of shapes {found.shape} and {true.shape} cannot be matched.",
            "Give rows of (y, x) in um.",
        )
    if not (np.isfinite(found).all() and np.isfinite(true).all()):
        raise InputError("Points to match hold values that are not finite.", "Drop rows without a position.")
    if not tolerance_um >= 0:
        raise InputError(f"A matching tolerance of {tolerance_um} um is not a distance.", "Give 0 um or more.")
    if not (len(found) and len(true)):
        return PointMatch(len(found), len(true), np.empty((0, 2), np.int64), np.empty(0))
    near = KDTree(true).query_ball_point(found, tolerance_um, return_sorted=True)
    row = np.repeat(np.arange(len(found)), [len(columns) for columns in near])
    column = np.concatenate([np.asarray(columns, dtype=np.int64) for columns in near])
    distance = np.sqrt(((found[row] - true[column]) ** 2).sum(axis=1))
    chosen = _assign(row, column, distance / tolerance_um if tolerance_um > 0 else distance)
    chosen = chosen[np.argsort(row[chosen])]
    return PointMatch(len(found), len(true), np.stack([row, column], axis=1)[chosen], distance[chosen])


def _checked(labels: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(labels)
    if array.dtype.kind not in "ui":
        raise InputError(
            f"The {name} image holds {array.dtype} values, not integer ids.",
            "Give a label image of unsigned integers, 0 = background.",
        )
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise InputError(f"The {name} image holds negative ids.", "Ids are 1 or more; 0 is background.")
    return array


def _overlaps(
    labels: NDArray[Any], truth: NDArray[Any]
) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the number of objects on either side, and index, index and IoU of every pair that overlaps."""
    if labels.shape != truth.shape:
        raise InputError(
            f"Labels are {labels.shape} and truth is {truth.shape} pixels.", "Both must show the same image."
        )
    (row, n_pred), (column, n_true) = _ranks(labels), _ranks(truth)
    area_pred = np.bincount(row, minlength=n_pred + 1)
    area_true = np.bincount(column, minlength=n_true + 1)
    both = (row > 0) & (column > 0)
    pair, common = np.unique(row[both] * np.int64(n_true + 1) + column[both], return_counts=True)
    row, column = pair // (n_true + 1), pair % (n_true + 1)
    return n_pred, n_true, row - 1, column - 1, common / (area_pred[row] + area_true[column] - common)


def _ranks(labels: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return every pixel's object as 1..n, with 0 = background, and n."""
    flat = labels.ravel()
    largest = int(flat.max()) if flat.size else 0
    if largest <= 4 * flat.size:
        # A look-up table beats sorting 10^8 pixels, as long as the ids are not scattered over 2^32.
        used = np.zeros(largest + 1, dtype=np.int64)
        used[flat] = 1
        used[0] = 0
        rank = used.cumsum() * used
        return rank[flat], int(used.sum())
    ids, inverse = np.unique(flat, return_inverse=True)
    object_ids = ids > 0
    return (object_ids.cumsum() * object_ids)[inverse], int(object_ids.sum())


def _assign(row: NDArray[Any], column: NDArray[Any], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which candidate pairs to keep: as many as can be, then the smallest sum of costs.

    Costs lie in [0, 1].
    Pairs whose members have no other candidate are taken at once. The rest is a full matching of minimal
    weight in a graph where every object has a stand-in it can be matched to when it finds no partner, and the
    stand-ins of two partners are matched to each other.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if not len(row):
        return np.empty(0, dtype=np.int64)
    alone = (np.bincount(row)[row] == 1) & (np.bincount(column)[column] == 1)
    taken = np.flatnonzero(alone)
    contested = np.flatnonzero(~alone)
    if not len(contested):
        return taken
    rows, i = np.unique(row[contested], return_inverse=True)
    columns, j = np.unique(column[contested], return_inverse=True)
    n, m = len(rows), len(columns)
    # Leaving two objects without a partner must cost more than any rearrangement of the others,
    # whose weights are 1 to 2.
    unmatched = 2.0 * (n + m)
    weight = np.concatenate([1 + cost[contested], np.full(n + m, unmatched), np.ones(len(contested))])
    left = np.concatenate([i, np.arange(n), n + np.arange(m), n + j])
    right = np.concatenate([j, m + np.arange(n), np.arange(m), m + i])
    graph = csr_array((weight, (left, right)), shape=(n + m, n + m))
    partner = np.empty(n + m, dtype=np.int64)
    matched, with_whom = min_weight_full_bipartite_matching(graph)
    partner[matched] = with_whom
    return np.sort(np.concatenate([taken, contested[partner[i] == j]]))
