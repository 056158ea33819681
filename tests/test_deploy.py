"""MONAI Deploy's bundle operator on ``configs/inference.json``: images and label maps stay in memory."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from bundle.workflows import CONFIGS, ROOT
from tests.workflows import random_network, workflow

SIZE = 48


def strike(compose: Compose) -> Compose:
    """Remove the transforms that read and write files; the operator identifies them by class name."""
    names = ("LoadImage", "SaveImage")
    compose.transforms = tuple(t for t in compose.transforms if not any(name in type(t).__name__ for name in names))
    return compose


def segment_in_memory(volume: np.ndarray, affine: np.ndarray, weights: Path) -> np.ndarray:
    """Segment like the operator: remaining transforms, the inferer, and the separate network."""
    config = ConfigParser()
    config.read_config(CONFIGS / "inference.json")
    config["bundle_root"], config["image_size"], config["device"] = str(ROOT), SIZE, "cpu"
    config["checkpoint"], config["dataset_dir"] = str(weights), "/missing"
    before, after = (strike(config.get_parsed_content(name)) for name in ("preprocessing", "postprocessing"))
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    meta = {"affine": affine, "original_affine": affine, "space": "RAS", "original_channel_dim": "no_channel"}
    inputs = before({"image": MetaTensor.ensure_torch_and_prune_meta(volume, meta)})
    with torch.no_grad():
        outputs = config.get_parsed_content("inferer")(inputs=inputs["image"][None], network=network)
    return after({"pred": outputs[0], **inputs})["pred"].numpy()


def test_a_volume_in_memory_gets_the_classes_of_run_inference(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    volume = np.kron(generator.integers(0, 1000, (5, 7, 3)), np.ones((8, 8, 2))).astype(np.int16)
    affine = np.array([[0, -1.5, 0, 10], [1.25, 0, 0, -33], [0, 0, 8, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "case.nii.gz")
    torch.save(random_network().state_dict(), tmp_path / "model.pt")
    workflow(
        "infer",
        "inference.json",
        dataset_dir=str(tmp_path / "case.nii.gz"),
        output_dir=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "model.pt"),
        image_size=SIZE,
    ).run()
    expected = np.asarray(nib.load(tmp_path / "out" / "case_seg.nii.gz").dataobj)
    found = segment_in_memory(volume, affine, tmp_path / "model.pt")
    assert found.shape == (1, *expected.shape)
    counts = np.bincount(expected.ravel(), minlength=4)
    assert (counts > 0).sum() > 1
    assert np.array_equal(np.bincount(found.astype(int).ravel(), minlength=4), counts)
