"""The demonstration, short, from nothing to its picture."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest

from bundle.demo import main
from scripts.utils.provenance import read_record


def test_from_an_empty_folder_to_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(output=str(tmp_path), seeds=0, **{"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 1})
    test_patients = json.loads((tmp_path / "cohort" / "splits.json").read_text())["test"]
    for method in ("supervised", "semsim"):
        record = read_record(tmp_path / f"{method}-default-seed0" / "model.pt")
        assert record is not None
        assert record["synthetic"]
        assert record["labeled_cases"] == 3
        (labels,) = (tmp_path / f"{method}-labels").rglob("*.nii.gz")
        assert any(patient in labels.name for patient in test_patients)
        (image,) = (tmp_path / "cohort").rglob(labels.name.replace("_seg", ""))
        found, expected = nib.load(labels), nib.load(image)
        assert found.shape == expected.shape
        assert (found.affine == expected.affine).all()
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| semsim |  | 0 |" in printed
    assert "| supervised |  | 0 |" in printed
