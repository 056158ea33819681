"""The 2-D U-Net that the compared semi-supervised methods share (the SSL4MIS family's backbone)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks.dropout import Dropout

__all__ = ["DROPOUT", "WIDTHS", "UNet"]

WIDTHS = (16, 32, 64, 128, 256)
"""Default channels of the encoder levels, finest first."""
DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Default dropout probabilities of the encoder levels."""


class ConvBlock(nn.Sequential):
    """Two (3x3 convolution, batch norm, LeakyReLU) with dropout between them."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
            Dropout(dropout) if dropout > 0 else nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """1x1 convolution to the skip's width, bilinear upsampling to its size, concatenation, :class:`ConvBlock`."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, skip_channels, 1)
        self.block = ConvBlock(2 * skip_channels, skip_channels, dropout=0.0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.reduce(x), size=skip.shape[-2:], mode="bilinear", align_corners=True)
        return self.block(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Five-level U-Net with bilinear upsampling: 1,813,764 parameters for 1 input channel and 4 classes.

    Args:
        in_channels: channels of the input image (1 grey, 3 RGB).
        num_classes: classes of the output, background included.
        channels: width of each encoder level; the paper's "stage k" is entry ``k - 1``.
        dropout: dropout probability of each encoder level, or one number for all. The decoder has no dropout.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        channels: Sequence[int] = WIDTHS,
        dropout: float | Sequence[float] = DROPOUT,
    ) -> None:
        super().__init__()
        rates = [float(dropout)] * len(channels) if isinstance(dropout, (int, float)) else list(dropout)
        if len(rates) != len(channels):
            raise ValueError(f"dropout: expected one number or {len(channels)} of them, one per level, found {rates}.")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.channels = tuple(channels)
        self.dropout = tuple(rates)
        inputs = (in_channels, *channels[:-1])
        self.encoder = nn.ModuleList(ConvBlock(i, o, rate) for i, o, rate in zip(inputs, channels, rates, strict=True))
        self.decoder = nn.ModuleList(UpBlock(channels[k], channels[k - 1]) for k in range(len(channels) - 1, 0, -1))
        self.head = nn.Conv2d(channels[0], num_classes, 3, padding=1)
        # The faster layout for convolutions, on CPUs and on GPUs. It is set here, so that every program that builds the
        # network from a config, such as MONAI Label, computes the same bits.
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Encoder features of stages 1 to 5, finest first.

        Args:
            image: ``[B, in_channels, H, W]``, H and W at least 16.

        Returns:
            A list of ``[B, channels[k], H // 2**k, W // 2**k]``.
        """
        features: list[Tensor] = []
        x = image
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level > 0 else x)
            features.append(x)
        return features

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """Decoder features, coarsest first, from those of :meth:`encode`; the last one is the head's input."""
        levels: list[Tensor] = []
        x = features[-1]
        for level, block in enumerate(self.decoder):
            x = block(x, features[-2 - level])
            levels.append(x)
        return levels

    def decode(self, features: list[Tensor]) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` from the features of :meth:`encode`."""
        return self.head(self.decode_levels(features)[-1])

    def forward(self, image: Tensor) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` of an image ``[B, in_channels, H, W]`` in [0, 1]."""
        return self.decode(self.encode(image))
