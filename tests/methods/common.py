"""Shared parts of the objectives' tests: small networks and batches, a step, and a short training."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts import methods
from scripts.engine import SemiSupervisedTrainer, poly_schedule
from scripts.methods import Objective, SemSimVariants
from scripts.methods.teacher import MovingAverage
from scripts.networks import (
    SAM,
    FrequencyHybrid,
    LabelRectifier,
    PixelProjection,
    SpatialAwareFusion,
    SwinUNet,
    UNet,
)

METHODS: dict[str, type[Objective]] = {
    "adversarial": methods.Adversarial,
    "bcp": methods.BCP,
    "cnt_b": methods.CnTB,
    "cpc_sam": methods.CPCSAM,
    "cross_consistency_training": methods.CrossConsistencyTraining,
    "cross_pseudo_supervision": methods.CrossPseudoSupervision,
    "cross_teaching": methods.CrossTeaching,
    "deep_co_training": methods.DeepCoTraining,
    "diffrect": methods.DiffRect,
    "entropy_minimization": methods.EntropyMinimization,
    "fixmatch": methods.FixMatch,
    "ict_med": methods.ICTMed,
    "interpolation_consistency": methods.InterpolationConsistency,
    "mean_teacher": methods.MeanTeacher,
    "medfct": methods.MedFCT,
    "s4cvnet": methods.S4CVNet,
    "scp_net": methods.SCPNet,
    "semsim": methods.SemSim,
    "semsim_minus": methods.SemSim,
    "ss_net": methods.SSNet,
    "supervised": methods.Supervised,
    "uncertainty_aware_mean_teacher": methods.UncertaintyAwareMeanTeacher,
    "unimatch": methods.UniMatch,
    "urpc": methods.URPC,
}
VARIANT_OPTIONS = {*inspect.signature(SemSimVariants.__init__).parameters} - {"self", "fusion", "kwargs"}
THIN = (4, 6, 8, 10, 12)
WITHOUT_SAM = "" if importlib.util.find_spec("transformers") else "needs transformers (pip install transformers)"
THIN_SAM = {"input_size": 64, "width": 24, "depth": 3, "heads": 2, "window": 3, "decoder_width": 32}
needs_sam = pytest.mark.skipif(bool(WITHOUT_SAM), reason=WITHOUT_SAM)


def thin_network(seed: int = 0, in_channels: int = 1, dropout: float = 0.0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(in_channels=in_channels, channels=THIN, dropout=dropout)
    network.head.weight.data *= 3  # predictions that differ from pixel to pixel
    return network


def thin_transformer(drop_path: float = 0.0) -> SwinUNet:
    network = SwinUNet(embed_dim=6, depths=(2, 1), heads=(1, 2), window=3, drop_path=drop_path)
    network.head.weight.data *= 30
    return network


def thin_hybrid(seed: int = 0, in_channels: int = 1, dropout: float = 0.0) -> FrequencyHybrid:
    torch.manual_seed(seed)
    network = FrequencyHybrid(
        in_channels, channels=THIN, dropout=dropout, embed_dim=6, depths=(2, 1), heads=(1, 2), window=3, drop_path=0.0
    )
    network.cnn.head.weight.data *= 3
    network.transformer.head.weight.data *= 30
    return network


def thin_sam(seed: int = 0, in_channels: int = 1) -> SAM:
    torch.manual_seed(seed)
    network = SAM(in_channels, **THIN_SAM)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.2)  # zeros let no gradient through, and near them all looks alike
    return network


def deployed(name: str, seed: int = 0, in_channels: int = 1, dropout: float = 0.0) -> nn.Module:
    """The network that a method deploys, thin."""
    if name == "cpc_sam":
        return thin_sam(seed, in_channels)
    return (thin_hybrid if name == "medfct" else thin_network)(seed, in_channels, dropout)


def build(name: str, *, seed: int = 0, in_channels: int = 1, dropout: float = 0.0, **kwargs: Any) -> Any:
    """An objective on thin networks at 30 % of the training; its moving averages differ from their students."""
    network = deployed(name, seed, in_channels, dropout)
    if name == "semsim":
        kwargs["fusion"] = SpatialAwareFusion(channels=THIN, dim=8, heads=2)
    elif name == "semsim_minus":
        kwargs["fusion"] = PixelProjection(channels=THIN, dim=8)
    elif name == "cross_pseudo_supervision":
        kwargs["second"] = thin_network(seed + 1, in_channels, dropout)
    elif name in ("cnt_b", "cross_teaching", "s4cvnet"):
        kwargs.setdefault("transformer", thin_transformer(dropout))
    elif name == "diffrect":
        kwargs["rectifier"] = LabelRectifier(in_channels, 4, THIN, denoiser=(8,), groups=2)
        for parameter in kwargs["rectifier"].denoiser.parameters():
            if not parameter.any():  # MONAI initialises some layers with zeros, which block the gradient
                nn.init.normal_(parameter, std=0.1)
    elif name == "adversarial":
        kwargs["width"] = 4
    kind = SemSimVariants if VARIANT_OPTIONS & kwargs.keys() else METHODS[name]
    objective: Any = kind(network=network, **kwargs)
    for average in (module for module in objective.modules() if isinstance(module, MovingAverage)):
        swin = isinstance(average.module, SwinUNet)
        other = thin_transformer() if swin else deployed(name, seed + 2, in_channels)
        average.module.load_state_dict(other.state_dict())
    objective.iteration, objective.total_iterations = 30, 100
    return objective


def supervised_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_s, which ``tests/test_losses.py`` compares with plain loops."""
    return Objective(thin_network()).supervised_loss(logits, label)


def make_batch(
    size: tuple[int, int] = (32, 32), labeled: int = 2, unlabeled: int = 3, channels: int = 1, seed: int = 1
) -> dict[str, Tensor]:
    """Smooth random images; the label follows the intensity, all four classes in every image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(labeled + unlabeled, channels, 5, 5, generator=generator)
    image = F.interpolate(coarse, size=size, mode="bilinear")
    values = image[:labeled, :1]
    edges = values.flatten(1).quantile(torch.tensor([0.4, 0.6, 0.8]), dim=1)
    label = (values > edges[..., None, None, None]).sum(dim=0).to(torch.uint8)
    return {"image": image[:labeled], "label": label, "unlabeled": image[labeled:]}


def run(objective: Objective, batch: dict[str, Tensor] | None = None, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return objective(make_batch() if batch is None else batch)


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def calls(module: nn.Module) -> list[tuple[Any, Tensor]]:
    """Records (input, output) of every pass of a module."""
    found: list[tuple[Any, Tensor]] = []
    module.register_forward_hook(lambda _, x, y: found.append((x[0], y.detach().clone())))
    return found


class Batches:
    """A loader whose batch is a function of the iteration, like the real one; two batches per epoch.

    Args:
        rank: number of the process; each has different batches.
    """

    iteration = 0

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self.iteration += 1
            yield make_batch(labeled=2, unlabeled=2, seed=self.iteration + 100 * self.rank)


def trainer(method: Objective, epochs: int = 2, handlers: Sequence[Any] = ()) -> SemiSupervisedTrainer:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    return SemiSupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=Batches(),
        method=method,
        optimizer=optimizer,
        lr_scheduler=poly_schedule(optimizer, 2 * epochs),
        train_handlers=list(handlers),
    )
