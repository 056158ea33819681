from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts.utils.errors import FaultsError, fault_line
from scripts.utils.options import check_options, check_switches

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_fault_names_its_file_once() -> None:
    assert fault_line(ValueError("a/x.png: 4 channels"), "a/x.png", "a/y.png") == "a/x.png: 4 channels"
    assert fault_line(ValueError("damaged"), "a/x.png") == "a/x.png: cannot be read: damaged"
    assert fault_line(ValueError("damaged"), "a/x.png", "a/y.png") == "a/x.png / a/y.png: cannot be read: damaged"
    named = fault_line(ValueError("'a/y.png' is\n gone"), "a/x.png", "a/y.png")
    assert named == "a/y.png: cannot be read: 'a/y.png' is gone"


def test_a_message_shows_the_first_faults_and_counts_the_others() -> None:
    error = FaultsError([f"fault {i}" for i in range(12)])
    assert len(error.faults) == 12
    assert str(error).splitlines() == [*(f"fault {i}" for i in range(5)), "... and 7 more"]
    assert str(FaultsError(["one"])) == "one"


@pytest.mark.parametrize("value", ["false", "true", 0, None])
def test_a_switch_is_true_or_false(value: object) -> None:
    check_switches(one=True, other=False)
    with pytest.raises(ValueError, match=f"other: expected True or False, spelled like this, found {value!r}"):
        check_switches(one=True, other=value)


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path("site-packages", "monai", "bundle", "__main__.py")), "run", *words])


@pytest.mark.parametrize("joined", [False, True])
def test_a_misspelt_option_is_refused(monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    files = str([str(CONFIGS / "train.json"), str(CONFIGS / "cpu.json")])
    given = [f"--config_file={files}"] if joined else ["--config_file", files]
    known = ["--labeled", "3", "--train#trainer#max_epochs", "2", "--weak_view::mode=flip", "--tracking", "mlflow"]
    command_line(monkeypatch, "training", *given, *known, "--tracking_uri", "sqlite:///runs.db", "--learning_rate=-1")
    check_options()
    command_line(monkeypatch, "training", *given, "--labelled=3")
    with pytest.raises(ValueError, match=r"--labelled: .* no id 'labelled'; did you mean --labeled\?"):
        check_options()


@pytest.mark.parametrize(
    ("option", "missing", "meant"),
    [
        ("train#max_epochs", "train#max_epochs", "train#trainer#max_epochs"),
        ("trainer#max_epochs", "trainer", "train#trainer#max_epochs"),
        ("evaluator::amp", "evaluator", "validate#evaluator#amp"),
        ("train#handlers#99#interval", "train#handlers#99", "train#handlers"),
        ("image_size#width", "image_size#width", "image_size"),
    ],
)
def test_an_id_that_is_nowhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, option: str, missing: str, meant: str
) -> None:
    """MONAI would make a new branch of it, beside the one that is read."""
    command_line(monkeypatch, "training", "--config_file", str(CONFIGS / "train.json"), f"--{option}", "1")
    with pytest.raises(ValueError, match=f"--{option}: .* no id '{missing}'; did you mean --{meant}\\?"):
        check_options()


@pytest.mark.parametrize(
    ("key", "meant"), [("labelled", "labeled"), ("anti_alias", "anti_aliasing"), ("train#max_epochs", "train#trainer#")]
)
def test_a_misspelt_id_of_an_overlay_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, meant: str
) -> None:
    overlay = tmp_path / "mine.json"
    files = f"{CONFIGS / 'train.json'},{CONFIGS / 'datasets' / 'custom.json'},{overlay}"
    command_line(monkeypatch, "training", "--config_file", files)
    overlay.write_text(json.dumps({key: 5}))
    with pytest.raises(ValueError, match=f"mine.json: nothing reads the id '{key}'; did you mean '{meant}"):
        check_options()
    overlay.write_text(json.dumps({key: 5, "image_size": f"$@{key} * 32"}))
    check_options()


def test_the_overlays_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of their ids is taken for another's misspelling."""
    data, methods = (sorted((CONFIGS / name).glob("*.json")) for name in ("datasets", "methods"))
    others = [CONFIGS / f"{name}.json" for name in ("cpu", "demo", "multi_gpu_train", "evaluate")]
    for overlay in (*data, *methods, *sorted((CONFIGS / "ablations").glob("*.json"))):
        for other in others:
            command_line(monkeypatch, "--config_file", f"{CONFIGS / 'train.json'},{overlay},{other}")
            check_options()
    for overlay in data:
        command_line(monkeypatch, "--config_file", f"{CONFIGS / 'inference.json'},{overlay}")
        check_options()


def test_an_id_of_an_overlay_is_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text('{"sharpness": 1}')
    command_line(monkeypatch, "--config_file", f"{CONFIGS / 'train.json'},{overlay}", "--sharpness", "2")
    check_options()
    command_line(monkeypatch, "--config_file", str(CONFIGS / "train.json"), "--sharpness", "2")
    with pytest.raises(ValueError, match="no id 'sharpness'"):
        check_options()


def test_other_programs_have_options_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--config_file", str(CONFIGS / "train.json"), "--verbose"])
    check_options()
