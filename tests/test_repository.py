"""Consistency of the repository: versions, metadata, commands, export."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from packaging.requirements import Requirement

from bundle.__main__ import COMMANDS
from bundle.share.checks import anchors
from scripts.data.dicom.volume import PACKAGES
from scripts.utils.options import check_options

ROOT = Path(__file__).resolve().parents[1]
METADATA = ROOT / "configs" / "metadata.json"
INFERENCE = ROOT / "configs" / "inference.json"


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads(METADATA.read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    found = {}
    for line in filter(None, lines):
        name, _, version = line.partition("==")
        assert re.fullmatch(r"[\w.]+", version), f"not an exact pin: {line}"
        found[name.lower()] = version
    return found


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_metadata_versions_are_the_pins(card: dict, pins: dict[str, str]) -> None:
    named = {**card["required_packages_version"], **card["dicom_packages_version"]}
    versions = {name.lower(): version for name, version in named.items()}
    versions |= {
        "monai": card["monai_version"],
        "torch": card["pytorch_version"],
        "numpy": card["numpy_version"],
    }
    assert versions == {name: pins[name] for name in versions}


def test_project_ranges_hold_the_pins(card: dict, pins: dict[str, str]) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(line) for line in project["dependencies"]]
    required = {requirement.name.lower() for requirement in ranges}
    assert required == {"torch", "monai", "numpy"} | {name.lower() for name in card["required_packages_version"]}
    dicom = {Requirement(line).name for line in project["optional-dependencies"]["dicom"]}
    assert dicom == set(card["dicom_packages_version"]) == set(PACKAGES.split())
    for extra in project["optional-dependencies"].values():
        ranges += [Requirement(line) for line in extra]
    assert {requirement.name.lower() for requirement in ranges} == set(pins)
    for requirement in ranges:
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert project["version"] == card["version"]


def test_readme_and_project_name_the_same_python() -> None:
    (least,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"Python {least} or newer" in (ROOT / "README.md").read_text()


def test_installed_packages_are_the_pins(pins: dict[str, str]) -> None:
    if not (ROOT / ".venv" / "bin" / "python").exists() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not in the environment that make installs")
    assert {name: metadata.version(name).partition("+")[0] for name in pins} == pins


def test_metadata_follows_its_schema(card: dict, tmp_path: Path) -> None:
    data = os.environ.get("SEMSIM_DATA")
    if not data:
        pytest.skip("SEMSIM_DATA not set")
    schema = Path(data).parent / "schema" / Path(card["schema"]).name
    if not schema.is_file():
        pytest.skip(f"no copy of the schema beside the data: {schema}")
    copy = tmp_path / schema.name
    shutil.copyfile(schema, copy)  # MONAI downloads it only if there is none
    verify_metadata(meta_file=str(METADATA), filepath=str(copy))
    del card["task"]
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="task"):
        verify_metadata(meta_file=str(broken), filepath=str(copy))


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("n", [1, 4])
def test_network_takes_and_gives_what_the_metadata_says(n: int) -> None:
    verify_net_in_out("network_def", meta_file=str(METADATA), config_file=str(INFERENCE), device="cpu", n=n)


@pytest.mark.usefixtures("at_root")
def test_checkpoint_exports_to_torchscript(tmp_path: Path) -> None:
    from scripts.networks import UNet

    network = UNet(in_channels=1, num_classes=4).eval()
    checkpoint, exported = tmp_path / "model.pt", tmp_path / "model.ts"
    torch.save(network.state_dict(), checkpoint)
    ckpt_export(
        "network_def",
        filepath=str(exported),
        ckpt_file=str(checkpoint),
        meta_file=str(METADATA),
        config_file=str(INFERENCE),
    )
    image = torch.rand(2, 1, 72, 56)
    torch.testing.assert_close(torch.jit.load(str(exported))(image), network(image))


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text()
    missing = []
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{name}#{anchor}")
    missing += [name for name in re.findall(r"configs/[\w/]+\.json", text) if not (ROOT / name).exists()]
    missing = [name for name in missing if "NAME" not in name]
    assert not missing


@pytest.mark.usefixtures("at_root")
def test_options_in_the_pages_are_ids_of_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI accepts any option. Overlays that readers of a page write are ignored."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    commands = [re.sub(r"^.*?-m monai\.bundle run ", "run ", line) for line in lines if "-m monai.bundle run " in line]
    checked = 0
    for words in map(shlex.split, (line.partition("`")[0] for line in commands)):
        files = re.findall(r"[\w/]+\.json", " ".join(words))
        if "--config_file" in words and files and all((ROOT / file).exists() for file in files):
            monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", *words])
            check_options()
            checked += 1
    assert checked > 15


def run_bundle(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bundle", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_unknown_command_names_the_known_ones(arguments: list[str]) -> None:
    done = run_bundle(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for command in COMMANDS:
        assert command in done.stderr
