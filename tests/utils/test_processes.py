from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.workflows import ROOT
from scripts.utils.processes import worker_method

CODE = """
import multiprocessing, sys
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd
from scripts.data import LoadImageVolumed, ThroughPlaneLastd
from scripts.utils.processes import worker_method

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    steps = [LoadImageVolumed("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="LPS", labels=None)]
    steps = Compose([*steps, ThroughPlaneLastd("image")])
    data = Dataset([{"image": sys.argv[2]}], steps)
    (batch,) = DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context=worker_method(2))
    (item,) = decollate_batch({**batch, "pred": batch["image"] * 2})
    print(Invertd("pred", steps, orig_keys="image")(item)["pred"].shape)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_predictions_are_inverted_whatever_way_processes_start(tmp_path: Path, method: str) -> None:
    image = tmp_path / "x.nii"
    nib.save(nib.Nifti1Image(np.zeros((5, 3, 6), np.int16), np.diag([1, 9, 1, 1])), image)
    program = tmp_path / "program.py"
    program.write_text(CODE)
    found = subprocess.run(
        [sys.executable, str(program), method, str(image)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch.Size([1, 5, 3, 6])" in found.stdout, found.stderr[-2000:]


def test_workers_are_started_in_a_named_way_where_there_are_any() -> None:
    assert worker_method(0) is None
    assert worker_method(2) in ("fork", "spawn")
