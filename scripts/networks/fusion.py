"""Features for the similarity-based predictions: the spatial-aware fusion module and SemSim-'s plain projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["PixelProjection", "SpatialAwareFusion"]


class Attention(nn.Module):
    """Multi-head self-attention over ``[B, L, dim]`` tokens through PyTorch's fused kernel (no L x L tensor)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, dim = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
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
    sequence for a transformer block, so that a place sees itself at every scale. A map that the windows do not divide
    is padded at its lower and right border by repeating the edge, and cropped again afterwards.

    The learned position embeddings (one per stage, shared by all windows) have the window size at ``reference_size``
    pixels and are interpolated to any other: the parameter count does not depend on the training size.

    Args:
        channels: the U-Net's encoder widths, finest stage first.
        stages: paper stages that are fused (1 is full resolution); ``f~`` has stage 3's size whatever the set.
        windows: windows per side, S.
        dim: width of the tokens and of the fused features, D.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``dim``.
        reference_size: image side for which the position embeddings are stored.

    Raises:
        ValueError: if a stage does not exist.
    """

    output_stage = 3

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
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
        self.stages = tuple(stages)
        self.windows = windows
        self.dim = dim
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
        parts, grids = [], []
        for x, position in zip(maps, self.position, strict=True):
            windows, grid = self._split(x)
            if position.shape[-2:] != windows.shape[-2:]:
                position = F.interpolate(position, size=windows.shape[-2:], mode="bicubic", align_corners=False)
            parts.append((windows + position).flatten(2).transpose(1, 2))
            grids.append(grid)
        tokens = self.block(torch.cat(parts, dim=1))
        fused = []
        for part, x, grid in zip(tokens.split([p.shape[1] for p in parts], dim=1), maps, grids, strict=True):
            y = self._merge(part, x.shape[0], grid)[..., : x.shape[-2], : x.shape[-1]]
            fused.append(y if y.shape[-2:] == size else F.interpolate(y, size=size, mode="bilinear"))
        return cast(Tensor, self.fuse(torch.cat(fused, dim=1)))

    def _split(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Windows ``[B * S * S, dim, h, w]`` of a map ``[B, dim, H, W]``, and their size."""
        batch, dim, height, width = x.shape
        s = self.windows
        h, w = -(-height // s), -(-width // s)
        if (h * s, w * s) != (height, width):
            x = F.pad(x, (0, w * s - width, 0, h * s - height), mode="replicate")
        x = x.reshape(batch, dim, s, h, s, w).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(batch * s * s, dim, h, w), (h, w)

    def _merge(self, tokens: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
        """Inverse of :meth:`_split` for tokens ``[B * S * S, h * w, dim]``: ``[B, dim, S * h, S * w]``."""
        s, (h, w) = self.windows, grid
        x = tokens.view(batch, s, s, h, w, self.dim).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, self.dim, s * h, s * w)


class PixelProjection(nn.Sequential):
    """SemSim-'s replacement of the fusion module: 1x1 convolution, batch norm and ReLU on stage 3.

    Args:
        channels: the U-Net's encoder widths, finest stage first.
        dim: width of the features, D.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128, 256), dim: int = 128) -> None:
        super().__init__(nn.Conv2d(channels[2], dim, 1), nn.BatchNorm2d(dim), nn.ReLU(inplace=True))

    def forward(self, features: list[Tensor]) -> Tensor:  # type: ignore[override]
        """``f~``, non-negative, ``[B, dim, H3, W3]`` from the features of :meth:`scripts.networks.UNet.encode`."""
        return cast(Tensor, super().forward(features[2]))
