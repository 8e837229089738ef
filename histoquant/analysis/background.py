"""Slide-wide background and intensity range: estimated once per slide, never per tile.

The slide is looked at as a whole, shrunk by block means to about 2 um per pixel. A low percentile in windows
much larger than a nucleus gives a coarse grid; between its nodes the background is interpolated from the
absolute position of a pixel, so that it is the same number whichever tile the pixel is read in.

Pixels that are not finite are left out of every estimate here; where a window or a channel has none that is
finite, its background is the channel's lowest known one, or 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.errors import InputError
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box
from histoquant.threads import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Enough pixels to know a channel's noise and range to a fraction of a percent, and few enough for a second.
MAX_SAMPLED_PIXELS = 2_000_000
# A slide is never stretched so far that its own noise would span more than this part of the range.
MIN_RANGE_IN_NOISE = 10.0
SMOOTH_UM = 5.0  # standard deviation
GLASS_RADIUS_UM = 100.0
SPECK_UM = 100.0
# Share of the variance that two populations explain; one normal population gives 0.64, a uniform one 0.75.
TWO_POPULATIONS = 0.76


@dataclass(frozen=True, eq=False)
class Background:
    """The background of a slide and the range of intensities above it.

    Attributes
    ----------
    grid : (c, gy, gx) float32
        Background in intensity units of the slide. Node (i, j) lies at pixel coordinates
        ``((i + 0.5) * step_px, (j + 0.5) * step_px)``, where pixel (0, 0) covers 0 to 1.
    step_px : float
        Distance of two nodes in full-resolution pixels.
    scale : (c,) float32
        Range of each channel: what typical stained pixels are above the background. Greater than 0.
    noise : (c,) float32
        Standard deviation of background pixels as the survey saw them, i.e. after its block mean.
    """

    grid: NDArray[np.float32]
    step_px: float
    scale: NDArray[np.float32]
    noise: NDArray[np.float32]

    def at(self, box: Box, channel: int) -> NDArray[np.float32]:
        """Return the background of one channel in a box of full-resolution pixels.

        The value at a pixel depends on the pixel's absolute position only, to the last bit.

        Returns
        -------
        (h, w) float32, intensity units of the slide
        """
        top, y_weight = self._nodes(np.arange(box.y0, box.y1), self.grid.shape[1])
        left, x_weight = self._nodes(np.arange(box.x0, box.x1), self.grid.shape[2])
        right = np.minimum(left + 1, self.grid.shape[2] - 1)
        first, last = (int(top[0]), int(top[-1])) if len(top) else (0, 0)
        nodes = self.grid[channel, first : last + 2].astype(np.float64)
        # Along x once per row of nodes, along y once per pixel.
        rows = nodes[:, left] * (1 - x_weight) + nodes[:, right] * x_weight
        return _mixed(rows, top - first, y_weight)

    def at_points(self, y: NDArray[np.integer], x: NDArray[np.integer], channel: int) -> NDArray[np.float32]:
        """Return the background of one channel at some pixels: what `at` gives there, to the last bit.

        Parameters
        ----------
        y, x : (n,) int
            Full-resolution pixels of the slide.

        Returns
        -------
        (n,) float32, intensity units of the slide
        """
        grid = self.grid[channel].astype(np.float64)
        top, y_weight = self._nodes(y, grid.shape[0])
        left, x_weight = self._nodes(x, grid.shape[1])
        bottom, right = (np.minimum(i + 1, n - 1) for i, n in zip((top, left), grid.shape, strict=True))
        above = grid[top, left] * (1 - x_weight) + grid[top, right] * x_weight
        below = grid[bottom, left] * (1 - x_weight) + grid[bottom, right] * x_weight
        return np.asarray(above * (1 - y_weight) + below * y_weight, dtype=np.float32)

    def _nodes(self, pixels: NDArray[np.integer], n_nodes: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the node before each pixel and the weight of the next."""
        position = np.clip((pixels + 0.5) / self.step_px - 0.5, 0, n_nodes - 1)
        before = np.floor(position).astype(np.intp)
        return before, position - before


