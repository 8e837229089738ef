"""What a file holds is what a slide holds: pixels bit for bit, names, sizes in um; and damage is told at the door."""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from histoquant.errors import FormatError, InputError, PixelSizeError
from histoquant.model.slide import Box
from histoquant.readers.metadata import density_um, length_um, named_channels
from histoquant.readers.tiff import PictureReader, TiffReader
from histoquant.readers.zarr import ZarrReader

DATA = Path(__file__).parents[1].parent / "shared" / "data"
RNG = np.random.default_rng(7)


def sample(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"sample file {name} is not on this machine")
    return path


def noise(*shape: int, dtype: object = np.uint16) -> np.ndarray:
    return RNG.integers(0, 250, shape).astype(dtype)


def open_files() -> set[str]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files can be listed on Linux only")
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing's own handle
            continue
    return found


def pyramid(path: Path, full: np.ndarray, *, steps: tuple[int, ...] = (2, 4), **options: object) -> Path:
    """An OME-TIFF (c, z, y, x) with its smaller levels in SubIFDs, as Bio-Formats and QuPath write it."""
    metadata = options.pop("metadata", {})
    with tifffile.TiffWriter(path, ome=True, bigtiff=bool(options.pop("bigtiff", False))) as tif:
        tif.write(full, subifds=len(steps), metadata={"axes": "CZYX", **metadata}, **options)
        for step in steps:
            tif.write(full[..., ::step, ::step], subfiletype=1, metadata=None, **options)
    return path


# ---------------------------------------------------------------- TIFF: pixels


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_ome_pyramid_pixels_names_and_size(tmp_path, compression, bigtiff):
    full = noise(3, 2, 500, 700)
    path = pyramid(
        tmp_path / "a.ome.tif",
        full,
        tile=(128, 256),
        compression=compression,
        predictor=compression is not None,
        bigtiff=bigtiff,
        metadata={
            "Channel": {"Name": ["DAPI", "TUNEL", "DAPI"]},
            "PhysicalSizeX": 325.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.325,
            "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 0.002,
            "PhysicalSizeZUnit": "mm",
        },
    )
    slide = TiffReader().open(path)
    assert slide.channels == ("DAPI", "TUNEL", "DAPI_2")
    assert slide.pixel_size_um == pytest.approx(0.325, rel=1e-12)
    assert slide.z_step_um == pytest.approx(2.0, rel=1e-12)
    assert [level.shape for level in slide.levels] == [(3, 2, 500, 700), (3, 2, 250, 350), (3, 2, 125, 175)]
    assert slide.levels[0].chunksize == (1, 1, 256, 256)  # whole tiles, two of 128 rows
    for level, step in enumerate((1, 2, 4)):
        np.testing.assert_array_equal(slide.read(level=level), full[..., ::step, ::step])
    # boxes inside one tile, across tiles, and to the ragged edge
    for box in (Box(3, 90, 10, 200), Box(100, 400, 200, 600), Box(490, 500, 690, 700), Box(0, 1, 0, 1)):
        expected = full[[2, 0], :, box.y0 : box.y1, box.x0 : box.x1]
        np.testing.assert_array_equal(slide.read(box, channels=[2, 0]), expected)
    slide.close()


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.uint64, np.float16, np.float32, np.float64]
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_pixel_type_passes_through(tmp_path, dtype, byteorder):
    pixels = noise(300, 200, dtype=dtype)
    for name, options in {
        "raw": {},
        "strips": {"rowsperstrip": 7, "compression": "zlib"},
        "tiles": {"tile": (64, 64)},
    }.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, byteorder=byteorder, photometric="minisblack", **options)
        slide = TiffReader().open(path)
        assert slide.dtype == np.dtype(dtype)
        assert slide.dtype.isnative
        np.testing.assert_array_equal(slide.read()[0, 0], pixels)
        np.testing.assert_array_equal(slide.read(Box(11, 131, 70, 101))[0, 0], pixels[11:131, 70:101])
        slide.close()


