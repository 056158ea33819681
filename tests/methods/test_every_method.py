"""Properties of every objective; the other files test their computations."""

from __future__ import annotations

import inspect
import io
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bundle.workflows import method_names
from scripts.handlers.checkpoints import RunCheckpoint, run_settings
from scripts.methods.teacher import MovingAverage
from scripts.networks import SwinUNet, UNet
from scripts.views import WeakView
from tests.methods.common import (
    METHODS,
    WITHOUT_SAM,
    Batches,
    build,
    deployed,
    make_batch,
    needs_sam,
    run,
    trainer,
    values,
)

# parts that the main loss does not train: other networks, and of SAM what LoRA does not touch and what has no class
HELD_BACK = re.compile(
    r"teacher\.|guide\.|discriminator\."
    r"|network\.encoder\.(?!.*\.(down|up)\.)(patch|pos|neck|layers)|network\.positions"
    r"|(network\.decoder|second)\.output_hypernetworks_mlps\.0\."
)
PHASED = ("bcp", "s4cvnet")  # other losses at the start
PARTS = ("supervised", "semsim_minus", "cross_teaching")  # other objectives cover the steps of these
STATELESS = ("fixmatch", "unimatch")  # nothing to resume but the network


def names(*left_out: str) -> list[Any]:
    """Of all methods but some, as parameters; what needs a package that is not there is skipped."""
    return [pytest.param(n, marks=needs_sam if n == "cpc_sam" else ()) for n in METHODS if n not in left_out]


every_method = pytest.mark.parametrize("name", names())
every_step = pytest.mark.parametrize("name", names(*PARTS))


def trained_gradients_are_there(objective: Any) -> bool:
    """Every trainable parameter has a gradient, for which DistributedDataParallel waits."""
    found = [p.grad for p in objective.parameters() if p.requires_grad]
    return all(grad is not None and grad.isfinite().all() for grad in found)


def test_every_method_is_covered() -> None:
    assert sorted(METHODS) == method_names()


@every_method
def test_every_option_is_among_the_settings(name: str) -> None:
    """A resumed run is compared by these settings, and the weights' record contains them."""
    options = {
        option: parameter.default
        for kind in METHODS[name].__mro__
        for option, parameter in inspect.signature(kind.__init__).parameters.items()
        if isinstance(parameter.default, (bool, int, float, str, tuple))
    }
    assert options.keys() >= {"threshold", "per_image_dice"}
    settings = {key.split()[-1]: value for key, value in run_settings(build(name, dropout=0.25)).items()}
    assert options.keys() <= settings.keys()
    assert settings.get("dropout") == (None if name == "cpc_sam" else (0.25,) * 5)


@every_method
def test_gradients_reach_what_is_trained_and_nothing_else(name: str) -> None:
    objective = build(name, threshold=0.0)
    for parameter, p in objective.named_parameters():
        assert p.requires_grad != bool(HELD_BACK.match(parameter)), parameter
    for average in (module for module in objective.modules() if isinstance(module, MovingAverage)):
        average.requires_grad_(True)  # even so
    for iteration in (0, 30) if name in PHASED else (30,):
        objective.iteration = iteration
        losses = run(objective)
        for key in losses.keys() & {"loss", "loss_consistency"}:
            objective.zero_grad()
            losses[key].backward(retain_graph=True)
            for parameter, p in objective.named_parameters():
                if HELD_BACK.match(parameter):
                    assert p.grad is None, (key, parameter)
                else:
                    assert p.grad is not None, (key, parameter)
                    assert p.grad.isfinite().all(), (key, parameter)
                    # a bias before batch norm has no effect
                    assert p.grad.any() or key != "loss" or parameter.endswith("bias"), parameter
                    if parameter in ("network.encoder.0.0.weight", "network.head.weight"):
                        assert p.grad.any(), (key, parameter)
    assert not any(buffer.requires_grad for buffer in objective.buffers())


@every_step
@pytest.mark.parametrize(("size", "labeled", "unlabeled", "channels"), [((36, 52), 1, 4, 3), ((68, 32), 3, 1, 1)])
def test_batches_of_other_shapes(name: str, size: tuple[int, int], labeled: int, unlabeled: int, channels: int) -> None:
    objective = build(name, in_channels=channels, threshold=0.3)
    losses = run(objective, make_batch(size, labeled, unlabeled, channels))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    losses["loss"].backward()
    assert trained_gradients_are_there(objective)
    objective.after_step()
    assert all(p.isfinite().all() for p in objective.parameters())


@every_step
def test_labels_of_background_alone_and_certain_predictions(name: str) -> None:
    batch = make_batch()
    batch["label"] = torch.zeros_like(batch["label"])
    objective = build(name)
    for network in (m for m in objective.modules() if isinstance(m, (UNet, SwinUNet))):
        network.head.weight.data *= 1e4  # probabilities of exactly 0 and 1
    losses = run(objective, batch)
    assert losses["loss"].isfinite()
    losses["loss"].backward()
    assert trained_gradients_are_there(objective)


