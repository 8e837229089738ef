"""Finished runs whose animals, groups and slides have names that cannot be mistaken for anything else."""

from functools import cache

from histoquant.batch import run_study
from histoquant.infarct import run_infarct
from histoquant.inputs import KINDS, load
from histoquant.phantom import DendritePlan, TtcPlan, make_dendrites, make_ttc_phantom
from histoquant.spine_study import run_spines
from tests.conftest import RECIPE, make_scene, write_geojson, write_slide

SECRETS = ("Quagga", "Dugong", "Axolotl", "Okapi", "Tapirlabel", "Narwhallabel", "Ibexfolder", "Zorilla")
"""Groups, animals, slide labels, the folder of the slides, and a further column of the sheet."""

SHEET = """slide,animal,group,section,regions,litter
Ibexfolder/Tapirlabel_7.ome.tif,Axolotl,Quagga,1,outlines.geojson,Zorilla
Ibexfolder/Narwhallabel_3.ome.tif,Okapi,Dugong,2,outlines.geojson,Zorilla
"""


@cache
def run_in(base):
    """Make the study below a folder, once for all tests of a process; run it, and return the run folder."""
    folder = base / "reviewed"
    for seed, name in enumerate(("Tapirlabel_7", "Narwhallabel_3")):
        write_slide(folder / "Ibexfolder" / f"{name}.ome.tif", make_scene((256, 320), 70, seed=seed).pixels)
    outlines = {"SVZ": [(0, 0), (160, 0), (160, 256), (0, 256)], "Quagga core": [(180, 20), (260, 20), (260, 200)]}
    write_geojson(folder / "outlines.geojson", **outlines)
    (folder / "study.csv").write_text(SHEET, encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    outcome = run_study(load(folder / "study.csv", folder / "recipe.toml"), folder / "results", workers=1)
    assert not outcome.failures
    return folder / "results"


@cache
def spines_in(base, assay="spines"):
    """Make a study of two stacks of dendrites below a folder, run it, and return the run folder."""
    folder = base / f"reviewed_{assay}"
    make_dendrites(folder, DendritePlan(assay, (20.0, 30.0), spines_per_10um=(0.0, 8.0), animals=1, seed=5))
    (folder / "slides").rename(folder / "Ibexfolder")
    for made, name in (("M1_s1", "Tapirlabel_7"), ("M2_s1", "Narwhallabel_3")):
        (folder / "Ibexfolder" / f"{made}.ome.tif").rename(folder / "Ibexfolder" / f"{name}.ome.tif")
    sheet = SHEET.replace(",outlines.geojson", "").replace(",regions", "")
    (folder / "study.csv").write_text(sheet, encoding="utf-8")
    checked = load(folder / "study.csv", folder / "recipe.toml", kinds=KINDS)
    assert not run_spines(checked, folder / "results", workers=2).failures
    return folder / "results"


@cache
def infarcts_in(base):
    """Make a study of two photographs of brain slices below a folder, run it, and return the run folder."""
    folder = base / "reviewed_infarcts"
    make_ttc_phantom(folder, TtcPlan(animals=1, pixel_size_um=90.0, seed=3))
    (folder / "slides").rename(folder / "Ibexfolder")
    rows = ["slide,animal,group,section,hemisphere,pixel_size_um,litter"]
    for path, name, animal, group in zip(
        sorted((folder / "Ibexfolder").iterdir()),
        ("Tapirlabel_7", "Narwhallabel_3"),
        ("Axolotl", "Okapi"),
        ("Quagga", "Dugong"),
        strict=True,
    ):
        path.rename(path.with_stem(name))
        rows.append(f"Ibexfolder/{name}{path.suffix},{animal},{group},1,right,90,Zorilla")
    (folder / "study.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    checked = load(folder / "study.csv", folder / "recipe.toml", kinds=KINDS)
    assert not run_infarct(checked, folder / "results").failures
    return folder / "results"
