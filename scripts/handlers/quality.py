"""Quality of each result of inference: ``quality.csv``, worst first, and a JSON file for each map."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.inferers import Inferer
from nibabel.affines import voxel_sizes

from scripts.data.readers import shows_photograph
from scripts.inference import FILES, CohortEvents
from scripts.quality.agreement import agreement, view_logits
from scripts.quality.flags import check_enclosing, component_flags, plane_flags
from scripts.quality.images import image_features, unlike
from scripts.quality.record import read_calibration
from scripts.utils.files import write_text
from scripts.utils.provenance import file_digest

__all__ = ["LOW", "PASSES", "QualityReport", "ViewPasses"]

logger = logging.getLogger(__name__)

PASSES = "passes"
"""Key of an evaluator's output: logits of all passes on the network's grid, ``[passes, K, H, W(, slices)]`` an item."""

LOW = 0.7
"""Predicted Dice, or score without a fit, below which a class needs a review."""

COLUMNS = ("case", "class", "predicted_dice", "low", "high", "score", "ml", "uncertain", "flags")


class ViewPasses:
    """Handler that also predicts the views of each batch and adds them to the output as :data:`PASSES`.

    Args:
        inferer: predicts a view in one pass, even if the evaluator's own inferer averages over several.
    """

    def __init__(self, inferer: Inferer) -> None:
        self.inferer = inferer

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.predict)

    def predict(self, engine: Any) -> None:
        """Add the passes to the output of the engine's iteration."""
        output = engine.state.output
        amp = torch.autocast(engine.state.device.type, **engine.amp_kwargs) if engine.amp else nullcontext()

        def one_pass(image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inferer(image, engine.network)
            return logits

        with engine.mode(engine.network), amp:
            image, first = (_plain(output[key]) for key in ("image", "pred"))
            output[PASSES] = torch.stack([first, *view_logits(one_pass, image)], dim=1)


class QualityReport:
    """Handler that reports how reliable each result of an inference is.

    For each map ``NAME.nii.gz`` it writes ``NAME.json`` in the same folder, before the image is recorded as segmented.
    At the end the first process writes ``quality.csv`` to ``output_dir``, also if no image was left to segment: a row
    for each case and class of all such files there of the same weights; cases that need a review come first, the worst
    of them first. Columns:

    - ``predicted_dice``, ``low``, ``high``: Dice and interval by the fit in the weights' record; empty without one.
    - ``score``: input of the fit, see :class:`scripts.quality.agreement.ClassAgreement`.
    - ``ml``: volume in mL; empty for photographs.
    - ``uncertain``: share of the class's voxels on which the passes do not agree.
    - ``flags``: in words, separated by commas; a case with any flag needs a review.

    Args:
        output_dir: folder of the maps.
        num_classes: number of classes, background included.
        checkpoint: file of the weights.
        inferer: see :class:`ViewPasses`, which is attached too.
        class_names: name of each foreground class by its number as text; others are called by their number.
        enclosing: see :func:`scripts.quality.flags.check_enclosing`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        num_classes: int,
        checkpoint: str | Path,
        inferer: Inferer,
        class_names: Mapping[str, str] | None = None,
        enclosing: Mapping[str, str] | None = None,
    ) -> None:
        self.passes = ViewPasses(inferer)
        self.output_dir = Path(output_dir)
        self.num_classes = num_classes
        self.checkpoint = checkpoint
        self.class_names = dict(class_names or {})
        self.enclosing = check_enclosing(enclosing or {}, num_classes)

    def attach(self, engine: Engine) -> None:
        """Register with a :class:`scripts.inference.CohortEvaluator` that writes its maps while it postprocesses."""
        self.passes.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._judge)
        engine.add_event_handler(CohortEvents.SEGMENTED, self._write)

    def _start(self) -> None:
        self.calibration = read_calibration(self.checkpoint)
        if not self.calibration.dice:
            logger.warning("'%s' has no fit on validation cases: no Dice is predicted.", self.checkpoint)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return file_digest(self.checkpoint)

    def _judge(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            saved = Path(item["pred"].meta["saved_to"])
            case = Path(os.path.relpath(saved, self.output_dir))
            about = {
                "map": saved.name,
                "case": _stem(case.as_posix()).removesuffix("_seg"),
                "weights_sha256": self.digest,
            }
            content = {**about, "classes": self._classes(item)}
            report = saved.with_name(f"{_stem(saved.name)}.json")
            write_text(report, json.dumps(content, indent=4) + "\n")
            item.setdefault(FILES, []).append(str(report))

    def _classes(self, item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The row of each foreground class of one result."""
        passes = item[PASSES]
        grid = passes[0].argmax(0).cpu().numpy()
        label = item["pred"][0].cpu().numpy()
        in_pieces = component_flags(label, self.num_classes)
        in_plane = plane_flags(grid if grid.ndim == 3 else grid[..., None], self.num_classes, self.enclosing)
        strange = unlike(image_features(item["image"]), self.calibration.images)
        volume = _voxel_volume(item)
        classes: dict[str, dict[str, Any]] = {}
        for c, found in enumerate(agreement(passes), start=1):
            predicted = self.calibration.dice[c](found.score) if c in self.calibration.dice else None
            doubt = predicted.dice if predicted else found.score
            low = ["low predicted Dice" if predicted else "passes disagree"] if doubt < LOW else []
            classes[self.class_names.get(str(c), str(c))] = {
                "predicted_dice": predicted.dice if predicted else None,
                "low": predicted.low if predicted else None,
                "high": predicted.high if predicted else None,
                "score": found.score,
                "ml": None if volume is None else volume * int((label == c).sum()),
                "uncertain": found.uncertain,
                "flags": [*in_pieces[c], *low, *in_plane[c], *strange],
            }
        return {name: {key: _rounded(value) for key, value in entry.items()} for name, entry in classes.items()}

    def _write(self) -> None:
        """Write the table of all maps in the folder and print its summary."""
        cases = sorted(self._results(), key=_worst)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in cases:
            for name, entry in case["classes"].items():
                row = {**entry, "flags": ", ".join(entry["flags"])}
                writer.writerow({"case": case["case"], "class": name, **row})
        write_text(self.output_dir / "quality.csv", text.getvalue())
        flagged = sum(_needs_a_look(case) for case in cases)
        print(f"{flagged} of {len(cases)} need a review: {self.output_dir / 'quality.csv'}, worst first")

    def _results(self) -> list[dict[str, Any]]:
        """The JSON files of all maps of these weights in the folder."""
        results = []
        for path in sorted(self.output_dir.rglob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                continue  # not ours
            if not isinstance(content, dict) or content.get("weights_sha256") != self.digest:
                continue
            if (path.parent / str(content.get("map"))).is_file():
                results.append(content)
        return results


def _needs_a_look(case: Mapping[str, Any]) -> bool:
    return any(entry["flags"] for entry in case["classes"].values())


def _worst(case: Mapping[str, Any]) -> tuple[bool, float]:
    """Sort key of the cases: those that need a review first, then by their worst class."""
    doubts = (e["score"] if e["predicted_dice"] is None else e["predicted_dice"] for e in case["classes"].values())
    return not _needs_a_look(case), min(doubts)


def _voxel_volume(item: Mapping[str, Any]) -> float | None:
    """Volume of a voxel of the map in mL; None for photographs."""
    pred = item["pred"]
    if not isinstance(pred, MetaTensor) or pred.ndim != 4 or shows_photograph(item["image"]):
        return None
    return float(np.prod(voxel_sizes(np.asarray(pred.affine, dtype=np.float64)))) / 1000


def _stem(name: str) -> str:
    return name.removesuffix(".gz").rsplit(".", 1)[0]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
