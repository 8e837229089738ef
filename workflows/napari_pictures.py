"""Go through the plug-in as the README tells it, on the sample study, and take its pictures.

    xvfb-run -a -s "-screen 0 1400x1000x24" python workflows/napari_pictures.py plugins/napari_histoquant/pictures

What is shown is real: the regions are drawn by mouse, the preview is computed, the recipe saved is read back.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from histoquant.inputs import read_recipe
from histoquant.samples import sample_study

COLOURS = 128
"""Of a picture: more than the screen shows, and small files."""

LESION = [(480, 420), (560, 640), (760, 720), (980, 640), (1010, 420), (820, 300), (600, 310)]


def main(out: Path) -> None:
    """Take the pictures."""
    out.mkdir(exist_ok=True)
    study = sample_study(Path(tempfile.gettempdir()) / "histoquant_sample_study", print).parent
    drawn_in = Path(tempfile.mkdtemp())
    viewer = napari.Viewer()
    viewer.window.resize(1380, 940)
    viewer.theme = "dark"

    viewer.open(study / "slides" / "M1_s1.ome.tif", plugin="histoquant")
    viewer.reset_view()
    dock, widget = viewer.window.add_plugin_dock_widget("histoquant", "Draw regions")
    widget.use_recipe(study / "recipe.toml")
    widget.open_file(drawn_in / "M1_s1.geojson")
    draw(viewer, widget, "lesion", LESION)
    settle(0.4)
    assert [region.name for region in widget.drawing.regions] == ["lesion"]
    take(viewer, out / "draw.png")
    viewer.window.remove_dock_widget(dock)

    dock, widget = viewer.window.add_plugin_dock_widget("histoquant", "Tune a recipe")
    widget.load(study / "recipe.toml")
    viewer.layers.selection.active = viewer.layers[0]
    viewer.scene.camera.center = (0, 620, 700)
    viewer.scene.camera.zoom = 1.9
    settle(0.5)
    widget.preview()
    wait_for(widget)
    widget.measure_control(study / "slides" / "control_1_s1.ome.tif")
    wait_for(widget)
    settle(0.5)
    take(viewer, out / "tune.png")
    widget.save(drawn_in / "recipe.toml")
    assert read_recipe(drawn_in / "recipe.toml") == widget.recipe
    viewer.close()


def wait_for(widget: object) -> None:
    """Wait until the widget's thread is done."""
    while widget.worker is not None:
        settle(0.1)


def draw(viewer: napari.Viewer, widget: object, name: str, corners_um: list[tuple[float, float]]) -> None:
    """Draw a polygon with the mouse, a click at each corner, and end it with Esc."""
    widget._name.setCurrentText(name)
    widget.start("add_polygon")
    settle(0.5)
    native = viewer.window._qt_viewer.canvas.native
    for corner in corners_um:
        place = on_screen(viewer, native, corner)
        QTest.mouseMove(native, place)
        QTest.mouseClick(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
        settle(0.05)
    QTest.keyClick(native, Qt.Key.Key_Escape)
    settle(0.3)


def on_screen(viewer: napari.Viewer, native: object, place_um: tuple[float, float]) -> QPoint:
    """Return where a place (y, x) of the slide is on the canvas."""
    camera = viewer.scene.camera
    size = np.array([native.height(), native.width()])
    moved = (np.array(place_um) - camera.center[-2:]) * camera.zoom / native.devicePixelRatio()
    y, x = size / 2 + moved
    return QPoint(round(x), round(y))


def settle(seconds: float) -> None:
    """Let the screen catch up."""
    QTest.qWait(round(1000 * seconds))
    QApplication.processEvents()


def take(viewer: napari.Viewer, path: Path) -> None:
    """Take a picture of the whole window, in few colours."""
    settle(0.3)
    picture = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(picture[..., :3]).quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
