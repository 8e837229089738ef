"""The bundled network: what it promises, how little a cut changes, and that only its own weights are used."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from pydantic import ValidationError

from histoquant import registry
from histoquant.analysis.agreement import pool, score_labels
from histoquant.cores import available_cores, usable_threads
from histoquant.errors import InputError, PluginError
from histoquant.model.recipe import BackgroundSettings, parse_recipe
from histoquant.model.slide import Box
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.optics import paint, paint_labels
from histoquant.phantom.plan import PhantomPlan
from histoquant.pipeline import analyse_tile, join, plan_slide
from histoquant.registry import load
from histoquant.segmenters import network
from histoquant.segmenters.network import Network
from histoquant.segmenters.watershed import Watershed
from histoquant.single import segment_image
from histoquant.survey import alone, segmenter_fingerprint, survey
from histoquant.testing import check_segmenter
from histoquant.work import Work
from tests.conftest import DATA, write_slide

PX = 0.5
WHOLE = 8192  # a core that no slide here is larger than

RECIPE = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[segment]
segmenter = "network"
diameter_um = 8.0
[tiles]
core_px = {core_px}
"""


def section(side_mm, per_mm2=1800.0, seed=5, px=PX):
    """Raw pixels and labels of a DAPI section."""
    plan = PhantomPlan(
        "nuclei", size_mm=(side_mm, side_mm), pixel_size_um=px, animals=1, seed=seed, density_per_mm2=per_mm2
    )
    _, made = make_section(plan, Subject(0, "vehicle"))
    whole = Box(0, plan.shape_px[0], 0, plan.shape_px[1])
    return paint(made, whole)[0], paint_labels(made, whole)


