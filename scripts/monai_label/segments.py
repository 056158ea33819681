"""Mapping of the segments of viewers and archives to the classes: by name, never by position."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from scripts.data.readers import is_photograph
from scripts.utils.errors import one_line
from scripts.utils.files import replacing

__all__ = ["ClassTerms", "Segment", "conform_label", "dicom_segments", "listed_segments"]

# Words without a meaning for the structure: "Left ventricle of heart" is the left ventricle.
_FILLERS = {"of", "the", "heart", "cardiac", "structure", "segment", "cavity", "blood", "pool", "entire"}
_MONAI_LABEL = "MONAILABEL"  # how a DICOM SEG names MONAI Label as its algorithm
_ALIGNED = 0.25  # voxels: tolerance between the grids of label and image


@dataclass(frozen=True)
class Segment:
    """A segment of a label.

    Attributes:
        value: value of its voxels.
        names: its names, the most specific one first.
        code: SNOMED CT code of its type, if any.
    """

    value: int
    names: tuple[str, ...]
    code: str | None = None


class ClassTerms:
    """Names and codes of the classes in viewers.

    Case, the order of words, and words such as "of heart" are ignored.

    Args:
        names: name of each foreground class by its number as text.
        synonyms: further names by class.
        codes: ``{"scheme", "value", "meaning"}`` by class.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        codes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.names = {int(number): str(name) for number, name in sorted(names.items(), key=lambda item: int(item[0]))}
        self._terms: dict[tuple[str, ...], int] = {}
        self._codes = {str(code["value"]): int(number) for number, code in (codes or {}).items()}
        for number, name in self.names.items():
            code = (codes or {}).get(str(number), {})
            for term in (name, *(synonyms or {}).get(str(number), ()), code.get("meaning", name)):
                self._terms.setdefault(_words(term), number)

    def classes(self, segments: Sequence[Segment]) -> dict[int, int]:
        """The class of each segment, by the value of its voxels.

        Raises:
            ValueError: if a segment is none of the classes, or two are the same class.
        """
        found: dict[int, int] = {}
        for segment in segments:
            number = self._class(segment)
            if number in found.values():
                raise ValueError(f"two segments are {self.names[number]}")
            found[segment.value] = number
        return found

    def _class(self, segment: Segment) -> int:
        for name in segment.names:
            if (number := self._terms.get(_words(name))) is not None:
                return number
        if segment.code in self._codes:
            return self._codes[segment.code]
        expected = ", ".join(self.names.values())
        raise ValueError(f"the segment '{segment.names[0]}' is none of {expected}")


def _words(name: str) -> tuple[str, ...]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold().replace("ventricular", "ventricle")
    return tuple(sorted(word for word in re.findall(r"[^\W_]+", spaced) if word not in _FILLERS))


def listed_segments(info: Mapping[str, Any]) -> list[Segment]:
    """The segments that a viewer lists with a label; may be empty.

    3D Slicer and OHIF number the voxels by the segments' positions in their list, not by the number given with a name.

    Args:
        info: entry of a label in the datastore's index.
    """
    listed = info.get("label_info") or []
    if not listed or not all("name" in segment for segment in listed):
        return []
    return [Segment(place, (str(segment["name"]),)) for place, segment in enumerate(listed, 1)]


def dicom_segments(folder: Path, classes: int) -> list[Segment]:
    """The segments of the DICOM SEG in a folder; their number is their voxels' value.

    Args:
        folder: folder with the files of one series, as MONAI Label fetches it from an archive.
        classes: number of classes.

    Raises:
        ValueError: if the folder does not have exactly one DICOM SEG, or one by MONAI Label that lacks a class.
    """
    import pydicom  # installed with MONAI Label; the bundle needs it only here

    files = sorted(path for path in folder.iterdir() if path.is_file())
    try:
        datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    except Exception as error:
        raise ValueError(f"{folder}: cannot be read as DICOM: {one_line(error)}") from None
    items = [dataset.SegmentSequence for dataset in datasets if "SegmentSequence" in dataset]
    if len(items) != 1:
        raise ValueError(f"{folder}: expected one DICOM SEG, found {len(items)}")
    if len(items[0]) < classes and any(item.get("SegmentAlgorithmName") == _MONAI_LABEL for item in items[0]):
        # It numbers the names consecutively, even if a structure in between was not drawn.
        raise ValueError(
            f"MONAI Label stored it with {len(items[0])} of {classes} structures, and then confuses their names"
        )
    return [_dicom_segment(item) for item in items[0]]


