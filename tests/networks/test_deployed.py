"""The deployed network as a parameter: from the record that a training leaves to all that serves its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundle.share.pack import main as pack
from bundle.share.verify import verify
from scripts.handlers.checkpoints import RunCheckpoint, plain_options
from scripts.handlers.weights import load_network_weights
from scripts.networks import EfficientUNet, UNet, deployed_network
from scripts.utils.provenance import read_record, write_record
from tests.methods.common import THIN, build, deployed, make_batch, needs_sam, trainer
from tests.workflows import workflow

OTHERS = ["medfct", pytest.param("cpc_sam", marks=needs_sam)]
CLASSES = {"medfct": "FrequencyHybrid", "cpc_sam": "SAM"}


def weights_of(method: str, folder: Path, built: nn.Module | None = None, /, **record: Any) -> Path:
    """Weights of a thin network with a record as a training leaves it."""
    network, path = built or deployed(method), folder / "model.pt"
    torch.save(network.state_dict(), path)
    known = {"data": "acdc", "split": "splits.json", "seed": 0, "iteration": 20, "labeled_cases": 2, "image_size": 48}
    known |= {"method": type(build(method)).__name__, "network": type(network).__name__, "synthetic": True}
    settings = {f"network {name}": value for name, value in plain_options(network).items()}
    write_record(path, {**known, "settings": settings, **record})
    return path


@pytest.mark.parametrize("method", ["fixmatch", *OTHERS])
def test_a_training_leaves_what_the_network_is_built_from(method: str, tmp_path: Path) -> None:
    objective = build(method)
    trainer(objective, epochs=1, handlers=[RunCheckpoint(str(tmp_path), objective.network)]).run()
    weights = tmp_path / "model.pt"
    record = read_record(weights)
    assert record is not None
    assert record["network"] == CLASSES.get(method, "UNet")
    network = deployed_network(weights, 1, 4)
    assert type(network) is type(objective.network)
    load_network_weights(network, weights)
    image = make_batch()["image"]
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), objective.network.eval()(image))


def test_weights_without_a_record_are_a_unets(tmp_path: Path) -> None:
    torch.save(UNet(3, 2).state_dict(), tmp_path / "model.pt")
    for checkpoint in (tmp_path / "model.pt", tmp_path / "none.pt"):
        network = deployed_network(checkpoint, 3, 2, dropout=0.25)
        assert isinstance(network, UNet)
        assert (network.in_channels, network.num_classes, network.dropout) == (3, 2, (0.25,) * 5)


def test_dropout_overrides_that_of_the_training(tmp_path: Path) -> None:
    weights = weights_of("medfct", tmp_path)
    assert deployed_network(weights, 1, 4).cnn.channels == THIN
    assert deployed_network(weights, 1, 4, dropout=0.25).cnn.dropout == (0.25,) * 5


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"network": "os.system"}, "EfficientUNet, FrequencyHybrid, SAM or UNet"),
        ({"settings": {"network channels": [10**9]}}, "1024"),
    ],
)
def test_a_record_cannot_name_anything_else(entry: dict[str, Any], found: str, tmp_path: Path) -> None:
    weights = weights_of("medfct", tmp_path, **entry)
    with pytest.raises(ValueError, match=found):
        deployed_network(weights, 1, 4)


@pytest.mark.parametrize("method", OTHERS)
def test_evaluation_and_inference_serve_it(method: str, phantom: Path, tmp_path: Path) -> None:
    weights = weights_of(method, tmp_path)
    shared = {"checkpoint": str(weights), "dataset_dir": str(phantom), "image_size": 48, "amp": False}
    splits = {"splits": str(phantom / "splits.json"), "cache_dir": str(tmp_path / "cache")}
    evaluation = workflow("infer", "train.json", "evaluate.json", output_dir=str(tmp_path / "eval"), **shared, **splits)
    inference = workflow("infer", "inference.json", output_dir=str(tmp_path / "seg"), **shared)
    for flow, result in ((evaluation, "eval/summary.csv"), (inference, "seg/**/*_seg.nii.gz")):
        flow.run()
        assert type(flow.network_def).__name__ == CLASSES[method]
        assert list(tmp_path.glob(result))


@pytest.mark.parametrize("method", OTHERS)
def test_a_packed_bundle_trains_evaluates_infers_and_exports_it(method: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["network_data_format"]}))
    weights = weights_of(method, tmp_path)
    pack("acdc", str(weights), str(tmp_path / "packed"))
    folder = tmp_path / "packed" / "semsim_acdc_segmentation"
    train = json.loads((folder / "configs" / "train.json").read_text())
    assert train["network_def"]["_target_"] == f"scripts.networks.{CLASSES[method]}"
    assert train["method"]["_target_"].endswith(type(build(method)).__name__)
    assert CLASSES[method] in json.loads((folder / "configs" / "metadata.json").read_text())["description"]
    assert "--use_trace True" in (folder / "README.md").read_text()
    results = verify(next((tmp_path / "packed").glob("*.zip")), schema, run=True)
    assert [result for result in results if result.fault] == []


def test_a_packed_bundle_on_an_imagenet_encoder(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["network_data_format"]}))
    weights = weights_of("supervised", tmp_path, EfficientUNet(dropout=0.1))
    pack("acdc", str(weights), str(tmp_path / "packed"))
    train = json.loads((tmp_path / "packed" / "semsim_acdc_segmentation" / "configs" / "train.json").read_text())
    assert train["network_def"]["_target_"] == "scripts.networks.EfficientUNet"
    assert "pretrained" not in train["network_def"]
    assert train["network_def"]["dropout"] == [0.1] * 6
    assert train["optimizer"]["_target_"] == "torch.optim.AdamW"
    results = verify(next((tmp_path / "packed").glob("*.zip")), schema, run=True)
    assert [result for result in results if result.fault] == []
