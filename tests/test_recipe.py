"""Recipes: unknown keys refused everywhere, all faults at once, fingerprints that change with the numbers."""

import pytest

from histoquant.errors import Faults, RecipeError
from histoquant.model.recipe import parse_recipe
from histoquant.phantom import shipped_recipe

MINIMAL = """
schema = 1
[panel.dapi]
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = 50.0 }
"""


def test_a_minimal_recipe_and_its_defaults():
    recipe = parse_recipe(MINIMAL)
    assert recipe.panel["tunel"].rule == "nuclear"
    assert recipe.panel["tunel"].fraction == 0.5
    assert recipe.segment.segmenter == "network"
    assert recipe.segmented == ("dapi",)
    assert recipe.double_labels == ()


@pytest.mark.parametrize("name", ["tunel", "brdu_dcx", "ihc_dab", "spines_confocal", "spines_golgi"])
def test_shipped_recipes_are_sound(name):
    text = shipped_recipe(name).read_text(encoding="utf-8")
    assert parse_recipe(text).name == name


@pytest.mark.parametrize(
    ("line", "named", "remedy"),
    [
        ("thresholds = 3", "thresholds", "Known here"),
        ("[tiles]\ncore = 128", "tiles.core", "core_px"),
        ("[measure]\nring = 2.0", "measure.ring", "ring_um"),
        ("[count]\ndistance = ['x']", "count.distance", "distance_to"),
        ("[regions.ibz]\nbandd = { of = 'lesion' }", "regions.ibz.bandd", ""),
        ("[panel.x]\nrole = 'nuclear'\nchanel = 'X'", "panel.x.chanel", ""),
    ],
)
def test_unknown_keys_are_named_with_a_remedy(line, named, remedy):
    with pytest.raises(RecipeError, match=r"unknown key") as caught:
        parse_recipe(MINIMAL + line, source="r.toml")
    assert named in str(caught.value)
    assert "r.toml" in str(caught.value)
    assert remedy in caught.value.remedy


def test_all_faults_are_listed_together():
    text = MINIMAL + "[tiles]\ncore_px = 5\n[measure]\nring_um = -1.0\n[nonsense]\n"
    with pytest.raises(Faults) as caught:
        parse_recipe(text)
    assert len(caught.value.faults) == 3
    assert all("\n" not in str(fault) for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('role = "counterstain"', 'role = "nuclear"'), "exactly one counterstain"),
        (("[panel.dapi]", '[panel."d p"]\nrole = "counterstain"\n[panel.dapi]'), "marker name"),
        (("threshold = 50.0", "threshold = -1.0"), "above 0"),
        (('role = "nuclear"', 'role = "membrane"'), "role"),
        (("schema = 1", "schema = 2"), "schema"),
        (("schema = 1", "schema = "), "not valid TOML"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, message):
    with pytest.raises((RecipeError, Faults), match=message):
        parse_recipe(MINIMAL.replace(*change))


def test_fingerprints():
    base = parse_recipe(MINIMAL)
    renamed = parse_recipe(MINIMAL.replace("schema = 1", 'schema = 1\nname = "x"'))
    threshold = parse_recipe(MINIMAL.replace("50.0", "60.0"))
    diameter = parse_recipe(MINIMAL + "[segment]\ndiameter_um = 8.0\n")
    region = parse_recipe(MINIMAL + "[regions.a]\nparent = 'b'\n")
    assert renamed.fingerprint() == base.fingerprint()
    assert len({recipe.fingerprint() for recipe in (base, threshold, diameter, region)}) == 4
    # Thresholds and regions need no new segmentation; a diameter does.
    assert threshold.fingerprint(measured=True) == base.fingerprint(measured=True) == region.fingerprint(measured=True)
    assert diameter.fingerprint(measured=True) != base.fingerprint(measured=True)


def test_parameters_of_plugins_are_kept_apart():
    recipe = parse_recipe(MINIMAL + "[segment]\nsegmenter = 'watershed'\nsomething = 3\n")
    assert recipe.segment.parameters == {"something": 3}
