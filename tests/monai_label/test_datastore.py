from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import Compose, EnsureChannelFirstd, ScaleIntensityd

from scripts.data import LabelValuesd, LoadImageVolumed
from scripts.monai_label import Studies, run_folder, training_slices, validation_volumes
from tests.monai_label.common import AFFINE, CLASSES, CODES, SYNONYMS, listed, make_datastore, save, set_info


def others(labeled: list, validation: list | None = None) -> list[dict[str, str]]:
    return Studies(labeled, validation or []).unlabeled


@pytest.mark.parametrize("ext", [".nii.gz", ".nii", ".mhd", ".mha", ".png", ".jpg"])
def test_studies_without_a_final_label_are_the_unlabelled_ones(tmp_path: Path, ext: str) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], ["z", "d"], ext)
    assert others(records[:2], records[2:]) == [{"image": str(tmp_path / f"{n}{ext}")} for n in "dz"]


def test_validation_and_training_images_are_left_out_whatever_the_index_says(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a", "b"], ["d"])
    index = json.loads((tmp_path / "datastore_v2.json").read_text())
    for name in "ab":
        del index["objects"][name]["labels"]["final"]
    (tmp_path / "datastore_v2.json").write_text(json.dumps(index))
    assert others(records[:1], records[1:]) == [{"image": str(tmp_path / "d.nii.gz")}]


def test_what_is_no_readable_study_is_left_out(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d", ".hidden", "gone"])
    (tmp_path / "gone.nii.gz").unlink()
    index = json.loads((tmp_path / "datastore_v2.json").read_text())
    index["objects"]["slide"] = {"image": {"ext": ".svs"}, "labels": {}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(index))
    (tmp_path / "slide.svs").touch()
    (tmp_path / "not-listed.nii.gz").touch()
    assert others(records) == [{"image": str(tmp_path / "d.nii.gz")}]


def test_linked_images_are_recognised(tmp_path: Path) -> None:
    store, archive = tmp_path / "studies", tmp_path / "archive"
    archive.mkdir()
    records = make_datastore(store, ["a"], ["d"])
    for name in ("a", "d"):
        (store / f"{name}.nii.gz").rename(archive / f"{name}.nii.gz")
        (store / f"{name}.nii.gz").symlink_to(archive / f"{name}.nii.gz")
    records[0]["image"] = os.path.realpath(records[0]["image"])  # as the server does
    assert others(records) == [{"image": str(archive / "d.nii.gz")}]


@pytest.mark.parametrize("linked", ["a", "b", "ab"])
def test_linked_labels_are_recognised(linked: str, tmp_path: Path) -> None:
    store, masks = tmp_path / "studies", tmp_path / "masks"
    masks.mkdir()
    records = make_datastore(store, ["a", "b"], ["d"])
    for record in records:
        label = Path(record["label"])
        if label.name[0] in linked:
            label.rename(masks / label.name)
            label.symlink_to(masks / label.name)
        record["label"] = os.path.realpath(label)  # as the server does
    assert others(records) == [{"image": str(store / "d.nii.gz")}]
    assert run_folder(tmp_path, records) != str(tmp_path)


def preprocessing() -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            LoadImageVolumed(keys, allow_missing_keys=True),
            EnsureChannelFirstd(keys, allow_missing_keys=True),
            ScaleIntensityd("image"),
        ]
    )


def fill(root: Path, final: list[str], unlabeled: list[str]) -> list[dict[str, str]]:
    """A datastore with images of nine slices and labels of all classes."""
    records = make_datastore(root, final, unlabeled)
    for number, name in enumerate([*final, *unlabeled]):
        save(root / f"{name}.nii.gz", np.random.default_rng(number).integers(0, 99, (6, 6, 9)).astype(np.int16))
    for record in records:
        save(Path(record["label"]), np.random.default_rng(9).integers(0, 4, (6, 6, 9)).astype(np.uint8))
    return records


