from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks import UNet

THIN = (4, 6, 8, 10, 12)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def conv_block(x: Tensor, weights: list[Tensor]) -> Tensor:
    """(3x3 convolution, batch norm with running statistics, LeakyReLU) twice, from twelve tensors in order."""
    for _ in range(2):
        weight, bias, gamma, beta, mean, variance = (weights.pop(0) for _ in range(6))
        x = F.conv2d(x, weight, bias, padding=1)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * gamma[:, None, None]
        x = x + beta[:, None, None]
        x = torch.where(x > 0, x, 0.01 * x)
    return x


def plain_unet(net: UNet, x: Tensor) -> Tensor:
    """The network as specified, from its tensors in the order of their use."""
    tensors = [t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")]
    skips = []
    for level in range(5):
        if level:
            x = F.max_pool2d(x, 2)
        x = conv_block(x, tensors)
        skips.append(x)
    for skip in reversed(skips[:-1]):
        reduced = torch.einsum("oi,bihw->bohw", tensors.pop(0)[:, :, 0, 0], x) + tensors.pop(0)[:, None, None]
        up = F.interpolate(reduced, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        x = conv_block(torch.cat([skip, up], dim=1), tensors)
    x = F.conv2d(x, tensors.pop(0), tensors.pop(0), padding=1)
    assert not tensors
    return x


def shake(net: nn.Module) -> None:
    """Weights that preserve the signal's scale, and batch norms that are not the identity."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 1.0)
            module.running_var.uniform_(0.5, 2.0)


def test_equals_plain_reading() -> None:
    torch.manual_seed(0)
    net = UNet(in_channels=3, num_classes=5, channels=THIN).eval()
    shake(net)
    image = torch.rand(2, 3, 50, 37)
    torch.testing.assert_close(net(image), plain_unet(net, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (100, 64), (111, 127), (224, 200), (512, 512)])
def test_output_has_the_input_size(size: tuple[int, int]) -> None:
    net = UNet().eval()
    with torch.no_grad():
        features = net.encode(torch.rand(1, 1, *size))
        logits = net.decode(features)
    assert logits.shape == (1, 4, *size)
    assert logits.isfinite().all()
    expected = [(1, c, size[0] // 2**k, size[1] // 2**k) for k, c in enumerate((16, 32, 64, 128, 256))]
    assert [tuple(f.shape) for f in features] == expected


@pytest.mark.parametrize(
    ("dropout", "rates"),
    [
        ((0.05, 0.1, 0.2, 0.3, 0.5), [0.05, 0.1, 0.2, 0.3, 0.5]),
        ([0.5, 0.0, 0.0, 0.0, 0.2], [0.5, 0.2]),
        (0.25, [0.25] * 5),
        (1, [1.0] * 5),
        (0.0, []),
    ],
)
def test_dropout_is_one_rate_or_a_list(dropout: float | list[float], rates: list[float]) -> None:
    net = UNet(channels=THIN, dropout=dropout)
    assert [m.p for m in net.encoder.modules() if isinstance(m, nn.Dropout)] == rates
    assert not [m for m in net.decoder.modules() if isinstance(m, nn.Dropout)]
    if not rates:
        image = torch.rand(2, 1, 32, 32)
        assert torch.equal(net(image), net(image))


def test_dropout_list_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout.*5"):
        UNet(dropout=[0.1, 0.2])


def test_meta_device() -> None:
    with torch.device("meta"):
        net = UNet(channels=THIN)
    logits = net(torch.rand(2, 1, 64, 48, device="meta"))
    assert logits.is_meta
    assert logits.shape == (2, 4, 64, 48)


def test_a_network_built_by_itself_computes_to_the_bit_what_a_workflow_computes() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 32)
    plain = UNet(channels=THIN).eval()
    placed = UNet(channels=THIN).eval().to("cpu", memory_format=torch.channels_last)
    placed.load_state_dict(plain.state_dict())
    assert torch.equal(plain(image), placed(image))
    assert plain(image).is_contiguous(memory_format=torch.channels_last)
