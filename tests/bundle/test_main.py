"""The command line: a user's mistake is one line, an unexpected error keeps its traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.__main__ import main
from bundle.share import verify


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere"], "'nowhere' does not exist"),
        (["pack", "--dataset", "foo", "--weights", "x.pt", "--output", "out"], "dataset: expected one of acdc, .*foo"),
        (["pack", "--dataset", "acdc", "--weights", "x.pt", "--output", "1"], "No checkpoint 'x.pt'"),
        (["bench", "--methods", "nonsense"], "methods: expected some of .*nonsense"),
        (["prepare", "brain", "--source", "2018"], "dataset: expected one of .*brain"),
        (["prepare", "custom", "--source", "2018"], "dataset_dir '2018' does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", line)


def test_names_that_are_numbers_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).normal(100, 10, (8, 8, 2)).astype(np.float32)
    for i in range(2):
        (tmp_path / "2018").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(image + i, np.eye(4)), f"2018/{i}.nii")
        nib.save(nib.Nifti1Image((image > 100).astype(np.uint8), np.eye(4)), f"2018/{i}_gt.nii")
    main(["prepare", "custom", "--source", "2018", "--output", "list.json"])
    assert json.loads(Path("list.json").read_text())["counts"]["training"] == {"images": 1, "cases": 1}


def test_a_fault_of_a_library_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verify, "verify", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(["verify", str(tmp_path)])
