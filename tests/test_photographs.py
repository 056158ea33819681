"""The bundle on photographs, from training to PNG masks: mapping to the network's grid and back."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.workflows import CONFIGS, ROOT
from scripts.data import dataset_records
from scripts.metrics import segmentation_scores
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort
from tests.workflows import workflow

OVERLAY = "datasets/isic.json"


class Brightness(UNet):
    """Predicts lesion on bright pixels: a mask as input should be the output."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bright = image.mean(dim=1, keepdim=True) - 0.5
        return torch.cat([-bright, bright], dim=1)


def brightness(folder: Path) -> dict[str, Any]:
    """Config values that replace the U-Net by :class:`Brightness`."""
    torch.save(UNet(3, 2).state_dict(), folder / "model.pt")
    network = {"_target_": f"{__name__}.Brightness", "in_channels": 3, "num_classes": 2, "dropout": [0.0] * 5}
    return {"network_def": network, "checkpoint": str(folder / "model.pt")}


def blob(height: int, width: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.indices((height, width))
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    outline = radius * (1 + 0.15 * np.cos(3 * angle) + 0.1 * np.sin(2 * angle))
    return np.hypot(rows - centre[0], columns - centre[1]) < outline


def preprocessing(name: str, size: int) -> Any:
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / OVERLAY])
    parser["bundle_root"], parser["image_size"], parser["slice_axis"] = str(ROOT), size, "axial"
    parser.parse()
    return parser.get_parsed_content(f"{name}#preprocessing")


@pytest.mark.parametrize("shape", [(90, 150), (40, 24)])  # smaller and larger than the network's grid
def test_way_to_the_network(tmp_path: Path, shape: tuple[int, int]) -> None:
    size = 32
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels[0, 0], pixels[-1, -1] = 0, 255
    mask = np.where(blob(*shape, (0.3 * shape[0], 0.6 * shape[1]), 0.25 * shape[0]), 255, 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_segmentation.png")
    record = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "a_segmentation.png")}
    item = preprocessing("train", size)(record)

    # Pillow's bilinear filter widens by the factor of reduction, too; the reader's first axis is x
    expected = [
        Image.fromarray((pixels[..., c] / 255).astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        for c in range(3)
    ]
    assert item["image"].shape == (3, size, size, 1)
    for channel, reference in zip(item["image"][..., 0], expected, strict=True):
        np.testing.assert_allclose(np.asarray(channel).T, np.asarray(reference), atol=2e-5)
    label = np.asarray(item["label"])[0, :, :, 0].T
    for row in range(size):
        for column in range(size):
            centre = int((row + 0.5) * shape[0] / size), int((column + 0.5) * shape[1] / size)
            assert label[row, column] == (mask[centre] > 0)


@pytest.mark.parametrize("centre", [(0.0, 0.3), (0.98, 0.7), (0.4, 0.02), (0.55, 1.0), (0.5, 0.5)])
def test_lesion_keeps_its_place(tmp_path: Path, centre: tuple[float, float]) -> None:
    """A lesion at each border is mapped to the network's grid and back to a PNG mask of native size."""
    height, width = 450, 610
    truth = blob(height, width, (centre[0] * height, centre[1] * width), 130)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).convert("RGB").save(tmp_path / "in" / "x.png")
    flow = workflow(
        "infer",
        "inference.json",
        OVERLAY,
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
        image_size=128,
        **brightness(tmp_path),
    )
    flow.run()
    result = Image.open(tmp_path / "out" / "x_seg.png")
    assert (result.size, result.mode) == ((width, height), "L")
    pixels = np.asarray(result)
    assert set(np.unique(pixels)) == {0, 255}
    found = pixels > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.99
    # no drift: the centres of mass, and to the pixel where the lesion meets the border
    for axis in (0, 1):
        ours, theirs = (np.argwhere(mask)[:, axis].mean() for mask in (found, truth))
        assert abs(ours - theirs) < 0.5
    for side in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        ours, theirs = np.flatnonzero(found[side]), np.flatnonzero(truth[side])
        assert (ours.size > 0) == (theirs.size > 0)
        if theirs.size:
            assert np.abs(ours[[0, -1]] - theirs[[0, -1]]).max() <= 1


