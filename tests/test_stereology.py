"""Totals from samples: the vectors of the specification, laws of the counting frame, and simulations."""

import math

import numpy as np
import pandas as pd
import pytest

from histoquant.analysis.stereology import (
    Disector,
    abercrombie_factor,
    coefficient_of_error,
    fractionate,
    in_frame,
    scale_up,
    total_counts,
)
from histoquant.errors import InputError
from histoquant.fractionator import fractionate_files
from histoquant.model.design import Stereology

COUNTS = [6, 14, 23, 31, 36, 34, 27, 18, 9, 2]


def test_half_a_brain_every_eighth_section_is_sixteen_times():
    assert scale_up(100, section_fraction=1 / 8, hemisphere_fraction=1 / 2) == 1600
    assert scale_up(100, section_fraction=1 / 6) == 600
    with pytest.raises(InputError, match="section fraction is 6"):
        scale_up(100, section_fraction=6)


@pytest.mark.parametrize(
    ("section", "height", "factor"),
    [
        (5, 8, 0.385),
        (6, 8, 0.429),
        (8, 8, 0.5),
        (10, 8, 0.556),
        (20, 8, 0.714),
        (30, 8, 0.789),
        (40, 8, 0.833),
        (40, 5, 0.889),
    ],
)
def test_abercrombie(section, height, factor):
    assert abercrombie_factor(section_um=section, object_um=height) == pytest.approx(factor, abs=5e-4)  # three digits


def test_abercrombie_with_lost_caps():
    assert abercrombie_factor(section_um=10, object_um=8, lost_cap_um=1) == 0.625
    with pytest.raises(InputError, match="lose 4 um on each side"):
        abercrombie_factor(section_um=10, object_um=8, lost_cap_um=4)


def test_abercrombie_undoes_double_counting_of_spheres():
    rng = np.random.default_rng(1)
    n, section, diameter = 40_000, 10.0, 8.0
    centres = rng.uniform(0, 100 * section, n)
    first, last = np.floor((centres - diameter / 2) / section), np.floor((centres + diameter / 2) / section)
    profiles = float((last - first + 1).sum()) / n
    # A sphere reaches into the next section with probability 0.8: SE = sqrt(0.8 * 0.2 / n) = 0.002.
    assert profiles == pytest.approx(1.8, abs=0.008)
    assert profiles * abercrombie_factor(section_um=section, object_um=diameter) == pytest.approx(1, abs=0.005)


def test_coefficient_of_error_clamps_the_variance_between_sections():
    rough, smooth = (coefficient_of_error(COUNTS, m=m) for m in (0, 1))
    assert (rough.total, rough.between, smooth.between) == (200, -43.25, -2.1625)
    assert rough.ce == smooth.ce == pytest.approx(0.0707, abs=5e-5)
    unclamped = [math.sqrt(one.noise + one.between) / one.total for one in (rough, smooth)]
    assert unclamped == pytest.approx([0.0626, 0.0703], abs=5e-5)


def test_coefficient_of_error_needs_three_sections_and_a_count():
    assert math.isnan(coefficient_of_error([5, 7]).ce)
    assert math.isnan(coefficient_of_error([0, 0, 0]).ce)
    assert coefficient_of_error([5, 7, 5]).ce > 0


def test_smooth_structures_are_of_class_one():
    """Area 1 - z^2 of 10 sections, every start of the sampling alike likely, nothing random in the counts."""
    step = 0.2
    starts = (np.arange(500) + 0.5) / 500 * step
    areas = np.array([1 - np.clip(-1 + start + step * np.arange(10), -1, 1) ** 2 for start in starts])
    sums = areas.sum(axis=1)
    true = sums.std() / sums.mean()
    # Counts so high that their own noise, which cannot be switched off, does not show.
    predicted = {
        m: np.mean(
            [math.sqrt(max(0, coefficient_of_error(1e9 * row, m=m).between)) / (1e9 * row.sum()) for row in areas]
        )
        for m in (0, 1)
    }
    assert (true, predicted[1], predicted[0]) == pytest.approx((0.0044, 0.0031, 0.0140), abs=1.5e-4)


def test_fractionator_by_simulation():
    """20,000 cells, parabolic along 60 sections; 10 of them, 3.75 % of their volume: unbiased, as precise as told."""
    rng = np.random.default_rng(7)
    n, p, repeats = 20_000, 1 / 16 * 0.6, 400
    grid = np.linspace(-1, 1, 20_001)
    cumulative = np.cumsum(1 - grid**2) / (1 - grid**2).sum()
    estimates, told = [], {0: [], 1: []}
    for _ in range(repeats):
        place = np.interp(rng.random(n), cumulative, grid)
        section = np.minimum(((place + 1) * 30).astype(int), 59)
        counts = rng.binomial(np.bincount(section, minlength=60)[rng.integers(6) :: 6], p)
        estimates.append(scale_up(counts.sum(), section_fraction=1 / 6) / p)
        for m in told:
            found = coefficient_of_error(counts, m=m)
            told[m].append((math.sqrt(max(0.0, found.noise + found.between)) / found.total, found.ce))
    empirical = np.std(estimates) / np.mean(estimates)
    assert np.mean(estimates) == pytest.approx(n, abs=4 * 0.09 * n / math.sqrt(repeats))  # four standard errors
    # SE of a standard deviation of 400 is 3.5 % of it; the specification has 0.0879 from 10 times as many.
    assert empirical == pytest.approx(0.0879, rel=0.11)
    # The specification's figures let negative variances stand; at 0 they raise the mean of m = 0.
    unclamped, clamped = zip(*(np.mean(told[m], axis=0) for m in (0, 1)), strict=True)
    assert unclamped == pytest.approx([0.0905, 0.0898], abs=5e-4)
    assert clamped == pytest.approx([0.0927, 0.0899], abs=5e-4)


