"""What the readers share: pixels decoded on demand, and what a file may say about size, names and colour.

Nothing here guesses: a length without a unit we know is None, a missing channel name is ``channel_<i>``.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree  # expat 2.4.1 and newer, which Python 3.11 brings, stops entity bombs

import numpy as np

from histoquant.errors import FormatError, HistoquantError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Size = tuple[tuple[float, float] | None, float | None]  # (height, width of a pixel), distance of planes; um

RGB = ("red", "green", "blue")

# One tile, strip or frame is decoded in one piece. No microscope writes one of 1 GiB; a damaged header does.
MAX_SEGMENT_BYTES = 2**30

# What decoders raise on damaged bytes. Broad by need: each format has a decoder of its own. Not MemoryError,
# which says something about the machine.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,  # pillow on PNG, ElementTree on XML
    TypeError,
    ValueError,
    struct.error,
)

_UM_PER = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "angstrom": 1e-4,
    "inch": 25400.0,
}
_SPELLINGS = {
    "meter": "m",
    "metre": "m",
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "millimetre": "mm",
    "micrometer": "um",
    "micrometre": "um",
    "micron": "um",
    "microns": "um",
    "\u00b5m": "um",  # micro sign
    "\u03bcm": "um",  # Greek mu
    "\\u00b5m": "um",  # as ImageJ spells it in ASCII
    "\u00c2\u00b5m": "um",  # UTF-8 read as Latin-1
    "nanometer": "nm",
    "nanometre": "nm",
    "picometer": "pm",
    "picometre": "pm",
    "\u00e5": "angstrom",
    "a\u030a": "angstrom",
    "\u212b": "angstrom",
    "in": "inch",
    "inches": "inch",
}


def length_um(value: Any, unit: object) -> float | None:
    """Return a length in um; None when it is not a positive finite number or the unit is none of length.

    Parameters
    ----------
    value : float or str
        The number as the file gives it.
    unit : str or None
        As OME, OME-Zarr or ImageJ spell it, any case. "pixel" and "reference frame" are no lengths.
    """
    spelt = str(unit).strip()
    # "Mm" is a megametre and "M" none of ours; only spelt-out names may be in any case.
    symbol = spelt if len(spelt) <= 2 and spelt.isascii() else spelt.lower()
    factor = _UM_PER.get(_SPELLINGS.get(symbol, symbol))
    try:
        length = float(value) * (factor if factor is not None else float("nan"))
    except (TypeError, ValueError):
        return None
    # 1.6e-6 m is 1.6 um, not 1.5999999999999999
    return float(f"{length:.12g}") if isfinite(length) and length > 0 else None


def size_um(y_um: float | None, x_um: float | None) -> tuple[float, float] | None:
    """Return height and width of a pixel, None unless both are known."""
    return None if y_um is None or x_um is None else (y_um, x_um)


def named_channels(names: Iterable[object], n_channels: int) -> tuple[str, ...]:
    """Return ``n_channels`` unique names: the file's own where it has them, else ``channel_<i>``.

    Examples
    --------
    >>> named_channels(["DAPI", "", "DAPI"], 4)
    ('DAPI', 'channel_1', 'DAPI_2', 'channel_3')
    """
    given = [str(name).strip() if name is not None else "" for name in names][:n_channels]
    given += [""] * (n_channels - len(given))
    unique: list[str] = []
    for i, wanted in enumerate(name or f"channel_{i}" for i, name in enumerate(given)):
        name, count = wanted, 1
        while name in unique or (count > 1 and name in given[i + 1 :]):
            count += 1
            name = f"{wanted}_{count}"
        unique.append(name)
    return tuple(unique)


def choose_scene(path: Path, names: Sequence[str], scene: str | None) -> int:
    """Return the index of the scene asked for, or of the only one.

    Raises
    ------
    InputError
        If it does not exist, or there are several and none was asked for.
    """
    listed = ", ".join(names)
    if scene is None:
        if len(names) == 1:
            return 0
        raise InputError(
            f"'{path.name}' holds {len(names)} scenes: {listed}.",
            "Name the one to read in the scene column of study.csv.",
        )
    if scene not in names:
        raise InputError(
            f"'{path.name}' has no scene '{scene}'; it has {listed}.",
            "Correct the scene column of study.csv.",
        )
    return list(names).index(scene)


def refuse_axis(path: Path, axis: str, length: int) -> None:
    """Refuse an axis that a section does not have, such as time, when it is longer than 1."""
    if length > 1:
        what = "time points" if axis == "T" else f"positions along axis '{axis}'"
        raise FormatError(
            f"'{path.name}' holds {length} {what}; a slide is (channel, z, y, x).",
            "Save the one to analyse as a file of its own.",
        )


@contextmanager
def damage_named(path: Path, what: str = "cannot be read") -> Iterator[None]:
    """Turn what a decoder raises inside into one sentence that names the file."""
    try:
        yield
    except HistoquantError:
        raise
    except PermissionError as e:
        raise FormatError(f"'{path}' may not be read.", "Ask for the permission to read it.") from e
    except DAMAGE as e:
        if not path.exists():
            raise FormatError(f"'{path}' does not exist.", "Correct the path.") from e
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise FormatError(
            f"'{path.name}' {what}: {reason.rstrip('.')}.",
            "It is damaged or was cut short: copy it again, or export it again from the microscope software.",
        ) from e


class Pixels(ABC):
    """One pyramid level, (c, z, y, x), decoded when sliced.

    Attributes
    ----------
    shape : (int, int, int, int)
    dtype : numpy dtype
        In native byte order.
    chunks : (int, int, int, int)
        What the file stores in one piece.
    """

    ndim = 4

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        dtype: Any,
        chunks: Sequence[int],
    ) -> None:
        if np.dtype(dtype).kind not in "buif":
            raise FormatError(f"'{path.name}' has pixels of type {np.dtype(dtype)}.", "Save it as integers or floats.")
        if min(shape) < 1:
            raise FormatError(f"'{path.name}' holds an image without pixels.", "Export it again.")
        self.path = path
        self.shape = tuple(int(length) for length in shape)
        self.dtype = np.dtype(np.uint8) if np.dtype(dtype).kind == "b" else np.dtype(dtype).newbyteorder("=")
        self.chunks = tuple(int(length) for length in chunks)

    @abstractmethod
    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        """Return the pixels of half-open ranges that lie inside the image."""

    def __getitem__(self, key: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
        ranges = [slice(*part.indices(length)[:2]) for part, length in zip(key, self.shape, strict=True)]
        with damage_named(self.path, "cannot be decoded"):
            return self.read(*ranges).astype(self.dtype, copy=False)

    def keep_channels(self, n_channels: int) -> None:
        """Forget the channels after the first ``n_channels``."""
        self.shape = (n_channels, *self.shape[1:])

    def lazy(self) -> Any:
        """Return the level as a dask array (c, z, y, x)."""
        import dask.array as da

        chunks = tuple(min(chunk, length) for chunk, length in zip(self.chunks, self.shape, strict=True))
        meta = np.empty((0, 0, 0, 0), self.dtype)
        # name=False: no hash of the object. inline_array: the graph is a rule for slices, spelt out when read.
        return da.from_array(self, chunks=chunks, name=False, asarray=False, fancy=False, inline_array=True, meta=meta)


# The median pixel of 541 fluorescence fields of BBBC038 is at most 17 % of white, that of 107 stained ones at least
# 52 % (mean of red, green and blue; measured on the stage 1 training set). 35 % lies between.
BRIGHT_FRACTION = 0.35
_SAMPLE_PX = 2**21
_SAMPLE_CHUNKS = 12


def rgb_look(levels: Sequence[Pixels]) -> tuple[tuple[str, ...], bool]:
    """Tell what a red-green-blue picture is, and forget two of three channels that are equal.

    Parameters
    ----------
    levels : sequence of Pixels
        Three channels each. The smallest level is looked at (chunks of it, when it is large) and, before
        channels are called equal, chunks of the largest as well: averaging can hide sparse colour.

    Returns
    -------
    channels : tuple of str
        ``("grey",)`` when the three are equal but not constant, else red, green and blue.
    brightfield : bool
        True for 8-bit colour whose median pixel, pure black left out, is brighter than 35 % of white.
    """
    pixels = _sample(levels[-1])
    if _equal(pixels) and pixels.min() < pixels.max() and _equal(_sample(levels[0])):
        for level in levels:
            level.keep_channels(1)
        return ("grey",), False
    brightness = pixels.mean(axis=0)
    brightness = brightness[brightness > 0]  # scanners fill what they did not scan with pure black
    bright = brightness.size > 0 and float(np.median(brightness)) > BRIGHT_FRACTION * 255
    return RGB, levels[0].dtype == np.uint8 and bright


def _equal(pixels: NDArray[Any]) -> bool:
    return bool(np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2]))


def _sample(level: Pixels) -> NDArray[Any]:
    """Return (3, n) pixels: all of a small level, evenly spread chunks of a large one; always the same ones."""
    _, n_planes, height, width = level.shape
    plane = slice(n_planes // 2, n_planes // 2 + 1)
    if height * width <= _SAMPLE_PX:
        return level[slice(0, 3), plane, slice(0, height), slice(0, width)].reshape(3, -1)
    rows, columns = (min(chunk, length) for chunk, length in zip(level.chunks[2:], (height, width), strict=True))
    grid = [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]
    picked = np.unique(np.linspace(0, len(grid) - 1, _SAMPLE_CHUNKS).round().astype(int))
    parts = [
        level[slice(0, 3), plane, slice(y, y + rows), slice(x, x + columns)].reshape(3, -1)
        for y, x in (grid[i] for i in picked)
    ]
    return np.concatenate(parts, axis=1)


# Densities that programs and scanners write without anybody having calibrated anything, dots per inch.
_PRINT_DPI = (72.0, 96.0, 100.0, 144.0, 150.0, 200.0, 300.0, 600.0, 1200.0)
_COARSEST_UM = {"inch": 50.0, "cm": 1000.0}


def density_um(pixels: float, unit: str) -> float | None:
    """Return the pixel size in um that a pixel density stands for; None when it looks like a print setting.

    Parameters
    ----------
    pixels : float
        Pixels per unit.
    unit : {"inch", "cm"}

    Notes
    -----
    Software that knows nothing of microscopes writes 1, 72, 96 or 300 dpi into every picture. So a density is
    no calibration when it is a common print or scan setting (to 0.5 %, in either unit), nor when a pixel would
    be larger than 50 um (given per inch) or 1 mm (given per cm: who writes centimetres mostly means them).
    """
    if not (isfinite(pixels) and pixels > 0):
        return None
    size = _UM_PER[unit] / pixels
    dpi = 25400.0 / size
    printed = any(abs(dpi - density) < 0.005 * density for density in _PRINT_DPI)
    return None if printed or size > _COARSEST_UM[unit] else size


def _density(page: Any, code: int) -> float:
    """Return XResolution (282) or YResolution (283) as stored, 0 when there is none."""
    value = page.tags.valueof(code, 0)
    try:
        return float(value[0] / value[1] if isinstance(value, tuple) else value)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return 0.0


def _tag_size_um(page: Any, *, scanner: bool) -> Size:
    """Pixel size from XResolution, YResolution and ResolutionUnit (TIFF 6.0, section 8)."""
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof(296, 2)))
    sizes = []
    for code in (283, 282):
        density = _density(page, code)
        if unit is None or not (isfinite(density) and density > 0):
            return None, None
        # A slide scanner's own format means what it says.
        sizes.append(_UM_PER[unit] / density if scanner else density_um(density, unit))
    return size_um(*sizes), None


def _ome_image(tif: Any, index: int, name: str) -> tuple[ElementTree.Element | None, str]:
    root = ElementTree.fromstring(tif.ome_metadata)  # noqa: S314 - no entity is expanded, see the import
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    images = root.findall(f"{space}Image")
    if len(images) != len(tif.series):  # tifffile leaves out images without planes
        images = [image for image in images if image.get("Name") == name]
        index = 0 if len(images) == 1 else len(images)
    return (images[index].find(f"{space}Pixels") if index < len(images) else None), space


def _imagej_size_um(tif: Any, page: Any) -> Size:
    about = tif.imagej_metadata or {}
    unit = about.get("unit")
    density = [_density(page, code) for code in (283, 282)]
    y, x = (1 / pixels if pixels else None for pixels in density)
    y_um, x_um = length_um(y, about.get("yunit", unit)), length_um(x, unit)
    if unit in ("inch", "in") and x_um is not None:
        x_um = density_um(25400 / x_um, "inch")
    return size_um(y_um, x_um), length_um(about.get("spacing"), about.get("zunit", unit))


def _text_size_um(page: Any, pattern: str, *, code: int = 270) -> Size:
    value = page.tags.valueof(code, "")
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    found = re.search(pattern, text)
    if found is None:
        return None, None
    y_um, x_um = (length_um(number, unit) for number, unit in _two(found))
    return size_um(y_um, x_um), None


def _two(found: re.Match[str]) -> list[tuple[str, str]]:
    # Philips gives row and column spacing in mm, the others one number in um.
    numbers = [number for number in found.groups() if number]
    return [(number, "mm") for number in numbers] if len(numbers) == 2 else [(numbers[0], "um")] * 2


# Where scanners write um per pixel: https://openslide.org/formats/aperio/ (MPP), /formats/ventana/ (ScanRes, in
# the XMP tag 700), /formats/philips/ (DICOM_PIXEL_SPACING, the first one is the full resolution).
_SCANNER_TEXT: dict[str, tuple[str, int]] = {
    "svs": (r"\bMPP\s*=\s*([0-9.eE+-]+)", 270),
    "bif": (r'ScanRes="([0-9.eE+-]+)"', 700),
    "philips": (r"DICOM_PIXEL_SPACING[^>]*>\W*([0-9.eE+-]+)\W+([0-9.eE+-]+)", 270),
}
_SCANNERS = (*_SCANNER_TEXT, "ndpi", "scn", "qpi", "avs")


def tiff_size_um(tif: Any, series: Any, index: int) -> Size:
    """Return the pixel size and plane distance in um of one series of an open tifffile.TiffFile.

    The flavour's own words come first, then the resolution tags.
    """
    page = series.keyframe
    size: Size = (None, None)
    if series.kind == "ome":
        pixels, _ = _ome_image(tif, index, series.name)
        if pixels is not None:
            y, x, z = (
                length_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
                for axis in "YXZ"
            )
            size = size_um(y, x), z
    elif series.kind == "imagej":
        size = _imagej_size_um(tif, page)
    elif series.kind == "lsm":
        voxel = tif.lsm_metadata
        y, x, z = (length_um(voxel.get(f"VoxelSize{axis}"), "m") for axis in "YXZ")
        size = size_um(y, x), z
    elif series.kind in _SCANNER_TEXT:
        pattern, code = _SCANNER_TEXT[series.kind]
        size = _text_size_um(tif.pages.first, pattern, code=code)
    elif tif.is_metaseries:
        plane = (tif.metaseries_metadata or {}).get("PlaneInfo", {})
        if plane.get("spatial-calibration-state", True):
            unit = plane.get("spatial-calibration-units")
            y, x = (length_um(plane.get(f"spatial-calibration-{axis}"), unit) for axis in "yx")
            size = size_um(y, x), None
    if size[0] is None:
        size = _tag_size_um(page, scanner=series.kind in _SCANNERS)[0], size[1]
    return size


def tiff_channel_names(tif: Any, series: Any, index: int) -> list[str]:
    """Return the channel names of one series as the file gives them, in order; empty when it gives none."""
    if series.kind == "ome":
        pixels, space = _ome_image(tif, index, series.name)
        channels = [] if pixels is None else pixels.findall(f"{space}Channel")
        return [channel.get("Name") or channel.get("Fluor") or "" for channel in channels]
    if series.kind == "imagej":
        about = tif.imagej_metadata or {}
        labels = [str(label) for label in about.get("Labels") or []]
        n_channels, n_images = about.get("channels", 1), len(labels)
        # One label per plane. They name channels only if each channel has the same label in all its planes, and
        # not the "c:1/3 z:1/9" that ImageJ numbers planes with.
        names = labels[:n_channels]
        repeated = n_images % n_channels == 0 and labels == names * (n_images // n_channels)
        return names if repeated and not any(re.match(r"[czt]:\d+/\d+", name) for name in names) else []
    if series.kind == "lsm":
        return [str(name) for name in tif.lsm_metadata.get("ChannelColors", {}).get("ColorNames", [])]
    if series.kind == "qpi":
        found = [re.search(r"<(?:Biomarker|Name)>([^<]+)<", page.description) for page in series]
        return [name.group(1) if name else "" for name in found]
    return []
