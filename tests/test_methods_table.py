"""docs/methods.md: its parameter counts are the code's, and its commands are valid."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from bundle.compare.runs import plan
from bundle.workflows import CONFIGS, ROOT, method_names
from scripts.methods import Objective
from scripts.methods.teacher import MovingAverage
from tests.methods.common import needs_sam

PAGE = (ROOT / "docs" / "methods.md").read_text()


def table(first_title: str, section: str) -> dict[str, dict[str, str]]:
    """The rows of a section's table by method, each by title."""
    lines = [line for line in PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert titles[0] == first_title
    return {row[0].strip("`"): dict(zip(titles, row, strict=True)) for row in rows}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_sam if n == "cpc_sam" else ()) for n in method_names()])
def test_parameter_counts(name: str) -> None:
    parser = ConfigParser(
        ConfigParser.load_config_files([str(CONFIGS / "train.json"), str(CONFIGS / "methods" / f"{name}.json")])
    )
    parser.update({"bundle_root": str(ROOT), "device": torch.device("cpu")})
    method = parser.get_parsed_content("method")
    assert isinstance(method, Objective)
    averaged = sum(count(module) for module in method.modules() if isinstance(module, MovingAverage))
    frozen = sum(p.numel() for p in method.parameters() if not p.requires_grad) if name == "cpc_sam" else 0
    row = table("method", "What they do")[name]
    assert row["deployed"] == f"{count(method.network):,}"
    assert (row["deployed"] == "1,813,764") is (name not in ("cpc_sam", "medfct"))
    assert row["trained"] == f"{count(method) - averaged - frozen:,}"
    assert row["averaged, not trained"] == (f"{averaged:,}" if averaged else "")
    assert ("EMA" in row["beside the U-Net"]) is (averaged > 0)


def test_every_method_has_a_row_in_both_tables() -> None:
    first, second = (table("method", section) for section in ("What they do", "What is reported and what we measured"))
    assert sorted(first) == sorted(second) == method_names()
    assert list(first) == list(second)


def test_the_counts_that_differ_from_the_paper_are_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE.split("says something else:")[1].split("\n\nThe step")[0]))
    for name, row in table("method", "What they do").items():
        if cited := row["SemSim's Table I, M"]:
            own = int(row["trained"].replace(",", "")) / 1e6
            assert (f"{own:.2f}" == cited) is (name not in explained), name


@pytest.mark.parametrize("line", re.findall(r"^python -m bundle compare (.*)$", PAGE, re.MULTILINE))
def test_commands_name_what_there_is(line: str) -> None:
    words = shlex.split(line)
    options = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    names = (options.pop(key, default) for key, default in (("methods", ""), ("seeds", "0"), ("overlays", "default")))
    files = [str(ROOT / file) for file in options.pop("config_file", "").split(",") if file]
    assert options.pop("output")
    runs = plan(*names, files, options)
    assert len({run.name for run in runs}) == len(runs) > 1
    configs = [run.configs["train.json"] for run in runs if run.seed == 0]
    assert len({str(config["method"]) for config in configs}) == len(configs), "two rows are the same"
