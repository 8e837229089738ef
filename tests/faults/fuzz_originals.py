"""Small sound files of every kind that is fuzzed: what the mutations start from."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import roifile
import tifffile
from PIL import Image

from tests.conftest import RECIPE

SLIDE_PX = (120, 160)

GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "PathAnnotationObject",
            "geometry": {"type": "Polygon", "coordinates": [[[5, 5], [70, 5], [70, 60.5], [5, 60], [5, 5]]]},
            "properties": {
                "objectType": "annotation",
                "name": "cortex",
                "classification": {"name": "Grey", "color": [1, 2, 3]},
                "childObjects": [
                    {
                        "type": "Feature",
                        "geometry": {"type": "Polygon", "coordinates": [[[9, 9], [30, 9], [30, 30], [9, 9]]]},
                        "properties": {"name": "layer", "classification": {"names": ["Grey", "one"]}},
                    }
                ],
            },
        },
        {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [
                    [[[80, 5], [150, 5], [150, 90], [80, 90], [80, 5]], [[90, 20], [99, 20], [99, 30], [90, 20]]],
                    [[[10, 80], [60, 80], [60, 110], [10, 80]]],
                ],
            },
            "properties": {"objectType": "annotation", "name": "striatum", "metadata": {"counted": "true"}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "LineString", "coordinates": [[75, 0], [76, 60], [75, 119]]},
            "properties": {"objectType": "annotation", "name": "midline"},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[20, 20], [25, 20], [25, 25], [20, 20]]]},
            "properties": {"name": "tear", "classification": {"name": "Ignore*"}},
        },
    ],
}

RECIPES = (
    RECIPE,
    """
