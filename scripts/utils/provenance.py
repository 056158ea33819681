"""Where weights come from: a record beside each file of weights, ``model.json`` beside ``model.pt``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.utils.files import update_digest, write_text

__all__ = [
    "check_grid",
    "code_version",
    "describe_data",
    "file_digest",
    "is_synthetic",
    "read_record",
    "trained_preprocessing",
    "trained_size",
    "write_record",
]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PHANTOM_MARKER = "phantom.json"  # what the makers of synthetic cohorts leave in a cohort's folder


def file_digest(*paths: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; of several, of their contents one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        update_digest(digest, path)
    return digest.hexdigest()


def code_version(root: Path = ROOT) -> str:
    """The code's version: the commit, marked where files differ from it, or the metadata's version.

    Args:
        root: the bundle's folder. Only where it is a Git checkout itself, not merely inside one, the commit counts.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return f"commit {git('rev-parse', '--short', 'HEAD')}{' with changes' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here, or no checkout
    metadata = root / "configs" / "metadata.json"
    return f"version {json.loads(metadata.read_text(encoding='utf-8'))['version']}" if metadata.is_file() else "unknown"


def describe_data(
    layout: str, dataset_dir: str | Path | None = None, splits: str | Path | None = None
) -> dict[str, str | None]:
    """What a record says of the data: names and digests, never a path or a patient.

    Args:
        layout: the data set's layout.
        dataset_dir: its folder, of which nothing is said, or its datalist, which then is the split.
        splits: file of the split; None: the seeded split of the cases at hand.

    Returns:
        ``{"data", "split", "split_sha256"}``.
    """
    file = dataset_dir if str(dataset_dir).lower().endswith(".json") else splits
    if not file:
        return {"data": layout, "split": "seeded", "split_sha256": None}
    known = os.path.isfile(file)
    return {"data": layout, "split": Path(file).name, "split_sha256": file_digest(file) if known else None}


def is_synthetic(image: str | Path) -> bool:
    """Whether an image belongs to a cohort that code of this bundle made."""
    return any((folder / PHANTOM_MARKER).is_file() for folder in Path(image).resolve().parents)


def write_record(weights: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record of a file of weights beside it, with the file's digest and, unless given, the code's version."""
    path = Path(weights).with_suffix(".json")
    content = {"code": code_version(), **record, "sha256": file_digest(weights)}
    write_text(path, json.dumps(content, indent=4) + "\n")


def read_record(weights: str | Path) -> dict[str, Any] | None:
    """The record beside a file of weights; None where there is none, or where it is another file's.

    Raises:
        ValueError: if the record is no JSON object.
    """
    path = Path(weights).with_suffix(".json")
    if not path.is_file() or not os.path.isfile(weights):
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected the record of '{Path(weights).name}' as JSON, found {error}.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected the record of '{Path(weights).name}', found {type(record).__name__}.")
    if record.get("sha256") != file_digest(weights):
        logger.warning("%s is the record of other weights than %s: not used.", path, weights)
        return None
    return record


def trained_size(checkpoint: str | Path, default: int) -> int:
    """Side in pixels of the slices that weights were trained on, by their record.

    A network works at the size that it was trained at; at another it does far worse.

    Args:
        checkpoint: file of weights.
        default: the answer where the weights have no record.
    """
    record = read_record(checkpoint)
    if record and "image_size" in record:
        return int(record["image_size"])
    if os.path.isfile(checkpoint):
        logger.warning("'%s' has no record of its training: taking slices of %d px.", checkpoint, default)
    return default


def trained_preprocessing(checkpoint: str | Path) -> dict[str, Any]:
    """How slices came to the network's grid when weights were trained, by their record.

    Args:
        checkpoint: file of weights.

    Returns:
        ``pixel_spacing`` (see :class:`scripts.data.FitSlicesd`) and ``percentiles``, the two of each volume's
        intensities that became 0 and 1. Where the weights have no record, or one from before there was a choice, slices
        were squeezed to a square and their extremes became 0 and 1.

    Raises:
        ValueError: for a record that says something else than these may be.
    """
    record = read_record(checkpoint) or {}
    spacing, percentiles = record.get("pixel_spacing"), record.get("percentiles", [0, 100])
    if not (spacing is None or spacing == "aspect" or (_is_number(spacing) and spacing > 0)):
        raise ValueError(
            f"The record of '{checkpoint}': pixel_spacing: expected null, mm or 'aspect', found {spacing!r}."
        )
    two = isinstance(percentiles, list) and len(percentiles) == 2 and all(map(_is_number, percentiles))
    if not two or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(
            f"The record of '{checkpoint}': percentiles: expected two ascending numbers in [0, 100], "
            f"found {percentiles!r}."
        )
    return {"pixel_spacing": spacing, "percentiles": percentiles}


def check_grid(checkpoint: str | Path, image_size: int, preprocessing: Mapping[str, Any] | None = None) -> None:
    """Refuse weights that were trained on slices of another size, or that came about otherwise.

    Args:
        checkpoint: file of weights.
        image_size: side of the slices in pixels.
        preprocessing: ``pixel_spacing`` and ``percentiles``; None: not looked at.

    Raises:
        ValueError: if the weights' record says something else.
    """
    size = trained_size(checkpoint, int(image_size))
    if size != int(image_size):
        raise ValueError(
            f"Checkpoint '{checkpoint}' was trained on slices of {size} px, this run takes {image_size} px: "
            f"set --image_size {size}, or the overlay that it was trained with."
        )
    if preprocessing is None:
        return
    for name, trained in trained_preprocessing(checkpoint).items():
        if trained != preprocessing[name]:
            raise ValueError(
                f"Checkpoint '{checkpoint}' was trained with {name} {trained}, this run has {preprocessing[name]}: "
                f"add the overlay that it was trained with, such as configs/recipe.json."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
