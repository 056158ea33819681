"""A volume in DICOM files, and one image of such a file; this module needs no DICOM library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from scripts.utils.files import files_below

__all__ = ["SOURCE", "DicomVolume", "Frame", "dicom_module", "holds_dicom", "pseudonym", "starts_as_dicom"]

# A file without a preamble starts with an element of group 2 or 8, followed by its type (explicit VR) or by the short
# length of a usual first element (implicit VR).
_BARE = re.compile(
    rb"[\x02\x08]\0.\0(AE|CS|DA|DT|IS|LO|OB|PN|SH|SQ|TM|UI|UL|US)|\0[\x02\x08]\0.(AE|CS|DA|LO|OB|SH|SQ|UI|UL)"
    rb"|\x08\0[\x00\x01\x05\x08\x16\x18]\0[\x02-\x40]\0\0\0",
    re.DOTALL,
)
SOURCE = "dicom_volume"
"""Key of an image's :class:`DicomVolume` in its metadata."""
PACKAGES = "pydicom highdicom pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg dicomweb-client"


@dataclass(frozen=True)
class Frame:
    """One image of a DICOM file, with its relevant header fields.

    Attributes:
        file: path of the file.
        number: index of the image in the file, from 0.
        study: UID of the study.
        series: UID of the series.
        instance: UID of the file's content.
        reference: UID of the frame of reference, or "".
        size: rows and columns.
        colour: whether it is a photograph.
        orientation: direction cosines of a row and of a column, LPS; () for a photograph, as the next two.
        position: centre of the first voxel in mm, LPS.
        spacing: distance of two rows and of two columns in mm.
        thickness: distance of slices in mm in the header, used for volumes of one slice only.
        temporal: number of the phase, if the header has it.
        trigger: time since the R wave in ms, if the header has it.
        technique: common attributes of series of the same acquisition.
    """

    file: str
    number: int
    study: str
    series: str
    instance: str
    reference: str
    size: tuple[int, int]
    colour: bool = False
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 1.0
    temporal: int | None = None
    trigger: float | None = None
    technique: tuple[str, ...] = ()


class DicomVolume(str):
    """The ``image`` of a record with voxels in DICOM files.

    As text it is a virtual path below the searched folder, ending in ``.dcm``, for messages and the names of results;
    it contains pseudonyms only.

    Args:
        path: the path.
        frames: slices in the order of their positions, or a single photograph.
        affine: ``[4, 4]`` from voxel indices ``[x, y, z]`` (column, row, slice) to RAS millimetres.
        case: pseudonym of the patient, the unit of a split.
        fault: reason in one line why it cannot be read; such volumes represent refused series.
    """

    frames: tuple[Frame, ...]
    affine: np.ndarray
    case: str
    fault: str

    def __new__(
        cls,
        path: str,
        frames: Sequence[Frame] = (),
        affine: np.ndarray | None = None,
        case: str = "",
        fault: str = "",
    ) -> DicomVolume:
        """Its text is the path only."""
        self = super().__new__(cls, path)
        self.frames = tuple(frames)
        self.affine = np.eye(4) if affine is None else affine
        self.case = case
        self.fault = fault
        return self

    @property
    def files(self) -> list[str]:
        """The files, each once, in the order of the slices."""
        return list(dict.fromkeys(frame.file for frame in self.frames))

    @property
    def is_photograph(self) -> bool:
        """Whether it is a photograph, whose pixels have no size in mm."""
        return self.frames[0].colour


def pseudonym(uid: str, salt: bytes = b"") -> str:
    """Ten hexadecimal digits for a UID, not reversible without the salt.

    Args:
        uid: the UID to hide.
        salt: at most 64 bytes.
    """
    return hashlib.blake2b(uid.encode(), key=salt, digest_size=5).hexdigest()


def starts_as_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with a preamble or, as before 1993, with its first element."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or _BARE.match(start) is not None


def holds_dicom(path: Path) -> bool:
    """Whether a file, or any file of a folder and its subfolders, is DICOM."""
    return any(starts_as_dicom(file) for file in (files_below(path) if path.is_dir() else [path]) if file.is_file())


def dicom_module(name: str) -> ModuleType:
    """A module of :mod:`scripts.data.dicom`, or of another package, imported on demand.

    Args:
        name: name of the module; one of another package has a dot in its name.

    Raises:
        ValueError: if the packages for DICOM are not installed.
    """
    try:
        return import_module(name if "." in name else f"scripts.data.dicom.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("scripts"):
            raise
        raise ValueError(
            f"DICOM needs the extra 'dicom', which is not installed (no module '{error.name}'): pip install {PACKAGES}"
        ) from None
