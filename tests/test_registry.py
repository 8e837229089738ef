"""Plug-ins are found by name without being imported, and a slide is opened by whoever knows its content."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, EntryPoints, distributions
from pathlib import Path

import numpy as np
import pytest

from histoquant import registry
from histoquant.errors import FormatError, PixelSizeError, PluginError
from histoquant.registry import fingerprint_of, list_plugins, load, open_slide, reader_of, slide_files

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

# A format of one text line: TOY channels height width value pixel_size_um pixel_type; all pixels are alike.
READER = """
import dask.array, numpy as np
from histoquant.model.slide import Slide

CLOSED = []

class Toy:
    api = 1
    suffixes = (".toy",)

    def matches(self, path, head):
        return head.startswith(b"TOY ")

    def scenes(self, path):
        return []

    def open(self, path, *, scene=None):
        words = path.read_text().split()
        c, y, x = map(int, words[1:4])
        size = float(words[5])
        return Slide(
            name=path.name,
            path=path,
            levels=tuple(
                dask.array.full((c, 1, y // n, x // n), int(words[4]), dtype=words[6]) for n in (1, 2)
            ),
            channels=tuple("abcdef"[:c]),
            pixel_size_yx_um=(size, size) if size else None,
            close=lambda: CLOSED.append(path.name),
        )
"""
SEGMENTER = """
from pydantic import BaseModel

class Blobs:
    api = 1
    class Params(BaseModel):
        pass
    def __call__(self, image, pixel_size_um):
        pass
"""


class Lab:
    """A site folder of its own: distributions are written into it as pip would; no other is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, distribution: str, source: str, *, version: str = "1.0", **entries: str) -> str:
        module = f"{distribution.replace('-', '_')}_module_{len(self.modules)}"
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        with (info / "entry_points.txt").open("a") as file:
            for key, value in entries.items():
                group, name = key.split("__")
                file.write(f"[histoquant.{group}]\n{name} = {module}:{value}\n")
        registry.rescan()
        return module

    def entry_points(self, group: str) -> EntryPoints:
        found: list[Distribution] = list(distributions(path=[str(self.folder)]))
        return EntryPoints(entry for each in found for entry in each.entry_points.select(group=group))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site"
    folder.mkdir()
    lab = Lab(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(registry, "entry_points", lab.entry_points)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    registry.rescan()
    yield lab
    for module in lab.modules:
        sys.modules.pop(module, None)
    registry.rescan()


@pytest.fixture
def toy(lab: Lab, tmp_path: Path):
    """Write TOY files; their reader is installed."""
    lab.install("toy-lab", READER, readers__toy="Toy")

    def write(name: str, shape=(1, 8, 6), value=1, pixel_size_um=0.5, dtype="uint16") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"TOY {' '.join(map(str, shape))} {value} {pixel_size_um} {dtype}")
        return path

    return write


# names


def test_listing_imports_nothing_and_loading_says_what_is_broken(lab: Lab) -> None:
    module = lab.install("broken-lab", "raise RuntimeError('no licence server')", segmenters__costly="Any")
    (listed,) = list_plugins("segmenter")
    assert (listed.name, listed.distribution, listed.version, listed.error) == (
        "costly",
        "broken-lab",
        "1.0",
        None,
    )
    assert listed.value == f"{module}:Any"
    assert module not in sys.modules
    (listed,) = list_plugins("segmenter", load=True)
    assert "RuntimeError: no licence server" in listed.error
    assert "broken-lab 1.0" in listed.error


def test_all_kinds_are_listed_in_order(lab: Lab) -> None:
    lab.install("z-lab", READER, readers__toy="Toy")
    lab.install("a-lab", SEGMENTER, segmenters__b="Blobs", rules__r="Blobs")
    lab.install("b-lab", SEGMENTER, segmenters__a="Blobs")
    assert [(p.kind, p.name) for p in list_plugins()] == [
        ("reader", "toy"),
        ("segmenter", "a"),
        ("segmenter", "b"),
        ("rule", "r"),
    ]
    assert [p.error is None for p in list_plugins(load=True)] == [True, True, True, False]  # no 'value'


def test_load_gives_the_class_once(lab: Lab) -> None:
    module = lab.install("a-lab", SEGMENTER, segmenters__blobs="Blobs")
    found = load("segmenter", "blobs")
    assert found is sys.modules[module].Blobs
    assert load("segmenter", "blobs") is found


def test_unknown_name_lists_the_known_and_suggests(lab: Lab) -> None:
    lab.install("a-lab", SEGMENTER, segmenters__blobs="Blobs", segmenters__other="Blobs")
    with pytest.raises(PluginError, match=r"called 'blob'; installed: blobs, other.*mean 'blobs'"):
        load("segmenter", "blob")
    with pytest.raises(PluginError, match="installed: none"):
        load("rule", "blobs")


def test_one_name_from_two_distributions_is_an_error_naming_both(lab: Lab) -> None:
    lab.install("a-lab", SEGMENTER, segmenters__blobs="Blobs")
    lab.install("b-lab", SEGMENTER, version="2.1", segmenters__blobs="Blobs")
    for ask in (load, fingerprint_of):
        with pytest.raises(PluginError, match=r"a-lab 1\.0.*b-lab 2\.1"):
            ask("segmenter", "blobs")
    listed = list_plugins("segmenter", load=True)
    assert [p.distribution for p in listed] == ["a-lab", "b-lab"]
    assert all("a-lab" in p.error and "b-lab" in p.error for p in listed)


def test_a_failing_import_names_the_distribution_and_keeps_the_cause(lab: Lab) -> None:
    lab.install("a-lab", "import no_such_module_at_all", segmenters__blobs="Blobs")
    with pytest.raises(PluginError, match=r"a-lab 1\.0.*no_such_module_at_all.*uninstall a-lab") as caught:
        load("segmenter", "blobs")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("api = 1", "api = 2", "says api = 2, histoquant .* needs api = 1"),
        ("api = 1", "pass", "says api = None"),
        ("def __call__", "def call", "no '__call__'"),
        ("class Params(BaseModel)", "class Settings(BaseModel)", "no 'Params'"),
        ("Params(BaseModel)", "Params", "not a pydantic model"),
        ("class Blobs:", "def Blobs():", "not a class but function"),
    ],
)
def test_the_handshake(lab: Lab, old: str, new: str, said: str) -> None:
    lab.install("a-lab", SEGMENTER.replace(old, new), segmenters__blobs="Blobs")
    with pytest.raises(PluginError, match=f"a-lab.*{said}"):
        load("segmenter", "blobs")


