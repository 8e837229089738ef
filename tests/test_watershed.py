import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from histoquant.analysis.agreement import pool, score_labels
from histoquant.analysis.background import estimate
from histoquant.analysis.basins import local_basins
from histoquant.errors import InputError
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box
from histoquant.segmenters.watershed import Watershed
from histoquant.testing import check_segmenter

PIXEL_UM = 0.5
DATA = Path(__file__).parents[1].parent / "shared" / "data" / "nuclei_dsb2018"


def nuclei(shape, per_mm2, diameter_um=7.5, pixel_um=PIXEL_UM, seed=0):
    """Blurred textured ellipses on uneven ground, and their labels."""
    rng = np.random.default_rng(seed)
    radius = diameter_um / pixel_um / 2
    wanted = per_mm2 * shape[0] * shape[1] * pixel_um**2 / 1e6
    places = []
    for place in rng.uniform(0, shape, (int(20 * wanted), 2)):
        # The distance of touching ellipses; crowded ones overlap at the rim as in a section.
        if len(places) < wanted and all(np.hypot(*(place - other)) > 1.6 * radius for other in places):
            places.append(place)
    light, labels = np.zeros(shape), np.zeros(shape, dtype=np.uint32)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), radius / 4)
    texture = 1 + 0.2 * texture / texture.std()
    reach = int(2 * radius) + 2
    all_rows, all_columns = np.indices(shape)
    for number, (y, x) in enumerate(places, start=1):
        near = np.s_[max(0, int(y) - reach) : int(y) + reach, max(0, int(x) - reach) : int(x) + reach]
        rows, columns = all_rows[near], all_columns[near]
        angle, size, ratio = rng.uniform(0, np.pi), radius * rng.normal(1, 0.1), rng.uniform(1.0, 1.3)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / (size * ratio**0.5)) ** 2 + (across / (size / ratio**0.5)) ** 2 <= 1
        light[near][inside] += rng.uniform(0.6, 1.3) * texture[near][inside]
        labels[near][inside & (labels[near] == 0)] = number
    rows = np.arange(shape[0])[:, np.newaxis]
    haze = 0.25 * ndimage.gaussian_filter(light, 6 * radius)
    image = ndimage.gaussian_filter(light, 0.6) + haze + 0.2 * np.cos(rows / 300) + rng.normal(0, 0.05, shape)
    return image.astype(np.float32), labels


def as_slide(raw, pixel_um=PIXEL_UM):
    """Normalise a raw image as the pipeline does: background and range of the whole slide."""
    background = estimate(raw[np.newaxis], 1, pixel_size_um=pixel_um, settings=BackgroundSettings())
    plane = (raw - background.at(Box(0, raw.shape[0], 0, raw.shape[1]), 0)) / background.scale[0]
    return plane.astype(np.float32)[np.newaxis, np.newaxis]


def resolved(image, pixel_um=PIXEL_UM, **given):
    return Watershed(Watershed(Watershed.Params(**given)).survey([image], pixel_um))


def objects(labels, shift=(0, 0)):
    """Objects as (pixels, centroid); pixels are comparable between crops."""
    inside = np.flatnonzero(labels)
    order = inside[np.argsort(labels.ravel()[inside], kind="stable")]
    ids, starts = np.unique(labels.ravel()[order], return_index=True)
    rows, columns = np.divmod(order, labels.shape[1])
    pixels = np.split(np.stack([rows + shift[0], columns + shift[1]], axis=1), starts[1:])
    return [(part.tobytes(), part.mean(axis=0)) for part in pixels[: len(ids)]]


def in_tiles(segment, image, core, pixel_um=PIXEL_UM):
    """The objects whose centroid lies in each tile's core."""
    halo = int(np.ceil(segment.halo_um / pixel_um) + 2 * segment.params.diameter_um / pixel_um)
    height, width = image.shape[2:]
    found = []
    for y in range(0, height, core):
        for x in range(0, width, core):
            top, left = max(0, y - halo), max(0, x - halo)
            crop = image[:, :, top : y + core + halo, left : x + core + halo]
            found += [
                pixels
                for pixels, (row, column) in objects(segment(crop, pixel_um)[0], (top, left))
                if y <= row < y + core and x <= column < x + core
            ]
    return found


@pytest.fixture(scope="module")
def crowded():
    raw, truth = nuclei((800, 900), 3500, seed=3)
    image = as_slide(raw)
    return image, truth, resolved(image)


@pytest.mark.parametrize("core", [128, 256, 512])
def test_tile_size_does_not_matter(crowded, core):
    image, _, segment = crowded
    whole = [pixels for pixels, _ in objects(segment(image, PIXEL_UM)[0])]
    tiled = in_tiles(segment, image, core)
    assert len(tiled) == len(whole) > 400
    assert set(tiled) == set(whole)


