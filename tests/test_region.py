"""Regions: derived zones of known area, and a slide that is shared out without gap or overlap."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from histoquant.errors import Faults, InputError, RegionError
from histoquant.model import geometry as plane
from histoquant.model.region import Region, RegionRule, RegionSet, resolve
from histoquant.model.slide import Box

SLIDE = (4000.0, 5000.0)  # height, width in um
DISC = shapely.Point(2000, 1800).buffer(1000, quad_segs=256)


def rule(**entries):
    return RegionRule.model_validate(entries)


def square(name, x0, y0, x1, y1, **more):
    return Region(name, shapely.box(x0, y0, x1, y1), **more)


def areas(regions: RegionSet) -> dict[str, float]:
    table = regions.table()
    return dict(zip(table["region"], table["area_mm2"], strict=True))


def grid(step=37.0):
    y, x = np.meshgrid(np.arange(step / 2, SLIDE[0], step), np.arange(step / 2, SLIDE[1], step), indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=1)


# ------------------------------------------------------------------ derived zones


def test_band_around_a_disc_has_the_area_of_a_ring():
    """Science: 0 to 500 um around a lesion of 1 mm radius is pi (1.5^2 - 1^2) = 3.927 mm2."""
    regions = resolve([Region("lesion", DISC)], {"ibz": rule(band={"of": "lesion"})}, slide=SLIDE)
    assert areas(regions)["ibz"] == pytest.approx(np.pi * 1.25, rel=1e-3)
    inner = resolve(
        [Region("lesion", DISC)],
        {
            "ibz": rule(band={"of": "lesion", "from_um": -500, "to_um": 0}, parent="lesion"),
            "both": rule(band={"of": "lesion", "from_um": -500, "to_um": 500}, counted=False),
        },
        slide=SLIDE,
    )
    assert areas(inner)["ibz"] == pytest.approx(np.pi * 0.75, rel=1e-3)
    assert inner["both"].geometry.area / 1e6 == pytest.approx(np.pi * 2, rel=1e-3)


def test_band_holds_the_points_at_its_distances():
    regions = resolve(
        [Region("lesion", DISC)], {"ibz": rule(band={"of": "lesion", "from_um": 200, "to_um": 400})}, slide=SLIDE
    )
    points = grid()
    distance = regions.signed_distance_um("lesion", points)
    assert distance == pytest.approx(np.hypot(points[:, 0] - 1800, points[:, 1] - 2000) - 1000, abs=0.1)
    clear = (np.abs(distance - 200) > 0.1) & (np.abs(distance - 400) > 0.1)
    in_band = regions.assign(points) == "ibz"
    assert np.array_equal(in_band[clear], ((distance >= 200) & (distance < 400))[clear])
    assert in_band.any()


def test_band_is_clipped_to_tissue_limits_and_what_is_taken_away():
    half = shapely.box(0, 0, 2000, 4000)
    lesion = Region("lesion", DISC)
    band = {"of": "lesion"}
    ring = np.pi * 1.25
    found = resolve([lesion], {"ibz": rule(band=band)}, slide=SLIDE, tissue=half)
    assert areas(found)["ibz"] == pytest.approx(ring / 2, rel=1e-3)
    drawn = Region("tissue", shapely.box(0, 1800, 5000, 4000))
    preferred = resolve([lesion, drawn], {"ibz": rule(band=band)}, slide=SLIDE, tissue=half)
    assert areas(preferred)["ibz"] == pytest.approx(ring / 2, rel=1e-3)
    assert preferred["ibz"].geometry.bounds[1] == pytest.approx(1800)
    stated = resolve([lesion], {"ibz": rule(band=band, within="slide")}, slide=SLIDE, tissue=half)
    assert areas(stated)["ibz"] == pytest.approx(ring, rel=1e-3)
    # a hemisphere and a ventricle that each halve the ring leave a quarter of it
    cut = resolve(
        [
            lesion,
            square("hemisphere", 0, 0, 2000, 4000, counted=False),
            square("ventricle", 0, 0, 5000, 1800, counted=False),
        ],
        {"ibz": rule(band=band, within="hemisphere", minus=["ventricle"])},
        slide=SLIDE,
    )
    assert areas(cut)["ibz"] == pytest.approx(ring / 4, rel=1e-3)


def test_band_of_a_line_is_a_strip():
    wall = Region("wall", shapely.LineString([(1000, 1000), (1000, 3000)]), counted=False)
    regions = resolve([wall], {"svz": rule(band={"of": "wall", "to_um": 100})}, slide=SLIDE)
    assert areas(regions)["svz"] == pytest.approx((200 * 2000 + np.pi * 100**2) / 1e6, rel=1e-4)
    with pytest.raises(RegionError, match="no inside"):
        resolve([wall], {"svz": rule(band={"of": "wall", "from_um": -50, "to_um": 100})}, slide=SLIDE)


def test_the_slides_rim_is_no_border_of_a_lesion():
    left = square("lesion", -500, -10, 1000, 4010)
    regions = resolve(
        [left], {"rind": rule(band={"of": "lesion", "from_um": -200, "to_um": 0}, parent="lesion")}, slide=SLIDE
    )
    assert areas(regions)["rind"] == pytest.approx(200 * 4000 / 1e6)
    assert regions.signed_distance_um("lesion", [[5.0, 5.0], [5.0, 1500.0]]) == pytest.approx([-995, 500])
    assert any("clipped" in note for note in regions["lesion"].notes)


def test_mirror_keeps_area_and_mirrored_twice_is_the_same():
    midline = Region("midline", shapely.LineString([(2500, 0), (2600, 1500), (2700, 4000)]), counted=False)
    small = square("zone", 1000, 1000, 1500, 1700)
    regions = resolve([small, midline], {"contra": rule(mirror={"of": "zone"})}, slide=SLIDE)
    assert areas(regions)["contra"] == pytest.approx(areas(regions)["zone"], rel=1e-12)
    assert regions["contra"].geometry.centroid.x > 2600
    back = plane.mirrored(regions["contra"].geometry, [(2500, 0), (2700, 4000)])
    assert shapely.hausdorff_distance(back, small.geometry) < 1e-9
    by_points = resolve(
        [small], {"contra": rule(mirror={"of": "zone", "midline": [[0, 2500], [4000, 2700]]})}, slide=SLIDE
    )
    assert shapely.hausdorff_distance(by_points["contra"].geometry, regions["contra"].geometry) < 1e-9


def test_difference_and_intersection():
    regions = resolve(
        [square("a", 0, 0, 1000, 1000), square("b", 500, 0, 1500, 1000)],
        {
            "a": rule(counted=False),
            "b": rule(counted=False),
            "shared": rule(intersection={"of": ["a", "b"]}),
            "only_a": rule(difference={"of": "a", "minus": ["b"]}),
            "only_b": rule(difference={"of": "b", "minus": ["shared"]}),
        },
        slide=SLIDE,
    )
    assert areas(regions) == pytest.approx({"shared": 0.5, "only_a": 0.5, "only_b": 0.5, "outside": 18.5})


def test_empty_derived_region_is_a_row_not_an_error():
    far = shapely.box(4500, 3500, 4600, 3600)
    regions = resolve([Region("lesion", DISC)], {"ibz": rule(band={"of": "lesion"})}, slide=SLIDE, tissue=far)
    assert regions.empty == ("ibz",)
    assert areas(regions)["ibz"] == 0
    assert any("ibz" in note and "empty" in note for note in regions.notes)
    assert np.isnan(regions.signed_distance_um("ibz", [[1.0, 1.0]])).all()
    assert not regions.pixel_mask("ibz", Box(0, 5, 0, 7), 1.0).any()
    assert list(regions.assign(np.empty((0, 2)))) == []


# ------------------------------------------------------------------ the slide is shared out


def test_nothing_drawn_is_the_whole_slide():
    regions = resolve([], {}, slide=SLIDE)
    assert regions.counted == ("slide",)
    assert areas(regions) == pytest.approx({"slide": 20.0, "outside": 0.0})
    reference = resolve([square("tissue", 0, 0, 100, 100)], {}, slide=SLIDE)
    assert reference.counted == ("slide",)


def test_deepest_region_takes_the_point_and_masked_ground_wins():
    regions = resolve(
        [
            square("hippocampus", 100, 100, 1100, 1100, parent="brain"),
            square("brain", 0, 0, 2000, 2000),
            square("dg", 300, 300, 500, 500, parent="hippocampus"),
            square("tear", 400, 0, 450, 4000, masked=True),
            square("other", 2000, 0, 3000, 2000),
        ],
        {},
        slide=SLIDE,
    )
    assert [region.name for region in regions] == ["brain", "hippocampus", "dg", "tear", "other"]
    points = [[50, 50], [150, 150], [350, 350], [350, 420], [50, 3500], [300, 300], [500, 2000]]
    expected = ["brain", "hippocampus", "dg", "masked", "outside", "dg", "brain"]
    assert regions.assign(points).tolist() == expected
    assert regions.ancestors("dg") == ("hippocampus", "brain")
    assert regions.children("brain") == ("hippocampus",)
    table = regions.table().set_index("region")
    assert table.loc["dg", "parent"] == "hippocampus"
    assert table.loc["brain", "area_mm2"] == pytest.approx(4.0 - 0.1)
    assert table.loc["brain", "masked_area_mm2"] == pytest.approx(0.1)
    assert table.loc["dg", "masked_area_mm2"] == pytest.approx(0.01)
    assert table.loc["masked", "area_mm2"] == pytest.approx(0.2)
    assert table.index.tolist() == ["brain", "hippocampus", "dg", "other", "masked", "outside"]


def test_uncounted_parents_pass_counts_on():
    regions = resolve(
        [
            square("brain", 0, 0, 2000, 2000),
            square("mid", 0, 0, 1000, 1000, parent="brain", counted=False),
            square("leaf", 0, 0, 500, 500, parent="mid"),
        ],
        {},
        slide=SLIDE,
    )
    assert regions.ancestors("leaf") == ("brain",)
    assert regions.children("brain") == ("leaf",)
    assert regions.table().set_index("region").loc["leaf", "parent"] == "brain"


def check_conservation(regions: RegionSet) -> None:
    table = regions.table().set_index("region")
    roots = table[(table["parent"] == "")]
    assert roots["area_mm2"].sum() == pytest.approx(SLIDE[0] * SLIDE[1] / 1e6, rel=1e-9)
    if "masked" in table.index:
        assert roots["masked_area_mm2"].sum() == pytest.approx(table.loc["masked", "area_mm2"], rel=1e-9, abs=1e-12)
    for name in regions.counted:
        inside = sum(table.loc[child, "area_mm2"] for child in regions.children(name))
        assert inside <= table.loc[name, "area_mm2"] * (1 + 1e-9) + 1e-12
    points = grid()
    place = regions.assign(points)
    assert set(place) <= {*regions.counted, "masked", "outside"}
    # a point stands for 37 x 37 um, so that counting points errs by no more than what the borders run through
    border = sum(region.geometry.length for region in regions) + 2 * sum(SLIDE)
    for name in ("outside", *regions.counted):
        children = () if name == "outside" else regions.children(name)
        own = table.loc[name, "area_mm2"] - sum(table.loc[child, "area_mm2"] for child in children)
        assert (place == name).sum() * 37**2 / 1e6 == pytest.approx(own, abs=border * 37 * 2**0.5 / 1e6)


corner = st.integers(0, 40).map(lambda n: n * 125.0)


@st.composite
def polygons(draw):
    """Outlines of any shape, with holes and several parts: unions and differences of discs and boxes."""
    shape = shapely.Polygon()
    for _ in range(draw(st.integers(1, 4))):
        x, y, size = draw(corner), draw(corner), draw(st.integers(1, 12)) * 125.0
        part = shapely.Point(x, y).buffer(size, 7) if draw(st.booleans()) else shapely.box(x, y, x + size, y + 70)
        shape = shape.difference(part) if draw(st.booleans()) and not shape.is_empty else shape.union(part)
    return shape


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(polygons(), min_size=1, max_size=6), st.data())
def test_areas_and_points_are_conserved_whatever_is_drawn(shapes, data):
    visible = shapely.box(0, 0, SLIDE[1], SLIDE[0])
    drawn = []
    for number, shape in enumerate(shapes):
        if plane.ground(shape).is_empty or shape.intersection(visible).area == 0:
            continue
        masked = data.draw(st.booleans())
        drawn.append(Region(f"r{number}", plane.ground(shape), masked=masked))
        if not masked and data.draw(st.booleans()):
            within = plane.ground(shape.intersection(shapely.box(0, 0, 1500, 5000)))
            if within.area > 0:
                drawn.append(Region(f"r{number}.child", within, parent=f"r{number}"))
    rules = {}
    if drawn and data.draw(st.booleans()):
        rules["band"] = rule(band={"of": drawn[0].name, "from_um": -100, "to_um": 300})
    check_conservation(resolve(drawn, rules, slide=SLIDE, overlap="first"))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(polygons(), st.floats(0, 5000), st.floats(0, 4000))
def test_cutting_a_region_in_two_conserves_area_points_and_pixels(shape, x, y):
    shape = plane.ground(shape.intersection(shapely.box(0, 0, SLIDE[1], SLIDE[0])))
    if shape.area < 1:
        return
    knife = shapely.Polygon([(-9e4, y - 5e4), (x, y), (x + 3e4, y + 9e4), (-9e4, 9e4)])
    parts = {"left": plane.ground(shape.intersection(knife)), "right": plane.ground(shape.difference(knife))}
    whole = resolve([Region("whole", shape)], {}, slide=SLIDE)
    cut = resolve([Region(name, part) for name, part in parts.items() if part.area > 0], {}, slide=SLIDE)
    table = areas(cut)
    assert sum(table.get(name, 0) for name in parts) == pytest.approx(areas(whole)["whole"], rel=1e-9)
    points = grid(31.0)
    assert np.array_equal(whole.assign(points) == "whole", np.isin(cut.assign(points), list(parts)))
    box = Box(0, 80, 0, 100)
    masks = [whole.pixel_mask(part, box, 50.0) for part in parts.values()]
    assert not (masks[0] & masks[1]).any()
    # the cut's end points are rounded (1e-12 um), so a pixel centre exactly on an edge may go either way
    assert ((masks[0] | masks[1]) != whole.pixel_mask("whole", box, 50.0)).sum() <= 2


def test_shared_border_belongs_to_the_first():
    pair = [square("left", 0, 0, 1000, 1000), square("right", 1000, 0, 2000, 1000)]
    assert resolve(pair, {}, slide=SLIDE).assign([[500, 1000]]).tolist() == ["left"]
    assert resolve(pair[::-1], {}, slide=SLIDE).assign([[500, 1000]]).tolist() == ["right"]


def test_points_must_be_finite():
    with pytest.raises(InputError, match="1 of 2"):
        resolve([], {}, slide=SLIDE).assign([[1.0, 2.0], [np.nan, 2.0]])


# ------------------------------------------------------------------ pixels


def test_pixel_mask_agrees_with_pixel_centres_and_not_with_the_box():
    shape = DISC.difference(shapely.box(1900, 1700, 2100.3, 1900.7)).union(shapely.box(3500, 10, 3600, 900))
    regions = resolve([Region("r", shape)], {}, slide=SLIDE)
    px = 6.5
    whole = Box(0, 615, 0, 769)
    mask = regions.pixel_mask("r", whole, px)
    rows, columns = np.mgrid[0:615, 0:769]
    assert np.array_equal(mask, shapely.contains_xy(shape, (columns + 0.5) * px, (rows + 0.5) * px))
    for box in (Box(100, 333, 200, 401), Box(0, 1, 0, 769), Box(300, 301, 300, 301), Box(250, 300, 280, 330)):
        assert np.array_equal(regions.pixel_mask("r", box, px), mask[box.y0 : box.y1, box.x0 : box.x1])
    with pytest.raises(RegionError, match="covers no pixels"):
        regions.pixel_mask(shapely.LineString([(0, 0), (1, 1)]), whole, px)


def test_pixels_on_a_shared_border_go_to_one_side():
    """Borders through pixel centres: 2 x 2 squares of 2.5 pixels each."""
    regions = resolve(
        [square(f"{i}{j}", 2.5 * j, 2.5 * i, 2.5 * j + 2.5, 2.5 * i + 2.5) for i in range(2) for j in range(2)],
        {},
        slide=(10.0, 10.0),
    )
    masks = [regions.pixel_mask(name, Box(0, 10, 0, 10), 1.0) for name in regions.counted]
    total = np.sum(masks, axis=0)
    assert total.max() == 1
    assert total.sum() == 25


def test_lines_for_drawing_are_in_pixels_y_x():
    holed = shapely.box(0, 0, 40, 20).difference(shapely.box(10, 5, 12, 8))
    line = Region("midline", shapely.LineString([(0, 10), (30, 14)]), counted=False)
    drawn = {r.name: rings for r, rings in resolve([Region("r", holed), line], {}, slide=SLIDE).lines_px(2.0)}
    assert len(drawn["r"]) == 2
    assert drawn["r"][0].max(axis=0).tolist() == [10, 20]
    assert drawn["midline"][0].tolist() == [[5, 0], [7, 15]]


# ------------------------------------------------------------------ faults


def faults_of(*args, **kwargs) -> list[str]:
    with pytest.raises((RegionError, Faults)) as caught:
        resolve(*args, slide=SLIDE, **kwargs)
    error = caught.value
    return [str(fault) for fault in (error.faults if isinstance(error, Faults) else [error])]


def test_undeclared_overlap_names_both_and_the_remedy_works():
    pair = [square("a", 0, 0, 1000, 1000), square("b", 900, 0, 2000, 1000)]
    (text,) = faults_of(pair, {}, slide_name="M3")
    assert "'a'" in text
    assert "'b'" in text
    assert 'minus = ["a"]' in text
    assert "Slide 'M3'" in text
    assert areas(resolve(pair, {"b": rule(minus=["a"])}, slide=SLIDE))["b"] == pytest.approx(1.0)
    assert resolve(pair, {"b": rule(counted=False)}, slide=SLIDE).counted == ("a",)
    first = resolve(pair, {}, slide=SLIDE, overlap="first")
    assert areas(first) == pytest.approx({"a": 1.0, "b": 1.0, "outside": 18.0})
    assert any("left to 'a'" in note for note in first["b"].notes)
    # the control: regions that only touch do not overlap
    resolve([square("a", 0, 0, 1000, 1000), square("b", 1000, 0, 2000, 1000)], {}, slide=SLIDE)


def test_child_must_lie_in_its_parent_up_to_a_drawn_line():
    parent = square("p", 0, 0, 1000, 1000)
    resolve([parent, square("c", 0, 0, 1000.5, 1000, parent="p")], {}, slide=SLIDE)
    (text,) = faults_of([parent, square("c", 0, 0, 1100, 1000, parent="p")], {})
    assert "'c'" in text
    assert "'p'" in text


def test_all_faults_come_together():
    bow_tie = Region("bow", shapely.Polygon([(0, 0), (100, 100), (100, 0), (0, 100)]))
    texts = faults_of(
        [
            bow_tie,
            square("gone", 9000, 0, 9100, 100),
            square("orphan", 0, 2000, 10, 2010, parent="nobody"),
            square("a", 0, 0, 1000, 1000),
            square("b", 900, 0, 2000, 1000),
        ],
        {"ibz": rule(band={"of": "lesion"}), "from_bow": rule(band={"of": "bow"})},
    )
    assert len(texts) == 5
    for word in ("Self-intersection", "off the slide", "nobody", "needs 'lesion'", "overlap"):
        assert sum(word in text for text in texts) == 1


@pytest.mark.parametrize(
    ("drawn", "rules", "word"),
    [
        ([], {"a": rule(difference={"of": "b", "minus": ["c"]}), "b": rule(difference={"of": "a", "minus": ["c"]}),
              "c": rule(band={"of": "b"})}, "circle"),
        ([square("a", 0, 0, 9, 9, parent="b"), square("b", 0, 0, 9, 9, parent="a")], {}, "circle"),
        ([square("a", 0, 0, 9, 9)], {"a": rule(band={"of": "a"})}, "both drawn"),
        ([square("slide", 0, 0, 9, 9)], {}, "fixed meaning"),
        ([square("outside", 0, 0, 9, 9)], {}, "fixed meaning"),
        ([square("a", 0, 0, 9, 9), square("m", 20, 0, 29, 9)], {"c": rule(mirror={"of": "a", "midline": "m"})}, "line"),
        ([square("a", 0, 0, 9, 9)], {"c": rule(mirror={"of": "a"})}, "'midline'"),
        ([square("a", 0, 0, 9, 9, masked=True)], {"a": rule(counted=True)}, "masked"),
        ([square("a", 0, 0, 9, 9), square("a", 20, 0, 29, 9, masked=True)], {}, "some are masked"),
        ([square("a", 0, 0, 9, 9), Region("a", shapely.LineString([(0, 0), (1, 1)]))], {}, "lines"),
        ([Region("a", shapely.Polygon())], {}, "empty"),
        ([Region("a", shapely.LineString([(0, 0), (1, 1)]))], {"a": rule(counted=True)}, "line"),
        ([square("a", 0, 0, 9, 9)], {"b": rule(band={"of": "a"}, within="tissue")}, "'tissue'"),
    ],
)  # fmt: skip
def test_faults(drawn, rules, word):
    assert any(word in text for text in faults_of(drawn, rules))


def test_outlines_of_one_name_become_one_region():
    regions = resolve([square("a", 0, 0, 1000, 1000), square("a", 500, 0, 1500, 1000)], {}, slide=SLIDE)
    assert areas(regions)["a"] == pytest.approx(1.5)
    assert any("2 outlines" in note for note in regions.notes)


def test_rules_for_what_is_not_drawn_are_noted_and_tissue_can_be_counted():
    tissue = shapely.box(0, 0, 2000, 2000)
    rules = {"Lesoin": rule(counted=True), "tissue": rule(counted=True), "core": rule(parent="tissue")}
    regions = resolve([square("core", 0, 0, 500, 500)], rules, slide=SLIDE, tissue=tissue)
    assert regions.counted == ("tissue", "core")
    assert areas(regions)["tissue"] == pytest.approx(4.0)
    assert any("Lesoin" in note for note in regions.notes)


@pytest.mark.parametrize(
    "entries",
    [
        {"band": {"of": "a"}, "mirror": {"of": "a"}},
        {"band": {"of": "a", "from_um": 500, "to_um": 500}},
        {"band": {"of": "a", "to_um": float("inf")}},
        {"band": {"of": "a", "width_um": 500}},
        {"mirror": {"of": "a", "midline": [[1, 1], [1, 1]]}},
        {"intersection": {"of": ["a"]}},
        {"difference": {"of": "a", "minus": []}},
        {"counted": True, "masked": True},
        {"parent": "  "},
        {"colour": "red"},
    ],
)
def test_rules_that_make_no_sense_are_refused(entries):
    with pytest.raises(ValidationError):
        RegionRule.model_validate(entries)


def test_every_field_of_a_rule_can_become_a_form():
    schema = RegionRule.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for name, entry in part.get("properties", {}).items():
            assert entry.get("title"), name
            assert entry.get("description"), name


def test_grounds_are_what_assign_and_table_say():
    regions = resolve(
        [
            square("brain", 0, 0, 2000, 2000),
            square("dg", 300, 300, 500, 500, parent="brain"),
            square("tear", 400, 0, 450, 4000, masked=True),
        ],
        {},
        slide=SLIDE,
    )
    grounds = regions.grounds()
    assert list(grounds) == ["brain", "dg", "masked", "outside"]
    assert sum(shape.area for shape in grounds.values()) == pytest.approx(SLIDE[0] * SLIDE[1], rel=1e-12)
    points = grid()
    place = regions.assign(points)
    for name, shape in grounds.items():
        assert np.array_equal(place == name, plane.covers(shape, points))
    box = Box(0, 80, 0, 100)
    assert (np.sum([regions.pixel_mask(shape, box, 50.0) for shape in grounds.values()], axis=0) == 1).all()


def test_blank_slide_has_no_tissue_and_no_fault():
    nothing = shapely.Polygon()
    mask = Region("off tissue", nothing, masked=True)
    rules = {"rim": rule(band={"of": "lesion"})}
    regions = resolve([Region("lesion", DISC), mask], rules, slide=SLIDE, tissue=nothing)
    assert regions.empty == ("rim",)
    assert areas(regions)["rim"] == 0
    assert "masked" not in areas(regions)
    assert not any("no outline of the tissue" in note for note in regions.notes)
    unknown = resolve([Region("lesion", DISC)], rules, slide=SLIDE)
    assert any("no outline of the tissue" in note for note in unknown.notes)
