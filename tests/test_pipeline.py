"""What the path does beyond the laws: stacks, weak counterstains, tissue as the only ground, fragments and orphans."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from histoquant.batch import run_study
from histoquant.errors import Faults, InputError, RecipeError, StudyError
from histoquant.inputs import load
from tests.conftest import RECIPE, make_scene, write_geojson, write_slide


def run(folder, recipe, sheet, out="out"):
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "study.csv").write_text(sheet, encoding="utf-8")
    outcome = run_study(load(folder / "study.csv", folder / "recipe.toml"), folder / out, workers=1)
    assert not outcome.failures
    return outcome


def regions_of(folder, out="out"):
    return pd.read_csv(folder / out / "tables" / "regions.csv").set_index(["slide_id", "region", "marker"])


def test_a_stack_is_projected_and_says_so(tmp_path, scene):
    dim = (scene.pixels * 0.3).astype(np.uint16)
    stack = np.stack([dim, scene.pixels, dim], axis=1)
    tifffile.imwrite(
        tmp_path / "stack.ome.tif",
        stack,
        metadata={
            "axes": "CZYX",
            "Channel": {"Name": ["DAPI", "TUNEL"]},
            **{f"PhysicalSize{axis}": 0.5 for axis in "XY"},
            **{f"PhysicalSize{axis}Unit": "µm" for axis in "XY"},
        },
    )
    write_slide(tmp_path / "flat.ome.tif", scene.pixels)
    sheet = "slide,animal,group\nstack.ome.tif,m1,v\nflat.ome.tif,m2,v\n"
    outcome = run(tmp_path, RECIPE, sheet)
    assert any("3 focal planes were projected to one (max)" in note for note in outcome.notes)
    stacked, flat = (pd.read_parquet(tmp_path / "out" / "slides" / s / "cells.parquet") for s in ("stack", "flat"))
    pd.testing.assert_frame_equal(stacked, flat)
    run(tmp_path, RECIPE.replace("[segment]", "[segment]\nz = 1"), sheet, out="plane")
    one = pd.read_parquet(tmp_path / "plane" / "slides" / "stack" / "cells.parquet")
    pd.testing.assert_frame_equal(one, flat)


def test_a_weak_counterstain_gives_counts_but_no_fractions(tmp_path, scene):
    write_slide(tmp_path / "a.ome.tif", scene.pixels)
    run(tmp_path, RECIPE.replace("[segment]", "[segment]\nmin_snr = 1000.0"), "slide,animal,group\na.ome.tif,m1,v\n")
    row = regions_of(tmp_path).loc[("a", "slide", "tunel")]
    assert row["n_positive"] > 20
    assert np.isnan(row["fraction_positive"])
    assert row["density_per_mm2"] > 0
    assert "counterstain too weak" in row["flags"]


def test_tissue_as_the_only_ground(tmp_path):
    """Glass is masked in counts and in areas alike, so densities are those of the tissue."""
    scene = make_scene(shape=(900, 900), n=420, seed=3)
    tissue = np.zeros((900, 900))
    tissue[:, :450] = 1
    tissue = ndimage.gaussian_filter(tissue, 3)
    rng = np.random.default_rng(0)
    pixels = np.stack([plane * tissue + 80 * tissue + 100 + rng.normal(0, 8, plane.shape) for plane in scene.pixels])
    write_slide(tmp_path / "a.ome.tif", pixels.astype(np.uint16))
    run(tmp_path, RECIPE + '[count]\ndomain = "tissue"\n', "slide,animal,group\na.ome.tif,m1,v\n")
    table = regions_of(tmp_path).xs("tunel", level="marker").loc["a"]
    assert table.loc["slide", "area_mm2"] == pytest.approx(0.45 * 0.225, rel=0.1)
    assert table.loc["masked", "area_mm2"] == pytest.approx(0.45 * 0.225, rel=0.1)
    cells = pd.read_parquet(tmp_path / "out" / "slides" / "a" / "cells.parquet")
    assert table["n_cells"].sum() == len(cells)
    assert table.loc["slide", "n_cells"] > 0.9 * (scene.centres[:, 1] < 450).sum()


def tunel_with_bodies():
    """A field of nuclei; one falls apart into three pieces, one body lies free, one beside a nucleus."""
    y, x = np.mgrid[:400, :400]
    dapi, tunel, glow = np.zeros((400, 400)), np.zeros((400, 400)), np.zeros((400, 400))

    def disc(plane, cy, cx, r, value):
        plane[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = value

    for cy in range(40, 400, 60):
        for cx in range(40, 400, 60):
            if (cy, cx) != (220, 220):
                disc(dapi, cy, cx, 8, 800)
    for dy, dx in ((-5, 0), (4, -5), (4, 5)):  # pieces of 1.25 um radius round (220, 220)
        disc(dapi, 220 + dy, 220 + dx, 2.5, 900)
        disc(tunel, 220 + dy, 220 + dx, 2.5, 700)
    disc(tunel, 130, 130, 4, 600)  # an orphan, no DNA
    disc(tunel, 100, 100 + 13, 4, 600)  # 1 px from the rim of the nucleus at (100, 100)
    disc(tunel, 250, 130, 4, 600)  # shines in the unstained channel too
    disc(glow, 250, 130, 4, 600)
    disc(tunel, 340, 340, 8, 500)  # a whole positive nucleus
    disc(tunel, 340, 280, 8, 500)  # an autofluorescent one
    disc(glow, 340, 280, 8, 500)
    rng = np.random.default_rng(0)
    planes = [200 + ndimage.gaussian_filter(p, 0.8) + rng.normal(0, 8, p.shape) for p in (dapi, tunel, glow)]
    return np.stack(planes).astype(np.uint16)


BODIES = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = 150.0 }
orphans = true
death_classes = true
[panel.autofluorescence]
channel = "AF"
role = "autofluorescence"
[segment]
segmenter = "watershed"
diameter_um = 8.0
[tiles]
core_px = CORE
"""


