"""Runs in the forms of other programs: QuPath's GeoJSON, AnnData, SpatialData, REMBI and ARRIVE."""

import json

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from histoquant.cli import app
from histoquant.errors import InputError, MissingExtraError
from histoquant.export import export_run
from histoquant.export.geojson import outline_px
from histoquant.inference import write_statistics
from histoquant.model.region import Region
from histoquant.ometiff import write_ome_tiff
from histoquant.readers.geojson import write_geojson
from histoquant.readers.outlines import read_outlines

from .test_report import CALLED, region_row, small_study, write_run

PX = 0.5
RECIPE = CALLED + '[statistics.arrive]\nanimals = "Rats, <male>"\n'


@pytest.fixture
def run(tmp_path):
    """A run of four slides, each with three nuclei: one over a seam of bands would be larger than this picture."""
    root = write_run(tmp_path / "run", small_study(), recipe=RECIPE)
    labels = np.zeros((1, 40, 60), np.uint32)
    labels[0, 2:6, 3:9], labels[0, 30:33, 50:52], labels[0, 20, 20] = 1, 2, 5
    labels[0, 33, 50] = 2
    for folder in (root / "slides").iterdir():
        write_ome_tiff(
            folder / "labels.ome.tif", labels.shape, np.uint32, lambda y0, y1: labels[:, y0:y1],
            pixel_size_um=PX, channels=("labels",), labels=True,
        )  # fmt: skip
        write_geojson(folder / "regions.geojson", [Region("core", shapely.box(0, 0, 15, 10))], PX)
        rows = []
        for number, positive in ((1, True), (2, False), (5, False)):
            y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(labels[0] == number))
            rows.append(
                {"cell_id": np.uint32(number), "region": "core", "y_um": y * PX, "x_um": x * PX, "y_px": y, "x_px": x}
                | {"area_um2": (labels == number).sum() * PX**2, "tunel_value": np.nan if number == 5 else 4.0}
                | {"tunel_positive": positive, "tunel_class": "condensed" if positive else None}
            )
        pd.DataFrame(rows).to_parquet(folder / "cells.parquet")
    return root


def test_qupath_reads_cells_in_pixels_with_class_and_measurements(run):
    paths = export_run(run, "geojson")
    assert [path.name for path in paths] == ["s1.geojson", "s2.geojson", "s3.geojson", "ctrl.geojson"]
    features = json.loads(paths[0].read_text())["features"]
    assert [feature["properties"]["objectType"] for feature in features] == ["annotation", *["detection"] * 3]
    cells = {feature["properties"]["name"]: feature for feature in features[1:]}
    assert shapely.geometry.shape(cells["1"]["geometry"]).equals(shapely.box(3, 2, 9, 6))
    assert shapely.geometry.shape(cells["2"]["geometry"]).area == 7  # by the edges of its pixels
    assert shapely.geometry.shape(cells["5"]["geometry"]).bounds == (20, 20, 21, 21)
    assert cells["1"]["properties"]["classification"]["name"] == "tunel"
    assert cells["2"]["properties"]["classification"]["name"] == "Negative"
    assert cells["2"]["properties"]["measurements"]["area_um2"] == 7 * PX**2
    assert "tunel_value" not in cells["5"]["properties"]["measurements"]  # not defined, and JSON has no NaN
    assert shapely.geometry.shape(features[0]["geometry"]).bounds == (0, 0, 30, 20)
    (region,) = [one for one in read_outlines(paths[0], PX) if one.name == "core"]
    assert region.geometry.bounds == (0, 0, 15, 10)


def test_cells_of_every_band_come_once_and_where_they_are(run, monkeypatch):
    def features():
        told = json.loads(export_run(run, "geojson")[0].read_text())["features"]
        return sorted(told, key=lambda feature: feature["properties"]["name"])

    whole = features()
    monkeypatch.setattr("histoquant.export.geojson.BAND_PX", 4)
    monkeypatch.setattr("histoquant.export.geojson.REACH_PX", 5)
    assert features() == whole


@given(arrays(bool, (5, 6)))
def test_outlines_hold_the_pixels_and_no_others(mask):
    outline = outline_px(mask)
    assert outline.area == mask.sum()
    ys, xs = np.indices(mask.shape) + 0.5
    assert (shapely.contains_xy(outline, xs, ys) == mask).all()


def test_cell_that_is_not_in_the_image_is_an_error(run):
    path = run / "slides" / "s1" / "cells.parquet"
    cells = pd.read_parquet(path)
    pd.concat([cells, cells.iloc[:1].assign(cell_id=np.uint32(9))]).to_parquet(path)
    with pytest.raises(InputError, match="does not show cell 9"):
        export_run(run, "geojson")
    assert not (run / "export" / "s1.geojson").exists()