def test_fingerprint_has_distribution_version_and_class(lab: Lab) -> None:
    module = lab.install("a-lab", "raise RuntimeError", version="3.2", rules__ratio="Ratio")
    assert fingerprint_of("rule", "ratio") == f"a-lab 3.2 {module}:Ratio"


def test_what_is_built_in_comes_through_the_same_doors_and_works() -> None:
    registry.rescan()
    own = [plugin for plugin in list_plugins(load=True) if plugin.distribution == "histoquant"]
    assert {"tiff", "zarr", "watershed", "nuclear", "ring"} <= {plugin.name for plugin in own}
    assert [str(plugin.error) for plugin in own if plugin.error] == []


# one file


def test_the_reader_is_chosen_by_content(toy) -> None:
    path = toy("section.tif", (2, 8, 6), value=7)
    slide = open_slide(str(path))
    assert slide.channels == ("a", "b")
    assert (slide.read() == 7).all()
    assert reader_of(path).distribution == "toy-lab"


def test_suffix_then_lab_then_name_decide_who_is_asked_first(lab: Lab, toy) -> None:
    path = toy("section.toy")
    other = READER.replace(".toy", ".other")
    lab.install("a-lab", other, readers__another="Toy")
    assert reader_of(path).name == "toy"  # its suffix fits, though 'another' knows the content too
    lab.install("histoquant", READER, readers__built_in="Toy")
    assert reader_of(path).name == "toy"  # both suffixes fit: the lab's before ours
    assert reader_of(path.rename(path.with_suffix(".other"))).name == "another"


