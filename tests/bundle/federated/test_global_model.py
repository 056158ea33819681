"""The network of a federation's server becomes ``model.pt`` with a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bundle.federated.global_model import main as global_model
from scripts.handlers.weights import load_network_weights
from scripts.networks import EfficientUNet, UNet, deployed_network
from scripts.utils.provenance import read_record, trained_size, write_record
from scripts.utils.tensors import load_state


def site(folder: Path, name: str, **record: Any) -> str:
    """The record that a site's training leaves."""
    weights = folder / name / "model_last.pt"
    weights.parent.mkdir()
    torch.save(UNet().state_dict(), weights)
    known = {"data": "acdc", "split": f"{name}.json", "method": "FixMatch", "seed": 1, "iteration": 20}
    known |= {"labeled_cases": 0, "unlabeled_cases": 5, "image_size": 48, "slice_axis": "axial", "code": "version 1"}
    write_record(weights, known | record)
    return str(weights.with_suffix(".json"))


def served(network: UNet) -> dict[str, Any]:
    """What NVFlare's server writes: averages, of whole numbers too, and beside them what it knows of the job."""
    state: dict[str, Tensor] = {name: value.float() for name, value in network.state_dict().items()}
    return {"model": state, "train_conf": {"train": {"model": "UNet"}}}


@pytest.mark.parametrize("alone", [False, True])
def test_the_global_model_becomes_weights_with_a_record(tmp_path: Path, alone: bool) -> None:
    torch.manual_seed(3)
    network = UNet()
    content = served(network)
    torch.save(content["model"] if alone else content, tmp_path / "FL_global_model.pt")
    records = [
        site(tmp_path, "a", labeled_cases=3, unlabeled_cases=0, method="Supervised"),
        site(tmp_path, "b", validation_dice=0.5),
    ]
    target = tmp_path / "models" / "model.pt"
    global_model(str(tmp_path / "FL_global_model.pt"), records, str(target))
    found = UNet()
    load_network_weights(found, target)
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert {v.dtype for v in load_state(target).values()} == {v.dtype for v in expected.values()}
    record = read_record(target)
    assert record is not None
    assert (record["labeled_cases"], record["unlabeled_cases"], record["sites"]) == (3, 5, 2)
    assert (record["method"], record["split"]) == ("Supervised, FixMatch", None)
    assert "validation_dice" not in record, "it is that of one site's own weights"
    assert trained_size(target, 224) == 48


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (UNet, "cannot be read as tensors"),
        (lambda: {"model": {"weight": torch.zeros(2)}}, "contains weight, expected the network of the sites'"),
        (lambda: {"method": UNet().state_dict(), "state": {}}, "contains method, state, expected the network"),
        (
            lambda: {"model": {**UNet().state_dict(), "head.bias": torch.full((4,), torch.nan)}},
            "'head.bias' has values",
        ),
    ],
    ids=["pickle", "another network", "checkpoint", "not finite"],
)
def test_what_is_no_global_model_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content(), tmp_path / "some.pt")
    with pytest.raises(ValueError, match=rf"some\.pt.*{message}") as info:
        global_model(str(tmp_path / "some.pt"), [site(tmp_path, "a")], str(tmp_path / "model.pt"))
    assert "\n" not in str(info.value)
    assert not (tmp_path / "model.pt").exists()


def test_the_sites_records_name_the_network(tmp_path: Path) -> None:
    """Another one than the U-Net, for colours and two classes."""
    network = EfficientUNet(3, 2)
    torch.save(served(network), tmp_path / "global.pt")
    options = {"network in_channels": 3, "network num_classes": 2}
    records = [site(tmp_path, name, network="EfficientUNet", settings=options) for name in ("a", "b")]
    global_model(str(tmp_path / "global.pt"), records, str(tmp_path / "model.pt"))
    found = deployed_network(tmp_path / "model.pt", 3, 2)
    load_network_weights(found, tmp_path / "model.pt")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())

    with pytest.raises(ValueError, match=r"contains encoder.*expected the network of the sites' records, UNet"):
        global_model(str(tmp_path / "global.pt"), site(tmp_path, "c"), str(tmp_path / "other.pt"))
    grey = site(tmp_path, "d", network="EfficientUNet", settings={**options, "network in_channels": 1})
    with pytest.raises(ValueError, match=r"d/model_last\.json: the network's options: .*cannot be averaged"):
        global_model(str(tmp_path / "global.pt"), [*records, grey], str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"c/model_last\.json: network: expected 'EfficientUNet'.*found None"):
        global_model(
            str(tmp_path / "global.pt"), [*records, str(tmp_path / "c/model_last.json")], str(tmp_path / "other.pt")
        )


def test_sites_that_cut_or_scale_otherwise_are_no_federation(tmp_path: Path) -> None:
    torch.save(served(UNet()), tmp_path / "global.pt")
    records = [site(tmp_path, "a"), site(tmp_path, "b", slice_axis="sagittal")]
    with pytest.raises(ValueError, match=r"b/model_last\.json: slice_axis: expected 'axial'.*found 'sagittal'"):
        global_model(str(tmp_path / "global.pt"), records, str(tmp_path / "model.pt"))
    with pytest.raises(FileNotFoundError, match="none\\.json"):
        global_model(str(tmp_path / "global.pt"), str(tmp_path / "none.json"), str(tmp_path / "model.pt"))


def test_who_takes_the_global_model_for_weights_is_told_the_command(tmp_path: Path) -> None:
    torch.save(served(UNet()), tmp_path / "FL_global_model.pt")
    with pytest.raises(ValueError, match=r"contains model, train_conf.*python -m bundle global_model"):
        load_network_weights(UNet(), tmp_path / "FL_global_model.pt")


def test_a_records_split_is_checked(tmp_path: Path) -> None:
    torch.save(served(UNet()), tmp_path / "global.pt")
    record = Path(site(tmp_path, "a"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "data": "$print()"}))
    with pytest.raises(ValueError, match=r"model_last\.json: data"):
        global_model(str(tmp_path / "global.pt"), str(record), str(tmp_path / "model.pt"))
