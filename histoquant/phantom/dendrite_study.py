"""Write a phantom study of dendrites: stacks, truth, sample sheet and recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoquant.analysis.dendrites import Branch
from histoquant.analysis.spine_rules import density_per_10um
from histoquant.analysis.spine_shape import FWHM
from histoquant.phantom.dendrite_plan import RECIPES, DendritePlan
from histoquant.phantom.dendrites import SIGMA_UM, Dendrite, draw_stack, photograph
from histoquant.phantom.study import begin_study, refused, shipped_recipe
from histoquant.readers.swc import swc_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANIMAL_SD = 0.1
"""Of an animal's density, relative to its group's."""


def make_dendrites(out: Path, plan: DendritePlan, *, progress: Callable[[float], None] | None = None) -> Path:
    """Make a synthetic study of dendrites of known truth that can be run as it is.

    Writes ``slides/*.ome.tif``, ``study.csv``, ``recipe.toml`` with the width of the optics and, per stack,
    ``truth/<stack>/dendrites.csv``, ``spines.csv`` and ``traces/dendrite_<n>.swc`` with the columns that the analysis
    writes, and more: ``kind`` is the class by rule set A from true sizes, ``z_shadow`` tells heads over and under the
    shaft.

    Returns
    -------
    Path
        Of ``study.csv``.

    Raises
    ------
    InputError
        If the folder holds a study already.
    StoreError
        If the folder cannot be written.
    """
    out = Path(out)
    recipe = shipped_recipe(RECIPES[plan.assay]).read_text("utf-8")
    point_um = FWHM * plan.blur * SIGMA_UM[plan.assay][2]
    sheet = begin_study(out, re.sub(r"(?m)^resolution_um = .*", f"resolution_um = {point_um:.3f}", recipe))
    told = progress or (lambda share: None)
    rows: list[dict[str, Any]] = []
    try:
        total = 2 * plan.animals * plan.sections
        for number in range(total):
            group, animal = divmod(number // plan.sections, plan.animals)
            section = number % plan.sections + 1
            rng = np.random.default_rng((plan.seed, number))
            own = np.random.default_rng((plan.seed, 1_000_000 + number // plan.sections))
            factor = (1 + plan.effect * group) * float(np.exp(own.normal(0, ANIMAL_SD)))
            drawn, shape = draw_stack(plan, factor, rng)
            name = f"M{group * plan.animals + animal + 1}_s{section}"
            write_stack(out / "slides" / f"{name}.ome.tif", photograph(drawn, shape, plan, rng), plan)
            row = {"slide": f"slides/{name}.ome.tif", "animal": name.split("_")[0], "group": plan.groups[group]}
            _write_truth(out / "truth" / name, {"slide_id": name, **row}, drawn)
            rows.append({**row, "section": section})
            told((number + 1) / total)
        pd.DataFrame(rows).to_csv(sheet, index=False, lineterminator="\n")
    except OSError as error:
        raise refused(out, error) from error
    return sheet


def write_stack(path: Path, pixels: NDArray[Any], plan: DendritePlan) -> None:
    """Write a stack as OME-TIFF: (z, y, x) grey or (z, y, x, 3) RGB."""
    import tifffile

    size = {"X": plan.pixel_size_um, "Y": plan.pixel_size_um, "Z": plan.z_step_um}
    about: dict[str, Any] = {"axes": "ZYX" if pixels.ndim == 3 else "ZYXS"}
    for axis, value in size.items():
        about |= {f"PhysicalSize{axis}": value, f"PhysicalSize{axis}Unit": "µm"}
    if pixels.ndim == 3:
        about["Channel"] = {"Name": ["dendrite"]}
    tifffile.imwrite(
        path,
        pixels,
        ome=True,
        metadata=about,
        compression="zlib",
        photometric="rgb" if pixels.ndim == 4 else "minisblack",
    )


def _write_truth(folder: Path, whose: dict[str, str], drawn: list[Dendrite]) -> None:
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    dendrites: list[dict[str, Any]] = []
    spines: list[dict[str, Any]] = []
    about = {"slide_id": whose["slide_id"], "animal": whose["animal"], "group": whose["group"], "region": ""}
    for number, one in enumerate(drawn, start=1):
        n = len(one.position_um)
        dendrites.append({
            **about, "dendrite_id": number, "order": 1, "length_um": one.total_um,
            "mean_diameter_um": 2 * one.radius_um, "n_spines": n,
            "spines_per_10um": density_per_10um(n, one.total_um), "flags": "", "n_z_shadow": int(one.shadow.sum()),
        })  # fmt: skip
        kinds = one.classes("A")
        for k in range(n):
            spines.append({
                "slide_id": whose["slide_id"], "dendrite_id": number, "spine_id": len(spines) + 1,
                "position_um": one.position_um[k], **_place("", one.head[k]), "length_um": one.length_um[k],
                "head_width_um": one.head_um[k], "head_area_um2": np.pi / 4 * one.head_um[k] ** 2, "class": kinds[k],
                "score": 1.0, "neck_width_um": one.neck_um[k], **_place("tip_", one.tip[k]),
                **_place("base_", one.base[k]), "z_shadow": bool(one.shadow[k]),
            })  # fmt: skip
        text = swc_text([Branch(one.path[::4])], [one.radius_um])
        (folder / "traces" / f"dendrite_{number}.swc").write_text(text, "utf-8")
    pd.DataFrame(dendrites).to_csv(folder / "dendrites.csv", index=False, lineterminator="\n")
    columns = None if spines else ["slide_id", "dendrite_id", "spine_id"]
    pd.DataFrame(spines, columns=columns).round(4).to_csv(folder / "spines.csv", index=False, lineterminator="\n")


def _place(prefix: str, point: NDArray[np.float64]) -> dict[str, float]:
    return {f"{prefix}{axis}_um": float(value) for axis, value in zip("zyx", point, strict=True)}
