from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer

from scripts.handlers.calibration import CalibrationFit, CalibrationReport, _Voxels
from scripts.quality.record import read_calibration
from scripts.utils.errors import root_cause
from scripts.utils.provenance import read_record
from tests.workflows import workflow


def test_evaluation_fits_on_validation_cases(
    tmp_path: Path, phantom: Path, trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained()
    workflow(
        "infer",
        "train.json",
        "evaluate.json",
        dataset_dir=str(phantom),
        splits=str(phantom / "splits.json"),
        output_dir=str(tmp_path / "eval"),
        checkpoint=str(weights),
        image_size=48,
        calibrate=True,
    ).run()
    calibration = read_calibration(weights)
    record = read_record(weights)
    assert record is not None
    assert record["calibration"]["cases"] == 2
    assert calibration.dice == {}, "two patients are too few to predict a Dice from"
    assert calibration.images == {}, "twelve training images are too few"
    content = json.loads((tmp_path / "eval" / "calibration.json").read_text())
    assert content["temperature"] == calibration.temperature != 1
    errors = content["expected_calibration_error"]
    assert set(errors["before"]) == {"foreground", "contours", "all"}
    assert errors["before"] != errors["after"]
    assert "2 validation cases are too few" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["test", "train", "all"])
def test_calibration_refuses_other_parts(part: str) -> None:
    with pytest.raises(ValueError, match=f"calibrate: expected part val, .* found part {part}"):
        CalibrationFit(SliceInferer(roi_size=(4, 4)), "model.pt", part, 2, list, lambda x: x, 1)  # type: ignore[arg-type]


def calibrate(cohort: Path, weights: Path, output: Path, **options: Any) -> None:
    splits = {"splits": str(cohort / "splits.json"), "image_size": 48, "output_dir": str(output), "calibrate": True}
    given = {"dataset_dir": str(cohort), "checkpoint": str(weights), **splits, **options}
    try:
        workflow("infer", "train.json", "evaluate.json", **given).run()
    except RuntimeError as error:
        raise root_cause(error) from None


def test_calibration_without_its_training_images_or_record_is_refused_before_the_evaluation(
    tmp_path: Path, phantom: Path, trained: Callable[..., Path]
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(phantom, cohort)
    lost = json.loads((cohort / "splits.json").read_text())["train"][-1]
    shutil.rmtree(cohort / lost)
    weights, out = trained(), tmp_path / "eval"
    with pytest.raises(FileNotFoundError, match=f"1 of the 6 'train' cases .* {lost}"):
        calibrate(cohort, weights, out)
    assert not (out / "summary.csv").exists()
    calibrate(cohort, weights, out, allow_missing=True)
    assert (read_record(weights) or {})["calibration"]["cases"] == 2

    weights.with_suffix(".json").unlink()
    with pytest.raises(
        ValueError, match=r"calibrate: expected weights with a record, found no '.*model\.json'"
    ) as info:
        calibrate(cohort, weights, tmp_path / "again", allow_missing=True)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "again" / "summary.csv").exists()


def test_ranges_are_those_of_the_training_images_of_the_fold(
    tmp_path: Path, phantom: Path, trained: Callable[..., Path]
) -> None:
    folder = tmp_path / "Dataset001_Heart"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    images = sorted(phantom.glob("*/*_frame??.nii.gz"))[:3]
    for number, image in enumerate(images):
        shutil.copy(image, folder / "imagesTr" / f"c{number}_0000.nii.gz")
        shutil.copy(image.with_name(image.name.replace(".nii", "_gt.nii")), folder / "labelsTr" / f"c{number}.nii.gz")
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    about = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    folds = [{"train": ["c1", "c2"], "val": ["c0"]}, {"train": ["c0", "c1"], "val": ["c2"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    given = {"dataset_dir": str(folder), "splits": None, "layout": "custom", "fold": 1, "calibrate": True}
    options = {"checkpoint": str(trained()), "output_dir": str(tmp_path / "eval"), "image_size": 48, **given}
    handlers = workflow("infer", "train.json", "evaluate.json", **options).parser.get_parsed_content("handlers")
    (fit,) = [handler for handler in handlers if isinstance(handler, CalibrationFit)]
    assert [record["case"] for record in fit.training()] == ["c0", "c1"]


@pytest.mark.parametrize("orientation", ["SLP", "RSA"])
def test_errors_do_not_depend_on_the_order_of_the_axes_in_the_files(
    tmp_path: Path, phantom: Path, trained: Callable[..., Path], orientation: str
) -> None:
    """Near the foreground and a contour means in the plane of the slices, wherever a file stores them."""
    cohort = tmp_path / "cohort"
    shutil.copytree(phantom, cohort)
    for path in cohort.rglob("*_frame*.nii.gz"):
        image = nib.Nifti1Image.from_filename(path)
        assert image.shape[2] == min(image.shape)
        now, then = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
        stored = image.as_reoriented(nib.orientations.ornt_transform(now, then))
        assert stored.shape[2] > min(stored.shape)
        nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine).to_filename(path)
    found = []
    for name, source in (("before", phantom), ("after", cohort)):
        calibrate(source, trained(), tmp_path / name, calibrate=False)
        found.append(json.loads((tmp_path / name / "calibration.json").read_text())["expected_calibration_error"])
    assert set(found[0]["before"]) == {"foreground", "contours", "all"}
    assert found[1]["before"] == pytest.approx(found[0]["before"], abs=1e-5)


def item(logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": logits, "label": label[None]}


def test_error_is_that_of_the_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(20, 20, 2, dtype=torch.long)
    label[5:15, 5:15] = torch.randint(1, 3, (10, 10, 2), generator=generator)
    logits = torch.randn(3, 20, 20, 2, generator=generator) * 2
    voxels = _Voxels()
    voxels.add(item(logits, label))
    probability = (logits / 1.5).softmax(0)
    confidence, pred = (x.flatten().numpy() for x in probability.max(0))
    right = pred == label.flatten().numpy()
    expected = 0.0
    for low in np.arange(20) / 20:
        inside = (confidence >= low) & (confidence < low + 0.05)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert voxels.errors(1.5)["all"] == pytest.approx(expected, abs=1e-5)


def test_a_case_without_foreground_counts_where_it_has_voxels(tmp_path: Path, trained: Callable[..., Path]) -> None:
    report = CalibrationReport(tmp_path, trained())
    background = torch.zeros(2, 6, 6)
    background[0] = 3.0
    report.voxels.add(item(background, torch.zeros(6, 6)))
    report._write()
    before = json.loads((tmp_path / "calibration.json").read_text())["expected_calibration_error"]["before"]
    assert set(before) == {"all"}
    assert before["all"] == pytest.approx(1 - torch.sigmoid(torch.tensor(3.0)).item(), abs=1e-5)
