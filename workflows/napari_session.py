"""A day with the plug-in at mouse and keyboard, killed in the middle: nothing that was done may be lost.

    xvfb-run -a -s "-screen 0 1400x1000x24" python workflows/napari_session.py PICTURES [--readme DIR]

The first process opens the sample study in napari, draws a region, previews, moves the threshold, saves the recipe,
runs the batch with it, reviews 20 cells with keys, undoes and redoes, and goes on drawing regions in one window and
deciding on cells in another until it is killed with SIGKILL. The second one opens everything again, looks whether
regions, their history, the recipe and every decision that was acknowledged are there, undoes what was done before the
kill, goes on, and unblinds. Each step leaves a picture in PICTURES. A summary is printed as JSON; exit code 1 when
anything was lost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

N_REVIEWED = 20
N_MORE = 12
"""Decisions after the twenty, with a region drawn after every third, before the process is killed."""

README_PICTURES = {"03_drawn": "draw", "05_threshold_moved": "tune", "06_review_opened": "review"}

EDIT, REGION, RECIPE = "edit", "region", "recipe"
"""What the first process acknowledges, a line each, once it is on the disk."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--readme", type=Path, help="folder to copy the README's pictures to")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sitting", choices=("first", "second"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    pictures = given.pictures.resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    if given.sitting is not None:
        from napari_sittings import first_sitting, second_sitting

        if given.sitting == "first":
            first_sitting(given.work, pictures, N_REVIEWED)
        else:
            print(json.dumps(second_sitting(given.work, pictures)))
        return 0
    with tempfile.TemporaryDirectory() as work:
        faults = both(Path(work), pictures)
    for fault in faults:
        print(fault, file=sys.stderr)
    if given.readme is not None and not faults:
        for name, told in README_PICTURES.items():
            shutil.copyfile(pictures / f"{name}.png", given.readme / f"{told}.png")
    return 1 if faults else 0


def both(work: Path, pictures: Path) -> list[str]:
    """Run the first sitting until it is killed, then the second; return what is wrong, a sentence each."""
    command = [sys.executable, __file__, str(pictures), "--work", str(work), "--sitting"]
    begun = time.monotonic()
    told: dict[str, list[str]] = {EDIT: [], REGION: [], RECIPE: []}
    with subprocess.Popen([*command, "first"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        for line in first.stdout:  # after the kill as well: what was told before it counts
            what, _, name = line.partition(" ")
            if what in told and line.endswith("\n"):
                told[what].append(name.strip())
            if len(told[EDIT]) >= N_REVIEWED + N_MORE and first.poll() is None:
                first.kill()
    killed = time.monotonic()
    if first.returncode != -signal.SIGKILL:
        return [f"The first sitting ended by itself, with exit code {first.returncode}."]
    second = subprocess.run([*command, "second"], stdout=subprocess.PIPE, text=True, check=False)
    if second.returncode:
        return [f"The second sitting ended with exit code {second.returncode}."]
    found = json.loads(second.stdout.splitlines()[-1])
    summary = {
        "killed_with_signal": -first.returncode,
        "acknowledged": {what: len(names) for what, names in told.items()},
        "found": {what: len(found[what]) for what in told},
        "seconds": {"first": round(killed - begun, 1), "second": round(time.monotonic() - killed, 1)},
        **{name: found[name] for name in ("looked_at", "torn_lines", "undoable_regions")},
    }
    print(json.dumps(summary))
    return [*lost(told, found), *found["faults"]]


def lost(told: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what was acknowledged and is not there, a sentence for each kind; what was not acknowledged may be."""
    faults = []
    for what, names in told.items():
        missing = [name for name in names if name not in found[what]]
        if missing or not names:
            faults.append(f"{what}: of {len(names)} acknowledged, {len(missing)} lost ({', '.join(missing)}).")
    return faults


if __name__ == "__main__":
    sys.exit(main())
