"""Measurements of the benchmark: rates, times, memory and arithmetic, each in one function.

All functions use the bundle's own configs, so that they follow changes there.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.metrics import compute_hausdorff_distance
from monai.networks import one_hot
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bundle.bench.peer import peer_step
from bundle.workflows import CONFIGS
from scripts.engine import autocast_dtype
from scripts.handlers.batch_norm import average_statistics
from scripts.metrics import surface_distances
from scripts.networks import attention as _attention  # noqa: F401 - defines the operators that are counted
from scripts.utils.memory import freed_memory_kept

__all__ = [
    "MATRIX_SIDE",
    "SLICES",
    "autocast",
    "config",
    "epoch_parts",
    "fusion",
    "hd95",
    "inference",
    "input_pipeline",
    "make_batch",
    "matrix_rate",
    "median_seconds",
    "peak_memory",
    "peer",
    "time_by_kind",
    "training_step",
]

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices for the matrix rate, large enough for arithmetic to dominate."""

SLICES = 10
"""Slices of a volume."""

KINDS = {
    "convolution": ("convolution",),
    "product": ("mm", "scaled_dot_product", "flash_attention", "efficient_attention"),
    "norm": ("batch_norm", "layer_norm"),
    "random": ("bernoulli", "dropout", "uniform", "normal_", "rand"),
    "activation": ("relu", "gelu", "softmax"),
    "resampling": ("upsample", "interpolate", "grid_sampler", "pool"),
    "copying": ("copy", "cat", "clone", "flip", "index", "gather", "scatter", "roll"),
}
"""Kinds of work in a training step, in this order, by parts of the names of PyTorch's operators."""


def config(device: str, *files: str, **overrides: Any) -> ConfigParser:
    """The bundle's own config files, parsed as for a run."""
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / file) for file in files]))
    parser.update({"bundle_root": str(CONFIGS.parent), "device": torch.device(device)})
    parser.update({key.replace("__", "#"): value for key, value in overrides.items()})
    return parser


