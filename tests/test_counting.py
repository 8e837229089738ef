"""Counts that add up, from cells to groups."""

import numpy as np
import pandas as pd
import pytest
from shapely import box

from histoquant.analysis.counting import Section, count_animals, count_groups, count_regions, sensitivity
from histoquant.analysis.positivity import Nuclear, Scene, Threshold
from histoquant.model.panel import Marker
from histoquant.model.region import Region, resolve
from histoquant.model.tables import MARKER_OBJECTS, empty

PANEL = {
    "dapi": Marker(channel="D", role="counterstain"),
    "a": Marker(channel="A", role="nuclear", positive={"threshold": 10.0}),
    "b": Marker(channel="B", role="nuclear", positive={"threshold": 10.0}),
}
IDENTITY = dict.fromkeys(("slide_id", "animal", "group", "section", "hemisphere", "batch", "control"), "")


def regions():
    drawn = [
        Region("hemisphere", box(0, 0, 1000, 1000)),
        Region("cortex", box(0, 0, 500, 500), parent="hemisphere"),
        Region("striatum", box(500, 500, 1000, 1000), parent="hemisphere"),
        Region("tear", box(0, 0, 100, 100), counted=False, masked=True),
    ]
    return resolve(drawn, {}, slide=(1000.0, 2000.0))


def cells_of(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"y_um": rng.uniform(0, 1000, n), "x_um": rng.uniform(0, 2000, n)})
    for marker in "ab":
        channel = marker.upper()
        table[f"mean_{channel}"] = rng.normal(8, 4, n)
        table[f"background_{channel}"] = 0.0
        table[f"{marker}_quantile"] = table[f"mean_{channel}"] + rng.normal(0, 1, n)
        table[f"{marker}_positive"] = (table[f"mean_{channel}"] >= 10) & (table[f"{marker}_quantile"] >= 10)
    table["region"] = regions().assign(table[["y_um", "x_um"]].to_numpy())
    return table


def section_of(**changes):
    thresholds = {"a": Threshold(10.0, "fixed"), "b": Threshold(10.0, "fixed")}
    parts = {"identity": IDENTITY, "regions": regions(), "panel": PANEL, "thresholds": thresholds}
    return Section(**(parts | {"doubles": [("a", "b")]} | changes))


def test_conservation():
    cells = cells_of()
    table = count_regions(cells, empty(MARKER_OBJECTS), section_of())
    for marker, rows in table.groupby("marker"):
        by = rows.set_index("region")
        top = by[by["parent"] == ""]
        assert top["n_cells"].sum() == len(cells)
        own_rest = (cells["region"] == "hemisphere").sum()
        children = by[by["parent"] == "hemisphere"]
        assert by.loc["hemisphere", "n_cells"] == children["n_cells"].sum() + own_rest
        # Masked ground is in no region's area, but on the slide.
        assert top["area_mm2"].sum() == pytest.approx(2.0)
        assert by.loc["hemisphere", "masked_area_mm2"] == pytest.approx(0.01)
        assert by.loc["cortex", "area_mm2"] == pytest.approx(0.24)
        assert marker in ("a", "b", "a+b")
    single = {marker: rows.set_index("region")["n_positive"] for marker, rows in table.groupby("marker")}
    assert (single["a+b"] <= np.minimum(single["a"], single["b"])).all()
    assert single["a+b"].sum() > 0


def test_rates_by_hand():
    cells = cells_of()
    table = count_regions(cells, empty(MARKER_OBJECTS), section_of()).set_index(["marker", "region"])
    inside = cells[cells["region"] == "striatum"]
    row = table.loc[("a", "striatum")]
    assert row["n_positive"] == inside["a_positive"].sum()
    assert row["fraction_positive"] == inside["a_positive"].mean()
    assert row["density_per_mm2"] == pytest.approx(inside["a_positive"].sum() / 0.25)


def test_no_fraction_without_a_sound_counterstain():
    table = count_regions(cells_of(), empty(MARKER_OBJECTS), section_of(fractions=False))
    assert table["fraction_positive"].isna().all()
    assert table["density_per_mm2"].notna().all()


def test_nothing_is_a_result():
    table = count_regions(cells_of().iloc[:0], empty(MARKER_OBJECTS), section_of())
    assert (table["n_cells"] == 0).all()
    assert (table["n_positive"] == 0).all()
    assert table["fraction_positive"].isna().all()
    assert (table["density_per_mm2"] == 0).all()
    assert set(table["region"]) == {"hemisphere", "cortex", "striatum", "masked", "outside"}