schema = 1
name = "everything stated"
[panel.dapi]
channel = 0
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { rule = "nuclear", threshold = "auto", control = ["no_tdt"], k = 3.0, fraction = 0.5 }
orphans = true
death_classes = true
[segment]
segmenter = "watershed"
diameter_um = 8.0
channels = ["dapi"]
z = "max"
min_snr = 3
[tiles]
core_px = 256
max_object_um = 20.0
[background]
window_um = 100
percentile = 10
[measure]
ring_um = 2.0
background_inner_um = 15.0
background_outer_um = 25.0
[regions.rim]
band = { of = "cortex", from_um = 0, to_um = 10.0 }
within = "slide"
parent = "slide"
[regions.other]
mirror = { of = "cortex", midline = [[0, 37.5], [50.0, 37.5]] }
within = ["slide"]
[regions.striatum]
minus = ["rim", "other"]
[regions.both]
intersection = { of = ["cortex", "striatum"] }
counted = false
[count]
domain = "slide"
double = []
overlap = "first"
reference_group = "vehicle"
""",
)

SHEETS = (
    "slide,animal,group,section,regions,control,batch,pixel_size_um,scene,exclude,cage\n"
    "a.ome.tif,m1,vehicle,1,a.geojson,,b1,0.5,,,7\n"
    'b.ome.tif,m2,treated,2,a.geojson,,b1,,,,"8, near ""the"" door"\n'
    "b.ome.tif,m2,treated,3,,no_tdt,b1,0.4,series_0,blurred,\n",
    "slide;animal;group\r\na.ome.tif;m1;vehicle\r\nb.ome.tif;m2;treated\r\n",
)


def _pixels(*shape: int, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 250, shape).astype(dtype)


def write_tiffs(folder: Path) -> None:
    """Write a small TIFF of every layout that readers tell apart, and two pictures."""
    named = {"axes": "CYX", "Channel": {"Name": ["DAPI", "TUNEL"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    for name, options in {
        "pyramid": {"compression": "zlib", "predictor": True, "tile": (64, 64)},
        "bigtiff": {"compression": "lzw", "tile": (32, 48), "bigtiff": True},
    }.items():
        big = bool(options.pop("bigtiff", False))
        full = _pixels(2, *SLIDE_PX)
        with tifffile.TiffWriter(folder / f"{name}.ome.tif", ome=True, bigtiff=big) as tif:
            tif.write(full, subifds=1, metadata=named, **options)
            tif.write(full[:, ::2, ::2], subfiletype=1, metadata=None, **options)
    stack = {"axes": "ZCYX", "Labels": ["DAPI", "TUNEL"] * 3, "unit": "um", "spacing": 2.0}
    tifffile.imwrite(folder / "imagej.tif", _pixels(3, 2, 60, 80), imagej=True, resolution=(2, 2), metadata=stack)
    tifffile.imwrite(folder / "strips.tif", _pixels(*SLIDE_PX), byteorder=">", rowsperstrip=16, metadata=None)
    tifffile.imwrite(folder / "packbits.tif", _pixels(99, 70, dtype=np.uint8), rowsperstrip=9, compression="packbits")
    tifffile.imwrite(folder / "separate.tif", _pixels(3, 64, 80, dtype=np.uint8), photometric="rgb", tile=(32, 32))
    colour = _pixels(96, 128, 3, dtype=np.uint8)
    tifffile.imwrite(folder / "jpeg.tif", colour, photometric="rgb", tile=(64, 64), compression="jpeg")
    aperio = "Aperio Image Library v1\r\n96x128 (64x64)|AppMag = 20|MPP = 0.5|Filename = 7"
    with tifffile.TiffWriter(folder / "aperio.svs") as tif:
        tif.write(colour, photometric="rgb", tile=(64, 64), compression="jpeg", description=aperio, metadata=None)
        tif.write(colour[::4, ::4], photometric="rgb", description="Aperio thumbnail", metadata=None)
        tif.write(colour[::2, ::2], photometric="rgb", tile=(32, 32), compression="jpeg", description=aperio)
    Image.fromarray(colour).save(folder / "picture.png")
    Image.fromarray(_pixels(50, 60)).save(folder / "deep.png")
    Image.fromarray(colour).save(folder / "picture.jpg", quality=80)


def write_rois(folder: Path) -> None:
    """Write ImageJ ROIs one by one and together."""
    corners = np.array([[10, 10], [60, 12], [55, 50], [12, 48]], np.float32)
    rois = {
        "polygon": roifile.ImagejRoi.frompoints(corners, name="cortex"),
        "fine": roifile.ImagejRoi.frompoints(corners + np.float32(70.25), name="striatum é"),
        "line": roifile.ImagejRoi.frompoints(corners[:2], name="midline"),
    }
    rois["line"].roitype = roifile.ROI_TYPE.POLYLINE
    oval = roifile.ImagejRoi.frompoints(corners + 5, name="oval")
    oval.roitype = roifile.ROI_TYPE.OVAL
    rois["oval"] = oval
    composite = roifile.ImagejRoi.frompoints(corners, name="holes")
    ring = [0, 80, 70, 1, 140, 70, 1, 140, 110, 3, 130, 115, 100, 116, 80, 110, 4]
    composite.roitype, composite.multi_coordinates = roifile.ROI_TYPE.RECT, np.array(ring, np.float32)
    composite.shape_roi_size = len(ring)
    rois["composite"] = composite
    for name, roi in rois.items():
        (folder / f"{name}.roi").write_bytes(roi.tobytes())
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in rois:
            archive.writestr(f"{name}.roi", rois[name].tobytes())
    (folder / "set.zip").write_bytes(held.getvalue())


def write_texts(folder: Path) -> None:
    """Write outlines, recipes and sheets, with the slides that the latter name."""
    (folder / "geojson").mkdir()
    (folder / "geojson" / "a.geojson").write_text(json.dumps(GEOJSON), encoding="utf-8")
    for kind, texts in {"toml": RECIPES, "csv": SHEETS}.items():
        (folder / kind).mkdir()
        for number, text in enumerate(texts):
            (folder / kind / f"{number}.{kind}").write_text(text, encoding="utf-8", newline="")
    study = folder / "study"
    study.mkdir()
    (study / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (study / "study.csv").write_text(SHEETS[0], encoding="utf-8")
    (study / "a.geojson").write_text(json.dumps(GEOJSON), encoding="utf-8")
    for name in ("a", "b"):
        metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "TUNEL"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tifffile.imwrite(study / f"{name}.ome.tif", _pixels(2, *SLIDE_PX), metadata=metadata, tile=(64, 64))


def write_originals(folder: Path) -> Path:
    """Write them all: a folder for each kind, and ``study`` for what sheets and recipes refer to."""
    for kind, write in {"tiff": write_tiffs, "roi": write_rois}.items():
        (folder / kind).mkdir(parents=True)
        write(folder / kind)
    write_texts(folder)
    return folder
