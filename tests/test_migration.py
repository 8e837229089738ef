"""Ways through tissue against ways known by geometry."""

import numpy as np
import pytest
from shapely import LineString, Polygon, box

from histoquant.analysis.migration import geodesic_distance_um

SLIDE = (1200.0, 1400.0)
OPEN = box(0, 0, 1400, 1200)
WALL = box(90, 0, 100, 1200)


def test_twenty_somata_on_a_line_are_exact():
    true = np.linspace(50, 1000, 20)
    points = np.stack([np.full(20, 600.0), 100 + true], axis=1)
    found = geodesic_distance_um(points, WALL, OPEN, slide_um=SLIDE)
    assert found == pytest.approx(true, abs=1e-6)
    bins = np.arange(0, 1200, 100)
    assert np.array_equal(np.histogram(found, bins)[0], np.histogram(true, bins)[0])


def test_no_direction_is_longer_than_another():
    angles = np.radians(np.arange(0, 90, 5))
    points = np.stack([600 + 500 * np.sin(angles), 100 + 500 * np.cos(angles)], axis=1)
    spot = box(99, 599, 101, 601)
    assert geodesic_distance_um(points, spot, OPEN, slide_um=SLIDE) == pytest.approx(np.full(18, 500.0), abs=1.5)


def test_a_ventricle_makes_the_way_longer_than_the_straight_line():
    ventricle = box(400, 200, 500, 1000)
    points = np.array([[600.0, 700.0], [600.0, 300.0], [100.0, 700.0]])
    spot = box(99, 599, 101, 601)
    found = geodesic_distance_um(points, spot, OPEN - ventricle, slide_um=SLIDE)
    # Round either end: 300 along to the corner at 400 um above, across the width of 100, and back down.
    true = np.hypot(299, 400) + 100 + np.hypot(200, 400)
    assert found[0] == pytest.approx(true, rel=0.08)
    assert found[0] > 1.5 * 599
    assert found[1] == pytest.approx(199, abs=1.0)  # nothing in the way
    assert found[2] >= np.hypot(599, 499)


def test_inside_is_nothing_and_behind_a_closed_ring_is_not_reached():
    ring = Polygon(box(500, 300, 900, 900).exterior, [box(550, 350, 850, 850).exterior])
    points = np.array([[600.0, 95.0], [600.0, 700.0]])
    found = geodesic_distance_um(points, WALL, OPEN - ring, slide_um=SLIDE)
    assert found[0] == 0
    assert np.isnan(found[1])


def test_a_border_may_be_a_line():
    line = LineString([(100, 0), (100, 1200)])
    found = geodesic_distance_um(np.array([[300.0, 350.0]]), line, OPEN, slide_um=SLIDE)
    assert found == pytest.approx([250.0])
