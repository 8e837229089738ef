"""Thresholds and calls."""

import numpy as np
import pandas as pd
import pytest

from histoquant.analysis.positivity import (
    Nuclear,
    Ring,
    Scene,
    Threshold,
    automatic_threshold,
    call,
    control_threshold,
)
from histoquant.errors import InputError
from histoquant.model.panel import Marker

MARKER = Marker(channel="T", role="nuclear", positive={"threshold": "controls"})


def table_of(mean, quantile, **extra):
    n = len(mean)
    columns = {"mean_T": mean, "background_T": np.full(n, 10.0), "m_quantile": quantile, "area_um2": np.full(n, 50.0)}
    return pd.DataFrame(columns | {"mean_D": np.full(n, 100.0), "background_D": np.zeros(n)} | extra)


def scene_of(value, **noise):
    return Scene({"m": Threshold(value, "fixed")}, noise)


def rule(cls=Nuclear):
    return cls("m", "T", cls.Params())


def test_control_threshold_is_median_plus_k_robust_sd():
    values = np.array([1.0, 2, 3, 4, 5] * 8 + [np.nan])
    found = control_threshold(values, MARKER, sections=["a"])
    assert found.value == pytest.approx(3 + 3 * 1.4826 * 1.0)
    assert found.source == "controls"
    assert found.detail["n_nuclei"] == 40
    quantile = MARKER.model_copy(update={"positive": MARKER.positive.model_copy(update={"quantile": 0.9})})
    assert control_threshold(values, quantile, sections=["a"]).value == pytest.approx(np.nanquantile(values, 0.9))


def test_control_threshold_holds_the_false_positives_of_its_own_section_down():
    values = np.random.default_rng(0).normal(2, 5, 20000)
    found = control_threshold(values, MARKER, sections=["a"])
    assert np.mean(values >= found.value) == pytest.approx(0.00135, abs=0.001)


@pytest.mark.parametrize(
    ("values", "message"), [(np.ones(19), "19 nuclei"), (np.full(50, -3.0), "not above background")]
)
def test_controls_that_cannot_give_a_threshold_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        control_threshold(values, MARKER, sections=["slide_x"])


def test_automatic_threshold_splits_two_populations_and_spares_one():
    rng = np.random.default_rng(1)
    negative, positive = rng.normal(0, 5, 5000), rng.normal(200, 20, 500)
    split = automatic_threshold(np.concatenate([negative, positive]), MARKER, sections=["a"]).value
    assert 15 < split < 160
    alone = automatic_threshold(negative, MARKER, sections=["a"]).value
    assert np.mean(negative >= alone) < 0.005


def test_nuclear_rule_needs_mean_and_share_and_counts_equality():
    table = table_of(mean=[110.0, 110, 109.9, 500], quantile=[100.0, 99, 300, 20])
    assert rule()(table, scene_of(100.0)).tolist() == [True, False, False, False]
    assert rule().value(table).tolist() == pytest.approx([100, 100, 99.9, 490])


def test_an_attached_object_makes_its_nucleus_positive():
    table = table_of(mean=[10.0, 10, 10], quantile=[0.0, 0, 0], m_attached=[np.nan, 99.0, 100.0])
    assert rule()(table, scene_of(100.0)).tolist() == [False, False, True]


def test_ring_rule_looks_at_the_share_of_the_ring_only():
    table = table_of(mean=[0.0, 900], quantile=[100.0, 99])
    assert rule(Ring)(table, scene_of(100.0)).tolist() == [True, False]


def test_what_shines_in_an_unstained_channel_is_not_positive():
    panel = {
        "d": Marker(channel="D", role="counterstain"),
        "m": MARKER,
        "af": Marker(channel="A", role="autofluorescence"),
    }
    table = table_of(
        mean=[200.0] * 4,
        quantile=[200.0] * 4,
        mean_A=[100.0, 100, 12, 100],
        background_A=[10.0] * 4,
        m_correlation_af=[0.9, 0.5, 0.9, np.nan],
    )
    called = call(table, panel, {"m": rule()}, scene_of(100.0, A=1.0))
    assert called["m_positive"].tolist() == [False, True, True, True]
    assert called["m_autofluorescent"].tolist() == [True, False, False, False]


def test_death_classes():
    panel = {
        "d": Marker(channel="D", role="counterstain"),
        "m": Marker(channel="T", role="nuclear", positive={"threshold": 50.0}, death_classes=True),
    }
    table = table_of(mean=[200.0] * 5 + [0.0], quantile=[200.0] * 5 + [0.0], n_pieces=[1, 1, 3, 1, 1, 1])
    table["area_um2"] = [50.0, 20, 50, 20, 50, 50]
    table["mean_D"] = [100.0, 200, 100, 100, 100, 100]
    called = call(table, panel, {"m": rule()}, scene_of(100.0))
    assert called["m_class"].tolist() == ["diffuse", "condensed", "fragmented", "diffuse", "diffuse", ""]


def test_raising_a_threshold_never_adds_a_positive():
    rng = np.random.default_rng(2)
    table = table_of(mean=rng.normal(50, 40, 400), quantile=rng.normal(40, 40, 400), m_attached=rng.normal(0, 50, 400))
    for cls in (Nuclear, Ring):
        before = np.ones(400, dtype=bool)
        for value in np.linspace(1, 150, 30):
            now = rule(cls)(table, scene_of(float(value)))
            assert not (now & ~before).any()
            before = now
        assert before.sum() < 400
