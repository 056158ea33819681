"""One patient of the prostate cohort: pelvic anatomy, drawn in mm on axial slices, and its T2-weighted scan.

The gland is surrounded by structures of similar appearance: a bladder as bright as its peripheral zone above it,
seminal vesicles, veins and fat around it, muscle as dark as its centre at its sides, and a rectum behind it with gas,
stool or a coil. Centres differ in contrast, resolution and coils. Coordinates point to the patient's left, back and
head.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from scripts.phantoms.scan import PhantomVolume, paint, scan

__all__ = ["write_prostate_patient"]


def write_prostate_patient(root: Path, name: str, rng: np.random.Generator, **ranges: Any) -> None:
    """Write ``name.mhd`` (int16) and ``name_segmentation.mhd`` (uint8) with their ``.raw`` files, as in PROMISE12.

    Args:
        root: folder of the cohort.
        name: name of the case.
        rng: source of all random numbers.
        **ranges: ``size``, ``spacing`` and ``slices``, see :class:`~scripts.phantoms.scan.PhantomVolume`.
    """
    patient = PhantomProstate(rng, **ranges)
    for array, suffix in zip(patient.volume(), ("", "_segmentation"), strict=True):
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing((patient.pixel, patient.pixel, patient.thickness))
        image.SetDirection(patient.direction.ravel().tolist())
        image.SetOrigin(patient.origin.tolist())
        sitk.WriteImage(image, str(root / f"{name}{suffix}.mhd"))


class PhantomProstate(PhantomVolume):
    """One patient's anatomy and scan.

    Args:
        rng: source of all random numbers.
        **ranges: ``size``, ``spacing`` and ``slices``, see :class:`~scripts.phantoms.scan.PhantomVolume`.

    Attributes:
        direction: ``[3, 3]``, columns are the directions of the array's axes in LPS; slices are tilted with the gland.
        origin: position of the first voxel in LPS mm.
    """

    def __init__(self, rng: np.random.Generator, **ranges: Any) -> None:
        super().__init__(rng, thickness=(2.5, 4), **ranges)
        u = rng.uniform
        tilt = math.radians(u(-15, 15)) * (u() < 0.6)  # many centres tilt the slices
        c, s = math.cos(tilt), math.sin(tilt)
        self.direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        extent = np.array([self.pixel, self.pixel, self.thickness]) * (np.array(self.shape) - 1)
        self.origin = u(-30, 30, 3) - self.direction @ (extent / 2)

        # the gland: half axes, centre, lean of its axis (the apex lies in front) and uneven outline
        enlarged = u() < 0.35
        grow = 1 + enlarged * u(0.1, 0.35)
        self.half = (u(19, 26) * grow, u(12, 17) * grow, u(16, 22) * grow)
        reach = self.shape[2] * self.thickness / 2
        self.half = (*self.half[:2], min(self.half[2], 0.85 * reach))
        self.centre = (u(-8, 8), u(-12, 10), u(-0.3, 0.3) * (reach - self.half[2]))
        self.lean, self.taper = u(-1, 6), u(0.02, 0.2)
        self.lobes = [(k, u(0, 0.07) / (k - 1), u(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
        self.inner = (u(0.45, 0.65) + enlarged * u(0.1, 0.2), u(0.05, 0.25))  # transition zone: share, shift to front
        self.nodules = [
            (u(-0.5, 0.5), u(-0.6, 0.3), u(-0.6, 0.7), u(2, 5) + enlarged * u(0, 4), u(0.2, 1.0))
            for _ in range(rng.integers(2, 5) + 4 * enlarged)
        ]
        self.lesions = [(u(-0.75, 0.75), u(0.3, 0.8), u(-0.7, 0.5), u(3, 7)) for _ in range(rng.integers(0, 3))]

        # rectum with gas, stool or a coil; bladder, full or empty
        self.content = rng.choice(["gas", "stool", "coil"], p=[0.4, 0.35, 0.25])
        self.rectum = (u(15, 21) if self.content == "coil" else u(7, 14), u(-7, 7), u(-0.15, 0.25), u(0.75, 1.3))
        self.bladder = (u(22, 46), u(16, 34), u(12, 32), u(-6, 6), u(-14, 2))

        # signals of the tissues in a T2-weighted image
        self.muscle, self.fat, self.marrow = u(0.1, 0.24), u(0.45, 1.0), u(0.25, 0.65)
        self.peripheral, self.transition = u(0.45, 0.95), u(0.25, 0.5)
        self.urine, self.vesicle, self.veins = u(0.75, 1.5), u(0.5, 1.1), u(0.4, 1.0)
        self.wall = u(0.2, 0.4)
        self.inside = {"gas": u(0.01, 0.05), "stool": u(0.2, 0.8), "coil": u(0.01, 0.06)}[str(self.content)]
        self.capsule = u(0.4, 1.2)
        self.noise, self.scale, self.blur = u(0.015, 0.05), u(150, 1100), u(0.0, 0.15)
        self.coarse, self.texture, self.fine = (self.field(n) for n in (7, 22, 40))
        self.bias = np.exp(u(0.1, 0.3) * self.field(2) + u(-0.5, 0.6) * self.y / 100)
        self.coil_gain = u(0.8, 2.5)

        # pelvis: width between the obturator muscles, bones (x, y, radius), sides alike
        self.pelvis = (u(40, 54), u(12, 18))
        self.hip, self.ischium = (u(80, 98), u(-20, 8), u(21, 27)), (u(56, 70), u(18, 40), u(10, 16))
        self.pubis = (u(42, 58), u(9, 15), u(-0.3, 0.4))
        self.sacrum = (u(66, 84), u(14, 22))
        self.body = (u(150, 190), u(95, 122), u(10, 30))

    def volume(self) -> tuple[np.ndarray, np.ndarray]:
        """Image int16 and label uint8, ``[X, Y, slices]``: 0 background, 1 prostate."""
        image, label = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.uint8)
        for k in range(self.shape[2]):
            depth = (k - (self.shape[2] - 1) / 2) * self.thickness
            # thick slices: average the signal over the thickness, label the middle
            for part in (-0.3, 0.0, 0.3):
                z = depth + part * self.thickness
                image[..., k] += self._slice(z) / 3
            label[..., k] = self._gland(depth)[0] < 0
        return scan(self.rng, image, self.blur, self.noise, self.scale), label

    def _gland(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Signed distance to the gland's surface in the slice at height z, and relative coordinates within it."""
        h = (z - self.centre[2]) / self.half[2]
        wide = math.sqrt(max(1 - abs(h) ** 2.4, 1e-4)) * (1 + self.taper * h)
        a, b = self.half[0] * wide, self.half[1] * wide
        x, y = (self.x - self.centre[0]) / a, (self.y - self.centre[1] - self.lean * h) / b
        theta = np.arctan2(y, x)
        outline = 1 + sum(size * np.cos(k * theta - phase) for k, size, phase in self.lobes)
        outline = outline - 0.1 * np.clip(np.sin(theta), 0, 1) ** 4  # the rectum flattens the back
        distance = (np.hypot(x, y) / outline - 1) * min(a, b)
        return distance if abs(h) < 1 else np.full_like(distance, 1e3), x, y, h

    def _slice(self, z: float) -> np.ndarray:
        """Signal at height z, ``[X, Y]``."""
        edge, texture = self.pixel, self.texture
        distance, gx, gy, h = self._gland(z)
        signal = self._pelvis(z)
        cx, cy, cz = self.centre
        back = cy + self.half[1] * math.sqrt(max(1 - min(abs(h), 1) ** 2.4, 0.15))

        # bladder above, seminal vesicles behind its neck
        bx, by, bz, dx, dy = self.bladder
        t = (z - cz - 0.75 * self.half[2] - bz) / bz
        if abs(t) < 1:
            r = math.sqrt(1 - t * t)
            bladder = (np.hypot((self.x - cx - dx) / bx, (self.y - cy - dy) / by) - r) * min(bx, by)
            signal = paint(signal, self.wall + 0.05 * texture, bladder - 3 + 0.5 * self.coarse, edge)
            signal = paint(signal, self.urine, bladder, edge)
        if 0.6 < h < 1.6:
            for side in (-1, 1):
                vesicle = np.hypot((self.x - cx - 14 * side) / 2.1, self.y - back - 2 + 0.12 * side * self.x) - 5
                signal = paint(signal, self.vesicle * (1 + 0.35 * self.fine), vesicle + 1.5 * texture, 2 * edge)

        radius, shift, slope, stretch = self.rectum
        rectum = np.hypot((self.x - cx - shift) / stretch, self.y - back - radius - 2.5 - slope * (z - cz)) - radius
        signal = paint(signal, self.wall * 1.1 + 0.06 * texture, rectum - 3 + self.coarse, edge)
        content = self.inside * (1 + 0.3 * texture) if self.content == "stool" else self.inside
        signal = paint(signal, content, rectum + 0.7 * self.coarse, edge)

        signal = self._zones(signal, distance, gx, gy, h)
        if self.content == "coil":
            signal = signal * (1 + self.coil_gain * np.exp(-np.clip(rectum, 0, None) / 22))
        return signal * self.bias

    def _zones(self, signal: np.ndarray, distance: np.ndarray, gx: np.ndarray, gy: np.ndarray, h: float) -> np.ndarray:
        """The gland painted over the signal: capsule, peripheral and transition zone, nodules, lesions, urethra."""
        edge, texture, size = self.pixel, self.texture, min(self.half[:2])
        signal = paint(signal, self.muscle * 1.3, distance, edge)
        signal = paint(signal, self.peripheral * (1 + 0.1 * texture + 0.08 * self.fine), distance + self.capsule, edge)
        share, front = self.inner
        share = share * math.sqrt(max(0.0, 1 - ((h - 0.25) / 1.15) ** 2))
        inner = (np.hypot(gx / max(share, 0.05), (gy + front) / max(share, 0.05)) - 1) * size * share
        inner = np.maximum(inner + 0.8 * self.coarse, distance + self.capsule)
        signal = paint(signal, self.transition * (1 + 0.2 * texture + 0.1 * self.fine), inner, 2 * edge)
        for x, y, height, radius, value in self.nodules:
            r2 = radius**2 - ((h - height) * self.half[2]) ** 2
            if r2 > 0:
                nodule = np.hypot((gx - x * share) * self.half[0], (gy + front - y * share) * self.half[1])
                nodule = np.maximum(nodule - math.sqrt(r2) + 0.5 * texture, inner)
                signal = paint(signal, value * (1 + 0.15 * self.fine), nodule, 2 * edge)
        for x, y, height, radius in self.lesions:
            r2 = radius**2 - ((h - height) * self.half[2]) ** 2
            if r2 > 0:
                lesion = np.hypot((gx - x) * self.half[0], (gy - y) * self.half[1]) - math.sqrt(r2) + texture
                signal = paint(signal, self.transition * 0.8, np.maximum(lesion, distance + self.capsule), 3 * edge)
        # fibromuscular tissue in front, as dark as muscle, hides the border there
        stroma = (np.hypot(gx / 0.45, (gy + 1) / 0.4) - 1) * 0.4 * size
        signal = paint(signal, self.muscle * 1.2, np.maximum(stroma, distance), 3 * edge)
        urethra = np.hypot(gx * self.half[0], (gy + 0.1) * self.half[1]) - 2
        return paint(signal, self.urine * 0.7, np.maximum(urethra, distance), 2 * edge) if h < 0 else signal

    def _pelvis(self, z: float) -> np.ndarray:
        """Everything around: fat with veins, muscles, bones, skin."""
        x, y, edge, texture = np.abs(self.x), self.y, self.pixel, self.texture
        width, height, layer = self.body
        skin = ((x / width) ** 2.6 + np.abs(y / height) ** 2.6) ** (1 / 2.6) * height - height
        signal = paint(np.full(x.shape, 0.01, np.float32), self.fat * (1 + 0.12 * texture), skin, edge)
        signal = paint(signal, self.muscle + 0.03 * texture, skin + layer + 3 * self.coarse, 2 * edge)
        inner, thick = self.pelvis
        cavity = np.hypot(x / inner, (y - 12) / 68) * inner - inner
        signal = paint(signal, self.fat * (1 + 0.15 * texture), cavity + 1.5 * self.coarse, 2 * edge)
        # levator ani: a thin dark sling around gland and rectum, closer towards the floor
        sling = np.abs(np.hypot(x, (y - self.centre[1] - 14) / 1.5) - self.half[0] - 7 - 0.25 * z) - 2.2
        signal = paint(signal, self.muscle, np.maximum(sling + 0.6 * self.coarse, cavity), edge)
        # veins beside and in front of the gland
        veins = np.hypot(x - 24, (y - self.centre[1]) / 1.3) - 9
        front = np.hypot(x / 1.8, y - self.centre[1] + self.half[1] + 8) - 8
        signal = paint(signal, self.veins * (1 + 0.5 * self.fine), np.minimum(veins, front) + 3 * texture, 2 * edge)
        for bx, by, radius in (self.hip, (self.ischium[0], self.ischium[1] - 0.4 * z, self.ischium[2])):
            bone = np.hypot(x - bx, y - by) - radius + self.coarse
            signal = paint(signal, 0.04, bone - thick * 0.1, edge)
            signal = paint(signal, self.marrow * (1 + 0.1 * texture), bone + 1, edge)
        away, radius, slope = self.pubis
        if z < 12:
            bone = np.hypot((x - 14) / 1.7, y + away - slope * x) - radius + self.coarse
            signal = paint(signal, 0.04, bone, edge)
            signal = paint(signal, self.marrow * (1 + 0.1 * texture), bone + 1.5, edge)
        level, radius = self.sacrum
        bone = np.hypot(x / 1.6, y - level + 0.3 * z) - radius + self.coarse
        signal = paint(signal, 0.05, bone, edge)
        return paint(signal, self.marrow * (1 + 0.15 * texture), bone + 1.5, edge)
