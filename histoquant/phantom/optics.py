"""From bodies in a section to camera pixels: what a phantom's microscope does.

The pixel in row r covers ``[r, r + 1) * pixel_size``. Pixels are made in fixed blocks of ``BLOCK_PX``, each with
random numbers of its own, so they do not depend on the order or the shape of the boxes asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.stains import HEMATOXYLIN, REFERENCES
from histoquant.model.slide import Box
from histoquant.phantom.bodies import (
    CYTOPLASM,
    DNA,
    FIBRE_SIGMA_UM,
    FIBRE_STEP_UM,
    NOT_A_CELL,
    TEXTURE_PX,
    Bodies,
    Buckets,
    Fibres,
    depth_um,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_PX = 512
VEIL_UM = 4.0
"""Pitch of everything smooth: haze, illumination, tissue outline, background."""

HAZE_UM = 12.0
HAZE_SHARE = 0.15
"""A wide-field 20x/0.8 objective adds this share of a section's light as blur of this sigma (design choice)."""

WAVELENGTH_UM, NUMERICAL_APERTURE = 0.52, 0.8
PSF_PER_WAVELENGTH = 0.21
"""Lateral point spread: sigma = 0.21 wavelength / NA (Zhang, Zerubia, Olivo-Marin 2007, Appl Opt 46:1819)."""

CYTOPLASM_IN_NUCLEUS = 0.3
"""Share of cytoplasmic label seen where a nucleus lies: nuclei exclude it, light from above and below remains."""

READ_NOISE_PHOTONS = 2.0

STAIN_OD = (0.55, 0.6)
"""Optical density of hematoxylin and of DAB in a typical stained nucleus (light of 1)."""

GLASS_GREY, GREY_NOISE = 240.0, 1.0

_STAMP_BUDGET = 2_000_000


@dataclass(frozen=True)
class Camera:
    """How light becomes grey levels.

    Attributes
    ----------
    pixel_size_um : float
    bits : int
        8, 12 or 16; 8 is stored as uint8, the others as uint16.
    photons : float
        Detected per pixel from a typical stained nucleus.
    headroom : float
        The range is full at this many times the light of a typical nucleus.
    """

    pixel_size_um: float
    bits: int
    photons: float
    headroom: float

    @property
    def offset(self) -> int:
        """Grey level of darkness."""
        return {8: 8, 12: 200, 16: 300}[self.bits]

    @property
    def grey_per_photon(self) -> float:
        """Gain."""
        return float(2**self.bits - 1 - self.offset) / (self.headroom * self.photons)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def psf_sigma_px(self) -> float:
        """Point spread and the pixel's own width (variance 1/12), as one Gaussian."""
        spread_px = PSF_PER_WAVELENGTH * WAVELENGTH_UM / NUMERICAL_APERTURE / self.pixel_size_um
        return float(np.hypot(spread_px, 12**-0.5))


@dataclass(frozen=True)
class Section:
    """One section under the microscope.

    Attributes
    ----------
    shape : (int, int)
        Height and width in pixels.
    camera : Camera
    bodies : Bodies
    fibres : Fibres
    veil : (c, gy, gx) float
        Light that varies slowly, on a grid of pitch ``VEIL_UM`` whose first point is the slide's corner.
    illumination : (gy, gx) float
        Sensitivity of the microscope across the slide, around 1.
    seed : tuple of int
        Decides noise and texture.
    """

    shape: tuple[int, int]
    camera: Camera
    bodies: Bodies
    fibres: Fibres
    veil: NDArray[Any]
    illumination: NDArray[Any]
    seed: tuple[int, ...]

    @cached_property
    def _bodies_by_block(self) -> Buckets:
        yx_um = np.stack([self.bodies.y_um, self.bodies.x_um], 1)
        return Buckets(yx_um, BLOCK_PX * self.camera.pixel_size_um)

    @cached_property
    def _fibres_by_block(self) -> Buckets:
        return Buckets(self.fibres.yx_um, BLOCK_PX * self.camera.pixel_size_um)

    @cached_property
    def _texture(self) -> NDArray[Any]:
        """Chromatin pattern, two periods each way: mean 0, deviation 1, grains of about 0.5 um."""
        from scipy.ndimage import gaussian_filter

        noise = np.random.default_rng((*self.seed, 1)).standard_normal((TEXTURE_PX, TEXTURE_PX))
        grain = gaussian_filter(noise, max(0.4, 0.5 / self.camera.pixel_size_um), mode="wrap")
        return np.tile(np.clip(grain / grain.std(), -2, 2).astype(np.float32), (2, 2))