@pytest.mark.parametrize("core_px", [64, 1024])
def test_fragments_orphans_attached_and_autofluorescent_objects(tmp_path, core_px):
    write_slide(tmp_path / "a.ome.tif", tunel_with_bodies(), channels=("DAPI", "TUNEL", "AF"))
    run(tmp_path, BODIES.replace("CORE", str(core_px)), "slide,animal,group\na.ome.tif,m1,v\n")
    row = regions_of(tmp_path).loc[("a", "slide", "tunel")]
    assert row["n_cells"] == 36
    assert row["n_positive"] == 3  # the whole nucleus, the fragmented one, the one with a body attached
    assert (row["n_fragmented"], row["n_orphans"], row["n_autofluorescent"]) == (1, 1, 1)
    cells = pd.read_parquet(tmp_path / "out" / "slides" / "a" / "cells.parquet")
    broken = cells[cells["tunel_class"] == "fragmented"].iloc[0]
    assert (broken["y_px"], broken["x_px"]) == pytest.approx((221.5, 220.5), abs=1.0)
    labels = tifffile.imread(tmp_path / "out" / "slides" / "a" / "labels.ome.tif")
    assert ndimage.label(labels == broken["cell_id"])[1] == broken["n_pieces"] == 3
    assert np.array_equal(np.unique(labels[labels > 0]), cells["cell_id"])
    objects = pd.read_csv(tmp_path / "out" / "slides" / "a" / "marker_objects.csv")
    assert len(objects) == 3
    assert objects["orphan"].sum() == 1
    (attached,) = objects[objects["attached_to"] > 0]["attached_to"]
    nucleus = cells[cells["cell_id"] == attached].iloc[0]
    assert (nucleus["y_px"], nucleus["x_px"]) == pytest.approx((100.5, 100.5), abs=1.0)


