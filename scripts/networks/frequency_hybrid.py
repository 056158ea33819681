"""MedFCT's network: a U-Net and a Swin-UNet whose encoders exchange features in the frequency domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks.swin_unet import SwinUNet
from scripts.networks.unet import DROPOUT, WIDTHS, UNet

__all__ = ["Branch", "FrequencyHybrid", "SpectralFusion"]


class Branch(NamedTuple):
    """Output of one branch of a hybrid network.

    Attributes:
        logits: ``[B, C, H, W]``.
        features: ``[B, D, h, w]``, the branch's last features, from which the logits are computed.
    """

    logits: Tensor
    features: Tensor


class SpectralFusion(nn.Module):
    """Exchange of features between two maps of the same size, frequency by frequency, over the whole spectrum.

    The real and imaginary parts of both Fourier transforms are concatenated and pass a 1x1 convolution, batch norm and
    LeakyReLU; the inverse transform is split and added to the maps. Each frequency depends on all positions, so every
    position of one map receives features of the whole other map.

    Args:
        first: channels of the first map.
        second: channels of the second map.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.widths = (first, second)
        parts = 2 * (first + second)
        self.mix = nn.Sequential(nn.Conv2d(parts, parts, 1, bias=False), nn.BatchNorm2d(parts), nn.LeakyReLU())

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The maps ``[B, first, h, w]`` and ``[B, second, h, w]`` after the exchange, with transforms in float32."""
        both = torch.cat([first, second.to(first.dtype)], dim=1).float()
        with torch.autocast(both.device.type, enabled=False):
            spectrum = torch.fft.rfft2(both.contiguous(), norm="ortho")
        mixed = self.mix(torch.cat([spectrum.real, spectrum.imag], dim=1)).float()
        with torch.autocast(both.device.type, enabled=False):
            spectrum = torch.complex(*(part.contiguous() for part in mixed.chunk(2, dim=1)))
            change = torch.fft.irfft2(spectrum, s=both.shape[-2:], norm="ortho")
        return (first + change[:, : self.widths[0]]).to(first.dtype), second + change[:, self.widths[0] :]


class FrequencyHybrid(nn.Module):
    """U-Net and Swin-UNet with a :class:`SpectralFusion` after each encoder level of the same resolution.

    With the defaults the U-Net's levels 3 to 5 meet the Swin-UNet's levels 1 to 3, and there are 31,137,064 parameters
    for 1 input channel and 4 classes. The prediction is the mean of both branches' logits.

    Args:
        in_channels: channels of the input image (1 grey, 3 RGB).
        num_classes: classes of the output, background included.
        channels: see :class:`scripts.networks.UNet`.
        dropout: likewise.
        embed_dim: see :class:`scripts.networks.SwinUNet`.
        depths: likewise.
        heads: likewise.
        window: likewise.
        drop_path: likewise.
        pretrained: likewise.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        channels: Sequence[int] = WIDTHS,
        dropout: float | Sequence[float] = DROPOUT,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.2,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.cnn = UNet(in_channels, num_classes, channels, dropout)
        self.transformer = SwinUNet(
            num_classes, embed_dim, depths, heads, window, drop_path=drop_path, pretrained=pretrained
        )
        widths = zip(channels[self.first :], (embed_dim * 2**i for i in range(len(depths))), strict=False)
        self.fusions = nn.ModuleList(SpectralFusion(first, second) for first, second in widths)
        # The record of the weights has these options, from which the network is built again.
        self.in_channels, self.num_classes, self.channels = in_channels, num_classes, tuple(channels)
        self.dropout, self.embed_dim, self.depths = self.cnn.dropout, embed_dim, tuple(depths)
        self.heads, self.window, self.drop_path = tuple(heads), window, drop_path

    first = 2  # the U-Net's level with the resolution of the Swin-UNet's patches of 4 pixels

    def forward(self, image: Tensor) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` of an image ``[B, in_channels, H, W]`` in [0, 1]."""
        cnn, transformer = self.branches(image)
        return (cnn.logits + transformer.logits) / 2

    def branches(self, image: Tensor) -> tuple[Branch, Branch]:
        """Outputs of the U-Net and of the Swin-UNet for an image ``[B, in_channels, H, W]``."""
        height, width = image.shape[-2:]
        multiple = self.transformer.multiple
        y = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        x = self.transformer.embed(y)
        maps: list[Tensor] = []
        skips: list[Tensor] = []
        for level in range(max(len(self.cnn.encoder), self.first + len(self.transformer.encoder))):
            depth = level - self.first
            if level < len(self.cnn.encoder):
                y = self.cnn.encoder[level](F.max_pool2d(y, 2) if level > 0 else y)
            if 0 <= depth < len(self.transformer.encoder):
                skip, x = self.transformer.encode_level(depth, x)
                skips.append(skip)
            if 0 <= depth < len(self.fusions):
                y, tokens = self.fusions[depth](y, x.permute(0, 3, 1, 2))
                x = tokens.permute(0, 2, 3, 1)
            if level < len(self.cnn.encoder):
                maps.append(y)
        features = self.cnn.decode_levels(maps)[-1]
        cnn = Branch(self.cnn.head(features)[..., :height, :width], features[..., :height, :width])
        return cnn, Branch(*self.transformer.decode(x, skips, (height, width)))