def test_points_on_the_lines_of_a_frame():
    frame = {"corner_um": (10.0, 20.0), "frame_um": (5.0, 8.0)}  # y 10..15, x 20..28
    cases = {
        (12, 24): True,
        (12, 20): True,  # left
        (15, 24): True,  # bottom
        (15, 20): True,
        (10, 24): False,  # top
        (12, 28): False,  # right
        (10, 20): False,
        (15, 28): False,
        (15.01, 24): False,
    }
    y, x = np.array(list(cases)).T
    assert in_frame(y, x, **frame).tolist() == list(cases.values())


def test_extensions_of_the_exclusion_lines_exclude():
    frame = {"corner_um": (0.0, 0.0), "frame_um": (10.0, 10.0)}
    # A disc over the top left corner crosses the extension upwards; one over the bottom right corner the other.
    assert not in_frame([0.5], [-0.5], radius_um=1.0, **frame)[0]
    assert not in_frame([10.5], [10.5], radius_um=1.0, **frame)[0]
    assert in_frame([10.5], [0.5], radius_um=1.0, **frame)[0]  # bottom left: inclusion lines only


@pytest.mark.parametrize("radius", [0.0, 3.0, 12.0])
def test_frames_side_by_side_count_every_object_once(radius):
    rng = np.random.default_rng(3)
    y, x = rng.uniform(30, 70, (2, 400))
    y[:50], x[:50] = np.round(y[:50], -1), np.round(x[:50], -1)  # on corners
    times = sum(
        in_frame(y, x, corner_um=(float(row), float(column)), frame_um=(10.0, 10.0), radius_um=radius).astype(int)
        for row in range(0, 100, 10)
        for column in range(0, 100, 10)
    )
    assert (times == 1).all()


def a_fraction(n_sites=4, thickness=25.0, **changes):
    sites = pd.DataFrame({"section": np.repeat(range(10), n_sites), "y_um": 0.0, "surface_um": 0.0})
    sites["x_um"] = np.tile(np.arange(n_sites) * 200.0, 10)
    sites["thickness_um"] = thickness
    points = pd.DataFrame({"section": np.repeat(range(10), COUNTS), "z_um": 10.0, "y_um": 20.0, "x_um": 25.0})
    disector = Disector(
        **({"frame_um": (50.0, 50.0), "step_um": (200.0, 200.0), "height_um": 15.0, "guard_top_um": 3.0} | changes)
    )
    return points, sites, disector


def test_fractionator_vector():
    points, sites, disector = a_fraction()
    found = fractionate(points, sites, disector, section_fraction=1 / 6)
    assert (found.n_counted, found.asf, found.tsf) == (200, 1 / 16, pytest.approx(0.6))
    assert found.total == pytest.approx(32_000)
    assert found.ce_m0 == found.ce_m1 == pytest.approx(0.0707, abs=5e-5)


def test_depth_is_counted_by_the_top_between_the_guard_zones():
    points, sites, disector = a_fraction()
    at = {3.0: 0, 3.01: 1, 18.0: 1, 18.01: 0}
    for depth, n in at.items():
        one = points.iloc[:1].assign(z_um=depth)
        assert fractionate(one, sites, disector, section_fraction=1.0).n_counted == n


def test_thickness_is_weighted_by_what_was_counted():
    points, sites, disector = a_fraction()
    sites.loc[sites["x_um"] > 0, "thickness_um"] = 40.0  # nothing is counted there
    weighted = fractionate(points, sites, disector, section_fraction=1 / 6)
    plain = fractionate(points, sites, disector, section_fraction=1 / 6, weighted=False)
    assert (weighted.thickness_um, plain.thickness_um) == (25.0, 36.25)
    assert weighted.total == pytest.approx(32_000)


def test_a_site_too_thin_for_its_guard_zones_is_refused():
    points, sites, disector = a_fraction(guard_bottom_um=3.0)
    assert fractionate(points, sites, disector, section_fraction=1 / 6).n_counted == 200
    sites.loc[7, "thickness_um"] = 20.9
    with pytest.raises(InputError, match=r"1 of 40 sites.*section '1', has 20.9 um"):
        fractionate(points, sites, disector, section_fraction=1 / 6)
    sites.loc[7, "thickness_um"] = math.nan
    with pytest.raises(InputError, match="nan"):
        fractionate(points, sites, disector, section_fraction=1 / 6)


