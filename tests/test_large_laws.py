"""Laws 2, 3 and 8 on a section of 8,000 x 8,000 px: uneven tissue, dense clusters across the borders of tiles."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import shapely

from histoquant import registry
from histoquant.batch import run_study
from histoquant.inputs import load
from histoquant.phantom import PhantomPlan
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.study import write_slide
from histoquant.pipeline import plan_slide
from histoquant.seamcheck import seamcheck
from histoquant.survey import survey
from histoquant.work import Work
from tests.test_laws import digests

pytestmark = pytest.mark.slow

SIDE_MM = 4.0
RECIPE = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.brdu]
channel = "BrdU"
role = "nuclear"
positive = { threshold = 400.0 }
[panel.dcx]
channel = "DCX"
role = "cytoplasmic"
positive = { rule = "ring", fraction = 0.6, threshold = 400.0 }
[segment]
segmenter = "watershed"
channels = ["dapi", "brdu"]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One BrdU section: nuclei of the strip lie in clusters of up to six."""
    folder = tmp_path_factory.mktemp("large")
    plan = PhantomPlan("brdu", size_mm=(SIDE_MM, SIDE_MM), pixel_size_um=0.5, animals=1, seed=29)
    _, section = make_section(plan, Subject(0, "vehicle", 1.0, ""))
    write_slide(folder / "large.ome.tif", plan, section, lambda rows: None)
    (folder / "study.csv").write_text("slide,animal,group\nlarge.ome.tif,m1,vehicle\n", encoding="utf-8")
    for core_px in (2048, 777):
        text = RECIPE + f"[tiles]\ncore_px = {core_px}\n"
        (folder / f"recipe_{core_px}.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(study):
    outcome = run_study(load(study / "study.csv", study / "recipe_2048.toml"), study / "out", workers=2)
    assert not outcome.failures
    return study / "out"


def results(out):
    """Everything a run leaves but what states the size of its tiles."""
    return {name: digest for name, digest in digests(out).items() if not name.endswith("provenance.json")}


def test_the_section_is_uneven_and_crowded_at_the_borders_of_tiles(study, whole):
    """What the other tests rest on."""
    cells = pd.read_parquet(whole / "slides" / "large" / "cells.parquet")
    near = ((cells[["y_px", "x_px"]] % 2048 + 20) % 2048 < 40).any(axis=1)
    assert len(cells) > 15_000
    assert near.sum() > 300
    slide = registry.open_slide(study / "large.ome.tif")
    recipe = load(study / "study.csv", study / "recipe_2048.toml").recipe
    work = Work(slide, recipe, survey(slide, recipe))
    assert len(plan_slide(work)) == 16
    assert 0.2 < shapely.area(work.survey.tissue) / (1000 * SIDE_MM) ** 2 < 0.95
    slide.close()


def test_2_and_3_neither_tiles_nor_workers_matter(study, whole):
    outcome = run_study(load(study / "study.csv", study / "recipe_777.toml"), study / "other", workers=1)
    assert not outcome.failures
    assert results(study / "other") == results(whole)


def test_2_nor_does_where_the_grid_begins(study):
    found = seamcheck(study / "large.ome.tif", study / "recipe_2048.toml", shift_px=(611, 1203), workers=2)
    assert not found.differences
    assert found.n_cut == (0, 0)


def test_8_killed_and_run_again(study, whole):
    out = study / "killed"
    given = [str(study / "study.csv"), "--recipe", str(study / "recipe_777.toml"), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "histoquant", "run", *given]
    kept: set[str] = set()
    for more in (3, 6, 4):
        before = set(kept)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(kept - before) < more and process.poll() is None:
                time.sleep(0.05)
                kept = {path.name for path in out.glob(".blocks/??/*.block")}
            assert process.poll() is None, "the run ended before it could be killed"
            process.send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob(".blocks/??/*.block")}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results(out) == results(whole)
    now = {path.name: path.stat().st_mtime_ns for path in out.glob(".blocks/??/*.block")}
    assert {name: now[name] for name in finished} == finished  # nothing finished was done again
    state = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert state["blocks_reused"] >= 8
