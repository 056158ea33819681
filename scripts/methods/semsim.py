"""SemSim (arXiv 2410.13486), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, coverage, pseudo_label
from scripts.methods.base import Objective, WeakViews
from scripts.networks import UNet
from scripts.similarity import (
    Prototypes,
    agreement,
    cross_logits,
    majority_labels,
    query_similarity,
    refine_by_affinity,
    region_prototypes,
)
from scripts.views import MixedView

__all__ = ["SemSim"]


class SemSim(Objective):
    """``(L_s + lambda L_u + lambda_intra L_intra + lambda_cross L_cross) / 2`` (Eqs. 18-19).

    A weight of 0 disables its term and everything computed for that term only. The paper's other ablations and other
    readings of it are options of :class:`scripts.methods.SemSimVariants`; see docs/method.md.

    Args:
        fusion: module from encoder features to ``f~``: SpatialAwareFusion, or PixelProjection for SemSim-.
        lambda_decoder: weight of L_u, the decoder's consistency (Fig. 7, Table IV).
        lambda_intra: weight of L_intra (Fig. 7, Table IV).
        lambda_cross: weight of L_cross (Fig. 7, Table IV).
        regions: regions per side for the prototypes, N (Table V).
        affinity_temperature: T_a of Eq. 4; 1 is the paper's literal reading.
        query_temperature: T_c of Eq. 9; 1 is the paper's literal reading, under which L_cross is always 0.
        uncertainty_rate: r of Eq. 12.
        **kwargs: of :class:`scripts.methods.Objective`.

    Raises:
        ValueError: if ``regions`` is less than 1, a weight or rate is negative, or a temperature is not positive.
    """

    dropout_rate = 0.5
    capturable = True

    def __init__(
        self,
        *,
        fusion: nn.Module,
        lambda_decoder: float = 0.5,
        lambda_intra: float = 0.25,
        lambda_cross: float = 0.25,
        regions: int = 4,
        affinity_temperature: float = 0.1,
        query_temperature: float = 0.05,
        uncertainty_rate: float = 1000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        weights = {"lambda_decoder": lambda_decoder, "lambda_intra": lambda_intra, "lambda_cross": lambda_cross}
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"{name}: expected a weight of at least 0, found {value}.")
        temperatures = {"affinity_temperature": affinity_temperature, "query_temperature": query_temperature}
        for name, value in temperatures.items():
            if value <= 0:
                raise ValueError(f"{name}: expected a positive temperature, found {value}.")
        if regions < 1:
            raise ValueError(f"regions: expected at least 1 per side, found {regions}.")
        if uncertainty_rate < 0:
            raise ValueError(f"uncertainty_rate: expected a rate of at least 0, found {uncertainty_rate}.")
        self.lambda_decoder = lambda_decoder
        self.lambda_intra = lambda_intra
        self.lambda_cross = lambda_cross
        self.refines = lambda_intra > 0
        self.queries = lambda_cross > 0
        # Without a term that uses f~ the module has no gradient, for which DistributedDataParallel would wait.
        self.fusion = fusion if self.refines or self.queries else None
        self.regions = regions
        self.affinity_temperature = affinity_temperature
        self.query_temperature = query_temperature
        self.uncertainty_rate = uncertainty_rate

    @property
    def requires_labeled(self) -> bool:  # type: ignore[override]
        """L_cross queries labelled images; without it a batch may hold none."""
        return self.queries

    @property
    def former_settings(self) -> dict[str, Any]:
        """Default values of the options that are now those of :class:`scripts.methods.SemSimVariants`."""
        return {
            "lambda_query": 0.0,
            "affinity_space": "logit",
            "gate": "self",
            "decoder_views": (1,) if self.lambda_decoder > 0 else (),
            "intra_view": 1,
            "cross_view": 2,
            "channel_dropout": "strong",
            "features": "encoder",
            "shared_target": False,
            "joint_forward": False,
        }

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, weak, _ = self.weak_views(batch)

        # Labelled images give L_s and the prototypes; the weak branch has no gradient.
        with torch.no_grad():
            weak_encoded = self.target_network.encode(weak)
        prototypes = None
        if self.queries:
            logits, stages = self._decode(self.network.encode(image))
            supervised = self.supervised_loss(logits, label)
            prototypes = self._labeled_features(stages, label)[2]
        else:
            supervised = self.supervised(image, label)
        losses = {"loss_supervised": supervised}
        with torch.no_grad():
            targets = self._targets(weak_encoded, prototypes)

        # S1: the decoder's prediction p^s, and p^in, refined by the affinity within the image.
        if self.lambda_decoder > 0 or self.lambda_intra > 0:
            view = self.strong(weak, self.draws)
            logits, stages = self._decode(self._encode_strong(view))
            if self.lambda_decoder > 0:
                losses["loss_decoder"] = self._dice_to(logits, view, targets["decoder"])
            if self.lambda_intra > 0:
                refined = self._refine(logits, self._fuse(stages))
                losses["loss_intra"] = self._dice_to(refined, view, targets["intra"])

        # S2: p^cr, from querying the labelled images.
        if prototypes is not None:
            view = self.strong(weak, self.draws)
            features = self._fuse(self._encode_strong(view))
            losses["loss_cross"] = self._cross_loss(features, prototypes, view, targets["cross"])

        for name, target in targets.items():
            losses |= coverage(name, target, self.threshold)
        return {"loss": self._total(losses), **losses}

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """p^w at the images' size; p_1^w (``intra``) and p_2^w (``cross``), if used, at f~'s size."""
        weak_encoded, encoded = self.target_network.encode(views.unlabeled), self.network.encode(views.image)
        prototypes = self._labeled_features(self._decode(encoded)[1], views.label)[2] if self.queries else None
        return self._targets(weak_encoded, prototypes)

    def _decode(self, encoded: list[Tensor], network: UNet | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits from encoder features, and stages 1 to 5 of the fusion module's input, finest first."""
        logits: Tensor = (network or self.network).decode(encoded)
        return logits, encoded

    def _labeled_features(self, stages: list[Tensor], label: Tensor) -> tuple[Tensor, Tensor, Prototypes]:
        """``f~`` of the labelled images, their labels at its size, and the class prototypes of both (Eq. 7)."""
        features = self._fuse(stages)
        labels = majority_labels(label, features.shape[-2:], self.network.num_classes)
        return features, labels, region_prototypes(features, labels, self.network.num_classes, self.regions)

    def _fuse(self, stages: list[Tensor]) -> Tensor:
        """``f~`` of the network's stages (Eqs. 14-17)."""
        assert self.fusion is not None
        features: Tensor = self.fusion(stages)
        return features

    def _encode_strong(self, view: MixedView) -> list[Tensor]:
        """Encoder features of a strong view, half of their channels dropped."""
        encoded = self.network.encode(view.image)
        return [F.dropout2d(f, self.dropout_rate, training=self.training) for f in encoded]

    def _targets(self, encoded: list[Tensor], prototypes: Prototypes | None) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the weak view: p^w at full size, p_1^w and p_2^w at the features' size."""
        return {name: pseudo_label(logits.softmax(dim=1)) for name, logits in self._weak(encoded, prototypes).items()}

    def _weak(self, encoded: list[Tensor], prototypes: Prototypes | None) -> dict[str, Tensor]:
        """Logits of p^w (``decoder``), p_1^w (``intra``, Eq. 5) and p_2^w (``cross``, Eq. 9)."""
        decoded, stages = self._decode(encoded, self.target_network)
        logits = {"decoder": decoded.float()}
        if self.fusion is None:
            return logits
        features = self._fuse(stages)
        if self.refines:
            logits["intra"] = self._refine(logits["decoder"], features)
        if prototypes is not None:
            similarity = query_similarity(features, prototypes)
            logits["cross"] = cross_logits(similarity, prototypes.present, self.query_temperature)
        return logits

    def _refine(self, logits: Tensor, features: Tensor) -> Tensor:
        """Decoder logits at the features' size, refined by the affinity of the features (Eqs. 4-5)."""
        return refine_by_affinity(resized(logits, features), features, self.affinity_temperature)

    def _dice_to(self, logits: Tensor, view: MixedView, target: PseudoLabel) -> Tensor:
        """Dice of a strong view's prediction against the pasted pseudo-label (Eqs. 1 and 6)."""
        passed = view.paste(target.confidence) >= self.threshold
        loss: Tensor = self.dice(logits, view.paste(target.label), passed)
        return loss

    def _cross_loss(self, features: Tensor, prototypes: Prototypes, view: MixedView, target: PseudoLabel) -> Tensor:
        """L_cross (Eq. 13): mean over all pixels of [pass] U CE(p^cr, arg max p_2^w)."""
        similarity = query_similarity(features, prototypes)
        logits = cross_logits(similarity, prototypes.present, self.query_temperature)
        weight = agreement(similarity, prototypes.present, self.uncertainty_rate)
        label = view.paste(target.label)
        # The target's class may be absent from all labelled images of the batch: it cannot be queried.
        passed = (view.paste(target.confidence) >= self.threshold) & prototypes.present[label]
        # If the batch shows a single class, the query has no alternative.
        weight = weight * passed * (prototypes.present.sum() > 1)
        return (weight * F.cross_entropy(logits, label, reduction="none")).mean()

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the given terms (Eq. 19)."""
        total = losses["loss_supervised"]
        for name in ("decoder", "intra", "cross"):
            if f"loss_{name}" in losses:
                total = total + getattr(self, f"lambda_{name}") * losses[f"loss_{name}"]
        return total / 2


def resized(logits: Tensor, features: Tensor) -> Tensor:
    """Logits at the features' size, float32 (I of Eq. 5)."""
    return F.interpolate(logits.float(), size=features.shape[-2:], mode="bilinear", align_corners=False)
