"""From records to batches: data sets, preprocessing cache, slices and the loader."""

from __future__ import annotations

from scripts.data.cache import Volume, cached_volumes
from scripts.data.readers import LoadVolumed
from scripts.data.records import LAYOUTS, dataset_records
from scripts.data.resize import FitSlicesd, ResizeSlicesd
from scripts.data.slices import SemiSupervisedLoader, SliceDataset
from scripts.data.transforms import InvertToLabelGridd, LabelValuesd, ThroughPlaneLastd
from scripts.data.volumes import VolumeDataset

__all__ = [
    "LAYOUTS",
    "FitSlicesd",
    "InvertToLabelGridd",
    "LabelValuesd",
    "LoadVolumed",
    "ResizeSlicesd",
    "SemiSupervisedLoader",
    "SliceDataset",
    "ThroughPlaneLastd",
    "Volume",
    "VolumeDataset",
    "cached_volumes",
    "dataset_records",
]
