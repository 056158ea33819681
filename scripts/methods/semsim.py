"""SemSim (arXiv 2410.13486), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, coverage, pseudo_label
from scripts.methods.base import Objective, WeakViews
from scripts.networks import UNet
from scripts.similarity import (
    Prototypes,
    cross_logits,
    majority_labels,
    query_similarity,
    refine_by_affinity,
    region_prototypes,
    uncertainty,
)
from scripts.utils.options import check_switches
from scripts.views import MixedView

__all__ = ["SemSim"]

_CHOICES = {
    "affinity_space": ("logit", "probability"),
    "gate": ("self", "decoder", "agree"),
    "channel_dropout": ("strong", "feature_stream", "none"),
    "features": ("encoder", "decoder"),
}


class SemSim(Objective):
    """``(L_s + lambda L_u + lambda_intra L_intra + lambda_cross L_cross) / 2`` (Eqs. 18-19).

    Every option beyond the network and the fusion module is an ablation of the paper or a reading of it; the defaults
    are the method. docs/method.md says which equation and table each belongs to.

    Args:
        fusion: module from encoder features to ``f~``: SpatialAwareFusion, or PixelProjection for SemSim-.
        lambda_decoder: weight of L_u, the decoder's consistency (Fig. 7, Table IV).
        lambda_intra: weight of L_intra (Fig. 7, Table IV).
        lambda_cross: weight of L_cross (Fig. 7, Table IV).
        lambda_query: weight, beside the total, of the cross-entropy of p^cr on the labelled batch, each image queried
            against the others' prototypes; 0 is the paper.
        regions: regions per side for the prototypes, N (Table V).
        affinity_temperature: T_a of Eq. 4; 1 is the paper's literal reading.
        affinity_space: ``logit`` or ``probability``, see :func:`scripts.similarity.refine_by_affinity`.
        query_temperature: T_c of Eq. 9; 1 is the paper's literal reading, under which L_cross is always 0.
        uncertainty_rate: r of Eq. 12.
        gate: which pixels enter L_cross: ``self`` (p_2^w is confident; the paper), ``decoder`` (p^w is), ``agree``
            (p^w is and both name the same class).
        decoder_views: strong views (1 to 3) on which the decoder is made consistent; L_u is their mean (Table VI).
        intra_view: strong view of p^in (Table VI).
        cross_view: strong view of p^cr (Table VI).
        channel_dropout: ``strong``: Dropout2d(.5) on every encoder level of the strong views, before decoder and
            fusion; ``feature_stream``: UniMatch's extra stream of the weak view, one more term of L_u's mean;
            ``none``.
        features: what the fusion module reads: stages of the ``encoder`` (the paper) or of the ``decoder``, which L_s
            trains and which tell the classes apart from early on.
        shared_target: one target for all three, the mean of p^w and p_1^w (Fig. 11).
        joint_forward: labelled and weak images in one forward pass (shared batch statistics; the weak view's
            activations are kept for the backward pass, so it costs more).
        **kwargs: of :class:`scripts.methods.Objective`.

    Raises:
        ValueError: for an unknown choice, a view outside 1 to 3, no region, a negative weight or rate, or a
            temperature that is not positive.
    """

    dropout_rate = 0.5

    def __init__(
        self,
        *,
        fusion: nn.Module,
        lambda_decoder: float = 0.5,
        lambda_intra: float = 0.25,
        lambda_cross: float = 0.25,
        lambda_query: float = 0.0,
        regions: int = 4,
        affinity_temperature: float = 0.1,
        affinity_space: str = "logit",
        query_temperature: float = 0.05,
        uncertainty_rate: float = 1000.0,
        gate: str = "self",
        decoder_views: Sequence[int] = (1,),
        intra_view: int = 1,
        cross_view: int = 2,
        channel_dropout: str = "strong",
        features: str = "encoder",
        shared_target: bool = False,
        joint_forward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_switches(shared_target=shared_target, joint_forward=joint_forward)
        weights = {
            "lambda_decoder": lambda_decoder,
            "lambda_intra": lambda_intra,
            "lambda_cross": lambda_cross,
            "lambda_query": lambda_query,
        }
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
        choices = {
            "affinity_space": affinity_space,
            "gate": gate,
            "channel_dropout": channel_dropout,
            "features": features,
        }
        for name, choice in choices.items():
            if choice not in _CHOICES[name]:
                raise ValueError(f"{name}: expected one of {_CHOICES[name]}, found {choice!r}.")
        if channel_dropout == "feature_stream" and self.teacher_decay is not None:
            raise ValueError("channel_dropout feature_stream perturbs the network's own features: no teacher then.")
        if not decoder_views or not {*decoder_views, intra_view, cross_view} <= {1, 2, 3}:
            raise ValueError(
                f"strong views are 1, 2 and 3; found decoder_views {list(decoder_views)}, "
                f"intra_view {intra_view}, cross_view {cross_view}."
            )
        self.lambda_decoder = lambda_decoder
        self.lambda_intra = lambda_intra
        self.lambda_cross = lambda_cross
        self.lambda_query = lambda_query
        self.queries = lambda_cross > 0 or lambda_query > 0
        # Without a term that reads f~ the module would be dead weight that DistributedDataParallel waits for.
        self.fusion = fusion if self.queries or lambda_intra > 0 else None
        self.regions = regions
        self.affinity_temperature = affinity_temperature
        self.affinity_space = affinity_space
        self.query_temperature = query_temperature
        self.uncertainty_rate = uncertainty_rate
        self.gate = gate
        self.decoder_views = tuple(decoder_views) if lambda_decoder > 0 else ()
        self.intra_view = intra_view
        self.cross_view = cross_view
        self.channel_dropout = channel_dropout
        self.features = features
        self.shared_target = shared_target
        self.joint_forward = joint_forward

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, weak, _ = self.weak_views(batch)

        # The labelled and the weak views; nothing in the weak branch carries a gradient, but for the feature stream.
        encoded, weak_encoded = self._encode_both(image, weak)
        logits, stages = self._decode(encoded)
        prototypes = None
        if self.queries:
            features, labels, prototypes = self._labeled_features(stages, label)
        with torch.no_grad():
            targets = self._targets([f.detach() for f in weak_encoded], prototypes)

        supervised = self.supervised_loss(logits, label)
        losses = {"loss_supervised": supervised}
        losses |= self._consistency(weak, weak_encoded, targets, prototypes)
        total = supervised
        for name, weight in (
            ("loss_decoder", self.lambda_decoder),
            ("loss_intra", self.lambda_intra),
            ("loss_cross", self.lambda_cross),
        ):
            if name in losses:
                total = total + weight * losses[name]
        total = total / 2
        if self.lambda_query > 0 and prototypes is not None:
            losses["loss_query"] = self._query_loss(features, labels, prototypes)
            total = total + self.lambda_query * losses["loss_query"]
        for name, target in targets.items():
            losses |= coverage(name, target, self.threshold)
        return {"loss": total, **losses}

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """p^w at the images' size; p_1^w (``intra``) and p_2^w (``cross``), as far as they are used, at f~'s."""
        encoded, weak_encoded = self._encode_both(views.image, views.unlabeled)
        prototypes = self._labeled_features(self._decode(encoded)[1], views.label)[2] if self.queries else None
        return self._targets(weak_encoded, prototypes)

    def _decode(self, encoded: list[Tensor], network: UNet | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits from encoder features, and stages 1 to 5 of what the fusion module reads, finest first."""
        network = network or self.network
        levels = network.decode_levels(encoded)
        logits: Tensor = network.head(levels[-1])
        return logits, [*reversed(levels), encoded[-1]] if self.features == "decoder" else encoded

    def _labeled_features(self, stages: list[Tensor], label: Tensor) -> tuple[Tensor, Tensor, Prototypes]:
        """``f~`` of the labelled images, their labels at its size, and the class prototypes of both."""
        features = self._fuse(stages)
        labels = majority_labels(label, features.shape[-2:], self.network.num_classes)
        return features, labels, region_prototypes(features, labels, self.network.num_classes, self.regions)

    def _fuse(self, stages: list[Tensor]) -> Tensor:
        """``f~`` of the stages of encoder or decoder."""
        assert self.fusion is not None
        features: Tensor = self.fusion(stages)
        return features

    def _encode_both(self, image: Tensor, weak: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder features of the labelled and of the weak images."""
        if self.joint_forward and self.teacher_decay is None:
            both = self.network.encode(torch.cat([image, weak]))
            return [f[: len(image)] for f in both], [f[len(image) :] for f in both]
        keep_graph = self.channel_dropout == "feature_stream" and self.lambda_decoder > 0
        with torch.set_grad_enabled(keep_graph and torch.is_grad_enabled()):
            weak_encoded = self.target_network.encode(weak)
        return self.network.encode(image), weak_encoded

    def _targets(self, encoded: list[Tensor], prototypes: Prototypes | None) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the weak view: p^w at full size, p_1^w and p_2^w at the features' size."""
        logits, stages = self._decode(encoded, self.target_network)
        logits = logits.float()
        probabilities = logits.softmax(dim=1)
        targets = {"decoder": pseudo_label(probabilities)}
        if self.fusion is None:
            return targets
        features = self._fuse(stages)
        small = _resize(logits, features)
        refined = None
        if self.lambda_intra > 0 or self.shared_target:
            refined = self._refine(small, features).softmax(dim=1)
            targets["intra"] = pseudo_label(refined)
        if prototypes is not None:
            similarity = query_similarity(features, prototypes)
            queried = cross_logits(similarity, prototypes.present, self.query_temperature).softmax(dim=1)
            targets["cross"] = self._gated(pseudo_label(queried), pseudo_label(small.softmax(dim=1)))
        if self.shared_target and refined is not None:
            ensemble = pseudo_label((refined + small.softmax(dim=1)) / 2)
            upsampled = F.interpolate(refined, size=logits.shape[-2:], mode="bilinear")
            targets = dict.fromkeys(targets, ensemble)
            targets["decoder"] = pseudo_label((probabilities + upsampled) / 2)
        return targets

    def _gated(self, queried: PseudoLabel, decoded: PseudoLabel) -> PseudoLabel:
        """p_2^w's label with the confidence that decides whether it passes."""
        if self.gate == "self":
            return queried
        if self.gate == "decoder":
            return PseudoLabel(queried.label, decoded.confidence)
        return PseudoLabel(queried.label, torch.where(queried.label == decoded.label, decoded.confidence, 0.0))

    def _refine(self, logits: Tensor, features: Tensor) -> Tensor:
        return refine_by_affinity(logits, features, self.affinity_temperature, self.affinity_space)

    def _consistency(
        self,
        weak: Tensor,
        weak_encoded: list[Tensor],
        targets: dict[str, PseudoLabel],
        prototypes: Prototypes | None,
    ) -> dict[str, Tensor]:
        """The weak-to-strong terms: each prediction of a strong view against its own kind of the weak view."""
        intra = (self.intra_view,) if self.lambda_intra > 0 else ()
        cross = (self.cross_view,) if prototypes is not None and self.lambda_cross > 0 else ()
        losses: dict[str, Tensor] = {}
        decoder: list[Tensor] = []
        for number in sorted({*self.decoder_views, *intra, *cross}):
            view = self.strong(weak)
            encoded = self._drop(self.network.encode(view.image), "strong")
            logits, stages = None, encoded
            if self.features == "decoder" or number in (*self.decoder_views, *intra):
                logits, stages = self._decode(encoded)
            features = self._fuse(stages) if number in (*intra, *cross) else None
            if number in self.decoder_views and logits is not None:
                decoder.append(self._dice_to(logits, view, targets["decoder"]))
            if number in intra and features is not None and logits is not None:
                refined = self._refine(_resize(logits.float(), features), features)
                losses["loss_intra"] = self._dice_to(refined, view, targets["intra"])
            if number in cross and features is not None and prototypes is not None:
                losses["loss_cross"] = self._cross_loss(features, prototypes, view, targets["cross"])
        if self.channel_dropout == "feature_stream" and self.lambda_decoder > 0:
            perturbed = self.network.decode(self._drop(weak_encoded, "feature_stream"))
            target = targets["decoder"]
            decoder.append(self.dice(perturbed, target.label, target.confidence >= self.threshold))
        if decoder:
            losses["loss_decoder"] = torch.stack(decoder).mean()
        return losses

    def _drop(self, encoded: list[Tensor], where: str) -> list[Tensor]:
        """Channel dropout, if the option asks for it here."""
        if self.channel_dropout != where:
            return encoded
        return [F.dropout2d(f, self.dropout_rate, training=self.training) for f in encoded]

    def _dice_to(self, logits: Tensor, view: MixedView, target: PseudoLabel) -> Tensor:
        """Dice of a strong view's prediction against the pasted pseudo-label (Eqs. 1 and 6)."""
        passed = view.paste(target.confidence) >= self.threshold
        loss: Tensor = self.dice(logits, view.paste(target.label), passed)
        return loss

    def _cross_loss(self, features: Tensor, prototypes: Prototypes, view: MixedView, target: PseudoLabel) -> Tensor:
        """L_cross (Eq. 13): mean over all pixels of [pass] U CE(p^cr, arg max p_2^w)."""
        similarity = query_similarity(features, prototypes)
        logits = cross_logits(similarity, prototypes.present, self.query_temperature)
        weight = uncertainty(similarity, prototypes.present, self.uncertainty_rate)
        label = view.paste(target.label)
        # A shared target may name a class that no labelled image of the batch shows: nothing to query there.
        passed = (view.paste(target.confidence) >= self.threshold) & prototypes.present[label]
        # One class alone has nothing to be told from.
        weight = weight * passed * (prototypes.present.sum() > 1)
        return (weight * F.cross_entropy(logits, label, reduction="none")).mean()

    def _query_loss(self, features: Tensor, labels: Tensor, prototypes: Prototypes) -> Tensor:
        """Cross-entropy of p^cr on the labelled images, each queried against the others' prototypes."""
        similarity = query_similarity(features, prototypes)
        itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
        if len(features) == 1:
            return similarity.sum() * 0.0
        logits = cross_logits(similarity, prototypes.present, self.query_temperature, exclude=itself)
        return F.cross_entropy(logits, labels)


def _resize(logits: Tensor, features: Tensor) -> Tensor:
    """Logits at the features' size (I of Eq. 5)."""
    return F.interpolate(logits, size=features.shape[-2:], mode="bilinear", align_corners=False)
