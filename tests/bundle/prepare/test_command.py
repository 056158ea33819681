from __future__ import annotations

import hashlib
import json
import ntpath
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from bundle.prepare import command as prepare
from bundle.prepare.command import main
from bundle.prepare.montage import draw_montage
from bundle.workflows import execute
from scripts.data import cohort_axis, dataset_records
from scripts.phantoms import make_phantom_cohort


def blob(shape: tuple[int, ...], seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc with a brighter core, and its classes, in noise."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape[:2])
    center = rng.uniform(0.4, 0.6, 2) * shape[:2]
    radius = np.hypot(*(grid - center[:, None, None]))
    label = sum((radius < r * min(shape[:2])).astype(np.uint8) for r in (0.35, 0.2, 0.1)[: classes - 1])
    label = np.broadcast_to(label[..., None], (*shape[:2], shape[2])) if len(shape) == 3 else label
    return (60 * label + rng.normal(40, 8, shape)).clip(0, 255), label


def save_nifti(path: Path, array: np.ndarray, dtype: type) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(dtype), np.diag([-1.5, -1.5, 8, 1])), path)


@pytest.fixture(scope="module")
def niftis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six 3-class volumes, the last two without a label."""
    root = tmp_path_factory.mktemp("niftis")
    for i in range(6):
        image, label = blob((40, 48, 3), i)
        save_nifti(root / "images" / f"s{i}.nii.gz", image, np.int16)
        if i < 4:
            save_nifti(root / "labels" / f"s{i}.nii.gz", label, np.uint8)
    return root


def save_photograph(root: Path, i: int) -> None:
    image, label = blob((48, 40), i, classes=2)
    tint = np.stack([image, image * 0.7, image * 0.5], axis=-1).astype(np.uint8)
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(tint).save(root / "images" / f"p{i}.png")
    Image.fromarray(255 * label.astype(np.uint8)).save(root / "masks" / f"p{i}.png")


@pytest.fixture(scope="module")
def flat(niftis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first slice of those volumes, as files of two dimensions."""
    root = tmp_path_factory.mktemp("flat")
    for path in niftis.rglob("*.nii.gz"):
        volume = nib.load(path)
        save_nifti(root / path.relative_to(niftis), np.asarray(volume.dataobj)[..., 0], volume.get_data_dtype().type)
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for i in range(6):
        save_photograph(root, i)
    return root


def test_a_datalist_is_frozen_with_split_counts_and_checksums(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "lists" / "set.json"
    main("custom", str(niftis), str(target), num_classes=3)
    content = json.loads(target.read_text())
    assert content["counts"] == {"training": {"images": 5, "cases": 5}, "validation": {"images": 1, "cases": 1}}
    entries = content["training"] + content["validation"]
    assert sum("label" in entry for entry in entries) == 4
    for entry in entries:
        for key, digest in entry["sha256"].items():
            file = target.parent / entry[key]
            assert not Path(entry[key]).is_absolute()
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    # training uses the same records from the folder and from the list
    for part in ("train", "val"):
        found = dataset_records("custom", niftis, part)
        listed = dataset_records("custom", target, part)
        assert [r["image"] for r in listed] == [r["image"] for r in found]
        assert [r.get("label") for r in listed] == [r.get("label") for r in found]
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("train"))
    assert row.split() == ["train", "5", "5", "3", "15", "1:3", "2:3", "48", "x", "40", "1.5", "x", "1.5", "x", "8"]
    assert Image.open(target.with_name(f"{target.stem}_montage.png")).size[0] > 500