def median_seconds(work: Callable[[], Any], repeats: int, device: str) -> float:
    """Median time of a call, after warming up."""
    times = []
    warm_up = 3 if device == "cuda" else 1
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def peak_memory(device: str) -> float:
    """Peak memory so far in MiB: allocated on a GPU, resident in the process on a CPU; NaN on Windows."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention in a call."""
    operators: Any = torch.ops.semsim  # scripts.networks.attention
    formulas = {operators.attention: _attention_flops, operators.attention_backward: _attention_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter:
        work()
    return float(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products of a batch of matrices, by the shapes: scores, and values by weights."""
    count, length, width = query
    return 2 * count * length * int(key[1]) * (width + int(value[2]))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products: scores; gradients of values and weights; of queries and keys."""
    count, length, width = query
    return 2 * count * length * int(key[1]) * (3 * width + 2 * int(value[2]))


def _cost(work: Callable[[], Any], repeats: int, device: str, count: bool = True) -> dict[str, float]:
    """Seconds of a call, the process's peak MiB and, on request, the call's FLOPs (else 0)."""
    with freed_memory_kept(device):  # as in the trainer
        seconds = median_seconds(work, repeats, device)
    memory = peak_memory(device)
    return {"seconds": seconds, "memory": memory, "flops": _flops(work) if count else 0.0}


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a square matrix product."""
    side = MATRIX_SIDE[device]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, 5, device) / 1e9


def autocast(dtype: torch.dtype, device: str) -> torch.autocast:
    """Autocast with the trainer's settings."""
    enabled = dtype is not torch.float32
    return torch.autocast(device, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)


def make_batch(image_size: int, batch_size: int, device: str, memory_format: torch.memory_format) -> dict[str, Tensor]:
    """A training batch; its labels are blobs of all classes."""
    blobs = torch.randint(4, (batch_size, 1, 8, 8)).float()
    label = torch.nn.functional.interpolate(blobs, size=(image_size, image_size))
    batch = {"image": label / 4 + 0.2 * torch.rand(label.shape), "label": label.to(torch.uint8)}
    batch["unlabeled"] = batch["image"].flip(0)
    return {key: value.to(device, memory_format=memory_format) for key, value in batch.items()}


def training_step(
    name: str,
    dtype: torch.dtype,
    channels_last: bool,
    image_size: int,
    batch_size: int,
    repeats: int,
    device: str,
    count: bool = False,
) -> dict[str, float]:
    """Seconds, peak MiB and, on request, FLOPs of an objective's training step.

    Args:
        name: the overlay under ``configs/methods``.
        dtype: float32, or the dtype of autocast.
        channels_last: memory format of network and images.
        image_size: side of the slices, pixels.
        batch_size: labelled slices, and as many unlabelled ones.
        repeats: timed steps.
        device: ``cpu`` or ``cuda``.
        count: whether to count FLOPs, in one more step; otherwise they are 0.

    Returns:
        ``{"seconds", "memory", "flops"}``.
    """
    step = _step(name, dtype, channels_last, image_size, batch_size, device)
    return _cost(step, repeats, device, count)


def peer(image_size: int, batch_size: int, repeats: int, device: str) -> dict[str, float]:
    """Seconds and peak MiB of the step that :mod:`bundle.bench.peer` describes; arguments as above."""
    torch.manual_seed(0)
    step = peer_step(make_batch(image_size, batch_size, device, torch.contiguous_format))
    return _cost(step, repeats, device, count=True)


def time_by_kind(
    name: str, dtype: torch.dtype, channels_last: bool, image_size: int, batch_size: int, device: str
) -> dict[str, float]:
    """Shares of an objective's training step by :data:`KINDS`, and of ``other`` operators, with sum 1.

    They are shares of the operators' own time, on a GPU of their kernels. Arguments as for :func:`training_step`.
    """
    step = _step(name, dtype, channels_last, image_size, batch_size, device)
    with freed_memory_kept(device):  # as in the trainer
        return _shares(step, device)


def _shares(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Share of each kind of operator in a call's time, after a warm-up call."""
    work()
    activities = [torch.profiler.ProfilerActivity.CPU]  # on a CPU, CUDA's bookkeeping would be counted as work
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # keeps the profiler's own messages out of the table
    with torch.profiler.profile(activities=activities) as profile:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    times = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profile.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:  # kernels are listed again by their own names
            kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "other")
            times[kind] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in times.items()}


def _step(
    name: str, dtype: torch.dtype, channels_last: bool, image_size: int, batch_size: int, device: str
) -> Callable[[], None]:
    """An objective's training step, as in the trainer, on one batch."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    parser = config(device, "train.json", f"methods/{name}.json")
    method = parser.get_parsed_content("method").to(device, memory_format=memory_format).train()
    method.iteration, method.total_iterations = 2, 3  # late in a training, when all terms are active
    optimizer = parser.get_parsed_content("optimizer")
    batch = make_batch(image_size, batch_size, device, memory_format)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(dtype, device):
            loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        method.after_step()

    return step


def fusion(dtype: torch.dtype, image_size: int, batch_size: int, repeats: int, device: str) -> dict[str, float]:
    """Seconds, peak MiB and FLOPs of the fusion module's forward and backward pass on one batch."""
    method = config(device, "train.json", "methods/semsim.json").get_parsed_content("method")
    method = method.to(device, memory_format=torch.channels_last).train()
    batch = make_batch(image_size, batch_size, device, torch.channels_last)
    with autocast(dtype, device), torch.no_grad():
        encoded = [feature.requires_grad_() for feature in method.network.encode(batch["image"])]

    def both_ways() -> None:
        with autocast(dtype, device):
            fused = method.fusion(encoded)
        fused.sum().backward()

    return _cost(both_ways, repeats, device)


def inference(images: list[str], folder: str, image_size: int, repeats: int, device: str) -> tuple[float, float]:
    """Seconds per volume: in the network only, and by ``inference.json`` from file to saved label."""
    checkpoint = Path(folder, "model.pt")
    parser = config(
        device,
        "inference.json",
        dataset_dir=str(Path(images[0]).parent.parent),
        dataset__data=[{"image": image} for image in images],
        output_dir=str(Path(folder, "predictions")),
        checkpoint=str(checkpoint),
        image_size=image_size,
    )
    network = parser.get_parsed_content("network").eval()
    torch.save(network.state_dict(), checkpoint)
    volume = torch.rand(1, 1, image_size, image_size, SLICES, device=device)
    inferer, evaluator = parser.get_parsed_content("inferer"), parser.get_parsed_content("evaluator")
    with torch.no_grad(), torch.autocast(device, enabled=bool(evaluator.amp)):
        alone = median_seconds(lambda: inferer(volume, network), repeats, device)
    return alone, median_seconds(evaluator.run, 1, device) / len(images)


def input_pipeline(
    images: list[str], folder: str, image_size: int, batch_size: int, repeats: int, device: str
) -> dict[str, float]:
    """Milliseconds per sample of a step's input: ``{"preprocessing", "loading", "weak view", "strong view"}``.

    ``preprocessing`` happens once, files to cache; ``loading`` is from the cache to a batch on the CPU.
    """
    records = [{"image": image} for image in images]
    for record in records[: len(records) // 2]:
        record["label"] = record["image"].replace(".nii.gz", "_gt.nii.gz")
    parser = config(
        device,
        "train.json",
        train__dataset__data=records,
        validate__dataset__data=records[:1],
        cache_dir=str(Path(folder, "cache")),
        image_size=image_size,
        batch_size=batch_size,
    )
    start = time.perf_counter()
    dataset = parser.get_parsed_content("train#dataset")
    first = (time.perf_counter() - start) / len(dataset)
    batches = iter(parser.get_parsed_content("train#dataloader"))
    weak, strong = parser.get_parsed_content("weak_view"), parser.get_parsed_content("strong_view")
    image = next(batches)["image"].to(device)
    per_sample = {
        "preprocessing": first,
        "loading": median_seconds(lambda: next(batches), 10 * repeats, device) / (2 * batch_size),
        "weak view": median_seconds(lambda: weak(image), 10 * repeats, device) / batch_size,
        "strong view": median_seconds(lambda: strong(image), 10 * repeats, device) / batch_size,
    }
    return {what: 1e3 * seconds for what, seconds in per_sample.items()}


def epoch_parts(images: list[str], folder: str, image_size: int, device: str) -> dict[str, float]:
    """Seconds of what an epoch does beside its steps: ``validation`` per volume, ``batch norm`` per slice."""
    records = [{"image": image, "label": image.replace(".nii.gz", "_gt.nii.gz")} for image in images]
    parser = config(
        device,
        "train.json",
        train__dataset__data=records,
        validate__dataset__data=records,
        validate__handlers=[],
        cache_dir=str(Path(folder, "cache")),
        output_dir=str(Path(folder, "run")),
        image_size=image_size,
    )
    network, evaluator = parser.get_parsed_content("network"), parser.get_parsed_content("validate#evaluator")
    validation = median_seconds(evaluator.run, 1, device) / len(records)
    dataset = parser.get_parsed_content("train#dataset")
    count = min(16, len(dataset))

    def average() -> None:
        batch = torch.stack([dataset[i]["image"] for i in range(count)])
        with autocast(autocast_dtype(device, True) or torch.float32, device):
            average_statistics(network, [batch.to(device, memory_format=torch.channels_last)])

    return {"validation": validation, "batch norm": median_seconds(average, 2, device) / count}


def hd95(image: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Milliseconds per volume (three classes) and mean HD95 in voxels, of a label and a shifted copy of it.

    Three implementations: this bundle's, which includes ASSD; MONAI's, the larger of two directed percentiles; and this
    bundle's definition over the full volume.
    """
    label = np.asarray(nib.Nifti1Image.from_filename(image.replace(".nii.gz", "_gt.nii.gz")).dataobj).astype(np.uint8)
    pred = np.roll(label, (3, -2), axis=(0, 1))
    classes = (1, 2, 3)
    pred_onehot, label_onehot = (one_hot(torch.from_numpy(x)[None, None], num_classes=4) for x in (pred, label))
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="monai"
    )  # MONAI calls a function that it deprecates
    ways: dict[str, Callable[[], list[float]]] = {
        "this bundle": lambda: [surface_distances(pred == c, label == c)[0] for c in classes],
        "MONAI": lambda: list(compute_hausdorff_distance(pred_onehot, label_onehot, percentile=95)[0]),
        "full volume": lambda: [_full_volume_hd95(pred == c, label == c) for c in classes],
    }
    return {what: (1e3 * median_seconds(way, repeats, "cpu"), float(np.mean(way()))) for what, way in ways.items()}


def _full_volume_hd95(pred: NDArray[np.bool_], label: NDArray[np.bool_]) -> float:
    """HD95 by its definition: two distance maps of the whole volume."""
    surfaces = [mask ^ ndimage.binary_erosion(mask) for mask in (pred, label)]
    pairs = (surfaces, surfaces[::-1])
    distances = [ndimage.distance_transform_edt(~target)[source] for source, target in pairs]
    return float(np.percentile(np.concatenate(distances), 95))
