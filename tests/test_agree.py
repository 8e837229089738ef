"""Detections against people's marks, read from what people have: spreadsheets, ImageJ, QuPath, the review itself."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import roifile
from PIL import Image
from shapely import box

from histoquant.agree import agree, report_lines, write_agreement
from histoquant.errors import Faults, FormatError, HistoquantError, InputError
from histoquant.journal import Journal
from histoquant.marks import Slides, read_marks
from histoquant.model.region import Region, resolve
from histoquant.readers.outlines import write_geojson
from histoquant.readers.points import read_points_px
from tests.test_report import region_row, write_run

PX = 0.5
SHAPE = (800, 1000)


def cells_of(seed, n=60):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(20, 390, 25.0), np.arange(20, 490, 25.0), indexing="ij"), axis=-1)
    points = rng.permutation(grid.reshape(-1, 2))[:n] + rng.uniform(-4, 4, (n, 2))
    regions = resolve([Region("SVZ", box(0, 0, 250, 400))], {}, slide=(400.0, 500.0))
    table = pd.DataFrame({"cell_id": np.arange(1, n + 1, dtype=np.uint32), "region": regions.assign(points)})
    table[["y_um", "x_um"]], table[["y_px", "x_px"]] = points, points / PX
    table["area_um2"], table["origin"] = 50.0, "auto"
    table["tunel_positive"] = np.arange(n) < 20 + 5 * seed
    return table, regions


@pytest.fixture
def root(tmp_path):
    """A run of three slides, written by hand; 25, 30 and 35 of 60 cells are positive."""
    slides = ("M1_s1", "M2_s1", "M3_s1")
    rows = [region_row(slide, slide[:2], "vehicle", "SVZ") for slide in slides]
    root = write_run(tmp_path / "run", rows)
    for seed, slide in enumerate(slides, start=1):
        folder = root / "slides" / slide
        cells, regions = cells_of(seed)
        cells.to_parquet(folder / "cells.parquet")
        write_geojson(folder / "regions.geojson", regions, PX)
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        told |= {"shape_px": SHAPE, "measured_key": f"m{seed}"}
        told["slide"]["path"] = f"/data/slides/{slide.replace('_', ' ')}.ome.tif"
        (folder / "provenance.json").write_text(json.dumps(told), encoding="utf-8")
    return root


def positives(root, slide):
    cells = pd.read_parquet(root / "slides" / slide / "cells.parquet")
    return cells[cells["tunel_positive"]][["y_um", "x_um"]].to_numpy()


def spreadsheet(path, root, *, lacks=0, extra=0, shift=0.0, rater="", slides=("M1_s1", "M2_s1", "M3_s1")):
    """The marks of somebody who misses some of each slide's cells and sees others, as a plain CSV in um."""
    parts = []
    for slide in slides:
        marks = positives(root, slide)[lacks:] + shift
        invented = np.stack([np.full(extra, 395.0), 30.0 * np.arange(1, extra + 1)], axis=1)
        table = pd.DataFrame(np.concatenate([marks, invented]), columns=["y_um", "x_um"])
        parts.append(table.assign(slide=slide, **({"rater": rater} if rater else {})))
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_known_counts_and_rates(root, tmp_path):
    found = agree(root, [spreadsheet(tmp_path / "anna.csv", root, lacks=5, extra=2, shift=1.5)])
    [pair] = found.pairs
    assert (pair.marker, pair.first, pair.second) == ("tunel", "histoquant", "anna")
    assert pair.counts == (("M1_s1", "", 25, 22, 20), ("M2_s1", "", 30, 27, 25), ("M3_s1", "", 35, 32, 30))
    assert (pair.n_first, pair.n_second, pair.tp) == (90, 81, 75)
    assert (pair.precision, pair.recall) == (75 / 90, 75 / 81)
    assert pair.f1 == 2 * 75 / 171
    assert (pair.bland_altman.bias, pair.bland_altman.sd) == (3, 0)
    [both] = found.correlated
    assert both.raters == ("histoquant", "anna")
    assert both.forms[1].value == pytest.approx(1)  # consistent: always three fewer
    assert both.forms[0].value < 0.9
    # further off than the tolerance is no match
    away = agree(root, [tmp_path / "anna.csv"], tolerance_um=2.0)
    assert away.pairs[0].tp == 0
    assert report_lines(away)


