from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from scripts.networks import FrequencyHybrid, SwinUNet, UNet
from scripts.networks.frequency_hybrid import SpectralFusion


def tiny() -> FrequencyHybrid:
    torch.manual_seed(0)
    return FrequencyHybrid(
        1, 3, channels=(4, 6, 8, 10), dropout=0.0, embed_dim=6, depths=(2, 1, 1), heads=(1, 1, 2), window=3, drop_path=0
    ).eval()


def test_parameters() -> None:
    count = sum(p.numel() for p in FrequencyHybrid().parameters())
    pair = sum(p.numel() for network in (UNet(), SwinUNet()) for p in network.parameters())
    parts = [2 * (64 + 96), 2 * (128 + 192), 2 * (256 + 384)]
    assert count == pair + sum(n * n + 2 * n for n in parts) == 31_137_064


@torch.no_grad()
def test_fusion_frequency_by_frequency() -> None:
    torch.manual_seed(0)
    fusion = SpectralFusion(2, 3).eval()
    fusion.mix[1].running_mean.uniform_(-1, 1)
    a, b = torch.randn(2, 2, 5, 6), torch.randn(2, 3, 5, 6)
    spectrum = torch.fft.fft2(torch.cat([a, b], 1).double(), norm="ortho")[..., :4]
    norm, weight = fusion.mix[1], fusion.mix[0].weight[:, :, 0, 0].double()
    mixed = torch.empty(2, 5, 5, 4, dtype=torch.complex128)
    for i in range(2):
        for u in range(5):
            for v in range(4):
                parts = torch.cat([spectrum[i, :, u, v].real, spectrum[i, :, u, v].imag])
                y = (weight @ parts - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
                y = F.leaky_relu(y * norm.weight + norm.bias)
                mixed[i, :, u, v] = torch.complex(y[:5], y[5:])
    change = torch.fft.irfft2(mixed, s=(5, 6), norm="ortho").float()
    found = fusion(a, b)
    torch.testing.assert_close(found[0], a + change[:, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], b + change[:, 2:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_exchange_the_branches_are_the_two_networks() -> None:
    network = tiny()
    for fusion in network.fusions:
        fusion.mix[1].weight.zero_()
    image = torch.rand(2, 1, 32, 48)
    cnn, transformer = network.branches(image)
    torch.testing.assert_close(cnn.logits, network.cnn(image))
    expected = network.transformer.logits_and_features(image)
    torch.testing.assert_close(tuple(transformer), expected)


@torch.no_grad()
def test_every_position_of_one_branch_reaches_the_other() -> None:
    network = tiny()
    image = torch.rand(1, 1, 64, 64)
    changed = image.clone()
    changed[..., :8, :8] += 1
    cnn = [network.branches(x)[0].logits[..., 56:, 56:] for x in (image, changed)]
    alone = [network.cnn(x)[..., 56:, 56:] for x in (image, changed)]
    assert not torch.allclose(cnn[0], cnn[1])
    assert torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (67, 90), (16, 16), (224, 160)])
@torch.no_grad()
def test_any_size_goes_in(height: int, width: int) -> None:
    network = tiny()
    image = torch.rand(1, 1, height, width)
    logits = network(image)
    assert logits.shape == (1, 3, height, width)
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    torch.testing.assert_close(logits, network(padded)[..., :height, :width])
