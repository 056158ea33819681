"""Federated training with MONAI's own client, on phantoms: two sites over several rounds."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.apps.auto3dseg import DataAnalyzer
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from bundle.workflows import ROOT
from scripts.data.images import find_images
from scripts.engine import poly_schedule
from scripts.federated import needs_labels, planned_iterations, site_weight
from scripts.losses import pseudo_label
from scripts.utils.errors import root_cause
from scripts.utils.provenance import read_record
from tests.methods.common import METHODS, build, make_batch, run, values

ROUNDS, LENGTH = 3, 2


def site(phantom: Path, output: Path, method: str = "fixmatch", **overrides: Any) -> MonaiAlgo:
    """A client with one epoch of two iterations per round."""
    files = [str(ROOT / "configs" / name) for name in ("train.json", f"methods/{method}.json", "federated.json")]
    options = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(phantom),
        "splits": str(phantom / "splits.json"),
        "cache_dir": str(phantom.parent / "federated-cache"),
        "output_dir": str(output),
        "device": "$torch.device('cpu')",
        "+imports": ["$import torch"],
        "labeled": 2,
        "image_size": 32,
        "batch_size": 2,
        "rounds": ROUNDS,
        "train#trainer#epoch_length": LENGTH,
        **overrides,
    }
    client = MonaiAlgo(
        bundle_root=str(ROOT), config_train_filename=files, train_kwargs=options, config_evaluate_filename=None
    )
    client.initialize({ExtraItems.CLIENT_NAME: output.name})
    return client


def weights(client: MonaiAlgo) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in client.trainer.network.state_dict().items()}


def mean_of(sites: list[MonaiAlgo], received: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the sites' updates, added to the sent weights."""
    differences = [client.get_weights().weights for client in sites]
    return {
        name: value + torch.stack([torch.as_tensor(d[name]).float() for d in differences]).mean(0).to(value.dtype)
        for name, value in received.items()
    }


@pytest.mark.parametrize("labels_at_second", [2, 0])
def test_two_sites_over_three_rounds(phantom: Path, tmp_path: Path, labels_at_second: int) -> None:
    sites = [site(phantom, tmp_path / "a"), site(phantom, tmp_path / "b", labeled=labels_at_second, seed=1)]
    received = weights(sites[0])
    schedule = poly_schedule(torch.optim.SGD([torch.zeros(1)], lr=0.01), ROUNDS * LENGTH)
    for number in range(ROUNDS):
        for client in sites:
            seen: dict[str, Tensor] = {}
            hook = client.trainer.method.register_forward_pre_hook(
                lambda module, _, seen=seen: seen.update(
                    {k: v.clone() for k, v in module.network.state_dict().items() if k not in seen}
                )
            )
            client.train(ExchangeObject(weights=received))
            hook.remove()
            assert all(torch.equal(seen[name], value) for name, value in received.items()), "another start"
            moved = [(weights(client)[n] - v).abs().mean() for n, v in received.items() if "weight" in n]
            assert torch.stack(moved).mean() > 1e-6, f"nothing learnt in round {number}"
            assert client.trainer.state.epoch == number + 1
            objective = client.trainer.objective
            assert (objective.iteration, objective.total_iterations) == ((number + 1) * LENGTH - 1, ROUNDS * LENGTH)
            rate = client.trainer.optimizer.param_groups[0]["lr"]
            assert rate == pytest.approx(schedule.lr_lambdas[0]((number + 1) * LENGTH) * 0.01)
        received = mean_of(sites, received)


def test_a_site_that_was_stopped_goes_on_with_the_weights_that_it_receives(phantom: Path, tmp_path: Path) -> None:
    first = site(phantom, tmp_path / "run", method="mean_teacher")
    received = weights(first)
    first.train(ExchangeObject(weights=received))
    again = site(phantom, tmp_path / "run", method="mean_teacher", resume=True)
    other = {name: value + 0.5 if value.is_floating_point() else value for name, value in received.items()}
    began = copy.deepcopy(first.trainer.objective.teacher.state_dict())
    assert all(torch.equal(v, again.trainer.objective.teacher.state_dict()[k]) for k, v in began.items() if k[0] != "_")
    assert again.trainer.state.epoch == 1
    for client in (first, again):
        client.train(ExchangeObject(weights=other))
    a, b = (client.trainer.objective.state_dict() for client in (first, again))
    assert all(torch.equal(a[name], b[name]) for name in a if isinstance(a[name], Tensor))


@pytest.mark.parametrize("rounds", [None, 0, True, 2.5])
def test_the_number_of_rounds_must_be_known(rounds: Any) -> None:
    with pytest.raises(ValueError, match="rounds: expected the number of federated rounds"):
        planned_iterations(rounds, 1, 10)
    assert planned_iterations(3, 2, 10) == 60