@every_step
def test_a_seed_fixes_a_step(name: str) -> None:
    first, again, other = (values(run(build(name, dropout=0.5, threshold=0.3), seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


@every_step
def test_bf16_autocast(name: str) -> None:
    # with T_c of .05, bf16's rounding of the features would change labels
    options = {"query_temperature": 0.5} if "semsim" in name else {}
    exact = values(run(build(name, threshold=0.0, **options)))
    objective = build(name, threshold=0.0, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(objective)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert values(losses)["loss"] == pytest.approx(exact["loss"], rel=0.1)
    losses["loss"].backward()
    assert trained_gradients_are_there(objective)
    objective.after_step()


class NoWaiting(TorchDispatchMode):
    """Fails if a copy between devices blocks the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            assert kwargs.get("non_blocking"), f"waits for {tuple(args[0].shape)} on its way to {kwargs['device']}"
        return func(*args, **kwargs)


@every_step
def test_meta_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are created on the batch's device, and no copy to or from it blocks."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it knows no meta device
    options = {"lambda_query": 0.5} if "semsim" in name else {}
    objective = build(name, weak=WeakView("rotate_flip"), in_channels=3, **options).to("meta")
    batch = {k: v.to("meta") for k, v in make_batch(channels=3).items()}
    with NoWaiting():
        losses = run(objective, batch)
    assert all(loss.is_meta for loss in losses.values())
    losses["loss"].backward()
    objective.after_step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_step
def test_a_gpu_step_makes_no_host_wait(name: str) -> None:
    """CUDA reports all waits, while the test on the meta device detects copies only."""
    options = {"lambda_query": 0.5} if "semsim" in name else {}
    objective = build(name, weak=WeakView("rotate_flip"), in_channels=3, **options).to("cuda")
    batch = {k: v.to("cuda") for k, v in make_batch(channels=3).items()}

    def step() -> dict[str, Tensor]:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            losses = run(objective, batch)
        losses["loss"].backward()
        objective.after_step()
        return losses

    step()  # libraries may wait when they are first used
    file = io.BytesIO()  # a resumed run reads its state onto the device
    torch.save(objective.state_dict(), file)
    file.seek(0)
    objective.load_state_dict(torch.load(file, map_location="cuda", weights_only=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for value in values(losses).values())
    assert trained_gradients_are_there(objective)


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in flat(value)]
    return [leaf for value in state for leaf in flat(value)] if isinstance(state, (list, tuple)) else [state]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(*p.values, {}, marks=p.marks) for p in names(*PARTS, *STATELESS, "bcp")),
        *(("bcp", {"pretraining": k / 4}) for k in (2, 3)),
    ],
)
def test_resume_equals_uninterrupted(name: str, options: dict[str, float], tmp_path: Path) -> None:
    """Weights, momenta, moving averages, memories, a second optimiser, the phase; also at a change of phase."""

    def train(folder: str, resume: str | bool = False) -> tuple[dict[str, Any], Any]:
        # the resumed run is built with other weights: all must come from the checkpoint
        objective = build(name, seed=7 if resume else 0, dropout=0.3, **options)
        engine = trainer(objective, handlers=[RunCheckpoint(str(tmp_path / folder), objective.network, resume)])
        if not resume:
            written, middle = tmp_path / folder / "checkpoint.pt", tmp_path / "middle.pt"
            engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: copyfile(written, middle))
        engine.run()
        assert engine.state.iteration == 4
        return objective.state_dict(), engine.optimizer.state_dict()["state"]

    whole = train("whole")
    resumed = train("resumed", str(tmp_path / "middle.pt"))
    assert whole[0].keys() == resumed[0].keys()
    for a, b in zip(flat(whole), flat(resumed), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    half = torch.load(tmp_path / "middle.pt", weights_only=True)["method"]
    assert not all(torch.equal(whole[0][key], half[key]) for key in half if key.startswith("network."))
    if name == "ss_net":
        assert whole[0]["filled"].any()
        assert not torch.equal(whole[0]["memory"], half["memory"])
    weights = torch.load(tmp_path / "resumed" / "model_last.pt", weights_only=True)
    assert weights.keys() == deployed(name).state_dict().keys()
    assert all(torch.equal(value, resumed[0][f"network.{key}"]) for key, value in weights.items())


TWO = [name for name in METHODS if name != "cpc_sam" or not WITHOUT_SAM]


def _train_of_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ends = {}
    for name in TWO:
        objective = build(name, dropout=0.2)
        engine = trainer(objective)
        engine.method = nn.parallel.DistributedDataParallel(objective)
        engine.data_loader = Batches(rank)
        engine.run()
        ends[name] = (dict(objective.named_parameters()), engine.state.output[0]["loss"])
    torch.save(ends, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # see tests/test_engine.py


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    """Each learns from different images; modules other than the network must stay equal as well."""
    mp.spawn(_train_of_rank, args=(str(tmp_path),), nprocs=2)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, (first, second) in {name: [end[name] for end in ends] for name in TWO}.items():
        assert first[1] != second[1], name
        assert [key for key, value in first[0].items() if not torch.equal(value, second[0][key])] == [], name
