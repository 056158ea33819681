"""The next cases to label: a representative selection, and a list to train on."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.__main__ import main
from bundle.suggest.selection import case_features, choose, similarities
from scripts.data.records import dataset_records


def groups() -> np.ndarray:
    """Three clusters of 12, 6 and 3 cases, and one outlier."""
    random = np.random.default_rng(0)
    centres = np.repeat([[0, 0], [10, 0], [0, 10], [30, 30]], [12, 6, 3, 1], axis=0)
    return centres + 0.3 * random.normal(size=centres.shape)


def covered(similarity: np.ndarray, chosen: Any) -> float:
    return float(similarity[:, list(chosen)].max(1).sum())


def test_one_case_of_each_cluster_is_chosen_the_largest_first() -> None:
    choices = choose(similarities(groups()), 3)
    heaps = [int(np.searchsorted([12, 18, 21], choice.case, side="right")) for choice in choices]
    assert heaps[0] == 0
    assert len(set(heaps)) == 3
    assert sorted(sum((choice.members for choice in choices), ())) == list(range(22))
    assert [choice.gain for choice in choices] == sorted((choice.gain for choice in choices), reverse=True)


def test_greedy_choice_is_near_the_best_of_all() -> None:
    similarity = similarities(np.random.default_rng(1).normal(size=(14, 4)))
    best = max(covered(similarity, some) for some in combinations(range(14), 3))
    assert covered(similarity, [choice.case for choice in choose(similarity, 3)]) > (1 - 1 / np.e) * best


def test_labelled_cases_are_covered_and_never_suggested() -> None:
    choices = choose(similarities(groups()), 1, covered=range(12))
    assert 12 <= choices[0].case < 18, "the largest heap is labelled, the next one counts"
    assert len(choose(similarities(groups()), 99, covered=range(20))) == 2


def test_cases_with_bad_results_are_preferred() -> None:
    weights = np.full(22, 0.05)
    weights[18:21] = 1.0
    assert 18 <= choose(similarities(groups()), 1, weights=weights)[0].case < 21


def test_features_that_say_nothing_make_all_alike() -> None:
    assert np.array_equal(similarities(np.ones((4, 3))), np.ones((4, 4)))
    (choice,) = choose(np.ones((1, 1)), 3)
    assert (choice.case, choice.members) == (0, (0,))


def test_features_do_not_depend_on_the_scanner_s_scale() -> None:
    image = torch.rand(1, 40, 36, 5, generator=torch.Generator().manual_seed(0))
    volume = MetaTensor(image, affine=torch.diag(torch.tensor([1.5, 1.5, 8.0, 1.0])), meta={"filename_or_obj": "a.nii"})
    assert case_features(volume) == pytest.approx(case_features(volume * 1000 + 50), abs=1e-4)
    modalities = MetaTensor(torch.cat([image, image.flip(1)]), meta=volume.meta)
    units = torch.tensor([1000.0, 1e-3]).view(2, 1, 1, 1)
    assert case_features(modalities) == pytest.approx(case_features(modalities * units), abs=1e-4)


def run(phantom: Path, **options: Any) -> None:
    given = {"dataset": "acdc", "dataset_dir": phantom, "splits": phantom / "splits.json", **options}
    main(["suggest", *(f"--{key}={value}" for key, value in given.items())])


def test_list_trains_on_the_suggested_cases(tmp_path: Path, phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "lists" / "next.json"
    run(phantom, labeled=1, count=2, output=target)
    out = capsys.readouterr().out
    assert "1 of 6 training cases are labelled" in out
    split = json.loads((phantom / "splits.json").read_text())
    records = dataset_records("acdc", target, "train", labeled=3)
    seen = list(dict.fromkeys(record["case"] for record in records if "label" in record))
    assert seen[0] == split["train"][0], "what is labelled stays labelled"
    assert all(name in out for name in seen[1:])
    assert {record["case"] for record in records} == set(split["train"])
    assert {record["case"] for record in dataset_records("acdc", target, "val")} == set(split["val"])
    assert (tmp_path / "lists" / "next_montage.png").read_bytes().startswith(b"\x89PNG")


def test_list_keeps_what_a_datalist_says_beside_its_cases(tmp_path: Path, phantom: Path) -> None:
    """The axis, the classes, and that there is no validation on purpose."""
    images = sorted(phantom.glob("patient*/*_frame??.nii.gz"))[:4]
    entries: list[dict[str, str]] = [{"image": str(image)} for image in images]
    entries[0]["label"] = str(images[0]).replace(".nii.gz", "_gt.nii.gz")
    said = {"labels": {"0": "background", "1": "bone"}, "label_values": [0, 255], "slice_axis": "coronal"}
    (tmp_path / "list.json").write_text(json.dumps({**said, "training": entries, "validation": []}))
    target = tmp_path / "next.json"
    main(["suggest", f"--dataset_dir={tmp_path / 'list.json'}", "--count=1", f"--output={target}"])
    content = json.loads(target.read_text())
    assert {key: content[key] for key in said} == said
    assert content["validation"] == []
    assert len(content["training"]) == 4


def test_quality_table_moves_the_choice_and_must_be_of_these_images(
    tmp_path: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(path for path in phantom.glob("*/*_frame??.nii.gz"))
    names = [str(path.relative_to(phantom)).removesuffix(".nii.gz") for path in images]
    bad = json.loads((phantom / "splits.json").read_text())["train"][4]
    table = tmp_path / "quality.csv"

    def write(rows: list[tuple[str, str]]) -> None:
        with table.open("w", newline="") as stream:
            csv.writer(stream).writerows([("case", "score"), *rows])

    write([(name, "0.1" if name.startswith(bad) else "1.0") for name in names])
    run(phantom, labeled=0, count=1, quality=table)
    out = capsys.readouterr().out
    assert bad in out
    assert "score 0.10, number 1 from the worst" in out
    write([("other", "0.5")])
    with pytest.raises(SystemExit):
        run(phantom, labeled=0, quality=table)
    assert "has no result of case" in capsys.readouterr().err


def test_random_choice_follows_its_seed(phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for seed in (0, 0, 1, 2):
        run(phantom, labeled=0, strategy="random", seed=seed)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert len(set(tables)) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected a whole number from 1, found 0"),
        ({"labeled": 7}, "labeled: expected a whole number in 0..6, found 7"),
        ({}, "all 6 training cases"),
        ({"dataset": "mine"}, "dataset: expected one of acdc"),
        ({"strategy": "best"}, "strategy: expected one of coverage, random"),
        ({"output": "list.txt"}, "output: expected the name of a new .json file"),
        ({"labeled": 0, "quality": "none.csv"}, "quality: no file 'none.csv'"),
    ],
)
def test_mistakes_are_named(
    phantom: Path, options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(phantom, **options)
    assert message in capsys.readouterr().err
