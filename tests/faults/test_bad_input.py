"""Bad input: one clear sentence, the right exit code, no traceback, and the other slides complete."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.conftest import make_scene, write_geojson, write_slide


def truncated(folder, scene):
    path = write_slide(folder / "bad.ome.tif", scene.pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def wrong_magic(folder, scene):
    (folder / "bad.tif").write_bytes(b"This is not an image at all." * 50)
    return "bad.tif"


def zero_bytes(folder, scene):
    (folder / "bad.tif").write_bytes(b"")
    return "bad.tif"


def a_folder(folder, scene):
    (folder / "bad.tif").mkdir(parents=True)
    return "bad.tif"


def not_there(folder, scene):
    return "bad.tif"


def infinite(folder, scene):
    pixels = scene.pixels.astype(np.float32)
    pixels[0, 50, 60], pixels[1, 70, 80] = np.nan, np.inf
    write_slide(folder / "bad.ome.tif", pixels)
    return "bad.ome.tif"


def no_such_channel(folder, scene):
    write_slide(folder / "bad.ome.tif", scene.pixels, channels=("DAPI", "GFP"))
    return "bad.ome.tif"


def no_pixel_size(folder, scene):
    metadata = {"axes": "CYX", "Labels": ["DAPI", "TUNEL"]}
    tifffile.imwrite(folder / "bad.tif", scene.pixels, imagej=True, metadata=metadata)
    return "bad.tif"


def brightfield(folder, scene):
    picture = np.full((200, 200, 3), (235, 228, 232), dtype=np.uint8)
    picture[50:90, 60:120] = (90, 40, 120)
    tifffile.imwrite(folder / "bad.tif", picture, photometric="rgb")
    return "bad.tif"


def region_off_the_slide(folder, scene):
    write_slide(folder / "bad.ome.tif", scene.pixels)
    write_geojson(folder / "off.geojson", cortex=[(5000, 5000), (6000, 5000), (6000, 6000)])
    return "bad.ome.tif"


def crossing_regions(folder, scene):
    write_slide(folder / "bad.ome.tif", scene.pixels)
    write_geojson(
        folder / "off.geojson",
        cortex=[(10, 10), (200, 10), (200, 200), (10, 200)],
        striatum=[(100, 100), (300, 100), (300, 300), (100, 300)],
    )
    return "bad.ome.tif"


BAD_SLIDES = [
    (truncated, ["bad"], "again"),
    (wrong_magic, ["bad.tif"], ""),
    (zero_bytes, ["bad.tif"], ""),
    (a_folder, ["bad.tif"], ""),
    (not_there, ["bad.tif"], ""),
    (infinite, ["NaN or infinite"], "Export"),
    (no_such_channel, ["'TUNEL'", "GFP"], "panel"),
    (no_pixel_size, ["no pixel size"], "pixel_size_um"),
    (brightfield, ["brightfield"], ""),
    (region_off_the_slide, ["cortex"], ""),
    (crossing_regions, ["cortex", "striatum"], "parent"),
]


@pytest.mark.parametrize(("make", "named", "remedy"), BAD_SLIDES, ids=[row[0].__name__ for row in BAD_SLIDES])
def test_a_bad_slide_is_listed_and_the_others_complete(make, named, remedy, study, scene, histoquant, tmp_path):
    folder = study()
    name = make(folder, scene)
    regions = "off.geojson" if (folder / "off.geojson").exists() else ""
    pixel_size = "0.5" if make in (truncated, wrong_magic, zero_bytes, brightfield) else ""
    study(f"{name},m3,vehicle,{regions},{pixel_size}")
    out = tmp_path / "out"
    done = histoquant("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", out, "--workers", 1)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        failures = list(csv.DictReader(file))
    assert {row["slide"] for row in failures} == {"bad"}
    assert len(failures) == 1
    (failure,) = failures
    assert "\n" not in failure["error"]
    assert failure["remedy"]
    for word in named:
        assert word in failure["error"]
    assert remedy in failure["remedy"]
    assert failure["error"] in done.stderr
    animals = pd.read_csv(out / "tables" / "animals.csv")
    assert set(animals.loc[animals["n_sections"] > 0, "animal"]) == {"m1", "m2"}
    assert set(animals.loc[animals["n_sections"] == 0, "flags"]) == {"incomplete: 1 section(s) failed"}
    assert (animals["n_cells"] > 100).any()

    checked = histoquant("check", folder / "study.csv", "--recipe", folder / "recipe.toml")
    assert checked.returncode == (0 if make is infinite else 2)  # pixels are not looked at by check
    assert "Traceback" not in checked.stderr


def test_a_constant_image_and_one_pixel_are_results(study, scene, histoquant, tmp_path):
    folder = study()
    write_slide(folder / "flat.ome.tif", np.full((2, 300, 310), 700, dtype=np.uint16))
    write_slide(folder / "dot.ome.tif", np.full((2, 1, 1), 700, dtype=np.uint16))
    study("flat.ome.tif,m3,vehicle,,", "dot.ome.tif,m4,vehicle,,")
    out = tmp_path / "out"
    done = histoquant("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "flat: channel 'DAPI' holds one and the same value everywhere" in done.stdout
    regions = pd.read_csv(out / "tables" / "regions.csv").set_index(["slide_id", "region"])
    for slide in ("flat", "dot"):
        row = regions.loc[(slide, "slide")]
        assert (row["n_cells"], row["n_positive"]) == (0, 0)
        assert np.isnan(row["fraction_positive"])
        assert len(pd.read_parquet(out / "slides" / slide / "cells.parquet")) == 0
        assert tifffile.imread(out / "slides" / slide / "labels.ome.tif").max() == 0
    assert pd.read_csv(out / "failures.csv").empty


def test_faults_of_the_sheet_and_the_recipe_come_together_and_nothing_is_computed(study, histoquant, tmp_path):
    folder = study("good_1.ome.tif,m1,vehicle,,", "../../etc/passwd,m9,vehicle,,")
    (folder / "recipe.toml").write_text(
        (folder / "recipe.toml").read_text(encoding="utf-8") + "diametre_um = 3\n", encoding="utf-8"
    )
    out = tmp_path / "out"
    for command in (
        ("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", out),
        ("check", folder / "study.csv", "--recipe", folder / "recipe.toml"),
    ):
        done = histoquant(*command)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 3
        assert "already in line 2" in lines[0]
        assert "leaves the study's folder" in lines[1]
        assert "unknown key 'diametre_um'" in lines[2]
        assert "Did you mean 'diameter_um'" in lines[2]
    assert not out.exists()


def test_when_no_slide_can_be_opened_nothing_was_computed(tmp_path, scene, histoquant):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "a.tif").write_bytes(b"")
    (folder / "study.csv").write_text("slide,animal,group\na.tif,m1,v\n", encoding="utf-8")
    recipe = 'schema = 1\n[panel.dapi]\nchannel = 0\nrole = "counterstain"\n'
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    done = histoquant("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "a.tif" in done.stderr


def test_seventy_thousand_objects_in_one_label_image(tmp_path, histoquant):
    labels = np.zeros((560, 560), dtype=np.uint32)
    labels[::2, ::2] = np.arange(1, 78401, dtype=np.uint32).reshape(280, 280)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    tifffile.imwrite(tmp_path / "wrapped.tif", (labels % 65536).astype(np.uint16))
    same = histoquant("score", tmp_path / "labels.tif", tmp_path / "labels.tif", "--json", check=True)
    assert json.loads(same.stdout)["n_true"] == 78400
    assert json.loads(same.stdout)["f1"] == 1.0
    wrapped = histoquant("score", tmp_path / "wrapped.tif", tmp_path / "labels.tif", "--json", check=True)
    assert json.loads(wrapped.stdout)["f1"] < 1.0


def test_labels_that_are_not_labels(tmp_path, histoquant):
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((9, 9), dtype=np.float32))
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((9, 9), dtype=np.uint16))
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((10, 9), dtype=np.uint16))
    for pair in (("float.tif", "small.tif"), ("small.tif", "large.tif"), ("small.tif", "none.tif")):
        done = histoquant("score", *(tmp_path / name for name in pair))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_segmenting_something_that_is_not_there(tmp_path, histoquant):
    slide = write_slide(tmp_path / "a.ome.tif", make_scene(shape=(100, 100), n=8).pixels)
    for arguments, message in (
        (("none.tif", "--out", tmp_path / "l.tif"), "none.tif"),
        ((slide, "--out", tmp_path / "no" / "l.tif"), "no folder"),
        ((slide, "--out", tmp_path / "l.tif", "--channel", "GFP"), "no channel"),
        ((slide, "--out", tmp_path / "l.tif", "--segmenter", "watershet"), "watershed"),
        ((slide, "--out", tmp_path / "l.tif", "--param", "diameter_um"), "K=V"),
        ((slide, "--out", tmp_path / "l.tif", "--param", "core_px=1"), "core_px"),
        ((slide, "--out", tmp_path / "l.tif", "--param", "dye=7"), "dye"),
    ):
        done = histoquant("segment", *arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "l.tif").exists()
    assert not list(tmp_path.glob(".l.tif*"))
