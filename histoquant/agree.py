"""How well a run agrees with people, and they with each other: places one to one, and counts image by image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import store
from histoquant.analysis.agreement import TOLERANCE_UM, match_points
from histoquant.analysis.raters import Correlated, Pair, bland_altman, consensus, cv_percent, icc
from histoquant.errors import HistoquantError, InputError, raise_all
from histoquant.marks import Marks, Slides, journal_marks, read_marks
from histoquant.model.panel import counterstain_of
from histoquant.report.figures import draw_bland_altman

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

RUN, CONSENSUS = "histoquant", "consensus"
"""What the run, and the places that most raters marked, are called among the raters."""

BANDS = ((0.9, "excellent"), (0.75, "good"), (0.5, "moderate"), (-np.inf, "poor"))
"""How an intraclass correlation is called (Koo and Li 2016, Journal of Chiropractic Medicine 15:155-163)."""

Image = tuple[str, str]
"""A slide and a region of it; the region is empty for the whole slide."""


@dataclass(frozen=True)
class Agreement:
    """What was found.

    Attributes
    ----------
    tolerance_um : float
    pairs : tuple of Pair
        The run against each rater and their consensus, then each rater against each.
    correlated : tuple of Correlated
        By marker, with the run and without it.
    """

    tolerance_um: float
    pairs: tuple[Pair, ...]
    correlated: tuple[Correlated, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON."""
        return {
            "tolerance_um": self.tolerance_um,
            "pairs": [pair.as_dict() for pair in self.pairs],
            "counts": [one.as_dict() for one in self.correlated],
        }


def agree(
    root: Path,
    marks: Sequence[Path],
    *,
    journals: bool = False,
    markers: Sequence[str] = (),
    regions: Sequence[str] = (),
    tolerance_um: float = TOLERANCE_UM,
) -> Agreement:
    """Compare a run with marks of people.

    Parameters
    ----------
    root : Path
        Folder of a finished run.
    marks : sequence of Path
        As `read_marks` takes them.
    journals : bool
        Take the reviewers of the run as raters too, each on the cells they looked at.
    markers : sequence of str
        What the marks mean, when they do not say: a called marker, or the counterstain for any nucleus. With several,
        or none given, each marker that the marks name.
    regions : sequence of str
        Compare within these regions, each an image of its own; whole slides when not given.

    Raises
    ------
    HistoquantError
        Everything that is wrong with the marks, together.
    """
    slides = Slides(root)
    raters = read_marks(marks, slides) + (journal_marks(slides) if journals else [])
    if not raters:
        raise InputError(f"There is nothing to compare '{root}' with.", "Give --marks FILE, or review it first.")
    taken = [rater.rater for rater in raters if rater.rater in (RUN, CONSENSUS)]
    if taken:
        raise InputError(f"A rater cannot be called '{taken[0]}'.", "Rename the file, or correct its column rater.")
    unknown = [name for name in markers if name not in slides.markers]
    if unknown:
        raise InputError(f"No marker is called '{unknown[0]}'; there are {', '.join(slides.markers)}.")
    looked_at = dict.fromkeys(slide for rater in raters for slide in rater.slides)
    known = dict.fromkeys(name for slide in looked_at for name in slides[slide].regions.counted)
    for region in regions:
        if region not in known:
            raise InputError(f"No region is called '{region}'; there are {', '.join(known)}.", "Correct --region.")
    pairs: list[Pair] = []
    correlated: list[Correlated] = []
    faults: list[HistoquantError] = []
    for marker in _asked(slides, raters, markers):
        table = _Table(slides, raters, marker, regions, tolerance_um)
        faults += _misread(table)
        pairs += table.pairs()
        correlated += table.correlated()
    raise_all({str(fault): fault for fault in faults}.values())
    return Agreement(tolerance_um, tuple(pairs), tuple(correlated))


def _asked(slides: Slides, raters: Sequence[Marks], markers: Sequence[str]) -> list[str]:
    if markers:
        return list(dict.fromkeys(markers))
    named = {name for rater in raters for name in rater.points["marker"] if name}
    called = [name for name in slides.markers if name != counterstain_of(slides.panel)] or slides.markers
    if named:
        return [name for name in slides.markers if name in named]
    if len(called) == 1:
        return called
    raise InputError(
        f"The marks do not say what they mark; the run has {', '.join(slides.markers)}.",
        "Give --marker NAME, or add a column marker.",
    )


