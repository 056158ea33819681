"""CPC-SAM (Miao et al., "Cross Prompting Consistency with Segment Anything Model", MICCAI 2024, arXiv:2407.05416)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import Objective, WeakViews
from scripts.networks import SAM

__all__ = ["CPCSAM", "Points", "class_points"]

logger = logging.getLogger(__name__)

DEEPEST = 32  # pixels; larger distances from a class's border count as equal


class Points(NamedTuple):
    """One point per class and image.

    Attributes:
        places: ``[B, C, 2]``, x and y in [0, 1].
        classes: ``[B, C]``.
    """

    places: Tensor
    classes: Tensor


class CPCSAM(Objective):
    """Two mask decoders of Segment Anything prompt each other and learn from the prompted predictions.

    Both decoders read the embedding of one image encoder, which is frozen except for LoRA. Decoder i predicts p_i
    without prompts. Each class of p_i gives two points, its innermost and a random one (:func:`class_points`); prompted
    by them, the other decoder j predicts q_j and r_j. With y_j = arg max of (q_j + r_j) / 2, the loss is

        sum over i of L_s(p_i),  and from the share ``warm_up`` of the training on also
        sum over i of L_s(q_j) + L_s(r_j) + consistency_weight L(p_i, y_j) + prompt_weight L(r_j, y_j)

    L_s is over the labelled images. L is L_s over the unlabelled images with y_j as the label. ``loss_prompted`` (L_s
    of q and r), ``loss_unprompted`` (L of p) and ``loss_stability`` (L of r) are the sums over both directions.

    Trained: 8,000,704 parameters (4 classes): LoRA, both decoders and the embeddings of prompts. Deployed: encoder and
    first decoder without prompts, 91,493,632; SemSim's Table I has 93.75 M, about SAM's number at its own input size.

    Deviations from the reference code (JuzhengMiao/CPC-SAM):

    - One optimiser step for all losses; the code takes three per iteration, each with its own pass of the encoder.
    - SAM's own decoder, with masks at a quarter of the input size; the code's decoder has masks at the full size.
    - The innermost point of a class has the largest distance from its border in steps of pixels, in the whole image;
      the code measures Euclidean distance in the largest component. The random point too is from the whole class.
    - No padding point is added to the prompts.
    - All foreground classes' points start from SAM's positive point; the code's start from that and the box corners.
    - Cross-entropy and Dice have the weights of L_s everywhere; the code has .2 and .8 for labels.
    - The learning rate has no warm-up; the code's rises over the first 250 iterations.
    - Iterations with labelled images only (``supervised_share``) do not train the second decoder.

    Args:
        network: a :class:`scripts.networks.SAM`.
        warm_up: share of the training that has no prompts; the reference's 5,000 of 30,000 iterations.
        consistency_weight: weight of L of the unprompted predictions.
        prompt_weight: weight of L of the predictions that random points prompt.
        **kwargs: of :class:`Objective`. Threshold and strong view are not used.

    Raises:
        ValueError: for a share outside [0, 1] or a negative weight.
    """

    def __init__(
        self,
        *,
        network: SAM,
        warm_up: float = 1 / 6,
        consistency_weight: float = 0.4,
        prompt_weight: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(network=cast(Any, network), **kwargs)
        if not 0 <= warm_up <= 1:
            raise ValueError(f"warm_up: expected a share in [0, 1], found {warm_up}.")
        for name, weight in (("consistency_weight", consistency_weight), ("prompt_weight", prompt_weight)):
            if weight < 0:
                raise ValueError(f"{name}: expected a weight of at least 0, found {weight}.")
        self.second = deepcopy(network.decoder)
        for part in (self.second.mask_tokens, self.second.output_hypernetworks_mlps):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    module.reset_parameters()  # the only initial difference between the decoders
        self.warm_up = warm_up
        self.consistency_weight = consistency_weight
        self.prompt_weight = prompt_weight
        if network.begins_with == "random weights":
            logger.warning(
                "SAM begins with RANDOM weights, not those of Segment Anything: the results say nothing about CPC-SAM. "
                "Name its weights by --network_def#pretrained."
            )

    @property
    def sam(self) -> SAM:
        """The deployed network, with the first decoder."""
        return cast(SAM, self.network)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; the points' embedding always has a gradient, as DistributedDataParallel needs."""
        losses = super().__call__(batch)
        return {**losses, "loss": losses["loss"] + 0 * self.sam.class_points.weight.sum()}

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        n, both = len(image), torch.cat([image, unlabeled])
        embedding = self.sam.encode(both)
        decoders = (self.sam.decoder, self.second)
        free = [self.sam.decode(embedding, both.shape[-2:], decoder=decoder).float() for decoder in decoders]
        supervised = torch.stack([self.supervised_loss(logits[:n], label) for logits in free]).sum()
        if self.iteration < self.warm_up * self.total_iterations:
            return {"loss": supervised, "loss_supervised": supervised}
        prompted, consistency, stability = [], [], []
        for logits, decoder in zip(free, reversed(decoders), strict=True):
            best, random = self.prompted(embedding, logits, decoder)
            target = prompted_target(best, random).label[n:]
            prompted += [self.supervised_loss(best[:n], label), self.supervised_loss(random[:n], label)]
            consistency.append(self.supervised_loss(logits[n:], target))
            stability.append(self.supervised_loss(random[n:], target))
        losses = {
            "loss_supervised": supervised,
            "loss_prompted": torch.stack(prompted).sum(),
            "loss_unprompted": torch.stack(consistency).sum(),
            "loss_stability": torch.stack(stability).sum(),
        }
        total = supervised + losses["loss_prompted"] + self.consistency_weight * losses["loss_unprompted"]
        return {"loss": total + self.prompt_weight * losses["loss_stability"], **losses}

    def prompted(self, embedding: Tensor, logits: Tensor, decoder: nn.Module) -> tuple[Tensor, Tensor]:
        """A decoder's predictions, prompted by the innermost and by random points of the other decoder's prediction.

        Args:
            embedding: embedding of the images.
            logits: logits ``[B, C, H, W]`` of the other decoder.
            decoder: the decoder to prompt.

        Returns:
            Logits ``[B, C, H, W]``, float32, for innermost and for random points.
        """
        best, random = (
            self.sam.decode(embedding, logits.shape[-2:], self.sam.prompt(*points), decoder).float()
            for points in class_points(logits)
        )
        return best, random

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """``decoder``: of the deployed network; ``prompted``: of the first decoder with the second one's prompts."""
        embedding = self.sam.encode(views.unlabeled)
        size = views.unlabeled.shape[-2:]
        first = self.sam.decode(embedding, size).float()
        second = self.sam.decode(embedding, size, decoder=self.second).float()
        prompted = prompted_target(*self.prompted(embedding, second, self.sam.decoder))
        return {"decoder": pseudo_label(first.softmax(dim=1)), "prompted": prompted}


