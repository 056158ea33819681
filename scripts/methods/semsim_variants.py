"""Ablations of SemSim beyond its weights, and other readings of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, coverage, pseudo_label
from scripts.methods.base import WeakViews
from scripts.methods.semsim import SemSim, resized
from scripts.networks import UNet
from scripts.similarity import Prototypes, cross_logits, query_similarity, refine_by_affinity
from scripts.utils.options import check_switches
from scripts.views import MixedView

__all__ = ["SemSimVariants"]

_CHOICES = {
    "affinity_space": ("logit", "probability"),
    "gate": ("self", "decoder", "agree"),
    "channel_dropout": ("strong", "feature_stream", "none"),
    "features": ("encoder", "decoder"),
}
_KINDS = ("decoder", "intra", "cross")


class SemSimVariants(SemSim):
    """SemSim with further options; with their defaults it equals :class:`scripts.methods.SemSim`.

    docs/method.md lists the equation, table or figure of each.

    Args:
        fusion: see :class:`scripts.methods.SemSim`.
        lambda_query: weight of the cross-entropy of p^cr on the labelled batch, where each image is queried against the
            others' prototypes; the term is added to the total, the paper has 0.
        affinity_space: ``logit`` or ``probability``, see :func:`scripts.similarity.refine_by_affinity`.
        gate: which pixels enter L_cross: ``self`` (p_2^w is confident; the paper), ``decoder`` (p^w is), ``agree``
            (p^w is and both name the same class).
        decoder_views: strong views (1 to 3) on which the decoder is made consistent; L_u is their mean (Table VI).
        intra_view: strong view of p^in (Table VI).
        cross_view: strong view of p^cr (Table VI).
        channel_dropout: ``strong``: Dropout2d(.5) on every encoder level of the strong views, before decoder and
            fusion; ``feature_stream``: UniMatch's extra stream of the weak view, one more term of L_u's mean;
            ``none``.
        features: input of the fusion module: stages of the ``encoder`` (the paper) or of the ``decoder``, which L_s
            trains and which separate the classes early in the training.
        shared_target: one target for all three predictions (Fig. 11): the mean of ``shared_kinds``.
        shared_kinds: predictions of the weak view, of ``decoder`` (p^w), ``intra`` (p_1^w) and ``cross`` (p_2^w).
        joint_forward: labelled and weak images in one forward pass (shared batch statistics; the weak view's
            activations are kept for the backward pass, so it costs more).
        **kwargs: of :class:`scripts.methods.SemSim`.

    Raises:
        ValueError: for an unknown choice, a view outside 1 to 3, or a negative weight.
    """

    capturable = True

    def __init__(
        self,
        *,
        fusion: nn.Module,
        lambda_query: float = 0.0,
        affinity_space: str = "logit",
        gate: str = "self",
        decoder_views: Sequence[int] = (1,),
        intra_view: int = 1,
        cross_view: int = 2,
        channel_dropout: str = "strong",
        features: str = "encoder",
        shared_target: bool = False,
        shared_kinds: Sequence[str] = ("decoder", "intra"),
        joint_forward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(fusion=fusion, **kwargs)
        check_switches(shared_target=shared_target, joint_forward=joint_forward)
        if lambda_query < 0:
            raise ValueError(f"lambda_query: expected a weight of at least 0, found {lambda_query}.")
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
        if not shared_kinds or len({*shared_kinds} & {*_KINDS}) < len(shared_kinds):
            raise ValueError(f"shared_kinds: expected different ones of {_KINDS}, found {shared_kinds!r}.")
        if not decoder_views or not {*decoder_views, intra_view, cross_view} <= {1, 2, 3}:
            raise ValueError(
                f"strong views are 1, 2 and 3; found decoder_views {list(decoder_views)}, "
                f"intra_view {intra_view}, cross_view {cross_view}."
            )
        self.lambda_query = lambda_query
        shared = tuple(shared_kinds) if shared_target else ()
        if lambda_query > 0:
            self.queries, self.fusion = True, fusion
        self.queries = self.fusion is not None and (self.queries or "cross" in shared)
        self.refines = self.fusion is not None and (self.refines or "intra" in shared)
        self.affinity_space = affinity_space
        self.gate = gate
        self.decoder_views = tuple(decoder_views) if self.lambda_decoder > 0 else ()
        self.intra_view = intra_view
        self.cross_view = cross_view
        self.channel_dropout = channel_dropout
        self.feature_stream = channel_dropout == "feature_stream" and self.lambda_decoder > 0
        self.features = features
        self.shared_target = shared_target
        self.shared_kinds = tuple(shared_kinds)
        self.joint_forward = joint_forward

    @property
    def requires_labeled(self) -> bool:  # type: ignore[override]
        """True: other readings pass labelled and unlabelled images together."""
        return True

    @property
    def former_settings(self) -> dict[str, Any]:
        """None: this class has every option."""
        return {}

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, weak, _ = self.weak_views(batch)
        encoded, weak_encoded = self._encode_both(image, weak)
        logits, stages = self._decode(encoded)
        losses = {"loss_supervised": self.supervised_loss(logits, label)}
        labeled = self._labeled_features(stages, label) if self.queries else None
        prototypes = None if labeled is None else labeled[2]
        with torch.no_grad():
            targets = self._targets([f.detach() for f in weak_encoded], prototypes)
        losses |= self._consistency(weak, weak_encoded, targets, prototypes)
        total = self._total(losses)
        if self.lambda_query > 0 and labeled is not None:
            losses["loss_query"] = self._query_loss(*labeled)
            total = total + self.lambda_query * losses["loss_query"]
        for name, target in targets.items():
            losses |= coverage(name, target, self.threshold)
        return {"loss": total, **losses}

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """See :meth:`scripts.methods.SemSim.pseudo_labels`."""
        encoded, weak_encoded = self._encode_both(views.image, views.unlabeled)
        prototypes = self._labeled_features(self._decode(encoded)[1], views.label)[2] if self.queries else None
        return self._targets(weak_encoded, prototypes)

    def _decode(self, encoded: list[Tensor], network: UNet | None = None) -> tuple[Tensor, list[Tensor]]:
        if self.features == "encoder":
            return super()._decode(encoded, network)
        network = network or self.network
        levels = network.decode_levels(encoded)
        logits: Tensor = network.head(levels[-1])
        return logits, [*reversed(levels), encoded[-1]]

    def _encode_both(self, image: Tensor, weak: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder features of the labelled and of the weak images; only the feature stream learns from the latter."""
        if self.joint_forward and self.teacher_decay is None:
            both = self.network.encode(torch.cat([image, weak]))
            return [f[: len(image)] for f in both], [f[len(image) :] for f in both]
        with torch.set_grad_enabled(self.feature_stream and torch.is_grad_enabled()):
            weak_encoded = self.target_network.encode(weak)
        return self.network.encode(image), weak_encoded

    def _encode_strong(self, view: MixedView) -> list[Tensor]:
        if self.channel_dropout != "strong":
            return self.network.encode(view.image)
        return super()._encode_strong(view)

    def _refine(self, logits: Tensor, features: Tensor) -> Tensor:
        return refine_by_affinity(resized(logits, features), features, self.affinity_temperature, self.affinity_space)

    def _targets(self, encoded: list[Tensor], prototypes: Prototypes | None) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the weak view, with the gate's confidence or one shared target."""
        logits = self._weak(encoded, prototypes)
        targets = {name: pseudo_label(prediction.softmax(dim=1)) for name, prediction in logits.items()}
        if "cross" in targets:
            small = pseudo_label(resized(logits["decoder"], logits["cross"]).softmax(dim=1))
            targets["cross"] = self._gated(targets["cross"], small)
        if self.shared_target and any(kind in logits for kind in self.shared_kinds):
            targets = {name: self._shared(logits, prediction) for name, prediction in logits.items()}
        return targets

    def _shared(self, logits: dict[str, Tensor], like: Tensor) -> PseudoLabel:
        """The one target for all three predictions, at the size of one of them."""
        size = like.shape[-2:]
        predictions = [
            resized(logits[kind], like).softmax(dim=1)
            if kind == "decoder"
            else F.interpolate(logits[kind].softmax(dim=1), size=size, mode="bilinear")
            for kind in self.shared_kinds
            if kind in logits
        ]
        return pseudo_label(torch.stack(predictions).mean(dim=0))

    def _gated(self, queried: PseudoLabel, decoded: PseudoLabel) -> PseudoLabel:
        """p_2^w's label with the confidence that the gate compares with the threshold."""
        if self.gate == "self":
            return queried
        if self.gate == "decoder":
            return PseudoLabel(queried.label, decoded.confidence)
        return PseudoLabel(queried.label, torch.where(queried.label == decoded.label, decoded.confidence, 0.0))

    def _consistency(
        self,
        weak: Tensor,
        weak_encoded: list[Tensor],
        targets: dict[str, PseudoLabel],
        prototypes: Prototypes | None,
    ) -> dict[str, Tensor]:
        """The weak-to-strong terms: each prediction of a strong view against the weak view's of the same kind."""
        intra = (self.intra_view,) if self.lambda_intra > 0 else ()
        cross = (self.cross_view,) if prototypes is not None and self.lambda_cross > 0 else ()
        losses: dict[str, Tensor] = {}
        decoder: list[Tensor] = []
        for number in sorted({*self.decoder_views, *intra, *cross}):
            view = self.strong(weak, self.draws)
            encoded = self._encode_strong(view)
            logits, stages = None, encoded
            if self.features == "decoder" or number in (*self.decoder_views, *intra):
                logits, stages = self._decode(encoded)
            features = self._fuse(stages) if number in (*intra, *cross) else None
            if number in self.decoder_views and logits is not None:
                decoder.append(self._dice_to(logits, view, targets["decoder"]))
            if number in intra and features is not None and logits is not None:
                losses["loss_intra"] = self._dice_to(self._refine(logits, features), view, targets["intra"])
            if number in cross and features is not None and prototypes is not None:
                losses["loss_cross"] = self._cross_loss(features, prototypes, view, targets["cross"])
        if self.feature_stream:
            perturbed = [F.dropout2d(f, self.dropout_rate, training=self.training) for f in weak_encoded]
            passed = targets["decoder"].confidence >= self.threshold
            decoder.append(self.dice(self.network.decode(perturbed), targets["decoder"].label, passed))
        if decoder:
            losses["loss_decoder"] = torch.stack(decoder).mean()
        return losses

    def _query_loss(self, features: Tensor, labels: Tensor, prototypes: Prototypes) -> Tensor:
        """Cross-entropy of p^cr on the labelled images, each queried against the others' prototypes."""
        similarity = query_similarity(features, prototypes)
        itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
        if len(features) == 1:
            return similarity.sum() * 0.0
        logits = cross_logits(similarity, prototypes.present, self.query_temperature, exclude=itself)
        return F.cross_entropy(logits, labels)
