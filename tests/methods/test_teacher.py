from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.methods import Objective
from scripts.methods.teacher import MovingAverage
from scripts.networks import UNet


def test_weights_follow_the_closed_form_and_take_no_gradient() -> None:
    student = nn.Linear(2, 2)
    teacher = MovingAverage(student, decay=0.9)
    history = []
    for step in range(5):
        nn.init.constant_(student.weight, float(step))
        history.append(student.weight.detach().clone())
        teacher.update_parameters(student)
    expected = 0.9**4 * history[0] + sum(0.1 * 0.9 ** (4 - i) * history[i] for i in range(1, 5))
    torch.testing.assert_close(teacher.module.weight, expected)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.ones(1, 2)).requires_grad


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(nn.Linear(1, 1), decay)


def test_ramp_up_runs_over_the_training() -> None:
    objective = Objective(UNet(channels=(2, 2, 2, 2, 2)))
    objective.total_iterations = 100
    assert objective.ramp_up() == pytest.approx(math.exp(-5))
    objective.iteration = 20
    assert objective.ramp_up() == pytest.approx(math.exp(-5 * 0.8**2))
    objective.iteration = 100
    assert objective.ramp_up() == 1
