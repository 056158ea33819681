"""Checks and measurements on a CUDA device: ``make gpu-check``, at most twelve minutes.

In this order: the tests that need a GPU; times and peak memory of training steps, eager, compiled and as a graph; the
full protocol of SemSim with three labelled patients in the remaining time, continued when the command runs again;
inference of a folder of volumes. Each result is written as soon as it is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

from bundle.bench.static import static_step
from bundle.workflows import ROOT, isolated
from scripts.phantoms.cohort import make_phantom_cohort

__all__ = ["main"]

OBJECTIVES = ("fixmatch", "unimatch", "semsim_minus", "semsim")
WAYS = ("eager", "compiled", "graph", "compiled graph")
INFERENCE_MINUTES = 1.5


def main(
    output: str = "gpu-check",
    dataset_dir: str | None = None,
    minutes: float = 12.0,
    device: str = "cuda",
    image_size: int = 224,
    steps: int = 50,
    volumes: int = 100,
    methods: tuple[str, ...] | str = OBJECTIVES,
) -> None:
    """Run all parts.

    Args:
        output: folder of the results; each is a line of ``results.jsonl``.
        dataset_dir: ACDC as distributed; None: synthetic hearts of the same layout.
        minutes: time limit of all parts together.
        device: ``cuda``, or ``cpu`` to test the command itself.
        image_size: side of the slices, pixels.
        steps: timed steps of each objective and way.
        volumes: number of volumes to segment.
        methods: objectives whose steps are timed.

    Raises:
        ValueError: if there is no CUDA device but ``device`` is ``cuda``.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a CUDA device, found none; --device cpu tests the command itself.")
    end = time.monotonic() + 60 * minutes
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)

    def note(part: str, **result: Any) -> None:
        line = json.dumps({"part": part, **result})
        with (folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    note("machine", device=torch.cuda.get_device_name() if device == "cuda" else "cpu", torch=torch.__version__)
    note("tests", **_tests(folder, left=end - time.monotonic()))
    for name in (methods,) if isinstance(methods, str) else methods:
        for way in WAYS if device == "cuda" else WAYS[:1] + WAYS[2:3]:
            result = _tried(lambda: isolated(static_step, name, way, image_size, 8, steps, device))  # noqa: B023
            note("step", method=name, way=way, **result)
    data = dataset_dir or str(make_phantom_cohort(folder / "cohort", slices=(8, 12)))
    splits = [] if dataset_dir else ["--splits", str(Path(data, "splits.json"))]
    common = [f"--image_size={image_size}", f"--device=$torch.device('{device}')"]
    left = end - time.monotonic() - 60 * INFERENCE_MINUTES
    training = ["training", "configs/train.json", "--dataset_dir", data, *splits, "--labeled=3", "--resume=True"]
    training += ["--output_dir", str(folder / "run"), "--cache_dir", str(folder / "cache"), *common]
    training.append(f"--compile={device == 'cuda'}")
    note("protocol", **_bundle(training, left, folder / "protocol.log"), **_place(folder / "run"))
    weights = next(path for path in (folder / "run" / "model.pt", ROOT / "models" / "model.pt") if path.is_file())
    begin = time.monotonic()
    images = _volumes(Path(data), folder / "volumes", volumes)
    inference = ["inferring", "configs/inference.json", "--dataset_dir", str(images), "--checkpoint", str(weights)]
    inference += ["--output_dir", str(folder / "predictions"), "--overwrite=True", common[1]]
    result = _bundle(inference, end - time.monotonic(), folder / "inference.log")
    note("inference", volumes=volumes, **result, per_minute=60 * volumes / (time.monotonic() - begin))


def _tried(work: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """A result, or the error, so that the other parts still run."""
    try:
        return dict(work())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def _tests(folder: Path, left: float) -> dict[str, Any]:
    """The tests that a CPU skips."""
    files = ["tests/test_static_step.py", "tests/methods/test_every_method.py"]
    command = [sys.executable, "-m", "pytest", "-q", *files, "-k", "graphs or gpu_step", "-p", "no:cacheprovider"]
    return _run(command, min(left, 240), folder / "tests.log")


def _bundle(arguments: list[str], left: float, log: Path) -> dict[str, Any]:
    run, config, *options = arguments
    return _run([sys.executable, "-m", "monai.bundle", "run", run, "--config_file", config, *options], left, log)


def _run(command: list[str], seconds: float, log: Path) -> dict[str, Any]:
    """Run a command for at most ``seconds``; return its end, time and last line."""
    begin = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            ended: int | str = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            ended = "stopped in time"
    lines = log.read_text(errors="replace").strip().splitlines()
    return {"ended": ended, "seconds": round(time.monotonic() - begin, 1), "last_line": lines[-1] if lines else ""}


def _place(run: Path) -> dict[str, Any]:
    """Progress of a training, from the record of its best weights so far."""
    record = run / "model.json"
    if not record.is_file():
        return {}
    known = json.loads(record.read_text())
    return {name: known.get(name) for name in ("iteration", "iterations", "validation_dice")}


def _volumes(data: Path, folder: Path, count: int) -> Path:
    """A folder of ``count`` volumes: links to the existing ones, repeated as often as needed."""
    found = sorted(path for path in data.rglob("*_frame??.nii.gz"))
    for number in range(count):
        link = folder / f"volume{number:03}.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(found[number % len(found)].resolve())
    return folder


if __name__ == "__main__":
    fire.Fire(main)
