"""Loading of the network's weights: all of them or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn

from scripts.utils.provenance import check_grid
from scripts.utils.tensors import load_state

__all__ = ["NetworkLoader", "load_network_weights"]


def load_network_weights(network: nn.Module, path: str | Path) -> None:
    """Load a network's state_dict, all of it or nothing of it.

    Args:
        network: the network, on any device; unchanged if the weights do not fit.
        path: file with only the state_dict, like ``model.pt``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a state_dict, is damaged, has values that are not finite, or belongs to a
            network with other classes, channels or layers.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No checkpoint '{path}': train a network first or name a file with --checkpoint.")
    weights = load_state(path)
    expected = network.state_dict()
    strangers = sorted(expected.keys() ^ weights.keys())
    if strangers:
        raise ValueError(
            f"Checkpoint '{path}' belongs to another network: {len(strangers)} entries are in only one of the two, "
            f"the first '{strangers[0]}'."
        )
    wrong = [name for name in expected if expected[name].shape != weights[name].shape]
    if wrong:
        # The last layer has the classes, the first the channels; other differences are reported as shapes.
        found, wanted = (list(tensors[wrong[-1]].shape) for tensors in (weights, expected))
        what = f"'{wrong[-1]}' has shape {found}, expected {wanted}"
        if wrong == [next(iter(expected))] and len(found) == len(wanted) == 4:
            what = f"it takes {found[1]} channels, the network {wanted[1]} (in_channels)"
        if wrong[-1] == list(expected)[-1]:
            what = f"it has {found[0]} classes, the network {wanted[0]} (num_classes)"
        raise ValueError(f"Checkpoint '{path}' does not fit the network: {what}.")
    network.load_state_dict(weights)


class NetworkLoader(CheckpointLoader):
    """Handler that loads the network when the engine starts, see :func:`load_network_weights`.

    Args:
        load_path: file with the network's state_dict.
        network: the network.
        image_size: side of the slices in pixels; weights whose record has another are refused, see
            :func:`scripts.utils.provenance.check_grid`. None: not checked.
        options: options of the record, checked likewise.
    """

    def __init__(
        self,
        load_path: str,
        network: nn.Module,
        image_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(load_path=load_path, load_dict={"network": network})
        self.image_size = image_size
        self.options = options

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Args:
            engine: the engine that starts.
        """
        if self.image_size is not None:
            check_grid(self.load_path, self.image_size, self.options)
        load_network_weights(self.load_dict["network"], self.load_path)
        self.logger.info("Loaded the network from %s", self.load_path)
