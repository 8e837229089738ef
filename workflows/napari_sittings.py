"""The two sittings of the scripted session: the one that is killed, and the one that looks what is left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from napari_hands import Hands, answer_with, choose, click, settle, type_over, wait_until
from napari_histoquant.launch import dock_review
from napari_histoquant.review_start import UnblindDialog
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from histoquant.analysis.review import replay
from histoquant.drawing import Drawing
from histoquant.inputs import read_recipe
from histoquant.samples import sample_study

REVIEWER = "Anna"

SLIDES = ("M1_s1", "M4_s1", "control_1_s1")
"""Of the sample study, run in the middle of the session: one of each group is enough."""

CORE = ((665, 775), (715, 865), (815, 880), (880, 790), (830, 680), (730, 675))
"""Corners (y, x) in um of the region that is drawn, within the lesion of the sample slide."""

THRESHOLD = 10.0
"""Where the line is dragged to."""

SEGMENTER = "watershed"
"""Typed into the form: the network of the sample study's recipe takes two cores ten times as long."""

KEYS = (Qt.Key.Key_A, Qt.Key.Key_F, Qt.Key.Key_A, Qt.Key.Key_D, Qt.Key.Key_Space)


def first_sitting(work: Path, pictures: Path, n_reviewed: int) -> None:
    """Draw, tune, run and review, and go on until the end comes from outside."""
    hands = Hands("napari", pictures)
    drawing = opened_sample(hands)
    hands.take("01_sample_study")
    choose(drawing, "Outlines…", work / "M1_s1.geojson")
    choose(drawing, "Recipe…", sample() / "recipe.toml")
    wait_until(lambda: drawing.derived.tissue is not None, "the tissue is found")
    hands.take("02_outlines_opened")
    draw(hands, drawing, "core", CORE, parent="lesion")
    hands.take("03_drawn")

    tuning = hands.widget("Tune a recipe")
    choose(tuning, "Load…", sample() / "recipe.toml")
    QTest.keyClicks(tuning._form.fields["segment", "segmenter"], SEGMENTER)
    hands.viewer.layers.selection.active = hands.viewer.layers[0]
    hands.look_at((640, 700), 1.9)
    click(tuning, "Preview here")
    wait_until(lambda: tuning.worker is None and tuning.trial is not None, "the preview")
    choose(tuning, "Measure control…", sample() / "slides" / "control_1_s1.ome.tif")
    wait_until(lambda: tuning.worker is None and bool(tuning.controls), "the control")
    hands.take("04_previewed")
    drag_threshold(tuning, THRESHOLD)
    hands.take("05_threshold_moved")
    choose(tuning, "Save…", work / "recipe.toml")
    tell("recipe", read_recipe(work / "recipe.toml").fingerprint())

    run(work)
    assert_same_calls(tuning, work)
    desk = Hands("histoquant review", pictures)  # a blind review shares its window with no other layers
    review = begin_review(desk, work / "results")
    turn_to_region(review, "core")
    desk.take("06_review_opened")
    for number in range(n_reviewed):
        decide(desk, review, KEYS[number % len(KEYS)])
    desk.press(Qt.Key.Key_Left)
    desk.take("07_twenty_cells")
    for key in (Qt.Key.Key_U, Qt.Key.Key_U, Qt.Key.Key_R):
        decide(desk, review, key)
    desk.take("08_undone")

    hands.turn_to("Draw regions")
    hands.look_at((775, 775), 1.9)
    number = 0
    while True:
        number += 1
        hands.to_front()
        left = 640 + 45 * number
        patch = ((745, left), (750, left + 30), (785, left + 35), (780, left + 5))
        draw(hands, drawing, f"p{number}", patch, parent="core")
        desk.to_front()
        for _ in range(3):
            decide(desk, review, Qt.Key.Key_F)


