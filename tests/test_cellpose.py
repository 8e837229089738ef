"""Cellpose as a segmenter, with the real package, and a network that is made by hand.

It is cellpose's own architecture with one block that passes everything on, whose convolutions smooth the image and
point uphill. So it finds round nuclei without having been trained, and has 4 MB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from types import SimpleNamespace

import numpy as np
import pytest

from histoquant.errors import InputError, PluginError
from histoquant.registry import load
from histoquant.segmenters import cellpose_network
from histoquant.segmenters.cellpose import Cellpose
from histoquant.segmenters.cellpose_weights import SAM_PARTS, weights_of
from tests.test_cellpose_weights import Trap, saved

PX = 0.5

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cellpose") is None or importlib.util.find_spec("torch") is None,
    reason="cellpose is not installed; .ci/cellpose runs these",
)


@pytest.fixture(scope="module")
def vit():
    """Cellpose's architecture with one narrow block instead of 24 wide ones."""
    cellpose_network.cellpose_models()
    from cellpose import vit
    from segment_anything.build_sam import _build_sam

    def small(_=None):
        return _build_sam(encoder_embed_dim=128, encoder_depth=1, encoder_num_heads=16, encoder_global_attn_indexes=[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.sam_model_registry, "vit_l", small)
        yield vit


@pytest.fixture(scope="module")
def parts(vit):
    """The parts of a network that finds round objects of 15 pixels: outputs are y and x uphill, and log odds."""
    import torch

    parts = {name: torch.zeros_like(part) for name, part in vit.CPSAM().state_dict().items()}
    parts["W2"] = torch.eye(192).reshape(192, 3, 8, 8)
    for name in ("blocks.0.norm1", "blocks.0.norm2", "neck.1", "neck.3"):
        parts[f"encoder.{name}.weight"] += 1
    pixel = torch.arange(64)
    # Each of the 64 pixels of a patch becomes a channel, in the neck also its opposite, so that the mean that is taken
    # off is 0; beside them a constant so large that the norm that is divided by is one, too.
    parts["encoder.patch_embed.proj.weight"][pixel, 0, pixel // 8, pixel % 8] = 1
    parts["encoder.patch_embed.proj.bias"][64] = 1
    parts["encoder.neck.0.weight"][pixel, pixel] = 1
    parts["encoder.neck.0.weight"][64 + pixel, pixel] = -1
    parts["encoder.neck.0.weight"][128, 64], parts["encoder.neck.0.weight"][129, 64] = 1000, -1000
    unit = 16 / (1000 * 2**0.5)  # what a pixel of 1 is after the norm
    reach, sigma = 8, 3.0
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    bell = np.exp(-(y**2 + x**2) / (2 * sigma**2))
    bell /= bell.sum()
    v, u = np.mgrid[:8, :8]
    for kind, kernel in enumerate((bell * y / sigma**2, bell * x / sigma**2, bell)):
        for index in np.ndindex(8, 8, 3, 3):
            i, j, a, b = index
            dy, dx = 8 * (a - 1) + v - i, 8 * (b - 1) + u - j
            near = (abs(dy) <= reach) & (abs(dx) <= reach)
            weight = np.where(near, kernel[np.clip(dy, -reach, reach) + reach, np.clip(dx, -reach, reach) + reach], 0)
            parts["encoder.neck.2.weight"][64 * kind + 8 * i + j, :64, a, b] = torch.from_numpy(weight.ravel()).float()
    parts["encoder.neck.2.weight"][192, 128, 1, 1], parts["encoder.neck.2.weight"][193, 128, 1, 1] = 1, -1
    channel = torch.arange(192)
    gain = torch.tensor([40.0, 40.0, 30.0]).repeat_interleave(64) / unit
    parts["out.weight"][channel, channel, 0, 0] = gain
    parts["out.weight"][:, 200, 0, 0] = -gain  # an empty channel: the mean that the norm took off
    parts["out.bias"][128:] = -30.0 * 0.5
    return parts


@pytest.fixture(scope="module")
def weights(parts, tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("weights") / "by_hand.pt"
    torch.save(parts, path)
    return path


@pytest.fixture
def segment(weights):
    return Cellpose(Cellpose.Params(model=str(weights), diameter_um=8.0, working_px=15.0, precision="float32"))


def nuclei(shape, seed=1):
    """(1, 1, y, x) discs of 8 um on a shaken grid, and where they are."""
    rng, step = np.random.default_rng(seed), 26
    rows, columns = np.indices(shape)
    image, centres = rng.normal(0, 0.02, shape), []
    for y in range(step // 2, shape[0] - step // 4, step):
        for x in range(step // 2, shape[1] - step // 4, step):
            centre = np.array([y, x]) + rng.uniform(-3, 3, 2)
            image += 1 / (1 + np.exp(np.minimum(np.hypot(rows - centre[0], columns - centre[1]) - 8, 50)))
            centres.append(centre)
    return image.astype(np.float32)[np.newaxis, np.newaxis], np.array(centres)


class Narrow(Cellpose):
    """With a halo for the network made by hand, which sees 8 pixels far; that of a square would take minutes."""

    halo_um = 24.0


def test_it_finds_nuclei_where_they_are(segment):
    image, centres = nuclei((200, 240))
    labels = segment(image, PX)[0]
    at = labels[tuple(centres.round().astype(int).T)]
    assert labels.dtype == np.uint32
    assert sorted(at) == list(range(1, len(centres) + 1))  # one each, numbered without gaps
    areas = np.bincount(labels.ravel())[1:]
    assert np.median(areas) == pytest.approx(np.pi * 8**2, rel=0.25)


def test_the_range_of_the_slide_is_kept_whatever_else_is_in_the_crop(segment, weights):
    """Percentiles of a crop would make the nuclei beside a brilliant speck vanish."""
    image, _ = nuclei((200, 240))
    labels = segment(image, PX)[0]
    speck = image.copy()
    speck[0, 0, :, :40] += 50
    assert np.array_equal(segment(speck, PX)[0, :, 80:] > 0, labels[:, 80:] > 0)
    network = cellpose_network.network_of(weights_of(str(weights)), "float32")
    planes = np.repeat(speck[0, 0, :, :, np.newaxis], 3, axis=2) * np.float32([1, 0, 0])
    control, *_ = network.eval(planes, channel_axis=-1, normalize={"normalize": True}, diameter=32.0)
    assert not control[:, 80:].any()


def test_it_keeps_the_promises_of_a_segmenter_but_for_few_objects_at_seams(weights):
    """An object whose outline moves a little with the crop may be owned by none of two tiles, or by both."""
    from histoquant.testing import check_segmenter

    params = {"model": str(weights), "diameter_um": 8.0, "working_px": 15.0}
    with pytest.raises(PluginError) as caught:
        check_segmenter(Narrow, params, min_iou=0.8)
    _, *faults = str(caught.value).splitlines()
    assert len(faults) == 1
    differing, n = map(int, re.match(r"  - (\d+) of (\d+) objects are not the same", faults[0]).groups())
    assert n > 200
    assert differing <= 0.02 * n


def test_what_a_crop_shows_is_what_the_slide_shows(segment):
    image, _ = nuclei((420, 420))
    whole = segment(image, PX)[0]
    halo = int(np.ceil(segment.halo_um / PX))
    differing = {}
    for grown in (0, 60, halo):
        y0, y1 = max(0, 150 - grown), min(420, 270 + grown)
        core = np.s_[150 - y0 : 270 - y0, 150 - y0 : 270 - y0]
        crop = segment(image[:, :, y0:y1, y0:y1], PX)[0][core]
        differing[grown] = np.mean((crop > 0) != (whole[150:270, 150:270] > 0))
    assert differing[0] > 0.005  # the control: without a halo it is seen
    assert differing[60] < 0.002
    assert differing[halo] < 0.002


def test_crops_of_every_size_are_taken(segment):
    for shape in ((0, 5), (1, 1), (3, 200), (64, 64)):
        labels = segment(np.zeros((1, 1, *shape), np.float32), PX)
        assert (labels.shape, labels.dtype, labels.any()) == ((1, *shape), np.uint32, False)
    rows, columns = np.indices((23, 31))
    disc = (np.hypot(rows - 11, columns - 15) < 8).astype(np.float32)[np.newaxis, np.newaxis]
    assert segment(disc, PX).max() == 1  # a third of its crop: cellpose's own limit is a share of the crop
    large = Cellpose(segment.params.model_copy(update={"diameter_um": 200.0}))
    assert not large(np.zeros((1, 1, 40, 40), np.float32), 0.1).any()
    with pytest.raises(InputError, match=r"8 um are 1\.6 pixels"):
        segment(disc, 5.0)
    with pytest.raises(InputError, match="one channel and one plane"):
        segment(np.zeros((2, 1, 32, 32), np.float32), PX)


def test_small_objects_are_dropped_by_their_part_of_a_nucleus(segment):
    image, centres = nuclei((120, 120))
    strict = Cellpose(segment.params.model_copy(update={"min_area": 1.0, "diameter_um": 12.0, "working_px": 22.5}))
    assert segment(image, PX).max() == len(centres)
    assert strict(image, PX).max() == 0


def test_the_survey_pins_weights_and_number_type(weights):
    image, _ = nuclei((200, 240))
    params = Cellpose(Cellpose.Params(model=str(weights))).survey([image], PX)
    assert params.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert params.precision in ("float32", "bfloat16")
    assert params.diameter_um == pytest.approx(8.0, rel=0.2)


def test_bfloat16_only_where_it_is_fast(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for amx, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx}, raising=False)
        assert cellpose_network.fast_precision() == chosen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for able, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        assert cellpose_network.fast_precision() == chosen


def test_labels_do_not_depend_on_how_many_squares_go_together(segment, monkeypatch):
    from histoquant.segmenters import cellpose

    image, centres = nuclei((840, 840))  # 16 squares
    labels, sizes = [], []
    network = cellpose_network.network_of(segment._weights(), "float32")
    forward = network.net.forward

    def counted(x, *more):
        sizes.append(len(x))
        return forward(x, *more)

    monkeypatch.setattr(network.net, "forward", counted)
    for together in (1, 8, 64):
        monkeypatch.setattr(cellpose, "squares_at_once", lambda together=together: together)
        labels.append(segment(image, PX))
    assert sizes == [1] * 16 + [8] * 2 + [16]
    assert labels[0].max() == len(centres)
    for other in labels[1:]:
        # Sums of float32 in another order: an outline may move by a pixel where the odds are even, no object may go.
        assert other.max() == labels[0].max()
        assert np.mean(other != labels[0]) < 1e-4
    assert cellpose_network.network_of(segment._weights(), "float32") is network  # one in each worker


def test_squares_at_once_by_the_memory_of_the_card(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cellpose_network.squares_at_once() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gigabytes, together in ((1, 1), (8, 4), (24, 8), (80, 32), (1000, 64)):
        told = SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, told=told: told)
        assert cellpose_network.squares_at_once() == together


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("drop", r"1 parts differ, the first is 'encoder\.blocks\.0\.attn\.qkv\.weight'"),
        ("add", r"1 parts differ, the first is 'encoder\.blocks\.1\.attn\.qkv\.weight'"),
        ("resize", "cannot use the weights .* size mismatch|cannot use the weights"),
    ],
)
def test_parts_that_do_not_fit_are_refused(segment, parts, tmp_path, change, said):
    import torch

    name = "encoder.blocks.0.attn.qkv.weight"
    changed = dict(parts)
    if change == "add":
        changed[name.replace("0", "1")] = parts[name].clone()
    elif change == "drop":
        del changed[name]
    else:
        changed[name] = parts[name][:5].clone()
    path = tmp_path / "changed.pt"
    torch.save(changed, path)
    other = Cellpose(segment.params.model_copy(update={"model": str(path)}))
    with pytest.raises(PluginError, match=said):
        other(np.zeros((1, 1, 32, 32), np.float32), PX)
    if change != "resize":  # the control: cellpose itself takes it without a word
        cellpose_network.cellpose_models().CellposeModel(pretrained_model=str(path), use_bfloat16=False)


def test_a_file_that_would_run_something_is_refused(segment, tmp_path):
    path = saved(tmp_path / "trap.pt", SAM_PARTS, content=Trap(tmp_path / "sprung"))
    other = Cellpose(segment.params.model_copy(update={"model": str(path)}))
    with pytest.raises(PluginError, match=r"cannot use the weights '.*trap\.pt'"):
        other(np.zeros((1, 1, 32, 32), np.float32), PX)
    assert not (tmp_path / "sprung").exists()


def test_weights_that_give_no_numbers_are_refused(segment, parts, tmp_path):
    import torch

    path = tmp_path / "nan.pt"
    torch.save(parts | {"out.bias": torch.full_like(parts["out.bias"], torch.nan)}, path)
    other = Cellpose(segment.params.model_copy(update={"model": str(path)}))
    with pytest.raises(PluginError, match=r"nan\.pt' gives no numbers"):
        other(np.zeros((1, 1, 32, 32), np.float32), PX)


def test_one_image_from_file_to_labels_with_the_licence_told(segment, tmp_path):
    from histoquant.single import segment_image
    from tests.conftest import write_slide

    image, centres = nuclei((200, 240))
    path = write_slide(tmp_path / "slide.ome.tif", (200 + 800 * image[0].clip(-0.1, 2)).astype(np.uint16))
    settings = {"segmenter": "cellpose", **segment.params.model_dump(include={"model", "working_px", "diameter_um"})}
    told = segment_image(path, tmp_path / "labels.tif", channel="DAPI", pixel_size_um=PX, settings=settings)
    assert told["n_nuclei"] == len(centres)
    assert told["segmenter"]["sha256"] == segment.weights_sha256
    assert Cellpose.notice in told["notes"]
    assert load("segmenter", "cellpose") is Cellpose
