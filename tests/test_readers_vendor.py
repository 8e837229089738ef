"""CZI, LIF and ND2. No ND2 file and no way to write one is at hand: its reader runs on a stand-in for the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from histoquant.errors import FormatError, InputError, MissingExtraError
from histoquant.model.slide import Box
from histoquant.readers.czi import CziReader
from histoquant.readers.vendor import LifReader, Nd2Reader

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "formats"
RNG = np.random.default_rng(11)
CZI_HEAD = b"ZISRAWFILE" + bytes(22)
LIF_HEAD = b"\x70\0\0\0" + bytes(4) + b"\x2a" + bytes(20)
ND2_HEAD = b"\xda\xce\xbe\x0a" + bytes(28)


def sample(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"sample file {name} is not on this machine")
    return path


def is_open(path: Path) -> bool:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files can be listed on Linux only")
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing's own handle
            continue
    return str(path) in links


@pytest.mark.parametrize(
    ("head", "reader"),
    [(CZI_HEAD, CziReader), (LIF_HEAD, LifReader), (ND2_HEAD, Nd2Reader), (b"", None), (b"II*\0", None)],
)
def test_told_by_the_first_bytes(head, reader):
    for candidate in (CziReader, LifReader, Nd2Reader):
        assert candidate().matches(Path("a.bin"), head) is (candidate is reader)


def test_old_nd2_needs_its_suffix():
    jpeg2000 = b"\0\0\0\x0cjP  \r\n\x87\n"
    assert Nd2Reader().matches(Path("a.nd2"), jpeg2000)
    assert not Nd2Reader().matches(Path("a.jp2"), jpeg2000)


@pytest.mark.parametrize(
    ("reader", "module"), [(CziReader, "pylibCZIrw.czi"), (LifReader, "liffile"), (Nd2Reader, "nd2")]
)
def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, reader, module):
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    path = tmp_path / "a.bin"
    path.write_bytes(b"")
    for call in (reader().open, reader().scenes):
        with pytest.raises(MissingExtraError, match="needs the package") as caught:
            call(path)
        assert "pip install 'histoquant[vendor]'" in caught.value.remedy


@pytest.mark.parametrize(("reader", "head"), [(CziReader, CZI_HEAD), (LifReader, LIF_HEAD), (Nd2Reader, ND2_HEAD)])
def test_damage_is_told_and_nothing_stays_open(tmp_path, reader, head):
    pytest.importorskip({CziReader: "pylibCZIrw", LifReader: "liffile", Nd2Reader: "nd2"}[reader])
    path = tmp_path / "a.bin"
    for content in (b"", head, head * 100):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"a\.bin"):
            reader().open(path)
        assert not is_open(path)
    with pytest.raises(FormatError, match="does not exist"):
        reader().open(tmp_path / "b.bin")
    with pytest.raises(FormatError, match="folder"):
        reader().open(tmp_path)


# ---------------------------------------------------------------- CZI


def write_czi(path: Path, pictures: dict[tuple[int, int, int, int], np.ndarray], **metadata: object) -> Path:
    """Write pictures at (channel, z, x, y)."""
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(path), exist_ok=True) as file:
        for (c, z, x, y), picture in pictures.items():
            file.write(picture, plane={"C": c, "Z": z, "T": 0}, location=(x, y))
        file.write_metadata("a", **metadata)
    return path


def test_czi_channels_planes_and_size(tmp_path):
    full = RNG.integers(0, 60000, (2, 3, 1100, 1300)).astype(np.uint16)
    path = write_czi(
        tmp_path / "a.czi",
        {(c, z, 0, 0): full[c, z] for c in range(2) for z in range(3)},
        channel_names={0: "DAPI", 1: "BrdU"},
        scale_x=0.325e-6,
        scale_y=0.325e-6,
        scale_z=2e-6,
    )
    slide = CziReader().open(path)
    assert slide.channels == ("DAPI", "BrdU")
    assert slide.pixel_size_yx_um == (0.325, 0.325)
    assert slide.z_step_um == 2.0
    assert slide.levels[0].chunksize == (1, 1, 1024, 1024)
    np.testing.assert_array_equal(slide.read(), full)
    np.testing.assert_array_equal(
        slide.read(Box(1000, 1100, 990, 1300), channels=[1]), full[1:, :, 1000:1100, 990:1300]
    )
    assert is_open(path)
    slide.close()
    slide.close()
    assert not is_open(path)
    with pytest.raises(FormatError, match="closed"):
        slide.read()


def test_czi_colour_is_red_green_blue_and_gaps_are_white_when_bright(tmp_path):
    bright = np.full((60, 80, 3), (230, 235, 240), np.uint8)  # blue, green, red as CZI stores them
    bright[10:20, 10:20] = (20, 60, 120)
    for stored, brightfield, gap in ((bright, True, 255), (255 - bright, False, 0)):
        path = write_czi(tmp_path / "a.czi", {(0, 0, 0, 0): stored, (0, 0, 120, 0): stored})
        slide = CziReader().open(path)
        assert slide.channels == ("red", "green", "blue")
        assert slide.brightfield is brightfield
        pixels = slide.read()[:, 0]
        np.testing.assert_array_equal(pixels[..., :80], np.moveaxis(stored[..., ::-1], -1, 0))
        assert np.all(pixels[..., 80:120] == gap)
        slide.close()


def test_czi_time_is_refused(tmp_path):
    czi = pytest.importorskip("pylibCZIrw.czi")
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as file:
        for t in range(2):
            file.write(np.ones((8, 8), np.uint16), plane={"C": 0, "Z": 0, "T": t})
        file.write_metadata("a")
    with pytest.raises(FormatError, match="2 time points"):
        CziReader().open(path)
    assert not is_open(path)


def test_real_czi_mosaic():
    pytest.importorskip("pylibCZIrw")
    path = sample("S3_1Pos_2Mosaic_T1_Z1_CH1.czi")
    assert CziReader().scenes(path) == ["TR1", "P1", "TR2"]
    with pytest.raises(InputError, match="TR1, P1, TR2"):
        CziReader().open(path)
    assert not is_open(path)
    shapes = {}
    for scene in ("TR1", "P1", "TR2"):
        slide = CziReader().open(path, scene=scene)
        assert (slide.channels, slide.pixel_size_um, slide.dtype) == (("DAPI",), 1.6, np.uint16)
        shapes[scene] = slide.shape
        whole = slide.read()
        assert whole.max() > 2 * np.median(whole[whole > 0])  # tissue, not filling
        np.testing.assert_array_equal(slide.read(Box(5, 60, 9, 64)), whole[..., 5:60, 9:64])
        slide.close()
    assert shapes == {"TR1": (122, 295), "P1": (64, 64), "TR2": (237, 352)}


def test_real_czi_compressed_has_no_pixel_size():
    """Its metadata give a scale of 0."""
    pytest.importorskip("pylibCZIrw")
    slide = CziReader().open(sample("newCZI_compressed.czi"))
    assert (slide.shape, slide.channels, slide.pixel_size_yx_um) == ((512, 512), ("channel_0",), None)
    assert slide.read().std() > 0
    slide.close()


# ---------------------------------------------------------------- LIF


def test_real_lif():
    liffile = pytest.importorskip("liffile")
    path = sample("xz-example.lif")
    reader = LifReader()
    assert reader.scenes(path) == ["xzt", "xzy", "xz"]
    with pytest.raises(FormatError, match="20 time points"):
        reader.open(path, scene="xzt")
    assert not is_open(path)
    with liffile.LifFile(path) as file:
        stack = file.images[1].asarray()  # y, c, z, x
    slide = reader.open(path, scene="xzy")
    expected = stack.transpose(1, 2, 0, 3)
    assert slide.levels[0].shape == expected.shape
    np.testing.assert_array_equal(slide.read(), expected)
    np.testing.assert_array_equal(slide.read(Box(3, 9, 40, 50), channels=[1]), expected[1:, :, 3:9, 40:50])
    # Length 17.81554 um over 127 steps along x, 5.039354 um over 22 along y, as the file's XML has them
    assert slide.pixel_size_yx_um == pytest.approx((5.039354 / 22, 17.81554 / 127), rel=1e-4)
    assert slide.z_step_um == pytest.approx(17.8154 / 127, rel=1e-4)
    slide.close()
    assert not is_open(path)
    with pytest.raises(FormatError, match="closed"):
        slide.read()
    flat = reader.open(path, scene="xz")  # one row: nothing says how tall it is
    assert flat.levels[0].shape == (2, 512, 1, 512)
    assert flat.pixel_size_yx_um is None
    flat.close()


# ---------------------------------------------------------------- ND2


class StandInND2:
    """Has the attributes of nd2.ND2File 0.12 that are used; two positions, three planes, two channels."""

    pixels = RNG.integers(0, 4000, (2, 3, 2, 20, 30)).astype(np.uint16)  # p, z, c, y, x
    calibrated = (True, True, True)
    n_times = 1

    def __init__(self, path: str) -> None:
        self.sizes = {"P": 2, "Z": 3, "C": 2, "Y": 20, "X": 30}
        if self.n_times > 1:
            self.sizes["T"] = self.n_times
        self.attributes = SimpleNamespace(heightPx=20, widthPx=30)
        self.components_per_channel, self.is_rgb, self.dtype = 1, False, np.dtype(np.uint16)
        self.loop_indices = tuple({"P": p, "Z": z} for p in range(2) for z in range(3))
        points = [SimpleNamespace(name="left"), SimpleNamespace(name=None)]
        self.experiment = [SimpleNamespace(type="XYPosLoop", parameters=SimpleNamespace(points=points))]
        volume = SimpleNamespace(axesCalibrated=self.calibrated)
        self.metadata = SimpleNamespace(
            channels=[SimpleNamespace(channel=SimpleNamespace(name=n), volume=volume) for n in ("DAPI", "DCX")]
        )
        self.closed = 0

    def voxel_size(self) -> tuple[float, float, float]:
        return 0.25, 0.5, 2.0  # x, y, z

    def read_frame(self, number: int) -> np.ndarray:
        return self.pixels.reshape(6, 2, 20, 30)[number]

    def close(self) -> None:
        self.closed += 1


def test_nd2_positions_planes_and_calibration(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nd2", SimpleNamespace(ND2File=StandInND2))
    path = tmp_path / "a.nd2"
    path.write_bytes(ND2_HEAD)
    assert Nd2Reader().scenes(path) == ["left", "position_1"]
    slide = Nd2Reader().open(path, scene="position_1")
    np.testing.assert_array_equal(slide.read(), StandInND2.pixels[1].swapaxes(0, 1))
    np.testing.assert_array_equal(slide.read(Box(2, 9, 3, 8), channels=[1])[0], StandInND2.pixels[1, :, 1, 2:9, 3:8])
    assert slide.channels == ("DAPI", "DCX")
    assert slide.pixel_size_yx_um == (0.5, 0.25)
    assert slide.z_step_um == 2.0
    slide.close()
    with pytest.raises(FormatError, match="closed"):
        slide.read()
    monkeypatch.setattr(StandInND2, "calibrated", (False, False, False))
    assert Nd2Reader().open(path, scene="left").pixel_size_yx_um is None
    monkeypatch.setattr(StandInND2, "n_times", 4)
    with pytest.raises(FormatError, match="4 time points"):
        Nd2Reader().open(path, scene="left")
