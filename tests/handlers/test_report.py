from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.handlers.report import SegmentationReport
from scripts.metrics import segmentation_scores
from scripts.utils.provenance import write_record
from tests.workflows import ROOT, random_network, workflow

SIZE = 48


def volume(file, pred, label, spacing=(1.5, 1.5, 8.0), label_axes=(1, 1, 1)):
    """One item of an evaluator's output after decollation."""
    affine = np.diag([*spacing, 1.0])
    return {
        "image": MetaTensor(torch.zeros(1, *pred.shape), meta={"filename_or_obj": file}),
        "pred": MetaTensor(torch.from_numpy(pred)[None].float(), affine=affine),
        "label": MetaTensor(torch.from_numpy(label)[None].float(), affine=affine @ np.diag([*label_axes, 1.0])),
    }


def evaluate(batches, output_dir, **options):
    engine = Engine(lambda engine, batch: batch)
    SegmentationReport(output_dir, num_classes=3, **options).attach(engine)
    engine.run(batches)


def read(path):
    with Path(path).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def random_maps(seed, shape=(9, 8, 5)):
    return np.random.default_rng(seed).integers(0, 3, (2, *shape)).astype(np.uint8)


def test_volumes_and_summary(tmp_path, capsys):
    maps = {f"/data/{folder}/x.nii.gz": random_maps(seed) for seed, folder in enumerate("abc")}
    maps["/data/c/x.nii.gz"][0][maps["/data/c/x.nii.gz"][0] == 2] = 0  # class 2 missed once
    spacing = (1.5, 1.5, 8.0)
    batches = [[volume(file, *pair)] for file, pair in maps.items()]
    evaluate(batches, tmp_path / "eval", class_names={"1": "RV"})

    expected = [segmentation_scores(*pair, 3, spacing) for pair in maps.values()]
    rows = read(tmp_path / "eval" / "per_volume.csv")
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"{folder}/x", name) for folder in "abc" for name in ("RV", "2", "mean")
    ]
    for row, (key, scores) in zip(rows, [item for each in expected for item in each.items()], strict=True):
        assert key in (row["class"], "1")
        assert {name: float(row[name]) for name in scores} == pytest.approx(scores, abs=1e-6)

    summary = {row["class"]: row for row in read(tmp_path / "eval" / "summary.csv")}
    assert list(summary) == ["RV", "2", "mean"]
    for name, key in (("RV", "1"), ("2", "2"), ("mean", "mean")):
        assert summary[name]["volumes"] == "3"
        for measure in ("dsc", "hd95_voxels", "assd_voxels", "hd95_mm", "assd_mm"):
            values = [scores[key][measure] for scores in expected]
            mean = sum(values) / 3
            assert float(summary[name][f"{measure}_mean"]) == pytest.approx(mean, abs=1e-6)
            deviation = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
            assert float(summary[name][f"{measure}_std"]) == pytest.approx(deviation, abs=1e-6)
    assert [summary[name]["one_empty"] for name in ("RV", "2", "mean")] == ["0", "1", "1"]
    table = capsys.readouterr().out
    assert "3 volumes, mean ± standard deviation of the population" in table
    assert f"{float(summary['mean']['dsc_mean']):.4f}" in table
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["per_volume.csv", "summary.csv"]


@pytest.mark.parametrize(
    ("part", "result", "told"),
    [("val", {"validation_dice": 0.5}, True), ("val", {}, False), ("test", {"validation_dice": 0.5}, False)],
)
def test_figures_on_the_cases_that_chose_the_weights_are_marked(tmp_path, capsys, part, result, told):
    weights = tmp_path / "model.pt"
    torch.save({}, weights)
    write_record(weights, result)
    evaluate([[volume("/d/x.nii", *random_maps(0))]], tmp_path, checkpoint=weights, part=part)
    assert ("chosen by their Dice on validation cases" in capsys.readouterr().out) == told