def test_pixel_size_can_be_stated(toy) -> None:
    path = toy("section.toy", pixel_size_um=0)
    with pytest.raises(PixelSizeError):
        _ = open_slide(path).pixel_size_um
    assert open_slide(path, pixel_size_um=0.25).pixel_size_um == 0.25
    assert open_slide(toy("other.toy", pixel_size_um=0.5), pixel_size_um=0.25).pixel_size_um == 0.25


def test_a_reader_that_fails_when_asked_is_named(lab: Lab, toy) -> None:
    lab.install(
        "a-lab",
        READER.replace("return head", "return path.nothing"),
        readers__bad="Toy",
    )
    with pytest.raises(PluginError, match=r"section.toy.*'bad' of a-lab 1\.0 failed.*AttributeError"):
        open_slide(toy("section.toy"))


def test_a_broken_reader_is_not_passed_over(lab: Lab, toy) -> None:
    path = toy("section.toy")
    open_slide(path)
    lab.install("a-lab", "import no_such_module_at_all", readers__bad="Toy")
    with pytest.raises(PluginError, match="a-lab"):
        open_slide(path)


def test_whatever_a_reader_raises_on_a_damaged_file_names_file_and_reader(toy) -> None:
    path = toy("section.toy")
    path.write_text("TOY 1 what")
    with pytest.raises(FormatError, match=r"section.toy.*'toy' of toy-lab 1\.0 could not open.*ValueError") as caught:
        open_slide(path)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (bytes(5000), "zero bytes"),
        (b"\n<!DOCTYPE HTML><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS.*git lfs pull"),
        (b"/annex/objects/MD5E-s1--0", "git-annex"),
        (b"PK\x03\x04" + bytes(99), "ZIP"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*OME-TIFF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "OLE2"),
        (b"\x01\x02 unheard of", r"\(toy\)\. Export"),
    ],
)
def test_what_no_reader_knows_is_described(toy, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"Slide 'x.tif': not a format histoquant reads.*{said}"):
        open_slide(path)


def test_folders_that_are_no_slides_are_described(toy, tmp_path: Path) -> None:
    folder = tmp_path / "day 1"
    folder.mkdir()
    with pytest.raises(FormatError, match=r"folder without Zarr metadata.*Name the image in it"):
        open_slide(folder)
    (folder / "zarr.json").write_text("{}")
    with pytest.raises(FormatError, match="Zarr folder without OME"):
        open_slide(folder)


def test_a_missing_file_is_one_sentence(toy, tmp_path: Path) -> None:
    for ask in (open_slide, reader_of, slide_files):
        with pytest.raises(FormatError, match=r"Slide 'x.tif': there is no such file \(.*x.tif\)\. Correct"):
            ask(tmp_path / "x.tif")
    with pytest.raises(FormatError, match="nor its folder"):
        open_slide(tmp_path / "nowhere" / "x.tif")


# channel series


def test_a_channel_series_is_one_slide(toy, tmp_path: Path) -> None:
    for channel in (10, 2, 1, 0):
        toy(f"AS_09125_D03f00d{channel}.toy", value=channel)
    toy("AS_09125_D03f01d0.toy", value=99)  # another field
    toy("._AS_09125_D03f00d1.toy", value=99)  # what macOS leaves on network disks
    pattern = tmp_path / "AS_09125_D03f00d*.toy"
    slide = open_slide(pattern)
    assert slide.channels == ("d0", "d1", "d2", "d10")
    assert slide.read()[:, 0, 0, 0].tolist() == [0, 1, 2, 10]
    assert slide.read(level=1).shape == (4, 1, 4, 3)
    assert (slide.path, slide.pixel_size_um) == (pattern, 0.5)  # a worker opens the same again
    assert [file.name[-6:] for file in slide_files(pattern)] == ["d0.toy", "d1.toy", "d2.toy", "10.toy"]
    assert reader_of(pattern).name == "toy"
    slide.close()
    slide.close()
    closed = sys.modules["toy_lab_module_0"].CLOSED
    assert len(closed) == len(set(closed)) == 4


