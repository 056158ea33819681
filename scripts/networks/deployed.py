"""The network that weights belong to, by their record."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from scripts.networks.efficient_unet import EfficientUNet
from scripts.networks.frequency_hybrid import FrequencyHybrid
from scripts.networks.sam import SAM
from scripts.networks.unet import UNet
from scripts.utils.provenance import read_record

__all__ = ["deployed_network", "network_options"]

NETWORKS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (EfficientUNet, FrequencyHybrid, SAM, UNet)}


def deployed_network(
    checkpoint: str | Path, in_channels: int, num_classes: int, dropout: float | Sequence[float] | None = None
) -> nn.Module:
    """Build the network that the record of some weights names, with the options that it was trained with.

    Args:
        checkpoint: file of weights; without a record they are taken for those of a U-Net.
        in_channels: channels of the images.
        num_classes: classes, background included.
        dropout: another rate than in training, for networks that have one.

    Returns:
        the network, with weights of its own still.

    Raises:
        ValueError: if the record is not that of the weights, or names no network of this bundle.
        ModuleNotFoundError: if the network needs a package that is not installed.
    """
    record = read_record(checkpoint) or {}
    kind = NETWORKS[record.get("network", "UNet")]  # the record's schema knows the same names
    options = {**network_options(record), "in_channels": in_channels, "num_classes": num_classes}
    if dropout is not None and "dropout" in inspect.signature(kind).parameters:
        options["dropout"] = dropout
    return kind(**options)


def network_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which a record's network was built, as far as the record holds them."""
    names = inspect.signature(NETWORKS[record.get("network", "UNet")]).parameters
    settings = record.get("settings", {})
    return {name: settings[f"network {name}"] for name in names if f"network {name}" in settings}
