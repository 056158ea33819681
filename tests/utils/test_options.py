from __future__ import annotations

from pathlib import Path

import monai.bundle
import pytest
import torch

from scripts.engine import SemiSupervisedTrainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("run_id", ["run", "training", ""])
@pytest.mark.parametrize("overlay", [None, "multi_gpu_train.json"])
def test_training_runs_once(
    run_id: str, overlay: str | None, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3D Slicer asks a MONAI Label server for the empty id, with which MONAI evaluates the whole config."""
    trained = []

    def run(trainer: SemiSupervisedTrainer) -> None:
        trained.append(trainer)

    monkeypatch.setattr(SemiSupervisedTrainer, "run", run)
    rendezvous = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in rendezvous.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monai.bundle.run(
        run_id=run_id,
        config_file=[str(CONFIGS / name) for name in ("train.json", overlay) if name],
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(phantom),
        splits=str(phantom / "splits.json"),
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"),
        image_size=32,
    )
    assert len(trained) == 1
    assert not torch.distributed.is_initialized()
