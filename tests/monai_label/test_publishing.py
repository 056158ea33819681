from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.monai_label import PublishWeights, Studies, network_files
from scripts.utils.licences import SYNTHETIC, licenses_line
from scripts.utils.provenance import read_record, write_record
from tests.monai_label.common import make_datastore


def save_weights(path: Path, **record: object) -> None:
    """Weights that differ from all others, with their record."""
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.nn.Linear(1, 1).state_dict(), path)
    write_record(path, record)


def train(
    run: Path, served: Path, records: list, start: Path | None, broken: bool = False, image_size: int = 64
) -> None:
    """A training of two epochs that starts from a file, writes weights after the first and may fail in the second."""
    network = torch.nn.Linear(1, 1)
    old = served.read_bytes()

    def step(engine: Engine, batch: int) -> None:
        network.weight.data += 1
        assert served.read_bytes() == old
        if broken and engine.state.epoch == 2:
            raise ValueError("broken")

    trainer = Engine(step)
    if start:  # MONAI Label's own handler is the first
        trainer.add_event_handler(Events.STARTED, lambda: network.load_state_dict(torch.load(start)))
    known = {
        "data": "acdc",
        "split": "acdc.json",
        "split_sha256": "0" * 64,
        "labeled_cases": 1,
        "image_size": image_size,
    }
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: save_weights(run / "model.pt", **known))
    PublishWeights(str(run), str(served), Studies(records), network).attach(trainer)
    trainer.run([0], max_epochs=2)


