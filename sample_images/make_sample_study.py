"""Make the study in this folder again: 2 groups x 3 animals x 1 section and 2 sections stained without TdT.

    python sample_images/make_sample_study.py [OUT]

In treated animals half as many nuclei of the 500 um round the lesion are TUNEL+; what the slides truly hold is in
truth/effects.csv. Images of the true labels are left out for their size; `histoquant phantom` makes them.
"""

import shutil
import sys
from pathlib import Path

from histoquant.phantom import SAMPLE_PLAN, make_phantom

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for folder in ("slides", "truth"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "study.csv").unlink(missing_ok=True)
    print(make_phantom(out, SAMPLE_PLAN))
    for labels in (out / "truth").glob("*_labels.ome.tif"):
        labels.unlink()
