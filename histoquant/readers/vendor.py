"""Leica LIF and Nikon ND2, which store whole frames, each through an optional package, told by their first bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histoquant.errors import FormatError
from histoquant.model.slide import Slide
from histoquant.readers.metadata import length_um, named_channels, size_um
from histoquant.readers.pixels import MAX_SEGMENT_BYTES, Pixels, choose_scene, refuse_axis, rgb_look
from histoquant.readers.vendor_file import INSTALL, VendorFile, opened, optional_package

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _FramePixels(Pixels):
    """Pixels stored as whole frames. ``inner`` names the axes of a frame, in the order of "czyx".

    The frame read last is kept: boxes of one frame mostly come one after the other.
    """

    def __init__(self, source: VendorFile, path: Path, shape: tuple[int, ...], dtype: Any, inner: str) -> None:
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
    needs: ClassVar[dict[str, str]] = {"liffile": INSTALL}

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts with the two marks of a LIF block."""
        return head[:4] == b"\x70\0\0\0" and head[8:9] == b"\x2a"

    def scenes(self, path: Path) -> list[str]:
        """Return the paths of the images inside the file."""
        with opened(path, optional_package(path, "liffile").LifFile) as (file, source):
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
        with opened(path, optional_package(path, "liffile").LifFile) as (file, source):
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
    def __init__(self, path: Path, source: VendorFile, image: Any) -> None:
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
    needs: ClassVar[dict[str, str]] = {"nd2": INSTALL}

    def matches(self, path: Path, head: bytes) -> bool:
        """Say whether the file starts as ND2 does; those before 2007 are JPEG 2000 and need the suffix too."""
        old = head.startswith(b"\0\0\0\x0cjP  \r\n\x87\n") and path.suffix.lower() == ".nd2"
        return old or head.startswith(b"\xda\xce\xbe\x0a")

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the stage positions."""
        with opened(path, optional_package(path, "nd2").ND2File) as (file, source):
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
        with opened(path, optional_package(path, "nd2").ND2File) as (file, source):
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
    def __init__(self, path: Path, source: VendorFile, position: int) -> None:
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
