"""Pictures of slices with the contours of label and prediction, as small SVG with embedded pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from contourpy import contour_generator
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from bundle.report.cases import Case
from bundle.report.page import Chart

__all__ = ["Window", "case_pictures", "chosen_slices", "map_picture", "picture", "window"]

MARGIN = 0.35  # margin around the foreground, relative to its size
SMALLEST = 64  # pixels per side
Window = tuple[slice, slice]


def window(cases: Sequence[Case]) -> Window:
    """Rows and columns with the foreground of label and prediction in all of these cases, with a margin."""
    shown = np.any([((case.label > 0) | (case.prediction > 0)).any(axis=0) for case in cases], axis=0)
    sides = []
    for axis, length in enumerate(shown.shape):
        hit = np.flatnonzero(shown.any(axis=1 - axis))
        low, high = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, length)
        sides.append((low, high, length))
    side = max(SMALLEST, *(int((high - low) * (1 + MARGIN)) for low, high, _ in sides))
    rows, columns = (_about((low + high) // 2, side, length) for low, high, length in sides)
    return rows, columns


def _about(centre: int, side: int, length: int) -> slice:
    start = max(0, min(centre - side // 2, length - side))
    return slice(start, min(length, start + side))


def chosen_slices(case: Case, most: int) -> list[int]:
    """At most ``most`` slices with foreground, evenly spread; without foreground those in the middle."""
    busy = np.flatnonzero(((case.label > 0) | (case.prediction > 0)).any(axis=(1, 2)))
    if not len(busy):
        busy = np.arange(len(case.label))
    return [int(busy[i]) for i in np.unique(np.linspace(0, len(busy) - 1, min(most, len(busy))).round().astype(int))]


def case_pictures(
    case: Case, colours: Sequence[str], most: int, width: int, at: Window | None = None, only: int | None = None
) -> list[Chart]:
    """Pictures of a case, slice by slice.

    Args:
        case: the case.
        colours: colours of the foreground classes.
        most: maximum number of pictures.
        width: width of a picture on the page, in pixels.
        at: the shown window of each slice; None: :func:`window` of the case.
        only: only this slice.
    """
    rows, columns = at or window([case])
    aspect = case.spacing[0] / case.spacing[1] if case.spacing else 1.0
    found = []
    for k in chosen_slices(case, most) if only is None else [only]:
        masks = {"label": case.label[k, rows, columns], "prediction": case.prediction[k, rows, columns]}
        caption = f"slice {k + 1} of {len(case.label)}" if len(case.label) > 1 else ""
        found.append(Chart(picture(case.image[k, rows, columns], masks, colours, width, aspect), caption))
    return found


def picture(
    image: NDArray[np.uint8],
    masks: Mapping[str, NDArray[np.integer]],
    colours: Sequence[str],
    width: int,
    aspect: float = 1.0,
    over: NDArray[np.uint8] | None = None,
) -> Markup:
    """One slice with contours.

    Args:
        image: ``[rows, columns, channels]``, 1 or 3 channels.
        masks: class maps ``[rows, columns]`` by the CSS class of their contours, ``label`` or ``prediction``.
        colours: colours of the foreground classes.
        width: width on the page, in pixels.
        aspect: height of a pixel over its width.
        over: RGBA pixels drawn over the image.
    """
    rows, columns = image.shape[:2]
    height = round(width * rows * aspect / columns)
    pixels = image if image.shape[-1] == 3 else image[..., 0]
    layers = [_embedded(Image.fromarray(np.ascontiguousarray(pixels)), "JPEG", rows, columns)]
    if over is not None:
        layers.append(_embedded(Image.fromarray(over, "RGBA"), "PNG", rows, columns))
    paths = [
        f'<polyline class="{escape(kind)}" stroke="{to_hex(colour)}" points="{points}"/>'
        for kind, classes in masks.items()
        for number, colour in enumerate(colours, start=1)
        for points in _contours(classes == number)
    ]
    return Markup(
        f'<svg class="picture" style="width:{width}px;aspect-ratio:{width}/{height}" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none">{"".join([*layers, *paths])}</svg>'
    )


def map_picture(
    image: NDArray[np.floating], heat: NDArray[np.floating] | None, label: NDArray[np.integer], width: int, colour: str
) -> Markup:
    """A slice ``[C, rows, columns]`` in [0, 1] under a map in [0, 1], with the contour of a mask."""
    low, high = np.percentile(image, [0.5, 99.5])
    shown = (255 * np.clip((image - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8).transpose(2, 1, 0)
    over = None
    if heat is not None:
        over = (255 * mpl.colormaps["inferno"](heat.T)).astype(np.uint8)
        over[..., 3] = (210 * np.clip(heat.T * 1.4, 0, 1)).astype(np.uint8)
    return picture(shown, {"label": (label > 0).T.astype(np.uint8)}, [colour], width, over=over)


def _embedded(image: Image.Image, kind: str, rows: int, columns: int) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {}))
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<image width="{columns}" height="{rows}" preserveAspectRatio="none" '
        f'href="data:image/{kind.lower()};base64,{data}"/>'
    )


def _contours(mask: NDArray[np.bool_]) -> list[str]:
    """The outlines of a mask as points of polylines; a pixel's centre is half a pixel from its corner."""
    if not mask.any():
        return []
    framed = np.pad(mask, 1).astype(np.float32)
    found = contour_generator(z=framed).lines(0.5)
    return [" ".join(f"{x - 0.5:.1f},{y - 0.5:.1f}" for x, y in np.asarray(line)) for line in found]