def known(records: list, validation: list | None = None, **options: Any) -> Studies:
    cache = Path(records[0]["image"]).parent.parent / "cache"
    return Studies(records, validation or [], cache, CLASSES, SYNONYMS, CODES, **options)


def slices_of(studies: Studies, validation: list | None = None, cache: Path | None = None) -> Any:
    volumes = validation_volumes([], studies, transform=preprocessing(), channels=1, num_classes=4)
    return training_slices([], studies, volumes, preprocessing(), 1, cache_dir=cache, num_classes=4)


def test_segments_count_by_name(tmp_path: Path) -> None:
    records = fill(tmp_path / "studies", ["a", "b", "c", "d"], ["z"])
    before = [slices_of(known(records), cache=tmp_path / "cache").volumes[k].label.copy() for k in range(4)]
    for study, names in {
        "a": ["rv", "myo", "lv"],
        "b": ["lv", "myo", "rv"],
        "c": ["Left ventricle", "x", "RV"],
    }.items():
        set_info(tmp_path / "studies", study, label_info=listed(*names))
    studies = known(records)
    assert [Path(record["image"]).name[0] for record in studies.labeled] == ["a", "b", "d"]
    assert studies.left_out == ["the final label of 'c': the segment 'x' is none of RV, Myo, LV."]
    after = [volume.label for volume in slices_of(studies, cache=tmp_path / "cache").volumes[:3]]
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], np.array([0, 3, 2, 1])[before[1]])
    np.testing.assert_array_equal(after[2], before[3])


def test_named_segments_become_the_values_that_the_training_reads(tmp_path: Path) -> None:
    """Values of a data set of one's own, here a permutation of the classes' numbers."""
    records = fill(tmp_path / "studies", ["a"], ["z"])
    label = np.random.default_rng(9).integers(0, 4, (6, 6, 9))
    set_info(tmp_path / "studies", "a", label_info=listed("lv", "myo", "rv"))
    values = [0, 2, 3, 1]
    (record,) = known(records, label_values=values).labeled
    read = LabelValuesd("label", values)(LoadImageVolumed(("image", "label"))(record))["label"]
    np.testing.assert_array_equal(read, np.array([0, 3, 2, 1])[label])


def test_a_label_from_an_archive_without_names_is_left_out(tmp_path: Path) -> None:
    records = fill(tmp_path / "studies", ["a", "b"], ["z"])
    set_info(tmp_path / "studies", "a", SeriesInstanceUID="1.2.3")
    studies = known(records)
    assert studies.left_out == ["the final label of 'a': its segments have no known names."]
    assert [record["image"] for record in studies.labeled] == [records[1]["image"]]


def test_a_missing_segment_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = fill(tmp_path / "studies", ["a"], ["z"])
    label = np.random.default_rng(0).integers(0, 3, (6, 6, 9)).astype(np.uint8)
    save(Path(records[0]["label"]), label)
    set_info(tmp_path / "studies", "a", label_info=listed("myo", "lv"))
    with caplog.at_level(logging.INFO):
        studies = known(records)
    assert "'a' has no RV" in caplog.text
    volume = slices_of(studies, cache=tmp_path / "cache").volumes[0]
    np.testing.assert_array_equal(volume.label, np.moveaxis(np.array([0, 2, 3])[label], -1, 0))


def test_unusable_studies_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "studies"
    records = fill(root, ["a", "b", "c", "v", "w"], ["cine", "broken", "z"])
    save(root / "cine.nii.gz", np.zeros((6, 6, 9, 4), np.int16))
    (root / "broken.nii.gz").write_bytes(b"no image")
    save(Path(records[1]["label"]), np.full((6, 6, 9), 9, np.uint8))
    save(Path(records[4]["label"]), np.zeros((7, 7, 9), np.uint8))
    studies = known(records[:3], records[3:])
    with caplog.at_level(logging.INFO):
        slices = slices_of(studies, cache=tmp_path / "cache")
    assert [Path(record["image"]).name for record in slices.data] == ["a.nii.gz", "c.nii.gz", "z.nii.gz"]
    assert "learning from 2 labelled and 1 unlabelled studies, validating on 1" in caplog.text
    assert len(studies.left_out) == 4
    for name, what in {"w": "shape", "b": "label values", "cine": "the same for all", "broken": "not an image"}.items():
        assert any(f"{name}.nii.gz" in line and what in line for line in studies.left_out), studies.left_out
    assert caplog.text.count("Left out: ") == 4


