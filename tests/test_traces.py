"""SWC out and in, CSV, GeoJSON and ImageJ lines; what is no trace says so."""

import json

import numpy as np
import pytest
import roifile
from numpy.testing import assert_allclose

from histoquant.analysis.dendrites import Branch
from histoquant.errors import FormatError, InputError
from histoquant.readers.swc import read_swc, swc_text
from histoquant.readers.traces import read_traces

LINE = np.array([[1.0, 2.0, 3.0], [1.5, 4.0, 5.0], [2.0, 6.0, 9.0]])


def test_swc_round_trip_keeps_a_fork():
    arms = [LINE[-1] + np.array([[0.5, 1, 1], [1, 2, 2]]) * (1, s, 1) for s in (-1, 1)]
    text = swc_text([Branch(LINE), Branch(arms[0], 0), Branch(arms[1], 0)], [0.4, 0.3, 0.3])
    back, soma = read_swc(text, "a.swc")
    assert soma is None
    assert [branch.parent for branch in back] == [-1, 0, 0]
    assert [branch.forks for branch in back] == [(False, True), (True, False), (True, False)]
    assert_allclose(back[0].path, LINE)
    assert_allclose(back[2].path, np.concatenate([LINE[-1:], arms[1]]))
    assert {branch.order for branch in back} == {0}  # no soma, no order


def test_swc_with_a_soma_has_orders():
    text = "1 1 0 0 0 5 -1\n2 3 6 0 0 .4 1\n3 3 9 0 0 .4 2\n4 3 12 3 0 .3 3\n5 3 12 -3 0 .3 3\n"
    back, soma = read_swc(text, "a.swc")
    assert_allclose(soma, 0)
    assert [branch.order for branch in back] == [1, 2, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 3 0 0\n", "line 1"),
        ("1 3 0 0 0 1 -1\n2 3 0 0 1 1 7\n", "not there"),
        ("1 3 0 0 0 1 -1\n1 3 0 0 1 1 1\n", "twice"),
        ("1 3 0 nan 0 1 -1\n", "finite"),
        ("1 1 0 0 0 1 -1\n", "no dendrite"),
    ],
)
def test_what_is_no_swc_says_where(text, says):
    with pytest.raises(FormatError, match=says):
        read_swc(text, "a.swc")


def test_csv_keeps_names_and_order(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("dendrite_id,z_um,y_um,x_um\nb,1,2,3\nb,1,3,3\n0,4,5,6\n0,4,5,7\n")
    back = read_traces(path, 0.1)
    assert [branch.name for branch in back] == ["b", "0"]
    assert_allclose(back[1].path, [[4, 5, 6], [4, 5, 7]])
    path.write_text("dendrite,z,y,x\n1,1,2,3\n")
    with pytest.raises(InputError, match="no column"):
        read_traces(path, 0.1)
    path.write_text("dendrite_id,z_um,y_um,x_um\n1,1,2,3\n1,1,x,3\n")
    with pytest.raises(InputError, match="line 3"):
        read_traces(path, 0.1)
    path.write_text("dendrite_id,z_um,y_um,x_um\n1,1,2,3\n")
    with pytest.raises(InputError, match="one point"):
        read_traces(path, 0.1)


def test_lines_of_pixels_become_um_without_depth(tmp_path):
    path = tmp_path / "line.geojson"
    shape = {"type": "LineString", "coordinates": [[10.5, 20.5], [30.5, 40.5]]}
    feature = {"type": "Feature", "geometry": shape, "properties": {"name": "apical"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    (back,) = read_traces(path, 0.1)
    assert back.name == "apical"
    assert_allclose(back.path[:, 1:], [[2, 1], [4, 3]])
    assert np.isnan(back.path[:, 0]).all()
    roi = roifile.ImagejRoi.frompoints([[10, 20], [20, 25], [30, 40]])
    roi.roitype = roifile.ROI_TYPE.FREELINE
    (tmp_path / "a.roi").write_bytes(roi.tobytes())
    (drawn,) = read_traces(tmp_path / "a.roi", 0.1)
    assert_allclose(drawn.path[0, 1:], [1.95, 0.95])
    path.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    with pytest.raises(FormatError, match="no line"):
        read_traces(path, 0.1)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_traces(tmp_path / "none.swc", 0.1)
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00\x80\x81")
    with pytest.raises(FormatError, match="neither text"):
        read_traces(tmp_path / "x", 0.1)