def test_mm_are_by_the_spacing_of_the_image(tmp_path):
    """If the label's header differs slightly, the image's is used."""
    pair = random_maps(0)
    item = volume("/d/x.nii", *pair, spacing=(1.5, 1.5, 8.0))
    item["label"].affine = np.diag([1.7, 1.5, 7.5, 1.0])
    evaluate([[item]], tmp_path)
    expected = segmentation_scores(*pair, 3, (1.5, 1.5, 8.0))
    for row, scores in zip(read(tmp_path / "per_volume.csv"), expected.values(), strict=True):
        assert float(row["assd_mm"]) == pytest.approx(scores["assd_mm"], abs=1e-6)


def test_photographs_have_no_mm(tmp_path):
    pred, label = random_maps(0, (12, 9))
    item = {
        "image": MetaTensor(torch.zeros(1, 12, 9), meta={"filename_or_obj": "photo.jpg"}),
        "pred": torch.from_numpy(pred)[None],
        "label": MetaTensor(torch.from_numpy(label)[None]),
    }
    evaluate([[item]], tmp_path)
    rows = read(tmp_path / "per_volume.csv")
    assert {row["case"] for row in rows} == {"photo"}
    assert all(row["hd95_mm"] == row["assd_mm"] == "" for row in rows)
    assert all(float(row["hd95_voxels"]) >= 0 for row in rows)
    assert read(tmp_path / "summary.csv")[0]["assd_mm_mean"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pred, label: volume("/d/x.nii", pred, label[:-1]), "differ in shape"),
        (lambda pred, label: volume("/d/x.nii", pred, label + 1), "label holds values from 1.* to 3"),
        (lambda pred, label: volume("/d/x.nii", pred, label, label_axes=(-1, 1, 1)), "axes are LAS, expected RAS"),
    ],
)
def test_unfit_label_is_named_and_nothing_is_written(tmp_path, change, message):
    item = change(*random_maps(0))
    with pytest.raises(ValueError, match=f"/d/x.nii: .*{message}"):
        evaluate([[item]], tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


def test_a_second_run_starts_anew(tmp_path):
    engine = Engine(lambda engine, batch: batch)
    SegmentationReport(tmp_path, num_classes=3).attach(engine)
    for seed in range(2):
        engine.run([[volume(f"/d/{seed}.nii", *random_maps(seed))]])
    assert {row["case"] for row in read(tmp_path / "per_volume.csv")} == {"1"}


def report_of_a_process(rank, folder):
    """Volume 0 in the first process, 0 and 1 in the second."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batches = [[volume(f"/d/{seed}.nii", *random_maps(seed))] for seed in range(rank + 1)]
    evaluate(batches, Path(folder, str(rank)))
    dist.barrier()
    os._exit(0)  # see tests/test_engine.py


def test_the_first_process_reports_the_volumes_of_all(tmp_path):
    mp.spawn(report_of_a_process, args=(str(tmp_path),), nprocs=2)
    evaluate([[volume(f"/d/{seed}.nii", *random_maps(seed))] for seed in range(2)], tmp_path / "one")
    for name in ("per_volume.csv", "summary.csv"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not (tmp_path / "1").exists()


# --- configs/evaluate.json


@pytest.fixture
def cohort(tmp_path):
    """Three annotated frames of two patients in ACDC's layout, a split and random weights."""
    rng = np.random.default_rng(0)
    affine = np.diag([-1.5, -1.25, 8.0, 1.0])
    for name in ("patient001_frame04", "patient001_frame11", "patient002_frame01"):
        folder = tmp_path / "data" / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        label = np.zeros((36, 30, 3), dtype=np.uint8)
        label[8:20, 6:18], label[20:28, 10:22] = 1, 2
        image = (label * 100 + rng.integers(0, 80, label.shape)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_gt.nii.gz")
    splits = {"train": ["patient002"], "val": ["patient001"], "test": []}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    torch.save(random_network().state_dict(), tmp_path / "model.pt")
    return tmp_path


def run_bundle(folder, configs, output, **options):
    files = {"dataset_dir": str(folder / "data"), "checkpoint": str(folder / "model.pt"), **options}
    flow = workflow("evaluation", *configs, output_dir=str(folder / output), image_size=SIZE, **files)
    assert flow.check_properties() == []
    flow.run()
    return folder / output


@pytest.mark.parametrize("part", ["val", "test"])
def test_one_part_does_not_overwrite_the_other(part):
    parser = ConfigParser(
        ConfigParser.load_config_files([ROOT / "configs" / f"{name}.json" for name in ("train", "evaluate")])
    )
    parser["part"] = part
    assert Path(parser.get_parsed_content("output_dir")) == Path("eval", part)


def test_evaluation_scores_what_inference_writes(cohort, monkeypatch):
    monkeypatch.chdir(cohort)  # not the bundle's root
    options = {"splits": str(cohort / "splits.json"), "num_classes": 4}
    evaluated = run_bundle(cohort, ["train.json", "evaluate.json"], "eval", **options)
    segmented = run_bundle(cohort, ["inference.json"], "out")
    rows = read(evaluated / "per_volume.csv")
    assert {row["case"] for row in rows} == {"patient001_frame04", "patient001_frame11"}
    assert {row["class"] for row in rows} == {"RV", "Myo", "LV", "mean"}
    for row in rows:
        if row["class"] != "mean":
            number = ("RV", "Myo", "LV").index(row["class"]) + 1
            pred = np.asarray(nib.load(segmented / "patient001" / f"{row['case']}_seg.nii.gz").dataobj) == number
            label = nib.load(cohort / "data" / "patient001" / f"{row['case']}_gt.nii.gz").get_fdata() == number
            total = pred.sum() + label.sum()
            assert float(row["dsc"]) == pytest.approx(2 * (pred & label).sum() / total if total else 1, abs=1e-6)
    assert any(0 < float(row["dsc"]) < 1 for row in rows)


def test_evaluation_names_the_weights_that_it_scored(cohort):
    """A running training replaces its best weights while they are evaluated."""
    weights = cohort / "model.pt"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    report = SegmentationReport(cohort / "eval", 2, checkpoint=weights, part="val")
    engine = Engine(lambda engine, batch: weights.write_bytes(b"newer") and [])
    report.attach(engine)
    engine.run([0])
    assert weights.read_bytes() == b"newer"
    about = json.loads((cohort / "eval" / "evaluation.json").read_text())
    assert (about["part"], about["weights_sha256"]) == ("val", digest)


def test_evaluation_of_a_folder(cohort):
    evaluated = run_bundle(cohort, ["train.json", "evaluate.json"], "eval", part="all")
    cases = {row["case"] for row in read(evaluated / "per_volume.csv")}
    assert cases == {"patient001/patient001_frame04", "patient001/patient001_frame11", "patient002/patient002_frame01"}


def test_validation_of_real_volumes(cohort, real_acdc):
    patient = sorted(real_acdc.iterdir())[0]
    (cohort / "splits.json").write_text(json.dumps({"val": [patient.name]}))
    options = {"dataset_dir": str(real_acdc), "splits": str(cohort / "splits.json")}
    evaluated = run_bundle(cohort, ["train.json", "evaluate.json"], "eval", **options)
    rows = read(evaluated / "per_volume.csv")
    assert len(rows) == 2 * 4
    # a distance in mm lies between those along the shortest and the longest side of a voxel
    sides = sitk.ReadImage(str(next(patient.glob("*_gt.nii.gz")))).GetSpacing()
    assert max(sides) > 2 * min(sides)
    for row in rows:
        ratio = float(row["assd_mm"]) / float(row["assd_voxels"])
        assert min(sides) * (1 - 1e-4) <= ratio <= max(sides) * (1 + 1e-4)
