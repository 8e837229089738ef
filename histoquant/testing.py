"""What the author of a plug-in runs: whether a reader, segmenter or rule keeps the promises of its door.

::

    from histoquant.testing import check_segmenter

    def test_segmenter():
        check_segmenter(LabBlobs)

Each check runs the class on synthetic data (a reader on a file of its format) and raises one
:class:`~histoquant.errors.PluginError` that lists everything that is broken. The promises are written in
:mod:`histoquant.registry`.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.positivity import Scene, Threshold
from histoquant.analysis.tiles import own, plan_tiles
from histoquant.errors import HistoquantError, PluginError
from histoquant.model.slide import Box, Slide
from histoquant.registry import HEAD_BYTES, Kind, interface_faults

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from pydantic import BaseModel

PIXEL_SIZE_UM = 0.5
NUCLEUS_UM = 8.0
READ_PX = 2048
MARKER, CHANNEL = "marker", "Alexa 488"  # a channel's name may hold a blank


class _Faults:
    """The broken promises of one plug-in."""

    def __init__(self, kind: Kind, plugin: type[Any]) -> None:
        self.plugin = f"{kind.capitalize()} {plugin.__module__}.{plugin.__qualname__}"
        self.found: list[str] = []

    def expect(self, kept: object, otherwise: str) -> None:
        if not kept:
            self.found.append(otherwise)

    @contextmanager
    def when(self, doing: str) -> Iterator[None]:
        """Turn whatever the plug-in raises within into a fault."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a plug-in may raise anything; nothing is lost, it is listed
            self.found.append(f"{doing} raised {type(error).__name__}: {error}")

    def stop_if_any(self) -> None:
        distinct = dict.fromkeys(self.found)
        if distinct:
            listed = "\n".join(f"  - {fault}" for fault in distinct)
            raise PluginError(f"{self.plugin} breaks {len(distinct)} promise(s):\n{listed}")


def check_segmenter(segmenter: type[Any], params: Mapping[str, Any] | None = None, *, min_iou: float = 1.0) -> None:
    """Check a segmenter on synthetic nuclei of 6-10 um at 0.5 um per pixel.

    Parameters
    ----------
    segmenter : class
    params : mapping, optional
        Fields of its ``Params``; its defaults when not given.
    min_iou : float
        How much of an object must be the same (intersection over union) whether it was found in a tile or in
        the whole image. 1 demands the same pixels; a network, whose sums depend on the image's size, states
        less.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``Params`` frozen, without unknown keys, survives JSON;
        ``halo_um`` finite and positive; labels (z, y, x) uint32 with background 0; input left as it was; the
        same labels the second time and after pickling; no objects where there are none; objects found; and
        the same objects in tiles with the halo as in the whole image.
    """
    faults = _Faults("segmenter", segmenter)
    settings = _checked_params(faults, "segmenter", segmenter, params)
    image = _nuclei((192, 256))

    made: list[Any] = []
    with faults.when("making it and surveying"):
        made.append(segmenter(settings))
        if hasattr(made[0], "survey"):
            samples = [image, image[..., :96]]
            surveyed = made[0].survey([sample.copy() for sample in samples], PIXEL_SIZE_UM)
            faults.expect(isinstance(surveyed, segmenter.Params), "survey does not return Params")
            faults.expect(surveyed == made[0].survey(samples, PIXEL_SIZE_UM), "survey differs the second time")
            made[0] = segmenter(surveyed)
    faults.stop_if_any()
    segment = made[0]

    def labels_of(what: str, image: NDArray[np.float32], segment: Any = segment) -> NDArray[np.uint32]:
        given, before = image.copy(), np.zeros((1, *image.shape[2:]), dtype=np.uint32)
        with faults.when(f"segmenting {what}"):
            found = segment(given, PIXEL_SIZE_UM)
            faults.expect(np.array_equal(given, image), f"it changes its input ({what})")
            fault = _label_fault(found, before.shape)
            faults.expect(not fault, f"{what}: {fault}")
            return before if fault else found  # type: ignore[no-any-return]  # _label_fault looked at it
        return before

    labels = labels_of("nuclei", image)
    faults.expect(labels.any(), f"it finds nothing among bright discs of {NUCLEUS_UM:g} um")
    faults.expect(not labels.all(), "it leaves no background (label 0)")
    # In between it sees other images: a segmenter must not remember the last tile.
    empty, rng = np.zeros((1, 1, 96, 96), dtype=np.float32), np.random.default_rng(1)
    faults.expect(not labels_of("an empty image", empty).any(), "it finds objects in an empty image")
    noise = rng.normal(0, 0.02, empty.shape).astype(np.float32)
    faults.expect(not labels_of("faint noise", noise).any(), "it finds objects in faint noise (SD 0.02)")
    labels_of("a strip of 3 pixels", image[:, :, :3])
    faults.expect(np.array_equal(labels_of("nuclei", image), labels), "its labels differ the second time")
    with faults.when("pickling"):
        again = labels_of("nuclei", image, pickle.loads(pickle.dumps(segment)))  # noqa: S301  our own bytes
        faults.expect(np.array_equal(again, labels), "its labels differ after pickling")
    with faults.when("reading halo_um"):
        halo_um = float(segment.halo_um)
        honest = np.isfinite(halo_um) and halo_um > 0
        faults.expect(honest, f"halo_um is {halo_um}, not a positive number")
        if honest and not faults.found:
            _check_tiles(faults, labels_of, int(np.ceil(halo_um / PIXEL_SIZE_UM)), min_iou)
    faults.stop_if_any()


