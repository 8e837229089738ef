"""What lies in a phantom's section: solid bodies and thin fibres, in um, with their light per channel.

Light is relative to a typical stained nucleus (1.0). Positions are (y, x), the top-left corner of the slide at (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_A_CELL = 0
DNA, CYTOPLASM, DEPOSIT = 0, 1, 2
"""What a body is: nuclei displace cytoplasm; deposits (lipofuscin, red cells) lie over both."""

FIBRE_SIGMA_UM = 0.5
FIBRE_STEP_UM = 0.5

TEXTURE_PX = 512
"""Period of the chromatin pattern."""


@dataclass(frozen=True)
class Bodies:
    """Solid things: nuclei, fragments, somata, lipofuscin. Arrays of one length, light is (n, c).

    The outline is an ellipse whose radius varies as ``1 + sum(lobe_k cos(k t + phase_k))``, k = 3, 4, scaled so
    that its area is exactly ``pi diameter_um**2 / 4``.
    """

    y_um: NDArray[Any]
    x_um: NDArray[Any]
    diameter_um: NDArray[Any]
    aspect: NDArray[Any]
    angle: NDArray[Any]
    lobes: NDArray[Any]
    phases: NDArray[Any]
    edge_um: NDArray[Any]
    texture: NDArray[Any]
    pattern: NDArray[Any]
    light: NDArray[Any]
    cell: NDArray[Any]
    layer: NDArray[Any]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        yx_um: NDArray[Any],
        diameter_um: NDArray[Any],
        light: NDArray[Any],
        *,
        cell: NDArray[Any] | int = NOT_A_CELL,
        layer: int = DNA,
        texture: float = 0.3,
    ) -> Bodies:
        """Give bodies of known place, size and light their random shapes.

        Parameters
        ----------
        rng : numpy Generator
        yx_um : (n, 2) float
        diameter_um : (n,) float
            Of the circle of equal area.
        light : (n, c) float
        cell : (n,) int or int
            Label of the cell the body belongs to, 0 = none.
        layer : int
            DNA, CYTOPLASM or DEPOSIT.
        texture : float
            Relative standard deviation of the light inside.
        """
        n = len(yx_um)
        return cls(
            y_um=yx_um[:, 0],
            x_um=yx_um[:, 1],
            diameter_um=diameter_um,
            aspect=rng.uniform(1.0, 1.6, n),
            angle=rng.uniform(0, np.pi, n),
            lobes=rng.uniform(0, 1, (n, 2)) * (0.07, 0.04),
            phases=rng.uniform(0, 2 * np.pi, (n, 2)),
            edge_um=rng.uniform(0.3, 0.9, n),
            texture=np.full(n, texture),
            pattern=rng.integers(0, TEXTURE_PX, (n, 2)),
            light=light,
            cell=np.broadcast_to(np.asarray(cell, np.uint32), n),
            layer=np.full(n, layer, np.int8),
        )

    @classmethod
    def together(cls, parts: Sequence[Bodies]) -> Bodies:
        """Return all bodies of several sets as one."""
        return cls(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)})

    def __len__(self) -> int:
        return len(self.y_um)

    def take(self, chosen: NDArray[Any]) -> Bodies:
        """Return the bodies of an index array."""
        return Bodies(**{each.name: getattr(self, each.name)[chosen] for each in fields(self)})

    @cached_property
    def reach_um(self) -> NDArray[Any]:
        """(n,) distance from the centre beyond which a body has no light."""
        longest = self.diameter_um / 2 * np.sqrt(self.aspect) * (1 + self.lobes.sum(1))
        return np.asarray(longest + 2 * self.edge_um)


@dataclass(frozen=True)
class Fibres:
    """Thin processes as points every ``FIBRE_STEP_UM``: (n, 2) places in um, (n, c) light on the axis."""

    yx_um: NDArray[Any]
    light: NDArray[Any]


class Buckets:
    """Points sorted by square, to find those in a box without looking at all."""

    def __init__(self, yx_um: NDArray[Any], side_um: float) -> None:
        self.yx_um, self.side_um = yx_um, side_um
        square = np.maximum(yx_um // side_um, 0).astype(np.int64)
        self.columns = int(square[:, 1].max(initial=0)) + 1
        key = square[:, 0] * self.columns + square[:, 1]
        self.order = np.argsort(key, kind="stable")
        self.key = key[self.order]

    def within(self, box_um: tuple[float, float, float, float]) -> NDArray[Any]:
        """Return the ascending indices of points in (y0, y1, x0, x1)."""
        y0, y1, x0, x1 = box_um
        first, last = max(int(x0 // self.side_um), 0), min(int(x1 // self.side_um), self.columns - 1)
        found = [np.empty(0, np.int64)]
        for row in range(max(int(y0 // self.side_um), 0), max(int(y1 // self.side_um), 0) + 1):
            ends = np.searchsorted(self.key, [row * self.columns + first, row * self.columns + last + 1])
            found.append(self.order[ends[0] : max(ends)])
        near = np.sort(np.concatenate(found))
        y, x = self.yx_um[near].T
        return np.asarray(near[(y >= y0) & (y < y1) & (x >= x0) & (x < x1)])


def depth_um(bodies: Bodies, y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Return how far inside the outlines of n bodies points lie, (n, s, s) in um, negative outside.

    Zero exactly on the outline; elsewhere scaled by the mean radius, which is close enough for a blurred edge.

    Parameters
    ----------
    bodies : Bodies
        n of them.
    y, x : (n, s, 1) and (n, 1, s) float32
        Points, in um from each body's centre.
    """

    def column(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(values, np.float32)[:, None, None]

    area_ratio = 1 + (bodies.lobes**2).sum(1) / 2
    mean_axis = bodies.diameter_um / 2 / np.sqrt(area_ratio)
    cosine, sine = column(np.cos(bodies.angle)), column(np.sin(bodies.angle))
    u = (x * cosine + y * sine) / column(mean_axis * np.sqrt(bodies.aspect))
    v = (y * cosine - x * sine) / column(mean_axis / np.sqrt(bodies.aspect))
    radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
    u, v = u / radius, v / radius  # cosine and sine of t, from which those of 3 t and 4 t follow
    cos2, sin2 = u * u - v * v, 2 * u * v
    cos3, sin3 = u * (2 * cos2 - 1), v * (2 * cos2 + 1)
    cos4, sin4 = 2 * cos2 * cos2 - 1, 2 * sin2 * cos2
    in_phase, out_of_phase = bodies.lobes * np.cos(bodies.phases), bodies.lobes * np.sin(bodies.phases)
    outline = 1 + cos3 * column(in_phase[:, 0]) - sin3 * column(out_of_phase[:, 0])
    outline += cos4 * column(in_phase[:, 1]) - sin4 * column(out_of_phase[:, 1])
    return np.asarray((1 - radius / outline) * column(mean_axis))
