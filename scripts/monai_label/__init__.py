"""Training from a MONAI Label datastore: its studies and their labels, a time budget, and where results go.

MONAI Label's ``monaibundle`` app replaces the records of training and validation by those of the studies whose label
is final. All other studies of the datastore are what a semi-supervised objective learns from beside them. They are
found from the labels' place, which is always ``STUDIES/labels/final/``; ``STUDIES/datastore_v2.json`` is the server's
own list of studies. ``labels/original`` holds what networks predicted and is never looked at.
"""

from __future__ import annotations

from scripts.monai_label.budget import BudgetSchedule, TimeBudget
from scripts.monai_label.datastore import Studies, run_folder, training_slices, validation_volumes
from scripts.monai_label.publishing import PublishWeights, network_files

__all__ = [
    "BudgetSchedule",
    "PublishWeights",
    "Studies",
    "TimeBudget",
    "network_files",
    "run_folder",
    "training_slices",
    "validation_volumes",
]
