"""Optical density, white point, stain vectors and unmixing."""

import json
import re

import numpy as np
import pytest

from histoquant.analysis.stains import (
    HEMATOXYLIN,
    REFERENCES,
    Stains,
    clipped,
    find_stains,
    looked_up,
    measured_white,
    optical_density,
    unmix,
    unmixing_matrix,
    unmixing_tables,
)
from histoquant.errors import InputError

WHITE = (255.0, 255.0, 255.0)
H_DAB = (HEMATOXYLIN, REFERENCES["dab"])


def turned(vector, degrees, away):
    """Return a unit vector turned away from another one, in their plane."""
    vector, away = (np.array(v) / np.linalg.norm(v) for v in (vector, away))
    across = vector - (vector @ away) * away
    across /= np.linalg.norm(across)
    angle = np.arccos(vector @ away) + np.radians(degrees)
    return np.cos(angle) * away + np.sin(angle) * across


def degrees_between(a, b):
    return np.degrees(np.arccos(np.clip(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def rendered(amounts, vectors, *, white=WHITE, noise=1.0, seed=0):
    """Return (3, n) grey levels of pixels with known amounts (2, n) of two stains."""
    od = np.array(vectors).T @ amounts
    light = np.array(white)[:, None] * 10**-od
    return np.clip(np.round(light + np.random.default_rng(seed).normal(0, noise, light.shape)), 0, 255)


def tissue(*, brown, n=40_000, seed=1):
    """Return amounts of hematoxylin and DAB: glass, pale tissue, nuclei; DAB in cytoplasm, in nuclei or nowhere."""
    rng = np.random.default_rng(seed)
    hematoxylin, dab = np.abs(rng.normal(0.05, 0.02, n)), np.zeros(n)
    nuclear, inside = rng.random(n) < 0.25, rng.random(n)
    part = nuclear * np.where(rng.random(n) < 0.5, 1, inside)  # half of the pixels lie on an outline
    hematoxylin += part * np.abs(rng.normal(0.35, 0.12, n))
    where = {"cytoplasm": ~nuclear & (rng.random(n) < 0.4), "nuclei": part * (rng.random(n) < 0.3)}
    if brown in where:
        dab += where[brown] * np.abs(rng.normal(0.5, 0.2, n))
    glass = rng.random(n) < 0.05
    return np.where(glass, 0, np.stack([hematoxylin, dab]))


@pytest.mark.parametrize(
    ("amounts", "grey"),
    [
        ((0.3, 0.0), (163, 157, 209)),
        ((0.0, 0.3), (212, 172, 149)),
        ((0.3, 0.2), (144, 121, 146)),
        ((0.2, 0.6), (130, 84, 76)),
        ((0.1, 1.0), (118, 59, 40)),
    ],
)
def test_known_amounts_are_rendered_and_recovered(amounts, grey):
    light = 255 * 10 ** -(np.array(H_DAB).T @ amounts)
    np.testing.assert_array_equal(np.round(light), grey)
    found = unmix(optical_density(np.array(grey), WHITE), H_DAB)
    np.testing.assert_allclose(found[:2], amounts, atol=0.01)  # 8 bits tell no more
    assert abs(found[2]) < 0.01


def test_a_pixel_and_the_matrix_that_were_worked_out_by_hand():
    found = unmix(optical_density(np.array([100, 60, 40]), WHITE), H_DAB)
    np.testing.assert_allclose(found, (0.1825, 0.9461, 0.0522), atol=5e-5)
    expected = [[1.2086, -0.6972, 0.6330], [0.6844, 0.0210, -0.7129], [-0.9185, 1.5120, 0.3018]]
    np.testing.assert_allclose(unmixing_matrix(H_DAB), expected, atol=5e-5)
    longer = unmixing_matrix(np.array(H_DAB) * [[3.0], [0.2]])  # a vector is a direction
    np.testing.assert_allclose(longer, unmixing_matrix(H_DAB), atol=1e-12)


def test_less_than_nothing_is_kept():
    """Pink under H-DAB vectors gives negative amounts; clipping them would bias every mean."""
    assert unmix(optical_density(np.array([250, 120, 250]), WHITE), H_DAB).min() < -0.1


def test_black_is_counted_and_has_the_density_of_one_grey_level():
    rgb = np.array([[0, 1, 10, 0], [5, 1, 10, 0], [9, 1, 10, 0]])
    assert clipped(rgb) == 2
    od = optical_density(rgb, WHITE)
    assert od[0, 0] == od[0, 1] == pytest.approx(2.4065, abs=1e-4)


def test_one_stain_alone_is_the_projection_on_it():
    od = np.array(HEMATOXYLIN)[:, None] * 0.4 + np.array([[0.0], [0.0], [0.1]])
    (amount,) = unmix(od, (HEMATOXYLIN,))
    unit = np.array(HEMATOXYLIN) / np.linalg.norm(HEMATOXYLIN)
    assert amount == pytest.approx(od[:, 0] @ unit)


@pytest.mark.parametrize(
    "vectors", [((0, 0, 0), HEMATOXYLIN), (HEMATOXYLIN, HEMATOXYLIN), ((1, 2),), ((np.nan, 1, 1),)]
)
def test_vectors_that_are_none_are_refused(vectors):
    with pytest.raises(InputError):
        unmixing_matrix(vectors)
    with pytest.raises(InputError, match="white point"):
        optical_density(np.zeros((3, 2)), (255, 0, 255))


def test_tables_give_what_the_formula_gives_and_the_same_bits_in_every_crop():
    rgb = np.random.default_rng(0).integers(0, 256, (3, 1, 61, 67)).astype(np.uint8)
    stains = Stains(("hematoxylin", "dab"), H_DAB, (241.0, 239.5, 243.0), 0.1, False, (), 1.0)
    planes = looked_up(rgb, unmixing_tables(stains))
    expected = unmix(optical_density(rgb, stains.white), H_DAB)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes, expected, atol=1e-6)
    crop = looked_up(rgb[:, :, 7:50, 3:66], unmixing_tables(stains)[1:2])
    assert np.array_equal(crop[0], planes[1, :, 7:50, 3:66])


def test_white_is_that_of_glass():
    white = (238.0, 241.0, 236.0)
    rgb = rendered(tissue(brown="cytoplasm"), H_DAB, white=white)
    found, share = measured_white(rgb)
    np.testing.assert_allclose(found, white, atol=2.5)
    assert 0.01 < share < 0.2
    filled = np.concatenate([rgb, np.full((3, 9000), 255.0), np.zeros((3, 9000))], axis=1)
    np.testing.assert_allclose(measured_white(filled)[0], white, atol=2.5)  # what was not scanned is no glass


def test_without_glass_white_is_full_scale_and_says_so():
    everywhere = tissue(brown="cytoplasm") + np.array([[0.2], [0.05]])
    assert measured_white(rendered(everywhere, H_DAB)) == (WHITE, 0.0)
    purple = np.full((3, 5000), 1.0) * [[190], [165], [215]]
    assert measured_white(purple) == (WHITE, 0.0)
    assert measured_white(np.full((3, 50), 255.0)) == (WHITE, 1.0)  # glass that saturates is glass
    assert measured_white(np.empty((3, 0))) == (WHITE, 0.0)


@pytest.mark.parametrize("off", [0.0, 6.0])
def test_vectors_of_a_slide_are_found(off):
    """The stains of a lab 6 degrees from the reference each are found to within half of that."""
    truth = (turned(H_DAB[0], off, H_DAB[1]), turned(H_DAB[1], off, H_DAB[0]))
    found = find_stains(rendered(tissue(brown="cytoplasm"), truth), "dab", estimated=True)
    assert found.estimated, found.refused
    assert found.channels == ("hematoxylin", "dab", "residual")
    for vector, true in zip(found.vectors, truth, strict=True):
        assert degrees_between(vector, true) < 3.0
        assert np.linalg.norm(vector) == pytest.approx(1)
    assert found.explained > 0.99
    asked_not_to = find_stains(rendered(tissue(brown="cytoplasm"), truth), "dab", estimated=False)
    assert asked_not_to.vectors == H_DAB
    assert asked_not_to.refused == ""


@pytest.mark.parametrize(
    ("brown", "reason"), [("nowhere", "degrees from the reference|apart"), ("nuclei", "mixtures|degrees from")]
)
def test_vectors_that_cannot_be_told_fall_back_to_the_reference(brown, reason):
    """A negative control shows no DAB; where DAB lies on nuclei only, every brown pixel is a mixture."""
    found = find_stains(rendered(tissue(brown=brown), H_DAB), "dab", estimated=True)
    assert not found.estimated
    assert found.vectors == H_DAB
    assert re.search(reason, found.refused)
    assert len(found.angles_deg) == 2


def test_with_next_to_no_tissue_nothing_is_estimated():
    rgb = rendered(tissue(brown="cytoplasm", n=900), H_DAB)
    assert "stained" in find_stains(rgb, "dab", estimated=True).refused
    empty = find_stains(np.full((3, 400), 250.0), "dab", estimated=True)
    assert empty.vectors == H_DAB
    assert np.isnan(empty.explained)


def test_what_stands_beside_hematoxylin_is_seen_on_the_slide():
    brown = find_stains(rendered(tissue(brown="cytoplasm"), H_DAB), None, estimated=True)
    assert brown.names == ("hematoxylin", "dab")
    pink = find_stains(rendered(tissue(brown="cytoplasm"), (HEMATOXYLIN, REFERENCES["eosin"])), None, estimated=True)
    assert pink.names == ("hematoxylin", "eosin")
    alone = find_stains(rendered(tissue(brown="nowhere"), H_DAB), None, estimated=True)
    assert alone.names == alone.channels == ("hematoxylin",)


def test_stains_survive_being_kept():
    rgb = rendered(tissue(brown="cytoplasm"), H_DAB)
    for kept in (
        find_stains(rgb, "dab", estimated=True),
        find_stains(rgb, "eosin", estimated=True),
        find_stains(rendered(tissue(brown="nowhere"), H_DAB), None, estimated=True),
    ):
        assert Stains.from_dict(json.loads(json.dumps(kept.as_dict(), allow_nan=False))) == kept
    empty = find_stains(np.full((3, 400), 250.0), "dab", estimated=True)
    again = Stains.from_dict(json.loads(json.dumps(empty.as_dict(), allow_nan=False)))
    assert np.isnan(again.explained)
    assert again.vectors == empty.vectors
