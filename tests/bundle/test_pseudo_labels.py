from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from bundle.__main__ import main as command_line
from bundle.report.events import curves
from scripts.data import dataset_records
from scripts.hidden import MEASURES, count_pseudo_labels, hidden_records
from scripts.methods import Objective
from scripts.networks import UNet
from tests.workflows import labeled_slices

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

THIN = (4, 6, 8, 10, 12)


FILES = [str(ROOT / "configs" / name) for name in ("train.json", "cpu.json", "methods/semsim_minus.json")]


@pytest.fixture(scope="module")
def trained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Overrides of a run of two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(phantom),
        "splits": str(phantom / "splits.json"),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "run"),
        "labeled": "2",
        "image_size": "32",
        "batch_size": "3",
        "network_def#channels": str(list(THIN)),
        "method#fusion#channels": str(list(THIN)),
        "device": "$torch.device('cpu')",
    }
    train(FILES, overrides)
    return overrides


def train(files: list[str], overrides: dict[str, str]) -> None:
    parsed = {key: f"${value}" if value[0] in "[0123456789" else value for key, value in overrides.items()}
    short = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "validate#dataset#data": []}
    flow = ConfigWorkflow(files, meta_file=None, logging_file=False, workflow_type="train", **parsed, **short)
    flow.initialize()
    flow.run()


