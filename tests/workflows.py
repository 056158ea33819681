"""The bundle's workflows, with data and a network for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.workflows import CONFIGS, ROOT
from scripts.data import SliceDataset, dataset_records
from scripts.networks import UNet

QUIET = ("train#handlers#3", "validate#handlers#0")
"""The handlers of ``train.json`` that print or log."""


def random_network(num_classes: int = 4) -> UNet:
    """A network with random weights whose predictions have several classes, in every test the same."""
    torch.manual_seed(0)
    network = UNet(num_classes=num_classes).eval()
    with torch.no_grad():
        network.head.weight *= 50
        network.head.bias.zero_()
    return network


def labeled_slices(phantom: Path, cache: Path, chosen: slice) -> SliceDataset:
    """Slices at 32 px of some of a phantom cohort's training records, all with their labels."""
    parser = ConfigParser(ConfigParser.load_config_files(str(CONFIGS / "train.json")))
    parser.update({"image_size": 32, "slice_axis": "axial"})
    records = dataset_records("acdc", phantom, "train", phantom / "splits.json")[chosen]
    return SliceDataset(records, parser.get_parsed_content("train#preprocessing"), cache, num_classes=4)


def workflow(kind: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    """An initialised workflow on the CPU, of files below ``configs``."""
    quiet = {f"{handler}#_disabled_": True for handler in QUIET} if "train.json" in files else {}
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{"bundle_root": str(ROOT), "device": "$torch.device('cpu')", **quiet, **overrides},
    )
    flow.initialize()
    return flow
