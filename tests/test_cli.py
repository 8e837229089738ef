"""The command line: every command runs as its help says."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import tifffile

from histoquant.phantom import PhantomPlan, make_phantom
from tests.conftest import make_scene, write_slide

COMMANDS = (
    "demo",
    "init",
    "check",
    "run",
    "segment",
    "score",
    "phantom",
    "plugins",
    "report",
    "status",
    "seamcheck",
    "spines",
)


def test_help_lists_the_commands_and_each_shows_an_example(histoquant):
    listed = histoquant("--help", check=True).stdout
    for command in COMMANDS:
        assert command in listed
        shown = histoquant(command, "--help", check=True).stdout
        assert f"histoquant {command}" in re.sub(r"\s+", " ", shown.split("Example:")[1])


@pytest.mark.parametrize("arguments", [("frobnicate",), ("run",), ("run", "s.csv", "--recipe"), ("demo", "--nope")])
def test_a_wrong_command_ends_with_2(arguments, histoquant):
    done = histoquant(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_init_check_run_from_a_folder_of_slides(tmp_path, histoquant):
    scene = make_scene(shape=(300, 320), n=80)
    slides = tmp_path / "slides"
    write_slide(slides / "mouse 1.ome.tif", scene.pixels)
    tifffile.imwrite(slides / "mouse_2.tif", scene.pixels, imagej=True, metadata={"axes": "CYX"})
    (slides / "notes.txt").write_text("hello", encoding="utf-8")
    sheet = tmp_path / "study.csv"
    told = histoquant("init", slides, "--out", sheet, check=True).stdout
    assert "mouse_2.tif: 320 x 300 px, channels channel_0, channel_1, no pixel size" in told
    assert "Fill in pixel_size_um, which these do not say: mouse_2.tif" in told
    rows = pd.read_csv(sheet)
    assert rows["slide"].tolist() == ["slides/mouse 1.ome.tif", "slides/mouse_2.tif"]

    again = histoquant("init", slides, "--out", sheet)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    recipe = tmp_path / "recipe.toml"
    checked = histoquant("check", sheet, "--recipe", recipe, "--json")
    assert checked.returncode == 2
    faults = " ".join(fault["error"] for fault in json.loads(checked.stdout)["faults"])
    assert "no pixel size" in faults

    (slides / "mouse_2.tif").unlink()
    histoquant("init", slides, "--out", sheet, "--force", check=True)
    histoquant("check", sheet, "--recipe", recipe, check=True)
    out = tmp_path / "out"
    done = histoquant("run", sheet, "--recipe", recipe, "--out", out, "--workers", "1", "--json", check=True)
    assert json.loads(done.stdout)["failures"] == []
    cells = pd.read_parquet(out / "slides" / "mouse_1" / "cells.parquet")
    found = cells["tunel_positive"].sum()
    assert abs(len(cells) - 80) <= 3
    assert abs(found - scene.positive.sum()) <= 2


def test_every_contract_file_and_column(tmp_path, study, histoquant):
    folder, out = study(), tmp_path / "out"
    log = tmp_path / "log.txt"
    command = ("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", out, "--workers", "1")
    done = histoquant(*command, "--quiet", "--log", log, check=True)
    assert done.stdout == ""
    assert "[" in log.read_text(encoding="utf-8")
    slide = out / "slides" / "good_1"
    for name in ("cells.parquet", "regions.csv", "labels.ome.tif", "overview.png", "provenance.json"):
        assert (slide / name).stat().st_size > 0
    cells = pd.read_parquet(slide / "cells.parquet")
    wanted = "cell_id region y_um x_um y_px x_px area_um2 mean_DAPI ring_mean_TUNEL background_TUNEL".split()
    assert {*wanted, "tunel_value", "tunel_positive", "origin"} <= set(cells.columns)
    assert cells["cell_id"].dtype == np.uint32
    assert cells["tunel_positive"].dtype == bool
    assert set(cells["origin"]) == {"auto"}
    regions = pd.read_csv(out / "tables" / "regions.csv")
    wanted = (
        "slide_id animal group section region parent area_mm2 masked_area_mm2 marker n_cells n_positive "
        "fraction_positive density_per_mm2 threshold threshold_source flags"
    ).split()
    assert regions.columns[:16].tolist() == wanted
    assert {"slide", "outside"} == set(regions["region"])
    wanted = (
        "animal group region marker n_sections area_mm2 n_cells n_positive fraction_positive density_per_mm2".split()
    )
    assert pd.read_csv(out / "tables" / "animals.csv").columns[:10].tolist() == wanted
    assert (out / "failures.csv").read_text(encoding="utf-8") == "slide,stage,error,remedy\n"
    assert (out / "report.html").stat().st_size > 10000
    state = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert state["state"] == "done"
    assert set(state["slides"].values()) == {"done"}
    provenance = json.loads((slide / "provenance.json").read_text(encoding="utf-8"))
    assert len(provenance["sources"]["good_1.ome.tif"]) == 64
    assert provenance["thresholds"]["tunel"] == {"value": 150.0, "source": "fixed"}


def test_segment_then_score(tmp_path, histoquant):
    make_phantom(tmp_path / "p", PhantomPlan("nuclei", size_mm=(0.3, 0.3), animals=1, density_per_mm2=1600))
    (slide,) = (tmp_path / "p" / "slides").iterdir()
    truth = next((tmp_path / "p" / "truth").glob("*_labels.ome.tif"))
    labels = tmp_path / "labels.tif"
    told = histoquant("segment", slide, "--out", labels, "--param", "core_px=333", check=True).stdout
    assert "diameter_um was not given and is estimated as" in told
    tiled = tifffile.imread(labels)
    histoquant("segment", slide, "--out", labels, "--channel", "dapi", "--workers", "2", "--quiet", check=True)
    assert np.array_equal(tiled, tifffile.imread(labels))
    assert tiled.dtype == np.uint32
    with tifffile.TiffFile(labels) as file:
        assert file.is_ome
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
    score = json.loads(histoquant("score", labels, truth, "--iou", 0.5, "--iou", 0.7, "--json", check=True).stdout)
    assert score["f1"] > 0.9
    assert [row["iou"] for row in score["pooled"]] == [0.5, 0.7]
    assert score["pooled"][1]["f1"] <= score["pooled"][0]["f1"]
    assert {"precision", "recall", "f1", "ap", "panoptic_quality"} <= set(score["per_image_mean"][0])
    shown = histoquant("score", labels, truth, check=True).stdout
    assert "pooled" in shown
    assert "per image mean" in shown


def test_scoring_folders_pairs_by_name(tmp_path, histoquant):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        labels = np.zeros((40, 40), dtype=np.uint16)
        labels[5:15, 5:15], labels[20:30, 20:35] = 1, 2
        for side, suffix in (("found", ".tif"), ("true", ".png")):
            (tmp_path / side).mkdir(exist_ok=True)
            if suffix == ".tif":
                tifffile.imwrite(tmp_path / side / f"{name}{suffix}", labels * (rng.random() > -1))
            else:
                from PIL import Image

                Image.fromarray(labels).save(tmp_path / side / f"{name}{suffix}")
    done = json.loads(histoquant("score", tmp_path / "found", tmp_path / "true", "--json", check=True).stdout)
    assert (done["n_images"], done["tp"], done["f1"]) == (2, 4, 1.0)
    tifffile.imwrite(tmp_path / "found" / "c.tif", np.zeros((9, 9), dtype=np.uint16))
    missing = histoquant("score", tmp_path / "found", tmp_path / "true")
    assert missing.returncode == 2
    assert "'c'" in missing.stderr


def test_plugins_are_listed_and_sound(histoquant):
    listed = json.loads(histoquant("plugins", "--json").stdout)
    names = {(plugin["kind"], plugin["name"]) for plugin in listed}
    assert {("segmenter", "watershed"), ("reader", "tiff"), ("rule", "ring")} <= names
    assert not [plugin for plugin in listed if plugin["error"] and plugin["distribution"] == "histoquant"]


def test_a_phantom_study_runs_as_it_is(tmp_path, histoquant):
    arguments = ("--assay", "tunel", "--size-mm", 0.5, 0.5, "--animals", 1, "--pixel-size-um", 0.65, "--quiet")
    histoquant("phantom", tmp_path / "p", *arguments, check=True)
    study = tmp_path / "p" / "study.csv"
    histoquant("run", study, "--recipe", tmp_path / "p" / "recipe.toml", "--out", tmp_path / "o", "--quiet", check=True)
    groups = pd.read_csv(tmp_path / "o" / "tables" / "groups.csv")
    assert set(groups["group"]) == {"vehicle", "treated"}
    assert {"ibz_outer", "lesion", "outside"} <= set(groups["region"])
