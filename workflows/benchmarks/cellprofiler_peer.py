"""How fast CellProfiler's *IdentifyPrimaryObjects* finds the nuclei of an image, with its defaults.

    python3.11 -m venv .venv_peer && .venv_peer/bin/pip install cellprofiler-library-nightly imagecodecs 'numpy<2'
    .venv_peer/bin/python workflows/benchmarks/cellprofiler_peer.py IMAGE.ome.tif

It needs an older numpy than histoquant, so an environment of its own and nothing of the package. The image is one that
`segmenters.py` leaves in its folder. Reading, background, measuring and writing are not in the figure.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import tifffile
from cellprofiler_library.modules import identifyprimaryobjects


def main() -> None:
    image = np.squeeze(tifffile.imread(sys.argv[1], level=0)).astype(np.float32)
    image = (image - image.min()) / np.ptp(image)
    identifyprimaryobjects(image[:512, :512])
    wall, cpu = time.perf_counter(), time.process_time()
    labels = identifyprimaryobjects(image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    mpx = image.size / 1e6
    print(f"| IdentifyPrimaryObjects alone | {mpx:.2f} | {wall:.1f} | {mpx / wall:.3g} | {cpu / mpx:.2f} | | |")
    print(f"{labels.max()} objects")


if __name__ == "__main__":
    main()
