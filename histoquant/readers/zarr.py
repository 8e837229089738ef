"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3).

Layout and names follow the specification, https://ngff.openmicroscopy.org/0.4 and /0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError
from histoquant.model.slide import Slide
from histoquant.readers.metadata import length_um, named_channels, size_um
from histoquant.readers.pixels import (
    MAX_SEGMENT_BYTES,
    RGB,
    Pixels,
    choose_scene,
    damage_named,
    refuse_axis,
    rgb_look,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PURE_COLOURS = ("FF0000", "00FF00", "0000FF")


class ZarrReader:
    """Folders in OME-Zarr. A folder with several images (``bioformats2raw``) has one scene per image."""

    api = 1
    suffixes = (".zarr",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether this is a folder that holds a zarr group."""
        return not head and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the images."""
        return [name for name, _, _ in _images(path)]

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open an image.

        Raises
        ------
        FormatError
            If the folder is not OME-Zarr, is damaged, or has more than one time point.
        InputError
            If the scene does not exist, or has to be named.
        """
        images = _images(path)
        name, group, image = images[choose_scene(path, [name for name, _, _ in images], scene)]
        with damage_named(path):
            axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image["axes"]]
            order = "".join(str(axis["name"]).lower() for axis in axes)
            if len(order) != len(axes) or not set(order) <= set("tczyx") or not {"y", "x"} <= set(order):
                raise FormatError(
                    f"'{path.name}' has axes {order}; they must be of t, c, z, y, x.",
                    "Export it as OME-Zarr.",
                )
            levels = [_ZarrPixels(path, group[str(level["path"])], order) for level in image["datasets"]]
            if not levels:
                raise FormatError(f"'{path.name}' lists no resolution level.", "Export it again.")
            scale = _scales(image, len(order))
            um = {
                axis["name"].lower(): length_um(step, axis.get("unit")) for axis, step in zip(axes, scale, strict=True)
            }
            omero = _ome(group).get("omero", {}).get("channels", [])
            labels = [entry.get("label") for entry in omero]
            channels, brightfield = named_channels(labels, levels[0].shape[0]), False
            if levels[0].shape[0] == 3 and _is_rgb(labels, [entry.get("color") for entry in omero]):
                channels, brightfield = rgb_look(levels)
        return Slide(
            name=path.name,
            path=path,
            levels=tuple(level.lazy() for level in levels),
            channels=channels,
            pixel_size_yx_um=size_um(um["y"], um["x"]),
            z_step_um=um.get("z") if levels[0].shape[1] > 1 else None,
            brightfield=brightfield,
            scene=name if len(images) > 1 else None,
        )


class _ZarrPixels(Pixels):
    def __init__(self, path: Path, array: Any, order: str) -> None:
        length = dict(zip(order, array.shape, strict=True))
        chunk = dict(zip(order, array.chunks, strict=True))
        refuse_axis(path, "T", length.get("t", 1))
        if math.prod(array.chunks) * array.dtype.itemsize > MAX_SEGMENT_BYTES:
            raise FormatError(
                f"'{path.name}' declares chunks of {array.chunks}, more than {MAX_SEGMENT_BYTES // 2**20} MiB each.",
                "Write it again with chunks of about 1024 x 1024.",
            )
        c, z, y, x = (int(length.get(axis, 1)) for axis in "czyx")
        super().__init__(path, (c, z, y, x), array.dtype, [chunk.get(axis, 1) for axis in "czyx"])
        self._array = array
        self._order = order

    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        wanted = {"t": slice(0, 1), "c": c, "z": z, "y": y, "x": x}
        pixels = np.asarray(self._array[tuple(wanted[axis] for axis in self._order)])
        present = [axis for axis in "tczyx" if axis in self._order]
        pixels = pixels.transpose([self._order.index(axis) for axis in present])
        return pixels.reshape([part.stop - part.start for part in (c, z, y, x)])


def _images(path: Path) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """Return (name, group, multiscales entry) of every image in the folder."""
    import zarr

    with damage_named(path):
        root = zarr.open_group(str(path), mode="r")
        about = _ome(root)
        if "plate" in about or "well" in about:
            raise FormatError(f"'{path.name}' is a plate of wells.", "Open one image of it, such as A/1/0.")
        if "multiscales" in about:
            entries = about["multiscales"]
            found = [(str(entry.get("name") or path.name), root, entry) for entry in entries]
        else:
            # https://ngff.openmicroscopy.org/0.4/#bf2raw: images in groups 0, 1, ...
            numbered = sorted((name for name in root.group_keys() if name.isdigit()), key=int)
            groups = [(name, root[name]) for name in numbered]
            found = [(name, group, entry) for name, group in groups for entry in _ome(group).get("multiscales", [])[:1]]
    if not found:
        raise FormatError(f"'{path.name}' is a zarr folder without OME-Zarr images.", "Export it as OME-Zarr.")
    names = named_channels([name for name, _, _ in found], len(found))
    return [(name, group, entry) for name, (_, group, entry) in zip(names, found, strict=True)]


def _ome(group: Any) -> dict[str, Any]:
    attributes = group.attrs.asdict()
    about = attributes.get("ome", attributes)  # 0.5 keeps under "ome" what 0.4 kept at the top
    if not isinstance(about, dict):
        raise FormatError(f"The attributes of zarr group '{group.path}' are not OME-Zarr.", "Export it again.")
    return about


def _scales(image: Mapping[str, Any], n_axes: int) -> list[float]:
    """Return the step of each axis at full resolution; NaN when the file does not say."""
    steps = np.full(n_axes, np.nan)
    stated = [
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ]
    for transformation in stated:
        if transformation.get("type") == "scale" and "scale" in transformation:
            scale = np.asarray(transformation["scale"], float)
            if scale.shape != (n_axes,):
                raise FormatError(f"An OME-Zarr scale has {scale.size} numbers for {n_axes} axes.", "Export it again.")
            steps = np.where(np.isnan(steps), scale, steps * scale)
    return [float(step) for step in steps]


def _is_rgb(labels: Sequence[Any], colours: Sequence[Any]) -> bool:
    named = tuple(str(label).strip().lower() for label in labels if label)
    coloured = tuple(str(colour).strip("#").upper()[:6] for colour in colours if colour)
    return named in (RGB, ("r", "g", "b")) or (not named and coloured == _PURE_COLOURS)
