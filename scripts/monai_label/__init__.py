"""Training from a MONAI Label datastore: its studies and labels, a time budget, and publishing of the weights.

MONAI Label's ``monaibundle`` app replaces the records of training and validation by those of the studies with a final
label. All other studies of the datastore are the unlabelled images of a semi-supervised objective. The datastore is
found from the labels' path, which is always ``STUDIES/labels/final/``; ``STUDIES/datastore_v2.json`` is the server's
list of studies. ``labels/original`` contains predictions and is never read.
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
