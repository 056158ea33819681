from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bundle.workflows import CONFIGS
from scripts.utils.options import check_options, check_paths, check_switches, check_values


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
    """MONAI would add it as a new branch without effect."""
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
    """None of their ids is mistaken for a misspelling of another."""
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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *[("image_size", value, "the side of a slice") for value in ("abc", 0, -1, 1.5, True, None, [64, 64])],
        *[("max_epochs", value, "a whole number from 1") for value in (0, -3, "2", 1.5)],
        ("epoch_length", 0, "a whole number from 1"),
        *[("num_classes", value, "a whole number in 2..256") for value in (1, 257, "3", True)],
        *[("seed", value, "a whole number from 0") for value in ("x", -1, 1.5)],
        *[("learning_rate", value, "a number above 0") for value in ("fast", 0, -1, float("nan"), float("inf"))],
        ("batch_size", 0, "a whole number from 1"),
        ("in_channels", 0, "a whole number in 1..64"),
        ("num_workers", -1, "a whole number from 0"),
        *[("device", value, "a device that PyTorch finds here") for value in ("x", "cuda:99", 3.5)],
        *[("output_dir", value, "a path without # and ::") for value in ("a::b", 2018, True, "")],
        ("class_names", {"one": "bone"}, "the number of a class"),
        ("class_names", ["bone"], "names by class"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: expected {message}|^{option}: .*{message}") as info:
        check_values(**{option: value})
    assert "\n" not in str(info.value)


def test_sound_values_pass(tmp_path: Path) -> None:
    check_values(device="cpu", image_size=224, seed=0, learning_rate=0.01, max_epochs=1, class_names={1: "bone"})
    check_values(device=torch.device("cpu"), output_dir=tmp_path, splits=None, dataset_dir="2018", not_an_option=3)


@pytest.mark.parametrize("word", ["2018", "2026_11_29", "True", "1e3", "None", "[a]", "(1,2)", "0x10"])
def test_a_path_that_fire_would_change_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    for words in (["--output_dir", word], [f"--dataset_dir={word}"], ["--resume", word]):
        if words == ["--resume", "True"]:
            continue
        with pytest.raises(ValueError, match=r"would be read as .*; write it as \./"):
            check_paths(["run", *words])
    command_line(monkeypatch, "--config_file", str(CONFIGS / "train.json"), "--output_dir", word)
    with pytest.raises(ValueError, match="--output_dir"):
        check_options()
    check_paths(["--resume", "True", "--splits", "None", "--output_dir", f"./{word}", "--labeled", "3"])


def test_options_beside_a_file_of_arguments_are_checked_and_so_is_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = tmp_path / "arguments.json"
    stored.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "labeled": 2}))
    command_line(monkeypatch, "--args_file", str(stored), "--learning_rate", "0.1")
    check_options()
    command_line(monkeypatch, "--args_file", str(stored), "--labelled", "1")
    with pytest.raises(ValueError, match=r"--labelled: .* did you mean --labeled\?"):
        check_options()
    stored.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "labelled": 2}))
    command_line(monkeypatch, "--args_file", str(stored))
    with pytest.raises(ValueError, match=r"--labelled: .* did you mean --labeled\?"):
        check_options()


def test_the_name_of_what_takes_all_options_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's `run` collects all options under this name; an option of this name would be dropped."""
    command_line(monkeypatch, "--config_file", str(CONFIGS / "train.json"), "--override", "{'labeled': 3}")
    with pytest.raises(ValueError, match="--override: the config files have no id 'override'"):
        check_options()


def test_other_programs_have_options_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--config_file", str(CONFIGS / "train.json"), "--verbose"])
    check_options()


def test_run_workflow_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run_workflow", "--workflow_name", "ConfigWorkflow", "--workflow_type", "inference"]
    words += ["--config_file", str(CONFIGS / "inference.json"), "--image_size", "64"]
    program = str(Path("site-packages", "monai", "bundle", "__main__.py"))
    monkeypatch.setattr(sys, "argv", [program, *words])
    check_options()
    monkeypatch.setattr(sys, "argv", [program, *words, "--imagesize", "64"])
    with pytest.raises(ValueError, match="did you mean --image_size"):
        check_options()
    monkeypatch.setattr(sys, "argv", [program, "run", *words[1:]])  # `run` would treat it as an id of the config
    with pytest.raises(ValueError, match="--workflow_name"):
        check_options()


@pytest.mark.parametrize("verb", ["ckpt_export", "onnx_export", "trt_export", "verify_metadata", "verify_net_in_out"])
def test_verbs_that_run_no_configuration_keep_their_own_options(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    words = [verb, "network_def", "--filepath", "model.ts", "--config_file", str(CONFIGS / "inference.json")]
    monkeypatch.setattr(sys, "argv", [str(Path("site-packages", "monai", "bundle", "__main__.py")), *words])
    check_options()
