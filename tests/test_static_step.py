"""Steps on tensors that stay in place: what a CUDA graph would replay, replayed on the CPU.

``make_fx`` records the operations of a step as a capture does: whatever the host decides or draws while it records is
the same in every replay. A replay that equals the eager step, bit for bit, at another iteration with another batch
takes nothing of that kind from the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from scripts.augmentation import AugmentedView
from scripts.engine import SemiSupervisedTrainer, poly_schedule
from scripts.handlers.checkpoints import RunCheckpoint
from scripts.methods import Objective
from scripts.static_step import StaticSteps
from scripts.views import WeakView
from tests.methods.common import METHODS, build, make_batch, thin_network, trainer

CAPTURED = [name for name, method in METHODS.items() if vars(method).get("capturable")]
TAUGHT = {"weak": AugmentedView(), "teacher_decay": 0.9}
OPTIONS = {"fixmatch": TAUGHT, "semsim": TAUGHT, "variants": {"lambda_query": 0.5, "decoder_views": (1, 3)}}


def recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(make_fx(step)())  # the backward pass is among what was recorded


def training(
    name: str, record: Callable[..., Any] | None, epochs: int = 3, handlers: Any = (), **options: Any
) -> SemiSupervisedTrainer:
    """A trainer with fused steps, eager where ``record`` is None."""
    engine = trainer(build(name, dropout=0.2, **options), epochs, handlers)
    engine.optimizer.param_groups[0]["fused"] = True
    engine.supervised_share = 0.5
    if record is not None:
        engine.static = StaticSteps(engine.objective, engine.optimizer, engine._autocast, record)
    return engine


def test_which_objectives_are_captured() -> None:
    assert {"supervised", "fixmatch", "unimatch", "semsim_minus", "semsim", "mean_teacher"} <= set(CAPTURED)

    class Derived(METHODS["fixmatch"]):  # type: ignore[misc]
        pass

    assert StaticSteps.obstacle(Derived(network=thin_network()), torch.optim.SGD([torch.zeros(1)])) is not None
    reason = StaticSteps.obstacle(build("adversarial"), torch.optim.SGD([torch.zeros(1)]))
    assert reason is not None
    assert "Adversarial" in reason
    objective = build("fixmatch")
    with pytest.raises(ValueError, match="optimizer is Adam, expected SGD"):
        StaticSteps(objective, torch.optim.Adam(objective.parameters()), torch.no_grad)


@pytest.mark.parametrize("name", [*CAPTURED, "variants"])
def test_replayed_steps_equal_eager_ones(name: str) -> None:
    """Over both phases, with teachers, other readings of SemSim, learning rates and ramps that move."""
    states = []
    for record in (None, recorded):
        engine = training("semsim_minus" if name == "variants" else name, record, **OPTIONS.get(name, {}))
        engine.run()
        states.append(engine.method.state_dict())
    eager, replayed = states
    assert all(torch.equal(eager[key], replayed[key]) for key in eager if isinstance(eager[key], Tensor))
    programs = engine.static.programs  # type: ignore[union-attr]
    assert [key[0] for key in programs] == ["labeled", "all"], "one program for each phase"


def test_losses_come_one_step_late_and_whole_at_the_end_of_an_epoch() -> None:
    eager: list[float] = []
    late: list[float] = []
    for losses, record in ((eager, None), (late, lambda step: step)):
        engine = training("fixmatch", record, epochs=2)
        engine.supervised_share = 0.0
        engine.state.epoch_length = 4
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e, found=losses: found.append(e.state.output[0]["loss"])
        )
        engine.run()
    # Step 1 is eager; 2 and 5 are the first of their kind and epoch and are waited for, as 4 and 8 are, the last.
    assert late == [eager[i - 1] for i in (1, 2, 2, 4, 5, 5, 6, 8)]


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    def run(folder: str, epochs: int, resume: bool) -> dict[str, Tensor]:
        objective = build("fixmatch", seed=int(resume), dropout=0.2, weak=WeakView("rotate_flip"))
        engine = trainer(objective, epochs, [RunCheckpoint(str(tmp_path / folder), objective.network, resume)])
        engine.lr_scheduler = poly_schedule(engine.optimizer, 6)  # of the whole training
        engine.static = StaticSteps(objective, engine.optimizer, engine._autocast, recorded)
        engine.run()
        return objective.state_dict()

    whole = run("a", 3, False)
    run("b", 1, False)
    resumed = run("b", 3, True)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole if isinstance(whole[key], Tensor))


def test_a_step_without_a_finite_loss_leaves_the_weights_and_is_told() -> None:
    engine = training("fixmatch", recorded, epochs=2)
    engine.supervised_share = 0.0
    before: dict[str, Tensor] = {}
    objective: Objective = engine.objective
    step = StaticSteps.__call__

    def spoiled(self: StaticSteps, batch: dict[str, Tensor], generator: torch.Generator, iteration: int) -> Any:
        if iteration == 3:
            before.update({name: value.clone() for name, value in objective.named_parameters()})
            batch = {**batch, "image": batch["image"] * math.nan}
        return step(self, batch, generator, iteration)

    class Spoiling(StaticSteps):
        __call__ = spoiled

    engine.static = Spoiling(objective, engine.optimizer, engine._autocast, recorded)
    with pytest.raises(FloatingPointError, match="not finite at iteration 3"):
        engine.run()
    assert before
    assert all(value.isfinite().all() for value in objective.parameters())


def test_a_step_that_cannot_be_recorded_trains_without(caplog: pytest.LogCaptureFixture) -> None:
    def refused(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        step()
        raise RuntimeError("operation not permitted when stream is capturing")

    states = []
    for record in (None, refused):
        engine = training("fixmatch", record)
        engine.run()
        states.append(engine.method.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert "operation not permitted" in caplog.text
    assert engine.static is None


def test_compiling_is_refused_on_a_cpu() -> None:
    engine = trainer(build("fixmatch"))
    with pytest.raises(ValueError, match="compile: expected False on cpu"):
        SemiSupervisedTrainer("cpu", 1, [], build("fixmatch"), engine.optimizer, compile=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CAPTURED)
def test_graphs_train_as_eager_steps_do(name: str) -> None:
    losses = []
    for compiled in (False, True):
        method = build(name)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
        loader = [make_batch(seed=seed) for seed in range(8)]
        engine = SemiSupervisedTrainer("cuda", 1, loader, method, optimizer, compile=compiled)
        engine.run()
        losses.append(engine.state.output[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