def test_without_a_halo_tiles_do_differ(crowded):
    """The control of the law above: it is not kept for free."""
    image, _, segment = crowded
    whole = {pixels for pixels, _ in objects(segment(image, PIXEL_UM)[0])}
    cut = {pixels for pixels, _ in objects(segment(image[:, :, :256, :256], PIXEL_UM)[0])}
    assert not cut <= whole


@pytest.mark.parametrize("shift", [(13, 7), (1, 0), (0, 31)])
def test_shift_moves_objects_and_changes_nothing_else(crowded, shift):
    image, _, segment = crowded
    framed = np.pad(image, ((0, 0), (0, 0), (160, 160), (160, 160)))
    moved = np.roll(framed, shift, axis=(2, 3))
    first = {pixels for pixels, _ in objects(segment(framed, PIXEL_UM)[0], shift)}
    assert first == {pixels for pixels, _ in objects(segment(moved, PIXEL_UM)[0])}
    assert first


@pytest.mark.parametrize(("pixel_um", "per_mm2", "least"), [(0.325, 1600, 0.95), (0.65, 1600, 0.95), (0.5, 3500, 0.9)])
def test_nuclei_of_known_truth(pixel_um, per_mm2, least):
    side = int(300 / pixel_um)
    raw, truth = nuclei((side, side), per_mm2, pixel_um=pixel_um, seed=1)
    image = as_slide(raw, pixel_um)
    segment = resolved(image, pixel_um)
    [score] = score_labels(segment(image, pixel_um)[0], truth)
    assert score.f1 > least
    assert segment.params.diameter_um == pytest.approx(7.5, rel=0.12)


@pytest.mark.parametrize("diameter_px", [9, 18, 40, 90])
def test_diameter_is_found_whatever_the_pixel_size_says(diameter_px):
    side = max(256, 6 * diameter_px)
    raw, _ = nuclei((side, side), 1600 * (15 / diameter_px) ** 2, diameter_um=diameter_px * PIXEL_UM, seed=2)
    found = resolved(as_slide(raw)).params.diameter_um / PIXEL_UM
    assert found == pytest.approx(diameter_px, rel=0.2)


def test_bright_debris_does_not_decide():
    raw, _ = nuclei((500, 500), 1600, seed=4)
    clean = resolved(as_slide(raw)).params
    rng = np.random.default_rng(0)
    for y, x in rng.integers(5, 495, (60, 2)):
        raw[y : y + 3, x : x + 3] += 20
    raw[300:400, 300:330] += 10
    littered = resolved(as_slide(raw)).params
    assert littered.diameter_um == pytest.approx(clean.diameter_um, rel=0.15)


def test_dim_nucleus_beside_a_bright_one_keeps_its_size():
    rows, columns = np.indices((80, 120))
    image = np.zeros((80, 120), dtype=np.float32)
    image[np.hypot(rows - 40, columns - 40) < 8] = 1.0
    image[np.hypot(rows - 40, columns - 62) < 8] = 0.25
    image = ndimage.gaussian_filter(image, 1)[np.newaxis, np.newaxis]
    labels = Watershed(Watershed.Params(diameter_um=8, threshold=0.15))(image, PIXEL_UM)
    areas = np.bincount(labels.ravel())[1:]
    assert len(areas) == 2
    assert areas[0] == pytest.approx(areas[1], rel=0.15)


def test_slides_without_nuclei():
    rng = np.random.default_rng(5)
    for plane in (np.zeros((300, 300)), rng.normal(0, 0.1, (300, 300)), np.full((300, 300), 0.7), np.zeros((1, 1))):
        image = plane.astype(np.float32)[np.newaxis, np.newaxis]
        segment = resolved(image)
        assert segment.params.diameter_um > 0
        assert not segment(image, PIXEL_UM).any()
    assert resolved(np.zeros((1, 1, 0, 5), dtype=np.float32)).params.diameter_um == 8


def test_survey_fills_in_what_is_missing_and_keeps_what_is_given(crowded):
    image, *_ = crowded
    assert resolved(image, diameter_um=6.5).params.diameter_um == 6.5
    assert resolved(image, threshold=0.4).params.threshold == 0.4
    given = Watershed.Params(diameter_um=6, threshold=0.3)
    assert Watershed(given).survey([], PIXEL_UM) == given
    windows = [image[:, :, y : y + 300, x : x + 300] for y in (0, 300) for x in range(0, 900, 100)]
    assert len(windows) > 16
    assert Watershed(Watershed.Params()).survey(windows, PIXEL_UM).diameter_um == pytest.approx(
        resolved(image).params.diameter_um, rel=0.1
    )


