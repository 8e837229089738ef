"""Infarct volumes by animal, from the table of slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoquant.analysis.infarct import FORMULAS, SliceAreas, volumes
from histoquant.analysis.slice_outlines import NEGATIVE
from histoquant.model.infarct import InfarctSettings
from histoquant.model.tables import INFARCT, empty, shaped

if TYPE_CHECKING:
    import pandas as pd


def animal_table(
    slices: pd.DataFrame, settings: InfarctSettings, lost: set[str], group_of: dict[str, str]
) -> pd.DataFrame:
    """Return one row per animal; animals in ``lost`` miss a picture, and are flagged and left without numbers."""
    import pandas as pd

    rows = []
    for animal, group in group_of.items():
        own = slices[slices["animal"] == animal]
        areas = [SliceAreas(*each) for each in own[["infarct_mm2", "ipsilateral_mm2", "contralateral_mm2"]].to_numpy()]
        whole = volumes(areas, settings.slice_thickness_um / 1000)
        flags = [flag for text in own["flags"] for flag in text.split("; ") if flag and flag != NEGATIVE]
        flags = sorted(set(flags)) + [f"{NEGATIVE} in {whole.n_negative} slice(s)"] * bool(whole.n_negative)
        numbers: dict[str, float] = {f"{name}_mm3": getattr(whole, f"{name}_mm3") for name in FORMULAS}
        numbers |= {f"{side}_mm3": getattr(whole, f"{side}_mm3") for side in ("ipsilateral", "contralateral")}
        numbers |= {f"{name}_percent_hemisphere": whole.percent_hemisphere(name) for name in FORMULAS}
        numbers |= {f"{name}_percent_brain": whole.percent_brain(name) for name in FORMULAS}
        numbers["swelling_percent"] = whole.swelling_percent
        if animal in lost or not len(own):
            flags.insert(0, "incomplete: a picture failed")
            numbers = dict.fromkeys(numbers, np.nan)
        rows.append(
            {
                "animal": animal,
                "group": group,
                "n_slices": whole.n_slices,
                "n_negative": whole.n_negative,
                "slice_thickness_um": settings.slice_thickness_um,
                "primary": settings.primary,
                "flags": "; ".join(flags),
                **numbers,
            }
        )
    return shaped(pd.DataFrame(rows), INFARCT) if rows else empty(INFARCT)
