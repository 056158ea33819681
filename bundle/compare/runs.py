"""The runs of a comparison and their settings, which must stay the same within a folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from bundle.workflows import CONFIGS, check_settings, method_names
from scripts.utils.files import write_text

__all__ = ["PLAIN", "Run", "command_line", "labeled_counts", "plan", "store"]

PLAIN = "default"
"""The overlay that changes nothing: the unchanged method."""

OWN = ("bundle_root", "seed", "output_dir", "resume", "checkpoint", "part")
"""Config ids set by the comparison."""

LENGTH = ("epochs", "train#trainer#max_epochs", "train#trainer#epoch_length")
"""Config ids that may differ within a comparison: runs of other lengths get a table of their own."""


@dataclass
class Run:
    """One training and its evaluation.

    Attributes:
        method: name of the method.
        overlay: name of the ablation, or ``default``.
        seed: seed of the training.
        configs: the whole configurations by file name, ``train.json`` and ``evaluate.json``, without the paths of
            bundle and run, so that both may be moved.
        labeled: number, or share, of labelled cases, if the comparison has several; else None.
    """

    method: str
    overlay: str
    seed: int
    configs: dict[str, dict[str, Any]]
    labeled: float | None = None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        labeled = [] if self.labeled is None else [f"labeled{self.labeled:g}"]
        words = (self.method, self.overlay, *labeled, f"seed{self.seed}")
        return "-".join(re.sub(r"[^\w.=]+", "_", word) for word in words)

    def __str__(self) -> str:
        labeled = "" if self.labeled is None else f", {self.labeled:g} labelled"
        return f"{self.method}{'' if self.overlay == PLAIN else f', {self.overlay}'}{labeled}, seed {self.seed}"


def plan(
    methods: str | Sequence[str],
    seeds: int | Sequence[int],
    overlays: str | Sequence[str],
    config_file: str | Sequence[str],
    overrides: Mapping[str, Any],
    labeled: Sequence[float] = (),
) -> list[Run]:
    """Every run with its whole configuration.

    Args:
        methods: see :func:`bundle.compare.command.main`.
        seeds: likewise.
        overlays: likewise.
        config_file: likewise.
        overrides: likewise.
        labeled: numbers of labelled cases to compare; none: the configuration's.

    Raises:
        ValueError: for an unknown method, ablation or config id, an unreadable file, an override that conflicts with an
            ablation, two runs with the same folder, or no run.
        FileNotFoundError: if there is no such config file.
    """
    methods = method_names() if methods == "all" else _words(methods)
    files = {f"method {name}": _overlay_file("methods", name) for name in methods}
    changes = {name: _ablation(name) for name in _words(overlays)}
    base = _base_files(config_file)
    known = {*ConfigParser.load_config_files([*base, str(CONFIGS / "evaluate.json")])}
    ablated = {key for _, values in changes.values() for key in values}
    for file in (file for of_ablation, _ in changes.values() for file in of_ablation):
        ablated |= {key.removeprefix("+") for key in ConfigParser.load_config_file(file)}
    for name in (*overrides, *sorted(ablated)):
        if name in OWN:
            raise ValueError(f"{name}: the comparison sets it itself (--seeds, --output, --part).")
        if re.split("#|::", name)[0] not in known:
            raise ValueError(
                f"{name}: no option of compare, and no id of the configuration: {', '.join(sorted(known))}."
            )
    fixed = {name.replace("::", "#") for name in overrides} | ({"labeled"} if labeled else set())
    if both := sorted(ablated & fixed):
        raise ValueError(f"{', '.join(both)}: set for all runs, but an ablation changes it.")
    runs: list[Run] = []
    for method, (name, (file, values)), count, seed in product(
        methods, changes.items(), labeled or (None,), _words(seeds)
    ):
        if not re.fullmatch(r"\d+", seed):
            raise ValueError(f"seeds: expected whole numbers from 0, found {seed}.")
        method_name, overlay = (Path(word).stem if word.endswith(".json") else word for word in (method, name))
        chain = [*base, files[f"method {method}"], *file]
        own = {**values, **overrides, "seed": int(seed), **({} if count is None else {"labeled": count})}
        configs = {
            "train.json": _merged(chain, own),
            "evaluate.json": _merged([*chain, str(CONFIGS / "evaluate.json")], _evaluated(own)),
        }
        runs.append(Run(method_name, overlay, int(seed), configs, count))
    names = [run.name for run in runs]
    if shared := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"methods, overlays: two of them have the same name, both runs would be {shared[0]}.")
    if not runs:
        raise ValueError("methods, seeds, overlays: expected at least one of each.")
    return runs


def _words(value: Any) -> list[str]:
    """A list from the command line: a list, or text separated by commas outside brackets."""
    words = re.split(r",(?![^\[]*\])", value) if isinstance(value, str) else value
    words = words if isinstance(words, (list, tuple)) else [words]
    return list(dict.fromkeys(str(word).strip() for word in words if str(word).strip()))


def _overlay_file(kind: str, name: str) -> str:
    """The overlay of a method or an ablation, by name or by path."""
    path = Path(name) if name.endswith(".json") else CONFIGS / kind / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (CONFIGS / kind).glob("*.json")))
        more = f", {PLAIN}, or a value as ID=VALUE with :: for # in the id" if kind == "ablations" else ""
        raise ValueError(f"{'overlays' if kind == 'ablations' else kind}: no '{name}'; there are {known}{more}.")
    return _readable(path)


def _readable(path: Path) -> str:
    """The path of a config file, after checking that it is readable."""
    try:
        ConfigParser.load_config_file(path)
    except ValueError as error:  # not the name of a file
        raise ValueError(f"{path}: cannot be read as a config file: {error}") from None
    return str(path)


def _ablation(name: str) -> tuple[list[str], dict[str, Any]]:
    """The config files and overrides of an ablation."""
    if name == PLAIN:
        return [], {}
    if "=" in name:
        key, _, value = name.partition("=")
        return [], {key.replace("::", "#"): DefaultParseValue(value)}
    return [_overlay_file("ablations", name)], {}


def _base_files(config_file: str | Sequence[str]) -> list[str]:
    """``train.json`` and the following files of every run."""
    train = CONFIGS / "train.json"
    files = [Path(name) for name in _words(config_file)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"config_file: no file {', '.join(missing)}.")
    return [str(train), *(_readable(file) for file in files if file.resolve() != train)]


def _merged(files: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a workflow from config files and overrides, as plain JSON."""
    parser = ConfigParser(ConfigParser.load_config_files(files))
    key = ""
    try:
        for key, value in values.items():
            parser.update({key: value})
    except KeyError:
        raise ValueError(f"{key}: not an id of the configuration.") from None
    return json.loads(json.dumps(parser.get(), default=str))