def test_units_same_tissue_at_another_pixel_size(crowded):
    """Everything is in diameters, so only the name of the pixel changes."""
    image, _, segment = crowded
    halved = Watershed(segment.params.model_copy(update={"diameter_um": segment.params.diameter_um / 2}))
    assert np.array_equal(segment(image, 0.5), halved(image, 0.25))


def test_labels_are_uint32_without_gaps_and_survive_pickling(crowded):
    image, _, segment = crowded
    labels = segment(image, PIXEL_UM)
    assert labels.shape == image.shape[1:]
    assert labels.dtype == np.uint32
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.array_equal(pickle.loads(pickle.dumps(segment))(image, PIXEL_UM), labels)


def test_keeps_the_promises_of_the_door():
    check_segmenter(Watershed)


def test_what_it_cannot_segment_is_refused():
    segment = Watershed(Watershed.Params(diameter_um=8, threshold=0.3))
    for shape in ((1, 2, 9, 9), (2, 1, 9, 9), (9, 9)):
        with pytest.raises(InputError, match="one channel and one plane"):
            segment(np.zeros(shape, dtype=np.float32), PIXEL_UM)
    with pytest.raises(InputError, match="pixels"):
        segment(np.zeros((1, 1, 9, 9), dtype=np.float32), 5.0)
    unresolved = Watershed(Watershed.Params(diameter_um=8))
    with pytest.raises(InputError, match="threshold"):
        unresolved(np.zeros((1, 1, 9, 9), dtype=np.float32), PIXEL_UM)
    with pytest.raises(InputError, match="diameter"):
        _ = Watershed(Watershed.Params()).halo_um
    for wrong in ({"diameter_um": 0}, {"diameter": 8}, {"edge": 1.5}):
        with pytest.raises(ValidationError):
            Watershed.Params(**wrong)


def test_basins_of_a_drawn_landscape():
    height = np.array(
        [
            [1, 2, 1, 1, 3, 1],
            [2, 5, 2, 3, 6, 2],
            [1, 2, 1, 2, 2, 1],
            [0, 0, 0, 0, 0, 0],
            [4, 4, 4, 0, 0, 9],
        ],
        dtype=np.float32,
    )
    labels, summits = local_basins(height, height > 0, join=0.9, rounds=1)
    # Two hills with a pass of 2 between, a plateau (its last pixel in raster order is the summit), a lone peak.
    assert summits.tolist() == [7, 10, 26, 29]
    assert labels[4].tolist() == [3, 3, 3, 0, 0, 4]
    assert (labels[:3, 0] == 1).all()
    assert (labels[:3, 4:] == 2).all()
    joined, _ = local_basins(height, height > 0, join=0.4, rounds=1)
    assert (joined[:3] == 1).all()  # the pass is 2/5 of the lower hill
    assert joined.max() == 3


def test_basins_join_along_a_ridge_one_neighbour_per_round():
    # 5.0, 4.9 and 6.0 with passes just below 4.9: the first can join the last only by way of the middle one.
    ridge = np.array([[5.0, 4.8, 4.9, 4.85, 6.0]], dtype=np.float32)
    counts = [local_basins(ridge, ridge > 0, join=0.9, rounds=rounds)[0].max() for rounds in (0, 1, 2)]
    assert counts == [3, 2, 1]


@pytest.fixture(scope="module")
def photographs():
    """Small real fluorescence images with hand-drawn nuclei, of many sizes."""
    if not (DATA / "index.csv").exists():
        pytest.skip("the real images nuclei_dsb2018 are not on this machine")
    from skimage.io import imread

    with (DATA / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["kind"], row["split"]) == ("fluorescence", "val")]
    return [
        (imread(DATA / "images" / f"{row['id']}.png").astype(np.float32), imread(DATA / "labels" / f"{row['id']}.png"))
        for row in rows
    ]


def test_real_nuclei_without_being_told_their_size(photographs):
    scores = []
    for raw, truth in photographs[::2]:  # workflows/benchmarks/accuracy.py takes them all
        image = as_slide(raw)
        scores += score_labels(resolved(image)(image, PIXEL_UM)[0], truth)
    assert pool(scores).pooled.f1 >= 0.8


def test_tile_size_does_not_matter_on_a_real_image(photographs):
    raw = next(raw for raw, truth in photographs if raw.shape == (256, 256) and truth.max() > 15)
    image = as_slide(np.pad(raw, ((0, 344), (0, 444)), mode="symmetric"))
    segment = resolved(image)
    whole = [pixels for pixels, _ in objects(segment(image, PIXEL_UM)[0])]
    for core in (128, 256):
        tiled = in_tiles(segment, image, core)
        assert len(tiled) == len(whole) > 40
        assert set(tiled) == set(whole)
