from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor, nn

from bundle.__main__ import main as command_line
from bundle.report.events import curves
from scripts.data import SliceDataset, dataset_records
from scripts.hidden import count_pseudo_labels, hidden_records, scores
from scripts.losses import PseudoLabel
from scripts.methods import FixMatch, Objective, SemSim, SemSimVariants, Supervised, UniMatch, WeakViews
from scripts.methods import fixmatch as fixmatch_module
from scripts.methods import semsim as semsim_module
from scripts.methods import semsim_variants as variants_module
from scripts.methods import unimatch as unimatch_module
from scripts.networks import PixelProjection, UNet
from scripts.views import WeakView

ROOT = Path(__file__).resolve().parents[2]
THIN = (4, 6, 8, 10, 12)
MEASURES = ("coverage", "precision", "recall", "dice", "dice_passing")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind: type[Objective], dropout: float = 0.0, **options: Any) -> Objective:
    torch.manual_seed(3)
    network = UNet(channels=THIN, dropout=dropout)
    network.head.weight.data *= 3  # predictions that differ from pixel to pixel
    if issubclass(kind, SemSim):
        options["fusion"] = PixelProjection(channels=THIN, dim=8)
    return kind(network=network, **options)


def slices_of(phantom: Path, cache: Path, chosen: slice) -> SliceDataset:
    """Slices at 32 px of some of the training records, all with their labels."""
    parser = ConfigParser(ConfigParser.load_config_files(str(ROOT / "configs" / "train.json")))
    parser.update({"image_size": 32, "slice_axis": "axial"})
    records = dataset_records("acdc", phantom, "train", phantom / "splits.json")[chosen]
    return SliceDataset(records, parser.get_parsed_content("train#preprocessing"), cache, num_classes=4)