@pytest.fixture
def measure(trained: dict[str, str], tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    def call(**options: str) -> list[dict[str, str]]:
        given = {"run": trained["output_dir"], "config_file": str(FILES), "batches": "2"}
        given |= {key: value for key, value in trained.items() if key != "output_dir"}
        given |= {"output": str(tmp_path / "new" / "table.csv"), **options}
        command_line(["pseudo_labels", *(word for key, value in given.items() for word in (f"--{key}", value))])
        with Path(given["output"]).open(newline="") as stream:
            return list(csv.DictReader(stream))

    return call


def test_command_from_a_checkpoint_to_the_table(
    measure: Callable[..., list[dict[str, str]]], trained: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    checkpoint = Path(trained["output_dir"], "checkpoint.pt")
    before = checkpoint.read_bytes()
    rows = measure(**{"method#threshold": "0.3"})
    assert [(row["kind"], row["class"]) for row in rows] == [
        (kind, name) for kind in ("decoder", "intra", "cross") for name in ("0", "1", "2", "3", "foreground", "all")
    ]
    pixels = {row["kind"]: int(row["pixels"]) for row in rows if row["class"] == "all"}
    assert pixels == {"decoder": 2 * 3 * 32 * 32, "intra": 2 * 3 * 8 * 8, "cross": 2 * 3 * 8 * 8}
    assert all(0 <= float(row[measure]) <= 1 for row in rows for measure in MEASURES if row[measure])
    assert any(0 < float(row["coverage"]) < 1 for row in rows if row["coverage"])
    printed = capsys.readouterr().out
    assert "iteration 2, threshold 0.3: 2 batches of 3 of " in printed
    assert "8 volumes with a hidden label" in printed  # 4 patients, 2 frames each
    assert all(row["recall"] in printed for row in rows)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]
    assert checkpoint.read_bytes() == before
    assert measure(**{"method#threshold": "0.3"}) == rows

    everything = measure(**{"method#threshold": "0"})
    for old, new in zip(rows, everything, strict=True):
        assert new["dice"] == new["dice_passing"] == old["dice"]  # the same pixels, all of which pass
        assert new["coverage"] in ("1.0", "")
    warmer = measure(**{"method#threshold": "0.3", "method#affinity_temperature": "1"})
    same = [old == new for old, new in zip(rows, warmer, strict=True)]
    assert all(same[:6])
    assert not all(same[6:12])
    assert all(same[12:])


def test_the_slices_are_the_unlabelled_ones_with_their_own_labels(
    monkeypatch: pytest.MonkeyPatch, measure: Any, phantom: Path, tmp_path: Path
) -> None:
    drawn: list[dict[str, Tensor]] = []

    def spy(objective: Objective, given: Any, seed: int, amp: bool) -> dict[str, Any]:
        drawn.extend(given)
        return count_pseudo_labels(objective, drawn, seed, amp)

    monkeypatch.setattr("bundle.pseudo_labels.count_pseudo_labels", spy)
    measure(batches="5")
    known = {  # two labelled patients of two frames each come first
        part: [(item["image"], item["label"]) for item in labeled_slices(phantom, tmp_path / part, chosen)]  # type: ignore[attr-defined]
        for part, chosen in (("labeled", slice(0, 4)), ("unlabeled", slice(4, None)))
    }
    assert len(drawn) == 5
    seen = set()
    for batch in drawn:
        for part, label in (("labeled", "label"), ("unlabeled", "hidden")):
            for pair in zip(batch["image" if part == "labeled" else "unlabeled"], batch[label], strict=True):
                matches = [k for k, own in enumerate(known[part]) if all(map(torch.equal, pair, own))]
                assert len(matches) == 1
                seen.add((part, matches[0]))
    assert all(sum(p == part for p, _ in seen) > 9 for part in known)  # other slices in every batch


def test_the_training_logs_the_same_and_goes_on_as_without(
    trained: dict[str, str], measure: Any, tmp_path: Path
) -> None:
    overlay = str(ROOT / "configs" / "hidden_labels.json")
    train([*FILES, overlay], {**trained, "output_dir": str(tmp_path), "method#threshold": "0.3"})
    logged = curves(tmp_path)
    rows = measure(run=str(tmp_path), batches="10", **{"method#threshold": "0.3"})
    for row in rows:
        if row["class"] == "foreground":
            for name in ("dice", "precision"):
                steps, found = logged.get(f"pseudo_{row['kind']}_{name}", ([], []))
                assert list(steps) == ([2] if row[name] else [])
                assert list(found) == pytest.approx([float(row[name])] if row[name] else [], abs=1e-5)
    assert "pseudo_decoder_dice" in logged

    train(FILES, {**trained, "output_dir": str(tmp_path / "without"), "method#threshold": "0.3"})
    with_it, without = (torch.load(folder / "model_last.pt") for folder in (tmp_path, tmp_path / "without"))
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def test_an_objective_without_pseudo_labels_of_its_own(trained: dict[str, str], tmp_path: Path) -> None:
    """A supervised run: the decoder's pseudo-labels. Written to the checkpoint's folder by default."""
    content = torch.load(Path(trained["output_dir"], "checkpoint.pt"), weights_only=True)
    content["method"] = {name: value for name, value in content["method"].items() if not name.startswith("fusion")}
    torch.save(content, tmp_path / "checkpoint.pt")
    files = str([*FILES[:2], str(ROOT / "configs" / "methods" / "supervised.json")])
    words = [word for key, value in trained.items() if "fusion" not in key for word in (f"--{key}", value)]
    command_line(["pseudo_labels", "--run", str(tmp_path), "--config_file", files, "--batches", "1", *words])
    with (tmp_path / "pseudo_labels.csv").open(newline="") as stream:
        assert {row["kind"] for row in csv.DictReader(stream)} == {"decoder"}


def test_volumes_without_a_label_are_left_out(phantom: Path, tmp_path: Path, measure: Any, capsys: Any) -> None:
    shutil.copytree(phantom, tmp_path / "cohort")
    records = dataset_records("acdc", tmp_path / "cohort", "train", phantom / "splits.json", labeled=2)
    annotated = dataset_records("acdc", tmp_path / "cohort", "train", phantom / "splits.json")
    hidden = hidden_records(records, annotated)
    assert [record["image"] for record in hidden] == [record["image"] for record in records if "label" not in record]
    unlabeled = [record["label"] for record in hidden]
    assert len(unlabeled) == 8
    for label in unlabeled[1:4]:
        Path(label).unlink()
    measure(dataset_dir=str(tmp_path / "cohort"))
    assert "5 volumes with a hidden label" in capsys.readouterr().out
    for label in unlabeled:
        Path(label).unlink(missing_ok=True)
    with pytest.raises(
        SystemExit, match=r"none of the 8 unlabelled images has a label, for example .*frame..\.nii\.gz"
    ):
        measure(dataset_dir=str(tmp_path / "cohort"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "nowhere"}, r"run: expected the output folder of a training, found no nowhere.checkpoint\.pt"),
        ({"image_size": "48"}, r"checkpoint\.pt: a run with image size 32, the configuration has 48"),
        ({"labeled": "1"}, r"checkpoint\.pt: a run with labelled slices \d+, the configuration has \d+"),
        ({"num_classes": "5"}, r"checkpoint\.pt: is not a checkpoint of the configured method and network: .*head"),
        ({"labeled": "6"}, "needs unlabelled images, but the training data has none"),
        ({"batchs": "3"}, "batchs: neither an option of this command nor an id of the config"),
        ({"batches": "0"}, "batches: expected a whole number of at least 1, found 0"),
        ({"method#_target_": "scripts.methods.SemSimVariants", "method#gate": "both"}, "gate: expected one of"),
        ({"method#affinity_temprature": "1"}, "affinity_temprature"),
        ({"dataset_dir": "nowhere"}, "dataset_dir 'nowhere' does not exist"),
        ({"config_file": "nowhere.json"}, r"nowhere\.json"),
    ],
)
def test_mistakes_are_named(measure: Any, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as info:
        measure(**options)
    assert str(info.value).startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_checkpoint(tmp_path: Path, measure: Any) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match=r"checkpoint\.pt: is not a checkpoint"):
        measure(run=str(tmp_path))
    torch.save(UNet(channels=THIN).state_dict(), tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"checkpoint\.pt: is not a checkpoint"):
        measure(run=str(tmp_path))
