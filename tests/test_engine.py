from __future__ import annotations

import itertools
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from bundle.workflows import CONFIGS, ROOT, method_names
from scripts.engine import SemiSupervisedTrainer, autocast_dtype, flag, poly_schedule
from scripts.handlers.checkpoints import RunCheckpoint, guard_output
from scripts.methods import FixMatch, Objective, Supervised
from scripts.networks import UNet
from scripts.utils.errors import root_cause
from scripts.views import WeakView
from tests.methods.common import THIN_SAM, needs_sam
from tests.workflows import workflow as base_workflow


class Batches:
    """A loader of random batches, a function of the iteration like the real one."""

    def __init__(self, unlabeled: bool = True, bad_at: int = -1) -> None:
        self.iteration = 0
        self.unlabeled = unlabeled
        self.bad_at = bad_at

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            g = torch.Generator().manual_seed(self.iteration)
            batch = {
                "image": torch.rand(2, 1, 32, 32, generator=g),
                "label": torch.randint(0, 3, (2, 1, 32, 32), generator=g, dtype=torch.uint8),
            }
            if self.iteration == self.bad_at:
                batch["image"][0, 0, 0, 0] = math.nan
            if self.unlabeled:
                batch["unlabeled"] = torch.rand(2, 1, 32, 32, generator=g)
            self.iteration += 1
            yield batch


def trainer(method: Objective, epochs: int = 2, loader: Any = None, handlers: Any = None) -> SemiSupervisedTrainer:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    return SemiSupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader or Batches(),
        method=method,
        optimizer=optimizer,
        lr_scheduler=poly_schedule(optimizer, 6),
        train_handlers=handlers,
    )