def test_methods_that_need_labels_refuse_a_site_without(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as info:
        site(phantom, tmp_path / "run", method="bcp", labeled=0)
    line = str(root_cause(info.value))
    assert re.match(r"BCP learns from labelled images in every batch, and none of this site's \d+ slices has a", line)


WITHOUT_LABELS = {
    "fixmatch": {},
    "unimatch": {},
    "mean_teacher": {},
    "uncertainty_aware_mean_teacher": {},
    "interpolation_consistency": {},
    "ict_med": {},
    "medfct": {},
    "semsim": {"lambda_cross": 0.0},
    "semsim_minus": {"lambda_cross": 0.0},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_does_without_labels_or_refuses_by_name(name: str) -> None:
    if name == "cpc_sam":
        pytest.importorskip("transformers")
    dataset: Any = type("Slices", (), {"__len__": lambda self: 9, "labeled": []})()
    if WITHOUT_LABELS.get(name) != {}:
        kind = METHODS[name].__name__
        with pytest.raises(ValueError, match=f"^{kind} learns from labelled images .* 9 slices .* choose fixmatch"):
            needs_labels(build(name), dataset)
    if name in WITHOUT_LABELS:
        assert needs_labels(build(name, **WITHOUT_LABELS[name]), dataset) is False


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_without_labels_the_consistency_alone_is_learnt(name: str) -> None:
    batch = {"unlabeled": make_batch()["unlabeled"]}
    objective = build(name, threshold=0.3, **WITHOUT_LABELS[name])
    losses = run(objective, batch)
    found = values(losses)
    assert found["loss_supervised"] == 0
    assert found["loss"] > 0
    losses["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in objective.network.parameters())


def test_without_labels_fixmatch_is_half_its_consistency() -> None:
    objective = build("fixmatch", threshold=0.3)
    found = values(run(objective, {"unlabeled": make_batch()["unlabeled"]}))
    assert found["loss"] == pytest.approx(found["loss_consistency"] / 2)
    target = pseudo_label(objective.network(make_batch()["unlabeled"]).softmax(1))
    assert 0 < found["coverage_decoder"] <= float((target.confidence > 0).float().mean())


def test_a_site_without_labels_counts_little_at_first_and_like_the_others_in_the_end(
    phantom: Path, tmp_path: Path
) -> None:
    labeled, unlabeled = site(phantom, tmp_path / "a").trainer, site(phantom, tmp_path / "b", labeled=0).trainer
    found = []
    for unlabeled.objective.iteration in (0, 5, 10):
        unlabeled.objective.total_iterations = 10
        found.append(site_weight(unlabeled))
    assert found == pytest.approx([math.exp(-5), math.exp(-1.25), 1])
    assert site_weight(labeled) == 1


def test_a_folder_of_images_alone_is_a_site(phantom: Path, tmp_path: Path) -> None:
    for image in phantom.glob("patient*/*_frame??.nii.gz"):
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "images")
    own = {"layout": "custom", "splits": None, "dataset_dir": str(tmp_path / "images")}
    client = site(tmp_path / "images", tmp_path / "run", labeled=0, **own)
    client.train(ExchangeObject(weights=weights(client)))
    record = read_record(tmp_path / "run" / "model_last.pt")
    assert record is not None
    assert (record["labeled_cases"], record["unlabeled_cases"]) == (0, 20)


def test_statistics_of_the_labeled_records(phantom: Path, tmp_path: Path) -> None:
    """MONAI's analyser reads a label for every image."""
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.json", "statistics.json")],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=str(phantom),
        splits=str(phantom / "splits.json"),
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"),
        labeled=2,
        image_size=32,
    )
    client = MonaiAlgoStats(bundle_root=str(ROOT), workflow=workflow)
    client.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path)})
    asked = {FlStatistics.HIST_BINS: [10], FlStatistics.HIST_RANGE: [[0, 300]]}
    found = client.get_data_stats(asked).statistics
    assert found is not None
    assert found["train"][FlStatistics.DATA_COUNT] == 4  # two patients of two volumes
    assert found["train"][FlStatistics.FAIL_COUNT] == 0


def test_auto3dseg_analyses_the_images_of_a_site_without_labels(phantom: Path, tmp_path: Path) -> None:
    images = find_images(phantom)
    (tmp_path / "list.json").write_text(json.dumps({"training": images}))
    analyser = DataAnalyzer(
        str(tmp_path / "list.json"), output_path=str(tmp_path / "stats.yaml"), device="cpu", worker=0, label_key=None
    )
    found = analyser.get_all_case_stats()["stats_summary"]["image_stats"]
    spacings = np.array([sitk.ReadImage(str(record["image"])).GetSpacing() for record in images])
    assert found["spacing"]["max"] == pytest.approx(spacings.max(axis=0))
    assert found["spacing"]["mean"] == pytest.approx(spacings.mean(axis=0))