def second_sitting(work: Path, pictures: Path) -> dict[str, Any]:
    """Open everything again, tell what is there, undo what was done before the kill, go on, and unblind."""
    faults: list[str] = []

    def expect(true: bool, otherwise: str) -> None:
        if not true:
            faults.append(otherwise)

    hands = Hands("napari", pictures)
    drawing = opened_sample(hands)
    choose(drawing, "Outlines…", work / "M1_s1.geojson")
    choose(drawing, "Recipe…", work / "recipe.toml")
    wait_until(lambda: drawing.derived.tissue is not None, "the tissue is found")
    regions = [region.name for region in drawing.drawing.regions]
    undoable = drawing.drawing.n_undo
    hands.take("09_regions_after_the_kill")
    expect(undoable == len(regions), f"{undoable} region edits can be undone; {len(regions)} were made.")
    for text, expected in (("Undo", regions[:-1]), ("Redo", regions)):
        click(drawing, text)
        there = [region.name for region in Drawing(work / "M1_s1.geojson").regions]
        expect(there == expected, f"{text} after the kill left the regions {there} in the file.")

    tuning = hands.widget("Tune a recipe")
    choose(tuning, "Load…", work / "recipe.toml")
    hands.take("10_recipe_after_the_kill")
    recipes = [tuning.recipe.fingerprint()]

    desk = Hands("histoquant review", pictures)
    review = begin_review(desk, work / "results")
    session = review.session
    edits = [edit.id for edit in session.journal.edits]
    torn, looked_at = len(session.journal.torn), session.queue.n_reviewed
    desk.take("11_review_after_the_kill")
    expect(session.run.recipe.fingerprint() in recipes, "The run was not made with the recipe that was saved.")
    expect(as_replayed(session), "The review shows other counts than the replay of its journal.")
    decide(desk, review, Qt.Key.Key_U)
    undone = session.journal.edits[-1]
    expect(undone.action == "undo" and undone.undoes in edits, "An edit made before the kill could not be undone.")
    for key in KEYS:
        decide(desk, review, key)
    expect(len(session.journal.edits) == len(edits) + 1 + len(KEYS), "The review did not go on after the kill.")
    expect(as_replayed(session), "After an undo the review shows other counts than the replay of its journal.")
    answer_with(UnblindDialog, lambda dialog: confirm(desk, dialog, "the scripted review is done"))
    click(review, "Unblind …")
    desk.take("13_unblinded")
    expect(session.journal.edits[-1].action == "unblind", "Unblinding is not in the journal.")
    expect(not session.blinded, "The names are still hidden.")
    review.close_review()
    for each in (desk, hands):
        each.viewer.close()
    return {
        "edit": edits,
        "region": regions,
        "recipe": recipes,
        "faults": faults,
        "looked_at": looked_at,
        "torn_lines": torn,
        "undoable_regions": undoable,
    }


# ---------------------------------------------------------------------- steps of both


def tell(what: str, name: str) -> None:
    """Acknowledge what is on the disk now."""
    print(what, name, flush=True)


def sample() -> Path:
    """Return the folder of the sample study."""
    return sample_study(Path(tempfile.gettempdir()) / "histoquant_sample_study", print).parent


def opened_sample(hands: Hands) -> Any:
    """Open the sample study as napari's menu does, and the widget to draw on it."""
    hands.viewer.open_sample("histoquant", "sample_study")
    drawing = hands.widget("Draw regions")
    hands.look_at((775, 775), 0.45)
    return drawing


def draw(hands: Hands, drawing: Any, name: str, corners_um: Sequence[tuple[float, float]], *, parent: str = "") -> None:
    """State what the next region is, draw it corner by corner, and wait until it is saved."""
    type_over(drawing._name.lineEdit(), name)
    type_over(drawing._lies_in.lineEdit(), parent)
    click(drawing, "Draw area")
    settle(0.1)
    hands.click_corners(corners_um)
    wait_until(lambda: drawing.drawing.regions[-1].name == name, f"the region '{name}' is saved")
    saved = Drawing(drawing.drawing.path).regions[-1]
    if saved.name != name or len(set(saved.geometry.exterior.coords)) != len(corners_um):
        raise RuntimeError(f"The region '{name}' was saved as {saved.name}, {saved.geometry.wkt}.")
    tell("region", name)