def test_what_label_files_store_and_the_names_of_classes_are_kept(photographs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    main("custom", str(photographs), str(first), in_channels=3, label_values=[0, 255])
    content = json.loads(first.read_text())
    assert content["label_values"] == [0, 255]
    assert content["labels"] == {"0": "background", "1": "1"}
    content["labels"] = {"0": "skin", "1": "lesion", "2": "no class of it"}
    first.write_text(json.dumps(content))
    main("custom", str(first), str(second), in_channels=3)
    content = json.loads(second.read_text())
    assert content["labels"] == {"0": "skin", "1": "lesion"}
    assert content["label_values"] == [0, 255]
    first.write_text(json.dumps({**content, "labels": ["lesion"]}))
    with pytest.raises(ValueError, match=r"a\.json: labels: expected names by class, .* found \['lesion'\]"):
        main("custom", str(first), str(second), in_channels=3)


@pytest.mark.parametrize(
    ("path", "expected"), [(r"C:\data\a b\x.nii", "../data/a b/x.nii"), (r"D:\data\x.nii", "D:/data/x.nii")]
)
def test_a_datalist_written_on_windows_has_forward_slashes(
    monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    monkeypatch.setattr(prepare, "os", SimpleNamespace(path=ntpath, sep=ntpath.sep))
    assert prepare._relative(path, r"C:\lists") == expected


def test_the_picture_beside_the_list_is_no_image_of_the_set(photographs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photographs, tmp_path / "set")
    for _ in range(2):
        target = root / "images" / "set.json"
        main("custom", str(root), str(target), num_classes=2, in_channels=3, label_values=[0, 255])
        counts = json.loads(target.read_text())["counts"]
        assert sum(part["images"] for part in counts.values()) == 6


def test_all_faults_are_listed_and_nothing_is_written(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(niftis, root)
    image, label = blob((40, 48, 3), 0)
    image[0, 0, 0] = np.nan
    save_nifti(root / "images" / "s0.nii.gz", image, np.float32)
    save_nifti(root / "labels" / "s1.nii.gz", label + 7 * (label == 2), np.uint8)
    save_nifti(root / "labels" / "s2.nii.gz", label[:, :30], np.uint8)
    (root / "images" / "s3.nii.gz").write_bytes((root / "images" / "s3.nii.gz").read_bytes()[:200])
    save_nifti(root / "images" / "s4.nii.gz", np.full((40, 48, 3), 7), np.int16)
    (root / "images" / "s5.nii.gz").unlink()
    (root / "images" / "s5.png").write_text("no image")
    with pytest.raises(SystemExit, match="6 faults"):
        main("custom", str(root), str(tmp_path / "out" / "set.json"), num_classes=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    expected = (
        ("s0.nii.gz", "NaN"),
        ("labels/s1.nii.gz", "must be 0..2, found 9"),
        ("labels/s2.nii.gz", "label shape (40, 30, 3) is not the image's shape (40, 48, 3)"),
        ("s3.nii.gz", "is not an image of this type, or is damaged"),
        ("s4.nii.gz", "all its values are 7"),
        ("s5.png", "s5.png"),
    )
    for file, what in expected:
        assert sum(file in line and what in line for line in lines) == 1, (file, lines)
    assert not (tmp_path / "out").exists()


def test_an_image_in_two_parts_is_a_fault_and_in_two_cases_a_note(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, source in (("a", "s0"), ("b", "s0"), ("c", "s1"), ("d", "s1"), ("e", "s2")):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(niftis / kind / f"{source}.nii.gz", tmp_path / kind / f"{name}.nii.gz")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": [f"images/{n}" for n in "abc"], "val": [f"images/{n}" for n in "de"]}))
    with pytest.raises(SystemExit, match="1 fault in"):
        main("custom", str(tmp_path), str(tmp_path / "set.json"), splits=str(splits), num_classes=3)
    printed = capsys.readouterr().out
    note, fault = printed.split("1 fault:")
    assert "b.nii.gz: the same image as" in note
    assert "d.nii.gz: the same image as" in fault
    assert "in 'val' and in 'train'" in fault


def test_missing_cases_and_mistakes_are_named(niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["images/s0", "images/s9"], "val": ["images/s1"], "test": ["images/s8"]}))
    with pytest.raises(SystemExit, match="1 fault in"):
        main("custom", str(niftis), str(tmp_path / "set.json"), splits=str(splits), num_classes=3)
    printed = capsys.readouterr().out
    assert "case 'images/s9' of part 'train'" in printed
    assert "all 1 'test' cases" in printed
    assert "--allow_missing True continues without" in printed
    main("custom", str(niftis), str(tmp_path / "set.json"), splits=str(splits), num_classes=3, allow_missing=True)
    assert "1 'train' cases of" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "set.json").read_text())["training"]) == 1
    with pytest.raises(ValueError, match=r"dataset: expected one of acdc, custom, isic, promise12, found 'brain'"):
        main("brain", str(niftis))
    with pytest.raises(ValueError, match=r"expected the name of a \.json file"):
        main("custom", str(niftis), str(tmp_path / "set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no case in dataset_dir"):
        main("custom", str(tmp_path / "empty"), str(tmp_path / "set.json"))


def test_the_slice_axis_is_decided_shown_and_kept(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("custom", str(niftis), str(tmp_path / "a.json"), num_classes=3)
    assert "slices: axial, 6 of 6 volumes have thick slices in this plane" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["slice_axis"] == "axial"
    main("custom", str(niftis), str(tmp_path / "b.json"), num_classes=3, slice_axis="coronal")
    capsys.readouterr()
    main("custom", str(tmp_path / "b.json"), str(tmp_path / "c.json"), num_classes=3)
    printed = capsys.readouterr().out
    assert f"slices: coronal, from {tmp_path / 'b.json'}" in printed
    row = next(line for line in printed.splitlines() if line.startswith("train"))
    assert "3 x 40" in row, "rows x columns of a coronal slice"
    assert cohort_axis([], tmp_path / "c.json") == "coronal"
    with pytest.raises(ValueError, match="slice_axis: expected one of sagittal, coronal"):
        main("custom", str(niftis), str(tmp_path / "d.json"), num_classes=3, slice_axis="z")


def test_label_maps_among_the_images_and_outliers_are_noted(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(niftis, root)
    _, label = blob((40, 48, 3), 4)
    save_nifti(root / "images" / "s4_myo.nii.gz", label, np.uint8)
    image, _ = blob((40, 48, 3), 5)
    image[3, 4, 1] = 32767
    save_nifti(root / "images" / "s5.nii.gz", image, np.int16)
    main("custom", str(root), str(tmp_path / "a.json"), num_classes=3)
    printed = capsys.readouterr().out
    assert (
        f"{root}/images/s4_myo.nii.gz looks like a label map of {root}/images/s4.nii.gz: it has few values" in printed
    )
    assert f"{root}/images/s5.nii.gz has outliers: 99.8 % of its voxels lie within" in printed
    assert printed.count("looks like") == printed.count("has outliers") == 1


def test_files_that_changed_since_are_found(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(photographs, root)
    main("custom", str(root), str(tmp_path / "a.json"), in_channels=3, label_values=[0, 255])
    main("custom", str(tmp_path / "a.json"), str(tmp_path / "b.json"), in_channels=3, label_values=[0, 255])
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["training"] == second["training"]
    shutil.copy(root / "masks" / "p0.png", root / "masks" / "p1.png")
    with pytest.raises(SystemExit, match="1 fault in"):
        main("custom", str(tmp_path / "a.json"), str(tmp_path / "c.json"), in_channels=3, label_values=[0, 255])
    assert "masks/p1.png: changed since the datalist was made" in capsys.readouterr().out


SHORT = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "image_size": 64, "batch_size": 2}


@pytest.fixture(scope="module")
def modalities(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Like ``niftis``, with two and four modalities in one file."""
    roots = {}
    for channels in (2, 4):
        root = roots[channels] = tmp_path_factory.mktemp(f"{channels}-modalities")
        for i in range(6):
            image, label = blob((40, 48, 3), i)
            stacked = np.stack([image * 10.0**channel for channel in range(channels)], axis=-1)
            save_nifti(root / "images" / f"s{i}.nii.gz", stacked, np.float32)
            if i < 4:
                save_nifti(root / "labels" / f"s{i}.nii.gz", label, np.uint8)
    return roots


@pytest.mark.parametrize("kind", ["niftis", "flat", "photographs", 2, 4])
def test_a_set_of_ones_own_trains_evaluates_and_segments_from_its_datalist(
    kind: str | int, request: pytest.FixtureRequest, modalities: dict[int, Path], tmp_path: Path
) -> None:
    folder: Path = modalities[kind] if isinstance(kind, int) else request.getfixturevalue(kind)
    rgb = kind == "photographs"
    settings = {"in_channels": 3, "label_values": [0, 255]} if rgb else {"num_classes": 3}
    if isinstance(kind, int):
        settings["in_channels"] = kind
    target = tmp_path / "set.json"
    main("custom", str(folder), str(target), **settings)
    flags = {"anti_aliasing": True} if rgb else {}
    given = {**settings, **flags, "dataset_dir": str(target), "cache_dir": str(tmp_path / "cache")}
    run = tmp_path / "run"
    files = ["train.json", "datasets/custom.json", "methods/fixmatch.json"]
    labeled = {"labeled": 2} if rgb else {}
    execute("train", files, **given, **SHORT, **labeled, output_dir=str(run))
    evaluation = {"checkpoint": str(run / "model.pt"), "output_dir": str(tmp_path / "eval")}
    execute("infer", [*files, "evaluate.json"], **given, **SHORT, **labeled, **evaluation)
    rows = (tmp_path / "eval" / "summary.csv").read_text().splitlines()
    assert len(rows) == 1 + (2 if rgb else 3)
    suffix = ".png" if rgb else ".nii.gz"
    source = folder / "images" / ("p5.png" if rgb else "s5.nii.gz")
    execute(
        "infer",
        ["inference.json", "datasets/custom.json"],
        **settings,
        **flags,
        image_size=64,
        checkpoint=str(run / "model.pt"),
        dataset_dir=str(source),
        output_dir=str(tmp_path / "out"),
        output_ext=suffix,
    )
    (written,) = (tmp_path / "out").rglob(f"*{suffix}")
    if not rgb:
        assert nib.load(written).shape == (40, 48, 1 if kind == "flat" else 3)
        assert np.allclose(nib.load(written).affine, nib.load(source).affine)
    else:
        assert Image.open(written).size == Image.open(source).size
        assert set(np.unique(np.asarray(Image.open(written)))) <= {0, 255}


def test_faults_of_the_list_itself_are_all_shown(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(niftis / "images" / f"{name}.nii.gz") for name in ("s0", "s0", *(f"gone{i}" for i in range(7)))]
    (tmp_path / "list.json").write_text(json.dumps({"training": names}))
    with pytest.raises(SystemExit, match=r"9 faults in .*no datalist was written"):
        main("custom", str(tmp_path / "list.json"), str(tmp_path / "out.json"), num_classes=3)
    printed = capsys.readouterr().out
    assert printed.count("which does not exist") == 7
    assert printed.count("is in training twice") == 1
    assert printed.count("no training image has a label") == 1


def test_faults_of_names_splits_and_images_are_listed_together(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(niftis, root)
    nib.save(nib.load(root / "images" / "s0.nii.gz"), root / "images" / "s0.nii")
    save_nifti(root / "labels" / "s1.nii.gz", np.full((40, 48, 3), np.inf), np.float32)
    label = blob((40, 30, 3), 2)[1]
    save_nifti(root / "labels" / "s2.nii.gz", label + 7 * (label == 2), np.uint8)
    image, label = (nib.load(root / kind / "s3.nii.gz") for kind in ("images", "labels"))
    nib.save(nib.Nifti1Image(label.dataobj, image.affine @ np.diag([2, 2, 0.5, 1])), root / "labels" / "s3.nii.gz")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": [f"images/s{i}" for i in (0, 1, 2, 9)], "val": ["images/s3", "images/s0"]}))
    with pytest.raises(SystemExit, match="7 faults in"):
        main("custom", str(root), str(tmp_path / "a.json"), splits=str(splits), num_classes=3)
    faults = capsys.readouterr().out.split("7 faults:")[1]
    for what in (
        f"s0.nii' and '{root}/images/s0.nii.gz' differ only in their suffix",
        "has 'images/s0' in parts 'train' and 'val'",
        "case 'images/s9' of part 'train'",
        "s1.nii.gz: label values must be 0..2, found inf",
        "s2.nii.gz: label shape (40, 30, 3) is not the image's shape (40, 48, 3)",
        "s2.nii.gz: label values must be 0..2, found 9",
        "s3.nii.gz: label and image are not on the same grid",
    ):
        assert faults.count(what) == 1, (what, faults)


CODE = "$__import__('pathlib').Path('executed').touch()"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_values", [CODE, 1, 2]),
        ("label_values", CODE),
        ("label_values", {"_target_": "pathlib.Path.touch", "self": "executed"}),
        ("labels", {"1": CODE, "2": "bone"}),
        ("labels", {"1": {"_target_": "os.system", "command": "touch executed"}}),
        ("slice_axis", CODE),
    ],
)
def test_code_in_a_list_is_not_executed(
    niftis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    """These became a part of a MONAI config, which executes what begins with ``$`` and calls a ``_target_``."""
    monkeypatch.chdir(tmp_path)
    entries = [{kind: str(niftis / f"{kind}s" / f"s{i}.nii.gz") for kind in ("image", "label")} for i in range(2)]
    (tmp_path / "a.json").write_text(json.dumps({"training": entries[:1], "validation": entries[1:], key: value}))
    with pytest.raises(ValueError, match=rf"a\.json: {key}: .*expected"):
        main("custom", "a.json", "b.json", num_classes=3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_list_that_changed_and_is_faulty_is_no_crash(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("custom", str(niftis), str(tmp_path / "a.json"), num_classes=3)
    content = json.loads((tmp_path / "a.json").read_text())
    content["training"][0]["sha256"]["image"] = "0" * 64
    content["training"] += [{"image": ["two.nii.gz", "modalities.nii.gz"]}, 7]
    content["test"] = None
    (tmp_path / "b.json").write_text(json.dumps(content))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="3 faults in"):
        main("custom", str(tmp_path / "b.json"), str(tmp_path / "c.json"), num_classes=3)
    printed = capsys.readouterr().out
    assert printed.count("changed since the datalist was made") == 1
    assert printed.count("image: expected the path of one file, found ['two.nii.gz', 'modalities.nii.gz']") == 1
    assert printed.count("expected an entry with an image's path, found 7") == 1


def test_what_is_passed_over_is_noted(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    shutil.copytree(photographs, root)
    for name in ("notes.txt", "x.bmp", ".hidden.txt", "p0_superpixels.png"):
        (root / "images" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p0.tif").touch()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "masks" / "p1.png").rename(root / "masks" / "typo.png")
    shutil.copy(root / "images" / "p2.png", root / "images" / "p3.png")
    entries = [{"image": f"set/images/p{i}.png", "label": f"set/masks/p{i}.png", "case": "one"} for i in (2, 3)]
    (tmp_path / "visits.json").write_text(json.dumps({"training": entries, "validation": []}))
    given = {"in_channels": 3, "label_values": [0, 255]}

    main("custom", str(root), str(tmp_path / "a.json"), splits=None, **given)
    printed = capsys.readouterr().out
    assert f"{root}/images: unused files: notes.txt, x.bmp." in printed
    assert f"{root}/linked: unused files: p0.tif." in printed
    assert f"{root}/masks: labels without an image: typo.png." in printed
    assert "the split is by image: if a patient has several, only a datalist" in printed
    row = next(line for line in printed.splitlines() if line.startswith("train"))
    assert row.split()[-3:] == ["48", "x", "40"], "photographs have no spacing"

    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["images/p0"], "val": ["images/p4"]}))
    main("custom", str(root), str(tmp_path / "a.json"), splits=str(splits), **given)
    printed = capsys.readouterr().out
    assert "lacks some cases of the folder: images/p1, images/p2, images/p3, images/p5." in printed
    assert "the split is by image" not in printed
    assert "p5.png" not in printed

    main("custom", str(tmp_path / "visits.json"), str(tmp_path / "a.json"), **given)
    printed = capsys.readouterr().out
    assert "p3.png: the same image as" in printed
    assert "in one case of 'train'" in printed
    assert "unused" not in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": 300}, r"num_classes: expected a whole number in 2\.\.256"),
        ({"label_values": 255}, "label_values: expected a list of different numbers, one per class, found 255"),
        ({"label_values": [0, 127, 255]}, "label_values: expected one value for each of the 2 classes"),
    ],
)
def test_classes_that_cannot_be_are_refused(photographs: Path, tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        main("custom", str(photographs), str(tmp_path / "a.json"), in_channels=3, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "images"), [("acdc", 10), ("promise12", 5), ("isic", 5)])
def test_phantoms_of_every_kind_are_sound(
    kind: str, images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict = {"size": (60, 90)} if kind == "isic" else {"size": (56, 72), "spacing": (3.0, 3.6), "slices": (3, 4)}
    root = Path(make_phantom_cohort(tmp_path / "cohort", patients=(3, 1, 1), kind=kind, **small))
    splits = str(root / "splits.json")
    target = tmp_path / "list.json"
    main(kind, str(root), str(target), splits=splits)
    content, printed = json.loads(target.read_text()), capsys.readouterr().out
    entries = [entry for part in ("training", "validation", "test") for entry in content.get(part, [])]
    assert len(entries) == len({entry["image"] for entry in entries}) == images
    assert all((tmp_path / entry[key]).is_file() for entry in entries for key in ("image", "label"))
    for part in ("train", "val"):
        found = dataset_records(kind, root, part, splits)
        assert [r["case"] for r in dataset_records(kind, target, part)] == [r["case"] for r in found]
    assert "fault" not in printed
    assert Image.open(target.with_name(f"{target.stem}_montage.png")).size[0] > 500


def test_faulty_volumes_and_photographs_are_listed_together(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several formats and depths together: each is one fault that names its file."""
    root = tmp_path / "set"
    shutil.copytree(niftis, root)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 4))
    Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / "rgba.png")
    Image.fromarray((257 * pixels[..., 0]).astype(np.uint16)).save(root / "images" / "deep.png")
    volume = sitk.GetImageFromArray(pixels[..., :3].astype(np.int16))
    for name in ("torn", "whole"):
        sitk.WriteImage(volume, str(root / "images" / f"{name}.mhd"))
    (root / "images" / "torn.raw").unlink()
    with pytest.raises(SystemExit, match="3 faults in"):
        main("custom", str(root), str(tmp_path / "a.json"), num_classes=3)
    faults = capsys.readouterr().out.split("3 faults:")[1].splitlines()
    for what in (
        "torn.mhd: the file of its voxels, 'torn.raw', is missing",
        "rgba.png: expected an 8-bit grey or RGB image, found 8 bits and 4 channels",
        "deep.png: expected an 8-bit grey or RGB image, found 16 bits and 1 channels",
    ):
        assert sum(what in line for line in faults) == 1, (what, faults)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_labels_that_training_would_miss_are_faults(
    niftis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = [str(niftis / "images" / f"s{i}.nii.gz") for i in range(6)]
    label = str(niftis / "labels" / "s0.nii.gz")
    source, target = tmp_path / "list.json", tmp_path / "out.json"
    source.write_text(json.dumps({"training": image[:2], "validation": image[4:5]}))
    with pytest.raises(SystemExit, match="2 faults"):
        main("custom", str(source), str(target), num_classes=3)
    printed = capsys.readouterr().out
    assert "no training image has a label" in printed
    assert f"{image[4]}: an image of part 'val' needs a label" in printed
    source.write_text(json.dumps({"training": [{"image": image[0], "label": label}], "testing": image[4:]}))
    main("custom", str(source), str(target), num_classes=3)
    printed = capsys.readouterr().out
    assert "no validation image" in printed
    assert "2 of the 2 images of part 'test' have no label" in printed


def test_a_coloured_label_is_one_fault(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    shutil.copytree(photographs, root)
    Image.open(root / "masks" / "p0.png").convert("RGB").save(root / "masks" / "p0.png")
    with pytest.raises(SystemExit, match="1 fault in"):
        main("custom", str(root), str(tmp_path / "a.json"), in_channels=3, label_values=[0, 255])
    assert "found 3 channels, expected a label of one" in capsys.readouterr().out


def test_a_slice_of_one_row_is_drawn(tmp_path: Path) -> None:
    image = np.arange(8 * 4, dtype=np.float32).reshape(8, 1, 4)
    save_nifti(tmp_path / "a.nii.gz", image, np.int16)
    save_nifti(tmp_path / "a_gt.nii.gz", image > 9, np.uint8)
    record = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "a_gt.nii.gz"), "case": "a"}
    draw_montage([record], tmp_path / "picture.png", 2, {})
    assert Image.open(tmp_path / "picture.png").size[0] > 0


def test_of_several_channels_the_first_is_drawn(tmp_path: Path) -> None:
    image, label = blob((40, 48, 3), 0)
    save_nifti(tmp_path / "label.nii.gz", label, np.uint8)
    pictures = []
    for name, array in (("one", image), ("two", np.stack([image, image[::-1] * 1e6], axis=-1))):
        save_nifti(tmp_path / f"{name}.nii.gz", array, np.float32)
        record = {"image": str(tmp_path / f"{name}.nii.gz"), "label": str(tmp_path / "label.nii.gz"), "case": "a"}
        draw_montage([record], tmp_path / f"{name}.png", 3, {})
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    np.testing.assert_array_equal(*pictures)


def test_the_recipe_gets_a_pixel_size_that_holds_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A square from row 10 to 29 and column 8 to 33 of 40 x 60 voxels of 1.5 mm: its far side is 22 columns away."""
    label = np.zeros((60, 40, 3), np.uint8)
    label[8:34, 10:30] = 1
    for i in range(4):
        save_nifti(tmp_path / "data" / f"s{i}.nii.gz", np.random.default_rng(i).normal(100, 20, label.shape), np.int16)
        save_nifti(tmp_path / "data" / f"s{i}_gt.nii.gz", label, np.uint8)
    main("custom", str(tmp_path / "data"), str(tmp_path / "list.json"))
    reach, last = 1.5 * (30 - 8), capsys.readouterr().out.splitlines()[-1]
    assert f"within {reach:.0f} mm" in last
    # 96 pixels of .8 mm reach 38.4 mm, a tenth more than the labels; of .75 mm 36
    assert "--pixel_spacing 0.8." in last


def test_photographs_keep_their_aspect(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"in_channels": 3, "num_classes": 2, "label_values": [0, 255]}
    main("custom", str(photographs), str(tmp_path / "list.json"), **options)
    assert "--pixel_spacing aspect" in capsys.readouterr().out.splitlines()[-1]
