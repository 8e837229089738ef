"""Statistics by animal: the vectors of the specification, and laws with a control beside each."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from histoquant.analysis.comparisons import (
    DRAWS,
    benjamini_hochberg,
    compare_means,
    compare_permuted,
    compare_ranks,
    dunnett,
    holm,
    welch,
)
from histoquant.analysis.effects import animals_needed, hedges_g, noncentral_t_cdf, percent_change
from histoquant.analysis.endpoints import animal_values
from histoquant.analysis.mixed import fit_mixed, require_statsmodels
from histoquant.analysis.outcomes import correlate, parse_outcomes
from histoquant.analysis.statistics import analyse
from histoquant.errors import Faults, InputError, MissingExtraError
from histoquant.model.design import Endpoint, Statistics

VEHICLE = np.array([212, 251, 198, 240, 226, 235, 219, 208.0])
LOW = np.array([150, 171, 122, 160, 139, 148, 166, 131.0])
HIGH = np.array([118, 101, 133, 96, 125, 110, 104, 121.0])


def animals(groups, *, marker="tunel", region="rim", measure="density_per_mm2"):
    """Return a table of values as `animal_values` does, from arrays by group."""
    rows = [
        (f"{group}{i}", group, value) for group, values in groups.items() for i, value in enumerate(values, start=1)
    ]
    table = pd.DataFrame(rows, columns=["animal", "group", "value"])
    return table.assign(marker=marker, region=region, measure=measure, n_sections=4, flags="")


THREE = {"vehicle": VEHICLE, "low": LOW, "high": HIGH}


# Effects ---


def test_percent_change():
    # The specification gives one decimal.
    assert percent_change(LOW, VEHICLE) == pytest.approx((-33.7, -40.3, -26.2), abs=0.051)
    assert percent_change(HIGH, VEHICLE) == pytest.approx((-49.2, -54.3, -43.6), abs=0.051)


def test_percent_change_knows_what_it_cannot_say():
    assert percent_change(np.zeros(3), VEHICLE)[0] == -100
    assert math.isnan(percent_change(np.zeros(3), VEHICLE).low)
    assert math.isnan(percent_change(LOW, np.zeros(3)).value)
    one = percent_change(LOW[:1], VEHICLE)
    assert one.value < 0
    assert math.isnan(one.high)
    assert not one.excludes(0)


def test_hedges_g():
    found = hedges_g(LOW, VEHICLE)
    assert found.value == pytest.approx(-4.0806, abs=5e-5)
    assert found.value / (1 - 3 / (4 * 14 - 1)) == pytest.approx(-4.316, abs=5e-4)
    # The ends are where the observed t is at the 2.5 % tails: checked where scipy's own function holds.
    t, scale = stats.ttest_ind(LOW, VEHICLE).statistic, math.sqrt(2 / 8) * (1 - 3 / 55)
    assert stats.nct.sf(-t, 14, -found.low / scale) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(-t, 14, -found.high / scale) == pytest.approx(0.975, abs=1e-6)
    mirrored = hedges_g(VEHICLE, LOW)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_noncentral_t_holds_where_scipy_does_and_beyond():
    for t, df, shift in ((-1.0, 3, 0.5), (8.0, 14, 7.0), (0.0, 5, 2.0), (2.1, 200, 2.8)):
        assert noncentral_t_cdf(t, df, shift) == pytest.approx(stats.nct.cdf(t, df, shift), abs=1e-10)
    assert noncentral_t_cdf(-8.6, 14, 35.9) == pytest.approx(0, abs=1e-12)  # scipy: NaN


@pytest.mark.parametrize(
    ("reduction", "sizes"),
    [
        (25, [(12, 14), (24, 29), (42, 50), (64, 78)]),
        (30, [(9, 10), (17, 21), (29, 36), (45, 55)]),
        (50, [(4, 5), (7, 9), (12, 14), (17, 21)]),
    ],
)
def test_sample_sizes(reduction, sizes):
    found = [tuple(animals_needed(reduction / cv, alpha=alpha) for alpha in (0.05, 0.025)) for cv in (20, 30, 40, 50)]
    assert found == sizes


def test_no_group_shows_no_effect():
    with pytest.raises(InputError, match="effect of 0 SD"):
        animals_needed(0.0)


# Tests ---


def test_dunnett():
    found = dunnett({"low": LOW, "high": HIGH}, VEHICLE)
    assert [found[name].statistic for name in found] == pytest.approx([-9.377, -13.723], abs=5e-4)
    assert found["low"].df == 21
    # One decimal given; the critical value comes from an integral with an error of about 0.1 %.
    assert found["low"].interval[1:] == pytest.approx((-94.3, -56.2), abs=0.08)
    assert found["high"].interval[1:] == pytest.approx((-129.2, -91.1), abs=0.08)
    assert dunnett({"low": LOW, "high": HIGH}, VEHICLE) == found  # the seed is fixed


def test_dunnett_adjusts_for_the_number_of_groups():
    rng = np.random.default_rng(2)
    a, b, base = rng.normal([[1.2], [0.3], [0.0]], 1, (3, 8))
    found = dunnett({"a": a, "b": b}, base)["a"]
    assert found.p_alone < found.p < 2 * found.p_alone  # between one test and Bonferroni


def test_welch_and_mann_whitney():
    found = welch(LOW, VEHICLE)
    assert (found.statistic, found.df) == pytest.approx((-8.632, 13.98), abs=5e-3)
    assert found.p == pytest.approx(5.65e-7, rel=1e-3)
    assert compare_ranks({"low": LOW}, VEHICLE)["low"].p == pytest.approx(0.000155, abs=5e-7)


def test_which_test_compares_means():
    assert compare_means({"low": LOW}, VEHICLE)["low"].test == "Welch t"
    assert {one.test for one in compare_means({"low": LOW, "high": HIGH}, VEHICLE).values()} == {"Dunnett"}
    wide = compare_means({"low": LOW, "high": VEHICLE.mean() + 3 * (VEHICLE - VEHICLE.mean())}, VEHICLE)
    assert {one.test for one in wide.values()} == {"Welch t"}
    assert all("SDs differ more than 2-fold" in one.flags[0] for one in wide.values())


@pytest.mark.parametrize(("n", "p"), [(3, 0.1), (4, 0.0286), (5, 0.0079)])
def test_smallest_p_of_ranks(n, p):
    apart = compare_ranks({"a": np.arange(n, dtype=float)}, np.arange(n) + 100.0)["a"]
    assert apart.p == pytest.approx(apart.smallest_p)
    assert apart.p == pytest.approx(p, abs=5e-5)
    permuted = compare_permuted({"a": dict(enumerate(range(n)))}, {100 + i: 100.0 + i for i in range(n)})["a"]
    assert permuted.p == pytest.approx(apart.p)


def test_ranks_with_ties_are_exact():
    """Against every assignment of 4 + 3 animals, made by hand."""
    from itertools import combinations

    a, b = np.array([1.0, 2, 2, 5]), np.array([2.0, 6, 7])
    ranks = stats.rankdata(np.concatenate([a, b]))
    centre = 4 * 8 / 2
    sums = [abs(sum(ranks[list(chosen)]) - centre) for chosen in combinations(range(7), 4)]
    expected = np.mean(np.array(sums) >= abs(ranks[:4].sum() - centre) - 1e-9)
    found = compare_ranks({"a": a}, b)["a"]
    assert found.p == pytest.approx(expected, rel=0.2)  # the two tails, doubled or added, differ by one assignment
    assert found.p != pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue, abs=1e-3)


def named(values, letter):
    return {f"{letter}{i}": float(value) for i, value in enumerate(values)}


def test_permutations_agree_with_scipy():
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 2, 6)
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: stats.ttest_ind(x, y, equal_var=False, axis=axis).statistic, n_resamples=np.inf
    ).pvalue
    two_sided = compare_permuted({"a": named(a, "a")}, named(b, "b"))["a"].p
    # scipy doubles the smaller tail, here both tails are added: the same up to their asymmetry.
    assert two_sided == pytest.approx(expected, rel=0.25)
    again = compare_permuted({"a": named(a, "a")}, named(b, "b"))["a"]
    assert "exact" in again.test
    assert again.p == two_sided


def test_permutations_within_blocks_leave_blocks_alone():
    """All animals of one sex are far from all of the other: between sexes nothing may be exchanged."""
    a, b = [10, 11, 12, 0.1, 1.1, 2.1], [13, 14, 15, 3, 4, 5.2]
    sex = {f"{letter}{i}": "mf"[i > 2] for letter in "ab" for i in range(6)}
    free = compare_permuted({"a": named(a, "a")}, named(b, "b"))["a"]
    blocked = compare_permuted({"a": named(a, "a")}, named(b, "b"), blocks=sex)["a"]
    assert blocked.p == pytest.approx(2 / 20**2)  # the one most extreme assignment in either direction
    assert free.p > 0.2
    assert "within blocks" in blocked.test


def test_many_permutations_are_drawn():
    rng = np.random.default_rng(5)
    found = compare_permuted({"a": named(rng.normal(5, 1, 12), "a")}, named(rng.normal(0, 1, 12), "b"))["a"]
    assert found.p == found.smallest_p == 1 / (DRAWS + 1)
    assert f"{DRAWS} draws" in found.test


@pytest.mark.parametrize("compare", [compare_means, compare_ranks])
def test_one_animal_is_no_group(compare):
    found = compare({"a": LOW[:1], "b": LOW}, VEHICLE)
    assert found["a"].flags == ("no test: n = 1 against 8 animals",)
    assert math.isnan(found["a"].p)
    assert found["b"].p < 1e-3


def test_values_without_spread():
    flat = np.full(4, 3.0)
    one_sided = compare_means({"a": np.array([1.0, 2, 3])}, flat)["a"]
    assert one_sided.p == pytest.approx(stats.ttest_1samp([1.0, 2, 3], 3.0).pvalue)
    for found in (
        compare_means({"a": flat}, flat)["a"],
        compare_means({"a": flat, "b": flat}, flat)["b"],
        compare_permuted({"a": named(flat, "a")}, named(flat, "b"))["a"],
    ):
        assert math.isnan(found.p)
        assert "do not vary" in found.flags[0]


def test_families():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p).tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.7]).max() == 1


# Pseudo-replication and the mixed model ---


def nested(rng, *, n=6, m=10, icc=0.3, groups=("a", "b"), effect=0.0, centre=5.0):
    rows = []
    for index, group in enumerate(groups):
        for animal in range(n):
            mean = centre + index * effect + rng.normal(0, math.sqrt(icc))
            rows += [(f"{group}{animal}", group, value) for value in rng.normal(mean, math.sqrt(1 - icc), m)]
    return pd.DataFrame(rows, columns=["animal", "group", "value"])


def test_cells_as_animals_are_significant_without_any_effect():
    """600 null studies of 6 animals with 10 values each: the level holds for animals, not for values."""
    rng, wrong, right = np.random.default_rng(6), 0, 0
    for _ in range(600):
        means = rng.normal(0, math.sqrt(0.3), (2, 6, 1))
        values = rng.normal(means, math.sqrt(0.7), (2, 6, 10))
        wrong += stats.ttest_ind(values[0].ravel(), values[1].ravel()).pvalue < 0.05
        right += welch(values[0].mean(axis=1), values[1].mean(axis=1)).p < 0.05
    assert right / 600 == pytest.approx(0.05, abs=0.027)  # three Monte-Carlo SE of 0.9 points
    assert wrong / 600 == pytest.approx(0.368, abs=0.06)


def mixed_model():
    return pytest.importorskip("statsmodels", reason="the extra 'stats' is not installed")


def test_mixed_model_of_a_balanced_study_is_the_t_of_the_animals():
    mixed_model()
    rng = np.random.default_rng(7)
    for effect in (0.0, 1.0):
        rows = nested(rng, icc=0.4, effect=effect)
        means = rows.groupby(["group", "animal"])["value"].mean()
        expected = stats.ttest_ind(means["b"], means["a"])
        fit = fit_mixed(rows, "a")
        assert fit.failed == ""
        assert fit.df == 10
        assert fit.t["b"] == pytest.approx(expected.statistic, rel=1e-3, abs=1e-3)
        assert fit.p["b"] == pytest.approx(expected.pvalue, rel=3e-3)


def test_mixed_model_has_the_df_of_the_animals():
    mixed_model()
    rows = nested(np.random.default_rng(8), groups=("a", "b", "c"), icc=0.5)
    fit = fit_mixed(rows, "b")
    assert fit.df == 18 - 3
    assert fit.p["c"] == pytest.approx(2 * stats.t.sf(abs(fit.t["c"]), 15))
    assert fit.p["c"] != pytest.approx(2 * stats.norm.sf(abs(fit.t["c"])), rel=1e-3)  # what statsmodels would say


def test_a_collapsed_fit_is_a_failure(monkeypatch):
    """With lbfgs alone the variance between animals goes to 0 and t with it, and statsmodels calls it converged."""
    mixed_model()
    from statsmodels.regression.mixed_linear_model import MixedLM

    fit, seen = MixedLM.fit, []

    def lbfgs_alone(self, *args, method, **more):
        result = fit(self, *args, method="lbfgs", **more)
        seen.append(bool(result.converged))
        return result

    monkeypatch.setattr(MixedLM, "fit", lbfgs_alone)
    rng = np.random.default_rng(9)
    told = [fit_mixed(nested(rng, icc=0.4, effect=1.0, centre=0.0), "a").failed for _ in range(8)]
    monkeypatch.undo()
    rng = np.random.default_rng(9)
    ours = [fit_mixed(nested(rng, icc=0.4, effect=1.0, centre=0.0), "a").failed for _ in range(8)]
    assert ours == [""] * 8
    assert any(told)


def test_a_fit_that_disagrees_with_the_animals_is_a_failure(monkeypatch):
    monkeypatch.setattr("histoquant.analysis.mixed._fitted", lambda sections, others: ({"b": 0.0}, ""))
    mixed_model()
    rows = nested(np.random.default_rng(10), effect=3.0)
    assert "not to be trusted: t of b is 0" in fit_mixed(rows, "a").failed
    assert "not to be trusted" in fit_mixed(rows.iloc[1:], "a").failed  # unbalanced


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows.drop_duplicates("animal"), "one section only"),
        (lambda rows: rows.assign(value=1.0), "do not vary"),
        (lambda rows: rows.iloc[:0], "no values by section"),
    ],
)
def test_mixed_model_says_why_there_is_none(change, why):
    mixed_model()
    rows = change(nested(np.random.default_rng(11)))
    assert why in fit_mixed(rows, "a").failed


def test_missing_statsmodels_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"histoquant\[stats\]"):
        require_statsmodels()


# The table ---


def statistics(groups, reference="vehicle", *, values=None, **settings):
    return analyse(animals(groups) if values is None else values, Statistics(**settings), reference)


RIM = Endpoint(marker="tunel", region="rim")
CORE = Endpoint(marker="tunel", region="core")


def test_effects_stand_before_the_test():
    table = statistics(THREE, primary=RIM).statistics
    assert list(table)[5:13] == [
        "mean_a", "mean_b", "percent_change", "ci_low", "ci_high", "hedges_g", "test", "statistic"
    ]  # fmt: skip
    assert list(table["comparison"]) == ["low vs vehicle", "high vs vehicle"]
    row = table.iloc[1]
    assert (row["mean_a"], row["mean_b"], row["n_a"], row["n_b"]) == (113.5, 223.625, 8, 8)
    assert row["percent_change"] == pytest.approx(-49.2, abs=0.06)
    assert (row["test"], row["df"], row["adjustment"]) == ("Dunnett", 21, "Dunnett, 2 primary comparisons")


def test_null_and_effect_are_told_alike():
    rng = np.random.default_rng(12)
    null = statistics({"vehicle": VEHICLE, "low": VEHICLE + rng.normal(0, 10, 8)}).statistics.iloc[0]
    effect = statistics({"vehicle": VEHICLE, "low": LOW}).statistics.iloc[0]
    assert null["p"] > 0.05 > effect["p"]
    filled = [name for name in null.index if null[name] not in ("", None) and null[name] == null[name]]
    assert filled == [name for name in effect.index if effect[name] not in ("", None) and effect[name] == effect[name]]


def test_families_are_adjusted_apart():
    rng = np.random.default_rng(13)
    shifted = {group: np.abs(values + rng.normal(0, 40, 8)) for group, values in THREE.items()}
    values = pd.concat([animals(THREE), animals(shifted, region="core"), animals(shifted, region="far")])
    table = statistics({}, values=values, primary=RIM, secondary=[CORE]).statistics
    families = table["adjustment"].str.split(",").str[0]
    assert list(families) == ["Dunnett"] * 2 + ["Holm"] * 2 + ["Benjamini-Hochberg"] * 2
    assert table["region"].drop_duplicates().tolist() == ["rim", "core", "far"]
    assert (table["p_adjusted"] >= table["p"]).all()
    assert table["adjustment"].iloc[2] == "Holm, 2 key secondary comparisons"
    # Declared as one family, the same two endpoints are four comparisons.
    both = statistics({}, values=values, secondary=[RIM, CORE]).statistics
    assert both["adjustment"].iloc[0] == "Holm, 4 key secondary comparisons"


def test_welch_in_place_of_dunnett_is_adjusted_by_holm():
    spread = VEHICLE.mean() + 4 * (VEHICLE - VEHICLE.mean())
    found = statistics({"vehicle": VEHICLE, "low": LOW, "wild": spread}, primary=RIM).statistics
    assert list(found["test"]) == ["Welch t", "Welch t"]
    assert found["adjustment"].iloc[0] == "Holm, 2 primary comparisons"
    assert found["p_adjusted"].tolist() == pytest.approx(holm(found["p"]).tolist())


def test_three_animals_can_never_be_significant_by_ranks():
    few = {"vehicle": VEHICLE[:3], "low": LOW[:3]}
    found = statistics(few, test="ranks")
    assert "can never be significant: with so few animals p is at least 0.1" in found.statistics["flags"][0]
    assert found.estimates["smallest_p"][0] == pytest.approx(0.1)
    assert statistics({"vehicle": VEHICLE[:4], "low": LOW[:4]}, test="ranks").statistics["flags"][0] == ""


def test_rows_that_are_not_animals_are_refused():
    table = pd.DataFrame({"animal": ["m1", "m1", "m2"], "group": ["a", "a", "b"], "n_positive": 1})
    table = table.assign(marker="tunel", region="rim", n_sections=1, flags="")
    table = table.assign(density_per_mm2=[1.0, 2, 3], fraction_positive=0.1, percent_area=math.nan)
    with pytest.raises(InputError, match="'m1' has 2 rows of tunel in rim: rows must be animals"):
        animal_values(table)
    with pytest.raises(InputError, match="'m1' is in 2 groups"):
        animal_values(table.assign(group=["a", "b", "b"], region=["rim", "core", "rim"]))
    assert len(animal_values(table.iloc[1:])) == 4  # two animals, density and fraction


def test_animals_without_sections_are_left_out_with_the_reason():
    values = animals(THREE)
    values.loc[0, ["n_sections", "value", "flags"]] = [0, math.nan, "incomplete: 3 section(s) failed"]
    values.loc[9, "value"] = math.nan
    found = statistics({}, values=values)
    assert found.statistics["n_b"].tolist() == [7, 7]
    assert found.statistics["n_a"].tolist() == [7, 8]
    assert "animals without a value: vehicle1, low2" in found.statistics["flags"][0]
    assert found.exclusions["name"].tolist() == ["vehicle1", "low2"]
    assert "no section could be analysed (incomplete: 3 section(s) failed)" in found.exclusions["reason"][0]


@pytest.mark.parametrize("test", ["means", "ranks", "permutation"])
@pytest.mark.parametrize(
    ("groups", "flag"),
    [
        ({"vehicle": VEHICLE}, "one group only"),
        ({"vehicle": VEHICLE[:1], "low": LOW[:1]}, "no test: n = 1 against 1"),
        ({"low": LOW, "high": HIGH}, "no test: n = 8 against 0"),
        ({"vehicle": VEHICLE, "low": LOW[:0]}, "one group only"),
    ],
)
def test_studies_too_small_for_a_test_have_rows_that_say_so(groups, flag, test):
    table = statistics(groups, test=test).statistics
    assert len(table) >= 1
    assert table["flags"].str.contains(flag).all()
    assert table["p"].isna().all()


def test_declared_endpoint_that_is_not_there_has_a_row():
    table = statistics(THREE, primary=Endpoint(marker="tunel", region="ibz")).statistics
    assert table["flags"].str.contains("not in the tables of this run").tolist() == [True, True, False, False]


def at_factors(*changes):
    """Return values at multiples of the threshold at which `low` is changed by so many per cent."""
    base = np.array([90.0, 95, 100, 105, 110])
    pairs = zip((0.8, 0.9, 1.0, 1.1, 1.2), changes, strict=True)
    return {factor: animals({"vehicle": base, "low": base * (1 + change / 100)}) for factor, change in pairs}


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ((-30, -30, -30, -30, -30), ""),
        ((-30, -30, -30, -30, -1), "threshold-dependent: the interval includes 0 at x 1.2"),
        ((2, -1, -1, -1, -1), "threshold-dependent: the sign changes at x 0.8"),
        ((40, 1, 1, 1, 1), "threshold-dependent: the interval excludes 0 at x 0.8"),
    ],
)
def test_results_that_hang_on_the_threshold_are_flagged(changes, flag):
    curve = at_factors(*changes)
    assert analyse(curve[1.0], Statistics(), "vehicle", curve=curve).statistics["flags"][0] == flag


def test_next_study_shares_the_level_between_the_groups():
    table = statistics(THREE).next_study
    cv = VEHICLE.std(ddof=1) / VEHICLE.mean()
    assert table["cv_percent"][0] == pytest.approx(100 * cv)
    assert table["alpha"][0] == 0.025
    assert table["animals_per_group"].tolist() == [animals_needed(p / cv, alpha=0.025) for p in (0.25, 0.3, 0.5)]


def test_mixed_model_in_the_table():
    mixed_model()
    sections = nested(np.random.default_rng(14), effect=1.0).assign(marker="t", region="r", measure="density_per_mm2")
    means = sections.groupby(["group", "animal"], as_index=False)["value"].mean()
    values = means.assign(marker="t", region="r", measure="density_per_mm2", n_sections=10, flags="")
    row = analyse(values, Statistics(test="mixed"), "a", sections=sections).statistics.iloc[0]
    assert (row["test"], row["df"]) == ("mixed model, t", 10)
    single = sections.drop_duplicates("animal")
    row = analyse(values, Statistics(test="mixed"), "a", sections=single).statistics.iloc[0]
    assert row["test"] == "Welch t"
    assert "no mixed model (every animal has one section only): tested by animal" in row["flags"]


# Outcomes ---


def test_outcomes_are_read_by_animal():
    text = "animal;sex;mNSS;tnf_pg_ml\nm1;f;3;10.5\nm2;m;;7\n007;m;5;\n"
    table = parse_outcomes(text)
    assert list(table) == ["mNSS", "tnf_pg_ml"]
    assert list(table.index) == ["m1", "m2", "007"]
    assert math.isnan(table.loc["m2", "mNSS"])


def test_all_faults_of_outcomes_are_named():
    with pytest.raises(Faults) as caught:
        parse_outcomes("animal,score\nm1,3\nm1,4\n,5\nm3,high\nm4,2,9\n", source="o.csv")
    told = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in (
        "line 3: animal 'm1' is in line 2",
        "line 4: no animal",
        "line 5: score is 'high'",
        "line 6: more cells",
    ):
        assert part in told
    for text, what in (("", "empty"), ("name,score\na,1\n", "no column 'animal'"), ("animal,sex\na,f\n", "numbers")):
        with pytest.raises(InputError, match=what):
            parse_outcomes(text)


def outcomes_of(values, other):
    return pd.DataFrame({"score": other}, index=list(values["animal"]))


def test_correlation_is_that_of_scipy():
    rng = np.random.default_rng(15)
    values = animals({"vehicle": rng.normal(5, 1, 10)})
    other = values["value"].to_numpy() + rng.normal(0, 1, 10)
    table = correlate(values, outcomes_of(values, other)).set_index(["method", "scope"])
    pearson = stats.pearsonr(values["value"], other)
    row = table.loc["pearson", "all animals"]
    assert (row["r"], row["p"]) == pytest.approx((pearson.statistic, pearson.pvalue))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(pearson.confidence_interval()))
    spearman = stats.spearmanr(values["value"], other)
    assert table.loc["spearman", "all animals"]["r"] == pytest.approx(spearman.statistic)
    assert table.loc["spearman", "all animals"]["p"] == pytest.approx(spearman.pvalue)


def test_groups_that_differ_in_both_do_not_correlate_within():
    rng = np.random.default_rng(16)
    values = animals({"vehicle": rng.normal(10, 1, 12), "low": rng.normal(5, 1, 12)})
    other = np.concatenate([rng.normal(8, 1, 12), rng.normal(3, 1, 12)])
    table = correlate(values, outcomes_of(values, other)).set_index(["method", "scope"])
    assert table.loc["pearson", "all animals"]["p"] < 1e-4
    assert table.loc["pearson", "within groups"]["p"] > 0.05


def test_outcomes_of_other_animals_are_refused():
    values = animals(THREE)
    with pytest.raises(InputError, match="is in the study"):
        correlate(values, pd.DataFrame({"score": [1.0]}, index=["somebody"]))
    few = correlate(values, pd.DataFrame({"score": [1.0, 2, 3]}, index=["low1", "low2", "high1"]))
    assert few["flags"].eq("too few animals").all()
    assert few["p"].isna().all()
