"""Information for a bug report on the machine, the data and a training: ``python -m bundle doctor``."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd

from bundle.report.cases import turning, upright
from bundle.report.runs import check_ids
from bundle.workflows import CONFIGS, ROOT
from scripts.data import LoadImageVolumed
from scripts.engine import autocast_dtype, flag
from scripts.handlers.report import aligned
from scripts.methods import Objective
from scripts.utils.errors import one_line, root_cause
from scripts.utils.memory import freed_memory_kept
from scripts.utils.provenance import code_version
from scripts.utils.threads import in_threads, thread_count

__all__ = ["main"]

PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "nibabel", "SimpleITK", "scipy", "pillow")
LONGEST = 20.0  # maximum seconds of the timed steps
GIB = 2**30


def main(config_file: str | Sequence[str] = (), steps: int = 3, **overrides: Any) -> None:
    """Print versions, device, precision, free memory and disk, the available data, and the planned training.

    Nothing is written. A line without a result has the reason; the other lines are still printed. No line names a
    patient, but folders are printed with their names: check the output before you publish it.

    Args:
        config_file: config files of the training after ``configs/train.json``, separated by commas.
        steps: training steps that are timed, at most 20 seconds of them; 0: none.
        **overrides: config overrides of the training, for example ``--dataset_dir DIR``.

    Raises:
        ValueError: if a config file cannot be read, or an override is no id of them.
        FileNotFoundError: if a config file is missing.
    """
    files = [str(CONFIGS / "train.json")]
    files += [part for part in (config_file.split(",") if isinstance(config_file, str) else config_file) if part]
    if missing := [file for file in files if not Path(file).is_file()]:
        raise FileNotFoundError(f"config_file: no file {', '.join(missing)}.")
    check_ids(overrides, files)
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(ROOT), **overrides})
    lines: list[tuple[str, Callable[[], str]]] = [
        ("bundle", lambda: f"{_bundle_version()}, {code_version()}"),
        ("system", lambda: f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("packages", _packages),
        ("device", lambda: _device(torch.device(parser.get_parsed_content("device")))),
        ("precision", lambda: _precision(parser)),
        ("memory", _memory),
        ("disk", lambda: _disk(parser)),
        *((f"data, {part}", lambda part=part: _data(parser, part)) for part in ("train", "validate")),
        ("training", lambda: _training(parser)),
        ("time", lambda: _time(parser, steps)),
    ]
    print("\n".join(aligned([[name, _found(line)] for name, line in lines])))


def _found(line: Callable[[], str]) -> str:
    """The content of a line, or the reason for its absence."""
    try:
        return line()
    except Exception as error:
        return f"not known: {one_line(root_cause(error))}"


def _bundle_version() -> str:
    content = ConfigParser.load_config_file(CONFIGS / "metadata.json")
    return f"{content['name'].partition(':')[0]} {content['version']}"


def _packages() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return f"{device}: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} threads, {thread_count()} of {os.cpu_count()} cores usable"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{device}: {capability}, {threads}{load}"


def _precision(parser: ConfigParser) -> str:
    dtype = autocast_dtype(parser.get_parsed_content("device"), parser.get_parsed_content("amp"))
    return f"{str(dtype).removeprefix('torch.')} where it is safe" if dtype else "float32"


def _memory() -> str:
    pages = [os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")]
    free, total = (count * os.sysconf("SC_PAGE_SIZE") / GIB for count in pages)
    return f"{free:.1f} of {total:.1f} GiB free, the system's caches not counted"


def _disk(parser: ConfigParser) -> str:
    found = []
    for key in ("output_dir", "cache_dir"):
        place = Path(parser.get_parsed_content(key)).absolute()
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        writable = "" if os.access(there, os.W_OK) else ", NOT WRITABLE"
        found.append(f"{key} {place}: {shutil.disk_usage(there).free / GIB:.1f} GiB free{writable}")
    return "; ".join(found)


def _data(parser: ConfigParser, part: str) -> str:
    records = parser.get_parsed_content(f"{part}#dataset#data")
    labeled = [record for record in records if "label" in record]
    cases, of_labeled = ({record.get("case", record["image"]) for record in some} for some in (records, labeled))
    return f"{len(cases)} cases, {len(records)} images; labelled {len(of_labeled)} cases, {len(labeled)} images"


def _training(parser: ConfigParser) -> str:
    target = parser["method"]["_target_"].rpartition(".")[2]
    size, batch = (parser.get_parsed_content(key) for key in ("image_size", "batch_size"))
    return f"{target}, {size} px, {batch} labelled and as many unlabelled slices a step, {_length(parser):,} steps"


def _length(parser: ConfigParser) -> int:
    """Steps of the whole training, computed without preprocessing."""
    trainer = parser["train#trainer"]
    length = trainer.get("epoch_length")
    if not isinstance(length, int):  # one pass over the unlabelled slices
        records = parser.get_parsed_content("train#dataset#data")
        counted = [r for r in records if "label" not in r] or records
        load = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
        steps = turning(parser.get_parsed_content("train#preprocessing"))

        def slices(record: dict[str, str]) -> int:
            shape = upright(load({"image": record["image"]})["image"], steps).shape
            return int(shape[3]) if len(shape) == 4 else 1

        length = math.ceil(sum(in_threads(slices, counted)) / parser.get_parsed_content("batch_size"))
    return int(parser.get_parsed_content("train#trainer#max_epochs")) * length


def _time(parser: ConfigParser, steps: int) -> str:
    """Seconds of a training step late in the training, and hours of the whole training."""
    if steps < 1:
        return "not measured"
    device = torch.device(parser.get_parsed_content("device"))
    objective: Objective = parser.get_parsed_content("method").to(device, memory_format=torch.channels_last)
    optimizer: torch.optim.Optimizer = parser.get_parsed_content("optimizer")
    dtype = autocast_dtype(device, bool(flag(parser.get_parsed_content("amp"))))
    size, count = parser.get_parsed_content("image_size"), parser.get_parsed_content("batch_size")
    channels, classes = parser.get_parsed_content("in_channels"), parser.get_parsed_content("num_classes")
    shape = (count, channels, size, size)
    batch = {"image": torch.rand(shape), "unlabeled": torch.rand(shape)}
    batch["label"] = torch.randint(classes, (count, 1, size, size), dtype=torch.uint8)
    batch = {key: value.to(device, memory_format=torch.channels_last) for key, value in batch.items()}
    objective.iteration, objective.total_iterations = 900, 1000  # late in the training, when all terms are active
    objective.train()
    times: list[float] = []
    with freed_memory_kept(device):
        while len(times) < steps + 1 and (len(times) < 2 or sum(times) < LONGEST):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
                loss = objective(batch)["loss"]
            loss.backward()
            optimizer.step()
            objective.after_step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    seconds = min(times[1:])  # the first one is a warm-up
    try:
        hours = f"{seconds * _length(parser) / 3600:.1f} h for all of them"
    except (ValueError, FileNotFoundError, RuntimeError):
        hours = "their number is unknown"
    return f"{seconds:.2f} s a step (the fastest of {len(times) - 1}, random images), {hours}; validation not counted"
