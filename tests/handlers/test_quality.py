from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from scripts.handlers.quality import PASSES, QualityReport, ViewPasses
from scripts.quality.fit import fit_dice
from scripts.quality.images import image_features
from scripts.quality.record import Calibration, write_calibration
from scripts.utils.errors import FaultsError, root_cause
from scripts.utils.files import write_text
from tests.dicom_study import Study, write
from tests.workflows import workflow


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(source: Path, weights: Path, **options: Any) -> Path:
        monkeypatch.chdir(tmp_path)
        options |= {"dataset_dir": str(source), "output_dir": str(tmp_path / "out"), "checkpoint": str(weights)}
        workflow("infer", "inference.json", quality=True, **options).run()
        return tmp_path / "out"

    return run


def save(path: Path, seed: int, shape: tuple[int, int, int] = (40, 44, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).random(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([-1.5, -2.0, 8.0, 1.0])), path)


def calibrated(weights: Path) -> Path:
    scores = [0.2, 0.4, 0.5, 0.7, 0.8]
    fit = fit_dice(scores, [0.3, 0.6, 0.6, 0.8, 0.9], list("abcde"))
    assert fit is not None
    write_calibration(weights, Calibration(2.0, {1: fit, 3: fit}, {"dark": [0.9, 1.0]}), {})
    return weights


def test_inference_writes_the_quality_of_its_results(
    tmp_path: Path, trained: Callable[..., Path], infer: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("a/one.nii.gz", "b/two.nii.gz")):
        save(tmp_path / "in" / name, number)
    weights = calibrated(trained())
    out = infer(tmp_path / "in", weights)
    rows = read(out / "quality.csv")
    assert sorted({row["case"] for row in rows}) == ["a/one", "b/two"]
    assert [row["class"] for row in rows] == ["RV", "Myo", "LV"] * 2
    assert "2 of 2 need a review" in capsys.readouterr().out
    for row in rows:
        label = np.asarray(nib.Nifti1Image.from_filename(out / f"{row['case']}_seg.nii.gz").dataobj)
        volume = np.count_nonzero(label == ["RV", "Myo", "LV"].index(row["class"]) + 1) * 1.5 * 2.0 * 8.0 / 1000
        assert float(row["ml"]) == pytest.approx(volume, abs=1e-4)
        assert "intensities unlike the training images'" in row["flags"]
        assert bool(row["predicted_dice"]) == (row["class"] != "Myo"), "a class without a fit has an empty column"
        if row["predicted_dice"]:
            assert float(row["low"]) <= float(row["predicted_dice"]) <= float(row["high"])
            assert ("low predicted Dice" in row["flags"]) == (float(row["predicted_dice"]) < 0.7)
    content = json.loads((out / "a" / "one_seg.json").read_text())
    assert content["map"] == "one_seg.nii.gz"
    assert set(content["classes"]) == {"RV", "Myo", "LV"}

    # earlier results of these weights stay in the table, removed ones and those of other weights do not
    save(tmp_path / "in" / "c" / "three.nii.gz", 3)
    (out / "a" / "one_seg.nii.gz").rename(out / "elsewhere.nii.gz")
    other = {**content, "case": "other", "map": "two_seg.nii.gz", "weights_sha256": "0"}
    (out / "b" / "other_seg.json").write_text(json.dumps(other))
    infer(tmp_path / "in" / "c", weights)
    assert sorted({row["case"] for row in read(out / "quality.csv")}) == ["b/two", "three"]


class Killed(BaseException):
    """The end of a process."""


def test_a_run_that_was_killed_while_it_judged_is_continued(
    tmp_path: Path, trained: Callable[..., Path], infer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("one", "three", "two")):
        save(tmp_path / "in" / f"{name}.nii.gz", number)
    weights = trained()

    def kill(path: Path, text: str) -> None:
        if path.name == "three_seg.json":
            raise Killed
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("scripts.handlers.quality.write_text", kill)
        with pytest.raises(Killed):
            infer(tmp_path / "in", weights)
    table = infer(tmp_path / "in", weights) / "quality.csv"
    complete = table.read_text()
    assert {row["case"] for row in read(table)} == {"one", "three", "two"}

    # killed after the last image: nothing is left but the table
    table.unlink()
    infer(tmp_path / "in", weights)
    assert table.read_text() == complete

    table.with_name("two_seg.json").unlink()
    infer(tmp_path / "in", weights)
    assert table.read_text() == complete


def test_an_image_that_cannot_be_judged_does_not_stop_the_others(
    tmp_path: Path, trained: Callable[..., Path], infer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("one", "three", "two")):
        save(tmp_path / "in" / f"{name}.nii.gz", number)
    weights = trained()

    def fail(image: MetaTensor) -> dict[str, float]:
        if "three" in str(image.meta["filename_or_obj"]):
            raise ValueError("no features")
        return image_features(image)

    with monkeypatch.context() as patch:
        patch.setattr("scripts.handlers.quality.image_features", fail)
        with pytest.raises(RuntimeError) as info:
            infer(tmp_path / "in", weights)
    error = root_cause(info.value)
    assert isinstance(error, FaultsError)
    (line,) = error.faults
    assert "three.nii.gz" in line
    assert "no features" in line
    table = tmp_path / "out" / "quality.csv"
    assert {row["case"] for row in read(table)} == {"one", "two"}
    infer(tmp_path / "in", weights)
    assert {row["case"] for row in read(table)} == {"one", "three", "two"}


