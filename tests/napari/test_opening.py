"""What is opened lies where it is, in um; and no more is read than is shown."""

import json

import dask
import dask.array as da
import npe2
import numpy as np
import pytest
import shapely
from napari_histoquant import asking, layers, opening
from napari_histoquant.marks import write_marks
from napari_histoquant.sample import sample_layers
from napari_histoquant.shapes import regions_in, shapes_of

from histoquant.errors import PixelSizeError
from histoquant.model.region import Region
from histoquant.model.slide import Slide


def test_the_manifest_is_sound_and_what_it_names_is_there():
    manifest = npe2.PluginManifest.from_distribution("histoquant")
    manifest.validate_imports()
    assert {widget.display_name for widget in manifest.contributions.widgets} >= {"Draw regions", "Tune a recipe"}


def test_points_put_over_a_slide_are_saved_as_marks_in_um(make_napari_viewer, slide_path, tmp_path):
    from napari.layers import Points

    viewer = make_napari_viewer()
    viewer.open(slide_path, plugin="histoquant")
    viewer.add_points([[3, 5]], scale=viewer.layers.extent.step, units=viewer.layers.extent.units, name="M1")
    [saved] = viewer.layers[-1].save(str(tmp_path / "M1.csv"), plugin="histoquant")
    px = viewer.layers.extent.step[-1]
    assert (tmp_path / "M1.csv").read_text().split() == ["y_um,x_um", f"{3 * px:.4f},{5 * px:.4f}"]
    assert saved == str(tmp_path / "M1.csv")
    with pytest.raises(PixelSizeError, match="not in um"):
        write_marks(str(tmp_path / "no.csv"), *Points([[1, 2]]).as_layer_data_tuple()[:2])


def test_a_slide_opens_in_um_with_its_channels(make_napari_viewer, slide_path, pixels):
    viewer = make_napari_viewer()
    viewer.open(slide_path, plugin="histoquant")
    dapi, tunel = viewer.layers
    assert [layer.name for layer in viewer.layers] == ["DAPI · M1", "TUNEL · M1"]
    assert dapi.multiscale == tunel.multiscale
    assert [str(unit) for unit in dapi.units] == ["micrometer"] * 2
    # the first pixel's centre lies half a pixel from the corner that cells and outlines count from
    assert np.allclose(dapi.extent.world[0], 0.25)
    assert np.allclose(dapi.extent.world[1], np.array(pixels.shape[1:]) * 0.5 - 0.25)
    assert dapi.colormap.name == "bop blue"
    assert tunel.colormap.name == "green"
    low, high = tunel.contrast_limits
    assert np.median(pixels[1]) == pytest.approx(low, rel=0.05)
    assert low < high <= pixels[1].max()


def test_rgb_opens_as_rgb(make_napari_viewer, tmp_path):
    import tifffile

    path = tmp_path / "he.tif"
    rgb = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    viewer = make_napari_viewer()
    viewer.open(path, plugin="histoquant")
    assert viewer.layers[0].rgb
    assert viewer.layers[0].extent.world[1] == pytest.approx([60 - 0.25, 45 - 0.25])


