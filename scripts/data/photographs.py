"""Reading of photographs: PNG and JPEG as displayed, 8-bit grey or RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import SpaceKeys, ensure_tuple
from PIL import Image, ImageOps

from scripts.utils.files import check_readable

__all__ = ["PHOTOGRAPH_SUFFIXES", "PhotographReader", "is_photograph"]

PHOTOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")  # independent of the suffix; Pillow opens formats such as EPS by executing them
DEPTH, COLOURS = 24, 25  # in a PNG's first chunk: offsets of the bits per channel and of the colour type
CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of a PNG's colours; a palette is of RGB


class PhotographReader(ImageReader):
    """Reads PNG and JPEG for ``LoadImaged``.

    A photograph is a volume of one slice with pixels of unit size, ``[x, y, 1]`` or, with colours, ``[x, y, 1, 3]``, in
    LPS orientation, so that later transforms need to handle volumes only. A camera's resolution in the file is ignored.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all file names end in a suffix of these formats."""
        return all(is_photograph(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> np.ndarray:
        """Read one file.

        Returns:
            pixels as displayed, ``[H, W]`` or ``[H, W, 3]``: the camera's rotation in the metadata is applied, because
            masks are drawn on the displayed image.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: for more than one file, a file that is unreadable, damaged or truncated, or not 8-bit grey or
                RGB.
        """
        files = ensure_tuple(data)
        if len(files) != 1:
            raise ValueError(f"expected one file per image, found {len(files)}: {', '.join(map(str, files))}.")
        path = Path(files[0])
        check_readable(path)
        try:
            with Image.open(path, formats=FORMATS) as file:
                file.verify()  # verifies the checksums, which decoding ignores; the file must be reopened
            with Image.open(path, formats=FORMATS) as file:
                bits, channels = _kind(path, file)
                if bits <= 8 and channels in (1, 3):
                    shown = ImageOps.exif_transpose(file)
                    return np.asarray(shown.convert("L" if channels == 1 else "RGB"))
        except Exception:  # Pillow raises errors of many kinds for damaged files
            raise ValueError(f"{path} is not an image of this type, or is damaged.") from None
        raise ValueError(f"{path}: expected an 8-bit grey or RGB image, found {bits} bits and {channels} channels.")

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """The array and its metadata."""
        array = img.swapaxes(0, 1)[:, :, None]
        meta = {
            "affine": np.diag([-1.0, -1.0, 1.0, 1.0]),
            "original_affine": np.diag([-1.0, -1.0, 1.0, 1.0]),
            "space": SpaceKeys.RAS,
            "spatial_shape": np.asarray(array.shape[:3]),
            "original_channel_dim": -1 if array.ndim == 4 else float("nan"),
        }
        return array, meta


def is_photograph(path: PathLike) -> bool:
    """Whether a file is a photograph by its suffix; its pixels have no size in mm."""
    return Path(path).suffix.lower() in PHOTOGRAPH_SUFFIXES


def _kind(path: Path, file: Image.Image) -> tuple[int, int]:
    """Bits per channel and number of channels in the file; Pillow reads 16-bit colours as 8-bit ones."""
    if file.format == "PNG":
        with open(path, "rb") as stream:
            header = stream.read(COLOURS + 1)
        return header[DEPTH], CHANNELS[header[COLOURS]]
    return 8, 3 if file.mode == "P" else len(file.getbands())
