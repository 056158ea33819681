from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

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


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is read as a Python number; on a GPU each read waits for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_average_equals_pytorchs_without_reading_values_on_the_host() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    teachers = MovingAverage(student, 0.9), AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reads = HostReads(), HostReads()
    for _ in range(5):
        with torch.no_grad():
            for tensor in student.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape) * 10)
        for teacher, counter in zip(teachers, reads, strict=True):
            with counter:
                teacher.update_parameters(student)
    ours, theirs = (teacher.module.state_dict() for teacher in teachers)
    assert all(torch.equal(ours[name], theirs[name]) for name in student.state_dict())
    assert [counter.count for counter in reads] == [0, 2 * 5]


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
