from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from torch.nn import functional as F  # noqa: N812

from scripts.data.images import evaluation_records, find_images, find_labeled, source_root
from scripts.data.layouts.custom import custom_cases
from scripts.handlers.weights import load_network_weights
from scripts.networks import UNet
from scripts.utils.errors import one_line
from scripts.utils.provenance import write_record
from tests.workflows import ROOT, random_network, workflow

SIZE = 48


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(records, folder):
    return [os.path.relpath(record["image"], folder) for record in records]


def pairs(records, folder):
    return [(os.path.relpath(record["image"], folder), os.path.relpath(record["label"], folder)) for record in records]


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


# --- which images


def test_folder_is_searched_for_images_only(tmp_path):
    touch(tmp_path, "b/x.nii.gz", "a/x.nii.gz", "a/y.mhd", "a/y.raw", "photo.JPG", "deep/er/z.nii")
    touch(tmp_path, "a/x_gt.nii.gz", "photo_segmentation.png", "a/x_seg.nii.gz", "a/x_prob.nii.gz", "a/p_4d.nii.gz")
    touch(tmp_path, ".hidden.nii.gz", ".cache/x.nii.gz", "notes.txt", "Info.cfg")
    assert names(find_images(tmp_path), tmp_path) == [
        "a/x.nii.gz",
        "a/y.mhd",
        "b/x.nii.gz",
        "deep/er/z.nii",
        "photo.JPG",
    ]


def test_single_file_is_taken_as_it_is(tmp_path):
    touch(tmp_path, "x_gt.nii.gz")
    assert find_images(tmp_path / "x_gt.nii.gz") == [{"image": str(tmp_path / "x_gt.nii.gz")}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"training": [{"image": "a.nii", "label": "b.nii"}], "testing": ["c.nii"]}, ["c.nii"]),
        ({"training": ["a.nii"], "test": [{"image": "c.nii", "label": "not at hand.nii"}]}, ["c.nii"]),
        ({"training": ["not at hand.nii"], "testing": ["c.nii"], "test": ["b.nii"]}, ["b.nii", "c.nii"]),
        ({"training": ["a.nii"], "validation": [{"image": "b.nii"}], "testing": []}, ["b.nii"]),
        ({"training": [{"image": "b.nii", "label": "a.nii"}, {"image": "../list/a.nii"}]}, ["b.nii", "a.nii"]),
    ],
)
def test_datalist_takes_the_part_to_predict(tmp_path, parts, expected):
    folder = tmp_path / "list"
    touch(folder, "a.nii", "b.nii", "c.nii")
    (folder / "datalist.json").write_text(json.dumps(parts))
    records = find_images(folder / "datalist.json")
    assert names(records, folder) == expected
    assert all(list(record) == ["image"] for record in records)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing", None, FileNotFoundError, "missing' does not exist"),
        ("text.txt", "", ValueError, r"text.txt' is not an image"),
        ("list.json", "{", ValueError, "list.json: expected a datalist, found invalid JSON"),
        ("list.json", "[]", ValueError, "list.json: expected a datalist, found"),
        ("list.json", '{"training": [{"label": "a"}]}', ValueError, "list.json: training: entry 1: lacks image"),
        ("list.json", '{"test": ["gone.nii"]}', ValueError, "gone.nii', which does not exist"),
        ("list.json", '{"test": [], "training": []}', ValueError, "list.json: the datalist names no image"),
    ],
)
def test_unusable_source_is_named(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        find_images(tmp_path / name)


def test_folder_without_images(tmp_path):
    touch(tmp_path, "sub/x_gt.nii.gz")
    with pytest.raises(FileNotFoundError, match="No image"):
        find_images(tmp_path)


def test_images_that_would_share_a_result_are_refused(tmp_path):
    touch(tmp_path, "x.nii", "x.nii.gz")
    with pytest.raises(ValueError, match="differ only in their suffix"):
        find_images(tmp_path)


def test_labels_are_paired_by_name(tmp_path):
    touch(tmp_path, "p1/a.nii.gz", "p1/a_gt.nii.gz", "p2/b.jpg", "p2/b_segmentation.png", "p3/c.nii.gz")
    expected = [("p1/a.nii.gz", "p1/a_gt.nii.gz"), ("p2/b.jpg", "p2/b_segmentation.png")]
    assert pairs(find_labeled(tmp_path), tmp_path) == expected
    assert pairs(evaluation_records("no such layout", tmp_path, "all"), tmp_path) == expected
    with pytest.raises(FileNotFoundError, match="has a label"):
        find_labeled(tmp_path / "p3")
    with pytest.raises(FileNotFoundError, match="neither a folder of images nor a datalist"):
        find_labeled(tmp_path / "p4")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p1/visit1.nii.gz", "p1/visit1_seg.nii.gz"),
        ("images/x.png", "masks/x.png"),
        ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz"),
        ("x.mha", "x_LABEL.mha"),
    ],
)
def test_what_training_takes_for_a_label_evaluation_scores_and_inference_leaves(tmp_path, image, label):
    touch(tmp_path, image, label)
    assert pairs([r for of_case in custom_cases(tmp_path).values() for r in of_case], tmp_path) == [(image, label)]
    assert pairs(find_labeled(tmp_path), tmp_path) == [(image, label)]
    assert names(find_images(tmp_path), tmp_path) == [image]


