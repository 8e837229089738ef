"""OME-TIFF: what is read back is what was given, in bands, with a true pyramid, and the same bytes every time."""

import numpy as np
import pytest
import tifffile

from histoquant import ometiff, threads
from histoquant.errors import InputError, StoreError
from histoquant.ometiff import BAND_PX, write_ome_tiff


def written(path, pixels, **changes):
    settings = {"pixel_size_um": 0.325, "channels": [f"c{k}" for k in range(len(pixels))], **changes}
    write_ome_tiff(path, pixels.shape, pixels.dtype, lambda y0, y1: pixels[:, y0:y1], **settings)
    return path


def image(dtype, shape=(2, 1101, 1307)):
    return (np.random.default_rng(3).random(shape) * 250).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
def test_level_0_is_what_was_given(tmp_path, dtype):
    pixels = image(dtype)
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", pixels)) as tiff:
        assert tiff.series[0].axes == "CYX"
        assert tiff.series[0].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(tiff.series[0].asarray(), pixels)


@pytest.mark.parametrize(("dtype", "reference"), [("uint8", 0), ("uint16", 0), ("uint32", 0), ("float32", 1e-4)])
def test_a_further_level_is_the_mean_of_two_by_two(tmp_path, dtype, reference):
    pixels = image(dtype)
    even = np.pad(pixels, ((0, 0), (0, 1), (0, 1)), mode="edge").astype(float)
    mean = even.reshape(2, 551, 2, 654, 2).mean((2, 4))
    expected = mean if dtype == "float32" else np.floor(mean + 0.5)
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", pixels)) as tiff:
        assert [level.shape for level in tiff.series[0].levels] == [(2, 1101, 1307), (2, 551, 654)]
        np.testing.assert_allclose(tiff.series[0].levels[1].asarray(), expected, rtol=0, atol=reference)


def test_labels_are_never_averaged(tmp_path):
    labels = image("uint32", (1, 2300, 2100)) * np.uint32(16_000_000)
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", labels, labels=True)) as tiff:
        for level, stored in enumerate(tiff.series[0].levels):
            np.testing.assert_array_equal(stored.asarray(), labels[0, :: 2**level, :: 2**level])
        assert len(tiff.series[0].levels) == 3
        assert tiff.pages[0].predictor == 1


def test_the_pyramid_ends_when_the_longer_side_is_1024(tmp_path):
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", image("uint8", (1, 30, 1024)))) as tiff:
        assert len(tiff.series[0].levels) == 1
    with tifffile.TiffFile(written(tmp_path / "b.ome.tif", image("uint8", (1, 30, 1025)))) as tiff:
        assert [level.shape for level in tiff.series[0].levels] == [(30, 1025), (15, 513)]


