"""Find readers, segmenters and positivity rules by name, and open a slide with the reader that knows it.

A plug-in is a class that a distribution names in its metadata, in one of three entry-point groups::

    [project.entry-points."histoquant.segmenters"]
    lab_blobs = "histoquant_example_lab.blobs:LabBlobs"

What is built in comes through the same three groups. What each class promises is written in :class:`Reader`,
:class:`Segmenter` and :class:`Rule`, and checked by :mod:`histoquant.testing`. Plug-ins need not inherit
from these. A class of any kind may have ``needs``, a mapping of packages that it imports when it is used to the
command that installs them, so that ``histoquant plugins`` can say what is missing.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from histoquant import __version__
from histoquant.errors import FormatError, HistoquantError, PluginError
from histoquant.model.slide import Slide
from histoquant.readers.first_bytes import first_bytes, unknown_format
from histoquant.readers.series import is_pattern, matched_files, open_series

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pydantic import BaseModel

API = 1

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
    fields that are None. A field ``diameter_um`` takes the nuclear diameter stated in the recipe. A segmenter whose
    labels depend on a file also has a property ``weights_sha256``, the sum of that file: stored results are used again
    only while name, version and weights of the segmenter are the same. A segmenter that needs much more memory than a
    picture of its crop says how much with ``memory_bytes(n_px, pixel_size_um)``. One that works on a grid of its own
    says with ``grid_px(pixel_size_um)`` that crops start at multiples of so many pixels of the slide, and gives the
    same labels in all of them. What everyone who uses its results
    must know stands in ``notice``, one sentence that goes into every report.
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
    missing : str or None
        How to install what it needs and is not there; None when nothing is, or when it was not looked for.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    value: str
    error: str | None = None
    missing: str | None = None

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
        Import each one and say in ``error`` what is broken, in ``missing`` what is not installed. Nothing is imported
        otherwise.

    Returns
    -------
    list of Plugin
        Two distributions that give one name are both listed.
    """
    listed = [plugin for each in ([kind] if kind else GROUPS) for plugin, _ in _installed(each)]
    return [_looked_at(plugin) for plugin in listed] if load else listed


def _looked_at(plugin: Plugin) -> Plugin:
    try:
        needs = getattr(_load(plugin.kind, plugin.name), "needs", {})
    except PluginError as error:
        return replace(plugin, error=str(error))
    absent = [remedy for package, remedy in needs.items() if importlib.util.find_spec(package) is None]
    return replace(plugin, missing=", ".join(dict.fromkeys(absent)) or None)


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


def grid_of(segmenter: Any, pixel_size_um: float) -> int:
    """Return at multiples of how many pixels of a slide crops for a segmenter start."""
    return int(segmenter.grid_px(pixel_size_um)) if hasattr(segmenter, "grid_px") else 1


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
    if is_pattern(path):
        return open_series(path, partial(open_slide, pixel_size_um=pixel_size_um, scene=scene), scene=scene)
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
    if is_pattern(path):
        path = matched_files(path)[0]
    head = first_bytes(path)
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
    raise unknown_format(path, head, [plugin.name for plugin in list_plugins("reader")])


def slide_files(path: Path | str) -> list[Path]:
    """Return the files that make up a slide, in order: itself, those of a series, all those in a folder.

    Raises
    ------
    FormatError
        If there is no such file or folder.
    """
    path = Path(path)
    if is_pattern(path):
        return [file for match in matched_files(path) for file in slide_files(match)]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    first_bytes(path)
    return [path]
