"""A synthetic dermoscopic photograph: a pigmented lesion on skin, with hairs, dark corners and reddish patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scripts.phantoms.scan import paint, random_field

__all__ = ["write_lesion_patient"]

INPUT, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
LIGHT_SKIN, DARK_SKIN = np.array([0.93, 0.78, 0.69]), np.array([0.60, 0.42, 0.32])
MELANIN = np.array([0.55, 1.0, 1.25])  # absorption by pigment, stronger for blue than for red
BLOOD = np.array([0.05, 0.9, 0.7])
HAIR = np.array([0.16, 0.11, 0.09])


def write_lesion_patient(root: Path, name: str, rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Write an image as ``<name>.jpg`` and its mask of 0 and 255 as ``<name>_segmentation.png``.

    Args:
        root: folder of the cohort; contains the two official folders of the training part.
        name: the image's name.
        rng: source of all random numbers.
        size: smallest and largest height in pixels; images are 4:3.
    """
    height = int(rng.integers(size[0], size[1] + 1))
    shape = (height, round(height * 4 / 3))
    distance = _lesion(rng, shape)
    image = _skin(rng, shape)
    image = _pigment(rng, image, distance)
    image = _hairs(rng, image)
    image = _light(rng, image)
    image = np.clip(image + rng.normal(0, 0.012, image.shape), 0, 1)
    for folder in (INPUT, TRUTH):
        (root / folder).mkdir(exist_ok=True)
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(root / INPUT / f"{name}.jpg", quality=92)
    mask = np.where(distance < 0, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(root / TRUTH / f"{name}_segmentation.png")


def _grid(shape: tuple[int, int], centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of every pixel in pixels, relative to a centre given as shares of height and width."""
    rows, columns = np.indices(shape, dtype=np.float32)
    return rows - centre[0] * shape[0], columns - centre[1] * shape[1]


def _lesion(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Distance from the lesion's border, in pixels, negative inside: an ellipse with an irregular outline.

    One lesion in four reaches over the edge of the image.
    """
    across = rng.random() < 0.25
    centre = rng.uniform(0.4, 0.6, 2)
    if across:
        centre[rng.integers(2)] = rng.choice([0.08, 0.92])
    rows, columns = _grid(shape, centre)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.5)
    along = (np.cos(turn) * columns + np.sin(turn) * rows) / stretch
    radius, angle = np.hypot(along, np.cos(turn) * rows - np.sin(turn) * columns), np.arctan2(rows, columns)
    outline = np.ones(shape)
    for lobes in range(2, 8):
        outline += rng.normal(0, 0.12 / lobes) * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    return radius - shape[0] * rng.uniform(0.13, 0.34) * outline


def _skin(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Skin of one tone, with blotches, grain and a reddish patch that is not a lesion: ``[H, W, 3]``."""
    tone = LIGHT_SKIN + rng.beta(1, 2) * (DARK_SKIN - LIGHT_SKIN)
    blotches = 0.05 * random_field(rng, shape, 4) + 0.03 * random_field(rng, shape, 40)
    rows, columns = _grid(shape, rng.uniform(0.1, 0.9, 2))
    extent = shape[0] * rng.uniform(0.1, 0.3)
    redness = rng.uniform(0, 0.35) * np.exp(-(rows**2 + columns**2) / (2 * extent**2))
    return tone * np.exp(-blotches[..., None] * MELANIN - redness[..., None] * BLOOD)


def _pigment(rng: np.random.Generator, image: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Darken the lesion like melanin, unevenly, with a border between sharp and faded."""
    shape = distance.shape
    density = rng.uniform(0.3, 1.3) * (1 + 0.25 * random_field(rng, shape, 5) + 0.12 * random_field(rng, shape, 30))
    edge = shape[0] * rng.uniform(0.01, 0.08)
    absorbed = paint(np.zeros(shape), np.clip(density, 0.1, None), distance, edge)
    redness = paint(np.zeros(shape), rng.uniform(0, 0.3), distance, edge)
    return image * np.exp(-absorbed[..., None] * MELANIN - redness[..., None] * BLOOD)


def _hairs(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Draw dark hairs: arcs from one edge of the image to another, on two of three images."""
    height, width = image.shape[:2]
    scale = 4  # drawn larger, so that shrinking gives smooth edges
    canvas = Image.new("L", (scale * width, scale * height))
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 40)[:, None]
    for _ in range(int(rng.integers(0, 15)) if rng.random() < 2 / 3 else 0):
        start, bend, end = rng.uniform(-0.2, 1.2, (3, 2)) * (scale * width, scale * height)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        thickness = max(1, round(scale * height * rng.uniform(0.003, 0.009)))
        draw.line([(float(x), float(y)) for x, y in curve], fill=int(rng.integers(150, 240)), width=thickness)
    cover = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    return image + cover * (HAIR - image)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Reduce the light towards the sides and, on one of three images, darken the corners by the dermoscope's rim."""
    rows, columns = _grid(image.shape[:2], rng.uniform(0.45, 0.55, 2))
    reach = np.hypot(*image.shape[:2]) / 2
    radius = np.hypot(rows, columns) / reach
    lit = rng.uniform(0.85, 1.05) * (1 - rng.uniform(0, 0.25) * radius**2)
    if rng.random() < 1 / 3:
        lit = paint(lit, 0.06, rng.uniform(0.75, 0.95) - radius, 0.03)
    return image * lit[..., None]
