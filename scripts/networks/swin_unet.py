"""Swin-UNet (Cao et al., ECCV Workshops 2022), the Transformer branch of cross teaching, on MONAI's Swin blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from monai.networks.blocks.patchembedding import PatchEmbed
from monai.networks.nets.swin_unetr import PatchMerging, SwinTransformerBlock, compute_mask, get_window_size
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.utils.tensors import load_tensors

__all__ = ["SwinUNet"]


class SwinStage(nn.Module):
    """Swin blocks of one resolution, every second one with shifted windows, on ``[B, H, W, dim]``."""

    def __init__(self, dim: int, heads: int, window: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.window = (window, window)
        self.shift = (window // 2, window // 2)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, heads, self.window, self.shift if j % 2 else (0, 0), drop_path=rate)
            for j, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        window, shift = get_window_size(size, self.window, self.shift)
        padded = [-(-length // w) * w for length, w in zip(size, window, strict=True)]
        mask = compute_mask(padded, window, shift, x.device) if any(shift) else None
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchExpand(nn.Module):
    """Upsampling by ``scale``: a linear layer expands the channels into the new pixels, then layer norm."""

    def __init__(self, dim: int, out_dim: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale * scale * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        s = self.scale
        x = self.expand(x).view(batch, height, width, s, s, -1).transpose(2, 3)
        return self.norm(x.reshape(batch, height * s, width * s, -1))


class SwinUNet(nn.Module):
    """U-shaped network of Swin blocks: 27,168,420 parameters for 4 classes with the defaults.

    The defaults are the reference's ``swin_tiny_patch4_window7_224_lite`` (stochastic depth .2 included), as used by
    SSL4MIS. Differences: any image size is accepted and padded at the lower and right border by repeating the edge to a
    multiple of 32; maps whose size the windows do not divide are padded with zeros inside the blocks, and a map smaller
    than a window is one window (with MONAI's reading of the position table). At 224 pixels none of this applies.

    Args:
        num_classes: classes of the output, background included.
        embed_dim: width of the first stage; each further one doubles it.
        depths: Swin blocks of each encoder stage; the decoder mirrors all but the last.
        heads: attention heads of each stage.
        window: window side in tokens.
        patch: patch side in pixels.
        drop_path: largest rate of stochastic depth, reached linearly over the encoder's blocks.
        pretrained: file of a Swin Transformer's weights in Microsoft's naming, see :meth:`load_pretrained`.

    Raises:
        ValueError: if ``depths`` and ``heads`` differ in length.
    """

    def __init__(
        self,
        num_classes: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        patch: int = 4,
        drop_path: float = 0.2,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads):
            raise ValueError(f"depths and heads: expected one number per stage in both, found {depths} and {heads}.")
        self.num_classes = num_classes
        self.heads = tuple(heads)
        self.window = window
        self.patch = patch
        self.drop_path = drop_path
        self.multiple = patch * 2 ** (len(depths) - 1)
        dims = [embed_dim * 2**i for i in range(len(depths))]
        rates = list(torch.linspace(0, drop_path, sum(depths)).split(list(depths)))

        def stage(i: int) -> SwinStage:
            return SwinStage(dims[i], heads[i], window, rates[i].tolist())

        self.patch_embed = PatchEmbed(patch, in_chans=3, embed_dim=embed_dim, spatial_dims=2)
        self.encoder = nn.ModuleList(stage(i) for i in range(len(dims)))
        self.merging = nn.ModuleList(PatchMerging(dim, spatial_dims=2) for dim in dims[:-1])
        self.norm = nn.LayerNorm(dims[-1])
        # Lists of the decoder are ordered by their output level, finest first, like the encoder's.
        self.expanding = nn.ModuleList(PatchExpand(wide, dim, 2) for dim, wide in pairwise(dims))
        self.joining = nn.ModuleList(nn.Linear(2 * dim, dim) for dim in dims[:-1])
        self.decoder = nn.ModuleList(stage(i) for i in range(len(dims) - 1))
        self.norm_up = nn.LayerNorm(embed_dim)
        self.final = PatchExpand(embed_dim, embed_dim, patch)
        self.head = nn.Conv2d(embed_dim, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if pretrained is not None:
            self.load_pretrained(pretrained)

    def forward(self, image: Tensor) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` of an image ``[B, C, H, W]`` in [0, 1], grey (C = 1) or RGB."""
        return self.logits_and_features(image)[0]

    def logits_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits as :meth:`forward` gives them, and the features that they are made of, one vector per patch."""
        x = self.embed(image)
        skips: list[Tensor] = []
        for level in range(len(self.encoder)):
            skip, x = self.encode_level(level, x)
            skips.append(skip)
        return self.decode(x, skips, image.shape[-2:])

    def embed(self, image: Tensor) -> Tensor:
        """Patches ``[B, h, w, embed_dim]`` of an image ``[B, C, H, W]``, padded to a multiple of ``multiple``."""
        height, width = image.shape[-2:]
        x = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return self.patch_embed(x.expand(-1, 3, -1, -1)).permute(0, 2, 3, 1)

    def encode_level(self, level: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, h, w, dim]`` of an encoder level before its blocks, which the decoder reads, and after them.

        Args:
            level: from 0, the finest.
            x: patches, or what the level before gave.
        """
        skip = self.merging[level - 1](x) if level > 0 else x
        return skip, self.encoder[level](skip)

    def decode(self, x: Tensor, skips: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Class logits ``[B, num_classes, H, W]`` and the features behind them ``[B, embed_dim, h, w]``.

        Args:
            x: what the last encoder level gave.
            skips: of every level, finest first.
            size: height and width of the image before it was padded.
        """
        x = self.norm(x)
        for level in reversed(range(len(self.decoder))):
            x = torch.cat([self.expanding[level](x), skips[level]], dim=-1)
            x = self.decoder[level](self.joining[level](x))
        x = self.norm_up(x)
        height, width = size
        logits = self.head(self.final(x).permute(0, 3, 1, 2))[..., :height, :width]
        return logits, x.permute(0, 3, 1, 2)[..., : -(-height // self.patch), : -(-width // self.patch)]

    def load_pretrained(self, path: str) -> None:
        """Start encoder and decoder from a Swin Transformer, as the reference does.

        Each decoder stage starts as the encoder's of its level. Blocks beyond a stage's depth, masks and the classifier
        are ignored; modules that the file lacks (expansion, joining, head) keep their weights.

        Args:
            path: e.g. ``swin_tiny_patch4_window7_224.pth`` of Microsoft's Swin-Transformer: a state dict, or one
                under the key ``model``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the encoder is missing from it or has other shapes.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"pretrained: expected a file of Swin Transformer weights, found none at '{path}'.")
        weights = load_tensors(path)
        weights = weights.get("model", weights)
        parts = ("patch_embed.", "encoder.", "merging.", "norm.", "decoder.")
        own = {name: parameter for name, parameter in self.named_parameters() if name.startswith(parts)}
        found: dict[str, Tensor] = {}
        for key, value in weights.items():
            key = key.replace("mlp.fc", "mlp.linear")
            level, _, rest = key.removeprefix("layers.").partition(".")
            names = [key]
            if rest.startswith("downsample."):
                names = [f"merging.{level}.{rest.removeprefix('downsample.')}"]
            elif key.startswith("layers."):
                names = [f"encoder.{level}.{rest}", f"decoder.{level}.{rest}"]
            found |= {name: value for name in names if name in own}
        if missing := sorted(set(own) - set(found), reverse=True):
            raise ValueError(f"{path}: expected the weights of a Swin Transformer, found no {missing[0]}.")
        for key, value in found.items():
            if value.shape != own[key].shape:
                raise ValueError(f"{path}: expected {key} as {list(own[key].shape)}, found {list(value.shape)}.")
        self.load_state_dict(found, strict=False)
