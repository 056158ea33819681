"""Inference over cohorts: damaged images, continued runs, several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort
from scripts.utils.errors import FaultsError, root_cause
from tests.workflows import CONFIGS, ROOT, workflow

NAMES = ("a/scan", "b/scan", "c", "d", "e")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five images with different contents, below ``images``."""
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(number).integers(0, 1000, (32, 32, 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0])), path)
    return folder


def save_weights(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = UNet().eval()
    with torch.no_grad():
        network.head.weight *= 50
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def infer(cohort: Path, tmp_path: Path) -> Callable[..., None]:
    weights = save_weights(tmp_path / "model.pt")

    def run(source: Path = cohort, **options: Any) -> None:
        options = {"image_size": 32, "checkpoint": str(weights), "output_dir": str(tmp_path / "out"), **options}
        options.pop("silent", None)
        flow = workflow("infer", "inference.json", dataset_dir=str(source), **options)
        try:
            flow.run()
        except RuntimeError as error:
            raise root_cause(error) from None

    return run


def written(folder: Path) -> dict[str, int]:
    """The maps of a folder with their modification times."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*_seg.nii.gz")}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    assert before.keys() <= after.keys()
    return {name.removesuffix("_seg.nii.gz") for name, number in after.items() if before.get(name) != number}


def break_images(cohort: Path) -> None:
    """One is truncated, one has NaN, one has channels."""
    whole = (cohort / "a/scan.nii.gz").read_bytes()
    (cohort / "a/scan.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.full((8, 8, 3), np.nan, np.float32), np.eye(4)), cohort / "c.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 3, 7), np.float32), np.eye(4)), cohort / "d.nii.gz")


def test_broken_images_do_not_stop_the_others(
    cohort: Path, infer: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    break_images(cohort)
    with pytest.raises(FaultsError) as error:
        infer()
    lines = str(error.value).splitlines()
    assert [line.split(".nii.gz")[0] for line in lines] == [str(cohort / name) for name in ("a/scan", "c", "d")]
    assert changed({}, written(tmp_path / "out")) == {"b/scan", "e"}
    assert "3 of 5 images could not be segmented" in caplog.text
    infer(cohort / "e.nii.gz", output_dir=str(tmp_path / "alone"))
    alone, together = (nib.load(path) for path in (tmp_path / "alone/e_seg.nii.gz", tmp_path / "out/e_seg.nii.gz"))
    np.testing.assert_array_equal(alone.get_fdata(), together.get_fdata())


def test_a_map_that_cannot_be_written_does_not_stop_the_others(
    cohort: Path, infer: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "scan_seg.nii.gz").mkdir()
    with pytest.raises(FaultsError, match=r"b/scan_seg\.nii\.gz cannot be written") as error:
        infer()
    assert len(error.value.faults) == 1
    assert {name for name in NAMES if (tmp_path / "out" / f"{name}_seg.nii.gz").is_file()} == {*NAMES} - {"b/scan"}


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".png", r"a/scan\.nii\.gz: output_ext \.png: expected an image of one slice, found 3\."),
        (".dcm", r"a/scan\.nii\.gz: output_ext \.dcm: expected a DICOM image, found another format\."),
    ],
)
def test_a_format_that_supports_no_image_is_refused_before_the_first(
    suffix: str, message: str, infer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".dcm":
        pytest.importorskip("highdicom")
    monkeypatch.setattr(UNet, "forward", lambda *_: pytest.fail("an image was segmented"))
    with pytest.raises(ValueError, match=message) as error:
        infer(output_ext=suffix)
    assert not isinstance(error.value, FaultsError)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_an_image_that_the_format_does_not_support_is_not_segmented(
    cohort: Path, infer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(9).integers(0, 1000, (32, 32, 1)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0])), cohort / "flat.nii.gz")
    passed, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *args: passed.append(len(x)) or forward(self, x, *args))
    with pytest.raises(FaultsError, match=r"output_ext \.png: expected an image of one slice, found 3") as error:
        infer(output_ext=".png")
    assert len(error.value.faults) == len(NAMES)
    assert sum(passed) == 1, "one slice, that of the flat image"
    assert [path.name for path in (tmp_path / "out").rglob("*_seg.*")] == ["flat_seg.png"]


def test_only_what_is_missing_is_segmented(cohort: Path, infer: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "out"
    infer()
    first = written(out)
    assert changed({}, first) == {*NAMES}
    infer()
    assert changed(first, written(out)) == set()
    (out / "c_seg.nii.gz").unlink()
    infer()
    second = written(out)
    assert changed(first, second) == {"c"}
    nib.save(nib.Nifti1Image(np.arange(3072, dtype=np.int16).reshape(32, 32, 3), np.eye(4)), cohort / "d.nii.gz")
    infer()
    third = written(out)
    assert changed(second, third) == {"d"}, "the image is another one"
    cohort.rename(tmp_path / "elsewhere")
    infer(tmp_path / "elsewhere")
    assert changed(third, written(out)) == set(), "the folder's place is of no account"


def test_a_line_that_was_cut_short_costs_one_image(infer: Callable[..., None], tmp_path: Path) -> None:
    infer()
    before = written(tmp_path / "out")
    log = tmp_path / "out" / "predictions.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])["image"].removesuffix(".nii.gz")
    log.write_text("[" * 10_000 + "\n" + log.read_text()[:-20])
    infer()
    assert changed(before, written(tmp_path / "out")) == {last}


@pytest.mark.parametrize("change", ["weights", "save_probabilities", "image_size", "overwrite"])
def test_other_weights_or_settings_segment_all_again(change: str, infer: Callable[..., None], tmp_path: Path) -> None:
    infer()
    before = written(tmp_path / "out")
    options: dict[str, Any] = {change: 48 if change == "image_size" else True}
    if change == "weights":
        options = {"checkpoint": str(save_weights(tmp_path / "other.pt", seed=1))}
    infer(**options)
    after = written(tmp_path / "out")
    assert changed(before, after) == {*NAMES}
    if change != "overwrite":
        infer(**options)
        assert changed(after, written(tmp_path / "out")) == set()
        infer()
        assert changed(after, written(tmp_path / "out")) == {*NAMES}, "what stands there is of the other run"


def test_two_processes_share_the_images(cohort: Path, tmp_path: Path) -> None:
    break_images(cohort)
    options = {
        "config_file": CONFIGS / "inference.json",
        "bundle_root": ROOT,
        "dataset_dir": cohort,
        "output_dir": tmp_path / "out",
        "checkpoint": save_weights(tmp_path / "model.pt"),
        "image_size": 32,
        "quality": True,
    }
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    line += [
        "-m",
        "monai.bundle",
        "run",
        *(word for key, value in options.items() for word in (f"--{key}", str(value))),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def run() -> str:
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
        assert done.returncode == 1, done.stderr[-3000:]
        assert done.stdout.count("2 of 2 need a review") == 1, "the first process alone writes the complete table"
        assert len((tmp_path / "out" / "quality.csv").read_text().splitlines()) == 1 + 2 * 3
        return done.stderr

    text = run()
    for name in ("a/scan", "c", "d"):
        assert len(re.findall(rf"(?m)^(?:\[rank0\]: )?(?:error: )?{cohort / name}\.nii\.gz", text)) == 1, text
    assert changed({}, written(tmp_path / "out")) == {"b/scan", "e"}
    before = written(tmp_path / "out")
    run()
    assert changed(before, written(tmp_path / "out")) == set()
    entries = [json.loads(entry) for entry in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(entry["image"] for entry in entries) == ["b/scan.nii.gz", "e.nii.gz"]


@pytest.mark.skipif("SEMSIM_SLOW" not in os.environ, reason="SEMSIM_SLOW not set: hundreds of studies take minutes")
@pytest.mark.parametrize("processes", [1, 2])
def test_three_hundred_studies_survive_a_kill(processes: int, tmp_path: Path) -> None:
    """Three broken ones among them; killed when about a third is done, then started again."""
    cohort = Path(make_phantom_cohort(tmp_path / "cohort", (150, 0, 0), size=(40, 48), slices=(3, 4)))
    images = tmp_path / "images"
    images.mkdir()
    for image in cohort.glob("*/*_frame??.nii.gz"):
        image.rename(images / image.name)
    names = sorted(path.name for path in images.iterdir())
    broken = names[::120]
    for name in broken:
        (images / name).write_bytes(b"no image")
    shared = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    line = [sys.executable, "-m", *shared, "monai.bundle", "run"]
    line += ["--config_file", "configs/inference.json", "--dataset_dir", str(images), "--image_size", "48"]
    line += ["--checkpoint", str(save_weights(tmp_path / "model.pt")), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    noted = tmp_path / "out" / "predictions.jsonl"

    first = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while not (noted.is_file() and noted.read_text().count("\n") > 100):
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    # torchrun's workers are in sessions of their own
    workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    for pid in (first.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    before = noted.read_text().count("\n")
    again = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert again.returncode == 1
    for name in broken:
        assert len(re.findall(rf"(?m)^(?:\[rank0\]: )?(?:error: )?{images / name}", again.stderr)) == 1
    entries = [json.loads(entry)["image"] for entry in noted.read_text().splitlines()]
    assert sorted(entries) == sorted(set(names) - set(broken)), "each sound study once"
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 297
    (speed,) = re.findall(r"Segmented \d+ images in .*", again.stderr + again.stdout)
    print(f"{processes} process(es), killed after {before} studies: {speed}")
