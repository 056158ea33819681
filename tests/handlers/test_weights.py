from __future__ import annotations

import pytest
import torch

from scripts.handlers.weights import load_network_weights
from scripts.networks import UNet
from tests.workflows import random_network


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(random_network().state_dict(), path)
    return path


def test_weights_are_loaded(model):
    network = UNet()
    load_network_weights(network, model)
    expected = random_network().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: UNet(num_classes=2).state_dict(), r"it has 2 classes, the network 4 \(num_classes\)"),
        (lambda: UNet(in_channels=3).state_dict(), r"it takes 3 channels, the network 1 \(in_channels\)"),
        (
            lambda: {"method": UNet().state_dict(), "state": {"epoch": 3}},
            "contains method, state, expected a network's",
        ),
        (lambda: {"weight": torch.zeros(1)}, "belongs to another network"),
        (lambda: [1, 2], "contains list"),
        (UNet, "cannot be read as tensors"),
    ],
    ids=["classes", "channels", "resume", "strange", "list", "pickle"],
)
def test_unfit_checkpoint_is_named_and_changes_nothing(tmp_path, content, message):
    path = tmp_path / "some.pt"
    torch.save(content(), path)
    network = UNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"some\.pt.*{message}"):
        load_network_weights(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_missing_or_damaged_checkpoint(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint '.*gone\.pt'"):
        load_network_weights(UNet(), tmp_path / "gone.pt")
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pt: cannot be read"):
        load_network_weights(UNet(), tmp_path / "cut.pt")
