"""The comparison: its runs, which are not repeated, and its table."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from bundle.__main__ import main
from bundle.compare import command as compare
from bundle.compare.results import collect, tables
from bundle.compare.runs import plan
from bundle.report.events import validation_curve
from bundle.workflows import CONFIGS, ROOT, method_names
from scripts.utils.provenance import write_record

BROKEN = "method::threshold=2"


def arguments(cohort: Path, output: Path, **options: Any) -> list[str]:
    given = {
        "methods": "supervised",
        "output": output,
        "dataset_dir": cohort,
        "splits": cohort / "splits.json",
        "cache_dir": cohort.parent / "cache",
        "device": "cpu",
        "image_size": 64,
        "batch_size": 2,
        "labeled": 2,
        "train#trainer#max_epochs": 2,
        "train#trainer#epoch_length": 1,
        **options,
    }
    return ["compare", *(f"--{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Slices this small gain nothing from threads; the runs' processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def done(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with one failed and two successful runs, and the command's exit status."""
    folder = tmp_path_factory.mktemp("compare") / "all"
    with pytest.raises(SystemExit) as end:
        main(arguments(phantom, folder, overlays=f"{BROKEN},default", seeds="0,1", jobs=2))
    return folder, str(end.value)


@pytest.fixture
def copy(done: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(done[0], tmp_path / "moved"))


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The error line of a mistake."""
    with pytest.raises(SystemExit):
        main(list(given))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line.removeprefix("error: ")


def state(folder: Path) -> dict[str, int]:
    """All files by name, with their modification times."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_failing_run_is_named_and_the_others_go_on(done: tuple[Path, str]) -> None:
    folder, message = done
    reason = "threshold: expected a confidence in [0, 1], found 2."
    assert message.splitlines() == [f"error: supervised, {BROKEN}, seed {seed}: {reason}" for seed in (0, 1)]
    with (folder / "val.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["overlay"], row["seed"]) for row in rows] == [
        ("supervised", "default", seed) for seed in ("0", "1")
    ]
    assert "Traceback" in (folder / "supervised-method_threshold=2-seed0" / "log.txt").read_text()


def test_rows_are_what_the_evaluations_say(done: tuple[Path, str]) -> None:
    folder, _ = done
    for row in collect(folder, "val"):
        assert (row["labeled"], row["image_size"], row["iterations"]) == (2, 64, 2)
        assert row["seconds"] > 0
        for name in ("best", "last"):
            lines = (folder / row["run"] / f"val-{name}" / "per_volume.csv").read_text().splitlines()
            volumes = [line for line in csv.DictReader(lines) if line["class"] == "mean"]
            for measure in ("dsc", "hd95_voxels", "assd_mm"):
                mean = statistics.mean(float(line[measure]) for line in volumes)
                assert row[f"{name}_{measure}"] == pytest.approx(mean, abs=1e-5)
            assert row[f"{name}_one_empty"] == sum(int(line["one_empty"]) for line in volumes)
    assert collect(folder, "test") == []


def test_learning_rate_is_logged_with_the_losses(done: tuple[Path, str]) -> None:
    files = [EventAccumulator(str(p)).Reload() for p in (done[0] / "supervised-default-seed0").glob("events.out*")]
    logged = next(file for file in files if "loss" in file.Tags()["scalars"])
    rates = [(event.step, event.value) for event in logged.Scalars("learning_rate")]
    assert [step for step, _ in rates] == [1, 2]
    assert [rate for _, rate in rates] == pytest.approx([0.01 * (1 - i / 2) ** 0.9 for i in (1, 2)])


def test_table_and_picture_are_written_with_the_command(done: tuple[Path, str], phantom: Path) -> None:
    folder, _ = done
    text = (folder / "val.md").read_text()
    top = text.splitlines()[1]
    assert top.startswith(f"python -m bundle compare --methods supervised --seeds 0,1 --overlays {BROKEN},default ")
    assert f"--dataset_dir {phantom} " in top
    assert f" --labeled 2 --output {folder} " in top
    assert top.endswith("--batch_size 2 '--train#trainer#max_epochs' 2 '--train#trainer#epoch_length' 1")
    assert "| supervised |  | 0, 1 |" in text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    html = (folder / "val.html").read_text()
    assert html.count("supervised, seed ") > 4
    assert "<svg" in html
    assert {path.name for path in folder.rglob(".*")} <= {".lock"}, "nothing temporary stays"


