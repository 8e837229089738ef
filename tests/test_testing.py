"""histoquant.testing finds every broken promise.

The controls are the classes of plugins/example_lab, which keep all promises; each mutant breaks one.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import dask.array
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from histoquant.errors import PluginError
from histoquant.testing import check_reader, check_rule, check_segmenter

PLUGIN = Path(__file__).parents[1] / "plugins" / "example_lab"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", PLUGIN / "histoquant_example_lab" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickle finds classes there
    spec.loader.exec_module(module)
    return module


LabBlobs = _example("blobs").LabBlobs
LabRatio = _example("ratio").LabRatio
LabrawReader = _example("labraw").LabrawReader


# segmenters


class _Loose(BaseModel):
    threshold: float = 0.5


class _NoDefault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float


class OldApi(LabBlobs):
    api = 0


class LooseParams(LabBlobs):
    Params = _Loose


class NeedsParams(LabBlobs):
    Params = _NoDefault


class Signed(LabBlobs):
    def __call__(self, image, pixel_size_um):
        return super().__call__(image, pixel_size_um).astype(np.int32)


class Flat(LabBlobs):
    def __call__(self, image, pixel_size_um):
        return super().__call__(image, pixel_size_um)[0]


class WritesIntoInput(LabBlobs):
    def __call__(self, image, pixel_size_um):
        image[image < 0] = 0
        return super().__call__(image, pixel_size_um)


class Everything(LabBlobs):
    def __call__(self, image, pixel_size_um):
        return np.ones(image.shape[1:], dtype=np.uint32)


class Nothing(LabBlobs):
    def __call__(self, image, pixel_size_um):
        return np.zeros(image.shape[1:], dtype=np.uint32)


class PerTileThreshold(LabBlobs):
    def __call__(self, image, pixel_size_um):
        smooth = ndimage.gaussian_filter(image, (0, 0, 2, 2))
        return super().__call__(smooth / max(float(smooth.max()), 1e-6), pixel_size_um)


class Remembers(LabBlobs):
    def __init__(self, params):
        super().__init__(params)
        self.calls = 0

    def __call__(self, image, pixel_size_um):
        self.calls += 1
        return super().__call__(image - 0.1 * (self.calls > 1), pixel_size_um)


class NoThinStrips(LabBlobs):
    def __call__(self, image, pixel_size_um):
        if min(image.shape[2:]) < 8:
            raise ValueError("image too small")
        return super().__call__(image, pixel_size_um)


class ThinHalo(LabBlobs):
    halo_um = 2.0


class NoHalo(LabBlobs):
    halo_um = 0.0


class DependsOnAllPixels(LabBlobs):
    def __call__(self, image, pixel_size_um):
        return super().__call__(image - 0.5 * float(image.mean()), pixel_size_um)


class DependsOnSize(LabBlobs):
    """Outlines differ by a pixel between image sizes, as sums in a network do."""

    def __call__(self, image, pixel_size_um):
        labels = super().__call__(image, pixel_size_um)
        if image.shape[-1] % 2 == 0 and image.shape[-1] > 300:
            labels[image[0] < 0.55] = 0
        return labels


class HoldsALock(LabBlobs):
    def __init__(self, params):
        super().__init__(params)
        self.lock = threading.Lock()


class SurveysIntoADict(LabBlobs):
    def survey(self, samples, pixel_size_um):
        return {"threshold": 0.4}


class Surveys(LabBlobs):
    def survey(self, samples, pixel_size_um):
        bright = float(np.quantile(np.concatenate([sample.ravel() for sample in samples]), 0.9))
        return self.params.model_copy(update={"threshold": bright / 2})


@pytest.mark.parametrize(
    ("segmenter", "said"),
    [
        (OldApi, "api = 0"),
        (LooseParams, "not frozen.*accepts unknown keys"),
        (NeedsParams, "making Params from its defaults raised ValidationError"),
        (Signed, "int32, not uint32"),
        (Flat, r"shape \(192, 256\), not \(1, 192, 256\)"),
        (WritesIntoInput, "changes its input"),
        (Everything, "no background.*in an empty image.*faint noise"),
        (Nothing, "finds nothing"),
        (PerTileThreshold, "objects in faint noise"),
        (Remembers, "differ the second time"),
        (NoThinStrips, "a strip of 3 pixels raised ValueError: image too small"),
        (ThinHalo, "are not the same .* halo_um is too small"),
        (NoHalo, "halo_um is 0.0"),
        (DependsOnAllPixels, "are not the same .* depends on all pixels"),
        (HoldsALock, "pickling raised TypeError"),
        (SurveysIntoADict, "survey does not return Params"),
    ],
)
def test_broken_segmenters_are_found(segmenter: type[Any], said: str) -> None:
    with pytest.raises(PluginError, match=f"(?s)Segmenter .*{segmenter.__name__} breaks .*{said}"):
        check_segmenter(segmenter)


def test_sound_segmenters_pass() -> None:
    check_segmenter(LabBlobs)
    check_segmenter(Surveys)
    check_segmenter(LabBlobs, {"threshold": 0.3, "max_diameter_um": 12.0})


def test_a_network_may_state_a_bound() -> None:
    with pytest.raises(PluginError, match="are not the same"):
        check_segmenter(DependsOnSize)
    check_segmenter(DependsOnSize, min_iou=0.6)


def test_all_faults_are_listed_together() -> None:
    with pytest.raises(PluginError, match=r"breaks \d promise") as caught:
        check_segmenter(type("Both", (Signed, LabBlobs), {"halo_um": -1.0, "__module__": __name__}))
    assert "int32" in caught.value.message
    assert "halo_um is -1.0" in caught.value.message


# rules


class ListOfCalls(LabRatio):
    def __call__(self, table, scene):
        return super().__call__(table, scene).tolist()


class SeriesOfValues(LabRatio):
    def value(self, table):
        return table[f"mean_{self.channel}"] / table[f"background_{self.channel}"]

    def __call__(self, table, scene):
        return (self.value(table) >= scene.thresholds[self.marker].value).to_numpy()


class Upward(LabRatio):
    def __call__(self, table, scene):
        return self.value(table) <= scene.thresholds[self.marker].value


class UndefinedIsPositive(LabRatio):
    def value(self, table):
        return table[f"ring_mean_{self.channel}"].to_numpy()

    def __call__(self, table, scene):
        return ~(self.value(table) < scene.thresholds[self.marker].value)


class AddsAColumn(LabRatio):
    def value(self, table):
        table["ratio"] = super().value(table)
        return table["ratio"].to_numpy()


class DependsOnOrder(LabRatio):
    def value(self, table):
        return np.cumsum(super().value(table))


class NeedsCells(LabRatio):
    def value(self, table):
        value = super().value(table)
        return value / value.max()


class OnlyFirstMarker(LabRatio):
    def __call__(self, table, scene):
        return self.value(table) >= scene.thresholds["brdu"].value


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (type("NewApi", (LabRatio,), {"api": 2}), "api = 2"),
        (type("Loose", (LabRatio,), {"Params": _Loose}), "not frozen"),
        (ListOfCalls, "calls of a table is list .* not ndarray bool"),
        (SeriesOfValues, r"value of a table is Series float64 \(200,\)"),
        (Upward, "adds positives"),
        (UndefinedIsPositive, "without a value"),
        (AddsAColumn, "changes its table"),
        (DependsOnOrder, "another order"),
        (NeedsCells, "value of an empty table raised ValueError"),
        (OnlyFirstMarker, "raised KeyError: 'brdu'"),
        (type("HoldsALock", (LabRatio,), {"__getstate__": lambda self: threading.Lock()}), "pickling raised"),
    ],
)
def test_broken_rules_are_found(rule: type[Any], said: str) -> None:
    with pytest.raises(PluginError, match=f"(?s)Rule .*{rule.__name__} breaks .*{said}"):
        check_rule(rule)


def test_sound_rules_pass() -> None:
    check_rule(LabRatio)
    check_rule(LabRatio, {"min_area_um2": 60})


# readers


@pytest.fixture
def labraw(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 300, 210), dtype=np.uint16)
    path = tmp_path / "section 1.labraw"
    path.write_bytes(b"LABRAW 1 2 300 210 0.325 DAPI,Alexa 488\n" + pixels.astype("<u2").tobytes())
    return path


class BySuffix(LabrawReader):
    def matches(self, path, head):
        return path.suffix == ".labraw"


class Truthy(LabrawReader):
    def matches(self, path, head):
        return head[:6] == b"LABRAW" and len(head)


class AnyScene(LabrawReader):
    def open(self, path, *, scene=None):
        return super().open(path)


class WrongScene(LabrawReader):
    def scenes(self, path):
        return ["1"]


class Altered(LabrawReader):
    """Opens as the example does, then changes the Slide."""

    def alter(self, slide):
        raise NotImplementedError

    def open(self, path, *, scene=None):
        return self.alter(super().open(path, scene=scene))


class Eager(Altered):
    def alter(self, slide):
        return replace(slide, levels=(dask.array.from_array(slide.read(), chunks=(1, 1, 100, 100)),))


class NotDask(Altered):
    def alter(self, slide):
        return replace(slide, levels=(slide.read(),))


class Elsewhere(Altered):
    def alter(self, slide):
        return replace(slide, path=Path(slide.path.name))


class DefaultsToNoSize(Altered):
    def alter(self, slide):
        return replace(slide, pixel_size_yx_um=(0.0, 0.0))


class WrongType(Altered):
    def alter(self, slide):
        lazy = slide.levels[0]
        lying = lazy.map_blocks(lambda block: block.astype(np.float32), dtype=np.uint16, meta=np.empty(0, "u2"))
        return replace(slide, levels=(lying,))


class PyramidUpsideDown(Altered):
    def alter(self, slide):
        return replace(slide, levels=(slide.levels[0][:, :, ::2, ::2], slide.levels[0]))


class NoSlide(Altered):
    def alter(self, slide):
        return slide.levels[0]


class SharedSeek(Altered):
    """One open file for all threads without a lock: another thread seeks between a seek and its read."""

    keeps_open = False

    def alter(self, slide):
        file = slide.path.open("rb", buffering=0)
        start, width = len(file.readline()), slide.shape[1]
        turn = threading.Barrier(2)

        def rows(block_info=None):
            (c0, _), _, (y0, y1), _ = block_info[None]["array-location"]
            file.seek(start + (c0 * slide.shape[0] + y0) * width * 2)
            if threading.current_thread() is not threading.main_thread():
                try:
                    turn.wait(0.2)
                except threading.BrokenBarrierError:
                    turn.reset()
            return np.frombuffer(file.read((y1 - y0) * width * 2), "<u2").reshape(1, 1, y1 - y0, width)

        level = dask.array.map_blocks(rows, chunks=slide.levels[0].chunks, dtype="<u2", meta=np.empty(0, "<u2"))
        return replace(slide, levels=(level,), close=(lambda: None) if self.keeps_open else file.close)


class KeepsOpen(Altered):
    held: Any = None

    def alter(self, slide):
        type(self).held = slide.path.open("rb")
        return slide


class KeepsMapped(Altered):
    held: Any = None

    def alter(self, slide):
        type(self).held = np.memmap(slide.path, mode="r")
        return slide


@pytest.fixture
def _let_go() -> Iterator[None]:
    yield
    if KeepsOpen.held is not None:
        KeepsOpen.held.close()
    KeepsOpen.held = KeepsMapped.held = None


LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list open handles")


@pytest.mark.usefixtures("_let_go")
@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (type("NewApi", (LabrawReader,), {"api": 2}), "api = 2"),
        (type("Suffix", (LabrawReader,), {"suffixes": ".LABRAW"}), "not a tuple of lower-case"),
        (type("Arguments", (LabrawReader,), {"__init__": lambda self, path: None}), "without arguments raised"),
        (BySuffix, "not False, for random bytes called section 1.labraw.*an empty file"),
        (Truthy, "matches gives [0-9]+, not True"),
        (AnyScene, "opens a scene that the file does not have"),
        (WrongScene, "opens no scene of the file: .*has no scenes"),
        (Eager, "level 0 is not lazy: 252000 of its 252000 bytes"),
        (NotDask, "level 0 is ndarray, not a dask array"),
        (Elsewhere, "a worker cannot open it again"),
        (DefaultsToNoSize, "neither unknown .* nor positive"),
        (WrongType, "reads as .*float32.* announced as .*uint16"),
        (PyramidUpsideDown, r"level 1 has shape \(2, 1, 300, 210\) after \(2, 1, 150, 105\)"),
        (NoSlide, "open returns Array, not a Slide"),
        (SharedSeek, "read by one of four threads is not the crop|reading level 0 raised"),
        pytest.param(KeepsOpen, "after close it still holds .*section 1.labraw", marks=LINUX),
        pytest.param(KeepsMapped, "after close it still holds .*section 1.labraw", marks=LINUX),
    ],
)
def test_broken_readers_are_found(reader: type[Any], said: str, labraw: Path) -> None:
    with pytest.raises(PluginError, match=f"(?s)Reader .*{reader.__name__} breaks .*({said})"):
        check_reader(reader, labraw)


def test_a_sound_reader_passes(labraw: Path) -> None:
    check_reader(LabrawReader, labraw)