def counting_slide(shape, factors, read, chunk=512):
    """A slide that notes which chunk of which level is read."""

    def level(number, factor):
        size = tuple(-(-n // factor) for n in shape)

        def block(block_info=None):
            place = block_info[None]["chunk-location"]
            read.append((number, *place))
            return np.full(block_info[None]["chunk-shape"], 7, np.uint16)

        chunks = ((1, 1), (1,), *((chunk,) * (n // chunk) + ((n % chunk,) if n % chunk else ()) for n in size))
        return da.map_blocks(block, dtype=np.uint16, chunks=chunks, meta=np.empty((0, 0, 0, 0), np.uint16))

    levels = tuple(level(n, factor) for n, factor in enumerate(factors))
    return Slide("big", None, levels, ("DAPI", "TUNEL"), (0.5, 0.5))


@pytest.fixture
def of_path(monkeypatch):
    monkeypatch.setattr(layers, "named", lambda slide: slide.name)


@pytest.mark.usefixtures("of_path")
def test_a_gigapixel_opens_and_pans_without_being_read(make_napari_viewer, qtbot):
    read = []
    slide = counting_slide((30_000, 30_000), (1, 4, 16), read)
    viewer = make_napari_viewer(show=True)
    with dask.config.set(scheduler="synchronous"):
        for data, settings, kind in layers.slide_layers(slide):
            getattr(viewer, f"add_{kind}")(data, **settings)
        qtbot.wait(200)
        assert read
        assert {level for level, *_ in read} == {2}
        read.clear()
        viewer.scene.camera.zoom = 2.0  # a screen pixel is a pixel
        viewer.scene.camera.center = (0, 7000.0, 5000.0)
        qtbot.wait(300)
        fine = {place for level, *place in read if level == 0 for place in [tuple(place)]}
    canvas = np.array(viewer.canvas.size)
    most = 2 * np.prod(canvas // 512 + 3)  # both channels, a chunk more on every side
    assert 0 < len(fine) <= most
    middle = (14_000 // 512, 10_000 // 512)
    assert all(abs(y - middle[0]) < 8 and abs(x - middle[1]) < 8 for _, _, y, x in fine)
    assert most < 0.02 * slide.levels[0].npartitions  # the control: it is a small part of what there is


@pytest.mark.usefixtures("of_path")
def test_a_large_slide_without_a_pyramid_is_read_once(make_napari_viewer):
    read = []
    slide = counting_slide((5000, 5200), (1,), read)
    with dask.config.set(scheduler="synchronous"):
        shown = layers.slide_layers(slide)
        viewer = make_napari_viewer()
        assert len(read) < 2 * slide.levels[0].npartitions  # a chunk that two bands share is decoded for both
        read.clear()
        for data, settings, kind in shown:
            getattr(viewer, f"add_{kind}")(data, **settings)
    assert read == []
    assert viewer.layers[0].level_shapes[-1].max() <= layers.FLAT_PX


def test_without_a_pixel_size_it_is_asked_for_or_refused(make_napari_viewer, tmp_path, pixels, monkeypatch):
    import tifffile

    path = tmp_path / "bare.tif"
    tifffile.imwrite(path, pixels[0])
    with pytest.raises(PixelSizeError, match="no pixel size"):
        opening.open_slide(path)
    monkeypatch.setattr(asking, "ask_pixel_size", lambda what: 0.25)
    ((_, settings, kind),) = opening.open_slide(path)
    assert settings["scale"] == (0.25, 0.25)
    assert kind == "image"


def test_the_content_decides_what_is_ours(tmp_path, slide_path, outlines_path):
    assert opening.reader_of(str(slide_path.rename(tmp_path / "slide.dat"))) is not None
    assert opening.reader_of(str(outlines_path)) is not None
    for name, content in (("a.csv", b"x,y\n1,2\n"), ("a.json", b"nothing"), ("a.tif", b"no tiff")):
        (tmp_path / name).write_bytes(content)
        assert opening.reader_of(str(tmp_path / name)) is None
    assert opening.reader_of([str(outlines_path)]) is None


def test_outlines_open_on_their_slide_and_not_without(make_napari_viewer, slide_path, outlines_path):
    with pytest.raises(PixelSizeError, match="Open their slide first"):
        opening.open_outlines(outlines_path)
    viewer = make_napari_viewer()
    viewer.open(slide_path, plugin="histoquant")
    viewer.open(outlines_path, plugin="histoquant")
    shapes = viewer.layers[-1]
    assert list(shapes.features["name"]) == ["lesion", "cortex"]
    assert np.allclose(shapes.extent.world, [[30, 25], [155, 150]], atol=3)
    assert len(np.unique(shapes.edge_color, axis=0)) == 2


def test_a_run_opens_with_regions_and_cells_by_their_calls(make_napari_viewer, ran):
    viewer = make_napari_viewer()
    viewer.open(ran / "out" / "slides" / "M1", plugin="histoquant")
    assert [layer.name for layer in viewer.layers] == ["DAPI · M1", "TUNEL · M1", "regions · M1", "cells · M1"]
    assert list(viewer.layers[2].features["name"]) == ["left"]
    cells = viewer.layers[-1]
    positive = cells.features["tunel_positive"].to_numpy()
    assert 0 < positive.sum() < len(positive)
    colours = cells.border_color
    assert len(np.unique(colours[positive], axis=0)) == len(np.unique(colours[~positive], axis=0)) == 1
    assert not np.array_equal(colours[positive][0], colours[~positive][0])
    # a positive cell is where the channel is bright: the layers lie on each other
    place = np.floor(cells.data[positive] / 0.5).astype(int)
    shown = np.asarray(viewer.layers[1].data[0] if viewer.layers[1].multiscale else viewer.layers[1].data)
    assert shown[tuple(place.T)].min() > 300
    assert opening.reader_of(str(ran / "out")) is not None


def test_the_sample_study_opens():
    *images, outlines = sample_layers()
    assert [settings["name"].split(" · ")[0] for _, settings, _ in images] == ["DAPI", "TUNEL", "AF"]
    assert list(outlines[1]["features"]["name"]) == ["lesion"]
    assert outlines[1]["metadata"][layers.OUTLINES] is None  # what is drawn must not change the study


# shapes and back

HOLED = Region(
    "lesion",
    shapely.MultiPolygon(
        [
            (((1 / 3, 0.1), (90, 0.7), (77.77777777777, 80)), [((30, 10), (50.1, 11), (50, 20))]),
            (((200, 200), (230, 201), (220, 240.123456789)), []),
        ]
    ),
    classification="Infarct",
)
LINE = Region("midline", shapely.LineString([(0.1, 0.2), (5000.123456789, 33)]), counted=False)
MASK = Region("Ignore tear", shapely.box(5, 5, 9, 9), masked=True, parent="lesion")


@pytest.fixture
def shown():
    import napari

    before = [HOLED, LINE, MASK]
    shapes = shapes_of(before, {"Infarct": (9, 9, 9), "midline": (1, 2, 3), "Ignore tear": (4, 5, 6)})
    return before, napari.layers.Shapes(shapes.data, **shapes.settings)


def back(before, layer):
    return regions_in(layer.data, layer.shape_type, layer.features, before)[0]


def test_outlines_come_back_from_the_screen_to_the_last_bit(shown):
    before, layer = shown
    assert [layer.data[0].dtype, len(layer.data)] == [np.float32, 5]  # the control: napari rounds, and knows no holes
    assert not np.array_equal(layer.data[0][:, ::-1], shapely.get_coordinates(HOLED.geometry)[:3])
    assert back(before, layer) == before


def test_a_corner_that_is_moved_moves_alone(shown):
    before, layer = shown
    data = [np.array(ring) for ring in layer.data]
    data[3][1] += 5
    layer.data = data
    moved = back(before, layer)
    old, new = (shapely.get_coordinates(each[1].geometry) for each in (before, moved))
    assert [moved[0], moved[2]] == [before[0], before[2]]
    assert np.array_equal(old[0], new[0])
    assert np.allclose(new[1] - old[1], 5, atol=1e-3)


def test_holes_go_with_their_shell_and_parts_one_by_one(shown):
    before, layer = shown
    layer.selected_data = {2}
    layer.remove_selected()
    assert [part.wkt[:7] for part in shapely.get_parts(back(before, layer)[0].geometry)] == ["POLYGON"]
    layer.selected_data = {0}
    layer.remove_selected()
    assert [region.name for region in back(before, layer)] == ["midline", "Ignore tear"]


def test_features_are_written_as_json_could(shown):
    before, layer = shown
    _, rows = regions_in(layer.data, layer.shape_type, layer.features, before)
    assert json.dumps(rows)
    assert [row["label"] for row in rows] == ["lesion", "", "", "midline", "Ignore tear"]
