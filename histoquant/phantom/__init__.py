"""Synthetic studies whose truth is known: every nucleus, every label, every effect."""

from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrite_study import make_dendrites
from histoquant.phantom.plan import ASSAYS, SAMPLE_PLAN, PhantomPlan
from histoquant.phantom.study import make_phantom, shipped_recipe

__all__ = ["ASSAYS", "SAMPLE_PLAN", "DendritePlan", "PhantomPlan", "make_dendrites", "make_phantom", "shipped_recipe"]
