from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.networks import SwinUNet
from scripts.networks.swin_unet import PatchExpand, SwinStage


def tiny(**kwargs: Any) -> SwinUNet:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"num_classes": 3, "embed_dim": 6, "depths": (2, 2), "heads": (1, 2), "window": 3}
    return SwinUNet(**{**defaults, **kwargs}).eval()


def expected_parameters(embed: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, classes: int) -> int:
    """Counted by hand from the layers of Swin-UNet's paper; 4x4 patches of three channels."""
    dims = [embed * 2**i for i in range(len(depths))]

    def block(d: int, h: int) -> int:
        attention = (d * 3 * d + 3 * d) + (d * d + d) + (2 * window - 1) ** 2 * h
        return attention + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d

    def expand(d: int, scale_channels: int, out: int) -> int:
        return d * scale_channels + 2 * out

    total = 16 * 3 * embed + embed + 2 * embed
    total += sum(n * block(d, h) for n, d, h in zip(depths, dims, heads, strict=True))
    total += sum(4 * d * 2 * d + 2 * 4 * d for d in dims[:-1])
    total += 2 * dims[-1]
    total += sum(n * block(d, h) for n, d, h in zip(depths[:-1], dims[:-1], heads[:-1], strict=True))
    total += sum(expand(2 * d, 4 * d, d) + (2 * d * d + d) for d in dims[:-1])
    return total + 2 * embed + expand(embed, 16 * embed, embed) + embed * classes


def test_parameters() -> None:
    assert sum(p.numel() for p in tiny().parameters()) == expected_parameters(6, (2, 2), (1, 2), 3, 3)
    full = expected_parameters(96, (2, 2, 2, 2), (3, 6, 12, 24), 7, 4)
    assert sum(p.numel() for p in SwinUNet().parameters()) == full == 27_168_420


@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 224), (512, 512), (67, 90), (64, 160), (8, 8)])
@torch.no_grad()
def test_any_size_goes_in_padded_by_its_edge(height: int, width: int) -> None:
    network = tiny()
    image = torch.rand(1, 3, height, width)
    logits = network(image)
    assert logits.shape == (1, 3, height, width)
    padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    torch.testing.assert_close(logits, network(padded)[..., :height, :width])


@torch.no_grad()
def test_a_grey_image_is_one_of_three_equal_channels() -> None:
    network, image = tiny(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(network(image), network(image.repeat(1, 3, 1, 1)))


def test_every_parameter_learns_and_images_stay_apart() -> None:
    network = tiny(drop_path=0.0).train()
    image = torch.rand(2, 1, 24, 24, requires_grad=True)
    logits = network(image)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), image, retain_graph=True)
    assert gradient[0].any()
    assert not gradient[1].any()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_stochastic_depth_grows_over_the_encoder_and_is_mirrored() -> None:
    network = SwinUNet(embed_dim=6, depths=(2, 2, 1), heads=(1, 2, 2), window=3)
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.blocks] for stage in network.encoder]
    assert [r for stage in rates for r in stage] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.blocks] for stage in network.decoder] == rates[:2]


def influence(depth: int, size: tuple[int, int], window: int, place: tuple[int, int]) -> Tensor:
    """Which tokens reach the one at ``place``."""
    torch.manual_seed(0)
    stage = SwinStage(4, 2, window, [0.0] * depth)
    x = torch.rand(1, *size, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(stage(x)[0, place[0], place[1]].square().sum(), x)
    return gradient[0].abs().sum(-1) > 1e-12


def test_windows_and_shifted_windows() -> None:
    alone = influence(1, (8, 8), 4, (2, 5))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(alone, expected)
    # The shifted window around (2, 5) is rows 2-5, columns 2-5: all four windows that it touches.
    assert influence(2, (8, 8), 4, (2, 5)).all()
    # The first shifted window is cut at the border: nothing comes in from the other side.
    corner = influence(2, (8, 8), 4, (0, 0))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(corner, expected)
    assert influence(2, (3, 3), 4, (0, 0)).all()  # smaller than a window


@torch.no_grad()
def test_expansion_lays_channels_out_as_pixels() -> None:
    layer = PatchExpand(6, 3, 2)
    x = torch.rand(2, 2, 3, 6)
    out = layer(x)
    assert out.shape == (2, 4, 6, 3)
    wide = layer.expand(x)
    for row in range(4):
        for column in range(6):
            start = 3 * (2 * (row % 2) + column % 2)
            pixel = layer.norm(wide[:, row // 2, column // 2, start : start + 3])
            torch.testing.assert_close(out[:, row, column], pixel)


# --- pretrained weights


def microsoft(network: SwinUNet, blocks: int = 3) -> dict[str, Tensor]:
    """Random weights under the names of Microsoft's checkpoints, one block more than needed and a classifier."""
    weights: dict[str, Tensor] = {
        "head.weight": torch.rand(10, 12),
        "layers.0.blocks.1.attn_mask": torch.rand(4, 9, 9),
    }
    for name, module in (("patch_embed", network.patch_embed), ("norm", network.norm)):
        weights |= {f"{name}.{key}": torch.rand_like(p) for key, p in module.named_parameters()}
    for level, stage in enumerate(network.encoder):
        for j in range(blocks):
            for key, p in stage.blocks[0].named_parameters():
                weights[f"layers.{level}.blocks.{j}.{key.replace('mlp.linear', 'mlp.fc')}"] = torch.rand_like(p)
    for key, p in network.merging[0].named_parameters():
        weights[f"layers.0.downsample.{key}"] = torch.rand_like(p)
    return weights


def test_pretrained_weights_start_encoder_and_decoder(tmp_path: Path) -> None:
    before = tiny()
    weights = microsoft(before)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    network = tiny(pretrained=str(tmp_path / "swin.pth"))
    for level in (0, 1):
        for j in (0, 1):
            found = network.encoder[level].blocks[j].mlp.linear1.weight  # type: ignore[union-attr]
            assert torch.equal(found, weights[f"layers.{level}.blocks.{j}.mlp.fc1.weight"])
    table = network.decoder[0].blocks[1].attn.relative_position_bias_table  # type: ignore[union-attr]
    assert torch.equal(table, weights["layers.0.blocks.1.attn.relative_position_bias_table"])
    assert torch.equal(network.merging[0].reduction.weight, weights["layers.0.downsample.reduction.weight"])
    assert torch.equal(network.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
    assert torch.equal(network.norm.weight, weights["norm.weight"])
    for part in ("expanding", "joining", "norm_up", "final", "head"):
        a, b = getattr(network, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    with pytest.raises(FileNotFoundError, match=r"pretrained: .*swin\.pth"):
        tiny(pretrained=str(path))
    weights = microsoft(tiny())
    torch.save({key: value for key, value in weights.items() if not key.startswith("norm")}, path)
    with pytest.raises(ValueError, match=r"swin\.pth: expected the weights of a Swin .* found no norm\.weight"):
        tiny(pretrained=str(path))
    weights["patch_embed.proj.weight"] = torch.rand(6, 1, 4, 4)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"expected patch_embed\.proj\.weight as \[6, 3, 4, 4\], found \[6, 1, 4, 4\]"):
        tiny(pretrained=str(path))
    with pytest.raises(ValueError, match="depths and heads"):
        tiny(heads=(1, 2, 4))
