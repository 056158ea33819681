"""From records to batches: data sets, preprocessing cache, slices, loader and the phantom cohort."""

from __future__ import annotations

from scripts.data.acdc import acdc_records
from scripts.data.cache import Volume, cached_volumes
from scripts.data.phantom import make_phantom_cohort
from scripts.data.slices import SemiSupervisedLoader, SliceDataset
from scripts.data.transforms import ThroughPlaneLastd
from scripts.data.volumes import VolumeDataset

__all__ = [
    "SemiSupervisedLoader",
    "SliceDataset",
    "ThroughPlaneLastd",
    "Volume",
    "VolumeDataset",
    "acdc_records",
    "cached_volumes",
    "make_phantom_cohort",
]
