"""Zeiss CZI through the optional package pylibCZIrw, told by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histoquant.errors import FormatError
from histoquant.model.slide import Slide
from histoquant.readers.metadata import length_um, named_channels, size_um
from histoquant.readers.pixels import Pixels, choose_scene, refuse_axis, rgb_look
from histoquant.readers.vendor_file import INSTALL, VendorFile, opened, optional_package

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    "Gray8": ("u1", 1),
    "Gray16": ("u2", 1),
    "Gray32Float": ("f4", 1),
    "Bgr24": ("u1", 3),
    "Bgr48": ("u2", 3),
    "Bgr96Float": ("f4", 3),
}
_CHUNK_PX = 1024
_SMALLEST_LEVEL_PX = 512
_CACHE_BYTES = 2**26


class CziReader:
    """Zeiss CZI. Tiles of a mosaic are put together scene by scene, as ZEN shows them.

    A CZI has no grid of tiles that do not overlap, so the chunks are 1024 x 1024. What no tile covers is 0, or
    white in a brightfield scene, where 0 would be the darkest stain of all.
    """

    api = 1
    suffixes = (".czi",)
    needs: ClassVar[dict[str, str]] = {"pylibCZIrw": INSTALL}

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as CZI does."""
        return head.startswith(b"ZISRAWFILE")

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the scenes."""
        with opened(path, _opener(path)) as (file, source):
            names = list(_scenes(file))
            source.close()
        return names

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open one scene.

        Raises
        ------
        MissingExtraError
            If pylibCZIrw is not installed.
        FormatError
            If the file is damaged or has more than one time point, phase, view or the like.
        InputError
            If the scene does not exist, or has to be named.
        """
        with opened(path, _opener(path)) as (file, source):
            scenes = _scenes(file)
            names = list(scenes)
            name = names[choose_scene(path, names, scene)]
            for axis, (start, stop) in file.total_bounding_box.items():
                if axis not in "CZXY":
                    refuse_axis(path, axis, stop - start)
            number, rectangle, n_layers = scenes[name]
            levels = [_CziPixels(path, source, (number, rectangle), 0)]
            while len(levels) <= n_layers and min(levels[-1].shape[2:]) >= 2 * _SMALLEST_LEVEL_PX:
                levels.append(_CziPixels(path, source, (number, rectangle), len(levels)))
            channels, brightfield = named_channels(_channels(file), levels[0].shape[0]), False
            if levels[0].samples == 3:
                channels, brightfield = rgb_look(levels)  # gaps are black here, and not looked at
                for level in levels:
                    level.fill = float(brightfield)
            metadata = _at(file.metadata, "ImageDocument", "Metadata")
            steps = {
                distance.get("@Id"): length_um(distance.get("Value"), "m")
                for distance in _list(_at(metadata, "Scaling", "Items", "Distance"))
            }
        return Slide(
            name=path.name,
            path=path,
            levels=tuple(level.lazy() for level in levels),
            channels=channels,
            pixel_size_yx_um=size_um(steps.get("Y"), steps.get("X")),
            z_step_um=steps.get("Z") if levels[0].shape[1] > 1 else None,
            brightfield=brightfield,
            scene=name if len(scenes) > 1 else None,
            close=source.close,
        )


def _opener(path: Path) -> Callable[[str], Any]:
    czi = optional_package(path, "pylibCZIrw.czi")
    # decoded sub-blocks are kept: their borders are not those of our chunks
    cache = czi.CacheOptions(type=czi.CacheType.Standard, max_memory_usage=_CACHE_BYTES)
    return partial(czi.CziReader, cache_options=cache)


def _at(tree: Any, *keys: str) -> Any:
    """Return a branch of metadata, an empty one when it is not there."""
    for key in keys:
        tree = (tree or {}).get(key)
    return tree or {}


def _list(branch: Any) -> list[Any]:
    """Return a branch that is a list only when it has several entries, always as a list."""
    return branch if isinstance(branch, list) else [branch] if branch else []


