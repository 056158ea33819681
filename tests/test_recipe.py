"""configs/recipe.json from training to a prediction on the image's grid."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.workflows import method_names
from scripts.augmentation import AugmentedView
from scripts.methods import Objective
from tests.methods.common import THIN_SAM, needs_sam
from tests.workflows import workflow

SHORT = {
    "train#trainer#max_epochs": 2,
    "train#trainer#epoch_length": 2,
    "batch_size": 2,
    "train#trainer#supervised_share": 0.5,
}


def data(phantom: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset_dir": str(phantom),
        "splits": str(phantom / "splits.json"),
        "cache_dir": str(tmp_path / "cache"),
        "image_size": 48,
        "pixel_spacing": 4.0,
    }


def test_recipe_reaches_inference_by_the_record(phantom: Path, tmp_path: Path) -> None:
    given = data(phantom, tmp_path)
    flow = workflow(
        "train", "train.json", "recipe.json", "methods/semsim_minus.json", **given, **SHORT, output_dir=str(tmp_path)
    )
    flow.run()
    method: Objective = flow.parser.get_parsed_content("method")
    assert isinstance(method.weak, AugmentedView)
    assert method.supervised_iterations == 2
    assert method.teacher_decay == 0.99
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["pixel_spacing"], record["percentiles"]) == (4.0, [1, 99])
    assert record["settings"]["weak_view degrees"] == 180

    checkpoint = {"checkpoint": str(tmp_path / "model.pt")}
    scores = {**given, **checkpoint, "output_dir": str(tmp_path / "scores")}
    with pytest.raises(RuntimeError) as refused:
        workflow("infer", "train.json", "evaluate.json", **{**scores, "pixel_spacing": None}).run()
    assert "trained with pixel_spacing 4.0, this run has None" in str(refused.value.__cause__ or refused.value)
    workflow("infer", "train.json", "recipe.json", "evaluate.json", **scores).run()
    with (tmp_path / "scores" / "summary.csv").open() as file:
        assert all(math.isfinite(float(row["dsc_mean"])) for row in csv.DictReader(file))

    image = next(phantom.glob("*/*_frame??.nii.gz"))
    flow = workflow("infer", "inference.json", **checkpoint, dataset_dir=str(image), output_dir=str(tmp_path / "maps"))
    assert flow.parser.get_parsed_content("pixel_spacing") == 4.0
    flow.run()
    found, expected = nib.load(next((tmp_path / "maps").glob("**/*_seg.nii.gz"))), nib.load(image)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_sam if n == "cpc_sam" else ()) for n in method_names()])
def test_every_method_starts_and_goes_on_under_the_recipe(name: str, phantom: Path, tmp_path: Path) -> None:
    given = {**data(phantom, tmp_path), **SHORT, "image_size": 64, "validate#dataset#data": []}
    if name == "cpc_sam":
        given |= {f"network_def#{key}": value for key, value in THIN_SAM.items()}
    flow = workflow("train", "train.json", "recipe.json", f"methods/{name}.json", **given, output_dir=str(tmp_path))
    flow.run()
    engine = flow.parser.get_parsed_content("train#trainer")
    assert engine.state.iteration == 4
    assert all(torch.isfinite(p).all() for p in engine.objective.parameters())
