"""The report of one run and of several, from the files of trainings and evaluations."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from bundle.__main__ import main
from bundle.report import cases as cases_module
from bundle.report.page import anchor
from bundle.workflows import ROOT
from scripts.phantoms import make_phantom_cohort
from scripts.utils.provenance import write_record
from tests.bundle.report.test_page import browse


@pytest.fixture(scope="module")
def options(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Config values of the phantoms and the image size."""
    values = {"dataset_dir": phantom, "splits": phantom / "splits.json", "cache_dir": tmp_path_factory.mktemp("cache")}
    return [*(f"--{key}={value}" for key, value in values.items()), "--device=cpu"]


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: weights with their record, and the events of a short training."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    shutil.copytree(trained().parent, folder)
    weights, record = torch.load(folder / "model.pt"), json.loads((folder / "model.json").read_text())
    # an untrained network that predicts every class somewhere
    weights |= {"head.weight": torch.randn_like(weights["head.weight"]), "head.bias": torch.zeros(4)}
    torch.save(weights, folder / "model.pt")
    write_record(folder / "model.pt", {**record, "license": ["CC0", "CC BY 4.0"]})
    with SummaryWriter(str(folder)) as writer:
        for step in range(1, 41):
            for tag in ("loss", "loss_supervised", "coverage_decoder", "coverage_decoder_foreground", "learning_rate"):
                writer.add_scalar(tag, 1 / step, step)
        for step in (20, 40):
            for tag in ("pseudo_decoder_dice", "pseudo_intra_dice", "pseudo_decoder_precision"):
                writer.add_scalar(tag, step / 80, step)
        for epoch in (1, 2):
            writer.add_scalar("val_mean_dice", epoch / 4, epoch)
    return folder


@pytest.fixture(scope="module")
def page(run: Path, options: list[str]) -> Path:
    """The report on that run."""
    main(["report", str(run), *options])
    return run / "val-best" / "report.html"


