"""The scripted session of the plug-in: how it judges what is left after the kill. `.ci/napari` runs the whole of it."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "workflows" / "napari_session.py"

TOLD = {"edit": ["e1", "e2"], "region": ["core"], "recipe": ["abc"]}


@pytest.fixture(scope="module")
def session():
    spec = importlib.util.spec_from_file_location("napari_session", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_there_is_not_lost_and_more_may_be_there(session):
    assert session.lost(TOLD, TOLD) == []
    assert session.lost(TOLD, TOLD | {"edit": ["e1", "e2", "the last one, not acknowledged"]}) == []


@pytest.mark.parametrize("what", list(TOLD))
def test_one_that_is_missing_is_named(session, what):
    (fault,) = session.lost(TOLD, TOLD | {what: TOLD[what][1:]})
    assert fault.startswith(what)
    assert f"1 lost ({TOLD[what][0]})" in fault


def test_nothing_acknowledged_is_a_fault(session):
    assert len(session.lost(TOLD | {"edit": []}, TOLD)) == 1


def test_a_session_that_ends_by_itself_is_a_fault(session, monkeypatch, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text("print('edit e1')\n", encoding="utf-8")
    monkeypatch.setattr(session, "__file__", str(script))
    assert session.both(tmp_path, tmp_path) == ["The first sitting ended by itself, with exit code 0."]
