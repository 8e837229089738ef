"""Small synthetic slides that tests share."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from histoquant.ometiff import write_ome_tiff

DATA = Path(__file__).parents[2] / "shared" / "data"

RECIPE = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = 150.0 }
[segment]
segmenter = "watershed"
diameter_um = 8.0
"""


@dataclass
class Scene:
    """A synthetic section: pixels (DAPI, TUNEL), and where its nuclei are."""

    pixels: np.ndarray
    centres: np.ndarray
    positive: np.ndarray


def make_scene(shape=(400, 420), n=150, *, seed=0, pixel_size_um=0.5, share=0.3, spacing=2.4):
    """Round nuclei of 8 um with noise, some TUNEL positive; none touch unless their spacing (radii) is below 2."""
    rng = np.random.default_rng(seed)
    radius = 4 / pixel_size_um
    centres = []
    for _ in range(60 * n):
        y, x = rng.uniform(1.5 * radius, shape[0] - 1.5 * radius), rng.uniform(1.5 * radius, shape[1] - 1.5 * radius)
        if all((y - a) ** 2 + (x - b) ** 2 > (spacing * radius) ** 2 for a, b in centres):
            centres.append((y, x))
        if len(centres) == n:
            break
    centres = np.array(centres)
    positive = rng.random(len(centres)) < share
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    dapi, tunel = np.zeros(shape), np.zeros(shape)
    for (y, x), bright in zip(centres, positive, strict=True):
        y0, y1 = int(max(0, y - 2 * radius)), int(min(shape[0], y + 2 * radius) + 1)
        x0, x1 = int(max(0, x - 2 * radius)), int(min(shape[1], x + 2 * radius) + 1)
        near = (rows[y0:y1, x0:x1] - y) ** 2 + (columns[y0:y1, x0:x1] - x) ** 2 <= radius**2
        dapi[y0:y1, x0:x1][near] = 800
        if bright:
            tunel[y0:y1, x0:x1][near] = 500
    planes = [200 + ndimage.gaussian_filter(plane, 1.0) + rng.normal(0, 12, shape) for plane in (dapi, tunel)]
    return Scene(np.clip(np.stack(planes), 0, 65535).astype(np.uint16), centres, positive)


def write_slide(path, pixels, *, pixel_size_um=0.5, channels=("DAPI", "TUNEL")):
    """Write (c, y, x) pixels as a calibrated pyramidal OME-TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ome_tiff(
        path,
        pixels.shape,
        pixels.dtype,
        lambda y0, y1: pixels[:, y0:y1],
        pixel_size_um=pixel_size_um,
        channels=list(channels[: len(pixels)]),
    )
    return path


def write_geojson(path, **polygons):
    """Write polygons, given by name as lists of (x, y) pixels, as QuPath does."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"objectType": "annotation", "name": name},
        }
        for name, ring in polygons.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def scene():
    return make_scene()


@pytest.fixture
def study(tmp_path, scene):
    """Folder with two sound slides, a sheet and a recipe; returns a function that adds rows."""
    folder = tmp_path / "study"
    for name in ("good_1", "good_2"):
        write_slide(folder / f"{name}.ome.tif", scene.pixels)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    rows = ["slide,animal,group,regions,pixel_size_um", "good_1.ome.tif,m1,vehicle,,", "good_2.ome.tif,m2,treated,,"]

    def add(*more):
        rows.extend(more)
        (folder / "study.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return folder

    return add


def histoquant(*arguments, check=False):
    """Run the command line in its own process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "histoquant", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
        env=environment,
        timeout=300,
    )


@pytest.fixture(name="histoquant")
def _histoquant():
    return histoquant
