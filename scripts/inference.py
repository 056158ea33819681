"""From files to label maps: which images to segment, the network's weights, and how results reach the disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import NibabelWriter
from monai.handlers import CheckpointLoader
from monai.utils import convert_to_numpy
from torch import nn

from scripts.data import acdc_records
from scripts.errors import one_line

__all__ = [
    "AtomicNibabelWriter",
    "NetworkLoader",
    "evaluation_records",
    "find_images",
    "find_labelled",
    "load_network_weights",
    "source_root",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".png", ".jpg", ".jpeg")
LABEL_ENDINGS = ("_gt", "_segmentation")
OTHER_ENDINGS = ("_seg", "_pred", "_prob", "_4d")  # what inference itself writes, and ACDC's whole cine sequences


def find_images(source: str | Path) -> list[dict[str, str]]:
    """List the images to segment.

    Args:
        source: an image file (NIfTI, MetaImage, PNG or JPEG); a folder, searched recursively without hidden files,
            label files (``*_gt``, ``*_segmentation``), label maps written by inference and ACDC's ``*_4d`` files; or
            a datalist JSON in the decathlon style, of which ``testing`` or ``test`` is taken, else ``validation``,
            else ``training``, with paths relative to the JSON's folder.

    Returns:
        Records ``{"image": absolute path}``; a folder's in sorted order, a datalist's in its own.

    Raises:
        FileNotFoundError: if the source or an image that a datalist names does not exist, or a folder has no image.
        ValueError: if the file is of another type, the datalist names no image, or two images of one folder differ
            only in their suffix: their results would have the same name.
    """
    path = Path(os.path.abspath(source))
    if path.is_dir():
        images = _images_in(path)
        if not images:
            raise FileNotFoundError(f"No image ({', '.join(IMAGE_SUFFIXES)}) in folder '{path}' or below.")
    elif not path.exists():
        raise FileNotFoundError(
            f"dataset_dir '{path}' does not exist: expected an image, a folder of images or a datalist JSON."
        )
    elif path.suffix.lower() == ".json":
        images = _images_of_datalist(path)
    elif _suffix(path):
        images = [path]
    else:
        raise ValueError(f"'{path}' is no image ({', '.join(IMAGE_SUFFIXES)}), folder or datalist JSON.")
    stems: dict[Path, Path] = {}
    for image in images:
        other = stems.setdefault(_stem(image), image)
        if other != image:
            raise ValueError(f"'{other}' and '{image}' differ only in their suffix: their results would collide.")
    return [{"image": str(image)} for image in images]


def find_labelled(source: str | Path) -> list[dict[str, str]]:
    """List the images that have a label file ``*_gt`` or ``*_segmentation`` beside them.

    Args:
        source: see :func:`find_images`.

    Returns:
        Records ``{"image": path, "label": path}``; images without a label are left out.

    Raises:
        FileNotFoundError: if no image has a label, or as :func:`find_images`.
        ValueError: as :func:`find_images`.
    """
    records = []
    for record in find_images(source):
        stem = str(_stem(Path(record["image"])))
        candidates = (f"{stem}{ending}{suffix}" for ending in LABEL_ENDINGS for suffix in IMAGE_SUFFIXES)
        label = next((name for name in candidates if os.path.isfile(name)), None)
        if label:
            records.append({**record, "label": label})
    if not records:
        raise FileNotFoundError(f"No image in '{source}' has a label (*_gt, *_segmentation) beside it.")
    return records


def evaluation_records(dataset_dir: str | Path, splits: str | Path, part: str) -> list[dict[str, str]]:
    """List the labelled cases to score.

    Args:
        dataset_dir: folder of the data set.
        splits: JSON file of the split's patient lists; not read where ``part`` is ``all``.
        part: a part of the split (``val``, ``test``, ``train``), or ``all``: every labelled image in the folder.

    Returns:
        Records with ``image`` and ``label``.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the split has no such part or the part is empty.
    """
    records = find_labelled(dataset_dir) if part == "all" else acdc_records(dataset_dir, splits, part)
    if not records:
        raise ValueError(f"Part '{part}' of {splits} is empty: nothing to evaluate.")
    return records


def source_root(source: str | Path) -> str:
    """Folder below which all images of a source lie; results repeat the folders between it and an image.

    Args:
        source: see :func:`find_images`; may be missing, so that a configuration can be read without data.

    Returns:
        The source itself if it is a folder or missing, else the innermost folder that holds all its images.
    """
    path = os.path.abspath(source)
    if not os.path.isfile(path):
        return path
    return os.path.commonpath([os.path.dirname(record["image"]) for record in find_images(path)])


def load_network_weights(network: nn.Module, path: str | Path) -> None:
    """Load a network's state_dict, all of it or nothing.

    Args:
        network: takes the weights, wherever it is; unchanged if they do not fit.
        path: file with the state_dict alone, as training writes ``model.pt``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such state_dict, or of a network with other classes, channels or layers.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No checkpoint '{path}': train a network first or name a file with --checkpoint.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"Checkpoint '{path}' cannot be read as tensors: {one_line(error)}") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        content = ", ".join(map(str, weights)) if isinstance(weights, Mapping) else type(weights).__name__
        raise ValueError(
            f"Checkpoint '{path}' holds {content[:100]}, expected a network's state_dict alone: "
            "checkpoint.pt serves to resume training, model.pt beside it holds the network."
        )
    expected = network.state_dict()
    strangers = sorted(expected.keys() ^ weights.keys())
    if strangers:
        raise ValueError(
            f"Checkpoint '{path}' is of another network: {len(strangers)} entries are in only one of the two, "
            f"the first '{strangers[0]}'."
        )
    wrong = [name for name in expected if expected[name].shape != weights[name].shape]
    if wrong:
        # The last layer gives the classes, the first takes the channels; whatever else differs is named as it is.
        found, wanted = (list(tensors[wrong[-1]].shape) for tensors in (weights, expected))
        what = f"'{wrong[-1]}' has shape {found}, expected {wanted}"
        if wrong[-1] == list(expected)[-1]:
            what = f"it has {found[0]} classes, the network {wanted[0]} (num_classes)"
        raise ValueError(f"Checkpoint '{path}' does not fit the network: {what}.")
    network.load_state_dict(weights)