def test_raters_against_each_other_and_their_consensus(root, tmp_path):
    files = [
        spreadsheet(tmp_path / "a.csv", root, rater="Anna"),
        spreadsheet(tmp_path / "b.csv", root, rater="Ben", lacks=5),
        spreadsheet(tmp_path / "c.csv", root, rater="Cleo", lacks=10),
    ]
    found = agree(root, files)
    names = [(pair.first, pair.second) for pair in found.pairs]
    assert names[:4] == [("histoquant", who) for who in ("Anna", "Ben", "Cleo", "consensus")]
    assert names[4:] == [("Anna", "Ben"), ("Anna", "Cleo"), ("Ben", "Cleo")]
    consensus = found.pairs[3]
    assert (consensus.n_second, consensus.precision) == (75, 75 / 90)  # what two of three marked
    assert [one.raters for one in found.correlated] == [("histoquant", "Anna", "Ben", "Cleo"), ("Anna", "Ben", "Cleo")]
    assert found.correlated[1].cv_percent == pytest.approx(100 * np.mean([5 / 20, 5 / 25, 5 / 30]))


def test_what_spreadsheets_make_of_a_csv(root, tmp_path):
    marks = positives(root, "M1_s1")
    plain = agree(root, [spreadsheet(tmp_path / "plain.csv", root, slides=("M1_s1",))]).pairs[0]
    px = "\n".join(f"M1 s1.ome.tif;{y / PX:.6f};{x / PX:.6f};;TUNEL" for y, x in marks)
    german = "\n".join(
        ";".join(["M1 s1.ome.tif", *(f"{v / PX:.6f}".replace(".", ",") for v in mark)]) for mark in marks
    )
    files = {
        "bom.csv": ("slide,Y_um,X_um\n" + "\n".join(f"M1_s1,{y},{x}" for y, x in marks)).encode("utf-8-sig"),
        "semicolon.csv": f"sep=;\r\nSlide;y_px;x_px;note;Marker\r\n{px}\r\n;;;;\r\n".encode(),
        "comma.csv": f"image;y_px;x_px\n{german}\n".encode("utf-8-sig"),
        "utf16.txt": ("slide_id\ty_um\tx_um\n" + "\n".join(f"M1_s1\t{y}\t{x}" for y, x in marks)).encode("utf-16"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        [pair] = agree(root, [tmp_path / name]).pairs
        assert pair.counts == plain.counts, name
        assert pair.f1 == 1


def test_a_csv_may_be_called_like_its_slide(root, tmp_path):
    path = tmp_path / "M2_s1.csv"
    path.write_text("y_um,x_um\n" + "".join(f"{y},{x}\n" for y, x in positives(root, "M2_s1")), encoding="utf-8")
    [pair] = agree(root, [path]).pairs
    assert pair.counts == (("M2_s1", "", 30, 30, 30),)
    path.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(InputError, match=r"lack the column\(s\) slide"):
        agree(root, [tmp_path / "elsewhere.csv"])


def test_a_row_without_a_place_says_that_nothing_was_found(root, tmp_path):
    path = tmp_path / "anna.csv"
    path.write_text("slide,y_um,x_um\nM1_s1,,\n", encoding="utf-8")
    [pair] = agree(root, [path]).pairs
    assert pair.counts == (("M1_s1", "", 25, 0, 0),)
    assert pair.recall != pair.recall  # nan: there is nothing to find
    assert pair.f1 == 0
    told = pair.as_dict()
    assert told["recall"] is None
    assert told["bland_altman"]["low"] is None


def test_marks_of_imagej_and_qupath(root, tmp_path):
    """A folder is one rater's; each file is called like its slide."""
    folder = tmp_path / "Anna"
    folder.mkdir()
    points = {slide: positives(root, slide)[:, ::-1] / PX for slide in ("M1_s1", "M2_s1", "M3_s1")}
    centred = points["M1_s1"] - 0.5  # ImageJ counts from the centre of the first pixel
    roi = roifile.ImagejRoi.frompoints(centred)
    roi.roitype = roifile.ROI_TYPE.POINT
    roi.tofile(folder / "M1_s1.roi")
    read = read_points_px(folder / "M1_s1.roi")[0][1]
    assert np.abs(read - points["M1_s1"][:, ::-1]).max() < 1e-3  # single precision
    halves = [roifile.ImagejRoi.frompoints(half) for half in np.array_split(points["M2_s1"] - 0.5, 2)]
    for half in halves:
        half.roitype = roifile.ROI_TYPE.POINT
    outline = roifile.ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]])
    roifile.roiwrite(folder / "M2_s1.zip", [*halves, outline])
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPoint", "coordinates": points["M3_s1"][:-1].tolist()},
            "properties": {"objectType": "annotation", "classification": {"name": "tunel"}},
        },
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": points["M3_s1"][-1].tolist()}},
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / "M3_s1.geojson").write_text(text, encoding="utf-8")
    [marks] = read_marks([folder], Slides(root))
    assert (marks.rater, marks.slides) == ("Anna", ("M1_s1", "M2_s1", "M3_s1"))
    [pair] = agree(root, [folder]).pairs
    assert (pair.n_second, pair.f1) == (90, 1)