def test_other_views_and_formats_serve_beside_short_axis_stacks(tmp_path: Path) -> None:
    """A long-axis view, a localizer of three planes and a stack as NRRD, none of them labelled."""
    root = tmp_path / "studies"
    records = fill(root, ["a"], ["stack", "long", "localizer"])
    long_axis = AFFINE[:, [2, 0, 1, 3]]
    save(root / "long.nii.gz", np.random.default_rng(7).integers(0, 99, (6, 6, 1)).astype(np.int16), long_axis)
    save(root / "localizer.nii.gz", np.random.default_rng(8).integers(0, 99, (6, 6, 3)).astype(np.int16), np.eye(4))
    sitk.WriteImage(sitk.ReadImage(str(root / "stack.nii.gz")), str(root / "stack.nrrd"))
    (root / "stack.nii.gz").unlink()
    index = json.loads((root / "datastore_v2.json").read_text())
    index["objects"]["stack"]["image"]["ext"] = ".nrrd"
    (root / "datastore_v2.json").write_text(json.dumps(index))
    studies = known(records)
    slices = slices_of(studies, cache=tmp_path / "cache")
    found = [Path(record["image"]).name for record in slices.data]
    assert found == ["a.nii.gz", "localizer.nii.gz", "long.nii.gz", "stack.nrrd"]
    assert studies.left_out == []
    assert [volume.shape[0] for volume in slices.volumes] == [9, 3, 1, 9]


@pytest.mark.parametrize("ext", [".nrrd", ".mha"])
def test_studies_of_several_formats(ext: str, tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"], ext)
    assert others(records) == [{"image": str(tmp_path / f"d{ext}")}]


def test_an_index_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    index = tmp_path / "datastore_v2.json"
    whole = index.read_text()
    index.write_text("")
    writer = threading.Timer(0.2, index.write_text, [whole])
    writer.start()
    assert others(records) == [{"image": str(tmp_path / "d.nii.gz")}]
    writer.join()


def test_with_every_study_labelled_they_serve_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], [])
    with caplog.at_level(logging.INFO):
        assert others(records[:2], records[2:]) == [{"image": r["image"]} for r in records[:2]]
    assert "also serve as unlabelled" in caplog.text


@pytest.mark.parametrize("records", [[], [{"image": "x.nii.gz"}], [{"image": "x.nii.gz", "label": "x_gt.nii.gz"}]])
def test_other_data_sets_are_left_alone(records: list, tmp_path: Path) -> None:
    assert others(records) == []
    assert run_folder(tmp_path, records) == str(tmp_path)


def test_labels_elsewhere_make_no_datastore(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    original = [{**records[0], "label": str(tmp_path / "labels" / "original" / "a.nii.gz")}]
    assert others(original) == []
    (tmp_path / "datastore_v2.json").unlink()
    assert others(records) == []


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "[" * 10_000, '{"images_dir": "."}', '{"images_dir": ".", "objects": {"d": {}}}', "\xff"],
)
def test_an_index_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    (tmp_path / "datastore_v2.json").write_text(content)
    with pytest.raises(ValueError, match=r"datastore_v2\.json: expected MONAI Label's list of studies"):
        others(records)


def test_each_run_has_a_folder_of_its_own_inside_the_output(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    folder = Path(run_folder(tmp_path / "output", records))
    assert folder.parent == tmp_path / "output"
    assert not folder.exists()