def test_probabilities_are_calibrated_and_labels_stay(
    tmp_path: Path, trained: Callable[..., Path], infer: Callable[..., Path]
) -> None:
    save(tmp_path / "in" / "x.nii.gz", 0)
    weights = trained()
    out = infer(tmp_path / "in", weights, save_probabilities=True)
    found = {}
    for name in ("seg", "prob"):
        found[name] = np.asarray(nib.Nifti1Image.from_filename(out / f"x_{name}.nii.gz").dataobj)
    calibrated(weights)
    infer(tmp_path / "in", weights, save_probabilities=True)
    calm = np.asarray(nib.Nifti1Image.from_filename(out / "x_prob.nii.gz").dataobj)
    logits = np.log(found["prob"]) / 2.0
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert np.allclose(calm, expected, atol=1e-4)
    assert np.array_equal(np.asarray(nib.Nifti1Image.from_filename(out / "x_seg.nii.gz").dataobj), found["seg"])


class Evaluator:
    """The parts of an evaluator that the handlers read."""

    def __init__(self, output: Any) -> None:
        self.state = type("State", (), {"output": output, "device": torch.device("cpu")})
        self.amp, self.amp_kwargs = False, {}
        self.network = torch.nn.Conv2d(1, 2, 3, padding=1)
        self.inferer: Any = lambda image, network: network(image)

    def mode(self, network: torch.nn.Module) -> torch.no_grad:
        network.eval()
        return torch.no_grad()


def test_passes_of_a_batch_lie_on_its_grid() -> None:
    engine = Evaluator({"image": torch.rand(2, 1, 6, 6)})
    with torch.no_grad():
        engine.state.output["pred"] = engine.network(engine.state.output["image"])
    ViewPasses(engine.inferer).predict(engine)
    passes = engine.state.output[PASSES]
    assert passes.shape == (2, 4, 2, 6, 6)
    assert torch.equal(passes[:, 0], engine.state.output["pred"])
    # a symmetric filter gives the same result in all views
    engine.network.weight.data.fill_(0.1)
    with torch.no_grad():
        engine.state.output["pred"] = engine.network(engine.state.output["image"])
    ViewPasses(engine.inferer).predict(engine)
    for other in engine.state.output[PASSES][:, 1:].unbind(1):
        torch.testing.assert_close(other, engine.state.output["pred"])


def test_worst_comes_first_and_photographs_have_no_volume(tmp_path: Path, trained: Callable[..., Path]) -> None:
    report = QualityReport(
        tmp_path, 2, trained(in_channels=1, num_classes=2), SliceInferer(roi_size=(4, 4)), {"1": "lesion"}
    )
    report._start()
    square = torch.zeros(1, 12, 12, 1)
    square[:, 3:9, 3:9] = 1
    sure = torch.cat([8 - 16 * square, 16 * square - 8]).expand(4, -1, -1, -1, -1)
    unsure = sure.clone() / 40
    nothing = torch.zeros_like(sure)
    nothing[:, 0] = 9.0
    for name, passes in (("sure", sure), ("unsure", unsure), ("empty", nothing)):
        (tmp_path / f"{name}_seg.png").touch()
        label = passes[0].argmax(0, keepdim=True).float()
        meta = {"filename_or_obj": f"{name}.png"}
        image = MetaTensor(square, meta=meta)
        pred = MetaTensor(label, meta={**meta, "saved_to": str(tmp_path / f"{name}_seg.png")})
        report._judge(Evaluator([{"image": image, "pred": pred, PASSES: passes}]))  # type: ignore[arg-type]
    report._write()
    rows = read(tmp_path / "quality.csv")
    assert [row["case"] for row in rows] == ["empty", "unsure", "sure"]
    assert [row["flags"] for row in rows] == ["empty, passes disagree", "passes disagree", ""]
    assert {row["ml"] for row in rows} == {row["predicted_dice"] for row in rows} == {""}


def test_a_photograph_in_dicom_has_no_volume_either(
    tmp_path: Path, trained: Callable[..., Path], infer: Callable[..., Path]
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    write([Study().photograph(picture)], tmp_path / "in")
    skin = {"num_classes": 2, "class_names": {"1": "lesion"}, "class_codes": {}, "class_colors": {}, "enclosing": {}}
    weights = trained("isic", in_channels=3, num_classes=2)
    out = infer(tmp_path / "in", weights, in_channels=3, output_ext=".dcm", **skin)
    (row,) = read(out / "quality.csv")
    assert (row["class"], row["ml"]) == ("lesion", "")
    assert next(out.glob("*_seg.json")).with_suffix(".dcm").is_file()
