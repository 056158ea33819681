"""The objectives: what a training step computes and minimises. One file each."""

from __future__ import annotations

from scripts.methods.base import Objective, WeakViews
from scripts.methods.fixmatch import FixMatch
from scripts.methods.semsim import SemSim
from scripts.methods.supervised import Supervised
from scripts.methods.unimatch import UniMatch

__all__ = ["FixMatch", "Objective", "SemSim", "Supervised", "UniMatch", "WeakViews"]