@pytest.fixture(scope="module")
def batches(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Two batches of phantom slices: labelled ones, and others with their hidden labels."""
    slices = slices_of(phantom, tmp_path_factory.mktemp("cache"), slice(None))
    found = []
    for start in (0, 12):
        items = [slices[start + k] for k in range(7)]
        images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
        found.append({"image": images[:3], "label": labels[:3], "unlabeled": images[3:], "hidden": labels[3:]})
    return found


# --- the measures ----------------------------------------------------------------------------------------------------


def plain_loop(pixels: list[tuple[bool, int, int]], classes: list[int]) -> dict[str, float | None]:
    """Every measure by a loop over (passes, pseudo-label, truth)."""
    named = passing = right = truly = 0
    for passes, label, truth in pixels:
        named += label in classes
        passing += passes and label in classes
        right += passes and label == truth and label in classes
        truly += truth in classes

    def dice(chosen: list[tuple[bool, int, int]]) -> float | None:
        each = []
        for c in classes:
            a = {i for i, (_, label, _) in enumerate(chosen) if label == c}
            b = {i for i, (_, _, truth) in enumerate(chosen) if truth == c}
            if a or b:
                each.append(2 * len(a & b) / (len(a) + len(b)))
        return sum(each) / len(each) if each else None

    return {
        "pixels": truly,
        "coverage": passing / named if named else None,
        "precision": right / passing if passing else None,
        "recall": right / truly if truly else None,
        "dice": dice(pixels),
        "dice_passing": dice([pixel for pixel in pixels if pixel[0]]),
    }


def check(found: list[dict[str, Any]], pixels: list[tuple[bool, int, int]], num_classes: int) -> None:
    groups = {str(c): [c] for c in range(num_classes)}
    groups |= {"foreground": list(range(1, num_classes)), "all": list(range(num_classes))}
    assert [row["class"] for row in found] == list(groups)
    for row in found:
        for measure, value in plain_loop(pixels, groups[row["class"]]).items():
            assert row[measure] == (None if value is None else pytest.approx(value, abs=1e-6)), (row, measure)


@pytest.mark.parametrize("options", [{}, {"gate": "agree", "affinity_space": "probability"}, {"shared_target": True}])
def test_scores_equal_a_walk_over_the_pixels(batches: list[dict[str, Tensor]], options: dict[str, Any]) -> None:
    """Without views and dropout a pseudo-label is a function of the batch: compare it pixel by pixel."""
    objective = build(SemSimVariants, weak=WeakView("none"), threshold=0.5, **options)
    expected: dict[str, list[tuple[bool, int, int]]] = {"decoder": [], "intra": [], "cross": []}
    with torch.no_grad():
        for batch in batches:
            views = WeakViews(batch["image"], batch["label"][:, 0], batch["unlabeled"], None)
            for kind, target in objective.pseudo_labels(views).items():
                step = 32 // target.label.shape[-1]
                assert step == (1 if kind == "decoder" else 4)
                for b, i, j in np.ndindex(*target.label.shape):
                    cell = batch["hidden"][b, 0, i * step : (i + 1) * step, j * step : (j + 1) * step]
                    truth = int(cell.flatten().bincount(minlength=4).argmax())
                    passes = float(target.confidence[b, i, j]) >= 0.5
                    expected[kind].append((passes, int(target.label[b, i, j]), truth))
    counts = count_pseudo_labels(objective, batches, seed=0)
    assert list(counts) == list(expected)
    for kind, pixels in expected.items():
        assert 0 < sum(passes for passes, _, _ in pixels) < len(pixels)  # the threshold matters
        check(scores(counts[kind]), pixels, 4)


def test_scores_of_random_counts_and_of_classes_that_are_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    for absent in (None, 2):
        for kept in (0.5, 0.0):
            label, truth = torch.randint(0, 3, (2, 150), generator=generator).tolist()
            pixels = [
                (bool(passes), y, t)
                for passes, y, t in zip(torch.rand(150, generator=generator) < kept, label, truth, strict=True)
                if absent not in (y, t)
            ]
            counts = np.zeros((2, 3, 3), dtype=np.int64)
            for passes, y, t in pixels:
                counts[int(passes), y, t] += 1
            check(scores(counts), pixels, 3)


class Oracle(Objective):
    """Pseudo-labels equal to the truth of the network's input: an image that contains its own label."""

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        truth = (views.unlabeled[:, 0] * 4).round().long()
        return {"decoder": PseudoLabel(truth, torch.ones_like(truth, dtype=torch.float32))}


@pytest.mark.parametrize("weak", [WeakView("flip"), WeakView("flip", shared=True)])
def test_the_hidden_label_is_seen_as_the_image_is(batches: list[dict[str, Tensor]], weak: WeakView) -> None:
    shown = [{**batch, "unlabeled": batch["hidden"] / 4} for batch in batches]
    counts = count_pseudo_labels(build(Oracle, weak=weak), shown, seed=5)  # type: ignore[type-abstract]
    for row in scores(counts["decoder"]):
        assert all(row[measure] == 1 for measure in MEASURES)
    wrong = [{**batch, "hidden": batch["hidden"].flip(-1)} for batch in shown]
    assert scores(count_pseudo_labels(build(Oracle, weak=weak), wrong, seed=5)["decoder"])[-1]["precision"] < 1


# --- the pseudo-labels are those of training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "options"),
    [
        (FixMatch, fixmatch_module, {}),
        (UniMatch, unimatch_module, {}),
        (SemSim, semsim_module, {"dropout": 0.3}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "joint_forward": True, "gate": "decoder"}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "lambda_intra": 0.0, "channel_dropout": "feature_stream"}),
        (SemSimVariants, variants_module, {"dropout": 0.3, "lambda_cross": 0.0, "shared_target": True}),
        (SemSim, semsim_module, {"dropout": 0.3, "lambda_cross": 0.0, "lambda_intra": 0.0}),
    ],
)
@pytest.mark.parametrize("weak", ["flip", "rotate_flip"])
def test_forward_makes_the_same_pseudo_labels(
    monkeypatch: pytest.MonkeyPatch,
    batches: list[dict[str, Tensor]],
    kind: type[Objective],
    module: Any,
    options: dict[str, Any],
    weak: str,
) -> None:
    """FixMatch and UniMatch draw strong views before dropout, so theirs are compared without dropout."""
    used: dict[str, PseudoLabel] = {}
    original = module.coverage

    def spy(name: str, target: PseudoLabel, threshold: float) -> dict[str, Tensor]:
        used[name] = target
        return original(name, target, threshold)

    monkeypatch.setattr(module, "coverage", spy)
    objective = build(kind, weak=WeakView(weak), threshold=0.5, **options)
    torch.manual_seed(11)
    objective({key: value for key, value in batches[0].items() if key != "hidden"})
    torch.manual_seed(11)
    with torch.no_grad():
        found = objective.pseudo_labels(objective.weak_views(batches[0]))
    assert list(found) == list(used)
    for name, target in found.items():
        assert torch.equal(target.label, used[name].label)
        assert torch.equal(target.confidence, used[name].confidence)


def test_train_mode_and_nothing_of_it_stays(batches: list[dict[str, Tensor]]) -> None:
    objective = build(Supervised, dropout=0.5, weak=WeakView("none"), threshold=0.5).eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, again, other = (count_pseudo_labels(objective, batches, seed)["decoder"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)  # dropout is at work
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    for norm in (m for m in objective.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean = torch.full_like(norm.running_mean, 100.0)  # type: ignore[arg-type]
    assert np.array_equal(count_pseudo_labels(objective, batches, 0)["decoder"], first)  # batch statistics


# --- the command -----------------------------------------------------------------------------------------------------

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
        part: [(item["image"], item["label"]) for item in slices_of(phantom, tmp_path / part, chosen)]  # type: ignore[attr-defined]
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


def test_hidden_records_need_unlabelled_ones() -> None:
    records = [{"image": "a.nii.gz", "label": "a_gt.nii.gz"}]
    with pytest.raises(ValueError, match="all 1 training images are labelled"):
        hidden_records(records, records)
