"""Checkpoints of earlier versions: a file of version 0.2.0, and objectives with other options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.handlers.checkpoints import RunCheckpoint
from scripts.handlers.weights import load_network_weights
from tests.methods.common import build, trainer

OLD = Path(__file__).with_name("checkpoint_0.2.0.pt")
"""Written by version 0.2.0, commit 9619d13: ``build("semsim_minus")`` after one epoch of common.py's ``trainer``."""

MOVED: dict[str, Any] = {"gate": "self", "affinity_space": "logit", "decoder_views": (1,), "shared_target": False}


def written(folder: Path, **options: Any) -> Path:
    """A checkpoint of SemSim after one epoch, with all options of an earlier version of SemSim."""
    objective = build("semsim_minus")
    trainer(objective, 1, [RunCheckpoint(str(folder), objective.network)]).run()
    content = torch.load(folder / RunCheckpoint.name, weights_only=True)
    content["state"] |= {**MOVED, **options}
    torch.save(content, folder / RunCheckpoint.name)
    return folder / RunCheckpoint.name


def test_a_checkpoint_with_the_options_of_the_method_is_resumed(tmp_path: Path) -> None:
    written(tmp_path)
    objective = build("semsim_minus")
    engine = trainer(objective, 2, [RunCheckpoint(str(tmp_path), objective.network, resume=True)])
    engine.run()
    assert engine.state.epoch == 2


@pytest.mark.parametrize(("name", "value"), [("gate", "agree"), ("decoder_views", (2,)), ("shared_target", True)])
def test_a_checkpoint_of_a_variant_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """SemSim no longer has the option: a resumed run would train another objective."""
    written(tmp_path, **{name: value})
    objective = build("semsim_minus")
    with pytest.raises(ValueError, match=rf"expected a run with {name} ") as info:
        trainer(objective, 2, [RunCheckpoint(str(tmp_path), objective.network, resume=True)]).run()
    assert "\n" not in str(info.value)


def test_a_checkpoint_of_version_0_2_0_is_resumed(tmp_path: Path) -> None:
    content = torch.load(OLD, weights_only=True)
    objective = build("semsim_minus", seed=1)
    engine = trainer(objective, 2)
    RunCheckpoint(str(tmp_path), objective.network).restore(engine, OLD)
    restored, state = objective.state_dict(), content["method"]
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert tensors.keys() == {name for name, value in restored.items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(restored[name], value) for name, value in tensors.items())
    momenta = [entry["momentum_buffer"] for entry in content["optimizer"]["state"].values()]
    loaded = [entry["momentum_buffer"] for entry in engine.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(old, new) for old, new in zip(momenta, loaded, strict=True))

    resumed = build("semsim_minus", seed=1)
    engine = trainer(resumed, 2, [RunCheckpoint(str(tmp_path), resumed.network, resume=str(OLD))])
    engine.run()
    assert (engine.state.epoch, engine.state.iteration) == (2, 4)


def test_weights_of_version_0_2_0_load(tmp_path: Path) -> None:
    state = torch.load(OLD, weights_only=True)["method"]
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    torch.save(weights, tmp_path / "model.pt")
    network = build("semsim_minus", seed=1).network
    load_network_weights(network, tmp_path / "model.pt")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_checkpoint_of_version_0_2_0_with_another_option_is_refused(tmp_path: Path) -> None:
    objective = build("semsim_minus", regions=2)
    with pytest.raises(ValueError, match=r"checkpoint_0\.2\.0\.pt: expected a run with regions 2, found 4\.$"):
        trainer(objective, 2, [RunCheckpoint(str(tmp_path), objective.network, resume=str(OLD))]).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_sha256": "b" * 64}, "splits or datalist of SHA-256 b{64}, found a{64}"),
        ({"fold": 1}, "fold 1, found 0"),
        ({"pixel_spacing": 1.5}, "pixel_spacing 1.5, found None"),
        ({"percentiles": [1, 99]}, r"percentiles \[1, 99\], found \[0, 100\]"),
    ],
)
def test_a_checkpoint_of_other_cases_or_preprocessing_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The numbers of slices may be equal; the former validation cases would be trained on."""
    inference = {"pixel_spacing": None, "percentiles": [0, 100], "mirroring": False}

    def resume(epochs: int, **changed: Any) -> None:
        objective = build("semsim_minus")
        data = {"data": "acdc", "split": "splits.json", "split_sha256": "a" * 64}
        data |= {name: value for name, value in changed.items() if name not in inference}
        options = {**inference, **{name: value for name, value in changed.items() if name in inference}}
        handler = RunCheckpoint(str(tmp_path), objective.network, resume=True, data=data, inference=options)
        trainer(objective, epochs, [handler]).run()

    resume(1)
    with pytest.raises(ValueError, match=f"expected a run with {message}\\.$") as info:
        resume(2, **change)
    assert "\n" not in str(info.value)
    resume(2, mirroring=True)  # of no account in the training

    # a checkpoint of an earlier version has none of these settings
    content = torch.load(tmp_path / RunCheckpoint.name, weights_only=True)
    for name in {name for name in content["state"] if name.startswith("splits")} | {"fold", *inference}:
        content["state"].pop(name, None)
    torch.save(content, tmp_path / RunCheckpoint.name)
    resume(3, **change)
