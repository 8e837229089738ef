"""The last step of a slide, unless it was done before with the same cells, thresholds, outlines and words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from histoquant import __version__, store
from histoquant.analysis.positivity import Threshold
from histoquant.job import unchanged
from histoquant.steps import Joined, SlideReport, finish_slide
from histoquant.store import content_key

ALWAYS = (
    "cells.parquet",
    "regions.csv",
    "sensitivity.csv",
    "regions.geojson",
    "labels.ome.tif",
    "overview.png",
    "provenance.json",
)
SOMETIMES = ("marker_objects.csv", "error.log")
"""Files of a slide's folder. Those that are not always there would tell of an earlier recipe or an earlier failure."""


def finish_once(item: Joined, thresholds: Mapping[str, Threshold], flags: Sequence[str]) -> SlideReport:
    """Finish a slide, or return what it gave before when every file in its folder is still as it was written."""
    job, row = item.job, item.job.slide
    blocks, target = job.folder.blocks, job.folder.slide(row.slide_id)
    key = content_key(
        kind="finished",
        histoquant=__version__,
        measured=item.measured_key,
        recipe=job.recipe.fingerprint(),
        slide=asdict(row),
        regions=store.sha256_of(row.regions) if row.regions else None,
        thresholds={name: asdict(threshold) for name, threshold in thresholds.items()},
        flags=list(flags),
    )
    if key in blocks:
        with unchanged(job):
            arrays, tables = blocks.read(key)
        told = json.loads(arrays["told"].tobytes())
        if _sums(target) == told["files"]:
            return SlideReport(tables["regions"], tables["sensitivity"], tuple(told["notes"]))
    for name in SOMETIMES:
        (target / name).unlink(missing_ok=True)
    report = finish_slide(item, thresholds, flags)
    told = {"files": _sums(target), "notes": report.notes}
    arrays = {"told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)}
    blocks.write(key, arrays, {"regions": report.regions, "sensitivity": report.sensitivity})
    return report


def _sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a finished slide, empty for those that are not there."""
    paths = [folder / name for name in (*ALWAYS, *SOMETIMES)]
    return {path.name: store.sha256_of(path) if path.exists() else "" for path in paths}