def test_everything_that_is_wrong_is_said_at_once(root, tmp_path):
    lines = ["slide,y_um,x_um,marker", "M9_s9,10,10,", "M1_s1,ten,10,", "M1_s1,10,,", "M1_s1,10,10,ki67"]
    lines += [f"M2_s1,{n},1700," for n in range(5)]
    (tmp_path / "bad.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "px.csv").write_text("slide,y_um,x_um\nM1_s1,790,990\n", encoding="utf-8")
    (tmp_path / "um.csv").write_text("slide,y_px,x_px\nM1_s1,900,100\n", encoding="utf-8")
    (tmp_path / "columns.csv").write_text("slide,Y,X\nM1_s1,1,2\n", encoding="utf-8")
    (tmp_path / "M7_s1.geojson").write_text('{"type": "FeatureCollection", "features": []}', encoding="utf-8")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    Image.new("L", (4, 4)).save(tmp_path / "picture.csv", format="png")
    names = ("bad.csv", "px.csv", "um.csv", "columns.csv", "M7_s1.geojson", "empty.csv", "picture.csv", "absent.csv")
    with pytest.raises(Faults) as raised:
        agree(root, [tmp_path / name for name in names])
    said = [str(fault) for fault in raised.value.faults]
    for words in (
        "'bad.csv' line 2: no slide is called 'M9_s9'; there are M1_s1, M2_s1, M3_s1",
        "'bad.csv' line 3: 'ten', '10' is no place",
        "'bad.csv' line 4: '10', '' is no place",
        "'bad.csv' line 5: no marker is called 'ki67'; there are tunel, dapi",
        "'bad.csv': 5 of 5 marks lie off slide 'M2_s1', which is 400 x 500 um; the first is at y = 0, x = 1700 um",
        "'px.csv': 1 of 1 marks lie off slide 'M1_s1', which is 400 x 500 um; taken as pixels, all lie on it. "
        "Name the columns y_px and x_px",
        "'um.csv': 1 of 1 marks lie off",
        "'columns.csv' lack the column(s) y_um and x_um (or y_px and x_px); they have slide, y, x",
        "'M7_s1.geojson': no slide is called 'M7_s1'",
        "'empty.csv' are empty",
        "'picture.csv' are no CSV, ImageJ ROI or GeoJSON",
        "absent.csv': No such file",
    ):
        assert [one for one in said if words in one], words
    assert len(said) == 12


def test_marks_in_the_wrong_unit_that_lie_on_the_slide_are_seen_too(root, tmp_path):
    marks = positives(root, "M1_s1")
    near = marks[(marks < 200).all(axis=1)]
    for how, wrong in (
        ("pixels instead of um", near / PX),
        ("um instead of pixels", near * PX),
        ("swapped", near[:, ::-1]),
    ):
        table = pd.DataFrame(wrong, columns=["y_um", "x_um"]).assign(slide="M1_s1")
        cells = pd.read_parquet(root / "slides" / "M1_s1" / "cells.parquet")
        cells["tunel_positive"] &= (cells[["y_um", "x_um"]] < 200).all(axis=1)
        cells.to_parquet(root / "slides" / "M1_s1" / "cells.parquet")
        table.to_csv(tmp_path / "anna.csv", index=False)
        with pytest.raises(InputError, match=f"only when read with .*{how}"):
            agree(root, [tmp_path / "anna.csv"])


def test_a_damaged_roi_is_one_sentence(root, tmp_path):
    (tmp_path / "M1_s1.roi").write_bytes(b"Iout" + bytes(20))
    with pytest.raises(HistoquantError, match=r"'M1_s1\.roi': 'M1_s1' is a damaged ROI"):
        agree(root, [tmp_path / "M1_s1.roi"])
    roifile.ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]]).tofile(tmp_path / "M2_s1.roi")
    with pytest.raises(FormatError, match="hold no point"):
        agree(root, [tmp_path / "M2_s1.roi"])


