"""`histoquant stats` on finished run folders: tables, page, faults."""

import json

import numpy as np
import pandas as pd
import pytest

from histoquant.batch import write_report
from histoquant.errors import Faults, InputError, MissingExtraError
from histoquant.inference import lines, write_statistics
from histoquant.inputs import load
from histoquant.model.recipe import parse_recipe
from histoquant.model.tables import STATISTICS
from tests.test_report import CALLED, COUNTED, HOSTILE, Page, region_row, small_study, write_run

DECLARED = """
[statistics]
primary = { marker = "tunel", region = "rim" }
secondary = [{ marker = "tunel", region = "core" }]
[statistics.arrive]
blinding = "Slides were coded."
"""
SAMPLED = "[count.stereology]\nsection_interval = 8\nhemispheres = 1\n"


def rows_of(n=4, *, groups=("vehicle", "low", "high"), sections=2, effects=(1, 1, 0.4), **more):
    """Return regions rows: in `core` groups differ by their effect, in `rim` not at all."""
    rng = np.random.default_rng(3)
    rows = []
    for group, effect in zip(groups, effects, strict=False):
        for animal in range(1, n + 1):
            own = 1 + 0.15 * (-1) ** animal * (1 + animal / 4)  # spread alike in every group
            for section in range(1, sections + 1):
                name = f"{group[:3]}{animal}"
                for region, mean in (("core", 1000 * effect), ("rim", 500)):
                    positive = int(rng.poisson(mean * own))
                    rows.append(
                        region_row(
                            f"{name}_{section}", name, group, region, n=4000, positive=positive, section=str(section),
                            sex="mf"[animal % 2], **more,
                        )
                    )  # fmt: skip
    return rows


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", rows_of())


def recipe_of(*parts):
    return parse_recipe(CALLED + "".join(parts))


def test_command_writes_the_contract(run, histoquant):
    told = json.loads(histoquant("stats", run, "--json", check=True).stdout)
    assert {"statistics", "estimates", "next_study", "exclusions", "notes"} <= set(told)
    table = pd.read_csv(run / "tables" / "statistics.csv")
    assert list(table) == list(STATISTICS)
    assert len(table) == len(told["statistics"]) == 2 * 2 * 2  # regions, measures, groups
    core = table[(table["region"] == "core") & (table["comparison"] == "high vs vehicle")].iloc[0]
    assert core["percent_change"] == pytest.approx(-60, abs=15)
    assert core["ci_high"] < 0
    assert (run / "report.html").exists()


def test_effects_are_told_before_their_tests(run):
    text = "\n".join(lines(write_statistics(run)))
    assert "high vs vehicle, n 4 v 4" in text
    assert 0 < text.index("change ") < text.index("Dunnett: statistic")


def test_twice_the_same_bytes(run):
    write_statistics(run)
    first = {path.name: path.read_bytes() for path in (run / "tables").glob("*.csv")}
    write_statistics(run)
    assert {path.name: path.read_bytes() for path in (run / "tables").glob("*.csv")} == first


def test_recipe_declares_families_and_totals(run):
    found = write_statistics(run, recipe=recipe_of(SAMPLED, DECLARED))
    table = found.tables["statistics"]
    assert table["adjustment"].iloc[0] == "Dunnett, 2 primary comparisons"
    assert table["adjustment"].iloc[2].startswith("Holm, 2 key secondary")
    assert "tunel_total_profiles" in set(table["endpoint"])
    totals = pd.read_csv(run / "tables" / "stereology.csv")
    animals = pd.read_csv(run / "tables" / "animals.csv")
    assert totals["total_profiles"].tolist() == (16 * animals["n_positive"]).tolist()
    settings = json.loads((run / "statistics.json").read_text())
    assert settings["stereology"]["hemispheres"] == 1
    # Another recipe leaves nothing of the one before.
    write_statistics(run)
    assert not (run / "tables" / "stereology.csv").exists()


@pytest.mark.parametrize("test", ["ranks", "permutation", "mixed"])
def test_other_tests_of_the_recipe(run, test):
    if test == "mixed":
        pytest.importorskip("statsmodels", reason="the extra 'stats' is not installed")
    block = 'block = "sex"\n' if test == "permutation" else ""
    table = write_statistics(run, recipe=recipe_of(f'[statistics]\ntest = "{test}"\n{block}')).tables["statistics"]
    words = {"ranks": "Mann-Whitney, exact", "permutation": "within blocks, exact", "mixed": "mixed model, t"}[test]
    assert table["test"].str.contains(words).any()
    assert (table["p"].dropna() <= 1).all()


def test_block_must_be_one_column_of_the_sheet(run):
    for name, what in (("cohort", "no column 'cohort'"), ("section", "has section 1 and 2")):
        with pytest.raises(InputError, match=what):
            write_statistics(run, recipe=recipe_of(f'[statistics]\ntest = "permutation"\nblock = "{name}"\n'))


def test_outcomes_are_joined_by_animal_and_kept_apart(run, tmp_path):
    scores = tmp_path / "scores.csv"
    animals = pd.read_csv(run / "tables" / "animals.csv")["animal"].unique()
    scores.write_text("animal,mNSS\n" + "".join(f"{name},{i % 5}\n" for i, name in enumerate(animals)) + "x9,3\n")
    before = write_statistics(run).tables["statistics"]
    found = write_statistics(run, outcomes=scores)
    assert found.tables["statistics"].equals(before)
    assert set(found.tables["correlations"]["outcome"]) == {"mNSS"}
    assert found.notes == ("scores.csv: not in the study: x9",)
    text = Page((write_report(run)).read_text()).text
    assert "Correlations with other outcomes" in text
    assert "within groups" in text