def test_nan_and_infinity_pass_through(tmp_path):
    pixels = np.array([[np.nan, np.inf], [-np.inf, 1]], np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    slide = TiffReader().open(tmp_path / "a.tif")
    np.testing.assert_array_equal(slide.read()[0, 0], pixels)
    slide.close()


def test_bilevel_becomes_uint8_and_complex_is_refused(tmp_path):
    mask = noise(20, 30) > 100
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    slide = TiffReader().open(tmp_path / "mask.tif")
    assert slide.dtype == np.uint8
    np.testing.assert_array_equal(slide.read()[0, 0], mask)
    slide.close()
    tifffile.imwrite(tmp_path / "complex.tif", np.ones((4, 4), np.complex64))
    with pytest.raises(FormatError, match="complex64"):
        TiffReader().open(tmp_path / "complex.tif")


def test_one_pixel(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[7]], np.uint8))
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.read().tolist() == [[[[7]]]]
    slide.close()


def test_tile_left_out_of_the_file_is_zero(tmp_path):
    # a generator that yields None writes a tile with offset and byte count 0
    tile = noise(64, 64)
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, iter([tile, None]), shape=(64, 128), dtype=np.uint16, tile=(64, 64), compression="zlib")
    slide = TiffReader().open(path)
    np.testing.assert_array_equal(slide.read()[0, 0], np.hstack([tile, np.zeros_like(tile)]))
    slide.close()


def test_boxes_read_by_many_threads_agree(tmp_path):
    full = noise(1, 1, 600, 600)
    slide = TiffReader().open(pyramid(tmp_path / "a.ome.tif", full, tile=(64, 64), compression="zlib"))
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for y, x in rng.integers(0, 500, (15, 2)):
            if not np.array_equal(slide.read(Box(y, y + 90, x, x + 90)), full[..., y : y + 90, x : x + 90]):
                wrong.append((y, x))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    slide.close()


# ---------------------------------------------------------------- TIFF: axes


def test_imagej_hyperstack_with_micron(tmp_path):
    full = noise(5, 2, 40, 60)  # z, c
    path = tmp_path / "a.tif"
    labels = ["DAPI", "BrdU"] * 5
    tifffile.imwrite(
        path,
        full,
        imagej=True,
        resolution=(4.0, 4.0),
        metadata={"axes": "ZCYX", "unit": "micron", "spacing": 1.5, "Labels": labels},
    )
    slide = TiffReader().open(path)
    np.testing.assert_array_equal(slide.read(), full.swapaxes(0, 1))
    assert slide.channels == ("DAPI", "BrdU")
    assert slide.pixel_size_yx_um == (0.25, 0.25)
    assert slide.z_step_um == 1.5
    slide.close()


@pytest.mark.parametrize(
    ("unit", "um"), [("\\u00B5m", 1), ("um", 1), ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("pixel", None), (None, None)]
)
def test_imagej_units(tmp_path, unit, um):
    metadata = {"unit": unit} if unit else {}
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 8), imagej=True, resolution=(3.0, 3.0), metadata=metadata)
    slide = TiffReader().open(tmp_path / "a.tif")
    expected = None if um is None else pytest.approx((um / 3, um / 3), rel=1e-6)
    assert slide.pixel_size_yx_um == expected
    slide.close()


def test_imagej_numbered_labels_are_no_names(tmp_path):
    metadata = {"axes": "CYX", "Labels": ["c:1/2 - a", "c:2/2 - a"]}
    tifffile.imwrite(tmp_path / "a.tif", noise(2, 8, 8), imagej=True, metadata=metadata)
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.channels == ("channel_0", "channel_1")
    slide.close()


def test_imagej_planes_behind_one_header(tmp_path):
    """ImageJ writes stacks over 4 GB with one header only."""
    full = noise(6, 30, 40)
    path = tmp_path / "a.tif"
    description = "ImageJ=1.54f\nimages=6\nslices=6\nhyperstack=true\n"
    tifffile.imwrite(path, full[:1], photometric="minisblack", description=description, metadata=None)
    with path.open("ab") as file:
        with tifffile.TiffFile(path) as tif:
            assert tif.pages[0].dataoffsets[0] + full[0].nbytes == path.stat().st_size
        file.write(full[1:].tobytes())
    slide = TiffReader().open(path)
    np.testing.assert_array_equal(slide.read()[0], full)
    slide.close()


