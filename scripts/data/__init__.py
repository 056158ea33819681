"""From records to batches: data sets, preprocessing cache, slices and the loader."""

from __future__ import annotations

from scripts.data.cache import Volume, cached_volumes
from scripts.data.readers import LoadImageVolumed
from scripts.data.records import LAYOUTS, cohort_axis, dataset_records
from scripts.data.resize import FitSlicesd, ResizeSlicesd
from scripts.data.slices import SemiSupervisedLoader, SliceDataset
from scripts.data.transforms import InvertToLabelGridd, LabelValuesd, ScaleImaged, ThroughPlaneLastd
from scripts.data.volumes import VolumeDataset

__all__ = [
    "LAYOUTS",
    "FitSlicesd",
    "InvertToLabelGridd",
    "LabelValuesd",
    "LoadImageVolumed",
    "ResizeSlicesd",
    "ScaleImaged",
    "SemiSupervisedLoader",
    "SliceDataset",
    "ThroughPlaneLastd",
    "Volume",
    "VolumeDataset",
    "cached_volumes",
    "cohort_axis",
    "dataset_records",
]