@compiled
def _mixed(rows: NDArray[np.float64], top: NDArray[np.intp], weight: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return rows interpolated between ``rows[top]`` and the next ones."""
    result = np.empty((len(top), rows.shape[1]), dtype=np.float32)
    for i in range(len(top)):
        above, below, w, out = rows[top[i]], rows[min(top[i] + 1, len(rows) - 1)], weight[i], result[i]
        for x in range(rows.shape[1]):
            out[x] = above[x] * (1 - w) + below[x] * w
    return result


def estimate(
    coarse: NDArray[np.floating[Any]],
    coarse_px: float,
    *,
    pixel_size_um: float,
    settings: BackgroundSettings,
    tissue: NDArray[np.bool_] | None = None,
) -> Background:
    """Estimate the background of a slide.

    In windows that overlap by half, a low percentile of the pixels is read; bumps narrower than three nodes
    (a dense clump that fills a window) are opened away. A low percentile lies below the middle of the
    background by an amount that depends on the noise, so the whole grid is then shifted to the most frequent
    residual (half-sample mode, Robertson & Cryer 1974), which is that of the background pixels.

    Parameters
    ----------
    coarse : (c, y, x) float
        The whole slide, shrunk by block means to about 2 um per pixel, or as it is when it is small. Pixels
        that are not finite are ignored.
    coarse_px : float
        Full-resolution pixels that one pixel of ``coarse`` spans along an edge.
    pixel_size_um : float
        Side of a full-resolution pixel in um.
    settings : BackgroundSettings
    tissue : (y, x) bool, optional
        Where there is tissue, at the resolution of ``coarse``. The background of windows that show both is
        then read from the tissue, which is hazier than glass.

    Raises
    ------
    InputError
        If ``coarse`` is not (c, y, x), holds no pixel, or a size is not positive.
    """
    if coarse.ndim != 3 or 0 in coarse.shape:
        raise InputError(f"A survey of shape {coarse.shape} is not (c, y, x).", "Give at least one pixel.")
    if not (coarse_px > 0 and pixel_size_um > 0):
        raise InputError(f"Pixel sizes {coarse_px} px and {pixel_size_um} um must be positive.")
    step_coarse = max(1, round(settings.window_um / (2 * coarse_px * pixel_size_um)))
    step_px = step_coarse * float(coarse_px)
    pixels = np.where(np.isfinite(coarse), coarse, np.nan).astype(np.float32)
    whole = Box(0, coarse.shape[1], 0, coarse.shape[2])

    def of_channel(channel: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
        grid = _smooth(_window_percentiles(channel, step_coarse, settings.percentile, tissue))
        residual = _sampled(channel - Background(grid[np.newaxis], step_coarse, grid, grid).at(whole, 0))
        middle, noise = _mode_and_noise(residual)
        return grid + np.float32(middle), _range(residual - middle, noise), noise

    grids, scales, noises = zip(*in_order(of_channel, pixels), strict=True)
    return Background(
        np.stack(grids).astype(np.float32),
        step_px,
        np.asarray(scales, dtype=np.float32),
        np.asarray(noises, dtype=np.float32),
    )


def _window_percentiles(
    channel: NDArray[np.float32], step: int, percentile: float, tissue: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Return the percentile of the finite pixels in windows of 2 x 2 steps, centred on the nodes of the grid.

    Windows that would leave the image are moved inside, so that all see an equal area.
    """
    height, width = channel.shape
    n_y, n_x = math.ceil(height / step), math.ceil(width / step)
    side_y, side_x = min(2 * step, height), min(2 * step, width)
    starts_x = np.clip((np.arange(n_x) * step - step // 2), 0, width - side_x)
    columns = starts_x[:, np.newaxis] + np.arange(side_x)
    grid = np.empty((n_y, n_x), dtype=np.float32)
    for i in range(n_y):
        start = min(max(i * step - step // 2, 0), height - side_y)
        rows = channel[start : start + side_y]
        windows = rows[:, columns].transpose(1, 0, 2).reshape(n_x, -1)
        if tissue is not None:
            inside = tissue[start : start + side_y][:, columns].transpose(1, 0, 2).reshape(n_x, -1)
            enough = inside.mean(axis=1) >= 0.1
            windows = np.where(inside | ~enough[:, np.newaxis], windows, np.nan)
        grid[i] = _row_percentiles(windows, percentile)
    known = np.isfinite(grid)
    grid[~known] = grid[known].min() if known.any() else 0
    return grid


def _row_percentiles(windows: NDArray[np.float32], percentile: float) -> NDArray[np.float32]:
    """Return the percentile of the values of each row that are not nan; nan for a row without any."""
    ordered = np.sort(windows, axis=1)  # nan goes last
    n_known = np.isfinite(windows).sum(axis=1)
    index = np.floor(np.maximum(n_known - 1, 0) * (percentile / 100)).astype(np.intp)
    ranked: NDArray[np.float32] = ordered[np.arange(len(windows)), index]
    return ranked


def _smooth(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy import ndimage

    opened = ndimage.grey_opening(grid, size=(3, 3), mode="nearest")
    for axis in (0, 1):
        opened = ndimage.correlate1d(opened, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return np.asarray(opened, dtype=np.float32)


def _sampled(residual: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the finite pixels, evenly thinned when there are very many."""
    known = residual[np.isfinite(residual)]
    return known[:: max(1, len(known) // MAX_SAMPLED_PIXELS)].astype(np.float64)


def _mode_and_noise(residual: NDArray[np.float64]) -> tuple[float, float]:
    """Return the most frequent residual and the standard deviation of the pixels below it.

    Nothing but background lies below the mode of the background, so that side shows its noise undisturbed.
    The 68.27th percentile of a half-normal is its sigma; unlike the median it is not 0 for noise of one grey
    level.
    """
    if not len(residual):
        return 0.0, 0.0
    ordered = np.sort(residual)
    part = ordered
    while len(part) > 3:
        half = (len(part) + 1) // 2
        first = int(np.argmin(part[half - 1 :] - part[: len(part) - half + 1]))
        part = part[first : first + half]
    mode = float(part.mean())
    return mode, float(np.percentile(mode - ordered[ordered <= mode], 68.27)) if ordered[0] <= mode else 0.0


def _range(above: NDArray[np.float64], noise: float) -> float:
    """Return what stained pixels typically are above the background.

    The median of the pixels that stand out of the noise, each weighed by the root of its height: between all alike,
    where wide faint haze would decide, and by height, where a little bright debris would. 1 when nothing stands out
    of a noiseless channel.
    """
    stained = np.sort(above[above > max(5 * noise, 1e-6 * float(above.max(initial=0)))])
    floor = MIN_RANGE_IN_NOISE * noise
    if not len(stained):
        return floor or 1.0
    weight = np.sqrt(stained).cumsum()
    return max(float(stained[np.searchsorted(weight, weight[-1] / 2)]), floor)


def find_tissue(coarse: NDArray[np.floating[Any]], coarse_um: float) -> NDArray[np.bool_]:
    """Tell tissue from the empty glass around it.

    The brightest channel, smoothed over a few cells, is split in two on a logarithmic scale (Otsu 1979), so
    that pale neuropil stays with bright cell layers; the lower part is split once more when it holds two
    populations itself. Only bare ground at least 200 um across is taken for glass: a gap between cells is
    not.

    Parameters
    ----------
    coarse : (c, y, x) float
        The whole slide at about 2 um per pixel. Pixels that are not finite are ignored and count as what
        surrounds them.
    coarse_um : float
        Side of a pixel of ``coarse`` in um.

    Returns
    -------
    (y, x) bool, True = tissue
        All True where there is no clear contrast: a field of view full of cells, an empty or uniform slide.

    Raises
    ------
    InputError
        If ``coarse`` is not (c, y, x) or holds no pixel.
    """
    from scipy import ndimage

    if coarse.ndim != 3 or 0 in coarse.shape:
        raise InputError(f"A survey of shape {coarse.shape} is not (c, y, x).", "Give at least one pixel.")
    shape = coarse.shape[1:]
    everywhere = np.ones(shape, dtype=bool)
    level = _stood_out(coarse[0], SMOOTH_UM / coarse_um)
    for channel in coarse[1:]:
        np.maximum(level, _stood_out(channel, SMOOTH_UM / coarse_um), out=level)
    level += 2  # 2 % of the range: less is the skirt of blur around the tissue
    np.log(level, out=level)
    threshold = _glass_threshold(level)
    if threshold is None:
        return everywhere
    glass = level < threshold
    # Wide enough to hold a disc; the image's rim is no border of the glass. A distance map costs the same for
    # any radius, which opening with a disc does not.
    reach = GLASS_RADIUS_UM / coarse_um
    margin = math.ceil(reach) + 1
    padded = np.pad(glass, margin, mode="edge")
    inner = ndimage.distance_transform_edt(padded) >= reach
    if padded.all() or not inner.any():
        return everywhere
    glass &= (ndimage.distance_transform_edt(~inner) < reach)[margin:-margin, margin:-margin]
    speck_px = (SPECK_UM / coarse_um) ** 2
    tissue = _without_small(~glass, speck_px)
    return ~_without_small(~tissue, speck_px) if tissue.any() else everywhere


def outline(mask: NDArray[np.bool_], coarse_um: float) -> Any:
    """Return the outline of a mask, straightened to within a pixel.

    Parameters
    ----------
    mask : (y, x) bool
    coarse_um : float
        Side of a pixel of the mask in um.

    Returns
    -------
    shapely geometry in um, (x, y)
        Valid; empty for an empty mask. Exactly a rectangle for a full one.
    """
    import shapely

    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, left = np.nonzero(edges == 1)
    right = np.nonzero(edges == -1)[1]
    runs = shapely.box(left * coarse_um, row * coarse_um, right * coarse_um, (row + 1) * coarse_um)
    exact = shapely.union_all(runs)
    simple = shapely.simplify(exact, coarse_um, preserve_topology=True)
    return simple if simple.is_valid else exact


def _stood_out(channel: NDArray[np.floating[Any]], sigma: float) -> NDArray[np.float64]:
    """Return a channel smoothed, above its darkest part and in units of its smallest telling difference."""
    from scipy import ndimage

    known = np.isfinite(channel)
    if not known.any():
        return np.zeros(channel.shape)
    whole = bool(known.all())
    # Where all is known, the weight is that of a single pixel everywhere.
    weight = ndimage.gaussian_filter(
        known[:1, :1].astype(float) if whole else known.astype(float), sigma, mode="nearest"
    )
    smooth = np.where(known, channel, 0).astype(np.float64)
    for axis in (0, 1):  # as gaussian_filter does, without a copy of the slide for each axis
        ndimage.gaussian_filter1d(smooth, sigma, axis=axis, mode="nearest", output=smooth)
    smooth /= np.maximum(weight, 1e-3)
    if not whole:
        smooth[weight <= 1e-3] = np.nan
    dark, bright = np.percentile(smooth if whole else smooth[np.isfinite(smooth)], [1, 99.9])
    # Below a hundredth of the channel's range nothing can be told from shading and camera noise.
    unit = (bright - dark) / 100
    if unit <= 1e-6 * abs(bright):
        return np.zeros(channel.shape)
    smooth -= dark
    np.maximum(smooth, 0, out=smooth)
    smooth /= unit
    return np.nan_to_num(smooth, copy=False, nan=0.0)


def _glass_threshold(values: NDArray[np.float64]) -> float | None:
    """Return the value between glass and tissue, or None when there are no two populations."""
    from skimage.filters import threshold_otsu

    found = None
    part = values.ravel()
    for _ in range(2):
        if not len(part) or part.min() == part.max():
            break
        threshold = float(threshold_otsu(part))
        low, high = part[part <= threshold], part[part > threshold]
        if not len(low) or not len(high):
            break
        between = len(low) * len(high) / len(part) ** 2 * (high.mean() - low.mean()) ** 2
        if between < TWO_POPULATIONS * part.var() or high.mean() - low.mean() < math.log(2):
            break
        found, part = threshold, low
    return found


def _without_small(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= min_px
    large[0] = False
    kept: NDArray[np.bool_] = large[labels]
    return kept