def _evaluated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of an evaluation: without the network's, which the weights' record has."""
    return {key: value for key, value in values.items() if re.split("#|::", key)[0] != "network_def"}


def _base(config_file: str | Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The common configuration of all runs of a folder, without method, ablation, seed and length."""
    own = {key: value for key, value in overrides.items() if key.replace("::", "#") not in LENGTH}
    config = _merged(_base_files(config_file), own)
    config.pop("epochs", None)
    for key in ("max_epochs", "epoch_length"):
        config["train"]["trainer"].pop(key, None)
    return config


def store(
    folder: Path,
    runs: Sequence[Run],
    config_file: str | Sequence[str],
    overrides: Mapping[str, Any],
    command: str,
) -> None:
    """Compare the settings of all runs with those stored in the folder, and store new ones.

    Args:
        folder: folder of the comparison: ``settings.json``, the common settings, and a folder for each run with its
            configuration and ``run.json``, its description and the command that started it.
        runs: runs of :func:`plan`.
        config_file: as given to :func:`plan`.
        overrides: as given to :func:`plan`.
        command: the command line.

    Raises:
        ValueError: if settings have changed; then nothing is written.
    """
    files = {folder / "settings.json": _base(config_file, overrides)}
    files |= {folder / run.name / name: config for run in runs for name, config in run.configs.items()}
    for path, config in files.items():
        check_settings(path, config)
    for run in runs:
        about = {"method": run.method, "overlay": run.overlay, "seed": run.seed, "command": command}
        files[folder / run.name / "run.json"] = about
    for path, content in files.items():
        if not path.is_file():
            write_text(path, json.dumps(content, indent=4) + "\n")


def labeled_counts(value: Any) -> list[float]:
    """The option ``labeled``: numbers of labelled cases, or shares below 1, separated by commas; None: none.

    Raises:
        ValueError: for anything else.
    """
    try:
        counts = [float(word) for word in _words("" if value is None else value)]
    except ValueError:
        counts = [-1.0]
    if not all(0 < count < 1 or (count >= 1 and count == int(count)) for count in counts):
        raise ValueError(f"labeled: expected numbers of labelled cases, or shares of them below 1, found {value!r}.")
    return [count if count < 1 else int(count) for count in counts]


def command_line(
    methods: Any,
    seeds: Any,
    overlays: Any,
    config_file: Any,
    output: str,
    part: str,
    overrides: Mapping[str, Any],
    labeled: Any = "",
) -> str:
    """The command line with these arguments."""
    given = {"methods": methods, "seeds": seeds, "overlays": overlays, "labeled": labeled, "config_file": config_file}
    lists = {key: ",".join(_words(value)) for key, value in given.items()}
    options = {**lists, "output": output, "part": part, **overrides}
    kept = {key: value for key, value in options.items() if value not in ("", PLAIN)}
    words = [word for key, value in kept.items() for word in (f"--{key}", str(value))]
    return shlex.join(["python", "-m", "bundle", "compare", *words])
