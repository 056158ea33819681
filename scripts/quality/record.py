"""What is known of the quality of weights' results, in their record: an entry ``calibration`` of ``model.json``."""

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
    """What validation and training cases taught about weights' results.

    Attributes:
        temperature: that logits are divided by before their probabilities are given out; 1 where none was fitted.
        dice: by foreground class, the fit that predicts its Dice; classes without one are left out.
        images: ranges of the training images' features, see :func:`scripts.quality.images.training_ranges`.
    """

    temperature: float = 1.0
    dice: dict[int, DiceFit] = field(default_factory=dict)
    images: dict[str, list[float]] = field(default_factory=dict)


def read_calibration(checkpoint: str | Path) -> Calibration:
    """The calibration in the record of weights; an empty one where there is none.

    Args:
        checkpoint: file of weights.

    Raises:
        ValueError: as :func:`scripts.utils.provenance.read_record`, or if a fit does not rise.
    """
    entry = (read_record(checkpoint) or {}).get("calibration", {})
    try:
        dice = {int(number): DiceFit.from_record(fit) for number, fit in entry.get("dice", {}).items()}
    except ValueError as error:
        raise ValueError(f"{Path(checkpoint).with_suffix('.json')}: calibration: dice: {error}.") from None
    return Calibration(float(entry.get("temperature", 1)), dice, dict(entry.get("images", {})))


def write_calibration(checkpoint: str | Path, calibration: Calibration, about: Mapping[str, Any]) -> Path:
    """Put a calibration into the record of weights, in place of an earlier one.

    Args:
        checkpoint: file of weights with a record.
        calibration: what was fitted.
        about: what it was fitted on, written beside it.

    Returns:
        the record's path.

    Raises:
        ValueError: if the weights have no record of their own.
    """
    path = Path(checkpoint).with_suffix(".json")
    record = read_record(checkpoint)
    if record is None:
        raise ValueError(f"{path}: no record of '{checkpoint}', as training writes it, to keep a calibration in.")
    entry = {
        **about,
        "temperature": round(calibration.temperature, 6),
        "dice": {str(number): fit.to_record() for number, fit in calibration.dice.items()},
        "images": calibration.images,
    }
    write_record(checkpoint, {**record, "calibration": entry})
    return path


def fitted_temperature(checkpoint: str | Path) -> float:
    """The temperature in the record of weights; 1 where there is none, see :class:`Calibration`."""
    return read_calibration(checkpoint).temperature