def paint(section: Section, box: Box) -> NDArray[Any]:
    """Return the camera's pixels of a box.

    Returns
    -------
    (c, y, x) uint8 or uint16
    """
    return _mosaic(section, box, _paint_block, (section.veil.shape[0],), section.camera.dtype)


def paint_brightfield(section: Section, box: Box) -> NDArray[Any]:
    """Return the picture in red, green and blue of a box of a section whose channels are hematoxylin and DAB.

    Returns
    -------
    (3, y, x) uint8
    """
    return _mosaic(section, box, _paint_transmitted, (3,), np.dtype(np.uint8))


def stain_od(section: Section, block: Box) -> NDArray[Any]:
    """Return the optical density of each stain as the objective shows it, without noise; (c, y, x) float32."""
    return _light(section, block) * np.asarray(STAIN_OD, np.float32)[:, None, None]


def _paint_transmitted(section: Section, block: Box) -> NDArray[Any]:
    vectors = np.array([HEMATOXYLIN, REFERENCES["dab"]])
    od = np.tensordot(vectors.T, stain_od(section, block), axes=1)
    rng = np.random.Generator(np.random.SFC64([*section.seed, 3, block.y0, block.x0]))
    light = GLASS_GREY * 10**-od + rng.normal(0, GREY_NOISE, od.shape)
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def paint_labels(section: Section, box: Box) -> NDArray[Any]:
    """Return which cell each pixel belongs to.

    A pixel belongs to a cell when its centre lies within the outline of one of its DNA bodies; where outlines
    overlap, to the one it lies deepest in.

    Returns
    -------
    (y, x) uint32, 0 = no cell
    """
    return _mosaic(section, box, _label_block, (), np.dtype(np.uint32))