def prompted_target(best: Tensor, random: Tensor) -> PseudoLabel:
    """Pseudo-label from the mean probabilities of two predictions, logits ``[B, C, H, W]``."""
    return pseudo_label((best.softmax(dim=1) + random.softmax(dim=1)) / 2)


@torch.no_grad()
def class_points(logits: Tensor) -> tuple[Points, Points]:
    """Point prompts from a prediction ``[B, C, H, W]``: each class's innermost pixel and a random one.

    The innermost pixel has the largest distance from the class's border, in steps to one of eight neighbours and at
    most :data:`DEEPEST`; ties are broken at random. A class that is not predicted gets the background's point and
    class.
    """
    batch, classes, height, width = logits.shape
    masks = F.one_hot(logits.argmax(dim=1), classes).movedim(-1, 1).float()
    inside, depth = masks, masks
    for _ in range(min(DEEPEST, (min(height, width) + 1) // 2) - 1):
        inside = -F.max_pool2d(-F.pad(inside, (1, 1, 1, 1)), kernel_size=3, stride=1)
        depth = depth + inside
    number = torch.arange(classes, device=logits.device).expand(batch, -1)
    number = torch.where(masks.amax(dim=(2, 3)) > 0, number, 0)
    found = []
    for weight in (depth, masks):
        chosen = (weight + torch.rand_like(weight)).flatten(2).argmax(dim=2)
        chosen = torch.where(number > 0, chosen, chosen[:, :1])
        places = torch.stack([(chosen % width + 0.5) / width, (chosen // width + 0.5) / height], dim=-1)
        found.append(Points(places, number))
    return found[0], found[1]
