"""What is read and hashed once, and what a survey keeps for the end."""

import contextlib
import json

import numpy as np
import pytest

from histoquant import cluster, picture, steps
from histoquant.analysis.runs import Runs
from histoquant.batch import run_study
from histoquant.inputs import load
from histoquant.job import Job, release, source_hashes
from histoquant.pipeline import analyse_tile, plan_slide


class InThisProcess(cluster.Inline):
    """Where what is done can be counted."""

    def keep(self, number):
        assert number == 1


@pytest.fixture
def checked(study):
    folder = study()
    return load(folder / "study.csv", folder / "recipe.toml")


@pytest.fixture
def hashed(monkeypatch):
    """Slides whose files were hashed, in order."""
    slides, once = [], steps.source_hashes

    def counted(job):
        slides.append(job.slide.slide_id)
        return once(job)

    monkeypatch.setattr(steps, "source_hashes", counted)
    return slides


@pytest.fixture
def job(checked, tmp_path):
    job = Job(checked.study.included[0], checked.recipe, tmp_path / "out")
    job.folder.blocks.folder.mkdir(parents=True)
    return job


def test_a_run_hashes_each_slide_once_and_says_what_it_surveyed(checked, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(cluster, "workers", lambda *given, **more: contextlib.nullcontext(InThisProcess()))
    run_study(checked, tmp_path / "out", workers=1)
    assert sorted(hashed) == ["good_1", "good_2"]
    for row in checked.study.included:
        told = json.loads((tmp_path / "out" / "slides" / row.slide_id / "provenance.json").read_text("utf-8"))
        assert told["sources"] == source_hashes(Job(row, checked.recipe, tmp_path / "out"))
    hashed.clear()
    run_study(checked, tmp_path / "out", workers=1)
    assert sorted(hashed) == ["good_1", "good_2"]  # a new run trusts no earlier hash


def test_the_overview_of_a_large_slide_needs_no_second_look(job, monkeypatch):
    monkeypatch.setattr(picture, "MAX_COARSE_PX", 1000)
    monkeypatch.setattr(steps, "OVERVIEW_PX", 20)
    key = steps.survey_slide(job)
    work = steps.work_of(job, key)
    asked, once = [], type(work.slide).read
    monkeypatch.setattr(type(work.slide), "read", lambda *a, **k: asked.append(1) or once(*a, **k))
    kept = steps.picture_of(job, key, work)
    assert not asked
    assert kept.px * work.slide.pixel_size_um <= max(work.slide.shape) / 20 * work.slide.pixel_size_um
    job.folder.blocks.path(steps._picture_key(key)).unlink()
    again = steps.picture_of(job, key, work)
    assert asked
    assert np.array_equal(kept.means, again.means)
    assert kept.px == again.px

    monkeypatch.setattr(steps, "OVERVIEW_PX", 1500)  # finer than what the survey saw: the slide is read
    asked.clear()
    assert steps.picture_of(job, key, work).px == 1
    assert asked
    release()


def test_a_block_keeps_runs_and_no_label_image(job):
    key = steps.survey_slide(job)
    assert steps.analyse_block(job, key, 0)
    arrays = job.folder.blocks.arrays(steps.block_key(key, 0))
    work = steps.work_of(job, key)
    found = analyse_tile(work, plan_slide(work)[0])
    held = Runs(*(arrays[f"runs_0_{name}"] for name in Runs.names()))
    assert all(np.array_equal(a, b) for a, b in zip(vars(held).values(), vars(found.runs).values(), strict=True))
    assert held.length.sum() == found.cells["area_px"].sum() > 10_000
    assert sum(array.nbytes for array in arrays.values()) < 0.05 * 4 * np.prod(work.slide.shape)
    release()
