"""A lab's plug-in comes in through the doors as ours do, and ours keep the promises of their doors.

Whatever door a person takes, the tables are the same.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import tifffile
import zarr

from histoquant.analysis.positivity import Threshold
from histoquant.errors import PluginError
from histoquant.model.recipe import parse_recipe
from histoquant.model.region import RegionSet, resolve
from histoquant.pipeline import analyse_slide, finish
from histoquant.preview import Bench, finished, threshold_of
from histoquant.readers.outlines import read_outlines
from histoquant.registry import load, open_slide, reader_of
from histoquant.testing import check_reader, check_rule, check_segmenter
from tests.conftest import RECIPE, Scene, histoquant, write_geojson, write_slide

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
PLUGIN = Path(__file__).parents[1] / "plugins" / "example_lab"


# installed with pip, used from a process of its own


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the example plug-in without a network, is not installed")
    source = tmp_path_factory.mktemp("source") / "example_lab"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    return _pip_install(source, tmp_path_factory.mktemp("site"))


@pytest.fixture
def labraw(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 300, 210), dtype=np.uint16)
    path = tmp_path / "section 1.labraw"
    path.write_bytes(b"LABRAW 1 2 300 210 0.325 DAPI,Alexa 488\n" + pixels.astype("<u2").tobytes())
    return path


def _pip_install(source: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return target


def _python(script: str, *sites: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


LIST = """
import sys
from histoquant.registry import list_plugins
lab = [p for p in list_plugins() if p.distribution == "histoquant-example-lab"]
print(*(f"{p.kind} {p.name} {p.version} {p.value}" for p in lab), sep="\\n")
assert not any(name.startswith("histoquant_example_lab") for name in sys.modules)
"""


def test_an_installed_plugin_is_listed_without_being_imported(site: Path) -> None:
    assert _python(LIST, site).splitlines() == [
        "reader labraw 1.0.0 histoquant_example_lab.labraw:LabrawReader",
        "segmenter lab_blobs 1.0.0 histoquant_example_lab.blobs:LabBlobs",
        "rule lab_ratio 1.0.0 histoquant_example_lab.ratio:LabRatio",
    ]
    assert _python(LIST).strip() == ""  # the control: without the folder there is no plug-in


USE = """
from pathlib import Path
from histoquant.registry import fingerprint_of, load
from histoquant.testing import check_reader, check_rule, check_segmenter

check_reader(load("reader", "labraw"), Path({path!r}))
check_segmenter(load("segmenter", "lab_blobs"))
check_rule(load("rule", "lab_ratio"))
print(fingerprint_of("segmenter", "lab_blobs"))
"""


def test_an_installed_plugin_keeps_its_promises(site: Path, labraw: Path) -> None:
    out = _python(USE.format(path=str(labraw)), site)
    assert out.strip() == "histoquant-example-lab 1.0.0 histoquant_example_lab.blobs:LabBlobs"


def test_its_slides_open_by_content_beside_our_readers(site: Path, labraw: Path) -> None:
    disguised = labraw.rename(labraw.with_suffix(".tif"))
    script = f"""
from histoquant.registry import open_slide, reader_of
print(reader_of({str(disguised)!r}), open_slide({str(disguised)!r}).channels)
"""
    out = _python(script, site)
    assert out.strip() == "Reader 'labraw' of histoquant-example-lab 1.0.0 ('DAPI', 'Alexa 488')"


def test_two_distributions_of_one_name_are_both_named(site: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    shutil.copytree(PLUGIN, fork, ignore=shutil.ignore_patterns("__pycache__"))
    project = fork / "pyproject.toml"
    project.write_text(project.read_text().replace("histoquant-example-lab", "other-lab", 1))
    other = _pip_install(fork, tmp_path / "other")
    script = """
from histoquant.errors import PluginError
from histoquant.registry import load
try:
    load("rule", "lab_ratio")
except PluginError as error:
    print(error)
