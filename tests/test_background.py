import numpy as np
import pytest
from scipy import ndimage

from histoquant.analysis.background import Background, _stood_out, estimate, find_tissue, outline
from histoquant.errors import InputError
from histoquant.model.recipe import BackgroundSettings
from histoquant.model.slide import Box

SETTINGS = BackgroundSettings()
COARSE_UM = 2.0


def nuclei(shape, count, seed=0, diameter=4.0, height=100.0):
    """Soft discs; ``diameter`` in pixels."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    image[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 1
    rows, columns = np.indices((2 * int(diameter) + 1,) * 2) - int(diameter)
    disc = np.hypot(rows, columns) <= diameter / 2
    return ndimage.gaussian_filter(height * ndimage.binary_dilation(image, disc).astype(float), 0.5)


def surveyed(image, tissue=None, coarse_px=4.0):
    return estimate(
        np.asarray(image, dtype=np.float32)[np.newaxis],
        coarse_px,
        pixel_size_um=COARSE_UM / coarse_px,
        settings=SETTINGS,
        tissue=tissue,
    )


def seen(background, shape, coarse_px=4.0):
    """The background in the middle of each coarse pixel."""
    full = background.at(Box(0, int(shape[0] * coarse_px), 0, int(shape[1] * coarse_px)), 0)
    return full[int(coarse_px) // 2 :: int(coarse_px), int(coarse_px) // 2 :: int(coarse_px)]


@pytest.fixture(scope="module")
def uneven():
    rng = np.random.default_rng(1)
    rows, columns = np.indices((400, 500))
    shade = 200 + 0.2 * rows + 40 * np.cos(columns / 160)
    return shade, shade + nuclei(shade.shape, 1500) + rng.normal(0, 3, shade.shape)


def test_value_depends_on_the_absolute_pixel_only(uneven):
    background = surveyed(uneven[1])
    whole = background.at(Box(0, 1600, 0, 2000), 0)
    for box in (Box(0, 7, 0, 9), Box(333, 846, 512, 1025), Box(1599, 1600, 1999, 2000), Box(5, 5, 0, 3)):
        assert np.array_equal(background.at(box, 0), whole[box.y0 : box.y1, box.x0 : box.x1])
    assert np.ptp(whole) > 50  # a constant would be equal everywhere, too


def test_uneven_illumination_is_followed(uneven):
    shade, image = uneven
    off = seen(surveyed(image), shade.shape) - shade
    assert np.abs(off).mean() < 4  # of 100 that nuclei are above it
    assert np.abs(off).max() < 15


@pytest.mark.parametrize("count", [0, 20, 2000])
def test_level_noise_and_range_of_empty_sparse_and_crowded_glass(count):
    rng = np.random.default_rng(2)
    image = 50 + nuclei((300, 300), count) + rng.normal(0, 2, (300, 300))
    background = surveyed(image)
    assert seen(background, image.shape) == pytest.approx(50, abs=3)
    assert background.noise[0] == pytest.approx(2, rel=0.25)
    if count:
        assert 60 < background.scale[0] < 130
    else:
        assert background.scale[0] == pytest.approx(10 * background.noise[0])  # noise is not stretched into nuclei


def test_dense_layer_is_not_taken_for_background():
    layer = nuclei((200, 200), 4000, seed=3)
    layer[:, :60] = layer[:, 140:] = 0  # a band of 160 um
    assert 0.6 < (layer[:, 60:140] > 30).mean() < 0.85
    image = 20 + layer + np.random.default_rng(3).normal(0, 1, layer.shape)
    assert seen(surveyed(image), image.shape)[:, 80:120].mean() < 20 + 20


def test_large_nuclei_in_a_small_field():
    rng = np.random.default_rng(5)
    rows, columns = np.indices((360, 360))
    image = 30 + rng.normal(0, 2, (360, 360))
    for y, x in ((70, 70), (180, 90), (100, 250), (260, 260), (300, 120)):  # 50 um across at 0.5 um
        image[np.hypot(rows - y, columns - x) < 50] += 80
    background = surveyed(image, coarse_px=1.0)
    background = estimate(image[np.newaxis], 1, pixel_size_um=0.5, settings=SETTINGS)
    assert seen(background, image.shape, 1.0) == pytest.approx(30, abs=4)
    assert background.scale[0] == pytest.approx(80, rel=0.1)


def test_haze_of_tissue_is_background_and_glass_does_not_pull_it_down():
    tissue = np.zeros((300, 300), dtype=bool)
    tissue[:, 150:] = True
    image = 10 + 60 * tissue + np.random.default_rng(6).normal(0, 1, tissue.shape)
    near_edge = np.s_[:, 156:162]
    with_mask, without = (seen(surveyed(image, mask), tissue.shape) for mask in (tissue, None))
    assert with_mask[near_edge].mean() > without[near_edge].mean()
    assert with_mask[:, 200:] == pytest.approx(70, abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (20, 20)])
def test_tiny_images(shape):
    background = surveyed(np.full(shape, 7.0))
    assert seen(background, shape) == pytest.approx(7)
    assert background.scale[0] == 1
    assert background.noise[0] == 0


def test_pixels_that_are_not_finite_are_left_out():
    image = 40 + np.random.default_rng(7).normal(0, 1, (150, 150))
    clean = surveyed(image)
    image[20:25, 30:90], image[70, 70], image[71, 71] = np.nan, np.inf, -np.inf
    spoilt = surveyed(image)
    assert spoilt.grid == pytest.approx(clean.grid, abs=0.3)
    assert np.isfinite([*spoilt.scale, *spoilt.noise]).all()
    nothing = surveyed(np.full((30, 30), np.nan))
    assert (nothing.grid == 0).all()
    assert nothing.scale[0] == 1


def test_channels_do_not_mix():
    rng = np.random.default_rng(8)
    first, second = (level + rng.normal(0, 1, (90, 90)) for level in (10, 500))
    both = estimate(np.stack([first, second]), 4, pixel_size_um=0.5, settings=SETTINGS)
    assert np.array_equal(both.grid[1:], estimate(second[np.newaxis], 4, pixel_size_um=0.5, settings=SETTINGS).grid)


def test_units_same_tissue_at_half_the_pixel_size():
    image = 50 + nuclei((240, 240), 800) + np.random.default_rng(9).normal(0, 1, (240, 240))
    once, finer = surveyed(image, coarse_px=4.0), surveyed(image, coarse_px=8.0)
    assert np.array_equal(once.grid, finer.grid)
    assert finer.step_px == 2 * once.step_px


def test_what_is_no_survey_is_refused():
    for shape in ((5, 5), (1, 0, 5)):
        with pytest.raises(InputError, match="survey"):
            estimate(np.zeros(shape), 4, pixel_size_um=0.5, settings=SETTINGS)
        with pytest.raises(InputError, match="survey"):
            find_tissue(np.zeros(shape), COARSE_UM)
    with pytest.raises(InputError, match="positive"):
        estimate(np.zeros((1, 5, 5)), 4, pixel_size_um=0.0, settings=SETTINGS)


def section(shape=(600, 700), haze=30.0, seed=0):
    """A slice of tissue on glass: an ellipse with haze, a dense layer, a hole of 400 um, and a speck of dust."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    tissue = ((rows - 300) / 220) ** 2 + ((columns - 350) / 270) ** 2 < 1
    tissue &= np.hypot(rows - 300, columns - 450) > 100
    light = nuclei(shape, 25_000, diameter=3, seed=seed) * tissue
    light[280:300, 200:320] += 150
    image = 20 + ndimage.gaussian_filter(haze * tissue, 2) + light + rng.normal(0, 2, shape)
    image[30:36, 30:36] = 400
    return tissue, image[np.newaxis].astype(np.float32)


