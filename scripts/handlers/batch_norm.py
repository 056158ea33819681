"""Batch norm's running averages for inference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scripts.data import SliceDataset
from scripts.engine import SemiSupervisedTrainer

__all__ = ["PreciseBatchNorm", "average_statistics"]


class PreciseBatchNorm:
    """Handler that recomputes the deployed network's batch norm averages at the end of every epoch.

    Training normalises by the batch. The running averages, which inference uses, then mix earlier weights, labelled and
    unlabelled images, augmented views, and activations under dropout, whose variance is larger than without (Li et al.,
    CVPR 2019, arXiv:1801.05134). After a short training this decides whether a network is usable. Here they are
    averages over unaltered training slices without dropout, with the current weights (Precise BN: Wu and Johnson 2021,
    arXiv:2105.07576, section 3). No objective uses the averages, so training is not affected.

    The slices are a fixed sample of those that the objective learns from: without the unlabelled ones if it does not
    use them. Attach it before the validation handler.

    Args:
        network: the deployed network.
        dataset: the training slices.
        slices: maximum number of slices for the averages.
    """

    batch_size = 16

    def __init__(self, network: nn.Module, dataset: SliceDataset, slices: int = 256) -> None:
        self.network = network
        self.dataset = dataset
        self.slices = slices

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._update)

    def _update(self, engine: SemiSupervisedTrainer) -> None:
        device, dtype = engine.state.device, engine.dtype
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            average_statistics(self.network, self._batches(engine.objective.requires_unlabeled, device))

    def _batches(self, unlabeled: bool, device: torch.device) -> Iterable[Tensor]:
        kinds = (self.dataset.labeled, self.dataset.unlabeled)[: 1 + unlabeled]
        drawn = np.random.default_rng(0).permutation(np.concatenate(kinds))[: self.slices]
        for part in np.array_split(drawn, -(-len(drawn) // self.batch_size)):
            images = [self.dataset[int(i)]["image"] for i in part]
            yield torch.stack(images).to(device, memory_format=torch.channels_last)


@torch.no_grad()
def average_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set batch norm's running mean and variance to the means of the batches' statistics.

    Each batch is normalised by its own statistics, and dropout is off.

    Args:
        network: left in evaluation mode.
        batches: images ``[B, C, H, W]``.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
