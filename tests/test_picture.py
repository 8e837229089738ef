"""A slide in few pixels: exact means however it is read, percentiles of single pixels, and memory that stays flat."""

import tomllib
import tracemalloc
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import tifffile

from histoquant import picture, registry, survey, threads
from histoquant.analysis.background import estimate, find_tissue
from histoquant.errors import InputError
from histoquant.model.recipe import BackgroundSettings, Segment, build_recipe
from histoquant.model.slide import Box, Slide
from histoquant.picture import Picture, block_means, look, look_px, parts, shrink
from histoquant.readers.segments import Files
from tests.conftest import RECIPE, make_scene, write_slide

SEGMENT = Segment(segmenter="watershed")


class Ground:
    """Stored pixels that are made when read: (c, 1, y, x) uint16, and which of its chunks were asked for."""

    ndim, dtype = 4, np.dtype(np.uint16)

    def __init__(self, shape, chunk=64, n_channels=2):
        self.shape, self.chunk, self.asked = (n_channels, 1, *shape), chunk, []

    def __getitem__(self, key):
        c, _, y, x = (slice(*part.indices(length)) for part, length in zip(key, self.shape, strict=True))
        self.asked.append((y, x))
        rows = np.arange(y.start, y.stop, dtype=np.uint32)[:, None]
        columns = np.arange(x.start, x.stop, dtype=np.uint32)
        mixed = (rows * np.uint32(2654435761) ^ columns * np.uint32(2246822519)) >> 20
        mixed = (mixed + 3000 * ((rows // 8 + columns // 8) % 5 == 0)).astype(np.uint16)
        return np.stack([(mixed + 7 * number)[None] for number in range(c.start, c.stop)])

    def slide(self, pixel_size_um=0.5):
        lazy = da.zeros(self.shape, self.dtype, chunks=(1, 1, self.chunk, self.chunk))
        names = tuple("abcdef"[: self.shape[0]])
        return Slide("s", None, (lazy,), names, (pixel_size_um, pixel_size_um), stored=(self,))


def means_of(pixels, factor):
    """What block means have always been: sums by numpy, in double precision."""
    rows, columns = (np.arange(0, n, factor) for n in pixels.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=1, dtype=np.float64), columns, axis=2)
    counts = np.outer(np.diff([*rows, pixels.shape[1]]), np.diff([*columns, pixels.shape[2]]))
    return (sums / counts).astype(np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("factor", [1, 3, 4, 7])
def test_block_means_are_those_of_numpy_to_the_last_bit(dtype, factor):
    pixels = (np.random.default_rng(0).random((2, 101, 74)) * 250).astype(dtype)
    found = block_means(pixels, factor)
    assert found.dtype == np.float32
    assert np.array_equal(found, means_of(pixels, factor))


@pytest.mark.parametrize("pixel_size_um", [0.5, 0.325, 1.1, 3.0])
@pytest.mark.parametrize("cores", [1, 4])
def test_a_small_slide_is_seen_as_it_always_was(monkeypatch, pixel_size_um, cores):
    """Up to the limit every 2 um pixel is kept, whatever parts are read and on how many threads."""
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setattr(picture, "STRIP_PX", 200)
    monkeypatch.setattr(picture, "BAND_PX", 96)
    slide = Ground((731, 902)).slide(pixel_size_um)
    coarse, seen = look(slide, (0, 1), SEGMENT)
    factor = max(1, int(2 / pixel_size_um))
    assert coarse is seen.means
    assert seen.px == look_px(slide) == factor
    assert np.array_equal(coarse, means_of(slide.read()[:, 0], factor))
    assert np.array_equal(shrink(slide, (1,), SEGMENT, coarse_um=2.0).means, coarse[1:])


@pytest.mark.parametrize("k", [2, 3])
def test_a_large_slide_is_thinned_and_averaged(monkeypatch, k):
    slide = Ground((731, 902)).slide()
    every, _ = look(slide, (0, 1), SEGMENT)
    monkeypatch.setattr(picture, "MAX_COARSE_PX", every[0].size / k**2)
    monkeypatch.setattr(picture, "STRIP_PX", 128)
    coarse, seen = look(slide, (0, 1), SEGMENT)
    assert seen.px == look_px(slide) == 4 * k
    middle = [np.minimum(np.arange(0, n, k) + k // 2, n - 1) for n in every.shape[1:]]
    assert np.array_equal(coarse, every[:, middle[0]][:, :, middle[1]])
    assert np.array_equal(seen.means, means_of(every, k))
    assert not np.array_equal(coarse, seen.means)


def test_percentiles_of_a_large_slide_are_those_of_its_two_um_pixels(monkeypatch):
    """Means of 4 x 4 pixels have a quarter of the noise: a background read from them would lie elsewhere."""
    rng = np.random.default_rng(5)
    pixels = rng.normal(1000, 40, (1, 1, 2400, 2400)).astype(np.uint16)
    pixels[..., 700:1700, 700:1700] += (
        (600 * (rng.random((1, 1, 50, 50)) > 0.6)).astype(np.uint16).repeat(20, 2).repeat(20, 3)
    )
    lazy = da.from_array(pixels, chunks=(1, 1, 256, 256))
    slide = Slide("s", None, (lazy,), ("a",), (2.0, 2.0))

    def told(limit, *, averaged=False):
        monkeypatch.setattr(picture, "MAX_COARSE_PX", limit)
        coarse, seen = look(slide, (0,), SEGMENT)
        settings = BackgroundSettings()
        read = seen.means if averaged else coarse
        return estimate(
            read, seen.px, pixel_size_um=2.0, settings=settings, tissue=find_tissue(seen.means, 2 * seen.px)
        )

    every, thinned, averaged = told(2400**2), told(600**2), told(600**2, averaged=True)
    assert thinned.noise[0] == pytest.approx(every.noise[0], rel=0.05)
    assert np.median(thinned.grid) == pytest.approx(np.median(every.grid), abs=8)
    assert thinned.scale[0] == pytest.approx(every.scale[0], rel=0.05)
    assert averaged.noise[0] < 0.5 * every.noise[0]  # the control


def test_what_a_look_holds_does_not_grow_with_the_slide(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(picture, "MAX_COARSE_PX", 40_000)

    def peak(side):
        slide = Ground((side, side)).slide()
        look(slide, (0, 1), SEGMENT)  # compiled, imported
        tracemalloc.start()
        look(slide, (0, 1), SEGMENT)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(4096), peak(8192)
    assert large < 1.2 * small
    assert large < 0.2 * 8192**2 * 2 * 2  # of its pixels


@pytest.mark.parametrize(("pixel_size_um", "chunk"), [(0.5, 512), (0.325, 512), (0.23, 256)])
def test_few_chunks_are_asked_for_twice(tmp_path, monkeypatch, pixel_size_um, chunk):
    """Operations, not seconds: how often a segment of a TIFF is decoded."""
    pixels = np.random.default_rng(1).integers(0, 4000, (1, 4200, 5100)).astype(np.uint16)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, tile=(chunk, chunk), compression="zlib", metadata={"axes": "CYX"})
    slide = registry.open_slide(path, pixel_size_um=pixel_size_um)
    decoded = []
    once = Files.read
    monkeypatch.setattr(Files, "read", lambda self, name, at, n: decoded.append(at) or once(self, name, at, n))
    look(slide, (0,), SEGMENT)
    slide.close()
    n_segments = -(-4200 // chunk) * -(-5100 // chunk)
    assert len(set(decoded)) == n_segments
    assert len(decoded) < 1.2 * n_segments


def test_parts_cover_a_slide_once():
    slide = Ground((1300, 5000)).slide()
    seen = np.zeros(slide.shape, int)
    for box in parts(slide):
        seen[box.y0 : box.y1, box.x0 : box.x1] += 1
        assert max(box.shape) <= 2 * picture.STRIP_PX
    assert (seen == 1).all()


def test_a_kept_picture_is_the_same_to_half_a_step():
    means = np.random.default_rng(2).normal(900, 200, (3, 40, 50)).astype(np.float32)
    means[1], means[2] = 7.0, means[2] * 1e6
    kept = Picture(means, 12.5).arrays()
    back = Picture.from_arrays(kept)
    assert back.px == 12.5
    for channel, restored in zip(means, back.means, strict=True):
        assert np.abs(restored - channel).max() <= 0.51 * np.ptp(channel) / 65535
    assert sum(array.nbytes for array in kept.values()) < 0.51 * means.nbytes + 1000
    assert all(np.array_equal(a, b) for a, b in zip(back.arrays().values(), kept.values(), strict=True))


def test_the_survey_of_a_slide_does_not_depend_on_threads(tmp_path, monkeypatch):
    content = tomllib.loads(RECIPE)
    del content["segment"]["diameter_um"]  # estimated from samples
    recipe = build_recipe(content)
    slide = registry.open_slide(write_slide(tmp_path / "a.ome.tif", make_scene().pixels))
    told = []
    for cores in (1, 4):
        monkeypatch.setattr(threads, "available_cores", lambda cores=cores: cores)
        told.append(survey.survey(slide, recipe).arrays())
    slide.close()
    assert told[0].keys() == told[1].keys()
    assert all(np.array_equal(a, b) for a, b in zip(told[0].values(), told[1].values(), strict=True))


def test_stored_pixels_are_those_of_the_levels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 60_000, (4, 1500, 1300)).astype(np.uint16)
    slide = registry.open_slide(write_slide(tmp_path / "a.ome.tif", pixels, channels="abcd"))
    lazy = replace(slide, stored=())
    assert slide.stored
    for box in (None, Box(0, 700, 500, 1300), Box(511, 513, 0, 1), Box(100, 650, 600, 9000)):
        for channels in (None, [0], [1, 2], [3, 0], [2, 1, 0]):
            for level in (0, 1):
                found = slide.read(box, channels=channels, level=level)
                assert np.array_equal(found, lazy.read(box, channels=channels, level=level))
    with pytest.raises(IndexError):
        slide.read(channels=[4])
    with pytest.raises(InputError, match="not what its levels show"):
        replace(slide, stored=slide.stored[:1])
    slide.close()
