"""The shape of the house: imports run one way, the package loads fast and light, files stay readable."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "PyQt5", "PyQt6", "PySide2", "PySide6", "qtpy", "torch", "distributed", "napari", "cellpose", "pyplot"
}  # fmt: skip
MAX_LINES = 600
VAGUE = {"utils", "util", "helpers", "helper", "core", "common", "manager", "misc"}
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "histoquant",
    "plugins",
    "tests",
    "sample_images",
    "workflows",
}


def _modules() -> list[Path]:
    return [path for folder in ("histoquant", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_run_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True, no_logo=True) == 0, capsys.readouterr().out


def test_every_module_has_its_layer() -> None:
    """A module that no layer names would be free to import anything."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    tops = {f"histoquant.{path.stem}" for path in (ROOT / "histoquant").iterdir() if path.suffix == ".py"}
    tops |= {f"histoquant.{path.parent.name}" for path in (ROOT / "histoquant").glob("*/__init__.py")}
    assert tops - named <= {"histoquant.__init__", "histoquant.__main__"}


def _python(script: str) -> str:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("module", ["", ".registry", ".pipeline", ".testing", ".cli"])
def test_nothing_heavy_is_loaded(module: str) -> None:
    name = f"histoquant{module}"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not there")
    loaded = json.loads(_python(f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"))
    assert name in loaded
    assert [each for each in loaded if set(each.split(".")) & HEAVY] == []


def test_listing_plugins_imports_none_of_their_libraries() -> None:
    loaded = _python(
        "import sys; from histoquant.registry import list_plugins; assert list_plugins(); print(*sys.modules)"
    ).split()
    assert "histoquant.registry" in loaded
    assert {"dask", "pandas", "skimage", "scipy", "zarr", "tifffile", "pydantic"} & set(loaded) == set()


@pytest.mark.parametrize("absent", [["napari"], ["qtpy"], ["PySide6", "PyQt6", "PyQt5", "PySide2"]])
def test_the_napari_plugin_says_which_extra_it_needs(absent: list[str]) -> None:
    said = _python(
        f"""
import sys
sys.modules |= dict.fromkeys({absent!r})
try:
    import napari_histoquant
except ImportError as error:
    print(error)
"""
    )
    assert said == ("The napari plug-in needs napari and Qt, which are not installed. pip install 'histoquant[gui]'\n")


def test_files_stay_readable() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _modules()}
    assert ROOT / "histoquant" / "registry.py" in lines
    assert {str(path): n for path, n in lines.items() if n > MAX_LINES} == {}


def test_modules_are_named_by_the_domain() -> None:
    assert [str(path) for path in _modules() if VAGUE & {path.stem, path.parent.name}] == []


def test_top_level_is_tidy() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to it is not known")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {name.split("/")[0] for name in tracked.split("\0") if name}
    assert "pyproject.toml" in tops
    assert {name for name in tops if not name.startswith(".")} - TOP_LEVEL == set()
