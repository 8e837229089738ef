"""What phantoms lack and tissue has: axons and other dendrites between the dendrites, knots, heads of many shapes.

All of it is label that belongs to no spine of the dendrites that are learnt from, or that makes theirs less perfect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from histoquant.analysis.ridge import Stack
from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrites import Dendrite, draw_dendrite, draw_stack, photograph

LENGTH_UM = (15, 40)
"""Of what goes through a stack."""

THREAD_UM = 0.01
"""Radius of an axis that holds next to no label: only what hangs on it is seen."""


@dataclass(frozen=True)
class Crowd:
    """How much of what there is in a stack.

    Attributes
    ----------
    fibres, specks : int
        Thin ones with swellings, and swellings alone, at most.
    passing : float
        Chance of one more dendrite, with spines, that goes through anywhere.
    knots_per_10um : float
        On shafts.
    lobed : float
        Share of heads that are no balls.
    thinner : float
        Share of shafts that are thinner than they were drawn.
    smear : float
        Light is drawn out along z up to so many times more than the plan says.
    clipped : float
        Share of stacks whose brightest voxels are all the same.
    """

    fibres: int
    specks: int
    passing: float
    knots_per_10um: float
    lobed: float
    thinner: float
    smear: float
    clipped: float


TISSUE = Crowd(fibres=14, specks=25, passing=0.4, knots_per_10um=1.5, lobed=0.5, thinner=0.4, smear=1.7, clipped=0.3)
CULTURE = Crowd(fibres=5, specks=4, passing=0.15, knots_per_10um=0.7, lobed=0.35, thinner=0.2, smear=1.0, clipped=0.2)


def swellings(path, radius: float, at, wide) -> Dendrite:
    """Return a fibre with balls on it, or beside it."""
    none = np.zeros(len(at))
    return Dendrite(path, radius, none, none, none, np.asarray(wide), none, at, at, at, np.ones(len(at), bool))


def passing(size_um, rng, per_10um: float) -> Dendrite:
    """Draw a dendrite that goes through a stack somewhere."""
    start = rng.uniform((2, 0, 0), np.maximum(np.array(size_um) - (2, 0, 0), (2.1, 1, 1)))
    return draw_dendrite(
        start, rng.uniform(0, 360), rng.uniform(-25, 25), float(rng.uniform(*LENGTH_UM)), per_10um, rng
    )


def fibre(size_um, rng) -> Dendrite:
    """Draw a thin fibre with swellings that goes through a stack somewhere: an axon."""
    one = passing(size_um, rng, 0.0)
    n = max(1, round(one.total_um / rng.uniform(3, 8)))
    return swellings(
        one.path, float(rng.uniform(0.07, 0.16)), one.path[rng.integers(0, len(one.path), n)], rng.uniform(0.3, 0.9, n)
    )


def uneven(one: Dendrite, crowd: Crowd, rng) -> Dendrite:
    """Draw the knots of a shaft and the lobes of its spines' heads."""
    n = rng.poisson(crowd.knots_per_10um * one.total_um / 10)
    knots = one.path[rng.integers(0, len(one.path), n)] + rng.normal(0, 0.5 * one.radius_um, (n, 3))
    which = np.repeat(np.flatnonzero(rng.random(len(one.head)) < crowd.lobed), 2)
    lobes = one.head[which] + rng.normal(0, 0.35, (len(which), 3)) * one.head_um[which, None]
    wide = np.concatenate([rng.uniform(0.3, 0.8, n), rng.uniform(0.3, 0.8, len(which)) * one.head_um[which]])
    return swellings(one.path, THREAD_UM, np.concatenate([knots, lobes]), wide)


def stretched(one: Dendrite, times: float) -> Dendrite:
    """Return a dendrite drawn out along z."""
    by = (times, 1.0, 1.0)
    return replace(one, path=one.path * by, base=one.base * by, head=one.head * by, tip=one.tip * by)


def light_of(pixels):
    """Return a stack as light, its background at 0; Golgi's as the mean optical density of its colours."""
    light = pixels.astype(np.float32)
    if light.ndim == 4:
        light = -np.log10(np.maximum(light, 1) / np.percentile(light, 95)).mean(axis=3)
    return (light - np.median(light)).astype(np.float32)


def crowded_stack(plan: DendritePlan, crowd: Crowd):
    """Return a phantom's dendrites and its stack, as light."""
    rng = np.random.default_rng(plan.seed)
    smear = float(rng.uniform(1.0, crowd.smear))
    # Planes nearer to each other than is said afterwards: all that was blurred is then drawn out.
    plan = replace(plan, z_step_um=plan.z_step_um / smear)
    drawn, shape = draw_stack(plan, 1.0, rng)
    voxel = np.array([plan.z_step_um, plan.pixel_size_um, plan.pixel_size_um])
    size = np.array(shape) * voxel
    drawn = [
        replace(one, radius_um=one.radius_um * float(rng.uniform(0.5, 1.0))) if rng.random() < crowd.thinner else one
        for one in drawn
    ]
    others = [uneven(one, crowd, rng) for one in drawn]
    if rng.random() < 0.7:
        others += [fibre(size, rng) for _ in range(int(rng.integers(0, crowd.fibres + 1)))]
    if rng.random() < crowd.passing:
        spiny = passing(size, rng, float(rng.uniform(0, 15)))
        others += [spiny, uneven(spiny, crowd, rng)]
    n = int(rng.integers(0, crowd.specks + 1))
    others.append(swellings(drawn[0].path, THREAD_UM, rng.uniform(0, size, (n, 3)), rng.uniform(0.25, 0.8, n)))
    light = light_of(photograph(drawn + others, shape, plan, rng))
    if rng.random() < crowd.clipped:
        light = np.minimum(light, np.float32(np.percentile(light, 99.8) * rng.uniform(0.4, 1.0)))
    return [stretched(one, smear) for one in drawn], Stack(light, (voxel[0] * smear, *voxel[1:]))