def test_arrive_and_rembi_say_what_is_known_and_what_is_not(run, tmp_path):
    write_statistics(run)
    (path,) = export_run(run, "arrive", tmp_path / "meta" / "here")
    items = json.loads(path.read_text())["items"]
    assert len(items) == 10
    assert items["1 Study design"] == {"Groups": "treated: 1; vehicle: 2", "Experimental unit": "the animal"}
    assert items["8 Experimental animals"] == {"Species, strain, sex, age": "Rats, <male>"}
    assert set(items["4 Randomisation"].values()) == {"not provided"}
    (path,) = export_run(run, "rembi", tmp_path / "meta" / "here")
    told = json.loads(path.read_text())
    assert told["image_data"]["s1"]["sources_sha256"] == {"a.ome.tif": "00ff"}
    assert told["image_data"]["s1"]["pixel_size_um"] == 0.5
    assert told["image_acquisition"]["objective"] == "not provided"
    assert told["biosample"]["organism"] == "Rats, <male>"
    assert "were analysed with histoquant" in told["analysed_data"]["method"]


def test_all_cells_in_one_anndata(run):
    anndata = pytest.importorskip("anndata", reason="histoquant[anndata] is not installed")
    (path,) = export_run(run, "anndata")
    table = anndata.read_h5ad(path)
    assert table.shape == (12, 2)
    assert list(table.var_names) == ["area_um2", "tunel_value"]
    assert table["s1:2", "area_um2"].X.item() == 7 * PX**2
    assert np.isnan(table["s2:5", "tunel_value"].X.item())
    assert table.obs["tunel_positive"].sum() == 4
    assert table.obs.loc["s1:1", ["animal", "group", "region", "tunel_class"]].tolist() == [
        "m1", "treated", "core", "condensed",
    ]  # fmt: skip
    assert set(table.obs.loc[table.obs["control"] == "no_tdt", "slide_id"]) == {"ctrl"}
    assert table.obsm["spatial"][0].tolist() == [6 * PX, 4 * PX]
    assert list(json.loads(table.uns["histoquant"]["thresholds"])) == ["s1", "s2", "s3", "ctrl"]
    assert json.loads(table.uns["histoquant"]["recipe"])["name"] == "tunel"


@pytest.mark.filterwarnings("default")  # what its dependencies deprecate among each other is not ours to mend
def test_slides_as_spatialdata(run):
    spatialdata = pytest.importorskip("spatialdata", reason="histoquant[spatialdata] is not installed")
    paths = export_run(run, "spatialdata")
    export_run(run, "spatialdata")  # replaces what is there
    assert sorted(path.name for path in (run / "export").iterdir()) == sorted(path.name for path in paths)
    data = spatialdata.read_zarr(paths[0])
    assert np.unique(data["labels"].to_numpy()).tolist() == [0, 1, 2, 5]
    assert data["cells"].obs["cell_id"].tolist() == [1, 2, 5]
    in_um = spatialdata.transform(data["regions"], to_coordinate_system="um")
    assert in_um.geometry.iloc[0].bounds == (0, 0, 15, 10)
    extent = spatialdata.get_extent(data["labels"], coordinate_system="um")
    assert (extent["x"], extent["y"]) == ((0, 60 * PX), (0, 40 * PX))
    _, table = spatialdata.join_spatialelement_table(
        spatial_element_names="labels", sdata=data, table_name="cells", how="left"
    )
    assert len(table) == 3
    cells = run / "slides" / "s1" / "cells.parquet"
    pd.read_parquet(cells).iloc[:0].to_parquet(cells)
    empty = spatialdata.read_zarr(export_run(run, "spatialdata")[0])
    assert list(empty.tables) == []
    assert "regions" in empty


@pytest.mark.parametrize("kind", ["anndata", "spatialdata"])
def test_missing_package_names_its_extra(run, monkeypatch, kind):
    monkeypatch.setattr("histoquant.export.cells.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"histoquant\[{kind}\]"):
        export_run(run, kind)


def test_command(run, tmp_path):
    done = CliRunner().invoke(app, ["export", str(run), "--to", "geojson", "--out", str(tmp_path / "q"), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["files"]) == 4
    with pytest.raises(InputError, match="no export 'csv'"):
        export_run(run, "csv")
    with pytest.raises(InputError, match="holds no run"):
        export_run(tmp_path, "geojson")


def test_slide_without_cells(tmp_path):
    root = write_run(tmp_path / "run", [region_row("s1", "m1", "vehicle")])
    folder = root / "slides" / "s1"
    pd.DataFrame({"cell_id": [], "y_px": [], "tunel_positive": []}).to_parquet(folder / "cells.parquet")
    write_ome_tiff(
        folder / "labels.ome.tif", (1, 8, 8), np.uint32, lambda y0, y1: np.zeros((1, y1 - y0, 8), np.uint32),
        pixel_size_um=PX, channels=("labels",), labels=True,
    )  # fmt: skip
    write_geojson(folder / "regions.geojson", [], PX)
    assert json.loads(export_run(root, "geojson")[0].read_text())["features"] == []
