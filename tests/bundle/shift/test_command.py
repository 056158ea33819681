"""Predicted quality compared with the truth: the counts, and the shifts of images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bundle.__main__ import main
from bundle.shift.command import summary
from bundle.shift.transforms import SHIFTS


def pair(slices: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 40, 48, slices, generator=generator)
    return image, (image > 0.7).float()


@pytest.mark.parametrize("name", SHIFTS)
def test_image_and_label_stay_together(name: str) -> None:
    image, label = pair()
    shifted, moved = SHIFTS[name](image, label, torch.Generator().manual_seed(0))
    assert shifted.shape == moved.shape
    assert shifted.isfinite().all()
    assert torch.equal(pair()[0], image), "the original stays as it is"
    if name in ("zoomed_in", "zoomed_out", "orientation"):
        inside = moved > 0
        assert torch.equal(shifted[inside] > 0.7, torch.ones_like(shifted[inside], dtype=torch.bool))
    else:
        assert torch.equal(moved, label)


def test_shifts_do_what_they_say() -> None:
    image, label = pair()
    generator = torch.Generator().manual_seed(1)
    shifted = {name: shift(image, label, generator)[0] for name, shift in SHIFTS.items()}
    assert torch.equal(shifted["clean"], image)
    torch.testing.assert_close(shifted["inversion"] + image, (image.max() + image.min()).expand_as(image))
    assert shifted["noise"].std() > image.std() > shifted["blur"].std()
    assert shifted["zoomed_out"].shape == (1, 80, 96, 16)
    assert shifted["zoomed_in"].shape == (1, 24, 30, 16)
    assert shifted["orientation"].shape == (1, 40, 16, 12)
    assert shifted["motion"].mean() == pytest.approx(float(image.mean()), abs=1e-5)
    assert (shifted["motion"] - image).abs().mean() > 0.05


def rows(part: str = "val", shift: str = "clean") -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    found = []
    for case in range(20):
        for name in ("a", "b"):
            true = float(random.uniform(0.3, 1))
            predicted = float(np.clip(true + 0.1 * random.normal(), 0, 1))
            flags = ["low predicted Dice"] if predicted < 0.7 else []
            entry = {"dice": true, "predicted_dice": predicted, "low": predicted - 0.1, "high": predicted + 0.1}
            found.append({"part": part, "shift": shift, "case": str(case), "class": name, **entry, "flags": flags})
    return found


def test_summary_counts_volumes_by_their_mean_and_flags_by_any_class() -> None:
    given = rows()
    (_, line) = summary(given)
    true, predicted = (np.array([row[key] for row in given]) for key in ("dice", "predicted_dice"))
    means = true.reshape(20, 2).mean(1)
    flagged = np.array([bool(row["flags"]) for row in given]).reshape(20, 2).any(1)
    expected = [
        "20",
        f"{true.mean():.3f}",
        f"{np.corrcoef(true, predicted)[0, 1]:.2f}",
        f"{spearmanr(true, predicted)[0]:.2f}",
        f"{abs(true - predicted).mean():.3f}",
        f"{(abs(true - predicted) <= 0.1).mean():.0%}",
        f"{flagged[means < 0.6].sum()} of {(means < 0.6).sum()}",
        f"{flagged[means > 0.85].sum()} of {(means > 0.85).sum()}",
        f"{flagged[np.argsort(means)[:2]].sum()} of 2",
    ]
    assert " ".join(line.split()) == " ".join(["val", "clean", *expected])


def test_shifted_images_are_taken_together_and_apart() -> None:
    lines = summary([*rows(), *rows(shift="noise"), *rows(shift="blur")])
    assert [line.split()[1] for line in lines[1:]] == ["clean", "shifted", "noise", "blur"]
    assert [line.split()[2] for line in lines[1:]] == ["20", "40", "20", "20"]


def test_command_on_phantoms(
    tmp_path: Path, phantom: Path, trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = {"dataset_dir": phantom, "checkpoint": trained(), "output": output, "shifted": 1, "cases": 1}
    splits = phantom / "splits.json"
    main(["shift", *(f"--{k}={v}" for k, v in given.items()), f"--splits={splits}", "--shifts=clean,inversion"])
    with (output / "quality_against_truth.csv").open() as stream:
        table = list(csv.DictReader(stream))
    images = {(row["part"], row["shift"], row["case"]) for row in table}
    assert len({case.partition("_")[0] for _, _, case in images}) == 4, "images of one name are kept apart"
    assert sum(part == "val" and shift == "clean" for part, shift, _ in images) == 4  # two patients, two frames each
    assert sum(part == "train" and shift == "clean" for part, shift, _ in images) == 2
    assert sum(shift == "inversion" for _, shift, _ in images) == 2
    assert {row["predicted_dice"] for row in table} == {""}, "nothing was fitted, nothing is predicted"
    out = capsys.readouterr().out
    assert "with quality" in out
    assert "without quality" in out

    # another checkpoint's results are not taken for these
    with pytest.raises(SystemExit):
        main(["shift", *(f"--{k}={v}" for k, v in (given | {"shifted": 2}).items()), f"--splits={splits}"])
    assert "was started with other settings: shifted was 1, is 2." in capsys.readouterr().err
    # an image that was not segmented is segmented by the next run
    (lost,) = (output / "val" / "inversion" / "maps").glob("*_seg.json")
    lost.unlink()
    main(["shift", *(f"--{k}={v}" for k, v in given.items()), f"--splits={splits}", "--shifts=inversion"])
    assert lost.is_file()

    given |= {"output": tmp_path / "validation", "cases": 0}  # no training case is asked for
    main(["shift", *(f"--{k}={v}" for k, v in given.items()), f"--splits={splits}", "--shifts=inversion"])
    with (tmp_path / "validation" / "quality_against_truth.csv").open() as stream:
        assert {row["part"] for row in csv.DictReader(stream)} == {"val"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shifts": "fog"}, "shifts: expected some of clean, noise"),
        ({"dataset": "mine"}, "dataset: expected one of acdc"),
        ({"checkpoint": "none.pt"}, "'none.pt' has no record"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, phantom: Path, options: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"dataset_dir": phantom, "output": tmp_path / "out", **options}
    with pytest.raises(SystemExit):
        main(["shift", *(f"--{key}={value}" for key, value in given.items())])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