def network(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(num_classes=3)


def test_every_iteration_is_seeded_by_itself() -> None:
    """Iteration i sees the same random numbers, independent of earlier draws."""
    results = []
    for waste in (0, 7):
        method = FixMatch(network())
        torch.rand(waste)
        engine = trainer(method, epochs=1)
        engine.run()
        results.append(torch.cat([p.flatten() for p in method.parameters()]))
    assert torch.equal(*results)


def test_monai_handlers_see_the_events_of_an_iteration() -> None:
    """Gradients exist after the backward pass, and the weights have changed when the model is completed."""
    net = network()
    engine = trainer(FixMatch(net), epochs=1)
    seen: list[tuple[str, bool, bool]] = []
    begin = net.head.weight.detach().clone()

    def note(name: str) -> None:
        moved = not torch.equal(net.head.weight, begin)
        seen.append((name, net.head.weight.grad is not None, moved))

    for event in IterationEvents:
        engine.add_event_handler(event, partial(lambda name, _: note(name), event.name))
    engine.run()
    assert seen[:4] == [
        ("FORWARD_COMPLETED", False, False),
        ("LOSS_COMPLETED", False, False),
        ("BACKWARD_COMPLETED", True, False),
        ("MODEL_COMPLETED", True, True),
    ]


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    def run(folder: str, epochs: int, resume: bool) -> dict[str, Tensor]:
        net = network(1 if resume else 0)  # built with other weights: all must come from the checkpoint
        engine = trainer(FixMatch(net), epochs, handlers=[RunCheckpoint(str(tmp_path / folder), net, resume)])
        engine.run()
        return net.state_dict()

    whole = run("a", 2, False)
    run("b", 1, False)
    resumed = run("b", 2, True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    last = torch.load(tmp_path / "b" / "model_last.pt", weights_only=True)
    assert all(torch.equal(last[k], resumed[k]) for k in last)
    assert not list((tmp_path / "b").glob("tmp*"))


def test_the_objective_knows_where_the_training_is_also_when_resumed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Supervised):
        def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            seen.append((self.iteration, self.total_iterations))
            return super().forward(batch)

    for resume in (False, True):
        net = network()
        trainer(Watching(net), 1 + resume, handlers=[RunCheckpoint(str(tmp_path), net, resume)]).run()
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 6), (4, 6), (5, 6)]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    net = network()
    trainer(FixMatch(net), 1, handlers=[RunCheckpoint(str(tmp_path), net)]).run()
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="expected a run with objective Supervised, found FixMatch"):
        trainer(Supervised(net), 2, handlers=[RunCheckpoint(str(tmp_path), net, True)]).run()
    other = UNet(num_classes=2)
    with pytest.raises(ValueError, match="expected a run with network num_classes 2, found 3"):
        trainer(FixMatch(other), 2, handlers=[RunCheckpoint(str(tmp_path), other, True)]).run()
    path = str(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected a checkpoint with"):
        trainer(FixMatch(net), 2, handlers=[RunCheckpoint(str(tmp_path), net, path)]).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved
    (tmp_path / "checkpoint.pt").write_bytes(saved[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cannot be read") as info:
        trainer(FixMatch(net), 2, handlers=[RunCheckpoint(str(tmp_path), net, True)]).run()
    assert root_cause(info.value) is info.value


def test_a_run_without_gradient_scaling_resumes_with_it(tmp_path: Path) -> None:
    """Started in bfloat16 or float32, resumed on a card that needs float16."""
    for resume in (False, True):
        net = network()
        engine = trainer(FixMatch(net), 1 + resume, handlers=[RunCheckpoint(str(tmp_path), net, resume)])
        engine.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=resume)
        engine.run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["grad_scaler"]["scale"] == 8
    net = network()
    again = trainer(FixMatch(net), 3, handlers=[RunCheckpoint(str(tmp_path), net, True)])
    again.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    again.run()
    assert again.grad_scaler.get_scale() == 8, "the scale of the run before, where it has one"


def test_records_name_the_code_and_the_settings_that_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit made during a training does not change the recorded code."""
    commits = map(str, itertools.count(1))
    monkeypatch.setattr("scripts.handlers.checkpoints.code_version", lambda: next(commits))
    monkeypatch.setattr("scripts.utils.provenance.code_version", lambda: next(commits))
    net = network()
    trainer(FixMatch(net, WeakView("flip"), threshold=0.75), 2, handlers=[RunCheckpoint(str(tmp_path), net)]).run()
    for name in ("model", "model_last"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["code"] == "1"
        assert record["settings"].items() >= {"threshold": 0.75, "weak_view mode": "flip"}.items()
        assert record["learning_rate"] == 0.01


def test_records_name_all_code_and_precision_that_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a resumed run; restarting a complete run trains nothing."""
    net = network()
    both = ("first, then second", "float32, then bfloat16")
    for version, dtype, epochs, expected in (
        ("first", None, 1, ("first", "float32")),
        ("first", None, 2, ("first", "float32")),
        ("second", torch.bfloat16, 3, both),
        ("third", None, 3, both),
    ):
        monkeypatch.setattr("scripts.handlers.checkpoints.code_version", lambda version=version: version)
        engine = trainer(FixMatch(net), epochs, handlers=[RunCheckpoint(str(tmp_path), net, True)])
        engine.dtype = dtype
        engine.run()
        record = json.loads((tmp_path / "model_last.json").read_text())
        assert (record["code"], record["precision"]) == expected


def test_the_last_weights_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model_last.pt marks a complete run."""
    written: list[str] = []
    monkeypatch.setattr("scripts.handlers.checkpoints.write_record", lambda path, _: written.append(path.name))
    net = network()
    trainer(FixMatch(net), 1, handlers=[RunCheckpoint(str(tmp_path), net)]).run()
    assert written == ["model.pt", "model.pt", "model_last.pt"]  # after the epoch and at the end


def test_another_length_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    for resume, epochs in ((False, 1), (True, 1), (True, 2)):
        assert "learning rate and ramps" not in caplog.text
        engine = trainer(FixMatch(net), epochs, handlers=[RunCheckpoint(str(tmp_path), net, resume)])
        engine.logger.addHandler(caplog.handler)
        engine.run()
    assert "started for 1 epochs: learning rate and ramps now follow 2" in caplog.text


def test_output_guard(tmp_path: Path) -> None:
    guard_output(str(tmp_path), False)
    (tmp_path / "checkpoint.pt").touch()
    guard_output(str(tmp_path), True)
    guard_output(str(tmp_path), str(tmp_path / "checkpoint.pt"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "checkpoint.pt").touch()
    with pytest.raises(FileExistsError, match="--resume True"):
        guard_output(str(tmp_path), str(tmp_path / "elsewhere" / "checkpoint.pt"))
    with pytest.raises(FileExistsError, match="--resume True"):
        guard_output(str(tmp_path), False)


def test_weights_of_another_origin_are_not_replaced(tmp_path: Path) -> None:
    run, served = tmp_path / "run", tmp_path / "models"
    for folder in (run, served):
        folder.mkdir()
        (folder / "model.pt").write_text(folder.name)
    (run / "checkpoint.pt").touch()
    for resume in (False, str(run / "checkpoint.pt")):
        with pytest.raises(FileExistsError, match="training would replace these weights"):
            guard_output(str(served), resume)
    # killed before the first checkpoint, after copying the best network of the other run
    (served / "model.pt").write_text("run")
    guard_output(str(served), str(run / "checkpoint.pt"))
    # killed at the end of the first epoch, between weights and checkpoint
    guard_output(str(served), True)


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("False", False), (True, True), (False, False), ("run/x.pt", "run/x.pt")]
)
def test_switches_from_the_command_line(value: bool | str, expected: bool | str) -> None:
    assert flag(value) == expected
    assert type(flag(value)) is type(expected)


@pytest.mark.parametrize("word", ["off", "no", 1])
def test_amp_is_true_or_false(word: Any) -> None:
    """Another word would silently be true."""
    with pytest.raises(ValueError, match=f"amp: expected True or False, spelled like this, found {word!r}"):
        autocast_dtype("cpu", word)


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path: Path) -> None:
    net = network()
    engine = trainer(Supervised(net), 2, Batches(bad_at=4), [RunCheckpoint(str(tmp_path), net)])
    with pytest.raises(FloatingPointError, match="not finite at iteration 5"):
        engine.run()
    assert all(torch.isfinite(p).all() for p in net.parameters())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert state["epoch"] == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A finite loss may have a gradient that is not."""
    net = network()
    engine = trainer(Supervised(net), 2, handlers=[RunCheckpoint(str(tmp_path), net)])

    def spoil() -> None:
        next(iter(net.parameters())).data[0] = math.nan

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), spoil)
    with pytest.raises(FloatingPointError, match=r"After epoch 2 .*weight is not finite"):
        engine.run()
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["state"]["epoch"] == 1
    assert all(value.isfinite().all() for value in content["method"].values())
    assert not (tmp_path / "model_last.pt").exists()