def test_thresholds_come_from_the_controls_of_the_same_batch(tmp_path, scene):
    rng = np.random.default_rng(1)
    for batch, level in (("one", 0), ("two", 60)):
        negative = scene.pixels.copy()
        negative[1] = 200 + level * (scene.pixels[0] > 500) + rng.normal(0, 12, negative[1].shape)
        write_slide(tmp_path / f"control_{batch}.ome.tif", negative)
        write_slide(tmp_path / f"slide_{batch}.ome.tif", scene.pixels)
    sheet = "slide,animal,group,control,batch\n" + "".join(
        f"control_{b}.ome.tif,c{b},control,no_tdt,{b}\nslide_{b}.ome.tif,m{b},v,,{b}\n" for b in ("one", "two")
    )
    recipe = RECIPE.replace("threshold = 150.0", 'threshold = "controls"')
    run(tmp_path, recipe, sheet)
    table = regions_of(tmp_path).xs("slide", level="region").xs("tunel", level="marker")
    assert set(table["threshold_source"]) == {"controls"}
    assert table.loc["slide_one", "threshold"] == table.loc["control_one", "threshold"]
    assert table.loc["slide_two", "threshold"] > table.loc["slide_one", "threshold"] + 40
    assert table.loc["control_one", "fraction_positive"] <= 0.02
    animals = pd.read_csv(tmp_path / "out" / "tables" / "animals.csv")
    assert set(animals["animal"]) == {"mone", "mtwo"}
    with pytest.raises(StudyError, match="batch 'two' has no control section"):
        run(tmp_path, recipe, sheet.replace("ctwo,control,no_tdt,two", "ctwo,control,,two"), out="none")


def test_further_columns_of_the_sheet_are_carried_through(tmp_path, scene):
    write_slide(tmp_path / "a.ome.tif", scene.pixels)
    sheet = "slide,animal,group,section_position_um,sex,marker\na.ome.tif,m1,v,-300,female,rabbit 12\n"
    run(tmp_path, RECIPE, sheet)
    for path in ("tables/regions.csv", "slides/a/regions.csv"):
        table = pd.read_csv(tmp_path / "out" / path)
        assert set(table["sex"]) == {"female"}
        assert set(table["section_position_um"]) == {-300}
        assert set(table["sheet_marker"]) == {"rabbit 12"}
        assert set(table["marker"]) == {"tunel"}


def test_distances_need_their_outline(tmp_path, scene):
    write_slide(tmp_path / "a.ome.tif", scene.pixels)
    write_geojson(tmp_path / "r.geojson", lesion=[(100, 100), (200, 100), (200, 200), (100, 200)])
    recipe = RECIPE + '[count]\ndistance_to = ["lesion"]\nmigration_from = ["lesion"]\n'
    run(tmp_path, recipe, "slide,animal,group,regions\na.ome.tif,m1,v,r.geojson\n")
    cells = pd.read_parquet(tmp_path / "out" / "slides" / "a" / "cells.parquet")
    straight, way = cells["distance_to_lesion_um"], cells["migration_from_lesion_um"]
    assert ((straight < 0) == (cells["region"] == "lesion")).all()
    assert (way >= straight.clip(lower=0) - 1e-9).all()
    sheet = "slide,animal,group,regions\na.ome.tif,m1,v,\n"
    (tmp_path / "study.csv").write_text(sheet, encoding="utf-8")
    outcome = run_study(load(tmp_path / "study.csv", tmp_path / "recipe.toml"), tmp_path / "without", workers=1)
    (failure,) = outcome.failures
    assert "no outline 'lesion'" in failure.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("threshold = 150.0", "threshold = 150.0, rule = 'nuklear'"), "nuklear"),
        (("threshold = 150.0", "threshold = 150.0, share = 0.4"), "share"),
        (('segmenter = "watershed"', 'segmenter = "stardust"'), "stardust"),
        (("diameter_um = 8.0", "diameter_um = 8.0\nsplitting = 3"), "splitting"),
    ],
)
def test_plugins_and_their_parameters_are_checked_before_anything_is_opened(tmp_path, change, message):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(*change), encoding="utf-8")
    (tmp_path / "study.csv").write_text("slide,animal,group\nnone.tif,m1,v\n", encoding="utf-8")
    with pytest.raises((RecipeError, Faults, InputError, LookupError), match=message):
        load(tmp_path / "study.csv", tmp_path / "recipe.toml")
