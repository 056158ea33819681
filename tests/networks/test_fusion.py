from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks import PixelProjection, SpatialAwareFusion, UNet

THIN = (4, 6, 8, 10, 12)
FIG_8 = [(4,), (3,), (2,), (2, 3), (2, 3, 4), (1, 2, 3, 4)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def thin_fusion(**kwargs: object) -> SpatialAwareFusion:
    return SpatialAwareFusion(channels=THIN, dim=8, heads=2, **kwargs)  # type: ignore[arg-type]


def encoder_features(height: int, width: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, c, height // 2**k, width // 2**k) for k, c in enumerate(THIN)]


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.T + layer.bias


def transformer(x: Tensor, block: nn.Module, heads: int) -> Tensor:
    """Eq. 15 on one sequence ``[L, dim]``, head by head with the softmax written out."""
    dim = x.shape[1]
    q, k, v = linear(layer_norm(x, block.norm1), block.attention.qkv).split(dim, dim=1)
    width = dim // heads
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(width)).exp()
        out.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
    x = x + linear(torch.cat(out, dim=1), block.attention.projection)
    hidden = linear(layer_norm(x, block.norm2), block.mlp[0])
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, block.mlp[2])


def plain_fusion(module: SpatialAwareFusion, features: list[Tensor], heads: int) -> Tensor:
    """Eqs. 14-17 with loops over images, windows and stages; batch norm with its running statistics."""
    s, dim = module.windows, module.dim
    target = features[2].shape[-2:]
    fused = []
    for image in range(len(features[0])):
        maps, enhanced = [], []
        for stage, project in zip(module.stages, module.project, strict=True):
            x = features[stage - 1][image]
            if isinstance(project, nn.Conv2d):
                x = torch.einsum("oi,ihw->ohw", project.weight[:, :, 0, 0], x) + project.bias[:, None, None]
            maps.append(x)
            side = [math.ceil(n / s) for n in x.shape[1:]]
            enhanced.append(torch.zeros(dim, side[0] * s, side[1] * s))
        for row in range(s):
            for column in range(s):
                tokens, boxes = [], []
                for x, position in zip(maps, module.position, strict=True):
                    h, w = math.ceil(x.shape[1] / s), math.ceil(x.shape[2] / s)
                    # beyond the border the edge repeats
                    rows = [min(row * h + i, x.shape[1] - 1) for i in range(h)]
                    columns = [min(column * w + j, x.shape[2] - 1) for j in range(w)]
                    window = x[:, rows][:, :, columns]
                    if position.shape[-2:] != (h, w):
                        position = F.interpolate(position, size=(h, w), mode="bicubic")
                    tokens.append((window + position[0]).reshape(dim, h * w).T)
                    boxes.append((slice(row * h, (row + 1) * h), slice(column * w, (column + 1) * w)))
                lengths = [len(t) for t in tokens]
                parts = transformer(torch.cat(tokens), module.block, heads).split(lengths)
                for part, (rows_, columns_), out in zip(parts, boxes, enhanced, strict=True):
                    h, w = rows_.stop - rows_.start, columns_.stop - columns_.start
                    out[:, rows_, columns_] = part.T.reshape(dim, h, w)
        resized = [
            F.interpolate(out[None, :, : x.shape[1], : x.shape[2]], size=target, mode="bilinear")
            for out, x in zip(enhanced, maps, strict=True)
        ]
        fused.append(torch.cat(resized, dim=1))
    conv, norm, _ = module.fuse
    x = F.conv2d(torch.cat(fused), conv.weight, conv.bias, padding=1)
    x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
    x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    return x.clamp_min(0)