@pytest.mark.parametrize(
    ("axes", "shape", "order"),
    [
        ("CYX", (3, 9, 11), "CYX"),
        ("ZYX", (3, 9, 11), "ZYX"),
        ("ZCYX", (2, 3, 9, 11), "ZCYX"),
        ("CZYX", (2, 3, 9, 11), "CZYX"),
        ("TCZYX", (1, 2, 3, 9, 11), "TCZYX"),
    ],
)
def test_any_axis_order_becomes_czyx(tmp_path, axes, shape, order):
    full = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", full, photometric="minisblack", metadata={"axes": axes})
    slide = TiffReader().open(tmp_path / "a.tif")
    expected = full
    for axis in "TCZ":
        if axis not in order:
            expected, order = expected[None], axis + order
    expected = expected.transpose([order.index(axis) for axis in "TCZYX"])[0]
    np.testing.assert_array_equal(slide.read(), expected)
    slide.close()


@pytest.mark.parametrize(("n_pages", "shape"), [(2, (2, 1)), (8, (8, 1)), (9, (1, 9))])
def test_pages_of_unknown_meaning(tmp_path, n_pages, shape):
    full = noise(n_pages, 16, 16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for page in full:
            tif.write(page, metadata=None, description="", contiguous=False)
    slide = TiffReader().open(tmp_path / "a.tif")
    np.testing.assert_array_equal(slide.read(), full.reshape(*shape, 16, 16))
    slide.close()


def test_time_is_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise(3, 8, 8), metadata={"axes": "TYX"}, ome=True)
    with pytest.raises(FormatError, match="3 time points"):
        TiffReader().open(path)


def test_series_are_scenes(tmp_path):
    path = tmp_path / "a.ome.tif"
    first, second = noise(2, 8, 9), noise(2, 10, 12)
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(first, metadata={"axes": "CYX", "Name": "left", "PhysicalSizeX": 1.5, "PhysicalSizeY": 1.5})
        tif.write(
            second,
            metadata={
                "axes": "CYX",
                "Name": "right",
                "PhysicalSizeX": 0.5,
                "PhysicalSizeY": 0.5,
                "Channel": {"Name": ["A", "B"]},
            },
        )
        tif.write(noise(4, 4), metadata={"axes": "YX", "Name": "Label"})
    reader = TiffReader()
    assert reader.scenes(path) == ["left", "right"]
    with pytest.raises(InputError, match="left, right"):
        reader.open(path)
    with pytest.raises(InputError, match="no scene 'middle'"):
        reader.open(path, scene="middle")
    slide = reader.open(path, scene="right")
    np.testing.assert_array_equal(slide.read()[:, 0], second)
    assert (slide.scene, slide.channels, slide.pixel_size_um) == ("right", ("A", "B"), 0.5)
    slide.close()


# ---------------------------------------------------------------- colour


def stained(height: int = 90, width: int = 120) -> np.ndarray:
    picture = np.full((height, width, 3), (238, 236, 240), np.uint8)
    picture[20:60, 30:80] = (110, 70, 40)
    picture[30:40, 40:50] = noise(10, 10, 3, dtype=np.uint8)
    return picture


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_colour_is_brightfield_on_bright_ground_only(tmp_path, planar, tile):
    path = tmp_path / "a.tif"
    for picture, brightfield in ((stained(), True), (255 - stained(), False)):
        stored = np.moveaxis(picture, -1, 0) if planar == "separate" else picture
        tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, tile=tile, compression="zlib")
        slide = TiffReader().open(path)
        assert slide.channels == ("red", "green", "blue")
        assert slide.brightfield is brightfield
        np.testing.assert_array_equal(slide.read()[:, 0], np.moveaxis(picture, -1, 0))
        np.testing.assert_array_equal(slide.read(Box(25, 70, 35, 85), channels=[2])[0, 0], picture[25:70, 35:85, 2])
        slide.close()


