from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.share import verify_worker
from bundle.share.checks import ARCHIVE_CHECKS, FILE_CHECKS, archive_digest, archive_entries, archive_named
from bundle.share.pack import main as pack
from bundle.share.verify import main, make_cohort, run_worker, verify
from scripts.data import dataset_records
from scripts.utils.provenance import file_digest

SCHEMA = "meta_schema_20240725.json"


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schema in the data's folder, or a substitute for the part that the tests violate."""
    data = os.environ.get("SEMSIM_DATA")
    if data and (real := Path(data).parent / "schema" / SCHEMA).is_file():
        return real
    path = tmp_path_factory.mktemp("schema") / SCHEMA
    path.write_text(json.dumps({"type": "object", "required": ["task", "version", "network_data_format"]}))
    return path


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed bundle's folder to break."""
    folder = packed.with_name(packed.name.rpartition("_v")[0])
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_packed_bundle_passes_everything(packed: Path, schema: Path) -> None:
    results = verify(packed, schema, run=True)
    assert [result for result in results if result.fault] == []
    names = [result.check for result in results]
    assert len(names) == len(set(names)) == len(ARCHIVE_CHECKS) + len(FILE_CHECKS) + 1 + 7 + 3


def test_a_schema_that_cannot_be_downloaded_is_named_by_hand(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(verify_worker, "verify_metadata", offline)
    with pytest.raises(ValueError, match=r"no network.*: give a local copy by --schema"):
        verify_worker.schema_holds(verify_worker.Bundle(copy, "", {}))


@pytest.mark.parametrize("line", ["RESULT {", "RESULT 3", "RESULT [1]", "RESULT " + "[" * 10_000])
def test_what_a_bundle_prints_among_the_results_is_a_failed_check(
    copy: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("bundle.share.verify._run", lambda *_: subprocess.CompletedProcess([], 0, f"{line}\n", ""))
    (result,) = run_worker(copy, copy, None)
    assert result.fault == "found lines that are no results"


def test_what_monai_finds_is_reported(copy: Path, schema: Path) -> None:
    """A bundle with several faults: each is reported by its own check."""

    def spoil(metadata: dict[str, Any]) -> None:
        del metadata["task"]
        metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 7

    train = copy / "configs" / "train.json"
    make_cohort(copy.parent / "cohort", json.loads(train.read_text()))
    edit(copy / "configs" / "metadata.json", spoil)
    edit(copy / "configs" / "inference.json", lambda config: config.update(num_classes=3))
    edit(train, lambda config: config["validate"].pop("dataset"))
    failed = {result.check for result in run_worker(copy, copy.parent / "cohort", schema) if result.fault}
    assert failed == {
        "Another program loads the network",
        "Another program trains, evaluates and infers",
        "Metadata follows its schema",
        "Workflows have MONAI's properties",
        "Weights match the network exactly",
        "Network's input and output match the metadata",
        "TorchScript export gives the network's output",
    }


def pickled(bundle: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (print, ("run on loading",))

    (bundle / "models" / "model.pt").write_bytes(pickle.dumps(Code()))


def flipped(bundle: Path) -> None:
    path = bundle / "models" / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def endless(bundle: Path) -> None:
    torch.save({"weight": torch.tensor([torch.inf])}, bundle / "models" / "model.pt")


def module(bundle: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), bundle / "models" / "best_model.pt")


def shorter(bundle: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, bundle / "models" / "a.pt")


def link(bundle: Path) -> None:
    (bundle / "docs" / "link.md").symlink_to(bundle / "LICENSE")


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (lambda b: (b / "LICENSE").unlink(), "required_files", "missing: LICENSE"),
        (lambda b: (b / "docs" / "data_license.txt").unlink(), "required_files", "docs/data_license.txt"),
        (lambda b: (b / "scripts" / "__pycache__").mkdir(), "plain_files", "__pycache__ does not belong"),
        (link, "plain_files", "docs/link.md is a link"),
        (
            lambda b: edit(b / "configs" / "metadata.json", lambda m: m.update(version="9.9.9")),
            "version_in_changelog",
            "9.9.9",
        ),
        (
            lambda b: edit(b / "configs" / "metadata.json", lambda m: m.update(numpy_version=">=1.2")),
            "exact_versions",
            "numpy >=1.2",
        ),
        (
            lambda b: edit(
                b / "configs" / "metadata.json", lambda m: m["required_packages_version"].update(fire="0.*")
            ),
            "exact_versions",
            "fire 0.*",
        ),
        (lambda b: edit(b / "configs" / "metadata.json", lambda m: m.pop("intended_use")), "described", "intended_use"),
        (
            lambda b: edit(b / "configs" / "train.json", lambda c: c.update(dataset_dir="/data/acdc")),
            "no_absolute_path",
            "configs/train.json: /data/acdc",
        ),
        (
            lambda b: (b / "docs" / "method.md").write_text("See /home/someone/runs."),
            "no_absolute_path",
            "docs/method.md: /home/someone",
        ),
        (
            lambda b: (b / "scripts" / "losses.py").write_text("ROOT = r'C:\\Users\\someone'"),
            "no_absolute_path",
            "scripts/losses.py: C:",
        ),
        (
            lambda b: (b / "docs" / "method.md").write_text("[x](gone.md)"),
            "links_lead_somewhere",
            "docs/method.md: gone.md",
        ),
        (lambda b: (b / "docs" / "method.md").write_text("[x](../../x)"), "links_lead_somewhere", "../../x"),
        (
            lambda b: (b / "docs" / "method.md").write_text("# Here\n[x](#here) [y](README.md#gone)"),
            "links_lead_somewhere",
            "docs/method.md: README.md#gone",
        ),
        (pickled, "no_pickled_code", "models/model.pt contains more than finite tensors"),
        (module, "no_pickled_code", "models/best_model.pt contains more than finite tensors"),
        (flipped, "no_pickled_code", "does not match"),
        (endless, "no_pickled_code", "has values that are not finite"),
        (lambda b: (b / "models" / "model.ts").write_bytes(b""), "no_pickled_code", "does not list it"),
        (lambda b: (b / "docs" / "x.png").write_bytes(pickle.dumps({})), "no_pickled_code", "x.png is not a .png file"),
        (lambda b: (b / "docs" / "x.md").write_bytes(pickle.dumps({})), "no_pickled_code", "x.md is not a file"),
        *[
            (
                lambda b, n=n: (b / "models" / n).write_bytes(pickle.dumps({})),
                "no_pickled_code",
                f"models/{n} is not a file",
            )
            for n in ("optim.pickle", "net.joblib", "w.npy", "x.pth.tar", "cache.dat", "weights")
        ],
        (shorter, "label_server_takes_the_weights", "it uses a.pt"),
        (
            lambda b: edit(b / "models" / "model.json", lambda r: r.update(sha256="0" * 64)),
            "weights_have_a_record",
            "other weights",
        ),
        (lambda b: edit(b / "models" / "model.json", lambda r: r.pop("seed")), "weights_have_a_record", "lacks seed"),
        (
            lambda b: (b / "large_files.yml").write_text(
                "large_files:\n  - {path: ../x.pt, url: u, hash_val: a, hash_type: sha256}\n"
            ),
            "large_files",
            "points out",
        ),
        (
            lambda b: (b / "large_files.yml").write_text(
                "large_files:\n  - {path: models/model.pt, url: u, hash_val: a, hash_type: sha256}\n"
            ),
            "large_files",
            "another SHA-256",
        ),
    ],
)
def test_each_fault_of_the_files_is_found(copy: Path, spoil: Callable[[Path], Any], check: str, words: str) -> None:
    (run,) = (function for function in FILE_CHECKS if function.__name__ == check)
    run(copy)
    spoil(copy)
    with pytest.raises(ValueError, match=re.escape(words)):
        run(copy)