def test_finished_runs_are_not_repeated_and_other_lengths_stand_apart(
    copy: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = copy / "supervised-default-seed0"
    missing = copy / "supervised-default-seed1" / "val-last" / "summary.csv"
    before, evaluation = state(copy), missing.read_text()
    missing.unlink()
    main(arguments(phantom, copy, seeds="0,1"))
    printed = capsys.readouterr().out
    assert "supervised, seed 0: is finished" in printed
    assert "supervised, seed 1: log in" in printed
    assert re.search(r"seed 1: done in \d+ s; 1 of 1 runs ended, about 0 s left", printed)
    assert missing.read_text() == evaluation
    after = state(copy)
    assert {name for name in before if name.startswith(kept.name) and after[name] != before[name]} == set()
    trained = [f"supervised-default-seed1/{name}" for name in ("checkpoint.pt", "model.pt", "val-best/summary.csv")]
    assert [after[name] for name in trained] == [before[name] for name in trained]

    main(arguments(phantom, copy, methods="fixmatch", **{"train#trainer#max_epochs": 1}))
    text = (copy / "val.md").read_text()
    parts = text.split("\n### ")
    assert [part.splitlines()[0] for part in parts[1:]] == [
        "2 labelled, 64 px, 2 iterations",
        "2 labelled, 64 px, 1 iterations",
    ]
    assert "| supervised |" in parts[1]
    assert "fixmatch" not in parts[1]
    assert "| fixmatch |" in parts[2]
    assert "supervised" not in parts[2]
    assert "Some of the runs were started by" in parts[0]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("labeled", 1, "settings.json: was started with other settings: labeled was 2, is 1. Choose another --output."),
        ("learning_rate", 0.5, "learning_rate was 0.01, is 0.5"),
        ("train#trainer#max_epochs", 3, "seed0/train.json: was started with other settings: train#trainer#max_epochs"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(
    done: tuple[Path, str],
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: Any,
    message: str,
) -> None:
    before = state(done[0])
    assert message in refused(capsys, *arguments(phantom, done[0], methods="fixmatch,supervised", **{option: value}))
    assert state(done[0]) == before


def test_a_method_that_has_changed_is_refused(
    tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "isolated", lambda *_: "")
    overlay = tmp_path / "mine.json"
    content = json.loads((CONFIGS / "methods" / "supervised.json").read_text())
    overlay.write_text(json.dumps(content))
    main(arguments(phantom, tmp_path / "out", methods=overlay))
    assert (tmp_path / "out" / "mine-default-seed0" / "train.json").is_file()
    content["method"]["threshold"] = 0.9
    overlay.write_text(json.dumps(content))
    message = refused(capsys, *arguments(phantom, tmp_path / "out", methods=overlay))
    assert "method#threshold was nothing, is 0.9" in message


def test_jobs_run_at_a_time_and_share_the_threads(
    tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Barrier(2)
    given = []

    def work(_: Any, folder: Path, part: str, threads: int) -> str:
        together.wait(timeout=20)  # a single run waits in vain
        given.append((folder.name, part, threads))
        return ""

    monkeypatch.setattr(compare, "isolated", work)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    main(arguments(phantom, tmp_path / "out", seeds="0,1,2,3", jobs=2))
    assert sorted(given) == [(f"supervised-default-seed{seed}", "val", 3) for seed in range(4)]


def test_an_interruption_begins_no_further_run(tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def work(_: Any, folder: Path, *__: Any) -> str:
        begun.append(folder.name)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(1)  # the next run may start before the interruption is noticed
        return ""

    monkeypatch.setattr(compare, "isolated", work)
    with pytest.raises(SystemExit):
        main(arguments(phantom, tmp_path / "out", seeds="0,1,2,3,4,5,6,7"))
    assert len(begun) <= 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("methods", "fixmatch,meanteacher", "methods: no 'meanteacher'; there are .*fixmatch.*supervised"),
        ("overlays", "table9", "overlays: no 'table9'; there are .*table4_cross, .*table4_intra"),
        ("config_file", "configs/gpu.json", "config_file: no file configs/gpu.json"),
        ("seeds", "one", "seeds: expected whole numbers from 0, found one"),
        ("seeds", 1.5, "seeds: expected whole numbers from 0, found 1.5"),
        ("config_file", ROOT / "README.md", ".*README.md: cannot be read as a config file"),
        ("part", "train", "part: expected one of val, test, found train"),
        ("jobs", 0, "jobs: expected a whole number from 1, found 0"),
        ("jobs", "two", "jobs: expected a whole number from 1, found two"),
        ("seed", 3, "seed: the comparison sets it itself"),
        ("label", 3, "label: no option of compare, and no id of the configuration"),
        ("train#optimizr#lr", 3, "train#optimizr#lr: not an id of the configuration"),
        ("overlays", "lambda_cross=0", "lambda_cross: no option of compare, and no id of the configuration"),
        ("overlays", "seed=5", "seed: the comparison sets it itself"),
        ("overlays", "labeled=1", "labeled: set for all runs, but an ablation changes it"),
        ("methods", "semsim,configs/methods/semsim.json", "methods, overlays: two of them have the same name"),
        ("methods", "", "methods, seeds, overlays: expected at least one of each"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    tmp_path: Path, phantom: Path, capsys: pytest.CaptureFixture[str], option: str, value: Any, message: str
) -> None:
    assert re.match(message, refused(capsys, *arguments(phantom, tmp_path / "out", **{option: value})))
    assert not (tmp_path / "out").exists()


def test_which_runs_with_which_configuration() -> None:
    overlays = ["default", str(CONFIGS / "ablations" / "table4_intra.json"), "method::fusion::stages=[2,3]"]
    runs = plan("semsim", "0,4", overlays, str(CONFIGS / "cpu.json"), {"labeled": 7})
    assert [(run.overlay, run.seed) for run in runs] == [
        (overlay, seed) for overlay in ("default", "table4_intra", overlays[2]) for seed in (0, 4)
    ]
    assert len({run.name for run in runs}) == 6
    for run in runs:
        for config in run.configs.values():
            assert (config["image_size"], config["labeled"], config["seed"]) == (128, 7, run.seed)
        assert (
            run.configs["evaluate.json"]["initialize"]
            == json.loads((CONFIGS / "evaluate.json").read_text())["initialize"]
        )
    methods = [run.configs["train.json"]["method"] for run in runs[::2]]
    assert [method.get("lambda_decoder") for method in methods] == [None, 0, None]
    assert [method["fusion"].get("stages") for method in methods] == [None, None, [2, 3]]
    assert [run.method for run in plan("all", 0, "default", (), {})] == method_names()


def test_the_evaluation_takes_the_network_from_the_weights(tmp_path: Path) -> None:
    """An option of the network alone, as an ablation and for all runs."""
    (run,) = plan("supervised", 0, "network_def::channels=[8,8,8,8,8]", (), {"network_def#dropout": 0.1})
    parsers = [ConfigParser(run.configs[name]) for name in ("train.json", "evaluate.json")]
    trained = parsers[0].get_parsed_content("network_def")
    settings = {"network channels": list(trained.channels), "network dropout": list(trained.dropout)}
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    write_record(tmp_path / "model.pt", {"network": "UNet", "settings": settings})
    parsers[1]["checkpoint"] = str(tmp_path / "model.pt")
    evaluated = parsers[1].get_parsed_content("network_def")
    evaluated.load_state_dict(trained.state_dict())
    assert evaluated.channels == trained.channels == (8,) * 5
    assert evaluated.dropout == trained.dropout == (0.1,) * 5


def test_table_by_hand() -> None:
    def row(method: str, seed: int, dsc: float, hd95: float, iterations: int = 1500, **more: Any) -> dict[str, Any]:
        scores = {"dsc": dsc, "hd95_voxels": hd95, "assd_voxels": 2.0, "one_empty": seed}
        return {
            "method": method,
            "overlay": "default",
            "seed": seed,
            "labeled": 3,
            "image_size": 128,
            "iterations": iterations,
            "seconds": 100.0 + seed,
            "command": "earlier",
            **{f"{name}_{key}": value for name in ("best", "last") for key, value in scores.items()},
            **more,
        }

    rows = [
        row("low", 0, 0.5, 10.0),
        row("low", 2, 0.7, 14.0),
        row("low", 1, 0.9, 12.0, last_dsc=0.2),
        row("one", 0, 0.65, 3.0, overlay="table4_intra"),
        row("hybrid", 0, 0.99, 1.0, iterations=300),
    ]
    lines = tables(rows, "test", "now").splitlines()
    assert lines[:3] == ["```bash", "now", "```"]
    assert "earlier" in lines
    # .5, .7, .9: mean .7, sample deviation .2; .5, .7, .2: mean .4667, squares .0011, .0544, .0711, sum .1267, / 2.
    best, last = "0.700 ± 0.200 | 12.0 ± 2.0 | 2.0 ± 0.0 | 3", "0.467 ± 0.252 | 12.0 ± 2.0 | 2.0 ± 0.0 | 3"
    low = "| low |  | 0, 1, 2 |"
    one = "| one | `table4_intra` | 0 | 0.650 | 3.0 | 2.0 | 0 | 0.650 | 3.0 | 2.0 | 0 | 100 |"
    hybrid = "| hybrid |  | 0 | 0.990 | 1.0 | 2.0 | 0 | 0.990 | 1.0 | 2.0 | 0 | 100 |"

    def found(lines: list[str]) -> list[str]:
        return [line for line in lines if line.startswith("|") and "---" not in line and "method" not in line]

    assert found(lines) == [f"{low} {best} | {last} | 101 |", one, hybrid]
    chosen_here = tables(rows, "val", "now").splitlines()
    assert found(chosen_here) == [one, f"{low} {last} | {best} | 101 |", hybrid], "the last network leads and ranks"
    titles = [next(line for line in part if "method" in line) for part in (lines, chosen_here)]
    assert [text.index("best DSC") < text.index("last DSC") for text in titles] == [True, False]
    assert [line for line in lines if line.startswith("###")] == [
        "### 3 labelled, 128 px, 1,500 iterations",
        "### 3 labelled, 128 px, 300 iterations",
    ]


def test_curve_of_a_run_that_was_interrupted(tmp_path: Path) -> None:
    """Epoch 2 was validated twice: before the stop, and again because no checkpoint had been written."""
    torch.save({"state": {"epoch_length": 50}}, tmp_path / "checkpoint.pt")
    for file, events in enumerate(([(1, 0.1, 10), (2, 0.2, 20)], [(2, 0.25, 30), (3, 0.3, 40)])):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{file}") as writer:
            for epoch, value, second in events:
                writer.add_scalar("val_mean_dice", value, epoch, walltime=second)
    assert validation_curve(tmp_path) == pytest.approx({50: 0.1, 100: 0.25, 150: 0.3})


def alive(folder: Path) -> bool:
    """Whether a process still has a run's log open."""

    def target(link: Path) -> str:
        try:
            return os.readlink(link)
        except OSError:  # ended by now, or another user's
            return ""

    return any(target(link) == str(folder / "log.txt") for link in Path("/proc").glob("[0-9]*/fd/1"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_an_interrupted_run_goes_on_from_its_checkpoint(phantom: Path, tmp_path: Path) -> None:
    line = arguments(phantom, tmp_path / "out", **{"train#trainer#max_epochs": 25, "val_interval": 25})
    run = tmp_path / "out" / "supervised-default-seed0"
    with subprocess.Popen([sys.executable, "-m", "bundle", *line], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (run / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    deadline = time.monotonic() + 10
    while alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(run), "the run outlives its comparison"
    assert not (run / "model_last.pt").exists()

    main(line)
    log = (run / "log.txt").read_text()
    assert "No " in log.split("Resumed from")[0]
    assert f"Resumed from {run / 'checkpoint.pt'} after epoch" in log
    assert [row["iterations"] for row in collect(tmp_path / "out", "val")] == [25]
