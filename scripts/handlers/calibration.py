"""Calibration in an evaluation: errors of the probabilities, and fits on validation cases for later results."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.metrics import CalibrationErrorMetric
from monai.transforms import Transform
from torch import Tensor

from scripts.data import VolumeDataset
from scripts.handlers.quality import PASSES, ViewPasses
from scripts.metrics import dice
from scripts.quality.agreement import agreement
from scripts.quality.fit import DiceFit, fit_dice
from scripts.quality.images import image_features, training_ranges
from scripts.quality.record import Calibration, read_calibration, write_calibration
from scripts.quality.temperature import contour_band, fit_temperature, near_foreground
from scripts.utils.files import write_text
from scripts.utils.provenance import read_record
from scripts.utils.threads import in_threads

__all__ = ["CalibrationFit", "CalibrationReport"]

logger = logging.getLogger(__name__)

VOXELS = 20_000
"""Maximum number of voxels per case and region for the temperature and the errors."""


class _Voxels:
    """Logits and true classes of sampled voxels of every case of an evaluation, by region.

    ``foreground``: near the foreground of prediction or label; ``contours``: near the label's contours; ``all``:
    anywhere. The engine's output must have ``logits`` and ``label`` on the image's own grid, and ``image`` on the
    network's, whose slices are also the regions'.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all cases."""
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {"foreground": [], "contours": [], "all": []}
        self.generator = torch.Generator().manual_seed(0)

    def add(self, item: Mapping[str, Any]) -> None:
        """Sample the voxels of one case, at most :data:`VOXELS` of each region."""
        logits = torch.as_tensor(item["logits"]).float().cpu()
        label = torch.as_tensor(item["label"])[0].long().cpu()
        if label.ndim == 2:
            logits, label = logits[..., None], label[..., None]
        axis = _slice_axis(item)
        logits, label = logits.movedim(axis - 3, -1), label.movedim(axis - 3, -1)
        near = near_foreground(logits.argmax(0), label)
        for region, mask in (("foreground", near), ("contours", contour_band(label)), ("all", torch.ones_like(near))):
            index = mask.flatten().nonzero()[:, 0]
            index = index[torch.randperm(len(index), generator=self.generator)[:VOXELS]]
            if len(index):
                self.parts[region].append((logits.flatten(1)[:, index].T, label.flatten()[index]))

    def region(self, name: str) -> tuple[Tensor, Tensor]:
        """Logits ``[N, K]`` and classes ``[N]`` of all cases.

        Raises:
            ValueError: if no case has such a voxel.
        """
        if not self.parts[name]:
            raise ValueError(f"no evaluated case has voxels of region '{name}'.")
        logits, label = zip(*self.parts[name], strict=True)
        return torch.cat(logits), torch.cat(label)

    def errors(self, temperature: float) -> dict[str, float]:
        """Expected calibration error of the confidence in each region, over all cases."""
        found = {}
        for name in (name for name, cases in self.parts.items() if cases):
            logits, label = self.region(name)
            confidence, pred = (logits / temperature).softmax(1).max(1)
            metric = CalibrationErrorMetric()
            metric(y_pred=confidence[None, None], y=(pred == label)[None, None])
            found[name] = float(torch.as_tensor(metric.aggregate()))
        return found


def _slice_axis(item: Mapping[str, Any]) -> int:
    """The axis of a volume's own grid along which the network's slices lie; 2, the last, without positions.

    The network's grid has its slices last. Both grids have the same axes in space, in another order.
    """
    image, logits = item.get("image"), item["logits"]
    if not (isinstance(image, MetaTensor) and isinstance(logits, MetaTensor) and logits.ndim == image.ndim == 4):
        return 2
    own = torch.as_tensor(logits.affine)[:3, :3].double().cpu()
    through = torch.as_tensor(image.affine)[:3, 2].double().cpu()
    cosines = through @ own / own.norm(dim=0)
    return int(cosines.abs().argmax())


class CalibrationReport:
    """Handler that measures the calibration error of the probabilities.

    It writes ``calibration.json`` to ``output_dir``: the expected calibration error of the most probable class (Guo et
    al., by MONAI's ``CalibrationErrorMetric`` with 20 bins), the difference between confidence and accuracy, by region,
    before and after division by the temperature in the weights' record. Attach it after :class:`CalibrationFit`.

    Args:
        output_dir: folder of the evaluation.
        checkpoint: file of the weights.
    """

    def __init__(self, output_dir: str | Path, checkpoint: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.checkpoint = checkpoint
        self.voxels = _Voxels()

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator that decollates; its output must have ``logits`` and ``label``."""
        engine.add_event_handler(Events.STARTED, self.voxels.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            self.voxels.add(item)

    def _write(self) -> None:
        temperature = read_calibration(self.checkpoint).temperature
        before, after = self.voxels.errors(1.0), self.voxels.errors(temperature)
        content = {"temperature": temperature, "expected_calibration_error": {"before": before, "after": after}}
        write_text(self.output_dir / "calibration.json", json.dumps(content, indent=4) + "\n")
        regions = ", ".join(f"{before[region]:.4f} -> {after[region]:.4f} {region}" for region in before)
        how = f"with temperature {temperature:.2f}" if temperature != 1 else "no temperature is fitted"
        print(f"expected calibration error ({how}): {regions}")


class CalibrationFit:
    """Handler that fits temperature and predicted Dice on validation cases and stores them in the weights' record.

    The engine's output must hold for each case ``pred`` and ``label``, label maps on the image's own grid, and
    ``logits`` on the same grid.

    Args:
        inferer: see :class:`scripts.handlers.quality.ViewPasses`, which is attached too.
        checkpoint: file of weights with a record, whose entry ``calibration`` is replaced.
        part: the part of the data set that is evaluated.
        num_classes: number of classes, background included.
        training: returns the training records, whose images' features give the ranges for other images.
        preprocessing: maps a training record to the network's input ``image``.
        channels: number of channels of an image.

    Raises:
        ValueError: if ``part`` is not ``val``: the weights were fitted to the training cases, and a fit on test cases
            would be leakage. On start, if the weights have no record or a training image cannot be read.
        FileNotFoundError: on start, if a training image is missing.
    """

    def __init__(
        self,
        inferer: Inferer,
        checkpoint: str | Path,
        part: str,
        num_classes: int,
        training: Callable[[], Sequence[Mapping[str, str]]],
        preprocessing: Transform,
        channels: int,
    ) -> None:
        if part != "val":
            raise ValueError(f"calibrate: expected part val, the validation cases, found part {part}.")
        self.passes = ViewPasses(inferer)
        self.checkpoint = checkpoint
        self.num_classes = num_classes
        self.training = training
        self.preprocessing = preprocessing
        self.channels = channels
        self.voxels = _Voxels()

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator that decollates."""
        self.passes.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._fit)

    def _start(self, engine: Engine) -> None:
        # what the fit needs besides the evaluation is read first, so that a fault costs no evaluation
        if read_record(self.checkpoint) is None:
            path = Path(self.checkpoint).with_suffix(".json")
            raise ValueError(f"calibrate: expected weights with a record, found no '{path}'; training writes one.")
        self.ranges = self._image_ranges()
        self.voxels.clear()
        self.pairs: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
        records: Any = engine.state.dataloader
        self.cases = {str(record["image"]): str(record.get("case", record["image"])) for record in records.dataset.data}

    def _add(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            self.voxels.add(item)
            file = str(item["image"].meta["filename_or_obj"])
            pred, label = (item[key][0].cpu().numpy() for key in ("pred", "label"))
            for c, found in enumerate(agreement(item[PASSES]), start=1):
                self.pairs[c].append((found.score, dice(pred == c, label == c), self.cases[file]))

    def _fit(self) -> None:
        fits: dict[int, DiceFit] = {}
        for c, pairs in self.pairs.items():
            if fit := fit_dice(*zip(*pairs, strict=True)):
                fits[c] = fit
        calibration = Calibration(fit_temperature(*self.voxels.region("foreground")), fits, self.ranges)
        cases = len({case for pairs in self.pairs.values() for *_, case in pairs})
        path = write_calibration(self.checkpoint, calibration, {"part": "val", "cases": cases})
        print(f"{path}: temperature {calibration.temperature:.2f}", end="")
        if fits:
            errors = ", ".join(f"{fit.error:.3f} (class {c})" for c, fit in fits.items())
            print(f"; predicted Dice, mean absolute error on left-out cases: {errors}")
        else:
            print(f"; {cases} validation cases are too few to predict a Dice")

    def _image_ranges(self) -> dict[str, list[float]]:
        records: list[Any] = [{"image": record["image"]} for record in self.training()]
        images = VolumeDataset(records, self.preprocessing, self.channels)
        features = in_threads(lambda index: image_features(images[index]["image"]), range(len(images)))
        return training_ranges(features)
