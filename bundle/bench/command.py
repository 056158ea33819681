"""Time and memory of the bundle on this machine: ``python -m bundle bench``.

One run prints the machine's matrix rate, time, memory and arithmetic of a training step for every objective, and the
time of inference, of the input pipeline and of HD95. Images are synthetic; nothing is stored.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

import torch

from bundle.bench.measurements import (
    KINDS,
    MATRIX_SIDE,
    SLICES,
    epoch_parts,
    fusion,
    hd95,
    inference,
    input_pipeline,
    matrix_rate,
    peak_memory,
    peer,
    time_by_kind,
    training_step,
)
from bundle.workflows import isolated, method_names
from scripts.engine import autocast_dtype
from scripts.phantoms.cohort import make_phantom_cohort

__all__ = ["OBJECTIVES", "main"]

OBJECTIVES = ("supervised", "fixmatch", "unimatch", "semsim_minus", "semsim")
REFERENCE = "fixmatch"
"""The objective whose step is the reference for the ratios."""

EPOCH = (156, 20, 256)
"""Steps, validation volumes and slices for batch norm of an epoch of ACDC with three labelled patients."""


def main(
    image_size: int | tuple[int, ...] = (128, 224),
    batch_size: int = 8,
    repeats: int = 3,
    methods: tuple[str, ...] | str = OBJECTIVES,
    device: str | None = None,
) -> None:
    """Measure and print.

    Args:
        image_size: side of the slices in pixels, or several; all but the training steps is measured at the last.
        batch_size: labelled slices of a step, and as many unlabelled ones.
        repeats: timed repetitions, after an untimed one; medians are printed.
        methods: names of overlays in ``configs/methods``, or ``all``.
        device: ``cpu`` or ``cuda``; default: CUDA if available.

    Raises:
        ValueError: if a method or the device is not known.
    """
    known = method_names()
    names = tuple(known) if methods == "all" else (methods,) if isinstance(methods, str) else tuple(methods)
    if unknown := set(names) - set(known):
        raise ValueError(f"methods: expected some of {', '.join(known)}, found {', '.join(sorted(unknown))}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in MATRIX_SIDE:
        raise ValueError(f"device: expected one of {', '.join(MATRIX_SIDE)}, found {device}.")
    rates = _print_machine(device)
    sizes = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    for size in sizes:
        step_seconds = _print_steps(names, size, batch_size, repeats, device, rates)
    with tempfile.TemporaryDirectory() as folder:
        cohort = make_phantom_cohort(
            Path(folder, "cohort"), patients=(2, 0, 0), size=(216, 256), slices=(SLICES, SLICES)
        )
        images = [str(path) for path in sorted(Path(cohort).glob("*/*_frame??.nii.gz"))]
        _print_inference(images, folder, size, repeats, device)
        parts = _print_input(images, folder, size, batch_size, repeats, device, step_seconds)
        if step_seconds:
            others = isolated(epoch_parts, images, folder, size, device)
            _print_epoch(parts, others, batch_size, step_seconds)
        _print_hd95(images[0], repeats)


def _print_machine(device: str) -> dict[torch.dtype, float]:
    """The machine and its matrix rates: ``{dtype: GFLOP/s}``, float32 first, then the default of mixed precision."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    print(f"machine       {name}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} before the start)")
    print(
        f"              {torch.get_num_threads()} threads, CPU capability {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}"
    )
    fast = autocast_dtype(torch.device(device), amp=True)
    rates = {dtype: isolated(matrix_rate, dtype, device) for dtype in (torch.float32, fast) if dtype is not None}
    for dtype, rate in rates.items():
        print(f"matrix rate   {_short(dtype)} {rate:.0f} GFLOP/s")
    if fast is None:
        print("matrix rate   bf16 not measured: this CPU only emulates it, so training uses fp32")
    return rates