def test_poly_schedule_follows_its_closed_form() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = poly_schedule(optimizer, 10)
    for i in range(12):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * max(0, 1 - i / 10) ** 0.9)
        optimizer.step()
        schedule.step()


def test_autocast_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert autocast_dtype(cpu, False) is None
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert autocast_dtype(cpu, True) is (torch.bfloat16 if native else None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert autocast_dtype(cuda, True) is (torch.bfloat16 if native else torch.float16)


# --- through the configuration ---------------------------------------------------------------------------------------


VARIANTS = {"method#_target_": "scripts.methods.SemSimVariants"}


def arguments(phantom: Path, tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "bundle_root": str(ROOT),
        "dataset_dir": str(phantom),
        "splits": str(phantom / "splits.json"),
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "run"),
        "image_size": 32,
        "batch_size": 2,
        "device": "$torch.device('cpu')",
        "train#trainer#max_epochs": 2,
        "train#trainer#epoch_length": 2,
        **overrides,
    }


def workflow(*overlays: str, **kwargs: Any) -> ConfigWorkflow:
    files = [str(ROOT / "configs" / name) for name in ("train.json", *overlays)]
    return ConfigWorkflow(
        config_file=files,
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=str(ROOT / "configs" / "logging.conf"),
        workflow_type="train",
        **kwargs,
    )


@pytest.mark.parametrize("method", [pytest.param(n, marks=needs_sam if n == "cpc_sam" else ()) for n in method_names()])
def test_every_method_trains_by_its_overlay(method: str, phantom: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"image_size": 64, "train#trainer#max_epochs": 1}
    if method == "cpc_sam":
        short |= {f"network_def#{key}": value for key, value in THIN_SAM.items()}
    flow = workflow(f"methods/{method}.json", **arguments(phantom, tmp_path, **short))
    flow.initialize()
    flow.run()
    engine = flow.parser.get_parsed_content("train#trainer")
    assert engine.state.iteration == 2
    assert math.isfinite(engine.state.output[0]["loss"])
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert weights.keys() == flow.parser.get_parsed_content("network").state_dict().keys()


