from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.federated import simulation
from bundle.federated.sites import average
from scripts.utils.provenance import read_record
from scripts.utils.tensors import load_state


def test_the_average_is_weighted() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([5.0, 2.0]), "n": torch.tensor(8)},
    ]
    found = average(states, [3.0, 1.0])
    assert torch.equal(found["w"], torch.tensor([2.0, 2.0]))
    assert torch.equal(found["n"], torch.tensor(5))


def test_the_simulation_compares_a_site_alone_with_two_and_with_the_pooled_data(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = str(phantom / "splits.json")
    options: dict[str, Any] = {"seeds": 0, "rounds": 1, "steps": 1, "splits": splits}
    options |= {"image_size": 32, "batch_size": 2}
    simulation.main(str(phantom), str(tmp_path), labeled=2, **options)
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line[:16].strip() for line in lines] == ["A alone", "A + B", "A + B, equal", "pooled"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(0 <= found["0"] <= 1 for found in results.values())
    networks = [load_state(tmp_path / f"{arm}-0" / "model.pt") for arm in results]
    one, two = networks[1:3]
    assert any(not torch.equal(one[name], two[name]) for name in one), "weighted and equal averages are the same"
    record = read_record(tmp_path / "A + B-0" / "model.pt")
    assert record is not None
    assert (record["labeled_cases"], record["unlabeled_cases"], record["sites"]) == (2, 4, 2)

    with pytest.raises(ValueError, match="was started with other settings: labeled was 2, is 1"):
        simulation.main(str(phantom), str(tmp_path), labeled=1, **options)
