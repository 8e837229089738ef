"""A recipe as a form and as TOML: what the fields say is what is shown, and what is saved is what was meant."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoquant.errors import HistoquantError, InputError
from histoquant.form import entries, names_in, with_value, words_of
from histoquant.model.recipe import Recipe, parse_recipe
from histoquant.model.recipe_toml import recipe_toml

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "workflows" / "recipes").glob("*.toml"))

TEXT = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = "controls", k = 4.0 }
[segment]
segmenter = "watershed"
[regions.zone]
band = { of = "lesion" }
[count]
double = [["tunel", "tunel"]]
"""


@pytest.fixture
def recipe():
    return parse_recipe(TEXT)


def by_path(recipe):
    return {".".join(entry.path): entry for entry in entries(recipe)}


def test_the_form_says_what_the_fields_say(recipe):
    form = by_path(recipe)
    k = form["panel.tunel.positive.k"]
    field = type(recipe.panel["tunel"].positive).model_fields["k"]
    assert (k.title, k.help, k.value, k.default) == (field.title, field.description, 4.0, field.default)
    assert (k.number, k.bounds.low, k.bounds.high, k.bounds.open_low) == (float, 0, 50, False)
    threshold = form["panel.tunel.positive.threshold"]
    assert (threshold.number, threshold.choices, threshold.value) == (float, ("auto", "controls"), "controls")
    assert form["segment.diameter_um"].optional
    assert form["segment.diameter_um"].bounds.open_low
    assert form["regions.zone.band.to_um"].value == 500
    assert set(form["segment.segmenter"].choices) >= {"network", "watershed"}
    assert words_of(form["count.double"]) == "tunel + tunel"


def test_parameters_of_the_segmenter_are_in_the_form_and_change_with_it(recipe):
    ours = {entry.path for entry in entries(recipe)}
    others = {entry.path for entry in entries(with_value(recipe, ("segment", "segmenter"), "network"))}
    assert ("segment", "certainty") not in ours
    assert ("segment", "certainty") in others


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_line_of_every_shipped_recipe_has_a_title_and_a_help(path):
    for entry in entries(parse_recipe(path.read_text())):
        assert entry.title
        assert entry.help, entry.path


def test_a_value_is_checked_where_it_is_set(recipe):
    changed = with_value(recipe, ("panel", "tunel", "positive", "threshold"), 120.5)
    assert changed.panel["tunel"].positive.threshold == 120.5
    assert recipe.panel["tunel"].positive.threshold == "controls"
    for path, value in ((("panel", "tunel", "positive", "k"), 99.0), (("segment", "no_such"), 1)):
        with pytest.raises(HistoquantError, match=path[-1]):
            with_value(recipe, path, value)
    assert with_value(changed, ("panel", "tunel", "positive", "threshold"), None).panel["tunel"].positive.k == 4.0


def test_names_are_typed_with_commas_pairs_with_plus(recipe):
    form = by_path(recipe)
    assert names_in(form["count.distance_to"], " svz , dg,") == ["svz", "dg"]
    assert names_in(form["count.double"], "brdu + dcx, a+b") == [["brdu", "dcx"], ["a", "b"]]
    assert names_in(form["count.double"], "") is None
    with pytest.raises(InputError, match="pairs"):
        names_in(form["count.double"], "brdu")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_survives_being_saved(path):
    recipe = parse_recipe(path.read_text())
    saved = parse_recipe(recipe_toml(recipe))
    assert saved == recipe
    assert saved.fingerprint() == recipe.fingerprint()


names = st.text(min_size=1, max_size=12).map(str.strip).filter(bool)


@given(
    name=st.text(max_size=30),
    channel=names,
    threshold=st.floats(1e-12, 1e12) | st.sampled_from(["auto", "controls"]),
    region=names.filter(lambda text: text not in ("masked", "outside")),
    of=names,
    low=st.floats(-1e4, 0),
)
def test_any_recipe_survives_being_saved(name, channel, threshold, region, of, low):
    content = {
        "name": name,
        "panel": {
            "dapi": {"role": "counterstain", "channel": channel},
            "m": {"role": "nuclear", "positive": {"threshold": threshold, "control": [of]}},
        },
        "regions": {region: {"band": {"of": of, "from_um": low, "to_um": 1e-3}, "minus": [of]}, "plain": {}},
    }
    recipe = Recipe.model_validate(content)
    assert parse_recipe(recipe_toml(recipe)) == recipe
