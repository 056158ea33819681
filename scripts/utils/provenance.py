"""Provenance of weights: a record for each file of weights, ``model.json`` for ``model.pt``."""

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
from scripts.utils.validation import read_json

__all__ = [
    "check_grid",
    "code_version",
    "file_digest",
    "is_synthetic",
    "read_record",
    "trained_options",
    "trained_size",
    "write_record",
]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PHANTOM_MARKER = "phantom.json"  # a file in the folder of every synthetic cohort


def file_digest(*paths: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; for several files, of their concatenated contents."""
    digest = hashlib.sha256()
    for path in paths:
        update_digest(digest, path)
    return digest.hexdigest()


def code_version(root: Path = ROOT) -> str:
    """The code's version: the commit, marked if files differ from it, or the metadata's version.

    Args:
        root: the bundle's folder. The commit is used only if it is the top folder of a Git checkout.
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
        pass  # no git, or not a checkout
    metadata = root / "configs" / "metadata.json"
    return f"version {json.loads(metadata.read_text(encoding='utf-8'))['version']}" if metadata.is_file() else "unknown"


def is_synthetic(image: str | Path) -> bool:
    """Whether an image belongs to a synthetic cohort of this bundle."""
    return any((folder / PHANTOM_MARKER).is_file() for folder in Path(image).resolve().parents)


def write_record(weights: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record of a file of weights, with the file's digest and, unless given, the code's version."""
    path = Path(weights).with_suffix(".json")
    code = {} if "code" in record else {"code": code_version()}  # asks git
    content = {**code, **record, "sha256": file_digest(weights)}
    write_text(path, json.dumps(content, indent=4) + "\n")


def read_record(weights: str | Path) -> dict[str, Any] | None:
    """The record of a file of weights, checked; None if there is none.

    Raises:
        ValueError: if the record does not follow its schema (:mod:`scripts.utils.schemas`), or its digest is not that
            of the weights: one of the two was changed or damaged, so the record is not reliable.
    """
    path = Path(weights).with_suffix(".json")
    if not path.is_file() or not os.path.isfile(weights):
        return None
    record: dict[str, Any] = read_json(path, "record")
    if (digest := file_digest(weights)) != record.get("sha256"):
        raise ValueError(
            f"{path}: is the record of other weights than '{weights}', whose SHA-256 is {digest[:12]}...: one of the "
            "two was changed or damaged. Copy both anew, or remove the record of weights that you trust."
        )
    return record


def trained_size(checkpoint: str | Path, default: int) -> int:
    """Side in pixels of the slices that weights were trained on, according to their record.

    At another size a network performs much worse.

    Args:
        checkpoint: file of weights.
        default: the result if the weights have no record.
    """
    record = read_record(checkpoint)
    if record and "image_size" in record:
        return int(record["image_size"])
    if os.path.isfile(checkpoint):
        logger.warning("'%s' has no record of its training: taking slices of %d px.", checkpoint, default)
    return default


PROTOCOL: dict[str, Any] = {
    "pixel_spacing": None,
    "percentiles": [0, 100],
    "mirroring": False,
    "largest_component": False,
    "slice_axis": "thickest",
}
"""Defaults of inference for options that the record lacks: the paper's protocol."""


def trained_options(checkpoint: str | Path) -> dict[str, Any]:
    """The options of inference in the record of weights.

    Args:
        checkpoint: file of weights.

    Returns:
        ``pixel_spacing`` (see :class:`scripts.data.FitSlicesd`); ``percentiles``, the two percentiles of each volume's
        intensities that become 0 and 1; ``mirroring`` and ``largest_component`` (see :mod:`scripts.postprocessing`);
        ``slice_axis``, one of :data:`scripts.data.axis.AXES`. Missing options are as in :data:`PROTOCOL`.
    """
    record = read_record(checkpoint) or {}
    return {name: record.get(name, value) for name, value in PROTOCOL.items()}


def check_grid(checkpoint: str | Path, image_size: int, options: Mapping[str, Any] | None = None) -> None:
    """Refuse weights that were trained on slices of another size or with other options.

    Args:
        checkpoint: file of weights.
        image_size: side of the slices in pixels.
        options: the options of :func:`trained_options` that must be as in training; None: not checked.

    Raises:
        ValueError: if the weights' record differs.
    """
    size = trained_size(checkpoint, int(image_size))
    if size != int(image_size):
        raise ValueError(
            f"Checkpoint '{checkpoint}' was trained on slices of {size} px, this run takes {image_size} px: "
            f"set --image_size {size}, or the overlay that it was trained with."
        )
    trained = trained_options(checkpoint)
    for name, value in (options or {}).items():
        if trained[name] != value:
            raise ValueError(
                f"Checkpoint '{checkpoint}' was trained with {name} {trained[name]}, this run has {value}: "
                "add the overlay that it was trained with, such as configs/recipe.json."
            )
