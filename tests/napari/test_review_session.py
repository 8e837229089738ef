"""A whole review in a process of its own, with real key events, killed with SIGKILL while a key is pressed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from histoquant.journal import read_journal
from tests.napari.reviewed import run_in

SCRIPT = Path(__file__).parents[2] / "workflows" / "review_session.py"


def test_a_killed_review_loses_nothing(tmp_path, tmp_path_factory):
    root = Path(shutil.copytree(run_in(tmp_path_factory.getbasetemp()), tmp_path / "results"))
    pictures = tmp_path / "pictures"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(root), "--pictures", str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed_with_signal"] == 9
    assert told["acknowledged"] >= 35
    assert told["lost"] == 0
    assert told["in_the_journal"] in (told["acknowledged"], told["acknowledged"] + 1)  # the last may not have been told
    assert told["as_replayed"]
    assert told["undone_after_the_crash"]
    written = read_journal(root / "review" / "journal.jsonl")
    assert [edit.action for edit in written.edits[:5]] == ["accept", "call", "accept", "delete", "accept"]
    assert [edit.action for edit in written.edits[-2:]] == ["undo", "unblind"]
    shown = sorted(path.name for path in pictures.iterdir())
    assert [name[:8] for name in shown] == [f"review_{n}" for n in range(1, 6)]
    for name in shown:
        with Image.open(pictures / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 500, (
                name
            )  # a canvas that was drawn, not a blank one
