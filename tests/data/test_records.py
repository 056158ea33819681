from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from scripts.data.records import dataset_records, hide_labels, read_split, seeded_split


def test_seeded_split_has_the_published_sizes_and_does_not_depend_on_order() -> None:
    names = [f"ISIC_{i:07d}" for i in range(2594)]
    split = seeded_split(names, 756 / 2594)
    assert [len(split[part]) for part in ("train", "val")] == [1838, 756]
    assert sorted(split["train"] + split["val"]) == names
    assert seeded_split(reversed(names), 756 / 2594) == split
    first = min(names, key=lambda n: hashlib.sha256(b"0:" + n.encode()).digest())
    assert split["train"][0] == first
    assert seeded_split(names, 756 / 2594, seed=1) != split


def test_seeded_split_of_few_cases() -> None:
    assert [len(part) for part in seeded_split("ab", 0.01).values()] == [1, 1]
    assert [len(part) for part in seeded_split("a", 0.5).values()] == [1, 0]
    assert [len(part) for part in seeded_split("abc", 0).values()] == [3, 0]
    assert seeded_split([], 0.5) == {"train": [], "val": []}


@pytest.mark.parametrize(("labeled", "count"), [(0, 0), (1, 1), (3, 3), (0.03, 1), (0.3, 12), (None, 40)])
def test_labels_of_later_cases_are_hidden(labeled: float | None, count: int) -> None:
    cases = {str(i): [{"image": f"{i}.png", "label": f"{i}_m.png", "case": str(i)}] for i in range(40)}
    records = hide_labels(cases, labeled, "a test")
    assert [r["image"] for r in records] == [f"{i}.png" for i in range(40)]
    assert ["label" in r for r in records] == [True] * count + [False] * (40 - count)
    assert all("label" in r for of_case in cases.values() for r in of_case)


@pytest.mark.parametrize("labeled", [-1, 41, 1.5, True, "many"])
def test_labelled_counts_out_of_range(labeled: float) -> None:
    cases = {str(i): [{"image": f"{i}.png", "label": f"{i}_m.png"}] for i in range(40)}
    with pytest.raises(ValueError, match="labeled="):
        hide_labels(cases, labeled, "a test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{train: [", "expected a JSON object of lists of cases, by part, found invalid JSON"),
        ("[1]", "expected a JSON object of lists of cases"),
        (json.dumps({"train": [1, 2]}), "train: entry 1: expected the name of a case, found 1"),
        (json.dumps({"train": [["a"]]}), r"train: entry 1: expected the name of a case, found \['a'\]"),
        (json.dumps({"train": ["a", "a"]}), "has 'a' in part 'train' twice"),
        (json.dumps({"train": ["a"], "val": ["a"]}), "has 'a' in parts 'train' and 'val'"),
    ],
)
def test_faulty_splits_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"splits\.json:? {message}"):
        read_split(path)


def test_unknown_layouts_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout: expected one of .*acdc.*found 'cardiac'"):
        dataset_records("cardiac", tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no case in dataset_dir"):
        dataset_records("acdc", tmp_path, "train")
