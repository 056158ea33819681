from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.handlers.weights import load_network_weights
from scripts.networks import UNet
from scripts.utils.errors import WriteError
from scripts.utils.tensors import load_state, load_tensors, save_tensors


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save_tensors(UNet(num_classes=2).state_dict(), path)
    return path


def test_flipped_bits_are_found_wherever_they_change_a_tensor(weights: Path) -> None:
    sound, expected = weights.read_bytes(), load_state(weights)
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(sound), 20):
        content = bytearray(sound)
        content[place] ^= 1 << int(place) % 8
        weights.write_bytes(content)
        try:
            state = load_state(weights)
        except ValueError:
            refused += 1
        else:  # padding between the tensors
            assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert refused >= 18


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(weights: Path, value: float) -> None:
    state = load_state(weights)
    name = list(state)[5]
    state[name].view(-1)[0] = value
    torch.save(state, weights)
    network = UNet(num_classes=2)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"{name}' has values that are not finite"):
        load_network_weights(network, weights)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_what_is_no_file_of_tensors_is_refused_and_never_executed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Code:
        def __reduce__(self) -> tuple:
            return (open, ("executed", "w"))

    torch.save({"weight": Code()}, tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Code()))
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "empty.pt").touch()
    for path in sorted(set(tmp_path.glob("*.pt")) - {weights}):
        with pytest.raises(ValueError, match=rf"{path.name}: (cannot be read as tensors|is damaged)"):
            load_tensors(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.pt' does not exist"):
        load_tensors(tmp_path / "gone.pt")
    assert not (tmp_path / "executed").exists()


def test_a_disk_that_takes_no_more_leaves_the_old_weights(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch hides the operating system's error behind its own."""
    sound = weights.read_bytes()

    class Full:
        def __init__(self, stream: object) -> None:
            self.stream, self.left = stream, 1000

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.stream.write(data)

        def flush(self) -> None:
            self.stream.flush()

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args: Full(opened(path, *args)))
    with pytest.raises(WriteError, match=r"model\.pt' cannot be written: No space left on device"):
        save_tensors({"weight": torch.zeros(100_000)}, weights)
    monkeypatch.undo()
    assert weights.read_bytes() == sound
    assert list(weights.parent.iterdir()) == [weights]