def path_check() -> Callable[[Path], None]:
    return next(function for function in FILE_CHECKS if function.__name__ == "no_absolute_path")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("configs/a.json", r"""{"a": "$'/data/acdc' if @b else 'c'"}"""),
        ("configs/a.json", '{"a": "$os.path.join(\'/datasets\', @b)"}'),
        ("configs/a.json", '{"a": "%/data/other.json#id"}'),
        ("configs/a.json", '{"a": "C:/Users/someone/acdc"}'),
        ("configs/a.json", '{"a": "file:///data/acdc"}'),
        ("scripts/a.py", "ROOT = '/data/acdc'"),
        ("scripts/a.py", 'ROOT = Path("/data")'),
        ("scripts/a.py", "ROOT = 'C:/Users/someone'"),
        ("docs/a.md", "see file:///home/someone/acdc"),
        ("large_files.yml", "large_files:\n  - path: /data/model.pt"),
        ("configs/a.conf", "filename=/data/log.txt"),
    ],
)
def test_absolute_paths_are_found(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(name)):
        path_check()(tmp_path)


def test_what_only_looks_like_an_absolute_path_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "root": "/",
                "url": "https://example.org/home/data",
                "folder": "$@bundle_root + '/data/acdc'",
                "id": "train#dataset/x",
                "0": "C: background / lesion",
                "unit": "$a / b",
            }
        )
    )
    (tmp_path / "a.py").write_text("a = b / 'c' + '/d'\nurl = f'{host}/home/{name}'\nparts = name.split('/')")
    (tmp_path / "a.md").write_text("POST /infer/NAME, `GET /info/`, http://127.0.0.1:8000/docs, /path/to, `file://`")
    (tmp_path / "a.yml").write_text("url: https://example.org/tmp/x\n")
    path_check()(tmp_path)


