"""Two tile grids on one slide: nothing differs with a sound segmenter, and what differs with another is listed."""

import json

import numpy as np
import pandas as pd
import pytest

from histoquant import registry
from histoquant.errors import InputError
from histoquant.seamcheck import _surplus, report_lines, seamcheck
from tests.conftest import RECIPE, make_scene, write_slide

TILES = "[tiles]\ncore_px = 128\n"

BRIGHT = '''
"""What is brighter than most of the tile: a threshold that depends on the cut."""

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import ndimage


class Bright:
    api = 1

    class Params(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        diameter_um: float = 8.0
        halo: float = 20.0
        percentile: float | None = None

    def __init__(self, params):
        self.params = params

    @property
    def halo_um(self):
        return self.params.halo

    def __call__(self, image, pixel_size_um):
        percentile = self.params.percentile
        threshold = 0.5 if percentile is None else np.percentile(image[0], percentile)
        return ndimage.label(image[0] > threshold)[0].astype(np.uint32)
'''


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Nuclei that touch, and a corner of bare ground, so that tiles differ."""
    scene = make_scene(shape=(400, 420), n=140, seed=3, spacing=1.6)
    scene.pixels[:, 250:, 250:] = np.random.default_rng(0).normal(200, 12, (2, 150, 170)).astype(np.uint16)
    return write_slide(tmp_path_factory.mktemp("seams") / "slide.ome.tif", scene.pixels)


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def bright(tmp_path, monkeypatch):
    """A plug-in distribution, as pip would install it; returns the recipe's text with its parameters."""
    site = tmp_path / "site"
    info = site / "bright_lab-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "bright_lab.py").write_text(BRIGHT, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-lab\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[histoquant.segmenters]\nbright = bright_lab:Bright\n", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    registry.rescan()
    yield lambda more="": RECIPE.replace('"watershed"', '"bright"') + f"{more}\n{TILES}"
    registry.rescan()


def test_the_watershed_gives_the_same_on_both_grids(slide, recipe, histoquant):
    path = recipe(RECIPE + TILES)
    found = seamcheck(slide, path, workers=1)
    assert found.equal
    assert found.differences == ()
    assert found.n_nuclei[0] == found.n_nuclei[1] > 60
    assert found.n_tiles[0] > 4
    assert found.shift_px == (64, 64)
    assert found.n_cut == (0, 0)
    done = histoquant("seamcheck", slide, "--recipe", path, "--shift", 37, 91, "--workers", 2, "--json", check=True)
    told = json.loads(done.stdout)
    assert told["equal"]
    assert told["n_nuclei"] == list(found.n_nuclei)
    assert told["shift_px"] == [37, 91]


def test_a_segmenter_that_depends_on_the_tile_is_found_out(slide, recipe, bright):
    """The control: the same plug-in with a threshold of its own is equal, with one of the tile it is not."""
    assert seamcheck(slide, recipe(bright()), workers=1).equal
    found = seamcheck(slide, recipe(bright("percentile = 85.0")), workers=1)
    assert not found.equal
    assert {each.grid for each in found.differences} == {"recipe", "shifted"}
    only = [sum(each.grid == grid for each in found.differences) for grid in ("recipe", "shifted")]
    assert only[1] - only[0] == found.n_nuclei[1] - found.n_nuclei[0]
    for each in found.differences:
        assert 0 <= each.y_um <= 200
        assert 0 <= each.x_um <= 210
        assert each.area_um2 > 0
        assert each.seam_um >= 0
        assert each.nearest_um >= 0
    places = [(each.y_um, each.x_um) for each in found.differences]
    assert places == sorted(places)
    text = "\n".join(report_lines(found, most=5))
    assert f"DIFFERENT: {len(found.differences):,} object(s)" in text
    assert f"... and {len(found.differences) - 5:,} more" in text
    assert f"difference {found.n_nuclei[1] - found.n_nuclei[0]:+,} ({found.percent:+.3g} %)" in text


def test_objects_larger_than_the_halo_are_cut_and_differ_at_seams(slide, recipe, bright):
    path = recipe(bright("halo = 0.5") + "max_object_um = 0.1\n[measure]\nbackground_inner_um = 0.1\n"
                  "background_outer_um = 0.2\nring_um = 0.1\n")  # fmt: skip
    found = seamcheck(slide, path, workers=1)
    assert not found.equal
    assert max(found.n_cut) > 0
    # Objects of 8 um reach a cut from 4 um off, clumps of them from further.
    assert np.median([each.seam_um for each in found.differences]) < 8


def test_the_exit_code_tells(slide, recipe, histoquant, bright, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    done = histoquant("seamcheck", slide, "--recipe", recipe(bright("percentile = 85.0")), "--workers", 1)
    assert done.returncode == 1, done.stderr
    assert "DIFFERENT" in done.stdout
    wrong = histoquant("seamcheck", slide, "--recipe", recipe(RECIPE + TILES), "--shift", 128, 256)
    assert wrong.returncode == 2
    assert "leaves the tile grid" in wrong.stderr
    missing = histoquant("seamcheck", slide.with_name("nowhere.tif"), "--recipe", recipe(RECIPE + TILES))
    assert missing.returncode == 2
    assert "there is no such file" in missing.stderr


def test_a_slide_smaller_than_a_tile_is_cut_all_the_same(slide, recipe):
    found = seamcheck(slide, recipe(RECIPE), workers=1)
    assert found.n_tiles == (1, 4)
    assert found.shift_px == (200, 210)
    assert found.equal


def test_a_slide_without_a_pixel_size_is_refused(tmp_path, recipe):
    import tifffile

    tifffile.imwrite(tmp_path / "plain.tif", make_scene(n=5).pixels, imagej=True, metadata={"axes": "CYX"})
    path = recipe(RECIPE.replace('"DAPI"', "0").replace('"TUNEL"', "1") + TILES)
    with pytest.raises(InputError, match="pixel size"):
        seamcheck(tmp_path / "plain.tif", path, workers=1)
    assert seamcheck(tmp_path / "plain.tif", path, pixel_size_um=0.5, workers=1).equal


def test_an_object_counted_on_both_sides_of_a_seam_is_one_too_many():
    once = pd.DataFrame({"y_um": [1.0, 2.0, np.nan], "n": [3, 4, 5], "cell_id": [1, 2, 3]})
    twice = pd.concat([once, once.iloc[[1]]], ignore_index=True).assign(cell_id=[9, 8, 7, 6])
    first, second = _surplus(once, twice)
    assert first.tolist() == [False, False, False]
    assert second.tolist() == [False, False, False, True]
    moved = once.assign(y_um=[1.0, np.nextafter(2.0, 3.0), np.nan])  # one bit is a difference
    assert [side.tolist() for side in _surplus(once, moved)] == [[False, True, False]] * 2