def test_equal_channels_are_one_grey_channel_and_alpha_is_dropped(tmp_path):
    grey = noise(64, 64, dtype=np.uint8)
    alpha = np.full_like(grey, 255)
    tifffile.imwrite(
        tmp_path / "a.tif", np.stack([grey] * 3 + [alpha], -1), photometric="rgb", extrasamples=["unassalpha"]
    )
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.channels == ("grey",)
    assert not slide.brightfield
    np.testing.assert_array_equal(slide.read()[0, 0], grey)
    slide.close()
    # one coloured pixel is enough to keep all three
    spotted = np.stack([grey] * 3 + [alpha], -1)
    spotted[40, 40, 1] ^= 255
    tifffile.imwrite(tmp_path / "a.tif", spotted, photometric="rgb", extrasamples=["unassalpha"])
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(slide.read()[:, 0], np.moveaxis(spotted[..., :3], -1, 0))
    slide.close()


def test_blank_white_slide_is_brightfield(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((32, 32, 3), 250, np.uint8), photometric="rgb")
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.brightfield
    assert slide.channels == ("red", "green", "blue")
    slide.close()


def test_16_bit_colour_is_never_brightfield(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stained().astype(np.uint16) * 256, photometric="rgb")
    slide = TiffReader().open(tmp_path / "a.tif")
    assert not slide.brightfield
    assert slide.dtype == np.uint16
    slide.close()


def test_palette_of_rising_colours_is_intensity_others_are_refused(tmp_path):
    pixels = noise(16, 16, dtype=np.uint8)
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "green.tif", pixels, photometric="palette", colormap=green)
    slide = TiffReader().open(tmp_path / "green.tif")
    np.testing.assert_array_equal(slide.read()[0, 0], pixels)
    slide.close()
    tifffile.imwrite(tmp_path / "mixed.tif", pixels, photometric="palette", colormap=green[:, ::-1])
    with pytest.raises(FormatError, match="palette"):
        TiffReader().open(tmp_path / "mixed.tif")


# ---------------------------------------------------------------- pixel size


@pytest.mark.parametrize(
    ("value", "unit", "um"),
    [
        (2, "nm", 0.002),
        (2, "µm", 2),
        (2, "μm", 2),
        (2, "um", 2),
        (2, "micrometer", 2),
        (2, "mm", 2000),
        (2, "cm", 2e4),
        (2, "m", 2e6),
        (2, "pm", 2e-6),
        (2, "inch", 50800),
        (2, "Å", 2e-4),
        ("0.5", "Micron", 0.5),
        (2, "pixel", None),
        (2, "reference frame", None),
        (2, None, None),
        (2, "Mm", None),
        (0, "um", None),
        (-1, "um", None),
        (float("nan"), "um", None),
        (float("inf"), "um", None),
        ("", "um", None),
        (None, "um", None),
    ],
)
def test_length_um(value, unit, um):
    assert length_um(value, unit) == (None if um is None else pytest.approx(um, rel=1e-12))


@pytest.mark.parametrize(
    ("pixels", "unit", "um"),
    [
        (20000, "cm", 0.5),
        (50800, "inch", 0.5),
        (2540, "inch", 10),
        (200, "cm", 50),
        (20, "cm", 500),
        (1, "inch", None),
        (72, "inch", None),
        (96, "inch", None),
        (300, "inch", None),
        (600, "inch", None),
        (400, "inch", None),
        (28.35, "cm", None),
        (1, "cm", None),
        (0, "cm", None),
    ],
)
def test_print_settings_are_no_calibration(pixels, unit, um):
    assert density_um(pixels, unit) == (None if um is None else pytest.approx(um, rel=1e-12))


