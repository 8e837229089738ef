"""How far cells have come through tissue: the shortest way that does not cross a ventricle, a tear or glass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoquant.model.geometry import Geometry, covers

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_UM = 10.0
"""Grid on which ways are sought: about one cell, well below the 100 um bins that migration is reported in."""


def geodesic_distance_um(
    points_yx_um: NDArray[np.float64],
    origin: Geometry,
    walkable: Geometry,
    *,
    slide_um: tuple[float, float],
    step_um: float = STEP_UM,
) -> NDArray[np.float64]:
    """Return the length of the shortest way from an outline to each point.

    A way over a grid is up to 8 % longer than the true one, depending on its direction. So the straight distance is
    taken, times how much longer the way becomes on the same grid by going round obstacles: exact where there are none.

    Parameters
    ----------
    points_yx_um : (n, 2) float64
    origin : polygon or line, (x, y) in um
        Where cells come from. Points in it are at 0.
    walkable : polygon, (x, y) in um
        Ground that ways may cross.
    slide_um : (height, width)

    Returns
    -------
    (n,) float64, NaN for points that no way leads to
    """
    import shapely
    from skimage.graph import MCP_Geometric

    shape = tuple(max(1, int(np.ceil(extent / step_um))) for extent in slide_um)
    rows, columns = np.indices(shape)
    centres = (np.stack([rows.ravel(), columns.ravel()], axis=1) + 0.5) * step_um
    open_ground = covers(walkable, centres).reshape(shape)
    shapely.prepare(origin)
    near = shapely.dwithin(shapely.points(centres[:, ::-1]), origin, 0.75 * step_um).reshape(shape)
    straight = np.asarray(shapely.distance(shapely.points(points_yx_um[:, ::-1]), origin), dtype=np.float64)
    starts = np.argwhere(near & open_ground)
    if not len(starts) or not len(points_yx_um):
        return np.where(straight == 0, 0.0, np.nan)
    round_obstacles, _ = MCP_Geometric(np.where(open_ground, 1.0, np.inf)).find_costs(starts)
    as_the_crow_flies, _ = MCP_Geometric(np.ones(shape)).find_costs(starts)
    y, x = (np.clip((points_yx_um[:, axis] / step_um).astype(np.int64), 0, shape[axis] - 1) for axis in (0, 1))
    longer, plain = round_obstacles[y, x], as_the_crow_flies[y, x]
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(plain > 0, longer / plain, np.where(np.isfinite(longer), 1.0, np.inf))
    way = np.where(np.isfinite(factor), straight * np.maximum(factor, 1.0), np.nan)
    return np.where(straight == 0, 0.0, way)
