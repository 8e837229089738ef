"""Find readers, segmenters and positivity rules by name, and open a slide with the reader that knows it.

A plug-in is a class that a distribution names in its metadata, in one of three entry-point groups::

    [project.entry-points."histoquant.segmenters"]
    lab_blobs = "histoquant_example_lab.blobs:LabBlobs"

What is built in comes through the same three groups. What each class promises is written in :class:`Reader`,
:class:`Segmenter` and :class:`Rule`, and checked by :mod:`histoquant.testing`. Plug-ins need not inherit
from these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from histoquant import __version__
from histoquant.errors import FormatError, HistoquantError, PluginError
from histoquant.model.slide import Slide

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pydantic import BaseModel

API = 1
HEAD_BYTES = 4096

Kind = Literal["reader", "segmenter", "rule"]
GROUPS: dict[Kind, str] = {
    "reader": "histoquant.readers",
    "segmenter": "histoquant.segmenters",
    "rule": "histoquant.rules",
}
_PROMISED: dict[Kind, tuple[str, ...]] = {
    "reader": ("suffixes", "matches", "scenes", "open"),
    "segmenter": ("Params", "__call__"),
    "rule": ("Params", "value", "__call__"),
}


class Reader(Protocol):
    """A file format. Made without arguments; holds no file itself."""

    api: ClassVar[int] = API
    suffixes: ClassVar[tuple[str, ...]]  # lower case with the dot; only says which reader is asked first

    def matches(self, path: Path, head: bytes) -> bool:
        """Say from the first 4096 bytes (none for a folder) whether this is the reader's format."""

    def scenes(self, path: Path) -> list[str]:
        """Return the names of the file's scenes, as ``open`` takes them; none for a single unnamed one."""

    def open(self, path: Path, *, scene: str | None = None) -> Slide:
        """Return the lazy pixels of one scene, the only one when not named; an unknown name is an error."""


class Segmenter(Protocol):
    """From pixels to nuclei.

    May also have ``survey(samples, pixel_size_um) -> Params``, called once per slide with a list of
    (c, z, y, x) float32 images, which returns the parameters with what is estimated from the slide filled in:
    fields that are None. A field ``diameter_um`` takes the nuclear diameter stated in the recipe.
    """

    api: ClassVar[int] = API
    Params: ClassVar[type[BaseModel]]  # frozen, extra="forbid"

    def __init__(self, params: BaseModel) -> None: ...

    @property
    def halo_um(self) -> float:
        """How much tissue round an object decides its outline; at least the largest object's size."""

    def __call__(self, image: NDArray[np.float32], pixel_size_um: float) -> NDArray[np.uint32]:
        """Label the objects of an image.

        Parameters
        ----------
        image : (c, z, y, x) float32
            Normalised once per slide: background 0, bright structures about 1.
        pixel_size_um : float
            Side of a pixel in um.

        Returns
        -------
        (z, y, x) uint32
            One number per object, 0 = background.
        """


