from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scripts.hidden import MEASURES, count_pseudo_labels, hidden_records, scores
from scripts.losses import PseudoLabel
from scripts.methods import FixMatch, Objective, SemSim, SemSimVariants, Supervised, UniMatch, WeakViews
from scripts.methods import fixmatch as fixmatch_module
from scripts.methods import semsim as semsim_module
from scripts.methods import semsim_variants as variants_module
from scripts.methods import unimatch as unimatch_module
from scripts.networks import PixelProjection, UNet
from scripts.views import WeakView
from tests.workflows import labeled_slices

pytestmark = pytest.mark.usefixtures("one_thread")

THIN = (4, 6, 8, 10, 12)


def build(kind: type[Objective], dropout: float = 0.0, **options: Any) -> Objective:
    torch.manual_seed(3)
    network = UNet(channels=THIN, dropout=dropout)
    network.head.weight.data *= 3  # predictions that differ from pixel to pixel
    if issubclass(kind, SemSim):
        options["fusion"] = PixelProjection(channels=THIN, dim=8)
    return kind(network=network, **options)


@pytest.fixture(scope="module")
def batches(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Two batches of phantom slices: labelled ones, and others with their hidden labels."""
    slices = labeled_slices(phantom, tmp_path_factory.mktemp("cache"), slice(None))
    found = []
    for start in (0, 12):
        items = [slices[start + k] for k in range(7)]
        images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
        found.append({"image": images[:3], "label": labels[:3], "unlabeled": images[3:], "hidden": labels[3:]})
    return found


def plain_loop(pixels: list[tuple[bool, int, int]], classes: list[int]) -> dict[str, float | None]:
    """Every measure by a loop over (passes, pseudo-label, truth)."""
    named = passing = right = truly = 0
    for passes, label, truth in pixels:
        named += label in classes
        passing += passes and label in classes
        right += passes and label == truth and label in classes
        truly += truth in classes

    def dice(chosen: list[tuple[bool, int, int]]) -> float | None:
        each = []
        for c in classes:
            a = {i for i, (_, label, _) in enumerate(chosen) if label == c}
            b = {i for i, (_, _, truth) in enumerate(chosen) if truth == c}
            if a or b:
                each.append(2 * len(a & b) / (len(a) + len(b)))
        return sum(each) / len(each) if each else None

    return {
        "pixels": truly,
        "coverage": passing / named if named else None,
        "precision": right / passing if passing else None,
        "recall": right / truly if truly else None,
        "dice": dice(pixels),
        "dice_passing": dice([pixel for pixel in pixels if pixel[0]]),
    }


def check(found: list[dict[str, Any]], pixels: list[tuple[bool, int, int]], num_classes: int) -> None:
    groups = {str(c): [c] for c in range(num_classes)}
    groups |= {"foreground": list(range(1, num_classes)), "all": list(range(num_classes))}
    assert [row["class"] for row in found] == list(groups)
    for row in found:
        for measure, value in plain_loop(pixels, groups[row["class"]]).items():
            assert row[measure] == (None if value is None else pytest.approx(value, abs=1e-6)), (row, measure)


@pytest.mark.parametrize("options", [{}, {"gate": "agree", "affinity_space": "probability"}, {"shared_target": True}])
def test_scores_equal_a_walk_over_the_pixels(batches: list[dict[str, Tensor]], options: dict[str, Any]) -> None:
    """Without views and dropout a pseudo-label is a function of the batch: compare it pixel by pixel."""
    objective = build(SemSimVariants, weak=WeakView("none"), threshold=0.5, **options)
    expected: dict[str, list[tuple[bool, int, int]]] = {"decoder": [], "intra": [], "cross": []}
    with torch.no_grad():
        for batch in batches:
            views = WeakViews(batch["image"], batch["label"][:, 0], batch["unlabeled"], None)
            for kind, target in objective.pseudo_labels(views).items():
                step = 32 // target.label.shape[-1]
                assert step == (1 if kind == "decoder" else 4)
                for b, i, j in np.ndindex(*target.label.shape):
                    cell = batch["hidden"][b, 0, i * step : (i + 1) * step, j * step : (j + 1) * step]
                    truth = int(cell.flatten().bincount(minlength=4).argmax())
                    passes = float(target.confidence[b, i, j]) >= 0.5
                    expected[kind].append((passes, int(target.label[b, i, j]), truth))
    counts = count_pseudo_labels(objective, batches, seed=0)
    assert list(counts) == list(expected)
    for kind, pixels in expected.items():
        assert 0 < sum(passes for passes, _, _ in pixels) < len(pixels)  # the threshold matters
        check(scores(counts[kind]), pixels, 4)


def test_scores_of_random_counts_and_of_classes_that_are_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    for absent in (None, 2):
        for kept in (0.5, 0.0):
            label, truth = torch.randint(0, 3, (2, 150), generator=generator).tolist()
            pixels = [
                (bool(passes), y, t)
                for passes, y, t in zip(torch.rand(150, generator=generator) < kept, label, truth, strict=True)
                if absent not in (y, t)
            ]
            counts = np.zeros((2, 3, 3), dtype=np.int64)
            for passes, y, t in pixels:
                counts[int(passes), y, t] += 1
            check(scores(counts), pixels, 3)


class Oracle(Objective):
    """Pseudo-labels equal to the truth of the network's input: an image that contains its own label."""

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        truth = (views.unlabeled[:, 0] * 4).round().long()
        return {"decoder": PseudoLabel(truth, torch.ones_like(truth, dtype=torch.float32))}


@pytest.mark.parametrize("weak", [WeakView("flip"), WeakView("flip", shared=True)])
def test_the_hidden_label_is_seen_as_the_image_is(batches: list[dict[str, Tensor]], weak: WeakView) -> None:
    shown = [{**batch, "unlabeled": batch["hidden"] / 4} for batch in batches]
    counts = count_pseudo_labels(build(Oracle, weak=weak), shown, seed=5)  # type: ignore[type-abstract]
    for row in scores(counts["decoder"]):
        assert all(row[measure] == 1 for measure in MEASURES)
    wrong = [{**batch, "hidden": batch["hidden"].flip(-1)} for batch in shown]
    assert scores(count_pseudo_labels(build(Oracle, weak=weak), wrong, seed=5)["decoder"])[-1]["precision"] < 1


# --- the pseudo-labels are those of training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "options"),
    [
        (FixMatch, fixmatch_module, {}),
        (UniMatch, unimatch_module, {}),
        (SemSim, semsim_module, {"dropout": 0.3}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "joint_forward": True, "gate": "decoder"}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "lambda_intra": 0.0, "channel_dropout": "feature_stream"}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "lambda_cross": 0.0, "shared_target": True}),
        (SemSim, semsim_module, {"dropout": 0.3, "lambda_cross": 0.0, "lambda_intra": 0.0}),
    ],
)
@pytest.mark.parametrize("weak", ["flip", "rotate_flip"])
def test_forward_makes_the_same_pseudo_labels(
    monkeypatch: pytest.MonkeyPatch,
    batches: list[dict[str, Tensor]],
    kind: type[Objective],
    module: Any,
    options: dict[str, Any],
    weak: str,
) -> None:
    """FixMatch and UniMatch draw strong views before dropout, so theirs are compared without dropout."""
    used: dict[str, PseudoLabel] = {}
    original = module.coverage

    def spy(name: str, target: PseudoLabel, threshold: float) -> dict[str, Tensor]:
        used[name] = target
        return original(name, target, threshold)

    monkeypatch.setattr(module, "coverage", spy)
    objective = build(kind, weak=WeakView(weak), threshold=0.5, **options)
    torch.manual_seed(11)
    objective({key: value for key, value in batches[0].items() if key != "hidden"})
    torch.manual_seed(11)
    with torch.no_grad():
        found = objective.pseudo_labels(objective.weak_views(batches[0]))
    assert list(found) == list(used)
    for name, target in found.items():
        assert torch.equal(target.label, used[name].label)
        assert torch.equal(target.confidence, used[name].confidence)


def test_train_mode_and_nothing_of_it_stays(batches: list[dict[str, Tensor]]) -> None:
    objective = build(Supervised, dropout=0.5, weak=WeakView("none"), threshold=0.5).eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, again, other = (count_pseudo_labels(objective, batches, seed)["decoder"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)  # dropout is at work
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    for norm in (m for m in objective.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean = torch.full_like(norm.running_mean, 100.0)  # type: ignore[arg-type]
    assert np.array_equal(count_pseudo_labels(objective, batches, 0)["decoder"], first)  # batch statistics


def test_hidden_records_need_unlabelled_ones() -> None:
    records = [{"image": "a.nii.gz", "label": "a_gt.nii.gz"}]
    with pytest.raises(ValueError, match="all 1 training images are labelled"):
        hidden_records(records, records)
