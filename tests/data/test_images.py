from __future__ import annotations

import json
import os

import pytest

from scripts.data.images import evaluation_records, find_images, find_labeled, source_root
from scripts.data.layouts.custom import custom_cases


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(records, folder):
    return [os.path.relpath(record["image"], folder) for record in records]


def pairs(records, folder):
    return [(os.path.relpath(record["image"], folder), os.path.relpath(record["label"], folder)) for record in records]


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
