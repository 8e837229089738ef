"""Gather what the network learns from: real images with outlines drawn by people, and phantom sections.

    python workflows/train_nuclei/fields.py ../shared/data/nuclei_dsb2018 --out fields.npz [--phantoms 120]

Every field is an image as a segmenter sees it (background 0, bright nuclei about 1, by the background estimate that
runs use), its labels and its nuclear diameter in pixels. Only split ``train`` is read.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass
class Field:
    """One image to learn from.

    Attributes
    ----------
    image : (y, x) float16
    labels : (y, x) uint16
        0 = background.
    diameter_px : float
    kind : str
        fluorescence, grey_bright, colour or phantom.
    """

    name: str
    image: NDArray[np.float16]
    labels: NDArray[np.uint16]
    diameter_px: float
    kind: str


def field_of(name: str, kind: str, raw: NDArray[Any], labels: NDArray[Any], pixel_size_um: float = STATED_UM) -> Field:
    """Return an image and its labels as a field."""
    image = np.clip(alone(raw.astype(np.float32), pixel_size_um, BackgroundSettings()), -2, 30)
    diameter = median_diameter([np.unique(labels, return_inverse=True)[1].reshape(labels.shape)])
    assert diameter is not None  # fields without objects are left out before
    return Field(name, image.astype(np.float16), labels.astype(np.uint16), diameter, kind)


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
        fields.append(field_of(f"phantom_{plan.assay}_{plan.seed}", "phantom", raw, labels, plan.pixel_size_um))
    return fields


def save(path: Path, fields: list[Field]) -> None:
    """Write fields to one compressed file."""
    arrays = {}
    for index, field in enumerate(fields):
        arrays[f"{index:05d}_image"], arrays[f"{index:05d}_labels"] = field.image, field.labels
    arrays["names"] = np.array([field.name for field in fields])
    arrays["kinds"] = np.array([field.kind for field in fields])
    arrays["diameters"] = np.array([field.diameter_px for field in fields])
    np.savez_compressed(path, **arrays)


def load(path: Path) -> list[Field]:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return [
            Field(str(name), file[f"{index:05d}_image"], file[f"{index:05d}_labels"], float(diameter), str(kind))
            for index, (name, kind, diameter) in enumerate(
                zip(file["names"], file["kinds"], file["diameters"], strict=True)
            )
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fields.npz"))
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    gathered = real_fields(given.folder) + phantom_fields(given.phantoms, given.seed)
    save(given.out, gathered)
    print(f"{len(gathered)} fields, {sum(int(field.labels.max()) for field in gathered)} nuclei -> {given.out}")
