"""The bundle's workflows for the tests, and a network for them."""

from __future__ import annotations

from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from bundle.workflows import CONFIGS, ROOT
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
