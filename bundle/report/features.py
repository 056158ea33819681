"""Activation maps and features of a network, computed once for its weights and cached.

The features are the input of the network's last layer: one vector per pixel, at the size of the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from monai.visualize import GradCAM
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from bundle.report.runs import Run
from scripts.data import SliceDataset
from scripts.handlers.weights import load_network_weights
from scripts.utils.files import replacing

__all__ = ["CAM_LAYER", "activation_maps", "densities", "embedding"]

CAM_LAYER = "decoder.1"
"""The layer of Grad-CAM: a quarter of the image's size in the U-Net."""

FORMAT = 1  # increase when the cached data change their meaning
SLICES = 48
PIXELS = 1000  # pixels per class and side in the densities, and over all classes in the embedding
Arrays = dict[str, NDArray[Any]]


def activation_maps(run: Run, record: dict[str, str]) -> Arrays:
    """Gradient-weighted class activation maps (Grad-CAM) of the slice of a case with most foreground.

    A class's score is the sum of its logits over the pixels predicted as the class or, without any, over those with its
    label (Seg-Grad-CAM: Vinogradova et al., AAAI 2020).

    Args:
        run: the network.
        record: the case, with its label.

    Returns:
        ``image`` ``[C, H, W]`` in [0, 1], ``label`` ``[H, W]`` and ``maps`` ``[foreground classes, H, W]`` in [0, 1],
        at the network's size.

    Raises:
        ValueError: if the network has no layer :data:`CAM_LAYER`.
    """
    slices = _slices(run, [record])

    def compute() -> Arrays:
        labels = [slices[i]["label"][0] for i in range(len(slices))]
        item = slices[int(np.argmax([(label > 0).sum() for label in labels]))]
        network = _network(run)
        if CAM_LAYER not in dict(network.named_modules()):
            raise ValueError(f"the network has no layer {CAM_LAYER}.")
        image, label = item["image"][None].to(run.get("device")), item["label"][0]
        with torch.no_grad():
            prediction = network(image).argmax(dim=1)[0].cpu()
        scored = _Scored(network)
        # MONAI's default scaling inverts a map
        cam = GradCAM(scored, f"network.{CAM_LAYER}", postprocessing=_to_unit)
        maps = []
        for number in range(1, run.get("num_classes")):
            where = prediction == number
            scored.where = (where if where.any() else label == number).to(image.device)
            maps.append(cam(image, class_idx=number)[0, 0].cpu().numpy())
        return {"image": item["image"].numpy(), "label": label.numpy(), "maps": np.stack(maps)}

    return _kept(run, "activation", slices, compute)


def densities(run: Run) -> Arrays:
    """Densities of labelled and of unlabelled training images' features, class by class.

    A pixel's class is the network's prediction, for labelled and unlabelled images, so that no hidden label is used.
    The features of a class are projected onto the first principal component of both sides together and scaled to unit
    variance; the densities are Gaussian kernel estimates (Scott's rule).

    Returns:
        ``classes`` ``[K]``, their numbers; ``grid`` ``[K, G]``, ``labeled`` and ``unlabeled`` ``[K, G]``; ``overlap``
        ``[K]``, the common area of both: 1 if they are equal.

    Raises:
        ValueError: if all training images are labelled, or if no class has enough pixels on both sides.
        FileNotFoundError: if training images are missing.
    """
    dataset: SliceDataset = run.get("train#dataset")
    if not len(dataset.unlabeled):
        raise ValueError("all training images are labelled.")

    def compute() -> Arrays:
        network = _network(run)
        sides = []
        for indices in (dataset.labeled, dataset.unlabeled):
            chosen = np.random.default_rng(0).permutation(indices)[:SLICES]
            features, predicted = _features(network, [dataset[int(i)]["image"] for i in chosen], run.get("device"))
            sides.append((features, predicted))
        found: dict[str, list[Any]] = {key: [] for key in ("classes", "grid", "labeled", "unlabeled", "overlap")}
        for number in range(1, run.get("num_classes")):
            pixels = [_some(features[classes == number], PIXELS) for features, classes in sides]
            if min(map(len, pixels)) < 20:
                continue
            joined = np.concatenate(pixels)
            centre = joined.mean(axis=0)
            axis = np.linalg.svd(joined - centre, full_matrices=False)[2][0]
            scale = max(float(((joined - centre) @ axis).std()), 1e-9)
            values = [(side - centre) @ axis / scale for side in pixels]
            grid = np.linspace(min(v.min() for v in values) - 0.5, max(v.max() for v in values) + 0.5, 160)
            curves = [gaussian_kde(side)(grid) for side in values]
            overlap = trapezoid(np.minimum(*curves), grid)
            for key, value in zip(found, (number, grid, *curves, overlap), strict=True):
                found[key].append(value)
        if not found["classes"]:
            raise ValueError("no class is predicted on twenty pixels of both labelled and unlabelled images.")
        return {key: np.array(values) for key, values in found.items()}

    return _kept(run, "densities", dataset, compute)


