from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from bundle.prepare.command import main
from bundle.prepare.merge import merge_listed, merge_masks
from scripts.data.layouts.datalist import read_datalist

AFFINE = np.diag([-1.5, -1.5, 8, 1])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.int16), affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four patients in TotalSegmentator's layout: a scan, and a mask for each organ; the last has none."""
    rng = np.random.default_rng(0)
    for number in range(4):
        patient = tmp_path / "set" / f"p{number}"
        save(patient / "ct.nii.gz", rng.integers(0, 900, (9, 8, 3)))
        liver, spleen = np.zeros((9, 8, 3)), np.zeros((9, 8, 3))
        liver[:3], spleen[5:] = 1, 1
        if number < 3:
            save(patient / "segmentations" / "liver.nii.gz", liver)
        if number < 2:
            save(patient / "segmentations" / "spleen.nii.gz", 255 * spleen)
    return tmp_path / "set"


ORGANS = ["segmentations/liver.nii.gz", "segmentations/spleen.nii.gz"]


def test_masks_of_classes_become_one_label_map(folder: Path, tmp_path: Path) -> None:
    main("custom", str(folder), str(tmp_path / "set.json"), label_files=",".join(ORGANS))
    content = json.loads((tmp_path / "set.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    entries = {Path(entry["image"]).parent.name: entry for key in ("training", "validation") for entry in content[key]}
    assert {name: "label" in entry for name, entry in entries.items()} == {
        "p0": True,
        "p1": True,
        "p2": True,
        "p3": False,
    }
    label = nib.load(tmp_path / entries["p0"]["label"])
    classes = np.asarray(label.dataobj)
    assert [int(classes[x, 0, 0]) for x in range(9)] == [1, 1, 1, 0, 0, 2, 2, 2, 2]
    np.testing.assert_array_equal(label.affine, AFFINE)
    assert np.unique(nib.load(tmp_path / entries["p2"]["label"]).dataobj).tolist() == [0, 1]


def test_masks_beside_their_image(tmp_path: Path) -> None:
    for name in "ab":
        array = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (3, 8, 9)).astype(np.int16))
        sitk.WriteImage(array, str(tmp_path / f"{name}.mha"))
        sitk.WriteImage(sitk.Cast(array > 500, sitk.sitkUInt8), str(tmp_path / f"{name}_myo.mha"))
    content = json.loads(merge_masks(tmp_path, ["{name}_myo.mha"], tmp_path / "out").read_text())
    assert [Path(entry["image"]).name for entry in content["training"]] == ["a.mha", "b.mha"]
    assert content["labels"]["1"] == "myo"
    merged = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / content["training"][0]["label"])))
    np.testing.assert_array_equal(merged, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a_myo.mha"))))


def test_overlaps_and_other_grids_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "p0" / ORGANS[0], folder / "p0" / ORGANS[1])
    save(folder / "p1" / ORGANS[0], np.zeros((9, 8, 4)))
    with pytest.raises(ValueError, match=r"liver\.nii\.gz' and '.*spleen\.nii\.gz' overlap in 72 voxels") as error:
        merge_masks(folder, ORGANS, tmp_path / "out")
    assert "p1/segmentations/liver.nii.gz: label shape (9, 8, 4) is not the image's shape" in str(error.value)


def test_patterns_that_fit_nothing_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_files: no image of .* has a mask kidney\.nii\.gz"):
        merge_masks(folder, "kidney.nii.gz", tmp_path / "out")
    with pytest.raises(ValueError, match="label_files: expected paths such as"):
        merge_masks(folder, "{name}_liver", tmp_path / "out")
    with pytest.raises(ValueError, match="label_files: expected a folder of images with masks"):
        main("custom", str(folder), str(tmp_path / "set.json"), splits="split.json", label_files="a.nii")


def listed(folder: Path, masks: list[Any], **more: Any) -> Path:
    path = folder / "mine.json"
    entries = [{"image": f"p{i}/ct.nii.gz", **({"label": label} if label else {})} for i, label in enumerate(masks)]
    path.write_text(json.dumps({"training": entries, **more}))
    return path


def test_masks_that_a_datalist_names_are_merged(folder: Path, tmp_path: Path) -> None:
    masks = [[f"p{i}/{organ}" for organ in ORGANS] for i in range(2)]
    path = listed(folder, [*masks, ["p2/segmentations/liver.nii.gz", None], None], labels={"liver": 1, "spleen": 2})
    main("custom", str(path), str(tmp_path / "set.json"))
    content = json.loads((tmp_path / "set.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    entries = {Path(entry["image"]).parent.name: entry for key in ("training", "validation") for entry in content[key]}
    assert sorted(entries) == ["p0", "p1", "p2", "p3"]
    assert "label" not in entries["p3"]
    classes = [np.asarray(nib.load(tmp_path / entries[f"p{i}"]["label"]).dataobj)[:, 0, 0].tolist() for i in (0, 2)]
    assert classes == [[1, 1, 1, 0, 0, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert all((tmp_path / entry["image"]).is_file() for entry in entries.values())
    with pytest.raises(ValueError, match=r"mine\.json: 'p0/ct\.nii\.gz' has masks of one class each: .* merges them"):
        read_datalist(path)
    assert len(read_datalist(path, labels=False)["train"]) == 4, "to segment them no label is needed"


def test_what_is_wrong_with_masks_of_a_datalist_is_named(folder: Path, tmp_path: Path) -> None:
    both = [f"p0/{ORGANS[0]}", f"p0/{ORGANS[0]}"]
    path = listed(folder, [both, ["p1/none.nii.gz"]])
    with pytest.raises(ValueError, match=r"liver\.nii\.gz' and '.*liver\.nii\.gz' overlap in 72 voxels") as error:
        merge_listed(path, tmp_path / "out")
    assert "none.nii.gz', which is no file." in str(error.value)
    with pytest.raises(ValueError, match=r"mine\.json: label_values: masks of one class each"):
        merge_listed(listed(folder, [both], label_values=[0, 1]), tmp_path / "out")
    for strange in ([], [3], [["p0/ct.nii.gz"]]):
        path = listed(folder, [])
        path.write_text(json.dumps({"training": [{"image": "p0/ct.nii.gz", "label": strange}]}))
        assert merge_listed(path, tmp_path / "out") == path
        with pytest.raises(ValueError, match=r"mine\.json: training: entry 1: label: .*expected"):
            read_datalist(path)
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "merged.json").exists()
