"""Cells with a marker in the nucleus, by the ratio of control cells."""

import numpy as np
import pandas as pd
import pytest

from histoquant.analysis.translocation import translocated
from histoquant.errors import RecipeError, StudyError
from histoquant.inputs import load
from histoquant.model.recipe import parse_recipe

RECIPE = """
schema = 1
[panel.dapi]
role = "counterstain"
[panel.p65]
channel = "P65"
role = "nuclear"
translocation = { control = ["sham"] }
"""


def cells(slide, ratios, *, animal="a", group="vehicle", batch="1", control="", region="core"):
    """Cells of one slide whose ring is 10 above a background of 5."""
    ratios = np.asarray(ratios, dtype=float)
    return pd.DataFrame(
        {"slide_id": slide, "animal": animal, "group": group, "batch": batch, "control": control, "region": region}
        | {"mean_P65": 5 + 10 * ratios, "ring_mean_P65": 15.0, "background_P65": 5.0}
    )


def counted(*parts):
    return translocated(pd.concat(parts, ignore_index=True), parse_recipe(RECIPE).panel)


def test_threshold_is_the_quantile_of_control_cells():
    control = cells("c", np.linspace(0, 1, 101), control="sham")
    table = counted(control, cells("s1", [0.5, 0.95, 0.96, 2.0]), cells("s2", [3.0], region="rim"))
    assert table.loc[0, ["r0", "n_cells", "n_above", "fraction_above"]].tolist() == ["0.95", 4, 2, 0.5]  # not equal
    assert table.loc[0, "median_ratio"] == pytest.approx(0.955)
    assert table.loc[1, ["region", "n_above"]].tolist() == ["rim", 1]
    assert len(table) == 2  # controls are no animals of the study


def test_about_a_twentieth_of_cells_like_the_controls_is_above():
    rng = np.random.default_rng(0)
    control, same = (rng.lognormal(0, 0.3, 4000) for _ in range(2))
    table = counted(cells("c", control, control="sham"), cells("s", same), cells("t", 2 * same, animal="b"))
    assert table["fraction_above"][0] == pytest.approx(0.05, abs=0.012)
    assert table["fraction_above"][1] > 0.6


def test_every_batch_has_its_own():
    table = counted(
        cells("c1", [1.0] * 20, control="sham"), cells("c2", [4.0] * 20, control="sham", batch="2"),
        cells("s1", [2.0]), cells("s2", [2.0], batch="2"),
    )  # fmt: skip
    assert table.loc[0, ["r0", "n_sections", "n_cells", "n_above"]].tolist() == ["1 4", 2, 2, 1]


def test_too_few_controls_or_none_with_a_ratio():
    dark = cells("c", [1.0] * 30, control="sham")
    dark["ring_mean_P65"] = 5.0  # nothing round the nuclei: no ratio
    table = counted(cells("c0", [1.0] * 19, control="sham"), dark, cells("s", [2.0]))
    assert table.loc[0, ["n_cells", "n_above", "r0"]].tolist() == [0, 0, ""]
    assert np.isnan(table["fraction_above"][0])
    assert table["flags"][0] == "fewer than 20 control cells in batch 1"


def test_nothing_asked_or_nothing_there():
    plain = parse_recipe(RECIPE.replace('translocation = { control = ["sham"] }', "")).panel
    assert translocated(cells("s", [1.0]), plain).empty
    assert counted(cells("s", [])).empty


def test_recipe_and_sheet_must_name_controls(tmp_path):
    with pytest.raises(RecipeError, match="control"):
        parse_recipe(RECIPE.replace('{ control = ["sham"] }', "{ quantile = 0.9 }"))
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "study.csv").write_text("slide,animal,group,control,batch\na.tif,a,v,,1\nb.tif,b,v,sham,2\n")
    with pytest.raises(StudyError, match=r"batch '?1'? has no control section \(sham\) for the translocation of 'p65'"):
        load(tmp_path / "study.csv", tmp_path / "r.toml")
