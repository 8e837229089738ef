"""What a file may say about itself: the size of a pixel, the distance of planes, the names of channels.

Nothing here guesses: a length without a unit we know is None, a missing channel name is ``channel_<i>``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from math import isfinite
from typing import Any
from xml.etree import ElementTree  # expat 2.4.1 and newer, which Python 3.11 brings, stops entity bombs

Size = tuple[tuple[float, float] | None, float | None]  # (height, width of a pixel), distance of planes; um

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
    unique: dict[str, None] = {}
    counts: dict[str, int] = {}
    ahead = Counter(given)
    for i, stated in enumerate(given):
        ahead[stated] -= 1
        name = wanted = stated or f"channel_{i}"
        count = counts.get(wanted, 1)
        while name in unique or (count > 1 and ahead[name] > 0):
            count += 1
            name = f"{wanted}_{count}"
        counts[wanted] = count
        unique[name] = None
    return tuple(unique)


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


_OME_PLACES = ("IFD", "PlaneCount", "FirstC", "FirstZ", "FirstT")


def _ome_image(tif: Any, index: int, name: str) -> tuple[ElementTree.Element | None, str]:
    root = ElementTree.fromstring(tif.ome_metadata)  # noqa: S314 - no entity is expanded, see the import
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    images = root.findall(f"{space}Image")
    if len(images) != len(tif.series):  # tifffile leaves out images without planes
        images = [image for image in images if image.get("Name") == name]
        index = 0 if len(images) == 1 else len(images)
    return (images[index].find(f"{space}Pixels") if index < len(images) else None), space


def most_ome_planes(xml: str, page_px: int) -> int:
    """Return how many planes OME metadata speaks of at most: declared by the sizes of an image, or by a number.

    Parameters
    ----------
    page_px : int
        Pixels of the largest page.
    """
    most = 0
    for element in ElementTree.fromstring(xml).iter():  # noqa: S314 - no entity is expanded, see the import
        pixels = math.prod(_whole(element.get(f"Size{axis}", "1")) for axis in "XYCZT")
        most = max(most, pixels // page_px, *(_whole(element.get(name, "0")) for name in _OME_PLACES))
    return most


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # tifffile tells
        return 0


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
