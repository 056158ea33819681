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

from scripts.data.axis import THICKEST, check_axis
from scripts.data.records import missing_cases
from scripts.utils.files import update_digest, write_text

__all__ = [
    "check_size",
    "code_version",
    "describe_data",
    "file_digest",
    "is_synthetic",
    "read_record",
    "trained_axis",
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
    layout: str,
    dataset_dir: str | Path | None = None,
    splits: str | Path | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """What a record says of the data: names and digests, never a path, nor a patient but those that public data names.

    Args:
        layout: the data set's layout.
        dataset_dir: its folder, of which nothing is said, or its datalist, which then is the split.
        splits: file of the split; None: the seeded split of the cases at hand.
        allow_missing: whether cases of the split may be missing from the folder.

    Returns:
        ``{"data", "split", "split_sha256"}`` and, where cases may be and are missing, ``"missing_cases"``: their names,
        or for data of one's own their number.
    """
    if allow_missing and (missing := missing_cases(layout, str(dataset_dir), splits)):
        named = {"missing_cases": len(missing) if layout == "custom" else missing}
        return {**describe_data(layout, dataset_dir, splits), **named}
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


def trained_axis(checkpoint: str | Path) -> str:
    """The axis along which volumes were cut into the slices that weights were trained on, by their record.

    Args:
        checkpoint: file of weights.

    Returns:
        One of :data:`scripts.data.axis.AXES`; ``thickest`` where no record says.

    Raises:
        ValueError: if the record says something else.
    """
    record = read_record(checkpoint) or {}
    return check_axis(record.get("slice_axis", THICKEST), f"{Path(checkpoint).with_suffix('.json')}: slice_axis")


def check_size(checkpoint: str | Path, image_size: int) -> None:
    """Refuse weights that were trained on slices of another size, see :func:`trained_size`.

    Raises:
        ValueError: if the weights' record gives another size than ``image_size`` pixels.
    """
    size = trained_size(checkpoint, int(image_size))
    if size != int(image_size):
        raise ValueError(
            f"Checkpoint '{checkpoint}' was trained on slices of {size} px, this run takes {image_size} px: "
            f"set --image_size {size}, or the overlay that it was trained with."
        )