@pytest.mark.parametrize(
    ("files", "pattern", "channels"),
    [
        (["m1_DAPI.toy", "m1_GFP.toy"], "m1_*.toy", ["DAPI", "GFP"]),
        (["x_w1DAPI.ome.toy", "x_w2Cy5.ome.toy"], "x_w*.toy", ["w1DAPI", "w2Cy5"]),
        (["x_ch00.toy", "x_ch01.toy"], "x_ch0[01].toy", ["ch00", "ch01"]),
        (["DAPI/f1.toy", "TUNEL/f1.toy"], "*/f1.toy", ["DAPI", "TUNEL"]),
        (["run [2]/a_1.toy", "run [2]/a_2.toy"], "run [2]/a_?.toy", ["1", "2"]),
        (["blue x.toy", "red x.toy"], "* x.toy", ["blue", "red"]),
        (["x.toy", "x_GFP.toy"], "x*.toy", ["x", "x_GFP"]),  # nothing is left of the first: whole stems
    ],
)
def test_channels_are_named_by_what_differs(toy, tmp_path: Path, files, pattern, channels) -> None:
    for value, name in enumerate(files):
        toy(name, value=value)
    slide = open_slide(tmp_path / pattern)
    assert list(slide.channels) == channels
    assert slide.read()[:, 0, 0, 0].tolist() == list(range(len(files)))


def test_files_of_several_channels_keep_their_names(toy, tmp_path: Path) -> None:
    toy("x_1.toy", (2, 8, 6))
    toy("x_2.toy", (1, 8, 6))
    assert open_slide(tmp_path / "x_*.toy").channels == ("1_a", "1_b", "2")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"shape": (1, 8, 7)}, r"shape.*x_1.toy.*\(1, 8, 6\).*x_2.toy.*\(1, 8, 7\)"),
        ({"dtype": "uint8"}, "pixel type.*uint16.*uint8"),
        ({"pixel_size_um": 0.4}, "pixel size.*0.5.*0.4.*pixel_size_um"),
    ],
)
def test_files_of_a_series_must_agree_and_are_closed_when_not(toy, tmp_path: Path, other, said) -> None:
    toy("x_1.toy")
    toy("x_2.toy", **other)
    with pytest.raises(FormatError, match=said):
        open_slide(tmp_path / "x_?.toy")
    assert sorted(sys.modules["toy_lab_module_0"].CLOSED) == ["x_1.toy", "x_2.toy"]
    if "pixel_size_um" in other:
        assert open_slide(tmp_path / "x_?.toy", pixel_size_um=0.4).pixel_size_um == 0.4


def test_a_name_that_exists_is_no_pattern(toy, tmp_path: Path) -> None:
    toy("x[1].toy", value=5)
    toy("x1.toy", value=6)
    assert open_slide(tmp_path / "x[1].toy").read().max() == 5
    assert slide_files(tmp_path / "x[1].toy") == [tmp_path / "x[1].toy"]
    assert open_slide(tmp_path / "x?.toy").channels == ("a",)  # one match is that slide


@pytest.mark.parametrize("pattern", ["y_*.toy", "nowhere/x_*.toy", "x**.toy"])
def test_a_pattern_that_matches_nothing_is_an_error(toy, tmp_path: Path, pattern: str) -> None:
    toy("z_1.toy")
    for ask in (open_slide, slide_files):
        with pytest.raises(FormatError, match=r"Slide '.*toy'"):
            ask(tmp_path / pattern)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("s.zarr/zarr.json", "s.zarr/0/c/0/1", "s.zarr/0/c/0/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.relative_to(tmp_path).as_posix() for file in slide_files(tmp_path / "s.zarr")] == [
        "s.zarr/0/c/0/0",
        "s.zarr/0/c/0/1",
        "s.zarr/zarr.json",
    ]


def test_three_files_of_a_screen() -> None:
    folder = SHARED / "human_dna_ph3" / "images"
    if not folder.is_dir():
        pytest.skip(f"the screen's images are not at {folder}")
    registry.rescan()
    slide = open_slide(folder / "AS_09125_050116030001_D03f00d*.tif", pixel_size_um=0.65)
    assert slide.channels == ("d0", "d1", "d2")
    for channel, file in zip(slide.read(), slide_files(slide.path), strict=True):
        alone = open_slide(file)
        np.testing.assert_array_equal(channel, alone.read()[0])
        alone.close()
    slide.close()
