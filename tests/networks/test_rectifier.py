from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks import LabelRectifier
from scripts.networks.rectifier import class_colors

WIDTHS = (4, 6, 8, 10, 12)


def rectifier(**kwargs: object) -> LabelRectifier:
    torch.manual_seed(0)
    module = LabelRectifier(1, 4, WIDTHS, denoiser=(4, 8), groups=2, **kwargs)  # type: ignore[arg-type]
    for parameter in module.denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return module


def example(size: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image = torch.rand(3, 1, size, size)
    label, better = (torch.randint(0, 4, (3, size, size)) for _ in range(2))
    return image, label, torch.tensor(0.3), better


def test_colors() -> None:
    assert class_colors(4).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert class_colors(2).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert len(class_colors(9).unique(dim=0)) == 9


def test_features_level_by_level() -> None:
    module = rectifier().eval()
    image, label, guidance, _ = example()
    colored = torch.stack([(class_colors(4)[label])[..., c] for c in range(3)], dim=1)
    x, y = torch.cat([image, colored], 1), image
    half = module.embedding // 2
    angles = 299.7 * torch.tensor([10000 ** (-k / half) for k in range(half)])
    embedded = module.guidance(torch.cat([angles.cos(), angles.sin()])[None])
    for level, found in enumerate(module.encode(image, label, guidance)):
        if level:
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        y = module.image_encoder[level](y)
        x = module.autoencoder.encoder[level](x) + y + module.calibrate[level](embedded).reshape(1, -1, 1, 1)
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_one_denoising_step() -> None:
    module = rectifier().eval()
    image, label, guidance, better = example()
    torch.manual_seed(3)
    logits, loss = module(image, label, guidance, better)

    clean = module.encode(image, better, guidance)[-1].detach()
    features = module.encode(image, label, guidance)
    torch.manual_seed(3)
    time, noise = torch.randint(module.time_steps, (3,)), torch.randn_like(clean)
    # the cosine schedule (Nichol and Dhariwal, Eq. 17), its betas cut at .999
    steps = module.time_steps
    bar = [float(torch.cos(torch.tensor((t / steps + 0.008) / 1.008 * torch.pi / 2)) ** 2) for t in range(steps + 1)]
    kept = torch.tensor([1 - min(1 - bar[t + 1] / bar[t], 0.999) for t in range(steps)]).cumprod(0)[time]
    kept = kept.reshape(-1, 1, 1, 1)
    found = module.denoise(kept.sqrt() * clean + (1 - kept).sqrt() * noise, features[-1], time)
    torch.testing.assert_close(loss, ((found - clean) ** 2).mean(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(logits, module.autoencoder.decode([*features[:-1], found]), rtol=1e-3, atol=1e-4)


def test_sampling_ends_at_the_last_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    module = rectifier().eval()
    image, label, guidance, _ = example()
    seen: list[tuple[Tensor, int]] = []

    def denoise(noisy: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        seen.append((noisy.clone(), int(time[0])))
        return torch.full_like(noisy, float(len(seen)))

    monkeypatch.setattr(module, "denoise", denoise)
    found = module.sample(image, label, guidance)
    assert [step for _, step in seen] == [module.time_steps - 1, 0]
    features = module.encode(image, label, guidance)
    expected = module.autoencoder.decode([*features[:-1], torch.full_like(features[-1], 2.0)])
    torch.testing.assert_close(found, expected.detach())
    # DDIM (Song et al., Eq. 12) without noise, from the first prediction of 1
    now, before = (module.schedule.alphas_cumprod[step] for step in (module.time_steps - 1, 4))
    direction = (seen[0][0] - now.sqrt()) / (1 - now).sqrt()
    torch.testing.assert_close(seen[1][0], before.sqrt() + (1 - before).sqrt() * direction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [48, 80])
def test_bottlenecks_of_odd_sides(size: int) -> None:
    module = rectifier()
    image, label, guidance, better = example(size)
    logits, loss = module(image, label, guidance, better)
    assert logits.shape == (3, 4, size, size)
    assert loss.isfinite()