def test_regions_are_images_of_their_own(root, tmp_path):
    path = spreadsheet(tmp_path / "anna.csv", root)
    [pair] = agree(root, [path], regions=["SVZ"]).pairs
    within = [int((positives(root, slide)[:, 1] <= 250).sum()) for slide in ("M1_s1", "M2_s1", "M3_s1")]
    assert [row[1:3] for row in pair.counts] == [("SVZ", n) for n in within]
    assert sum(within) < 90
    with pytest.raises(InputError, match="No region is called 'DG'; there are SVZ"):
        agree(root, [path], regions=["DG"])


def test_what_marks_mean_is_asked_for(root, tmp_path):
    path = spreadsheet(tmp_path / "anna.csv", root)
    nuclei = agree(root, [path], markers=["dapi"]).pairs[0]
    assert (nuclei.n_first, nuclei.recall) == (180, 1)
    with pytest.raises(InputError, match="No marker is called 'brdu'; there are tunel, dapi"):
        agree(root, [path], markers=["brdu"])
    with pytest.raises(InputError, match="cannot be called 'consensus'"):
        agree(root, [spreadsheet(tmp_path / "consensus.csv", root)])
    with pytest.raises(InputError, match="nothing to compare"):
        agree(root, [])


def test_a_review_is_compared_on_the_cells_that_were_looked_at(root):
    cells = pd.read_parquet(root / "slides" / "M1_s1" / "cells.parquet").set_index("cell_id")

    def where(cell_id):
        return {name: float(cells.loc[cell_id, name]) for name in ("y_um", "x_um", "area_um2")} | {"measured": "m1"}

    with Journal(root, "Anna") as anna, Journal(root, "Ben") as ben:
        for cell_id in range(1, 11):  # all called positive
            anna.record("M1_s1", "accept", marker="tunel", old=True, new=True, **where(cell_id))
        anna.record("M1_s1", "call", marker="tunel", old=True, new=False, **where(11))
        anna.record("M1_s1", "delete", **where(12))
        anna.record("M1_s1", "call", marker="tunel", old=False, new=True, **where(50))
        anna.record("M1_s1", "add", marker="tunel", new=True, y_um=395.0, x_um=30.0, measured="m1")
        for cell_id, call in ((1, True), (2, False), (40, False)):
            ben.record("M1_s1", "call", marker="tunel", old=not call, new=call, **where(cell_id))
    found = {(pair.first, pair.second): pair for pair in agree(root, [], journals=True).pairs if pair.marker == "tunel"}
    run = found["histoquant", "Anna (review)"]
    # of 12 calls 10 hold; of 12 positives 10 were found: cell 50 and the added one were not
    assert (run.n_first, run.n_second, run.tp) == (12, 12, 10)
    assert found["histoquant", "Ben (review)"].counts == (("M1_s1", "", 2, 1, 1),)
    assert found["Anna (review)", "Ben (review)"].counts == (("M1_s1", "", 2, 1, 1),)  # on cells 1 and 2


