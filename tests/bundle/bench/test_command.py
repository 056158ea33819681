"""The benchmark: its counts are correct, and it runs from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from bundle.__main__ import main
from bundle.bench import command as bench
from bundle.bench import gpu_check, measurements
from bundle.workflows import isolated
from scripts.networks import UNet
from scripts.networks.attention import attention

SMALL = {"image_size": 32, "batch_size": 2, "repeats": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors this small gain nothing from threads and lose much on shared cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def allocate(mebibytes: int) -> float:
    np.ones(mebibytes * 2**17)
    return measurements.peak_memory("cpu")


def test_flops_of_products_convolutions_and_attention() -> None:
    a, b = torch.rand(5, 7), torch.rand(7, 11)
    assert measurements._flops(lambda: a @ b) == 2 * 5 * 7 * 11
    image, kernel = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    assert measurements._flops(lambda: F.conv2d(image, kernel, padding=1)) == 2 * 2 * 8 * 8 * 4 * 3 * 9
    q, k, v = (torch.rand(2, 4, 64, 32, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * 2 * 4 * 64 * 64 * 32  # two products, 2 FLOPs each, batch, heads, L x L x D
    assert measurements._flops(lambda: attention(q, k, v, scale=1.0)) == forward
    # The backward pass recomputes the weights and adds four products of the same size.
    both = measurements._flops(lambda: attention(q, k, v, scale=1.0).sum().backward())
    assert both == forward + forward // 2 * 5


def test_time_goes_to_the_kind_that_takes_it(capfd: pytest.CaptureFixture[str]) -> None:
    a, mask = torch.rand(700, 700), torch.empty(4_000_000)
    for work, kind in ((lambda: a @ a, "product"), (lambda: mask.bernoulli_(0.5), "random"), (mask.clone, "copying")):
        shares = measurements._shares(work, "cpu")
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=lambda kind: shares[kind]) == kind
    assert measurements.time_by_kind("semsim", torch.float32, True, 32, 2, "cpu")["convolution"] > 0
    printed = capfd.readouterr()
    assert "profiler" not in printed.out + printed.err, "messages between the rows of a table"


def test_peak_memory_belongs_to_one_measurement() -> None:
    idle = isolated(measurements.peak_memory, "cpu")
    assert isolated(allocate, 300) > idle + 290
    assert isolated(measurements.peak_memory, "cpu") < idle + 100


@pytest.mark.parametrize("name", bench.OBJECTIVES)
def test_every_objective_steps(name: str) -> None:
    result = measurements.training_step(name, torch.float32, True, **SMALL, count=True)
    assert result["seconds"] > 0
    # Three passes of a convolution (forward, two gradients) on every labelled slice at the least.
    assert result["flops"] > 3 * 2 * 9 * 16 * 16 * 32 * 32 * SMALL["batch_size"]


def test_bfloat16_step_runs() -> None:
    assert measurements.training_step("fixmatch", torch.bfloat16, True, 16, 2, 1, "cpu")["seconds"] > 0


def test_hd95_of_the_full_volume_is_the_pooled_percentile() -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros((12, 14, 4), dtype=bool) for _ in range(2)]
    for mask in masks:
        corner = rng.integers(1, 5, size=2)
        mask[corner[0] : corner[0] + 5, corner[1] : corner[1] + 6, 1:3] = True

    def surface(mask: np.ndarray) -> np.ndarray:
        inside = {tuple(index) for index in np.argwhere(mask)}
        steps = [s * axis for axis in np.eye(3, dtype=int) for s in (1, -1)]
        return np.array([i for i in sorted(inside) if any(tuple(np.add(i, s)) not in inside for s in steps)])

    points = [surface(mask) for mask in masks]
    pairs = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    expected = np.percentile(np.concatenate([pairs.min(axis=1), pairs.min(axis=0)]), 95)
    assert measurements._full_volume_hd95(*masks) == pytest.approx(expected)


def test_command_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--{key}={value}" for key, value in SMALL.items()]
    main(["bench", *options, "--methods=supervised,fixmatch"])
    printed = capsys.readouterr().out
    for part in (
        "matrix rate",
        "supervised",
        "fixmatch",
        "SFM",
        "inference",
        "input",
        "strong view",
        "HD95",
        "MONAI",
        "resampling",
    ):
        assert part in printed


@pytest.mark.parametrize(("option", "value"), [("methods", "meanteacher"), ("device", "abacus")])
def test_unknown_choice_is_named(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected .*{value}"):
        bench.main(**{option: value})


def test_gpu_check_tries_every_part_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "_tests", lambda folder, left: gpu_check._run(["true"], left, folder / "tests.log"))
    monkeypatch.setattr(gpu_check, "INFERENCE_MINUTES", 0.1)
    options = {"device": "cpu", "image_size": 32, "steps": 1, "volumes": 2, "methods": "fixmatch"}
    gpu_check.main(str(tmp_path), minutes=0.5, **options)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["machine", "tests", "step", "step", "protocol", "inference"]
    assert [line["way"] for line in lines[2:4]] == ["eager", "graph"]
    assert all(line["milliseconds"] > 0 for line in lines[2:4])
    assert lines[-1]["ended"] in (0, "stopped in time"), lines[-1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="expected a CUDA device, found none"):
        gpu_check.main(str(tmp_path))


def test_the_peers_step_does_the_passes_of_its_description() -> None:
    """A forward pass; with gradients two encoders and four decoders of a batch, then two whole networks."""
    network, image = UNet(), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        features = network.encode(image)
        decoder = measurements._flops(lambda: network.decode(features)) / measurements._flops(lambda: network(image))
    peer = measurements.peer(32, 2, 1, "cpu")["flops"]
    supervised = measurements.training_step("supervised", torch.float32, True, **SMALL, count=True)["flops"]
    assert peer == pytest.approx(supervised * (1 / 3 + 2 * (1 - decoder) + 4 * decoder + 2), rel=0.02)
