"""The bundle on prostates: PROMISE12's overlay from training to label maps, on phantoms and on a real case."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from bundle.workflows import CONFIGS
from scripts.data import dataset_records
from scripts.data.layouts.promise12 import promise12_cases
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort
from tests.workflows import workflow

OVERLAY = "datasets/promise12.json"
SIZE = {"image_size": 48}
VALIDATION = ("Case04", "Case05")


def infer(source: Path, weights: Path, output: Path, **overrides: Any) -> Path:
    given = {"dataset_dir": str(source), "checkpoint": str(weights), "output_dir": str(output), **overrides}
    workflow("infer", "inference.json", OVERLAY, **SIZE, **given).run()
    return output


def geometry(path: Path) -> tuple[tuple[float, ...], ...]:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def overlap(found: np.ndarray, label: np.ndarray) -> float:
    """Dice of two maps of 0 and 1."""
    return 2 * float((found & label).sum()) / float(found.sum() + label.sum())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def prostates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prostates") / "cohort"
    small = {"size": (56, 64), "spacing": (2.2, 2.6), "slices": (9, 11)}
    make_phantom_cohort(root, patients=(4, 2, 1), seed=1, kind="promise12", **small)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that predict both classes, so that the tests do not depend on a training's success."""
    torch.manual_seed(3)
    network = UNet(num_classes=2)
    with torch.no_grad():
        network.head.bias.zero_()
        network.head.weight -= network.head.weight.mean(dim=1, keepdim=True)
        network.head.weight *= 50  # few voxels are ambiguous
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def maps(prostates: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps and probabilities of the whole cohort, as inference writes them."""
    return infer(prostates, weights, tmp_path_factory.mktemp("maps"), save_probabilities=True)


class Run(NamedTuple):
    """A training: its data, its validation scores in order, and its folder."""

    data: dict[str, str]
    scores: list[float]
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.pt"


@pytest.fixture(scope="module")
def trained(prostates: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    data = {"dataset_dir": str(prostates), "splits": str(prostates / "splits.json")}
    settings = {
        **data,
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        "batch_size": 4,
        "learning_rate": 0.02,  # at .05 rounding decides whether it learns
        "val_interval": 1,  # the first one precedes the learning; later ones may decrease
        "train#trainer#max_epochs": 9,
        "train#trainer#epoch_length": 6,
    }
    flow = workflow("train", "train.json", OVERLAY, "methods/supervised.json", **SIZE, **settings)
    scores: list[float] = []
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: scores.append(float(engine.state.metrics["val_mean_dice"]))
    )
    flow.run()
    return Run(data, scores, folder / "out")


def test_phantom_is_a_cohort_in_the_official_layout(prostates: Path) -> None:
    splits = json.loads((prostates / "splits.json").read_text())
    assert splits == {
        "train": ["Case00", "Case01", "Case02", "Case03"],
        "val": [*VALIDATION],
        "test": ["Case06"],
    }
    for part in splits:
        for record in dataset_records("promise12", prostates, part, prostates / "splits.json"):
            image, label = (sitk.ReadImage(record[key]) for key in ("image", "label"))
            assert Path(record["image"]).suffix == ".mhd"
            assert image.GetPixelID() == sitk.sitkInt16
            assert label.GetPixelID() == sitk.sitkUInt8
            assert geometry(Path(record["image"])) == geometry(Path(record["label"]))
            classes = sitk.GetArrayFromImage(label)
            assert np.unique(classes).tolist() == [0, 1]
            assert 10 < classes.sum() * np.prod(image.GetSpacing()) / 1000 < 90, "ml of a prostate"
            parts = sitk.LabelShapeStatisticsImageFilter()
            parts.Execute(sitk.ConnectedComponent(label))
            assert parts.GetNumberOfLabels() == 1
    tilted = [geometry(path)[3] for path in prostates.glob("Case0?.mhd")]
    assert len(set(tilted)) > 2, "slices of some are tilted"


def test_phantom_does_not_change(tmp_path: Path) -> None:
    small = {"patients": (1, 0, 0), "size": (40, 44), "spacing": (3.0, 3.4), "slices": (6, 7), "kind": "promise12"}
    first, again = (Path(make_phantom_cohort(tmp_path / name, **small)) for name in "ab")
    content = {path.name: path.read_bytes() for path in first.iterdir()}
    assert sorted(content)[:2] == ["Case00.mhd", "Case00.raw"]
    assert {path.name: path.read_bytes() for path in again.iterdir()} == content
    times = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    make_phantom_cohort(first, **small)
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == times
    (first / "Case00_segmentation.raw").unlink()
    make_phantom_cohort(first, **small)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == content


def test_unknown_kind_of_phantom(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of acdc, .*found 'liver'"):
        make_phantom_cohort(tmp_path / "x", kind="liver")


def test_training_improves_over_its_first_validation(trained: Run) -> None:
    assert len(trained.scores) == 9
    assert max(trained.scores) > trained.scores[0] + 0.05, trained.scores
    assert max(trained.scores) > 0.3, trained.scores
    assert torch.load(trained.weights, weights_only=True)["head.weight"].shape[0] == 2


def evaluate(data: dict[str, str], weights: Path, output: Path, part: str) -> Path:
    given = {"checkpoint": str(weights), "output_dir": str(output), "part": part}
    workflow("infer", "train.json", OVERLAY, "evaluate.json", **SIZE, **data, **given).run()
    return output


def test_evaluation_finds_the_best_validation_again(trained: Run, tmp_path: Path) -> None:
    rows = table(evaluate(trained.data, trained.weights, tmp_path / "eval", "val") / "summary.csv")
    assert float(rows[0]["dsc_mean"]) == pytest.approx(max(trained.scores), abs=1e-3)


def test_evaluation_gives_every_measure_in_voxels_and_mm(
    prostates: Path, weights: Path, maps: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": str(prostates), "splits": str(prostates / "splits.json")}
    rows = {row["class"]: row for row in table(evaluate(data, weights, tmp_path / "eval", "val") / "summary.csv")}
    assert list(rows) == ["prostate", "mean"]
    for measure in ("hd95_voxels", "assd_voxels", "hd95_mm", "assd_mm"):
        assert float(rows["prostate"][f"{measure}_mean"]) > 0
    dice = [overlap(array(maps / f"{c}_seg.mha"), array(prostates / f"{c}_segmentation.mhd")) for c in VALIDATION]
    assert float(rows["prostate"]["dsc_mean"]) == pytest.approx(np.mean(dice), abs=1e-3)
    # no axis of a phantom has voxels under 2.2 mm
    assert float(rows["prostate"]["assd_mm_mean"]) > 2 * float(rows["prostate"]["assd_voxels_mean"])


def test_label_maps_come_back_on_the_images_grid(prostates: Path, maps: Path) -> None:
    cases = [f"Case0{i}" for i in range(7)]
    assert sorted(path.name for path in maps.glob("*.mha")) == sorted(
        f"{c}_{k}.mha" for c in cases for k in ("seg", "prob")
    )
    for case in cases:
        expected, found = geometry(prostates / f"{case}.mhd"), geometry(maps / f"{case}_seg.mha")
        assert found[0] == expected[0]
        for a, b in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
        classes, probabilities = array(maps / f"{case}_seg.mha"), array(maps / f"{case}_prob.mha")
        assert np.unique(classes).tolist() == [0, 1]
        assert probabilities.shape == (*classes.shape, 2)
        # the map comes from logits: with equal classes, rounding may decide differently
        clear = np.abs(probabilities[..., 1] - probabilities[..., 0]) > 1e-6
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(probabilities.argmax(-1)[clear], classes[clear])


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz"])
def test_order_and_direction_of_the_axes_do_not_matter(
    weights: Path, prostates: Path, tmp_path: Path, suffix: str
) -> None:
    image = sitk.ReadImage(str(prostates / "Case06.mhd"))
    stored = {
        "same": image,
        "permuted": sitk.PermuteAxes(image, (2, 0, 1)),
        "flipped": sitk.Flip(image, (True, False, True)),
        "both": sitk.Flip(sitk.PermuteAxes(image, (1, 2, 0)), (False, True, True)),
    }
    (tmp_path / "in").mkdir()
    for name, variant in stored.items():
        sitk.WriteImage(variant, str(tmp_path / "in" / f"{name}{suffix}"))
    output = infer(tmp_path / "in", weights, tmp_path / "out", output_ext=suffix)
    maps = {name: sitk.ReadImage(str(output / f"{name}_seg{suffix}")) for name in stored}
    reference = sitk.GetArrayFromImage(maps["same"])
    assert 0.01 < reference.mean() < 0.99
    assert not any(np.array_equal(np.flip(reference, axis), reference) for axis in range(3)), "would not tell"
    for name, found in maps.items():
        np.testing.assert_allclose(found.GetSpacing(), stored[name].GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(found.GetDirection(), stored[name].GetDirection(), atol=1e-5)
        np.testing.assert_allclose(found.GetOrigin(), stored[name].GetOrigin(), atol=1e-4)
        back = sitk.Resample(found, maps["same"], sitk.Transform(), sitk.sitkNearestNeighbor, 9)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), reference)


@pytest.mark.parametrize("chain", ["train#preprocessing", "validate#preprocessing"])
@pytest.mark.parametrize("photographs", [False, True])
def test_label_maps_are_never_interpolated(prostates: Path, tmp_path: Path, chain: str, photographs: bool) -> None:
    # neighbouring classes 0 and 3: any mixture of the two would be another number
    label = 3 * sitk.ReadImage(str(prostates / "Case00_segmentation.mhd"))
    sitk.WriteImage(label, str(tmp_path / "label.mha"))
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.json")))
    parser.update({"image_size": 37, "anti_aliasing": photographs, "slice_axis": "axial"})
    record = {"image": str(prostates / "Case00.mhd"), "label": str(tmp_path / "label.mha")}
    found = parser.get_parsed_content(chain)(record)["label"]
    assert torch.unique(found).tolist() == [0, 3]
    if chain.startswith("validate"):
        np.testing.assert_array_equal(found[0], sitk.GetArrayFromImage(label).transpose(2, 1, 0))


# --- the real case


@pytest.fixture(scope="module")
def real(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Case00 only, copied from any place in the data set."""
    (record,) = promise12_cases(real_data("promise12"))["Case00"]
    folder = tmp_path_factory.mktemp("real")
    for file in Path(record["image"]).parent.glob("Case00*"):
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_real_case_is_written_back_on_identical_geometry(
    real: Path, weights: Path, tmp_path: Path, suffix: str
) -> None:
    output = infer(real, weights, tmp_path / "out", output_ext=suffix)
    raw = ["Case00_seg.raw"] if suffix == ".mhd" else []
    assert sorted(path.name for path in output.glob("Case*")) == [f"Case00_seg{suffix}", *raw]
    assert geometry(output / f"Case00_seg{suffix}") == geometry(next(real.glob("Case00.mh?")))
    classes = array(output / f"Case00_seg{suffix}")
    assert classes.dtype == np.uint8
    assert np.unique(classes).tolist() == [0, 1]


def test_real_case_is_scored(real: Path, weights: Path, tmp_path: Path) -> None:
    row = table(evaluate({"dataset_dir": str(real)}, weights, tmp_path / "eval", "all") / "per_volume.csv")[0]
    assert (row["case"], row["class"]) == ("Case00", "prostate")
    output = infer(real, weights, tmp_path / "out")
    found, label = array(output / "Case00_seg.mha"), array(next(real.glob("Case00_segmentation.mh?")))
    assert float(row["dsc"]) == pytest.approx(overlap(found, label), abs=1e-3)
    # a distance in mm lies between those along the shortest and the longest axis
    spacing = geometry(next(real.glob("Case00.mh?")))[1]
    for measure in ("hd95", "assd"):
        ratio = float(row[f"{measure}_mm"]) / float(row[f"{measure}_voxels"])
        assert min(spacing) * (1 - 1e-4) <= ratio <= max(spacing) * (1 + 1e-4)
