"""Synthetic studies whose truth is known: every nucleus, every label, every effect."""

from histoquant.phantom.dendrite_plan import DendritePlan
from histoquant.phantom.dendrite_study import make_dendrites
from histoquant.phantom.joint import JointPlan, make_joint_phantom
from histoquant.phantom.plan import ASSAYS, SAMPLE_PLAN, PhantomPlan
from histoquant.phantom.study import make_phantom, shipped_recipe
from histoquant.phantom.ttc import TtcPlan, make_ttc_phantom

__all__ = [
    "ASSAYS",
    "SAMPLE_PLAN",
    "DendritePlan",
    "JointPlan",
    "PhantomPlan",
    "TtcPlan",
    "make_dendrites",
    "make_joint_phantom",
    "make_phantom",
    "make_ttc_phantom",
    "shipped_recipe",
]
