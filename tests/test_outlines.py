"""Outline files: QuPath's GeoJSON and ImageJ's ROIs, and every way in which they can be wrong."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import roifile
import shapely

from histoquant.errors import Faults, FormatError, HistoquantError, InputError, RegionError
from histoquant.model.region import Region, resolve
from histoquant.readers import outlines
from histoquant.readers.outlines import read_outlines, write_geojson

SQUARE = [[0, 0], [100, 0], [100, 50], [0, 50], [0, 0]]
PX = 0.5


def feature(coordinates=(SQUARE,), kind="Polygon", **properties):
    return {
        "type": "Feature",
        "id": "5a9d1e6c-0000-4000-8000-000000000001",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", **properties},
    }


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def save(tmp_path):
    def write(content, name="regions.geojson"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def fault_texts(path) -> list[str]:
    with pytest.raises(HistoquantError) as caught:
        read_outlines(path, PX)
    faults = caught.value.faults if isinstance(caught.value, Faults) else [caught.value]
    assert all(isinstance(fault, (RegionError, FormatError)) and fault.remedy for fault in faults)
    assert all(path.name in str(fault) for fault in faults)
    return [str(fault) for fault in faults]


# ------------------------------------------------------------------ GeoJSON


def test_names_classes_masks_and_units(save):
    path = save(
        collection(
            feature(name=" lesion ", classification={"name": "Region*", "color": [200, 0, 0]}),
            feature(classification={"name": "Cortex", "colorRGB": -1}),
            feature(classification="Cortex"),
            feature(classification={"names": ["Cortex", "deep"]}),
            feature(),
            feature(name="region_1"),
            feature(classification={"name": "Ignore*"}),
            feature(name="ignored fold", parent="lesion"),
            feature(name="child", metadata={"parent": "lesion"}),
            feature([[10, 0], [20, 400]], "LineString", name="midline"),
        )
    )
    regions = read_outlines(path, PX)
    names = ["lesion", "Cortex", "Cortex", "Cortex: deep", "region_2", "region_1", "Ignore", "ignored fold"]
    assert [region.name for region in regions] == [*names, "child", "midline"]
    assert regions[0].geometry.equals(shapely.box(0, 0, 50, 25))
    assert regions[0].classification == "Region"
    assert regions[0].origin == "drawn in regions.geojson"
    assert [region.masked for region in regions] == [False] * 6 + [True, True, False, False]
    assert [region.parent for region in regions][-3:] == ["lesion", "lesion", None]
    assert regions[-1].is_line
    assert not regions[-1].counted


@pytest.mark.parametrize(
    "document",
    [
        collection(feature(name="a")),
        [feature(name="a")],
        feature(name="a"),
        {"type": "Polygon", "coordinates": [SQUARE]},
        [{"type": "Polygon", "coordinates": [SQUARE]}],
    ],
)
def test_every_wrapping_and_packing(save, document):
    plain = json.dumps(document).encode()
    for content, name in ((plain, "a.json"), (gzip.compress(plain), "a.geojson.gz"), (b"\xef\xbb\xbf" + plain, "x")):
        (region,) = read_outlines(save(content, name), 1.0)
        assert region.geometry.area == 5000


def test_holes_and_parts(save):
    hole = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]
    island = [[200, 0], [210, 0], [210, 10], [200, 0]]
    (region,) = read_outlines(save(feature([[SQUARE, hole], [island]], "MultiPolygon", name="a")), 1.0)
    assert region.geometry.area == 5000 - 100 + 50


def test_what_is_no_region_is_passed_over_and_said(save):
    path = save(
        collection(
            feature([5, 5], "Point"),
            feature(objectType="detection"),
            feature(objectType="cell"),
            {**feature(), "id": "PathDetectionObject", "properties": {}},
            {"type": "Feature", "geometry": None, "properties": {}},
            feature(name="a"),
        )
    )
    (region,) = read_outlines(path, PX)
    assert region.name == "a"
    (note,) = region.notes
    for words in ("1 points", "2 QuPath detection objects", "1 QuPath cell objects", "1 features without a shape"):
        assert words in note
    assert "hold no outline" in fault_texts(save(collection(feature([5, 5], "Point"))))[0]


def test_nested_objects_have_their_holder_as_parent(save):
    inner = feature(name="dg", childObjects=[feature(objectType="cell")])
    tear = feature(classification={"name": "Ignore*"}, childObjects=[feature(name="in a tear")])
    path = save(collection(feature(name="hippocampus", childObjects=[inner, tear])))
    regions = {region.name: region.parent for region in read_outlines(path, PX)}
    assert regions == {
        "hippocampus": None,
        "dg": "hippocampus",
        "Ignore": "hippocampus",
        "in a tear": "hippocampus",
    }


def test_small_self_crossing_is_repaired_and_declared_a_large_one_is_refused(save):
    tip = [[0, 0], [1000, 0], [1000, 1000], [2, 1000], [-2, 1004], [2, 1004], [-2, 1000], [0, 900], [0, 0]]
    (region,) = read_outlines(save(feature([tip], name="a")), 1.0)
    assert shapely.is_valid(region.geometry)
    assert region.geometry.area == pytest.approx(1e6, rel=0.01)
    (note,) = region.notes
    assert "untangled" in note
    bow_tie = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    (text,) = fault_texts(save(feature([bow_tie], name="bow")))
    assert "'bow'" in text
    assert "crosses itself" in text


def test_all_broken_outlines_are_reported_at_once(save):
    path = save(
        b'{"type": "FeatureCollection", "features": ['
        + b", ".join(
            b'{"type": "Feature", "properties": {"name": "%s"}, "geometry": {"type": "%s", "coordinates": %s}}' % item
            for item in [
                (b"fine", b"Polygon", b"[[[0, 0], [9, 0], [9, 9]]]"),
                (b"nan", b"Polygon", b"[[[0, 0], [NaN, 0], [9, 9]]]"),
                (b"far", b"Polygon", b"[[[0, 0], [1e300, 0], [9, 9]]]"),
                (b"two", b"Polygon", b"[[[0, 0], [9, 0], [0, 0]]]"),
                (b"flat", b"Polygon", b"[[[0, 0], [9, 0], [4, 0], [0, 0]]]"),
                (b"text", b"Polygon", b'[[["0", 0], [9, 0], [0, 9]]]'),
                (b"ragged", b"Polygon", b"[[[0, 0], [9], [0, 9]]]"),
                (b"hollow", b"Polygon", b"[]"),
                (b"huge", b"Polygon", b"[[[0, 0], [1" + b"0" * 400 + b", 0], [0, 9]]]"),
                (b"dot", b"LineString", b"[[1, 1], [1, 1]]"),
                (b"curve", b"CircularString", b"[[1, 1], [2, 1]]"),
            ]
        )
        + b"]}"
    )
    texts = fault_texts(path)
    assert len(texts) == 10
    for name in ("nan", "far", "two", "flat", "text", "ragged", "hollow", "huge", "dot", "curve"):
        assert sum(f"('{name}')" in text for text in texts) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"   \n",
        b"region,x,y\n1,2,3\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"[" * 100_000,
        b'{"a": 1' + b"}" * 3,
        b"17",
        b'{"type": "FeatureCollection", "features": {}}',
        b'{"type": "FeatureCollection", "features": [3]}',
        b'{"type": "FeatureCollection", "features": []}',
        b"\x1f\x8b\x08broken",
        gzip.compress(b"[]" * 900, mtime=0)[:30],
        b"PK\x03\x04broken",
        b"Iout",
        b"Iout" + bytes(60),
    ],
)
def test_files_that_are_no_outlines(save, content):
    fault_texts(save(content))


def test_unreadable_and_too_large_files(tmp_path, save, monkeypatch):
    fault_texts(tmp_path / "absent.geojson")
    fault_texts(tmp_path)
    monkeypatch.setattr(outlines, "MAX_BYTES", 1000)
    assert "0 MB" in fault_texts(save(gzip.compress(b" " * 5000)))[0]
    assert "hold more" in fault_texts(save(b" " * 5000))[0]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", b"Iout" + bytes(5000))
    assert "unpacks" in fault_texts(save(packed.getvalue()))[0]
    with pytest.raises(InputError, match="pixel size"):
        read_outlines(save(feature()), 0.0)


# ------------------------------------------------------------------ back again


def test_round_trip(tmp_path):
    drawn = [
        Region("lesion", shapely.Point(500, 400).buffer(123.456789), classification="Region"),
        Region("µ core", shapely.box(450.1, 350.2, 500.3, 400.4), parent="lesion"),
        Region("tear", shapely.MultiPolygon([shapely.box(0, 0, 9, 9), shapely.box(20, 0, 29, 9)]), masked=True),
        Region("holed", shapely.box(0, 500, 99, 600).difference(shapely.box(10, 510, 20, 520)), counted=False),
        Region("midline", shapely.LineString([(700, 0), (710, 900)]), counted=False),
        Region("nowhere", shapely.Polygon()),
    ]
    path = tmp_path / "out.geojson"
    path.write_text("old")
    write_geojson(path, drawn, 0.3)
    back = read_outlines(path, 0.3)
    assert [region.name for region in back] == ["lesion", "µ core", "tear", "holed", "midline"]
    for before, after in zip(drawn, back, strict=False):
        for trait in ("name", "parent", "counted", "masked", "classification"):
            if not (trait == "counted" and before.masked):
                assert getattr(after, trait) == getattr(before, trait), trait
        assert shapely.get_coordinates(after.geometry) == pytest.approx(
            shapely.get_coordinates(before.geometry), abs=0.3e-6
        )
        assert after.geometry.geom_type == before.geometry.geom_type
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.geojson"]
    document = json.loads(path.read_text(encoding="utf-8"))
    first = document["features"][0]["properties"]
    assert first["objectType"] == "annotation"
    assert first["classification"]["name"] == "Region"
    assert len(first["classification"]["color"]) == 3
    assert all(isinstance(text, str) for f in document["features"] for text in f["properties"]["metadata"].values())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.geojson"
    path.write_text("old")
    monkeypatch.setattr("histoquant.readers.geojson.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_geojson(path, [Region("a", shapely.box(0, 0, 1, 1))], 1.0)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.geojson"]


def test_a_set_can_be_written(tmp_path):
    regions = resolve([Region("a", shapely.box(0, 0, 9, 9))], {}, slide=(10, 10))
    write_geojson(tmp_path / "a.geojson", regions, 1.0)
    assert read_outlines(tmp_path / "a.geojson", 1.0)[0].geometry.equals(regions["a"].geometry)


# ------------------------------------------------------------------ ImageJ


def roi(kind="POLYGON", points=None, *, name="zone", **entries):
    made = roifile.ImagejRoi() if points is None else roifile.ImagejRoi.frompoints(points)
    made.roitype = roifile.ROI_TYPE[kind]
    made.name = name
    for key, value in entries.items():
        setattr(made, key, value)
    return made.tobytes()


BOUNDS = {"top": 10, "left": 20, "bottom": 60, "right": 120}


@pytest.mark.parametrize(
    ("content", "area_px2"),
    [
        (roi("POLYGON", [[0, 0], [100, 0], [100, 50]]), 2500),
        (roi("FREEHAND", [[0.5, 0.25], [100.5, 0.25], [100.5, 50.25]]), 2500),
        (roi("TRACED", [[40000, 3], [40010, 3], [40010, 13], [40000, 13]]), 100),
        (roi("RECT", **BOUNDS), 5000),
        (roi("OVAL", **BOUNDS), np.pi * 50 * 25),
        (
            roi("OVAL", **BOUNDS, options=roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION, xd=1.5, yd=2, widthd=10, heightd=6),
            np.pi * 5 * 3,
        ),
    ],
)
def test_imagej_areas(save, content, area_px2):
    (region,) = read_outlines(save(content, "a.roi"), PX)
    assert region.name == "zone"
    assert region.geometry.area == pytest.approx(area_px2 * PX**2, rel=1e-3)


def composite(*numbers):
    path = np.array(numbers, dtype=np.float32)
    return roi("RECT", **BOUNDS, shape_roi_size=len(path), multi_coordinates=path)


def rectangle_path(x0, y0, x1, y1):
    return (0, x0, y0, 1, x1, y0, 1, x1, y1, 1, x0, y1, 4)


def test_imagej_composites_are_filled_even_odd(save):
    rings = [(0, 0, 100, 100), (10, 10, 90, 90), (20, 20, 30, 30), (200, 0, 210, 10)]
    path = [number for ring in rings for number in rectangle_path(*ring)]
    (region,) = read_outlines(save(composite(*path), "a.roi"), 1.0)
    assert region.geometry.area == 10000 - 6400 + 100 + 100
    k = 0.5522847498 * 50  # the usual cubic for a quarter circle, true to 3e-4
    arcs = (100, 50 + k, 50 + k, 100, 50, 100), (50 - k, 100, 0, 50 + k, 0, 50)
    arcs = (*arcs, (0, 50 - k, 50 - k, 0, 50, 0), (50 + k, 0, 100, 50 - k, 100, 50))
    circle = [0, 100, 50, *(number for arc in arcs for number in (3, *arc)), 4]
    (region,) = read_outlines(save(composite(*circle), "b.roi"), 1.0)
    assert region.geometry.area == pytest.approx(np.pi * 2500, rel=1e-3)
    for damaged in ([0, 1], [1, 5, 5], [0, 0, 0, 9, 5, 5], [0, 0, 0, 1, np.nan, 3, 4], [0, 0, 0, 4]):
        fault_texts(save(composite(*damaged), "c.roi"))


def test_imagej_lines(save):
    for content in (roi("LINE", x1=1, y1=2, x2=3, y2=10), roi("POLYLINE", [[1, 2], [2, 5], [3, 10]])):
        (region,) = read_outlines(save(content, "a.roi"), PX)
        assert region.is_line
        assert not region.counted
        assert shapely.get_coordinates(region.geometry)[[0, -1]].tolist() == [[0.5, 1], [1.5, 5]]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (roi("ANGLE", [[0, 0], [5, 5], [9, 0]]), "ANGLE"),
        (roi("RECT", **BOUNDS, subtype=roifile.ROI_SUBTYPE.TEXT), "TEXT"),
        (roi("LINE", x2=5, y2=5, subtype=roifile.ROI_SUBTYPE.ARROW), "ARROW"),
        (roi("POLYGON", [[0, 0], [9, 0], [9, 9]], options=roifile.ROI_OPTIONS.SPLINE_FIT), "spline"),
        (roi("RECT", **BOUNDS, rounded_rect_arc_size=9), "rounded"),
        (roi("POLYGON", [[0, 0], [9, 9]]), "fewer than 3"),
        (roi("POLYGON", [[0, 0], [9, 9], [9, 0], [0, 9]]), "crosses itself"),
        (roi("OVAL", **BOUNDS, options=roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION), "bounding box"),
        (roi("POLYGON", [[0, 0], [9, 0], [9, 9]])[:66], "damaged"),
        (roi("POINT", [[1, 1]]), "points"),
    ],
)
def test_imagej_refusals(save, content, word):
    assert word in fault_texts(save(content, "a.roi"))[0]


def test_imagej_zip(save):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../0001-zone.roi", roi("RECT", **BOUNDS, name=""))
        archive.writestr("b.roi", roi("RECT", **BOUNDS, name="Ignore tear"))
        archive.writestr("__MACOSX/._b.roi", b"resource fork")
        archive.writestr("notes.txt", b"hello")
        archive.writestr("p.roi", roi("POINT", [[1, 1]]))
    regions = read_outlines(save(packed.getvalue(), "RoiSet.zip"), PX)
    assert [(region.name, region.masked) for region in regions] == [("0001-zone", False), ("Ignore tear", True)]
    assert "notes.txt" in regions[0].notes[0]
    assert "1 points" in regions[0].notes[0]