@pytest.mark.parametrize(
    ("options", "um"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_plain_tiff_resolution(tmp_path, options, um):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 8), metadata=None, **options)
    slide = TiffReader().open(tmp_path / "a.tif")
    if um is None:
        assert slide.pixel_size_yx_um is None
        with pytest.raises(PixelSizeError, match="no pixel size"):
            _ = slide.pixel_size_um
    else:
        assert slide.pixel_size_um == pytest.approx(um, rel=1e-9)
    slide.close()


def test_pixels_that_are_not_square_keep_both_sides(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 8), resolution=(20000, 10000), resolutionunit="CENTIMETER")
    slide = TiffReader().open(tmp_path / "a.tif")
    assert slide.pixel_size_yx_um == pytest.approx((1.0, 0.5))  # height, width
    slide.close()


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_impossible_ome_size_is_no_size(tmp_path, size):
    metadata = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(8, 8), ome=True, metadata=metadata)
    slide = TiffReader().open(tmp_path / "a.ome.tif")
    assert slide.pixel_size_yx_um is None
    slide.close()


def test_scanner_text(tmp_path):
    """Ventana and Philips keep um per pixel in XML; no real file is at hand, so the words are put into one."""
    from histoquant.readers.metadata import _SCANNER_TEXT, _text_size_um

    spacing = '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028">"0.00025" "0.00026"</Attribute>'
    tifffile.imwrite(tmp_path / "p.tif", noise(8, 8), description=spacing, metadata=None)
    xmp = b'<iScan Magnification="40" ScanRes="0.2325">'
    tifffile.imwrite(tmp_path / "v.tif", noise(8, 8), extratags=[(700, 1, len(xmp), xmp, True)], metadata=None)
    for name, kind, size in (("p", "philips", (0.25, 0.26)), ("v", "bif", (0.2325, 0.2325))):
        pattern, code = _SCANNER_TEXT[kind]
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as tif:
            assert _text_size_um(tif.pages.first, pattern, code=code)[0] == pytest.approx(size)


def test_named_channels():
    assert named_channels([], 1) == ("channel_0",)
    assert named_channels(["a", "a", "a_2", "a"], 4) == ("a", "a_3", "a_2", "a_4")
    assert named_channels([None, " x ", ""], 3) == ("channel_0", "x", "channel_2")
    assert named_channels(["a", "b", "c"], 2) == ("a", "b")


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("silenced", [False, True])
def test_file_that_was_cut_short_is_told_at_open(tmp_path, silenced, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", silenced)
    full = noise(2, 1, 300, 300)
    whole = pyramid(tmp_path / "whole.ome.tif", full, tile=(64, 64), compression="zlib").read_bytes()
    path = tmp_path / "cut.ome.tif"
    for fraction in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        before = open_files()
        with pytest.raises(FormatError, match=r"cut\.ome\.tif") as caught:
            TiffReader().open(path)
        assert caught.value.remedy
        assert open_files() == before


def test_damaged_tile_is_told_when_read(tmp_path):
    path = pyramid(tmp_path / "a.ome.tif", noise(1, 1, 512, 512), tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[3], tif.pages[0].databytecounts[3]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    slide = TiffReader().open(path)
    slide.read(Box(0, 256, 0, 512))  # the other tiles are sound
    with pytest.raises(FormatError, match="cannot be decoded"):
        slide.read(Box(300, 310, 300, 310))
    slide.close()


def test_header_that_promises_more_than_the_file_holds(tmp_path):
    def header(width: int, height: int, compression: int) -> bytes:
        tags = [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, compression),
            (262, 3, 1),
            (273, 4, 200),
            (277, 3, 1),
            (278, 4, height),
            (279, 4, 50),
        ]
        body = b"II*\0" + struct.pack("<IH", 8, len(tags))
        body += b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in tags)
        return (body + bytes(4)).ljust(300, b"\0")

    path = tmp_path / "bomb.tif"
    for compression in (1, 5, 8, 50000):
        path.write_bytes(header(200_000, 200_000, compression))
        with pytest.raises(FormatError, match=r"bomb\.tif"):
            TiffReader().open(path)


