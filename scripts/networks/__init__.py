"""The deployed networks and the modules that only training needs."""

from __future__ import annotations

from scripts.networks.deployed import deployed_network, network_options
from scripts.networks.discriminator import Discriminator
from scripts.networks.efficient_unet import EfficientUNet, imagenet_weights
from scripts.networks.frequency_hybrid import FrequencyHybrid
from scripts.networks.fusion import PixelProjection, SpatialAwareFusion
from scripts.networks.rectifier import LabelRectifier
from scripts.networks.sam import SAM
from scripts.networks.swin_unet import SwinUNet
from scripts.networks.unet import UNet

__all__ = [
    "SAM",
    "Discriminator",
    "EfficientUNet",
    "FrequencyHybrid",
    "LabelRectifier",
    "PixelProjection",
    "SpatialAwareFusion",
    "SwinUNet",
    "UNet",
    "deployed_network",
    "imagenet_weights",
    "network_options",
]
