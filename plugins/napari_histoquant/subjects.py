"""What is reviewed of a run: cells of slides, spines of stacks, or lesions of brain slices. One of them, opened.

A session, its panel and its layers treat all alike: objects with a place, a class and a region, and pictures of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histoquant.analysis.review import CLASS
from histoquant.corrected import SlideResults, read_slide
from histoquant.corrected_infarct import PictureResults, lesion_after, read_picture, redrawn
from histoquant.errors import InputError
from histoquant.model.geometry import Geometry
from histoquant.model.panel import bound, called_markers, channel_of
from histoquant.model.recipe import Recipe, Segment
from histoquant.model.slide import Slide
from histoquant.model.study import StudySlide
from histoquant.model.tables import records
from histoquant.registry import open_slide
from histoquant.report.run import Run
from histoquant.spine_results import StackResults, read_stack_results
from napari_histoquant.crops import Crop, Crops, StackCrops, contrast_limits
from napari_histoquant.queue import Objects

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sizes:
    """How large things are on the canvas, in um.

    Attributes
    ----------
    point, ring : float
        Diameter of the circle about each object, and about the current one.
    first_view : float
        Height of what is seen when a slide is opened.
    pick : float
        A click this near to an object means that object.
    simpler : float
        Corners of outlines that make no more difference than this are left out.
    """

    point: float
    ring: float
    first_view: float
    pick: float
    simpler: float


class OpenSlide(ABC):
    """The slide that is looked at.

    Parameters
    ----------
    results : SlideResults, StackResults or PictureResults
        What the run folder holds of it, under its true name, which is not to be shown while the review is blind.
    pixels : Slide
    segment : Segment
        How planes become one on the canvas.
    objects : Objects
    limits : channel -> (black, white)
        Of channels in which something was measured.

    Attributes
    ----------
    corner_um : float
        Where the top-left corner of the first pixel lies, in both directions, in the coordinates of the objects.
    sizes : Sizes
    percentiles : (float, float)
        What is black and white in a channel without limits.
    region_word : str
        What is said before the name of a region, where that is a bare number.
    """

    sizes: ClassVar[Sizes]
    percentiles: ClassVar[tuple[float, float]] = (1, 99.9)
    region_word: ClassVar[str] = ""
    corner_um = 0.0

    def __init__(
        self,
        results: SlideResults | StackResults | PictureResults,
        pixels: Slide,
        segment: Segment,
        objects: Objects,
        limits: Mapping[str, tuple[float, float]],
    ) -> None:
        self.results, self.pixels, self.segment, self.objects, self.limits = results, pixels, segment, objects, limits

    @property
    def slide_id(self) -> str:
        """Its true name."""
        return self.results.slide_id

    def holds(self, y_um: float, x_um: float) -> bool:
        """Return whether a place lies on the slide."""
        extents = (n * self.pixels.pixel_size_um for n in self.pixels.shape)
        return all(0 <= at - self.corner_um <= extent for at, extent in zip((y_um, x_um), extents, strict=True))

    @abstractmethod
    def channel(self, marker: str) -> int:
        """Return the number of the channel that shows a marker; 0 where that is a stain of a picture."""

    @property
    @abstractmethod
    def crop_channels(self) -> tuple[int, ...]:
        """Numbers of the channels that a crop shows one after the other, again and again."""

    @property
    @abstractmethod
    def crop_names(self) -> list[str]:
        """What the pictures of a crop are called."""

    @abstractmethod
    def crop(self, index: int) -> Crop | None:
        """Return the crop of an object; None where the canvas shows all there is to see."""

    def told(self, index: int) -> list[str]:
        """Return what else there is to say of an object."""
        return []

    @abstractmethod
    def seen_at(self, y_um: float, x_um: float) -> tuple[str, float | None]:
        """Return the region of a place, and the depth of what is seen there, when it has one."""

    def close(self) -> None:
        """Let go of its files."""
        self.pixels.close()


class OpenCells(OpenSlide):
    """A slide with the cells that a run found and called."""

    sizes = Sizes(point=12.0, ring=26.0, first_view=400.0, pick=15.0, simpler=0.5)
    results: SlideResults

    def __init__(self, run: Run, row: StudySlide, shown: str | None) -> None:
        results = read_slide(run.root, row.slide_id)
        told = results.provenance["thresholds"]
        thresholds = {name: float(told[name]["value"]) for name in called_markers(run.recipe.panel)}
        pixels = _pixels(row, results.pixel_size_um, shown)
        super().__init__(
            results,
            pixels,
            run.recipe.segment,
            Objects.of_cells(results.cells, run.recipe.panel, thresholds),
            _limits(results.cells, pixels, run.recipe, thresholds),
        )
        self._panel = run.recipe.panel
        path = run.root / "slides" / row.slide_id / "labels.ome.tif"
        self._labels = open_slide(path, pixel_size_um=results.pixel_size_um) if path.is_file() else None
        self._crops = Crops(pixels, self.segment, self._labels)

    def channel(self, marker: str) -> int:
        """Return the number of the channel that shows a marker; 0 where that is a stain of a picture."""
        return 0 if self.pixels.brightfield else self.pixels.channel_index(channel_of(marker, self._panel[marker]))

    @property
    def crop_channels(self) -> tuple[int, ...]:
        """All channels."""
        return tuple(range(len(self.pixels.channels)))

    @property
    def crop_names(self) -> list[str]:
        """The channels, all of them together first."""
        return ["slide"] if self.pixels.brightfield else ["together", *self.pixels.channels]

    def crop(self, index: int) -> Crop:
        """Return the crop of a cell with its outline."""
        y, x = self.objects.yx_um[index].tolist()
        return self._crops.at(y, x, int(self.objects.label[index]))

    def seen_at(self, y_um: float, x_um: float) -> tuple[str, float | None]:
        """Return the region of a place."""
        return self.results.place(np.array([[y_um, x_um]]))[0], None

    def close(self) -> None:
        """Let go of its files."""
        super().close()
        if self._labels is not None:
            self._labels.close()


class OpenStack(OpenSlide):
    """A stack with the spines that a run found."""

    sizes = Sizes(point=1.0, ring=2.6, first_view=40.0, pick=1.5, simpler=0.02)
    percentiles = (50, 98)  # dendrites may be over-exposed, so that spines are seen
    region_word = "dendrite "
    results: StackResults

    def __init__(self, run: Run, row: StudySlide, shown: str | None) -> None:
        settings = run.recipe.spines
        assert settings is not None  # OpenStack is for runs of spines
        results = read_stack_results(run.root, row.slide_id, settings)
        pixels = _pixels(row, results.pixel_size_um, shown)
        segment = Segment(z="min" if settings.light == "dark" else "max")
        super().__init__(results, pixels, segment, Objects.of_spines(results.spines, settings), {})
        self.corner_um = -results.pixel_size_um / 2  # the centre of the first voxel is at 0
        channels = range(3) if pixels.brightfield else (pixels.channel_index(results.provenance["channel"]),)
        self._channels = tuple(channels)
        dark = settings.light == "dark"
        self._crops = StackCrops(pixels, self._channels, results.voxel_um[0], dark=dark)
        self._measured = {int(row.spine_id): row for row in records(results.spines)}

    def channel(self, marker: str) -> int:
        """Return the number of the channel that shows the dendrites."""
        return 0 if self.pixels.brightfield else self._channels[0]

    @property
    def crop_channels(self) -> tuple[int, ...]:
        """The channel that shows the dendrites; red, green and blue of a picture."""
        return self._channels

    @property
    def crop_names(self) -> list[str]:
        """The planes about the spine, and all planes."""
        return ["its planes", "all planes"]

    def crop(self, index: int) -> Crop:
        """Return the crop of a spine, outlined from its base to its head where it was measured."""
        y, x = self.objects.yx_um[index].tolist()
        z, row = float(self.objects.z_um[index]), self._measured.get(int(self.objects.label[index]))
        if row is None:
            return self._crops.at(z, y, x)
        # The outline goes round what is seen, and the optics draw a head wider than it is.
        seen_um = math.hypot(row.head_width_um, self.results.settings.resolution_um)
        return self._crops.at(z, y, x, (row.base_y_um, row.base_x_um), seen_um)

    def seen_at(self, y_um: float, x_um: float) -> tuple[str, float | None]:
        """Return the dendrite nearest to a place, and the depth near its own at which most is seen there."""
        name, depth = self.results.dendrite_at(y_um, x_um)
        return name, self._crops.depth_um(y_um, x_um, depth, self.results.settings.reach_um)


class OpenPicture(OpenSlide):
    """A picture of brain slices with the lesion of each, which is drawn anew on the canvas."""

    sizes = Sizes(point=400.0, ring=1200.0, first_view=28_000.0, pick=4000.0, simpler=5.0)
    results: PictureResults

    def __init__(self, run: Run, row: StudySlide, shown: str | None) -> None:
        results = read_picture(run.root, row.slide_id)
        pixels = _pixels(row, results.pixel_size_um, shown)
        # A photograph in colour is shown as it is, on whatever ground slices lie.
        pixels = replace(pixels, brightfield=len(pixels.channels) == 3)
        super().__init__(results, pixels, Segment(), Objects.of_slices(results.objects), {})

    def channel(self, marker: str) -> int:
        """Return 0: there is one picture."""
        return 0

    @property
    def crop_channels(self) -> tuple[int, ...]:
        """Nothing; a slice fills the canvas."""
        return ()

    @property
    def crop_names(self) -> list[str]:
        """Nothing; a slice fills the canvas."""
        return []

    def crop(self, index: int) -> Crop | None:
        """Return None: a slice fills the canvas."""
        return None

    def lesion(self, index: int) -> Geometry:
        """Return the outline of a lesion as it is now, (x, y) in um; empty where there is none."""
        lesion: Geometry | None = None
        for edit in self.objects.edits_of(index):
            lesion = lesion_after(edit, lesion)
        one = self.results.slices[index]
        return one.lesion if lesion is None else redrawn(one, lesion).lesion

    def told(self, index: int) -> list[str]:
        """Return the area of the lesion in its hemisphere, now and as it was found."""
        one, side = self.results.slices[index], self.results.side
        found, now = one.areas(side).infarct, redrawn(one, self.lesion(index)).areas(side).infarct
        return [f"{now:.2f} mm²" if abs(now - found) < 0.005 else f"{now:.2f} mm², found {found:.2f} mm²"]

    def seen_at(self, y_um: float, x_um: float) -> tuple[str, float | None]:
        """Refuse: every slice has a lesion already, be it an empty one."""
        raise InputError("A lesion is drawn, not added.", "Draw it on its slice with the tools of the layer 'lesion'.")


def markers_of(run: Run) -> list[str]:
    """Return what can be reviewed of a run: markers that were called, or the one class of its spines and lesions."""
    return called_markers(run.recipe.panel) if _kind(run) is OpenCells else [CLASS]


def _kind(run: Run) -> Callable[[Run, StudySlide, str | None], OpenSlide]:
    if run.recipe.infarct is not None:
        return OpenPicture
    return OpenCells if run.recipe.spines is None else OpenStack


def opened(run: Run, row: StudySlide, shown: str | None) -> OpenSlide:
    """Open a slide or stack of a run.

    Parameters
    ----------
    shown : str or None
        The name it goes by; its own for None.

    Raises
    ------
    HistoquantError
        If its files cannot be read.
    """
    return _kind(run)(run, row, shown)


def _pixels(row: StudySlide, pixel_size_um: float, shown: str | None) -> Slide:
    pixels = open_slide(row.path, scene=row.scene, pixel_size_um=pixel_size_um)
    # Of a slide that goes by another name nothing that is shown holds on to the true one.
    return pixels if shown is None else replace(pixels, name=shown, path=Path(shown))


def _limits(
    cells: pd.DataFrame, pixels: Slide, recipe: Recipe, thresholds: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return black and white of each channel of a fluorescence slide."""
    if pixels.brightfield:
        return {}
    panel = bound(recipe.panel, pixels)
    shown: dict[str, Any] = {str(marker.channel): thresholds.get(name) for name, marker in panel.items()}
    limits = {name: contrast_limits(cells, name, shown.get(name)) for name in pixels.channels}
    return {name: pair for name, pair in limits.items() if pair is not None}
