"""``python -m bundle verify``: the model zoo's checks of a submitted bundle, and further ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from bundle.share import checks
from scripts.data.images import find_images
from scripts.phantoms import make_phantom_cohort
from scripts.phantoms.cohort import KINDS
from scripts.utils.options import check_switches
from scripts.utils.validation import read_json

__all__ = ["Result", "main", "make_cohort", "run_worker", "verify"]

COHORT = "A synthetic cohort of the bundle's kind can be made"
TO_THE_END = "Checks with MONAI complete"
WORKER = Path(__file__).with_name("verify_worker.py")


class Result(NamedTuple):
    """Outcome of one check: its name and the fault, empty if it passed."""

    check: str
    fault: str


def main(bundle: str, schema: str | None = None, run: bool = False) -> None:
    """Check a bundle; the exit code is 1 if a check fails.

    The bundle's files are checked first, without executing code. If all of these checks pass and ``--run`` is given,
    the bundle's own code is run on a tiny synthetic cohort: use ``--run`` only for bundles from sources that you trust.

    Args:
        bundle: a bundle's folder, or an archive of ``pack`` with its SHA-256 in the same folder.
        schema: local copy of the metadata's schema; default: it is downloaded, with ``--run`` only.
        run: whether the bundle's code is run.
    """
    check_switches(run=run)
    results = verify(Path(bundle), Path(schema) if schema else None, run)
    width = max(len(result.check) for result in results)
    for result in results:
        print(f"{'FAIL' if result.fault else 'pass'}  {result.check:<{width}}  {result.fault}".rstrip())
    failed = sum(1 for result in results if result.fault)
    print(f"{len(results) - failed} of {len(results)} checks passed.")
    if failed and run and COHORT not in [result.check for result in results]:
        print("The bundle's code was not run because of these faults.")
    elif not failed and not run:
        print("No code of the bundle was executed: --run trains, evaluates and infers with its own code.")
    sys.exit(1 if failed else 0)


def verify(source: Path, schema: Path | None = None, run: bool = False) -> list[Result]:
    """Check a bundle's files and, if they pass, its code.

    Args:
        source: see :func:`main`.
        schema: see :func:`main`.
        run: whether to run the code: on a copy in a temporary folder, in processes that do not see this repository.

    Returns:
        one result per check; for an archive that is not safe to unpack only those up to the failed one.

    Raises:
        FileNotFoundError: if there is no such folder, archive or schema.
    """
    if not source.exists():
        raise FileNotFoundError(f"'{source}' does not exist: expected a bundle's folder or its archive.")
    if schema is not None and not schema.is_file():
        raise FileNotFoundError(f"schema: no file '{schema}'.")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = source
        if not source.is_dir():
            for check in checks.ARCHIVE_CHECKS:
                results.append(_result(check, source))
                if results[-1].fault:
                    return results
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
                bundle = Path(folder) / archive.namelist()[0].partition("/")[0]
        results += [_result(check, bundle) for check in checks.FILE_CHECKS]
        if not run or any(result.fault for result in results):
            return results
        if bundle is source:
            bundle = Path(shutil.copytree(source, Path(folder) / source.resolve().name))
        config = read_json(bundle / "configs" / "train.json", "training")
        cohort = Path(folder) / "cohort"
        results.append(_result(lambda _: make_cohort(cohort, config), bundle, COHORT))
        if not results[-1].fault:
            results += run_worker(bundle, cohort, schema)
            results += _run_commands(bundle, cohort, config["output_ext"])
    return results


def _result(check: Callable[[Path], None], path: Path, name: str = "") -> Result:
    """Outcome of a check that raises for a fault; its default name is the first line of its docstring."""
    name = name or (check.__doc__ or "").partition("\n")[0].rstrip(".")
    try:
        check(path)
    except Exception as error:  # a check that raises another error fails too
        return Result(name, " ".join(f"{error}".split()) or type(error).__name__)
    return Result(name, "")


def _run(arguments: Sequence[str], bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in the bundle's folder, without this repository on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)


def run_worker(bundle: Path, cohort: Path, schema: Path | None) -> list[Result]:
    """The checks with MONAI's own functions, in one process."""
    data = json.dumps({"train": _training_data(cohort), "infer": {"dataset_dir": str(cohort)}})
    source = WORKER.read_text(encoding="utf-8")
    done = _run(["-c", source, str(bundle), str(schema.resolve()) if schema else "", data], bundle)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    try:
        results = [Result(*map(str, json.loads(line))) for line in lines]
    except (ValueError, TypeError, RecursionError):  # the bundle's own code prints into the same stream
        return [Result(TO_THE_END, "found lines that are no results")]
    if done.returncode:
        results.append(Result(TO_THE_END, _last_line(done)))
    return results


