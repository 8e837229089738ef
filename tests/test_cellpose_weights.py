"""Cellpose as a segmenter, without the package: what it would pass over in silence is refused before it is asked."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import pickle
import threading
import zipfile

import numpy as np
import pytest
from pydantic import ValidationError

from histoquant import cores
from histoquant.errors import InputError, MissingExtraError, PluginError
from histoquant.inputs import read_recipe
from histoquant.model.recipe import Segment
from histoquant.registry import list_plugins
from histoquant.segmenters import cellpose_weights
from histoquant.segmenters.cellpose import Cellpose
from histoquant.segmenters.cellpose_weights import SAM_PARTS, weights_of
from histoquant.survey import notices, segmenter_fingerprint

PX = 0.5

RECIPE = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[segment]
segmenter = "cellpose"
model = "{model}"
"""


def saved(path, parts, *, content=0):
    """Write a file that is laid out as torch.save does, with parts of these names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(dict.fromkeys(parts, content), protocol=2))
        archive.writestr("archive/version", "3")
    return path


@pytest.fixture
def sam(tmp_path):
    return saved(tmp_path / "sam.pt", SAM_PARTS)


@pytest.fixture
def as_if_installed(monkeypatch):
    monkeypatch.setattr(Cellpose, "needs", {})


@pytest.fixture
def not_installed(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cellpose" else there(name))


@pytest.mark.parametrize(
    "wrong",
    [{"modle": "a"}, {"model": ""}, {"sha256": "abc"}, {"diameter_um": -1}, {"working_px": 3}, {"precision": "half"}],
)
def test_parameters_are_checked(wrong):
    with pytest.raises(ValidationError):
        Cellpose.Params(**wrong)


def test_every_parameter_explains_itself():
    assert all(field.title and field.description for field in Cellpose.Params.model_fields.values())


def test_without_the_extra_one_sentence_says_how_to_install_it(not_installed, sam, tmp_path):
    segment = Cellpose(Cellpose.Params(model=str(sam), diameter_um=8.0))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(model=sam))
    for use in (
        lambda: segment.weights_sha256,
        lambda: segment(np.zeros((1, 1, 8, 8), np.float32), PX),
        lambda: segment.survey([], PX),
        lambda: read_recipe(tmp_path / "recipe.toml"),  # before any slide is opened
    ):
        with pytest.raises(
            MissingExtraError, match=r"needs the package cellpose.*pip install 'histoquant\[cellpose\]'"
        ):
            use()
    assert issubclass(MissingExtraError, PluginError)


def test_plugins_lists_it_and_says_when_it_is_not_installed(not_installed):
    listed = {plugin.name: plugin for plugin in list_plugins("segmenter", load=True)}
    assert listed["cellpose"].error is None
    assert listed["cellpose"].missing.startswith("pip install 'histoquant[cellpose]'")
    assert listed["network"].missing is None


def test_weights_are_known_by_their_sum(sam, tmp_path, as_if_installed):
    digest = hashlib.sha256(sam.read_bytes()).hexdigest()
    assert weights_of(str(sam)) == (sam, digest)
    assert weights_of(str(sam), digest).sha256 == digest
    with pytest.raises(PluginError, match=f"not those that were asked for: their sha256 is {digest}, not {'0' * 64}"):
        weights_of(str(sam), "0" * 64)
    told = segmenter_fingerprint(Segment(segmenter="cellpose", model=str(sam)))
    assert digest in told
    saved(sam, [*SAM_PARTS, "more"])
    assert segmenter_fingerprint(Segment(segmenter="cellpose", model=str(sam))) != told


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["downsample.down.res_down_0.conv.conv_0.0.weight", "output.2.weight"], "of cellpose 3 or older"),
        (["encoder.cls_token", "encoder.patch_embed.proj.weight", "out.weight"], "a CPDINO model"),
        (SAM_PARTS - {"W2", "out.bias"}, "no Cellpose-SAM model: 2 of its parts are missing, the first is 'W2'"),
        ([], "no Cellpose-SAM model"),
    ],
)
def test_another_model_is_refused_before_cellpose_sees_it(tmp_path, parts, said):
    path = saved(tmp_path / "other.pt", parts)
    with pytest.raises(PluginError, match=said):
        weights_of(str(path))


def test_a_file_that_is_no_model_is_refused(tmp_path, sam):
    page, short, empty = (tmp_path / name for name in ("page.pt", "short.pt", "empty.pt"))
    page.write_text("<!doctype html>")
    short.write_bytes(sam.read_bytes()[:-60])
    empty.touch()
    broken = saved(tmp_path / "broken.pt", [])
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("archive/data.pkl", b"\xff no pickle")
    for path in (page, short, empty, broken):
        with pytest.raises(PluginError, match=r"are damaged or cut short .*Bring the file again"):
            weights_of(str(path))
    with pytest.raises(PluginError, match="are a folder"):
        weights_of(str(tmp_path))


class Trap:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return __import__("os").mkdir, (str(self.path),)


def test_looking_at_a_file_runs_nothing_of_it(tmp_path):
    weights_of(str(saved(tmp_path / "trap.pt", SAM_PARTS, content=Trap(tmp_path / "sprung"))))
    assert not (tmp_path / "sprung").exists()
    with zipfile.ZipFile(tmp_path / "trap.pt") as archive:  # the control: the trap works
        pickle.loads(archive.read("archive/data.pkl"))
    assert (tmp_path / "sprung").exists()


def test_names_that_are_not_known_are_never_another_model():
    with pytest.raises(PluginError, match=r"no file 'cpsam_v3'.*Did you mean 'cpsam_v2'\?"):
        weights_of("cpsam_v3")
    with pytest.raises(PluginError, match="'cpdino' is not supported"):
        weights_of("cpdino")
    with pytest.raises(PluginError, match="no file '/no/such/file'"):
        weights_of("/no/such/file")


def test_built_in_weights_lie_where_cellpose_looks(tmp_path, monkeypatch):
    monkeypatch.delenv("CELLPOSE_LOCAL_MODELS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / ".cellpose" / "models"
    default.mkdir(parents=True)
    saved(default / "cpsam_v2", SAM_PARTS)
    assert weights_of("cpsam_v2").path == default / "cpsam_v2"
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    saved(tmp_path / "mine" / "cpsam", SAM_PARTS)
    assert weights_of("cpsam").path == tmp_path / "mine" / "cpsam"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A web page with weights, and the folder they are fetched to; ``page.cut`` ends connections early."""

    class Page(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if not server.cut:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")

    root = tmp_path / "page" / "resolve" / "main"
    root.mkdir(parents=True)
    saved(root / "cpsam_v2", SAM_PARTS)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Page, directory=str(tmp_path / "page"))
    )
    server.cut, server.folder = False, tmp_path / "models"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(cellpose_weights, "PAGE", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(server.folder))
    yield server
    server.shutdown()
    server.server_close()


