"""A picture of a data set: images with their labels' outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bundle.prepare.survey import load, to_classes
from scripts.data.axis import THICKEST
from scripts.data.readers import is_photograph
from scripts.utils.files import replacing

__all__ = ["draw_montage"]

COLUMNS, ROWS = 4, 3


def draw_montage(
    records: Sequence[Mapping[str, str]],
    target: Path,
    num_classes: int,
    colors: Mapping[str, str],
    label_values: Sequence[float] | None = None,
    slice_axis: str = THICKEST,
) -> None:
    """Draw up to a dozen labelled images, spread evenly over the records, each the slice with most foreground.

    Of a volume with several channels the first one is drawn.

    Args:
        records: records with ``image``, ``label`` and ``case``.
        target: PNG file.
        num_classes: classes, background included.
        colors: outline colour of each class by its number as text; others get matplotlib's.
        label_values: value of each class in label files.
        slice_axis: slice axis of the volumes, one of :data:`scripts.data.axis.AXES`.
    """
    count = min(COLUMNS * ROWS, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]
    rows = max(1, -(-count // COLUMNS))
    figure = Figure(figsize=(2.5 * COLUMNS, 2.7 * rows))
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis in axes:
        axis.axis("off")
    for axis, record in zip(figure.axes, chosen, strict=False):
        volumes = load({key: record[key] for key in ("image", "label")}, slice_axis)
        image, label = volumes["image"].numpy(), to_classes(volumes["label"], label_values).numpy()[0]
        k = int((label > 0).sum(axis=(0, 1)).argmax())
        # an array's first axis is x, a picture's is y
        colors_shown = is_photograph(record["image"]) and len(image) == 3
        shown = (image if colors_shown else image[0])[..., k].T.astype(np.float64)
        low, high = np.percentile(shown, [0, 99.5])
        axis.imshow(np.clip((shown - low) / max(high - low, 1e-9), 0, 1), cmap="gray")
        for number in range(1, num_classes):
            mask = np.equal(label[..., k].T, number)
            if min(mask.shape) < 2 and mask.any():  # matplotlib draws no outline of a single row
                axis.imshow(np.where(mask, 1.0, np.nan), cmap="spring", alpha=0.5)
            elif mask.any():
                axis.contour(mask, levels=[0.5], colors=[colors.get(str(number), f"C{number}")], linewidths=1)
        axis.set_title(Path(record["case"]).name, fontsize=7)
    figure.tight_layout()
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=90)
