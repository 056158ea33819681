"""Time and memory of the trainer's step: eager, compiled and recorded as a graph."""

from __future__ import annotations

import torch

from bundle.bench.measurements import autocast, config, make_batch, median_seconds, peak_memory
from scripts.engine import autocast_dtype
from scripts.static_step import Losses, StaticSteps, cuda_graph
from scripts.utils.memory import freed_memory_kept

__all__ = ["static_step"]


def static_step(name: str, way: str, image_size: int, batch_size: int, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds and peak MiB of a step of the trainer, from a batch on the host, in the default precision.

    Args:
        name: the overlay under ``configs/methods``.
        way: ``eager``, ``compiled``, ``graph`` or ``compiled graph``, see :class:`scripts.static_step.StaticSteps`.
        image_size: side of the slices, pixels.
        batch_size: labelled slices, and as many unlabelled ones.
        repeats: timed steps.
        device: ``cpu`` or ``cuda``; on a CPU ``graph`` is a step on fixed tensors without a capture.
    """
    parser = config(device, "train.json", f"methods/{name}.json")
    method = parser.get_parsed_content("method").to(device, memory_format=torch.channels_last).train()
    optimizer = parser.get_parsed_content("optimizer")
    batch = make_batch(image_size, batch_size, "cpu", torch.contiguous_format)
    dtype = autocast_dtype(device, True) or torch.float32

    def eager() -> None:
        on_device = {key: value.to(device, memory_format=torch.channels_last) for key, value in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with autocast(dtype, device):
            losses = method(on_device)
        torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        losses["loss"].backward()
        optimizer.step()
        method.after_step()

    eager()  # creates the optimizer's state and the teachers
    record = cuda_graph if device == "cuda" and "graph" in way else lambda step: step
    compiler = None if "compiled" in way else lambda objective: objective
    static = StaticSteps(method, optimizer, lambda: autocast(dtype, device), record, compiler)
    pending: list[Losses] = []

    def replayed() -> None:
        pending.append(static(batch, torch.Generator(), 2))
        if len(pending) > 1:
            pending.pop(0).read()

    with freed_memory_kept(device):
        seconds = median_seconds(eager if way == "eager" else replayed, repeats, device)
    return {"milliseconds": 1e3 * seconds, "memory": peak_memory(device)}
