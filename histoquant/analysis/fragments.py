"""Pieces of one nucleus that fell apart (karyorrhexis) become one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


def group(
    cells: pd.DataFrame, pieces: NDArray[np.bool_], *, alone: NDArray[np.bool_], link_px: float
) -> NDArray[np.intp]:
    """Return for each row the number of the cell it belongs to, counted from 0 in the order of first rows.

    Parameters
    ----------
    cells : DataFrame
        With ``y_px``, ``x_px``.
    pieces : (n,) bool
        Rows that may be pieces; all others are cells of their own.
    alone : (n,) bool
        Pieces that are no cell unless others belong to them; their number is -1.
    link_px : float
        Pieces whose centroids are nearer than this belong together.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    first = np.arange(len(cells))
    rows = np.flatnonzero(pieces)
    if len(rows) > 1:
        centres = cells[["y_px", "x_px"]].to_numpy(dtype=float)[rows]
        pairs = KDTree(centres).query_pairs(link_px, output_type="ndarray")
        links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
        n, member = connected_components(links, directed=False)
        earliest = np.full(n, len(cells))
        np.minimum.at(earliest, member, rows)
        first[rows] = earliest[member]
    members = np.bincount(first, minlength=len(cells))
    real = ~(alone & (members[first] == 1))
    order = np.full(len(cells), -1)
    order[real] = np.unique(first[real], return_inverse=True)[1]
    return order


def merge(cells: pd.DataFrame, order: NDArray[np.intp]) -> pd.DataFrame:
    """Return one row per cell, with ``n_pieces``.

    Areas of pieces add up; everything else is their mean, weighted by area.

    Parameters
    ----------
    order : (n,) int
        As `group` returns it; rows of number -1 are left out.
    """
    import pandas as pd

    cells, order = cells[order >= 0], order[order >= 0]
    n_pieces = np.bincount(order)
    alone = n_pieces[order] == 1
    joined = cells[alone].assign(order=order[alone], n_pieces=1)
    if not alone.all():
        pieces, owner = cells[~alone], order[~alone]
        by_owner = np.argsort(owner, kind="stable")
        pieces, owner = pieces.iloc[by_owner], owner[by_owner]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        area = pieces["area_px"].to_numpy(dtype=float)
        total = np.add.reduceat(area, starts)
        means = {
            name: np.add.reduceat(pieces[name].to_numpy(dtype=float) * area, starts) / total for name in cells.columns
        }
        whole = pd.DataFrame(means).assign(order=owner[starts], n_pieces=n_pieces[owner[starts]])
        whole["area_px"] = pd.Series(total).astype(cells["area_px"].dtype)
        joined = pd.concat([joined, whole])
    in_order: pd.DataFrame = joined.sort_values("order", ignore_index=True)
    return in_order.drop(columns="order")
