"""The log of who left out which slide, and when."""

import json
from pathlib import Path

import pytest

from histoquant.errors import InputError
from histoquant.exclusions import log_exclusions
from histoquant.journal import KIND
from histoquant.model.study import parse_study
from histoquant.report.run import read_exclusion_log

from .test_report import Page, make_report, small_study, write_run

HEAD = "slide,animal,group,exclude\n"


def study(**reasons):
    rows = [f"{name}.tif,M{name},vehicle,{reason}" for name, reason in reasons.items()]
    return parse_study(HEAD + "\n".join(rows) + "\n", Path("/data"))


def log(root):
    entries = read_exclusion_log(root)
    return [(e["action"], e["slide"], e["reason"], e["after_unblinding"]) for e in entries]


def test_only_changes_are_logged(tmp_path):
    log_exclusions(tmp_path, study(a="", b=""))
    assert not (tmp_path / "exclusions.jsonl").exists()
    log_exclusions(tmp_path, study(a="torn", b=""))
    log_exclusions(tmp_path, study(a="torn", b=""))
    log_exclusions(tmp_path, study(a="folded", b="torn"))
    log_exclusions(tmp_path, study(a="", b="torn"))
    assert log(tmp_path) == [
        ("exclude", "a", "torn", False),
        ("exclude", "a", "folded", False),
        ("exclude", "b", "torn", False),
        ("include", "a", "", False),
    ]
    first = read_exclusion_log(tmp_path)[0]
    assert first["who"]
    assert first["when"].startswith("20")


def test_after_the_result_is_known_it_stays_known(tmp_path):
    (tmp_path / "statistics.json").write_text("{}")
    log_exclusions(tmp_path, study(a="an outlier"))
    (tmp_path / "statistics.json").unlink()  # as a fresh run does
    log_exclusions(tmp_path, study(a=""))
    assert [entry[3] for entry in log(tmp_path)] == [True, True]


def test_a_review_without_blinding_counts_as_knowing(tmp_path):
    (tmp_path / "review").mkdir()
    head = {"histoquant": KIND, "schema": 1, "who": "anna", "blinded": False, "fingerprint": ""}
    (tmp_path / "review" / "journal.jsonl").write_text(json.dumps(head) + "\n")
    log_exclusions(tmp_path, study(a="torn"))
    assert log(tmp_path) == [("exclude", "a", "torn", True)]


@pytest.mark.parametrize("text", ["{", "[]", '{"when": "now"}'])
def test_damaged_log_is_named(tmp_path, text):
    (tmp_path / "exclusions.jsonl").write_text(text + "\n")
    with pytest.raises(InputError, match=r"exclusions\.jsonl"):
        log_exclusions(tmp_path, study(a="torn"))


def test_the_report_says_who_and_when(tmp_path):
    root = write_run(tmp_path / "run", small_study())
    (root / "statistics.json").write_text(json.dumps({"statistics": {}, "reference_group": "vehicle"}))
    log_exclusions(root, study(s9="<b>torn</b>"))
    page = Page(make_report(root).page)
    assert "Excluded or taken in after unblinding s9" in page.text
    assert "left out <b>torn</b> yes" in page.text
