"""The plug-in's tests need napari, Qt, pytest-qt and a screen; elsewhere each file is skipped, with the reason."""

import os
import sys
from importlib.util import find_spec

import pytest

ABSENT = [name for name in ("napari", "PySide6", "pytestqt") if find_spec(name) is None]
NO_SCREEN = sys.platform == "linux" and not os.environ.get("DISPLAY")
REASON = (
    f"{', '.join(ABSENT)} not installed: pip install 'histoquant[gui]' pytest-qt"
    if ABSENT
    else "no screen: run with xvfb-run"
    if NO_SCREEN
    else ""
)


class NotHere(pytest.Module):
    """A test file that cannot run here."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return NotHere.from_parent(parent, path=module_path) if REASON else None
