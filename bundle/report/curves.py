"""Training curves of one run or of several in one plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bundle.report.charts import lines
from bundle.report.events import VALIDATION, Curve, curves
from bundle.report.page import Block, Chart, Charts, Text

__all__ = ["curve_charts"]

_COVERAGE = "coverage_"
_PSEUDO = "pseudo_"


def curve_charts(folders: Mapping[str, Path]) -> list[Block]:
    """Losses, coverage and quality of the pseudo-labels, validation Dice and learning rate.

    Args:
        folders: the runs' folders by name. For one run all losses are drawn; for several the total loss, and a plot for
            each pseudo-label that one of them has.
    """
    logged = {name: found for name, folder in folders.items() if (found := curves(folder))}
    if not logged:
        return [Text("No curves: there are no TensorBoard events in the run's folder.")]
    one = len(folders) == 1
    panels: list[tuple[str, str, dict[str, Curve], float | None]] = []
    if one:
        (found,) = logged.values()
        losses = {
            tag.removeprefix("loss_") if tag != "loss" else "total": found[tag]
            for tag in sorted(found)
            if tag.startswith("loss")
        }
        share = {
            tag.removeprefix(_COVERAGE).replace("_", ", "): found[tag]
            for tag in sorted(found)
            if tag.startswith(_COVERAGE)
        }
        panels += [
            ("Losses", "loss", losses, None),
            ("Coverage of the pseudo-labels", "share above the threshold", share, 1.02),
        ]
        for measure, title in (
            ("dice", "Pseudo-labels against hidden labels"),
            ("precision", "Those that pass, against hidden labels"),
        ):
            kinds = {
                tag.removeprefix(_PSEUDO).removesuffix(f"_{measure}"): found[tag]
                for tag in sorted(found)
                if tag.startswith(_PSEUDO) and tag.endswith(f"_{measure}")
            }
            panels.append((title, f"foreground {measure}".replace("dice", "Dice"), kinds, 1.02))
    else:
        panels.append(("Total loss", "loss", _of("loss", logged), None))
        tags = sorted({tag for found in logged.values() for tag in found})
        panels += [
            (
                f"Coverage of the pseudo-labels: {tag.removeprefix(_COVERAGE).replace('_', ', ')}",
                "share above the threshold",
                _of(tag, logged),
                1.02,
            )
            for tag in tags
            if tag.startswith(_COVERAGE)
        ]
        panels += [
            (
                f"Pseudo-labels against hidden labels: {tag.removeprefix(_PSEUDO).removesuffix('_dice')}",
                "foreground Dice",
                _of(tag, logged),
                1.02,
            )
            for tag in tags
            if tag.startswith(_PSEUDO) and tag.endswith("_dice")
        ]
    validation = _of(VALIDATION, logged)
    rates = _of("learning_rate", logged)
    panels += [("Validation", "mean Dice", validation, 1.02), ("Learning rate", "rate", rates, None)]
    shown = [Chart(lines(found, title, label, top, named=not one)) for title, label, found, top in panels if found]
    return [Charts(shown)]


def _of(tag: str, logged: Mapping[str, Mapping[str, Curve]]) -> dict[str, Curve]:
    return {name: found[tag] for name, found in logged.items() if tag in found}