def embedding(run: Run, records: Sequence[dict[str, str]]) -> Arrays:
    """Pixels of the evaluated images in the plane, by t-SNE of their features; equally many of each class of the label.

    Returns:
        ``points`` ``[N, 2]`` and ``classes`` ``[N]``.

    Raises:
        ValueError: if there are too few pixels.
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    from sklearn.manifold import TSNE

    dataset = _slices(run, records)

    def compute() -> Arrays:
        labels = [dataset[i]["label"][0].numpy() for i in range(len(dataset))]
        busy = [i for i, label in enumerate(labels) if label.any()]
        chosen = np.random.default_rng(0).permutation(busy)[:SLICES].astype(int)
        features, _ = _features(_network(run), [dataset[int(i)]["image"] for i in chosen], run.get("device"))
        classes = np.concatenate([labels[i].ravel() for i in chosen]) if len(chosen) else np.empty(0, int)
        count = run.get("num_classes")
        picked = [np.flatnonzero(classes == number) for number in range(count)]
        picked = [_some(of_class, PIXELS // count) for of_class in picked]
        every = np.concatenate(picked)
        if len(every) < 50:
            raise ValueError(f"the labels show {len(every)} pixels.")
        values = features[every]
        values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
        points = TSNE(random_state=0, perplexity=min(30, len(every) // 4), init="pca").fit_transform(values)
        return {"points": points.astype(np.float32), "classes": classes[every].astype(np.uint8)}

    return _kept(run, "embedding", dataset, compute)


def _kept(run: Run, name: str, data: SliceDataset, compute: Callable[[], Arrays]) -> Arrays:
    """The cached result for these data, weights and settings, computed if missing."""
    content = [volume.image_file.name for volume in data.volumes]  # digests of the files' content
    digest = hashlib.sha256(repr([FORMAT, run.settings, name, content]).encode()).hexdigest()
    path = Path(run.get("cache_dir")) / "report" / f"{digest}.npz"
    if not path.is_file():
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in compute().items()}
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
    with np.load(path, allow_pickle=False) as kept:
        return {key: kept[key] for key in kept.files}


def _network(run: Run) -> nn.Module:
    """The network with its weights, in evaluation mode, on the run's device."""
    network: nn.Module = run.get("network_def")
    load_network_weights(network, run.weights)
    return network.to(run.get("device")).eval()


def _slices(run: Run, records: Sequence[dict[str, str]]) -> SliceDataset:
    """Slices of cases as in training, with their labels."""
    preprocessing: Compose = run.get("train#preprocessing")
    return SliceDataset(records, preprocessing, run.get("cache_dir"), run.get("num_classes"))


@torch.no_grad()
def _features(network: nn.Module, images: Sequence[Tensor], device: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Input of the last layer, ``[pixels, channels]``, and predicted class ``[pixels]`` of images ``[C, H, W]``.

    Raises:
        ValueError: if the network has no layer ``head``.
    """
    head = dict(network.named_children()).get("head")
    if head is None:
        raise ValueError("the network has no last layer called head.")
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].cpu()))
    try:
        batches = torch.stack(list(images)).split(8)
        predicted = torch.cat([network(batch.to(device)).argmax(dim=1).cpu() for batch in batches])
    finally:
        hook.remove()
    features = torch.cat(caught).movedim(1, -1).flatten(0, 2)
    return features.numpy().astype(np.float64), predicted.flatten().numpy()


def _some(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """At most ``count`` rows, drawn at random with a fixed seed."""
    return rows[np.random.default_rng(0).permutation(len(rows))[:count]]


class _Scored(nn.Module):
    """A network whose logits are masked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.where: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]``, 0 outside the mask ``[H, W]``."""
        logits: Tensor = self.network(image)
        return logits if self.where is None else logits * self.where


def _to_unit(maps: Tensor) -> Tensor:
    """Scaled to [0, 1] by the largest value of each map ``[B, 1, H, W]``; a map of zeros is unchanged."""
    return maps.detach() / maps.detach().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-9)