def _scenes(file: Any) -> dict[str, tuple[int | None, Any, int]]:
    """Return name -> (number, rectangle in file pixels, number of stored pyramid layers)."""
    rectangles = file.scenes_bounding_rectangle_no_pyramid
    about = _list(
        _at(
            file.metadata,
            "ImageDocument",
            "Metadata",
            "Information",
            "Image",
            "Dimensions",
            "S",
            "Scenes",
            "Scene",
        )
    )
    described = {int(entry.get("@Index", -1)): entry for entry in about}
    if not rectangles:
        return {"scene_0": (None, file.total_bounding_rectangle_no_pyramid, 0)}
    numbers = sorted(rectangles)
    wanted = [described.get(number, {}).get("@Name") or f"scene_{number}" for number in numbers]
    layers = [int(_at(described.get(number), "PyramidInfo").get("PyramidLayersCount", 0)) for number in numbers]
    names = named_channels(wanted, len(wanted))
    return {
        name: (number, rectangles[number], n_layers)
        for name, number, n_layers in zip(names, numbers, layers, strict=True)
    }


def _channels(file: Any) -> list[str]:
    image = _at(file.metadata, "ImageDocument", "Metadata", "Information", "Image")
    return [entry.get("@Name") or "" for entry in _list(_at(image, "Dimensions", "Channels", "Channel"))]


class _CziPixels(Pixels):
    """One scene at 1 / 2^level of its size."""

    def __init__(self, path: Path, source: VendorFile, scene: tuple[int | None, Any], level: int) -> None:
        with source as file:
            types, box = set(file.pixel_types.values()), file.total_bounding_box
        if len(types) != 1 or not types <= set(_TYPES):
            raise FormatError(
                f"'{path.name}' has channels of types {', '.join(sorted(types))}.",
                "Export channels of one type as OME-TIFF.",
            )
        dtype, self.samples = _TYPES[types.pop()]
        (self._first_c, last_c), (self._first_z, last_z) = box.get("C", (0, 1)), box.get("Z", (0, 1))
        if self.samples == 3 and last_c - self._first_c > 1:
            raise FormatError(
                f"'{path.name}' holds {last_c - self._first_c} colour pictures as channels.",
                "Export the one to analyse.",
            )
        self._number, self._rectangle = scene
        self._level = level
        self._source = source
        self.fill = 0.0
        n_channels = (last_c - self._first_c) * self.samples
        shape = (
            n_channels,
            last_z - self._first_z,
            self._rectangle.h >> level,
            self._rectangle.w >> level,
        )
        super().__init__(path, shape, dtype, (self.samples, 1, _CHUNK_PX, _CHUNK_PX))

    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        out = np.empty([part.stop - part.start for part in (c, z, y, x)], self.dtype)
        for plane in range(z.start, z.stop):
            if self.samples == 3:
                picture = self._read_plane(0, plane, y, x)[..., ::-1]  # stored as blue, green, red
                out[:, plane - z.start] = picture[..., c].transpose(2, 0, 1)
            else:
                for channel in range(c.start, c.stop):
                    out[channel - c.start, plane - z.start] = self._read_plane(channel, plane, y, x)[..., 0]
        return out

    def _read_plane(self, channel: int, plane: int, y: slice, x: slice) -> NDArray[Any]:
        """Return (height, width, samples). The box is a whole number of blocks of 2^level pixels."""
        scale = 1 << self._level
        region = (
            self._rectangle.x + x.start * scale,
            self._rectangle.y + y.start * scale,
            (x.stop - x.start) * scale,
            (y.stop - y.start) * scale,
        )
        with self._source as file:
            picture = file.read(
                roi=region,
                plane={"C": self._first_c + channel, "Z": self._first_z + plane},
                scene=self._number,
                zoom=1 / scale,
                background_pixel=(self.fill,) * 3,
            )
        return np.asarray(picture)
