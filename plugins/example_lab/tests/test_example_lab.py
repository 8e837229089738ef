"""The plug-in keeps the promises of its doors, and gives known answers on data small enough to count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from histoquant_example_lab.blobs import LabBlobs
from histoquant_example_lab.labraw import LabrawReader
from histoquant_example_lab.ratio import LabRatio
from pydantic import ValidationError

from histoquant.analysis.positivity import Scene, Threshold
from histoquant.errors import FormatError
from histoquant.testing import check_reader, check_rule, check_segmenter


@pytest.fixture
def labraw(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Return a file of two channels and several bands, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 600, 310), dtype=np.uint16)
    path = tmp_path / "section 1.labraw"
    path.write_bytes(b"LABRAW 1 2 600 310 0.325 DAPI,Alexa 488\n" + pixels.astype("<u2").tobytes())
    return path, pixels


def test_doors(labraw: tuple[Path, np.ndarray]) -> None:
    """Histoquant's own checks find nothing broken, at the defaults and away from them."""
    check_reader(LabrawReader, labraw[0])
    check_segmenter(LabBlobs)
    check_segmenter(LabBlobs, {"threshold": 0.3, "max_diameter_um": 12})
    check_rule(LabRatio)
    check_rule(LabRatio, {"min_area_um2": 50})


def test_labraw_pixels(labraw: tuple[Path, np.ndarray]) -> None:
    """What was written is what is read."""
    path, pixels = labraw
    slide = LabrawReader().open(path)
    np.testing.assert_array_equal(slide.read()[:, 0], pixels)
    np.testing.assert_array_equal(np.asarray(slide.levels[0][1, 0, 500:20:-7, 3::2]), pixels[1, 500:20:-7, 3::2])
    assert (slide.channels, slide.pixel_size_um) == (("DAPI", "Alexa 488"), 0.325)


@pytest.mark.parametrize(("cut", "said"), [(-1, "announces"), (9, "header")])
def test_damaged_labraw(labraw: tuple[Path, np.ndarray], cut: int, said: str) -> None:
    """A file that lost its end is an error, not a black corner."""
    path, _ = labraw
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=said):
        LabrawReader().open(path)


def test_blobs_by_diameter() -> None:
    """Of three squares of 2, 8 and 20 um only the middle one is between 3 and 15 um."""
    image = np.zeros((1, 1, 60, 100), dtype=np.float32)
    for x, side in ((2, 4), (20, 16), (50, 40)):
        image[0, 0, 5 : 5 + side, x : x + side] = 1
    labels = LabBlobs(LabBlobs.Params(max_diameter_um=15))(image, 0.5)
    expected = np.zeros((1, 60, 100), dtype=bool)
    expected[0, 5:21, 20:36] = True
    np.testing.assert_array_equal(labels > 0, expected)


def test_blobs_parameters() -> None:
    """Diameters in the wrong order are refused when the recipe is read."""
    with pytest.raises(ValidationError, match="larger than max"):
        LabBlobs.Params(min_diameter_um=30)


def test_ratio() -> None:
    """150 over 100 is 1.5; over a background of 0 it is not defined and not positive."""
    table = pd.DataFrame({"area_um2": 40.0, "mean_a": [150.0, 149.0, 150.0], "background_a": [100.0, 100.0, 0.0]})
    rule = LabRatio("brdu", "a", LabRatio.Params())
    np.testing.assert_allclose(rule.value(table), [1.5, 1.49, np.nan])
    assert rule(table, Scene({"brdu": Threshold(1.5, "fixed")}, {})).tolist() == [True, False, False]
