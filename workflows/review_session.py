"""A review as a person at the keyboard does it, killed in the middle: nothing that was decided may be lost.

    xvfb-run -a -s "-screen 0 1400x1000x24" python workflows/review_session.py RUN --pictures DIR

opens a finished run in napari, reviews 20 cells with real key events, undoes and redoes, and goes on flipping cells
until the process is killed with SIGKILL. A second process opens the run again and looks whether every edit that was
acknowledged is there; then it undoes one made before the kill, and unblinds. Pictures of every step lie in DIR, and a
summary is printed as JSON. Exit code 1 when an edit was lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

REVIEWER = "Anna"
N_REVIEWED = 20
N_MORE = 15
"""Keys that are pressed after the twenty cells before the process is killed."""

READY = "pressed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--sitting", choices=("first", "second"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.pictures.mkdir(parents=True, exist_ok=True)
    if given.sitting == "first":
        first_sitting(given.run, given.pictures)
    elif given.sitting == "second":
        second_sitting(given.run, given.pictures)
    else:
        return both(given.run, given.pictures)
    return 0


def both(run: Path, pictures: Path) -> int:
    """Run the first sitting until it is killed, then the second, and compare."""
    command = [sys.executable, __file__, str(run), "--pictures", str(pictures), "--sitting"]
    acknowledged: list[str] = []
    with subprocess.Popen([*command, "first"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith(READY):
                acknowledged.append(line.split()[1])
            if len(acknowledged) == N_REVIEWED + N_MORE:
                first.kill()
                break
        acknowledged += [line.split()[1] for line in first.stdout if line.startswith(READY) and line.endswith("\n")]
    second = subprocess.run([*command, "second"], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(second.stdout.splitlines()[-1])
    lost = sorted(set(acknowledged) - set(told["edits"]))
    summary = {
        "killed_with_signal": -first.returncode,
        "acknowledged": len(acknowledged),
        "in_the_journal": len(told["edits"]),
        "lost": len(lost),
        **{name: told[name] for name in ("looked_at", "as_replayed", "undone_after_the_crash", "torn_lines")},
    }
    print(json.dumps(summary))
    return 1 if lost or not told["as_replayed"] else 0


def first_sitting(run: Path, pictures: Path) -> None:
    """Review twenty cells, undo and redo, then flip cells until the end comes from outside."""
    from qtpy.QtCore import Qt

    desk = Desk(run)
    desk.picture(pictures / "review_1_opened.png")
    keys = (Qt.Key.Key_A, Qt.Key.Key_F, Qt.Key.Key_A, Qt.Key.Key_D, Qt.Key.Key_Space)
    for number in range(N_REVIEWED):
        desk.press(keys[number % len(keys)])
    desk.press(Qt.Key.Key_Left)
    desk.picture(pictures / "review_2_twenty_cells.png")
    for key in (Qt.Key.Key_U, Qt.Key.Key_U, Qt.Key.Key_R):
        desk.press(key)
    desk.picture(pictures / "review_3_undone.png")
    while True:
        desk.press(Qt.Key.Key_F)


def second_sitting(run: Path, pictures: Path) -> None:
    """Open the run again, see what is there, undo what was done before the crash, unblind."""
    import pandas as pd
    from qtpy.QtCore import Qt

    from histoquant.analysis.review import replay

    desk = Desk(run)
    session = desk.widget.session
    desk.picture(pictures / "review_4_after_the_crash.png")
    edits = [edit.id for edit in session.journal.edits]
    torn = len(session.journal.torn)
    looked_at = session.queue.n_reviewed

    def as_replayed() -> bool:
        here, marker = session.here, session.queue.selection.marker
        cells = pd.read_parquet(session.root / "slides" / here.slide_id / "cells.parquet")
        mine = [edit for edit in session.journal.edits if edit.slide_id == here.slide_id]
        left = replay(cells, mine, measured=here.results.measured).cells
        counts = here.objects.counts(marker)
        return (counts.corrected, counts.corrected_positive) == (len(left), int(left[f"{marker}_positive"].sum()))

    same = as_replayed()
    desk.press(Qt.Key.Key_U)
    undone = session.journal.edits[-1]
    same = same and as_replayed()
    desk.confirm_unblinding("the scripted review is done")
    desk.picture(pictures / "review_5_unblinded.png")
    told = {"edits": edits, "torn_lines": torn, "looked_at": looked_at, "as_replayed": same}
    print(json.dumps(told | {"undone_after_the_crash": undone.action == "undo" and undone.undoes in edits}))
    desk.close()


class Desk:
    """A viewer with a review, a keyboard and a camera."""

    def __init__(self, run: Path) -> None:
        import napari
        from napari_histoquant.launch import open_review
        from qtpy.QtWidgets import QApplication

        self.viewer = napari.Viewer(title="histoquant review")
        self.application = QApplication.instance()
        self.viewer.window.resize(1390, 980)
        self.widget = open_review(self.viewer, run, REVIEWER)
        self.widget.window().activateWindow()
        self.settle()

    def settle(self) -> None:
        """Let the window draw what is due."""
        for _ in range(10):
            self.application.processEvents()
            time.sleep(0.02)

    def press(self, key: object) -> None:
        """Press a key; tell the edit that is on the disk then."""
        from qtpy.QtTest import QTest

        before = len(self.widget.session.journal.edits)
        QTest.keyClick(self.widget.window().windowHandle(), key)
        self.application.processEvents()
        for edit in self.widget.session.journal.edits[before:]:
            print(READY, edit.id, flush=True)

    def picture(self, path: Path) -> None:
        """Save what the screen shows."""
        self.widget.show_on_canvas()
        self.settle()
        self.viewer.screenshot(str(path), canvas_only=False, flash=False)

    def confirm_unblinding(self, why: str) -> None:
        """Press the button, write the reason and confirm, as a person would; keep a picture of the dialog."""
        from napari_histoquant.review_panel import UnblindDialog
        from qtpy.QtCore import QTimer

        def confirm() -> None:
            dialog = next(
                w for w in self.application.topLevelWidgets() if isinstance(w, UnblindDialog) and w.isVisible()
            )
            dialog.reason.setText(why)
            dialog.confirm.click()

        QTimer.singleShot(300, confirm)
        self.widget.panel.unblind.click()
        self.settle()

    def close(self) -> None:
        """Put everything away."""
        self.widget.close_review()
        self.viewer.close()


if __name__ == "__main__":
    sys.exit(main())