@pytest.mark.parametrize("content", [b"", b"not a TIFF file", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0+" + bytes(40)])
def test_what_is_no_tiff(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for call in (TiffReader().open, TiffReader().scenes):
        with pytest.raises(FormatError, match=r"a\.tif"):
            call(path)


def test_folder_and_missing_file(tmp_path):
    (tmp_path / "a.tif").mkdir()
    for reader in (TiffReader(), PictureReader()):
        assert not reader.matches(tmp_path / "a.tif", b"")
        with pytest.raises(FormatError, match="folder"):
            reader.open(tmp_path / "a.tif")
        with pytest.raises(FormatError, match="does not exist"):
            reader.open(tmp_path / "b.tif")


def test_random_damage_never_escapes_as_another_error(tmp_path):
    whole = pyramid(tmp_path / "whole.ome.tif", noise(2, 1, 64, 64), steps=(2,), tile=(32, 32)).read_bytes()
    path = tmp_path / "damaged.ome.tif"
    rng = np.random.default_rng(3)
    n_refused = 0
    for _ in range(120):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            slide = TiffReader().open(path)
        except (FormatError, InputError):  # a name or number of series may be damaged too
            n_refused += 1
            continue
        try:
            slide.read()
        except FormatError:
            n_refused += 1
        finally:
            slide.close()
    assert 0 < n_refused < 120
    assert not any("damaged.ome.tif" in name for name in open_files())


def test_no_file_stays_open_after_close(tmp_path):
    before = open_files()
    path = pyramid(tmp_path / "a.ome.tif", noise(1, 1, 64, 64), tile=(32, 32))
    slide = TiffReader().open(path)
    slide.read()
    assert str(path) in open_files()
    slide.close()
    slide.close()
    assert open_files() == before
    with pytest.raises(FormatError, match="closed"):
        slide.read()


# ---------------------------------------------------------------- pictures


def test_png_and_jpeg(tmp_path):
    grey = noise(40, 50, dtype=np.uint8)
    deep = noise(40, 50).astype(np.uint16) * 200
    alpha = np.full((90, 120, 1), 255, np.uint8)
    bright = stained()
    pictures = {
        "grey.png": (grey, ("channel_0",), False, grey[None]),
        "deep.png": (deep, ("channel_0",), False, deep[None]),
        "rgb.png": (bright, ("red", "green", "blue"), True, np.moveaxis(bright, -1, 0)),
        "rgba.png": (
            np.concatenate([255 - bright, alpha], -1),
            ("red", "green", "blue"),
            False,
            np.moveaxis(255 - bright, -1, 0),
        ),
        "grey_rgb.png": (np.stack([grey] * 3, -1), ("grey",), False, grey[None]),
    }
    for name, (picture, channels, brightfield, expected) in pictures.items():
        Image.fromarray(picture).save(tmp_path / name)
        head = (tmp_path / name).read_bytes()[:4096]
        assert PictureReader().matches(tmp_path / name, head)
        slide = PictureReader().open(tmp_path / name)
        assert (slide.channels, slide.brightfield) == (channels, brightfield), name
        assert slide.dtype == expected.dtype
        np.testing.assert_array_equal(slide.read()[:, 0], expected)
        assert slide.pixel_size_yx_um is None
        slide.close()
        with pytest.raises(FormatError, match="closed"):
            slide.read()
    Image.fromarray(bright).save(tmp_path / "a.jpg", quality=95)
    slide = PictureReader().open(tmp_path / "a.jpg")
    assert slide.brightfield
    np.testing.assert_array_equal(slide.read()[:, 0], np.moveaxis(np.asarray(Image.open(tmp_path / "a.jpg")), -1, 0))
    slide.close()


def test_16_bit_colour_png_keeps_its_bits(tmp_path):
    import imagecodecs

    picture = RNG.integers(0, 65535, (20, 30, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(picture))
    slide = PictureReader().open(tmp_path / "a.png")
    np.testing.assert_array_equal(slide.read()[:, 0], np.moveaxis(picture, -1, 0))
    assert slide.dtype == np.uint16
    slide.close()


@pytest.mark.parametrize(("dpi", "um"), [(72, None), (300, None), (50800, 0.5)])
def test_picture_resolution(tmp_path, dpi, um):
    Image.fromarray(noise(8, 8, dtype=np.uint8)).save(tmp_path / "a.png", dpi=(dpi, dpi), pnginfo=PngInfo())
    slide = PictureReader().open(tmp_path / "a.png")
    assert slide.pixel_size_yx_um == (None if um is None else pytest.approx((um, um), rel=1e-3))
    slide.close()


def test_picture_cut_short_and_bomb(tmp_path):
    Image.fromarray(stained()).save(tmp_path / "whole.png")
    Image.fromarray(stained()).save(tmp_path / "whole.jpg")
    for name in ("whole.png", "whole.jpg"):
        whole = (tmp_path / name).read_bytes()
        for fraction in (0.0, 0.3, 0.95):
            (tmp_path / "cut").write_bytes(whole[: int(len(whole) * fraction)])
            with pytest.raises(FormatError, match="cut"):
                PictureReader().open(tmp_path / "cut")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(FormatError, match="megapixels"):
        PictureReader().open(tmp_path / "bomb.png")


def test_content_decides_not_the_suffix(tmp_path):
    tifffile.imwrite(tmp_path / "really_tiff.png", noise(8, 8), metadata=None)
    head = (tmp_path / "really_tiff.png").read_bytes()[:4096]
    assert TiffReader().matches(tmp_path / "really_tiff.png", head)
    assert not PictureReader().matches(tmp_path / "really_tiff.png", head)
    slide = TiffReader().open(tmp_path / "really_tiff.png")
    assert slide.shape == (8, 8)
    slide.close()


# ---------------------------------------------------------------- OME-Zarr


def write_zarr(
    path: Path, full: np.ndarray, version: str, *, axes: str = "tczyx", unit: str | None = "nanometer"
) -> None:
    scale = {"t": 1.0, "c": 1.0, "z": 2000.0, "y": 250.0, "x": 250.0}
    described = [{"name": axis} for axis in axes]
    if unit:
        described = [{"name": a, "unit": unit} if a in "zyx" else {"name": a} for a in axes]
    levels = [full, full[..., ::2, ::2]]
    multiscales = {
        "axes": described,
        "datasets": [
            {
                "path": str(i),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [scale[a] * (2**i if a in "yx" else 1) for a in axes]}
                ],
            }
            for i in range(2)
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [2.0 if a == "x" else 1.0 for a in axes]}],
    }
    about = {"multiscales": [multiscales], "omero": {"channels": [{"label": "DAPI"}, {"label": "DCX"}]}}
    v3 = version == "0.5"
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if v3 else 2)
    group.attrs.update({"ome": {"version": version, **about}} if v3 else about)
    for i, level in enumerate(levels):
        chunks = tuple(min(64, n) if a in "yx" else 1 for a, n in zip(axes, level.shape, strict=True))
        group.create_array(str(i), data=level, chunks=chunks)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "cyx"])
