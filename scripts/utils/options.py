"""Checks of options of the command line and of configs, before any work."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run, run_workflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.utils.errors import MONAI_PROGRAM, one_line
from scripts.utils.validation import faults_of

__all__ = ["check_options", "check_paths", "check_switches", "check_values", "missing_ids"]

PATHS = ("bundle_root", "cache_dir", "checkpoint", "dataset_dir", "output_dir", "resume", "splits")


VERBS: dict[str, tuple[Any, ...]] = {"run": (run,), "run_workflow": (run_workflow, ConfigWorkflow)}
"""The verbs of MONAI's command line that run a configuration, and the callables that define their own options."""


def check_switches(**switches: object) -> None:
    """Refuse switches that are text: ``false`` on the command line is a text, which is true.

    Raises:
        ValueError: if one is neither True nor False.
    """
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected True or False, spelled like this, found {value!r}.")


def check_values(device: Any = None, **values: object) -> None:
    """Check the values of options against their schema, before any work.

    Args:
        device: where to compute; None: not given.
        **values: by name, see :data:`scripts.utils.schemas.SCHEMAS`; names without a schema are not checked.

    Raises:
        ValueError: for the first value of another type or range, or if the device does not exist.
    """
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    if isinstance(names := given.get("class_names"), Mapping):
        given["class_names"] = {str(number): name for number, name in names.items()}
    for fault in faults_of(given, "options"):
        raise ValueError(fault.what)
    if device is None:
        return
    try:
        torch.empty(1, device=torch.device(device))
    except Exception as error:
        raise ValueError(
            f"device: expected a device that PyTorch finds here, found {device!r}: {one_line(error)}"
        ) from None


def check_paths(words: Sequence[str]) -> None:
    """Refuse a path on a command line that Python Fire would not read as text, such as 2018 or True.

    Raises:
        ValueError: for the first such path.
    """
    for name, word in _given(words).items():
        if name not in PATHS or (name == "resume" and word.lower() in ("true", "false")):
            continue
        if (value := DefaultParseValue(word)) != word and not (name == "splits" and value is None):
            raise ValueError(
                f"--{name} {word}: would be read as {value!r}; write it as ./{word}, which is the same path."
            )


def check_options() -> None:
    """Refuse an option of ``python -m monai.bundle run`` or ``run_workflow`` that is not an id of the config files.

    MONAI would add it to the configuration without effect: a misspelt ``--labelled 3`` would train with the default,
    and so would ``--train#max_epochs 5``. An overlay's id without effect is refused too if it resembles an id of the
    earlier files. Ids within a component are checked by its constructor. If the config files are not given on the
    command line, nothing is checked, nor for MONAI's other verbs, which export, verify and download.

    Raises:
        ValueError: for the first such option or id.
    """
    words = sys.argv[1:]
    if Path(sys.argv[0]).parts[-3:] != MONAI_PROGRAM or not words or words[0] not in VERBS:
        return
    options = _given(words)
    check_paths(words)
    stored = ConfigParser.load_config_file(options["args_file"]) if "args_file" in options else {}
    if (chosen := options.get("config_file", stored.get("config_file"))) is None:
        return
    options = {**dict.fromkeys(stored, ""), **options}
    files = _files(chosen) if isinstance(chosen, str) else [*chosen]
    config = ConfigParser.load_config_files(files)
    tracking: Any = DEFAULT_MLFLOW_SETTINGS
    takes = [option for command in VERBS[words[0]] for option in inspect.signature(command).parameters.values()]
    own = [option.name for option in takes if option.kind is not option.VAR_KEYWORD]
    others = {*own, *tracking["configs"]} - {*tracking["handlers_id"]}
    for name in options:
        if name not in others and (missing := missing_ids(re.split("#|::", name), config)):
            near = difflib.get_close_matches(name.replace("::", "#"), [*_ids(config), *others], 1)
            meant = f"; did you mean --{near[0]}?" if near else "."
            raise ValueError(f"--{name}: the config files have no id '{missing}'{meant}")
    _check_overlays(files, config, words)


def _given(words: Sequence[str]) -> dict[str, str]:
    """The options of a command line, as text."""
    options: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if re.match("--[a-zA-Z]", word):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following
    return options


def missing_ids(keys: Sequence[str], config: Any) -> str:
    """The first part of an id that the configuration lacks; empty if there is none or a constructor decides."""
    for depth, key in enumerate(keys, start=1):
        if isinstance(config, list):
            config = dict(zip(map(str, range(len(config))), config, strict=True))
        if not isinstance(config, dict) or (key not in config and "_target_" not in config):
            return "#".join(keys[:depth])
        if key not in config:
            break
        config = config[key]
    return ""


def _ids(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All ids of a configuration except those within lists."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _ids(value, f"{prefix}{key}#")


def _check_overlays(files: Sequence[str], config: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse an id without effect that resembles an id of an earlier file, see :func:`check_options`."""
    text = json.dumps(config, default=str)
    for number, name in enumerate(files):
        before = ConfigParser.load_config_files(files[:number])
        for key in ConfigParser.load_config_file(name):
            parts = re.split("#|::", key.lstrip("+"))
            read = "#".join(parts) in words or re.search(rf"[@%]{'(#|::)'.join(map(re.escape, parts))}\b", text)
            if not read and missing_ids(parts, before):
                near = difflib.get_close_matches("#".join(parts), _ids(before), 1, cutoff=0.8)
                if near:
                    raise ValueError(f"{name}: nothing reads the id '{key}'; did you mean '{near[0]}'?")


def _files(text: str) -> list[str]:
    """The config files of a command line: one file, several with commas, or a list."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return [text] if Path(text).is_file() else text.split(",")
    return [value] if isinstance(value, str) else [*value]