"""
    said = _python(script, site, other)
    assert "histoquant-example-lab 1.0.0" in said
    assert "other-lab 1.0.0" in said


# the doors of a person; that of the widget is tried in tests/napari/test_tune.py


def test_python_command_line_and_preview_give_the_same_tables(tmp_path: Path, scene: Scene) -> None:
    slide_path = write_slide(tmp_path / "M1.ome.tif", scene.pixels)
    outlines = write_geojson(tmp_path / "r.geojson", left=[(0, 0), (200, 0), (200, 400), (0, 400)])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "study.csv").write_text("slide,animal,group,regions\nM1.ome.tif,m1,vehicle,r.geojson\n")
    histoquant(
        "run", tmp_path / "study.csv", "--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "out", check=True
    )
    by_command = pd.read_parquet(tmp_path / "out" / "slides" / "M1" / "cells.parquet")

    recipe, slide = parse_recipe(RECIPE), open_slide(slide_path)
    slide_um = (slide.shape[0] * slide.pixel_size_um, slide.shape[1] * slide.pixel_size_um)

    def regions(tissue: Any) -> RegionSet:
        return resolve(read_outlines(outlines, slide.pixel_size_um), recipe.regions, slide=slide_um, tissue=tissue)

    thresholds = {"tunel": Threshold(150.0, "fixed")}
    by_python = analyse_slide(slide, regions, recipe, thresholds=lambda cells, work: thresholds)
    trial = finished(Bench(slide).trial(recipe))
    found = {"tunel": threshold_of(trial, "tunel")}
    by_preview = finish(trial.work, trial.measured, regions(trial.work.survey.tissue), found, identity={})
    slide.close()
    assert 10 < by_command["tunel_positive"].sum() < len(by_command)
    for table in (by_python.cells, by_preview.cells):
        pd.testing.assert_frame_equal(table, by_command, check_exact=True)
    pd.testing.assert_frame_equal(by_preview.regions, by_python.regions, check_exact=True)


# our own parts


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65535, (2, 700, 530), dtype=np.uint16)


def test_our_tiff_reader_keeps_its_promises(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.ome.tif"
    tiles: dict[str, Any] = {"tile": (256, 256), "photometric": "minisblack", "compression": "zlib"}
    with tifffile.TiffWriter(path) as file:
        size = {f"PhysicalSize{axis}{what}": value for axis in "XY" for what, value in (("", 0.5), ("Unit", "µm"))}
        file.write(pixels, subifds=1, metadata={"axes": "CYX", **size}, **tiles)
        file.write(pixels[:, ::2, ::2], subfiletype=1, **tiles)
    check_reader(load("reader", "tiff"), path)


def test_our_picture_reader_keeps_its_promises(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray((pixels[0] >> 8).astype(np.uint8)).save(path)
    check_reader(load("reader", "picture"), path)


def test_our_zarr_reader_keeps_its_promises(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.ome.zarr"
    image = zarr.open_group(path, mode="w", zarr_format=3)
    image.create_array("0", data=pixels[:, np.newaxis], chunks=(1, 1, 256, 256))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scaled = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 0.5, 0.5]}]}
    image.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [scaled]}]}
    check_reader(load("reader", "zarr"), path)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "newCZI_compressed.czi", "xz-example.lif"])
def test_our_readers_keep_their_promises_on_real_files(name: str) -> None:
    path = SHARED / "formats" / name
    if not path.exists():
        pytest.skip(f"the real file is not at {path}")
    plugin = reader_of(path)
    try:
        check_reader(load("reader", plugin.name), path)
    except PluginError as error:
        if "MissingExtraError" not in str(error):
            raise
        pytest.skip(f"what reads {name} is not installed")


@pytest.mark.parametrize("name", ["nuclear", "ring"])
def test_our_rules_keep_their_promises(name: str) -> None:
    check_rule(load("rule", name))


def test_our_watershed_keeps_its_promises() -> None:
    check_segmenter(load("segmenter", "watershed"))