def test_ome_zarr(tmp_path, version, axes):
    shape = {"t": 1, "c": 2, "z": 3, "y": 100, "x": 150}
    full = noise(*(shape[axis] for axis in axes))
    path = tmp_path / "a.zarr"
    write_zarr(path, full, version, axes=axes)
    reader = ZarrReader()
    assert reader.matches(path, b"")
    slide = reader.open(path)
    expected = full.reshape(2, -1, 100, 150)
    np.testing.assert_array_equal(slide.read(), expected)
    np.testing.assert_array_equal(slide.read(level=1), expected[..., ::2, ::2])
    np.testing.assert_array_equal(slide.read(Box(50, 80, 60, 130), channels=[1]), expected[1:, :, 50:80, 60:130])
    assert slide.levels[0].chunksize == (1, 1, 64, 64)
    assert slide.channels == ("DAPI", "DCX")
    assert slide.pixel_size_yx_um == (0.25, 0.5)  # the scale of the whole image counts as well
    assert slide.z_step_um == (2.0 if "z" in axes else None)
    slide.close()


def test_ome_zarr_without_unit_has_no_size(tmp_path):
    write_zarr(tmp_path / "a.zarr", noise(2, 20, 20), "0.4", axes="cyx", unit=None)
    slide = ZarrReader().open(tmp_path / "a.zarr")
    assert slide.pixel_size_yx_um is None