@pytest.fixture(scope="module")
def field():
    """A normalised image (1, 1, y, x) and its truth."""
    raw, truth = section(0.3)
    return alone(raw.astype(np.float32), PX, BackgroundSettings())[np.newaxis, np.newaxis], truth


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A section of about 1,900 nuclei."""
    path = write_slide(tmp_path_factory.mktemp("network") / "slide.ome.tif", section(1.0)[0][np.newaxis])
    opened = registry.open_slide(path)
    yield opened
    opened.close()


def cells_of(slide, core_px, offset_px=(0, 0), grown_px=None):
    recipe = parse_recipe(RECIPE.format(core_px=core_px))
    work = Work(slide, recipe, survey(slide, recipe))
    plan = plan_slide(work, offset_px=offset_px)
    if grown_px is not None:
        plan = [type(tile)(tile.core, tile.core.grown(grown_px, slide.shape)) for tile in plan]
    return join((analyse_tile(work, tile) for tile in plan), work).cells


@pytest.fixture(scope="module")
def whole(slide):
    return cells_of(slide, WHOLE)


# what it promises


def test_it_keeps_the_promises_of_a_segmenter():
    check_segmenter(load("segmenter", "network"))


def test_it_finds_nuclei_and_is_better_than_the_watershed(field):
    image, truth = field
    found = {}
    for cls in (Network, Watershed):
        labels = cls(cls(cls.Params()).survey([image], PX))(image, PX)[0]
        found[cls] = score_labels(labels, truth, iou=(0.5, 0.75))
    assert found[Network][0].f1 > 0.95
    assert found[Network][1].f1 > found[Watershed][1].f1


def test_the_diameter_is_estimated_and_a_stated_one_is_kept(field):
    image, truth = field
    areas = np.bincount(truth.ravel())[1:]
    true_um = 2 * np.sqrt(np.median(areas[areas > 0]) / np.pi) * PX
    assert Network(Network.Params()).survey([image], PX).diameter_um == pytest.approx(true_um, rel=0.12)
    assert Network(Network.Params(diameter_um=6.5)).survey([image], PX).diameter_um == 6.5


def test_the_same_tissue_at_other_pixel_sizes(field):
    _, truth = field
    counts = {}
    for px in (0.325, 0.65):
        raw, labels = section(0.3, px=px)
        image = alone(raw.astype(np.float32), px, BackgroundSettings())[np.newaxis, np.newaxis]
        found = Network(Network.Params(diameter_um=8.0))(image, px)[0]
        counts[px] = int(found.max())
        assert score_labels(found, labels)[0].f1 > 0.93
    assert counts[0.325] == pytest.approx(counts[0.65], rel=0.03)
    assert counts[0.65] == pytest.approx(int(truth.max()), rel=0.08)


# the laws, exactly


@pytest.mark.parametrize(("core_px", "offset_px"), [(256, (0, 0)), (512, (0, 0)), (512, (37, 91)), (1024, (211, 5))])
def test_2_tile_size_and_shift_do_not_matter(slide, whole, core_px, offset_px):
    assert len(whole) > 1500
    pd.testing.assert_frame_equal(cells_of(slide, core_px, offset_px), whole, check_exact=True)


def test_2_the_control_a_halo_that_is_too_small_is_noticed(slide, whole):
    assert len(cells_of(slide, 128, grown_px=2)) > 1.01 * len(whole)


def test_3_threads_and_repetition_change_nothing(field, monkeypatch):
    image, _ = field
    segment = Network(Network.Params(diameter_um=8.0))
    labels = segment(image, PX)
    for threads in ("1", "2", "1"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert np.array_equal(segment(image, PX), labels)
    assert np.array_equal(pickle.loads(pickle.dumps(segment))(image, PX), labels)


def test_threads_never_ask_for_more_cores_than_there_are(monkeypatch):
    cores = available_cores()
    for stated, used in (("1", 1), ("100000", cores), ("many", cores), ("0", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert usable_threads() == used
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_threads() == cores


def test_pieces_change_nothing(field, monkeypatch):
    image, _ = field
    segment = Network(Network.Params(diameter_um=8.0))
    labels = segment(image, PX)
    monkeypatch.setattr(network, "PIECE_PX", 160 * 256)
    monkeypatch.setattr(network, "PIECE_WIDTH", 256)
    assert np.array_equal(segment(image, PX), labels)


@pytest.mark.parametrize(("n", "number"), [(16, 1), (1024, 1), (1040, 2), (3008, 4)])
def test_pieces_cover_a_line_once_and_see_beyond(n, number):
    pieces = network._pieces(n, 1024)
    assert len(pieces) == number
    assert [kept.start for _, kept in pieces] == [0, *(kept.stop for _, kept in pieces[:-1])]
    assert pieces[-1][1].stop == n
    for seen, kept in pieces:
        assert seen.stop - seen.start <= 1024
        assert (seen.start, seen.stop) == (max(0, kept.start - network.MARGIN), min(n, kept.stop + network.MARGIN))
        assert seen.start % network.CELL == seen.stop % network.CELL == 0


# input of every kind


def test_nothing_is_a_result():
    segment = Network(Network.Params(diameter_um=8.0))
    for shape in ((0, 5), (1, 1), (3, 200), (64, 64)):
        labels = segment(np.zeros((1, 1, *shape), np.float32), PX)
        assert labels.shape == (1, *shape)
        assert labels.dtype == np.uint32
        assert not labels.any()
    empty = [np.zeros((1, 1, 64, 64), np.float32)]
    assert Network(Network.Params()).survey(empty, PX).diameter_um == 8.0
    assert Network(Network.Params()).survey([], PX).diameter_um == 8.0


def test_an_image_smaller_than_the_networks_grid():
    rows, columns = np.indices((23, 31))
    disc = (np.hypot(rows - 11, columns - 15) < 8).astype(np.float32)
    labels = Network(Network.Params(diameter_um=8.0))(disc[np.newaxis, np.newaxis], PX)[0]
    assert labels.max() == 1
    assert score_labels(labels, disc.astype(np.uint8), iou=(0.7,))[0].tp == 1


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "rgb"])
def test_the_type_of_the_pixels_does_not_matter(kind, tmp_path, field):
    raw, truth = section(0.3)
    eight_bit = np.clip(raw / 8, 0, 255)
    pixels = {
        "uint8": eight_bit.astype(np.uint8),
        "uint16": raw,
        "float32": raw.astype(np.float32) / 4095,
        "rgb": np.repeat(eight_bit.astype(np.uint8)[..., np.newaxis], 3, axis=2),
    }[kind]
    photometric = "rgb" if kind == "rgb" else "minisblack"
    tifffile.imwrite(tmp_path / "image.tif", pixels, photometric=photometric)
    told = segment_image(
        tmp_path / "image.tif",
        tmp_path / "labels.tif",
        channel="0",
        pixel_size_um=PX,
        settings={"segmenter": "network"},
    )
    assert told["n_nuclei"] == pytest.approx(len(np.unique(truth)) - 1, rel=0.06)
    assert any("diameter_um was not given and is estimated" in note for note in told["notes"])


def test_what_it_cannot_use_is_refused(field):
    image, _ = field
    segment = Network(Network.Params(diameter_um=8.0))
    with pytest.raises(InputError, match="one channel and one plane"):
        segment(np.zeros((2, 1, 32, 32), np.float32), PX)
    with pytest.raises(InputError, match=r"8 um are 1\.6 pixels"):
        segment(image, 5.0)
    with pytest.raises(InputError, match="no nuclear diameter yet"):
        Network(Network.Params())(image, PX)
    for wrong in ({"treshold": 0.3}, {"probability": 1.5}, {"diameter_um": -1}):
        with pytest.raises(ValidationError):
            Network.Params(**wrong)


# its weights


def test_the_weights_are_small_and_those_that_were_stated():
    assert network.WEIGHTS.stat().st_size < 12e6
    assert hashlib.sha256(network.WEIGHTS.read_bytes()).hexdigest() == network.WEIGHTS_SHA256


def test_tampered_or_missing_weights_are_refused(field, monkeypatch, tmp_path):
    image, _ = field
    segment = Network(Network.Params(diameter_um=8.0))
    changed = bytearray(network.WEIGHTS.read_bytes())
    changed[len(changed) // 2] ^= 1
    other = tmp_path / "nuclei.onnx"
    other.write_bytes(changed)
    monkeypatch.setattr(network, "WEIGHTS", other)
    with pytest.raises(PluginError, match=r"not those of this version: their sha256 is .*Install histoquant again"):
        segment(image, PX)
    monkeypatch.setattr(network, "WEIGHTS", tmp_path / "none.onnx")
    with pytest.raises(PluginError, match="cannot be read"):
        segment(image, PX)


def test_the_weights_are_part_of_the_fingerprint(monkeypatch):
    segment = parse_recipe(RECIPE.format(core_px=512)).segment
    told = segmenter_fingerprint(segment)
    assert network.WEIGHTS_SHA256 in told
    monkeypatch.setattr(Network, "weights_sha256", "0" * 64)
    assert segmenter_fingerprint(segment) != told


def test_neither_torch_nor_a_download_is_needed(tmp_path):
    """Run in a process without network and without torch."""
    script = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["torch"] = None
import numpy as np
from histoquant.registry import load
assert "onnxruntime" not in sys.modules
cls = load("segmenter", "network")
rows, columns = np.indices((64, 64))
disc = (np.hypot(rows - 30, columns - 30) < 8).astype(np.float32)[None, None]
print(cls(cls.Params(diameter_um=8.0))(disc, 0.5).max())
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "1"), run.stderr


# real images


def test_real_nuclei_without_being_told_their_size():
    folder = DATA / "nuclei_dsb2018"
    if not (folder / "index.csv").exists():
        pytest.skip("the real images nuclei_dsb2018 are not on this machine")
    from skimage.io import imread

    rows = pd.read_csv(folder / "index.csv")
    rows = rows[(rows["kind"] == "fluorescence") & (rows["split"] == "val")]
    scores = []
    for name in sorted(rows["id"])[::3]:  # workflows/benchmarks/accuracy.py takes them all
        raw, truth = (imread(folder / part / f"{name}.png") for part in ("images", "labels"))
        grey = (raw[..., :3].mean(axis=-1) if raw.ndim == 3 else raw).astype(np.float32)
        image = alone(grey, PX, BackgroundSettings())[np.newaxis, np.newaxis]
        labels = Network(Network(Network.Params()).survey([image], PX))(image, PX)[0]
        scores += score_labels(labels, truth)
    # Of images, not of objects: three hazy embryos hold a quarter of all nuclei.
    assert pool(scores).mean["f1"] >= 0.82


def test_its_memory_is_bounded_by_a_piece():
    segment, free = Network(Network.Params(diameter_um=8.0)), Network(Network.Params())
    small, large, larger = (segment.memory_bytes(n_px, PX) for n_px in (10**5, 10**7, 10**8))
    assert 0 < small < large == larger == free.memory_bytes(10**8, PX)
    assert segment.memory_bytes(10**5, 2 * PX) > small  # coarser pixels are blown up