class _Table:
    """The places of one marker, by rater and image."""

    def __init__(
        self, slides: Slides, raters: Sequence[Marks], marker: str, regions: Sequence[str], tolerance_um: float
    ) -> None:
        self.slides, self.marker, self.regions, self.tolerance_um = slides, marker, regions, tolerance_um
        self.raters = [rater for rater in raters if self._speaks(rater)]
        self.places: dict[str, dict[Image, NDArray[np.float64]]] = {
            rater.rater: dict(self._images(rater.slides, self.marked(rater.points))) for rater in self.raters
        }
        self.seen: dict[str, dict[Image, NDArray[np.float64]]] = {
            rater.rater: dict(self._images(rater.slides, self.marked(rater.seen)))
            for rater in self.raters
            if rater.seen is not None
        }
        looked_at = dict.fromkeys(slide for rater in self.raters for slide in rater.slides)
        self.places[RUN] = dict(self._images(looked_at, {slide: self.found(slide) for slide in looked_at}))
        full = [rater.rater for rater in self.raters if rater.seen is None]
        if len(full) > 2:
            common = set.intersection(*(set(self.places[name]) for name in full))
            self.places[CONSENSUS] = {
                image: consensus([self.places[name][image] for name in full], tolerance_um=tolerance_um)
                for image in self.places[full[0]]
                if image in common
            }

    def _speaks(self, rater: Marks) -> bool:
        return rater.points.empty or bool(rater.points["marker"].isin(["", self.marker]).any())

    def marked(self, points: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Return a rater's places by slide."""
        mine = points[points["marker"].isin(["", self.marker])]
        return {str(slide): rows[["y_um", "x_um"]].to_numpy(float) for slide, rows in mine.groupby("slide_id")}

    def found(self, slide: str) -> NDArray[np.float64]:
        """Return the run's cells of the marker on a slide."""
        cells = self.slides[slide].cells
        if f"{self.marker}_positive" in cells:
            cells = cells[cells[f"{self.marker}_positive"].astype(bool)]
        return cells[["y_um", "x_um"]].to_numpy(float)

    def _images(
        self, slides: Sequence[str] | Mapping[str, Any], by_slide: Mapping[str, NDArray[np.float64]]
    ) -> Iterator[tuple[Image, NDArray[np.float64]]]:
        for slide in slides:
            points = by_slide.get(slide, np.empty((0, 2)))
            if not self.regions:
                yield (slide, ""), points
                continue
            regions = self.slides[slide].regions
            where = regions.assign(points)
            for region in self.regions:
                if region in regions.counted:
                    within = [name for name in regions.counted if name == region or region in regions.ancestors(name)]
                    yield (slide, region), points[np.isin(where.astype(str), within)]

    def pairs(self) -> Iterator[Pair]:
        """Yield the run against each rater and their consensus, then each rater against each."""
        names = [rater.rater for rater in self.raters]
        for name in [*names, *([CONSENSUS] if CONSENSUS in self.places else [])]:
            yield self._pair(RUN, name)
        for first, second in itertools.combinations(names, 2):
            if set(self.places[first]) & set(self.places[second]):
                yield self._pair(first, second)

    def _pair(self, first: str, second: str) -> Pair:
        counts = []
        for image in self.places[first]:
            if image in self.places[second]:
                a, b = (self._shared(name, image, (first, second)) for name in (first, second))
                match = match_points(a, b, tolerance_um=self.tolerance_um)
                counts.append((*image, len(a), len(b), match.tp))
        found, true = ([row[column] for row in counts] for column in (2, 3))
        return Pair(self.marker, first, second, tuple(counts), bland_altman(found, true))

    def _shared(self, name: str, image: Image, both: tuple[str, str]) -> NDArray[np.float64]:
        """Return a rater's places in an image that the other looked at too, plus those only a person can have added."""
        from scipy.spatial import KDTree

        points = self.places[name][image]
        for other in both:
            if other == name or other not in self.seen:
                continue
            seen = np.concatenate([self.seen[other][image], self.places[other][image]])
            near = KDTree(seen).query(points)[0] <= self.tolerance_um if len(seen) and len(points) else []
            points = points[near] if len(near) else points[:0]
        return points

    def correlated(self) -> Iterator[Correlated]:
        """Yield how the counts of the run and the raters go together, and those of the raters alone."""
        names = [rater.rater for rater in self.raters if rater.seen is None]
        for raters in ([RUN, *names], names):
            images = [image for image in self.places[RUN] if all(image in self.places[name] for name in raters)]
            if len(raters) < 2 or not images:
                continue
            counts = np.array([[len(self.places[name][image]) for name in raters] for image in images], dtype=float)
            spread = cv_percent(counts)
            mean = float(np.nanmean(spread)) if np.isfinite(spread).any() else np.nan
            forms = tuple(icc(counts, form) for form in ("A,1", "C,1", "1,1"))
            yield Correlated(self.marker, tuple(raters), forms, mean)


MISREAD_BELOW, MISREAD_ABOVE = 0.2, 0.5
"""Marks that match with an F1 below the first as they stand, and above the second when read otherwise, were misread."""


def _misread(table: _Table) -> Iterator[HistoquantError]:
    """Yield which marks are in another unit, or have y and x swapped, though they all happen to lie on their slide."""
    for rater in table.raters:
        if rater.seen is not None:
            continue
        for slide, points in table.marked(rater.points).items():
            found, px = table.found(slide), table.slides[slide].pixel_size_um
            readings = [
                (points, "", ""),
                (points * px, "pixels instead of um", "Name the columns y_px and x_px."),
                (points / px, "um instead of pixels", "Name the columns y_um and x_um."),
                (points[:, ::-1], "y and x swapped", "Swap the two columns."),
            ]
            f1 = [match_points(found, read, tolerance_um=table.tolerance_um).f1 for read, _, _ in readings]
            best = int(np.nanargmax(f1)) if np.isfinite(f1).any() else 0
            if f1[0] < MISREAD_BELOW and f1[best] > MISREAD_ABOVE:
                _, how, remedy = readings[best]
                where = f"Marks of '{rater.rater}' on slide '{slide}'"
                yield InputError(f"{where} fit the cells only when read with {how}.", remedy)


def write_agreement(found: Agreement, folder: Path) -> list[Path]:
    """Write ``agreement.json``, ``images.csv`` and one Bland-Altman plot per marker; return what was written.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    import pandas as pd

    rows = [
        (pair.marker, pair.first, pair.second, *row, row[2] - row[3]) for pair in found.pairs for row in pair.counts
    ]
    columns = ["marker", "first", "second", "slide_id", "region", "n_first", "n_second", "n_matched", "difference"]
    written = [folder / "agreement.json", folder / "images.csv"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(written[0], found.as_dict())
    store.write_csv(written[1], pd.DataFrame(rows, columns=columns))
    for marker in dict.fromkeys(pair.marker for pair in found.pairs):
        path = folder / f"bland_altman_{marker}.png"
        with store.whole_file(path) as temporary:
            draw_bland_altman(
                temporary,
                [
                    (f"{pair.first} − {pair.second}", np.array([row[2:4] for row in pair.counts]), pair.bland_altman)
                    for pair in found.pairs
                    if pair.marker == marker and pair.counts
                ],
                title=f"{marker}: counts per image",
            )
        written.append(path)
    return written


def report_lines(found: Agreement) -> Iterator[str]:
    """Yield what was found as lines for a person."""
    for marker in dict.fromkeys(pair.marker for pair in found.pairs):
        yield f"{marker}: one-to-one within {found.tolerance_um:g} um"
        pairs = [pair for pair in found.pairs if pair.marker == marker]
        names = [f"{pair.first} against {pair.second}" for pair in pairs]
        width = max(map(len, names))
        yield f"  {'':{width}}  images  first second  match  precision  recall     F1      bias  limits of agreement"
        for name, pair in zip(names, pairs, strict=True):
            numbers = f"{len(pair.counts):6}  {pair.n_first:5} {pair.n_second:6} {pair.tp:6}"
            rates = f"{_shown(pair.precision):>9}  {_shown(pair.recall):>6}  {_shown(pair.f1):>5}"
            told = pair.bland_altman
            limits = f"{_shown(told.low, 1)} to {_shown(told.high, 1)}" if not np.isnan(told.sd) else "needs 2 images"
            yield f"  {name:{width}}  {numbers}  {rates}  {_shown(told.bias, 1):>8}  {limits}"
        for one in found.correlated:
            if one.marker == marker:
                yield f"  counts of {', '.join(one.raters)}: {_correlation(one)}"


def _correlation(one: Correlated) -> str:
    absolute = one.forms[0]
    spread = f"CV {_shown(one.cv_percent, 1)} %"
    if np.isnan(absolute.value):
        return f"ICC is not defined on {absolute.n_images} image(s) that do not differ, or fewer than 2; {spread}"
    low, high = (next(name for limit, name in BANDS if value >= limit) for value in (absolute.low, absolute.high))
    band = low if low == high else f"{low} to {high}"
    interval = f"95 % CI {_shown(absolute.low)} to {_shown(absolute.high)}, {band}"
    others = ", ".join(f"ICC({form.form}) {_shown(form.value)}" for form in one.forms[1:])
    return f"ICC(A,1) {_shown(absolute.value)} ({interval}) on {absolute.n_images} images, {others}; {spread}"


def _shown(value: float, digits: int = 3) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
