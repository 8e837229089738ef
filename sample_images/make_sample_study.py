"""Make the study in this folder again: 2 groups x 3 animals x 1 section and 2 sections stained without TdT.

    python sample_images/make_sample_study.py [OUT]

True effect: treated animals have half the TUNEL+ nuclei in the 500 um round the lesion; see truth/effects.csv.
Slides are small (8 bit, coarse pixels, long exposure, so that little of their size is noise).
"""

import shutil
import sys
from pathlib import Path

from histoquant.phantom import PhantomPlan, make_phantom

PLAN = PhantomPlan(
    "tunel",
    size_mm=(1.55, 1.55),
    pixel_size_um=1.0,
    seed=20240,
    density_per_mm2=1300.0,
    diameter_um=8.0,
    bits=8,
    photons=20_000.0,
    headroom=6.0,
)

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for folder in ("slides", "truth"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "study.csv").unlink(missing_ok=True)
    sheet = make_phantom(out, PLAN)
    for labels in (out / "truth").glob("*_labels.ome.tif"):
        labels.unlink()
    print(sheet)
