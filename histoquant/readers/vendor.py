"""Zeiss CZI, Leica LIF and Nikon ND2, each through an optional package, told by their first bytes."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.errors import FormatError, MissingExtraError
from histoquant.model.slide import Slide
from histoquant.readers.metadata import (
    MAX_SEGMENT_BYTES,
    Pixels,
    choose_scene,
    damage_named,
    length_um,
    named_channels,
    refuse_axis,
    rgb_look,
    size_um,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CZI_TYPES = {
    "Gray8": ("u1", 1),
    "Gray16": ("u2", 1),
    "Gray32Float": ("f4", 1),
    "Bgr24": ("u1", 3),
    "Bgr48": ("u2", 3),
    "Bgr96Float": ("f4", 3),
}
_CZI_CHUNK_PX = 1024
_CZI_SMALLEST_LEVEL_PX = 512
_CZI_CACHE_BYTES = 2**26


def _optional(path: Path, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingExtraError(
            f"'{path.name}' needs the package {module.partition('.')[0]}, which is not installed.",
            "Run: pip install 'histoquant[vendor]'",
        ) from e


class _Source:
    """An open vendor file, used by one thread at a time and never after it was closed."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._lock = threading.Lock()
        self._is_open = True

    def __enter__(self) -> Any:
        self._lock.acquire()
        if not self._is_open:
            self._lock.release()
            raise FormatError(f"'{self._path.name}' was closed before its pixels were read.", "Open it again.")
        return self._file

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._file.close()


@contextmanager
def _opened(path: Path, opener: Callable[[str], Any]) -> Iterator[tuple[Any, _Source]]:
    """Open a vendor file; it is closed again only when the block fails."""
    if path.is_dir():
        raise FormatError(f"'{path.name}' is a folder, not a file.", "Name a file.")
    with damage_named(path), ExitStack() as undo:
        file = opener(str(path))
        source = _Source(path, file)
        undo.callback(source.close)
        yield file, source
        undo.pop_all()


