"""Deep adversarial network, DAN (Zhang et al., MICCAI 2017), as SSL4MIS trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import RampedConsistency
from scripts.networks import Discriminator

__all__ = ["Adversarial"]


class Adversarial(RampedConsistency):
    """``L_s + w(t) CE(D(p, x), labeled)``: segmentations of unlabelled images should look like those of labelled ones.

    The discriminator D takes an image and its class probabilities. After each step of the network, D's own Adam
    minimises ``CE(D(p, x), origin)`` over both batches: D learns which images are labelled. ``loss_consistency`` is the
    network's adversarial term, over the unlabelled images, D without dropout.

    Trained: 4,576,518 parameters (1 channel, 4 classes), the U-Net and D's 2,762,754. Deployed: the U-Net, 1,813,764
    (SemSim's Table I cites this figure alone). Deviations from SSL4MIS (``train_adversarial_network_2D.py``): D learns
    from the predictions that the network's step came from, where the reference predicts once more, with the new
    weights and in evaluation mode; the reference's supervised cross-entropy takes the soft-max twice, L_s does not. D
    is SSL4MIS's, not the original paper's evaluation network.

    D has gradients in its own step only, so the trainer's optimiser and DistributedDataParallel ignore it. This class
    averages D's gradients over the processes and stores D's optimiser state with the objective's.

    Args:
        learning_rate: of D's Adam.
        width: channels of D's first layer.
        **kwargs: of :class:`RampedConsistency`.
    """

    def __init__(self, *, learning_rate: float = 1e-4, width: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.width = width
        self.discriminator = Discriminator(self.network.in_channels, self.network.num_classes, width)
        self.discriminator.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self._judged: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        images = torch.cat([image, unlabeled])
        logits = self.network(images).float()
        probabilities = logits.softmax(dim=1)
        n = len(image)
        origin = (torch.arange(len(images), device=images.device) < n).long()  # 1: labelled
        self._judged = probabilities.detach(), images, origin

        self.discriminator.eval()
        verdict = self.discriminator(probabilities[n:], unlabeled).float()
        adversarial = F.cross_entropy(verdict, torch.ones_like(origin[n:]))
        return self.total(self.supervised_loss(logits[:n], label), adversarial)

    def after_step(self) -> None:
        """The discriminator's step, on the last forward pass's predictions."""
        if self._judged is None:
            return
        probabilities, images, origin = self._judged
        self._judged = None
        self.discriminator.train().requires_grad_(True)
        loss = F.cross_entropy(self.discriminator(probabilities, images), origin)
        parameters = list(self.discriminator.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            parameter.grad = gradient
        self.optimizer.step()
        # The trainer's optimiser skips a parameter without a gradient, also for weight decay.
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)

    def get_extra_state(self) -> dict[str, Any]:
        """State of the discriminator's optimiser, for the checkpoint."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        for moments in state["state"].values():  # on the CPU: Adam reads its step count at every step
            moments["step"] = moments["step"].cpu()
        self.optimizer.load_state_dict(state)
