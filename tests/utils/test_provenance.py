from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

from scripts.utils.errors import root_cause
from scripts.utils.provenance import (
    check_grid,
    code_version,
    read_record,
    trained_options,
    trained_size,
    write_record,
)
from tests.workflows import workflow


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    return path


def test_record_names_its_weights_and_no_other(weights: Path) -> None:
    assert read_record(weights) is None
    write_record(weights, {"image_size": 96})
    record = read_record(weights)
    assert record == {
        "image_size": 96,
        "code": code_version(),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    write_record(weights, {**record, "code": "commit abc"})
    assert read_record(weights) == {**record, "code": "commit abc"}, "a known version stays"
    torch.save({"weight": torch.ones(2)}, weights)
    for read in (read_record, lambda path: trained_size(path, 224), lambda path: check_grid(path, 96)):
        with pytest.raises(ValueError, match=r"model\.json: is the record of other weights than '.*model\.pt'"):
            read(weights)


@pytest.mark.parametrize("text", ["{", "[1]", "{" * 90_000, '{"a": NaN}', '{"sha256": "a", "sha256": "b"}', "\0"])
def test_broken_record_is_named(weights: Path, text: str) -> None:
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json: expected the record of weights"):
        read_record(weights)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "128", "$print(1)", None, 10**6])
def test_a_size_that_is_none_is_refused_by_name(weights: Path, size: object) -> None:
    write_record(weights, {"image_size": size})
    for read in (read_record, lambda path: trained_size(path, 224)):
        with pytest.raises(ValueError, match=r"model\.json: image_size: expected the side of a slice"):
            read(weights)


def test_size_follows_the_record_or_the_default(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert trained_size(weights.with_name("none.pt"), 224) == 224
    assert not caplog.text
    assert trained_size(weights, 224) == 224
    assert "no record" in caplog.text
    check_grid(weights, 224)
    write_record(weights, {"image_size": 96})
    assert trained_size(weights, 224) == 96
    check_grid(weights, 96)
    with pytest.raises(ValueError, match="trained on slices of 96 px, this run takes 224 px: set --image_size 96"):
        check_grid(weights, 224)


def test_code_version_is_the_commit_or_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "7.8.9"}')
    assert code_version(tmp_path) == "version 7.8.9"

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = git("rev-parse", "--short", "HEAD")
    assert code_version(tmp_path) == f"commit {commit}"
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "7.8.10"}')
    assert code_version(tmp_path) == f"commit {commit} with changes"
    (tmp_path / "inside").mkdir()
    assert code_version(tmp_path / "inside") == "unknown", "a folder inside a checkout is no part of it"


def test_training_writes_the_record_and_what_reads_the_weights_follows_it(phantom: Path, tmp_path: Path) -> None:
    data = {"dataset_dir": str(phantom), "splits": str(phantom / "splits.json"), "cache_dir": str(tmp_path / "cache")}
    size = {"image_size": 48, "batch_size": 2, "labeled": 2}
    run = tmp_path / "run"
    steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2}
    workflow("train", "train.json", "methods/semsim_minus.json", output_dir=str(run), **data, **size, **steps).run()
    record = read_record(run / "model.pt")
    assert record is not None
    assert {key: record[key] for key in ("method", "fusion", "seed", "iteration", "iterations", "batch_size")} == {
        "method": "SemSim",
        "fusion": "PixelProjection",
        "seed": 0,
        "iteration": 2,
        "iterations": 2,
        "batch_size": 2,
    }
    assert (record["data"], record["split"], record["synthetic"]) == ("acdc", "splits.json", True)
    assert (record["labeled_cases"], record["unlabeled_cases"], record["image_size"]) == (2, 4, 48)
    assert 0 <= record["validation_dice"] <= 1
    assert str(tmp_path) not in json.dumps(record)
    assert "validation_dice" not in json.loads((run / "model_last.json").read_text())

    # the size is not given: inference reads it, evaluation refuses another
    patient = json.loads((phantom / "splits.json").read_text())["val"][0]
    checkpoint = {"checkpoint": str(run / "model.pt")}
    workflow(
        "infer", "inference.json", dataset_dir=str(phantom / patient), output_dir=str(tmp_path), **checkpoint
    ).run()
    evaluation = {**data, **checkpoint, "output_dir": str(tmp_path / "eval")}
    with pytest.raises(Exception) as info:  # noqa: PT011 - MONAI wraps it; what started the chain is looked at
        workflow("infer", "train.json", "evaluate.json", **evaluation).run()
    assert "trained on slices of 48 px, this run takes 224 px" in str(root_cause(info.value))
    workflow("infer", "train.json", "evaluate.json", **evaluation, **size).run()
    about = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert (about["part"], about["weights_sha256"]) == ("val", record["sha256"])


def test_options_of_inference_come_from_the_record(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    paper = {"pixel_spacing": None, "percentiles": [0, 100], "mirroring": False, "largest_component": False}
    paper["slice_axis"] = "thickest"
    assert trained_options(weights) == paper
    write_record(weights, {"image_size": 96})
    assert trained_options(weights) == paper
    recipe = {**paper, "pixel_spacing": 2.0, "percentiles": [1, 99], "mirroring": True, "largest_component": True}
    recipe["slice_axis"] = "coronal"
    write_record(weights, {"image_size": 96, **recipe})
    assert trained_options(weights) == recipe
    check_grid(weights, 96, recipe)
    with pytest.raises(ValueError, match=r"was trained with pixel_spacing 2\.0, this run has None"):
        check_grid(weights, 96, paper)
    for wrong in (
        {"pixel_spacing": -1},
        {"pixel_spacing": "$exit()"},
        {"percentiles": [1]},
        {"percentiles": "1"},
        {"mirroring": 1},
        {"slice_axis": 2},
    ):
        write_record(weights, {**recipe, **wrong})
        with pytest.raises(ValueError, match=next(iter(wrong))):
            trained_options(weights)
