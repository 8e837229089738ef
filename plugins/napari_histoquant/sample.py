"""The sample study as napari offers it under File > Open Sample."""

from __future__ import annotations

import tempfile
from pathlib import Path

from histoquant.drawing import read_pixels
from histoquant.model.study import parse_study
from histoquant.registry import open_slide
from histoquant.samples import sample_study
from napari_histoquant.layers import LayerData, named, outline_layer, slide_layers


def sample_layers() -> list[LayerData]:
    """Return the first slide of the sample study with its outlines; the study is made where it was not shipped.

    What is drawn on it goes into a file of its own: the study stays as it is.
    """
    from napari.utils.notifications import show_info

    sheet = sample_study(Path(tempfile.gettempdir()) / "histoquant_sample_study", show_info)
    row = parse_study(sheet.read_text(encoding="utf-8"), sheet.parent).included[0]
    slide = open_slide(row.path)
    layers = slide_layers(slide)
    if row.regions is not None:
        drawn = read_pixels(row.regions)
        layers.append(outline_layer(drawn, slide.pixel_size_um, name=f"outlines · {named(slide)}"))
    return layers