def _print_steps(
    names: tuple[str, ...],
    image_size: int,
    batch_size: int,
    repeats: int,
    device: str,
    rates: dict[torch.dtype, float],
) -> float | None:
    """Training steps and the fusion module; returns the seconds of the reference step with the default settings."""
    print(f"\ntraining step, {image_size} px, batch {batch_size} + {batch_size}; ratios are to a {REFERENCE} step,")
    print("the last column is how many of these take as long as one step of UniMatch's own loop")
    if device == "cpu":
        print(f"peak memory is the process's, {isolated(peak_memory, device):.0f} MiB of it before the first tensor")
    # Size of stage 3's affinity matrix, which scripts.networks.attention never stores.
    affinity = batch_size * (image_size // 4) ** 4 * 4 / 2**20
    print(f"(one affinity matrix HW x HW for each image of a batch would be {affinity:.0f} MiB in fp32)")
    print(
        f"{'':52} {'s':>8} {'ratio':>6} {'MiB':>6} {'GFLOP':>7} {'ratio':>6} {'GFLOP/s':>8} {'of rate':>8} {'peer':>6}"
    )
    own_loop = isolated(peer, image_size, batch_size, repeats, device)
    print(_row("UniMatch's own loop", torch.float32, False, own_loop, rates[torch.float32]))
    ways = [(torch.float32, False), *((dtype, True) for dtype in rates)]
    references: list[dict[str, float]] = []
    for name in sorted(names, key=lambda name: name != REFERENCE):
        flops = 0.0
        for index, (dtype, channels_last) in enumerate(ways):
            result = isolated(
                training_step, name, dtype, channels_last, image_size, batch_size, repeats, device, count=index == 0
            )
            flops = result["flops"] = result["flops"] or flops
            if name == REFERENCE:
                references.append(result)
            reference = references[index] if references else None
            print(_row(name, dtype, channels_last, result, rates[dtype], reference, own_loop))
    if references:
        gain = references[0]["seconds"] / references[-1]["seconds"]
        print(
            f"{REFERENCE} with the default settings, {_short(ways[-1][0])} channels_last: {gain:.2f}x as fast as fp32"
        )
    dtype = ways[-1][0]
    result = isolated(fusion, dtype, image_size, batch_size, repeats, device)
    print("fusion module alone, one batch, forward and backward")
    print(_row("SFM", dtype, True, result, rates[dtype]))
    print(f"shares of a step's time with the default settings, {_short(dtype)} channels_last")
    print(f"{'':30} {' '.join(f'{kind:>11}' for kind in (*KINDS, 'other'))}")
    for name in names:
        shares = isolated(time_by_kind, name, dtype, True, image_size, batch_size, device)
        print(f"{name:30} {' '.join(f'{share:11.0%}' for share in shares.values())}")
    return references[-1]["seconds"] if references else None


def _print_inference(images: list[str], folder: str, image_size: int, repeats: int, device: str) -> None:
    network, chain = isolated(inference, images, folder, image_size, repeats, device)
    print(f"\ninference     {network:8.3f} s per {SLICES}-slice volume in the network")
    print(f"              {chain:8.3f} s from file to saved label on the original grid")
    print(f"              {60 / chain:8.1f} volumes per minute and process")


def _print_input(
    images: list[str],
    folder: str,
    image_size: int,
    batch_size: int,
    repeats: int,
    device: str,
    step_seconds: float | None,
) -> dict[str, float]:
    """Time of each stage from files to a step, and of the recurring stages as a share of the step; returns them."""
    parts: dict[str, float] = isolated(input_pipeline, images, folder, image_size, batch_size, repeats, device)
    for what, milliseconds in parts.items():
        print(f"input         {milliseconds:8.3f} ms per sample, {what}")
    if step_seconds:
        # A step loads and weakly views 2 B slices and strongly views B of them.
        seconds = batch_size * (2 * parts["loading"] + 2 * parts["weak view"] + parts["strong view"]) / 1e3
        loading = 2 * batch_size * parts["loading"] / 1e3
        print(f"              {loading / step_seconds:8.2%} of a {REFERENCE} step for loading, ", end="")
        print(f"{seconds / step_seconds:.2%} with one strong view")
    return parts


def _print_epoch(parts: dict[str, float], others: dict[str, float], batch_size: int, step_seconds: float) -> None:
    """Shares of a whole epoch of the reference, from the measured parts and the protocol's numbers of each."""
    steps, volumes, slices = EPOCH
    seconds = {
        "loading": steps * 2 * batch_size * parts["loading"] / 1e3,
        "views": steps * batch_size * (2 * parts["weak view"] + parts["strong view"]) / 1e3,
        "validation": volumes * others["validation"],
        "batch norm": slices * others["batch norm"],
    }
    seconds["network, losses, optimizer"] = steps * step_seconds - seconds["views"]
    whole = sum(seconds.values())
    print(
        f"\nepoch         {whole:8.1f} s, {REFERENCE}, computed from the parts above: {steps} steps, {volumes} volumes"
    )
    print(f"              to validate on ({others['validation']:.3f} s each), batch norm over {slices} slices")
    for what, value in seconds.items():
        print(f"              {value / whole:8.2%} {what}")


def _print_hd95(image: str, repeats: int) -> None:
    results = isolated(hd95, image, repeats)
    slowest = results["full volume"][0]
    for what, (milliseconds, value) in results.items():
        print(
            f"HD95          {milliseconds:8.1f} ms per volume, {slowest / milliseconds:4.1f}x as fast as over the full "
            f"volume, mean of 3 classes {value:.3f} voxels: {what}"
        )


def _row(
    name: str,
    dtype: torch.dtype,
    channels_last: bool,
    result: dict[str, float],
    rate: float,
    reference: dict[str, float] | None = None,
    own_loop: dict[str, float] | None = None,
) -> str:
    """Time, memory and arithmetic as columns."""
    gflop = result["flops"] / 1e9
    speed = gflop / result["seconds"]
    ratios = [f"{result[key] / reference[key]:.2f}" if reference else "" for key in ("seconds", "flops")]
    return (
        f"{name:30} {_short(dtype)} {'channels_last' if channels_last else 'channels_first':16}"
        f" {result['seconds']:8.3f} {ratios[0]:>6} {result['memory']:6.0f}"
        f" {gflop:7.1f} {ratios[1]:>6} {speed:8.1f} {speed / rate:8.0%}"
        + (f" {own_loop['seconds'] / result['seconds']:6.2f}" if own_loop else "")
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
