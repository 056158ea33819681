"""``python -m bundle global_model``: weights with a record from the network of a federation's server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.networks.deployed import NETWORKS, network_options
from scripts.utils.licences import recorded_licenses
from scripts.utils.provenance import write_record
from scripts.utils.tensors import load_tensors, not_finite, save_tensors
from scripts.utils.validation import read_json

__all__ = ["joint_record", "main", "write_global_model"]

SHARED = (
    "data",
    "network",
    "image_size",
    "slice_axis",
    "pixel_spacing",
    "percentiles",
    "mirroring",
    "largest_component",
    "class_names",
)
"""Entries in which the sites' records must agree: preparation of the input and meaning of the output."""
COUNTS = ("labeled_cases", "labeled_slices", "unlabeled_cases", "unlabeled_slices")
OWN = ("sha256", "validation_dice", "calibration", "missing_cases", "labeled_sha256", "continues_sha256")
"""Entries about the weights or cases of a single site."""


def main(weights: str, records: str | Sequence[str], output: str) -> None:
    """Write a federation's network as ``model.pt``, and beside it the record that evaluation and inference need.

    Args:
        weights: ``FL_global_model.pt`` or ``best_FL_global_model.pt`` of an NVFlare server, or a file with the
            network's state_dict alone.
        records: ``model_last.json`` of each site's ``output_dir``.
        output: the file to write, such as ``models/model.pt``.

    Raises:
        ValueError: if a file is damaged, contains objects other than tensors and plain values or no network of this
            bundle, or if the sites' records differ where they must agree.
        FileNotFoundError: if a file is missing.
    """
    files = [records] if isinstance(records, str) else [*records]
    record = joint_record(files)
    write_global_model(read_network(weights, record), record, output)
    print(
        f"{output}: {record['labeled_cases']} labelled and {record['unlabeled_cases']} unlabelled cases of "
        f"{len(files)} sites; record: {Path(output).with_suffix('.json').name} beside it."
    )


def read_network(path: str | Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a server's file, cast to the dtypes of the network that the sites' record names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see :func:`main`.
    """
    content = load_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]  # NVFlare adds other entries
    kind = record.get("network", "UNet")
    network = NETWORKS[kind](**network_options(record))
    try:
        network.load_state_dict(dict(content))  # casts averages of integers back to integers
    except (AttributeError, TypeError, ValueError, RuntimeError):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path}: contains {found[:100]}, expected the network of the sites' records, {kind}, alone or as 'model'."
        ) from None
    if name := not_finite(network.state_dict()):
        raise ValueError(f"{path}: '{name}' has values that are not finite: these weights are unusable.")
    return network.state_dict()


def write_global_model(network: Mapping[str, Tensor], record: Mapping[str, Any], output: str | Path) -> None:
    """Write a network and the joint record of its sites."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(dict(network), output)
    write_record(output, record)


def joint_record(files: Sequence[str | Path]) -> dict[str, Any]:
    """Joint record of weights that several sites trained: entries in which all agree, and sums of their cases.

    Args:
        files: the sites' records.

    Raises:
        ValueError: if there is none, or if they differ where they must agree.
        FileNotFoundError: if one is missing.
    """
    found = [read_json(file, "record") for file in files]
    if not found:
        raise ValueError("records: expected the record of each site, such as OUTPUT_DIR/model_last.json, found none.")
    first = found[0]
    for file, record in zip(files, found, strict=True):
        for name in SHARED:
            if record.get(name) != first.get(name):
                raise ValueError(
                    f"{file}: {name}: expected {first.get(name)!r}, as in {files[0]}, found {record.get(name)!r}: "
                    "the sites' networks cannot be averaged."
                )
        if network_options(record) != network_options(first):
            raise ValueError(
                f"{file}: the network's options: expected {network_options(first)}, as in {files[0]}, found "
                f"{network_options(record)}: the sites' networks cannot be averaged."
            )
    licenses = list(dict.fromkeys(text for record in found for text in recorded_licenses(record)))
    alike = {name: value for name, value in first.items() if all(record.get(name) == value for record in found)}
    return {
        **{name: value for name, value in alike.items() if name not in OWN},
        "split": None,
        "split_sha256": None,
        "method": _joined(record["method"] for record in found),
        "code": _joined(record["code"] for record in found),
        "seed": first["seed"],
        "iteration": max(record["iteration"] for record in found),
        **{name: sum(record.get(name, 0) for record in found) for name in COUNTS},
        "synthetic": any(record.get("synthetic", False) for record in found),
        **({"license": licenses} if licenses else {}),
        "sites": len(found),
    }


def _joined(texts: Any) -> str:
    return ", ".join(dict.fromkeys(texts))
