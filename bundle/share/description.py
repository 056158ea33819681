"""A packed bundle's ``metadata.json``: the repository's, adapted to a data set, its weights and their evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.share.card import Evaluation
from bundle.workflows import ROOT
from scripts.utils.licences import SYNTHETIC, UNSTATED, licenses_line, recorded_licenses, unique_licenses

__all__ = ["describe"]

PACKAGES = ("required_packages_version", "dicom_packages_version")


def describe(
    own: Mapping[str, Any],
    overlay: Mapping[str, Any],
    record: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    version: str | None,
    changes: str | None,
) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a bundle, and the licences of its weights.

    Args:
        own: the data set's own metadata, which replace the repository's, from ``bundle/share/metadata``.
        overlay: the data set's config values.
        record: the record of the weights.
        evaluations: evaluations of the weights.
        version: version of the bundle; None: the repository's.
        changes: entry of the changelog for that version.

    Raises:
        ValueError: if the version is not in the changelog, or is there although ``changes`` is given.
    """
    base = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    pins = _pins()
    metadata = {**base, **own}
    if "references" in own:  # the data set's own reference is the last one
        metadata["references"] = [*base["references"][:-1], *own["references"]]
    if record.get("synthetic"):
        kind = metadata["data_source"].partition(",")[0]
        metadata["data_source"] = f"synthetic images made by this bundle's code, in the layout of: {kind}"
        metadata["data_license"] = SYNTHETIC
        metadata["description"] += (
            " These weights were trained on synthetic images only: they show that the bundle works."
        )
    if (network := record.get("network", "UNet")) != "UNet":
        metadata["description"] += f" These weights are of another network, {network}, trained by {record['method']}."
    licenses = _licenses(metadata["data_license"], recorded_licenses(record))
    metadata["data_license"] = licenses_line(licenses)
    metadata["version"] = version or base["version"]
    if changes:
        if metadata["version"] in base["changelog"]:
            raise ValueError(
                f"version {metadata['version']} is already in the changelog: use a new --version for these --changes."
            )
        metadata["changelog"] = {metadata["version"]: changes, **base["changelog"]}
    if metadata["version"] not in metadata["changelog"]:
        raise ValueError(
            f"version {version} is not in the changelog of configs/metadata.json: describe it by --changes."
        )
    metadata |= {
        "monai_version": pins["monai"],
        "pytorch_version": pins["torch"],
        "numpy_version": pins["numpy"],
        **{key: {package: pins[package] for package in base[key]} for key in PACKAGES},
    }
    if network == "SAM":
        metadata["required_packages_version"]["transformers"] = pins["transformers"]
    classes = {"0": "background", **overlay["class_names"]}
    listed = ", ".join(f"{number}: {title}" for number, title in classes.items())
    metadata["label_classes"] = f"single channel, {listed}"
    metadata["pred_classes"] = f"{len(classes)} channels of logits, {listed}"
    metadata["eval_metrics"] = {key: value for item in evaluations for key, value in item.metrics().items()}
    channels = overlay["in_channels"]
    image = metadata["network_data_format"]["inputs"]["image"]
    image["num_channels"] = channels
    photographs = overlay["output_ext"] == ".png"
    several = ["R", "G", "B"] if photographs else [f"channel {number}" for number in range(channels)]
    image["channel_def"] = {str(i): name for i, name in enumerate(several if channels > 1 else ["image"])}
    if photographs:
        image |= {"modality": "photograph", "format": "rgb" if channels == 3 else "magnitude"}
    elif overlay["layout"] == "custom":
        image["modality"] = "n/a"  # CT, MR: unknown
    # MONAI Label and 3D Slicer look up a structure's colour by the name in their tables, the first synonym.
    synonyms = overlay.get("class_synonyms", {})
    named = {number: synonyms.get(number, [title])[0] for number, title in classes.items()}
    metadata["network_data_format"]["outputs"]["pred"] |= {"num_channels": len(classes), "channel_def": named}
    if network == "EfficientUNet":  # six levels, the U-Net has five
        for data in (image, metadata["network_data_format"]["outputs"]["pred"]):
            data["spatial_shape"] = ["32*n", "32*n"]
    return metadata, licenses


def _licenses(known: str, recorded: list[str]) -> list[str]:
    """The licences of the weights: those in their record, completed by the known licence of the data."""
    if not recorded or known.startswith(UNSTATED):
        return recorded or [known]
    data, *weights = recorded
    return unique_licenses(known, *([] if data.startswith(UNSTATED) else [data]), *weights)


def _pins() -> dict[str, str]:
    """Exact versions from requirements.txt, by package."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {package: version for package, _, version in pairs if version}
