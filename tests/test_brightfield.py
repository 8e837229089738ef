"""Brightfield slides on the whole path: by their stains, as slides of fluorescence are by their channels."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from histoquant import registry
from histoquant.analysis.stains import HEMATOXYLIN, REFERENCES
from histoquant.batch import run_study
from histoquant.errors import Faults, InputError, RecipeError
from histoquant.inputs import load
from histoquant.model.panel import bound
from histoquant.model.recipe import parse_recipe
from histoquant.model.slide import Box
from histoquant.stained import stained, stains_of
from histoquant.starter import write_starter
from tests.conftest import RECIPE, make_scene, write_slide

SHIPPED = Path(__file__).parents[1] / "workflows" / "recipes" / "ihc_dab.toml"
WHITE = (240.0, 238.0, 242.0)
NUCLEAR_DAB = 0.40

IHC = """
schema = 1
[panel.hematoxylin]
stain = "hematoxylin"
role = "counterstain"
[panel.caspase]
stain = "dab"
role = "nuclear"
positive = { threshold = 0.2 }
[segment]
segmenter = "watershed"
diameter_um = 8.0
"""
REFERENCE = IHC + '[stains]\nvectors = "reference"\n'


def render(hematoxylin, dab, *, other="dab", seed=0):
    """Return an 8-bit RGB picture of maps of optical density."""
    od = np.stack([hematoxylin, dab], axis=-1) @ np.array([HEMATOXYLIN, REFERENCES[other]])
    light = np.array(WHITE) * 10**-od + np.random.default_rng(seed).normal(0, 1, od.shape)
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def write_rgb(path, picture, *, pyramid=True):
    """Write an RGB picture as a tiled TIFF, with a level of half the size."""
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, subifds=1 if pyramid else 0, **options)
        if pyramid:
            even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].astype(np.uint16)
            half = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) // 4
            tiff.write(half.astype(np.uint8), subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def section():
    """A section of nuclei, some of them brown, on pale tissue, with glass at the left."""
    scene = make_scene(shape=(520, 640), n=210, seed=4)
    nuclei, positive = (
        np.clip((plane.astype(float) - 200) / (800, 500)[i], 0, 1.1) for i, plane in enumerate(scene.pixels)
    )
    nuclei, positive = (ndimage.gaussian_filter(np.where(plane > 0.15, plane, 0), 0.7) for plane in (nuclei, positive))
    tissue = ndimage.gaussian_filter((np.arange(640) > 6).astype(float), 1.0)[None, :]
    return scene, render(0.05 * tissue + 0.4 * nuclei, 0.03 * tissue + NUCLEAR_DAB * positive)


def run(folder, recipe, sheet, out="out"):
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "study.csv").write_text(sheet, encoding="utf-8")
    return run_study(load(folder / "study.csv", folder / "recipe.toml"), folder / out, workers=1)


def cells_of(folder, out="out", slide="a"):
    return pd.read_parquet(folder / out / "slides" / slide / "cells.parquet")


SHEET = "slide,animal,group,pixel_size_um\na.tif,m1,v,0.5\n"


def test_nuclei_and_the_dab_on_them_are_recovered_whatever_the_tiles(tmp_path, section):
    scene, picture = section
    write_rgb(tmp_path / "a.tif", picture)
    for out, core_px in (("small", 128), ("large", 2048)):
        outcome = run(tmp_path, f"{REFERENCE}[tiles]\ncore_px = {core_px}\n", SHEET, out=out)
        assert not outcome.failures
    cells = cells_of(tmp_path, "large")
    assert len(cells) == len(scene.centres)
    nearest = [np.hypot(cells["y_px"] - y - 0.5, cells["x_px"] - x - 0.5).argmin() for y, x in scene.centres]
    assert len(set(nearest)) == len(cells)
    found = cells.iloc[nearest]
    assert (found["caspase_positive"].to_numpy() == scene.positive).all()
    # The mean over a nucleus is below the middle's 0.40 by what blur takes at the rim; that of true pixels is 0.36.
    brown = found.loc[scene.positive, "caspase_value"]
    assert brown.mean() == pytest.approx(0.36, abs=0.02)
    assert found.loc[~scene.positive, "caspase_value"].abs().max() < 0.02
    regions = pd.read_csv(tmp_path / "large" / "tables" / "regions.csv").set_index("region")
    assert regions.loc["slide", "fraction_positive"] == pytest.approx(scene.positive.mean(), abs=1e-6)

    for name in ("cells.parquet", "labels.ome.tif", "regions.csv"):
        small, large = ((tmp_path / out / "slides" / "a" / name).read_bytes() for out in ("small", "large"))
        assert small == large, name
    told = json.loads((tmp_path / "large" / "slides" / "a" / "provenance.json").read_text("utf-8"))
    assert told["stains"]["names"] == ["hematoxylin", "dab"]
    np.testing.assert_allclose(told["stains"]["white"], WHITE, atol=2)
    assert told["channels"] == ["hematoxylin", "dab", "residual"]
    assert any("measured on" in note for note in told["notes"])
    assert any("Beer-Lambert" in note for note in told["notes"])


def test_an_estimate_that_is_refused_is_told(tmp_path, section):
    """DAB lies on nuclei only here: all that is brown is a mixture, and the reference is taken."""
    write_rgb(tmp_path / "a.tif", section[1])
    outcome = run(tmp_path, IHC, SHEET)
    told = json.loads((tmp_path / "out" / "slides" / "a" / "provenance.json").read_text("utf-8"))["stains"]
    assert not told["estimated"]
    assert "dab would be" in told["refused"]
    np.testing.assert_array_equal(told["vectors"], [HEMATOXYLIN, REFERENCES["dab"]])
    assert [note for note in outcome.notes if "those of the slide were refused: dab would be" in note]
    assert parse_recipe(IHC).fingerprint(measured=True) != parse_recipe(REFERENCE).fingerprint(measured=True)


def test_every_level_and_box_is_unmixed_alike(tmp_path, section):
    slide = registry.open_slide(write_rgb(tmp_path / "a.tif", section[1]), pixel_size_um=0.5)
    recipe = parse_recipe(REFERENCE)
    found = stains_of(slide, recipe)
    shown = stained(slide, found.stains)
    assert shown.channels == ("hematoxylin", "dab", "residual")
    assert stained(shown, found.stains) is shown
    whole = shown.read()
    assert whole.dtype == shown.dtype == np.float32
    box = Box(101, 305, 37, 420)
    assert np.array_equal(shown.read(box, channels=[2, 0]), whole[[2, 0], :, 101:305, 37:420])
    assert np.array_equal(np.asarray(shown.levels[0][:, :, 101:305, 37:420].compute()), whole[:, :, 101:305, 37:420])
    assert shown.read(level=1).shape == (3, 1, 260, 320)
    np.testing.assert_allclose(np.median(whole[0, 0, :, 30:]), 0.05, atol=0.01)
    bound(recipe.panel, shown)
    slide.close()


def test_the_colours_of_an_h_and_e_slide(tmp_path, section):
    """Eosin is unmixed when the recipe names it, and when it does not but the slide is pink."""
    scene, _ = section
    nuclei = np.clip((scene.pixels[0].astype(float) - 200) / 800, 0, 1.1)
    nuclei = ndimage.gaussian_filter(np.where(nuclei > 0.15, nuclei, 0), 0.7)
    pink = np.full(nuclei.shape, 0.3)
    pink[:, :6] = 0
    write_rgb(tmp_path / "a.tif", render(0.4 * nuclei, pink, other="eosin"))
    alone = IHC[: IHC.index("[panel.caspase]")] + IHC[IHC.index("[segment]") :]
    both = alone.replace("[segment]", '[panel.pink]\nstain = "eosin"\nrole = "cytoplasmic"\n[segment]')
    for out, recipe in (("alone", alone), ("both", both)):
        run(tmp_path, recipe, SHEET, out=out)
        told = json.loads((tmp_path / out / "slides" / "a" / "provenance.json").read_text("utf-8"))
        assert told["channels"] == ["hematoxylin", "eosin", "residual"]
        assert len(cells_of(tmp_path, out)) == len(scene.centres)
    measured = cells_of(tmp_path, "both")
    assert measured["background_eosin"].median() == pytest.approx(0.3, abs=0.02)


def test_a_white_slide_is_a_result(tmp_path):
    write_rgb(tmp_path / "a.tif", np.full((300, 310, 3), 255, dtype=np.uint8))
    outcome = run(tmp_path, IHC, SHEET)
    assert not outcome.failures
    assert len(cells_of(tmp_path)) == 0
    regions = pd.read_csv(tmp_path / "out" / "tables" / "regions.csv").set_index("region")
    assert regions.loc["slide", "n_cells"] == 0
    assert np.isnan(regions.loc["slide", "fraction_positive"])


def test_black_pixels_are_counted_and_told(tmp_path, section):
    picture = section[1].copy()
    picture[100:140, 100:150] = 0
    write_rgb(tmp_path / "a.tif", picture)
    outcome = run(tmp_path, REFERENCE, SHEET)
    assert [note for note in outcome.notes if "0.6 % of the pixels are black" in note]


def test_slides_that_do_not_fit_the_recipe_say_what_to_do(tmp_path, section, scene):
    write_rgb(tmp_path / "a.tif", section[1])
    write_slide(tmp_path / "b.ome.tif", scene.pixels)
    sheet = SHEET + "b.ome.tif,m2,v,\n"
    (failure,) = run(tmp_path, IHC, sheet, out="stains").failures
    assert "'b" in failure.error
    assert "no brightfield picture" in failure.error
    assert "'hematoxylin' (hematoxylin), 'dab' (caspase)" in failure.error
    assert "DAPI, TUNEL" in failure.error
    (failure,) = run(tmp_path, RECIPE, sheet, out="channels").failures
    assert "brightfield (RGB) picture, but the recipe's markers are fluorescence" in failure.error
    assert 'stain = "hematoxylin"' in failure.remedy


def test_what_is_no_8_bit_colour_is_refused(tmp_path, section):
    import dataclasses

    slide = registry.open_slide(write_rgb(tmp_path / "a.tif", section[1]), pixel_size_um=0.5)
    wide = dataclasses.replace(slide, levels=tuple(level.astype(np.uint16) for level in slide.levels), stored=())
    with pytest.raises(InputError, match="8-bit red, green and blue, not from 3 channels of type uint16"):
        bound(parse_recipe(IHC).panel, wide)
    slide.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('stain = "dab"', 'stain = "brown"'), r"panel\.caspase\.stain: .*'hematoxylin', 'dab', 'eosin'.*got 'brown'"),
        (('stain = "dab"', 'stain = "dab"\nchannel = "DAB"'), "both a channel .'DAB'. and a stain .'dab'."),
        (('stain = "dab"', 'channel = "TUNEL"'), r"mixes stains with channels \(caspase\)"),
        (('stain = "dab"', 'stain = "residual"'), "the residual is what two stains leave"),
        (("[segment]", '[panel.pink]\nstain = "eosin"\nrole = "nuclear"\n[segment]'), "dab and eosin"),
        (("[segment]", '[stains]\nvectors = "guessed"\n[segment]'), r"stains\.vectors: .*got 'guessed'"),
        (("[segment]", '[stains]\nvector = "reference"\n[segment]'), "Did you mean 'vectors'"),
    ],
)
def test_recipes_with_stains_that_cannot_be(change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(IHC.replace(*change))


def test_all_faults_come_together(tmp_path):
    recipe = IHC.replace('"dab"', '"brown"').replace("diameter_um = 8.0", "diameter_um = -1") + "[stains]\nwhite = 3\n"
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    (tmp_path / "study.csv").write_text("slide,animal\na.tif,m1\n", encoding="utf-8")
    with pytest.raises(Faults) as raised:
        load(tmp_path / "study.csv", tmp_path / "recipe.toml")
    told = str(raised.value)
    for part in ("group", "panel.caspase.stain", "segment.diameter_um", "unknown key 'stains.white'"):
        assert part in told


def test_a_recipe_of_channels_keeps_its_fingerprint():
    """Stored results of fluorescence slides stay valid: settings of stains are no part of what decides them."""
    plain, settled = (parse_recipe(RECIPE + more) for more in ("", '[stains]\nvectors = "reference"\n'))
    for measured in (True, False):
        assert plain.fingerprint(measured=measured) == settled.fingerprint(measured=measured)


def test_segment_and_init_take_the_hematoxylin(tmp_path, section, histoquant):
    scene, picture = section
    write_rgb(tmp_path / "a.tif", picture)
    labels = tmp_path / "labels.tif"
    common = ("segment", tmp_path / "a.tif", "--out", labels, "--pixel-size-um", 0.5, "--segmenter", "watershed")
    done = histoquant(*common, "--param", "diameter_um=8", check=True)
    assert "nuclei are those of hematoxylin" in done.stdout
    assert tifffile.imread(labels).max() == len(scene.centres)
    histoquant(*common, "--param", "diameter_um=8", "--channel", "DAB", check=True)
    assert tifffile.imread(labels).max() == scene.positive.sum()
    refused = histoquant(*common, "--channel", "red")
    assert refused.returncode == 2
    assert "it has stains, not a channel 'red'" in refused.stderr
    assert "hematoxylin, dab, eosin" in refused.stderr

    slides = tmp_path / "slides"
    slides.mkdir()
    (tmp_path / "a.tif").rename(slides / "a.tif")
    sheet = tmp_path / "study.csv"
    told = histoquant("init", slides, "--out", sheet, "--pixel-size-um", 0.5, check=True).stdout
    assert "nuclei by their hematoxylin" in told
    assert 'stain = "hematoxylin"' in (tmp_path / "recipe.toml").read_text("utf-8")
    histoquant("check", sheet, "--recipe", tmp_path / "recipe.toml", check=True)


def test_a_folder_of_both_kinds_is_told_apart(tmp_path, section, scene):
    slides = tmp_path / "slides"
    slides.mkdir()
    write_rgb(slides / "a.tif", section[1])
    write_slide(slides / "b.ome.tif", scene.pixels)
    told = write_starter(slides, tmp_path / "study.csv", pixel_size_um=0.5)
    assert any("1 of the slides are brightfield pictures" in line for line in told)
    assert 'channel = "DAPI"' in (tmp_path / "recipe.toml").read_text("utf-8")


def test_nuclei_of_a_real_h_dab_section(tmp_path, histoquant):
    """Colon, DAB in the cytoplasm. Outlines were looked at: most nuclei in and between the glands; none was counted."""
    from skimage.data import immunohistochemistry

    write_rgb(tmp_path / "a.tif", immunohistochemistry(), pyramid=False)
    shipped = tomllib.loads(SHIPPED.read_text("utf-8"))["segment"]
    settings = f'"{shipped["segmenter"]}"\ncertainty = {shipped["certainty"]}'
    recipe = IHC.replace('"watershed"', settings).replace("diameter_um = 8.0", "diameter_um = 6.0")
    assert not run(tmp_path, recipe, SHEET).failures
    told = json.loads((tmp_path / "out" / "slides" / "a" / "provenance.json").read_text("utf-8"))["stains"]
    assert told["estimated"]
    assert max(told["angles_deg"]) < 8
    assert told["explained"] > 0.99
    cells = cells_of(tmp_path)
    assert 350 <= len(cells) <= 600  # 391 now; with certainty 0.5 262, and clumps are missed; none was counted
    assert ((cells["mean_hematoxylin"] - cells["ring_mean_hematoxylin"]) > 0).mean() > 0.95
    assert cells["caspase_positive"].mean() < 0.2  # DAB lies round the nuclei, not on them