def test_names_and_pixel_size_are_kept(tmp_path):
    path = written(tmp_path / "a.ome.tif", image("uint8"), pixel_size_um=0.1625, channels=("DAPI", "TUNEL µ"))
    with tifffile.TiffFile(path) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in pixels["Channel"]] == ["DAPI", "TUNEL µ"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (0.1625, "µm")
    assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeYUnit"]) == (0.1625, "µm")


def test_pages_are_tiled_and_compressed(tmp_path):
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", image("uint16"))) as tiff:
        page = tiff.pages[0]
        assert (page.tilewidth, page.tilelength, page.predictor) == (512, 512, 2)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert not tiff.is_bigtiff


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    pixels = image("uint16")
    first = written(tmp_path / "a.ome.tif", pixels).read_bytes()
    assert written(tmp_path / "b.ome.tif", pixels).read_bytes() == first
    pixels[0, 0, 0] += 1
    assert written(tmp_path / "c.ome.tif", pixels).read_bytes() != first


def test_pixels_are_asked_for_once_in_bands_from_the_top(tmp_path):
    asked = []

    def rows(y0, y1):
        asked.append((y0, y1))
        return np.zeros((3, y1 - y0, 600), np.uint8)

    write_ome_tiff(tmp_path / "a.ome.tif", (3, 1300, 600), "uint8", rows, pixel_size_um=1, channels="abc")
    assert asked == [(0, BAND_PX), (BAND_PX, 2 * BAND_PX), (2 * BAND_PX, 1300)]


def test_files_beyond_classic_offsets_become_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(ometiff, "CLASSIC_TIFF_BYTES", 1000)
    pixels = image("uint16")
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", pixels)) as tiff:
        assert tiff.is_bigtiff
        np.testing.assert_array_equal(tiff.series[0].asarray(), pixels)


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = written(tmp_path / "a.ome.tif", image("uint8"))
    before = path.read_bytes()

    def rows(y0, y1):
        if y0:
            raise ZeroDivisionError
        return np.zeros((2, y1 - y0, 1307), np.uint8)

    with pytest.raises(ZeroDivisionError):
        write_ome_tiff(path, (2, 1101, 1307), "uint8", rows, pixel_size_um=1, channels="ab")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ome.tif"]


def test_bands_of_another_shape_or_type_are_refused(tmp_path):
    path, announced = tmp_path / "a.ome.tif", (1, 100, 100)
    with pytest.raises(InputError, match="rows from 0 are"):
        write_ome_tiff(
            path, announced, "uint8", lambda *_: np.zeros((1, 100, 99), np.uint8), pixel_size_um=1, channels="a"
        )
    with pytest.raises(InputError, match="rows from 0 are"):
        write_ome_tiff(
            path, announced, "uint8", lambda *_: np.zeros(announced, np.uint16), pixel_size_um=1, channels="a"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"pixel_size_um": 0.0}, {"pixel_size_um": float("nan")}, {"channels": ["a", "a"]}, {"channels": ["a"]}]
)
def test_what_cannot_be_said_in_the_file_is_refused(tmp_path, wrong):
    with pytest.raises(InputError):
        written(tmp_path / "a.ome.tif", image("uint8"), **wrong)
    with pytest.raises(InputError, match="int64"):
        written(tmp_path / "a.ome.tif", image("int64"))


def test_a_missing_folder_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="could not be written"):
        written(tmp_path / "nowhere" / "a.ome.tif", image("uint8"))


@pytest.mark.parametrize("labels", [False, True])
def test_the_number_of_threads_changes_no_byte(tmp_path, monkeypatch, labels):
    pixels = image("uint32", (1, 2300, 2100))
    pixels[:, :1000, 300:1900] = 0  # tiles of nothing, too
    files = []
    for cores in (1, 2, 16):
        monkeypatch.setattr(threads, "available_cores", lambda cores=cores: cores)
        files.append(written(tmp_path / f"{cores}.ome.tif", pixels, labels=labels).read_bytes())
    assert files[0] == files[1] == files[2]
    assert np.array_equal(tifffile.imread(tmp_path / "16.ome.tif"), pixels[0])


def test_a_band_may_be_filled_again_for_the_next(tmp_path):
    """Nothing of a band is kept as a view: the same memory serves for all."""
    pixels = image("uint16", (2, 2300, 1100))
    band = np.empty((2, BAND_PX, 1100), np.uint16)

    def rows(y0, y1):
        band[:] = 7
        band[:, : y1 - y0] = pixels[:, y0:y1]
        return band[:, : y1 - y0]

    for labels in (False, True):
        once = written(tmp_path / "a.ome.tif", pixels, labels=labels).read_bytes()
        again = tmp_path / "b.ome.tif"
        write_ome_tiff(again, pixels.shape, "uint16", rows, pixel_size_um=0.325, channels=["c0", "c1"], labels=labels)
        assert again.read_bytes() == once


def test_a_tile_of_nothing_is_compressed_once(tmp_path, monkeypatch):
    compressed = []
    once = ometiff._Tiles._compressed
    monkeypatch.setattr(ometiff._Tiles, "_compressed", lambda self, tile: compressed.append(1) or once(self, tile))
    pixels = np.zeros((1, 4 * BAND_PX, 4 * BAND_PX), np.uint32)
    pixels[0, 700, 900] = 1
    written(tmp_path / "a.ome.tif", pixels, labels=True)
    assert len(compressed) == 3  # nothing, and the tile that holds the pixel on the two levels that show it
