from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.metrics import dice
from scripts.quality.agreement import VIEWS, agreement, view_logits


def random_logits(passes: int = 4, classes: int = 3, shape: tuple[int, ...] = (6, 5, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(classes, *shape, generator=generator)
    return common + 0.7 * torch.randn(passes, classes, *shape, generator=generator)


@pytest.mark.parametrize("shape", [(6, 5, 4), (7, 6)])
def test_measures_equal_plain_counts(shape: tuple[int, ...]) -> None:
    logits = random_logits(shape=shape)
    found = agreement(logits)
    labels = logits.argmax(1).numpy()
    probability = logits.softmax(1).mean(0).numpy()
    assert len(found) == 2
    for c, entry in enumerate(found, start=1):
        masks = labels == c
        assert entry.agreement == pytest.approx(np.mean([dice(masks[0], other) for other in masks[1:]]), abs=1e-6)
        overlap = sum(p for p, inside in zip(probability[c].flat, masks[0].flat, strict=True) if inside)
        assert entry.expected_dice == pytest.approx(2 * overlap / (probability[c].sum() + masks[0].sum()), abs=1e-5)
        anywhere, everywhere = masks.any(0).sum(), masks.all(0).sum()
        assert entry.uncertain == pytest.approx(1 - everywhere / anywhere, abs=1e-6)
        assert entry.score == pytest.approx(entry.agreement * entry.expected_dice)


def test_passes_that_are_sure_and_equal_promise_everything() -> None:
    logits = 100 * torch.nn.functional.one_hot(torch.arange(3).repeat(4), 3).T.float().reshape(3, 4, 3)
    for entry in agreement(logits.expand(4, -1, -1, -1)):
        assert (entry.agreement, entry.uncertain) == (1.0, 0.0)
        assert entry.score == pytest.approx(1.0, abs=1e-6)


def test_a_class_that_no_pass_finds_promises_nothing() -> None:
    logits = torch.zeros(4, 3, 5, 5)
    logits[:, 0] = 5.0
    logits[:, 1, 0, 0] = 10.0
    present, absent = agreement(logits)
    assert present.score > 0.1
    assert (absent.agreement, absent.score, absent.uncertain) == (1.0, 0.0, 0.0)


def test_predictions_of_views_come_back_to_the_image() -> None:
    image = torch.rand(2, 1, 6, 6, 3)
    for restored in view_logits(lambda view: view, image):  # a network that returns its input
        assert torch.equal(restored, image)
    seen: list[torch.Tensor] = []
    view_logits(lambda view: seen.append(view) or view, image)  # type: ignore[func-returns-value]
    assert len(seen) == len(VIEWS) == 3, "at most four times the cost of one pass"
    assert not any(torch.equal(view, image) for view in seen)
