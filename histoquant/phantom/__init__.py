"""Synthetic studies whose truth is known: every nucleus, every label, every effect."""

from histoquant.phantom.plan import ASSAYS, PhantomPlan
from histoquant.phantom.study import make_phantom, shipped_recipe

__all__ = ["ASSAYS", "PhantomPlan", "make_phantom", "shipped_recipe"]
