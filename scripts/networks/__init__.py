"""The deployed U-Net and the feature modules that only training needs."""

from __future__ import annotations

from scripts.networks.discriminator import Discriminator
from scripts.networks.fusion import PixelProjection, SpatialAwareFusion
from scripts.networks.rectifier import LabelRectifier
from scripts.networks.swin_unet import SwinUNet
from scripts.networks.unet import UNet

__all__ = ["Discriminator", "LabelRectifier", "PixelProjection", "SpatialAwareFusion", "SwinUNet", "UNet"]