def drag_threshold(tuning: Any, value: float) -> None:
    """Drag the line of the histogram to a value."""
    histogram, axes = tuning._histogram, tuning._histogram.axes
    height = histogram.figure.bbox.height
    places = []
    for at in (float(histogram.line.get_xdata()[0]), value):
        x, y = axes.transData.transform((at, axes.get_ylim()[1] / 3))
        places.append(QPoint(round(x), round(height - y)))
    QTest.mousePress(histogram, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[0])
    QTest.mouseMove(histogram, places[1])
    QTest.mouseRelease(histogram, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[1])
    moved = tuning.recipe.panel["tunel"].positive.threshold
    settle(0.5)
    if not (isinstance(moved, float) and abs(moved - value) < 0.05 * value):
        raise RuntimeError(f"The threshold was dragged to {value}, and the recipe says {moved}.")


def run(work: Path) -> None:
    """Run the batch on slides of the sample study, with the regions that were drawn and the recipe that was saved."""
    sheet = pd.read_csv(sample() / "study.csv", dtype=str, keep_default_na=False)
    sheet = sheet[[Path(path).name.split(".")[0] in SLIDES for path in sheet["slide"]]]
    first = sheet["slide"].str.contains("M1_s1")
    sheet = sheet.assign(
        slide=[str(sample() / path) for path in sheet["slide"]],
        regions=[str(work / "M1_s1.geojson") if drawn else str(sample() / "regions.geojson") for drawn in first],
    )
    sheet.to_csv(work / "study.csv", index=False)
    command = [sys.executable, "-m", "histoquant", "run", str(work / "study.csv")]
    command += ["--recipe", str(work / "recipe.toml"), "--out", str(work / "results"), "--quiet"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def assert_same_calls(tuning: Any, work: Path) -> None:
    """Raise when the batch found or called other cells in the area of the preview than the preview did."""
    px, box = tuning.trial.work.slide.pixel_size_um, tuning.trial.box
    cells = pd.read_parquet(work / "results" / "slides" / "M1_s1" / "cells.parquet")
    inside = cells["y_um"].between(box.y0 * px, box.y1 * px) & cells["x_um"].between(box.x0 * px, box.x1 * px)
    columns = ["y_um", "x_um", "tunel_value", "tunel_positive"]
    by_run, by_preview = (
        table[columns].sort_values(["y_um", "x_um"]).reset_index(drop=True) for table in (cells[inside], tuning.cells())
    )
    pd.testing.assert_frame_equal(by_preview, by_run, check_exact=True)


def begin_review(desk: Hands, results: Path) -> Any:
    """Open the review of a run as `histoquant review` does: state one's name, stay blind, begin."""
    review = dock_review(desk.viewer)
    review.start.propose(results)
    desk.to_front()
    type_over(review.start.who, REVIEWER)
    click(review, f"Review '{results.name}'")
    wait_until(lambda: review.session is not None, "the review begins")
    desk.to_front()
    return review


def turn_to_region(review: Any, name: str) -> None:
    """Turn to the slide on which a region was drawn, which the list of regions tells a reviewer who is blind."""
    for shown in review.session.slides:
        review.panel.slide.setCurrentText(shown)
        review.panel.slide.activated.emit(review.panel.slide.currentIndex())
        settle()
        if review.panel.region.findText(name) >= 0:
            return
    raise RuntimeError(f"No slide of the run has a region '{name}'.")


def decide(desk: Hands, review: Any, key: Qt.Key) -> None:
    """Press a key, and tell the edit that is on the disk then."""
    before = len(review.session.journal.edits)
    desk.press(key)
    for edit in review.session.journal.edits[before:]:
        tell("edit", edit.id)


def as_replayed(session: Any) -> bool:
    """Return whether the counts on the screen are those of the journal's replay on the table of the run."""
    here, marker = session.here, session.queue.selection.marker
    cells = pd.read_parquet(session.root / "slides" / here.slide_id / "cells.parquet")
    mine = [edit for edit in session.journal.edits if edit.slide_id == here.slide_id]
    left = replay(cells, mine, measured=here.results.measured).cells
    counts = here.objects.counts(marker)
    return (counts.corrected, counts.corrected_positive) == (len(left), int(left[f"{marker}_positive"].sum()))


def confirm(desk: Hands, dialog: UnblindDialog, why: str) -> None:
    """Give the reason, take a picture of the dialog, and confirm."""
    QTest.keyClicks(dialog.reason, why)
    settle()
    dialog.grab().save(str(desk.pictures / "12_unblind_dialog.png"))
    QTest.mouseClick(dialog.confirm, Qt.MouseButton.LeftButton)