def test_one_group_and_one_animal_per_group(tmp_path):
    for name, rows in (
        ("one_group", rows_of(groups=("vehicle",))),
        ("one_animal", rows_of(1)),
        ("nothing", []),
        ("only_outside", [region_row("s1", "m1", "vehicle", "outside"), region_row("s2", "m2", "low", "outside")]),
    ):
        root = write_run(tmp_path / name, rows)
        found = write_statistics(root)
        table = found.tables["statistics"]
        assert table["p"].isna().all()
        assert (table["flags"] != "").all()
        assert list(lines(found)) or table.empty
        assert "Effects and tests" in Page(write_report(root).read_text()).text


def test_nuclei_only(tmp_path):
    rows = [
        region_row(f"s{i}", f"m{i}", group, positive=100 + i, marker="dapi")
        for i, group in enumerate(["vehicle", "low"] * 3)
    ]
    table = write_statistics(write_run(tmp_path / "run", rows, recipe=COUNTED)).tables["statistics"]
    assert set(table["endpoint"]) == {"dapi_density_per_mm2"}  # not the fraction of nuclei that are nuclei


def test_result_that_hangs_on_the_threshold(tmp_path):
    """`write_run` takes one positive away with each step of the threshold: with few positives the sign turns."""
    pairs = zip("abcdef", [2, 3, 2, 3, 2, 2], ["vehicle", "low"] * 3, strict=True)
    rows = [region_row(f"s{a}", a, group, positive=n, area_mm2=2.0 if group == "low" else 1.0) for a, n, group in pairs]
    table = write_statistics(write_run(tmp_path / "few", rows)).tables["statistics"]
    density = table[table["endpoint"] == "tunel_density_per_mm2"].iloc[0]
    assert "threshold-dependent: the interval" in density["flags"]
    many = [
        row | {"n_positive": 50 * row["n_positive"], "density_per_mm2": 50 * row["density_per_mm2"]} for row in rows
    ]
    table = write_statistics(write_run(tmp_path / "many", many)).tables["statistics"]
    assert table.loc[table["endpoint"] == "tunel_density_per_mm2", "flags"].tolist() == [""]


def test_page_shows_effects_exclusions_and_arrive(tmp_path):
    rows = rows_of()
    root = write_run(tmp_path / "run", rows, excluded={"v_torn": "torn in half"})
    state = json.loads((root / "run.json").read_text())
    state["rows"] = [{"slide_id": "v_torn", "group": "vehicle"}]
    (root / "run.json").write_text(json.dumps(state))
    write_statistics(root, recipe=recipe_of(SAMPLED, DECLARED))
    text = write_report(root).read_text()
    page = Page(text)
    assert len({i for i in text.split('id="effects-')[1:] if "effect-" in i[:12]}) >= 8
    for words in (
        "Primary (1 endpoint)",
        "p adjusted by Dunnett, 2 primary comparisons",
        "v_torn vehicle left out beforehand torn in half",
        "Slides were coded.",
        "not provided",
        "Totals are profiles × 8 × 2",
        "Groups were compared with vehicle by: ",
        "Size of the next study",
    ):
        assert words in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_without_comparisons_says_how_to_make_them(run):
    assert "The command 'histoquant stats' with this folder makes it." in Page(write_report(run).read_text()).text


def test_hostile_names_reach_the_page_as_text(tmp_path):
    rows = [*small_study(animal=HOSTILE, group="<b>x</b>"), region_row("s4", "m4", "<b>x</b>", "rim", positive=9)]
    root = write_run(tmp_path / "run", rows)
    write_statistics(root)
    page = Page(write_report(root).read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"b"})
    assert page.named("script") == [{}]  # the page's own
    assert "<b>x</b> vs vehicle" in page.text


def test_reference_group_of_the_recipe(run):
    found = write_statistics(run, recipe=recipe_of('[count]\nreference_group = "low"\n'))
    assert set(found.tables["statistics"]["comparison"]) == {"vehicle vs low", "high vs low"}
    with pytest.raises(InputError, match="'sham' is not in the study"):
        write_statistics(run, recipe=recipe_of('[count]\nreference_group = "sham"\n'))


def test_wrong_input_is_one_sentence(run, histoquant):
    done = histoquant("stats", run, "--covariates", "nowhere.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("histoquant: Cannot read the table of outcomes 'nowhere.csv'")
    assert "Traceback" not in done.stderr
    with pytest.raises(InputError, match="holds no run"):
        write_statistics(run / "tables")


def test_damaged_statistics_are_made_again(run):
    (run / "tables" / "statistics.csv").write_text("endpoint\nx\n")
    with pytest.raises(InputError, match=r"statistics\.csv"):
        write_report(run)
    write_statistics(run)
    assert write_report(run).exists()


def test_what_cannot_be_compared_is_found_before_a_run(study, monkeypatch):
    folder = study()
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text() + '[statistics]\ntest = "permutation"\nblock = "sex"\n')
    with pytest.raises(InputError, match="no column 'sex'"):
        load(folder / "study.csv", recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe.write_text(recipe.read_text().replace('"permutation"\nblock = "sex"', '"mixed"'))
    with pytest.raises((MissingExtraError, Faults), match=r"histoquant\[stats\]"):
        load(folder / "study.csv", recipe)


def test_recipe_without_statistics_keeps_its_fingerprint():
    plain = parse_recipe(CALLED)
    assert plain.fingerprint() == recipe_of('[statistics.arrive]\nblinding = "coded"\n').fingerprint()
    asked = recipe_of(DECLARED), recipe_of(SAMPLED)
    assert len({plain.fingerprint(), *(one.fingerprint() for one in asked)}) == 3
    assert {one.fingerprint(measured=True) for one in asked} == {plain.fingerprint(measured=True)}
