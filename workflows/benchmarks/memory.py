"""Peak memory of a run, for a slide and for one of twice the side.

    python workflows/benchmarks/memory.py [--side 20000] [--workers 2] [--folder FOLDER] [--pyramid]

Prints resident memory of all processes together, so that shared libraries count once per process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from big_slides import big_slide, study_of
from throughput import run_command
from watched import watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "histoquant_benchmarks")
    parser.add_argument("--pyramid", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    first = 0.0
    print(
        "| side px | peak MB, all processes | largest process MB | ratio to the first | wall s |\n|---|---|---|---|---|"
    )
    for side in (given.side, 2 * given.side):
        path = big_slide(given.folder, side, pyramid=given.pyramid)
        out = given.folder / "out_memory"
        shutil.rmtree(out, ignore_errors=True)
        usage = watched(run_command(*study_of(given.folder, path), out, given.workers))
        first = first or usage.rss_mb
        row = (
            side,
            f"{usage.rss_mb:.0f}",
            f"{usage.largest_mb:.0f}",
            f"{usage.rss_mb / first:.2f}",
            f"{usage.wall_s:.0f}",
        )
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