def test_all_labelled_images_of_a_datalist_are_scored(tmp_path):
    touch(tmp_path, *(f"{name}.nii" for name in "abcdef"))
    lists = {
        "training": [{"image": "a.nii", "label": "b.nii"}, "c.nii"],
        "test": [{"image": "d.nii", "label": "e.nii"}],
    }
    (tmp_path / "list.json").write_text(json.dumps({**lists, "validation": ["f.nii"]}))
    records = evaluation_records("custom", tmp_path / "list.json", "all")
    assert pairs(records, tmp_path) == [("a.nii", "b.nii"), ("d.nii", "e.nii")]


def test_empty_part_is_refused(tmp_path):
    touch(tmp_path, "patient001/patient001_frame01.nii.gz")
    (tmp_path / "splits.json").write_text('{"train": [], "val": [], "test": []}')
    with pytest.raises(ValueError, match=r"'test' of .*splits\.json is empty"):
        evaluation_records("acdc", tmp_path, "test", tmp_path / "splits.json")


def test_source_root_holds_all_images(tmp_path):
    touch(tmp_path, "data/a/x.nii", "data/b/x.nii")
    (tmp_path / "lists").mkdir()
    datalist = tmp_path / "lists" / "l.json"
    datalist.write_text('{"test": ["../data/a/x.nii", "../data/b/x.nii"]}')
    assert source_root(tmp_path / "data") == str(tmp_path / "data")
    assert source_root(tmp_path / "data/a/x.nii") == str(tmp_path / "data/a")
    assert source_root(datalist) == str(tmp_path / "data")
    assert source_root(tmp_path / "missing") == str(tmp_path / "missing")


# --- weights


def test_weights_are_loaded(model):
    network = UNet()
    load_network_weights(network, model)
    expected = random_network().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: UNet(num_classes=2).state_dict(), r"it has 2 classes, the network 4 \(num_classes\)"),
        (lambda: UNet(in_channels=3).state_dict(), r"it takes 3 channels, the network 1 \(in_channels\)"),
        (
            lambda: {"method": UNet().state_dict(), "state": {"epoch": 3}},
            "contains method, state, expected a network's",
        ),
        (lambda: {"weight": torch.zeros(1)}, "belongs to another network"),
        (lambda: [1, 2], "contains list"),
        (UNet, "cannot be read as tensors"),
    ],
    ids=["classes", "channels", "resume", "strange", "list", "pickle"],
)
def test_unfit_checkpoint_is_named_and_changes_nothing(tmp_path, content, message):
    path = tmp_path / "some.pt"
    torch.save(content(), path)
    network = UNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"some\.pt.*{message}"):
        load_network_weights(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_missing_or_damaged_checkpoint(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint '.*gone\.pt'"):
        load_network_weights(UNet(), tmp_path / "gone.pt")
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pt: cannot be read"):
        load_network_weights(UNet(), tmp_path / "cut.pt")


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