def test_built_in_weights_are_fetched_once(page, tmp_path):
    found = weights_of("cpsam_v2")
    source = tmp_path / "page" / "resolve" / "main" / "cpsam_v2"
    assert found == (page.folder / "cpsam_v2", hashlib.sha256(source.read_bytes()).hexdigest())
    source.unlink()
    assert weights_of("cpsam_v2") == found
    assert [path.name for path in page.folder.iterdir()] == ["cpsam_v2"]


@pytest.mark.parametrize("trouble", ["offline", "absent", "cut"])
def test_offline_one_sentence_says_which_file_to_bring_and_where(page, monkeypatch, trouble):
    if trouble == "offline":
        monkeypatch.setattr(cellpose_weights, "PAGE", "http://127.0.0.1:9")
    page.cut = trouble == "cut"
    name = "cpsam" if trouble == "absent" else "cpsam_v2"
    with pytest.raises(PluginError) as caught:
        weights_of(name)
    said = str(caught.value)
    assert said.startswith(f"The weights of cellpose are not at '{page.folder / name}' and cannot be downloaded (")
    assert f"Bring the file '{name}' of {cellpose_weights.PAGE}" in said
    assert "CELLPOSE_LOCAL_MODELS_PATH" in said
    assert "\n" not in said
    assert list(page.folder.iterdir()) == []  # nothing that could be taken for weights


def test_the_licence_of_the_weights_is_told():
    (told,) = notices(Segment(segmenter="cellpose"))
    assert "non-commercial" in told
    assert notices(Segment(segmenter="watershed")) == ()


def test_what_is_needed_round_a_crop_is_a_square_and_a_nucleus():
    assert Cellpose(Cellpose.Params(diameter_um=6.0, working_px=32)).halo_um == pytest.approx(6 * (256 / 32 + 1))
    with pytest.raises(InputError, match="no nuclear diameter yet"):
        _ = Cellpose(Cellpose.Params()).halo_um


def test_memory_grows_with_the_network_and_the_crop(sam, as_if_installed):
    segment = Cellpose(Cellpose.Params(model=str(sam), diameter_um=8.0))
    small, large = (segment.memory_bytes(n_px, PX) for n_px in (10**6, 4 * 10**6))
    assert 0.5e9 < small < large < 10e9
    assert Cellpose(Cellpose.Params(model=str(sam), diameter_um=8.0, working_px=15)).memory_bytes(10**6, PX) < small


def test_threads_never_ask_for_more_cores_than_there_are(monkeypatch):
    for stated, used in (("1", 1), ("100000", cores.available_cores()), ("many", cores.available_cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert cores.usable_threads() == used
