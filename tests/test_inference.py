from __future__ import annotations

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from torch.nn import functional as F  # noqa: N812

from scripts.inference import CohortEvaluator
from scripts.utils.errors import one_line
from scripts.utils.provenance import write_record
from tests.workflows import ROOT, random_network, workflow

SIZE = 48


def rotation():
    """A rotation about all three axes, small enough that the nearest axes stay the same."""
    return np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(1).normal(size=(3, 3)))[0] * [-1, -1, 1]


def save_volume(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def phantom(shape=(40, 56, 5), seed=0):
    """Smooth random volume of integers, like a scanner's."""
    noise = torch.rand(1, 1, 6, 6, shape[2], generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, size=shape, mode="trilinear")[0, 0]
    return (smooth * 1000).numpy().astype(np.int16)


def oblique_affine():
    affine = np.eye(4)
    affine[:3, :3] = rotation() @ np.diag([1.5, 1.25, 8.0])
    affine[:3, 3] = [10.125, -33.3, 77.7]
    return affine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(random_network().state_dict(), path)
    return path


@pytest.fixture
def infer(tmp_path, model, monkeypatch):
    """Runs configs/inference.json from another directory; returns the output folder."""

    def run(source, **options):
        monkeypatch.chdir(tmp_path)
        options = {"checkpoint": str(model), "image_size": SIZE, "output_dir": str(tmp_path / "out"), **options}
        flow = workflow("infer", "inference.json", dataset_dir=str(source), **options)
        assert flow.check_properties() == []
        try:
            flow.run()
        except RuntimeError as error:  # the bundle wraps an expression's error
            raise error.__cause__ or error from None
        return tmp_path / "out"

    return run


def load(path):
    return np.asarray(nib.load(path).dataobj)


# --- the workflow


def plain_prediction(array, network):
    """Label map of a volume [X, Y, Z] stored as LPS, slice by slice."""
    low, high = float(array.min()), float(array.max())
    result = np.zeros(array.shape, dtype=np.uint8)
    for z in range(array.shape[2]):
        image = torch.from_numpy((array[:, :, z].astype(np.float32) - low) / (high - low))[None, None]
        with torch.no_grad():
            logits = network(F.interpolate(image, (SIZE, SIZE), mode="bilinear", align_corners=False))
        logits = F.interpolate(logits, array.shape[:2], mode="bilinear", align_corners=False)
        result[:, :, z] = logits[0].argmax(0).numpy()
    return result


def test_label_map_equals_plain_slices_on_the_original_grid(tmp_path, infer):
    array, affine = phantom(), oblique_affine()
    save_volume(tmp_path / "in" / "case.nii.gz", array, affine)
    out = infer(tmp_path / "in" / "case.nii.gz")
    assert sorted(path.name for path in out.iterdir()) == ["case_seg.nii.gz", "predictions.jsonl"]
    result = nib.load(out / "case_seg.nii.gz")
    assert result.get_data_dtype() == np.uint8
    assert np.array_equal(result.affine, nib.load(tmp_path / "in" / "case.nii.gz").affine)
    expected = plain_prediction(array, random_network())
    assert len(np.unique(expected)) > 1
    # Pixels between two classes of equal logits may fall to either.
    assert np.mean(np.asarray(result.dataobj) != expected) < 1e-3


def test_axis_order_names_and_probabilities(tmp_path, infer):
    array, affine = phantom(), oblique_affine()
    slices_first = np.eye(4)[:, [2, 0, 1, 3]]  # voxel (z, x, y) of the file -> (x, y, z)
    flipped = np.diag([-1.0, 1.0, -1.0, 1.0])
    flipped[[0, 2], 3] = array.shape[0] - 1, array.shape[2] - 1
    volumes = {
        "a/same.nii.gz": (array, affine),
        "b/same.nii.gz": (array.transpose(2, 0, 1), affine @ slices_first),
        "flipped.nii": (array[::-1, :, ::-1], affine @ flipped),
        "one.nii.gz": (array[:, :, :1], affine),
    }
    for name, (stored, stored_affine) in volumes.items():
        save_volume(tmp_path / "in" / name, stored, stored_affine)
    out = infer(tmp_path / "in", save_probabilities=True)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.nii.gz"))
    stems = ("a/same", "b/same", "flipped", "one")
    assert found == sorted(f"{stem}_{kind}.nii.gz" for stem in stems for kind in ("seg", "prob"))
    for name, stem in zip(volumes, stems, strict=True):
        source, result = nib.load(tmp_path / "in" / name), nib.load(out / f"{stem}_seg.nii.gz")
        assert result.shape == source.shape
        assert np.array_equal(result.affine, source.affine)
        probabilities = load(out / f"{stem}_prob.nii.gz")
        assert probabilities.shape == (*source.shape, 4)
        assert np.allclose(probabilities.sum(-1), 1, atol=1e-5)
        assert np.array_equal(probabilities.argmax(-1), np.asarray(result.dataobj))
    reference = load(out / "a/same_seg.nii.gz")
    assert len(np.unique(reference)) > 1
    assert np.array_equal(load(out / "b/same_seg.nii.gz").transpose(1, 2, 0), reference)
    assert np.array_equal(load(out / "flipped_seg.nii.gz")[::-1, :, ::-1], reference)


def test_volumes_are_cut_as_in_training(tmp_path, infer):
    array = phantom((40, 36, 44))
    save_volume(tmp_path / "a.nii.gz", array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    weights = tmp_path / "model.pt"
    torch.save(random_network().state_dict(), weights)
    write_record(weights, {"image_size": SIZE, "slice_axis": "coronal"})
    out = infer(tmp_path / "a.nii.gz", checkpoint=str(weights))
    expected = plain_prediction(array.transpose(0, 2, 1), random_network()).transpose(0, 2, 1)
    assert np.mean(load(out / "a_seg.nii.gz") != expected) < 1e-3
    write_record(weights, {"image_size": SIZE, "slice_axis": "$print()"})
    with pytest.raises(RuntimeError) as info:
        infer(tmp_path / "a.nii.gz", checkpoint=str(weights))
    assert "model.json: slice_axis: expected one of" in one_line(info.value)


def test_label_values_that_do_not_fit_the_classes_are_refused_at_once(tmp_path, infer):
    save_volume(tmp_path / "in" / "a.nii.gz", phantom(), np.eye(4))
    with pytest.raises(RuntimeError) as info:
        infer(tmp_path / "in", label_values=[0, 255])
    assert one_line(info.value).startswith("label_values: expected one value for each of the 4 classes")
    assert not (tmp_path / "out").exists()


def test_truncated_image_is_named_and_results_stay(tmp_path, infer):
    save_volume(tmp_path / "in" / "a.nii.gz", phantom(), np.eye(4))
    whole = (tmp_path / "in" / "a.nii.gz").read_bytes()
    (tmp_path / "in" / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"in/b\.nii\.gz is not an image .* damaged") as error:
        infer(tmp_path / "in")
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["a_seg.nii.gz"]
    assert load(tmp_path / "out" / "a_seg.nii.gz").shape == (40, 56, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 3), np.nan, dtype=np.float32), "NaN or infinite"),
        (np.zeros((8, 8, 3, 30), dtype=np.float32), "found 30 channels, expected 1"),
    ],
)
def test_unusable_image_is_named(tmp_path, infer, array, message):
    save_volume(tmp_path / "bad.nii.gz", array, np.eye(4))
    with pytest.raises(ValueError, match=rf"bad\.nii\.gz: .*{message}"):
        infer(tmp_path / "bad.nii.gz")
    assert not list(tmp_path.rglob("*_seg.nii.gz"))