def test_properties_from_another_directory(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = workflow(**arguments(phantom, tmp_path))
    flow.initialize()
    assert not flow.check_properties()


@pytest.mark.parametrize("files", [["train.json"], ["train.json", "evaluate.json"], ["inference.json"]])
def test_a_start_in_another_folder_is_told_of(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"error: no bundle in .*: start in its folder, or name that by --bundle_root"):
        base_workflow("train", *files, bundle_root=str(tmp_path))


WRONG: dict[str, Any] = {
    **dict.fromkeys(("dataset_dir", "output_dir"), "a#b"),
    "image_size": "abc",
    "in_channels": 0,
    "num_classes": 1,
    "device": "x",
}
WRONG_IN = {
    "train.json": {
        **WRONG,
        "splits": "a#b",
        "cache_dir": "a#b",
        "class_names": {"one": "bone"},
        "fold": -1,
        "batch_size": 0,
        "seed": -1,
        "learning_rate": "fast",
        "val_interval": 0,
        "train#trainer#max_epochs": 0,
        **dict.fromkeys(("anti_aliasing", "allow_missing"), "false"),
    },
    "train.json,evaluate.json": {
        **WRONG,
        "splits": "a#b",
        "checkpoint": "a#b",
        "class_names": {"one": "bone"},
        "part": "",
        **dict.fromkeys(("anti_aliasing", "calibrate"), "false"),
    },
    "inference.json": {
        **WRONG,
        "checkpoint": "a#b",
        "batch_size": 0,
        "num_workers": -1,
        **dict.fromkeys(("anti_aliasing", "save_probabilities", "quality", "overwrite"), "false"),
    },
}


@pytest.mark.parametrize(("files", "name"), [(files, name) for files, wrong in WRONG_IN.items() for name in wrong])
def test_each_workflow_refuses_wrong_values_before_it_does_anything(tmp_path: Path, files: str, name: str) -> None:
    """MONAI's configs read ``#`` in a path as ``::``, and took a folder of that name."""
    given = {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"), name: WRONG_IN[files][name]}
    with pytest.raises(Exception) as info:  # noqa: PT011 - MONAI wraps it; what started the chain is looked at
        base_workflow("infer" if files != "train.json" else "train", *files.split(","), **given)
    assert str(root_cause(info.value)).startswith(f"{name.rpartition('#')[2]}: expected ")
    assert not list(tmp_path.iterdir())


def test_an_empty_validation_list_still_ends_in_weights(phantom: Path, tmp_path: Path) -> None:
    flow = workflow("methods/supervised.json", **arguments(phantom, tmp_path, **{"validate#dataset#data": []}))
    flow.initialize()
    flow.run()
    best = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    last = torch.load(tmp_path / "run" / "model_last.pt", weights_only=True)
    assert all(torch.equal(best[k], last[k]) for k in last)


def test_best_weights_survive_a_resume(phantom: Path, tmp_path: Path) -> None:
    """A resumed run compares with the best metric of the run before it."""
    flow = workflow("methods/supervised.json", **arguments(phantom, tmp_path))
    flow.initialize()
    flow.run()
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["state"] |= {"best_metric": 2.0, "best_metric_epoch": 1}
    torch.save(content, path)
    best = (tmp_path / "run" / "model.pt").read_bytes()
    resumed = {"resume": True, "train#trainer#max_epochs": 3}
    flow = workflow("methods/supervised.json", **arguments(phantom, tmp_path, **resumed))
    flow.initialize()
    flow.run()
    assert flow.parser.get_parsed_content("train#trainer").state.epoch == 3
    assert (tmp_path / "run" / "model.pt").read_bytes() == best


@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_resumes_elsewhere_has_the_best_weights_too(
    phantom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, there: bool
) -> None:
    run(arguments(phantom, tmp_path), "methods/supervised.json")
    old, new = tmp_path / "run", tmp_path / "new"
    content = torch.load(old / "checkpoint.pt", weights_only=True)
    content["state"] |= {"best_metric": 2.0, "best_metric_epoch": 1}
    torch.save(content, old / "checkpoint.pt")
    best, record = (old / "model.pt").read_bytes(), (old / "model.json").read_bytes()
    if not there:
        (old / "model.pt").unlink()
    resumed = {"resume": str(old / "checkpoint.pt"), "output_dir": str(new), "train#trainer#max_epochs": 3}
    flow = workflow("methods/supervised.json", **arguments(phantom, tmp_path, **resumed))
    flow.initialize()
    flow.parser.get_parsed_content("train#trainer").logger.addHandler(caplog.handler)
    flow.run()
    assert ((new / "model.pt").read_bytes() == best) == there
    assert ((new / "model.json").read_bytes() == record) == there
    assert (f"{old / 'model.pt'}: the best network so far is missing" in caplog.text) != there
    state = torch.load(new / "checkpoint.pt", weights_only=True)["state"]
    assert state["best_metric_epoch"] == (1 if there else 3)


def test_losses_and_coverage_reach_tensorboard_and_the_loss_mlflow(phantom: Path, tmp_path: Path) -> None:
    flow = workflow("methods/semsim_minus.json", tracking="mlflow", **arguments(phantom, tmp_path))
    flow.initialize()
    flow.run()
    flow.finalize()
    tags: dict[str, int] = {}
    for file in (tmp_path / "run").glob("events*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        tags |= {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]}
    assert tags["val_mean_dice"] == 2
    for tag in ("loss", "loss_supervised", "loss_decoder", "loss_intra", "loss_cross"):
        assert tags[tag] == 4
    for kind in ("decoder", "intra", "cross"):
        assert tags[f"coverage_{kind}"] == tags[f"coverage_{kind}_foreground"] == 4

    with sqlite3.connect(tmp_path / "run" / "mlruns.db") as database:
        rows = database.execute("select key, count(*) from metrics group by key").fetchall()
    assert dict(rows)["train_loss"] == 4


def test_a_resumed_run_must_follow_the_same_protocol(phantom: Path, tmp_path: Path) -> None:
    run(arguments(phantom, tmp_path), "methods/fixmatch.json")
    for overrides, message in (
        ({"labeled": 2}, "expected a run with labelled slices"),
        ({"seed": 1}, "expected a run with seed 1, found 0"),
        ({"image_size": 48}, "expected a run with image size 48, found 32"),
        ({"num_classes": 5}, "expected a run with network num_classes 5, found 4"),
        ({"network_def#dropout": 0.5}, "expected a run with network dropout (0.5, 0.5, 0.5, 0.5, 0.5), found (0.05"),
        ({"optimizer#momentum": 0.5}, "expected a run with optimizer momentum 0.5, found 0.9"),
        ({"learning_rate": 0.5}, "expected a run with learning rate 0.5, found 0.01"),
        ({"method#threshold": 0.5}, "expected a run with threshold 0.5, found 0.95"),
        ({"weak_view#mode": "flip"}, "expected a run with weak_view mode flip, found rotate_flip"),
        ({"strong_view#blur": 0.25}, "expected a run with strong_view blur 0.25, found 0.5"),
    ):
        again = arguments(phantom, tmp_path, resume=True, **{"train#trainer#max_epochs": 3, **overrides})
        with pytest.raises(Exception) as info:  # noqa: PT011
            run(again, "methods/fixmatch.json")
        cause = root_cause(info.value)
        assert isinstance(cause, ValueError)
        assert message in str(cause)


def command(options: Mapping[str, Any], *overlays: str) -> list[str]:
    files = [str(ROOT / "configs" / name) for name in ("train.json", *overlays)]
    line = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    return line + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def run(options: Mapping[str, Any], *overlays: str) -> None:
    flow = workflow(*overlays, **options)
    flow.initialize()
    flow.run()


@pytest.mark.parametrize(
    ("overlay", "overrides", "message"),
    [
        ("fixmatch", {"labeled": 0}, "training slices has a label: training needs labelled cases"),
        ("fixmatch", {"labeled": 99}, "labeled=99"),
        ("fixmatch", {"labeled": 6}, "needs unlabelled images"),
        ("semsim", {**VARIANTS, "method#gate": "both"}, "gate: expected one of"),
        ("semsim", {**VARIANTS, "method#shared_target": "false"}, "shared_target: expected True or False"),
        ("fixmatch", {"anti_aliasing": "false"}, "anti_aliasing: expected True or False"),
        ("fixmatch", {"num_classes": 3}, "label values must be 0..2"),
        ("fixmatch", {"resume": "nowhere.pt"}, "nowhere.pt"),
        ("fixmatch", {"dataset_dir": "nowhere"}, "make demo"),
    ],
)
def test_mistakes_are_named_before_training(
    phantom: Path, tmp_path: Path, overlay: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception) as info:  # noqa: PT011 - MONAI wraps it; what started the chain is looked at
        run(arguments(phantom, tmp_path, **overrides), f"methods/{overlay}.json")
    assert message in str(root_cause(info.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset_dir": "nowhere"}, "dataset_dir 'nowhere' does not exist."),
        (
            {"method#_target_": "scripts.methods.SemSym"},
            "Cannot locate class or function path: 'scripts.methods.SemSym'",
        ),
    ],
)
def test_the_command_line_ends_in_the_plain_message(
    phantom: Path, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    line = command(arguments(phantom, tmp_path, **given))
    process = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith(f"error: {message}")


# --- more than one process -------------------------------------------------------------------------------------------


class PlainLoss(nn.Module):
    """L_s with per-image Dice on a network without dropout and with fixed batch statistics."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.objective = Supervised(net, weak=WeakView("none"), per_image_dice=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.objective(batch)["loss"]


def plain_batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {
        "image": torch.rand(4, 1, 32, 32, generator=g),
        "label": torch.randint(0, 3, (4, 1, 32, 32), generator=g, dtype=torch.uint8),
    }


def plain_network() -> UNet:
    torch.manual_seed(0)
    return UNet(num_classes=3, dropout=0.0).eval()


def _gradients_of_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = plain_network()
    model = nn.parallel.DistributedDataParallel(PlainLoss(net))
    part = {key: value[2 * rank : 2 * rank + 2] for key, value in plain_batch().items()}
    model(part).backward()
    if rank == 0:
        torch.save([p.grad for p in net.parameters()], f"{folder}/gradients.pt")
    dist.barrier()
    # The group ends with its last owner, the model. It could deadlock with Gloo's thread and Python's lock after the
    # barrier, so this process exits without cleanup.
    os._exit(0)


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(_gradients_of_rank, args=(str(tmp_path),), nprocs=2)
    net = plain_network()
    PlainLoss(net)(plain_batch()).backward()
    for both, one in zip(torch.load(tmp_path / "gradients.pt", weights_only=True), net.parameters(), strict=True):
        torch.testing.assert_close(both, one.grad, rtol=1e-4, atol=1e-6)


def test_per_batch_dice_is_per_process() -> None:
    """The reason for per-image Dice in the test above: batch sums do not add up over processes."""
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(4, 3, 8, 8, generator=g), torch.randint(0, 3, (4, 8, 8), generator=g)
    label[:2] = 0
    for per_image, equal in ((True, True), (False, False)):
        loss = Supervised(plain_network(), per_image_dice=per_image).supervised_loss
        halves = (loss(logits[:2], label[:2]) + loss(logits[2:], label[2:])) / 2
        assert torch.isclose(halves, loss(logits, label), atol=1e-6).item() is equal


def test_torchrun_trains_and_one_process_writes(phantom: Path, tmp_path: Path) -> None:
    options = arguments(phantom, tmp_path)
    del options["device"]
    line = command(options, "methods/semsim.json", "multi_gpu_train.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *line[1:]]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(launcher, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    events = list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert len({path.name.split(".")[-2] for path in events}) == 1, "one process, by its number, writes the curves"
    assert (tmp_path / "run" / "model.pt").exists()


@pytest.mark.parametrize("run_id", ["run", "training", ""])
@pytest.mark.parametrize("overlay", [None, "multi_gpu_train.json"])
def test_training_runs_once(
    run_id: str, overlay: str | None, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3D Slicer asks a MONAI Label server for the empty id, with which MONAI evaluates the whole config."""
    trained = []

    def run(trainer: SemiSupervisedTrainer) -> None:
        trained.append(trainer)

    monkeypatch.setattr(SemiSupervisedTrainer, "run", run)
    rendezvous = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in rendezvous.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monai.bundle.run(
        run_id=run_id,
        config_file=[str(CONFIGS / name) for name in ("train.json", overlay) if name],
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(phantom),
        splits=str(phantom / "splits.json"),
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"),
        image_size=32,
    )
    assert len(trained) == 1
    assert not torch.distributed.is_initialized()
