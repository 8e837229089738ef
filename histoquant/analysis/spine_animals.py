"""Densities of spines by animal, from the tables of dendrites and of spines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.model.tables import SPINE_ANIMALS, empty, shaped

if TYPE_CHECKING:
    import pandas as pd


def animal_table(
    dendrites: pd.DataFrame, spines: pd.DataFrame, *, stacks: Sequence[tuple[str, str, str]], lost: set[str]
) -> pd.DataFrame:
    """Return one row per animal.

    Parameters
    ----------
    dendrites, spines : DataFrame
        As `tables.DENDRITES` and `tables.SPINES` list them, of all stacks.
    stacks : sequence of (slide_id, animal, group)
        Of the study, controls left out.
    lost : set of animal
        That miss a stack; they are flagged and left without numbers.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for animal, group in dict.fromkeys((animal, group) for _, animal, group in stacks):
        own = [slide for slide, of, _ in stacks if of == animal]
        stretches = dendrites[dendrites["slide_id"].isin(own) & dendrites["included"]]
        found = spines[spines["slide_id"].isin(own) & spines["included"]]
        length, n = float(stretches["included_length_um"].sum()), int(stretches["n_included"].sum())
        flags = sorted({flag for text in stretches["flags"] for flag in text.split(";") if flag})
        numbers: dict[str, float] = {
            "dendrite_length_um": length,
            "spines_per_10um": 10 * n / length if length > 0 else math.nan,
            "spine_length_um": float(found["length_um"].mean()) if len(found) else math.nan,
            "head_width_um": float(found["head_width_um"].mean()) if len(found) else math.nan,
        }
        if animal in lost:
            flags.insert(0, "incomplete: a stack failed")
            numbers = dict.fromkeys(numbers, np.nan)
        elif not length > 0:
            flags.insert(0, "no dendrite was included")
        counts = {"n_stacks": len(own), "n_dendrites": len(stretches), "n_spines": n}
        rows.append({"animal": animal, "group": group, **counts, **numbers, "flags": "; ".join(flags)})
    return shaped(pd.DataFrame(rows), SPINE_ANIMALS) if rows else empty(SPINE_ANIMALS)