def test_torchscript_passes_where_the_bundle_names_it(copy: Path) -> None:
    (check,) = (function for function in FILE_CHECKS if function.__name__ == "no_pickled_code")
    file = copy / "models" / "model.ts"
    entry = "large_files:\n  - {path: models/model.ts, url: u, hash_val: a, hash_type: sha256}\n"
    (copy / "large_files.yml").write_text(entry)
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))
    check(copy)
    torch.save({}, file)
    with pytest.raises(ValueError, match=r"model\.ts is not a TorchScript file"):
        check(copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "configs/train.json: expected a training config, a JSON object, found invalid JSON"),
        ("{}", "configs/train.json: lacks layout, in_channels"),
        ("[]", "configs/train.json: expected a training config, a JSON object, found []"),
        ('{"a":' * 50_000, "configs/train.json: expected a training config, a JSON object, found too deeply nested"),
        (None, "configs/train.json"),
    ],
)
def test_a_broken_training_config_is_a_failed_check(
    copy: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = copy / "configs" / "train.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SystemExit) as info:
        main(str(copy), run=True)
    assert info.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FILE_CHECKS) + 2
    assert lines[-1] == "The bundle's code was not run because of these faults."
    (line,) = (line for line in lines if "Training config describes" in line)
    assert line.startswith("FAIL")
    assert words in line


def test_code_runs_only_where_it_is_asked_for_and_the_files_are_right(
    copy: Path, schema: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr("bundle.share.verify.run_worker", lambda bundle, *_: ran.append(bundle) or [])
    monkeypatch.setattr("bundle.share.verify._run_commands", lambda bundle, *_: ran.append(bundle) or [])
    for run, spoil in ((False, None), (True, pickled)):
        if spoil:
            spoil(copy)
        with pytest.raises(SystemExit) as info:
            main(str(copy), str(schema), run)
        assert info.value.code == (1 if spoil else 0)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(
            "The bundle's code was not run" if spoil else "No code of the bundle was executed: --run"
        )
    assert ran == []


def rezip(packed: Path, target: Path, name: str, mode: int = 0o100644, content: bytes = b"x") -> Path:
    """The packed archive with one more entry, and the digest of the whole."""
    shutil.copyfile(packed, target)
    with zipfile.ZipFile(target, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.create_system = 3
        entry.external_attr = mode << 16
        archive.writestr(entry, content)
    target.with_name(f"{target.name}.sha256").write_text(f"{file_digest(target)}  {target.name}\n")
    return target


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("{}/../../outside.py", 0o100644, "points out of the folder"),
        ("/outside.py", 0o100644, "points out of the folder"),
        ("C:/outside.py", 0o100644, "points out of the folder"),
        ("{}/link", stat.S_IFLNK | 0o777, "is a link"),
        ("{}/LICENSE", 0o100644, "is a duplicate"),
        ("{}/license", 0o100644, "clash"),
        ("{}/LICENSE/x", 0o100644, "is a file and a folder"),
        ("{}/pipe", stat.S_IFIFO | 0o644, "is no file"),
        ("{}/a\x1b[2J", 0o100644, "unprintable characters"),
        ("another/LICENSE", 0o100644, "expected one folder"),
        ("top.txt", 0o100644, "expected one folder"),
    ],
)
def test_an_archive_that_reaches_out_is_not_unpacked(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, mode: int, words: str
) -> None:
    archive = rezip(packed, tmp_path / packed.name, name.format(packed.name.rpartition("_v")[0]), mode)
    with pytest.raises(SystemExit) as info:
        main(str(archive))
    assert info.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2, "nothing else was checked"
    assert lines[0].startswith("FAIL")
    assert words in lines[0]
    assert not (tmp_path / "outside.py").exists()