class NetworkLoader(CheckpointLoader):
    """Handler that loads the network when the engine starts, see :func:`load_network_weights`.

    Args:
        load_path: file with the network's state_dict.
        network: takes the weights.
    """

    def __init__(self, load_path: str, network: nn.Module) -> None:
        super().__init__(load_path=load_path, load_dict={"network": network})

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Args:
            engine: the engine that starts.
        """
        load_network_weights(self.load_dict["network"], self.load_path)
        self.logger.info("Loaded the network from %s", self.load_path)


class AtomicNibabelWriter(NibabelWriter):
    """NIfTI writer for ``SaveImaged``: a file is there whole or not at all, on exactly the image's grid.

    MONAI drops trailing axes of length one; here a volume of a single slice stays a volume.
    """

    def set_data_array(
        self, data_array: Any, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        """Take the array, channels last; see :meth:`monai.data.NibabelWriter.set_data_array`."""
        super().set_data_array(data_array, channel_dim=channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Take the affine, free of what inverting the preprocessing rounded; see :meth:`NibabelWriter.set_metadata`."""
        super().set_metadata(meta_dict, resample=resample, **options)
        original = convert_to_numpy((meta_dict or {}).get("original_affine", self.affine))
        if np.allclose(convert_to_numpy(self.affine), original):
            self.affine = original

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write to a hidden name in the same folder, then rename; see :meth:`monai.data.NibabelWriter.write`."""
        target = Path(filename)
        temporary = target.with_name(f".{os.getpid()}.{target.name}")  # keeps the suffix, which sets the format
        try:
            super().write(temporary, verbose=False, **obj_kwargs)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        if verbose:
            logger.info("Wrote %s", target)


def _suffix(path: Path) -> str:
    """The image suffix of a file name, empty if it has none."""
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _stem(path: Path) -> Path:
    """The path without its image suffix."""
    return path.with_name(path.name[: len(path.name) - len(_suffix(path))])


def _images_in(folder: Path) -> list[Path]:
    """Images in a folder and below, sorted by path."""
    images = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        other = _stem(path).name.lower().endswith(LABEL_ENDINGS + OTHER_ENDINGS)
        if _suffix(path) and not hidden and not other and path.is_file():
            images.append(path)
    return images


def _images_of_datalist(path: Path) -> list[Path]:
    """Images that a datalist JSON names."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Datalist '{path}' is no JSON: {error}") from None
    keys = ("testing", "test", "validation", "training")
    entries = next((parts[key] for key in keys if parts.get(key)), None) if isinstance(parts, dict) else None
    if entries is None:
        raise ValueError(f"Datalist '{path}' lists no images: expected one of the keys {', '.join(keys)}.")
    images = []
    for entry in entries:
        name = entry.get("image") if isinstance(entry, dict) else entry
        if not isinstance(name, str):
            raise ValueError(f"Datalist '{path}': expected a path, or one under 'image', found the entry {entry}.")
        images.append(Path(os.path.abspath(path.parent / name)))
        if not images[-1].is_file():
            raise FileNotFoundError(f"Datalist '{path}' names '{images[-1]}', which does not exist.")
    return images
