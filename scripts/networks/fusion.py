"""Features for the similarity-based predictions: the spatial-aware fusion module and SemSim-'s plain projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks.attention import attention
from scripts.networks.unet import WIDTHS

__all__ = ["PixelProjection", "SpatialAwareFusion"]


class Attention(nn.Module):
    """Multi-head self-attention over ``[B, L, dim]`` tokens, see :func:`scripts.networks.attention.attention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, dim = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        out = attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return self.projection(out.transpose(1, 2).reshape(batch, length, dim))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block (Eq. 15)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SpatialAwareFusion(nn.Module):
    """Spatial-aware fusion module (SFM; Eqs. 14-17, Fig. 5): multi-scale encoder features -> one feature map.

    Each stage's map is cut into ``windows x windows`` windows; the tokens of the same window of all stages form one
    sequence for a transformer block, so that each position attends to itself at every scale. A map whose size the
    windows do not divide is padded at its lower and right border by repeating the edge, and cropped afterwards.

    The learned position embeddings (one per stage, shared by all windows) have the window size at ``reference_size``
    pixels and are interpolated to any other: the parameter count does not depend on the training size.

    Args:
        channels: the U-Net's encoder widths, finest stage first.
        stages: the paper's stages that are fused (1 is full resolution); ``f~`` always has stage 3's size.
        windows: windows per side, S.
        dim: width of the tokens and of the fused features, D.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``dim``.
        reference_size: image side for which the position embeddings are stored.

    Raises:
        ValueError: if a stage does not exist, or if the heads do not divide ``dim``.
    """

    output_stage = 3

    def __init__(
        self,
        channels: Sequence[int] = WIDTHS,
        stages: Sequence[int] = (2, 3, 4),
        windows: int = 4,
        dim: int = 128,
        heads: int = 4,
        mlp_ratio: int = 4,
        reference_size: int = 224,
    ) -> None:
        super().__init__()
        if not stages or not set(stages) <= set(range(1, len(channels) + 1)) or len(set(stages)) != len(stages):
            raise ValueError(f"stages: expected distinct numbers from 1 to {len(channels)}, found {list(stages)}.")
        if heads < 1 or dim % heads:
            raise ValueError(f"heads: expected a divisor of dim {dim}, found {heads}.")
        self.stages = tuple(stages)
        self.windows = windows
        self.dim = dim
        self.heads = heads
        self.project = nn.ModuleList(
            nn.Identity() if channels[s - 1] == dim else nn.Conv2d(channels[s - 1], dim, 1) for s in stages
        )
        sides = [max(1, reference_size // 2 ** (s - 1) // windows) for s in stages]
        self.position = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, dim, side, side)) for side in sides)
        self.block = TransformerBlock(dim, heads, mlp_ratio)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(self.stages) * dim, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Fuse encoder features.

        Args:
            features: all stages of :meth:`scripts.networks.UNet.encode`, finest first.

        Returns:
            ``f~``, non-negative, ``[B, dim, H3, W3]`` with stage 3's height and width.
        """
        size = features[self.output_stage - 1].shape[-2:]
        maps = [project(features[s - 1]) for s, project in zip(self.stages, self.project, strict=True)]
        windows = [self._split(x) for x in maps]
        parts = []
        for window, position in zip(windows, self.position, strict=True):
            if position.shape[-2:] != window.shape[1:3]:
                position = F.interpolate(position, size=window.shape[1:3], mode="bicubic", align_corners=False)
            # In the window's dtype: one float32 part would make the whole token stream float32 under autocast.
            parts.append((window + position.permute(0, 2, 3, 1).to(window.dtype)).flatten(1, 2))
        tokens = self.block(torch.cat(parts, dim=1))
        fused = []
        for part, window, x in zip(tokens.split([p.shape[1] for p in parts], dim=1), windows, maps, strict=True):
            y = self._merge(part.reshape_as(window), x)
            fused.append(y if y.shape[-2:] == size else F.interpolate(y, size=size, mode="bilinear"))
        return cast(Tensor, self.fuse(torch.cat(fused, dim=1)))

    # Channels are last between these two, so that cutting and joining windows copies whole tokens.

    def _split(self, x: Tensor) -> Tensor:
        """Windows ``[B * S * S, h, w, dim]`` of a map ``[B, dim, H, W]``."""
        batch, dim, height, width = x.shape
        s = self.windows
        h, w = -(-height // s), -(-width // s)
        if (h * s, w * s) != (height, width):
            x = F.pad(x, (0, w * s - width, 0, h * s - height), mode="replicate")
        x = x.permute(0, 2, 3, 1).reshape(batch, s, h, s, w, dim).transpose(2, 3)
        return x.reshape(batch * s * s, h, w, dim)

    def _merge(self, windows: Tensor, like: Tensor) -> Tensor:
        """Inverse of :meth:`_split`: a map ``[B, dim, H, W]`` with the shape of ``like``."""
        s, (_, h, w, dim) = self.windows, windows.shape
        x = windows.reshape(-1, s, s, h, w, dim).transpose(2, 3).reshape(-1, s * h, s * w, dim)
        return x.permute(0, 3, 1, 2)[..., : like.shape[-2], : like.shape[-1]]


class PixelProjection(nn.Sequential):
    """SemSim-'s replacement of the fusion module: 1x1 convolution, batch norm and ReLU on stage 3.

    Args:
        channels: the U-Net's encoder widths, finest stage first.
        dim: width of the features, D.
    """

    def __init__(self, channels: Sequence[int] = WIDTHS, dim: int = 128) -> None:
        super().__init__(nn.Conv2d(channels[2], dim, 1), nn.BatchNorm2d(dim), nn.ReLU(inplace=True))

    def forward(self, features: list[Tensor]) -> Tensor:
        """``f~``, non-negative, ``[B, dim, H3, W3]`` from the features of :meth:`scripts.networks.UNet.encode`."""
        return cast(Tensor, super().forward(features[2]))
