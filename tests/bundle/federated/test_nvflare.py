"""The demonstration under NVFlare's simulator, shortened; only where NVFlare is installed (``make test-federated``)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("nvflare", reason="NVFlare is not installed: make test-federated")

from bundle.federated import demo
from bundle.federated.sites import average
from scripts.utils.tensors import load_state, load_tensors


def test_the_server_averages_what_both_sites_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "STEPS", 2)
    demo.main(tmp_path / "demo")
    assert "both sites: mean DSC" in capsys.readouterr().out
    (server,) = tmp_path.rglob("FL_global_model.pt")
    found = load_state(tmp_path / "demo" / "model.pt")
    sent = load_tensors(server)["model"]
    assert all(torch.equal(sent[name].to(value.dtype), value) for name, value in found.items())
    initial = load_state(tmp_path / "demo" / "initial.pt")
    assert not torch.equal(initial["head.weight"], found["head.weight"]), "nothing was learnt"
    states = [load_state(tmp_path / "demo" / name / "run" / "model_last.pt") for name in ("labelled", "unlabelled")]
    # the second of two iterations is the last: half of the ramp has passed
    expected = average(states, [1.0, 2.718281828459045 ** (-5 * 0.25)])
    torch.testing.assert_close(found["head.weight"], expected["head.weight"])
