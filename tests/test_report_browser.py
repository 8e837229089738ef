"""The report page in a real browser: driven by the script that measures it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from histoquant.batch import write_report

from .test_report import HOSTILE, small_study, write_run

SCRIPT = Path(__file__).parents[1] / "workflows" / "benchmarks" / "report.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]


def opened(page, *more):
    told = subprocess.run(
        [sys.executable, SCRIPT, "open", page, *more], capture_output=True, text=True, check=False, timeout=300
    )
    assert told.returncode in (0, 1), told.stderr
    return json.loads(told.stdout)


def test_page_with_hostile_names_works_and_runs_nothing_of_theirs(tmp_path):
    rows = small_study(animal=HOSTILE, group='"><img src=x onerror=alert(2)>')
    rows[0]["flags"] = "</script><script>document.title='owned'</script>"
    page = write_report(write_run(tmp_path / "run", rows))
    found = opened(page, "--most-seconds", "60")  # a machine under tests is no place to measure
    assert found["faults"] == []
    assert (found["slides"], found["figures_visible"], found["pictures_decoded"]) == (4, 2, 4)
    assert found["filter"]["says"] == "1 of 4 slides"


def test_a_broken_page_is_found(tmp_path):
    page = write_report(write_run(tmp_path / "run", small_study()))
    text = page.read_text(encoding="utf-8")
    text = text.replace("toggle(", "no_such(").replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt="x"></main>')
    page.write_text(text, encoding="utf-8")
    faults = opened(page, "--most-seconds", "60")["faults"]
    assert "the console is not empty" in faults  # the policy blocks the changed script and the picture
    assert "a picture is broken" in faults