def _run_commands(bundle: Path, cohort: Path, suffix: str) -> list[Result]:
    """Train two iterations, evaluate and infer by the user's commands."""
    folder = cohort.parent
    image = Path(find_images(cohort)[0]["image"])
    steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "batch_size": 2}
    given = _training_data(cohort)
    labels = f"{image.name.partition('.')[0]}_seg{suffix}"
    commands: list[tuple[str, str, dict[str, Any], str]] = [
        ("Command trains", "configs/train.json", {**given, **steps}, "model.pt"),
        ("Command evaluates", "['configs/train.json','configs/evaluate.json']", given, "summary.csv"),
        ("Command infers", "configs/inference.json", {"dataset_dir": image}, labels),
    ]
    results = []
    for name, configs, options, expected in commands:
        output = folder / name.replace(" ", "_")
        words = [f"--{key}={value}" for key, value in {**options, "output_dir": output}.items()]
        done = _run(["-m", "monai.bundle", "run", "--config_file", configs, *words], bundle)
        fault = _last_line(done) if done.returncode else ""
        if not fault and not (output / expected).is_file():
            fault = f"no {expected} was written"
        results.append(Result(name, fault))
    return results


def _training_data(cohort: Path) -> dict[str, Any]:
    """The config values of a cohort."""
    splits = cohort / "splits.json"
    data = {"dataset_dir": str(cohort), "cache_dir": str(cohort.parent / "cache"), "labeled": 2}
    return {**data, "splits": str(splits)} if splits.is_file() else data


def make_cohort(root: Path, config: Mapping[str, Any]) -> None:
    """Write a tiny synthetic cohort in the layout of a bundle's ``train.json``.

    Args:
        root: folder of the cohort.
        config: its top-level ids, including ``layout``; for a layout without a phantom also ``in_channels``,
            ``num_classes`` and ``output_ext``.
    """
    if (kind := config["layout"]) in KINDS:
        ranges = {"size": (48, 64), "spacing": (3.0, 3.6), "slices": (3, 4)}
        small: dict[str, Any] = {name: value for name, value in ranges.items() if name in KINDS[kind].ranges}
        make_phantom_cohort(root, patients=(4, 1, 1), kind=kind, **small)
        return
    root.mkdir()
    rng = np.random.default_rng(0)
    classes, channels = config["num_classes"], config["in_channels"]
    for case in range(6):
        label = np.kron(rng.integers(0, classes, (8, 8)), np.ones((6, 6), int)).astype(np.uint8)
        image = (200 * (label / classes + 0.1 * rng.random(label.shape))).astype(np.uint8)
        for name, array in ((f"case{case}", image), (f"case{case}_gt", label)):
            if config["output_ext"] == ".png":
                colour = channels > 1 and array is image
                Image.fromarray(np.stack([array] * channels, -1) if colour else array).save(root / f"{name}.png")
            else:
                voxels = np.stack([array] * 3, -1)
                if channels > 1 and array is image:
                    voxels = np.stack([voxels] * channels, -1)
                nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), root / f"{name}.nii.gz")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last message of a failed process."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"