class CziReader:
    """Zeiss CZI. Tiles of a mosaic are put together scene by scene, as ZEN shows them.

    A CZI has no grid of tiles that do not overlap, so the chunks are 1024 x 1024. What no tile covers is 0, or
    white in a brightfield scene, where 0 would be the darkest stain of all.
    """

    api = 1
    suffixes = (".czi",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as CZI does."""
        return head.startswith(b"ZISRAWFILE")

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the scenes."""
        with _opened(path, _czi_opener(path)) as (file, source):
            names = list(_czi_scenes(file))
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
        with _opened(path, _czi_opener(path)) as (file, source):
            scenes = _czi_scenes(file)
            names = list(scenes)
            name = names[choose_scene(path, names, scene)]
            for axis, (start, stop) in file.total_bounding_box.items():
                if axis not in "CZXY":
                    refuse_axis(path, axis, stop - start)
            number, rectangle, n_layers = scenes[name]
            levels = [_CziPixels(path, source, (number, rectangle), 0)]
            while len(levels) <= n_layers and min(levels[-1].shape[2:]) >= 2 * _CZI_SMALLEST_LEVEL_PX:
                levels.append(_CziPixels(path, source, (number, rectangle), len(levels)))
            channels, brightfield = named_channels(_czi_channels(file), levels[0].shape[0]), False
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


def _czi_opener(path: Path) -> Callable[[str], Any]:
    czi = _optional(path, "pylibCZIrw.czi")
    # decoded sub-blocks are kept: their borders are not those of our chunks
    cache = czi.CacheOptions(type=czi.CacheType.Standard, max_memory_usage=_CZI_CACHE_BYTES)
    return partial(czi.CziReader, cache_options=cache)


def _at(tree: Any, *keys: str) -> Any:
    """Return a branch of metadata, an empty one when it is not there."""
    for key in keys:
        tree = (tree or {}).get(key)
    return tree or {}


def _list(branch: Any) -> list[Any]:
    """Return a branch that is a list only when it has several entries, always as a list."""
    return branch if isinstance(branch, list) else [branch] if branch else []


def _czi_scenes(file: Any) -> dict[str, tuple[int | None, Any, int]]:
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


def _czi_channels(file: Any) -> list[str]:
    image = _at(file.metadata, "ImageDocument", "Metadata", "Information", "Image")
    return [entry.get("@Name") or "" for entry in _list(_at(image, "Dimensions", "Channels", "Channel"))]


class _CziPixels(Pixels):
    """One scene at 1 / 2^level of its size."""

    def __init__(self, path: Path, source: _Source, scene: tuple[int | None, Any], level: int) -> None:
        with source as file:
            types, box = set(file.pixel_types.values()), file.total_bounding_box
        if len(types) != 1 or not types <= set(_CZI_TYPES):
            raise FormatError(
                f"'{path.name}' has channels of types {', '.join(sorted(types))}.",
                "Export channels of one type as OME-TIFF.",
            )
        dtype, self.samples = _CZI_TYPES[types.pop()]
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
        super().__init__(path, shape, dtype, (self.samples, 1, _CZI_CHUNK_PX, _CZI_CHUNK_PX))

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


class _FramePixels(Pixels):
    """Pixels stored as whole frames. ``inner`` names the axes of a frame, in the order of "czyx".

    The frame read last is kept: boxes of one frame mostly come one after the other.
    """

    def __init__(self, source: _Source, path: Path, shape: tuple[int, ...], dtype: Any, inner: str) -> None:
        lengths = dict(zip("czyx", shape, strict=True))
        chunk = tuple(lengths[axis] if axis in inner else 1 for axis in "czyx")
        super().__init__(path, shape, dtype, chunk)
        n_bytes = int(np.prod(chunk, dtype=object)) * self.dtype.itemsize
        if n_bytes > MAX_SEGMENT_BYTES:
            raise FormatError(
                f"'{path.name}' stores frames of {n_bytes / 2**30:.1f} GiB.", "Export it as tiled OME-TIFF."
            )
        self._inner = inner
        self._outer = [axis for axis in "czyx" if axis not in inner]
        self._source = source
        self._kept: tuple[dict[str, int], NDArray[Any]] | None = None

    @abstractmethod
    def frame(self, file: Any, at: Mapping[str, int]) -> NDArray[Any]:
        """Return one frame, its axes in the order of ``inner``."""

    def read(self, c: slice, z: slice, y: slice, x: slice) -> NDArray[Any]:
        ranges = {"c": c, "z": z, "y": y, "x": x}
        out = np.empty([part.stop - part.start for part in ranges.values()], self.dtype)
        for index in product(*(range(ranges[axis].start, ranges[axis].stop) for axis in self._outer)):
            at = dict(zip(self._outer, index, strict=True))
            with self._source as file:
                if self._kept is None or self._kept[0] != at:
                    self._kept = at, self.frame(file, at)
                frame = self._kept[1]
            target = tuple(at[axis] - ranges[axis].start if axis in at else slice(None) for axis in "czyx")
            out[target] = frame[tuple(ranges[axis] for axis in self._inner)]
        return out


class LifReader:
    """Leica LIF. Scenes are the file's images; x-z scans have one row (y) and many planes."""

    api = 1
    suffixes = (".lif",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts with the two marks of a LIF block."""
        return head[:4] == b"\x70\0\0\0" and head[8:9] == b"\x2a"

    def scenes(self, path: Path) -> list[str]:
        """Return the paths of the images inside the file."""
        with _opened(path, _optional(path, "liffile").LifFile) as (file, source):
            names = list(_lif_images(path, file))
            source.close()
        return names

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open one image.

        Raises
        ------
        MissingExtraError
            If liffile is not installed.
        FormatError
            If the file is damaged, or the image is a time series, a mosaic not yet merged, or the like.
        InputError
            If the image does not exist, or has to be named.
        """
        with _opened(path, _optional(path, "liffile").LifFile) as (file, source):
            images = _lif_images(path, file)
            names = list(images)
            name = names[choose_scene(path, names, scene)]
            image = images[name]
            pixels = _LifPixels(path, source, image)
            channels, brightfield = named_channels((), pixels.shape[0]), False
            if "S" in image.dims and pixels.shape[0] == 3:
                channels, brightfield = rgb_look([pixels])
            step = {axis: _lif_step_um(image, axis) for axis in "ZYX"}
        return Slide(
            name=path.name,
            path=path,
            levels=(pixels.lazy(),),
            channels=channels,
            pixel_size_yx_um=size_um(step["Y"], step["X"]),
            z_step_um=step["Z"],
            brightfield=brightfield,
            scene=name if len(images) > 1 else None,
            close=source.close,
        )


def _lif_images(path: Path, file: Any) -> dict[str, Any]:
    images = list(file.images)
    if not images:
        raise FormatError(f"'{path.name}' holds no image.", "Export it again from LAS X.")
    names = named_channels([image.path for image in images], len(images))
    return dict(zip(names, images, strict=True))


def _lif_step_um(image: Any, axis: str) -> float | None:
    places = image.coords.get(axis)
    if places is None or len(places) < 2:
        return None
    return length_um(abs(float(places[1]) - float(places[0])), "m")


class _LifPixels(_FramePixels):
    def __init__(self, path: Path, source: _Source, image: Any) -> None:
        lengths = {str(axis): int(n) for axis, n in zip(image.dims, image.shape, strict=True)}
        for axis, length in lengths.items():
            if axis not in ("C", "Z", "Y", "X", "S"):
                refuse_axis(path, axis, length)
        colours = lengths.get("S", 1)
        if colours > 1 and lengths.get("C", 1) > 1:
            raise FormatError(f"'{path.name}' holds several colour pictures as channels.", "Export one.")
        # A frame is spanned by the last two axes stored: y and x, or z and x for an x-z scan.
        stored = [axis for axis in image.dims if axis != "S"][-2:]
        inner = ("c" if colours > 1 else "") + "".join(axis for axis in "zyx" if axis.upper() in stored)
        shape = (lengths.get("C", 1) * colours, *(lengths.get(axis, 1) for axis in "ZYX"))
        super().__init__(source, path, shape, image.dtype, inner)
        self._image = image
        self._stored = "".join(axis.lower() for axis in image.dims if axis in stored or axis == "S")
        self._named = [axis for axis in self._outer if axis.upper() in lengths]

    def frame(self, file: Any, at: Mapping[str, int]) -> NDArray[Any]:
        frame = np.asarray(self._image.frame(**{axis.upper(): at[axis] for axis in self._named}))
        return frame.transpose([self._stored.replace("s", "c").index(axis) for axis in self._inner])


class Nd2Reader:
    """Nikon ND2. Scenes are the stage positions."""

    api = 1
    suffixes = (".nd2",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as ND2 does; those before 2007 are JPEG 2000 and need the suffix too."""
        old = head.startswith(b"\0\0\0\x0cjP  \r\n\x87\n") and path.suffix.lower() == ".nd2"
        return old or head.startswith(b"\xda\xce\xbe\x0a")

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the stage positions."""
        with _opened(path, _optional(path, "nd2").ND2File) as (file, source):
            names = _nd2_positions(path, file)
            source.close()
        return names

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Open one stage position.

        Raises
        ------
        MissingExtraError
            If nd2 is not installed.
        FormatError
            If the file is damaged or has more than one time point.
        InputError
            If the position does not exist, or has to be named.
        """
        with _opened(path, _optional(path, "nd2").ND2File) as (file, source):
            names = _nd2_positions(path, file)
            position = choose_scene(path, names, scene)
            pixels = _Nd2Pixels(path, source, position)
            about = getattr(file.metadata, "channels", None) or []
            channels, brightfield = named_channels([entry.channel.name for entry in about], pixels.shape[0]), False
            if file.is_rgb:
                pixels.keep_channels(3)
                channels, brightfield = rgb_look([pixels])
            # nd2 says 1.0 for an axis that was never calibrated
            calibrated = about[0].volume.axesCalibrated if about else (False, False, False)
            x, y, z = (
                length_um(size, "um") if known else None
                for size, known in zip(file.voxel_size(), calibrated, strict=True)
            )
        return Slide(
            name=path.name,
            path=path,
            levels=(pixels.lazy(),),
            channels=channels,
            pixel_size_yx_um=size_um(y, x),
            z_step_um=z if pixels.shape[1] > 1 else None,
            brightfield=brightfield,
            scene=names[position] if len(names) > 1 else None,
            close=source.close,
        )


def _nd2_positions(path: Path, file: Any) -> list[str]:
    n_positions = int(file.sizes.get("P", 1))
    if n_positions == 1:
        return [path.stem]
    loops = [loop for loop in file.experiment if loop.type == "XYPosLoop"]
    points = loops[0].parameters.points if loops else []
    wanted = [point.name or f"position_{i}" for i, point in enumerate(points[:n_positions])]
    wanted += [f"position_{i}" for i in range(len(wanted), n_positions)]
    return list(named_channels(wanted, n_positions))


class _Nd2Pixels(_FramePixels):
    def __init__(self, path: Path, source: _Source, position: int) -> None:
        with source as file:
            sizes, n_components, is_rgb = dict(file.sizes), file.components_per_channel, file.is_rgb
            height, width, dtype = int(file.attributes.heightPx), int(file.attributes.widthPx), file.dtype
            places = file.loop_indices
        for axis, length in sizes.items():
            if axis not in ("P", "C", "Z", "Y", "X", "S"):
                refuse_axis(path, axis, int(length))
        self._samples = int(n_components) if is_rgb else 1
        self._n_channels = int(sizes.get("C", 1))
        if self._samples > 1 and self._n_channels > 1:
            raise FormatError(f"'{path.name}' holds several colour pictures as channels.", "Export one.")
        shape = (self._n_channels * self._samples, int(sizes.get("Z", 1)), height, width)
        super().__init__(source, path, shape, dtype, "cyx")
        # frame number of each plane of this position
        self._frames = {
            loop.get("Z", 0): number for number, loop in enumerate(places) if loop.get("P", 0) == position
        } or {0: 0}

    def frame(self, file: Any, at: Mapping[str, int]) -> NDArray[Any]:
        height, width = self.shape[2:]
        frame = np.asarray(file.read_frame(self._frames[at["z"]]))
        frame = frame.reshape(self._n_channels, height, width, self._samples)
        return frame.transpose(0, 3, 1, 2).reshape(-1, height, width)
