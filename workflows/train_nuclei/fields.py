"""Gather what the network learns from: real images with outlines drawn by people, and phantom sections.

    python workflows/train_nuclei/fields.py ../shared/data/nuclei_dsb2018 --out fields.npz [--phantoms 120]

Every field is an image as a segmenter sees it (background 0, bright nuclei about 1, by the background estimate that
runs use), its labels and its nuclear diameter in pixels. Only split ``train`` is read. The file needs no histoquant to
be learnt from, so it can be carried to a machine that has a GPU and little else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from stored import Field, coded, save

from histoquant.analysis.blobs import median_diameter
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box
from histoquant.phantom.assays import Subject, make_section
from histoquant.phantom.optics import paint, paint_labels
from histoquant.phantom.plan import PhantomPlan
from histoquant.survey import alone

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bowl import STATED_UM, read

FIRST_SEED = 900_000
"""Phantoms for training have seeds from here on; benchmarks and tests stay far below."""

FINEST_PX = 30.0
"""Nuclei larger than this are stored smaller: the network never sees them as large."""

PHANTOM_PX = 512
"""Side of the piece that is kept of a phantom section."""


def field_of(name: str, kind: str, raw: NDArray[Any], labels: NDArray[Any], pixel_size_um: float = STATED_UM) -> Field:
    """Return an image and its labels as a field."""
    image = alone(raw.astype(np.float32), pixel_size_um, BackgroundSettings())
    diameter = median_diameter([np.unique(labels, return_inverse=True)[1].reshape(labels.shape)])
    assert diameter is not None  # fields without objects are left out before
    labels = labels.astype(np.uint16)
    group = kind if kind == "phantom" else f"{kind} {labels.shape[0]} x {labels.shape[1]}"
    if diameter > FINEST_PX:
        size = [round(n * FINEST_PX / diameter) for n in labels.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        diameter = FINEST_PX
    return Field(name, coded(image), labels, diameter, kind, group)


def real_fields(folder: Path) -> list[Field]:
    """Read the images to learn from that show any nucleus."""
    return [
        field_of(drawn.name, drawn.kind, drawn.grey, drawn.labels)
        for drawn in read(folder, "train")
        if drawn.labels.any()
    ]


def phantom_plans(n: int, rng: np.random.Generator) -> list[tuple[PhantomPlan, int]]:
    """Return plans of small sections: plain ones at section densities, and strips with touching clusters.

    Each comes with the channel to segment.
    """
    plans = []
    for index in range(n):
        assay = ("nuclei", "nuclei", "nuclei", "brdu", "dcx", "tunel")[index % 6]
        diameter = float(rng.uniform(6, 9))
        density = float(np.exp(rng.uniform(np.log(1200), np.log(8500 if assay == "nuclei" else 4500))))
        # As many as fit into the densest band at nine tenths of its limit.
        core = np.sqrt(0.8e6 / (2 * density * np.pi)) / diameter
        plans.append(
            (
                PhantomPlan(
                    assay,
                    size_mm=(0.3, 0.3) if assay == "nuclei" else (0.6, 0.6),
                    pixel_size_um=float(rng.choice([0.325, 0.5, 0.65])),
                    animals=1,
                    seed=FIRST_SEED + index,
                    density_per_mm2=density,
                    diameter_um=diameter,
                    min_distance=float(min(core, rng.uniform(0.3, 0.8))),
                    photons=float(np.exp(rng.uniform(np.log(60), np.log(2000)))),
                    bits=int(rng.choice([8, 12, 16])),
                ),
                0,
            )
        )
    return plans


def phantom_fields(n: int, seed: int) -> list[Field]:
    """Make phantom sections and normalise them as a run would."""
    fields = []
    for plan, channel in phantom_plans(n, np.random.default_rng(seed)):
        _, section = make_section(plan, Subject(plan.seed % 7, plan.facts.groups[0]))
        whole = Box(0, plan.shape_px[0], 0, plan.shape_px[1])
        labels = paint_labels(section, whole)
        if not labels.any():
            continue
        raw = paint(section, whole)[channel]
        field = field_of(f"phantom_{plan.assay}_{plan.seed}", "phantom", raw, labels, plan.pixel_size_um)
        fields.append(_piece_of(field, np.random.default_rng(plan.seed)))
    return fields


def _piece_of(field: Field, rng: np.random.Generator) -> Field:
    """Return a piece of a section, about one of its nuclei."""
    y, x = rng.choice(np.argwhere(field.labels))
    corner = [
        int(np.clip(at - PHANTOM_PX // 2, 0, max(0, n - PHANTOM_PX)))
        for at, n in zip((y, x), field.labels.shape, strict=True)
    ]
    piece = tuple(slice(start, start + PHANTOM_PX) for start in corner)
    return Field(field.name, field.image[piece], field.labels[piece], field.diameter_px, field.kind, field.group)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fields.npz"))
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    gathered = real_fields(given.folder) + phantom_fields(given.phantoms, given.seed)
    save(given.out, gathered)
    print(
        f"{len(gathered)} fields, {sum(len(np.unique(field.labels)) - 1 for field in gathered)} nuclei -> {given.out}"
    )
