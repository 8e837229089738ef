"""The plug-in's tests need napari, Qt, pytest-qt and a screen; elsewhere each file is skipped, with the reason."""

import os
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import RECIPE, histoquant, make_scene, write_geojson, write_slide

ABSENT = [name for name in ("napari", "PySide6", "pytestqt") if find_spec(name) is None]
NO_SCREEN = sys.platform == "linux" and not os.environ.get("DISPLAY")
REASON = (
    f"{', '.join(ABSENT)} not installed: pip install 'histoquant[gui]' pytest-qt"
    if ABSENT
    else "no screen: run with xvfb-run"
    if NO_SCREEN
    else ""
)

NOT_OURS = (
    "ignore:.*:DeprecationWarning:(npe2|napari|magicgui|superqt|app_model|vispy|pydantic|pydantic_extra_types|psygnal)",
    "ignore:.*pydantic.*:DeprecationWarning",
    "ignore:.*:pydantic.warnings.PydanticDeprecatedSince20",
    "ignore:.*:FutureWarning:(napari|superqt|magicgui|vispy)",
)
"""Warnings that napari and what it stands on raise about themselves; ours stay errors."""


class NotHere(pytest.Module):
    """A test file that cannot run here."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return NotHere.from_parent(parent, path=module_path) if REASON else None


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            for line in NOT_OURS:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="session")
def pixels():
    return make_scene().pixels


@pytest.fixture
def slide_path(tmp_path, pixels):
    return write_slide(tmp_path / "M1.ome.tif", pixels)


@pytest.fixture
def recipe_path(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        RECIPE + '[regions.band]\nband = { of = "lesion", from_um = 0.0, to_um = 20.0 }\n', encoding="utf-8"
    )
    return path


@pytest.fixture
def outlines_path(tmp_path):
    return write_geojson(
        tmp_path / "drawn.geojson",
        lesion=[(50, 60), (150.123456789, 70), (140, 160)],
        cortex=[(200, 200), (300, 210), (250, 310)],
    )


@pytest.fixture(scope="session")
def ran(tmp_path_factory, pixels):
    """A slide, a recipe, and the folder of their run by the command line."""
    folder = tmp_path_factory.mktemp("ran")
    write_slide(folder / "M1.ome.tif", pixels)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "study.csv").write_text("slide,animal,group,regions\nM1.ome.tif,m1,vehicle,r.geojson\n", encoding="utf-8")
    write_geojson(folder / "r.geojson", left=[(0, 0), (200, 0), (200, 400), (0, 400)])
    histoquant("run", folder / "study.csv", "--recipe", folder / "recipe.toml", "--out", folder / "out", check=True)
    return folder
