"""Stains of a brightfield picture: optical density, stain vectors per slide with their quality, unmixing.

Light that passes stained tissue is absorbed exponentially, so that the optical density of a stain is proportional to
its amount (Beer and Lambert), in fixed proportions of red, green and blue: its *stain vector*. Colour deconvolution
(Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291) solves for the amounts::

    od = -log10(max(intensity, 1) / white)        per colour
    [amount_1, amount_2, residual] = od @ inverse([vector_1, vector_2, vector_1 x vector_2])

with unit vectors, so that an amount is an optical density. Amounts may be negative: nothing is clipped.

DAB scatters light besides absorbing it and does not follow Beer and Lambert (van der Loos 2008, J Histochem Cytochem
56:313): its optical density ranks cells of one staining batch, and is no concentration.

Arrays are (3, ...): red, green, blue first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.compiled import compiled
from histoquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Colour = tuple[float, float, float]
"""Red, green, blue."""

HEMATOXYLIN: Colour = (0.65111, 0.70119, 0.29049)
REFERENCES: dict[str, Colour] = {
    "dab": (0.26917, 0.56824, 0.77759),
    "eosin": (0.2159, 0.8012, 0.5581),
}
"""What stands beside hematoxylin, by name. All three are the defaults of QuPath (Bankhead et al. 2017, Sci Rep 7:16878)
for H-DAB and H&E."""

FULL_SCALE = 255

# The darkest glass, and the most it may be tinted by the lamp (ratio of two colours 1.1), that a white point is taken
# from: paler tissue than that is not to be told from glass.
DARKEST_WHITE = 170.0
MOST_TINT_OD = 0.04
BLANK_SHARE = 0.005
BLANK_SPAN_OD = 0.03  # sum over the colours

STAINED_OD = 0.25
"""Paler pixels (length of the OD vector) tell little of a colour: 0.15 in each colour in Macenko et al."""

EXTREME_PERCENT = 1.0
MIN_STAINED_PX = 500

MOST_ANGLE_DEG = {"hematoxylin": 12.0, "dab": 12.0, "eosin": 25.0}
"""From the reference. Published vectors of eosin are up to 27 degrees apart."""

LEAST_APART = 0.85
"""Of the angle between the references. Where DAB lies on nuclei only, it is nowhere seen without hematoxylin, and what
is found for it lies between the two: simulated, 11 degrees off, while the reference of a lab 5 degrees away is not."""

LEAST_EXPLAINED = 0.9

BROWN_DEG = 10.0
BROWN_SHARE = 0.01
"""A slide shows DAB when 1 % of its stained pixels are within 10 degrees of it; eosin is 19 degrees away."""

PINK_RED = 0.3
PINK_SHARE = 0.15
"""It shows eosin when red is less than 0.3 of the OD vector in 15 % of its stained pixels. In fields of BBBC038 with
pink tissue it is in 20 to 65 %, in those of cells on glass in up to 10 %, in those on a violet ground in up to 2 %."""


@dataclass(frozen=True)
class Stains:
    """The stains of one slide: all that turns its colours into amounts of stain.

    Attributes
    ----------
    names : tuple of str
        ``hematoxylin`` and what stands beside it, if anything does.
    vectors : one unit vector (red, green, blue) per name
    white : (float, float, float)
        Red, green and blue of blank glass.
    white_share : float
        Share of the slide that is as bright as the glass; 0 when no blank area was found and ``white`` is full scale.
    estimated : bool
        Whether the vectors are those of this slide; else they are the reference's.
    angles_deg : tuple of float
        Angle between each vector found on this slide and its reference, also where it was refused; empty without any.
    explained : float
        Share of the squared optical density of stained pixels that the vectors explain; the rest is residual. NaN
        without stained pixels.
    refused : str
        Why the vectors found on this slide were refused; empty when they were not, or were not asked for.
    """

    names: tuple[str, ...]
    vectors: tuple[Colour, ...]
    white: Colour
    white_share: float
    estimated: bool
    angles_deg: tuple[float, ...]
    explained: float
    refused: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the planes that unmixing gives; one stain alone leaves no residual that has a sign."""
        return (*self.names, "residual") if len(self.names) == 2 else self.names

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON: what is not defined is null."""
        return asdict(self) | {"explained": None if np.isnan(self.explained) else self.explained}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Stains:
        """Rebuild stains from what `as_dict` gave."""
        vectors = tuple(_colour(vector) for vector in told["vectors"])
        listed = {name: tuple(told[name]) for name in ("names", "angles_deg")}
        explained = float("nan") if told["explained"] is None else told["explained"]
        white = _colour(told["white"])
        return cls(**dict(told) | listed | {"vectors": vectors, "white": white, "explained": explained})


def optical_density(rgb: NDArray[Any], white: Sequence[float]) -> NDArray[np.float64]:
    """Return the optical density of each colour.

    Parameters
    ----------
    rgb : (3, ...) array
        Intensities, 0 = no light. Less than 1 counts as 1: of 8 bits no density above log10(255) = 2.41 can be told.
    white : (3,) float
        Intensities of blank glass.

    Returns
    -------
    (3, ...) float64, 0 = glass, negative where brighter
    """
    glass = np.asarray(white, dtype=np.float64).reshape(3, *(1,) * (np.ndim(rgb) - 1))
    if not (glass > 0).all():
        raise InputError(f"A white point of {tuple(white)} is not above 0 in every colour.", "Measure it on glass.")
    return np.asarray(-np.log10(np.maximum(rgb, 1) / glass), dtype=np.float64)


def clipped(rgb: NDArray[Any]) -> int:
    """Return how many pixels are black in at least one colour: their optical density is at its ceiling, or beyond."""
    return int((rgb < 1).any(axis=0).sum())


def measured_white(rgb: NDArray[Any]) -> tuple[Colour, float]:
    """Return red, green and blue of the glass of a slide, and the share of the slide that is as bright.

    The brightest half percent of the pixels leads; the median of all pixels about as bright is taken. Pure white and
    pure black, with which scanners fill what they did not scan, are left out where there is anything else.

    Parameters
    ----------
    rgb : (3, n) array
        The whole slide in few pixels, 0 to 255.

    Returns
    -------
    white : (float, float, float)
        Full scale (255) when the brightest pixels are too dark or too coloured to be glass.
    share : float
        0 for full scale as a fallback.
    """
    total = rgb.shape[1]
    filled = (rgb >= FULL_SCALE).all(axis=0) | (rgb <= 0).all(axis=0)
    scanned = rgb[:, ~filled]
    if scanned.shape[1] < max(1, BLANK_SHARE * total):
        scanned = rgb
    density = optical_density(scanned, (FULL_SCALE,) * 3)
    darkness = density.sum(axis=0)
    if not len(darkness):
        return (float(FULL_SCALE),) * 3, 0.0
    brightest = float(np.quantile(darkness, BLANK_SHARE))
    blank = darkness <= brightest + BLANK_SPAN_OD
    white = np.median(scanned[:, blank], axis=1).astype(np.float64)
    tint = float(np.log10(white.max() / max(float(white.min()), 1.0)))
    if white.min() < DARKEST_WHITE or tint > MOST_TINT_OD:
        return (float(FULL_SCALE),) * 3, 0.0
    return _colour(white), float(blank.sum() / total)


def unmixing_matrix(vectors: NDArray[np.float64] | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the matrix that optical densities (a row: red, green, blue) are multiplied with.

    Parameters
    ----------
    vectors : one or two of (red, green, blue), of any length above 0

    Returns
    -------
    (3, 3) float64, or (3, 1) of one stain
        The columns give the stains and the residual. One stain alone is the projection on its vector: the amount that
        leaves the least.

    Raises
    ------
    InputError
        If a vector has no length, or the two point the same way.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=-1)
    if rows.shape not in ((1, 3), (2, 3)) or not np.isfinite(rows).all() or not (lengths > 0).all():
        raise InputError(
            f"Stain vectors {rows.tolist()} are not one or two directions in red, green and blue.", "Correct them."
        )
    if len(rows) == 1:
        return np.asarray((rows / lengths[:, np.newaxis]).T)
    one, other = rows / lengths[:, np.newaxis]
    across = np.cross(one, other)
    if np.linalg.norm(across) < 1e-3:
        raise InputError("The two stains have one and the same colour and cannot be told apart.", "Name other stains.")
    return np.asarray(np.linalg.inv(np.stack([one, other, across / np.linalg.norm(across)])))


def unmix(
    od: NDArray[np.floating[Any]], vectors: NDArray[np.float64] | Sequence[Sequence[float]]
) -> NDArray[np.float64]:
    """Return the amounts of stains, and what two of them leave, as optical densities.

    Parameters
    ----------
    od : (3, ...) float
    vectors : one or two of (red, green, blue), of any length above 0

    Returns
    -------
    (3, ...) float64 : first stain, second stain, residual; (1, ...) of one stain
    """
    return np.asarray(np.tensordot(unmixing_matrix(vectors).T, od, axes=1))


def unmixing_tables(stains: Stains) -> NDArray[np.float64]:
    """Return what each grey level of each colour adds to each plane: (planes, 3 colours, 256).

    Unmixing is a sum over colours of something that depends on one grey level: 8-bit pictures need no logarithm per
    pixel, and a pixel's amounts are the same bits wherever and with whatever neighbours it is read.
    """
    levels = np.broadcast_to(np.arange(FULL_SCALE + 1), (3, FULL_SCALE + 1))
    density = optical_density(levels, stains.white)
    return np.ascontiguousarray(unmixing_matrix(stains.vectors).T[:, :, np.newaxis] * density)


def looked_up(rgb: NDArray[np.uint8], tables: NDArray[np.float64]) -> NDArray[np.float32]:
    """Unmix an 8-bit picture by tables.

    Parameters
    ----------
    rgb : (3, z, y, x) uint8
    tables : (p, 3, 256) float64
        Of the planes wanted, as `unmixing_tables` gives them.

    Returns
    -------
    (p, z, y, x) float32
    """
    planes = np.empty((len(tables), *rgb.shape[1:]), dtype=np.float32)
    _look_up(np.ascontiguousarray(rgb).reshape(3, -1), tables, planes.reshape(len(tables), -1))
    return planes


@compiled
def _look_up(rgb: NDArray[np.uint8], tables: NDArray[np.float64], planes: NDArray[np.float32]) -> None:
    for p in range(planes.shape[0]):
        red, green, blue, out = tables[p, 0], tables[p, 1], tables[p, 2], planes[p]
        for i in range(rgb.shape[1]):
            out[i] = red[rgb[0, i]] + green[rgb[1, i]] + blue[rgb[2, i]]


def find_stains(rgb: NDArray[Any], beside: str | None, *, estimated: bool) -> Stains:
    """Find white point and stain vectors of a slide.

    The vectors are found after Macenko et al. (2009, ISBI, 1107): stained pixels lie near a plane through the origin
    of optical densities; within it, the stains are where the directions of pixels end. An estimate that is far from
    the reference, or that cannot be told from a mixture or from a single stain (a negative control shows no DAB), is
    refused and the reference taken.

    Parameters
    ----------
    rgb : (3, n) array
        The whole slide in few pixels, 0 to 255.
    beside : str or None
        What stands beside hematoxylin, a key of `REFERENCES`. When not given, DAB or eosin where the slide shows it,
        else nothing: then hematoxylin is what lies in the direction of its vector. That is less noisy than to unmix
        what is not there: nuclei of the colour images of BBBC038 are found better.
    estimated : bool
        Whether to estimate the vectors of two stains; else the reference is taken.
    """
    white, share = measured_white(rgb)
    density = optical_density(rgb, white)
    length = np.sqrt((density**2).sum(axis=0))
    # Where a colour is black its density is a bound, not a measurement.
    stained = density[:, (length >= STAINED_OD) & (rgb >= 1).all(axis=0)]
    beside = beside or _shown(stained)
    if beside is None:
        vectors: tuple[Colour, ...] = (HEMATOXYLIN,)
        return Stains(("hematoxylin",), vectors, white, share, False, (), _explained(stained, vectors))
    names, vectors = ("hematoxylin", beside), (HEMATOXYLIN, REFERENCES[beside])
    angles: tuple[float, ...] = ()
    refused = ""
    if estimated and stained.shape[1] < MIN_STAINED_PX:
        refused = f"only {stained.shape[1]} of the pixels looked at are stained"
    elif estimated:
        found = _ends(stained)
        reference = np.array(vectors)
        found = min((found, found[::-1]), key=lambda pair: float(_angles(pair, reference).sum()))
        angles = tuple(float(angle) for angle in _angles(found, reference))
        refused = _implausible(names, angles, found, reference, stained)
        if not refused:
            vectors = (_colour(found[0]), _colour(found[1]))
    done = estimated and not refused
    return Stains(names, vectors, white, share, done, angles, _explained(stained, vectors), refused)


def _shown(stained: NDArray[np.float64]) -> str | None:
    """Return what a slide shows beside hematoxylin, by the colours of its stained pixels; None of no or little else."""
    if not stained.size:
        return None
    brown = _angles(stained.T, np.array([REFERENCES["dab"]])) < BROWN_DEG
    if brown.mean() >= BROWN_SHARE:
        return "dab"
    red, green, blue = stained / np.sqrt((stained**2).sum(axis=0))
    return "eosin" if ((red < PINK_RED) & (green > blue)).mean() >= PINK_SHARE else None


def _implausible(
    names: Sequence[str],
    angles: Sequence[float],
    found: NDArray[np.float64],
    reference: NDArray[np.float64],
    stained: NDArray[np.float64],
) -> str:
    """Return why vectors found on a slide are not believed; empty when they are."""
    for name, angle in zip(names, angles, strict=True):
        if angle > MOST_ANGLE_DEG[name]:
            return f"{name} would be {angle:.0f} degrees from the reference"
    apart, expected = (float(_angles(pair[:1], pair[1:])[0]) for pair in (found, reference))
    if apart < LEAST_APART * expected:
        return f"only {apart:.0f} degrees apart, where {expected:.0f} are expected, they would be mixtures"
    explained = _explained(stained, found)
    return "" if explained >= LEAST_EXPLAINED else f"they would explain only {100 * explained:.0f} % of the density"


def _ends(stained: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the two directions, (2, 3) unit vectors, where the directions of stained pixels end.

    Each is halfway between the outermost percentile, which noise and uneven colour move outwards, and the median of
    the outermost quarter of the angles, which mixtures move inwards.
    """
    _, axes = np.linalg.eigh(stained @ stained.T)
    plane = axes[:, :0:-1].T  # the two of the largest eigenvalues, largest first
    plane = plane * np.where(plane.sum(axis=1) < 0, -1.0, 1.0)[:, np.newaxis]
    along, across = plane @ stained
    angle = np.arctan2(across, along)
    low, high = np.percentile(angle, (EXTREME_PERCENT, 100 - EXTREME_PERCENT))
    quarter = (high - low) / 4
    ends = [
        (low + np.median(angle[angle <= low + quarter])) / 2,
        (high + np.median(angle[angle >= high - quarter])) / 2,
    ]
    # No stain lets more light through than glass: a direction is moved to where no colour is negative.
    found = np.maximum(np.array([[np.cos(end), np.sin(end)] for end in ends]) @ plane, 0)
    return np.asarray(found / np.linalg.norm(found, axis=1)[:, np.newaxis])


def _angles(vectors: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angles between pairs of vectors in degrees."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    cosine = (vectors * others).sum(axis=1) / lengths
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _explained(stained: NDArray[np.float64], vectors: NDArray[np.float64] | Sequence[Colour]) -> float:
    """Return the share of the squared optical density that is in the plane of the vectors; NaN of no pixels."""
    total = float((stained**2).sum())
    if not total:
        return float("nan")
    amounts = unmix(stained, vectors)
    if len(amounts) == 1:
        return float((amounts**2).sum()) / total
    return 1.0 - float((amounts[2] ** 2).sum()) / total


def _colour(values: Sequence[float] | NDArray[Any]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
