"""Anatomy and signal of one phantom patient: a beating heart in a chest, cut along the heart's short axis.

Lengths are in mm; in the image plane x points to the patient's left and y to the back; depth is 0 at the heart's base
and 1 at its apex. Tissues are painted over each other by signed distances to their borders.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scripts.phantoms.scan import PhantomVolume, paint, scan

__all__ = ["PhantomPatient"]

RV, MYO, LV = 1, 2, 3


class PhantomPatient(PhantomVolume):
    """One patient's anatomy, position and scan.

    Args:
        rng: source of all random numbers.
        **ranges: ``size``, ``spacing`` and ``slices``, see :class:`PhantomVolume`.

    Attributes:
        affine: voxel indices to mm, as in ACDC: the array's axes point to the patient's left, back and head.
    """

    def __init__(self, rng: np.random.Generator, **ranges: Any) -> None:
        super().__init__(rng, thickness=(8, 10), **ranges)
        u = rng.uniform
        extent = [n * self.pixel for n in self.shape[:2]]
        self.affine = np.diag([-self.pixel, -self.pixel, self.thickness, 1.0])  # the LPS axes that ACDC stores
        self.affine[:2, 3] = [e / 2 for e in extent]

        # position and shape of the heart
        self.centre = (u(-15, 22), u(-22, 12))
        self.septum = math.radians(u(160, 240))  # direction from LV to RV
        self.tilt = (u(-9, 9), u(-9, 9))  # in-plane drift of the axis from base to apex
        self.jitter = rng.normal(0, 0.9, (self.shape[2], 2)).tolist()  # slices come from different breath-holds
        self.length = (self.shape[2] - u(-0.3, 1.2)) * self.thickness
        self.base, self.descent = u(0, 0.9) * self.thickness, u(0.06, 0.12) * self.length
        dilated, thick, big_rv = u() < 0.25, u() < 0.25, u() < 0.3
        self.radius = u(18, 24) + dilated * u(4, 9)
        self.wall = u(6.5, 9.5) + thick * u(3, 7)
        self.shrink = u(0.58, 0.74) if not dilated else u(0.78, 0.92)  # cavity radius, systole / diastole
        self.rv_depth, self.rv_width = u(0.7, 0.95) + big_rv * u(0.1, 0.3), u(0.9, 1.1) + big_rv * u(0.05, 0.2)
        self.rv_shrink, self.rv_end = u(0.68, 0.88), u(0.8, 0.97)
        self.lobes = [(k, u(0, 0.06) / (k - 1), u(0, 2 * np.pi)) for k in (2, 3, 4)]
        self.uneven = (u(0, 0.25), u(0, 2 * np.pi))  # the wall's thickness around the ring
        self.papillary = [(self.septum + a + u(-0.3, 0.3), u(0.55, 0.85), u(2.5, 5.5)) for a in (1.9, 3.9)]

        # signal of the tissues; blood is about 1
        self.blood, self.muscle = u(0.75, 1.05), u(0.22, 0.42)
        self.rv_blood = self.blood * u(0.82, 1.08)
        self.fat, self.liver, self.stomach, self.lung = u(0.6, 1.2), u(0.25, 0.6), u(0.2, 0.95), u(0.03, 0.12)
        self.flow, self.noise, self.scale = u(0.06, 0.18), u(0.015, 0.05), u(250, 900)
        self.blur = u(0.0, 0.15)
        self.bias = np.exp(u(0.1, 0.35) * self.field(2) - u(0.1, 0.9) * self.y / 100)  # coils in front

        # the rest of the chest
        self.roll = math.radians(u(-40, 40))  # the short axis is oblique to the body
        self.body = (u(125, 165), u(88, 115), u(-15, 15), u(-5, 22))
        self.layers = (u(6, 24), u(4, 10))  # subcutaneous fat, chest wall
        self.rim = u(2, 9)  # of tissue between heart and lung
        self.diaphragm = (u(28, 60), u(0.1, 0.5), u(-0.4, 0.3))
        self.pericardium, self.texture, self.vessels = self.field(7), self.field(20), self.field(28)
        # vessels, bowel, kidneys: (x, y, radius, elongation, signal), in the rotated body
        self.organs = [(u(-95, 95), u(22, 90), u(5, 17), u(0.6, 1.6), u(0.1, 1.15)) for _ in range(rng.integers(7, 14))]
        self.aorta = (u(8, 40), u(46, 66), u(8, 13))

    def volume(self, systole: bool) -> tuple[np.ndarray, np.ndarray]:
        """Image int16 and label uint8, ``[X, Y, slices]``."""
        image, label = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.uint8)
        shift = self.descent if systole else 0.0  # the base descends, the apex stays
        for k in range(self.shape[2]):
            dx, dy = self.jitter[k]
            x, y = self.x - dx, self.y - dy
            depth = (k + 0.5) * self.thickness - self.base
            chest = self._chest(x, y, depth / self.length)
            blood = 1 + self.flow * self.field(6)
            # thick slices: average the signal over the thickness, label the middle
            for part in (-0.3, 0.0, 0.3):
                z = (depth + part * self.thickness - shift) / (self.length - shift)
                signal, classes = self._heart(chest, blood, x, y, z, systole)
                image[..., k] += signal / 3
                if part == 0:
                    label[..., k] = classes
        image = image * self.bias[..., None]  # coil shading
        return scan(self.rng, image, self.blur, self.noise, self.scale), label

    def _heart(
        self, signal: np.ndarray, blood: np.ndarray, x: np.ndarray, y: np.ndarray, z: float, systole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The heart at relative depth z (0 base, 1 apex), painted over the chest."""
        classes = np.zeros(x.shape, np.uint8)
        x, y = x - self.centre[0] - self.tilt[0] * z, y - self.centre[1] - self.tilt[1] * z
        rho, theta = np.hypot(x, y), np.arctan2(y, x)
        away = x * math.cos(self.septum) + y * math.sin(self.septum)
        along = -x * math.sin(self.septum) + y * math.cos(self.septum)
        if z >= 1:
            return signal, classes
        # above the valves: atria, as bright as the ventricles, with a thin wall and without a label
        wall, z, labeled = self.wall * min(max(1 + z / 0.1, 0.25), 1), max(z, 0.0), z >= 0
        lobes = 1 + sum(a * np.cos(k * theta - p) for k, a, p in self.lobes)
        cavity = self.radius * math.sqrt(max(0.0, 1 - (z / 0.94) ** 2.4))
        area = (cavity + wall * (1 - 0.35 * z)) ** 2 - cavity**2  # of the wall; muscle does not compress
        if systole:
            cavity, area = cavity * self.shrink, 1.12 * area
        outer = math.sqrt(cavity**2 + area) * math.sqrt(1 - 0.75 * z**6)
        thickness = (outer - cavity) * (1 + self.uneven[0] * np.cos(theta - self.uneven[1]))
        endo = rho - cavity * lobes
        epi = rho - (cavity + thickness) * lobes

        taper = math.sqrt(max(0.0, 1 - (z / self.rv_end) ** 2))
        if taper > 0:
            beat = self.rv_shrink if systole else 1.0
            reach = (self.radius + self.wall) * taper
            middle, a, b = 0.62 * reach, self.rv_depth * reach * beat, self.rv_width * reach * (0.5 + 0.5 * beat)
            rv = (np.hypot((away - middle) / a, along / b) - 1) * min(a, b)
            signal = paint(signal, self.muscle, rv - 2.5, self.pixel)
            signal = paint(signal, self.rv_blood * blood, rv + self.texture, self.pixel)  # trabeculated
            classes[(rv < 0) & (epi > 0)] = RV
        signal = paint(signal, self.muscle, epi, self.pixel)
        classes[epi < 0] = MYO
        if cavity > 2:
            signal = paint(signal, self.blood * blood, endo + 0.7 * self.texture, self.pixel)
            classes[endo < 0] = LV
            if 0.15 < z < 0.75:  # papillary muscles count as cavity
                for angle, reach, radius in self.papillary:
                    spot = np.hypot(x - reach * cavity * math.cos(angle), y - reach * cavity * math.sin(angle)) - radius
                    signal = paint(signal, self.muscle * 1.15, spot, 2 * self.pixel)
        return signal, classes if labeled else np.zeros_like(classes)

    def _chest(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Everything but the heart: chest wall, lungs, liver, stomach, aorta, spine, fat."""
        heart = (self.radius + self.wall) * (1 - 0.4 * min(max(z, 0), 1.2) ** 2)
        bed = np.hypot(x - self.centre[0], y - self.centre[1]) - heart - self.rim
        away = (x - self.centre[0]) * math.cos(self.septum) + (y - self.centre[1]) * math.sin(self.septum)
        x, y = math.cos(self.roll) * x - math.sin(self.roll) * y, math.sin(self.roll) * x + math.cos(self.roll) * y
        width, height, cx, cy = self.body
        skin = ((np.abs((x - cx) / width) ** 2.4 + np.abs((y - cy) / height) ** 2.4) ** (1 / 2.4) - 1) * height
        soft = 1.5 * self.pixel
        wall = skin + self.layers[0] + 2 * self.pericardium
        inside = wall + self.layers[1] + 1.5 * self.texture
        vessels = np.clip(self.vessels - 1.2, 0, 1)
        fat = self.fat * (1 + 0.1 * self.texture)
        signal = paint(np.full(x.shape, 0.01, np.float32), fat, skin, self.pixel)
        signal = paint(signal, self.muscle + 0.15 * self.texture, wall, soft)
        signal = paint(signal, self.lung + 0.5 * vessels, inside, soft)

        # heart's rim and mediastinum: fat and soft tissue in turn, so the heart's border has no constant contrast
        bed = np.minimum(bed - 0.35 * np.clip(away, 0, 40), np.hypot(x - 5, (y - 60) / 1.5) - 22)
        mix = np.clip(0.5 + self.pericardium + 0.3 * self.texture, 0, 1)
        tissue = mix * fat * 0.9 + (1 - mix) * self.muscle
        signal = paint(signal, tissue, np.maximum(bed + 3 * self.pericardium, inside), soft)
        # below the diaphragm: liver on the right, stomach and spleen on the left; more of them towards the apex
        level, slope, bend = self.diaphragm
        dome = level - 28 * z + slope * x + bend * x**2 / 60 - y
        abdomen = np.where(x + 15 * self.pericardium < 10, self.liver, self.stomach) * (1 + 0.1 * self.texture)
        signal = paint(signal, abdomen + 0.4 * vessels, np.maximum(dome, inside), soft)
        for ox, oy, radius, stretch, value in self.organs:
            organ = np.hypot((x - ox) / stretch, (y - oy - 12 * z) * stretch) - radius + 2 * self.pericardium
            signal = paint(signal, self.muscle, np.maximum(organ - 2.5, inside), soft)
            signal = paint(signal, value + 0.08 * self.texture, np.maximum(organ, inside), soft)
        ax, ay, radius = self.aorta
        signal = paint(signal, 0.5 + 0.12 * self.texture, np.hypot(x + 2, y - ay - 22) - 17, soft)
        signal = paint(signal, self.muscle, np.hypot(x - ax, y - ay) - radius - 2, soft)
        return paint(signal, self.blood * 1.02, np.hypot(x - ax, y - ay) - radius, soft)
