"""Real pixels, end to end."""

import csv
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.conftest import DATA


@pytest.fixture
def phospho(tmp_path):
    source = DATA / "human_dna_ph3" / "images"
    if not source.is_dir():
        pytest.skip(f"the real images are not at {source}")
    shutil.copytree(source, tmp_path / "slides")
    return tmp_path / "slides"


def test_human_cells_dna_and_phospho_h3(phospho, tmp_path, histoquant):
    """Three single-channel files of one field become one slide; mitotic cells are the few that are positive."""
    sheet, recipe, out = tmp_path / "study.csv", tmp_path / "recipe.toml", tmp_path / "out"
    told = histoquant("init", phospho, "--out", sheet, "--pixel-size-um", "0.65", check=True).stdout
    assert "channels d0, d1, d2" in told
    recipe.write_text(
        'schema = 1\n[panel.dna]\nchannel = "d0"\nrole = "counterstain"\n'
        '[panel.ph3]\nchannel = "d1"\nrole = "nuclear"\npositive = { threshold = "auto" }\n',
        encoding="utf-8",
    )
    histoquant("check", sheet, "--recipe", recipe, check=True)
    histoquant("run", sheet, "--recipe", recipe, "--out", out, "--workers", "1", check=True)
    (slide,) = (out / "slides").iterdir()
    cells = pd.read_parquet(slide / "cells.parquet")
    assert 290 <= len(cells) <= 390  # the network found 341, the watershed 322; no human count exists
    assert 15 <= cells["ph3_positive"].sum() <= 25  # found 20 when written; no human count exists
    assert tifffile.imread(slide / "labels.ome.tif").max() == len(cells)
    assert (slide / "overview.png").stat().st_size > 20000


def test_without_its_pixel_size_the_field_is_refused(phospho, tmp_path, histoquant):
    sheet = tmp_path / "study.csv"
    histoquant("init", phospho, "--out", sheet, check=True)
    done = histoquant("check", sheet, "--recipe", tmp_path / "recipe.toml")
    assert done.returncode == 2
    assert "no pixel size" in done.stderr
    assert "pixel_size_um" in done.stderr


def test_a_brightfield_slide_is_read_shown_and_refused(tmp_path, histoquant):
    from skimage.data import immunohistochemistry

    slides = tmp_path / "slides"
    slides.mkdir()
    tifffile.imwrite(slides / "ihc.tif", immunohistochemistry(), photometric="rgb")
    sheet, recipe, out = tmp_path / "study.csv", tmp_path / "recipe.toml", tmp_path / "out"
    told = histoquant("init", slides, "--out", sheet, "--pixel-size-um", "0.5", check=True).stdout
    assert "512 x 512 px, brightfield (RGB)" in told
    recipe.write_text('schema = 1\n[panel.dapi]\nchannel = "DAPI"\nrole = "counterstain"\n', encoding="utf-8")
    done = histoquant("run", sheet, "--recipe", recipe, "--out", out)
    assert done.returncode == 2
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        (failure,) = csv.DictReader(file)
    assert "brightfield (RGB) picture, but the recipe's markers are fluorescence" in failure["error"]
    assert (out / "slides" / "ihc" / "overview.png").stat().st_size > 20000


def test_a_real_whole_slide_image_is_refused_the_same_way(tmp_path, histoquant):
    source = DATA / "formats" / "CMU-1-Small-Region.svs"
    if not source.is_file():
        pytest.skip(f"the real slide is not at {source}")
    (tmp_path / "study.csv").write_text(f"slide,animal,group\n{source.resolve()},m1,v\n", encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = 1\n[panel.dapi]\nchannel = "DAPI"\nrole = "counterstain"\n', encoding="utf-8")
    done = histoquant("check", tmp_path / "study.csv", "--recipe", recipe)
    assert done.returncode == 2
    assert "brightfield" in done.stderr


def test_a_real_confocal_mosaic_goes_through(tmp_path, histoquant):
    source = DATA / "formats" / "S3_1Pos_2Mosaic_T1_Z1_CH1.czi"
    if not source.is_file():
        pytest.skip(f"the real slide is not at {source}")
    pytest.importorskip("pylibCZIrw", reason="CZI is read by the extra histoquant[vendor]")
    sheet = f"slide,animal,group,scene\n{source.resolve()},m1,v,TR2\n{source.resolve()},m1,v,TR1\n"
    (tmp_path / "study.csv").write_text(sheet, encoding="utf-8")
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(
        'schema = 1\n[panel.dapi]\nrole = "counterstain"\n[segment]\ndiameter_um = 12.0\n', encoding="utf-8"
    )
    done = histoquant("run", tmp_path / "study.csv", "--recipe", recipe, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    regions = pd.read_csv(out / "tables" / "regions.csv")
    assert regions["slide_id"].nunique() == 2
    assert np.isfinite(regions[regions["region"] == "slide"]["area_mm2"]).all()