def test_frames_that_overlap_are_refused():
    with pytest.raises(InputError, match="overlap"):
        Disector(frame_um=(50, 50), step_um=(40, 60), height_um=10)


def write_fraction(folder, **changes):
    """Write the fraction of the specification as tables, for two animals; sections are listed from 9 to 0."""
    points, sites, disector = a_fraction(**changes)
    both = [frame.iloc[::-1].drop(columns="surface_um", errors="ignore") for frame in (points, sites)]
    for name, frame in zip(("points", "sites"), both, strict=True):
        twice = pd.concat([frame.assign(animal=animal) for animal in ("m1", "m2")])
        twice[["animal", *frame]].to_csv(folder / f"{name}.csv", index=False)
    return folder / "points.csv", folder / "sites.csv", disector


def test_fractionator_on_tables(tmp_path):
    points, sites, disector = write_fraction(tmp_path)
    table = fractionate_files(points, sites, disector, section_interval=6, hemispheres=1)
    assert list(table["animal"]) == ["m1", "m2"]
    assert table["total"].tolist() == pytest.approx([64_000, 64_000])
    assert table["ce_m1"].tolist() == pytest.approx([0.0707] * 2, abs=5e-5)


def test_command_of_the_fractionator(tmp_path, histoquant):
    write_fraction(tmp_path)
    arguments = f"{tmp_path}/points.csv --sites {tmp_path}/sites.csv --frame-um 50 50 --step-um 200 200 --height-um 15"
    done = histoquant("fractionator", *f"{arguments} --guard-um 3 0 --section-interval 6 --hemispheres 2".split())
    assert done.returncode == 0, done.stderr
    assert "3.2e+04" in done.stdout


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sites", lambda t: t.replace("25.0\n", "17.9\n", 1), r"Animal 'm1': 1 of 40 sites are thinner.*18 um"),
        ("sites", lambda t: t.replace("thickness_um", "thick"), r"sites.csv lacks the column\(s\) thickness_um"),
        ("points", lambda t: t.replace("10.0", "deep", 1), r"points.csv line 2: z_um is 'deep'"),
        ("sites", lambda t: t.replace("m2", "m3"), r"points.csv has animal 'm2', sites.csv has not"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, name, change, message):
    points, sites, disector = write_fraction(tmp_path)
    path = tmp_path / f"{name}.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        fractionate_files(points, sites, disector, section_interval=6, hemispheres=2)


def sections(counts=COUNTS, **columns):
    rows = pd.DataFrame({"n_positive": counts, "section": [str(i) for i in range(len(counts))]})
    rows["slide_id"] = [f"s{i}" for i in range(len(counts))]
    return rows.assign(animal="m1", group="g", region="dg", marker="brdu", area_mm2=0.5, hemisphere="").assign(
        **columns
    )


def test_totals_of_an_animal():
    plain = total_counts(sections(), Stereology(section_interval=8, hemispheres=1)).iloc[0]
    assert (plain["n_profiles"], plain["total_profiles"], plain["profiles_per_mm2"]) == (200, 3200, 40)
    assert math.isnan(plain["total_cells"])
    assert plain["coefficient_of_error"] == pytest.approx(0.0707, abs=5e-5)
    settings = Stereology(
        section_interval=6, hemispheres=2, section_thickness_um=40, object_height_um={"brdu": 8.0, "dcx": 12.0}
    )
    corrected = total_counts(sections(), settings).iloc[0]
    assert corrected["total_profiles"] == 1200
    assert corrected["total_cells"] == pytest.approx(1000)  # 40 um sections give 20 % too many


def test_order_of_sections_decides_their_precision():
    settings = Stereology(section_interval=6, hemispheres=2, smoothness=0)
    sorted_, shuffled = sections(), sections().sample(frac=1, random_state=0)
    told = [total_counts(rows, settings)["coefficient_of_error"][0] for rows in (sorted_, shuffled)]
    assert told[0] == told[1]
    unnamed = total_counts(shuffled.assign(section=""), settings).iloc[0]
    assert unnamed["coefficient_of_error"] > told[0]
    assert "order of the sample sheet" in unnamed["flags"]


def test_two_sections_have_no_coefficient_of_error():
    row = total_counts(sections([5, 6]), Stereology(section_interval=6, hemispheres=2)).iloc[0]
    assert row["total_profiles"] == 66
    assert math.isnan(row["coefficient_of_error"])
    assert "not defined for 2 section(s)" in row["flags"]


@pytest.mark.parametrize(("hemispheres", "sides"), [(1, ["left", "right"]), (2, ["left"])])
def test_no_total_when_sheet_and_recipe_disagree_on_the_hemispheres(hemispheres, sides):
    rows = pd.concat([sections(hemisphere=side) for side in sides])
    row = total_counts(rows, Stereology(section_interval=6, hemispheres=hemispheres)).iloc[0]
    assert math.isnan(row["total_profiles"])
    assert "no total" in row["flags"]
    agreed = total_counts(rows, Stereology(section_interval=6, hemispheres=3 - hemispheres)).iloc[0]
    assert agreed["total_profiles"] == 1200 * len(sides) * (2 if len(sides) == 1 else 1)
