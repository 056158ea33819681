"""Cardiac measurements: volumes in mL and ejection fractions, and their agreement with the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.report.cases import Case

__all__ = ["Agreement", "Ejection", "agreement", "ejections", "left_ventricle", "volumes"]

_FRAME = re.compile(r"_frame(\d+)")
_LV = {"lv", "left ventricle", "left ventricular cavity"}


@dataclass(frozen=True)
class Agreement:
    """Agreement of two methods of measurement (Bland and Altman, Lancet 1986).

    Attributes:
        bias: mean difference.
        limits: lower and upper limit of agreement, the mean -+ 1.96 standard deviations of the differences.
        correlation: Pearson's; NaN where one side does not vary.
        count: number of pairs.
    """

    bias: float
    limits: tuple[float, float]
    correlation: float
    count: int


def agreement(reference: NDArray[np.float64], measured: NDArray[np.float64]) -> Agreement:
    """Agreement of measured values with reference values ``[N]``, N at least 2."""
    difference = measured - reference
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    varies = reference.std() > 0 and measured.std() > 0
    correlation = float(np.corrcoef(reference, measured)[0, 1]) if varies else float("nan")
    return Agreement(bias, (bias - spread, bias + spread), correlation, len(difference))


def volumes(cases: Sequence[Case], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Volumes of a class in the labels and the predictions, in mL ``[cases]``."""
    labeled = np.array([case.labeled[number] * case.millilitres for case in cases])
    return labeled, np.array([case.predicted[number] * case.millilitres for case in cases])


def left_ventricle(names: Sequence[str]) -> int | None:
    """Number of the class with a name of the left ventricle's cavity; None without one."""
    found = [number for number, name in enumerate(names, start=1) if name.lower() in _LV]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Ejection:
    """Ejection fraction of one patient.

    Attributes:
        patient: the patient.
        diastole: index of the case at end diastole (ED).
        systole: index of the case at end systole (ES).
        labeled: ejection fraction from the labels, in percent.
        predicted: from the predictions; NaN if they show no ventricle at ED.
        source: origin of the assignment of ED and ES.
    """

    patient: str
    diastole: int
    systole: int
    labeled: float
    predicted: float
    source: str


def ejections(cases: Sequence[Case], number: int) -> list[Ejection]:
    """Ejection fractions, ``(EDV - ESV) / EDV``, of the patients who have exactly two cases.

    ED and ES are the frames in ``Info.cfg`` in the image's folder (ACDC), else ED is the case with the larger labelled
    left ventricle. Label and prediction are measured on the same two cases.

    Args:
        cases: cases with spacing.
        number: class of the left ventricle's cavity.
    """
    labeled, predicted = volumes(cases, number)
    patients: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        patients.setdefault(case.patient, []).append(index)
    found = []
    for patient, indices in patients.items():
        if len(indices) != 2:
            continue
        by_file = _phases([cases[i] for i in indices])
        first, second = indices
        diastole, systole = (first, second) if labeled[first] >= labeled[second] else (second, first)
        if by_file is not None:
            diastole, systole = indices[by_file[0]], indices[by_file[1]]
        if labeled[diastole] > 0:
            fractions = [
                100 * (sides[diastole] - sides[systole]) / sides[diastole] if sides[diastole] else float("nan")
                for sides in (labeled, predicted)
            ]
            source = "Info.cfg" if by_file is not None else "the larger labelled ventricle"
            found.append(Ejection(patient, diastole, systole, fractions[0], fractions[1], source))
    return found


def _phases(cases: Sequence[Case]) -> tuple[int, int] | None:
    """ED and ES of two cases from ACDC's ``Info.cfg``; None if it lacks them."""
    info = Path(cases[0].file).with_name("Info.cfg")
    frames = [_FRAME.search(Path(case.file).name) for case in cases]
    if not info.is_file() or not all(frames):
        return None
    lines = (line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines())
    said = {key.strip(): value.strip() for key, _, value in lines}
    numbers = [int(frame[1]) for frame in frames if frame]
    try:
        return numbers.index(int(said["ED"])), numbers.index(int(said["ES"]))
    except (KeyError, ValueError):
        return None