def test_the_command(root, tmp_path, histoquant):
    files = [spreadsheet(tmp_path / f"{who}.csv", root, lacks=n) for n, who in enumerate(("anna", "ben"))]
    done = histoquant("agree", root, "--marks", files[0], "--marks", files[1], "--out", tmp_path / "out", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert [pair["f1"] for pair in told["pairs"][:1]] == [1]
    assert told["counts"][0]["icc"][0]["form"] == "A,1"
    assert told == json.loads((tmp_path / "out" / "agreement.json").read_text(encoding="utf-8"))
    with Image.open(tmp_path / "out" / "bland_altman_tunel.png") as plot:
        assert plot.width > 1000
    rows = pd.read_csv(tmp_path / "out" / "images.csv")
    assert len(rows) == 9
    assert (rows["difference"] == rows["n_first"] - rows["n_second"]).all()
    bad = histoquant("agree", root, "--marks", tmp_path / "absent.csv")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


def test_lines_for_a_person(root, tmp_path):
    files = [spreadsheet(tmp_path / f"{who}.csv", root, lacks=n) for n, who in enumerate(("anna", "ben"))]
    found = agree(root, files)
    text = "\n".join(report_lines(found))
    assert "tunel: one-to-one within 4 um" in text
    assert "histoquant against anna       3     90     90     90      1.000   1.000  1.000" in text
    assert "counts of anna, ben: ICC(A,1) 0.9" in text
    written = write_agreement(found, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["agreement.json", "images.csv", "bland_altman_tunel.png"]


def test_review_without_napari_is_one_sentence(root, monkeypatch, histoquant):
    from typer.testing import CliRunner

    from histoquant.cli import app
    from histoquant.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "napari_histoquant", None)
    done = CliRunner().invoke(app, ["review", str(root)])
    assert isinstance(done.exception, MissingExtraError)
    assert "pip install 'histoquant[gui]'" in str(done.exception)
    empty = histoquant("review", root.parent)
    assert empty.returncode == 2
    assert empty.stderr.startswith("histoquant: ")
    assert "holds no run" in empty.stderr


@pytest.mark.parametrize(
    ("options", "who", "blinded"),
    [([], "", True), (["--who", "Anna"], "Anna", True), (["--who", "Anna", "--not-blind"], "Anna", False)],
)
def test_review_takes_the_reviewer_and_whether_to_be_blind(root, monkeypatch, options, who, blinded):
    from types import ModuleType, SimpleNamespace

    from typer.testing import CliRunner

    from histoquant.cli import app

    opened = []
    launch = SimpleNamespace(review=lambda folder, who, *, blinded: opened.append((folder, who, blinded)))
    monkeypatch.setitem(sys.modules, "napari_histoquant", ModuleType("napari_histoquant"))
    monkeypatch.setitem(sys.modules, "napari_histoquant.launch", launch)
    done = CliRunner().invoke(app, ["review", str(root), *options])
    assert done.exit_code == 0, done.output
    assert opened == [(root, who, blinded)]
    told = CliRunner().invoke(app, ["review", "--help"], env={"COLUMNS": "200"}).output
    assert "--who Anna --not-blind" in told