def _dicom_segment(item: Any) -> Segment:
    names = [str(item.get("SegmentLabel", ""))]
    code: str | None = None
    for kind in item.get("SegmentedPropertyTypeCodeSequence") or ():
        meaning, code = str(kind.get("CodeMeaning", "")), str(kind.get("CodeValue", ""))
        sides = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
        names += [f"{side.get('CodeMeaning', '')} {meaning}" for side in sides] or [meaning]
    return Segment(int(item.SegmentNumber), tuple(name for name in names if name) or ("",), code)


def conform_label(image: Path, label: Path, classes: Mapping[int, int], target: Path) -> Path:
    """A label with the classes' numbers on its image's grid.

    Archives omit empty slices. A label on a part of the image's grid is padded with background, by geometry; a label on
    another grid is unchanged and refused later by :func:`scripts.data.checks.check_grids`.

    Args:
        image: the study.
        label: its label.
        classes: class of each value; empty: values are classes.
        target: file for a converted label, ``.nii.gz``.

    Returns:
        ``label`` if it needed no conversion, else ``target``.

    Raises:
        ValueError: if the label cannot be read or has values without a segment.
    """
    same_values = all(value == number for value, number in classes.items())
    try:
        partly = not is_photograph(image) and _fits_partly(_grid(image), _grid(label))
        if same_values and not partly:
            return label
        mask = sitk.ReadImage(str(label))
        values = np.unique(sitk.GetArrayViewFromImage(mask))
    except RuntimeError:
        if same_values:
            return label  # the preprocessing reports the faulty file
        raise ValueError(f"{label} is not an image of this type, or is damaged.") from None
    strange = [f"{value:g}" for value in values if value != 0 and classes and value not in classes]
    if strange:
        raise ValueError(f"{label}: expected the values of its segments, found {', '.join(strange[:5])}")
    mask = sitk.ChangeLabel(sitk.Cast(mask, sitk.sitkUInt16), {float(k): float(v) for k, v in classes.items()})
    if partly:
        size, origin, spacing, direction = _grid(image)
        mask = sitk.Resample(
            mask, size, sitk.Transform(), sitk.sitkNearestNeighbor, origin, spacing, direction, 0, sitk.sitkUInt16
        )
    with replacing(target) as temporary:
        sitk.WriteImage(mask, str(temporary), True)
    return target


Grid = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _grid(path: Path) -> Grid:
    """Size, origin, spacing and direction in a file's header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize(), reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection()


def _matrix(grid: Grid) -> np.ndarray:
    """``[4, 4]`` from voxel indices to millimetres."""
    _, origin, spacing, direction = grid
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    matrix[:3, 3] = origin
    return matrix


def _fits_partly(image: Grid, label: Grid) -> bool:
    """Whether a label lies on a part of its image's grid, or on all of it with another order of axes."""
    if (
        len(image[0]) != 3
        or len(label[0]) != 3
        or (image[0] == label[0] and np.allclose(image[3], label[3], atol=0.01))
    ):
        return False
    to_image = np.linalg.inv(_matrix(image)) @ _matrix(label)
    corners = np.array([[*corner, 1] for corner in product(*((0, length - 1) for length in label[0]))]).T
    places = (to_image @ corners)[:3]
    steps = np.abs(to_image[:3, :3])
    one_to_one = np.array_equal(np.sort(np.round(steps), axis=0)[:2], np.zeros((2, 3))) and np.round(steps).max() == 1
    inside = places.min() > -_ALIGNED and bool((places.max(axis=1) < np.array(image[0]) - 1 + _ALIGNED).all())
    return bool(one_to_one and inside and np.abs(places - np.round(places)).max() < _ALIGNED)
