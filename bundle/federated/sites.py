"""A site of a federation, trained by MONAI's client, for NVFlare and for the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from bundle.share.card import read_evaluation
from bundle.workflows import CONFIGS, ROOT
from scripts.engine import SemiSupervisedTrainer
from scripts.federated import site_weight

__all__ = ["Site", "average", "mean_dice"]


class Site:
    """A site's training over all rounds.

    Args:
        name: name of the site in the log.
        files: config files after ``train.json``, relative to ``configs``; ``federated.json`` is added.
        local_epochs: epochs of a round.
        **options: values by config id: ``rounds``, ``dataset_dir``, ``output_dir``, ``labeled`` ...
    """

    def __init__(self, name: str, files: Sequence[str], local_epochs: int = 1, **options: Any) -> None:
        self.client = MonaiAlgo(
            bundle_root=str(ROOT),
            local_epochs=local_epochs,
            send_weight_diff=False,
            config_train_filename=[str(CONFIGS / file) for file in ("train.json", *files, "federated.json")],
            train_kwargs={"bundle_root": str(ROOT), **options},
            config_evaluate_filename=None,
        )
        self.client.initialize({ExtraItems.CLIENT_NAME: name})
        self.trainer = cast(SemiSupervisedTrainer, self.client.trainer)

    @property
    def network(self) -> dict[str, Tensor]:
        """Copies of the network's current weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.trainer.network.state_dict().items()}

    def train(self, received: Mapping[str, Any]) -> tuple[dict[str, Tensor], float]:
        """Train for one round.

        Args:
            received: the global network's weights, tensors or arrays by name.

        Returns:
            The network's weights after the round, and the site's weight in the average.
        """
        self.client.train(ExchangeObject(weights=dict(received)))
        return self.network, site_weight(self.trainer)


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of networks (FedAvg: McMahan et al., AISTATS 2017), batch norm's averages included.

    Args:
        states: state dicts of the sites' networks, with the same names and shapes.
        weights: weights of the sites, not negative and not all 0.
    """
    total = sum(weights)
    return {
        name: torch.stack([state[name].double() * (w / total) for state, w in zip(states, weights, strict=True)])
        .sum(0)
        .to(value.dtype)
        for name, value in states[0].items()
    }


def mean_dice(folder: str | Path) -> float:
    """Mean DSC over classes and volumes of an evaluation, from the folder that ``evaluate.json`` wrote."""
    return next(float(row["dsc_mean"]) for row in read_evaluation(folder).rows if row["class"] == "mean")