def _mosaic(
    section: Section,
    box: Box,
    make: Callable[[Section, Box], NDArray[Any]],
    leading: tuple[int, ...],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    pixels = np.empty((*leading, *box.shape), dtype)
    for top in range(box.y0 // BLOCK_PX * BLOCK_PX, box.y1, BLOCK_PX):
        for left in range(box.x0 // BLOCK_PX * BLOCK_PX, box.x1, BLOCK_PX):
            bottom, right = min(top + BLOCK_PX, section.shape[0]), min(left + BLOCK_PX, section.shape[1])
            block = make(section, Box(top, bottom, left, right))
            y0, y1, x0, x1 = max(top, box.y0), min(bottom, box.y1), max(left, box.x0), min(right, box.x1)
            pixels[..., y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0] = block[
                ..., y0 - top : y1 - top, x0 - left : x1 - left
            ]
    return pixels


def _light(section: Section, block: Box) -> NDArray[Any]:
    """Return the light of each channel as the objective shows it, before illumination and camera; (c, y, x) float32."""
    from scipy.ndimage import gaussian_filter

    camera, n_channels = section.camera, section.veil.shape[0]
    fibre_sigma_px = FIBRE_SIGMA_UM / camera.pixel_size_um
    margin = int(np.ceil(4 * (camera.psf_sigma_px + fibre_sigma_px))) + 1
    canvas = Box(block.y0 - margin, block.y1 + margin, block.x0 - margin, block.x1 + margin)
    light = _solid_light(section, canvas)
    light += _fibre_light(section, canvas, fibre_sigma_px)
    inner = (slice(margin, -margin), slice(margin, -margin))
    seen = np.empty((n_channels, *block.shape), np.float32)
    for channel in range(n_channels):
        sharp = gaussian_filter(light[channel], camera.psf_sigma_px, truncate=3)[inner]
        sharp += _smooth(section.veil[channel], block, camera)
        seen[channel] = sharp
    return seen


def _paint_block(section: Section, block: Box) -> NDArray[Any]:
    camera = section.camera
    light = _light(section, block)
    shade = _smooth(section.illumination, block, camera)
    pixels = np.empty(light.shape, camera.dtype)
    for channel, sharp in enumerate(light):
        rng = np.random.Generator(np.random.SFC64([*section.seed, 2, channel, block.y0, block.x0]))
        photons = np.maximum(sharp * shade * np.float32(camera.photons), 0, dtype=np.float32)
        pixels[channel] = _detected(photons, camera, rng)
    return pixels


def _detected(photons: NDArray[Any], camera: Camera, rng: np.random.Generator) -> NDArray[Any]:
    """Shot noise, read noise, gain, offset, rounding, clipping.

    Shot noise by the square-root transform (Anscombe 1948, Biometrika 35:246): ``(sqrt(m) + z/2)**2 - 1/4`` has mean m
    and variance m + 1/8, and costs a fifth of drawing Poisson numbers.
    """
    root = np.sqrt(photons) + rng.standard_normal(photons.shape, np.float32) * np.float32(0.5)
    counted = np.square(np.maximum(root, 0)) - np.float32(0.25)
    counted += rng.standard_normal(photons.shape, np.float32) * np.float32(READ_NOISE_PHOTONS)
    grey = np.rint(counted * np.float32(camera.grey_per_photon) + np.float32(camera.offset))
    return np.asarray(np.clip(grey, 0, 2**camera.bits - 1), camera.dtype)


def _smooth(grid: NDArray[Any], block: Box, camera: Camera) -> NDArray[Any]:
    """Interpolate a grid of pitch ``VEIL_UM`` at the pixel centres of a block."""
    values = np.asarray(grid, np.float32)
    for axis, (start, stop) in enumerate(((block.y0, block.y1), (block.x0, block.x1))):
        place = (np.arange(start, stop) + 0.5) * (camera.pixel_size_um / VEIL_UM)
        low = np.minimum(place.astype(np.int64), grid.shape[axis] - 2)
        share = np.expand_dims((place - low).astype(np.float32), 1 - axis)
        values = values.take(low, axis) * (1 - share) + values.take(low + 1, axis) * share
    return values


def _depths(section: Section, canvas: Box) -> Iterator[tuple[Bodies, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Yield groups of bodies of like size near a canvas with their pixels.

    Yields (bodies, top, left, depth_um): ``depth_um`` (n, s, s) is how far inside the outline each pixel centre
    lies, negative outside; ``top`` and ``left`` (n,) place the stamps on the canvas.
    """
    px = section.camera.pixel_size_um
    reach = float(section.bodies.reach_um.max(initial=0.0)) + px
    near = section._bodies_by_block.within(
        (canvas.y0 * px - reach, canvas.y1 * px + reach, canvas.x0 * px - reach, canvas.x1 * px + reach)
    )
    half_px = 4 * np.ceil((section.bodies.reach_um[near] / px + 1) / 4).astype(np.int64)
    for half in np.unique(half_px):
        group, side = near[half_px == half], 2 * int(half)
        for start in range(0, len(group), max(1, _STAMP_BUDGET // side**2)):
            bodies = section.bodies.take(group[start : start + max(1, _STAMP_BUDGET // side**2)])
            top = np.rint(bodies.y_um / px).astype(np.int64) - half
            left = np.rint(bodies.x_um / px).astype(np.int64) - half
            y = ((top[:, None] + np.arange(side) + 0.5) * px - bodies.y_um[:, None]).astype(np.float32)
            x = ((left[:, None] + np.arange(side) + 0.5) * px - bodies.x_um[:, None]).astype(np.float32)
            yield bodies, top - canvas.y0, left - canvas.x0, depth_um(bodies, y[:, :, None], x[:, None, :])


def _overlap(top: int, left: int, side: int, canvas: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Slices of canvas and stamp where a stamp lies on the canvas, None when it does not."""
    height, width = canvas.shape
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    if y0 >= y1 or x0 >= x1:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _solid_light(section: Section, canvas: Box) -> NDArray[Any]:
    n_channels = section.veil.shape[0]
    light = np.zeros((n_channels, *canvas.shape), np.float32)
    cytoplasm = np.zeros_like(light)
    nuclei = np.zeros(canvas.shape, np.float32)
    any_cytoplasm = False
    for bodies, tops, lefts, depth in _depths(section, canvas):
        side = depth.shape[1]
        ramp = np.clip(depth / (2 * bodies.edge_um[:, None, None]).astype(np.float32) + np.float32(0.5), 0, 1)
        mask = ramp * ramp * (3 - 2 * ramp)
        for index in range(len(bodies)):
            place = _overlap(int(tops[index]), int(lefts[index]), side, canvas)
            if place is None:
                continue
            on_canvas, on_stamp = place
            stamp = mask[index][on_stamp]
            layer = bodies.layer[index]
            target = cytoplasm if layer == CYTOPLASM else light
            any_cytoplasm |= bool(layer == CYTOPLASM)
            if layer == DNA:
                nuclei[on_canvas] += stamp
            pattern, contrast = bodies.pattern[index], np.float32(bodies.texture[index])
            for channel in np.flatnonzero(bodies.light[index]):
                # Each channel sees another part of the pattern: chromatin and label are not textured alike.
                row, column = (pattern[0] + 171 * channel) % TEXTURE_PX, pattern[1]
                rough = section._texture[row : row + side, column : column + side][on_stamp] * contrast
                rough += 1
                target[channel][on_canvas] += stamp * rough * np.float32(bodies.light[index, channel])
    if any_cytoplasm:
        light += cytoplasm * (1 - (1 - CYTOPLASM_IN_NUCLEUS) * np.minimum(nuclei, 1))
    return light


def _fibre_light(section: Section, canvas: Box, sigma_px: float) -> NDArray[Any]:
    from scipy.ndimage import gaussian_filter

    px, n_channels = section.camera.pixel_size_um, section.veil.shape[0]
    light = np.zeros((n_channels, *canvas.shape), np.float32)
    near = section._fibres_by_block.within((canvas.y0 * px, canvas.y1 * px, canvas.x0 * px, canvas.x1 * px))
    if len(near) == 0:
        return light
    place = section.fibres.yx_um[near] / px - (canvas.y0 + 0.5, canvas.x0 + 0.5)
    low = np.floor(place).astype(np.int64)
    share = place - low
    height, width = canvas.shape
    # A row of points of weight w every step, blurred by sigma, has w / (step sqrt(2 pi) sigma) on its axis.
    weight = FIBRE_STEP_UM * np.sqrt(2 * np.pi) * FIBRE_SIGMA_UM / px**2
    for channel in np.flatnonzero(section.fibres.light[near].any(0)):
        points = np.zeros(height * width)
        for dy in (0, 1):
            for dx in (0, 1):
                y, x = low[:, 0] + dy, low[:, 1] + dx
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                part = np.abs(1 - dy - share[:, 0]) * np.abs(1 - dx - share[:, 1])
                part = part * section.fibres.light[near, channel] * weight
                points += np.bincount((y * width + x)[inside], part[inside], height * width)
        light[channel] = gaussian_filter(points.reshape(height, width), sigma_px, truncate=4)
    return light


def _label_block(section: Section, block: Box) -> NDArray[Any]:
    labels = np.zeros(block.shape, np.uint32)
    deepest = np.zeros(block.shape, np.float32)
    for bodies, tops, lefts, depth in _depths(section, block):
        for index in np.flatnonzero((bodies.cell != NOT_A_CELL) & (bodies.layer == DNA)):
            place = _overlap(int(tops[index]), int(lefts[index]), depth.shape[1], block)
            if place is None:
                continue
            on_canvas, on_stamp = place
            deeper = depth[index][on_stamp] > deepest[on_canvas]
            labels[on_canvas][deeper] = bodies.cell[index]
            deepest[on_canvas][deeper] = depth[index][on_stamp][deeper]
    return labels


def haze(bodies: Bodies, fibres: Fibres, grid_shape: tuple[int, int], n_channels: int) -> NDArray[Any]:
    """Return out-of-focus light on the grid of pitch ``VEIL_UM``: all light, spread over ``HAZE_UM``.

    Returns
    -------
    (c, gy, gx) float32
    """
    from scipy.ndimage import gaussian_filter

    areas = np.pi / 4 * bodies.diameter_um**2
    fibre_area = FIBRE_STEP_UM * np.sqrt(2 * np.pi) * FIBRE_SIGMA_UM
    y = np.concatenate([bodies.y_um, fibres.yx_um[:, 0]])
    x = np.concatenate([bodies.x_um, fibres.yx_um[:, 1]])
    rows = np.clip(np.rint(y / VEIL_UM), 0, grid_shape[0] - 1).astype(np.int64)
    columns = np.clip(np.rint(x / VEIL_UM), 0, grid_shape[1] - 1).astype(np.int64)
    spread = np.empty((n_channels, *grid_shape), np.float32)
    for channel in range(n_channels):
        flux = np.concatenate([bodies.light[:, channel] * areas, fibres.light[:, channel] * fibre_area])
        points = np.bincount(rows * grid_shape[1] + columns, flux, grid_shape[0] * grid_shape[1])
        light = points.reshape(grid_shape) * (HAZE_SHARE / VEIL_UM**2)
        spread[channel] = gaussian_filter(light, HAZE_UM / VEIL_UM, mode="nearest")
    return spread