def volumes(page: Path) -> list[dict[str, Any]]:
    with (page.parent / "per_volume.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_page_holds_the_figures_of_the_evaluation(page: Path) -> None:
    html = page.read_text()
    rows = volumes(page)
    means = [float(row["dsc"]) for row in rows if row["class"] == "mean"]
    assert len(means) == 4
    assert f"<b>{sum(means) / 4:.3f}</b>" in html
    for row in rows:
        assert f">{row['case'].rpartition('/')[2]}<" in html
        assert f">{float(row['dsc']):.3f}</td>" in html
    assert html.count('class="case" id="case-') == 4
    for title in ("Scores", "Volumes and ejection fraction", "What went wrong", "Training", "What the network sees"):
        assert f'<section id="{anchor(title)}">' in html
    assert "Left out" not in html, "nothing is missing for any part"
    assert "told apart by the larger labelled ventricle" in html
    assert "CC0; CC BY 4.0" in html
    for title in ("Pseudo-labels against hidden labels", "Those that pass, against hidden labels"):
        assert title in html
    assert "biased upwards" in html, "the weights were chosen on these cases"


def test_links_lead_to_pictures(page: Path) -> None:
    html = page.read_text()
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    links = set(re.findall(r'<a href="#([^"]+)"', html))
    assert {link for link in links if link.startswith("case-")} == {f"case-{n}" for n in range(1, 5)}
    assert links <= ids


def test_a_browser_shows_it_without_complaint(page: Path) -> None:
    shown, console = browse(page)
    assert console == []
    assert "<th" in shown
    assert '<button type="button">' in shown, "scripts ran"


def test_second_report_runs_no_network(
    page: Path, run: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (page.parent / "per_volume.csv").stat().st_mtime_ns

    def refuse(*_: Any) -> None:
        raise AssertionError("the network ran again")

    monkeypatch.setattr(cases_module, "_predict", refuse)
    monkeypatch.setattr("bundle.report.features._network", refuse)
    first = page.read_text()
    main(["report", str(run), *options])
    assert "report.html" in capsys.readouterr().out
    assert page.read_text() == first
    assert (page.parent / "per_volume.csv").stat().st_mtime_ns == before


def test_spacing_that_is_not_true_gives_no_volumes(run: Path, page: Path, options: list[str], tmp_path: Path) -> None:
    target = tmp_path / "voxels.html"
    main(["report", str(run), *options, "--millimetres=False", f"--output={target}"])
    html = target.read_text()
    assert "distances are in voxels" in html
    assert "HD95, mm" not in html
    assert "ejection fraction: r" not in html


def test_several_runs_stand_side_by_side(
    run: Path, page: Path, options: list[str], trained: Callable[..., Path], tmp_path: Path
) -> None:
    other, target = tmp_path / "two", tmp_path / "both.html"
    shutil.copytree(trained().parent, other)
    weights = {name: value * 1.5 for name, value in torch.load(other / "model.pt").items()}
    torch.save(weights, other / "model.pt")
    write_record(other / "model.pt", {"data": "acdc", "image_size": 48, "labeled_cases": 2})
    main(["report", f"{run},{other}", *options, f"--output={target}"])
    html = target.read_text()
    titles = ["Summary", "Scores", "Pictures", "Case by case", "Volumes and ejection fraction", "What went wrong"]
    for title in (*titles, "Training", "What the network sees"):
        assert f'<section id="{anchor(title)}">' in html
    for kind in ("decoder", "decoder, foreground"):
        assert f"Coverage of the pseudo-labels: {kind}<" in html
    for kind in ("decoder", "intra"):
        assert f"Pseudo-labels against hidden labels: {kind}<" in html
    assert "Left out" not in html, "nothing is missing for any part"
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "each chart has ids of its own"
    lowest = min(float(r["dsc"]) for f in (run, other) for r in volumes(f / "val-best" / "x") if r["class"] == "mean")
    assert f"<b>{lowest:.3f}</b>" in html
    assert html.count(">LV, mL</td>") == 2, "one for each run"
    for folder in (run, other):
        (mean,) = {
            f"{sum(values) / len(values):.3f}"
            for values in [[float(r["dsc"]) for r in volumes(folder / "val-best" / "x") if r["class"] == "mean"]]
        }
        assert f">{mean}</td>" in html
    _, console = browse(target)
    assert console == []
    main(["report", f"{run},{other}", *options, "--millimetres=False", f"--output={target}"])
    html = target.read_text()
    assert "HD95, voxels" in html
    assert "HD95, mm" not in html
    assert "Left out: volumes in mL need a reliable spacing" in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--network=middle"], "network: expected one of best, last, found middle"),
        (["--millimetres=maybe"], "millimetres: expected True or False"),
        (["--config_file=none.json"], "config_file: no file none.json"),
        (["--network=last"], "expected a run's folder with model_last.pt"),
        (["--evaluation=EMPTY", "--part=test"], "expected an evaluation with part test, found val"),
        (["--dataset_dir=EMPTY"], "no case in dataset_dir"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Path,
    page: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    place = page.parent if "--part=test" in changes else tmp_path
    given = [change.replace("EMPTY", str(place)) for change in changes]
    with pytest.raises(SystemExit):
        main(["report", str(run), *options, *given])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert message in line


def test_an_evaluation_of_other_weights_is_refused(
    run: Path, page: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    weights = {name: value * 2 for name, value in torch.load(other / "model.pt").items()}
    torch.save(weights, other / "model.pt")
    write_record(other / "model.pt", json.loads((run / "model.json").read_text()))
    with pytest.raises(SystemExit):
        main(["report", str(other), *options])
    assert "expected an evaluation with weights_sha256" in capsys.readouterr().err


def test_photographs_have_pixels_and_no_millimetres(trained: Callable[..., Path], tmp_path: Path) -> None:
    cohort = make_phantom_cohort(tmp_path / "isic", patients=(4, 3, 0), size=(60, 70), kind="isic")
    weights = trained("isic", in_channels=3, num_classes=2)
    options = {"dataset_dir": cohort, "splits": f"{cohort}/splits.json", "cache_dir": tmp_path / "cache"}
    config = ROOT / "configs" / "datasets" / "isic.json"
    given = [f"--{key}={value}" for key, value in {**options, "config_file": config, "device": "cpu"}.items()]
    main(["report", str(weights.parent), *given])
    html = (weights.parent / "val-best" / "report.html").read_text()
    assert "HD95, pixels" in html
    assert "Best network on 3 images of 3 cases" in html
    assert anchor("Volumes and ejection fraction") not in html
