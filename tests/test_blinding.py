"""Codes tell nothing, and stay what they are."""

import json

import pytest

from histoquant.blinding import KEY, Blinding
from histoquant.errors import FormatError, InputError
from histoquant.journal import FOLDER, Journal

SLIDES = [f"M{animal}_vehicle_s{section}" for animal in range(20) for section in range(10)]


def test_codes_are_fixed_by_the_key_and_differ_between_runs(tmp_path):
    codes = Blinding(tmp_path).codes("slide", SLIDES)
    assert Blinding(tmp_path).codes("slide", SLIDES) == codes
    assert len(set(codes.values())) == len(SLIDES)
    assert all(code.startswith("S-") and len(code) == 7 for code in codes.values())
    assert Blinding(tmp_path).code("slide", SLIDES[3]) == codes[SLIDES[3]]
    (tmp_path / "other").mkdir()
    assert not set(Blinding(tmp_path / "other").codes("slide", SLIDES).values()) & set(codes.values())
    assert Blinding(tmp_path).code("animal", "M1") != Blinding(tmp_path).code("group", "M1")
    with pytest.raises(InputError, match="no codes for a marker"):
        Blinding(tmp_path).code("marker", "tunel")


def test_the_queue_is_shuffled_once_and_a_new_slide_moves_no_other(tmp_path):
    queue = Blinding(tmp_path).queue(SLIDES)
    assert Blinding(tmp_path).queue(reversed(SLIDES)) == queue
    order = [slide for _, slide in queue]
    assert sorted(order) == sorted(SLIDES)
    assert order != SLIDES
    assert [code for code, _ in queue] != sorted(code for code, _ in queue)
    more = Blinding(tmp_path).queue([*SLIDES, "M99_treated_s1"])
    assert [entry for entry in more if entry[1] != "M99_treated_s1"] == queue


def test_two_names_never_share_a_code(tmp_path, monkeypatch):
    monkeypatch.setattr("histoquant.blinding.LENGTH", 1)  # 200 names and 32 letters
    codes = Blinding(tmp_path).codes("slide", SLIDES)
    assert len(set(codes.values())) == len(SLIDES)


def test_the_key_shows_no_name_and_a_damaged_one_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "fingerprint": "f"}), encoding="utf-8")
    Blinding(tmp_path).queue(SLIDES)
    key = tmp_path / FOLDER / KEY
    assert not any(word in key.read_text(encoding="utf-8") for word in ("M1", "vehicle", "s1"))
    with Journal(tmp_path, "Anna"):  # lives beside the journals
        assert key.exists()
    key.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match="damaged"):
        Blinding(tmp_path)