def test_checkpoint_of_other_classes_stops_before_anything_is_written(tmp_path, infer):
    save_volume(tmp_path / "a.nii.gz", phantom(), np.eye(4))
    with pytest.raises(ValueError, match="it has 4 classes, the network 2"):
        infer(tmp_path / "a.nii.gz", num_classes=2)
    assert not (tmp_path / "out").exists()


def test_preprocessing_is_that_of_training():
    def image_steps(config, key):
        steps = []
        for step in config.get(key)["transforms"]:
            keys = [step["keys"]] if isinstance(step["keys"], str) else step["keys"]
            if "image" not in keys:
                continue
            # with several keys, the image's setting is the first of each pair
            first = {name: step[name][0] for name in ("mode", "anti_aliasing") if isinstance(step.get(name), list)}
            step = {**step, **first, "keys": "image"}
            steps.append({name: value for name, value in step.items() if name != "allow_missing_keys"})
        return steps

    inference, train = ConfigParser(), ConfigParser()
    inference.read_config(ROOT / "configs" / "inference.json")
    train.read_config(ROOT / "configs" / "train.json")
    expected = image_steps(train, "train#preprocessing")
    assert image_steps(inference, "preprocessing") == expected
    assert image_steps(train, "validate#preprocessing") == expected


@pytest.mark.parametrize("run_id", ["run", "inferring", ""])
def test_inference_runs_once(tmp_path, model, monkeypatch, run_id):
    """With the empty id MONAI evaluates the whole config."""
    ran = []

    def run(evaluator):
        ran.append(evaluator)

    monkeypatch.setattr(CohortEvaluator, "run", run)
    save_volume(tmp_path / "a.nii.gz", phantom(), np.eye(4))
    given = {"dataset_dir": str(tmp_path / "a.nii.gz"), "output_dir": str(tmp_path / "out"), "checkpoint": str(model)}
    config = str(ROOT / "configs" / "inference.json")
    monai.bundle.run(run_id=run_id, config_file=config, bundle_root=str(ROOT), image_size=SIZE, **given)
    assert len(ran) == 1


def test_transforms_can_be_read_without_data():
    # MONAI Label uses the config's preprocessing and postprocessing with its own images.
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.json")
    parser["bundle_root"] = str(ROOT)
    parser["dataset_dir"] = "/missing"
    for key in ("preprocessing", "postprocessing", "inferer", "network_def"):
        assert parser.get_parsed_content(key) is not None


def test_real_volume_keeps_its_grid(real_acdc, infer):
    source = sorted(real_acdc.glob("*/*_frame01.nii.gz"))[0]
    image = nib.load(source)
    (result,) = infer(source).glob("*.nii.gz")
    assert nib.load(result).shape == image.shape
    assert np.array_equal(nib.load(result).affine, image.affine)
    assert np.asarray(nib.load(result).dataobj).max() < 4
    # ITK and its viewers read the spacing from another field than nibabel
    one, other = (sitk.ReadImage(str(path)) for path in (source, result))
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(one, geometry)() == getattr(other, geometry)()
