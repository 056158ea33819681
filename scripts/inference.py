"""From files to label maps: which images to segment, and the network's weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn

from scripts.data import dataset_records
from scripts.data.custom import IMAGE_SUFFIXES, custom_cases, image_files, name_of
from scripts.data.datalist import read_datalist
from scripts.errors import one_line
from scripts.provenance import check_size

__all__ = [
    "NetworkLoader",
    "evaluation_records",
    "find_images",
    "find_labelled",
    "load_network_weights",
    "source_root",
]


def find_images(source: str | Path) -> list[dict[str, str]]:
    """List the images to segment.

    Args:
        source: an image file (NIfTI, MetaImage, PNG or JPEG); a folder, whose images are those of
            :func:`scripts.data.custom.image_files`: no labels, nor what inference writes; or a datalist JSON, see
            :func:`scripts.data.datalist.read_datalist`, of which ``test`` and ``testing`` are taken, else
            ``validation``, else ``training``.

    Returns:
        Records ``{"image": absolute path}``; a folder's in sorted order, a datalist's in its own.

    Raises:
        FileNotFoundError: if the source does not exist, or a folder has no image.
        ValueError: if the file is of another type, the datalist names no image or one that does not exist, or two
            images of one folder differ only in their suffix: their results would have the same name.
    """
    path = Path(os.path.abspath(source))
    if path.is_dir():
        images = image_files(path)
        if not images:
            raise FileNotFoundError(f"No image ({', '.join(IMAGE_SUFFIXES)}) in folder '{path}' or below.")
    elif not path.exists():
        raise FileNotFoundError(
            f"dataset_dir '{path}' does not exist: expected an image, a folder of images or a datalist JSON."
        )
    elif path.suffix.lower() == ".json":
        images = _images_of_datalist(path)
    elif name_of(path):
        images = [path]
    else:
        raise ValueError(f"'{path}' is no image ({', '.join(IMAGE_SUFFIXES)}), folder or datalist JSON.")
    names: dict[str | None, Path] = {}
    for image in images:
        other = names.setdefault(name_of(image), image)
        if other != image:
            raise ValueError(f"'{other}' and '{image}' differ only in their suffix: their results would collide.")
    return [{"image": str(image)} for image in images]


def find_labelled(source: str | Path) -> list[dict[str, str]]:
    """List the images that have a label.

    Args:
        source: a folder, see :func:`scripts.data.custom.custom_cases`, or a datalist, all parts of which count.

    Returns:
        Records ``{"image": path, "label": path, "case": name}``; images without a label are left out.

    Raises:
        FileNotFoundError: if there is no such folder or file, or no image has a label.
        ValueError: as the folder or the datalist demands.
    """
    path = Path(os.path.abspath(source))
    if path.suffix.lower() == ".json":
        lists = read_datalist(path).values()
    elif path.is_dir():
        lists = custom_cases(path).values()
    else:
        raise FileNotFoundError(f"dataset_dir '{path}' is neither a folder of images nor a datalist JSON.")
    records = [record for of_list in lists for record in of_list if "label" in record]
    if not records:
        raise FileNotFoundError(f"No image in '{path}' has a label, such as NAME_gt or NAME_segmentation beside NAME.")
    return records


def evaluation_records(
    layout: str, dataset_dir: str | Path, part: str, splits: str | Path | None = None
) -> list[dict[str, str]]:
    """List the labelled cases to score.

    Args:
        layout: of the data set, see :func:`scripts.data.dataset_records`; of no account where ``part`` is ``all``.
        dataset_dir: folder of the data set, or its datalist.
        part: a part of the split (``val``, ``test``, ``train``), or ``all``: every labelled image, see
            :func:`find_labelled`.
        splits: JSON file of the split; not read where ``part`` is ``all``.

    Returns:
        Records with ``image`` and ``label``.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the split has no such part or the part is empty.
    """
    records = find_labelled(dataset_dir) if part == "all" else dataset_records(layout, dataset_dir, part, splits)
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
        if wrong == [next(iter(expected))] and len(found) == len(wanted) == 4:
            what = f"it takes {found[1]} channels, the network {wanted[1]} (in_channels)"
        if wrong[-1] == list(expected)[-1]:
            what = f"it has {found[0]} classes, the network {wanted[0]} (num_classes)"
        raise ValueError(f"Checkpoint '{path}' does not fit the network: {what}.")
    network.load_state_dict(weights)


class NetworkLoader(CheckpointLoader):
    """Handler that loads the network when the engine starts, see :func:`load_network_weights`.

    Args:
        load_path: file with the network's state_dict.
        network: takes the weights.
        image_size: side of the slices in pixels; weights whose record names another are refused, see
            :func:`scripts.provenance.check_size`. None: not looked at.
    """

    def __init__(self, load_path: str, network: nn.Module, image_size: int | None = None) -> None:
        super().__init__(load_path=load_path, load_dict={"network": network})
        self.image_size = image_size

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Args:
            engine: the engine that starts.
        """
        if self.image_size is not None:
            check_size(self.load_path, self.image_size)
        load_network_weights(self.load_dict["network"], self.load_path)
        self.logger.info("Loaded the network from %s", self.load_path)


def _images_of_datalist(path: Path) -> list[Path]:
    """Images of the first part that a datalist has some of, whether their labels are there or not."""
    for part in ("test", "val", "train"):
        if records := read_datalist(path, only=part, labels=False).get(part):
            return [Path(record["image"]) for record in records]
    raise ValueError(f"{path}: the datalist names no image.")
