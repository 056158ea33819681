"""A step's random numbers: what is drawn at once is what is drawn as it is taken."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from scripts.augmentation import AugmentedView
from scripts.draws import Draws
from scripts.views import StrongView, WeakView
from tests.methods.common import build, make_batch, values

CPU = torch.device("cpu")


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_views_of_drawn_numbers_equal_those_that_draw_for_themselves() -> None:
    image, label = torch.rand(5, 3, 32, 32), torch.randint(0, 3, (5, 1, 32, 32), dtype=torch.uint8)
    for view in (WeakView("flip"), WeakView("rotate_flip"), WeakView("flip", shared=True), AugmentedView()):
        own = Draws(CPU, generator=generator())
        expected = [*view.labeled(image, label, own), *view(image, label, own)]
        drawn = Draws(CPU, torch.rand(own.taken, generator=generator()))
        found = [*view.labeled(image, label, drawn), *view(image, label, drawn)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert drawn.taken == own.taken
        torch.manual_seed(5)  # without draws: PyTorch's generator, which is seeded alike
        assert torch.equal(view.labeled(image, label)[0], expected[0])
    own = Draws(CPU, generator=generator())
    first, second = StrongView()(image, own), StrongView()(image, own)
    drawn = Draws(CPU, torch.rand(own.taken, generator=generator()))
    for view in (first, second):
        again = StrongView()(image, drawn)
        assert torch.equal(view.image, again.image)
        assert torch.equal(view.box, again.box)
        assert torch.equal(view.partner, again.partner)


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "unimatch", "semsim_minus", "semsim", "diffrect"])
@pytest.mark.parametrize("weak", [WeakView("rotate_flip"), WeakView("flip", shared=True), AugmentedView()])
def test_losses_of_drawn_numbers_equal_those_of_views_that_draw(name: str, weak: WeakView) -> None:
    objective, batch = build(name, weak=weak, dropout=0.2), make_batch()
    own = objective.draws = Draws(CPU, generator=generator())
    torch.manual_seed(0)
    expected = values(objective(batch))
    drawn = objective.draws = Draws(CPU, torch.rand(own.taken, generator=generator()))
    torch.manual_seed(0)
    assert values(objective(batch)) == expected
    assert drawn.taken == own.taken > 0


def test_too_few_numbers_are_told() -> None:
    draws = Draws(CPU, torch.rand(10))
    draws.rand(2, 4)
    with pytest.raises(IndexError, match="takes 11 random numbers or more, 10 were drawn"):
        draws.rand(3)


def test_distributions() -> None:
    torch.manual_seed(0)
    draws = Draws(CPU)
    assert stats.kstest(draws.normal(20_000).numpy(), "norm").pvalue > 0.01
    assert stats.kstest(draws.uniform(-2, 3, 20_000).numpy(), stats.uniform(-2, 5).cdf).pvalue > 0.01
    assert (
        stats.kstest(draws.log_uniform(0.5, 4, 20_000).log().numpy(), stats.uniform(-0.6931, 2.0794).cdf).pvalue > 0.01
    )
    assert draws.coin(0.3, 20_000).float().mean() == pytest.approx(0.3, abs=0.015)
    assert torch.bincount(draws.below(4, 8_000)).float().sub(2_000).abs().max() < 150
    orders = torch.stack([draws.order(3) for _ in range(600)])
    assert (orders.sort(dim=1).values == torch.arange(3)).all()
    assert torch.bincount(orders @ torch.tensor([9, 3, 1])).count_nonzero() == 6, "every order occurs"


def test_normal_numbers_of_the_smallest_and_the_largest_draw_are_finite() -> None:
    ends = Draws(CPU, torch.tensor([0.0, 1 - 2**-24, 0.5])).normal(3)
    assert ends[0] < -5
    assert ends[1] > 5
    assert ends.isfinite().all()
    assert ends[2] == 0