def _checked_params(faults: _Faults, kind: Kind, plugin: type[Any], params: Mapping[str, Any] | None) -> BaseModel:
    faults.found += interface_faults(kind, plugin)
    faults.stop_if_any()
    model, made = plugin.Params, []
    faults.expect(model.model_config.get("frozen"), "Params is not frozen")
    faults.expect(model.model_config.get("extra") == "forbid", "Params accepts unknown keys (extra is not 'forbid')")
    with faults.when("making Params" + ("" if params else " from its defaults")):
        made.append(model(**(params or {})))
        faults.expect(model.model_validate_json(made[0].model_dump_json()) == made[0], "Params does not survive JSON")
    faults.stop_if_any()
    return made[0]  # type: ignore[no-any-return]  # interface_faults looked for a pydantic model


def _label_fault(labels: object, shape: tuple[int, ...]) -> str:
    if not isinstance(labels, np.ndarray):
        return f"labels are {type(labels).__name__}, not a numpy array"
    if labels.dtype != np.uint32:
        return f"labels are {labels.dtype}, not uint32"
    return "" if labels.shape == shape else f"labels have shape {labels.shape}, not {shape} (z, y, x)"


def _nuclei(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return (1, 1, y, x) soft discs on a shaken grid, some touching, with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(shape, dtype=np.float32)
    image = rng.normal(0, 0.02, shape).astype(np.float32)
    step = int(1.5 * NUCLEUS_UM / PIXEL_SIZE_UM)
    for y in range(step // 2, shape[0], step):
        for x in range(step // 2, shape[1], step):
            centre_y, centre_x = np.array([y, x]) + rng.uniform(-step / 4, step / 4, 2)
            radius = NUCLEUS_UM / PIXEL_SIZE_UM / 2 * rng.uniform(0.75, 1.25)
            near = np.s_[max(0, y - step) : y + step, max(0, x - step) : x + step]
            distance = np.hypot(rows[near] - centre_y, columns[near] - centre_x)
            disc = rng.uniform(0.8, 1.2) / (1 + np.exp(np.minimum(2 * (distance - radius), 50)))
            image[near] = np.maximum(image[near], disc)
    return image[np.newaxis, np.newaxis]


def _check_tiles(faults: _Faults, labels_of: Callable[..., Any], halo_px: int, min_iou: float) -> None:
    core_px = max(128, halo_px + 32)  # so that the middle tile is cut on all sides
    shape = (3 * core_px, 3 * core_px)
    image = _nuclei(shape)
    whole = labels_of("a whole image", image)[0]
    tiled = np.zeros(shape, dtype=np.uint32)
    total = 0
    for tile in plan_tiles(shape, core_px=core_px, halo_px=halo_px):
        box = tile.box
        owned = own(labels_of("a tile", image[:, :, box.y0 : box.y1, box.x0 : box.x1])[0], tile, shape)
        number = np.zeros(len(owned.mine) + 1, dtype=np.uint32)
        number[1:][owned.mine] = np.arange(total + 1, total + 1 + owned.mine.sum(), dtype=np.uint32)
        total += int(owned.mine.sum())
        here = number[owned.labels]
        tiled[box.y0 : box.y1, box.x0 : box.x1][here > 0] = here[here > 0]
    differ = max(_without_partner(whole, tiled, min_iou), _without_partner(tiled, whole, min_iou))
    faults.expect(
        not differ,
        f"{differ} of {len(np.unique(whole)) - 1} objects are not the same (IoU below {min_iou:g}) in tiles "
        f"of {core_px} px with its halo of {halo_px} px as in the whole image: halo_um is too small, or the "
        "outcome depends on all pixels at once",
    )


def _without_partner(labels: NDArray[np.uint32], others: NDArray[np.uint32], min_iou: float) -> int:
    pairs, common = np.unique(np.stack([labels.ravel(), others.ravel()]), axis=1, return_counts=True)
    size, other_size = np.bincount(labels.ravel()), np.bincount(others.ravel())
    iou = common / (size[pairs[0]] + other_size[pairs[1]] - common)
    same = (pairs[0] > 0) & (pairs[1] > 0) & (iou >= min_iou)
    return int(np.count_nonzero(size[1:]) - len(np.unique(pairs[0][same])))


def check_rule(rule: type[Any], params: Mapping[str, Any] | None = None) -> None:
    """Check a positivity rule on a table of 200 synthetic cells.

    Parameters
    ----------
    rule : class
    params : mapping, optional
        Fields of its ``Params``; its defaults when not given.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``Params`` frozen, without unknown keys, survives JSON;
        values (n,) float and calls (n,) bool; an empty table gives empty results; cells without a value are
        not positive; raising the threshold adds no positives; the order of rows does not matter; the table is
        left as it was; and the same calls the second time and after pickling.
    """
    faults = _Faults("rule", rule)
    settings = _checked_params(faults, "rule", rule, params)
    made: list[Any] = []
    with faults.when("making it"):
        made.append(rule(MARKER, CHANNEL, settings))
    faults.stop_if_any()

    def answers(what: str, table: pd.DataFrame, threshold: float, rule: Any) -> tuple[Any, Any]:
        given = table.copy(deep=True)
        scene = Scene({MARKER: Threshold(threshold, "fixed")}, {CHANNEL: 1.0})
        value = _answer(faults, f"value of {what}", lambda: rule.value(given), np.zeros(len(table)))
        calls = _answer(faults, f"calls of {what}", lambda: rule(given, scene), np.zeros(len(table), dtype=bool))
        faults.expect(given.equals(table), f"it changes its table ({what})")
        return value, calls

    table = _cells()
    value, _ = answers("a table", table, 1.0, made[0])
    answers("an empty table", table.iloc[:0], 1.0, made[0])
    faults.expect(np.isfinite(value).any(), "no cell of the table has a value")
    faults.stop_if_any()
    positive = np.ones(len(table), dtype=bool)
    for threshold in np.unique(np.nanquantile(value, [0, 0.1, 0.5, 0.9, 1])).tolist():
        _, calls = answers("a table", table, threshold, made[0])
        faults.expect(not (calls & ~positive).any(), f"raising the threshold to {threshold:g} adds positives")
        faults.expect(not (calls & np.isnan(value)).any(), "a cell without a value (NaN) is called positive")
        positive = calls

    middle = float(np.nanmedian(value))
    value, calls = answers("a table", table, middle, made[0])
    with faults.when("pickling"):
        made.append(pickle.loads(pickle.dumps(made[0])))  # noqa: S301  our own bytes
    order = np.random.default_rng(2).permutation(len(table))
    for what, rows, rule_again in (
        ("the same table", np.arange(len(table)), made[0]),
        ("the same table after pickling", np.arange(len(table)), made[-1]),
        ("a table in another order", order, made[0]),
    ):
        again = answers(what, table.iloc[rows], middle, rule_again)
        same = np.array_equal(again[0], value[rows], equal_nan=True) and np.array_equal(again[1], calls[rows])
        faults.expect(same, f"{what} gives other values or calls")
    faults.stop_if_any()


def _answer(faults: _Faults, what: str, ask: Callable[[], Any], instead: NDArray[Any]) -> NDArray[Any]:
    """Return the plug-in's array, or ``instead`` when it does not have that kind of type and shape."""
    with faults.when(what):
        found = ask()
        if isinstance(found, np.ndarray) and (found.dtype.kind, found.shape) == (
            instead.dtype.kind,
            instead.shape,
        ):
            return found
        faults.expect(
            False,
            f"{what} is {type(found).__name__} {getattr(found, 'dtype', '')} {getattr(found, 'shape', '')}, "
            f"not ndarray {instead.dtype} {instead.shape}",
        )
    return instead


def _cells() -> pd.DataFrame:
    import pandas as pd

    rng, n = np.random.default_rng(3), 200
    table = pd.DataFrame({"cell_id": np.arange(1, n + 1, dtype=np.uint32), "region": "outside"})
    for name in ("y_um", "x_um"):
        table[name] = rng.uniform(0, 1000, n)
    table["area_um2"] = rng.uniform(20, 90, n)
    for channel in ("DAPI", CHANNEL):
        table[f"background_{channel}"] = rng.uniform(80, 120, n)
        for measured in ("mean", "ring_mean"):
            table[f"{measured}_{channel}"] = table[f"background_{channel}"] + rng.lognormal(3, 1, n)
    table[f"{MARKER}_quantile"] = table[f"mean_{CHANNEL}"] - table[f"background_{CHANNEL}"] - 1
    # A nucleus with no pixel of its own round it has no ring.
    table.loc[table.index[::17], [f"ring_mean_{CHANNEL}", f"{MARKER}_quantile"]] = np.nan
    return table


def check_reader(reader: type[Any], path: Path | str) -> None:
    """Check a reader on a file of its format.

    Parameters
    ----------
    reader : class
    path : Path or str
        A small file (some thousand pixels wide, several tiles). Folders are files too.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``suffixes``; it knows its own file, by content and not
        by name; scenes that open, an unknown one refused; pixels (c, z, y, x) in a lazy dask array, of a
        real type, as the Slide says; a pixel size that is unknown or positive; smaller levels after larger; a
        box gives the same pixels as a crop of everything, also read by four threads at once; and no handle
        stays open after ``close`` (looked for where the system lists them, as Linux does).
    """
    path = Path(path)
    faults = _Faults("reader", reader)
    faults.found += interface_faults("reader", reader)
    faults.stop_if_any()
    good = isinstance(reader.suffixes, tuple) and all(s == s.lower() and s[:1] == "." for s in reader.suffixes)
    faults.expect(good, f"suffixes {reader.suffixes!r} is not a tuple of lower-case endings with their dot")
    made: list[Any] = []
    with faults.when("making it without arguments"):
        made.append(reader())
    faults.stop_if_any()
    _check_matches(faults, made[0], path)
    scenes: list[str | None] = []
    with faults.when("scenes"):
        scenes = made[0].scenes(path)
        faults.expect(
            isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes),
            "scenes is not a list of str",
        )
    with faults.when("opening a scene that is not there"):
        try:
            made[0].open(path, scene="no such scene").close()
        except HistoquantError:
            pass
        else:
            faults.expect(False, "it opens a scene that the file does not have")
    refused: list[str] = []
    for scene in scenes or [None]:
        with faults.when(f"opening scene {scene}"):
            _check_scene(faults, made[0], path, scene, refused)
    faults.expect(len(refused) < max(1, len(scenes)), f"it opens no scene of the file: {'; '.join(refused)}")
    kept = _held(path)
    faults.expect(not kept, f"after close it still holds {', '.join(kept)}")
    faults.stop_if_any()


def _check_scene(faults: _Faults, reader: Any, path: Path, scene: str | None, refused: list[str]) -> None:
    try:
        slide = reader.open(path, scene=scene)
    except HistoquantError as error:
        refused.append(str(error))  # a scene may be refused in words, as one with a time axis; not all of them
        return
    if not isinstance(slide, Slide):
        faults.expect(False, f"open returns {type(slide).__name__}, not a Slide")
        return
    try:
        _check_slide(faults, slide, path)
    finally:
        slide.close()
        slide.close()


def _check_matches(faults: _Faults, reader: Any, path: Path) -> None:
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    with faults.when("matches"):
        answer = reader.matches(path, head)
        faults.expect(answer is True, f"matches gives {answer!r}, not True, for {path.name}")
    junk = {
        "random bytes": np.random.default_rng(4).bytes(HEAD_BYTES),
        "zero bytes": bytes(HEAD_BYTES),
        "an empty file": b"",
        "a web page": b"<!DOCTYPE html><html><body>Please log in</body></html>",
        "a folder": None,
    }
    for what, content in junk.items():
        with tempfile.TemporaryDirectory() as folder, faults.when(f"matches for {what} called {path.name}"):
            impostor = Path(folder) / path.name
            if content is None:
                impostor.mkdir()
            else:
                impostor.write_bytes(content)
            answer = reader.matches(impostor, content or b"")
            faults.expect(answer is False, f"matches gives {answer!r}, not False, for {what} called {path.name}")


def _check_slide(faults: _Faults, slide: Slide, path: Path) -> None:
    import dask.array

    faults.expect(slide.path == path, f"Slide.path is {slide.path}, so that a worker cannot open it again")
    faults.expect(slide.name and slide.channels and all(slide.channels), "the slide or a channel has an empty name")
    faults.expect(
        slide.pixel_size_yx_um is None or all(np.isfinite(p) and p > 0 for p in slide.pixel_size_yx_um),
        f"pixel size {slide.pixel_size_yx_um} um is neither unknown (None) nor positive",
    )
    faults.expect(slide.dtype.kind in "uif", f"pixels are {slide.dtype}, not integer or float")
    for number, level in enumerate(slide.levels):
        where = f"level {number}"
        if not isinstance(level, dask.array.Array):
            faults.expect(False, f"{where} is {type(level).__name__}, not a dask array")
            continue
        larger = slide.levels[max(0, number - 1)]
        shrinks = level.shape[:2] == larger.shape[:2] and level.shape[2:] <= larger.shape[2:]
        faults.expect(shrinks, f"{where} has shape {level.shape} after {larger.shape}")
        in_memory = _bytes_in_memory(level)
        faults.expect(
            in_memory < max(level.nbytes // 2, 1),
            f"{where} is not lazy: {in_memory} of its {level.nbytes} bytes are in memory before it is read",
        )
        with faults.when(f"reading {where}"):
            _check_boxes(faults, slide, number)


def _bytes_in_memory(level: Any) -> int:
    """Return the bytes of numpy arrays that lie in a dask graph."""
    seen: set[int] = set()

    def walk(node: Any) -> int:
        if id(node) in seen or isinstance(node, (str, bytes, int, float)):
            return 0
        seen.add(id(node))
        if isinstance(node, np.ndarray):
            return 0 if isinstance(node, np.memmap) else node.nbytes
        if isinstance(node, Mapping):
            return sum(walk(each) for each in node.values())
        if isinstance(node, (list, tuple, set, frozenset)):
            return sum(walk(each) for each in node)
        # dask's own nodes: Task(args, kwargs), DataNode(value)
        return sum(walk(getattr(node, name)) for name in ("args", "kwargs", "value") if hasattr(node, name))

    return walk(dict(level.__dask_graph__()))


def _check_boxes(faults: _Faults, slide: Slide, level: int) -> None:
    c, z, height, width = slide.levels[level].shape
    rows, columns = min(height, READ_PX), min(width, READ_PX)
    everything = slide.read(Box(0, rows, 0, columns), level=level)
    where = f"level {level}"
    announced, found = (slide.dtype, (c, z, rows, columns)), (everything.dtype, everything.shape)
    faults.expect(found == announced, f"{where} reads as {found}, but is announced as {announced}")
    rng = np.random.default_rng(5)
    boxes = [Box(0, 1, 0, 1), Box(rows - 1, rows, columns - 1, columns), Box(0, rows, 0, columns)]
    for _ in range(13):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in (rows, columns))
        boxes.append(Box(y0, y1, x0, x1))
    with ThreadPoolExecutor(4) as threads:
        for read in (map, threads.map):
            for box, pixels in zip(boxes, read(lambda box: slide.read(box, level=level), boxes), strict=True):
                crop = everything[:, :, box.y0 : box.y1, box.x0 : box.x1]
                faults.expect(
                    np.array_equal(pixels, crop, equal_nan=crop.dtype.kind == "f"),
                    f"{where}, {box}: a box {'read alone' if read is map else 'read by one of four threads'} "
                    "is not the crop of everything",
                )
    for chosen in ([c - 1], list(reversed(range(c)))):
        pixels = slide.read(Box(0, rows, 0, columns), channels=chosen, level=level)
        same = np.array_equal(pixels, everything[chosen], equal_nan=pixels.dtype.kind == "f")
        faults.expect(same, f"{where}: reading channels {chosen} does not give these channels")
    corner = slide.read(Box(height - 1, height, width - 1, width), level=level)
    faults.expect(corner.shape == (c, z, 1, 1), f"{where}: the last pixel reads as {corner.shape}")


def _held(path: Path) -> list[str]:
    """Return the open files and memory maps of this process that are the path or lie in it."""
    import gc

    gc.collect()
    prefix = str(path.resolve())
    handles, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    if not handles.is_dir():
        return []
    names = {str(handle.resolve()) for handle in handles.iterdir() if handle.is_symlink()}
    names |= {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    return sorted(name for name in names if name == prefix or name.startswith(prefix + "/"))
