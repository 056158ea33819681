"""From records to batches: data sets, preprocessing cache, slices and loader."""

from __future__ import annotations

from scripts.data.acdc import acdc_records
from scripts.data.cache import Volume, cached_volumes
from scripts.data.slices import SemiSupervisedLoader, SliceDataset
from scripts.data.transforms import ThroughPlaneLastd

__all__ = [
    "SemiSupervisedLoader",
    "SliceDataset",
    "ThroughPlaneLastd",
    "Volume",
    "acdc_records",
    "cached_volumes",
]