def test_a_damaged_encrypted_or_endless_archive_is_not_unpacked(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / packed.name
    content = packed.read_bytes()
    for change, words in (
        (content[:1000], "File is not a zip file"),
        (b"", "File is not a zip file"),
        (content[:3000] + bytes(64) + content[3064:], "is damaged|Error -3|Bad magic"),
        (content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"), "is encrypted"),
    ):
        assert change != content
        path.write_bytes(change)
        (result,) = verify(path)
        assert re.search(words, result.fault), result
    monkeypatch.setattr("bundle.share.checks.LARGEST", 2**20)
    (result,) = verify(packed)
    assert "would unpack to" in result.fault


def test_digest_and_name_of_the_archive(packed: Path, tmp_path: Path) -> None:
    for check in ARCHIVE_CHECKS:
        check(packed)
    archive = tmp_path / f"{packed.name.rpartition('_v')[0]}_v9.9.9.zip"
    shutil.copyfile(packed, archive)
    archive_entries(archive)
    with pytest.raises(ValueError, match=rf"no {re.escape(archive.name)}\.sha256 in its folder"):
        archive_digest(archive)
    archive.with_name(f"{archive.name}.sha256").write_text("0" * 64)
    with pytest.raises(ValueError, match="belongs to another file"):
        archive_digest(archive)
    with pytest.raises(ValueError, match=f"expected {re.escape(packed.name)}"):
        archive_named(archive)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.zip' does not exist"):
        verify(tmp_path / "gone.zip")


@pytest.mark.parametrize("dataset", ["acdc", "promise12", "isic", "custom"])
def test_each_kind_of_data_has_a_cohort_that_its_bundle_can_read(dataset: str, tmp_path: Path) -> None:
    overlay = json.loads((Path(__file__).resolve().parents[3] / "configs" / "datasets" / f"{dataset}.json").read_text())
    root = tmp_path / "cohort"
    make_cohort(root, overlay)
    splits = root / "splits.json"
    for part in ("train", "val"):
        assert dataset_records(overlay["layout"], root, part, splits if splits.is_file() else None)


@pytest.mark.parametrize(
    ("suffix", "channels", "shape"),
    [(".nii.gz", 1, ()), (".nii.gz", 2, (2,)), (".nii.gz", 4, (4,)), (".png", 1, ()), (".png", 3, (3,))],
)
def test_images_of_ones_own_have_the_channels_of_the_bundle(
    tmp_path: Path, suffix: str, channels: int, shape: tuple[int, ...]
) -> None:
    config = {"layout": "custom", "output_ext": suffix, "num_classes": 3, "in_channels": channels}
    make_cohort(tmp_path / "own", config)
    for name, expected in (("case0", shape), ("case0_gt", ())):
        path = tmp_path / "own" / f"{name}{suffix}"
        found = nib.load(path).shape[3:] if suffix == ".nii.gz" else np.asarray(Image.open(path)).shape[2:]
        assert found == expected


@pytest.mark.skipif("SEMSIM_SLOW" not in os.environ, reason="SEMSIM_SLOW not set: a bundle takes a minute")
@pytest.mark.parametrize(
    ("dataset", "channels", "classes"),
    [("promise12", 1, 2), ("isic", 3, 2), ("knees.json", 1, 3), ("photos.json", 3, 2), ("modalities.json", 4, 3)],
)
def test_bundles_of_all_data_sets_pass(
    trained: Callable[..., Path], tmp_path: Path, schema: Path, dataset: str, channels: int, classes: int
) -> None:
    weights = trained(dataset if "." not in dataset else "custom", channels, classes)
    if "." in dataset:
        make_cohort(
            tmp_path / "own",
            {
                "layout": "custom",
                "output_ext": ".png" if dataset == "photos.json" else ".nii.gz",
                "num_classes": classes,
                "in_channels": channels,
            },
        )
        images = sorted(p for p in (tmp_path / "own").iterdir() if "_gt" not in p.name)
        entries = [{"image": str(p), "label": str(p).replace(".", "_gt.", 1)} for p in images]
        (tmp_path / dataset).write_text(json.dumps({"training": entries}))
        dataset = str(tmp_path / dataset)
    pack(dataset, str(weights), str(tmp_path / "out"))
    (archive,) = (tmp_path / "out").glob("*.zip")
    assert [result for result in verify(archive, schema, run=True) if result.fault] == []