def test_ome_zarr_time_and_damage(tmp_path):
    write_zarr(tmp_path / "t.zarr", noise(2, 2, 1, 20, 20), "0.4")
    with pytest.raises(FormatError, match="2 time points"):
        ZarrReader().open(tmp_path / "t.zarr")
    write_zarr(tmp_path / "a.zarr", noise(2, 100, 100), "0.5", axes="cyx")
    chunk = next(path for path in sorted((tmp_path / "a.zarr" / "0" / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(b"damaged")
    slide = ZarrReader().open(tmp_path / "a.zarr")
    with pytest.raises(FormatError, match="cannot be decoded"):
        slide.read()


def test_folder_that_is_no_ome_zarr(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    assert not ZarrReader().matches(tmp_path / "empty.zarr", b"")
    with pytest.raises(FormatError, match=r"empty\.zarr"):
        ZarrReader().open(tmp_path / "empty.zarr")
    zarr.open_group(str(tmp_path / "plain.zarr"), mode="w")
    with pytest.raises(FormatError, match="without OME-Zarr images"):
        ZarrReader().open(tmp_path / "plain.zarr")
    with pytest.raises(FormatError, match="does not exist"):
        ZarrReader().open(tmp_path / "nowhere.zarr")


def test_many_images_in_one_zarr_are_scenes(tmp_path):
    path = tmp_path / "many.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs.update({"bioformats2raw.layout": 3})
    images = [noise(2, 20, 20), noise(2, 30, 30)]
    for i, image in enumerate(images):
        write_zarr(path / str(i), image, "0.4", axes="cyx")
    assert ZarrReader().scenes(path) == ["0", "1"]
    np.testing.assert_array_equal(ZarrReader().open(path, scene="1").read()[:, 0], images[1])


# ---------------------------------------------------------------- real files


def test_real_svs():
    path = sample("formats/CMU-1-Small-Region.svs")
    slide = TiffReader().open(path)
    assert TiffReader().scenes(path) == ["Baseline"]  # neither label nor macro picture
    assert slide.shape == (2967, 2220)
    assert slide.brightfield
    assert slide.channels == ("red", "green", "blue")
    assert slide.pixel_size_um == 0.499
    assert slide.levels[0].chunksize == (3, 1, 240, 240)
    expected = tifffile.imread(path)
    np.testing.assert_array_equal(
        slide.read(Box(1000, 1700, 500, 1500))[:, 0], np.moveaxis(expected[1000:1700, 500:1500], -1, 0)
    )
    slide.close()


@pytest.mark.parametrize("channel", ["d0", "d1", "d2"])
def test_real_plain_tiff_has_no_pixel_size(channel):
    """Two were saved at 72 dpi, which says nothing of the microscope."""
    path = sample(f"human_dna_ph3/images/AS_09125_050116030001_D03f00{channel}.tif")
    slide = TiffReader().open(path)
    assert (slide.shape, slide.dtype, slide.channels) == ((512, 512), np.uint8, ("channel_0",))
    assert slide.pixel_size_yx_um is None
    np.testing.assert_array_equal(slide.read()[0, 0], tifffile.imread(path))
    slide.close()


def test_real_colour_and_fluorescence_pictures_are_told_apart():
    import csv

    index = sample("nuclei_dsb2018/index.csv")
    with index.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    assert len({row["kind"] for row in rows}) > 1
    for row in rows:
        slide = PictureReader().open(index.parent / "images" / f"{row['id']}.png")
        assert slide.brightfield is (row["kind"] == "colour"), row
        slide.close()
