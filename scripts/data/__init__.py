"""From records to batches: data sets, preprocessing cache, slices, loader and the phantom cohort."""

from __future__ import annotations

from scripts.data.cache import Volume, cached_volumes
from scripts.data.datastore import PublishWeights, run_folder, unlabeled_studies
from scripts.data.phantom import make_phantom_cohort
from scripts.data.readers import LoadVolumed
from scripts.data.records import LAYOUTS, dataset_records
from scripts.data.resize import ResizeSlicesd
from scripts.data.slices import SemiSupervisedLoader, SliceDataset
from scripts.data.transforms import LabelValuesd, ThroughPlaneLastd
from scripts.data.volumes import VolumeDataset

__all__ = [
    "LAYOUTS",
    "LabelValuesd",
    "LoadVolumed",
    "PublishWeights",
    "ResizeSlicesd",
    "SemiSupervisedLoader",
    "SliceDataset",
    "ThroughPlaneLastd",
    "Volume",
    "VolumeDataset",
    "cached_volumes",
    "dataset_records",
    "make_phantom_cohort",
    "run_folder",
    "unlabeled_studies",
]