def test_masks_keep_their_place_on_the_network_grid(tmp_path: Path) -> None:
    """The label's centre of mass, in shares of the image, is the same on both grids: not half a pixel off."""
    mask = blob(450, 610, (200, 330), 110)
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(tmp_path / "a.png")
    record = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "a.png")}
    label = np.asarray(preprocessing("train", 64)(record)["label"])[0, :, :, 0].T
    assert set(np.unique(label)) == {0, 1}
    for axis, length in enumerate(mask.shape):
        small, large = ((np.argwhere(m)[:, axis].mean() + 0.5) / m.shape[axis] for m in (label > 0, mask))
        assert abs(small - large) < 0.15 / 64, f"axis of {length} px"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lesions") / "cohort"
    return Path(make_phantom_cohort(root, patients=(8, 3, 0), kind="isic", size=(60, 90)))


def test_training_and_both_reports(cohort: Path, tmp_path: Path) -> None:
    data = {"dataset_dir": str(cohort), "image_size": 32, "splits": None}
    settings = {**data, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "run"), "labeled": 0.5}
    settings |= {"batch_size": 2, "train#trainer#max_epochs": 2, "train#trainer#epoch_length": 2}
    flow = workflow("train", "train.json", OVERLAY, "methods/fixmatch.json", **settings)
    flow.run()
    validated = flow.parser.get_parsed_content("validate#dataset")
    shapes = {(tuple(item["image"].shape), tuple(item["label"].shape)) for item in validated}
    assert shapes == {((3, 32, 32, 1), (1, 32, 32, 1))}, "training validates on the network's grid"

    report = tmp_path / "eval"
    evaluation = workflow(
        "evaluation",
        "train.json",
        "evaluate.json",
        OVERLAY,
        **data,
        checkpoint=str(tmp_path / "run" / "model_last.pt"),
        output_dir=str(report),
    )
    assert evaluation.check_properties() == []
    evaluation.run()
    workflow(
        "infer",
        "inference.json",
        OVERLAY,
        **data,
        checkpoint=str(tmp_path / "run" / "model_last.pt"),
        output_dir=str(tmp_path / "seg"),
    ).run()
    rows = {row["case"]: row for row in read(report / "per_volume.csv") if row["class"] == "lesion"}
    records = dataset_records("isic", cohort, "val")
    assert sorted(rows) == sorted(record["case"] for record in records)
    for record in records:
        (written,) = (tmp_path / "seg").rglob(f"{record['case']}_seg.png")
        pred, label = (np.asarray(Image.open(file)) // 255 for file in (written, record["label"]))
        check(rows[record["case"]], segmentation_scores(pred, label, 2)["1"])

    network = {row["case"]: row for row in read(report / "network_grid" / "per_volume.csv") if row["class"] == "lesion"}
    unet = UNet(3, 2)
    unet.load_state_dict(torch.load(tmp_path / "run" / "model_last.pt", weights_only=True))
    assert sorted(network) == sorted(rows)
    for record in records:
        item = preprocessing("train", 32)(record)
        with torch.no_grad():
            pred = unet.eval()(item["image"].as_tensor()[None, ..., 0]).argmax(1)[0]
        label = item["label"].as_tensor()[0, ..., 0]
        check(network[record["case"]], segmentation_scores(pred.numpy(), label.numpy().astype(int), 2)["1"])


def check(row: dict[str, str], scores: dict[str, float | None]) -> None:
    assert row["hd95_mm"] == row["assd_mm"] == "", "photographs have no mm"
    for name in ("dsc", "hd95_voxels", "assd_voxels", "one_empty", "both_empty"):
        assert float(row[name]) == pytest.approx(scores[name], abs=1e-5)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_real_native_pairs(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """At megapixels: each segmentation has the size and position of the image's mask."""
    folder = real_data("isic_native")
    masks = sorted(folder.glob("*_segmentation.png"))
    given = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "image_size": 64}
    workflow("infer", "inference.json", OVERLAY, **given, **brightness(tmp_path)).run()
    assert masks
    names = [mask.name.replace("_segmentation", "_seg") for mask in masks]
    assert sorted(path.name for path in (tmp_path / "out").glob("*_seg*")) == names
    shares = []
    for path, name in zip(masks, names, strict=True):
        result, mask = Image.open(tmp_path / "out" / name), Image.open(path)
        assert (result.size, result.mode) == (mask.size, "L")
        pixels = np.asarray(Image.open(folder / path.name.replace("_segmentation.png", ".jpg")), np.float32)
        scaled = (pixels.mean(axis=-1) - pixels.min()) / (pixels.max() - pixels.min())
        small = Image.fromarray(scaled).resize((64, 64), Image.Resampling.BILINEAR)
        expected = np.where(np.asarray(small.resize(mask.size, Image.Resampling.BILINEAR)) > 0.5, 255, 0)
        shares.append((expected > 0).mean())
        assert (np.asarray(result) == expected).mean() > 0.999
    assert any(0.01 < share < 0.99 for share in shares), "an image without a border shows no place"