def test_only_a_finished_training_is_published(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    run, served = tmp_path / "run", tmp_path / "models" / "model.pt"
    save_weights(served, license="terms")
    old = served.read_bytes()
    with pytest.raises(ValueError, match="broken"):
        train(run, served, records, served, broken=True)
    assert served.read_bytes() == old
    stopped = read_record(run / "model.pt")
    assert stopped is not None
    assert stopped["data"] == "custom", "somebody may put these weights to use"
    assert stopped["license"][1:] == ["terms"]
    candidate = served.with_name("model_candidate.pt")
    assert candidate.read_bytes() == (run / "model.pt").read_bytes(), "stopping keeps the work"
    assert read_record(candidate) == stopped
    train(run, served, records, served)
    assert served.read_bytes() == (run / "model.pt").read_bytes() != old
    assert served.with_name("model_previous.pt").read_bytes() == old
    assert read_record(served.with_name("model_previous.pt")) is not None
    names = ["LICENSE.txt", "model.json", "model.pt", "model_previous.json", "model_previous.pt"]
    assert sorted(p.name for p in served.parent.iterdir()) == names, "the candidate is the served one now"


@pytest.mark.parametrize(("before", "warned"), [(96, True), (64, False), (None, False)])
def test_a_server_that_keeps_the_old_slice_size_is_to_be_restarted(
    before: int | None, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    served = tmp_path / "models" / "model.pt"
    save_weights(served, license="terms", **({"image_size": before} if before else {}))
    train(tmp_path / "run", served, records, None)
    assert ("The slice size changed from 96 to 64: restart the server" in caplog.text) is warned


@pytest.mark.parametrize(
    ("start", "inherited"),
    [
        ("model.pt", "terms"),
        ("earlier.pt", "other terms"),
        ("synthetic.pt", None),
        ("continued.pt", "terms of the first"),
        ("unknown.pt", None),
        (None, None),
    ],
)
def test_weights_carry_the_terms_of_those_that_they_began_with(
    start: str | None, inherited: str | None, tmp_path: Path
) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    run, models = tmp_path / "run", tmp_path / "models"
    save_weights(models / "model.pt", license="terms")
    save_weights(models / "earlier.pt", license="other terms")
    save_weights(models / "synthetic.pt", license=SYNTHETIC, synthetic=True)
    save_weights(models / "continued.pt", license=licenses_line([SYNTHETIC, "terms of the first"]), synthetic=True)
    save_weights(models / "unknown.pt")
    (models / "unknown.json").unlink()
    origin = start and read_record(models / start)
    train(run, models / "model.pt", records, start and models / start)
    for folder in (run, models):
        record = read_record(folder / "model.pt")
        assert record is not None
        assert (record["data"], record["split"], record["labeled_cases"]) == ("custom", "MONAI Label datastore", 1)
        assert record["split_sha256"] is None
        assert record["license"][0].startswith("not stated")
        assert record["license"][1:] == ([inherited] if inherited else [])
        assert record.get("continues_sha256") == (origin["sha256"] if origin else None)
        text = (folder / "LICENSE.txt").read_text()
        assert "trained on: studies of a MONAI Label datastore\nLicence of these data: not stated" in text
        assert "synthetic" not in text
        assert (f"Licence of its initial weights: {inherited}\n" in text) is (inherited is not None)


class Evaluator:
    """Scores a network by its single weight, equally for both classes of each case."""

    def __init__(self, network: torch.nn.Linear, cases: list[float]) -> None:
        self.network = network
        self.cases = cases
        self.state: Any = SimpleNamespace(best_metric=-1, best_metric_epoch=-1, epoch=0, metric_details={})

    def run(self, epoch: int = 1) -> None:
        scores = torch.sigmoid(self.network.weight.detach()).flatten() * torch.tensor(self.cases)
        self.state.epoch = epoch
        self.state.metric_details = {"val_mean_dice": scores[:, None].repeat(1, 2)}
        if scores.mean() > self.state.best_metric:
            self.state.best_metric, self.state.best_metric_epoch = float(scores.mean()), epoch


def compare(
    root: Path, step: float, served: float | None = 0.0, cases: tuple[float, ...] = (0.9,), **record: Any
) -> tuple[Path, Path]:
    """Train a network of weight 0 by one step per epoch, beside a served one; returns both weights."""
    records = make_datastore(root / "studies", ["a", "v", "w"], ["d"])
    for number, name in enumerate("avw"):
        (root / "studies" / f"{name}.nii.gz").write_bytes(bytes([number]))
    network = torch.nn.Linear(1, 1, bias=False)
    target, run = root / "models" / "model.pt", root / "run" / "model.pt"
    target.parent.mkdir()
    run.parent.mkdir()
    if served is not None:
        network.weight.data[:] = served
        torch.save(network.state_dict(), target)
        write_record(target, {"image_size": 64, **record})
    network.weight.data[:] = 0
    evaluator = Evaluator(network, list(cases))

    def train(engine: Engine, batch: int) -> None:
        if engine.state.iteration == 1:
            assert float(network.weight) == 0, "scoring the served network leaves the one that is trained"
            assert evaluator.state.best_metric_epoch == -1
        network.weight.data += step

    def finish_epoch(engine: Engine) -> None:
        evaluator.run(engine.state.epoch)
        if evaluator.state.best_metric_epoch == engine.state.epoch:
            torch.save(network.state_dict(), run)
            write_record(run, {"image_size": 64})

    trainer = Engine(train)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, finish_epoch)
    studies = Studies(records[:1], records[1 : 1 + len(cases)])
    PublishWeights(str(run.parent), str(target), studies, network, evaluator, {"2": "LV", "1": "RV"}).attach(trainer)
    trainer.run([0], max_epochs=2)
    return run, target


def test_a_worse_network_is_not_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run, target = compare(tmp_path, step=-1.0)
    assert torch.load(target)["weight"].item() == 0
    assert not target.with_name("model_previous.pt").exists()
    assert target.with_name("model_candidate.pt").read_bytes() == run.read_bytes()
    assert "Served network: Dice RV 0.450, LV 0.450, mean 0.450. New network: Dice RV 0.242" in caplog.text
    assert "The new network is worse: the served one is kept, the new one is model_candidate.pt" in caplog.text


@pytest.mark.parametrize("step", [0.0, 1.0])
def test_a_network_that_is_no_worse_is_published(step: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run, target = compare(tmp_path, step=step)
    assert target.read_bytes() == run.read_bytes()
    assert torch.load(target.with_name("model_previous.pt"))["weight"].item() == 0
    assert not target.with_name("model_candidate.pt").exists()
    assert caplog.text.count("Served network: Dice RV 0.450") == 1


def test_without_a_served_network_the_new_one_is_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run, target = compare(tmp_path, step=-1.0, served=None)
    assert target.read_bytes() == run.read_bytes()
    assert "was not compared" in caplog.text


def test_networks_are_compared_on_studies_that_neither_learned_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The served network learned from the second study, on which both score 0 here."""
    learned = {"labeled_sha256": ["4bf5122f344554c5"]}  # index 1: the first validation study
    with caplog.at_level(logging.INFO):
        compare(tmp_path / "both", step=1.0, served=0.5, cases=(0.0, 0.9), **learned)
        assert "Served network: Dice RV 0.560" in caplog.text
        caplog.clear()
        run, target = compare(tmp_path / "one", step=-1.0, served=0.5, cases=(0.9,), **learned)
    assert "was trained on every validation study: they cannot serve" in caplog.text
    assert target.read_bytes() == run.read_bytes()
    record = read_record(run)
    assert record is not None
    assert record["labeled_sha256"] == ["6e340b9cffb37a98"], "what it learned from: one byte, 0"


def test_viewers_are_offered_what_trainings_will_write(tmp_path: Path) -> None:
    expected = ["model.pt", "model_previous.pt", "model_candidate.pt"]
    assert network_files(tmp_path) == expected
    (tmp_path / "other_site.pt").touch()
    assert network_files(tmp_path) == ["model.pt", "other_site.pt", *expected[1:]]