@pytest.mark.parametrize(
    ("size", "stages", "windows"),
    [
        ((64, 64), (2, 3, 4), 4),  # the windows divide every map
        ((100, 76), (2, 3, 4), 4),  # they divide none of them
        ((32, 48), (1, 2, 3, 4), 2),
        ((64, 80), (4,), 3),
        ((48, 64), (2,), 4),
    ],
)
def test_equals_plain_loops(size: tuple[int, int], stages: tuple[int, ...], windows: int) -> None:
    torch.manual_seed(0)
    module = thin_fusion(stages=stages, windows=windows, reference_size=64).eval()
    for position in module.position:
        nn.init.normal_(position)
    module.fuse[1].running_mean.uniform_(-1, 1)
    module.fuse[1].running_var.uniform_(0.5, 2)
    features = encoder_features(*size)
    with torch.no_grad():
        found, expected = module(features), plain_fusion(module, features, heads=2)
    assert found.shape == (2, 8, size[0] // 4, size[1] // 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", FIG_8)
def test_stages_of_figure_8(stages: tuple[int, ...]) -> None:
    module = thin_fusion(stages=stages)
    fused = module(encoder_features(64, 72))
    assert fused.shape == (2, 8, 16, 18)
    assert (fused >= 0).all()
    (fused * torch.randn_like(fused)).sum().backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a batch norm has no effect, and softmax is invariant to a constant added to all keys.
    assert set(silent) <= {"fuse.0.bias"}


@pytest.mark.parametrize("size", [(64, 64), (68, 100), (512, 512)])
def test_sizes(size: tuple[int, int]) -> None:
    net, fusion = UNet(channels=THIN).eval(), thin_fusion().eval()
    with torch.no_grad():
        fused = fusion(net.encode(torch.rand(1, 1, *size)))
    assert fused.shape == (1, 8, size[0] // 4, size[1] // 4)
    assert fused.isfinite().all()


def test_full_width() -> None:
    net, fusion = UNet(), SpatialAwareFusion()
    fused = fusion(net.encode(torch.rand(1, 1, 64, 64)))
    assert fused.shape == (1, 128, 16, 16)
    assert (fused >= 0).all()


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    with pytest.raises(ValueError, match=f"heads: expected a divisor of dim 128, found {heads}"):
        SpatialAwareFusion(heads=heads)


@pytest.mark.parametrize("stages", [(), (0, 1), (6,), (2, 2)])
def test_wrong_stages_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stages"):
        SpatialAwareFusion(stages=stages)


def captured_tokens(module: SpatialAwareFusion, features: list[Tensor]) -> Tensor:
    """Input of the last 3x3 convolution: the merged windows, at stage 3's size."""
    seen: list[Tensor] = []
    hook = module.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        module(features)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_information_stays_within_a_window(stage: int) -> None:
    torch.manual_seed(0)
    module = thin_fusion().eval()
    features = encoder_features(64, 64)
    changed = [f.clone() for f in features]
    row, column = 1, 2
    side = changed[stage - 1].shape[-1] // 4
    changed[stage - 1][..., row * side : (row + 1) * side, column * side : (column + 1) * side] += 1.0
    difference = (captured_tokens(module, changed) - captured_tokens(module, features)).abs()
    by_stage = difference.view(2, 3, 8, 16, 16).amax(dim=(0, 2))
    for index, seen in enumerate(by_stage):
        # Every scale of the same window changes ...
        assert (seen[4:8, 8:12] > 0).all()
        # ... and no other; the coarse stage's upsampling blurs its border by one pixel.
        blur = 1 if index == 2 else 0
        outside = torch.ones(16, 16, dtype=torch.bool)
        outside[4 - blur : 8 + blur, 8 - blur : 12 + blur] = False
        assert not seen[outside].any()


def test_position_embedding_is_used_as_stored_at_its_own_size_and_interpolated_elsewhere() -> None:
    assert [tuple(p.shape) for p in SpatialAwareFusion().position] == [
        (1, 128, 28, 28),
        (1, 128, 14, 14),
        (1, 128, 7, 7),
    ]
    torch.manual_seed(0)
    module = thin_fusion(stages=(3,), reference_size=64).eval()
    # A ramp along the rows remains one at any window size: later rows of a window have larger embeddings.
    module.position[0].data = torch.linspace(0, 1, 4)[None, None, :, None].expand(1, 8, 4, 4).clone()
    tokens: list[Tensor] = []
    module.block.register_forward_pre_hook(lambda _, args: tokens.append(args[0].clone()))
    for size in (64, 128):
        with torch.no_grad():
            features = [torch.zeros_like(f) for f in encoder_features(size, size)]
            module(features)
        side = size // 16
        seen = tokens.pop().view(2, 4, 4, side, side, 8)
        assert (seen.diff(dim=3) > 0).all()
        torch.testing.assert_close(seen.diff(dim=4), torch.zeros_like(seen[..., :-1, :]), rtol=0, atol=1e-6)
        torch.testing.assert_close(seen, seen[:1, :1, :1].expand_as(seen))  # shared by all windows
        if size == 64:
            torch.testing.assert_close(seen[0, 0, 0, :, 0, 0], torch.linspace(0, 1, 4))


def test_pixel_projection_equals_a_matrix_product() -> None:
    torch.manual_seed(0)
    module = PixelProjection(channels=THIN, dim=8)
    features = encoder_features(32, 40)
    conv = module[0]
    x = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], features[2]) + conv.bias[:, None, None]
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = ((x - mean) / (variance + 1e-5).sqrt()).clamp_min(0)
    torch.testing.assert_close(module(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [SpatialAwareFusion, PixelProjection])
def test_meta_device(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        module = kind(channels=THIN, dim=8)
    # sizes that make the fusion module pad windows and interpolate embeddings
    fused = module([f.to("meta") for f in encoder_features(100, 76)])
    assert fused.is_meta
    assert fused.shape == (2, 8, 25, 19)
