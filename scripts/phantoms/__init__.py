"""Synthetic cohorts of hearts, prostates and skin lesions, in the official layouts."""

from __future__ import annotations

from scripts.phantoms.cohort import make_phantom_cohort

__all__ = ["make_phantom_cohort"]