def test_orphans_and_area_are_summed_up_the_hierarchy():
    objects = pd.DataFrame({"marker": ["a", "a", "a"], "region": ["cortex", "striatum", "cortex"]})
    objects["orphan"] = [True, True, False]
    area = {"a": {"cortex": 100.0, "striatum": 50.0, "hemisphere": 7.0, "outside": 0.0, "masked": 3.0}}
    table = count_regions(cells_of(), objects, section_of(area_positive_um2=area)).set_index(["marker", "region"])
    assert table.loc[("a", "hemisphere"), "n_orphans"] == 2
    assert table.loc[("b", "hemisphere"), "n_orphans"] == 0
    assert table.loc[("a", "hemisphere"), "area_positive_mm2"] == pytest.approx(157e-6)
    assert np.isnan(table.loc[("b", "cortex"), "percent_area"])


def test_the_curve_is_monotone_and_repeats_the_table_at_one():
    cells, section = cells_of(), section_of()
    rules = {marker: Nuclear(marker, marker.upper(), Nuclear.Params()) for marker in "ab"}
    scene = Scene(section.thresholds, {})
    curve = sensitivity(cells, empty(MARKER_OBJECTS), section, rules=rules, scene=scene)
    assert sorted(curve["factor"].unique()) == [0.8, 0.9, 1.0, 1.1, 1.2]
    wide = curve.pivot_table(index=["region", "marker"], columns="factor", values="n_positive")
    assert (np.diff(wide.to_numpy(), axis=1) <= 0).all()
    assert (wide[0.8] > wide[1.2]).any()
    table = count_regions(cells, empty(MARKER_OBJECTS), section).set_index(["region", "marker"])["n_positive"]
    assert (wide[1.0] == table.reindex(wide.index)).all()


def sections_of(*rows):
    columns = ("slide_id", "animal", "group", "area_mm2", "n_cells", "n_positive", "fraction_positive")
    table = pd.DataFrame(rows, columns=columns).assign(region="r", marker="a", flags="", area_positive_mm2=np.nan)
    return table


def test_an_animal_is_a_ratio_of_sums_not_a_mean_of_ratios():
    animals = count_animals(
        sections_of(("s1", "m1", "v", 1.0, 100, 10, 0.1), ("s2", "m1", "v", 3.0, 300, 90, 0.3)), failed={"m1": 1}
    )
    row = animals.iloc[0]
    assert (row["n_sections"], row["n_cells"], row["n_positive"]) == (2, 400, 100)
    assert row["fraction_positive"] == 0.25
    assert row["density_per_mm2"] == 25.0
    assert "incomplete: 1 section" in row["flags"]


def test_sections_without_a_denominator_stay_out_of_the_fraction():
    animals = count_animals(sections_of(("s1", "m1", "v", 1.0, 100, 10, 0.1), ("s2", "m1", "v", 1.0, 100, 90, np.nan)))
    assert animals["fraction_positive"].iloc[0] == 0.1
    assert animals["n_positive"].iloc[0] == 100


def test_groups_are_means_over_animals_compared_with_the_reference():
    rows = [
        ("s1", "m1", "vehicle", 1.0, 100, 20, 0.2),
        ("s2", "m2", "vehicle", 1.0, 400, 160, 0.4),
        ("s3", "m3", "treated", 1.0, 100, 15, 0.15),
    ]
    groups = count_groups(count_animals(sections_of(*rows)), reference_group="vehicle").set_index("group")
    assert groups.loc["vehicle", "fraction_positive"] == pytest.approx(0.3)
    assert groups.loc["vehicle", "fraction_positive_sd"] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert groups.loc["treated", "percent_change_fraction"] == pytest.approx(-50.0)
    assert groups.loc["treated", "percent_change_density"] == pytest.approx(100 * (15 / 90 - 1))
    assert np.isnan(groups.loc["vehicle", "percent_change_fraction"])
    assert groups.loc["vehicle", "n_animals"] == 2


def test_an_animal_that_failed_altogether_has_rows_and_enters_no_mean():
    sections = sections_of(("s1", "m1", "v", 1.0, 100, 10, 0.1), ("s2", "m2", "t", 1.0, 100, 30, 0.3))
    groups = {"m1": "v", "m2": "t", "m3": "t", "m4": "sham"}
    animals = count_animals(sections, failed={"m3": 2, "m4": 1}, groups=groups).set_index("animal")
    assert list(animals.index) == ["m1", "m2", "m3", "m4"]
    assert list(animals.loc["m3", ["n_sections", "n_sections_failed", "n_cells"]]) == [0, 2, 0]
    assert animals.loc["m3", ["fraction_positive", "density_per_mm2"]].isna().all()
    table = count_groups(animals.reset_index(), reference_group="v").set_index("group")
    assert list(table.loc["t", ["n_animals", "n_sections", "fraction_positive"]]) == [1, 1, 0.3]
    assert table.loc["t", "flags"] == "m3 incomplete: 2 section(s) failed"
    assert table.loc["sham", "n_animals"] == 0
    assert np.isnan(table.loc["sham", "fraction_positive"])
    assert table.loc["v", "flags"] == ""