class Rule(Protocol):
    """Which cells are positive for one marker."""

    api: ClassVar[int] = API
    Params: ClassVar[type[BaseModel]]  # frozen, extra="forbid"

    def __init__(self, marker: str, channel: str, params: BaseModel) -> None: ...

    def value(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the (n,) number that is compared with the threshold; NaN = not defined, never positive."""

    def __call__(self, table: pd.DataFrame, scene: Any) -> NDArray[np.bool_]:
        """Return (n,) calls at ``scene.thresholds[marker].value``."""


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes
    ----------
    kind : {"reader", "segmenter", "rule"}
        Which door it came through.
    name : str
        What recipes and commands call it.
    distribution, version : str
        What was installed with pip.
    value : str
        ``module:Class``.
    error : str or None
        What is broken; None when nothing is, or when it was not looked for.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    value: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.kind.capitalize()} '{self.name}' of {self.distribution} {self.version}"


@cache
def _installed(kind: Kind) -> tuple[tuple[Plugin, EntryPoint], ...]:
    # Looking through every installed distribution costs tens of ms; a study opens hundreds of slides.
    found = []
    for entry in entry_points(group=GROUPS[kind]):
        assert entry.dist is not None  # entry_points() reads them from distributions
        found.append((Plugin(kind, entry.name, entry.dist.name, entry.dist.version, entry.value), entry))
    return tuple(sorted(found, key=lambda pair: (pair[0].name, pair[0].distribution, pair[0].value)))


def rescan() -> None:
    """Forget what was found, so that a plug-in installed while the program runs is seen."""
    _installed.cache_clear()
    _load.cache_clear()


def list_plugins(kind: Kind | None = None, *, load: bool = False) -> list[Plugin]:
    """Return what is installed, by kind and name, from metadata alone.

    Parameters
    ----------
    kind : {"reader", "segmenter", "rule"}, optional
        Only these.
    load : bool
        Import each one and say in ``error`` what is broken. Nothing is imported otherwise.

    Returns
    -------
    list of Plugin
        Two distributions that give one name are both listed.
    """
    listed = [plugin for each in ([kind] if kind else GROUPS) for plugin, _ in _installed(each)]
    return [replace(plugin, error=_error(plugin)) for plugin in listed] if load else listed


def _error(plugin: Plugin) -> str | None:
    try:
        _load(plugin.kind, plugin.name)
    except PluginError as error:
        return str(error)
    return None


def load(kind: Kind, name: str) -> type[Any]:
    """Return the class of a reader, segmenter or rule.

    Raises
    ------
    PluginError
        If there is none of that name, if two distributions give it, if it cannot be imported, or if it breaks
        the handshake: another ``api`` than 1, or a promised attribute is missing.
    """
    return _load(kind, name)


@cache
def _load(kind: Kind, name: str) -> type[Any]:
    plugin, entry = _the_one(kind, name)
    try:
        found = entry.load()
    except Exception as error:
        raise PluginError(
            f"{plugin} cannot be imported: {type(error).__name__}: {error}.",
            f"Repair, update or uninstall {plugin.distribution}.",
        ) from error
    faults = interface_faults(kind, found)
    if faults:
        raise PluginError(
            f"{plugin} ({plugin.value}) breaks the promises of a {kind}: {'; '.join(faults)}.",
            f"Install a {plugin.distribution} and a histoquant that fit together, or uninstall the former.",
        )
    return found  # type: ignore[no-any-return]  # interface_faults made sure that it is a class


def _the_one(kind: Kind, name: str) -> tuple[Plugin, EntryPoint]:
    named = [pair for pair in _installed(kind) if pair[0].name == name]
    if len(named) == 1:
        return named[0]
    if named:
        sources = " and ".join(f"{p.distribution} {p.version} ({p.value})" for p, _ in named)
        raise PluginError(
            f"{kind.capitalize()} '{name}' is given by {sources}.",
            "Uninstall all of these distributions but one.",
        )
    known = sorted({plugin.name for plugin, _ in _installed(kind)})
    close = difflib.get_close_matches(name, known, n=1)
    raise PluginError(
        f"No {kind} is called '{name}'; installed: {', '.join(known) or 'none'}.",
        f"Did you mean '{close[0]}'?" if close else "Correct the name, or install the plug-in that gives it.",
    )


def interface_faults(kind: Kind, plugin: object) -> list[str]:
    """Return what keeps a class from being used as a plug-in at all; empty when nothing does.

    What can only be seen by running it is checked by :mod:`histoquant.testing`.
    """
    if not isinstance(plugin, type):
        return [f"it is not a class but {type(plugin).__name__}"]
    api = getattr(plugin, "api", None)
    if api != API:
        return [f"it says api = {api}, histoquant {__version__} needs api = {API}"]
    # Not hasattr: every class has a __call__, that of its metaclass, which makes instances.
    own = {name for base in plugin.__mro__ for name in vars(base)}
    faults = [f"it has no '{name}'" for name in _PROMISED[kind] if name not in own]
    if "Params" in own and not hasattr(plugin.Params, "model_validate"):  # type: ignore[attr-defined]
        faults.append("its Params is not a pydantic model")
    return faults


def fingerprint_of(kind: Kind, name: str) -> str:
    """Return distribution, version and class of a plug-in, for fingerprints and provenance; imports nothing.

    Raises
    ------
    PluginError
        If there is none of that name, or two.
    """
    plugin, _ = _the_one(kind, name)
    return f"{plugin.distribution} {plugin.version} {plugin.value}"


def open_slide(path: Path | str, *, pixel_size_um: float | None = None, scene: str | None = None) -> Slide:
    """Open a slide with the first reader that knows its content.

    Readers whose suffixes fit are asked first, then the others; among these, those of a lab before the
    built-in ones, so that a lab's own flavour of TIFF is not taken by the general reader. A reader that is
    installed but broken is an error: the next one might read the same file with other numbers.

    Parameters
    ----------
    path : Path or str
        A file or folder; or a **channel series**, a pattern with ``*``, ``?`` or ``[`` for the files of one
        field that hold one channel each (``*_D03f00d?.tif``), when nothing is called that literally. Channels
        are then named by the part of each file name that differs (``d0``, ``d1``, ...), in natural order.
    pixel_size_um : float, optional
        Used instead of what the file says.
    scene : str, optional
        Which scene of a many-scene file.

    Raises
    ------
    FormatError
        If there is no such file, no reader knows it, it cannot be opened, or the files of a series differ.
    PluginError
        If a reader is broken.
    """
    path = Path(path)
    if _is_pattern(path):
        return _open_series(path, pixel_size_um, scene)
    plugin = reader_of(path)
    try:
        slide: Slide = load("reader", plugin.name)().open(path, scene=scene)
    except HistoquantError:
        raise
    except Exception as error:
        # Damaged files make decoders raise anything: struct.error, KeyError, zlib.error, ...
        raise FormatError(
            f"Slide '{path.name}': {plugin} could not open it: {type(error).__name__}: {error}.",
            "See whether the file opens in another program; if it does, report this with the file.",
        ) from error
    return slide.with_pixel_size(pixel_size_um)


def reader_of(path: Path | str) -> Plugin:
    """Return the reader that :func:`open_slide` uses; of a channel series, that of its first file.

    Raises
    ------
    FormatError
        If there is no such file, or no reader knows it.
    PluginError
        If a reader is broken.
    """
    path = Path(path)
    if _is_pattern(path):
        path = _matched(path)[0]
    head = _head(path)
    readers = [(plugin, load("reader", plugin.name)) for plugin in list_plugins("reader")]

    def order(pair: tuple[Plugin, type[Any]]) -> tuple[bool, bool, str]:
        plugin, reader = pair
        fits = any(path.name.lower().endswith(suffix) for suffix in reader.suffixes)
        return not fits, plugin.distribution == "histoquant", plugin.name

    for plugin, reader in sorted(readers, key=order):
        try:
            matches = reader().matches(path, head)
        except Exception as error:
            raise PluginError(
                f"Slide '{path.name}': {plugin} failed when asked whether it knows the file: "
                f"{type(error).__name__}: {error}.",
                f"Repair, update or uninstall {plugin.distribution}.",
            ) from error
        if matches:
            return plugin
    raise _unknown(path, head)


def slide_files(path: Path | str) -> list[Path]:
    """Return the files that make up a slide, in order: itself, those of a series, all those in a folder.

    Raises
    ------
    FormatError
        If there is no such file or folder.
    """
    path = Path(path)
    if _is_pattern(path):
        return [file for match in _matched(path) for file in slide_files(match)]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    _head(path)
    return [path]


def _head(path: Path) -> bytes:
    if not path.exists():
        where = "" if path.parent.is_dir() else ", nor its folder"
        raise FormatError(
            f"Slide '{path.name}': there is no such file ({path}){where}.",
            "Correct the path; in a sample sheet it is relative to the sheet.",
        )
    if path.is_dir():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise FormatError(
            f"Slide '{path.name}': the file cannot be read: {error.strerror or error}.",
            "See that you may read it and that its disk is connected.",
        ) from error


_EXPORT = "Export it as OME-TIFF from the microscope's own program, or install a plug-in that reads it."
# How files that reach us under a slide's name begin, what that is, and what to do about it.
_LOOKS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the image", "Fetch the image with: git lfs pull"),
    (b"/annex/objects/", "is a git-annex pointer, not the image", "Fetch the image with: git annex get"),
    (b"<!doctype html", "is a web page, not the image", "Download it again; the link may need a login."),
    (b"<html", "is a web page, not the image", "Download it again; the link may need a login."),
    (b"pk\x03\x04", "is a ZIP archive", "Unpack it and name the image in it."),
    (b"\x1f\x8b", "is gzip-compressed", "Unpack it and name the image in it."),
    (b"%pdf", "is a PDF document", _EXPORT),
    (b"\x89hdf\r\n\x1a\n", "is an HDF5 file (Imaris .ims, ilastik, ...)", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an OLE2 file (Olympus .oib, Zeiss .zvi, ...)", _EXPORT),
)


def _unknown(path: Path, head: bytes) -> FormatError:
    known = ", ".join(plugin.name for plugin in list_plugins("reader"))
    start = head.lstrip().lower()
    if path.is_dir():
        zarr = any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
        look = "is a Zarr folder without OME image metadata" if zarr else "is a folder without Zarr metadata"
        remedy = _EXPORT if zarr else "Name the image in it, or the folder that holds zarr.json or .zattrs."
    elif not head.strip(b"\0"):
        look = "begins with nothing but zero bytes" if head else "is empty (0 bytes)"
        remedy = "Copy it again from where it came; the copy was not finished."
    else:
        looks = ((look, remedy) for begin, look, remedy in _LOOKS if start.startswith(begin))
        look, remedy = next(looks, ("", _EXPORT))
    return FormatError(
        f"Slide '{path.name}': not a format histoquant reads ({known}){look and f'; it {look}'}.", remedy
    )


def _is_pattern(path: Path) -> bool:
    return re.search(r"[*?\[]", str(path)) is not None and not path.exists()


def _matched(pattern: Path) -> list[Path]:
    # Folders that exist as written are taken literally: 'run [2]/x_*.tif' is about x, not about the folder.
    start = 1 if pattern.anchor else 0
    base, parts = Path(pattern.anchor), list(pattern.parts[start:])
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    try:
        # Without hidden files, as in a shell: macOS puts '._x.tif' beside every 'x.tif' on a network disk.
        matches = [match for match in base.glob(str(Path(*parts))) if not match.name.startswith(".")]
    except ValueError as error:
        raise FormatError(f"Slide '{pattern.name}': {error}.", "Correct the pattern.") from error
    if not matches:
        raise FormatError(
            f"Slide '{pattern.name}': there is no such file, and none in '{base}' matches it as a pattern.",
            "Correct the path; in a sample sheet it is relative to the sheet.",
        )
    return sorted(matches, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    # 'd2' before 'd10': the split gives text and numbers by turns; numbers are ordered by value.
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece) if place % 2 else 0, piece) for place, piece in enumerate(pieces)]


def _differing(files: Sequence[Path]) -> list[str]:
    """Return the part of each path that differs, in whole words: 'd0' and 'd1', not '0' and '1'."""
    words = [re.findall(r"[^\W\d_]+\d*|\d+|[\W_]+", file.with_suffix("").as_posix()) for file in files]
    same = [len(set(column)) == 1 for column in zip(*words, strict=False)]
    lead = [*same, False].index(False)
    same = [len(set(column)) == 1 for column in zip(*(reversed(each[lead:]) for each in words), strict=False)]
    trail = [*same, False].index(False)
    names = ["".join(each[lead : len(each) - trail]).strip(" _-.") for each in words]
    if "" in names or len(set(names)) < len(names):
        return [file.stem for file in files]
    return names


def _open_series(pattern: Path, pixel_size_um: float | None, scene: str | None) -> Slide:
    files = _matched(pattern)
    if len(files) == 1:
        return open_slide(files[0], pixel_size_um=pixel_size_um, scene=scene)
    with ExitStack() as opened:
        slides = []
        for file in files:
            slides.append(open_slide(file, pixel_size_um=pixel_size_um, scene=scene))
            opened.callback(slides[-1].close)
        series = _stacked(pattern, slides, _differing(files), scene)
        return replace(series, close=opened.pop_all().close)


def _stacked(pattern: Path, slides: Sequence[Slide], parts: Sequence[str], scene: str | None) -> Slide:
    """Return one Slide of all channels; the caller keeps the files and closes them."""
    import dask.array

    first = slides[0]

    def same_field(what: str, values: Sequence[Any], remedy: str) -> Any:
        for slide, value in zip(slides, values, strict=True):
            if value != values[0]:
                raise FormatError(
                    f"Slide '{pattern.name}': the files of a channel series must agree in {what}, but "
                    f"'{first.path.name}' has {values[0]} and '{slide.path.name}' has {value}.",
                    remedy,
                )
        return values[0]

    narrower = "Write a pattern that matches the channels of one field only."
    same_field("shape (z, y, x)", [slide.levels[0].shape[1:] for slide in slides], narrower)
    same_field("pixel type", [str(slide.dtype) for slide in slides], narrower)
    stated = "State the true one as pixel_size_um in study.csv, or with --pixel-size-um."
    pixel_size = same_field("pixel size (y, x) in um", [slide.pixel_size_yx_um for slide in slides], stated)
    z_step_um = same_field("distance of planes in um", [slide.z_step_um for slide in slides], narrower)
    levels = []
    for level in zip(*(slide.levels for slide in slides), strict=False):
        if len({pixels.shape[1:] for pixels in level}) > 1:
            break  # pyramids of different steps: the levels that fit are kept
        levels.append(dask.array.concatenate(level))
    return Slide(
        name=pattern.name,
        path=pattern,
        levels=tuple(levels),
        channels=tuple(
            part if len(slide.channels) == 1 else f"{part}_{channel}"
            for part, slide in zip(parts, slides, strict=True)
            for channel in slide.channels
        ),
        pixel_size_yx_um=pixel_size,
        z_step_um=z_step_um,
        # What was asked for: names that readers make up for an only scene differ from file to file.
        scene=scene,
    )
