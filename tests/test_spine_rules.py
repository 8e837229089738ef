"""Classes, density, the edge rule and what Golgi hides: published vectors."""

import numpy as np
import pytest

from histoquant.analysis import spine_rules as rules
from histoquant.errors import InputError

VECTORS = [
    (1.5, 0.8, 0.2, "mushroom", "mushroom"),
    (1.0, 0.30, 0.10, "thin", "long thin"),
    (0.5, 0.4, 0.4, "stubby", "thin"),
    (3.4, 0.3, 0.25, "filopodium", "filopodium"),
    (1.2, 0.3, 0.3, "thin", "long thin"),
    (0.7, 0.6, 0.5, "mushroom", "thin"),
    (2.4, 0.7, 0.2, "mushroom", "filopodium"),
]


@pytest.mark.parametrize(("length", "head", "neck", "a", "b"), VECTORS)
def test_published_vectors(length, head, neck, a, b):
    assert rules.class_of(length, head, neck, rules="A") == a
    assert rules.class_of(length, head, neck, rules="B") == b
    assert {a} <= set(rules.CLASSES["A"])
    assert {b} <= set(rules.CLASSES["B"])


def test_comparisons_at_their_limits():
    assert rules.class_of(1.0, 0.35, 0.1, rules="A") == "mushroom"  # >= 0.35
    assert rules.class_of(1.0, 0.349, 0.1, rules="A") == "thin"
    assert rules.class_of(1.0, 0.55, 0.5, rules="A") == "stubby"  # 1.1 is not above 1.1
    assert rules.class_of(1.0, 0.4, 0.4, rules="A") == "thin"  # 2.5 is not below 2.5
    assert rules.class_of(3.0, 0.3, 0.1, rules="A") == "thin"  # 3 is not above 3
    assert rules.class_of(2.0, 0.5, rules="B") == "long thin"
    assert rules.class_of(0.5, 0.55, rules="B") == "stubby"


def test_what_optics_did_not_show_has_no_class():
    assert rules.class_of(1.5, 0.8, float("nan"), rules="A") == ""
    assert rules.class_of(float("nan"), 0.8, rules="B") == ""
    assert rules.class_of(0.9, 0.5, rules="B", n_heads=2) == "branched"


def test_density_counts_dendrites_without_spines():
    assert rules.density_per_10um(0, 20) == 0
    assert rules.density_per_10um(7, 20) == 3.5
    assert np.isnan(rules.density_per_10um(0, 0))
    assert rules.pooled_density([7, 0], [20, 20]) == 1.75
    assert rules.animal_density([([7, 0], [20, 20]), ([5], [10])]) == pytest.approx((1.75 + 5) / 2)
    assert np.isnan(rules.animal_density([]))


def test_half_open_segments_add_up():
    bases = np.array([0.0, 3.0, 10.0, 10.0, 19.999, 20.0])
    halves = sum(int(rules.on_segment(bases - start, 10.0).sum()) for start in (0.0, 10.0))
    assert halves == rules.on_segment(bases, 20.0).sum() == 5


@pytest.mark.parametrize(
    ("r", "length", "head", "area", "radial"), [(0.4, 1.2, 0.4, 24.0, 15.0), (0.5, 1.0, 0.4, 31.2, 16.9)]
)
def test_hidden_spines(r, length, head, area, radial):
    assert 10 * rules.hidden_factor(r, length, head) == pytest.approx(area, abs=0.05)
    assert 10 * rules.hidden_factor(r, length, head, form="radial") == pytest.approx(radial, abs=0.05)


def test_hidden_spines_need_room():
    with pytest.raises(InputError, match="clears a shaft"):
        rules.hidden_factor(0.4, 0.3, 0.4)
