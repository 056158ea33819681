"""Calibration of the weights' results: the entry ``calibration`` of their record ``model.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.quality.fit import DiceFit
from scripts.utils.provenance import read_record, write_record

__all__ = ["Calibration", "fitted_temperature", "read_calibration", "write_calibration"]


@dataclass(frozen=True)
class Calibration:
    """Calibration from validation and training cases.

    Attributes:
        temperature: divisor of the logits before the softmax; 1 if none was fitted.
        dice: by foreground class, the fit that predicts its Dice; classes without a fit are left out.
        images: ranges of the training images' features, see :func:`scripts.quality.images.training_ranges`.
    """

    temperature: float = 1.0
    dice: dict[int, DiceFit] = field(default_factory=dict)
    images: dict[str, list[float]] = field(default_factory=dict)


def read_calibration(checkpoint: str | Path) -> Calibration:
    """The calibration in the record of weights; an empty one if there is none.

    Args:
        checkpoint: file of weights.

    Raises:
        ValueError: see :func:`scripts.utils.provenance.read_record`; also if a fit is not monotone.
    """
    entry = (read_record(checkpoint) or {}).get("calibration", {})
    try:
        dice = {int(number): DiceFit.from_record(fit) for number, fit in entry.get("dice", {}).items()}
    except ValueError as error:
        raise ValueError(f"{Path(checkpoint).with_suffix('.json')}: calibration: dice: {error}.") from None
    return Calibration(float(entry.get("temperature", 1)), dice, dict(entry.get("images", {})))


def write_calibration(checkpoint: str | Path, calibration: Calibration, about: Mapping[str, Any]) -> Path:
    """Write a calibration into the record of weights, in place of an earlier one.

    Args:
        checkpoint: file of weights with a record.
        calibration: the calibration.
        about: description of the data that it was fitted on, stored with it.

    Returns:
        the record's path.

    Raises:
        ValueError: if the weights have no record.
    """
    path = Path(checkpoint).with_suffix(".json")
    record = read_record(checkpoint)
    if record is None:
        raise ValueError(
            f"{path}: the weights '{checkpoint}' have no record to store a calibration in; training writes one."
        )
    entry = {
        **about,
        "temperature": round(calibration.temperature, 6),
        "dice": {str(number): fit.to_record() for number, fit in calibration.dice.items()},
        "images": calibration.images,
    }
    write_record(checkpoint, {**record, "calibration": entry})
    return path


def fitted_temperature(checkpoint: str | Path) -> float:
    """The temperature in the record of weights; 1 without one, see :class:`Calibration`."""
    return read_calibration(checkpoint).temperature