@pytest.mark.parametrize("haze", [10.0, 60.0])
def test_tissue_is_told_from_glass(haze):
    tissue, image = section(haze=haze)
    found = find_tissue(image, COARSE_UM)
    # A rim of 10 um, which blur adds, is 6 % of this section.
    assert (found & tissue).sum() / (found | tissue).sum() > 0.92
    assert not found[20:50, 20:50].any()  # the speck
    assert not found[280:320, 430:470].any()  # the hole
    assert found[280:300, 200:320].all()


def test_field_of_view_is_all_tissue():
    rng = np.random.default_rng(1)
    crowded = 20 + nuclei((300, 400), 3000, seed=2) + rng.normal(0, 2, (300, 400))
    for image in (crowded, rng.normal(50, 2, (300, 400)), np.full((300, 400), 3.0), np.full((1, 1), 3.0)):
        assert find_tissue(image[np.newaxis], COARSE_UM).all()


def test_pixels_that_are_not_finite_do_not_hide_tissue():
    tissue, image = section()
    image[0, 200:210, 100:600] = np.nan
    found = find_tissue(image, COARSE_UM)
    assert (found & tissue).sum() / (found | tissue).sum() > 0.9
    assert find_tissue(np.full((1, 50, 50), np.nan), COARSE_UM).all()


def test_outline_is_in_um_x_first_and_keeps_the_area():
    tissue, _ = section()
    shape = outline(tissue, COARSE_UM)
    assert shape.is_valid
    assert shape.area == pytest.approx(tissue.sum() * COARSE_UM**2, rel=0.01)
    assert sum(len(part.interiors) for part in getattr(shape, "geoms", [shape])) == 1
    full = outline(np.ones((30, 50), dtype=bool), COARSE_UM)
    assert full.bounds == (0, 0, 100, 60)
    assert full.area == 6000
    assert outline(np.zeros((3, 3), dtype=bool), COARSE_UM).is_empty


@pytest.mark.parametrize("sigma", [0.4, 2.5])
def test_a_channel_that_is_known_throughout_is_smoothed_as_one_that_is_not(sigma):
    """To the last bit: the weight of known pixels is then one number, which need not be found for each."""
    channel = np.random.default_rng(4).normal(300, 40, (90, 110)).astype(np.float32)
    weight = ndimage.gaussian_filter(np.ones(channel.shape), sigma, mode="nearest")
    smooth = ndimage.gaussian_filter(channel.astype(np.float64), sigma, mode="nearest") / weight
    dark, bright = np.percentile(smooth, [1, 99.9])
    expected = np.maximum(smooth - dark, 0) / ((bright - dark) / 100)
    assert np.array_equal(_stood_out(channel, sigma), expected)
    channel[0, 0] = np.nan
    assert not np.array_equal(_stood_out(channel, sigma), expected)


def test_points_have_what_a_box_has_to_the_last_bit():
    rng = np.random.default_rng(3)
    told = Background(rng.normal(200, 30, (2, 4, 5)).astype(np.float32), 33.3, np.ones(2), np.ones(2))
    box = Box(7, 171, 11, 190)
    y, x = rng.integers((box.y0, box.x0), (box.y1, box.x1), (500, 2)).T
    for channel in (0, 1):
        np.testing.assert_array_equal(told.at_points(y, x, channel), told.at(box, channel)[y - box.y0, x - box.x0])
