"""Runs of a report: trained weights, their configuration and their evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.report.evaluation import Scores, read_scores
from bundle.workflows import CONFIGS, ROOT
from scripts.utils.errors import root_cause
from scripts.utils.options import missing_ids
from scripts.utils.provenance import file_digest, read_record, trained_options
from scripts.utils.validation import read_json

__all__ = ["NETWORKS", "Run", "check_ids", "find_runs", "words"]

NETWORKS = {"best": "model.pt", "last": "model_last.pt"}
"""The two networks of a run and their files."""

COLOURS = ("orangered", "seagreen", "royalblue", "goldenrod", "mediumorchid", "darkturquoise", "hotpink", "olive")

PLACES = ("bundle_root", "dataset_dir", "output_dir", "cache_dir", "checkpoint", "device", "splits")
"""Config ids of paths, which do not affect the result."""


@dataclass
class Run:
    """One network with the configuration of its evaluation.

    Attributes:
        name: its name on the page.
        folder: the run's folder.
        weights: file of the network's weights.
        evaluation: folder of its scores.
        part: evaluated part of the data set.
        files: config files of the evaluation, merged in order.
        overrides: config values by id.
    """

    name: str
    folder: Path
    weights: Path
    evaluation: Path
    part: str
    files: Sequence[Path]
    overrides: Mapping[str, Any]

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record of the weights; empty without one."""
        return read_record(self.weights) or {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return file_digest(self.weights)

    @property
    def scores(self) -> Scores:
        """The evaluation's scores.

        Raises:
            FileNotFoundError: if there is no evaluation yet.
            ValueError: if it cannot be read, or belongs to other weights or another part.
        """
        scores = read_scores(self.evaluation)
        for name, expected in (("weights_sha256", self.digest), ("part", self.part)):
            if (found := scores.about.get(name, expected)) != expected:
                raise ValueError(
                    f"{self.evaluation}: expected an evaluation with {name} {expected}, found {found}; "
                    "give another --evaluation."
                )
        return scores

    def workflow(self, **overrides: Any) -> ConfigWorkflow:
        """The evaluation's workflow, as in ``python -m monai.bundle run``, not yet initialised."""
        return self._workflow({**self._labeled, **self.overrides, **overrides})

    def _workflow(self, overrides: Mapping[str, Any]) -> ConfigWorkflow:
        size = self.record.get("image_size")
        return ConfigWorkflow(
            config_file=[str(file) for file in self.files],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            **{
                **({} if size is None else {"image_size": size}),
                "bundle_root": str(ROOT),
                "checkpoint": str(self.weights),
                "output_dir": str(self.evaluation),
                "part": self.part,
                **overrides,
            },
        )

    @cached_property
    def _labeled(self) -> dict[str, Any]:
        """The record's number of labelled cases as an override, unless the user gives another or it does not apply.

        It does not apply to data with labels of some images of a case; they were trained with all labels there are.
        """
        if (count := self.record.get("labeled_cases")) is None or "labeled" in self.overrides:
            return {}
        given = {"labeled": count}
        try:
            self._workflow({**given, **self.overrides}).parser.get_parsed_content("train#dataset#data")
        except Exception as error:
            if isinstance(root_cause(error), (ValueError, FileNotFoundError)):
                return {}
            raise
        return given

    @cached_property
    def _content(self) -> ConfigWorkflow:
        return self.workflow()

    def get(self, key: str) -> Any:
        """The value of a config id.

        Raises:
            ValueError: if it cannot be resolved, with the component's message, without MONAI's chain of errors.
            FileNotFoundError: likewise.
        """
        try:
            return self._content.parser.get_parsed_content(key)
        except Exception as error:
            if isinstance(cause := root_cause(error), (ValueError, FileNotFoundError)):
                raise cause from None
            raise

    @cached_property
    def settings(self) -> str:
        """Digest of the weights, their record's options and all configuration values that affect their predictions."""
        options = trained_options(self.weights)  # the configuration only refers to them
        config = {key: value for key, value in self._content.parser.get().items() if key not in PLACES}
        return hashlib.sha256(
            json.dumps([self.digest, options, config], sort_keys=True, default=str).encode()
        ).hexdigest()

    @property
    def colours(self) -> dict[str, str]:
        """Colour of each foreground class by its name; a default if the data set's overlay has none."""
        own = self.get("class_colors") if "class_colors" in self._content.parser else {}
        numbers = range(1, self.get("num_classes"))
        return {self.class_name(c): own.get(str(c), COLOURS[(c - 1) % len(COLOURS)]) for c in numbers}

    def class_name(self, number: int) -> str:
        """Name of a foreground class in the evaluation."""
        return str(self.get("class_names").get(str(number), number))


def words(value: str | Sequence[str]) -> list[str]:
    """Names from the command line: a list, or text separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]


def check_ids(names: Iterable[str], files: Sequence[str | Path]) -> None:
    """Refuse overrides of config ids that the config files lack, by the rule of ``python -m monai.bundle run``.

    Args:
        names: the ids; an argument that a component's constructor would check is not checked.
        files: the config files, merged in order.

    Raises:
        ValueError: for the first such id.
    """
    if names := list(names):
        config = ConfigParser.load_config_files([str(file) for file in files])
        for name in names:
            if missing := missing_ids(re.split("#|::", name), config):
                raise ValueError(f"--{name}: no option of this command, and the config files have no id '{missing}'.")


def find_runs(
    places: str | Sequence[str],
    config_file: str | Sequence[str],
    network: str,
    part: str,
    evaluation: str | None,
    overrides: Mapping[str, Any],
) -> list[Run]:
    """The runs in folders, each under a name of its own.

    Args:
        places: folders of trainings, of weights with their record, or of comparisons with all their finished runs. A
            repeated one counts once.
        config_file: config files of the training after ``configs/train.json``. A comparison's runs have their own.
        network: ``best`` or ``last``.
        part: evaluated part of the data set.
        evaluation: folder of the scores; default: ``PART-NETWORK`` in the run's folder.
        overrides: config values by id.

    Raises:
        FileNotFoundError: if a folder or its weights are missing.
        ValueError: if the network or a config id is unknown, or one evaluation is given for several runs.
    """
    if network not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, found {network}.")
    folders: list[Path] = []
    for place in words(places):
        path = Path(place).resolve()
        inner = sorted(about.parent for about in path.glob("*/run.json") if (about.parent / NETWORKS["last"]).is_file())
        folders += inner or [path]
    folders = list(dict.fromkeys(folders))
    if evaluation and len(folders) > 1:
        raise ValueError("evaluation: expected for one run only, found several runs.")
    base = [file for file in map(Path, words(config_file)) if file.resolve() != CONFIGS / "train.json"]
    if missing := [str(file) for file in base if not file.is_file()]:
        raise FileNotFoundError(f"config_file: no file {', '.join(missing)}.")
    runs = []
    for folder, name in _names(folders).items():
        weights = folder / NETWORKS[network]
        if not weights.is_file():
            raise FileNotFoundError(f"{folder}: expected a run's folder with {weights.name}, found none.")
        own = folder / "evaluate.json"
        files = [own] if own.is_file() else [CONFIGS / "train.json", *base, CONFIGS / "evaluate.json"]
        check_ids(overrides, files)
        target = Path(evaluation).resolve() if evaluation else folder / f"{part}-{network}"
        runs.append(Run(name, folder, weights, target, part, files, overrides))
    return runs


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The name of each run; those that would have the same one have their path below the runs' common folder."""
    names = {folder: _name(folder) for folder in folders}
    uses = Counter(names.values())
    if len(uses) == len(names):
        return names
    root = os.path.commonpath([folder.parent for folder in folders])
    return {f: f.relative_to(root).as_posix() if uses[name] > 1 else name for f, name in names.items()}


def _name(folder: Path) -> str:
    """A run of a comparison by its method, ablation and seed; any other by its folder."""
    about = folder / "run.json"
    if not about.is_file():
        return folder.name
    content = read_json(about, "run")
    count = re.search(r"-labeled([\d.]+)-seed\d+$", folder.name)  # if the comparison has several
    parts = [content["method"], "" if content["overlay"] == "default" else content["overlay"]]
    parts += [f"{count[1]} labelled" if count else "", f"seed {content['seed']}"]
    return ", ".join(filter(None, parts))
