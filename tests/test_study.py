"""Sample sheets: every fault with its line, all at once."""

from pathlib import Path

import pytest

from histoquant.errors import Faults, StudyError
from histoquant.model.study import parse_study

HEADER = "slide,animal,group,control,batch,pixel_size_um,exclude,note\n"


def study(text, folder="/data/study", **options):
    return parse_study(text, Path(folder), **options)


def test_rows_are_read_in_order_and_extra_columns_carried():
    found = study(HEADER + "a.tif,m1,vehicle,,b1,0.5,,hello\n\nsub/b.tif,m2,treated,no_tdt,,,torn,\n")
    first, second = found.slides
    assert (first.slide_id, first.animal, first.group, first.batch) == ("a", "m1", "vehicle", "b1")
    assert first.pixel_size_um == 0.5
    assert first.path == Path("/data/study/a.tif")
    assert first.extra == {"note": "hello"}
    assert second.control == "no_tdt"
    assert found.included == (first,)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark(delimiter):
    text = "\ufeff" + "slide,animal,group\na.tif,m1,v\n".replace(",", delimiter)
    assert study(text).slides[0].animal == "m1"


def test_slide_ids_are_safe_and_unique():
    rows = "a/x 1.ome.tif,m1,v\nb/x 1.tif,m2,v\nc/X_1.svs,m3,v\n..hidden.tif,m4,v\n"
    ids = [slide.slide_id for slide in study("slide,animal,group\n" + rows).slides]
    assert ids == ["x_1", "x_1_2", "X_1_3", "hidden"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",m1,v,,,,,", "cell 'slide' is empty"),
        ("a.tif,,v,,,,,", "cell 'animal' is empty"),
        ("a.tif,m1,v,,,zero,,", "not a number"),
        ("a.tif,m1,v,,,-1,,", "pixel_size_um is -1"),
        ("a.tif,m1,v,,,nan,,", "pixel_size_um is 'nan'"),
        ("../a.tif,m1,v,,,,,", "leaves the study's folder"),
        ("sub/../../a.tif,m1,v,,,,,", "leaves the study's folder"),
        ("a.tif,m1,v,,,,,,,,", "more cells than columns"),
    ],
)
def test_a_bad_row_is_named_by_its_line(row, message):
    with pytest.raises(StudyError, match=message) as caught:
        study(HEADER + "ok.tif,m0,v,,,,,\n" + row + "\n")
    assert "line 3" in str(caught.value)


def test_all_faults_together():
    with pytest.raises(Faults) as caught:
        study(HEADER + "a.tif,m1,v,,,,,\na.tif,m1,v,,,,,\n,m,v,,,,,\nb.tif,m1,other,,,,,\n")
    messages = [str(fault) for fault in caught.value.faults]
    assert len(messages) == 3
    assert "already in line 2" in messages[0]
    assert "cell 'slide'" in messages[1]
    assert "'m1' is in the groups other, v" in messages[2]


def test_outside_paths_are_allowed_when_absolute_or_said_so():
    assert study(HEADER + "/other/a.tif,m1,v,,,,,\n").slides[0].path == Path("/other/a.tif")
    assert study(HEADER + "../a.tif,m1,v,,,,,\n", allow_outside=True).slides


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("slide,animal\na,b\n", "lacks the column"),
        ("slide,animal,group,animal\na,b,c,d\n", "twice"),
        ("slide,animal,group\n", "no slides"),
        ('slide,animal,group\n"a,b,c\n', "not a readable CSV"),
    ],
)
def test_a_bad_sheet(text, message):
    with pytest.raises(StudyError, match=message):
        study(text)
