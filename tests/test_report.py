"""The report page, on small run folders written by hand."""

import base64
import csv
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from histoquant.analysis.counting import count_animals, count_groups
from histoquant.batch import write_report
from histoquant.errors import InputError
from histoquant.model.recipe import parse_recipe
from histoquant.model.tables import FAILURES, REGIONS, SENSITIVITY, SENSITIVITY_FACTORS, empty, shaped
from histoquant.report.html import render_report as make_report
from histoquant.report.markup import number, table
from histoquant.report.run import read_run, threshold_curve

CALLED = """
schema = 1
name = "tunel"
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = "controls", k = 3.0 }
"""
COUNTED = """
schema = 1
[panel.dapi]
role = "counterstain"
"""
HOSTILE = '<script>alert("1")</script> $x_1$ & é脑'


class Page(HTMLParser):
    """What a browser would find: start tags, and text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self.stack = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.shown.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def region_row(slide, animal, group, region="core", *, n=100, positive=10, marker="tunel", **more):
    area = more.pop("area_mm2", 0.5)
    row = {name: "" if kind == "str" else 0 for name, kind in REGIONS.items()}
    row |= {
        "slide_id": slide,
        "animal": animal,
        "group": group,
        "region": region,
        "area_mm2": area,
        "marker": marker,
        "n_cells": n,
        "n_positive": positive,
        "fraction_positive": positive / n if n else math.nan,
        "density_per_mm2": positive / area,
        "threshold": 4.0 if marker == "tunel" else math.nan,
        "threshold_source": "controls" if marker == "tunel" else "",
        "area_positive_mm2": math.nan,
        "percent_area": math.nan,
    }
    return row | more


def write_run(root, rows, *, recipe=CALLED, failures=(), reference="vehicle", **state):
    """Write a run folder as `batch` does, from rows of the regions table."""
    import pandas as pd

    regions = shaped(pd.DataFrame(rows), REGIONS) if rows else empty(REGIONS)
    parts = []
    for factor in SENSITIVITY_FACTORS if recipe is CALLED else ():
        # One positive fewer for each step up: enough to see that the factors are kept apart.
        part = regions.assign(
            factor=factor, n_positive=(regions["n_positive"] - round(10 * (factor - 1))).clip(lower=0)
        )
        parts.append(part[list(SENSITIVITY)])
    animals = count_animals(regions[regions["control"] == ""])
    tables = {
        "regions": regions,
        "animals": animals,
        "groups": count_groups(animals, reference_group=reference),
        "sensitivity": shaped(pd.concat(parts), SENSITIVITY) if parts and rows else empty(SENSITIVITY),
    }
    (root / "tables").mkdir(parents=True)
    for name, frame in tables.items():
        frame.to_csv(root / "tables" / f"{name}.csv", index=False)
    with (root / "failures.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(FAILURES), *failures])
    parsed = parse_recipe(recipe)
    content = parsed.model_dump(mode="json", by_alias=True, exclude_none=True)
    slides = {}
    for row in rows:
        if row["slide_id"] in slides:
            continue
        slides[row["slide_id"]] = "done"
        folder = root / "slides" / row["slide_id"]
        folder.mkdir(parents=True)
        told = {"value": 4.0, "source": "controls", "sections": ["ctrl"], "n_nuclei": 1234}
        provenance = {
            "slide": {key: row[key] for key in ("slide_id", "animal", "group", "control", "batch")},
            "sources": {"a.ome.tif": "00ff"},
            "pixel_size_um": 0.5,
            "segmenter": {"plugin": "x 1", "given": {"diameter_um": None}, "used": {"diameter_um": 7.5 + len(slides)}},
            "thresholds": {"tunel": told} if recipe is CALLED else {},
            "notes": [f"diameter_um was not given and is estimated as {7.5 + len(slides)}"],
            "warnings": row["flags"].split("; ") if row["flags"] else [],
        }
        (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
        Image.fromarray(np.full((600, 500, 3), 40, dtype=np.uint8)).save(folder / "overview.png")
    slides |= {failure[0]: "failed" for failure in failures}
    run = {"schema": 1, "state": "failed" if failures else "done", "study": "/data/stroke", "recipe": content}
    run |= {"slides": slides, "histoquant": "0.1.0", "fingerprint": "ab12", "excluded": {}} | state
    (root / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return root


def render_report(root):
    return make_report(root).page


def small_study(animal="m1", group="treated"):
    """Three animals, two of the reference group, two regions and the rest, one control."""
    rows = []
    for slide, who, of, positive in (
        ("s1", animal, group, 5),
        ("s2", "m2", "vehicle", 10),
        ("s3", "m3", "vehicle", 20),
    ):
        rows += [region_row(slide, who, of, region, positive=positive) for region in ("core", "rim", "outside")]
    return [*rows, region_row("ctrl", "c", "control", positive=1, control="no_tdt")]


@pytest.fixture
def page(tmp_path):
    return Page(render_report(write_run(tmp_path / "run", small_study())))


def dots(text, marker=0, panel=0):
    return re.findall(rf'id="results-{marker}-animal-{panel}-\d+"', text)


def test_every_animal_is_a_dot_in_every_chart(tmp_path):
    text = render_report(write_run(tmp_path / "run", small_study()))
    assert len(dots(text, panel=0)) == len(dots(text, panel=1)) == 3 * 2  # animals x counted regions; not `outside`
    assert "m3 (vehicle), rim: 40" in text  # 20 positives on 0.5 mm2, told when pointed at


def test_undefined_value_is_said_not_drawn(tmp_path):
    rows = small_study()
    rows[0]["fraction_positive"] = math.nan
    text = render_report(write_run(tmp_path / "run", rows))
    assert (len(dots(text, panel=0)), len(dots(text, panel=1))) == (6, 5)
    assert "not defined in 1" in text


def test_numbers_of_the_groups_table(page):
    assert "vehicle 2 2 1.00 200 30 0.150 0.0707 30.0 14.1" in page.text
    assert "−66.7" in page.text  # treated 10 per mm2 against 30
    assert "The command 'histoquant stats' with this folder makes it." in page.text  # no test is made before


def test_hostile_names_are_shown_as_text(tmp_path):
    rows = small_study(animal=HOSTILE, group='"><img src=x onerror=alert(2)>')
    run = write_run(
        tmp_path / "run", rows, failures=[("<b>s9</b>", "check", "Bad <i>file</i>.", "Mend & run.")],
        excluded={"<u>s8</u>": "torn </table><script>"},
    )  # fmt: skip
    text = render_report(run)
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"i", "b", "u"})
    assert len(page.named("script")) == 1  # our own
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.named("img"))
    for name in (HOSTILE, "<b>s9</b>", "Bad <i>file</i>.", "torn </table><script>"):
        assert name in page.text
    assert Page("<p>" + HOSTILE).named("script")  # the control: unescaped, the same check would find it


def test_failures_come_first(tmp_path):
    failures = [("s9", "check", "Slide 's9': no pixel size.", "Add pixel_size_um.")]
    text = Page(render_report(write_run(tmp_path / "run", small_study(), failures=failures))).text
    assert "1 slide failed" in text
    assert text.index("no pixel size") < text.index("What was asked", text.index("1 slide failed"))
    assert "Add pixel_size_um." in text


def test_warnings_are_unique_and_name_their_slides(tmp_path):
    rows = small_study()
    for row in rows:
        row["flags"] = "counterstain too weak for fractions" if row["slide_id"] in ("s1", "s2") else ""
    text = Page(render_report(write_run(tmp_path / "run", rows))).text
    assert "counterstain too weak for fractions (s1, s2)" in text
    assert "estimated as 8.5 to 11.5 (all 4 slides)" in text


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text = render_report(write_run(tmp_path / "run", small_study()))
    page = Page(text)
    assert page.named("script") == [{}]
    assert not page.named("link")
    assert "http" not in re.sub(r'http-equiv="|base64,[^"]*', "", text)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "@import" not in text
    for attributes in page.named("a"):
        assert re.match(r"#\w|slides/|tables/|figures/", attributes["href"])


def test_only_our_own_script_may_run(tmp_path):
    text = render_report(write_run(tmp_path / "run", small_study(animal=HOSTILE)))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in text


def test_figures_are_files_as_well(tmp_path):
    marker = '../<a>"+脑'
    rows = [row | {"marker": marker} for row in small_study()] + small_study()
    report = make_report(write_run(tmp_path / "run", rows))
    charts = Page(report.page).named("svg")
    assert len(report.figures) == 2 * len(charts) == 2 * 4  # results and sensitivity of two markers
    for name, content in report.figures.items():
        assert re.fullmatch(r"figures/(results|sensitivity)_[A-Za-z0-9_]+\.(svg|pdf)", name)
        assert f'href="{name}"' in report.page
        assert content.startswith(b"%PDF-" if name.endswith("pdf") else b"<?xml")
    assert b"vehicle" in report.figures["figures/results_tunel.svg"]  # text stays text


def test_figures_of_an_earlier_report_go_and_those_of_a_person_stay(tmp_path):
    root = write_run(tmp_path / "run", small_study())
    (root / "figures").mkdir()
    for name in ("results_old.svg", "results_old_for_paper.ai", "fig1.pdf"):
        (root / "figures" / name).write_text("mine")
    write_report(root)
    held = {path.name for path in (root / "figures").iterdir()}
    assert held == {f"{part}_tunel.{kind}" for part in ("results", "sensitivity") for kind in ("svg", "pdf")} | {
        "results_old_for_paper.ai", "fig1.pdf"
    }  # fmt: skip


def test_ids_are_unique_and_links_within_charts_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for tag, attributes in page.tags if attributes.get("href", "").startswith("#")}
    wanted |= {clip[5:-1] for _, attributes in page.tags if (clip := attributes.get("clip-path"))}
    assert wanted
    assert wanted <= set(ids)


def test_same_folder_same_text(tmp_path):
    import matplotlib as mpl

    root = write_run(tmp_path / "run", small_study())
    first = render_report(root)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert render_report(root) == first  # a person's own matplotlib settings do not enter
    assert render_report(write_run(tmp_path / "again", small_study())) == first


def test_pictures_are_small_lazy_and_described(page):
    pictures = page.named("img")
    assert len(pictures) == 4
    for picture in pictures:
        assert (int(picture["width"]), int(picture["height"])) == (420, 504)
        assert picture["loading"] == "lazy"
    assert "s1" in pictures[0]["alt"]


def test_damaged_picture_is_said(tmp_path):
    root = write_run(tmp_path / "run", small_study())
    (root / "slides" / "s1" / "overview.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page = Page(render_report(root))
    assert len(page.named("img")) == 3
    assert "overview.png cannot be read" in page.text


def test_picture_of_an_earlier_success_is_not_shown_for_a_failed_slide(tmp_path):
    root = write_run(tmp_path / "run", small_study())
    run = json.loads((root / "run.json").read_text())
    run["slides"]["ctrl"] = "failed"
    (root / "run.json").write_text(json.dumps(run))
    assert len(Page(render_report(root)).named("img")) == 3


def test_tables_have_captions_and_scopes(page):
    assert len(page.named("table")) == len(page.named("caption"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))


def test_column_without_values_is_left_out(page):
    assert "Area positive" not in page.text
    assert "Autofluorescent" in page.text  # 0 is a value


@pytest.mark.parametrize("positive", [0, 7])
def test_zero_positives(tmp_path, positive):
    rows = [row | {"n_positive": positive, "density_per_mm2": 0, "fraction_positive": 0} for row in small_study()]
    text = render_report(write_run(tmp_path / "run", rows))
    assert len(dots(text)) == 6
    assert ("Change of density" in text) == (positive > 0)  # against 0 no change is defined


def test_one_animal_per_group(tmp_path):
    rows = [region_row("s1", "m1", "treated"), region_row("s2", "m2", "vehicle")]
    page = Page(render_report(write_run(tmp_path / "run", rows)))
    assert "Group treated has one animal: no spread can be given." in page.text
    assert "no control sections" in page.text


def test_only_counterstain(tmp_path):
    rows = [region_row(f"s{i}", f"m{i}", "vehicle", positive=100, marker="dapi") for i in (1, 2)]
    text = render_report(write_run(tmp_path / "run", rows, recipe=COUNTED))
    assert len(dots(text, panel=0)) == 2
    assert not dots(text, panel=1)  # the fraction of all nuclei that are nuclei
    assert "no marker was called" in text
    assert "There is no threshold in this run." in text


def test_only_outside(tmp_path):
    rows = [region_row("s1", "m1", "vehicle", "outside"), region_row("s2", "m2", "vehicle", "outside")]
    text = render_report(write_run(tmp_path / "run", rows))
    assert "no counted region" in text
    assert not dots(text)


def test_empty_tables(tmp_path):
    failures = [("s1", "check", "Slide 's1': damaged.", "Scan it again.")]
    page = Page(render_report(write_run(tmp_path / "run", [], failures=failures)))
    assert "No animal could be counted." in page.text
    assert "FAILED (check): Slide 's1': damaged." in page.text


def test_names_that_look_like_numbers_or_nothing_stay(tmp_path):
    rows = [region_row("s1", "NA", "007"), region_row("s2", "1e3", "vehicle")]
    run = read_run(write_run(tmp_path / "run", rows))
    assert list(run.animals["animal"]) == ["NA", "1e3"]
    assert list(run.animals["group"]) == ["007", "vehicle"]


def test_curve_repeats_the_groups_table_at_factor_one(tmp_path):
    run = read_run(write_run(tmp_path / "run", small_study()))
    curve = threshold_curve(run)
    same = curve[curve["factor"] == 1.0].drop(columns="factor").reset_index(drop=True)
    columns = [name for name in same if name != "n_sections"]
    assert same[columns].equals(run.groups[columns])
    assert "control" not in set(curve["group"])
    by_factor = curve[curve["region"] == "core"].groupby("factor")["n_positive"].sum()
    assert list(by_factor) == [35 + 3 * step for step in (2, 1, 0, -1, -2)]


def test_methods_name_what_decides(page):
    text = page.text
    assert "3 sections of 3 animals (treated, n = 1; vehicle, n = 2) and 1 control section were analysed" in text
    assert "at a pixel size of 0.5 µm" in text
    assert "at least 50 % of the nucleus' pixels reached the threshold" in text
    assert "The threshold, 4.00, is the median plus 3 robust SD (1.4826 × MAD) of 1 234 nuclei in the control" in text


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_unfinished_run_is_refused(tmp_path, state):
    with pytest.raises(InputError, match=f"not finished.*{state}"):
        render_report(write_run(tmp_path / "run", small_study(), state=state))


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        render_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tables/groups.csv", "group\nvehicle\n"),
        ("tables/animals.csv", ""),
        ("tables/regions.csv", None),
        ("run.json", "{"),
        ("slides/s1/provenance.json", "[]"),
    ],
)
def test_damaged_file_is_named(tmp_path, file, content):
    root = write_run(tmp_path / "run", small_study())
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_text(content)
    with pytest.raises(InputError, match=re.escape(file.rsplit("/", 1)[-1])):
        render_report(root)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1\u202f234\u202f567"), (0.5, "0.500"), (999.7, "1\u202f000"), (-47.71, "−47.7"),
     (math.nan, ""), (2.5e-5, "2.50 × 10^−5"), (220.48, "220"), (np.int64(7), "7"), (np.float64(0.0), "0")],
)  # fmt: skip
def test_numbers_are_written_for_reading(value, text):
    assert number(value) == text


def test_table_without_rows_keeps_its_columns():
    page = Page(table("Nothing", ["a", "b"], []))
    assert page.text == "Nothing a b no rows"
